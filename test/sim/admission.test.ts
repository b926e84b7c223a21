import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type AdmissionCall, createAdmission } from "../../src/admission/admission.ts";
import { createFixedCapacity } from "../../src/admission/capacity.ts";
import {
  batchTurn,
  createEngineQueue,
  type EngineQueue,
} from "../../src/admission/engine-queue.ts";
import type { Client } from "../../src/keys/key-registry.ts";
import { createMemoryQuota } from "../../src/limits/quota.ts";
import { createDesk } from "../../src/processes/desk.ts";
import { createTimeline } from "./timeline.ts";

/** One call of a schedule. Times in milliseconds. */
interface Planned {
  readonly client: number;
  readonly worker: number;
  readonly atMs: number;
  readonly expected: number;
  readonly real: number;
  readonly serviceMs: number;
  /** How long after its arrival the caller leaves, whether it waits or runs. */
  readonly leavesAfterMs: number | undefined;
}

interface Schedule {
  readonly concurrency: number;
  readonly queueLength: number;
  readonly clients: readonly (Pick<Client, "weight" | "class"> & {
    readonly concurrencyLimit: number | undefined;
  })[];
  readonly calls: readonly Planned[];
  readonly deaths: readonly { readonly worker: number; readonly atMs: number }[];
  /** Whether every call costs what was expected. */
  readonly isExact: boolean;
}

const workers = 3;
const clients = 4;
const tokensMax = 1000;
/** A long run on one sequence of 1,000 tokens a second: about 2,000 calls. */
const longMs = 1_000_000;

const tokens = fc.integer({ min: 1, max: tokensMax });
const plannedCall = fc.record({
  client: fc.nat(clients - 1),
  worker: fc.nat(workers - 1),
  atMs: fc.oneof(fc.constantFrom(0, 1500), fc.nat(2000)),
  expected: tokens,
  real: fc.option(tokens, { nil: undefined }),
  serviceMs: fc.integer({ min: 1, max: 500 }),
  leavesAfterMs: fc.option(fc.nat(1000), { nil: undefined, freq: 4 }),
});

const schedules = fc
  .record({
    concurrency: fc.integer({ min: 1, max: 4 }),
    queueLength: fc.nat(40),
    clients: fc.array(
      fc.record({
        weight: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 100 })),
        class: fc.constantFrom("interactive" as const, "interactive" as const, "batch" as const),
        concurrencyLimit: fc.option(fc.integer({ min: 1, max: 10 }), { nil: undefined }),
      }),
      { minLength: clients, maxLength: clients },
    ),
    calls: fc.array(plannedCall, { maxLength: 60, size: "max" }),
    deaths: fc.array(fc.record({ worker: fc.nat(workers - 1), atMs: fc.nat(3000) }), {
      maxLength: 3,
    }),
    isExact: fc.boolean(),
  })
  .map(
    ({ isExact, calls, deaths, ...rest }): Schedule => ({
      ...rest,
      isExact,
      // Who leaves, or dies, makes a call cost less than expected: not in an exact schedule.
      deaths: isExact ? [] : deaths,
      calls: calls.map((call) => ({
        ...call,
        real: isExact ? call.expected : (call.real ?? call.expected),
        leavesAfterMs: isExact ? undefined : call.leavesAfterMs,
      })),
    }),
  );

/** What the promises of admission are held against, told by the simulation. */
class Observer {
  readonly #schedule: Schedule;
  readonly #broken: unknown[] = [];
  readonly #waiting: Planned[] = [];
  /** Tokens that each client was charged. */
  readonly #charged: number[] = Array(clients).fill(0);
  /** Tokens of each client's largest call. */
  readonly #largest: number[] = Array(clients).fill(0);
  /** For each client that waits: what all had been charged when it began to. */
  readonly #since = new Map<number, readonly number[]>();
  /** Interactive admissions while a batch call waits, since the last of a batch. */
  #passedBatch = 0;
  readonly #running = new Set<Planned>();
  /** Tokens that the ended calls of each client have cost. */
  readonly spent: number[] = Array(clients).fill(0);

  constructor(schedule: Schedule) {
    this.#schedule = schedule;
    for (const { client, expected, real } of schedule.calls)
      this.#largest[client] = Math.max(this.#largest[client] ?? 0, expected, real);
  }

  #classOf(call: Planned) {
    return this.#schedule.clients[call.client]?.class;
  }

  waits(call: Planned): void {
    if (!this.#waiting.some(({ client }) => client === call.client))
      this.#since.set(call.client, [...this.#charged]);
    this.#waiting.push(call);
  }

  /** A call that ran has ended, and has cost so many tokens. */
  ends(call: Planned, cost: number): void {
    if (this.#running.delete(call)) this.spent[call.client] = (this.spent[call.client] ?? 0) + cost;
  }

  leaves(call: Planned): void {
    const index = this.#waiting.indexOf(call);
    if (index < 0) return;
    this.#waiting.splice(index, 1);
    if (!this.#waiting.some(({ client }) => client === call.client))
      this.#since.delete(call.client);
  }

  begins(call: Planned): void {
    try {
      this.#checkTurn(call);
      this.leaves(call);
      this.#running.add(call);
      this.charge(call.client, call.expected);
      this.#checkShares(call);
    } catch (error) {
      this.#broken.push(error);
    }
  }

  /** Throws what a promise would have swallowed. */
  check(): void {
    for (const error of this.#broken) throw error;
  }

  #checkTurn(call: Planned): void {
    const own = this.#waiting.find(({ client }) => client === call.client);
    if (own !== undefined) expect(own, "first come, first served within a client").toBe(call);
    const others = this.#waiting.filter((other) => this.#classOf(other) === "batch");
    this.#passedBatch =
      others.length === 0 || this.#classOf(call) === "batch" ? 0 : this.#passedBatch + 1;
    expect(this.#passedBatch, "batch waits for its turn").toBeLessThan(batchTurn);
  }

  charge(client: number, charged: number): void {
    this.#charged[client] = (this.#charged[client] ?? 0) + charged;
  }

  #checkShares(call: Planned): void {
    const { concurrency, isExact } = this.#schedule;
    // Where estimates are wrong, every call that runs can be corrected later.
    const times = isExact ? 1 : concurrency + 1;
    const weightOf = (client: number) => this.#schedule.clients[client]?.weight ?? 1;
    const largestOf = (client: number) => (this.#largest[client] ?? tokensMax) / weightOf(client);
    for (const [client, before] of this.#since) {
      const isOther =
        client !== call.client && this.#schedule.clients[client]?.class === this.#classOf(call);
      if (!isOther) continue;
      const grown = (whose: number) =>
        ((this.#charged[whose] ?? 0) - (before[whose] ?? 0)) / weightOf(whose);
      expect(grown(call.client), "overtaken by more than the bound").toBeLessThanOrEqual(
        grown(client) + times * (largestOf(client) + largestOf(call.client)) + 1e-6,
      );
    }
  }
}

/** Beyond what any schedule costs: it counts, and refuses nothing. */
const dailyTokens = 1e9;

/**
 * Plays a schedule to its end: every worker's calls go through its desk, the limits and the queue, as they do in the primary.
 * Resolves with what is still taken then.
 */
async function play(schedule: Schedule) {
  const { concurrency, queueLength } = schedule;
  const observer = new Observer(schedule);
  const timeline = createTimeline(() => {
    observer.check();
    expect(queue.running).toBeLessThanOrEqual(concurrency);
    expect(queue.waiting).toBeLessThanOrEqual(queueLength);
    if (queue.waiting > 0) expect(queue.running, "work conserving").toBe(concurrency);
  });
  const capacity = createFixedCapacity(concurrency);
  const queue = createEngineQueue({ capacity, queueLength, clock: timeline.now });
  const quota = createMemoryQuota(timeline.now);
  const limited = schedule.clients.map(({ concurrencyLimit, ...client }, index): Client => {
    const limits = {
      dailyTokens,
      ...(concurrencyLimit !== undefined && { concurrency: concurrencyLimit }),
    };
    return { id: `${index}`, maxTokens: tokensMax, limits, modelLimits: {}, ...client };
  });
  const records = new Map<string, number>();

  // Grants and departures reach the observer through promises of equal depth: in the order in which they were decided.
  const observed: EngineQueue = {
    ...queue,
    async enter(call, signal) {
      const planned = schedule.calls[Number(call.affinity)];
      if (planned === undefined) throw new Error("not planned");
      const isQueued = queue.running === concurrency;
      const asked = queue.enter(call, signal);
      if (isQueued) observer.waits(planned);
      try {
        const seat = await asked;
        observer.begins(planned);
        const settle = seat.settle.bind(seat);
        seat.settle = (real) => {
          observer.charge(planned.client, real - planned.expected);
          settle(real);
        };
        return seat;
      } catch (error) {
        observer.leaves(planned);
        throw error;
      }
    },
  };
  const admission = createAdmission({ quota, queue: observed });
  const hire = () => {
    const desk = createDesk({
      admission,
      limits: { check: () => Promise.reject(new Error("not asked")), count: () => undefined },
      calls: { record: ({ id }) => records.set(id, (records.get(id) ?? 0) + 1) },
      usage: { report: () => Promise.reject(new Error("not asked")) },
      sources: [],
    });
    return { desk, calls: new Set<Planned>() };
  };
  const alive = Array.from({ length: workers }, hire);

  for (const [index, planned] of schedule.calls.entries()) {
    timeline.after(planned.atMs, () => {
      const worker = alive[planned.worker];
      const client = limited[planned.client];
      if (worker === undefined || client === undefined) return;
      const id = `${index}`;
      worker.calls.add(planned);
      const leave = (cost: number) => {
        if (!alive.includes(worker) || !worker.calls.delete(planned)) return;
        observer.ends(planned, cost);
        worker.desk.leave({ ticket: index, tokens: cost });
        worker.desk.record({
          id,
          startedAt: 0,
          durationMs: 0,
          rpc: "unknown",
          outcome: "ok",
        });
      };
      const { expected, real } = planned;
      const call: AdmissionCall = {
        id,
        client,
        model: "model",
        tokens: expected,
        tokensMax,
        deadlineMs: 1e9,
        affinity: id,
      };
      worker.desk.enter({ ticket: index, call }).then(
        () => timeline.after(planned.serviceMs, () => leave(real)),
        () => leave(0),
      );
      if (planned.leavesAfterMs !== undefined)
        timeline.after(planned.leavesAfterMs, () => leave(Math.ceil(real / 2)));
    });
  }
  for (const { worker, atMs } of schedule.deaths) {
    timeline.after(atMs, () => {
      const dead = alive[worker];
      alive[worker] = hire();
      for (const planned of dead?.calls ?? []) observer.ends(planned, tokensMax);
      dead?.desk[Symbol.dispose]();
    });
  }
  await timeline.run();

  const usages = await Promise.all(limited.map((client) => quota.usage(client)));
  const used = (name: string) =>
    usages.map((limits) => limits.find((limit) => limit.name === name)?.used ?? 0);
  return {
    running: queue.running,
    waiting: queue.waiting,
    concurrent: used("concurrency"),
    tokens: used("dailyTokens"),
    spent: observer.spent,
    recordedOnce: [...records.values()].filter((times) => times === 1).length,
  };
}

describe("admission, whatever clients, callers and workers do", () => {
  it("keeps its bounds, wastes and leaks no place, keeps the order within a client, shares fairly, and counts and records every call once", async () => {
    await fc.assert(
      fc.asyncProperty(schedules, async (schedule) => {
        const { tokens, spent, ...left } = await play(schedule);
        expect(left).toEqual({
          running: 0,
          waiting: 0,
          concurrent: schedule.clients.map(() => 0),
          recordedOnce: schedule.calls.length,
        });
        expect(tokens, "limits count what calls have cost").toEqual(spent);
      }),
      { numRuns: 3000 },
    );
  }, 120_000);

  it("gives clients of weights 3 and 1 that always wait 3 and 1 of the tokens", async () => {
    const seeds = fc.record({
      concurrency: fc.integer({ min: 1, max: 16 }),
      /** By how much a client's estimates are wrong: real tokens are these times the expected ones. */
      wrong: fc.tuple(fc.double({ min: 0.1, max: 4, noNaN: true }), fc.constant(1)),
      lengths: fc.infiniteStream(fc.integer({ min: 50, max: tokensMax })),
    });
    await fc.assert(
      fc.asyncProperty(seeds, async ({ concurrency, wrong, lengths }) => {
        const timeline = createTimeline();
        const capacity = createFixedCapacity(concurrency);
        const queue = createEngineQueue({ capacity, queueLength: 200, clock: timeline.now });
        const had = [0, 0];
        const call = async (index: 0 | 1) => {
          const expected = lengths.next().value ?? tokensMax;
          const real = Math.ceil(expected * wrong[index]);
          const seat = await queue.enter(
            {
              client: `${index}`,
              class: "interactive",
              weight: [3, 1][index] ?? 1,
              tokens: expected,
              deadlineMs: Number.POSITIVE_INFINITY,
              affinity: "",
            },
            new AbortController().signal,
          );
          timeline.after(real, () => {
            had[index] = (had[index] ?? 0) + real;
            seat.settle(real);
            seat[Symbol.dispose]();
            void call(index);
          });
        };
        timeline.after(0, () => {
          for (let index = 0; index < 40; index += 1) {
            void call(0);
            void call(1);
          }
        });
        await timeline.run(longMs / concurrency);
        const share = (had[0] ?? 0) / ((had[0] ?? 0) + (had[1] ?? 0));
        expect(Math.abs(share - 0.75)).toBeLessThan(0.05 * 0.75);
      }),
      { numRuns: 20 },
    );
  }, 60_000);
});
