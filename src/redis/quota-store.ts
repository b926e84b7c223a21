import { hash } from "node:crypto";
import type { Redis } from "ioredis";
import { type Demand, dayMs, type LimitName, minuteMs } from "../limits/limits.ts";
import { type DemandState, type QuotaCall, windowEnd } from "../limits/quota.ts";
import { releaseLua, takeLua } from "./quota-scripts.ts";

/** What Redis has counted of a limit. */
export interface StoredState extends DemandState {
  /** When the window ends, by Redis's clock: what the window is known by. 0 for `concurrency`. */
  readonly endsAt: number;
}

/** By how much a limit is to change that has counted a call. */
export interface Correction extends Pick<StoredState, "demand" | "endsAt"> {
  readonly change: number;
}

/** What is to be put right of one call: of all of its limits. */
export interface Release {
  readonly call: QuotaCall;
  readonly corrections: readonly Correction[];
}

/** Limits in Redis. Every method rejects with what the client of Redis rejects with, and within its time. */
export interface QuotaStore {
  /** Takes what the call demands, all or nothing. Resolves with what was used before it: by that it is granted or not. */
  take(call: QuotaCall, demands: readonly Demand[]): Promise<readonly StoredState[]>;
  /** The same without taking anything. */
  look(client: string, demands: readonly Demand[]): Promise<readonly StoredState[]>;
  /** Puts right what a call has taken, once: only what `isRepeatable` may be said again when nobody knows whether it arrived. */
  release(release: Release): Promise<void>;
  /** Resolves when Redis takes writes, of the same kind as all: a full or read-only one answers PING. */
  probe(): Promise<void>;
}

/**
 * How much longer than it may last a call counts as running, in milliseconds: it ends first, and is told to Redis after that.
 */
const slackMs = 5000;

/** The longest that a window may last, in milliseconds. */
const longestMs: Readonly<Record<Exclude<LimitName, "concurrency">, number>> = {
  rpm: minuteMs,
  tpm: minuteMs,
  dailyTokens: dayMs,
  monthlyTokens: 31 * dayMs,
};

type Counter = Demand & { readonly name: Exclude<LimitName, "concurrency"> };

const isCounter = (demand: Demand): demand is Counter => demand.name !== "concurrency";
const modelPart = (model: string | undefined) => (model === undefined ? "" : ` ${model}`);
const fieldOf = ({ name, model }: Demand) => `${name}${modelPart(model)}`;
const countersKey = (client: string) => `formdev:used:{${client}}`;
const runningKey = (client: string, { model }: Demand) =>
  `formdev:running:{${client}}${modelPart(model)}`;

/**
 * The sets of running calls that a call joins. It joins its client's also when that may have any number of them, unless there
 * is nothing to put right when it ends: by that Redis knows what has been put right.
 */
function setsOf(call: QuotaCall, demands: readonly Demand[]): Demand[] {
  const running = demands.filter(({ name }) => name === "concurrency");
  const isCounted = running.some(({ model }) => model === undefined);
  const isPutRight = call.holds && demands.some(({ name }) => name !== "rpm");
  if (isCounted || !isPutRight) return running;
  return [{ name: "concurrency", limit: Number.MAX_SAFE_INTEGER, amount: 1 }, ...running];
}

/** Whether it changes nothing to say it again. */
export function isRepeatable({ call, corrections }: Release): boolean {
  return setsOf(call, demandsIn(corrections)).length > 0;
}

const demandsIn = (corrections: readonly Correction[]) => corrections.map(({ demand }) => demand);

/** The ends of the window that runs at `now` and of the next, by our clock; 0 for those that may begin at any time. */
export function windowEnds(name: LimitName, now: number): readonly [number, number] {
  if (name !== "dailyTokens" && name !== "monthlyTokens") return [0, 0];
  const end = windowEnd(name, now);
  return [end, windowEnd(name, end)];
}

export function createQuotaStore(client: Redis): QuotaStore {
  const run = createScripts(client);

  const read = async (
    who: { readonly id: string; readonly client: string; readonly lastsMs: number },
    sets: readonly Demand[],
    counters: readonly Counter[],
  ): Promise<readonly StoredState[]> => {
    const now = Date.now();
    const answer = await run(
      takeLua,
      [countersKey(who.client), ...sets.map((set) => runningKey(who.client, set))],
      [
        who.id,
        Math.ceil(who.lastsMs + slackMs),
        ...sets.map(({ limit }) => limit),
        ...counters.flatMap((counter) => {
          const { name, limit, amount } = counter;
          return [fieldOf(counter), limit, amount, longestMs[name], ...windowEnds(name, now)];
        }),
      ],
    );
    const [redisNow = 0, ...values] = Array.isArray(answer) ? answer.map(Number) : [];
    const windows = values.slice(sets.length);
    return [
      ...sets.map((demand, index) => ({ demand, used: values[index] ?? 0, endsAt: 0 })),
      ...counters.map((demand, index) => {
        const [used = 0, endsAt = 0] = windows.slice(index * 2);
        return { demand, used, endsAt, resetMs: endsAt - redisNow };
      }),
    ];
  };

  return {
    take: (call, demands) =>
      read({ ...call, client: call.client.id }, setsOf(call, demands), demands.filter(isCounter)),

    look(client, demands) {
      const sets = demands.filter(({ name }) => name === "concurrency");
      return read({ id: "", client, lastsMs: 0 }, sets, demands.filter(isCounter));
    },

    async release({ call, corrections }) {
      const sets = setsOf(call, demandsIn(corrections));
      const changes = corrections.filter(({ demand, change }) => isCounter(demand) && change !== 0);
      if (sets.length === 0 && changes.length === 0) return;
      await run(
        releaseLua,
        [countersKey(call.client.id), ...sets.map((set) => runningKey(call.client.id, set))],
        [
          call.id,
          ...changes.flatMap(({ demand, endsAt, change }) => [fieldOf(demand), endsAt, change]),
        ],
      );
    },

    async probe() {
      await client.set("formdev:probe", "1", "PX", 1000);
    },
  };
}

/** Runs scripts by their digests. */
function createScripts(client: Redis) {
  const digests = new Map([takeLua, releaseLua].map((lua) => [lua, hash("sha1", lua)]));
  return async (lua: string, keys: string[], args: (string | number)[]): Promise<unknown> => {
    const run = () => client.evalsha(digests.get(lua) ?? "", keys.length, ...keys, ...args);
    try {
      return await run();
    } catch (error) {
      if (!(error instanceof Error && error.message.startsWith("NOSCRIPT"))) throw error;
      // Redis does not know it yet, or any more. Both, so that no later question overtakes a call's end for the lack of one.
      const loads = Promise.all([...digests.keys()].map((text) => client.script("LOAD", text)));
      const [answer] = await Promise.all([run(), loads]);
      return answer;
    }
  };
}
