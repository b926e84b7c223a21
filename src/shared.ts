import type { Logger } from "pino";
import { type Admission, createAdmission } from "./admission/admission.ts";
import { type Capacity, createFixedCapacity } from "./admission/capacity.ts";
import { createEnginePool } from "./admission/engine-pool.ts";
import { createEngineQueue } from "./admission/engine-queue.ts";
import type { Config } from "./config.ts";
import { createEvents } from "./events.ts";
import type { HealthSource } from "./health/health.ts";
import { toEngineId } from "./inference/vllm/engine-id.ts";
import { createEngineMonitor } from "./inference/vllm/engine-monitor.ts";
import { type ResolveName, watchEngineNames } from "./inference/vllm/engine-names.ts";
import { type CallLimits, createCallLimits } from "./limits/call-limits.ts";
import { createFailedAttempts } from "./limits/failed-attempts.ts";
import { createMemoryQuota, type Quota } from "./limits/quota.ts";
import type { CallSink } from "./usage/call-record.ts";
import { createUsageReporter, type UsageReporter } from "./usage/usage-report.ts";
import { createUsageTotals } from "./usage/usage-totals.ts";

/** What holds for all processes of the service together, and is therefore decided in one of them. */
export interface Shared {
  readonly limits: CallLimits;
  readonly admission: Admission;
  /** Told of every call that has ended. */
  readonly calls: CallSink;
  /** How a client stands, of all that the processes have counted. */
  readonly usage: UsageReporter;
  /** Stores that the decisions need: their health is a part of the service's. */
  readonly sources: readonly HealthSource[];
}

/** What a test may put in the place of the network. */
export interface SharedParts {
  /** Finds the addresses of engines. */
  readonly resolveEngine?: ResolveName;
}

/** Makes it, for the process that decides. Waits for Redis, when there is one, 1.3 s at most. */
export async function openShared(
  config: Config,
  logger: Logger,
  parts: SharedParts = {},
): Promise<Shared & AsyncDisposable> {
  await using resources = new AsyncDisposableStack();
  const sources: HealthSource[] = [];
  const quota = await openQuota(config, logger, resources, sources);
  const limits = createCallLimits({ failedAttempts: createFailedAttempts(), quota });
  const capacity = openCapacity(config, logger, parts, resources);
  const queue = createEngineQueue({ capacity, queueLength: config.engine.queueLength });
  const traces = await openTraces(config, logger, resources);
  const totals = createUsageTotals();
  const owned = resources.move();
  return {
    limits,
    admission: createAdmission({ quota, queue }),
    calls: toAll([totals, ...traces]),
    usage: createUsageReporter({ quota, totals }),
    sources,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function openCapacity(
  { engine: { vllmUrls, vllmApiKey, concurrency } }: Config,
  logger: Logger,
  { resolveEngine }: SharedParts,
  resources: AsyncDisposableStack,
): Capacity {
  if (vllmUrls.length === 0) return createFixedCapacity(concurrency);
  const events = createEvents(logger);
  const pool = resources.use(
    createEnginePool({
      engines: vllmUrls.map((url) => toEngineId(url)),
      concurrency,
      monitor: createEngineMonitor(vllmApiKey?.reveal()),
      onEjected: events.engineEjected,
      onBack: events.engineBack,
    }),
  );
  resources.use(
    watchEngineNames({
      urls: vllmUrls,
      onChange: (engines) => pool.list(engines),
      ...(resolveEngine !== undefined && { resolve: resolveEngine }),
    }),
  );
  return pool;
}

/** What each call's record goes to. */
function toAll(sinks: readonly CallSink[]): CallSink {
  return {
    record(call) {
      for (const sink of sinks) sink.record(call);
    },
  };
}

async function openTraces(
  { traces, engine }: Config,
  log: Logger,
  resources: AsyncDisposableStack,
): Promise<readonly CallSink[]> {
  if (traces === undefined) return [];
  const { createOtlpTraces } = await import("./otlp/otlp-traces.ts");
  const engines = { chat: engine.vllmUrls[0], embeddings: engine.embeddingsUrl };
  return [resources.use(createOtlpTraces({ ...traces, engines, log }))];
}

async function openQuota(
  { redisUrl }: Config,
  logger: Logger,
  resources: AsyncDisposableStack,
  sources: HealthSource[],
): Promise<Quota> {
  const memory = resources.use(createMemoryQuota());
  if (redisUrl === undefined) return memory;
  // Loading ioredis takes a tenth of the start.
  const { createRedisClient } = await import("./redis/redis-client.ts");
  const { createRedisQuota } = await import("./redis/redis-quota.ts");
  const redis = resources.use(createRedisClient(redisUrl, logger));
  await redis.connect();
  sources.push({ name: "redis", optional: true, check: (signal) => redis.ping(signal) });
  return resources.use(createRedisQuota({ client: redis.commands, fallback: memory, log: logger }));
}
