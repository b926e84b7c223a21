import { Code, ConnectError } from "@connectrpc/connect";
import { ByteGatherer } from "../lib/byte-gatherer.ts";
import { toConnectError } from "../rpc/error-mapping.ts";
import { callerLeft } from "./call-scope.ts";
import type { BodyReader, HttpStream } from "./http-stream.ts";

/** A body that has not arrived in this time is a slow-loris attack or a broken network, whatever the call's deadline. */
const bodyMsMax = 30_000;

/** The body of a call that has one request message, as one chunk, read when it is first asked for: see `readBody`. */
export async function* wholeBody(
  stream: HttpStream,
  limits: BodyLimits,
): AsyncIterable<Uint8Array> {
  // Connect takes any other error for a request that cannot be read, and so for its caller's fault.
  const whole = await readBody(stream, limits).catch((error: unknown) => {
    throw toConnectError(error);
  });
  if (whole.length > 0) yield whole;
}

/** The body of a call that may go on sending messages, as it comes: what is not asked for waits at its sender. */
export async function* ongoingBody(stream: HttpStream): AsyncIterable<Uint8Array> {
  for (;;) {
    const piece = await new Promise<Buffer | undefined>((resolve, reject) => {
      stream.readBody({
        onData(bytes) {
          // A method that reads no further must still be able to answer.
          stream.stopReading();
          resolve(bytes);
        },
        onEnd: () => resolve(undefined),
        // That its sender has broken it off is all that can go wrong.
        onBroken: () => reject(toConnectError(callerLeft())),
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
export async function readBody(stream: HttpStream, limits: BodyLimits): Promise<Buffer> {
  limits.signal.throwIfAborted();
  // The usual case: it has come together with its head.
  const whole = stream.takeBody();
  if (whole !== undefined) {
    if (whole.length > limits.bytes) throw tooLong(limits);
    return whole;
  }
  return new Promise((resolve, reject) => {
    const body = new ByteGatherer();
    const finish = (error?: unknown) => {
      clearTimeout(timer);
      limits.signal.removeEventListener("abort", onAbort);
      stream.stopReading();
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
    stream.readBody(reader);
  });
}

function tooLong({ bytes }: BodyLimits): ConnectError {
  return new ConnectError(`the message must not exceed ${bytes} bytes`, Code.ResourceExhausted);
}
