import type { StreamWriter } from "../http-stream.ts";
import { SocketWriter } from "../socket-writer.ts";
import { HeaderEncoder } from "./header-encoder.ts";
import { type ErrorCode, flags, frameBytesMax, frameHeadBytes, frameTypes } from "./protocol.ts";

/** One for all connections: a block is in its frames before the next one. */
const encoder = new HeaderEncoder();

/** The frames to one peer. */
export class FrameWriter extends SocketWriter implements StreamWriter {
  #resetsTable = false;

  settings(values: readonly (readonly [id: number, value: number])[]): void {
    this.#head(frameTypes.settings, 0, 0, values.length * 6);
    for (const [id, value] of values) {
      this.length = this.bytes.writeUInt16BE(id, this.length);
      this.#uint32(value);
    }
  }

  settingsAck(): void {
    this.#head(frameTypes.settings, flags.ack, 0, 0);
  }

  pingAck(payload: Buffer): void {
    this.#head(frameTypes.ping, flags.ack, 0, payload.length);
    this.copy(payload);
  }

  goAway(lastStream: number, code: ErrorCode): void {
    this.#head(frameTypes.goAway, 0, 0, 8);
    this.#uint32(lastStream);
    this.#uint32(code);
  }

  reset(stream: number, code: ErrorCode): void {
    this.#head(frameTypes.rstStream, 0, stream, 4);
    this.#uint32(code);
  }

  windowUpdate(stream: number, bytes: number): void {
    this.#head(frameTypes.windowUpdate, 0, stream, 4);
    this.#uint32(bytes);
  }

  /** Names and values in turn. */
  headers(stream: number, fields: readonly string[], endsStream: boolean): void {
    const block = encoder.encode(fields, this.#resetsTable);
    this.#resetsTable = false;
    const end = endsStream ? flags.endStream : 0;
    if (block.length <= frameBytesMax) {
      this.#head(frameTypes.headers, end | flags.endHeaders, stream, block.length);
      this.copy(block);
      return;
    }
    for (let at = 0; at < block.length; at += frameBytesMax) {
      const piece = block.subarray(at, at + frameBytesMax);
      const isLast = at + frameBytesMax >= block.length;
      const type = at === 0 ? frameTypes.headers : frameTypes.continuation;
      const bits = (at === 0 ? end : 0) | (isLast ? flags.endHeaders : 0);
      this.#head(type, bits, stream, piece.length);
      this.copy(piece);
    }
  }

  /** Not more than `frameBytesMax`. */
  data(stream: number, bytes: Uint8Array, endsStream: boolean): void {
    this.#head(frameTypes.data, endsStream ? flags.endStream : 0, stream, bytes.length);
    this.copy(bytes);
    this.flushIfLong();
  }

  /** The peer has changed the size of the table that its decoder keeps. */
  resetTable(): void {
    this.#resetsTable = true;
  }

  #head(type: number, bits: number, stream: number, length: number): void {
    this.reserve(frameHeadBytes + length);
    const bytes = this.bytes;
    const at = this.length;
    bytes[at] = length >>> 16;
    bytes[at + 1] = length >>> 8;
    bytes[at + 2] = length;
    bytes[at + 3] = type;
    bytes[at + 4] = bits;
    bytes[at + 5] = stream >>> 24;
    bytes[at + 6] = stream >>> 16;
    bytes[at + 7] = stream >>> 8;
    bytes[at + 8] = stream;
    this.length = at + frameHeadBytes;
  }

  #uint32(value: number): void {
    this.length = this.bytes.writeUInt32BE(value, this.length);
  }
}
