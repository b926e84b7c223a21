import { parseChunkSize, saysClose, withoutPadding } from "../../lib/http1-grammar.ts";
import {
  addField,
  type Fields,
  isLength,
  isToken,
  isVisible,
  noFields,
  toFieldName,
} from "../http-fields.ts";
import type { StreamHead } from "../http-stream.ts";
import { MessageFault } from "./protocol.ts";

/** Of HTTP/1.1. Its path is the request target as it was sent. */
export interface MessageHead extends StreamHead {
  readonly httpVersion: "1.0" | "1.1";
  /** Whether its sender takes another answer on the connection. */
  readonly persists: boolean;
}

export interface MessageLimits {
  /** Of a head, and of what a chunked body says besides its bytes. */
  readonly headerBytesMax: number;
  readonly fieldsMax: number;
}

/** Where in a body the next byte is. */
type Place = "none" | "length" | "chunkSize" | "chunk" | "chunkEnd" | "trailers";

/**
 * Reads the requests of a connection (RFC 9112), one after the other: a head, its body in pieces, the next head. Strict where two
 * readers could understand differently where a request ends: lines end in CRLF, names stand before their colon, a body has one
 * length or one coding. Throws MessageFault for all else.
 */
export class MessageReader {
  readonly #limits: MessageLimits;
  /** What came and is not read. */
  #bytes: Buffer = noBytes;
  /** Bytes of memory behind it that are its own and free. */
  #room = 0;
  /** How far it was looked through for the end of a line or of a head. */
  #looked = 0;
  #place: Place = "none";
  /** Bytes of the body, or of its chunk, that are still to come. */
  #missing = 0;
  /** Bytes of chunk extensions and trailers so far. */
  #besides = 0;

  constructor(limits: MessageLimits) {
    this.#limits = limits;
  }

  /** Bytes that came and are not read. */
  get length(): number {
    return this.#bytes.length;
  }

  /** Whether all of the body has been read. */
  get bodyEnded(): boolean {
    return this.#place === "none";
  }

  /** At a cost that is linear, however small the chunks are. */
  add(chunk: Buffer): void {
    const { length } = this;
    if (length === 0) {
      this.#bytes = chunk;
      this.#room = 0;
      return;
    }
    const needed = length + chunk.length;
    if (this.#room < chunk.length) {
      // What is longer is no head: its peer is not read on.
      const larger = Buffer.allocUnsafeSlow(needed > doubledMax ? needed : 2 * needed);
      this.#bytes.copy(larger);
      this.#bytes = larger.subarray(0, length);
      this.#room = larger.length - length;
    }
    this.#bytes = Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset, needed);
    this.#room -= chunk.length;
    chunk.copy(this.#bytes, length);
  }

  /** The next head; undefined until it is whole. Only when the body before it has ended. */
  readHead(): MessageHead | undefined {
    this.#skipEmptyLines();
    const { headerBytesMax } = this.#limits;
    const end = this.#find(headEnd);
    if (end === -1 ? this.length > headerBytesMax : end > headerBytesMax) {
      throw new MessageFault(431, `the head must not exceed ${headerBytesMax} bytes`);
    }
    if (end === -1) return undefined;
    const text = this.#bytes.toString("latin1", 0, end);
    this.#skip(end + headEnd.length);
    if (!isHead.test(text)) throw malformed();
    const lines = text.split("\r\n");
    const { method, target, httpVersion } = parseRequestLine(lines[0] ?? "");
    const { fieldsMax } = this.#limits;
    if (lines.length - 1 > fieldsMax) {
      throw new MessageFault(431, `the head must not have more than ${fieldsMax} fields`);
    }
    const headers = noFields();
    for (let at = 1; at < lines.length; at += 1) {
      const { name, value } = parseField(lines[at] ?? "");
      if (isFraming(name) && headers[name] !== undefined) throw malformed();
      if (!addField(headers, name, value)) throw malformed();
    }
    this.#startBody(headers, httpVersion);
    return {
      httpVersion,
      method,
      path: target,
      authority: headers.host,
      headers,
      // What its body says of itself, and its size, were judged here.
      contentLength: undefined,
      tooLarge: false,
      persists: httpVersion === "1.1" && !saysClose(headers.connection),
    };
  }

  /** The next piece of the body, never an empty one; undefined when it has ended or more must come. */
  readBody(): Buffer | undefined {
    for (;;) {
      switch (this.#place) {
        case "none":
          return undefined;
        case "length":
        case "chunk": {
          const piece = this.#take(Math.min(this.#missing, this.length));
          this.#missing -= piece.length;
          if (this.#missing === 0) this.#place = this.#place === "chunk" ? "chunkEnd" : "none";
          return piece.length === 0 ? undefined : piece;
        }
        case "chunkEnd":
          if (this.length < crlf.length) return undefined;
          if (!this.#take(crlf.length).equals(crlf)) throw malformed();
          this.#place = "chunkSize";
          break;
        case "chunkSize": {
          const line = this.#readLine();
          if (line === undefined) return undefined;
          const size = parseChunkSize(line);
          if (size === undefined) throw malformed();
          this.#countBesides(line.length - line.search(/[^0-9a-fA-F]|$/));
          this.#missing = size;
          this.#place = this.#missing === 0 ? "trailers" : "chunk";
          break;
        }
        case "trailers": {
          const line = this.#readLine();
          if (line === undefined) return undefined;
          this.#countBesides(line.length);
          if (line === "") this.#place = "none";
          else parseField(line);
        }
      }
    }
  }

  /** How long the body is (RFC 9112, section 6.3). */
  #startBody(headers: Fields, httpVersion: "1.0" | "1.1"): void {
    const { "content-length": length, "transfer-encoding": coding } = headers;
    this.#besides = 0;
    if (coding !== undefined) {
      if (length !== undefined || httpVersion === "1.0") throw malformed();
      if (coding.toLowerCase() !== "chunked") throw malformed();
      this.#place = "chunkSize";
      return;
    }
    if (length !== undefined && !/^\d+$/.test(length)) throw malformed();
    if (length !== undefined && !isLength.test(length)) {
      throw new MessageFault(413, "the body is too long");
    }
    this.#missing = Number(length ?? 0);
    this.#place = this.#missing === 0 ? "none" : "length";
  }

  /** Section 2.2 asks for it: some clients send one behind a body. */
  #skipEmptyLines(): void {
    let at = 0;
    while (this.#bytes[at] === crlf[0] && this.#bytes[at + 1] === crlf[1]) at += crlf.length;
    if (at > 0) this.#skip(at);
  }

  /** undefined until it is whole. */
  #readLine(): string | undefined {
    const end = this.#find(crlf);
    if (end === -1) {
      this.#mayBesides(this.length);
      return undefined;
    }
    const line = this.#take(end).toString("latin1");
    this.#skip(crlf.length);
    if (line !== "" && !isHead.test(line)) throw malformed();
    return line;
  }

  /** Where the mark is that ends what is read next, or -1: then all that is here so far may belong to lines. */
  #find(mark: Buffer): number {
    const at = this.#bytes.indexOf(mark, Math.max(0, this.#looked - mark.length + 1));
    if (at !== -1) return at;
    // With the last byte that was looked at: it may be half of a line's end.
    const text = this.#bytes.toString("latin1", Math.max(0, this.#looked - 1));
    if (!isLines.test(text)) throw malformed();
    this.#looked = this.length;
    return -1;
  }

  #countBesides(bytes: number): void {
    this.#mayBesides(bytes);
    this.#besides += bytes;
  }

  #mayBesides(bytes: number): void {
    if (this.#besides + bytes > this.#limits.headerBytesMax) {
      throw new MessageFault(413, "the chunks of the body say too much besides it");
    }
  }

  #take(bytes: number): Buffer {
    const piece = this.#bytes.subarray(0, bytes);
    this.#skip(bytes);
    return piece;
  }

  #skip(bytes: number): void {
    this.#looked = 0;
    this.#bytes = bytes === this.length ? noBytes : this.#bytes.subarray(bytes);
  }
}

function parseRequestLine(line: string) {
  const methodEnd = line.indexOf(" ");
  const targetEnd = line.indexOf(" ", methodEnd + 1);
  const method = line.slice(0, Math.max(0, methodEnd));
  const target = line.slice(methodEnd + 1, targetEnd);
  const version = line.slice(targetEnd + 1);
  if (target === "" || !isToken.test(method) || !isVisible.test(target)) throw malformed();
  if (version === "HTTP/1.1") return { method, target, httpVersion: "1.1" } as const;
  if (version === "HTTP/1.0") return { method, target, httpVersion: "1.0" } as const;
  if (!/^HTTP\/\d\.\d$/.test(version)) throw malformed();
  throw new MessageFault(505, "HTTP/1.1 and HTTP/2 are spoken here");
}

function parseField(line: string) {
  const colon = line.indexOf(":");
  const name = toFieldName(line.slice(0, Math.max(0, colon)));
  if (name === undefined) throw malformed();
  return { name, value: withoutPadding(line, colon + 1) };
}

/** Fields that say where a request ends, or whose it is, are there once. */
function isFraming(name: string): boolean {
  return name === "content-length" || name === "transfer-encoding" || name === "host";
}

function malformed(): MessageFault {
  return new MessageFault(400, "the request is not valid HTTP/1.1");
}

const doubledMax = 64 * 1024;
const noBytes = Buffer.alloc(0);
const crlf = Buffer.from("\r\n");
const headEnd = Buffer.from("\r\n\r\n");
/** Lines of visible characters, spaces and tabs, with CRLF between them and no empty one. */
const isHead = /^[\t\x20-\x7e\x80-\xff]+(?:\r\n[\t\x20-\x7e\x80-\xff]+)*$/;
/** What may be a part of it, from any byte to any other. */
const isLines = /^\n?(?:[\t\x20-\x7e\x80-\xff]|\r\n)*\r?$/;
