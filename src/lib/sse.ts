/**
 * Decodes server-sent events from bytes, in any cut: https://html.spec.whatwg.org/multipage/server-sent-events.html.
 *
 * Only `data` matters here: its lines, joined with LF, go to `onEvent`; comments, `event`, `id` and `retry` are
 * dropped, and so is an event that the stream does not finish with an empty line. An event is turned into text once
 * and whole, so a code point cut by the network is never broken.
 *
 * It works in bytes because every answer passes through here: each byte is looked at once, and an event that lies inside one
 * chunk is decoded from there, without a copy. It takes one event at a time, so that its caller may read the next one itself.
 */
export class SseDecoder {
  /** Events that were given to `onEvent`. */
  eventCount = 0;
  readonly #onEvent: (data: string) => void;
  readonly #eventBytesMax: number;
  /** The line whose end has not come yet. */
  readonly #line = new ByteBuffer();
  /** The data lines of the event whose empty line has not come yet. */
  readonly #data = new ByteBuffer();
  #hasData = false;
  /** The last byte was a CR: an LF that comes next belongs to it. */
  #afterCr = false;
  #atStart = true;

  /**
   * `onEvent` runs inside `read`; what it throws leaves `read`. `eventBytesMax` bounds the bytes of one event and of
   * one line, comments included: 1 MiB by default, a thousand times a usual event of a language model.
   */
  constructor(onEvent: (data: string) => void, options: { eventBytesMax?: number } = {}) {
    this.#onEvent = onEvent;
    this.#eventBytesMax = options.eventBytesMax ?? 1024 * 1024;
  }

  /** Whether nothing is kept of what was read: the next byte begins an event, or something between events. */
  get isBetweenEvents(): boolean {
    return !this.#hasData && !this.#afterCr && this.#line.length === 0;
  }

  /** Says that the next event was read by the caller: only between events. */
  passEvent(): void {
    this.#atStart = false;
  }

  /**
   * Takes bytes from `start` up to the end of the next event, or to before `end` when none is complete, and returns where it
   * has stopped. The bytes may be reused afterwards. Throws a RangeError when an event is too large; the decoder is of no use
   * after it has thrown.
   */
  read(bytes: Buffer, start: number, end: number): number {
    const { eventCount } = this;
    let at = start;
    if (this.#afterCr && at < end) {
      this.#afterCr = false;
      if (bytes[at] === LF) at += 1;
    }
    while (at < end && this.eventCount === eventCount) {
      const lineEnd = findLineEnd(bytes, at, end);
      if (lineEnd === end) {
        this.#keep(this.#line, bytes, at, end);
        return end;
      }
      let next = lineEnd + 1;
      if (bytes[lineEnd] === CR) {
        if (next === end) this.#afterCr = true;
        else if (bytes[next] === LF) next += 1;
      }
      if (this.#line.length > 0 || this.#atStart) this.#endKeptLine(bytes, at, lineEnd);
      else if (lineEnd > at) next = this.#endLine(bytes, at, lineEnd, next, end);
      else this.#endEvent();
      at = next;
    }
    return at;
  }

  #endKeptLine(chunk: Buffer, start: number, end: number): void {
    this.#keep(this.#line, chunk, start, end);
    const line = this.#line.bytes();
    const skip = this.#atStart && line.subarray(0, 3).equals(BOM) ? 3 : 0;
    this.#atStart = false;
    if (line.length === skip) this.#endEvent();
    else this.#endLine(line, skip, line.length, line.length, line.length);
    this.#line.clear();
  }

  /** Reads one line that is not empty. Returns where to go on: behind the empty line if that one was taken as well. */
  #endLine(line: Buffer, start: number, end: number, next: number, bytesEnd: number): number {
    const value = findDataValue(line, start, end);
    if (value === -1) return next;
    // The whole event is here: decode it where it lies.
    if (!this.#hasData && next < bytesEnd && line[next] === LF) {
      if (end - value > this.#eventBytesMax) throw this.#tooLarge();
      this.#emit(line.toString("utf8", value, end));
      return next + 1;
    }
    if (this.#hasData) this.#keep(this.#data, NEWLINE, 0, 1);
    this.#hasData = true;
    this.#keep(this.#data, line, value, end);
    return next;
  }

  #endEvent(): void {
    if (!this.#hasData) return;
    const data = this.#data.bytes().toString("utf8");
    this.#data.clear();
    this.#hasData = false;
    this.#emit(data);
  }

  #emit(data: string): void {
    this.eventCount += 1;
    this.#onEvent(data);
  }

  #keep(buffer: ByteBuffer, bytes: Buffer, start: number, end: number): void {
    if (buffer.length + end - start > this.#eventBytesMax) throw this.#tooLarge();
    buffer.append(bytes, start, end);
  }

  #tooLarge(): RangeError {
    return new RangeError(`a server-sent event is larger than ${this.#eventBytesMax} bytes`);
  }
}

/** Where the next LF or CR is, or `end` when there is none. */
function findLineEnd(bytes: Buffer, start: number, end: number): number {
  for (let at = start; at < end; at += 1) {
    const byte = bytes[at];
    if (byte === LF || byte === CR) return at;
  }
  return end;
}

/** Where the value of a `data` line begins, or -1 when the line is a comment or another field. */
function findDataValue(line: Buffer, start: number, end: number): number {
  for (let i = 0; i < DATA.length; i += 1) if (line[start + i] !== DATA[i]) return -1;
  let value = start + DATA.length;
  // A line that ends after the name is the field with an empty value.
  if (value >= end) return value === end ? end : -1;
  if (line[value] !== COLON) return -1;
  value += 1;
  return value < end && line[value] === SPACE ? value + 1 : value;
}

/** Bytes that arrive in pieces. The memory of an unusually large event is given back when it is cleared. */
class ByteBuffer {
  #buffer = NO_BYTES;
  length = 0;

  append(bytes: Buffer, start: number, end: number): void {
    const length = this.length + end - start;
    if (length > this.#buffer.length) {
      const larger = Buffer.allocUnsafeSlow(
        Math.max(KEPT_BYTES, 2 ** Math.ceil(Math.log2(length))),
      );
      this.#buffer.copy(larger, 0, 0, this.length);
      this.#buffer = larger;
    }
    bytes.copy(this.#buffer, this.length, start, end);
    this.length = length;
  }

  /** What is inside, valid until the next call. */
  bytes(): Buffer {
    return this.#buffer.subarray(0, this.length);
  }

  clear(): void {
    this.length = 0;
    if (this.#buffer.length > KEPT_BYTES) this.#buffer = NO_BYTES;
  }
}

const LF = 0x0a;
const CR = 0x0d;
const COLON = 0x3a;
const SPACE = 0x20;
const NEWLINE = Buffer.of(LF);
const BOM = Buffer.of(0xef, 0xbb, 0xbf);
const DATA = Buffer.from("data");
const NO_BYTES = Buffer.alloc(0);
/** Enough for every usual event of a language model, so that a stream allocates at most once. */
const KEPT_BYTES = 1024;
