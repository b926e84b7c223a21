import type { CallClass } from "../keys/api-keys.ts";
import type { CallRecord, CallSink } from "../usage/call-record.ts";
import { createCounter, createHistogram } from "./text-format.ts";

/** What Prometheus learns of calls: counted since the start of the process that decides, which hears of every one. */
export interface CallMetrics extends CallSink {
  /** A call has got a place at an engine, after so many milliseconds. */
  waited(callClass: CallClass, waitMs: number): void;
  /** In Prometheus' text format. */
  text(): string;
}

/** More names than these share one: each of them is worth some hundred lines. They come from the configuration and the engine. */
const clientsMax = 200;
const modelsMax = 50;
const remainder = "other";

// The bounds of OpenTelemetry's semantic conventions for generative AI, in tokens and seconds.
const tokenBounds = Array.from({ length: 14 }, (_, index) => 4 ** index);
const durationBounds = Array.from({ length: 14 }, (_, index) => 2 ** index / 100);
const firstTokenBounds = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
];
const outputTokenBounds = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5];
/** From what the gateway takes when idle to what a person notices. */
const shortBounds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];
/** From "at once" to the longest that callers wait. */
const waitBounds = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];

const embedRpc = "formdev.model.v1.ModelService/Embed";

/** Begins at zero. A record costs some 2 µs, and memory only for a set of labels that is new. */
export function createCallMetrics(): CallMetrics {
  const nameClient = createNames(clientsMax);
  const nameModel = createNames(modelsMax);
  const metrics = createSeries();

  /** Of a call that an engine was asked for. */
  const recordAnswer = (call: CallRecord, model: string, client: string) => {
    const { outcome, usage, firstTokenMs, engineFirstTokenMs, queueMs = 0 } = call;
    const labels = [call.rpc === embedRpc ? "embeddings" : "chat", nameModel(model), client];
    metrics.duration.observe(
      [...labels, outcome === "ok" ? "" : outcome],
      seconds(call.durationMs),
    );
    if (usage !== undefined) {
      const { promptTokens, completionTokens, cachedPromptTokens } = usage;
      if (promptTokens > 0) metrics.tokens.observe([...labels, "input"], promptTokens);
      if (completionTokens > 0) metrics.tokens.observe([...labels, "output"], completionTokens);
      if (cachedPromptTokens > 0) metrics.cachedTokens.add(labels.slice(1), cachedPromptTokens);
    }
    if (firstTokenMs === undefined || engineFirstTokenMs === undefined) return;
    metrics.firstToken.observe(labels, seconds(firstTokenMs));
    metrics.overhead.observe([], seconds(firstTokenMs - queueMs - engineFirstTokenMs));
    const further = (usage?.completionTokens ?? 0) - 1;
    if (outcome === "ok" && further > 0) {
      metrics.outputToken.observe(labels, seconds((call.durationMs - firstTokenMs) / further));
    }
  };

  return {
    record(call) {
      const { rpc, model, outcome, reason, abortMs } = call;
      const client = call.client === undefined ? "" : nameClient(call.client);
      metrics.calls.add([rpc, client, outcome]);
      if (reason !== undefined) metrics.refusals.add([client, reason]);
      else if (outcome === "unauthenticated") metrics.refusals.add([client, outcome]);
      if (abortMs !== undefined) metrics.aborts.observe([], seconds(abortMs));
      // What a lost call has cost is a guess.
      if (call.isLost) metrics.lost.add([client]);
      else if (model !== undefined) recordAnswer(call, model, client);
    },
    waited: (callClass, waitMs) => metrics.waits.observe([callClass], seconds(waitMs)),
    text: () =>
      Object.values(metrics)
        .map((metric) => metric.text())
        .join(""),
  };
}

/** Some are differences of what two processes have measured, and can come out below zero. */
function seconds(ms: number): number {
  return Math.max(0, ms) / 1000;
}

/** Lets the first `max` names through, and calls all others by one. */
function createNames(max: number): (name: string) => string {
  const known = new Set<string>();
  return (name) => {
    if (known.size < max) known.add(name);
    return known.has(name) ? name : remainder;
  };
}

function createSeries() {
  const answered = ["gen_ai_operation_name", "gen_ai_request_model", "client"];
  return {
    calls: createCounter({
      name: "formdev_calls_total",
      help: "Calls that have ended, by the name of their status code.",
      labels: ["rpc", "client", "code"],
    }),
    refusals: createCounter({
      name: "formdev_refusals_total",
      help: "Calls that a rule has refused.",
      labels: ["client", "reason"],
    }),
    lost: createCounter({
      name: "formdev_lost_calls_total",
      help: "Calls whose process has died.",
      labels: ["client"],
    }),
    waits: createHistogram({
      name: "formdev_queue_wait_seconds",
      help: "How long calls have waited for a place at an engine, those that got one.",
      labels: ["class"],
      bounds: waitBounds,
    }),
    aborts: createHistogram({
      name: "formdev_abort_seconds",
      help: "From a caller's departure until all that its call had is given back.",
      bounds: shortBounds,
    }),
    overhead: createHistogram({
      name: "formdev_overhead_seconds",
      help: "Time to first token without the engine's part and the wait for it: reading the request, deciding, passing on.",
      bounds: shortBounds,
    }),
    cachedTokens: createCounter({
      name: "formdev_cached_prompt_tokens_total",
      help: "Prompt tokens that the engine had in its cache.",
      labels: answered.slice(1),
    }),
    tokens: createHistogram({
      name: "gen_ai_client_token_usage",
      help: "Tokens of a call, as the engine has counted them.",
      labels: [...answered, "gen_ai_token_type"],
      bounds: tokenBounds,
    }),
    duration: createHistogram({
      name: "gen_ai_server_request_duration_seconds",
      help: "From a call's first header to its last byte. error_type is empty for those that went well.",
      labels: [...answered, "error_type"],
      bounds: durationBounds,
    }),
    firstToken: createHistogram({
      name: "gen_ai_server_time_to_first_token_seconds",
      help: "From a call's first header to its first token, the wait for the engine included.",
      labels: answered,
      bounds: firstTokenBounds,
    }),
    outputToken: createHistogram({
      name: "gen_ai_server_time_per_output_token_seconds",
      help: "Time per token after the first one, mean of a call.",
      labels: answered,
      bounds: outputTokenBounds,
    }),
  };
}
