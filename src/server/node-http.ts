import type { IncomingMessage, ServerResponse } from "node:http";
import { AppError } from "../errors.ts";
import { callerLeft } from "./call-scope.ts";
import { Http2Stream } from "./http2/stream.ts";

/** HTTP/1.1 and HTTP/2 requests and responses, with nearly the same face. A stream of HTTP/2 is both. */
export type NodeRequest = IncomingMessage | Http2Stream;
export type NodeResponse = ServerResponse | Http2Stream;
export type NodeHandler = (request: NodeRequest, response: NodeResponse) => void;

export function authorityOf(request: NodeRequest): string | undefined {
  return "authority" in request ? request.authority || request.headers.host : request.headers.host;
}

/** The address at the other end of the connection. */
export function remoteAddressOf(request: NodeRequest): string | undefined {
  return "socket" in request ? request.socket.remoteAddress : request.remoteAddress;
}

/** An error on a connection that nobody waits for would end the process. Streams of HTTP/2 have none. */
export function ignoreErrors(request: NodeRequest, response: NodeResponse): void {
  if (!(request instanceof Http2Stream)) request.on("error", ignore);
  if (!(response instanceof Http2Stream)) response.on("error", ignore);
}

function ignore() {}

/** Resolves when the response is sent or its connection is gone, also when that was before the question. */
export function whenClosed(response: NodeResponse): Promise<void> {
  return new Promise((resolve) => {
    if (response.destroyed) resolve();
    else response.once("close", () => resolve());
  });
}

/** Ends a request's connection (HTTP/1.1) or stream (HTTP/2) now, whatever is still unsent. */
export function cutOff(response: NodeResponse): void {
  if (response instanceof Http2Stream) response.destroy();
  else response.socket?.destroy();
}

/** What may wait in Node for a slow reader before anybody takes notice. Node's own mark is four times that. */
export const unsentBytesMax = 16 * 1024;

/**
 * Of an answer that is complete: cuts the connection when its reader has taken nothing of the rest for `limitMs`. HTTP/2 does so
 * by itself.
 */
export function cutWhenStalled(response: NodeResponse, limitMs: number): void {
  if (response instanceof Http2Stream || response.writableLength < unsentBytesMax) return;
  // Node's timer begins anew while the kernel takes some of a large write.
  response.setTimeout(limitMs, () => cutOff(response));
  // It is the connection's, and would hold for what comes next on it.
  response.prependOnceListener("finish", () => response.setTimeout(0));
}

/**
 * Resolves when the response takes more bytes. Rejects when the connection is lost, or when its reader has taken nothing
 * for `limitMs`: the connection is then cut, as nothing can be told to a reader that does not read.
 */
export function drained(response: NodeResponse, limitMs: number): Promise<void> {
  return taken(response, limitMs, (onTaken) => response.once("drain", onTaken));
}

/** As `writePiece`; resolves when the bytes and all before them are on their way to the reader. Otherwise as `drained`. */
export function written(response: NodeResponse, bytes: Buffer, limitMs: number): Promise<void> {
  return taken(response, limitMs, (onTaken) => writePiece(response, bytes, onTaken));
}

function taken(
  response: NodeResponse,
  limitMs: number,
  whenTaken: (onTaken: () => void) => void,
): Promise<void> {
  if (response.destroyed) return Promise.reject(callerLeft());
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      clearTimeout(timer);
      response.off("drain", onTaken);
      response.off("close", onClose);
      settle();
    };
    const onTaken = () => finish(resolve);
    const onClose = () => finish(() => reject(callerLeft()));
    const onStall = () => {
      finish(() => reject(new AppError("canceled", `the reader took nothing for ${limitMs} ms`)));
      cutOff(response);
    };
    const timer = setTimeout(onStall, limitMs);
    response.once("close", onClose);
    whenTaken(onTaken);
  });
}

/**
 * Writes a piece of a body of no known length, behind one that Node has written: not an empty one, which would end it.
 * Of a piece, Node makes four for the socket, which cost a stream over HTTP/1.1 a fifth of all that the gateway does for it:
 * here it is one.
 */
export function writePiece(response: NodeResponse, bytes: Buffer, onTaken?: () => void): void {
  // Without a socket, the answer waits for the one before it; HTTP/1.0 has no chunks.
  if (response instanceof Http2Stream || response.socket === null || !response.chunkedEncoding)
    response.write(bytes, onTaken);
  else response.socket.write(toChunk(bytes), onTaken);
}

/** RFC 9112, section 7.1. */
function toChunk(bytes: Buffer): Buffer {
  const size = bytes.length.toString(16);
  const chunk = Buffer.allocUnsafe(size.length + bytes.length + 4);
  chunk.write(`${size}\r\n`, "latin1");
  chunk.set(bytes, size.length + 2);
  chunk.write("\r\n", chunk.length - 2, "latin1");
  return chunk;
}

/** Answers with a small JSON body. The unread rest of the request is refused together with its connection. */
export function sendJson(
  request: NodeRequest,
  response: NodeResponse,
  status: number,
  body: unknown,
): void {
  const bytes = Buffer.from(`${JSON.stringify(body)}\n`);
  response.statusCode = status;
  response.setHeader("content-type", "application/json");
  response.setHeader("content-length", bytes.length);
  closeUnread(request, response);
  if (request.method === "HEAD") response.end();
  else response.end(bytes);
}

/** How long the sender of an HTTP/2 body that nobody reads gets to notice the answer. */
const unreadMs = 1000;

/**
 * Makes an answer final although its request's body was not read: nobody has to take in what was refused. HTTP/1.1 closes
 * the connection after the answer. HTTP/2 throws the body away, and closes the stream if it goes on after the answer and
 * its trailers are out, which leaves the connection's other calls alone.
 */
export function closeUnread(request: NodeRequest, response: NodeResponse): void {
  if (response.destroyed || request.complete) return;
  if (response instanceof Http2Stream) {
    response.discardBody();
    const timer = setTimeout(() => response.resetAfterEnd(), unreadMs);
    response.once("close", () => clearTimeout(timer));
    return;
  }
  const { "content-length": length = "0", "transfer-encoding": encoding } = request.headers;
  const hasBody = length !== "0" || encoding !== undefined;
  if (hasBody && !response.headersSent) response.setHeader("connection", "close");
}
