import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import {
  findRedisServer,
  type RedisServer,
  redisServerMissing,
  startRedisServer,
} from "../../test/support/redis-server.ts";
import { Secret } from "../lib/secret.ts";
import { createMemoryRateLimiter, type RateLimitDecision, windowMs } from "../limits/rate-limit.ts";
import { createRedisClient } from "./redis-client.ts";
import { createRedisRateLimiter } from "./redis-rate-limiter.ts";

/** What a first call may take longer because of an outage: 150 ms of waiting, and a margin for a busy machine. */
const firstCallMsMax = 250;
/** What every later call may take: no waiting at all. */
const laterCallMsMax = 50;

const erp = { id: "erp", rpm: 5 };

describe("the limiter without a Redis", () => {
  it("decides at once, holds the limit in this process, and says once that it is on its own", async () => {
    const gateway = await startGateway("redis://127.0.0.1:1");
    const { decisions, slowestMs } = await gateway.consume(1000);
    expect(allowedOf(decisions)).toBe(5);
    expect(slowestMs).toBeLessThan(firstCallMsMax);
    expect(gateway.limiter.mode).toBe("degraded");
    expect(gateway.changes).toEqual(["degraded"]);
    expect(gateway.modeLines()).toEqual(["rate limits are kept by each process on its own"]);
  });
});

const executable = findRedisServer() ?? "";

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "the limiter in an outage of Redis",
  () => {
    it("is shared from the start when Redis is there", async () => {
      const gateway = await startGateway((await startServer()).url);
      await gateway.consume(1);
      expect(gateway.limiter.mode).toBe("shared");
      expect(gateway.changes).toEqual([]);
    });

    it("goes on counting where Redis stopped, without a failure", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      expect(allowedOf((await gateway.consume(3)).decisions)).toBe(3);
      await server.stop();
      const { decisions, slowestMs } = await gateway.consume(20);
      expect(allowedOf(decisions)).toBe(2);
      expect(slowestMs).toBeLessThan(firstCallMsMax);
    });

    it("delays only the calls that find out that Redis hangs, and those by little", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      await gateway.consume(1);
      server.pause();
      const first = await gateway.consume(100);
      expect(first.slowestMs).toBeLessThan(firstCallMsMax);
      expect(allowedOf(first.decisions)).toBe(4);
      const later = await gateway.consume(100);
      expect(later.slowestMs).toBeLessThan(laterCallMsMax);
      expect(allowedOf(later.decisions)).toBe(0);
    });

    it("delays no call while it looks whether a hanging Redis is back", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      server.pause();
      await gateway.consume(1);
      let slowestMs = 0;
      const until = performance.now() + 1300;
      await vi.waitFor(async () => {
        slowestMs = Math.max(slowestMs, (await gateway.consume(1)).slowestMs);
        expect(performance.now()).toBeGreaterThan(until);
      }, 5000);
      expect(slowestMs).toBeLessThan(laterCallMsMax);
      expect(gateway.changes).toEqual(["degraded"]);
    });

    it("shares limits again soon after a hanging Redis goes on", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      server.pause();
      await gateway.consume(1);
      server.resume();
      await gateway.untilMode("shared");
      expect(gateway.changes).toEqual(["degraded", "shared"]);
      expect(gateway.modeLines()).toEqual([
        "rate limits are kept by each process on its own",
        "rate limits are shared through redis again",
      ]);
      expect(await gateway.redis.exists("formdev:rpm:erp")).toBe(1);
    });

    it("lets no process allow more than the limit when Redis comes back empty", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      expect(allowedOf((await gateway.consume(3)).decisions)).toBe(3);
      await server.stop();
      expect(allowedOf((await gateway.consume(1)).decisions)).toBe(1);
      await server.start();
      await gateway.untilMode("shared");
      expect(allowedOf((await gateway.consume(10)).decisions)).toBe(1);
    });

    it("goes by Redis alone once a window has passed since the outage", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      vi.useFakeTimers({ toFake: ["performance"] });
      onTestFinished(() => void vi.useRealTimers());
      await server.stop();
      await gateway.consume(10);
      await server.start();
      await gateway.untilMode("shared");
      expect(allowedOf((await gateway.consume(1)).decisions)).toBe(0);
      vi.advanceTimersByTime(windowMs);
      expect(allowedOf((await gateway.consume(1)).decisions)).toBe(1);
    });

    it("lets two gateways allow the limit once each, and no more", async () => {
      const server = await startServer();
      const one = await startGateway(server.url);
      const other = await startGateway(server.url);
      await server.stop();
      const both = await Promise.all([one.consume(100), other.consume(100)]);
      expect(both.map(({ decisions }) => allowedOf(decisions))).toEqual([5, 5]);
    });

    it.each([
      ["is full", ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"]],
      ["has become a replica", ["REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"]],
    ])("is on its own, in one go, while Redis answers but %s", async (_, [breakIt, mendIt]) => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      await gateway.command(breakIt);
      expect(allowedOf((await gateway.consume(10)).decisions)).toBe(5);
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
      await gateway.consume(1);
      line.setDelayMs(300);
      const first = await gateway.consume(20);
      expect(first.slowestMs).toBeLessThan(firstCallMsMax);
      const later = await gateway.consume(20);
      expect(later.slowestMs).toBeLessThan(laterCallMsMax);
      expect(allowedOf([...first.decisions, ...later.decisions])).toBe(4);
      line.setDelayMs(0);
      await gateway.untilMode("shared");
    });

    it("reports every change once when Redis comes and goes", async () => {
      const server = await startServer();
      const gateway = await startGateway(server.url);
      for (let round = 0; round < 3; round += 1) {
        server.pause();
        const { decisions, slowestMs } = await gateway.consume(50, { id: `erp-${round}`, rpm: 5 });
        expect(allowedOf(decisions)).toBe(5);
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
      const last = gateway.consume(3);
      await gateway.limiter[Symbol.asyncDispose]();
      expect(allowedOf((await last).decisions)).toBe(3);
      expect(gateway.changes).toEqual([]);
    });
  },
);

async function startServer(): Promise<RedisServer> {
  const server = await startRedisServer(executable);
  onTestFinished(() => server[Symbol.asyncDispose]());
  return server;
}

/** One gateway's worth of limiter, until the end of the test. */
async function startGateway(url: string) {
  const stack = new AsyncDisposableStack();
  onTestFinished(() => stack.disposeAsync());
  const log = { info: vi.fn(), warn: vi.fn() };
  const client = stack.use(createRedisClient(new Secret(url), { info: vi.fn(), warn: vi.fn() }));
  await client.connect();
  const changes: string[] = [];
  const limiter = stack.use(
    createRedisRateLimiter({
      client: client.commands,
      fallback: createMemoryRateLimiter(),
      log,
      onModeChange: (mode) => changes.push(mode),
    }),
  );
  return {
    limiter,
    redis: client.commands,
    changes,
    modeLines: (): unknown[] =>
      [...log.warn.mock.calls, ...log.info.mock.calls].map((line) => line.at(-1)),
    command: async (line = "") => {
      const [name = "", ...args] = line.split(" ");
      await client.commands.call(name, args);
    },
    untilMode: (mode: string) => vi.waitFor(() => expect(limiter.mode).toBe(mode), 8000),
    /** Makes `count` calls at once. */
    consume: async (count: number, caller = erp) => {
      const timed = await Promise.all(
        Array.from({ length: count }, async () => {
          const startedAt = performance.now();
          const decision = await limiter.consume(caller);
          return { decision, tookMs: performance.now() - startedAt };
        }),
      );
      return {
        decisions: timed.map(({ decision }) => decision),
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

function allowedOf(decisions: readonly RateLimitDecision[]): number {
  return decisions.filter((decision) => decision.allowed).length;
}
