import type { LimitedClient, LimitState } from "../limits/limits.ts";
import type { Quota } from "../limits/quota.ts";
import type { PeriodTotals, UsageTotals } from "./usage-totals.ts";

/** What a client has used, and what is left to it. */
export interface UsageReport {
  readonly client: string;
  readonly limits: readonly LimitStanding[];
  readonly periods: readonly PeriodTotals[];
  /** When counting for `periods` began, in milliseconds since 1970. */
  readonly countedSince: number;
}

export interface LimitStanding extends Omit<LimitState, "resetMs"> {
  /** 0 at least: a call may cost more than was expected. */
  readonly remaining: number;
  /** When it is whole again, in milliseconds since 1970; absent while it is, and for `concurrency`. */
  readonly resetAt?: number;
}

/** Tells how clients stand. It changes nothing, and asks no engine. */
export interface UsageReporter {
  /** Throws AppError `unavailable` when who counts cannot be reached. */
  report(client: LimitedClient): Promise<UsageReport>;
}

/** `now` is milliseconds since 1970. */
export function createUsageReporter(
  { quota, totals }: { readonly quota: Pick<Quota, "usage">; readonly totals: UsageTotals },
  now: () => number = Date.now,
): UsageReporter {
  return {
    async report(client) {
      const askedAt = now();
      const states = await quota.usage(client);
      return {
        client: client.id,
        limits: states.map((state) => toStanding(state, askedAt)),
        periods: totals.of(client.id),
        countedSince: totals.countedSince,
      };
    },
  };
}

function toStanding({ resetMs, ...state }: LimitState, askedAt: number): LimitStanding {
  return {
    ...state,
    remaining: Math.max(0, state.limit - state.used),
    // A window in which nothing is counted has not begun.
    ...(resetMs !== undefined && state.used > 0 && { resetAt: toWholeSecond(askedAt + resetMs) }),
  };
}

/** The next one: so the end of a day is midnight, although the clock is read twice to find it. */
function toWholeSecond(ms: number): number {
  return Math.ceil(ms / 1000) * 1000;
}
