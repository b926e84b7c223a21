import type { Logger } from "pino";
import type { Secret } from "../lib/secret.ts";
import type { CallRecord, CallSink } from "../usage/call-record.ts";
import type { CallTrace } from "../usage/call-trace.ts";
import { type EngineAddresses, type Span, toSpans } from "./call-spans.ts";
import { createExportQueue, type ExportFailure } from "./export-queue.ts";

export interface OtlpTracesOptions {
  /** Of the collector, for traces: usually ends in `/v1/traces`. */
  readonly url: URL;
  /** Sent along with every batch. */
  readonly headers: Readonly<Record<string, Secret>>;
  /** What the collector calls this service. */
  readonly serviceName: string;
  readonly engines: EngineAddresses;
  readonly log: Pick<Logger, "info" | "warn">;
}

/**
 * Sends calls that have a trace to an OpenTelemetry collector, as OTLP in JSON over HTTP. A collector that is away, slow or
 * refuses costs calls nothing; some of them are in no trace then. Disposing it sends what is left, for 2 s at most.
 *
 * By hand: OpenTelemetry's exporter and SDK are ten packages of 20 MB, two thirds of everything else that the image has, take 24
 * MB of memory and 0.1 s when loaded, and read variables that the configuration does not know.
 */
export function createOtlpTraces(options: OtlpTracesOptions): CallSink & AsyncDisposable {
  const { serviceName, engines, log } = options;
  const post = createPost(options);
  const queue = createExportQueue<TracedCall>({
    send: (calls, signal) => {
      const spans = calls.flatMap(({ record, trace }) => toSpans(record, trace, engines));
      return post(toBody(serviceName, spans), signal);
    },
    log,
  });
  return {
    record(record) {
      const { trace } = record;
      if (trace !== undefined) queue.add({ record, trace });
    },
    [Symbol.asyncDispose]: () => queue[Symbol.asyncDispose](),
  };
}

interface TracedCall {
  readonly record: CallRecord;
  readonly trace: CallTrace;
}

/** ExportTraceServiceRequest of opentelemetry-proto. */
function toBody(serviceName: string, spans: readonly Span[]): string {
  const attributes = [{ key: "service.name", value: { stringValue: serviceName } }];
  const scopeSpans = [{ scope: { name: "formdev" }, spans }];
  return JSON.stringify({ resourceSpans: [{ resource: { attributes }, scopeSpans }] });
}

/** For one batch: a collector stands nearby, and the next batch waits. */
const postMs = 5000;

/** The statuses after which OTLP has a client try again. */
const temporary = new Set([429, 502, 503, 504]);

function createPost({ url, headers: secrets }: OtlpTracesOptions) {
  const headers = new Headers({ "content-type": "application/json" });
  for (const [name, value] of Object.entries(secrets)) headers.set(name, value.reveal());
  return async (body: string, giveUp: AbortSignal): Promise<ExportFailure | undefined> => {
    const signal = AbortSignal.any([giveUp, AbortSignal.timeout(postMs)]);
    try {
      // Not to another address that a collector names: the headers are for this one.
      const answer = await fetch(url, {
        method: "POST",
        headers,
        body,
        redirect: "manual",
        signal,
      });
      await answer.body?.cancel();
      if (answer.ok) return undefined;
      return { reason: `HTTP ${answer.status}`, isTemporary: temporary.has(answer.status) };
    } catch (error) {
      return { reason: toReason(error), isTemporary: true };
    }
  };
}

/** The kind of the error, and not its text, which can quote a header. */
function toReason(error: unknown): string {
  if (!(error instanceof Error)) return "unknown";
  const { cause } = error;
  const hasCode = typeof cause === "object" && cause !== null && "code" in cause;
  return hasCode ? String(cause.code) : error.name;
}
