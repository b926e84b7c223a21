import { AppError } from "../errors.ts";

/** What a client may use, in all or of one model. What is absent is not limited. */
export interface Limits {
  /** Requests in 60 s. */
  readonly rpm?: number;
  /** Tokens in 60 s, prompts and completions together. */
  readonly tpm?: number;
  /** Requests at once, those included that wait for the engine. */
  readonly concurrency?: number;
  /** Tokens in a day, and in a month, of UTC. */
  readonly dailyTokens?: number;
  readonly monthlyTokens?: number;
}

export type LimitName = keyof Limits;

/** Whose limits hold. */
export interface LimitedClient {
  /** From the operator's configuration: as many counters as clients, at most. */
  readonly id: string;
  readonly limits: Limits;
  /** Limits of single models, by their id, which hold besides. */
  readonly modelLimits: Readonly<Record<string, Limits>>;
}

/** One limit that a call has to keep, and how much the call would take of it. */
export interface Demand {
  readonly name: LimitName;
  /** The model that it is for; absent: for all that the client does. */
  readonly model?: string;
  readonly limit: number;
  readonly amount: number;
}

/** A demand that could not be met. */
export interface Refusal extends Demand {
  /** Milliseconds until the limit is whole again. Absent when nobody knows, and when it would not be enough then either. */
  readonly retryAfterMs?: number;
}

/** How much of a limit is used now. */
export interface LimitState extends Omit<Demand, "amount"> {
  readonly used: number;
  /** Milliseconds until it is whole again; absent for `concurrency`. */
  readonly resetMs?: number;
}

/** Where a client stands in its requests a minute, the call that asks included. */
export interface RateStanding {
  readonly limit: number;
  readonly remaining: number;
  /** Milliseconds until the window ends. */
  readonly resetMs: number;
}

export const minuteMs = 60_000;
export const dayMs = 86_400_000;

/** What a call takes of its limits. */
export interface Taking {
  /** The model it is for; absent for calls that use none. */
  readonly model?: string;
  /** The most tokens it can cost. */
  readonly tokens: number;
  /** Whether it counts as running until it is given back. */
  readonly holds: boolean;
}

/** Every limit that a call has to keep. A limit of which it takes nothing is none of its business. */
export function demandsOf(client: LimitedClient, { model, tokens, holds }: Taking): Demand[] {
  const own = toDemands(client.limits, { tokens, holds });
  // Own properties alone: the model's name is the engine's, not ours.
  if (model === undefined || !Object.hasOwn(client.modelLimits, model)) return own;
  const forModel = toDemands(client.modelLimits[model] ?? {}, { tokens, holds });
  return [...own, ...forModel.map((demand) => ({ ...demand, model }))];
}

function toDemands(limits: Limits, { tokens, holds }: Omit<Taking, "model">): Demand[] {
  const { rpm, tpm, concurrency, dailyTokens, monthlyTokens } = limits;
  const demands: Demand[] = [];
  const add = (name: LimitName, limit: number | undefined, amount: number) => {
    if (limit !== undefined && amount > 0) demands.push({ name, limit, amount });
  };
  add("rpm", rpm, 1);
  add("concurrency", concurrency, holds ? 1 : 0);
  add("tpm", tpm, tokens);
  add("dailyTokens", dailyTokens, tokens);
  add("monthlyTokens", monthlyTokens, tokens);
  return demands;
}

/** A refused caller of too many at once may try again soon: one of its own calls has to end first, and nobody knows when. */
const concurrencyRetryMs = 1000;

const words: Readonly<Record<LimitName, (limit: number) => string>> = {
  rpm: (limit) => `${limit} requests a minute`,
  tpm: (limit) => `${limit} tokens a minute`,
  concurrency: (limit) => `${limit} requests at once`,
  dailyTokens: (limit) => `${limit} tokens a day`,
  monthlyTokens: (limit) => `${limit} tokens a month`,
};

/** What the caller is told. A call that is larger than its limit can never succeed, and is told what to change. */
export function toLimitError({ name, model, limit, amount, retryAfterMs }: Refusal): AppError {
  const what = `${words[name](limit)}${model === undefined ? "" : ` of ${model}`}`;
  if (amount > limit) {
    return new AppError(
      "invalid",
      `the request may cost ${amount} tokens, more than the limit of ${what}: shorten it, or lower max_tokens`,
      { reason: name },
    );
  }
  return new AppError("exhausted", `the limit of ${what} is reached: try again later`, {
    retryAfterMs: retryAfterMs ?? concurrencyRetryMs,
    reason: name,
  });
}
