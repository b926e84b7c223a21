import type { EngineState } from "../admission/engine-pool.ts";
import type { CallClass } from "../keys/api-keys.ts";
import type { Reading } from "../usage/reading.ts";
import type { Vitals } from "../usage/vitals.ts";

/** The processes of the service, by what each of them is called for as long as the service runs. */
export interface ProcessStates {
  /** Undefined for one that did not answer in time, or is being replaced. */
  readonly vitals: ReadonlyMap<string, Vitals | undefined>;
  /** Workers that were replaced. */
  readonly restarts: number;
}

/** One number for each process that has answered, and for all of them whether they have. */
export function processReadings({ vitals, restarts }: ProcessStates): readonly Reading[] {
  const each = (numberOf: (vitals: Vitals) => number | undefined): Reading["values"] =>
    [...vitals].flatMap(([process, known]) => {
      const value = known && numberOf(known);
      return value === undefined ? [] : [{ labels: { process }, value }];
    });
  const delays = (["p50", "p99", "max"] as const).flatMap((statistic) =>
    each(({ delayMs }) => delayMs[statistic] / 1000).map(({ labels, value }) => ({
      labels: { ...labels, statistic },
      value,
    })),
  );
  return [
    {
      name: "formdev_process_up",
      help: "Whether the process has told how it is doing: 0 when it hangs or is being replaced.",
      values: [...vitals].map(([process, known]) => ({
        labels: { process },
        value: known === undefined ? 0 : 1,
      })),
    },
    {
      name: "formdev_worker_restarts_total",
      help: "Processes that ended before their time and were replaced.",
      values: [{ value: restarts }],
    },
    {
      name: "formdev_calls_in_flight",
      help: "Calls that have begun and not ended.",
      values: each(({ activity }) => activity?.calls),
    },
    {
      name: "formdev_connections",
      help: "Open connections of callers.",
      values: each(({ activity }) => activity?.connections),
    },
    {
      name: "formdev_event_loop_delay_seconds",
      help: "How late the event loop was since the last scrape.",
      values: delays,
    },
    {
      name: "formdev_process_resident_memory_bytes",
      help: "Memory of the process.",
      values: each(({ residentBytes }) => residentBytes),
    },
    {
      name: "formdev_process_heap_bytes",
      help: "JavaScript's part of it.",
      values: each(({ heapBytes }) => heapBytes),
    },
    {
      name: "formdev_process_cpu_seconds_total",
      help: "Processor time of the process.",
      values: each(({ cpuSeconds }) => cpuSeconds),
    },
  ];
}

/** Who waits for an engine, and who has one. */
export function queueReadings(queue: {
  readonly running: number;
  waitingOf(callClass: CallClass): number;
}): readonly Reading[] {
  const classes: readonly CallClass[] = ["interactive", "batch"];
  return [
    {
      name: "formdev_queue_length",
      help: "Calls that wait for a place at an engine.",
      values: classes.map((name) => ({ labels: { class: name }, value: queue.waitingOf(name) })),
    },
    {
      name: "formdev_engine_calls_running",
      help: "Calls that have a place at an engine.",
      values: [{ value: queue.running }],
    },
  ];
}

/** How the engines are doing: what we have given each of them, and what it says about itself. */
export function engineReadings(engines: readonly EngineState[]): readonly Reading[] {
  const each = (numberOf: (engine: EngineState) => number | undefined): Reading["values"] =>
    engines.flatMap((engine) => {
      const value = numberOf(engine);
      return value === undefined ? [] : [{ labels: { engine: engine.id }, value }];
    });
  return [
    {
      name: "formdev_engine_up",
      help: "Whether the engine gets calls: 0 while it is ejected, or after it was taken off the list.",
      values: each(({ state }) => (state === "ready" || state === "trial" ? 1 : 0)),
    },
    {
      name: "formdev_engine_calls",
      help: "Calls that the engine runs for us.",
      values: each(({ running }) => running),
    },
    {
      name: "formdev_engine_calls_limit",
      help: "Calls that it may run for us now: fewer than configured while its gauges say that these are too many.",
      values: each(({ limit }) => limit),
    },
    {
      name: "formdev_engine_tokens_outstanding",
      help: "Tokens that these calls are expected to cost.",
      values: each(({ tokens }) => tokens),
    },
    {
      name: "formdev_engine_waiting",
      help: "Requests that wait inside the engine, as it said last.",
      values: each(({ gauges }) => gauges?.waiting),
    },
    {
      name: "formdev_engine_kv_usage_ratio",
      help: "The part of its KV cache that is in use, as it said last.",
      values: each(({ gauges }) => gauges?.kvUsage),
    },
    {
      name: "formdev_engine_preemptions_total",
      help: "How often it has stopped a sequence for want of KV cache, since its start.",
      values: each(({ gauges }) => gauges?.preemptions),
    },
    {
      name: "formdev_engine_gauges_age_seconds",
      help: "How old this is: beyond 5 s it does not count, unless the engine is idle.",
      values: each(({ gaugesAgeMs }) => gaugesAgeMs && gaugesAgeMs / 1000),
    },
  ];
}

/** Of a store that several gateways share: whether it decides, or each gateway for itself because it is lost. */
export function storeReadings(isShared: boolean): readonly Reading[] {
  return [
    {
      name: "formdev_store_shared",
      help: "Whether Redis decides on limits: 0 while each gateway does so for itself.",
      values: [{ value: isShared ? 1 : 0 }],
    },
  ];
}
