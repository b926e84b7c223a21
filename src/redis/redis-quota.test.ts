import { hash } from "node:crypto";
import type { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import {
  isGrant,
  newCall,
  newClient,
  quotaGuarantees,
} from "../../test/support/quota-guarantees.ts";
import { openRedisQuota } from "../../test/support/redis-quota.ts";
import {
  findRedisServer,
  type RedisServer,
  redisServerMissing,
  startRedisServer,
} from "../../test/support/redis-server.ts";
import { dayMs, minuteMs } from "../limits/limits.ts";
import type { Grant, Refused } from "../limits/quota.ts";
import { releaseLua, takeLua } from "./quota-scripts.ts";

const executable = findRedisServer() ?? "";

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "the quota that gateways share through Redis",
  () => {
    let server: RedisServer;
    beforeAll(async () => {
      server = await startRedisServer(executable);
    });
    afterAll(async () => {
      await server[Symbol.asyncDispose]();
    });

    quotaGuarantees(async () => {
      const clock = { aheadMs: 0 };
      const realNow = Date.now;
      const set = (time: number) => {
        // In whole seconds, and a little later: it must not stand still or go back in what follows.
        clock.aheadMs = Math.ceil((time - realNow()) / 1000) * 1000;
      };
      set(Date.UTC(2028, 0, 1, 12));
      const ours = vi.spyOn(Date, "now").mockImplementation(() => realNow() + clock.aheadMs);
      const [first, ...others] = [
        await startGateway(server.url, clock),
        await startGateway(server.url, clock),
        await startGateway(server.url, clock),
      ];
      const pass = async (ms: number) => {
        clock.aheadMs += ms;
      };
      return {
        quotas: [first.quota, ...others.map(({ quota }) => quota)],
        driftMs: 5000,
        pass,
        nextDay: () => pass(dayMs),
        async nextMonth() {
          const today = new Date(Date.now());
          set(Date.UTC(today.getUTCFullYear(), today.getUTCMonth() + 1, 1, 12));
        },
        async [Symbol.asyncDispose]() {
          ours.mockRestore();
          for (const gateway of [first, ...others]) await gateway[Symbol.asyncDispose]();
        },
      };
    });

    it("names the first millisecond in which a minute is over", async () => {
      await using gateway = await startGateway(server.url);
      const client = newClient({ rpm: 1 });
      await gateway.quota.take(newCall(client));
      const endsAt = Number(await gateway.redis.hget(`formdev:used:{${client.id}}`, "rpm end"));
      for (let count = 0; count < 50; count += 1) {
        const askedAt = Date.now();
        const { retryAfterMs = 0 } = refusalIn(await gateway.quota.take(newCall(client)));
        expect(Date.now() + retryAfterMs).toBeGreaterThanOrEqual(endsAt);
        expect(askedAt + retryAfterMs).toBeLessThanOrEqual(endsAt);
      }
    });

    it("lets the client in after retryAfterMs, however often it has asked before", async () => {
      const clock = { aheadMs: 0 };
      await using gateway = await startGateway(server.url, clock);
      const client = newClient({ rpm: 1 });
      await gateway.quota.take(newCall(client));
      for (let count = 0; count < 20; count += 1) await gateway.quota.take(newCall(client));
      clock.aheadMs = minuteMs - 1000;
      const { retryAfterMs = 0 } = refusalIn(await gateway.quota.take(newCall(client)));
      expect(retryAfterMs).toBeLessThanOrEqual(1000);
      // A timer may fire a millisecond early.
      await new Promise((resolve) => setTimeout(resolve, retryAfterMs + 1));
      expect(await gateway.quota.take(newCall(client))).toMatchObject({ granted: true });
    });

    it("counts in the day and month that began first, whatever another gateway's clock says", async () => {
      await using gateway = await startGateway(server.url);
      await using other = await startGateway(server.url);
      const client = newClient({ dailyTokens: 10, monthlyTokens: 10 });
      await gateway.quota.take(newCall(client, { tokens: 6 }));
      for (const aheadMs of [-40 * dayMs, -dayMs, -1000, 1000, dayMs, 40 * dayMs]) {
        using clock = vi.spyOn(Date, "now").mockReturnValue(Date.now() + aheadMs);
        for (const { quota } of [gateway, other]) {
          expect(await quota.take(newCall(client, { tokens: 5 }))).toMatchObject({
            granted: false,
          });
        }
        expect(clock).toHaveBeenCalled();
      }
    });

    it("begins a day that is right, or at least no longer than one, when the gateway's clock is wrong", async () => {
      await using gateway = await startGateway(server.url);
      const midnight = (Math.floor(Date.now() / dayMs) + 1) * dayMs;
      const endOf = async (aheadMs: number) => {
        const client = newClient({ dailyTokens: 10 });
        using _ = vi.spyOn(Date, "now").mockReturnValue(Date.now() + aheadMs);
        await gateway.quota.take(newCall(client));
        return Number(await gateway.redis.hget(`formdev:used:{${client.id}}`, "dailyTokens end"));
      };
      // A clock of yesterday: as that of a gateway that is slow at midnight.
      expect(await endOf(-dayMs)).toBe(midnight);
      for (const aheadMs of [-400 * dayMs, 400 * dayMs]) {
        const lastsMs = (await endOf(aheadMs)) - Date.now();
        expect(lastsMs).toBeGreaterThan(0);
        expect(lastsMs).toBeLessThanOrEqual(dayMs);
      }
    });

    it("never makes a client wait longer than a window when Redis's clock is set back", async () => {
      const clock = { aheadMs: 0 };
      await using gateway = await startGateway(server.url, clock);
      const client = newClient({ rpm: 1 });
      await gateway.quota.take(newCall(client));
      clock.aheadMs = -dayMs;
      refusalIn(await gateway.quota.take(newCall(client)));
      clock.aheadMs += minuteMs;
      expect(await gateway.quota.take(newCall(client))).toMatchObject({ granted: true });
    });

    it("counts a lost gateway's calls as running until they are over at the latest, and then no more", async () => {
      const clock = { aheadMs: 0 };
      await using gateway = await startGateway(server.url, clock);
      const client = newClient({ concurrency: 2 }, { mistral: { concurrency: 1 } });
      const lost = newCall(client, { model: "mistral", lastsMs: 30_000 });
      await using other = await startGateway(server.url);
      await other.quota.take(lost);
      const again = () => gateway.quota.take(newCall(client, { model: "mistral" }));
      expect(refusalIn(await again())).toMatchObject({ name: "concurrency", model: "mistral" });
      clock.aheadMs = 30_000;
      refusalIn(await again());
      clock.aheadMs += 5000;
      expect(await again()).toMatchObject({ granted: true });
      expect(await gateway.redis.zcard(`formdev:running:{${client.id}}`)).toBe(1);
    });

    it("puts right what a call has taken once, and not in another window", async () => {
      const clock = { aheadMs: 0 };
      await using gateway = await startGateway(server.url, clock);
      const client = newClient({ tpm: 100, dailyTokens: 1000 });
      const grant = grantIn(await gateway.quota.take(newCall(client, { tokens: 100 })));
      clock.aheadMs = minuteMs;
      await gateway.quota.take(newCall(client, { tokens: 60 }));
      grant.settle(10);
      grant[Symbol.dispose]();
      expect(await gateway.quota.usage(client)).toMatchObject([
        { name: "tpm", used: 60 },
        { name: "dailyTokens", used: 70 },
      ]);
    });

    it("says where a client stands as Redis has said last, for every gateway's calls", async () => {
      await using gateway = await startGateway(server.url);
      await using other = await startGateway(server.url);
      const client = newClient({ rpm: 3 });
      expect(gateway.quota.standing(client)).toEqual({ limit: 3, remaining: 3, resetMs: minuteMs });
      for (const { quota } of [other, other]) await quota.take(newCall(client));
      const grant = grantIn(await gateway.quota.take(newCall(client)));
      expect(gateway.quota.standing(client)).toMatchObject({ limit: 3, remaining: 0 });
      grant.cancel();
      expect(gateway.quota.standing(client)).toMatchObject({ remaining: 1 });
      await other.quota.take(newCall(client));
      refusalIn(await gateway.quota.take(newCall(client)));
      const { remaining, resetMs = 0 } = gateway.quota.standing(client) ?? {};
      expect(remaining).toBe(0);
      expect(resetMs).toBeGreaterThan(minuteMs - 5000);
      expect(resetMs).toBeLessThanOrEqual(minuteMs);
    });

    it("begins anew for clients that were wiped out of Redis, scripts included, and is no less exact", async () => {
      await using gateway = await startGateway(server.url);
      const client = newClient({ rpm: 2, dailyTokens: 100, concurrency: 2 });
      const before = grantIn(await gateway.quota.take(newCall(client, { tokens: 90 })));
      await gateway.redis.flushall();
      await gateway.redis.script("FLUSH");
      const answers = await Promise.all(
        [1, 2, 3].map(() => gateway.quota.take(newCall(client, { tokens: 40 }))),
      );
      // One of the two places is the first call's, which still runs here.
      expect(answers.filter(isGrant)).toHaveLength(1);
      before.cancel();
      for (const grant of answers.filter(isGrant)) grant[Symbol.dispose]();
      await gateway.redis.script("FLUSH");
      grantIn(await gateway.quota.take(newCall(client, { tokens: 40 })));
      const usage = (await gateway.quota.usage(client)).map(({ name, used }) => [name, used]);
      expect(Object.fromEntries(usage)).toEqual({ rpm: 2, concurrency: 1, dailyTokens: 80 });
      expect(gateway.changes).toEqual([]);
    });

    it("keeps all of a client on one node of a cluster, for no longer than it counts", async () => {
      await using gateway = await startGateway(server.url);
      const limits = { rpm: 9, tpm: 9, concurrency: 9 };
      const client = newClient(limits, { "}{/mistral": limits });
      grantIn(await gateway.quota.take(newCall(client, { model: "}{/mistral", lastsMs: 300_000 })));
      const keys = (await gateway.redis.keys("*")).filter((key) => key.includes(`{${client.id}}`));
      expect(keys.sort()).toEqual([
        `formdev:running:{${client.id}}`,
        `formdev:running:{${client.id}} }{/mistral`,
        `formdev:used:{${client.id}}`,
      ]);
      // A key's node is chosen by what its first braces hold.
      for (const key of keys) expect(/^[^{]*\{([^}]+)\}/.exec(key)?.[1]).toBe(client.id);
      for (const key of keys) {
        const ttlMs = await gateway.redis.pttl(key);
        expect(ttlMs).toBeGreaterThan(key.includes("running") ? 300_000 : minuteMs - 5000);
        expect(ttlMs).toBeLessThanOrEqual((key.includes("running") ? 305_000 : minuteMs) + 1000);
      }
    });

    it("asks Redis once for a call that has nothing to put right, and not at all without limits", async () => {
      await using gateway = await startGateway(server.url);
      const [limited, free] = [newClient({ rpm: 5 }), newClient({})];
      await gateway.quota.take(newCall(limited));
      const sent = vi.spyOn(gateway.redis, "sendCommand");
      for (const client of [limited, free]) {
        grantIn(await gateway.quota.take(newCall(client)))[Symbol.dispose]();
      }
      expect(sent).toHaveBeenCalledTimes(1);
    });

    it("has told Redis of all calls that have ended when it is disposed of", async () => {
      const client = newClient({ concurrency: 50 });
      const leaving = await startGateway(server.url);
      const grants = await Promise.all(
        Array.from({ length: 50 }, () => leaving.quota.take(newCall(client))),
      );
      for (const grant of grants.filter(isGrant)) grant[Symbol.dispose]();
      await leaving[Symbol.asyncDispose]();
      await using gateway = await startGateway(server.url);
      expect(await gateway.quota.usage(client)).toEqual([
        { name: "concurrency", limit: 50, used: 0 },
      ]);
    });
  },
);

/** Makes the scripts believe that it is so much later. */
function shiftClock(redis: Redis, clock: { readonly aheadMs: number }): void {
  const texts = new Map([takeLua, releaseLua].map((lua) => [hash("sha1", lua), lua]));
  vi.spyOn(redis, "evalsha").mockImplementation((digest, ...rest) => {
    const now = `{ redis.call('TIME')[1] + ${clock.aheadMs / 1000}, redis.call('TIME')[2] }`;
    const lua = texts.get(String(digest)) ?? "";
    return redis.eval(lua.replace("redis.call('TIME')", now), ...rest);
  });
}

function grantIn(answer: Grant | Refused): Grant {
  if (!answer.granted) throw new Error(`refused: ${answer.refusal.name}`);
  return answer;
}

function refusalIn(answer: Grant | Refused): Refused["refusal"] {
  if (answer.granted) throw new Error("the limit does not hold");
  return answer.refusal;
}

/** One gateway's worth of quota, by Redis's clock or by one that the test moves, in whole seconds. */
async function startGateway(url: string, clock?: { readonly aheadMs: number }) {
  const gateway = await openRedisQuota(url);
  // These tests are about counting: a busy machine must not turn them into an outage.
  gateway.redis.options.commandTimeout = 5000;
  if (clock !== undefined) shiftClock(gateway.redis, clock);
  return gateway;
}
