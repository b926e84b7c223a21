import { AppError } from "../errors.ts";
import type { FailedAttempts } from "../limits/failed-attempts.ts";
import type { RateLimitDecision, RateLimiter } from "../limits/rate-limit.ts";
import type { Client, KeyRegistry } from "./key-registry.ts";

/** What the gate decided. */
export interface Access {
  readonly client?: Client;
  /** Why the call must not go on. */
  readonly refusal?: AppError;
  /** Where the client stands in its rate limit. */
  readonly rate?: RateLimitDecision;
}

/** Decides from a key and an address alone, before anything of the request's body is read. */
export interface Gate {
  /** Never throws: what is refused says so. `metered` calls count against the client's rate limit. */
  admit(caller: {
    readonly key: string | undefined;
    readonly address: string;
    readonly metered: boolean;
  }): Promise<Access>;
}

/** The same words for a key that is missing, malformed or unknown: an answer must not help to guess. */
const unauthenticated = "an API key is needed: send it as X-API-Key or as Authorization: Bearer";

/**
 * First the address (has it failed too often?), then the key, then the client's rate limit. An address that is blocked is
 * not let in with a valid key either: otherwise guessing could go on, told apart by success.
 */
export function createGate(options: {
  readonly registry: KeyRegistry;
  readonly failedAttempts: FailedAttempts;
  readonly rateLimiter: RateLimiter;
}): Gate {
  const { registry, failedAttempts, rateLimiter } = options;
  return {
    async admit({ key, address, metered }) {
      const blockedMs = failedAttempts.blockedMs(address);
      if (blockedMs > 0) {
        const refusal = new AppError(
          "exhausted",
          "too many calls with a wrong API key came from this address: try again later",
          { retryAfterMs: blockedMs },
        );
        return { refusal };
      }
      const client = registry.identify(key);
      if (client === undefined) {
        failedAttempts.record(address);
        return { refusal: new AppError("unauthenticated", unauthenticated) };
      }
      if (!metered) return { client };
      const rate = await rateLimiter.consume(client);
      if (rate.allowed) return { client, rate };
      const refusal = new AppError(
        "exhausted",
        `the limit of ${rate.limit} requests a minute is reached: try again later`,
        { retryAfterMs: rate.retryAfterMs },
      );
      return { client, rate, refusal };
    },
  };
}
