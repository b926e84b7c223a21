import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import type { HttpStream, SessionOptions } from "../../src/server/http-stream.ts";

/** A port behind which every connection is a session of this protocol. */
export async function startSessions<Session>(
  Session: new (socket: Socket, options: SessionOptions) => Session,
  onRequest: (stream: HttpStream) => void,
) {
  const sessions: Session[] = [];
  const sockets = new Set<Socket>();
  const bugs: unknown[] = [];
  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    const onBug = (error: unknown) => void bugs.push(error);
    sessions.push(new Session(socket, { headerBytesMax: 16_384, onRequest, onBug }));
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    sessions,
    sockets,
    /** Errors that no peer can be blamed for. */
    bugs,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** Answers with the request's body as it comes, and a trailer. */
export function echo(stream: HttpStream): void {
  stream.readBody({
    onData: (piece) => void stream.write(piece),
    onEnd() {
      stream.addTrailers({ "x-end": "1" });
      stream.end();
    },
    onBroken: () => undefined,
  });
}

/** Bytes that tell where they belong. */
export function numbered(length: number, seed = 0): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at += 1) bytes[at] = (at * 31 + (at >> 8) * 7 + seed) & 0xff;
  return bytes;
}
