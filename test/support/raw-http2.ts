import { once } from "node:events";
import {
  type ClientHttp2Session,
  connect as connectHttp2,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
} from "node:http2";
import { connect } from "node:net";
import {
  clientPreface,
  errorCodes,
  flags,
  frameTypes,
  settingIds,
} from "../../src/server/http2/protocol.ts";
import { eventually } from "./eventually.ts";

export { clientPreface as preface, errorCodes, flags, frameTypes, settingIds };

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

/** An HTTP/2 connection on which a test sends exactly the frames that it wants to send, whatever the rules. */
export interface RawHttp2 extends Disposable {
  send(bytes: Uint8Array): void;
  /** Frames that have arrived. */
  readonly frames: readonly Frame[];
  /** The first frame of this type, and of this stream when given, as soon as it is there. */
  frame(type: number, stream?: number): Promise<Frame>;
  readonly isClosed: boolean;
  /** Resolves when the other side has closed the connection. */
  readonly closed: Promise<void>;
  stopReading(): void;
}

/** Connects and says the preface and these settings. */
export async function openRawHttp2(
  port: number,
  settings: Readonly<Record<number, number>> = {},
): Promise<RawHttp2> {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  const closed = Promise.withResolvers<void>();
  const frames: Frame[] = [];
  let isClosed = false;
  let rest: Buffer = Buffer.alloc(0);
  socket.on("data", (bytes: Buffer) => {
    rest = parseFrames(Buffer.concat([rest, bytes]), frames);
  });
  socket.on("error", () => undefined);
  socket.on("close", () => {
    isClosed = true;
    closed.resolve();
  });
  await once(socket, "connect");
  socket.write(Buffer.concat([clientPreface, settingsFrame(settings)]));
  return {
    send: (bytes) => void socket.write(bytes),
    frames,
    async frame(type, stream) {
      const find = () =>
        frames.find((it) => it.type === type && (stream === undefined || it.stream === stream));
      await eventually(`a frame of type ${type}`, () => find() !== undefined || isClosed);
      const found = find();
      if (found === undefined) throw new Error(`closed before a frame of type ${type}`);
      return found;
    },
    get isClosed() {
      return isClosed;
    },
    closed: closed.promise,
    stopReading: () => void socket.pause(),
    [Symbol.dispose]: () => void socket.destroy(),
  };
}

/** A connection of Node's own client. Disposing it cuts off what still runs. */
export function openHttp2(url: string): ClientHttp2Session & Disposable {
  const session = connectHttp2(url);
  session.on("error", () => undefined);
  return Object.assign(session, { [Symbol.dispose]: () => session.destroy() });
}

export interface Http2Answer {
  /** Undefined when the stream was reset without an answer. */
  readonly status: number | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  readonly trailers: IncomingHttpHeaders;
  /** Why the stream ended: 0 in the regular case. */
  readonly resetCode: number;
}

/** One request on a stream of its own. Resolves when the stream is closed, and never rejects. */
export async function askHttp2(
  session: ClientHttp2Session,
  headers: OutgoingHttpHeaders,
  body: string | Uint8Array = "",
): Promise<Http2Answer> {
  const endStream = body.length === 0;
  const stream = session.request({ ":method": "POST", ...headers }, { endStream });
  let head: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders = {};
  const chunks: Buffer[] = [];
  stream.on("response", (fields) => (head = fields));
  stream.on("trailers", (fields) => (trailers = fields));
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  stream.on("error", () => undefined);
  if (!endStream) stream.end(body);
  await new Promise((resolve) => stream.once("close", resolve));
  return {
    status: head[":status"] === undefined ? undefined : Number(head[":status"]),
    headers: head,
    body: Buffer.concat(chunks),
    trailers,
    resetCode: stream.rstCode,
  };
}

export function frame(
  type: number,
  at: { readonly flags?: number; readonly stream?: number } = {},
  payload: Uint8Array = Buffer.alloc(0),
): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(at.flags ?? 0, 4);
  head.writeUInt32BE(at.stream ?? 0, 5);
  return Buffer.concat([head, payload]);
}

export function settingsFrame(settings: Readonly<Record<number, number>>): Buffer {
  const entries = Object.entries(settings).map(([id, value]) => {
    const entry = Buffer.alloc(6);
    entry.writeUInt16BE(Number(id), 0);
    entry.writeUInt32BE(value, 2);
    return entry;
  });
  return frame(frameTypes.settings, {}, Buffer.concat(entries));
}

export function resetFrame(stream: number, code: number = errorCodes.cancel): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(code, 0);
  return frame(frameTypes.rstStream, { stream }, payload);
}

/** The error code in a RST_STREAM or GOAWAY frame. */
export function errorCodeOf({ type, payload }: Frame): number {
  return payload.readUInt32BE(type === frameTypes.goAway ? 4 : 0);
}

/** A POST's pseudo-header fields and these ones, which may replace them. */
export function requestHeaders(
  path: string,
  headers: Readonly<Record<string, string>> = {},
): Buffer {
  return headerBlock({
    ":method": "POST",
    ":scheme": "http",
    ":path": path,
    ":authority": "localhost",
    ...headers,
  });
}

/** HPACK (RFC 7541) in its simplest form: literals that are neither indexed nor Huffman-coded. */
export function headerBlock(headers: Readonly<Record<string, string>>): Buffer {
  return Buffer.concat(
    Object.entries(headers).flatMap(([name, value]) => [
      Buffer.of(0),
      hpackString(name),
      hpackString(value),
    ]),
  );
}

function hpackString(text: string): Buffer {
  const bytes = Buffer.from(text, "latin1");
  const length: number[] = [];
  if (bytes.length < 127) length.push(bytes.length);
  else {
    length.push(127);
    let more = bytes.length - 127;
    for (; more >= 128; more = Math.floor(more / 128)) length.push((more % 128) + 128);
    length.push(more);
  }
  return Buffer.concat([Buffer.from(length), bytes]);
}

/** Appends the whole frames to `frames` and returns the bytes of the one that is not. */
function parseFrames(bytes: Buffer, frames: Frame[]): Buffer {
  let at = 0;
  while (at + 9 <= bytes.length) {
    const end = at + 9 + bytes.readUIntBE(at, 3);
    if (end > bytes.length) break;
    frames.push({
      type: bytes.readUInt8(at + 3),
      flags: bytes.readUInt8(at + 4),
      stream: bytes.readUInt32BE(at + 5) & 0x7fffffff,
      payload: bytes.subarray(at + 9, end),
    });
    at = end;
  }
  return bytes.subarray(at);
}
