import { randomBytes } from "node:crypto";
import type { CallRecord } from "../usage/call-record.ts";
import type { CallTrace } from "../usage/call-trace.ts";

/** A span in OTLP's JSON: ids in hexadecimal, 64-bit numbers as text, enumerations as numbers. */
export interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly traceState?: string;
  readonly name: string;
  readonly kind: (typeof kinds)[keyof typeof kinds];
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly Attribute[];
  readonly status?: { readonly code: typeof statusError };
}

export interface Attribute {
  readonly key: string;
  readonly value: AttributeValue;
}

type AttributeValue =
  | { readonly stringValue: string }
  | { readonly intValue: string }
  | { readonly doubleValue: number };

const kinds = { internal: 1, server: 2, client: 3 } as const;
const statusError = 2;

/** Addresses of the engines, as far as they have one, for calls whose record does not say which it was. */
export interface EngineAddresses {
  readonly chat?: URL | undefined;
  readonly embeddings?: URL | undefined;
}

/** Outcomes that are the service's failures, by OpenTelemetry's conventions for gRPC servers; the others are its callers'. */
const failures = new Set([
  "unknown",
  "deadline_exceeded",
  "unimplemented",
  "internal",
  "unavailable",
  "data_loss",
]);

/**
 * The spans of a call: the call itself, its wait for the engine, and what the engine was asked, as far as it came to that. They
 * follow OpenTelemetry's conventions for RPC and for generative AI. Token counts are with the engine's span alone: whoever adds
 * up a trace would count them twice.
 */
export function toSpans(
  record: CallRecord,
  trace: CallTrace,
  addresses: EngineAddresses,
): readonly Span[] {
  const { model, queueMs, engineAskedMs, durationMs, outcome } = record;
  const { traceId, spanId, parentSpanId, tracestate } = trace;
  const operation = record.rpc.endsWith("/Embed") ? "embeddings" : "chat";
  const hasFailed = failures.has(outcome);
  const status = hasFailed ? { status: { code: statusError } as const } : {};
  const common = {
    ...(model !== undefined && {
      "gen_ai.operation.name": text(operation),
      "gen_ai.request.model": text(model),
    }),
    ...(hasFailed && { "error.type": text(outcome) }),
  };
  const inTrace = { traceId, ...(tracestate !== undefined && { traceState: tracestate }) };
  const call: Span = {
    ...inTrace,
    spanId,
    ...(parentSpanId !== undefined && { parentSpanId }),
    name: record.rpc,
    kind: kinds.server,
    ...times(record, 0, durationMs),
    attributes: toAttributes({ ...common, ...ofCall(record, trace) }),
    ...status,
  };
  if (queueMs === undefined || engineAskedMs === undefined) return [call];

  const inCall = { ...inTrace, parentSpanId: spanId };
  const queue: Span = {
    ...inCall,
    spanId: randomBytes(8).toString("hex"),
    name: "queue",
    kind: kinds.internal,
    ...times(record, engineAskedMs - queueMs, engineAskedMs),
    attributes: [],
  };
  const engine: Span = {
    ...inCall,
    spanId: trace.engineSpanId,
    name: `${operation} ${model}`,
    kind: kinds.client,
    ...times(record, engineAskedMs, durationMs),
    attributes: toAttributes({ ...common, ...ofEngine(record, addresses[operation]) }),
    ...status,
  };
  return [call, queue, engine];
}

function ofCall({ id, rpc, client, outcome, reason }: CallRecord, { rpcSystem }: CallTrace) {
  return {
    "rpc.system.name": text(rpcSystem),
    "rpc.method": text(rpc),
    "formdev.request_id": text(id),
    "formdev.client": text(client),
    "formdev.outcome": text(outcome),
    "formdev.reason": text(reason),
  };
}

function ofEngine({ engine, usage, engineFirstTokenMs }: CallRecord, usual: URL | undefined) {
  const address = engine === undefined ? usual : new URL(engine);
  // An engine that was left or failed before its first report has said nothing.
  const counts = usage !== undefined && usage.promptTokens > 0 ? usage : undefined;
  return {
    "gen_ai.provider.name": text(address === undefined ? "llama.cpp" : "vllm"),
    "server.address": text(address?.hostname),
    "server.port": whole(address && Number(address.port || ports[address.protocol])),
    "formdev.engine": text(engine),
    "gen_ai.response.time_to_first_chunk": seconds(engineFirstTokenMs),
    "gen_ai.usage.input_tokens": whole(counts?.promptTokens),
    "gen_ai.usage.output_tokens": whole(counts?.completionTokens),
    "gen_ai.usage.cache_read.input_tokens": whole(counts?.cachedPromptTokens),
  };
}

const ports: Readonly<Record<string, number>> = { "http:": 80, "https:": 443 };

/** `fromMs` and `toMs` after the call's beginning. To the microsecond, which is what a double holds of such times. */
function times({ startedAt }: CallRecord, fromMs: number, toMs: number) {
  const at = (ms: number) => `${Math.round((startedAt + ms) * 1000)}000`;
  return { startTimeUnixNano: at(fromMs), endTimeUnixNano: at(Math.max(fromMs, toMs)) };
}

function toAttributes(
  values: Readonly<Record<string, AttributeValue | undefined>>,
): readonly Attribute[] {
  const attributes: Attribute[] = [];
  for (const [key, value] of Object.entries(values)) {
    if (value !== undefined) attributes.push({ key, value });
  }
  return attributes;
}

function text(value: string | undefined): AttributeValue | undefined {
  return value === undefined ? undefined : { stringValue: value };
}

function whole(value: number | undefined): AttributeValue | undefined {
  return value === undefined ? undefined : { intValue: String(value) };
}

function seconds(ms: number | undefined): AttributeValue | undefined {
  return ms === undefined ? undefined : { doubleValue: ms / 1000 };
}
