import type { IncomingMessage } from "node:http";
import { Code, ConnectError } from "@connectrpc/connect";
import { ByteGatherer } from "../lib/byte-gatherer.ts";
import { toConnectError } from "../rpc/error-mapping.ts";
import { callerLeft } from "./call-scope.ts";
import { type BodyReader, Http2Stream } from "./http2/stream.ts";
import type { NodeRequest } from "./node-http.ts";

/** A body that has not arrived in this time is a slow-loris attack or a broken network, whatever the call's deadline. */
const bodyMsMax = 30_000;

/** The body of a call that has one request message, as one chunk, read when it is first asked for: see `readBody`. */
export async function* wholeBody(
  request: NodeRequest,
  limits: BodyLimits,
): AsyncIterable<Uint8Array> {
  // Connect takes any other error for a request that cannot be read, and so for its caller's fault.
  const whole = await readBody(request, limits).catch((error: unknown) => {
    throw toConnectError(error);
  });
  if (whole.length > 0) yield whole;
}

/** The body of a call that may go on sending messages, as it comes. */
export async function* ongoingBody(request: NodeRequest): AsyncIterable<Uint8Array> {
  try {
    // A method that reads no further must still be able to answer.
    if (request instanceof Http2Stream) yield* piecesOf(request);
    else yield* request.iterator({ destroyOnReturn: false });
  } catch {
    // That its sender has broken it off is all that can go wrong.
    throw toConnectError(callerLeft());
  }
}

/** What is not asked for waits in the window that its sender has. */
async function* piecesOf(stream: Http2Stream): AsyncIterable<Buffer> {
  for (;;) {
    const piece = await new Promise<Buffer | undefined>((resolve, reject) => {
      stream.readBody({
        onData(bytes) {
          stream.stopReading();
          resolve(bytes);
        },
        onEnd: () => resolve(undefined),
        onBroken: () => reject(callerLeft()),
      });
    });
    if (piece === undefined) return;
    yield piece;
  }
}

interface BodyLimits {
  readonly bytes: number;
  readonly ms: number;
  /** Aborts when nobody waits for the body any more: a request that is gone already says so to nobody. */
  readonly signal: AbortSignal;
}

/**
 * Reads the body of a call that has one request message. Reading it whole keeps the cost of many tiny chunks linear, which
 * Connect's own envelope decoder does not.
 *
 * Throws ConnectError `resource_exhausted` past `limits.bytes`, `deadline_exceeded` when the body takes longer than
 * `limits.ms` or half a minute, AppError `canceled` when it ends before it is whole, and `limits.signal.reason`.
 */
export async function readBody(request: NodeRequest, limits: BodyLimits): Promise<Buffer> {
  limits.signal.throwIfAborted();
  // The usual case: it has come together with its head.
  const whole = request instanceof Http2Stream ? request.takeBody() : takeBody(request);
  if (whole !== undefined) {
    if (whole.length > limits.bytes) throw tooLong(limits);
    return whole;
  }
  return new Promise((resolve, reject) => {
    const body = new ByteGatherer();
    const finish = (error?: unknown) => {
      clearTimeout(timer);
      limits.signal.removeEventListener("abort", onAbort);
      if (request instanceof Http2Stream) request.stopReading();
      else request.off("data", reader.onData).off("end", reader.onEnd).pause();
      if (error !== undefined) reject(error);
      else resolve(body.take());
    };
    const onAbort = () => finish(limits.signal.reason);
    const onTimeout = () =>
      finish(new ConnectError("the request's body took too long to arrive", Code.DeadlineExceeded));
    const timer = setTimeout(onTimeout, Math.min(limits.ms, bodyMsMax));
    limits.signal.addEventListener("abort", onAbort, { once: true });
    const reader: BodyReader = {
      onData(piece) {
        if (body.length + piece.length > limits.bytes) finish(tooLong(limits));
        else body.add(piece);
      },
      onEnd: () => finish(),
      onBroken: () => finish(callerLeft()),
    };
    if (request instanceof Http2Stream) request.readBody(reader);
    else request.on("data", reader.onData).on("end", reader.onEnd);
  });
}

/** The whole body, when all of it is here and nobody has read any. */
function takeBody(request: IncomingMessage): Buffer | undefined {
  const { headers, readableLength, readableFlowing } = request;
  // `complete` comes only after whoever waits has run.
  const isHere = readableLength > 0 && String(readableLength) === headers["content-length"];
  return isHere && readableFlowing === null ? (request.read() ?? undefined) : undefined;
}

function tooLong({ bytes }: BodyLimits): ConnectError {
  return new ConnectError(`the message must not exceed ${bytes} bytes`, Code.ResourceExhausted);
}
