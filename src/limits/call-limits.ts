import type { FailedAttempts } from "./failed-attempts.ts";
import type { RateLimitDecision, RateLimitedClient, RateLimiter } from "./rate-limit.ts";

/** Decides whether a call may be made. It is one question, because it may cost a message to another process. */
export interface CallLimits {
  /**
   * First the address: while it is blocked nothing is counted. Then a key that was refused counts as a failure of the
   * address, and a call that is `metered` against the client's rate.
   *
   * Throws AppError `unavailable` when who decides is gone.
   */
  check(call: {
    readonly address: string;
    /** Whose key came with the call; absent when the key was refused. */
    readonly client?: RateLimitedClient;
    readonly metered: boolean;
  }): Promise<CallDecision>;
}

export interface CallDecision {
  /** Milliseconds, rounded up, until this address may try again; 0 when it may now. */
  readonly blockedMs: number;
  /** Where the client stands, when the call was counted. */
  readonly rate?: RateLimitDecision;
}

export function createCallLimits(options: {
  readonly failedAttempts: FailedAttempts;
  readonly rateLimiter: RateLimiter;
}): CallLimits {
  const { failedAttempts, rateLimiter } = options;
  return {
    async check({ address, client, metered }) {
      const blockedMs = failedAttempts.blockedMs(address);
      if (blockedMs > 0) return { blockedMs };
      if (client === undefined) failedAttempts.record(address);
      else if (metered) return { blockedMs, rate: await rateLimiter.consume(client) };
      return { blockedMs };
    },
  };
}
