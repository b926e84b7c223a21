import { AppError } from "../errors.ts";
import type { CallLimits, Counting } from "../limits/call-limits.ts";
import { type LimitedClient, type RateStanding, toLimitError } from "../limits/limits.ts";
import type { Client, KeyRegistry } from "./key-registry.ts";

/** What the gate decided. */
export interface Access {
  readonly client?: Client;
  /** Why the call must not go on. */
  readonly refusal?: AppError;
  /** Where the client stands in its requests a minute. */
  readonly rate?: RateStanding;
}

/** Decides from a key and an address alone, before anything of the request's body is read. */
export interface Gate {
  /** Never throws: what is refused says so. */
  admit(call: {
    readonly id: string;
    readonly key: string | undefined;
    readonly address: string;
    readonly counts: Counting;
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
    call: { readonly id: string; readonly address: string; readonly counts: Counting },
  ): Promise<Access> => {
    const { blockedMs, rate, refusal } = await limits.check({
      ...call,
      ...(client !== undefined && { client: toLimited(client) }),
    });
    if (blockedMs > 0) {
      const blocked = new AppError(
        "exhausted",
        "too many calls with a wrong API key came from this address: try again later",
        { retryAfterMs: blockedMs, reason: "address" },
      );
      return { refusal: blocked };
    }
    if (client === undefined) return { refusal: new AppError("unauthenticated", unauthenticated) };
    return {
      client,
      ...(rate !== undefined && { rate }),
      ...(refusal !== undefined && { refusal: toLimitError(refusal) }),
    };
  };

  return {
    async admit({ key, ...call }) {
      try {
        return await decide(registry.identify(key), call);
      } catch (error) {
        if (error instanceof AppError) return { refusal: error };
        return { refusal: new AppError("internal", "the gate failed", { cause: error }) };
      }
    },
  };
}

/** No more of the client than who decides needs: it may be told to another process. */
function toLimited({ id, limits, modelLimits }: Client): LimitedClient {
  return { id, limits, modelLimits };
}
