import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  findRedisServer,
  type RedisServer,
  redisServerMissing,
  startRedisServer,
} from "../../test/support/redis-server.ts";
import { Secret } from "../lib/secret.ts";
import { createRedisClient } from "./redis-client.ts";

const never = new AbortController().signal;

/** Nothing listens on port 1 of loopback. */
const nowhere = new Secret("redis://:hunter2@127.0.0.1:1");

function createLog() {
  return { info: vi.fn(), warn: vi.fn() };
}

describe("a Redis client without a Redis", () => {
  it("resolves connect after one failed attempt and logs once, however many follow", async () => {
    const log = createLog();
    await using redis = createRedisClient(nowhere, log);
    await redis.connect();
    const attempts = vi.fn();
    redis.commands.on("connecting", attempts);
    await vi.waitFor(() => expect(attempts.mock.calls.length).toBeGreaterThanOrEqual(3), 5000);
    expect(log.warn.mock.calls).toEqual([
      [{ reason: "connect ECONNREFUSED 127.0.0.1:1" }, "no connection to redis"],
    ]);
    expect(log.info).not.toHaveBeenCalled();
  });

  it("makes no connection until it is asked to", async () => {
    const log = createLog();
    await using redis = createRedisClient(nowhere, log);
    expect(redis.commands.status).toBe("wait");
    expect(log.warn).not.toHaveBeenCalled();
  });

  it("fails a command at once instead of keeping it for later", async () => {
    await using redis = createRedisClient(nowhere, createLog());
    await redis.connect();
    const startedAt = performance.now();
    await expect(redis.commands.get("key")).rejects.toThrow("enableOfflineQueue");
    expect(performance.now() - startedAt).toBeLessThan(100);
  });

  it("says that it is not healthy", async () => {
    await using redis = createRedisClient(nowhere, createLog());
    await expect(redis.ping(never)).rejects.toMatchObject({ kind: "unavailable" });
  });

  it("throws the reason of an abort from ping", async () => {
    await using redis = createRedisClient(nowhere, createLog());
    const reason = new Error("asked to stop");
    await expect(redis.ping(AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});

const executable = findRedisServer() ?? "";

describe.skipIf(executable === "")(
  executable === "" ? redisServerMissing : "a Redis client with a Redis",
  () => {
    let server: RedisServer;
    beforeEach(async () => {
      server = await startRedisServer(executable);
    });
    afterEach(async () => {
      await server[Symbol.asyncDispose]();
    });

    it("logs one line when the connection is lost and one when it is there again", async () => {
      const log = createLog();
      await using redis = createRedisClient(new Secret(server.url), log);
      await redis.connect();
      expect(log.info.mock.calls).toEqual([["connected to redis"]]);

      await server.stop();
      await vi.waitFor(() => expect(redis.commands.status).toBe("reconnecting"));
      await server.start();
      await vi.waitFor(() => expect(log.info).toHaveBeenCalledTimes(2), 5000);
      expect(log.warn).toHaveBeenCalledTimes(1);
      await redis.ping(never);
    });

    it("fails the commands in flight when Redis dies, and never sends them again", async () => {
      await using redis = createRedisClient(new Secret(server.url), createLog());
      await redis.connect();
      server.pause();
      const lost = Promise.allSettled([redis.commands.incr("key"), redis.commands.incr("key")]);
      await server.stop();
      expect((await lost).map(({ status }) => status)).toEqual(["rejected", "rejected"]);

      await server.start();
      await vi.waitFor(() => expect(redis.commands.status).toBe("ready"), 5000);
      expect(await redis.commands.get("key")).toBeNull();
    });

    it("gives up on a Redis that hangs, and connects again when it goes on", async () => {
      const log = createLog();
      await using redis = createRedisClient(new Secret(server.url), log);
      await redis.connect();
      server.pause();
      const startedAt = performance.now();
      await expect(redis.ping(never)).rejects.toMatchObject({ kind: "unavailable" });
      expect(performance.now() - startedAt).toBeLessThan(250);

      await vi.waitFor(() => expect(log.warn).toHaveBeenCalledTimes(1), 5000);
      await expect(redis.ping(never)).rejects.toMatchObject({ kind: "unavailable" });
      server.resume();
      await vi.waitFor(() => redis.ping(never), 5000);
      expect(log.warn).toHaveBeenCalledTimes(1);
    });

    it("resolves connect soon when Redis hangs from the start", async () => {
      await using redis = createRedisClient(new Secret(server.url), createLog());
      server.pause();
      const startedAt = performance.now();
      await redis.connect();
      expect(performance.now() - startedAt).toBeLessThan(500);
    });

    it("is disposed of at once and silently, also while Redis hangs", async () => {
      const log = createLog();
      const redis = createRedisClient(new Secret(server.url), log);
      await redis.connect();
      server.pause();
      const startedAt = performance.now();
      await redis[Symbol.asyncDispose]();
      expect(performance.now() - startedAt).toBeLessThan(250);
      expect(redis.commands.status).toBe("end");
      expect(log.warn).not.toHaveBeenCalled();
    });

    it("never logs its password, whether it is right or wrong", async () => {
      const log = createLog();
      await using guarded = await startRedisServer(executable, ["--requirepass", "hunter2"]);
      await using right = createRedisClient(withPassword(guarded.url, "hunter2"), log);
      await right.connect();
      await right.ping(never);
      await using wrong = createRedisClient(withPassword(guarded.url, "hunter2-but-wrong"), log);
      await wrong.connect();
      await vi.waitFor(() => expect(log.warn).toHaveBeenCalledTimes(1));
      expect(inspect(log.warn.mock.calls)).toContain("WRONGPASS");
      const lines = inspect([log.warn.mock.calls, log.info.mock.calls], { depth: null });
      expect(lines).not.toContain("hunter2");
    });
  },
);

function withPassword(url: string, password: string): Secret {
  return new Secret(url.replace("redis://", `redis://:${password}@`));
}
