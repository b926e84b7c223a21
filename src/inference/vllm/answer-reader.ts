import { randomUUID } from "node:crypto";
import { AppError } from "../../errors.ts";
import { SseDecoder } from "../../lib/sse.ts";
import { type FinishReason, noUsage, type Usage } from "../engine.ts";
import type { ChunkShapes, Said } from "./chunk-shapes.ts";
import { corrupt } from "./errors.ts";
import { unreadable } from "./json.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";
import { PartQueue } from "./part-queue.ts";

/**
 * From the bytes of one streamed answer to parts in a queue: the hot path, all of it synchronous. Knows nothing of
 * sockets, time or consumers.
 */
export class AnswerReader implements ChunkSink {
  /** Events seen: progress, which bytes alone are not. */
  eventCount = 0;
  /** `[DONE]` has come after a finish reason, and `end` is the last part. */
  done = false;

  readonly #parts = new PartQueue();
  readonly #decoder = new SseDecoder((data) => this.#onEvent(data));
  readonly #eventCountMax: number;
  readonly #calls = new Set<number>();
  readonly #shapes: ChunkShapes;
  #bytesLeft: number;
  #shapesLeft = SHAPES_PER_ANSWER;
  readonly #usage = { ...noUsage };
  #finishReason: FinishReason | undefined;

  /**
   * `maxTokens` is what the engine was allowed: an answer far beyond it is an engine gone wrong. `shapes` are those of the
   * engine, which answers share.
   */
  constructor(maxTokens: number, shapes: ChunkShapes) {
    this.#shapes = shapes;
    this.#eventCountMax = EVENTS_PER_ANSWER + maxTokens * EVENTS_PER_TOKEN;
    this.#bytesLeft = BYTES_PER_ANSWER + maxTokens * BYTES_PER_TOKEN;
  }

  /** What has come and nobody has taken. */
  get parts(): PartQueue {
    this.#pushText();
    return this.#parts;
  }

  get usage(): Usage {
    return { ...this.#usage };
  }

  /**
   * Takes the bytes from `start` to before `end`, which may be reused afterwards. Throws AppError; what came before the fault
   * is in the queue, and the reader is of no use any more.
   */
  read(bytes: Buffer, start: number, end: number): void {
    this.#bytesLeft -= end - start;
    if (this.#bytesLeft < 0) throw corrupt(TOO_LONG, "too many bytes");
    const decoder = this.#decoder;
    let at = start;
    while (at < end) {
      const next = decoder.isBetweenEvents ? this.#shapes.match(bytes, at, end) : -1;
      if (next === -1) at = this.#decode(bytes, at, end);
      else {
        decoder.passEvent();
        this.#countEvent();
        this.#onKnownEvent(bytes);
        at = next;
      }
    }
  }

  #decode(bytes: Buffer, start: number, end: number): number {
    try {
      return this.#decoder.read(bytes, start, end);
    } catch (error) {
      throw error instanceof AppError ? error : corrupt(TOO_LONG, error);
    }
  }

  #countEvent(): void {
    this.eventCount += 1;
    if (this.eventCount > this.#eventCountMax) throw corrupt(TOO_LONG, "too many events");
    if (this.done) throw corrupt("the engine went on after its end", "an event after [DONE]");
  }

  #onEvent(data: string): void {
    this.#countEvent();
    if (data === "[DONE]") this.#onDone();
    else if (!this.#onLikelyEvent(data)) {
      this.#pushText();
      parseChunk(data, this.usage, this);
      if (this.#shapesLeft === 0) return;
      this.#shapesLeft -= 1;
      this.#shapes.learn(data);
    }
  }

  /** What was cut, or stood behind a comment, may still be as usual. Whether it was. */
  #onLikelyEvent(data: string): boolean {
    const event = Buffer.from(`data: ${data}\n\n`);
    if (this.#shapes.match(event, 0, event.length) !== event.length) return false;
    this.#onKnownEvent(event);
    return true;
  }

  #onKnownEvent(bytes: Buffer): void {
    const { said } = this.#shapes;
    const usage = this.#usage;
    if (said.promptTokens >= 0) usage.promptTokens = said.promptTokens;
    if (said.completionTokens >= 0) usage.completionTokens = said.completionTokens;
    if (said.cachedPromptTokens >= 0) usage.cachedPromptTokens = said.cachedPromptTokens;
    if (said.textEnd > said.textStart) {
      this.#gatherText(said.type, bytes, said.textStart, said.textEnd);
    } else if (said.escapedText !== "") {
      this.#pushText();
      this.#parts.pushText(said.type, said.escapedText);
    }
    if (said.finishReason !== undefined) this.onFinish(said.finishReason);
  }

  /**
   * Texts that came together, which is until somebody asks for parts, become one string: one for each would cost more than
   * reading its event.
   */
  #gatherText(type: Said["type"], bytes: Buffer, start: number, end: number): void {
    const isFull = gathered.length + end - start > gathered.bytes.length;
    if (gathered.by !== this || gathered.type !== type || isFull) {
      if (gathered.by !== undefined) gathered.by.#pushText();
      gathered.by = this;
      gathered.type = type;
    }
    if (end - start > gathered.bytes.length) {
      this.#parts.pushText(type, bytes.toString("utf8", start, end));
      return;
    }
    for (let at = start; at < end; at += 1) gathered.bytes[gathered.length++] = bytes[at] ?? 0;
  }

  #pushText(): void {
    if (gathered.by !== this) return;
    const { type, bytes, length } = gathered;
    gathered.by = undefined;
    gathered.length = 0;
    if (length > 0) this.#parts.pushText(type, bytes.toString("utf8", 0, length));
  }

  #onDone(): void {
    this.#pushText();
    if (this.#finishReason === undefined)
      throw corrupt(
        "the engine stopped in the middle of an answer",
        "[DONE] without a finish reason",
      );
    this.done = true;
    this.#parts.pushEnd({ type: "end", finishReason: this.#finishReason });
  }

  onUsage(usage: Usage): void {
    Object.assign(this.#usage, usage);
  }

  onText(type: "text-delta" | "reasoning-delta", text: string): void {
    this.#parts.pushText(type, text);
  }

  onToolCall(index: number, id: string, name: string, text: string): void {
    if (this.#calls.has(index)) {
      if (text !== "") this.#parts.pushToolCall(index, text, {});
      return;
    }
    if (name === "") throw unreadable("tool call name", undefined);
    this.#calls.add(index);
    // The answer to a call is found by its id, and some tool parsers of vLLM forget it.
    this.#parts.pushToolCall(index, text, { id: id || `call-${randomUUID()}`, name });
  }

  onFinish(reason: FinishReason): void {
    // vLLM says `stop` when the caller named the tool, as OpenAI does: here a finished call is always `tool-calls`.
    this.#finishReason = reason === "stop" && this.#calls.size > 0 ? "tool-calls" : reason;
  }
}

/** Texts that came one behind the other, of one answer at a time: there is one for all, as nearly always they are asked for at once. */
const gathered: {
  by: AnswerReader | undefined;
  type: Said["type"];
  bytes: Buffer;
  length: number;
} = { by: undefined, type: "text-delta", bytes: Buffer.allocUnsafeSlow(16 * 1024), length: 0 };

const TOO_LONG = "the engine answered more than it was asked for";

/** Of a first answer: its begin, reasoning, text, end and usage, and a few more. Learning costs two parses of an event. */
const SHAPES_PER_ANSWER = 8;

/** One event per token is usual; a parser may make two or three of one token, and a few come around them. */
const EVENTS_PER_TOKEN = 4;
const EVENTS_PER_ANSWER = 256;

/** An event of one token with its usage is 350 bytes (test/fixtures/vllm). */
const BYTES_PER_TOKEN = 2 * 1024;
const BYTES_PER_ANSWER = 2 * 1024 * 1024;
