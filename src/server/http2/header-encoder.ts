import { withRoom } from "../../lib/with-room.ts";
import { staticTable } from "./static-table.ts";

/**
 * HPACK (RFC 7541) for answers: values are written out, names where they have no index. Nothing is kept from one answer to the next,
 * since a table of its own for each connection would save some sixty bytes of an answer.
 */
export class HeaderEncoder {
  #bytes: Buffer = Buffer.allocUnsafeSlow(1024);
  #length = 0;

  /**
   * A block of fields, names (in lower case) and values in turn, valid until the next call. `resetsTable`: it says first that the
   * table is empty, which a peer who has changed its size waits for (section 4.2).
   */
  encode(fields: readonly string[], resetsTable: boolean): Buffer {
    this.#length = 0;
    if (resetsTable) this.#byte(0x20);
    for (let at = 0; at < fields.length; at += 2)
      this.#field(fields[at] ?? "", fields[at + 1] ?? "");
    return this.#bytes.subarray(0, this.#length);
  }

  #field(name: string, value: string): void {
    // A name of n characters takes n bytes, and each of the lengths four more at most.
    const needed = this.#length + name.length + value.length + 16;
    this.#bytes = withRoom(this.#bytes, this.#length, needed);
    if (name === ":status" && value === "200") {
      this.#byte(0x80 | statusOk);
      return;
    }
    const index = nameIndex.get(name);
    if (index === undefined) {
      this.#byte(0);
      this.#string(name);
    } else {
      this.#integer(index, 4);
    }
    this.#string(value);
  }

  #string(text: string): void {
    this.#integer(text.length, 7);
    this.#length += this.#bytes.write(text, this.#length, "latin1");
  }

  #integer(value: number, prefixBits: number): void {
    const mask = (1 << prefixBits) - 1;
    if (value < mask) {
      this.#byte(value);
      return;
    }
    this.#byte(mask);
    let rest = value - mask;
    for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) this.#byte((rest % 0x80) | 0x80);
    this.#byte(rest);
  }

  #byte(byte: number): void {
    this.#bytes[this.#length] = byte;
    this.#length += 1;
  }
}

const statusOk =
  1 + staticTable.findIndex(([name, value]) => name === ":status" && value === "200");

/** The first index of each name. */
const nameIndex = new Map<string, number>();
for (const [at, [name]] of staticTable.entries()) {
  if (!nameIndex.has(name)) nameIndex.set(name, at + 1);
}
