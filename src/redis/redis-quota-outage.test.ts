import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { isGrant, newCall, newClient } from "../../test/support/quota-guarantees.ts";
import { openRedisQuota } from "../../test/support/redis-quota.ts";
import {
  findRedisServer,
  type RedisServer,
  redisServerMissing,
  startRedisServer,
} from "../../test/support/redis-server.ts";
import { dayMs, type LimitedClient, minuteMs } from "../limits/limits.ts";
import type { Grant, QuotaCall } from "../limits/quota.ts";

/** What a first call may take longer because of an outage: 150 ms of waiting, and a margin for a busy machine. */
const firstCallMsMax = 250;
/** What every later call may take: no waiting at all. */
const laterCallMsMax = 50;

describe("the quota without a Redis", () => {
  it("decides at once, holds the limits in this gateway, and says once that it is on its own", async () => {
    const gateway = await startGateway("redis://127.0.0.1:1");
    const client = newClient({ rpm: 5 });
    const { grants, slowestMs } = await gateway.take(1000, client);
    expect(grants).toHaveLength(5);
    expect(slowestMs).toBeLessThan(firstCallMsMax);
    expect(gateway.quota.mode).toBe("degraded");
    expect(gateway.changes).toEqual(["degraded"]);
    expect(gateway.modeLines()).toEqual(["limits are kept by each gateway on its own"]);
    expect(gateway.quota.standing(client)).toMatchObject({ remaining: 0 });
    expect(await gateway.quota.usage(client)).toMatchObject([{ name: "rpm", used: 5 }]);
  });
});

const executable = findRedisServer() ?? "";

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "the quota in an outage of Redis",
  () => {
    it("is shared from the start when Redis is there", async () => {
      const gateway = await startGateway((await startServer()).url);
      await gateway.take(1, newClient({ rpm: 1 }));
      expect(gateway.quota.mode).toBe("shared");
      expect(gateway.changes).toEqual([]);
    });

    it("goes on counting every limit where Redis stopped, without a failure", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const clients = [
        newClient({ rpm: 5 }),
        newClient({ tpm: 5 }),
        newClient({ concurrency: 5 }),
        newClient({ dailyTokens: 5 }, { mistral: { monthlyTokens: 100 } }),
      ];
      for (const client of clients) expect((await gateway.take(3, client)).grants).toHaveLength(3);
      await server.stop();
      for (const client of clients) {
        const { grants, slowestMs } = await gateway.take(20, client);
        expect(grants).toHaveLength(2);
        expect(slowestMs).toBeLessThan(firstCallMsMax);
      }
    });

    it("delays only the calls that find out that Redis hangs, and those by little", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const client = newClient({ rpm: 5 });
      await gateway.take(1, client);
      server.pause();
      const first = await gateway.take(100, client);
      expect(first.slowestMs).toBeLessThan(firstCallMsMax);
      expect(first.grants).toHaveLength(4);
      const later = await gateway.take(100, client);
      expect(later.slowestMs).toBeLessThan(laterCallMsMax);
      expect(later.grants).toHaveLength(0);
    });

    it("delays no call while it looks whether a hanging Redis is back", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const client = newClient({ rpm: 5 });
      server.pause();
      await gateway.take(1, client);
      let slowestMs = 0;
      const until = performance.now() + 1300;
      await vi.waitFor(async () => {
        slowestMs = Math.max(slowestMs, (await gateway.take(1, client)).slowestMs);
        expect(performance.now()).toBeGreaterThan(until);
      }, 5000);
      expect(slowestMs).toBeLessThan(laterCallMsMax);
      expect(gateway.changes).toEqual(["degraded"]);
    });

    it("shares limits again soon after a hanging Redis goes on", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      server.pause();
      await gateway.take(1, newClient({ rpm: 5 }));
      server.resume();
      await gateway.untilMode("shared");
      expect(gateway.changes).toEqual(["degraded", "shared"]);
      expect(gateway.modeLines()).toEqual([
        "limits are kept by each gateway on its own",
        "limits are shared through redis again",
      ]);
      const other = await startGateway(server.url);
      const client = newClient({ tpm: 5 });
      const both = await Promise.all([gateway.take(5, client), other.take(5, client)]);
      expect(both.flatMap(({ grants }) => grants)).toHaveLength(5);
    });

    it("lets no gateway allow more than any limit when Redis comes back empty", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const clients = [
        newClient({ rpm: 5 }),
        newClient({ tpm: 5 }),
        newClient({ concurrency: 5 }),
        newClient({ dailyTokens: 5 }),
        newClient({ monthlyTokens: 5 }),
      ];
      for (const client of clients) expect((await gateway.take(3, client)).grants).toHaveLength(3);
      await server.stop();
      for (const client of clients) expect((await gateway.take(1, client)).grants).toHaveLength(1);
      await server.start();
      await gateway.untilMode("shared");
      for (const client of clients) {
        expect((await gateway.take(10, client)).grants).toHaveLength(1);
        // What was refused here is taken of nothing in Redis either.
        expect(await gateway.quota.usage(client)).toMatchObject([{ used: 1 }]);
      }
    });

    it("goes by Redis alone once the windows of the outage are over", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const minute = newClient({ rpm: 1 });
      const day = newClient({ dailyTokens: 1 });
      await server.stop();
      for (const client of [minute, day]) await gateway.take(1, client);
      await server.start();
      await gateway.untilMode("shared");
      for (const client of [minute, day]) {
        expect((await gateway.take(1, client)).grants).toHaveLength(0);
      }
      const { now } = Date;
      const later = vi.spyOn(Date, "now");
      onTestFinished(() => later.mockRestore());
      later.mockImplementation(() => now() + minuteMs);
      expect((await gateway.take(1, minute)).grants).toHaveLength(1);
      later.mockImplementation(() => now() + dayMs);
      expect((await gateway.take(1, day)).grants).toHaveLength(1);
    });

    it("lets two gateways allow the limit once each, and no more", async () => {
      const server = await startServer();
      const one = await startGateway(server.url);
      const other = await startGateway(server.url);
      const client = newClient({ dailyTokens: 5 });
      await server.stop();
      const both = await Promise.all([one.take(100, client), other.take(100, client)]);
      expect(both.map(({ grants }) => grants.length)).toEqual([5, 5]);
    });

    it.each([
      ["is full", ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"]],
      ["has become a replica", ["REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"]],
    ])("is on its own, in one go, while Redis answers but %s", async (_, [breakIt, mendIt]) => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      await gateway.command(breakIt);
      expect((await gateway.take(10, newClient({ rpm: 5, tpm: 100 }))).grants).toHaveLength(5);
      // Two probes later nothing has changed, although PING is answered.
      const probes = vi.spyOn(gateway.redis, "sendCommand");
      await vi.waitFor(() => expect(probes.mock.calls.length).toBeGreaterThanOrEqual(2), 5000);
      expect(await gateway.redis.ping()).toBe("PONG");
      expect(gateway.changes).toEqual(["degraded"]);

      await gateway.command(mendIt);
      await gateway.untilMode("shared");
      expect(gateway.changes).toEqual(["degraded", "shared"]);
    });

    it("does without a Redis that takes 300 ms, from its first answer on", async () => {
      const server = await startServer();
      const line = await startSlowLine(server.url);
      const gateway = await startGateway(line.url);
      const client = newClient({ rpm: 5 });
      await gateway.take(1, client);
      line.setDelayMs(300);
      const first = await gateway.take(20, client);
      expect(first.slowestMs).toBeLessThan(firstCallMsMax);
      const later = await gateway.take(20, client);
      expect(later.slowestMs).toBeLessThan(laterCallMsMax);
      expect([...first.grants, ...later.grants]).toHaveLength(4);
      line.setDelayMs(0);
      await gateway.untilMode("shared");
    });

    it("reports every change once when Redis comes and goes", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      for (let round = 0; round < 3; round += 1) {
        server.pause();
        const { grants, slowestMs } = await gateway.take(50, newClient({ rpm: 5 }));
        expect(grants).toHaveLength(5);
        expect(slowestMs).toBeLessThan(firstCallMsMax);
        server.resume();
        await gateway.untilMode("shared");
      }
      const pair = ["degraded", "shared"];
      expect(gateway.changes).toEqual([...pair, ...pair, ...pair]);
      expect(gateway.modeLines()).toHaveLength(6);
    });

    it("asks Redis no more and reports nothing once it is disposed of", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      server.pause();
      const last = gateway.take(3, newClient({ rpm: 5 }));
      await gateway.quota[Symbol.asyncDispose]();
      expect((await last).grants).toHaveLength(3);
      expect(gateway.changes).toEqual([]);
    });
  },
);

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "calls that end while Redis is away",
  () => {
    const limits = { rpm: 100, tpm: 1000, concurrency: 4, dailyTokens: 1000 };
    const usageOf = async (gateway: Gateway, client: LimitedClient) =>
      Object.fromEntries((await gateway.quota.usage(client)).map(({ name, used }) => [name, used]));

    it("are put right in Redis when it is back, and count as running no more", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const client = newClient(limits);
      const { grants } = await gateway.take(4, client, { tokens: 100 });
      const [first, second, ...others] = grants;
      server.pause();
      // The first finds out that Redis hangs, the others know.
      first?.settle(10);
      first?.[Symbol.dispose]();
      await gateway.untilMode("degraded");
      second?.cancel();
      for (const grant of others) {
        grant.settle(20);
        grant[Symbol.dispose]();
      }
      expect(await usageOf(gateway, client)).toEqual(used(3, 50));
      server.resume();
      await gateway.untilMode("shared");
      expect(await usageOf(gateway, client)).toEqual(used(3, 50));
      expect((await gateway.take(9, client)).grants).toHaveLength(4);
    });

    it("change nothing in a Redis that has lost them, nor twice in one that has not", async () => {
      const server = await startServer();
      const line = await startSlowLine(server.url);
      const gateway = await startGateway(line.url);
      const client = newClient(limits);
      const { grants } = await gateway.take(2, client, { tokens: 100 });
      // Redis hears it, but its answer comes too late: so it is told again.
      line.setDelayMs(300);
      grants[0]?.cancel();
      await gateway.untilMode("degraded");
      line.setDelayMs(0);
      await gateway.untilMode("shared");
      expect(await usageOf(gateway, client)).toEqual(used(1, 100, 1));
      await gateway.redis.flushall();
      await gateway.take(1, client, { tokens: 50 });
      grants[1]?.cancel();
      expect(await usageOf(gateway, client)).toEqual(used(1, 50, 1));
    });

    it("are forgotten by a Redis that has counted them without an answer, whoever decided then", async () => {
      const server = await startServer();
      const line = await startSlowLine(server.url);
      const gateway = await startGateway(line.url);
      const client = newClient({ concurrency: 2, dailyTokens: 1000 });
      await gateway.take(1, newClient({ rpm: 1 }));
      line.setDelayMs(300);
      const { grants } = await gateway.take(2, client, { tokens: 100 });
      expect(grants).toHaveLength(2);
      for (const grant of grants) {
        grant.settle(30);
        grant[Symbol.dispose]();
      }
      line.setDelayMs(0);
      await gateway.untilMode("shared");
      expect(await usageOf(gateway, client)).toEqual({ concurrency: 0, dailyTokens: 60 });
    });

    it("are forgotten also when they were refused for the lack of an answer", async () => {
      const server = await startServer();
      const line = await startSlowLine(server.url);
      const gateway = await startGateway(line.url);
      const client = newClient({ concurrency: 2, dailyTokens: 1000 });
      await gateway.take(2, client);
      await gateway.redis.flushall();
      line.setDelayMs(300);
      expect((await gateway.take(1, client, { tokens: 100 })).grants).toHaveLength(0);
      line.setDelayMs(0);
      await gateway.untilMode("shared");
      expect(await usageOf(gateway, client)).toEqual({ concurrency: 0, dailyTokens: 0 });
    });

    it("are settled where they were counted when they began in an outage", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      const client = newClient(limits);
      await server.stop();
      const { grants } = await gateway.take(4, client, { tokens: 100 });
      await server.start();
      await gateway.untilMode("shared");
      // Four run here, of which Redis knows nothing.
      expect((await gateway.take(1, client)).grants).toHaveLength(0);
      for (const grant of grants) grant[Symbol.dispose]();
      expect((await gateway.take(5, client)).grants).toHaveLength(4);
      expect(await usageOf(gateway, client)).toEqual(used(4, 4, 4));
    });

    function used(rpm: number, tokens: number, concurrency = 0) {
      return { rpm, tpm: tokens, concurrency, dailyTokens: tokens };
    }
  },
);

async function startServer(): Promise<RedisServer> {
  const server = await startRedisServer(executable);
  onTestFinished(() => server[Symbol.asyncDispose]());
  return server;
}

type Gateway = Awaited<ReturnType<typeof startGateway>>;

/** One gateway's worth of quota, until the end of the test. */
async function startGateway(url: string) {
  const gateway = await openRedisQuota(url);
  const { quota, redis, log, changes } = gateway;
  onTestFinished(() => gateway[Symbol.asyncDispose]());
  return {
    quota,
    redis,
    changes,
    modeLines: (): unknown[] =>
      [...log.warn.mock.calls, ...log.info.mock.calls].map((line) => line.at(-1)),
    command: async (line = "") => {
      const [name = "", ...args] = line.split(" ");
      await redis.call(name, args);
    },
    untilMode: (mode: string) => vi.waitFor(() => expect(quota.mode).toBe(mode), 8000),
    /** Makes `count` calls at once. */
    take: async (
      count: number,
      limited: LimitedClient,
      call: Partial<QuotaCall> = {},
    ): Promise<{ grants: Grant[]; slowestMs: number }> => {
      const timed = await Promise.all(
        Array.from({ length: count }, async () => {
          const startedAt = performance.now();
          const answer = await quota.take(newCall(limited, call));
          return { answer, tookMs: performance.now() - startedAt };
        }),
      );
      return {
        grants: timed.map(({ answer }) => answer).filter(isGrant),
        slowestMs: Math.max(...timed.map(({ tookMs }) => tookMs)),
      };
    },
  };
}

/** A way to Redis on which every answer can be made late. */
async function startSlowLine(url: string) {
  const port = Number(new URL(url).port);
  let delayMs = 0;
  const proxy = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    near.pipe(far);
    far.on("data", (bytes) => setTimeout(() => near.write(bytes), delayMs));
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
  }).listen(0, "127.0.0.1");
  onTestFinished(() => void proxy.close());
  await once(proxy, "listening");
  return {
    url: `redis://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    setDelayMs: (ms: number) => {
      delayMs = ms;
    },
  };
}
