import { decodeHuffman } from "./huffman.ts";
import { ConnectionFault, errorCodes } from "./protocol.ts";
import { staticTable } from "./static-table.ts";

/** The size that we let the peer's encoder have: what it begins with, if nobody has asked for another (RFC 9113, section 6.5.2). */
const tableBytesMax = 4096;

/** What an entry costs beside its characters (RFC 7541, section 4.1). */
const entryOverhead = 32;

/** Entries that are evicted and not yet thrown away: as many as the table can hold. */
const evictedMax = tableBytesMax / entryOverhead;

/** The fields of one request, or its trailers. */
export interface DecodedFields {
  /** Names and values in turn, as they came; not all of them when they are too large. */
  readonly fields: readonly string[];
  /** Whether they exceed the decoder's bounds. */
  readonly tooLarge: boolean;
  /** Whether a name or a value has characters that none may have (RFC 9113, section 8.2.1). */
  readonly malformed: boolean;
}

/** A field, and whether its characters are allowed: looked at once, when it comes as a literal. */
class Field {
  readonly name: string;
  readonly value: string;
  readonly hasName: boolean;
  readonly isWellFormed: boolean;

  constructor(name: string, value: string, hasName: boolean, hasValue: boolean) {
    this.name = name;
    this.value = value;
    this.hasName = hasName;
    this.isWellFormed = hasName && hasValue;
  }

  get bytes(): number {
    return this.name.length + this.value.length + entryOverhead;
  }
}

const staticEntries = staticTable.map(([name, value]) => new Field(name, value, true, true));

/**
 * HPACK (RFC 7541): the fields that a peer sends on one connection. Every block must be decoded, in order, since each can change the
 * table that the next ones refer to; what exceeds the bounds is decoded too, and thrown away.
 */
export class HeaderDecoder {
  readonly #bounds: { readonly bytes: number; readonly fields: number };
  /** The newest entry last. Those before `#first` are evicted. */
  #entries: Field[] = [];
  #first = 0;
  #tableBytes = 0;
  #tableBytesMax = tableBytesMax;
  #block: Buffer = noBytes;
  #at = 0;

  /** `bounds`: bytes of all names and values of a block, and how many fields it may have. */
  constructor(bounds: { readonly bytes: number; readonly fields: number }) {
    this.#bounds = bounds;
  }

  /** Throws ConnectionFault when nothing after it could be decoded either. */
  decode(block: Buffer): DecodedFields {
    this.#block = block;
    this.#at = 0;
    const fields: string[] = [];
    let bytes = 0;
    let tooLarge = false;
    let malformed = false;
    let begun = false;
    while (this.#at < block.length) {
      const first = block[this.#at] ?? 0;
      let field: Field;
      if (first >= 0x80) {
        field = this.#entry(this.#integer(7));
      } else if (first >= 0x40) {
        field = this.#literal(6);
        this.#add(field);
      } else if (first >= 0x20) {
        if (begun) throw broken();
        this.#resize(this.#integer(5));
        continue;
      } else {
        field = this.#literal(4);
      }
      begun = true;
      bytes += field.name.length + field.value.length;
      if (bytes > this.#bounds.bytes || fields.length >= this.#bounds.fields * 2) {
        tooLarge = true;
        continue;
      }
      if (!field.isWellFormed) malformed = true;
      fields.push(field.name, field.value);
    }
    this.#block = noBytes;
    return { fields, tooLarge, malformed };
  }

  #literal(prefixBits: number): Field {
    const index = this.#integer(prefixBits);
    const named = index === 0 ? undefined : this.#entry(index);
    const name = named === undefined ? this.#string() : named.name;
    const value = this.#string();
    const hasName = named?.hasName ?? isName.test(name);
    return new Field(name, value, hasName, !forbiddenInValue.test(value));
  }

  #entry(index: number): Field {
    const at = this.#entries.length - (index - staticEntries.length);
    const isStatic = index <= staticEntries.length;
    const field = isStatic ? staticEntries[index - 1] : this.#entries[at];
    if (field === undefined || (!isStatic && at < this.#first)) throw broken();
    return field;
  }

  #add(field: Field): void {
    this.#entries.push(field);
    this.#tableBytes += field.bytes;
    this.#evict();
  }

  #resize(bytes: number): void {
    if (bytes > tableBytesMax) throw broken();
    this.#tableBytesMax = bytes;
    this.#evict();
  }

  #evict(): void {
    while (this.#tableBytes > this.#tableBytesMax) {
      this.#tableBytes -= this.#entries[this.#first]?.bytes ?? this.#tableBytes;
      this.#first += 1;
    }
    // Rarely, so that each eviction costs the same.
    if (this.#first < evictedMax) return;
    this.#entries = this.#entries.slice(this.#first);
    this.#first = 0;
  }

  /** Section 5.1. */
  #integer(prefixBits: number): number {
    const mask = (1 << prefixBits) - 1;
    let value = this.#byte() & mask;
    if (value < mask) return value;
    // Four bytes more: beyond every index and length that can be meant, within what a number holds exactly.
    for (let shift = 0; shift < 28; shift += 7) {
      const byte = this.#byte();
      value += (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw broken();
  }

  /** Section 5.2. */
  #string(): string {
    const isHuffman = (this.#block[this.#at] ?? 0) >= 0x80;
    const length = this.#integer(7);
    const from = this.#at;
    const to = from + length;
    if (to > this.#block.length) throw broken();
    this.#at = to;
    if (!isHuffman) return this.#block.toString("latin1", from, to);
    const room = Math.ceil((length * 8) / 5);
    const out = room <= scratch.length ? scratch : Buffer.allocUnsafe(room);
    const decoded = decodeHuffman(this.#block, from, to, out);
    if (decoded === -1) throw broken();
    return out.toString("latin1", 0, decoded);
  }

  #byte(): number {
    const byte = this.#block[this.#at];
    if (byte === undefined) throw broken();
    this.#at += 1;
    return byte;
  }
}

const noBytes = Buffer.alloc(0);

/** For strings of usual length, one at a time. */
const scratch = Buffer.allocUnsafeSlow(4096);

/** A token of RFC 9110 in lower case, or the name of a pseudo-header. */
const isName = /^:?[!#$%&'*+.^_`|~0-9a-z-]+$/;

const forbiddenInValue = /[\0\r\n]/;

/** The tables of both sides differ from here on. */
function broken(): ConnectionFault {
  return new ConnectionFault(errorCodes.compressionError);
}
