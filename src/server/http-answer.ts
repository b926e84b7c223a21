import { AppError } from "../errors.ts";
import { callerLeft } from "./call-scope.ts";
import type { HttpStream } from "./http-stream.ts";

/** Resolves when the answer is sent or its connection is gone, also when that was before the question. */
export function whenClosed(stream: HttpStream): Promise<void> {
  return new Promise((resolve) => {
    if (stream.destroyed) resolve();
    else stream.once("close", () => resolve());
  });
}

/**
 * Resolves when the stream takes more bytes. Rejects when it is lost, or when its reader has taken nothing for `limitMs`: it
 * is then cut, as nothing can be told to a reader that does not read.
 */
export function drained(stream: HttpStream, limitMs: number): Promise<void> {
  return taken(stream, limitMs, (onTaken) => stream.once("drain", onTaken));
}

/** Writes; resolves when the bytes and all before them are on their way to the reader. Otherwise as `drained`. */
export function written(stream: HttpStream, bytes: Buffer, limitMs: number): Promise<void> {
  return taken(stream, limitMs, (onTaken) => stream.write(bytes, onTaken));
}

function taken(
  stream: HttpStream,
  limitMs: number,
  whenTaken: (onTaken: () => void) => void,
): Promise<void> {
  if (stream.destroyed) return Promise.reject(callerLeft());
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      clearTimeout(timer);
      stream.off("drain", onTaken);
      stream.off("close", onClose);
      settle();
    };
    const onTaken = () => finish(resolve);
    const onClose = () => finish(() => reject(callerLeft()));
    const onStall = () => {
      finish(() => reject(new AppError("canceled", `the reader took nothing for ${limitMs} ms`)));
      stream.destroy();
    };
    const timer = setTimeout(onStall, limitMs);
    stream.once("close", onClose);
    whenTaken(onTaken);
  });
}

/** Answers with a small JSON body, whether or not the request's body is read. */
export function sendJson(stream: HttpStream, status: number, body: unknown): void {
  const bytes = Buffer.from(`${JSON.stringify(body)}\n`);
  stream.statusCode = status;
  stream.setHeader("content-type", "application/json");
  stream.setHeader("content-length", bytes.length);
  closeUnread(stream);
  if (stream.method === "HEAD") stream.end();
  else stream.end(bytes);
}

/** How long the sender of a body that nobody reads gets to notice the answer. */
const unreadMs = 1000;

/**
 * Makes an answer final although its request's body was not read: nobody has to take in what was refused. The body is thrown
 * away, and if it goes on after the answer, the stream is closed over HTTP/2, which leaves the connection's other calls alone,
 * and the connection over HTTP/1.1.
 */
export function closeUnread(stream: HttpStream): void {
  if (stream.destroyed || stream.complete) return;
  stream.discardBody();
  const timer = setTimeout(() => stream.resetAfterEnd(), unreadMs);
  stream.once("close", () => clearTimeout(timer));
}
