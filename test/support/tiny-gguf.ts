import { writeFile } from "node:fs/promises";
import { type GgufTensor, type GgufValue, serializeGguf } from "./gguf-writer.ts";

/** How the little model behaves. */
export interface TinyGgufOptions {
  /** Seed of the weights; 1 unless given. Same seed, same bytes. */
  readonly seed?: number;
  /**
   * How much the model likes to end its turn, in logits beside an ordinary letter's 0. At 0, the default, an answer at
   * temperature 1 is a few hundred tokens long; at -1000 it never ends by itself; at 1000 it says nothing.
   */
  readonly endOfTurnLogit?: number;
}

const size = { embedding: 64, feedForward: 96, heads: 2, blocks: 2, context: 32_768 } as const;

const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const endOfTurn = "<|im_end|>";

/** Kinds of token in `tokenizer.ggml.token_type` (llama.cpp, `llama_token_type`). */
const tokenKind = { normal: 1, unknown: 2, control: 3, byte: 6 } as const;

interface VocabularyEntry {
  readonly text: string;
  readonly kind: number;
  /** Added to the logit of this token whatever came before. */
  readonly logit: number;
}

/**
 * Writes a model that llama.cpp loads like any other: llama architecture, SentencePiece vocabulary with full byte
 * fallback, ChatML template, random weights, about 500 kB. It talks nonsense in letters, accents and a few French words
 * and leaves the raw bytes alone, so what it says by itself is valid UTF-8 and a grammar can still make it spell an
 * emoji byte by byte.
 */
export async function writeTinyGguf(path: string, options: TinyGgufOptions = {}): Promise<void> {
  await writeFile(path, createTinyGguf(options));
}

function createTinyGguf({ seed = 1, endOfTurnLogit = 0 }: TinyGgufOptions): Uint8Array {
  const vocabulary = createVocabulary(endOfTurnLogit);
  return serializeGguf(createMetadata(vocabulary), createTensors(vocabulary, createNormals(seed)));
}

function createVocabulary(endOfTurnLogit: number): VocabularyEntry[] {
  const never = -1000;
  const { normal, unknown, control, byte } = tokenKind;
  const words = ["formation", "stage", "bonjour", "merci", "avec", "le", "la", "des", "et", "est"];
  const pieces = [...words.map((word) => `▁${word}`), "ment", "tion", "ée", "ou", "▁", "\n"];
  const letters = Array.from("abcdefghijklmnopqrstuvwxyzéèàùçêîôûëïœABCDEFGHIJKLMNOPQRSTUVWXYZ");
  const digits = Array.from("0123456789");
  const signs = Array.from("!#$%&'()*+-./;<=>?@\\^_`|~");
  // Quotes and brackets are likelier than letters, so that a grammar reaches the end of a string or of an array.
  const structure = Array.from('":,{}[]');
  return [
    { text: "<unk>", kind: unknown, logit: never },
    { text: "<s>", kind: control, logit: never },
    { text: "</s>", kind: control, logit: never },
    ...Array.from({ length: 256 }, (_, value) => ({
      text: `<0x${value.toString(16).toUpperCase().padStart(2, "0")}>`,
      kind: byte,
      logit: -30,
    })),
    { text: "<|im_start|>", kind: control, logit: never },
    { text: endOfTurn, kind: control, logit: endOfTurnLogit },
    ...pieces.map((text) => ({ text, kind: normal, logit: 1 })),
    ...letters.map((text) => ({ text, kind: normal, logit: 0 })),
    ...digits.map((text) => ({ text, kind: normal, logit: 0 })),
    ...signs.map((text) => ({ text, kind: normal, logit: -2 })),
    ...structure.map((text) => ({ text, kind: normal, logit: 2 })),
  ];
}

function createMetadata(vocabulary: readonly VocabularyEntry[]): [string, GgufValue][] {
  const idOf = (text: string) => vocabulary.findIndex((entry) => entry.text === text);
  return [
    ["general.architecture", { string: "llama" }],
    ["general.name", { string: "tiny" }],
    ["general.file_type", { uint32: 0 }],
    ["llama.context_length", { uint32: size.context }],
    ["llama.embedding_length", { uint32: size.embedding }],
    ["llama.block_count", { uint32: size.blocks }],
    ["llama.feed_forward_length", { uint32: size.feedForward }],
    ["llama.attention.head_count", { uint32: size.heads }],
    ["llama.attention.head_count_kv", { uint32: size.heads }],
    ["llama.attention.layer_norm_rms_epsilon", { float32: 1e-5 }],
    ["llama.rope.dimension_count", { uint32: size.embedding / size.heads }],
    ["llama.vocab_size", { uint32: vocabulary.length }],
    ["tokenizer.ggml.model", { string: "llama" }],
    ["tokenizer.ggml.tokens", { strings: vocabulary.map((entry) => entry.text) }],
    // Longer pieces win a merge.
    ["tokenizer.ggml.scores", { float32s: vocabulary.map((entry) => entry.text.length) }],
    ["tokenizer.ggml.token_type", { int32s: vocabulary.map((entry) => entry.kind) }],
    ["tokenizer.ggml.unknown_token_id", { uint32: idOf("<unk>") }],
    ["tokenizer.ggml.bos_token_id", { uint32: idOf("<s>") }],
    ["tokenizer.ggml.eos_token_id", { uint32: idOf(endOfTurn) }],
    ["tokenizer.ggml.add_bos_token", { bool: false }],
    ["tokenizer.ggml.add_space_prefix", { bool: false }],
    ["tokenizer.chat_template", { string: chatTemplate }],
  ];
}

/**
 * Dimension 0 of the residual stream is the same for every token and no layer writes to it, so column 0 of the output
 * matrix acts as a bias on the logits, which this architecture has no tensor for.
 */
function createTensors(
  vocabulary: readonly VocabularyEntry[],
  normals: () => number,
): GgufTensor[] {
  const { embedding, feedForward } = size;
  const constant = 4;
  const matrix = (columns: number, rows: number, scale: number) =>
    Float32Array.from({ length: columns * rows }, () => normals() * scale);
  const keepRow0 = (data: Float32Array, columns: number) => data.fill(0, 0, columns);
  const ones = () => new Float32Array(embedding).fill(1);

  const tokens = matrix(embedding, vocabulary.length, 0.7);
  const output = matrix(embedding, vocabulary.length, 0.12);
  // What dimension 0 is worth after the final normalisation, about: the other dimensions have a variance near 0.8.
  const normalized = constant / Math.sqrt((constant ** 2 + 0.8 * (embedding - 1)) / embedding);
  for (const [index, { logit }] of vocabulary.entries()) {
    tokens[index * embedding] = constant;
    output[index * embedding] = logit / normalized;
  }

  const blocks = Array.from({ length: size.blocks }, (_, block): GgufTensor[] => {
    const named = (name: string, shape: number[], data: Float32Array) => ({
      name: `blk.${block}.${name}.weight`,
      shape,
      data,
    });
    const square = () => matrix(embedding, embedding, 0.1);
    return [
      named("attn_norm", [embedding], ones()),
      named("attn_q", [embedding, embedding], square()),
      named("attn_k", [embedding, embedding], square()),
      named("attn_v", [embedding, embedding], square()),
      named("attn_output", [embedding, embedding], keepRow0(square(), embedding)),
      named("ffn_norm", [embedding], ones()),
      named("ffn_gate", [embedding, feedForward], matrix(embedding, feedForward, 0.1)),
      named("ffn_up", [embedding, feedForward], matrix(embedding, feedForward, 0.1)),
      named(
        "ffn_down",
        [feedForward, embedding],
        keepRow0(matrix(feedForward, embedding, 0.1), feedForward),
      ),
    ];
  });
  return [
    { name: "token_embd.weight", shape: [embedding, vocabulary.length], data: tokens },
    ...blocks.flat(),
    { name: "output_norm.weight", shape: [embedding], data: ones() },
    { name: "output.weight", shape: [embedding, vocabulary.length], data: output },
  ];
}

/** Normally distributed numbers (Box-Muller) from a seeded generator (mulberry32). */
function createNormals(seed: number): () => number {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
