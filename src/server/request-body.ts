import { Code, ConnectError } from "@connectrpc/connect";
import type { NodeRequest } from "./node-http.ts";

/** A body that has not arrived in this time is a slow-loris attack or a broken network. */
const bodyMs = 30_000;

/**
 * The body of a call that has one request message, as one chunk, read when it is first asked for. Reading it whole keeps
 * the cost of many tiny chunks linear, which Connect's own envelope decoder does not.
 *
 * Throws ConnectError `resource_exhausted` past `bytesMax`, `deadline_exceeded` when the body takes too long and
 * `canceled` when its sender goes away.
 */
export async function* wholeBody(
  request: NodeRequest,
  bytesMax: number,
): AsyncIterable<Uint8Array> {
  const body = await readAll(request, bytesMax);
  if (body.length > 0) yield body;
}

function readAll(request: NodeRequest, bytesMax: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const finish = (error?: ConnectError) => {
      clearTimeout(timer);
      request.off("data", onData).off("end", onEnd).off("close", onClose).off("error", onClose);
      request.pause();
      const [only] = chunks;
      if (error !== undefined) reject(error);
      else resolve(only !== undefined && chunks.length === 1 ? only : Buffer.concat(chunks, bytes));
    };
    const onData = (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > bytesMax) {
        finish(
          new ConnectError(`the message must not exceed ${bytesMax} bytes`, Code.ResourceExhausted),
        );
      }
    };
    const onEnd = () => finish();
    const onClose = () => finish(new ConnectError("the caller left", Code.Canceled));
    const onTimeout = () =>
      finish(new ConnectError("the request's body took too long to arrive", Code.DeadlineExceeded));
    const timer = setTimeout(onTimeout, bodyMs);
    request.on("data", onData).on("end", onEnd).on("close", onClose).on("error", onClose);
  });
}
