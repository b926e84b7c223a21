import { ByteGatherer } from "../../lib/byte-gatherer.ts";
import {
  clientPreface,
  flags,
  frameBytesMax,
  frameHeadBytes,
  frameTypes,
  tooMuch,
  violation,
  wrongSize,
} from "./protocol.ts";

/** Who hears of the frames that a peer sends, in their order. Their bytes are theirs to keep. */
export interface FrameSink {
  /** All but HEADERS and CONTINUATION. */
  onFrame(type: number, bits: number, stream: number, payload: Buffer): void;
  /** A header block that is whole; `bits` are those of its first frame. */
  onHeaderBlock(stream: number, bits: number, block: Buffer): void;
}

const bounds = {
  /** Bytes of a header block as it comes: what nghttp2 takes. */
  blockBytes: 64 * 1024,
  /** Frames that it comes in: that many hold 64 KiB four times over (CVE-2024-27316, CONTINUATION without an end). */
  blockFrames: 16,
} as const;

/** Cuts what a peer sends into frames, however the network has cut it. */
export class FrameReader {
  readonly #sink: FrameSink;
  /** The beginning of a frame, or of the preface. */
  #rest: Buffer = noBytes;
  #hasPreface = false;
  #hasSettings = false;
  /** The header block that is arriving. */
  #block: HeaderBlock | undefined;

  constructor(sink: FrameSink) {
    this.#sink = sink;
  }

  /** Takes what one read has brought. Throws ConnectionFault at what breaks the rules, and whatever the sink throws. */
  read(chunk: Buffer): void {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const taken = this.#readFrames(bytes);
    this.#rest = taken === bytes.length ? noBytes : Buffer.from(bytes.subarray(taken));
  }

  /** Returns how many bytes the frames have that are whole. */
  #readFrames(bytes: Buffer): number {
    let at = 0;
    if (!this.#hasPreface) {
      if (bytes.length < clientPreface.length) return 0;
      if (clientPreface.compare(bytes, 0, clientPreface.length) !== 0) throw violation();
      this.#hasPreface = true;
      at = clientPreface.length;
    }
    while (at + frameHeadBytes <= bytes.length) {
      const length = bytes.readUIntBE(at, 3);
      const type = bytes[at + 3] ?? 0;
      if (length > frameBytesMax) throw wrongSize();
      if (!this.#hasSettings && type !== frameTypes.settings) throw violation();
      this.#hasSettings = true;
      const end = at + frameHeadBytes + length;
      if (end > bytes.length) break;
      const stream = bytes.readUInt32BE(at + 5) & 0x7fff_ffff;
      this.#onFrame(type, bytes[at + 4] ?? 0, stream, bytes.subarray(at + frameHeadBytes, end));
      at = end;
    }
    return at;
  }

  #onFrame(type: number, bits: number, stream: number, payload: Buffer): void {
    const block = this.#block;
    if (block !== undefined) {
      // Nothing may come in between.
      if (type !== frameTypes.continuation || stream !== block.stream) throw violation();
      this.#continue(block, bits, payload);
    } else if (type === frameTypes.headers) {
      this.#onHeaders(stream, bits, payload);
    } else if (type === frameTypes.continuation) {
      throw violation();
    } else {
      this.#sink.onFrame(type, bits, stream, payload);
    }
  }

  #onHeaders(stream: number, bits: number, payload: Buffer): void {
    let piece = withoutPadding(bits, payload);
    if ((bits & flags.priority) !== 0) {
      if (piece.length < priorityBytes) throw wrongSize();
      piece = piece.subarray(priorityBytes);
    }
    if ((bits & flags.endHeaders) !== 0) {
      this.#sink.onHeaderBlock(stream, bits, piece);
      return;
    }
    this.#block = { stream, bits, bytes: new ByteGatherer(), frames: 1 };
    this.#block.bytes.add(piece);
  }

  #continue(block: HeaderBlock, bits: number, piece: Buffer): void {
    block.bytes.add(piece);
    block.frames += 1;
    if (block.frames > bounds.blockFrames || block.bytes.length > bounds.blockBytes) {
      throw tooMuch();
    }
    if ((bits & flags.endHeaders) === 0) return;
    this.#block = undefined;
    this.#sink.onHeaderBlock(block.stream, block.bits, block.bytes.take());
  }
}

interface HeaderBlock {
  readonly stream: number;
  /** Of its first frame. */
  readonly bits: number;
  readonly bytes: ByteGatherer;
  frames: number;
}

/** Which stream a stream depends on, and its weight: not used any more (RFC 9113, section 5.3.2). */
export const priorityBytes = 5;

/** What DATA and HEADERS carry (section 6.1). */
export function withoutPadding(bits: number, payload: Buffer): Buffer {
  if ((bits & flags.padded) === 0) return payload;
  const padding = payload[0];
  if (padding === undefined) throw wrongSize();
  if (padding >= payload.length) throw violation();
  return payload.subarray(1, payload.length - padding);
}

const noBytes = Buffer.alloc(0);
