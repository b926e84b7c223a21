import type { Mutable } from "../../lib/mutable.ts";
import type { FinishReason, Usage } from "../engine.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";

/** What an event of a known shape says. A count is -1 where the event has none. */
export interface Said extends Mutable<Usage> {
  type: "text-delta" | "reasoning-delta";
  /** Where in the bytes its text lies, as it is; both are the same where there is none. */
  textStart: number;
  textEnd: number;
  /** The text, when it is written with escapes: always well-formed Unicode. */
  escapedText: string;
  finishReason: FinishReason | undefined;
}

/** No count that an event can report. */
const absent = -1;

const noCounts = { promptTokens: absent, completionTokens: absent, cachedPromptTokens: absent };

function nothingSaid(): Said {
  return {
    type: "text-delta",
    textStart: 0,
    textEnd: 0,
    escapedText: "",
    finishReason: undefined,
    ...noCounts,
  };
}

/** What JSON's own parser makes of an event. */
interface Parsed extends Mutable<Usage> {
  type: Said["type"];
  text: string;
  finishReason: FinishReason | undefined;
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
  readonly said = nothingSaid();
  /** The last one that matched first. */
  #shapes: readonly ChunkShape[] = [];

  /**
   * Whether the bytes from `start` to before `end` begin with a whole event of a known shape: then `said` is what it says.
   * Returns where the event ends, its empty line included, or -1.
   */
  match(bytes: Buffer, start: number, end: number): number {
    for (const shape of this.#shapes) {
      const eventEnd = shape.match(bytes, start, end, this.said);
      if (eventEnd === -1) continue;
      if (shape !== this.#shapes[0]) this.#putFirst(shape);
      return eventEnd;
    }
    return -1;
  }

  /** Takes up the shape of an event that did not match, given by its data. Costs two parses. */
  learn(data: string): void {
    const shape = ChunkShape.learn(data);
    if (shape !== undefined) this.#putFirst(shape);
  }

  #putFirst(shape: ChunkShape): void {
    const others = this.#shapes.filter((other) => other !== shape);
    this.#shapes = [shape, ...others.slice(0, SHAPES_MAX - 1)];
  }
}

/** Text that is the same in every event of a shape, and what comes after it: `id`, `text`, or the name of a count. */
interface Part {
  readonly text: string;
  /** Absent at the end. */
  readonly hole: string | undefined;
}

class ChunkShape {
  readonly #pieces: readonly Piece[];
  readonly #type: Said["type"];
  readonly #finishReason: FinishReason | undefined;

  /** Undefined when the event says more than this can tell. */
  static learn(data: string): ChunkShape | undefined {
    if (data.length > LEARNED_CHARACTERS_MAX || data.includes("\n")) return undefined;
    const parts = toParts(data);
    if (new Set(parts.map(({ hole }) => hole)).size < parts.length) return undefined;
    const [said, ...others] = probes.map((probe) => hear(parts, probe));
    return said === undefined || others.includes(undefined)
      ? undefined
      : new ChunkShape(parts, said.type, said.finishReason);
  }

  private constructor(
    parts: readonly Part[],
    type: Said["type"],
    finishReason: Said["finishReason"],
  ) {
    this.#pieces = parts.map(({ text, hole }, index) => {
      const begin = index === 0 ? "data: " : "";
      const end = hole === undefined ? "\n\n" : "";
      return new Piece(begin + text + end, holeKinds[hole ?? ""] ?? OTHER_COUNT);
    });
    this.#type = type;
    this.#finishReason = finishReason;
  }

  /** As of `ChunkShapes`. Says nothing when it does not match. */
  match(bytes: Buffer, start: number, end: number, said: Said): number {
    const view = viewOf(bytes);
    let textStart = 0;
    let textEnd = 0;
    let escapedText = "";
    let promptTokens = absent;
    let completionTokens = absent;
    let cachedPromptTokens = absent;
    let at = start;
    for (const piece of this.#pieces) {
      const from = piece.skip(bytes, view, at, end);
      if (from === -1) return -1;
      const { hole } = piece;
      if (hole === END) at = from;
      else if (hole === TEXT) {
        at = skipPlainText(bytes, from, end);
        if (bytes[at] === BACKSLASH) {
          at = skipText(bytes, at, end);
          const text = at === -1 ? undefined : unescaped(bytes.toString("utf8", from, at));
          if (text === undefined) return -1;
          escapedText = text;
        } else {
          textStart = from;
          textEnd = at;
        }
      } else if (hole === ID) at = skipId(bytes, from, end);
      else {
        at = skipCount(bytes, from, end);
        if (hole === COMPLETION_TOKENS) completionTokens = toCount(bytes, from, at);
        else if (hole === PROMPT_TOKENS) promptTokens = toCount(bytes, from, at);
        else if (hole === CACHED_TOKENS) cachedPromptTokens = toCount(bytes, from, at);
      }
      if (at === -1) return -1;
    }
    said.type = this.#type;
    said.textStart = textStart;
    said.textEnd = textEnd;
    said.escapedText = escapedText;
    said.finishReason = this.#finishReason;
    said.promptTokens = promptTokens;
    said.completionTokens = completionTokens;
    said.cachedPromptTokens = cachedPromptTokens;
    return at;
  }
}

/** What comes after a piece, as a number, which is compared faster than its name. */
const END = 0;
const TEXT = 1;
const ID = 2;
const PROMPT_TOKENS = 3;
const COMPLETION_TOKENS = 4;
const CACHED_TOKENS = 5;
const OTHER_COUNT = 6;

const holeKinds: Readonly<Record<string, number>> = {
  "": END,
  text: TEXT,
  id: ID,
  prompt_tokens: PROMPT_TOKENS,
  completion_tokens: COMPLETION_TOKENS,
  cached_tokens: CACHED_TOKENS,
};

function toParts(data: string): Part[] {
  const parts: Part[] = [];
  let at = 0;
  for (const match of data.matchAll(holesPattern)) {
    const { id, text, name, count } = match.groups ?? {};
    const value = id ?? text ?? count ?? "";
    const valueEnd = match.index + match[0].length;
    const hole = name ?? (id === undefined ? "text" : "id");
    parts.push({ text: data.slice(at, valueEnd - value.length), hole });
    at = valueEnd;
  }
  parts.push({ text: data.slice(at), hole: undefined });
  return parts;
}

/** Bytes to be compared with others, a word at a time, and what comes after them. */
class Piece {
  readonly hole: number;
  readonly #bytes: Buffer;
  readonly #words: readonly number[];

  constructor(text: string, hole: number) {
    this.hole = hole;
    this.#bytes = Buffer.from(text);
    const words = Math.floor(this.#bytes.length / WORD_BYTES);
    this.#words = Array.from({ length: words }, (_, index) =>
      this.#bytes.readInt32LE(index * WORD_BYTES),
    );
  }

  /** Where these bytes end when they begin at `at`; -1 when others do. */
  skip(bytes: Buffer, view: DataView, at: number, end: number): number {
    const next = at + this.#bytes.length;
    if (next > end) return -1;
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

/** By hole. */
type Probe = Readonly<Record<string, string | number>>;

/**
 * What stands in the holes of the variations that prove a shape. Nothing is the same in both, so that nothing else in the event
 * can pass for a hole; and a text that stands elsewhere may count where this one is empty.
 */
const probes: readonly Probe[] = [
  {
    id: "x",
    text: "?",
    created: 3,
    prompt_tokens: 5,
    total_tokens: 7,
    completion_tokens: 11,
    cached_tokens: 13,
    created_cache_tokens: 17,
  },
  {
    id: "y",
    text: "",
    created: 2,
    prompt_tokens: 4,
    total_tokens: 6,
    completion_tokens: 8,
    cached_tokens: 10,
    created_cache_tokens: 12,
  },
];

/** What an event says with these things in its holes, when it is they that it says, and nothing else. */
function hear(parts: readonly Part[], probe: Probe): Parsed | undefined {
  const said = listen(parts.map(({ text, hole = "" }) => text + (probe[hole] ?? "")).join(""));
  if (said === undefined) return undefined;
  const has = (name: string, value: string | number, nothing: string | number) =>
    value === (parts.some(({ hole }) => hole === name) ? probe[name] : nothing);
  const isProven =
    has("text", said.text, "") &&
    has("prompt_tokens", said.promptTokens, absent) &&
    has("completion_tokens", said.completionTokens, absent) &&
    has("cached_tokens", said.cachedPromptTokens, absent);
  return isProven ? said : undefined;
}

/** What an event says, when that is no more than one text, an end and usage. */
function listen(event: string): Parsed | undefined {
  const said: Parsed = { type: "text-delta", text: "", finishReason: undefined, ...noCounts };
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
  try {
    parseChunk(event, noCounts, sink);
  } catch {
    return undefined;
  }
  return isUsual && texts <= 1 ? said : undefined;
}

/** Where the text ends that begins at `at`, or its first escape begins, or what no text has. */
function skipPlainText(bytes: Buffer, at: number, end: number): number {
  let next = at;
  for (; next < end; next += 1) {
    const byte = bytes[next] ?? 0;
    if (byte === QUOTE || byte === BACKSLASH || byte < SPACE) break;
  }
  return next;
}

/** Where the text ends that begins at `at`: at the quote behind it. -1 when JSON has no such text. */
function skipText(bytes: Buffer, at: number, end: number): number {
  let next = at;
  for (; next < end && bytes[next] !== QUOTE; next += 1) {
    const byte = bytes[next] ?? 0;
    if (byte < SPACE) return -1;
    if (byte === BACKSLASH) next += 1;
  }
  return next;
}

/** Where the id ends that begins at `at`; -1 when there is none. */
function skipId(bytes: Buffer, at: number, end: number): number {
  let next = at;
  while (next < end && isOfId(bytes[next] ?? 0)) next += 1;
  return next === at ? -1 : next;
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

/** What stands between the quotes of a JSON string; undefined when it cannot. Half a code point can be written in it, which no text may have. */
function unescaped(text: string): string | undefined {
  try {
    return String(JSON.parse(`"${text}"`)).toWellFormed();
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
