import type { IncomingHttpHeaders } from "node:http";
import type { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import { StallTimer } from "../../lib/stall-timer.ts";
import type { ChatPart, ChatStream, Usage } from "../engine.ts";
import { AnswerReader } from "./answer-reader.ts";
import type { ChunkShapes } from "./chunk-shapes.ts";
import { corrupt, tooSlow } from "./errors.ts";
import type { Exchange, Receiver } from "./exchange.ts";
import { checkHead, REFUSAL_MS_MAX, Refusal } from "./reply.ts";
import type { Upstream } from "./upstream.ts";

export interface ChatStreamOptions {
  readonly upstream: Upstream;
  /** Makes the body of the request, JSON, when the stream starts. */
  readonly body: () => string;
  readonly traceparent?: string | undefined;
  readonly maxTokens: number;
  /** What the events of this engine look like. */
  readonly shapes: ChunkShapes;
  readonly firstByteMs: number;
  readonly betweenChunksMs: number;
  readonly signal: AbortSignal;
}

type PartResult = IteratorResult<ChatPart, undefined>;

/**
 * One chat on its way from the engine's socket (`Receiver`) to its consumer (`AsyncIterator`).
 *
 * Per token there is no promise, no timer and no closure on the way in; a consumer that waits is woken once for
 * everything that one read of the socket brought. When the consumer is slow the socket is not read on, and the time
 * that this takes is not the engine's. Single use.
 */
export class VllmChatStream
  implements ChatStream, AsyncIterableIterator<ChatPart, undefined>, Receiver
{
  readonly #options: ChatStreamOptions;
  readonly #reader: AnswerReader;
  askedAt: number | undefined;
  firstPartAt: number | undefined;
  #state: "new" | "connecting" | "streaming" | "over" = "new";
  #exchange: Exchange | undefined;
  #stall: StallTimer | undefined;
  #refusal: Refusal | undefined;
  #paused = false;
  #failure: { readonly error: unknown } | undefined;
  #waiter: PromiseWithResolvers<PartResult> | undefined;
  /** Events that had come when the last read ended. */
  #eventCount = 0;

  constructor(options: ChatStreamOptions) {
    this.#options = options;
    this.#reader = new AnswerReader(options.maxTokens, options.shapes);
  }

  get usage(): Usage {
    return this.#reader.usage;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** One call at a time, as `for await` does. */
  next(): Promise<PartResult> {
    if (this.#waiter !== undefined) return Promise.reject(new Error("next() was called twice"));
    this.#waiter = Promise.withResolvers();
    const { promise } = this.#waiter;
    if (this.#state === "new") this.#start();
    this.#answer();
    return promise;
  }

  /** The consumer leaves: the engine stops at once. */
  async return(): Promise<PartResult> {
    this.#reader.parts.clear();
    if (!this.#reader.done) this.#stop();
    return NOTHING_MORE;
  }

  #start(): void {
    const { signal, upstream, body, traceparent, firstByteMs } = this.#options;
    this.#state = "connecting";
    this.askedAt = monotonicClock();
    if (signal.aborted) {
      this.#onAbort();
      return;
    }
    signal.addEventListener("abort", this.#onAbort, { once: true });
    this.#stall = new StallTimer(firstByteMs, this.#onStall);
    const request = {
      method: "POST",
      path: "/v1/chat/completions",
      accept: EVENT_STREAM,
      body: body(),
      traceparent,
    } as const;
    this.#exchange = upstream.send(request, this);
  }

  onHead(status: number, headers: IncomingHttpHeaders): void {
    if (status !== 200) {
      this.#refusal = new Refusal(status);
      this.#stall?.restart(REFUSAL_MS_MAX);
      return;
    }
    const error = checkHead(headers, EVENT_STREAM);
    if (error !== undefined) this.#fail(error);
  }

  onData(bytes: Buffer, start: number, end: number): void {
    const reader = this.#reader;
    if (this.#refusal !== undefined) {
      if (!this.#refusal.add(bytes.subarray(start, end))) this.#fail(this.#refusal.toError());
      return;
    }
    try {
      reader.read(bytes, start, end);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** By now all that one read has brought is in the queue: a consumer gets it in one piece. */
  onReadEnd(): void {
    const { eventCount, parts, done } = this.#reader;
    if (eventCount > this.#eventCount) this.#onProgress();
    this.#eventCount = eventCount;
    if (parts.unread <= UNREAD_MAX || this.#paused || done) return;
    this.#paused = true;
    parts.compact();
    this.#stall?.pause();
    this.#exchange?.pause();
  }

  onEnd(): void {
    if (this.#refusal !== undefined) this.#fail(this.#refusal.toError());
    else if (this.#reader.done) {
      this.firstPartAt ??= monotonicClock();
      this.#stop();
    } else this.#fail(corrupt("the engine stopped in the middle of an answer", "no [DONE]"));
  }

  onError(error: AppError): void {
    this.#fail(this.#refusal?.toError() ?? error);
  }

  #onProgress(): void {
    this.firstPartAt ??= monotonicClock();
    if (this.#reader.done) {
      // All was said. The reply is still read to its end, so that the connection can be used again. It may be paused: under
      // TLS, records that have arrived are told after that too.
      this.#options.signal.removeEventListener("abort", this.#onAbort);
      this.#readOn();
      this.#stall?.restart(DRAIN_MS_MAX);
    } else if (this.#state === "connecting") {
      this.#state = "streaming";
      this.#stall?.restart(this.#options.betweenChunksMs);
    } else this.#stall?.touch();
    this.#answer();
  }

  readonly #onStall = (): void => {
    const { firstByteMs, betweenChunksMs } = this.#options;
    if (this.#refusal !== undefined) this.#fail(this.#refusal.toError());
    else if (this.#state === "connecting")
      this.#fail(tooSlow("the engine did not begin to answer in time", firstByteMs));
    else this.#fail(tooSlow("the engine stopped answering", betweenChunksMs));
  };

  readonly #onAbort = (): void => {
    this.#reader.parts.clear();
    this.#fail(this.#options.signal.reason);
  };

  /** The exchange is over. That is a failure only while the answer is not complete. */
  #fail(error: unknown): void {
    if (this.#state === "over") return;
    if (!this.#reader.done) this.#failure = { error };
    if (this.#reader.eventCount > 0) this.firstPartAt ??= monotonicClock();
    this.#stop();
  }

  #stop(): void {
    this.#state = "over";
    this.#options.signal.removeEventListener("abort", this.#onAbort);
    this.#stall?.stop();
    this.#exchange?.abort();
    this.#answer();
  }

  #answer(): void {
    const waiter = this.#waiter;
    if (waiter === undefined) return;
    const part = this.#reader.parts.shift();
    const failure = this.#failure;
    if (part !== undefined) waiter.resolve({ done: false, value: part });
    else if (failure !== undefined) waiter.reject(failure.error);
    else if (this.#reader.done || this.#state === "over") waiter.resolve(NOTHING_MORE);
    else return;
    this.#waiter = undefined;
    if (part === undefined) this.#failure = undefined;
    if (this.#reader.parts.unread < UNREAD_MAX / 2) this.#readOn();
  }

  #readOn(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#stall?.resume();
    this.#exchange?.resume();
  }
}

const EVENT_STREAM = "text/event-stream";

const NOTHING_MORE: PartResult = { done: true, value: undefined };

/**
 * Characters that may wait for the consumer before the socket is not read on; what the last read brought comes on top. The
 * kernels take many times as much before the engine feels it.
 */
const UNREAD_MAX = 2 * 1024;

/** vLLM ends its reply right after `[DONE]`; a connection that does not is not worth waiting for. */
const DRAIN_MS_MAX = 1_000;
