import { randomUUID } from "node:crypto";
import { AppError } from "../../errors.ts";
import { SseDecoder } from "../../lib/sse.ts";
import { type FinishReason, noUsage, type Usage } from "../engine.ts";
import { ChunkShape } from "./chunk-shape.ts";
import { corrupt } from "./errors.ts";
import { unreadable } from "./json.ts";
import { type ChunkSink, parseChunk } from "./parse-chunk.ts";
import { PartQueue } from "./part-queue.ts";

/**
 * From the bytes of one streamed answer to parts in a queue: the hot path, all of it synchronous. Knows nothing of
 * sockets, time or consumers.
 */
export class AnswerReader implements ChunkSink {
  readonly parts = new PartQueue();
  /** Events seen: progress, which bytes alone are not. */
  eventCount = 0;
  /** `[DONE]` has come after a finish reason, and `end` is the last part. */
  done = false;

  readonly #decoder = new SseDecoder((data) => this.#onEvent(data));
  readonly #eventCountMax: number;
  readonly #calls = new Set<number>();
  #bytesLeft: number;
  #shape: ChunkShape | undefined;
  /** What the last event matched; undefined when it was parsed. */
  #matched: ChunkShape | undefined;
  /** As the last event that was parsed has left it. */
  #usage: Usage = noUsage;
  #shapesLeft = SHAPES_PER_ANSWER;
  #finishReason: FinishReason | undefined;

  /** `maxTokens` is what the engine was allowed: an answer far beyond it is an engine gone wrong. */
  constructor(maxTokens: number) {
    this.#eventCountMax = EVENTS_PER_ANSWER + maxTokens * EVENTS_PER_TOKEN;
    this.#bytesLeft = BYTES_PER_ANSWER + maxTokens * BYTES_PER_TOKEN;
  }

  get usage(): Usage {
    return this.#matched?.usageAfter(this.#usage) ?? this.#usage;
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
      const shape = this.#shape;
      const next =
        shape !== undefined && decoder.isBetweenEvents ? shape.match(bytes, at, end) : -1;
      if (shape === undefined || next === -1) at = this.#decode(bytes, at, end);
      else {
        this.#countEvent();
        this.#matched = shape;
        this.parts.pushText(shape.type, shape.text);
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
    else this.#onUnusualEvent(data);
  }

  #onUnusualEvent(data: string): void {
    this.#usage = this.usage;
    this.#matched = undefined;
    parseChunk(data, this.#usage, this);
    if (this.#shapesLeft === 0) return;
    const shape = ChunkShape.learn(data);
    // One that is known, of an event that was cut or has an unusual escape.
    if (shape === undefined || this.#shape?.equals(shape)) return;
    this.#shape = shape;
    this.#shapesLeft -= 1;
  }

  #onDone(): void {
    if (this.#finishReason === undefined)
      throw corrupt(
        "the engine stopped in the middle of an answer",
        "[DONE] without a finish reason",
      );
    this.done = true;
    this.parts.pushEnd({ type: "end", finishReason: this.#finishReason });
  }

  onUsage(usage: Usage): void {
    this.#usage = usage;
  }

  onText(type: "text-delta" | "reasoning-delta", text: string): void {
    this.parts.pushText(type, text);
  }

  onToolCall(index: number, id: string, name: string, text: string): void {
    if (this.#calls.has(index)) {
      if (text !== "") this.parts.pushToolCall(index, text, {});
      return;
    }
    if (name === "") throw unreadable("tool call name", undefined);
    this.#calls.add(index);
    // The answer to a call is found by its id, and some tool parsers of vLLM forget it.
    this.parts.pushToolCall(index, text, { id: id || `call-${randomUUID()}`, name });
  }

  onFinish(reason: FinishReason): void {
    // vLLM says `stop` when the caller named the tool, as OpenAI does: here a finished call is always `tool-calls`.
    this.#finishReason = reason === "stop" && this.#calls.size > 0 ? "tool-calls" : reason;
  }
}

const TOO_LONG = "the engine answered more than it was asked for";

/** One for reasoning, one for text, and a few in case that they take turns: learning costs two parses of an event. */
const SHAPES_PER_ANSWER = 4;

/** One event per token is usual; a parser may make two or three of one token, and a few come around them. */
const EVENTS_PER_TOKEN = 4;
const EVENTS_PER_ANSWER = 256;

/** An event of one token with its usage is 350 bytes (test/fixtures/vllm). */
const BYTES_PER_TOKEN = 2 * 1024;
const BYTES_PER_ANSWER = 2 * 1024 * 1024;
