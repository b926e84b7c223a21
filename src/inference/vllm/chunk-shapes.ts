import type { FinishReason } from "../engine.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";

/** What an event of a known shape says. A count is -1 where the event has none. */
export interface Said {
  type: "text-delta" | "reasoning-delta";
  /** Empty where there is none; always well-formed Unicode. */
  text: string;
  finishReason: FinishReason | undefined;
  promptTokens: number;
  completionTokens: number;
  cachedPromptTokens: number;
}

/**
 * The shapes that an engine's events have: all of an event but its id, its text and its counts, which are the holes. An event
 * that nobody knows is parsed as JSON, and learned from: its shape is proven by parsing variations of it, with other things
 * in the holes. Whatever is then the same byte for byte outside the holes says the same but for what is in them. So nothing is
 * guessed, and the usual event, of 350 bytes, costs a sixth of what its JSON would.
 *
 * For all answers of an engine together, since they look alike: most are read without a single event of JSON. No text of an
 * answer is kept. What else an event has, such as the stop sequence that ended it, is only ever compared.
 */
export class ChunkShapes {
  /** Holds until the next call. */
  readonly said: Said = {
    type: "text-delta",
    text: "",
    finishReason: undefined,
    promptTokens: absent,
    completionTokens: absent,
    cachedPromptTokens: absent,
  };
  /** The last one that matched first. */
  readonly #shapes: ChunkShape[] = [];

  /**
   * Whether the bytes from `start` to before `end` begin with a whole event of a known shape: then `said` is what it says.
   * Returns where the event ends, its empty line included, or -1.
   */
  match(bytes: Buffer, start: number, end: number): number {
    const shapes = this.#shapes;
    for (let index = 0; index < shapes.length; index += 1) {
      const shape = shapes[index];
      const eventEnd = shape?.match(bytes, start, end, this.said) ?? -1;
      if (eventEnd === -1) continue;
      if (index > 0) shapes.unshift(...shapes.splice(index, 1));
      return eventEnd;
    }
    return -1;
  }

  /** Takes up the shape of an event that did not match, given by its data. Costs two parses. */
  learn(data: string): void {
    const shape = ChunkShape.learn(data);
    if (shape === undefined) return;
    this.#shapes.unshift(shape);
    if (this.#shapes.length > SHAPES_MAX) this.#shapes.pop();
  }
}

type Hole =
  | "id"
  | "text"
  | "created"
  | "prompt"
  | "total"
  | "completion"
  | "cached"
  | "cacheFilled";

/** One shape: bytes that are the same in every event, and what stands between them. */
class ChunkShape {
  /** One more than holes. */
  readonly #pieces: readonly Piece[];
  readonly #holes: readonly Hole[];
  readonly #type: Said["type"];
  readonly #finishReason: FinishReason | undefined;

  /** Undefined when the event says more than this can tell. */
  static learn(data: string): ChunkShape | undefined {
    if (data.length > LEARNED_CHARACTERS_MAX || data.includes("\n")) return undefined;
    const holes: Hole[] = [];
    const pieces: string[] = [];
    let at = 0;
    for (const match of data.matchAll(holesPattern)) {
      const { id, text, name } = match.groups ?? {};
      const value = id ?? text ?? match.groups?.count ?? "";
      const valueEnd = match.index + match[0].length;
      holes.push(
        id !== undefined ? "id" : text !== undefined ? "text" : (counts[name ?? ""] ?? "total"),
      );
      pieces.push(data.slice(at, valueEnd - value.length));
      at = valueEnd;
    }
    pieces.push(data.slice(at));
    if (new Set(holes).size < holes.length) return undefined;
    const says = (said: Said | undefined, probe: Probe) => {
      const has = (hole: Hole, value: string | number, nothing: string | number) =>
        value === (holes.includes(hole) ? probe[hole] : nothing);
      return (
        said !== undefined &&
        has("text", said.text, "") &&
        has("prompt", said.promptTokens, absent) &&
        has("completion", said.completionTokens, absent) &&
        has("cached", said.cachedPromptTokens, absent)
      );
    };
    const heard = probes.map((probe) => {
      const variation = pieces.map((piece, index) => {
        const hole = holes[index];
        return hole === undefined ? piece : piece + probe[hole];
      });
      return listen(variation.join(""));
    });
    const [first] = heard;
    const isProven = probes.every((probe, index) => says(heard[index], probe));
    return isProven && first !== undefined ? new ChunkShape(pieces, holes, first) : undefined;
  }

  private constructor(pieces: readonly string[], holes: readonly Hole[], said: Said) {
    this.#pieces = pieces.map((piece, index) => {
      const begin = index === 0 ? "data: " : "";
      const end = index === pieces.length - 1 ? "\n\n" : "";
      return new Piece(begin + piece + end);
    });
    this.#holes = holes;
    this.#type = said.type;
    this.#finishReason = said.finishReason;
  }

  /** As of `ChunkShapes`. Says nothing when it does not match. */
  match(bytes: Buffer, start: number, end: number, said: Said): number {
    const holes = this.#holes;
    let textAt = -1;
    let textEnd = -1;
    let isAscii = true;
    let isEscaped = false;
    let promptTokens = absent;
    let completionTokens = absent;
    let cachedPromptTokens = absent;
    let at = start;
    for (let index = 0; ; index += 1) {
      at = this.#pieces[index]?.skip(bytes, at, end) ?? -1;
      if (at === -1) return -1;
      if (index === holes.length) break;
      const hole = holes[index];
      const from = at;
      if (hole === "text") {
        for (; at < end && bytes[at] !== QUOTE; at += 1) {
          const byte = bytes[at] ?? 0;
          if (byte < SPACE) return -1;
          if (byte >= 0x80) isAscii = false;
          else if (byte === BACKSLASH) {
            at += 1;
            isEscaped = true;
          }
        }
        textAt = from;
        textEnd = at;
      } else if (hole === "id") {
        while (at < end && isOfId(bytes[at] ?? 0)) at += 1;
        if (at === from) return -1;
      } else {
        at = skipCount(bytes, from, end);
        if (at === -1) return -1;
        if (hole === "completion") completionTokens = toCount(bytes, from, at);
        else if (hole === "prompt") promptTokens = toCount(bytes, from, at);
        else if (hole === "cached") cachedPromptTokens = toCount(bytes, from, at);
      }
    }
    let text = "";
    if (isEscaped) {
      const whole = unescaped(bytes.toString("utf8", textAt - 1, textEnd + 1));
      if (whole === undefined) return -1;
      text = whole;
    } else if (textEnd > textAt)
      text = bytes.toString(isAscii ? "latin1" : "utf8", textAt, textEnd);
    said.type = this.#type;
    said.text = text;
    said.finishReason = this.#finishReason;
    said.promptTokens = promptTokens;
    said.completionTokens = completionTokens;
    said.cachedPromptTokens = cachedPromptTokens;
    return at;
  }
}

/** Bytes to be compared with others, a word at a time. */
class Piece {
  readonly #bytes: Buffer;
  readonly #words: readonly number[];

  constructor(text: string) {
    this.#bytes = Buffer.from(text);
    const words = Math.floor(this.#bytes.length / WORD_BYTES);
    this.#words = Array.from({ length: words }, (_, index) =>
      this.#bytes.readInt32LE(index * WORD_BYTES),
    );
  }

  /** Where these bytes end when they begin at `at`; -1 when others do. */
  skip(bytes: Buffer, at: number, end: number): number {
    const next = at + this.#bytes.length;
    if (next > end) return -1;
    const view = viewOf(bytes);
    const words = this.#words;
    let from = at;
    for (let index = 0; index < words.length; index += 1) {
      if (view.getInt32(from, true) !== words[index]) return -1;
      from += WORD_BYTES;
    }
    for (; from < next; from += 1) if (bytes[from] !== this.#bytes[from - at]) return -1;
    return next;
  }
}

const WORD_BYTES = 4;

let viewed: { readonly bytes: Buffer; readonly view: DataView } | undefined;

/** Nearly all that is read lies in the one buffer that connections share. */
function viewOf(bytes: Buffer): DataView {
  if (viewed?.bytes !== bytes)
    viewed = { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length) };
  return viewed.view;
}

/**
 * What differs between events that are otherwise alike. Inside a JSON string no quote stands without a backslash before it, so
 * that no name of a field can be found there. The last two names of a text are those of reasoning, today and until 2026.
 */
const holesPattern =
  /^\{"id":"(?<id>[\w-]+)(?=")|"delta":\{"(?:content|reasoning|reasoning_content)":"(?<text>(?:[^"\\]|\\.)*)|"(?<name>created|prompt_tokens|total_tokens|completion_tokens|cached_tokens|created_cache_tokens)":(?<count>\d+)(?=[,}])/g;

const counts: Readonly<Record<string, Hole>> = {
  created: "created",
  prompt_tokens: "prompt",
  total_tokens: "total",
  completion_tokens: "completion",
  cached_tokens: "cached",
  created_cache_tokens: "cacheFilled",
};

/** No count that an event can report. */
const absent = -1;

type Probe = Readonly<Record<Hole, string | number>>;

/**
 * What stands in the holes of the variations that prove a shape. Nothing is the same in both, so that nothing else in the event
 * can pass for a hole; and a text that stands elsewhere may count where this one is empty.
 */
const probes: readonly Probe[] = [
  {
    id: "x",
    text: "?",
    created: 3,
    prompt: 5,
    total: 7,
    completion: 11,
    cached: 13,
    cacheFilled: 17,
  },
  {
    id: "y",
    text: "",
    created: 2,
    prompt: 4,
    total: 6,
    completion: 8,
    cached: 10,
    cacheFilled: 12,
  },
];

/** What an event says, when that is no more than one text, an end and usage. */
function listen(event: string): Said | undefined {
  const said: Said = {
    type: "text-delta",
    text: "",
    finishReason: undefined,
    promptTokens: absent,
    completionTokens: absent,
    cachedPromptTokens: absent,
  };
  let texts = 0;
  let isUsual = true;
  const sink: ChunkSink = {
    onUsage: (usage) => Object.assign(said, usage),
    onText(type, text) {
      texts += 1;
      Object.assign(said, { type, text });
    },
    onToolCall() {
      isUsual = false;
    },
    onFinish(finishReason) {
      said.finishReason = finishReason;
    },
  };
  const { promptTokens, completionTokens, cachedPromptTokens } = said;
  try {
    parseChunk(event, { promptTokens, completionTokens, cachedPromptTokens }, sink);
  } catch {
    return undefined;
  }
  return isUsual && texts <= 1 ? said : undefined;
}

/** Where the count ends that begins at `at`; -1 when there is none, or none that JSON and a number can hold. */
function skipCount(bytes: Buffer, at: number, end: number): number {
  let next = at;
  while (next < end && isDigit(bytes[next] ?? 0)) next += 1;
  const hasLeadingZero = bytes[at] === ZERO && next - at > 1;
  return next === at || hasLeadingZero || next - at > COUNT_DIGITS_MAX ? -1 : next;
}

function toCount(bytes: Buffer, start: number, end: number): number {
  let count = 0;
  for (let at = start; at < end; at += 1) count = count * 10 + (bytes[at] ?? 0) - ZERO;
  return count;
}

function isDigit(code: number): boolean {
  return code >= ZERO && code <= NINE;
}

/** A letter, a digit, `-` or `_`: what stands for itself in JSON. */
function isOfId(code: number): boolean {
  const lower = code | 0x20;
  return (
    (lower >= LETTER_A && lower <= LETTER_Z) || isDigit(code) || code === DASH || code === LINE
  );
}

/** What a JSON string says; undefined when it is none. Half a code point can be written in it, which no text may have. */
function unescaped(json: string): string | undefined {
  try {
    return String(JSON.parse(json)).toWellFormed();
  } catch {
    return undefined;
  }
}

/** Those of a model that reasons, and as many again of another; a few for what comes and goes. */
const SHAPES_MAX = 16;

/** Several times the largest event of one token: one that is larger has something else in it. */
const LEARNED_CHARACTERS_MAX = 2048;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SPACE = 0x20;
const DASH = 0x2d;
const LINE = 0x5f;
const ZERO = 0x30;
const NINE = 0x39;
const LETTER_A = 0x61;
const LETTER_Z = 0x7a;

/** Every number of so many digits is a safe integer. */
const COUNT_DIGITS_MAX = 15;
