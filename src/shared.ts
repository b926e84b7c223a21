import type { Logger } from "pino";
import type { Admission } from "./admission/admission.ts";
import { createAdmission } from "./admission/admission.ts";
import type { Config } from "./config.ts";
import type { HealthSource } from "./health/health.ts";
import { type CallLimits, createCallLimits } from "./limits/call-limits.ts";
import { createFailedAttempts } from "./limits/failed-attempts.ts";
import { createMemoryRateLimiter, type RateLimiter } from "./limits/rate-limit.ts";

/** What holds for all processes of the service together, and is therefore decided in one of them. */
export interface Shared {
  readonly limits: CallLimits;
  readonly admission: Admission;
  /** Stores that the decisions need: their health is a part of the service's. */
  readonly sources: readonly HealthSource[];
}

/** Makes it, for the process that decides. Waits for Redis, when there is one, 1.3 s at most. */
export async function openShared(
  config: Config,
  logger: Logger,
): Promise<Shared & AsyncDisposable> {
  await using resources = new AsyncDisposableStack();
  const sources: HealthSource[] = [];
  const rateLimiter = await openRateLimiter(config, logger, resources, sources);
  const limits = createCallLimits({ failedAttempts: createFailedAttempts(), rateLimiter });
  const owned = resources.move();
  return {
    limits,
    admission: createAdmission(config.engine),
    sources,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function openRateLimiter(
  { redisUrl }: Config,
  logger: Logger,
  resources: AsyncDisposableStack,
  sources: HealthSource[],
): Promise<RateLimiter> {
  const memory = resources.use(createMemoryRateLimiter());
  if (redisUrl === undefined) return memory;
  // Loading ioredis takes a tenth of the start.
  const { createRedisClient } = await import("./redis/redis-client.ts");
  const { createRedisRateLimiter } = await import("./redis/redis-rate-limiter.ts");
  const redis = resources.use(createRedisClient(redisUrl, logger));
  await redis.connect();
  sources.push({ name: "redis", optional: true, check: (signal) => redis.ping(signal) });
  return resources.use(
    createRedisRateLimiter({ client: redis.commands, fallback: memory, log: logger }),
  );
}
