import { AppError } from "../errors.ts";
import type { CallLimits } from "../limits/call-limits.ts";
import type { RateLimitDecision } from "../limits/rate-limit.ts";
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
  readonly limits: CallLimits;
}): Gate {
  const { registry, limits } = options;

  const decide = async (
    client: Client | undefined,
    address: string,
    metered: boolean,
  ): Promise<Access> => {
    const { blockedMs, rate } = await limits.check({
      address,
      metered,
      ...(client !== undefined && { client: { id: client.id, rpm: client.rpm } }),
    });
    if (blockedMs > 0) {
      const refusal = new AppError(
        "exhausted",
        "too many calls with a wrong API key came from this address: try again later",
        { retryAfterMs: blockedMs },
      );
      return { refusal };
    }
    if (client === undefined) return { refusal: new AppError("unauthenticated", unauthenticated) };
    if (rate === undefined) return { client };
    if (rate.allowed) return { client, rate };
    const refusal = new AppError(
      "exhausted",
      `the limit of ${rate.limit} requests a minute is reached: try again later`,
      { retryAfterMs: rate.retryAfterMs },
    );
    return { client, rate, refusal };
  };

  return {
    async admit({ key, address, metered }) {
      try {
        return await decide(registry.identify(key), address, metered);
      } catch (error) {
        if (error instanceof AppError) return { refusal: error };
        return { refusal: new AppError("internal", "the gate failed", { cause: error }) };
      }
    },
  };
}
