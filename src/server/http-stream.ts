import { ByteGatherer } from "../lib/byte-gatherer.ts";
import type { Fields } from "./http-fields.ts";
import { frameBytesMax } from "./http2/protocol.ts";

/** Who takes a request's body: pieces, then `onEnd`, or `onBroken` when its sender has broken it off. */
export interface BodyReader {
  /** The piece is the reader's to keep. */
  onData(piece: Buffer): void;
  onEnd(): void;
  onBroken(): void;
}

/** What a connection is told when it begins. */
export interface SessionOptions {
  /** Characters of all header fields of a request. */
  readonly headerBytesMax: number;
  /** Called with the head of each request. */
  readonly onRequest: (stream: HttpStream) => void;
  /** Called with an error that is a bug of ours; the connection is closed. */
  readonly onBug: (error: unknown) => void;
}

/** What comes before a request's body. */
export interface StreamHead {
  readonly httpVersion: "1.0" | "1.1" | "2.0";
  readonly method: string;
  /** With its query. */
  readonly path: string;
  readonly authority: string | undefined;
  readonly headers: Fields;
  readonly contentLength: number | undefined;
  readonly tooLarge: boolean;
}

/** What goes to the peer. */
export interface StreamWriter {
  /** Whether the peer takes no more for now. */
  readonly isBlocked: boolean;
  /** Names and values in turn: a head, whose first name is `:status`, or trailers. */
  headers(stream: number, fields: readonly string[], endsStream: boolean): void;
  /** Not more than `frameBytesMax`, over HTTP/1.1 too. */
  data(stream: number, bytes: Uint8Array, endsStream: boolean): void;
  /** Writes what is gathered, now. */
  flush(): void;
}

/** What a stream needs of its connection. */
export interface StreamOwner {
  readonly writer: StreamWriter;
  readonly remoteAddress: string | undefined;
  /** Bytes that may still be sent on all streams together. */
  sendWindow: number;
  /** The stream has sent a part of its body. */
  onData(): void;
  /** The stream has unsent bytes. */
  onWaiting(stream: HttpStream): void;
  /** Bytes of a body are read, or thrown away: their sender may send as many again. */
  onConsumed(stream: HttpStream, bytes: number): void;
  /** Ends the stream here and at the peer, whatever is still unsent. */
  cut(stream: HttpStream): void;
  /** The same when its answer is sent, and its request goes on. */
  refuseRest(stream: HttpStream): void;
  /** The stream is over in both directions. */
  onOver(stream: HttpStream): void;
}

interface Unsent {
  bytes: Uint8Array;
  readonly onTaken: (() => void) | undefined;
}

/**
 * A request and its answer, over any HTTP. Once the stream is gone, what is written goes nowhere, without an error: whoever waits
 * hears of its `close`.
 */
export class HttpStream {
  readonly httpVersion: StreamHead["httpVersion"];
  readonly id: number;
  readonly method: string;
  readonly url: string;
  readonly authority: string | undefined;
  readonly headers: Fields;
  /** Whether the request's fields exceed the bounds: then not all of them are here. */
  readonly headersTooLarge: boolean;

  /** Bytes that this stream may still send. A change of settings can make it negative. */
  sendWindow: number;
  /** Bytes that the peer may still send on it. */
  receiveWindow: number;
  /** Bytes of the body that have not been given back to the peer's window yet. */
  unacknowledged = 0;
  /** Bytes of the body that are still to come, when the peer has said how many. */
  expectedBytes: number | undefined;
  /** Whether the peer has sent all of its request. */
  remoteEnded = false;

  /** Of a head that nobody writes before the body. */
  statusCode = 200;
  headersSent = false;
  /** Whether `end` was called. */
  writableEnded = false;
  /** Whether it is over, or lost. */
  destroyed = false;
  readonly #owner: StreamOwner;
  /** Names and values in turn. */
  readonly #fields: string[] = [];
  #trailers: string[] | undefined;
  readonly #unsent: Unsent[] = [];
  #unsentBytes = 0;
  #localEnded = false;
  #stallTimer: NodeJS.Timeout | undefined;
  #onClose: (() => void)[] = [];
  #onDrain: (() => void)[] = [];

  readonly #received = new ByteGatherer();
  #reader: BodyReader | undefined;
  #discards = false;
  #resetsAfterEnd = false;

  constructor(
    owner: StreamOwner,
    id: number,
    head: StreamHead,
    windows: { readonly send: number; readonly receive: number },
  ) {
    this.#owner = owner;
    this.id = id;
    this.httpVersion = head.httpVersion;
    this.method = head.method;
    this.url = head.path;
    this.authority = head.authority;
    this.headers = head.headers;
    this.headersTooLarge = head.tooLarge;
    this.expectedBytes = head.contentLength;
    this.sendWindow = windows.send;
    this.receiveWindow = windows.receive;
  }

  get remoteAddress(): string | undefined {
    return this.#owner.remoteAddress;
  }

  // The request's body.

  /** Whether all of the body has been read, or no more of it will come. */
  get complete(): boolean {
    return this.destroyed || (this.remoteEnded && this.#received.length === 0);
  }

  /** The whole body, when all of it is here and nobody has read any. */
  takeBody(): Buffer | undefined {
    if (!this.remoteEnded || this.destroyed || this.#reader !== undefined) return undefined;
    const bytes = this.#received.take();
    this.#owner.onConsumed(this, bytes.length);
    return bytes;
  }

  /** Hands the body on as it comes, what is here already at once. */
  readBody(reader: BodyReader): void {
    this.#reader = reader;
    if (this.#received.length > 0) {
      const bytes = this.#received.take();
      this.#owner.onConsumed(this, bytes.length);
      reader.onData(bytes);
    }
    // It may have stopped at that.
    if (this.#reader !== reader) return;
    if (this.destroyed) reader.onBroken();
    else if (this.remoteEnded) reader.onEnd();
  }

  /** What comes now waits for the next reader, in the window that its sender has. */
  stopReading(): void {
    this.#reader = undefined;
  }

  /** Throws the rest of the body away, so that it takes no room from the connection's other streams. */
  discardBody(): void {
    this.#reader = undefined;
    this.#discards = true;
    this.#owner.onConsumed(this, this.#received.take().length);
  }

  /** Ends the stream as soon as its answer is sent, also if the request's body goes on. */
  resetAfterEnd(): void {
    this.#resetsAfterEnd = true;
    if (this.#localEnded && !this.destroyed) this.#owner.refuseRest(this);
  }

  /** A piece of the body, which is nobody else's. */
  onData(piece: Buffer): void {
    if (this.#discards) {
      this.#owner.onConsumed(this, piece.length);
    } else if (this.#reader === undefined) {
      this.#received.add(piece);
    } else {
      this.#owner.onConsumed(this, piece.length);
      this.#reader.onData(piece);
    }
  }

  /** The request is whole. */
  onRemoteEnd(): void {
    this.remoteEnded = true;
    this.#reader?.onEnd();
    if (this.#localEnded && !this.destroyed) this.#owner.onOver(this);
  }

  // The answer.

  /** `name` in lower case. */
  setHeader(name: string, value: string | number): void {
    const fields = this.#fields;
    for (let at = 0; at < fields.length; at += 2) {
      if (fields[at] !== name) continue;
      fields[at + 1] = String(value);
      return;
    }
    fields.push(name, String(value));
  }

  writeHead(status: number): void {
    if (this.destroyed || this.headersSent) return;
    this.#sendHead(status, false);
  }

  /** Leave for the client to send its body. */
  writeContinue(): void {
    this.#owner.writer.headers(this.id, [":status", "100"], false);
  }

  /** Bytes that wait until the peer, or the connection, takes more. */
  get writableLength(): number {
    return this.#unsentBytes;
  }

  /** Whether more may be written at once. `onTaken`: the bytes are on their way. */
  write(bytes: Uint8Array, onTaken?: () => void): boolean {
    if (this.destroyed) return false;
    this.writeHead(this.statusCode);
    return this.#write(bytes, false, onTaken);
  }

  /** Sends what was written now, and not at the end of the turn. */
  flush(): void {
    this.#owner.writer.flush();
  }

  /** Before the end. */
  addTrailers(trailers: Readonly<Record<string, string>>): void {
    this.#trailers = Object.entries(trailers).flat();
  }

  end(bytes: Uint8Array = noBytes): void {
    if (this.writableEnded) return;
    this.writableEnded = true;
    if (this.destroyed) return;
    const hasBody = bytes.length > 0;
    if (!hasBody && !this.headersSent && this.#trailers === undefined) {
      this.#sendHead(this.statusCode, true);
      this.#onLocalEnd();
      return;
    }
    this.writeHead(this.statusCode);
    const endsStream = hasBody && this.#trailers === undefined;
    const isSent = this.#write(bytes, endsStream, undefined);
    if (this.destroyed) return;
    if (!isSent) this.#startStallTimer();
    else if (endsStream) this.#onLocalEnd();
    else this.#sendEnd();
  }

  /** Ends it now, whatever is still unsent. */
  destroy(): void {
    if (!this.destroyed) this.#owner.cut(this);
  }

  once(event: "close" | "drain", listener: () => void): this {
    if (event === "close") this.#onClose.push(listener);
    else this.#onDrain.push(listener);
    return this;
  }

  off(event: "close" | "drain", listener: () => void): this {
    const others = (each: () => void) => each !== listener;
    if (event === "close") this.#onClose = this.#onClose.filter(others);
    else this.#onDrain = this.#onDrain.filter(others);
    return this;
  }

  /** Sends what fits into one frame of what waits. */
  sendWaiting(): void {
    const [first] = this.#unsent;
    if (first === undefined) return;
    const isLast = this.#unsent.length === 1 && this.writableEnded;
    const endsStream = isLast && this.#trailers === undefined;
    const sent = this.#send(first.bytes, endsStream, frameBytesMax);
    if (sent === 0) return;
    this.#stallTimer?.refresh();
    this.#unsentBytes -= sent;
    if (sent < first.bytes.length) {
      first.bytes = first.bytes.subarray(sent);
      return;
    }
    this.#unsent.shift();
    first.onTaken?.();
    if (this.#unsentBytes > 0) return;
    if (endsStream) this.#onLocalEnd();
    else if (this.writableEnded) this.#sendEnd();
    else for (const listener of this.#onDrain.splice(0)) listener();
  }

  /** Called by its connection, once: it is over, or lost. Returns how many bytes of its body nobody has read. */
  onClosed(): number {
    this.destroyed = true;
    clearTimeout(this.#stallTimer);
    this.#unsent.length = 0;
    this.#unsentBytes = 0;
    const unread = this.#received.take().length;
    if (!this.remoteEnded) this.#reader?.onBroken();
    for (const listener of this.#onClose.splice(0)) listener();
    return unread;
  }

  #sendHead(status: number, endsStream: boolean): void {
    this.headersSent = true;
    const fields = [":status", String(status), "date", currentDate(), ...this.#fields];
    this.#owner.writer.headers(this.id, fields, endsStream);
  }

  /** Whether all is on its way; the rest waits, behind what waits already. */
  #write(bytes: Uint8Array, endsStream: boolean, onTaken: (() => void) | undefined): boolean {
    if (bytes.length === 0) return this.#unsentBytes === 0;
    const sent = this.#unsentBytes === 0 ? this.#send(bytes, endsStream) : 0;
    if (sent === bytes.length) {
      onTaken?.();
      return true;
    }
    this.#unsent.push({ bytes: sent === 0 ? bytes : bytes.subarray(sent), onTaken });
    this.#unsentBytes += bytes.length - sent;
    this.#owner.onWaiting(this);
    return false;
  }

  /** How many of the bytes are on their way: as many as the windows and the socket take, and as `most`. */
  #send(bytes: Uint8Array, endsStream: boolean, most = Number.POSITIVE_INFINITY): number {
    const owner = this.#owner;
    const { writer } = owner;
    const wanted = Math.min(bytes.length, most);
    let sent = 0;
    while (sent < wanted && !writer.isBlocked) {
      const room = Math.min(wanted - sent, frameBytesMax, this.sendWindow, owner.sendWindow);
      if (room <= 0) break;
      const isWhole = room === bytes.length;
      const end = sent + room;
      const piece = isWhole ? bytes : bytes.subarray(sent, end);
      this.sendWindow -= room;
      owner.sendWindow -= room;
      sent = end;
      writer.data(this.id, piece, endsStream && end === bytes.length);
      owner.onData();
    }
    return sent;
  }

  /** Nobody waits for the last bytes but the stream itself. */
  #startStallTimer(): void {
    this.#stallTimer = setTimeout(() => this.destroy(), stallMs);
  }

  #sendEnd(): void {
    const { writer } = this.#owner;
    if (this.#trailers === undefined) writer.data(this.id, noBytes, true);
    else writer.headers(this.id, this.#trailers, true);
    this.#onLocalEnd();
  }

  #onLocalEnd(): void {
    this.#localEnded = true;
    if (this.remoteEnded) this.#owner.onOver(this);
    else if (this.#resetsAfterEnd) this.#owner.refuseRest(this);
  }
}

const noBytes = Buffer.alloc(0);

/** What may wait here for a slow reader before anybody takes notice. */
export const unsentBytesMax = 16 * 1024;

/** Milliseconds. A reader that has not taken a byte for this long is gone or hostile. */
export const stallMs = 30_000;

let dateSecond = 0;
let date = "";

/** What every answer has to say (RFC 9110, section 6.6.1): made anew each second. */
function currentDate(): string {
  const now = Date.now();
  const second = Math.floor(now / 1000);
  if (second !== dateSecond) {
    dateSecond = second;
    date = new Date(now).toUTCString();
  }
  return date;
}
