import type { FailedAttempts } from "./failed-attempts.ts";
import type { LimitedClient, RateStanding, Refusal } from "./limits.ts";
import type { Quota } from "./quota.ts";

/**
 * When a call counts as one of the client's requests: `now`; `later`, because it still has to ask for tokens, and counts by all
 * limits or by none; or `never`, because it asks nothing of the engine.
 */
export type Counting = "now" | "later" | "never";

/** Decides from a call's head whether it may be made. It is one question, because it may cost a message to another process. */
export interface CallLimits {
  /**
   * First the address: while it is blocked nothing is counted. Then a key that was refused counts as a failure of the
   * address, and a call against the client's requests a minute. One that counts later is refused here already when there are
   * none left.
   *
   * Throws AppError `unavailable` when who decides is gone.
   */
  check(call: {
    /** The call's own id. */
    readonly id: string;
    readonly address: string;
    /** Whose key came with the call; absent when the key was refused. */
    readonly client?: LimitedClient;
    readonly counts: Counting;
  }): Promise<CallDecision>;
  /** Counts a request that was to count later, and came to nothing by its caller's fault. */
  count(call: { readonly id: string; readonly client: LimitedClient }): void;
}

export interface CallDecision {
  /** Milliseconds, rounded up, until this address may try again; 0 when it may now. */
  readonly blockedMs: number;
  /** Where the client stands in its requests a minute, this call included. */
  readonly rate?: RateStanding;
  /** The limit that does not allow the call. */
  readonly refusal?: Refusal;
}

export function createCallLimits(options: {
  readonly failedAttempts: FailedAttempts;
  readonly quota: Quota;
}): CallLimits {
  const { failedAttempts, quota } = options;
  const request = { tokens: 0, holds: false, lastsMs: 0 };

  return {
    async check({ id, address, client, counts }) {
      const blockedMs = failedAttempts.blockedMs(address);
      if (blockedMs > 0) return { blockedMs };
      if (client === undefined) failedAttempts.record(address);
      if (client === undefined || counts === "never") return { blockedMs };
      if (counts === "later") return { blockedMs, ...expect(quota.standing(client)) };
      const taken = await quota.take({ ...request, id, client });
      const rate = quota.standing(client);
      return {
        blockedMs,
        ...(rate !== undefined && { rate }),
        ...(!taken.granted && { refusal: taken.refusal }),
      };
    },

    count({ id, client }) {
      void quota.take({ ...request, id, client });
    },
  };
}

/** What a call will find that counts later. */
function expect(rate: RateStanding | undefined): Pick<CallDecision, "rate" | "refusal"> {
  if (rate === undefined) return {};
  const { limit, remaining, resetMs } = rate;
  if (remaining > 0) return { rate: { ...rate, remaining: remaining - 1 } };
  return { rate, refusal: { name: "rpm", limit, amount: 1, retryAfterMs: resetMs } };
}
