import type { Socket } from "node:net";
import { withRoom } from "../lib/with-room.ts";

/** What is gathered before it is written without waiting for the turn's end. */
const gatheredMax = 64 * 1024;

/** What a writer keeps for what comes next, once it is written. */
const keptMax = 16 * 1024;

/** Those that have gathered something in this turn of the event loop. */
let gathering: SocketWriter[] = [];

/**
 * What goes to one peer. What one turn of the event loop writes is gathered and goes to the socket at its end, in one piece: a
 * system call for each token would cost more than all else that is done for it.
 */
export abstract class SocketWriter {
  /** Whether the socket takes no more for now. Bodies then wait in their streams. */
  isBlocked = false;
  /** What is gathered is their first `length`. */
  protected bytes: Buffer = noBytes;
  protected length = 0;
  readonly #socket: Socket;

  /** `onDrain`: the socket takes more. */
  constructor(socket: Socket, onDrain: () => void) {
    this.#socket = socket;
    socket.on("drain", () => {
      this.isBlocked = false;
      onDrain();
    });
  }

  /** Bytes that wait in Node for the peer to read them. */
  get unsentBytes(): number {
    return this.length + this.#socket.writableLength;
  }

  /** Writes what is gathered, now. */
  flush(): void {
    if (this.length === 0) return;
    const { bytes, length } = this;
    this.length = 0;
    if (!this.#socket.writable) return;
    if (!this.#socket.write(bytes.subarray(0, length))) this.isBlocked = true;
    // What the kernel has not taken at once is still read from there.
    if (this.#socket.writableLength > 0 || bytes.length > keptMax) this.bytes = noBytes;
  }

  protected flushIfLong(): void {
    if (this.length >= gatheredMax) this.flush();
  }

  protected copy(bytes: Uint8Array): void {
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  /** Makes room for as many bytes behind those that are gathered. */
  protected reserve(bytes: number): void {
    if (this.length === 0 && gathering.push(this) === 1) setImmediate(flushAll);
    this.bytes = withRoom(this.bytes, this.length, this.length + bytes);
  }
}

const noBytes = Buffer.alloc(0);

function flushAll(): void {
  const writers = gathering;
  gathering = [];
  for (const writer of writers) writer.flush();
}
