import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { monotonicClock } from "../lib/clock.ts";
import {
  type Demand,
  demandsOf,
  type LimitedClient,
  type LimitName,
  minuteMs,
  type RateStanding,
} from "../limits/limits.ts";
import {
  type Grant,
  limitsOf,
  type MemoryQuota,
  type Quota,
  type QuotaCall,
  type Refused,
  refusalOf,
  settlement,
  windowEnd,
} from "../limits/quota.ts";
import { createModeSwitch, type QuotaMode } from "./quota-mode.ts";
import {
  type Correction,
  createQuotaStore,
  isRepeatable,
  type Release,
  type StoredState,
  windowEnds,
} from "./quota-store.ts";

export interface RedisQuota extends Quota {
  readonly mode: QuotaMode;
}

export interface RedisQuotaOptions {
  /** Must answer or fail within a bounded time (redis-options.ts: 150 ms). It stays the caller's to dispose of. */
  readonly client: Redis;
  /** Decides in degraded mode. It stays the caller's to dispose of. */
  readonly fallback: MemoryQuota;
  readonly log: Pick<Logger, "info" | "warn">;
  /** Called once per change, after it: the place for a metric. */
  readonly onModeChange?: (mode: QuotaMode) => void;
}

/** What of a limit has counted a call. */
type Part = Pick<StoredState, "demand" | "endsAt">;

/**
 * A quota that all gateways share through one Redis. One script decides over all limits of a call, by Redis's clock. The
 * running calls of a lost gateway count until their deadlines, and 5 s more.
 *
 * When Redis is away, hangs, is slow or refuses to write, no call fails and none is refused for it. The calls that find out
 * wait for the client's command timeout at most; from then on `fallback` decides, without any attempt on Redis, until a probe
 * in the background has written there successfully. In degraded mode N gateways let a client through up to N times its limit,
 * but no gateway more than once the limit: what Redis allowed is counted in `fallback` too, so it knows what its gateway has let
 * through. What was let through in an outage Redis does not know: therefore both must agree afterwards, of each limit until the
 * window ends in which Redis came back: a minute, a day, a month. Of concurrency they always must: what runs here is never more
 * than what runs everywhere, whatever Redis has forgotten.
 *
 * A call that ends while Redis is away is put right there when it is back, by the gateway that still runs. A question without
 * an answer may have been counted: the call's fate is decided by `fallback`, and Redis is told of that in the same way.
 * Such a call's requests a minute, and its tokens a minute, stay counted in Redis for that minute: one too much, never one too few.
 *
 * A client that is wiped out of Redis (FLUSHALL, a restart without persistence) begins new windows.
 */
export function createRedisQuota(options: RedisQuotaOptions): RedisQuota {
  const { client, fallback, log, onModeChange } = options;
  const store = createQuotaStore(client);
  const rates = createRates();
  /** What Redis is to be told when it is back: of calls that it had counted when it went, hence no more than ran then. */
  let untold: Release[] = [];
  let recoveredAt: number | undefined;

  const modes = createModeSwitch({
    probe: () => store.probe(),
    log,
    onChange(mode) {
      if (mode === "shared") {
        recoveredAt = Date.now();
        const releases = untold;
        untold = [];
        for (const release of releases) tell(release);
      }
      onModeChange?.(mode);
    },
  });
  const keep = (release: Release) => {
    if (isRepeatable(release)) untold.push(release);
  };
  const tell = (release: Release) => {
    if (modes.mode === "degraded") return keep(release);
    store.release(release).catch((error: unknown) => {
      keep(release);
      modes.degrade(error);
    });
  };
  const putRight = (call: QuotaCall, parts: readonly Part[], changeOf: ChangeOf) => {
    const corrections = parts.map((part) => ({ ...part, change: changeOf(part.demand) }));
    rates.correct(call.client, corrections);
    tell({ call, corrections });
  };
  /** Whether `fallback` must agree to what Redis allows. */
  const binds = (name: LimitName) =>
    name === "concurrency" ||
    (recoveredAt !== undefined && Date.now() < windowEnd(name, recoveredAt));
  /** Decides about a call which Redis may have counted, or not. */
  const takeAlone = async (call: QuotaCall, parts: readonly Part[]): Promise<Grant | Refused> => {
    const own = await fallback.take(call);
    if (own.granted) return jointGrant(own, (changeOf) => putRight(call, parts, changeOf));
    putRight(call, parts, nothingTaken);
    return own;
  };

  return {
    get mode() {
      return modes.mode;
    },

    async take(call) {
      const demands = demandsOf(call.client, call);
      if (modes.mode === "degraded" || demands.length === 0) return fallback.take(call);
      const askedAt = Date.now();
      let parts: readonly StoredState[];
      try {
        parts = await store.take(call, demands);
      } catch (error) {
        modes.degrade(error);
        const asked = demands.map((demand) => ({
          demand,
          endsAt: windowEnds(demand.name, askedAt)[0],
        }));
        return takeAlone(call, asked);
      }
      const refusal = refusalOf(parts);
      rates.learn(call.client, parts, refusal === undefined);
      if (refusal !== undefined) return { granted: false, refusal };
      const giveBack = (changeOf: ChangeOf) => putRight(call, parts, changeOf);
      const own = fallback.check(call, binds);
      if (own === undefined) return jointGrant(fallback.count(call), giveBack);
      giveBack(nothingTaken);
      return { granted: false, refusal: own };
    },

    standing(client) {
      const own = fallback.standing(client);
      const shared = rates.standing(client);
      if (modes.mode === "degraded" || own === undefined || shared === undefined) return own;
      return binds("rpm") && own.remaining < shared.remaining ? own : shared;
    },

    async usage(client) {
      if (modes.mode === "degraded") return fallback.usage(client);
      const limits = limitsOf(client).map((limit) => ({ ...limit, amount: 0 }));
      try {
        const states = await store.look(client.id, limits);
        return states.map(({ demand: { amount, ...limit }, used, resetMs }) => ({
          ...limit,
          used,
          ...(resetMs !== undefined && { resetMs }),
        }));
      } catch (error) {
        modes.degrade(error);
        return fallback.usage(client);
      }
    },

    // Redis has been sent the ends of all calls: what is written to a connection arrives, also when it is closed then.
    async [Symbol.asyncDispose]() {
      modes[Symbol.dispose]();
    },
  };
}

/** By how much a limit's counter changes. */
type ChangeOf = (demand: Demand) => number;

const nothingTaken: ChangeOf = ({ amount }) => -amount;

/** A grant that is counted here and in Redis: what becomes of it is done here at once, and told there by `giveBack`, once. */
function jointGrant(own: Grant, giveBack: (changeOf: ChangeOf) => void): Grant {
  let cost: number | undefined;
  let taken = true;
  const once = (changeOf: ChangeOf) => {
    if (taken) giveBack(changeOf);
    taken = false;
  };
  return {
    granted: true,
    settle(tokens) {
      cost = tokens;
      own.settle(tokens);
    },
    cancel() {
      own.cancel();
      once(nothingTaken);
    },
    [Symbol.dispose]() {
      own[Symbol.dispose]();
      once((demand) => settlement(demand, cost));
    },
  };
}

/** Where clients stand in their requests a minute, as Redis has said last. */
function createRates() {
  interface Rate {
    used: number;
    /** By Redis's clock. */
    readonly endsAt: number;
    /** The same, by the monotonic clock. */
    readonly endsHere: number;
  }
  /** By client. */
  const rates = new Map<string, Rate>();
  const isRate = ({ demand }: Part) => demand.name === "rpm" && demand.model === undefined;
  return {
    learn({ id }: LimitedClient, states: readonly StoredState[], isCounted: boolean) {
      const rate = states.find(isRate);
      if (rate === undefined) return;
      const { used, endsAt, resetMs = 0 } = rate;
      rates.set(id, {
        used: used + (isCounted ? 1 : 0),
        endsAt,
        endsHere: monotonicClock() + resetMs,
      });
    },

    correct({ id }: LimitedClient, corrections: readonly Correction[]) {
      const rate = rates.get(id);
      const correction = corrections.find(isRate);
      if (rate !== undefined && rate.endsAt === correction?.endsAt) rate.used += correction.change;
    },

    /** A client that Redis was not asked about in this minute has all of it, as far as anybody knows here. */
    standing({ id, limits: { rpm } }: LimitedClient): RateStanding | undefined {
      if (rpm === undefined) return undefined;
      const { used, endsHere } = rates.get(id) ?? { used: 0, endsHere: 0 };
      const resetMs = Math.ceil(endsHere - monotonicClock());
      if (resetMs <= 0) return { limit: rpm, remaining: rpm, resetMs: minuteMs };
      return { limit: rpm, remaining: Math.max(0, rpm - used), resetMs };
    },
  };
}
