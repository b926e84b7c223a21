/**
 * One metadata value of a GGUF file, named by its type.
 * Source of the layout: the GGUF specification, version 3 (ggml, docs/gguf.md).
 */
export type GgufValue =
  | { readonly uint32: number }
  | { readonly float32: number }
  | { readonly bool: boolean }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly int32s: readonly number[] }
  | { readonly float32s: readonly number[] };

/** A tensor of 32-bit floats. `shape` is in GGUF order: the length of a row first, then how many rows. */
export interface GgufTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

const type = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;
const alignment = 32;
const tensorTypeF32 = 0;

/** The bytes of a GGUF file (version 3, little endian) with this metadata and these tensors, in this order. */
export function serializeGguf(
  metadata: readonly (readonly [key: string, value: GgufValue])[],
  tensors: readonly GgufTensor[],
): Uint8Array {
  const header = [
    Buffer.from("GGUF"),
    uint32(3),
    uint64(tensors.length),
    uint64(metadata.length),
    ...metadata.flatMap(([key, value]) => [string(key), ...typedValue(value)]),
  ];
  let offset = 0;
  const data: Buffer[] = [];
  for (const tensor of tensors) {
    header.push(string(tensor.name), uint32(tensor.shape.length));
    header.push(...tensor.shape.map(uint64), uint32(tensorTypeF32), uint64(offset));
    const bytes = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
    data.push(bytes, padding(bytes.length));
    offset += bytes.length + padding(bytes.length).length;
  }
  const head = Buffer.concat(header);
  return Buffer.concat([head, padding(head.length), ...data]);
}

function typedValue(value: GgufValue): Buffer[] {
  if ("uint32" in value) return [uint32(type.uint32), uint32(value.uint32)];
  if ("float32" in value) return [uint32(type.float32), float32(value.float32)];
  if ("bool" in value) return [uint32(type.bool), Buffer.from([value.bool ? 1 : 0])];
  if ("string" in value) return [uint32(type.string), string(value.string)];
  if ("strings" in value) return array(type.string, value.strings.map(string));
  if ("int32s" in value) return array(type.int32, value.int32s.map(uint32));
  return array(type.float32, value.float32s.map(float32));
}

function array(itemType: number, items: readonly Buffer[]): Buffer[] {
  return [uint32(type.array), uint32(itemType), uint64(items.length), ...items];
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([uint64(bytes.length), bytes]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function float32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function padding(length: number): Buffer {
  return Buffer.alloc((alignment - (length % alignment)) % alignment);
}
