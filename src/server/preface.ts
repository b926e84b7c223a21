import type { Socket } from "node:net";
import { clientPreface as preface } from "./http2/protocol.ts";

/** A connection that says nothing for this long is closed. */
const silenceMs = 10_000;

/**
 * Reads a new connection until it is clear whether it speaks HTTP/2, also when its first bytes arrive one by one, puts
 * back what was read, and hands it on; `done` is called then, or when the connection is lost before. A connection that stays
 * silent is destroyed after ten seconds.
 */
export function routeByPreface(
  socket: Socket,
  routes: { readonly http1: () => void; readonly http2: () => void; readonly done: () => void },
): void {
  let seen = Buffer.alloc(0);
  const timer = setTimeout(() => socket.destroy(), silenceMs);
  const finish = () => {
    clearTimeout(timer);
    socket.off("readable", onReadable).off("end", onEnd).off("close", finish);
    routes.done();
  };
  const onReadable = () => {
    for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) {
      seen = Buffer.concat([seen, chunk]);
    }
    const length = Math.min(seen.length, preface.length);
    if (length === 0) return;
    const isHttp2SoFar = seen.subarray(0, length).equals(preface.subarray(0, length));
    if (isHttp2SoFar && length < preface.length) return;
    finish();
    socket.unshift(seen);
    if (isHttp2SoFar) routes.http2();
    else routes.http1();
  };
  const onEnd = () => socket.destroy();
  socket.on("readable", onReadable).on("end", onEnd).on("close", finish);
}
