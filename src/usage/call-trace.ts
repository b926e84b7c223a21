import { randomBytes } from "node:crypto";
import { formatTraceparent, parseTraceparent } from "../lib/traceparent.ts";

/** Where a call stands in a trace, which may have begun at its caller and goes on in the engine. */
export interface CallTrace {
  /** The caller's, or a new one. */
  readonly traceId: string;
  /** Of the call, and of what the engine is asked in it. Both are ours, and random. */
  readonly spanId: string;
  readonly engineSpanId: string;
  /** The caller's span. Absent: the trace begins with this call. */
  readonly parentSpanId?: string;
  /** Whether spans are made of it. */
  readonly isSampled: boolean;
  /** What the caller's tracing says of the trace to others of its kind: printable ASCII, 512 characters at most. */
  readonly tracestate?: string;
  /** What the caller speaks, by OpenTelemetry's names; gRPC-Web is `grpc` too. */
  readonly rpcSystem: "grpc" | "connectrpc";
}

type Headers = Readonly<Record<string, string | readonly string[] | undefined>>;

/** Begins a call's part of a trace, from its headers. Never throws: headers that make no sense begin a new trace. */
export type StartTrace = (headers: Headers) => CallTrace;

/**
 * `ratio` (0 to 1) of the calls that come without a trace are sampled. Those that come with one are as it says, so that a trace
 * is whole or absent: only callers with a key may be asked here, or anybody could have any number of calls traced.
 */
export function createStartTrace(ratio: number): StartTrace {
  return (headers) => {
    const { traceparent, tracestate } = headers;
    const parent = typeof traceparent === "string" ? parseTraceparent(traceparent) : undefined;
    const random = randomBytes(32).toString("hex");
    return {
      traceId: parent?.traceId ?? random.slice(32),
      spanId: random.slice(0, 16),
      engineSpanId: random.slice(16, 32),
      isSampled: parent?.isSampled ?? Math.random() < ratio,
      rpcSystem: String(headers["content-type"]).startsWith("application/grpc")
        ? "grpc"
        : "connectrpc",
      ...(parent !== undefined && { parentSpanId: parent.spanId }),
      ...(parent !== undefined && isTracestate(tracestate) && { tracestate }),
    };
  };
}

/**
 * The `traceparent` that the engine gets, also of a call that is not sampled: an engine that traces then leaves it out too,
 * instead of beginning a trace of its own.
 */
export function engineTraceparent({ traceId, engineSpanId, isSampled }: CallTrace): string {
  return formatTraceparent({ traceId, spanId: engineSpanId, isSampled });
}

/** 512 is what the specification has everybody carry; what is longer, or no text, is dropped whole. */
function isTracestate(header: string | readonly string[] | undefined): header is string {
  return typeof header === "string" && /^[\x20-\x7e]{1,512}$/.test(header);
}
