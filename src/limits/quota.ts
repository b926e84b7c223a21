import {
  type Demand,
  dayMs,
  demandsOf,
  type LimitedClient,
  type LimitName,
  type LimitState,
  minuteMs,
  type RateStanding,
  type Refusal,
  type Taking,
} from "./limits.ts";

/**
 * Counts what clients use, and decides whether they may use more: over all limits of a call at once, so that a call is counted
 * by all of them or by none. Concurrent calls are decided one by one, and exactly as many are allowed as the limits say.
 *
 * Tokens are counted when a call begins, with the most that it can cost, and put right when it ends: within the window in
 * which it began, as long as that lasts.
 *
 * A minute begins with the first thing that is counted in it and ends 60 s later, whatever happens inside it. Like every
 * fixed window it lets through up to twice the limit around a boundary; in exchange a refusal names the exact moment from
 * which the client has its whole limit again. Days and months are those of UTC.
 */
export interface Quota extends AsyncDisposable {
  /**
   * Takes what the call needs of every limit, or nothing. Never throws because of a store: what an implementation does when it
   * has lost its store is in its own description.
   */
  take(call: QuotaCall): Promise<Grant | Refused>;
  /** Where the client stands in its requests a minute, as far as this process knows; undefined when they are not limited. */
  standing(client: LimitedClient): RateStanding | undefined;
  /** How much of each limit the client has used, those of its models included. Throws AppError `unavailable`. */
  usage(client: LimitedClient): Promise<readonly LimitState[]>;
}

export interface QuotaCall extends Taking {
  /** Unique among the calls of all gateways. */
  readonly id: string;
  readonly client: LimitedClient;
  /** Milliseconds after which it is over at the latest: how long a lost gateway's calls count as running. */
  readonly lastsMs: number;
}

/** What a call has taken. Its tokens are settled, and its place among the running ones given back, by the disposal. */
export interface Grant extends Disposable {
  readonly granted: true;
  /** Says what the call has really cost, in tokens. The last word before the disposal holds; without one it was the most. */
  settle(tokens: number): void;
  /** Gives everything back, the request too: it was refused elsewhere. */
  cancel(): void;
}

export interface Refused {
  readonly granted: false;
  /** Of several limits that are reached the one that lasts longest. */
  readonly refusal: Refusal;
}

export interface MemoryQuota extends Quota {
  /** Counts a call without asking whether it may: another has decided. */
  count(call: QuotaCall): Grant;
  /** Why the call would be refused now, by those of its limits that `binds` names. Takes nothing. */
  check(call: QuotaCall, binds: (name: LimitName) => boolean): Refusal | undefined;
}

/** What is used of a limit that a call has to keep, before the call. */
export interface DemandState {
  readonly demand: Demand;
  readonly used: number;
  /** Milliseconds until it is whole again; absent for `concurrency`. */
  readonly resetMs?: number;
}

interface Window {
  used: number;
  endsAt: number;
}

/** What a call takes of one window. */
interface Part {
  readonly demand: Demand;
  readonly window: Window;
}

/** Why a call is refused; undefined when it is not. Of several reasons the one for which it has to wait longest. */
export function refusalOf(states: readonly DemandState[]): Refusal | undefined {
  const waitOf = ({ amount, limit, retryAfterMs = 0 }: Refusal) =>
    amount > limit ? Number.POSITIVE_INFINITY : retryAfterMs;
  const refusals = states.flatMap(({ demand, used, resetMs }): Refusal[] => {
    if (used + demand.amount <= demand.limit) return [];
    const isHopeless = demand.amount > demand.limit;
    return [resetMs === undefined || isHopeless ? demand : { ...demand, retryAfterMs: resetMs }];
  });
  return refusals.toSorted((one, other) => waitOf(other) - waitOf(one))[0];
}

/** The end of the window that begins at `now`, both in milliseconds since 1970. */
export function windowEnd(name: LimitName, now: number): number {
  if (name === "dailyTokens") return (Math.floor(now / dayMs) + 1) * dayMs;
  if (name === "monthlyTokens") {
    const today = new Date(now);
    return Date.UTC(today.getUTCFullYear(), today.getUTCMonth() + 1);
  }
  return now + minuteMs;
}

/** For one process. It decides without waiting; a restart forgets what was used. `now` is milliseconds since 1970. */
export function createMemoryQuota(now: () => number = Date.now): MemoryQuota {
  /** By client, then by limit and model. As many as are configured. */
  const clients = new Map<string, Map<string, Window>>();

  const keyOf = ({ name, model = "" }: Omit<Demand, "amount">) => `${name} ${model}`;
  /** The window that runs; a new one, in which nothing is counted yet, when there is none. */
  const windowOf = (client: string, demand: Omit<Demand, "amount">): Window => {
    const window = clients.get(client)?.get(keyOf(demand));
    const { name } = demand;
    const endsAt = name === "concurrency" ? Number.POSITIVE_INFINITY : windowEnd(name, now());
    // After the clock was set back, no window may last longer than one that begins now.
    if (window !== undefined) window.endsAt = Math.min(window.endsAt, endsAt);
    return window !== undefined && now() < window.endsAt ? window : { used: 0, endsAt };
  };
  const resetMsOf = ({ name }: Pick<Demand, "name">, { endsAt }: Window) =>
    name === "concurrency" ? {} : { resetMs: endsAt - now() };

  const grant = (client: string, parts: readonly Part[]): Grant => {
    const windows = clients.get(client) ?? new Map<string, Window>();
    clients.set(client, windows);
    for (const { demand, window } of parts) windows.set(keyOf(demand), window);
    return new MemoryGrant(parts);
  };
  const partsOf = (call: QuotaCall): Part[] =>
    demandsOf(call.client, call).map((demand) => ({
      demand,
      window: windowOf(call.client.id, demand),
    }));
  const stateOf = (client: string, demand: Omit<Demand, "amount">): LimitState => {
    const { name, model, limit } = demand;
    const window = windowOf(client, demand);
    return {
      name,
      ...(model !== undefined && { model }),
      limit,
      used: window.used,
      ...resetMsOf(demand, window),
    };
  };
  const refuse = (parts: readonly Part[]) =>
    refusalOf(
      parts.map(({ demand, window }) => ({
        demand,
        used: window.used,
        ...resetMsOf(demand, window),
      })),
    );

  return {
    async take(call) {
      const parts = partsOf(call);
      const refusal = refuse(parts);
      return refusal === undefined ? grant(call.client.id, parts) : { granted: false, refusal };
    },

    count: (call) => grant(call.client.id, partsOf(call)),
    check: (call, binds) => refuse(partsOf(call).filter(({ demand }) => binds(demand.name))),

    standing({ id, limits: { rpm } }) {
      if (rpm === undefined) return undefined;
      const { used, endsAt } = windowOf(id, { name: "rpm", limit: rpm });
      return { limit: rpm, remaining: Math.max(0, rpm - used), resetMs: endsAt - now() };
    },

    async usage(client) {
      return limitsOf(client).map((demand) => stateOf(client.id, demand));
    },

    // Nothing to wait for.
    async [Symbol.asyncDispose]() {},
  };
}

class MemoryGrant implements Grant {
  readonly granted = true;
  readonly #parts: readonly Part[];
  #cost: number | undefined;
  #isTaken = true;

  constructor(parts: readonly Part[]) {
    this.#parts = parts;
    for (const { demand, window } of parts) window.used += demand.amount;
  }

  settle(tokens: number): void {
    this.#cost = tokens;
  }

  cancel(): void {
    this.#giveBack(({ amount }) => -amount);
  }

  [Symbol.dispose](): void {
    this.#giveBack((demand) => settlement(demand, this.#cost));
  }

  #giveBack(changeOf: (demand: Demand) => number): void {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    for (const { demand, window } of this.#parts) window.used += changeOf(demand);
  }
}

/** By how much a counter has to change when a call ends that has cost so many tokens; undefined: the most it could. */
export function settlement({ name, amount }: Demand, cost: number | undefined): number {
  if (name === "concurrency") return -amount;
  return name === "rpm" || cost === undefined ? 0 : cost - amount;
}

/** Every limit that a client has. */
export function limitsOf(client: LimitedClient): Omit<Demand, "amount">[] {
  const all = { tokens: 1, holds: true };
  const models = Object.keys(client.modelLimits);
  return [
    ...demandsOf(client, all),
    ...models.flatMap((model) =>
      demandsOf(client, { ...all, model }).filter((demand) => demand.model !== undefined),
    ),
  ];
}
