import type { Usage } from "../engine.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";

/**
 * What nearly all events of one answer have in common: the same JSON up to the text, and after the text the same JSON
 * but for two counts.
 *
 *     {"id":…,"choices":[{"index":0,"delta":{"content":"TEXT"},…}],"usage":{…,"total_tokens":N,"completion_tokens":N,…}}
 *
 * It is learned from one event, and proven by parsing a variation of that event as JSON. Another event that is the same
 * character for character then says the same but for its text and counts; every other event is parsed as JSON. So
 * nothing is guessed, and the usual event costs a small part of what parsing its 350 bytes does.
 */
export class ChunkShape {
  readonly type: "text-delta" | "reasoning-delta";
  /** The text of the last event that matched: never empty, always well-formed Unicode. */
  text = "";

  readonly #head: string;
  /** What follows the text: one piece, or the three around the two counts. */
  readonly #tail: readonly string[];
  /** What every event of this shape reports, with `absent` for what it leaves out; undefined without usage. */
  readonly #usage: Usage | undefined;
  #completionTokens = 0;

  /** The shape of an event; undefined when it is not a usual one. Costs one parse. */
  static learn(event: string): ChunkShape | undefined {
    const field = textFields.find((name) => event.includes(name));
    if (field === undefined) return undefined;
    const textAt = event.indexOf(field) + field.length;
    const head = event.slice(0, textAt);
    const tail = event.slice(endOfString(event, textAt)).split(counts);
    if (tail.length !== 1 && tail.length !== 3) return undefined;

    const said = listen(
      head + probe.text + tail.map((piece, index) => piece + (probe.counts[index] ?? "")).join(""),
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
    this.#head = head;
    this.#tail = tail;
  }

  /** Whether the event has this shape: `text` and `usageAfter` are what it says then. */
  match(event: string): boolean {
    const textAt = this.#head.length;
    if (!holds(event, this.#head, 0)) return false;
    const textEnd = endOfString(event, textAt);
    const [first = "", second, third = ""] = this.#tail;
    if (textEnd === textAt || !holds(event, first, textEnd)) return false;
    const countAt = textEnd + first.length;
    if (second === undefined) {
      if (countAt !== event.length) return false;
    } else {
      const countEnd = endOfCount(event, countAt);
      if (countEnd === countAt || !holds(event, second, countEnd)) return false;
      const completionAt = countEnd + second.length;
      const completionEnd = endOfCount(event, completionAt);
      if (completionEnd === completionAt || !holds(event, third, completionEnd)) return false;
      if (completionEnd + third.length !== event.length) return false;
      this.#completionTokens = Number(event.slice(completionAt, completionEnd));
    }
    this.text = event.slice(textAt, textEnd);
    return true;
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

/** `startsWith` compares character by character, and takes eight times as long for a head of 200. */
function holds(event: string, piece: string, at: number): boolean {
  return event.slice(at, at + piece.length) === piece;
}

/**
 * Where the string ends that begins at `at`; `at` itself, as if it were empty, when it holds an escape or a control
 * character: those are for JSON's own parser.
 */
function endOfString(event: string, at: number): number {
  for (let end = at; end < event.length; end += 1) {
    const code = event.charCodeAt(end);
    if (code === QUOTE) return end;
    if (code === BACKSLASH || code < SPACE) return at;
  }
  return at;
}

/** Where the count ends that begins at `at`; `at` itself when there is none, or none that JSON and a number can hold. */
function endOfCount(event: string, at: number): number {
  let end = at;
  while (isDigit(event.charCodeAt(end))) end += 1;
  const hasLeadingZero = event.charCodeAt(at) === ZERO && end - at > 1;
  return hasLeadingZero || end - at > COUNT_DIGITS_MAX ? at : end;
}

function isDigit(code: number): boolean {
  return code >= ZERO && code <= NINE;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const SPACE = 0x20;
const ZERO = 0x30;
const NINE = 0x39;

/** Every number of so many digits is a safe integer. */
const COUNT_DIGITS_MAX = 15;
