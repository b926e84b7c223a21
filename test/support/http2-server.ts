import { once } from "node:events";
import { connect } from "node:net";
import type { HttpStream } from "../../src/server/http-stream.ts";
import { Http2Session } from "../../src/server/http2/session.ts";
import { eventually } from "./eventually.ts";
import { numbered, startSessions } from "./http-sessions.ts";
import {
  flags,
  frame,
  frameTypes,
  preface,
  requestHeaders,
  settingIds,
  settingsFrame,
} from "./raw-http2.ts";

/** A port behind which every connection is a session. */
export function startServer(onRequest: (stream: HttpStream) => void) {
  return startSessions(Http2Session, onRequest);
}

/** An answer of this length to each request, its seed in the path. */
export const answering = (length: number) => (stream: HttpStream) => {
  stream.write(numbered(length, Number(stream.url.slice(1))));
  stream.end();
};

export const open = (stream: number, path = `/${stream}`) =>
  frame(
    frameTypes.headers,
    { stream, flags: flags.endHeaders | flags.endStream },
    requestHeaders(path),
  );
export const windowUpdate = (stream: number, more: number) => {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(more);
  return frame(frameTypes.windowUpdate, { stream }, payload);
};

/** Asks for an answer in endless windows and does not read it, until it is asked for its body. */
export async function askWithoutReading(port: number) {
  const socket = connect(port, "127.0.0.1");
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "connect");
  socket.pause();
  const windows = settingsFrame({ [settingIds.initialWindowSize]: 2 ** 31 - 1 });
  socket.write(Buffer.concat([preface, windows, windowUpdate(0, 2 ** 30), open(1)]));
  return {
    async read() {
      socket.resume();
      const data: Buffer[] = [];
      let rest: Buffer = Buffer.alloc(0);
      let ended = false;
      await eventually("the end", () => {
        const bytes = Buffer.concat([rest, ...chunks.splice(0)]);
        let at = 0;
        while (at + 9 <= bytes.length) {
          const end = at + 9 + bytes.readUIntBE(at, 3);
          if (end > bytes.length) break;
          if (bytes[at + 3] === frameTypes.data) {
            data.push(bytes.subarray(at + 9, end));
            ended = bytes[at + 4] === flags.endStream;
          }
          at = end;
        }
        rest = bytes.subarray(at);
        return ended;
      });
      return Buffer.concat(data);
    },
    [Symbol.dispose]: () => void socket.destroy(),
  };
}
