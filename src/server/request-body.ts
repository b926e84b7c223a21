import { Code, ConnectError } from "@connectrpc/connect";
import { toConnectError } from "../rpc/error-mapping.ts";
import { callerLeft } from "./call-scope.ts";
import type { NodeBody } from "./node-http.ts";

/** A body that has not arrived in this time is a slow-loris attack or a broken network, whatever the call's deadline. */
const bodyMsMax = 30_000;

/** The body of a call that has one request message, as one chunk, read when it is first asked for: see `readBody`. */
export async function* wholeBody(body: NodeBody, limits: BodyLimits): AsyncIterable<Uint8Array> {
  // Connect takes any other error for a request that cannot be read, and so for its caller's fault.
  const whole = await readBody(body, limits).catch((error: unknown) => {
    throw toConnectError(error);
  });
  if (whole.length > 0) yield whole;
}

/** The body of a call that may go on sending messages, as it comes. */
export async function* ongoingBody(body: NodeBody): AsyncIterable<Uint8Array> {
  try {
    // A method that reads no further must still be able to answer, over HTTP/2 on the same stream.
    yield* body.iterator({ destroyOnReturn: false });
  } catch {
    // That its sender has broken it off is all that can go wrong.
    throw toConnectError(callerLeft());
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
export async function readBody(body: NodeBody, limits: BodyLimits): Promise<Buffer> {
  limits.signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const finish = (error?: unknown) => {
      clearTimeout(timer);
      limits.signal.removeEventListener("abort", onAbort);
      body.off("data", onData).off("end", onEnd).pause();
      const [only] = chunks;
      if (error !== undefined) reject(error);
      else resolve(only !== undefined && chunks.length === 1 ? only : Buffer.concat(chunks, bytes));
    };
    const onData = (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > limits.bytes) {
        finish(
          new ConnectError(
            `the message must not exceed ${limits.bytes} bytes`,
            Code.ResourceExhausted,
          ),
        );
      }
    };
    // A stream of HTTP/2 that its sender has broken off ends like any other.
    const onEnd = () => finish(body.aborted ? callerLeft() : undefined);
    const onAbort = () => finish(limits.signal.reason);
    const onTimeout = () =>
      finish(new ConnectError("the request's body took too long to arrive", Code.DeadlineExceeded));
    const timer = setTimeout(onTimeout, Math.min(limits.ms, bodyMsMax));
    limits.signal.addEventListener("abort", onAbort, { once: true });
    body.on("data", onData).on("end", onEnd);
  });
}
