import type { Client } from "../keys/key-registry.ts";
import { toLimitError } from "../limits/limits.ts";
import type { Grant, Quota } from "../limits/quota.ts";
import type { EngineQueue } from "./engine-queue.ts";
import type { Seat } from "./seats.ts";

/** A call that wants to use an engine. */
export interface AdmissionCall {
  /** The call's own id. */
  readonly id: string;
  readonly client: Client;
  readonly model: string;
  /** Tokens that it is expected to cost, prompt and completion together. At least 1. */
  readonly tokens: number;
  /** The most tokens that it can cost. */
  readonly tokensMax: number;
  /** Milliseconds until its deadline. */
  readonly deadlineMs: number;
  /**
   * Where its prompt may be cached: see `PlacedCall`. Absent: it needs no sequence of the engine that the gateway shares out,
   * but keeps the client's limits.
   */
  readonly affinity?: string;
}

/** What an admitted call has. Disposing it, once or more often, gives it back. */
export interface Lease extends Disposable, Pick<Seat, "answered" | "fail" | "move"> {
  /** Which engine it runs on now; absent where there can be only one. */
  readonly engine: string | undefined;
  /** Milliseconds that it has waited. */
  readonly queueMs: number;
  /**
   * Says what the call has really cost, in tokens of prompt and completion; 0 for one that never ran. It counts from the
   * disposal on, the last word before which holds. A lease that says nothing has cost the most that it could of the client's
   * limits, and what was expected of the engine.
   */
  settle(tokens: number): void;
}

/** Decides whether a call may use an engine, and when. */
export interface Admission {
  /**
   * Takes what the call needs of the client's limits, all or nothing, and waits for its turn. The caller must dispose what it
   * gets.
   *
   * Throws AppError `exhausted` at once when a limit is reached, too many calls wait, or the deadline cannot be met, `invalid`
   * when the call is larger than a limit, `unavailable` when no engine can be reached, and `signal.reason` when the caller
   * gives up waiting; in all cases nothing stays taken.
   */
  enter(call: AdmissionCall, signal: AbortSignal): Promise<Lease>;
}

export function createAdmission({
  quota,
  queue,
}: {
  readonly quota: Quota;
  readonly queue: EngineQueue;
}): Admission {
  return {
    async enter(call, signal) {
      signal.throwIfAborted();
      const { id, client, model, tokensMax, deadlineMs, affinity } = call;
      const grant = await quota.take({
        id,
        client,
        model,
        tokens: tokensMax,
        holds: true,
        lastsMs: deadlineMs,
      });
      if (!grant.granted) throw toLimitError(grant.refusal);
      if (affinity === undefined) return unqueued(grant);
      try {
        const seat = await queue.enter(
          {
            client: client.id,
            class: client.class,
            weight: client.weight,
            tokens: call.tokens,
            deadlineMs,
            affinity,
            ...(client.queueLength !== undefined && { clientQueueLength: client.queueLength }),
            ...(client.waitMs !== undefined && { waitMs: client.waitMs }),
          },
          signal,
        );
        return new GrantedSeat(grant, seat);
      } catch (error) {
        grant.cancel();
        throw error;
      }
    },
  };
}

/** What a call has taken of its client's limits, and its place at an engine. */
class GrantedSeat implements Lease {
  readonly #grant: Grant;
  readonly #seat: Seat;

  constructor(grant: Grant, seat: Seat) {
    this.#grant = grant;
    this.#seat = seat;
  }

  get engine(): string | undefined {
    return this.#seat.engine;
  }

  get queueMs(): number {
    return this.#seat.queueMs;
  }

  answered(): void {
    this.#seat.answered();
  }

  fail(): void {
    this.#seat.fail();
  }

  move(): Promise<boolean> {
    return this.#seat.move();
  }

  settle(tokens: number): void {
    this.#grant.settle(tokens);
    this.#seat.settle(tokens);
  }

  [Symbol.dispose](): void {
    this.#grant[Symbol.dispose]();
    this.#seat[Symbol.dispose]();
  }
}

function unqueued(grant: Grant): Lease {
  return {
    engine: undefined,
    queueMs: 0,
    answered: () => undefined,
    fail: () => undefined,
    move: async () => false,
    settle: (tokens) => grant.settle(tokens),
    [Symbol.dispose]: () => grant[Symbol.dispose](),
  };
}
