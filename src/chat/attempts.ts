import type { Lease } from "../admission/admission.ts";
import { AppError } from "../errors.ts";
import { type ChatPart, type ChatStream, hasCostNothing, type Usage } from "../inference/engine.ts";

/**
 * One answer, from whichever engine gives it. An engine that fails before it has said anything has done nothing that anybody
 * could see: the chat runs once more, at another engine if there is one. After the first part nothing is ever repeated.
 *
 * A failure is thrown as the engine's own, also when no other engine could be had: it says the same to the caller, who may try
 * again. Single use, as every ChatStream.
 */
export class Attempts implements ChatStream, AsyncIterableIterator<ChatPart> {
  readonly #options: AttemptsOptions;
  #stream: ChatStream;
  #parts: AsyncIterator<ChatPart>;
  #hasBegun = false;
  #isRefused = false;

  constructor(options: AttemptsOptions) {
    this.#options = options;
    this.#stream = options.run(options.lease.engine);
    this.#parts = this.#stream[Symbol.asyncIterator]();
  }

  get usage(): Usage {
    return this.#stream.usage;
  }

  get askedAt(): number | undefined {
    return this.#stream.askedAt;
  }

  get firstPartAt(): number | undefined {
    return this.#stream.firstPartAt;
  }

  /** Whether it has failed before an engine has done anything for it. */
  get isRefused(): boolean {
    return this.#isRefused;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** All but the first part come straight from the engine's stream: this is the hot path. */
  next(): Promise<IteratorResult<ChatPart>> {
    return this.#hasBegun ? this.#parts.next() : this.#begin();
  }

  async return(): Promise<IteratorResult<ChatPart>> {
    await this.#parts.return?.();
    return { done: true, value: undefined };
  }

  async #begin(): Promise<IteratorResult<ChatPart>> {
    const { lease, signal, run } = this.#options;
    for (;;) {
      try {
        const first = await this.#parts.next();
        this.#hasBegun = true;
        lease.answered();
        return first;
      } catch (error) {
        if (signal.aborted) throw error;
        if (!(await this.#moved(error))) {
          this.#isRefused = !signal.aborted && hasCostNothing(error);
          throw signal.aborted ? signal.reason : error;
        }
        this.#stream = run(lease.engine);
        this.#parts = this.#stream[Symbol.asyncIterator]();
      }
    }
  }

  /** Whether the call has a place at another engine, after this failure. */
  async #moved(error: unknown): Promise<boolean> {
    const { lease } = this.#options;
    const kind = error instanceof AppError ? error.kind : undefined;
    // It has waited long enough, and the next engine would take as long.
    if (kind === "timeout") lease.fail();
    // Not only refused: vLLM begins its reply before it has anything to say, and one that is cut there is `corrupt`.
    else if (kind === "unavailable" || kind === "corrupt") return await lease.move();
    // It has refused the request, for what it is: that is an answer.
    else if (kind === "invalid" || kind === "not-found") lease.answered();
    return false;
  }
}

interface AttemptsOptions {
  readonly lease: Lease;
  /** Of the call, whose departure ends the wait for another engine too: it disposes the lease. */
  readonly signal: AbortSignal;
  /** Begins the chat at this engine. */
  readonly run: (engine: string | undefined) => ChatStream;
}
