import { create, toBinary } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { AppError, type ErrorKind } from "../errors.ts";
import { type Call, callOf } from "./call.ts";

/** The one table from our kinds of error to status codes; HTTP statuses follow from the codes, as Connect defines. */
const codes: Readonly<Record<ErrorKind, Code>> = {
  invalid: Code.InvalidArgument,
  unauthenticated: Code.Unauthenticated,
  "not-found": Code.NotFound,
  exhausted: Code.ResourceExhausted,
  unavailable: Code.Unavailable,
  timeout: Code.DeadlineExceeded,
  canceled: Code.Canceled,
  corrupt: Code.DataLoss,
  unsupported: Code.Unimplemented,
  internal: Code.Internal,
};

/**
 * What goes on the wire for an error: the public message of an AppError with RetryInfo where waiting helps, a
 * ConnectError as it is (only Connect itself makes them: validation, decoding, deadlines), and for everything else, which
 * is a bug, no more than the word.
 */
export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  if (!(error instanceof AppError) || error.kind === "internal") {
    return new ConnectError("internal error", Code.Internal, undefined, undefined, error);
  }
  const mapped = new ConnectError(
    error.message,
    codes[error.kind],
    undefined,
    undefined,
    error.cause,
  );
  if (error.retryAfterMs !== undefined) {
    mapped.details.push(retryInfo(error.retryAfterMs));
    mapped.metadata.set("retry-after", String(Math.ceil(error.retryAfterMs / 1000)));
  }
  return mapped;
}

/** Notes in the call how it ended, and why, for the log line. */
export function recordOutcome(call: Call, error: unknown): ConnectError {
  const mapped = toConnectError(error);
  call.outcome = codeToString(mapped.code);
  // Only what an operator can act on: a refused request's own words could carry the caller's.
  if (mapped.code === Code.Internal) call.cause = error;
  else if (error instanceof AppError) {
    call.cause = error.cause;
    call.reason = error.reason;
  }
  return mapped;
}

/** Maps whatever a handler throws, before the first message and in the middle of a stream. */
export const mapErrors: Interceptor = (next) => async (request) => {
  const call = callOf({ values: request.contextValues });
  call.dispatched = true;
  try {
    const response = await next(
      request.stream ? { ...request, message: mapDecoding(request.message) } : request,
    );
    if (!response.stream) return response;
    return { ...response, message: mapStream(response.message, call) };
  } catch (error) {
    throw recordOutcome(call, error);
  }
};

/** What a request that cannot be decoded is answered with. */
export function malformed(): AppError {
  return new AppError("invalid", "the request is not a valid message of this method");
}

/** Connect calls a malformed protobuf message `internal`: it is the caller's mistake, and must not look like ours. */
async function* mapDecoding<T>(messages: AsyncIterable<T>): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    throw error instanceof ConnectError && error.code === Code.Internal ? malformed() : error;
  }
}

async function* mapStream<T>(messages: AsyncIterable<T>, call: Call): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    throw recordOutcome(call, error);
  }
}

/** Field 1, length-delimited: the only field of google.rpc.RetryInfo, a google.protobuf.Duration. */
const retryDelayTag = 0x0a;

/**
 * google.rpc.RetryInfo, encoded here: one field does not justify the dependency that ships its proto. A Duration takes at
 * most 17 bytes, so that one byte holds its length.
 */
function retryInfo(delayMs: number): ConnectError["details"][number] {
  const seconds = Math.floor(delayMs / 1000);
  const nanos = Math.round((delayMs - seconds * 1000) * 1e6);
  const delay = toBinary(
    DurationSchema,
    create(DurationSchema, { seconds: BigInt(seconds), nanos }),
  );
  return {
    type: "google.rpc.RetryInfo",
    value: Uint8Array.of(retryDelayTag, delay.length, ...delay),
    debug: { retryDelay: `${(seconds + nanos / 1e9).toFixed(3)}s` },
  };
}
