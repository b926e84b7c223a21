/**
 * The lengths in bits of the code of RFC 7541, appendix B, for each byte and for the end of a string (EOS): `a` stands for 5,
 * `z` for 30. The code is canonical: codes of one length are consecutive numbers, in the order of their symbols.
 */
const lengths =
  "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabcccc" +
  "ckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrsvvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvww" +
  "wwwxwwwwwvz";

const endOfString = 256;

/** States of the decoder: how it stands within a code. There are as many as the code's tree has inner nodes. */
const states = 256;
const stateShift = 9;
const symbolBits = 0x1ff;
const emits = 0x100;
const fails = -1;

/**
 * For each state and the next four bits: `fails`, or the next state, whether a symbol is complete, and which. No code is shorter
 * than five bits, so that it is one at most.
 */
const steps = new Int32Array(states * 16);

/** Whether a string may end in a state: with fewer than eight bits of padding, all of them 1. */
const mayEnd = new Uint8Array(states);

fillTables();

/**
 * Decodes a string. `out` must have room for `length * 8 / 5` bytes. Returns how many were written, or -1 for a string that is not
 * in this code, or not padded as it must be.
 */
export function decodeHuffman(
  bytes: Uint8Array,
  from: number,
  to: number,
  out: Uint8Array,
): number {
  let state = 0;
  let length = 0;
  for (let at = from; at < to; at += 1) {
    const byte = bytes[at] ?? 0;
    for (let shift = 4; shift >= 0; shift -= 4) {
      const step = steps[state * 16 + ((byte >> shift) & 15)] ?? fails;
      if (step === fails) return -1;
      if ((step & emits) !== 0) {
        out[length] = step & 0xff;
        length += 1;
      }
      state = step >> stateShift;
    }
  }
  return mayEnd[state] === 1 ? length : -1;
}

/** An inner node of the code's tree has two children: other inner nodes, or symbols as `~symbol`. */
function fillTables(): void {
  const tree: [number, number][] = [[0, 0]];
  const symbols = Array.from({ length: 257 }, (_, symbol) => symbol);
  const bitsOf = (symbol: number) => lengths.charCodeAt(symbol) - "a".charCodeAt(0) + 5;
  symbols.sort((one, other) => bitsOf(one) - bitsOf(other) || one - other);
  let code = 0;
  let bits = 0;
  for (const symbol of symbols) {
    code *= 2 ** (bitsOf(symbol) - bits);
    bits = bitsOf(symbol);
    insert(tree, code, bits, symbol);
    code += 1;
  }
  // Padding is the beginning of EOS: all bits 1.
  let padded = 0;
  for (let length = 0; length < 8; length += 1) {
    mayEnd[padded] = 1;
    padded = tree[padded]?.[1] ?? 0;
  }
  for (let state = 0; state < tree.length; state += 1) {
    for (let nibble = 0; nibble < 16; nibble += 1) {
      steps[state * 16 + nibble] = stepOf(tree, state, nibble);
    }
  }
}

function insert(tree: [number, number][], code: number, bits: number, symbol: number): void {
  let node = 0;
  for (let bit = bits - 1; bit >= 0; bit -= 1) {
    const children = tree[node];
    if (children === undefined) return;
    const side = (code >>> bit) & 1;
    if (bit === 0) {
      children[side] = ~symbol;
    } else {
      if (children[side] === 0) children[side] = tree.push([0, 0]) - 1;
      node = children[side] ?? 0;
    }
  }
}

function stepOf(tree: [number, number][], state: number, nibble: number): number {
  let node = state;
  let symbol = 0;
  for (let bit = 3; bit >= 0; bit -= 1) {
    const child = tree[node]?.[(nibble >> bit) & 1] ?? 0;
    if (child >= 0) {
      node = child;
      continue;
    }
    if (~child === endOfString) return fails;
    symbol = emits | ~child;
    node = 0;
  }
  return (node << stateShift) | (symbol & symbolBits);
}
