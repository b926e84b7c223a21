import { withRoom } from "./with-room.ts";

/** Gathers bytes that arrive in pieces, at a cost that is linear however small these are. */
export class ByteGatherer {
  #bytes: Buffer = noBytes;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /**
   * The first piece is kept as it is, and copied only when there is a second one, or when it is a small part of the memory that it
   * would keep.
   */
  add(piece: Buffer): void {
    if (this.#length === 0) {
      this.#bytes = piece.length * 2 < piece.buffer.byteLength ? Buffer.from(piece) : piece;
      this.#length = piece.length;
      return;
    }
    const length = this.#length + piece.length;
    this.#bytes = withRoom(this.#bytes, this.#length, length);
    piece.copy(this.#bytes, this.#length);
    this.#length = length;
  }

  /** All that was added since the last time. */
  take(): Buffer {
    const bytes = this.#bytes.subarray(0, this.#length);
    this.#bytes = noBytes;
    this.#length = 0;
    return bytes;
  }
}

const noBytes = Buffer.alloc(0);
