import type { Socket } from "node:net";
import { monotonicClock } from "../../lib/clock.ts";
import { fieldsMax } from "../http-fields.ts";
import { HttpStream, type SessionOptions, type StreamOwner, stallMs } from "../http-stream.ts";
import { type MessageHead, MessageReader } from "./message-reader.ts";
import { MessageWriter } from "./message-writer.ts";
import { MessageFault } from "./protocol.ts";

const bounds = {
  /** Bytes of requests that wait here to be read: a body that nobody asks for, requests behind the one that runs. */
  unreadBytes: 64 * 1024,
  /** Milliseconds for a head, and for a body behind it. */
  headMs: 10_000,
  bodyMs: 60_000,
  /** Milliseconds that a connection may idle: longer than nginx keeps its own (60 s), so that it closes first. */
  idleMs: 65_000,
  /** Requests that are taken up behind one another before the process has a look at others. */
  requestsPerTurn: 32,
  /** Milliseconds that a peer gets to close the connection, once it was sent all: anew while it goes on sending, and at most. */
  closingMs: 1000,
  lingerMs: 10_000,
} as const;

/** What a client may expect before it sends its body. */
const continues = "100-continue";

const endless = { send: Number.POSITIVE_INFINITY, receive: Number.POSITIVE_INFINITY };

/** One connection of HTTP/1.1 or 1.0 (RFC 9112), the server's side: one request at a time. */
export class Http1Session implements StreamOwner {
  readonly writer: MessageWriter;
  sendWindow = Number.POSITIVE_INFINITY;
  readonly #socket: Socket;
  readonly #options: SessionOptions;
  readonly #reader: MessageReader;
  /** The request that runs. */
  #stream: HttpStream | undefined;
  /** Whether its sender takes another answer on the connection. */
  #persists = true;
  /** Bytes of its body that nobody has read. */
  #unread = 0;
  /** Whether the first bytes of a head are here. */
  #hasBegun = true;
  #deadlineAt = monotonicClock() + bounds.headMs;
  #isClosing = false;
  #isOver = false;
  #isAdvancing = false;
  /** Requests since the last read. */
  #taken = 0;
  #closingTimer: NodeJS.Timeout | undefined;
  #lingersUntil = 0;

  constructor(socket: Socket, options: SessionOptions) {
    this.#socket = socket;
    this.#options = options;
    const { headerBytesMax } = options;
    this.#reader = new MessageReader({ headerBytesMax, fieldsMax });
    this.writer = new MessageWriter(socket, {
      onDrain: () => this.#onDrain(),
      // Where the body of a request ends that is not whole may never be known.
      isLast: () => this.#isClosing || !this.#persists || this.#stream?.remoteEnded === false,
      keepAliveSeconds: bounds.idleMs / 1000,
    });
    socket
      .on("data", (chunk: Buffer) => this.#onRead(chunk))
      .on("error", ignore)
      .once("end", () => this.#onPeerEnd())
      .once("close", () => this.#onClosed());
  }

  get remoteAddress(): string | undefined {
    return this.#socket.remoteAddress;
  }

  /** Closes the connection behind the next answer that begins: that says so. */
  close(): void {
    this.#isClosing = true;
    if (this.#isIdle()) this.#end();
  }

  /** Ends what has taken too long. Called every second or so. */
  checkTime(now: number): void {
    if (now < this.#deadlineAt || this.#isOver) return;
    // Whose answers nobody reads is told no more.
    if (this.#isIdle() || this.writer.isBlocked) this.#end();
    else this.#refuse(new MessageFault(408, "the request took too long to arrive"));
  }

  // For its stream.

  onWaiting(): void {}

  onData(): void {}

  onConsumed(_stream: HttpStream, bytes: number): void {
    this.#unread -= bytes;
    if (this.#socket.isPaused()) this.#bound();
  }

  cut(): void {
    this.#isOver = true;
    this.writer.flush();
    this.#socket.destroy();
    this.#loseStream();
  }

  refuseRest(): void {
    this.#end();
  }

  onOver(stream: HttpStream): void {
    this.#stream = undefined;
    stream.onClosed();
    this.#unread = 0;
    this.writer.flush();
    if (this.writer.saysClose) {
      this.#end();
      return;
    }
    this.#deadlineAt = monotonicClock() + bounds.idleMs;
    this.#hasBegun = false;
    this.#advance();
  }

  // What the peer sends.

  #onRead(chunk: Buffer): void {
    if (this.#isOver) {
      if (monotonicClock() < this.#lingersUntil) this.#closingTimer?.refresh();
      return;
    }
    this.#reader.add(chunk);
    this.#taken = 0;
    this.#advance();
  }

  #advance(): void {
    if (this.#isAdvancing) return;
    this.#isAdvancing = true;
    try {
      while (this.#step()) {}
    } catch (error) {
      if (error instanceof MessageFault) this.#refuse(error);
      else this.#fail(error);
    }
    this.#isAdvancing = false;
    if (this.#isClosing && this.#isIdle()) this.#end();
    this.#bound();
  }

  /** A bug must not end the other connections. */
  #fail(error: unknown): void {
    this.#options.onBug(error);
    this.cut();
  }

  /** Takes the next part of what was read. False when it has to wait. */
  #step(): boolean {
    if (this.#isOver) return false;
    const stream = this.#stream;
    if (stream === undefined) {
      // Somebody who reads no answers gets no more of them.
      if (this.#reader.length === 0 || this.writer.isBlocked || !this.#mayTake()) return false;
      const head = this.#reader.readHead();
      if (head !== undefined) {
        this.#open(head);
        return true;
      }
      if (!this.#isIdle() && !this.#hasBegun) {
        this.#hasBegun = true;
        this.#deadlineAt = monotonicClock() + bounds.headMs;
      }
      return false;
    }
    if (stream.remoteEnded) return false;
    const piece = this.#reader.readBody();
    if (piece !== undefined) {
      this.#unread += piece.length;
      stream.onData(piece);
    } else if (this.#reader.bodyEnded) {
      this.#onBodyEnd(stream);
    } else {
      return false;
    }
    return true;
  }

  #mayTake(): boolean {
    if (this.#taken < bounds.requestsPerTurn) return true;
    if (this.#taken === bounds.requestsPerTurn) {
      setImmediate(() => {
        this.#taken = 0;
        this.#advance();
      });
    }
    this.#taken += 1;
    return false;
  }

  #open(head: MessageHead): void {
    this.#taken += 1;
    const { httpVersion, headers, persists } = head;
    const expected = headers.expect?.toLowerCase() ?? continues;
    if (expected !== continues) throw new MessageFault(417, "only 100-continue can be expected");
    this.#persists = persists;
    this.writer.begin(head);
    const stream = new HttpStream(this, 0, head, endless);
    this.#stream = stream;
    if (this.#reader.bodyEnded) {
      this.#onBodyEnd(stream);
    } else {
      this.#deadlineAt = monotonicClock() + bounds.bodyMs;
      const isAsked = headers.expect !== undefined && httpVersion === "1.1";
      if (isAsked && this.#reader.length === 0) stream.writeContinue();
    }
    this.#options.onRequest(stream);
  }

  #onBodyEnd(stream: HttpStream): void {
    this.#deadlineAt = Number.POSITIVE_INFINITY;
    stream.onRemoteEnd();
  }

  /** Reads no further than what may wait here. */
  #bound(): void {
    const isFull = this.#unread + this.#reader.length > bounds.unreadBytes;
    if (isFull && !this.#isOver) this.#socket.pause();
    else if (this.#socket.isPaused()) this.#socket.resume();
  }

  #onDrain(): void {
    const stream = this.#stream;
    try {
      while (stream !== undefined && stream.writableLength > 0 && !this.writer.isBlocked) {
        stream.sendWaiting();
      }
    } catch (error) {
      this.#fail(error);
    }
    this.#advance();
  }

  /** Nobody waits for an answer, and none is asked for. */
  #isIdle(): boolean {
    return this.#stream === undefined && this.#reader.length === 0;
  }

  /** Who says no more while a request runs has left, as over HTTP/2; but what is in the socket already may still be read. */
  #onPeerEnd(): void {
    if (this.#stream === undefined && this.writer.unsentBytes > 0) this.#end();
    else this.#socket.destroy();
  }

  /** Answers what is no request, if no answer has begun, and closes the connection. */
  #refuse({ status, message }: MessageFault): void {
    if (this.#stream?.headersSent !== true) {
      this.writer.fault(status, `${JSON.stringify({ code: "invalid_argument", message })}\n`);
    }
    this.#end();
  }

  /**
   * Closes the connection behind all that was written. What still comes is read and thrown away: if it were not, the peer could
   * lose what it was told.
   */
  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.writer.flush();
    this.#socket.end();
    this.#socket.resume();
    this.#lingersUntil = monotonicClock() + bounds.lingerMs;
    this.#awaitClose();
    this.#loseStream();
  }

  #awaitClose(): void {
    const { unsentBytes } = this.writer;
    const onTime = () => {
      if (this.writer.unsentBytes < unsentBytes) this.#awaitClose();
      else this.#socket.destroy();
    };
    this.#closingTimer = setTimeout(onTime, unsentBytes > 0 ? stallMs : bounds.closingMs);
  }

  #onClosed(): void {
    this.#isOver = true;
    clearTimeout(this.#closingTimer);
    this.#loseStream();
  }

  #loseStream(): void {
    const stream = this.#stream;
    this.#stream = undefined;
    stream?.onClosed();
  }
}

function ignore() {}
