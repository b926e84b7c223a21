import type { Socket } from "node:net";
import type { StreamWriter } from "../http-stream.ts";
import { SocketWriter } from "../socket-writer.ts";
import { reasonPhrases } from "./protocol.ts";

/** What a writer has to know of the request that it answers. */
export interface Asked {
  readonly method: string;
  readonly httpVersion: "1.0" | "1.1";
}

export interface WriterOptions {
  /** The socket takes more. */
  readonly onDrain: () => void;
  /** Asked when an answer begins: whether the connection is closed behind it. */
  readonly isLast: () => boolean;
  /** What an answer says if it is not the last one. Seconds. */
  readonly keepAliveSeconds: number;
}

/** How the end of an answer's body is told. */
type Framing = "none" | "length" | "chunks" | "close";

/** The answers on one connection (RFC 9112), one after the other. */
export class MessageWriter extends SocketWriter implements StreamWriter {
  readonly #isLast: () => boolean;
  readonly #persisting: string;
  #asked: Asked | undefined;
  #framing: Framing = "none";
  /** Whether the answer that has begun is the last one. */
  saysClose = false;

  constructor(socket: Socket, { onDrain, isLast, keepAliveSeconds }: WriterOptions) {
    super(socket, onDrain);
    this.#isLast = isLast;
    this.#persisting = `connection: keep-alive\r\nkeep-alive: timeout=${keepAliveSeconds}\r\n`;
  }

  /** What comes now answers this request. */
  begin(asked: Asked): void {
    this.#asked = asked;
  }

  headers(_stream: number, fields: readonly string[], endsStream: boolean): void {
    if (fields[0] !== ":status") this.#trailers(fields);
    else if (fields[1] === "100") this.#text("HTTP/1.1 100 Continue\r\n\r\n");
    else this.#head(fields, endsStream);
  }

  data(_stream: number, bytes: Uint8Array, endsStream: boolean): void {
    if (this.#framing === "none") return;
    const isChunk = this.#framing === "chunks";
    if (isChunk && bytes.length > 0) this.#text(`${bytes.length.toString(16)}\r\n`);
    this.reserve(bytes.length);
    this.copy(bytes);
    if (isChunk && bytes.length > 0) this.#text("\r\n");
    if (isChunk && endsStream) this.#text("0\r\n\r\n");
    this.flushIfLong();
  }

  /** The whole answer to what is no request. */
  fault(status: number, body: string): void {
    this.saysClose = true;
    const head = `${statusLine(status)}content-type: application/json\r\nconnection: close\r\n`;
    this.#text(`${head}content-length: ${body.length}\r\n\r\n${body}`);
  }

  #head(fields: readonly string[], endsStream: boolean): void {
    const status = Number(fields[1]);
    let text = statusLine(status);
    let hasLength = false;
    this.saysClose = this.#isLast();
    for (let at = 2; at < fields.length; at += 2) {
      if (fields[at] === "connection") {
        this.saysClose ||= fields[at + 1]?.toLowerCase() === "close";
        continue;
      }
      text += toLine(fields[at], fields[at + 1]);
      hasLength ||= fields[at] === "content-length";
    }
    const { method, httpVersion } = this.#asked ?? { method: "GET", httpVersion: "1.0" };
    if (method === "HEAD" || status === 204 || status === 304) {
      this.#framing = "none";
    } else if (hasLength) {
      this.#framing = "length";
    } else if (endsStream) {
      this.#framing = "none";
      text += "content-length: 0\r\n";
    } else if (httpVersion === "1.1") {
      this.#framing = "chunks";
      text += "transfer-encoding: chunked\r\n";
    } else {
      this.#framing = "close";
    }
    text += this.saysClose ? "connection: close\r\n" : this.#persisting;
    this.#text(`${text}\r\n`);
  }

  #trailers(fields: readonly string[]): void {
    if (this.#framing !== "chunks") return;
    let text = "0\r\n";
    for (let at = 0; at < fields.length; at += 2) text += toLine(fields[at], fields[at + 1]);
    this.#text(`${text}\r\n`);
  }

  #text(text: string): void {
    this.reserve(text.length);
    this.length += this.bytes.write(text, this.length, "latin1");
  }
}

function statusLine(status: number): string {
  return `HTTP/1.1 ${status} ${reasonPhrases[status] ?? ""}\r\n`;
}

/** Throws for what would begin another line, or would when its upper bytes are cut off, whoever has let it through. */
function toLine(name = "", value = ""): string {
  if (!isFieldValue.test(value)) throw new Error(`the field ${name} must be one line`);
  return `${name}: ${value}\r\n`;
}

const isFieldValue = /^[\t\x20-\x7e\x80-\xff]*$/;
