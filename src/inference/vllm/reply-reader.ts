import type { IncomingHttpHeaders } from "node:http";
import { parseChunkSize, saysClose, withoutPadding } from "../../lib/http1-grammar.ts";

/** Who is told of a reply while it is read. Must not throw. */
export interface ReplySink {
  /** Once, before everything else. Interim replies (1xx) are not told. */
  onHead(status: number, headers: IncomingHttpHeaders): void;
  /** A piece of the body: `bytes` from `start` to before `end`, valid during the call only. Never empty. */
  onData(bytes: Buffer, start: number, end: number): void;
}

/**
 * Reads one reply of HTTP/1.1 (RFC 9112) from bytes in any cut. Pieces of the body are told where they lie, without a copy:
 * every token of every answer passes through here.
 *
 * Stricter than the RFC asks of a client: what could be understood in two ways is refused, because the next reply on the
 * connection would then belong to another caller. So there are no bare line feeds, no folded headers, no length beside
 * chunks, and no coding but `chunked`.
 */
export class ReplyReader {
  /** Whether the reply is complete. Nothing must be read after that. */
  isDone = false;
  /** Whether the connection may carry another request after it. */
  keepsConnection = true;

  readonly #sink: ReplySink;
  #state: State = "head";
  /** The line or the head whose end has not come yet. */
  #text = "";
  /** Bytes that are to come of the chunk, or of the body. */
  #left = 0;
  #trailerBytes = 0;

  constructor(sink: ReplySink) {
    this.#sink = sink;
  }

  /**
   * Takes the next `length` bytes of `bytes`, and returns how many of them belong to this reply: all, but for the read in which
   * it ends. Throws an Error when this is no reply; nothing must be read after that either.
   */
  read(bytes: Buffer, length: number): number {
    let at = 0;
    while (at < length && !this.isDone) {
      if (this.#state === "body" || this.#state === "chunk") {
        const end = Math.min(length, at + this.#left);
        this.#left -= end - at;
        this.#sink.onData(bytes, at, end);
        at = end;
        if (this.#left === 0) this.#endOfBytes();
      } else if (this.#state === "open") {
        this.#sink.onData(bytes, at, length);
        at = length;
      } else if (this.#state === "size") at = this.#readSize(bytes, at, length);
      else at = this.#readLine(bytes, at, length) ?? this.#readText(bytes, at, length);
    }
    return at;
  }

  /** The server has closed the connection. Returns whether the reply is complete with that. */
  end(): boolean {
    if (this.#state === "open") this.isDone = true;
    return this.isDone;
  }

  #endOfBytes(): void {
    if (this.#state === "body") this.isDone = true;
    else this.#state = "after-chunk";
  }

  /** The usual line before a chunk, its digits and CRLF in one piece. Everything else is read as text. */
  #readSize(bytes: Buffer, start: number, length: number): number {
    let size = 0;
    let at = start;
    for (; at < length && at - start < SIZE_DIGITS_MAX; at += 1) {
      const digit = hexDigit(bytes[at] ?? 0);
      if (digit === -1) break;
      size = size * 16 + digit;
    }
    if (at > start && at + 1 < length && bytes[at] === CR && bytes[at + 1] === LF) {
      this.#beginChunk(size);
      return at + 2;
    }
    this.#state = "size-line";
    return start;
  }

  #beginChunk(size: number): void {
    this.#left = size;
    this.#state = size === 0 ? "trailers" : "chunk";
  }

  /** The usual cases of what is read as text: an empty line, or a head in one piece. Returns where to go on. */
  #readLine(bytes: Buffer, start: number, length: number): number | undefined {
    if (this.#text !== "" || start + 1 >= length) return undefined;
    if (this.#state !== "head") {
      if (bytes[start] !== CR || bytes[start + 1] !== LF) return undefined;
      this.#readWhole("");
      return start + 2;
    }
    const end = bytes.indexOf(HEAD_END, start, "latin1");
    if (end === -1 || end + HEAD_END.length > length || end - start > HEAD_BYTES_MAX)
      return undefined;
    this.#readWhole(bytes.toString("latin1", start, end));
    return end + HEAD_END.length;
  }

  /** Takes what is read as text: up to the end of the line, or of the head. Returns where to go on. */
  #readText(bytes: Buffer, start: number, length: number): number {
    const before = this.#text.length;
    const mark = this.#state === "head" ? HEAD_END : LINE_END;
    const max = this.#state === "head" ? HEAD_BYTES_MAX : LINE_BYTES_MAX;
    const text =
      this.#text + bytes.toString("latin1", start, Math.min(length, start + max + mark.length));
    const at = text.indexOf(mark, Math.max(0, before - mark.length));
    if ((at === -1 ? text.length : at) > max) throw new Error("a line or the head is too long");
    if (at === -1) {
      this.#text = text;
      return length;
    }
    this.#text = "";
    this.#readWhole(text.slice(0, at));
    return start + at + mark.length - before;
  }

  #readWhole(text: string): void {
    if (this.#state === "head") this.#readHead(text);
    else if (this.#state === "after-chunk") {
      if (text !== "") throw new Error("a chunk is longer than it says");
      this.#state = "size";
    } else if (this.#state === "size-line") this.#readSizeLine(text);
    else if (text === "") this.isDone = true;
    else {
      this.#trailerBytes += text.length;
      if (this.#trailerBytes > HEAD_BYTES_MAX) throw new Error("the trailers are too long");
    }
  }

  /** Extensions of a chunk are allowed, and say nothing to us. */
  #readSizeLine(line: string): void {
    const size = parseChunkSize(line);
    if (size === undefined) throw new Error("a chunk without its size");
    this.#beginChunk(size);
  }

  #readHead(text: string): void {
    // Heads of one second differ in nothing.
    if (lastHead?.text !== text) lastHead = { text, head: parseHead(text) };
    const { status, headers, keepsConnection, bodyBytes } = lastHead.head;
    if (status < 200) return;
    this.keepsConnection = keepsConnection;
    if (bodyBytes === "chunks") this.#state = "size";
    else if (bodyBytes === "open") this.#state = "open";
    else {
      this.#state = "body";
      this.#left = bodyBytes;
      if (bodyBytes === 0) this.isDone = true;
    }
    this.#sink.onHead(status, headers);
  }
}

interface Head {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly keepsConnection: boolean;
  /** How many bytes follow; `chunks`: each says how many it has; `open`: those up to the end of the connection. */
  readonly bodyBytes: number | "chunks" | "open";
}

let lastHead: { readonly text: string; readonly head: Head } | undefined;

/** Without the empty line at its end. Throws an Error when it is no head of a reply that could be read. */
function parseHead(head: string): Head {
  const [statusLine = "", ...lines] = head.split("\r\n");
  const [, minor, digits] = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: .*)?$/.exec(statusLine) ?? [];
  if (digits === undefined) throw new Error("a head that is no HTTP/1.1");
  const status = Number(digits);
  if (status === 101) throw new Error("another protocol, which nobody asked for");
  const headers = readHeaders(lines);
  const bodyBytes = bodyBytesOf(status, headers);
  const keepsConnection = minor === "1" && !saysClose(headers.connection) && bodyBytes !== "open";
  return { status, headers, keepsConnection, bodyBytes };
}

function bodyBytesOf(status: number, headers: Readonly<Record<string, string>>): Head["bodyBytes"] {
  const { "transfer-encoding": encoding, "content-length": announced } = headers;
  if (status < 200 || status === 204 || status === 304) return 0;
  if (encoding !== undefined) {
    if (encoding.toLowerCase() !== "chunked" || announced !== undefined)
      throw new Error("a body in a coding that nobody asked for, or of two lengths");
    return "chunks";
  }
  if (announced === undefined) return "open";
  if (!/^\d{1,15}$/.test(announced)) throw new Error("a body without a length");
  return Number(announced);
}

type State =
  | "head"
  /** A body of known length; `open`: up to the end of the connection. */
  | "body"
  | "open"
  /** The line before a chunk; `size-line`: one that is unusual, or cut. */
  | "size"
  | "size-line"
  | "chunk"
  | "after-chunk"
  | "trailers";

function readHeaders(lines: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = Object.create(null);
  for (const line of lines) {
    const [, name, padded = ""] = HEADER.exec(line) ?? [];
    if (name === undefined) throw new Error("a header that is none");
    const key = name.toLowerCase();
    const value = withoutPadding(padded);
    const before = headers[key];
    headers[key] = before === undefined ? value : `${before}, ${value}`;
  }
  return headers;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: what must not be in a value is what this is about.
const HEADER = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\0-\x08\x0a-\x1f\x7f]*)$/;

/** Both as Node's own parser has them by default: 16 KiB. */
const HEAD_BYTES_MAX = 16 * 1024;
const LINE_BYTES_MAX = 16 * 1024;

/** No chunk is as large as 4 GiB. */
const SIZE_DIGITS_MAX = 8;

const CR = 0x0d;
const LF = 0x0a;
const LINE_END = "\r\n";
const HEAD_END = "\r\n\r\n";

function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x61 + 10 : -1;
}
