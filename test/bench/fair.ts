/**
 * What clients do to one another (`npm run bench:fair`, some seconds): the product's admission, and first come first served
 * beside it, in front of a simulated engine, in simulated time. So it depends on no machine, and the same seed gives the same
 * table. The engine runs SLOTS sequences, each at its own constant pace, as a GPU does that is not short of memory.
 */
import { createHistogram } from "node:perf_hooks";
import { createFixedCapacity } from "../../src/admission/capacity.ts";
import {
  createEngineQueue,
  type EngineQueue,
  type QueuedCall,
} from "../../src/admission/engine-queue.ts";
import type { Seat } from "../../src/admission/seats.ts";
import { AppError } from "../../src/errors.ts";
import type { CallClass } from "../../src/keys/api-keys.ts";
import { createTimeline, type Timeline } from "../sim/timeline.ts";

const slots = Number(process.env.SLOTS ?? 64);
/** The product's default. */
const queueLength = 256;
const msPerToken = 10;
/** From a sequence's beginning to its first token. */
const prefillMs = 50;
const measuredMs = 600_000;
/** Until every slot has been given out some times. */
const warmUpMs = 60_000;
const seed = 1;

/** First come, first served: what admission was before it knew clients. */
function createFifo(): Pick<EngineQueue, "enter"> {
  let running = 0;
  const queue: (() => void)[] = [];
  const take = (): Seat => {
    running += 1;
    return {
      engine: undefined,
      queueMs: 0,
      answered: () => undefined,
      fail: () => undefined,
      move: async () => false,
      settle: () => undefined,
      [Symbol.dispose]() {
        running -= 1;
        queue.shift()?.();
      },
    };
  };
  return {
    async enter() {
      if (running < slots) return take();
      if (queue.length >= queueLength)
        throw new AppError("exhausted", "full", { retryAfterMs: 1000 });
      return new Promise((resolve) => queue.push(() => resolve(take())));
    },
  };
}

type Policy = (timeline: Timeline) => Pick<EngineQueue, "enter">;
const fair: Policy = ({ now }) =>
  createEngineQueue({ capacity: createFixedCapacity(slots), queueLength, clock: now });
const policies: Readonly<Record<string, Policy>> = { "first come": createFifo, fair };

/** What one client does: so many calls at once, each followed by the next, or one call in so many milliseconds. */
interface Client {
  readonly weight: number;
  readonly class: CallClass;
  readonly load: { readonly concurrent: number } | { readonly everyMs: number };
  readonly promptTokens: number;
  /** Completion tokens of a call, least and most. */
  readonly completion: readonly [number, number];
}

const batch: Client = {
  weight: 1,
  class: "interactive",
  load: { concurrent: 200 },
  promptTokens: 500,
  completion: [500, 1500],
};
const chat: Client = {
  weight: 1,
  class: "interactive",
  load: { everyMs: 1000 },
  promptTokens: 100,
  completion: [20, 80],
};

interface Outcome {
  /** Milliseconds to the first token. */
  readonly firstTokenMs: ReturnType<typeof createHistogram>;
  tokens: number;
  refused: number;
}

/** Park and Miller's minimal generator: [0, 1). */
function createRandom(): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}

async function simulate(policy: Policy, clients: readonly Client[]): Promise<readonly Outcome[]> {
  const timeline = createTimeline();
  const admission = policy(timeline);
  const random = createRandom();
  const never = new AbortController().signal;
  const isMeasured = () => timeline.now() >= warmUpMs;

  const startClient = (client: Client, index: number): Outcome => {
    const outcome: Outcome = { firstTokenMs: createHistogram(), tokens: 0, refused: 0 };
    const [least, most] = client.completion;
    const call: QueuedCall = {
      client: `${index}`,
      class: client.class,
      weight: client.weight,
      // Half of a bound that is twice the longest answer: wrong, as estimates are.
      tokens: client.promptTokens + most,
      deadlineMs: Number.POSITIVE_INFINITY,
      affinity: "",
    };
    const ask = async (onEnd: () => void, askedMs = timeline.now()): Promise<void> => {
      let seat: Seat;
      try {
        seat = await admission.enter(call, never);
      } catch (error) {
        if (isMeasured()) outcome.refused += 1;
        const retryMs = (error instanceof AppError ? error.retryAfterMs : undefined) ?? 1000;
        timeline.after(retryMs, () => void ask(onEnd, askedMs));
        return;
      }
      const completion = Math.round(least + random() * (most - least));
      const firstMs = timeline.now() + prefillMs - askedMs;
      timeline.after(prefillMs + completion * msPerToken, () => {
        if (isMeasured()) {
          outcome.firstTokenMs.record(Math.max(1, Math.round(firstMs)));
          outcome.tokens += client.promptTokens + completion;
        }
        seat.settle(client.promptTokens + completion);
        seat[Symbol.dispose]();
        onEnd();
      });
    };
    const { load } = client;
    if ("everyMs" in load) {
      const tick = () => {
        void ask(() => undefined);
        timeline.after(load.everyMs, tick);
      };
      timeline.after(0, tick);
    } else {
      const again = () => void ask(again);
      // Callers do not start in one instant, or their answers would end in waves.
      for (let each = 0; each < load.concurrent; each += 1) timeline.after(random() * 1e4, again);
    }
    return outcome;
  };

  const outcomes = clients.map(startClient);
  await timeline.run(warmUpMs + measuredMs);
  return outcomes;
}

const perSecond = (tokens: number) => (tokens / measuredMs) * 1000;
const row = (cells: readonly (string | number)[]) =>
  process.stdout.write(`| ${cells.join(" | ")} |\n`);
const table = (titles: readonly string[]) => {
  process.stdout.write("\n");
  row(titles);
  row(titles.map(() => "---"));
};

process.stdout.write(
  `${slots} slots at ${1000 / msPerToken} tokens/s, first token ${prefillMs} ms after a slot is had, ${measuredMs / 1000} s, seed ${seed}.\n` +
    "A: 200 calls at once, of 500 to 1,500 tokens. B: one call a second, of 20 to 80 tokens.\n",
);
table(["B beside A", "admission", "B first token ms p50 / p99 / max", "B refused", "tokens/s"]);
const scenarios: readonly (readonly [string, string, readonly Client[]])[] = [
  ["nobody", "fair", [chat]],
  ["A", "first come", [chat, batch]],
  ["A", "fair", [chat, batch]],
  ["A, of class batch", "fair", [chat, { ...batch, class: "batch" }]],
  ["A twice, once of class batch", "fair", [chat, batch, { ...batch, class: "batch" }]],
];
for (const [beside, name, clients] of scenarios) {
  const outcomes = await simulate(policies[name] ?? fair, clients);
  const [own] = outcomes;
  const times = own?.firstTokenMs;
  row([
    beside,
    name,
    [times?.percentile(50), times?.percentile(99), times?.max].join(" / "),
    own?.refused ?? 0,
    perSecond(outcomes.reduce((sum, { tokens }) => sum + tokens, 0)).toFixed(0),
  ]);
}

table(["two of A, weights", "admission", "share of the first", "tokens/s"]);
for (const weight of [1, 3]) {
  for (const [name, policy] of Object.entries(policies)) {
    const outcomes = await simulate(policy, [{ ...batch, weight }, batch]);
    const [first = 0, second = 0] = outcomes.map(({ tokens }) => tokens);
    row([
      `${weight}:1`,
      name,
      `${((first / (first + second)) * 100).toFixed(1)} %`,
      perSecond(first + second).toFixed(0),
    ]);
  }
}
