import type { Usage } from "../engine.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";

/**
 * What nearly all events of one answer have in common: the same bytes up to the text, and after the text the same bytes but
 * for two counts.
 *
 *     data: {"id":…,"choices":[{"index":0,"delta":{"content":"TEXT"},…}],"usage":{…,"total_tokens":N,"completion_tokens":N,…}}
 *
 * It is learned from one event, and proven by parsing a variation of that event as JSON. Another event that is the same
 * byte for byte then says the same but for its text and counts; every other event is parsed as JSON. So nothing is
 * guessed, and the usual event, of 350 bytes, costs 0.6 µs in place of 3 to 4.
 */
export class ChunkShape {
  readonly type: "text-delta" | "reasoning-delta";
  /** The text of the last event that matched: never empty, always well-formed Unicode. */
  text = "";

  readonly #head: Buffer;
  /** What follows the text: one piece, or the three around the two counts. */
  readonly #tail: readonly Buffer[];
  /** What every event of this shape reports, with `absent` for what it leaves out; undefined without usage. */
  readonly #usage: Usage | undefined;
  #completionTokens = 0;

  /** The shape of an event, given by its data; undefined when it is not a usual one. Costs one parse. */
  static learn(data: string): ChunkShape | undefined {
    const field = textFields.find((name) => data.includes(name));
    if (field === undefined) return undefined;
    const textAt = data.indexOf(field) + field.length;
    const head = data.slice(0, textAt);
    const text = /^(?:[^"\\]|\\.)*/.exec(data.slice(textAt))?.[0] ?? "";
    const tail = data.slice(textAt + text.length).split(counts);
    if ((tail.length !== 1 && tail.length !== 3) || data.includes("\n")) return undefined;

    const said = listen(
      head +
        probe.text +
        tail
          .map((piece, index) => piece + (tail.length > 1 ? (probe.counts[index] ?? "") : ""))
          .join(""),
    );
    const isProven =
      said?.text === probe.text &&
      (said.usage === undefined
        ? tail.length === 1
        : tail.length === 3 && said.usage.completionTokens === probe.counts[1]);
    return isProven ? new ChunkShape(said, head, tail) : undefined;
  }

  private constructor({ type, usage }: Said, head: string, tail: readonly string[]) {
    this.type = type;
    this.#usage = usage;
    this.#head = Buffer.from(`data: ${head}`);
    this.#tail = tail.map((piece, index) =>
      Buffer.from(index === tail.length - 1 ? `${piece}\n\n` : piece),
    );
  }

  /**
   * Whether the bytes from `start` to before `end` begin with a whole event of this shape: then `text` and `usageAfter` are
   * what it says. Returns where the event ends, its empty line included, or -1.
   */
  match(bytes: Buffer, start: number, end: number): number {
    const [first = NOTHING, second, third = NOTHING] = this.#tail;
    const textAt = skip(bytes, start, end, this.#head);
    if (textAt === -1) return -1;
    let at = textAt;
    let isAscii = true;
    let isEscaped = false;
    for (; at < end && bytes[at] !== QUOTE; at += 1) {
      const byte = bytes[at] ?? 0;
      if (byte < SPACE) return -1;
      if (byte >= 0x80) isAscii = false;
      else if (byte === BACKSLASH) {
        at += 1;
        // Half a code point can be written as `\u`.
        if (bytes[at] === LETTER_U) return -1;
        isEscaped = true;
      }
    }
    const textEnd = at;
    let completionTokens = 0;
    if (textEnd === textAt) return -1;
    at = skip(bytes, at, end, first);
    if (at !== -1 && second !== undefined) {
      const countAt = skip(bytes, skipCount(bytes, at, end), end, second);
      const countEnd = skipCount(bytes, countAt, end);
      at = skip(bytes, countEnd, end, third);
      completionTokens = toCount(bytes, countAt, countEnd);
    }
    if (at === -1) return -1;
    if (isEscaped) {
      const text = unescaped(bytes.toString("utf8", textAt - 1, textEnd + 1));
      if (text === undefined) return -1;
      this.text = text;
    } else this.text = bytes.toString(isAscii ? "latin1" : "utf8", textAt, textEnd);
    this.#completionTokens = completionTokens;
    return at;
  }

  /** Whether the same events match. */
  equals(other: ChunkShape): boolean {
    const [one, another] = [this, other].map((shape) => [shape.#head, ...shape.#tail]);
    return (
      one?.length === another?.length &&
      one?.every((piece, index) => another?.[index]?.equals(piece)) === true
    );
  }

  /** The usage after the event that matched last: what it reported, and the rest as it was before. */
  usageAfter(previous: Usage): Usage {
    const reported = this.#usage;
    if (reported === undefined) return previous;
    const { promptTokens, cachedPromptTokens } = reported;
    return {
      promptTokens: promptTokens === absent ? previous.promptTokens : promptTokens,
      completionTokens: this.#completionTokens,
      cachedPromptTokens:
        cachedPromptTokens === absent ? previous.cachedPromptTokens : cachedPromptTokens,
    };
  }
}

interface Said {
  readonly type: ChunkShape["type"];
  readonly text: string;
  readonly usage: Usage | undefined;
}

/** Where a text can stand; the last is the name of reasoning until 2026. */
const textFields = [
  '"delta":{"content":"',
  '"delta":{"reasoning":"',
  '"delta":{"reasoning_content":"',
];

const counts = /(?<="(?:total|completion)_tokens":)\d+/;

const probe = { text: "?", counts: [7, 11] } as const;

/** No count that an event can report. */
const absent = -1;

/** What an event says, when that is no more than one text and perhaps its usage. */
function listen(event: string): Said | undefined {
  const texts: Omit<Said, "usage">[] = [];
  let usage: Usage | undefined;
  let isUsual = true;
  const onOther = () => {
    isUsual = false;
  };
  const sink: ChunkSink = {
    onUsage: (reported) => {
      usage = reported;
    },
    onText: (type, text) => {
      texts.push({ type, text });
    },
    onToolCall: onOther,
    onFinish: onOther,
  };
  const nothing = {
    promptTokens: absent,
    completionTokens: absent,
    cachedPromptTokens: absent,
  };
  try {
    parseChunk(event, nothing, sink);
  } catch {
    return undefined;
  }
  const [said] = texts;
  return said !== undefined && texts.length === 1 && isUsual ? { ...said, usage } : undefined;
}

/** Where these bytes end when they begin at `at`; -1 when others do, or when `at` is -1. */
function skip(bytes: Buffer, at: number, end: number, piece: Buffer): number {
  const next = at + piece.length;
  if (at === -1 || next > end) return -1;
  if (piece.length > LOOP_BYTES_MAX)
    return bytes.compare(piece, 0, piece.length, at, next) === 0 ? next : -1;
  for (let index = 0; index < piece.length; index += 1)
    if (bytes[at + index] !== piece[index]) return -1;
  return next;
}

/** Where the count ends that begins at `at`; -1 when there is none, none that JSON and a number can hold, or `at` is -1. */
function skipCount(bytes: Buffer, at: number, end: number): number {
  if (at === -1) return -1;
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

/** What a JSON string says; undefined when it is none. */
function unescaped(json: string): string | undefined {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** A call of `compare` costs as much as a loop over so many bytes. */
const LOOP_BYTES_MAX = 48;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SPACE = 0x20;
const ZERO = 0x30;
const NINE = 0x39;
const LETTER_U = 0x75;
const NOTHING = Buffer.alloc(0);

/** Every number of so many digits is a safe integer. */
const COUNT_DIGITS_MAX = 15;
