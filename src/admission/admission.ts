import { AppError } from "../errors.ts";

/** Decides when a call gets the engine. */
export interface Admission {
  /**
   * Waits for one of the engine's sequences, first come first served. The caller must dispose what it gets, once or more
   * often; until then the sequence is taken.
   *
   * Throws AppError `exhausted` at once when the queue is full, and `signal.reason` when the caller gives up waiting; in
   * both cases nothing stays taken.
   */
  enter(signal: AbortSignal): Promise<Disposable>;
}

/** An admission that decides by itself. */
export interface AdmissionQueue extends Admission {
  /** Calls that have a sequence now. */
  readonly running: number;
  /** Calls that wait now. */
  readonly waiting: number;
}

/** How soon a caller refused for a full queue may try again: about the time of one short answer. */
const retryAfterMs = 1000;

/**
 * At most `concurrency` calls have the engine at once and at most `queueLength` wait, in the order of their arrival. The
 * engine's own queue stays empty, so that a caller who leaves never costs it anything.
 */
export function createAdmission(options: {
  readonly concurrency: number;
  readonly queueLength: number;
}): AdmissionQueue {
  let running = 0;
  // A Set keeps the order of arrival and lets a waiter leave from the middle at no cost.
  const queue = new Set<() => void>();

  const take = (): Disposable => {
    running += 1;
    let taken = true;
    return {
      [Symbol.dispose]() {
        if (!taken) return;
        taken = false;
        running -= 1;
        for (const next of queue) {
          next();
          break;
        }
      },
    };
  };

  return {
    get running() {
      return running;
    },
    get waiting() {
      return queue.size;
    },
    async enter(signal) {
      signal.throwIfAborted();
      if (running < options.concurrency) return take();
      if (queue.size >= options.queueLength) {
        throw new AppError("exhausted", "too many calls wait for the engine: try again later", {
          retryAfterMs,
        });
      }
      return new Promise<Disposable>((resolve, reject) => {
        const admit = () => {
          queue.delete(admit);
          signal.removeEventListener("abort", leave);
          resolve(take());
        };
        const leave = () => {
          queue.delete(admit);
          reject(signal.reason);
        };
        queue.add(admit);
        signal.addEventListener("abort", leave, { once: true });
      });
    },
  };
}
