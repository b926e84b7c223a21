import type { Logger } from "pino";
import { type Admission, createAdmission } from "./admission/admission.ts";
import { type Capacity, createFixedCapacity } from "./admission/capacity.ts";
import { createEnginePool } from "./admission/engine-pool.ts";
import { createEngineQueue } from "./admission/engine-queue.ts";
import type { Config } from "./config.ts";
import { createEvents, type Events } from "./events.ts";
import type { HealthSource } from "./health/health.ts";
import { toEngineId } from "./inference/vllm/engine-id.ts";
import { createEngineMonitor } from "./inference/vllm/engine-monitor.ts";
import { type ResolveName, watchEngineNames } from "./inference/vllm/engine-names.ts";
import { type CallLimits, createCallLimits } from "./limits/call-limits.ts";
import { createFailedAttempts } from "./limits/failed-attempts.ts";
import { createMemoryQuota, type Quota } from "./limits/quota.ts";
import { type CallMetrics, createCallMetrics } from "./prometheus/call-metrics.ts";
import { engineReadings, queueReadings, storeReadings } from "./prometheus/readings.ts";
import { readingsText } from "./prometheus/text-format.ts";
import type { CallSink } from "./usage/call-record.ts";
import type { Reading } from "./usage/reading.ts";
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

/** The same, in the process that decides. */
export interface OwnShared extends Shared, AsyncDisposable {
  /** What Prometheus is told of calls, engines and stores, in its text format. */
  metricsText(): string;
}

/** What a test may put in the place of the network. */
export interface SharedParts {
  /** Finds the addresses of engines. */
  readonly resolveEngine?: ResolveName;
}

/** What the parts of it add to the whole. */
interface Opened {
  readonly resources: AsyncDisposableStack;
  readonly sources: HealthSource[];
  /** What there is to read at each scrape. */
  readonly readings: (() => readonly Reading[])[];
}

/** Makes it, for the process that decides. Waits for Redis, when there is one, 1.3 s at most. */
export async function openShared(
  config: Config,
  logger: Logger,
  parts: SharedParts = {},
): Promise<OwnShared> {
  await using resources = new AsyncDisposableStack();
  const events = createEvents(logger);
  const opened: Opened = { resources, sources: [], readings: [] };
  const quota = await openQuota(config, logger, opened);
  const limits = createCallLimits({ failedAttempts: createFailedAttempts(), quota });
  const capacity = openCapacity(config, events, parts, opened);
  const queue = createEngineQueue({ capacity, queueLength: config.engine.queueLength });
  opened.readings.push(() => queueReadings(queue));
  const metrics = createCallMetrics();
  const totals = createUsageTotals();
  const traces = await openTraces(config, logger, opened);
  const owned = resources.move();
  return {
    limits,
    admission: timed(createAdmission({ quota, queue }), metrics),
    calls: toAll([totals, metrics, lostCalls(events), ...traces]),
    usage: createUsageReporter({ quota, totals }),
    sources: opened.sources,
    metricsText: () => metrics.text() + readingsText(opened.readings.flatMap((read) => read())),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function openCapacity(
  { engine: { vllmUrls, vllmApiKey, concurrency } }: Config,
  events: Events,
  { resolveEngine }: SharedParts,
  { resources, readings }: Opened,
): Capacity {
  if (vllmUrls.length === 0) return createFixedCapacity(concurrency);
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
  readings.push(() => engineReadings(pool.states()));
  return pool;
}

/** Tells how long calls have waited for an engine: when they get it, and not when they end, which may be minutes later. */
function timed(admission: Admission, metrics: CallMetrics): Admission {
  return {
    async enter(call, signal) {
      const lease = await admission.enter(call, signal);
      if (call.affinity !== undefined) metrics.waited(call.client.class, lease.queueMs);
      return lease;
    },
  };
}

/** Of the others each process writes its own line. */
function lostCalls({ callLost }: Events): CallSink {
  return {
    record(call) {
      if (call.isLost) callLost(call);
    },
  };
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
  { resources }: Opened,
): Promise<readonly CallSink[]> {
  if (traces === undefined) return [];
  const { createOtlpTraces } = await import("./otlp/otlp-traces.ts");
  const engines = { chat: engine.vllmUrls[0], embeddings: engine.embeddingsUrl };
  return [resources.use(createOtlpTraces({ ...traces, engines, log }))];
}

async function openQuota({ redisUrl }: Config, logger: Logger, opened: Opened): Promise<Quota> {
  const { resources, sources, readings } = opened;
  const memory = resources.use(createMemoryQuota());
  if (redisUrl === undefined) return memory;
  // Loading ioredis takes a tenth of the start.
  const { createRedisClient } = await import("./redis/redis-client.ts");
  const { createRedisQuota } = await import("./redis/redis-quota.ts");
  const redis = resources.use(createRedisClient(redisUrl, logger));
  await redis.connect();
  sources.push({ name: "redis", optional: true, check: (signal) => redis.ping(signal) });
  const quota = resources.use(
    createRedisQuota({ client: redis.commands, fallback: memory, log: logger }),
  );
  readings.push(() => storeReadings(quota.mode === "shared"));
  return quota;
}
