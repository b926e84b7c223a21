import { AppError } from "../errors.ts";
import { type MonotonicClock, monotonicClock } from "../lib/clock.ts";
import { createFairQueue, type FairCall, type FairQueue, type Waiter } from "./fair-queue.ts";

/** Whether a person waits for the answer, or a program that has time. */
export type CallClass = "interactive" | "batch";

/** A call that wants the engine. A client belongs to one class, and has one weight. */
export interface AdmissionCall extends FairCall {
  readonly class: CallClass;
}

/** One of the engine's sequences. Disposing it, once or more often, gives it back. */
export interface Lease extends Disposable {
  /**
   * Says what the call has really cost, in tokens of prompt and completion; 0 for one that never ran. It counts from the
   * disposal on, the last word before which holds. A lease that says nothing has cost what was expected.
   */
  settle(tokens: number): void;
}

/** Decides when a call gets the engine. */
export interface Admission {
  /**
   * Waits for one of the engine's sequences. The caller must dispose what it gets; until then the sequence is taken.
   *
   * Throws AppError `exhausted` at once when the queue or the client's part of it is full, and `signal.reason` when the
   * caller gives up waiting; in both cases nothing stays taken.
   */
  enter(call: AdmissionCall, signal: AbortSignal): Promise<Lease>;
}

/** An admission that decides by itself. */
export interface AdmissionQueue extends Admission {
  /** Calls that have a sequence now. */
  readonly running: number;
  /** Calls that wait now. */
  readonly waiting: number;
}

/**
 * While batch calls wait, one of so many admissions is theirs. Small enough that a batch goes on under any load of persons,
 * an eighth of the engine at the least, and large enough that a person hardly notices.
 */
export const batchTurn = 8;

/** A refused caller may try again after the expected wait, but neither at once nor after it has forgotten. */
const retryAfterMsMin = 1000;
const retryAfterMsMax = 60_000;

/** The weight of the newest call in the mean of how long calls keep a sequence: it follows a change within some ten calls. */
const newest = 1 / 8;

/**
 * At most `concurrency` calls have the engine at once, and no sequence is idle while a call waits. Interactive calls go first,
 * all but every `batchTurn`th; within a class clients share by weight, see `createFairQueue`. The engine's own queue stays
 * empty, so that a caller who leaves never costs it anything.
 *
 * At most `queueLength` calls wait, and a client may add one as long as it has fewer waiting than there are places left (the
 * dynamic threshold of Choudhury and Hahne, 1998). So one client gets half of the queue at most, and each further one half of
 * what is left: whoever fills its part refuses itself, and several that do still leave places to a client that has none.
 */
export function createAdmission(options: {
  readonly concurrency: number;
  readonly queueLength: number;
  readonly clock?: MonotonicClock;
}): AdmissionQueue {
  const { concurrency, queueLength, clock = monotonicClock } = options;
  const queues: Record<CallClass, FairQueue<AdmissionCall>> = {
    interactive: createFairQueue(),
    batch: createFairQueue(),
  };
  let running = 0;
  /** Interactive calls that were admitted since batch calls wait or had their turn. */
  let passedBatch = 0;
  /** How long calls keep a sequence, in milliseconds: a mean that follows the newest. 0: none has ended yet. */
  let keptMs = 0;

  const waiting = () => queues.interactive.size + queues.batch.size;

  const admitNext = () => {
    const { interactive, batch } = queues;
    const isBatch = batch.size > 0 && (interactive.size === 0 || passedBatch >= batchTurn - 1);
    passedBatch = isBatch || batch.size === 0 ? 0 : passedBatch + 1;
    (isBatch ? batch : interactive).next()?.admit();
  };

  /** A sequence for a call that its queue has charged. */
  const take = (call: AdmissionCall): Lease => {
    running += 1;
    const sinceMs = clock();
    let cost = call.tokens;
    let taken = true;
    return {
      settle(tokens) {
        cost = tokens;
      },
      [Symbol.dispose]() {
        if (!taken) return;
        taken = false;
        running -= 1;
        const ownMs = clock() - sinceMs;
        keptMs = keptMs === 0 ? ownMs : keptMs + (ownMs - keptMs) * newest;
        queues[call.class].end(call, cost);
        admitNext();
      },
    };
  };

  const refuse = (message: string): AppError => {
    // All sequences are taken: one ends every `keptMs / concurrency`, and all who wait are to have had their turn.
    const waitMs = ((waiting() + 1) * keptMs) / concurrency;
    const retryAfterMs = Math.min(Math.max(Math.ceil(waitMs), retryAfterMsMin), retryAfterMsMax);
    return new AppError("exhausted", message, { retryAfterMs });
  };

  return {
    get running() {
      return running;
    },
    get waiting() {
      return waiting();
    },
    async enter(call, signal) {
      signal.throwIfAborted();
      const queue = queues[call.class];
      if (running < concurrency) {
        queue.pass(call);
        return take(call);
      }
      const places = queueLength - waiting();
      if (places <= 0) throw refuse("too many calls wait for the engine: try again later");
      if (queue.sizeOf(call.client) >= places) {
        throw refuse("too many calls of this client wait for the engine: try again later");
      }
      return new Promise<Lease>((resolve, reject) => {
        const leave = () => {
          queue.remove(waiter);
          reject(signal.reason);
        };
        const waiter: Waiter<AdmissionCall> = {
          call,
          admit() {
            signal.removeEventListener("abort", leave);
            resolve(take(call));
          },
        };
        queue.add(waiter);
        signal.addEventListener("abort", leave, { once: true });
      });
    },
  };
}
