import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import {
  findRedisServer,
  type RedisServer,
  redisServerMissing,
  startRedisServer,
} from "../../test/support/redis-server.ts";
import { Secret } from "../lib/secret.ts";
import { createMemoryRateLimiter } from "../limits/rate-limit.ts";
import { createRedisClient } from "./redis-client.ts";
import { createRedisRateLimiter } from "./redis-rate-limiter.ts";

const executable = findRedisServer() ?? "";

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "the limiter that shares its windows through Redis",
  () => {
    let server: RedisServer;
    beforeAll(async () => {
      server = await startRedisServer(executable);
    });
    afterAll(async () => {
      await server[Symbol.asyncDispose]();
    });
    beforeEach(async () => {
      await using gateway = await startGateway(server.url);
      await gateway.redis.flushall();
    });

    it("allows exactly the limit of a thousand concurrent calls to two gateways", async () => {
      await using one = await startGateway(server.url);
      await using other = await startGateway(server.url);
      const decisions = await Promise.all(
        Array.from({ length: 1000 }, (_, index) =>
          (index % 2 === 0 ? one : other).limiter.consume({ id: "erp", rpm: 137 }),
        ),
      );
      const allowed = decisions.filter((decision) => decision.allowed);
      expect(allowed).toHaveLength(137);
      expect(new Set(allowed.map(({ remaining }) => remaining)).size).toBe(137);
    });

    it("says what remains and when the window ends", async () => {
      await using gateway = await startGateway(server.url);
      const decision = await gateway.limiter.consume({ id: "erp", rpm: 3 });
      expect(decision).toMatchObject({ allowed: true, limit: 3, remaining: 2 });
      expect(decision.resetMs).toBeGreaterThan(59_000);
      expect(decision.resetMs).toBeLessThanOrEqual(60_001);
    });

    it("names the first millisecond in which the window is over", async () => {
      await using gateway = await startGateway(server.url);
      const erp = { id: "erp", rpm: 1 };
      await gateway.limiter.consume(erp);
      // The last millisecond of the window, by the clock that this process and Redis have in common.
      const lastMs = await gateway.redis.pexpiretime("formdev:rpm:erp");
      for (let count = 0; count < 50; count += 1) {
        const askedAt = Date.now();
        const { resetMs } = await gateway.limiter.consume(erp);
        expect(Date.now() + resetMs).toBeGreaterThan(lastMs);
        expect(askedAt + resetMs).toBeLessThanOrEqual(lastMs + 1);
      }
    });

    it("lets the client in after retryAfterMs", async () => {
      await using gateway = await startGateway(server.url);
      const erp = { id: "erp", rpm: 1 };
      await gateway.limiter.consume(erp);
      // As if the window had begun 59.8 s ago.
      await gateway.redis.pexpire("formdev:rpm:erp", 200);
      const refusal = await gateway.limiter.consume(erp);
      if (refusal.allowed) throw new Error("the limit does not hold");
      expect(refusal.retryAfterMs).toBe(refusal.resetMs);
      expect(refusal.retryAfterMs).toBeLessThanOrEqual(201);

      // A timer may fire a millisecond early.
      await delay(refusal.retryAfterMs + 1);
      expect(await gateway.limiter.consume(erp)).toMatchObject({ allowed: true });
    });

    it("does not let refused calls postpone the end of the window", async () => {
      await using gateway = await startGateway(server.url);
      const erp = { id: "erp", rpm: 1 };
      await gateway.limiter.consume(erp);
      await gateway.redis.pexpire("formdev:rpm:erp", 30_000);
      for (let count = 0; count < 20; count += 1) await gateway.limiter.consume(erp);
      expect(await gateway.redis.pttl("formdev:rpm:erp")).toBeLessThanOrEqual(30_000);
    });

    it("does not ask the fallback when Redis has refused", async () => {
      await using gateway = await startGateway(server.url);
      await gateway.limiter.consume({ id: "erp", rpm: 1 });
      gateway.fallback.mockClear();
      for (let count = 0; count < 5; count += 1) {
        const decision = await gateway.limiter.consume({ id: "erp", rpm: 1 });
        expect(decision.allowed).toBe(false);
      }
      expect(gateway.fallback).not.toHaveBeenCalled();
      expect(gateway.limiter.mode).toBe("shared");
    });

    it("goes by Redis alone when it is there, whatever the fallback has counted", async () => {
      await using gateway = await startGateway(server.url);
      await gateway.limiter.consume({ id: "erp", rpm: 1 });
      await gateway.redis.del("formdev:rpm:erp");
      expect(await gateway.limiter.consume({ id: "erp", rpm: 1 })).toMatchObject({ allowed: true });
    });

    it("begins a new window for a client that was wiped out of Redis, scripts included", async () => {
      await using gateway = await startGateway(server.url);
      const erp = { id: "erp", rpm: 2 };
      for (let count = 0; count < 3; count += 1) await gateway.limiter.consume(erp);
      await gateway.redis.flushall();
      await gateway.redis.script("FLUSH");
      expect(await gateway.limiter.consume(erp)).toMatchObject({ allowed: true, remaining: 1 });
      expect(gateway.changes).toEqual([]);
    });

    it("keeps clients apart, and applies a changed limit at once", async () => {
      await using gateway = await startGateway(server.url);
      const consume = async (id: string, rpm: number) =>
        (await gateway.limiter.consume({ id, rpm })).allowed;
      expect(await consume("erp", 1)).toBe(true);
      expect(await consume("erp", 1)).toBe(false);
      expect(await consume("extranet", 1)).toBe(true);
      expect(await consume("erp", 3)).toBe(true);
    });

    it("keeps nothing in Redis but one expiring counter for each client", async () => {
      await using gateway = await startGateway(server.url);
      await gateway.limiter.consume({ id: "erp", rpm: 1 });
      await gateway.limiter.consume({ id: "erp", rpm: 1 });
      expect(await gateway.redis.keys("*")).toEqual(["formdev:rpm:erp"]);
      expect(await gateway.redis.get("formdev:rpm:erp")).toBe("2");
      expect(await gateway.redis.pttl("formdev:rpm:erp")).toBeGreaterThan(0);
    });
  },
);

/** One gateway's worth of limiter, with a fallback that can be watched. */
async function startGateway(url: string) {
  const stack = new AsyncDisposableStack();
  const log = { info: vi.fn(), warn: vi.fn() };
  const client = stack.use(createRedisClient(new Secret(url), log));
  await client.connect();
  // These tests are about counting: a busy machine must not turn them into an outage.
  client.commands.options.commandTimeout = 5000;
  const fallback = createMemoryRateLimiter();
  const changes: string[] = [];
  const limiter = stack.use(
    createRedisRateLimiter({
      client: client.commands,
      fallback,
      log,
      onModeChange: (mode) => changes.push(mode),
    }),
  );
  return {
    limiter,
    redis: client.commands,
    fallback: vi.spyOn(fallback, "consume"),
    changes,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}
