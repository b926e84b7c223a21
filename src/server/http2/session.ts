import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import { fieldsMax } from "../http-fields.ts";
import { HttpStream, type SessionOptions, type StreamOwner } from "../http-stream.ts";
import { Allowance } from "./allowance.ts";
import { FrameReader, type FrameSink, priorityBytes, withoutPadding } from "./frame-reader.ts";
import { FrameWriter } from "./frame-writer.ts";
import { type DecodedFields, HeaderDecoder } from "./header-decoder.ts";
import {
  ConnectionFault,
  defaultWindow,
  type ErrorCode,
  errorCodes,
  flags,
  frameBytesMax,
  frameTypes,
  settingIds,
  tooMuch,
  violation,
  windowMax,
  wrongFlow,
  wrongSize,
} from "./protocol.ts";
import { toStreamHead } from "./stream-head.ts";

const bounds = {
  /** Streams at once, as Envoy advises for an edge. */
  streams: 100,
  /** Streams that end before their answer, at once and each second (CVE-2023-44487, rapid reset; CVE-2025-8671). */
  resetBurst: 100,
  resetsPerSecond: 20,
  /** Frames that do nothing for a call: SETTINGS, PRIORITY, empty DATA, unknown ones, those of streams that are refused or over. */
  idleFrameBurst: 1000,
  idleFramesPerSecond: 100,
  /** Settings in one frame. */
  settings: 32,
  /** Frames that wait in the socket for a peer who does not read: those with bodies stop at a quarter of it. */
  unsentBytes: 256 * 1024,
  /** Bodies of answers that wait for their windows: a hundred of 640 KiB. */
  unsentBodyBytes: 64 * 1024 * 1024,
  /** Milliseconds without a byte after which a connection is closed gracefully. */
  idleMs: 300_000,
  /** Milliseconds that a peer gets to read what it was sent last and to close the connection: after all is said, after a fault. */
  closingMs: 30_000,
  faultMs: 1000,
} as const;

/** What is read of a body before its sender hears that it may send as much again: half a window. */
const acknowledgedBytes = 32 * 1024;

/** One connection of HTTP/2 (RFC 9113), the server's side. */
export class Http2Session implements StreamOwner, FrameSink {
  readonly writer: FrameWriter;
  sendWindow = defaultWindow;
  readonly #socket: Socket;
  readonly #options: SessionOptions;
  readonly #decoder: HeaderDecoder;
  readonly #streams = new Map<number, HttpStream>();
  /** Those with unsent bytes. */
  readonly #waiting = new Set<HttpStream>();
  /** The latest ones that were ended from here while their peer could still send. */
  readonly #resetHere = new Set<number>();
  readonly #resets = new Allowance(bounds.resetBurst, bounds.resetsPerSecond);
  readonly #idleFrames = new Allowance(bounds.idleFrameBurst, bounds.idleFramesPerSecond);
  readonly #reader = new FrameReader(this);
  #lastStream = 0;
  /** The last stream that runs when the connection is closing. */
  #lastRun = Number.POSITIVE_INFINITY;
  #receiveWindow: number = defaultWindow;
  #unacknowledged = 0;
  /** The window that the peer gives each new stream. */
  #streamSendWindow: number = defaultWindow;
  /** Since the last PING. */
  #hasSentData = false;
  #isOver = false;
  #closingTimer: NodeJS.Timeout | undefined;

  constructor(socket: Socket, options: SessionOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#decoder = new HeaderDecoder({ bytes: options.headerBytesMax, fields: fieldsMax });
    this.writer = new FrameWriter(socket, () => this.#sendWaiting());
    this.writer.settings([
      [settingIds.maxConcurrentStreams, bounds.streams],
      [settingIds.maxHeaderListSize, options.headerBytesMax],
    ]);
    socket
      .on("data", (chunk: Buffer) => this.#onRead(chunk))
      .on("error", ignore)
      .once("end", () => socket.destroy())
      .once("close", () => this.#onClosed())
      .setTimeout(bounds.idleMs, () => this.close());
  }

  get remoteAddress(): string | undefined {
    return this.#socket.remoteAddress;
  }

  /** Takes no new streams. The connection is closed when those that run are over. */
  close(): void {
    if (this.#isOver || this.#lastRun !== Number.POSITIVE_INFINITY) return;
    this.#lastRun = this.#lastStream;
    this.writer.goAway(this.#lastStream, errorCodes.noError);
    if (this.#streams.size === 0) this.#end();
  }

  // For its streams.

  onWaiting(stream: HttpStream): void {
    this.#waiting.add(stream);
    let bytes = 0;
    for (const { writableLength } of this.#waiting) bytes += writableLength;
    if (bytes > bounds.unsentBodyBytes) this.#reset(stream, errorCodes.enhanceYourCalm);
  }

  onData(): void {
    this.#hasSentData = true;
  }

  onConsumed(stream: HttpStream, bytes: number): void {
    if (bytes === 0) return;
    this.#acknowledge(bytes);
    if (stream.remoteEnded || stream.destroyed) return;
    stream.unacknowledged += bytes;
    if (stream.unacknowledged < acknowledgedBytes) return;
    this.writer.windowUpdate(stream.id, stream.unacknowledged);
    stream.receiveWindow += stream.unacknowledged;
    stream.unacknowledged = 0;
  }

  cut(stream: HttpStream): void {
    this.#reset(stream, errorCodes.cancel);
  }

  refuseRest(stream: HttpStream): void {
    this.#reset(stream, errorCodes.noError);
  }

  #reset(stream: HttpStream, code: ErrorCode): void {
    if (!stream.remoteEnded) this.#remember(stream.id);
    this.writer.reset(stream.id, code);
    this.#drop(stream);
  }

  onOver(stream: HttpStream): void {
    this.#drop(stream);
  }

  // What the peer sends.

  #onRead(chunk: Buffer): void {
    if (this.#isOver) return;
    try {
      this.#reader.read(chunk);
      if (this.writer.unsentBytes > bounds.unsentBytes) throw tooMuch();
    } catch (error) {
      if (error instanceof ConnectionFault) {
        this.#fail(error.code);
      } else {
        // It must not end the other connections.
        this.#options.onBug(error);
        this.#fail(errorCodes.internalError);
      }
    }
  }

  onFrame(type: number, bits: number, stream: number, payload: Buffer): void {
    if (this.#isOver) return;
    switch (type) {
      case frameTypes.data:
        this.#onData(bits, stream, payload);
        return;
      case frameTypes.rstStream:
        this.#onReset(stream, payload);
        return;
      case frameTypes.settings:
        this.#onSettings(bits, stream, payload);
        return;
      case frameTypes.ping:
        this.#onPing(bits, stream, payload);
        return;
      case frameTypes.goAway:
        if (stream !== 0) throw violation();
        if (payload.length < 8) throw wrongSize();
        this.close();
        return;
      case frameTypes.windowUpdate:
        this.#onWindowUpdate(stream, payload);
        return;
      case frameTypes.priority:
        if (stream === 0) throw violation();
        this.#countIdleFrame();
        if (payload.length !== priorityBytes) this.#resetFaulty(stream, errorCodes.frameSizeError);
        return;
      case frameTypes.pushPromise:
        throw violation();
      default:
        this.#countIdleFrame();
    }
  }

  #onData(bits: number, id: number, payload: Buffer): void {
    if (id === 0) throw violation();
    const stream = this.#known(id);
    this.#receiveWindow -= payload.length;
    if (this.#receiveWindow < 0) throw wrongFlow();
    const data = withoutPadding(bits, payload);
    const endsStream = (bits & flags.endStream) !== 0;
    if (data.length === 0 && !endsStream) this.#countIdleFrame();
    if (stream === undefined) {
      this.#acknowledge(payload.length);
      // The peer may have sent it before it heard that the stream is over.
      if (this.#resetHere.has(id)) return;
      this.#countIdleFrame();
      this.writer.reset(id, errorCodes.streamClosed);
      return;
    }
    stream.receiveWindow -= payload.length;
    if (stream.expectedBytes !== undefined) stream.expectedBytes -= data.length;
    const fault = faultOf(stream, endsStream);
    if (fault !== undefined) {
      this.#acknowledge(payload.length);
      this.#resetFaulty(id, fault);
      return;
    }
    this.onConsumed(stream, payload.length - data.length);
    if (data.length > 0) stream.onData(data);
    if (endsStream && !stream.destroyed) stream.onRemoteEnd();
  }

  onHeaderBlock(id: number, bits: number, block: Buffer): void {
    if (this.#isOver) return;
    if (id % 2 === 0) throw violation();
    const decoded = this.#decoder.decode(block);
    const endsStream = (bits & flags.endStream) !== 0;
    const stream = this.#streams.get(id);
    if (stream !== undefined) {
      this.#onTrailers(stream, decoded, endsStream);
      return;
    }
    if (id <= this.#lastStream) {
      if (this.#resetHere.has(id)) return;
      throw new ConnectionFault(errorCodes.streamClosed);
    }
    this.#lastStream = id;
    if (id > this.#lastRun || this.#streams.size >= bounds.streams) {
      this.#countIdleFrame();
      this.#remember(id);
      this.writer.reset(id, errorCodes.refusedStream);
      return;
    }
    this.#open(id, decoded, endsStream);
  }

  #open(id: number, decoded: DecodedFields, endsStream: boolean): void {
    const head = toStreamHead(decoded);
    const isShort = endsStream && (head?.contentLength ?? 0) !== 0;
    if (head === undefined || isShort) {
      this.#resetFaulty(id, errorCodes.protocolError);
      return;
    }
    const windows = { send: this.#streamSendWindow, receive: defaultWindow };
    const stream = new HttpStream(this, id, head, windows);
    this.#streams.set(id, stream);
    if (endsStream) stream.onRemoteEnd();
    const expected = stream.headers.expect?.toLowerCase();
    if (stream.method === "CONNECT") refuse(stream, 405);
    else if (expected !== undefined && expected !== "100-continue") refuse(stream, 417);
    else {
      if (expected !== undefined) stream.writeContinue();
      this.#options.onRequest(stream);
    }
  }

  #onTrailers(stream: HttpStream, decoded: DecodedFields, endsStream: boolean): void {
    if (stream.remoteEnded) {
      this.#resetFaulty(stream.id, errorCodes.streamClosed);
      return;
    }
    const hasPseudo = decoded.fields.some((text, at) => at % 2 === 0 && text.startsWith(":"));
    const isShort = (stream.expectedBytes ?? 0) !== 0;
    if (!endsStream || hasPseudo || isShort || decoded.malformed) {
      this.#resetFaulty(stream.id, errorCodes.protocolError);
      return;
    }
    stream.onRemoteEnd();
  }

  #onReset(id: number, payload: Buffer): void {
    if (id === 0) throw violation();
    if (payload.length !== 4) throw wrongSize();
    const stream = this.#known(id);
    if (stream === undefined) {
      this.#countIdleFrame();
      return;
    }
    this.#countReset();
    this.#drop(stream);
  }

  #onSettings(bits: number, stream: number, payload: Buffer): void {
    if (stream !== 0) throw violation();
    this.#countIdleFrame();
    if ((bits & flags.ack) !== 0) {
      if (payload.length !== 0) throw wrongSize();
      return;
    }
    if (payload.length % 6 !== 0) throw wrongSize();
    if (payload.length > bounds.settings * 6) throw tooMuch();
    for (let at = 0; at < payload.length; at += 6) {
      this.#onSetting(payload.readUInt16BE(at), payload.readUInt32BE(at + 2));
    }
    this.writer.settingsAck();
    this.#sendWaiting();
  }

  #onSetting(id: number, value: number): void {
    if (id === settingIds.initialWindowSize) {
      if (value > windowMax) throw wrongFlow();
      const more = value - this.#streamSendWindow;
      this.#streamSendWindow = value;
      for (const stream of this.#streams.values()) {
        stream.sendWindow += more;
        if (stream.sendWindow > windowMax) throw wrongFlow();
        if (stream.writableLength > 0) this.#waiting.add(stream);
      }
    } else if (id === settingIds.maxFrameSize) {
      // We send none that are longer than the least that it may allow.
      if (value < frameBytesMax || value > 2 ** 24 - 1) throw violation();
    } else if (id === settingIds.enablePush) {
      if (value > 1) throw violation();
    } else if (id === settingIds.headerTableSize) {
      this.writer.resetTable();
    }
  }

  #onPing(bits: number, stream: number, payload: Buffer): void {
    if (stream !== 0) throw violation();
    if (payload.length !== 8) throw wrongSize();
    // Clients of gRPC measure the way's bandwidth with one for each read that brought them DATA.
    if (!this.#hasSentData) this.#countIdleFrame();
    this.#hasSentData = false;
    if ((bits & flags.ack) === 0) this.writer.pingAck(payload);
  }

  #onWindowUpdate(id: number, payload: Buffer): void {
    if (payload.length !== 4) throw wrongSize();
    const more = payload.readUInt32BE(0) & 0x7fff_ffff;
    if (id === 0) {
      if (more === 0) throw violation();
      this.sendWindow += more;
      if (this.sendWindow > windowMax) throw wrongFlow();
    } else {
      const stream = this.#known(id);
      if (stream === undefined) return;
      stream.sendWindow += more;
      if (more === 0) this.#resetFaulty(id, errorCodes.protocolError);
      else if (stream.sendWindow > windowMax) this.#resetFaulty(id, errorCodes.flowControlError);
      else if (stream.writableLength > 0) this.#waiting.add(stream);
    }
    this.#sendWaiting();
  }

  /** A stream that runs; undefined for one that is over. A stream that has never been is a fault. */
  #known(id: number): HttpStream | undefined {
    const stream = this.#streams.get(id);
    if (stream === undefined && (id > this.#lastStream || id % 2 === 0)) throw violation();
    return stream;
  }

  /** In turn, a frame of each, as far as the windows and the socket go. The next time begins where this one has ended. */
  #sendWaiting(): void {
    for (const stream of this.#waiting) {
      if (this.writer.isBlocked || this.sendWindow <= 0) return;
      this.#waiting.delete(stream);
      stream.sendWaiting();
      // Behind the others. One whose window is used up comes back with its next window.
      if (stream.writableLength > 0 && stream.sendWindow > 0) this.#waiting.add(stream);
    }
  }

  #acknowledge(bytes: number): void {
    this.#unacknowledged += bytes;
    if (this.#unacknowledged < acknowledgedBytes) return;
    this.writer.windowUpdate(0, this.#unacknowledged);
    this.#receiveWindow += this.#unacknowledged;
    this.#unacknowledged = 0;
  }

  /** The peer has made a mistake on one stream. */
  #resetFaulty(id: number, code: ErrorCode): void {
    this.#countReset();
    const stream = this.#streams.get(id);
    if (stream !== undefined) {
      this.#reset(stream, code);
      return;
    }
    this.#remember(id);
    this.writer.reset(id, code);
  }

  #remember(id: number): void {
    this.#resetHere.add(id);
    for (const oldest of this.#resetHere) {
      if (this.#resetHere.size <= bounds.streams) break;
      this.#resetHere.delete(oldest);
    }
  }

  #drop(stream: HttpStream): void {
    this.#streams.delete(stream.id);
    this.#waiting.delete(stream);
    this.#acknowledge(stream.onClosed());
    if (this.#streams.size === 0 && this.#lastRun !== Number.POSITIVE_INFINITY) this.#end();
  }

  #countReset(): void {
    if (!this.#resets.take()) throw tooMuch();
  }

  #countIdleFrame(): void {
    if (!this.#idleFrames.take()) throw tooMuch();
  }

  /** Nothing more is read. A peer that goes on sending, or does not read either, is cut off after a second. */
  #fail(code: ErrorCode): void {
    this.writer.goAway(this.#lastStream, code);
    this.#end();
    this.#socket.pause();
    this.#closeIn(bounds.faultMs);
  }

  /** Closes the connection behind all that was written. What is still on its way would be lost if it were not read on. */
  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.writer.flush();
    this.#socket.end();
    this.#closeIn(bounds.closingMs);
    this.#loseStreams();
  }

  #closeIn(ms: number): void {
    clearTimeout(this.#closingTimer);
    if (!this.#socket.destroyed) this.#closingTimer = setTimeout(() => this.#cut(), ms);
  }

  /** Without what is unsent: the kernel would keep it for a peer who does not read. */
  #cut(): void {
    if (this.#socket instanceof TLSSocket) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  #onClosed(): void {
    this.#isOver = true;
    clearTimeout(this.#closingTimer);
    this.#loseStreams();
  }

  #loseStreams(): void {
    for (const stream of this.#streams.values()) stream.onClosed();
    this.#streams.clear();
    this.#waiting.clear();
  }
}

/** What is wrong with DATA that this stream has just been charged with. */
function faultOf(stream: HttpStream, endsStream: boolean): ErrorCode | undefined {
  if (stream.remoteEnded) return errorCodes.streamClosed;
  if (stream.receiveWindow < 0) return errorCodes.flowControlError;
  const { expectedBytes = 0 } = stream;
  if (expectedBytes < 0 || (endsStream && expectedBytes !== 0)) return errorCodes.protocolError;
  return undefined;
}

function refuse(stream: HttpStream, status: number): void {
  stream.statusCode = status;
  stream.discardBody();
  stream.resetAfterEnd();
  stream.end();
}

function ignore() {}
