import { RateLimiterMemory } from "rate-limiter-flexible";

/**
 * How many requests a client may make: `rpm` in each window of 60 s. A window begins with the client's first request and
 * ends 60 s later, whatever happens inside it. Like every fixed window it lets through up to twice the limit around a
 * boundary, and in exchange a refusal names the exact moment from which the client has its whole limit again.
 */
export interface RateLimiter extends AsyncDisposable {
  /**
   * Counts one request and decides about it. Concurrent calls are decided one by one: of any number made in one window
   * exactly `rpm` are allowed. A refused request takes nothing from the next window and does not postpone it.
   *
   * Never throws because of a store: what an implementation does when it has lost its store is in its own description.
   */
  consume(client: RateLimitedClient): Promise<RateLimitDecision>;
}

export interface RateLimitedClient {
  /** The key of the window, from the operator's configuration: there are as many windows as clients, at most. */
  readonly id: string;
  /** Requests in 60 s, a whole number of at least 1. A new value holds at once, also in the running window. */
  readonly rpm: number;
}

export type RateLimitDecision = {
  /** The client's `rpm`, as the decision applied it. */
  readonly limit: number;
  /** Requests that the client may still make in this window. */
  readonly remaining: number;
  /** Milliseconds until the window ends. */
  readonly resetMs: number;
} & (
  | { readonly allowed: true }
  | {
      readonly allowed: false;
      /** Milliseconds after which the next request is allowed: not one too few, and no spare. */
      readonly retryAfterMs: number;
    }
);

/** Length of a window. Whole seconds, because rate-limiter-flexible rounds durations down to them. */
export const windowMs = 60_000;

/**
 * The `points` for rate-limiter-flexible: out of reach, so that it only counts, and `toDecision` compares the count with
 * the client's own `rpm`. One limiter then serves every rpm, and it has no refusals of its own that could be taken for
 * failures of its store (or the other way round, animir/node-rate-limiter-flexible#337).
 */
export const unreachablePoints = Number.MAX_SAFE_INTEGER;

/** Decides about the request that made the window's count `count`, `resetMs` before the window ends. */
export function toDecision(rpm: number, count: number, resetMs: number): RateLimitDecision {
  return count <= rpm
    ? { allowed: true, limit: rpm, remaining: rpm - count, resetMs }
    : { allowed: false, limit: rpm, remaining: 0, resetMs, retryAfterMs: resetMs };
}

/** A limiter for one process. It decides without waiting, and forgets a client at the end of its window. */
export function createMemoryRateLimiter(): RateLimiter {
  const windows = new RateLimiterMemory({ points: unreachablePoints, duration: windowMs / 1000 });
  return {
    async consume({ id, rpm }) {
      const { consumedPoints, msBeforeNext } = await windows.consume(id);
      // The library measures with the wall clock but ends windows by a timer: after the clock was set back, the time
      // left would exceed the window.
      return toDecision(rpm, consumedPoints, Math.min(msBeforeNext, windowMs));
    },
    // Nothing to wait for: the timers that end windows do not keep the process alive.
    async [Symbol.asyncDispose]() {},
  };
}
