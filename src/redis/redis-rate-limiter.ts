import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { RateLimiterRedis } from "rate-limiter-flexible";
import { monotonicClock } from "../lib/clock.ts";
import { type RateLimiter, toDecision, unreachablePoints, windowMs } from "../limits/rate-limit.ts";
import { toReason } from "./redis-client.ts";

/** Who decides: Redis, for all processes together, or each process for itself because Redis does not answer. */
export type RateLimitMode = "shared" | "degraded";

export interface RedisRateLimiter extends RateLimiter {
  /** `shared` until the first failure, also before the first request. */
  readonly mode: RateLimitMode;
}

export interface RedisRateLimiterOptions {
  /** Must answer or fail within a bounded time (redis-options.ts: 150 ms). It stays the caller's to dispose of. */
  readonly client: Redis;
  /** Decides in degraded mode. It stays the caller's to dispose of. */
  readonly fallback: RateLimiter;
  readonly log: Pick<Logger, "info" | "warn">;
  /** Called once per change, after it: the place for a metric. */
  readonly onModeChange?: (mode: RateLimitMode) => void;
}

/** Milliseconds between two attempts to leave degraded mode, of which requests notice nothing. */
const probeEveryMs = 500;

/**
 * A limiter whose windows all processes share through one Redis.
 *
 * When Redis is away, hangs, is slow or refuses to write, no call fails and none is refused for it. The calls that find
 * out wait for the client's command timeout at most; from then on `fallback` decides, without any attempt on Redis,
 * until a probe in the background has written there successfully. In degraded mode N processes let a client through up to
 * N times its limit, but no process more than once the limit: what Redis allowed is counted in `fallback` too, so it
 * knows what its process has let through, and for one window after the outage both must agree, since Redis does not know.
 *
 * A client that is wiped out of Redis (FLUSHALL, a restart without persistence) begins a new window.
 *
 * rate-limiter-flexible's insuranceLimiter is not used: it tries Redis again on every call, 150 ms each while Redis
 * hangs, tells nobody, and neither carries the count over nor back. Nor is its inMemoryBlock: it measures with the wall
 * clock, and refusals cost Redis no more than anything else.
 */
export function createRedisRateLimiter(options: RedisRateLimiterOptions): RedisRateLimiter {
  const { client, fallback, log, onModeChange } = options;
  const store = { storeClient: client, rejectIfRedisNotReady: true, points: unreachablePoints };
  const windows = new RateLimiterRedis({
    ...store,
    keyPrefix: "formdev:rpm",
    duration: windowMs / 1000,
  });
  // A write of the same kind as the real ones: a full or read-only Redis answers PING.
  const probes = new RateLimiterRedis({ ...store, keyPrefix: "formdev:rpm-probe", duration: 1 });

  let mode: RateLimitMode = "shared";
  let fallbackAgreesUntil = Number.NEGATIVE_INFINITY;
  let probeTimer: NodeJS.Timeout | undefined;
  let disposed = false;

  const degrade = (error: unknown) => {
    if (mode === "degraded" || disposed) return;
    mode = "degraded";
    log.warn({ reason: toReason(error) }, "rate limits are kept by each process on its own");
    scheduleProbe();
    onModeChange?.(mode);
  };

  const recover = () => {
    if (disposed) return;
    mode = "shared";
    fallbackAgreesUntil = monotonicClock() + windowMs;
    log.info("rate limits are shared through redis again");
    onModeChange?.(mode);
  };

  const scheduleProbe = () => {
    if (disposed) return;
    probeTimer = setTimeout(
      () => probes.consume("probe").then(recover, scheduleProbe),
      probeEveryMs,
    );
    probeTimer.unref();
  };

  return {
    get mode() {
      return mode;
    },

    async consume(caller) {
      if (mode === "degraded") return fallback.consume(caller);

      let count: number;
      let ttlMs: number;
      try {
        ({ consumedPoints: count, msBeforeNext: ttlMs } = await windows.consume(caller.id));
      } catch (error) {
        degrade(error);
        return fallback.consume(caller);
      }
      // Redis drops a key in the millisecond after its TTL has run out (db.c, keyIsExpired: now > when).
      const decision = toDecision(caller.rpm, count, ttlMs + 1);
      if (!decision.allowed) return decision;

      const own = await fallback.consume(caller);
      return !own.allowed && monotonicClock() < fallbackAgreesUntil ? own : decision;
    },

    async [Symbol.asyncDispose]() {
      disposed = true;
      clearTimeout(probeTimer);
    },
  };
}
