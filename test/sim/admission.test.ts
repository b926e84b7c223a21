import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type AdmissionCall,
  type AdmissionQueue,
  batchTurn,
  createAdmission,
} from "../../src/admission/admission.ts";
import { createDesk, type Desk } from "../../src/processes/desk.ts";
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
  readonly clients: readonly Pick<AdmissionCall, "weight" | "class">[];
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

/** Plays a schedule to its end. Every worker's calls go through its desk, as they do in the primary. */
async function play(schedule: Schedule): Promise<AdmissionQueue> {
  const { concurrency, queueLength } = schedule;
  const observer = new Observer(schedule);
  const timeline = createTimeline(() => {
    observer.check();
    expect(admission.running).toBeLessThanOrEqual(concurrency);
    expect(admission.waiting).toBeLessThanOrEqual(queueLength);
    if (admission.waiting > 0) expect(admission.running, "work conserving").toBe(concurrency);
  });
  const admission = createAdmission({ concurrency, queueLength, clock: timeline.now });

  // Grants and departures reach the observer through promises of equal depth: in the order in which they were decided.
  const decisions = new Map<AdmissionCall, Planned>();
  let alive: { readonly desk: Desk; readonly calls: Set<() => void> }[] = [];
  const hire = () => {
    const desk = createDesk({
      admission: {
        async enter(call, signal) {
          const planned = decisions.get(call);
          if (planned === undefined) throw new Error("not planned");
          const isQueued = admission.running === concurrency;
          const asked = admission.enter(call, signal);
          if (isQueued) observer.waits(planned);
          try {
            const lease = await asked;
            observer.begins(planned);
            return {
              settle(real) {
                observer.charge(planned.client, real - planned.expected);
                lease.settle(real);
              },
              [Symbol.dispose]: () => lease[Symbol.dispose](),
            };
          } catch (error) {
            observer.leaves(planned);
            throw error;
          }
        },
      },
      limits: { check: () => Promise.reject(new Error("not asked")) },
      sources: [],
    });
    return { desk, calls: new Set<() => void>() };
  };
  alive = Array.from({ length: workers }, hire);

  for (const [ticket, planned] of schedule.calls.entries()) {
    timeline.after(planned.atMs, () => {
      const worker = alive[planned.worker];
      const client = schedule.clients[planned.client];
      if (worker === undefined || client === undefined) return;
      const call = { client: `${planned.client}`, tokens: planned.expected, ...client };
      decisions.set(call, planned);
      let isOver = false;
      const leave = (cost?: number) => {
        if (isOver || !alive.includes(worker)) return;
        isOver = true;
        worker.desk.leave({ ticket, ...(cost !== undefined && { tokens: cost }) });
      };
      worker.desk.enter({ ticket, call }).then(
        () => timeline.after(planned.serviceMs, () => leave(planned.real)),
        () => undefined,
      );
      if (planned.leavesAfterMs !== undefined)
        timeline.after(planned.leavesAfterMs, () => leave(Math.ceil(planned.real / 2)));
    });
  }
  for (const { worker, atMs } of schedule.deaths) {
    timeline.after(atMs, () => {
      const dead = alive[worker];
      alive[worker] = hire();
      dead?.desk[Symbol.dispose]();
    });
  }
  await timeline.run();
  return admission;
}

describe("admission, whatever clients, callers and workers do", () => {
  it("keeps its bounds, wastes and leaks no sequence, keeps the order within a client, and shares fairly", async () => {
    await fc.assert(
      fc.asyncProperty(schedules, async (schedule) => {
        expect(await play(schedule)).toMatchObject({ running: 0, waiting: 0 });
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
        const admission = createAdmission({ concurrency, queueLength: 200, clock: timeline.now });
        const had = [0, 0];
        const call = async (index: 0 | 1) => {
          const expected = lengths.next().value ?? tokensMax;
          const real = Math.ceil(expected * wrong[index]);
          const lease = await admission.enter(
            {
              client: `${index}`,
              class: "interactive",
              weight: [3, 1][index] ?? 1,
              tokens: expected,
            },
            new AbortController().signal,
          );
          timeline.after(real, () => {
            had[index] = (had[index] ?? 0) + real;
            lease.settle(real);
            lease[Symbol.dispose]();
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
