import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Admission, createAdmission } from "../../src/admission/admission.ts";
import type { EngineGauges } from "../../src/admission/engine-load.ts";
import { createEnginePool, type EnginePool } from "../../src/admission/engine-pool.ts";
import { createEngineQueue, type EngineQueue } from "../../src/admission/engine-queue.ts";
import { createChat } from "../../src/chat/chat.ts";
import { AppError } from "../../src/errors.ts";
import {
  type ChatPart,
  type ChatStream,
  type Engine,
  type EngineChatRequest,
  noUsage,
} from "../../src/inference/engine.ts";
import type { Client } from "../../src/keys/key-registry.ts";
import { createMemoryQuota, type MemoryQuota } from "../../src/limits/quota.ts";
import { openChannel } from "../../src/processes/channel.ts";
import { createDesk } from "../../src/processes/desk.ts";
import type { PrimarySide } from "../../src/processes/protocol.ts";
import { createRemoteShared } from "../../src/processes/remote-shared.ts";
import type { Shared } from "../../src/shared.ts";
import { createPipe, type PipePair } from "../support/pipe.ts";
import { createTimeline, type Timeline } from "./timeline.ts";

/** One call of a schedule. Times in milliseconds. */
interface Planned {
  readonly client: number;
  readonly worker: number;
  readonly atMs: number;
  readonly maxTokens: number;
  /** Calls of one conversation begin alike. */
  readonly conversation: number;
  readonly firstPartMs: number;
  readonly serviceMs: number;
  /** How long after its arrival the caller leaves. */
  readonly leavesAfterMs: number | undefined;
}

/** What happens to an engine: it dies, is alive but fails every call, or works; it is left off the list, or put on it. */
type Fate = "dies" | "sickens" | "works" | "goes" | "comes";

interface Schedule {
  readonly engines: number;
  readonly concurrency: number;
  readonly queueLength: number;
  readonly calls: readonly Planned[];
  readonly fates: readonly {
    readonly engine: number;
    readonly atMs: number;
    readonly fate: Fate;
  }[];
  readonly deaths: readonly { readonly worker: number; readonly atMs: number }[];
  /** What engines say about themselves, one after the other; undefined: they cannot be asked. */
  readonly gauges: readonly (EngineGauges | undefined)[];
  /** How long each question to an engine takes. */
  readonly answerMs: readonly number[];
}

const workers = 2;
/** From then on every engine works again. */
const repairedMs = 12_000;
/** Enough for the longest pause that an engine can have come to by then, and the calls that try it out. */
const endMs = repairedMs + 30_000;

const schedules: fc.Arbitrary<Schedule> = fc.record({
  engines: fc.integer({ min: 1, max: 3 }),
  concurrency: fc.integer({ min: 1, max: 3 }),
  queueLength: fc.nat(30),
  calls: fc.array(
    fc.record({
      client: fc.nat(2),
      worker: fc.nat(workers - 1),
      atMs: fc.oneof(fc.constantFrom(0, 1500), fc.nat(8000)),
      maxTokens: fc.integer({ min: 1, max: 2000 }),
      conversation: fc.nat(5),
      firstPartMs: fc.integer({ min: 1, max: 300 }),
      serviceMs: fc.integer({ min: 1, max: 800 }),
      leavesAfterMs: fc.option(fc.nat(1000), { nil: undefined, freq: 4 }),
    }),
    { maxLength: 60, size: "max" },
  ),
  fates: fc.array(
    fc.record({
      engine: fc.nat(2),
      atMs: fc.nat(9000),
      fate: fc.constantFrom<Fate>("dies", "dies", "sickens", "works", "works", "goes", "comes"),
    }),
    { maxLength: 12, size: "max" },
  ),
  deaths: fc.array(fc.record({ worker: fc.nat(workers - 1), atMs: fc.nat(9000) }), {
    maxLength: 2,
  }),
  gauges: fc.array(
    fc.option(
      fc.record(
        {
          running: fc.nat(10),
          waiting: fc.nat(10),
          kvUsage: fc.double({ min: 0, max: 1, noNaN: true }),
          preemptions: fc.nat(3),
          kvTokens: fc.integer({ min: 1, max: 5000 }),
        },
        { requiredKeys: ["running", "waiting", "kvUsage", "preemptions"] },
      ),
      { nil: undefined, freq: 4 },
    ),
    { minLength: 1, maxLength: 20 },
  ),
  answerMs: fc.array(fc.nat(2000), { minLength: 1, maxLength: 5 }),
});

type Condition = "works" | "sick" | "dead";

/** Engines as the network shows them, and what the promises are held against. */
class World {
  readonly condition = new Map<string, Condition>();
  readonly listed = new Set<string>();
  /** Streams that each engine runs now, with what ends them when it dies. */
  readonly running = new Map<string, Set<() => void>>();
  /** How many calls of the last part of the schedule each engine has answered. */
  readonly answeredLate = new Map<string, number>();
  readonly broken: string[] = [];
  moving = 0;

  constructor(count: number) {
    for (let index = 0; index < count; index += 1) {
      this.condition.set(idOf(index), "works");
      this.listed.add(idOf(index));
      this.running.set(idOf(index), new Set());
    }
  }
}

const idOf = (index: number) => `http://engine-${index}/`;

/** A stream that gives one part after `firstPartMs` and ends after `serviceMs`, unless its engine dies or its caller leaves. */
function runOn(
  { timeline, world }: Rig,
  { engine = "", seed }: Pick<EngineChatRequest, "engine" | "seed">,
  planned: Planned,
  signal: AbortSignal,
): ChatStream {
  const waits = async (ms: number, lost: AppError["kind"]) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const running = world.running.get(engine);
    const isDead = world.condition.get(engine) !== "works";
    const die = () => reject(new AppError(lost, "the engine has died"));
    const leave = () => reject(signal.reason);
    if (signal.aborted) leave();
    signal.addEventListener("abort", leave);
    timeline.after(isDead ? 1 : ms, isDead ? die : resolve);
    running?.add(die);
    try {
      await promise;
    } finally {
      running?.delete(die);
      signal.removeEventListener("abort", leave);
    }
  };
  let step = 0;
  const next = async (): Promise<IteratorResult<ChatPart>> => {
    step += 1;
    if (step === 1) {
      await waits(planned.firstPartMs, pick(["unavailable", "corrupt", "timeout"], seed ?? 0));
      if (timeline.now() >= repairedMs)
        world.answeredLate.set(engine, (world.answeredLate.get(engine) ?? 0) + 1);
      return { done: false, value: { type: "text-delta", text: "a" } };
    }
    if (step === 2) {
      await waits(planned.serviceMs, "corrupt");
      return { done: false, value: { type: "end", finishReason: "stop" } };
    }
    return { done: true, value: undefined };
  };
  const stream = { next, [Symbol.asyncIterator]: () => stream };
  return { usage: noUsage, askedAt: undefined, firstPartAt: undefined, ...stream };
}

interface Rig {
  readonly timeline: Timeline;
  readonly world: World;
  readonly pool: EnginePool;
  readonly queue: EngineQueue;
  readonly quota: MemoryQuota;
  readonly shared: Shared;
}

function createRig(schedule: Schedule): Rig {
  const { concurrency, queueLength, answerMs, gauges } = schedule;
  const world = new World(schedule.engines);
  const timeline = createTimeline(() => check(rig, schedule));
  let asked = 0;
  const answer = () => {
    asked += 1;
    return new Promise<void>((resolve) => timeline.after(pick(answerMs, asked), resolve));
  };
  const pool = createEnginePool({
    engines: [...world.listed],
    concurrency,
    clock: timeline.now,
    random: () => 0.5,
    every(ms, action) {
      const again = () => {
        action();
        timeline.after(ms, again);
      };
      timeline.after(ms, again);
      return () => undefined;
    },
    monitor: {
      async check(engine) {
        await answer();
        if (world.condition.get(engine) === "dead") throw new Error("refused");
      },
      async gauges(engine) {
        await answer();
        const said = pick(gauges, asked);
        if (said === undefined || world.condition.get(engine) === "dead") throw new Error("none");
        return said;
      },
    },
  });
  const queue = createEngineQueue({ capacity: pool, queueLength, clock: timeline.now });
  const quota = createMemoryQuota();
  const admission = watched(createAdmission({ quota, queue }), pool, world);
  const shared: Shared = {
    admission,
    calls: { record: () => undefined },
    limits: {
      check: () => Promise.reject(new Error("not asked")),
      count: () => undefined,
    } as unknown as Shared["limits"],
    usage: { report: () => Promise.reject(new Error("not asked")) },
    sources: [],
  };
  const rig = { timeline, world, pool, queue, quota, shared };
  return rig;
}

const pick = <T>(items: readonly T[], index: number): T => items[index % items.length] as T;

/** Knows of every call that waits for another engine, and that none is refused one that there is. */
function watched(admission: Admission, pool: EnginePool, world: World): Admission {
  return {
    async enter(call, signal) {
      const lease = await admission.enter(call, signal);
      let isOver = false;
      let moves = 0;
      const move = lease.move.bind(lease);
      const dispose = lease[Symbol.dispose].bind(lease);
      return Object.assign(lease, {
        async move() {
          const { engine = "" } = lease;
          world.moving += 1;
          moves += 1;
          const isFirst = moves === 1;
          const isMoved = await move();
          world.moving -= 1;
          if (isMoved && !isFirst) world.broken.push("a second retry");
          if (isMoved && lease.engine === engine) world.broken.push("the same engine again");
          if (!isMoved && isFirst && !isOver && pool.hasOther(engine))
            world.broken.push("no retry although there is another engine");
          return isMoved;
        },
        [Symbol.dispose]() {
          isOver = true;
          dispose();
        },
      });
    },
  };
}

/** What holds at every moment. */
function check({ pool, queue, world }: Rig, { concurrency, queueLength }: Schedule): void {
  expect(world.broken).toEqual([]);
  expect(queue.waiting).toBeLessThanOrEqual(queueLength);
  if (pool.isDown) expect(queue.waiting, "waits in vain").toBe(0);
  let ours = 0;
  for (const { id, state, limit, running, tokens, gauges } of pool.states()) {
    ours += running;
    expect(running).toBeLessThanOrEqual(concurrency);
    expect(limit).toBeLessThanOrEqual(concurrency);
    expect(world.running.get(id)?.size, "runs more than was admitted").toBeLessThanOrEqual(running);
    if (running === 0) expect(tokens).toBe(0);
    const tokensMax = (gauges?.kvTokens ?? Number.POSITIVE_INFINITY) * 0.9;
    const hasRoom = state === "ready" && running < limit && tokens + 2000 < tokensMax;
    const isIdle = running === 0 && (state === "ready" || state === "trial");
    if (queue.waiting > 0 && world.moving === 0)
      expect(isIdle || hasRoom, `work conserving: ${state} ${running} of ${limit}`).toBe(false);
  }
  expect(queue.running).toBe(ours);
}

interface Worker {
  readonly pipe: PipePair;
  readonly begin: (planned: Planned, signal: AbortSignal) => Promise<void>;
  /** Ends its calls, as the end of its process does. */
  readonly died: AbortController;
}

const client: Omit<Client, "id"> = {
  limits: { concurrency: 1000 },
  modelLimits: {},
  maxTokens: 4000,
  weight: 1,
  class: "interactive",
};

function hire(rig: Rig): Worker {
  const pipe = createPipe();
  const desk = createDesk(rig.shared);
  const right = openChannel<PrimarySide, object>(pipe.right, {
    ...desk,
    ready: () => undefined,
    took: () => undefined,
    failed: () => undefined,
  });
  right.closed.addEventListener("abort", () => desk[Symbol.dispose]());
  const { admission } = createRemoteShared(openChannel<object, PrimarySide>(pipe.left, {}), []);
  return {
    pipe,
    died: new AbortController(),
    async begin(planned, signal) {
      const engine: Engine = {
        kind: "vllm",
        chat: (request, aborted) => runOn(rig, request, planned, aborted),
        listModels: async () => [{ id: "model", contextTokens: 1_000_000 }],
        countTokens: () => Promise.reject(new Error("not asked")),
        checkHealth: async () => undefined,
        [Symbol.asyncDispose]: async () => undefined,
      };
      const chat = createChat({
        engine,
        admission,
        defaultModel: "model",
        maxModelLen: 1_000_000,
        maxTokensDefault: 1,
      });
      await runChat(rig, chat, planned, signal);
    },
  };
}

let calls = 0;

async function runChat(
  { world }: Rig,
  chat: ReturnType<typeof createChat>,
  planned: Planned,
  signal: AbortSignal,
): Promise<void> {
  calls += 1;
  const content = `conversation ${planned.conversation}`;
  const request = {
    model: "",
    messages: [{ role: "user", content, toolCalls: [] }],
    stop: [],
    tools: [],
    maxTokens: planned.maxTokens,
    seed: planned.firstPartMs,
  } as const;
  using answer = await chat.begin(request, {
    id: `${calls}`,
    client: { ...client, id: `client ${planned.client}` },
    deadlineMs: 1e9,
    signal,
  });
  const parts: ChatPart[] = [];
  try {
    for await (const part of answer.parts) parts.push(part);
  } finally {
    if (parts.filter(({ type }) => type === "text-delta").length > 1)
      world.broken.push("repeated after its first part");
  }
}

/** Plays a schedule to its end. */
async function play(schedule: Schedule): Promise<Rig> {
  const rig = createRig(schedule);
  const { timeline, world, pool } = rig;
  const crew = Array.from({ length: workers }, () => hire(rig));
  const begin = (planned: Planned) =>
    timeline.after(planned.atMs, () => {
      const worker = crew[planned.worker];
      if (worker === undefined) return;
      const caller = new AbortController();
      const signal = AbortSignal.any([caller.signal, worker.died.signal]);
      worker.begin(planned, signal).catch(() => undefined);
      if (planned.leavesAfterMs !== undefined)
        timeline.after(planned.leavesAfterMs, () => caller.abort(new Error("left")));
    });
  for (const planned of schedule.calls) begin(planned);
  for (const { engine, atMs, fate } of schedule.fates)
    timeline.after(atMs, () => meetFate(rig, idOf(engine % schedule.engines), fate));
  for (const { worker, atMs } of schedule.deaths) {
    timeline.after(atMs, () => {
      const dead = crew[worker];
      crew[worker] = hire(rig);
      dead?.pipe.cut();
      dead?.died.abort(new Error("the process has died"));
    });
  }
  timeline.after(repairedMs, () => {
    for (const id of world.condition.keys()) {
      meetFate(rig, id, "works");
      meetFate(rig, id, "comes");
    }
  });
  // A few at a time, so that every engine gets its turn.
  for (let atMs = repairedMs + 100; atMs < endMs - 10_000; atMs += 1000) {
    for (let index = 0; index < schedule.engines; index += 1)
      begin({ ...late, atMs, conversation: atMs + index });
  }
  for (let atMs = 0; atMs < endMs; atMs += pulseMs) timeline.after(atMs, () => undefined);
  await timeline.run(endMs);
  pool[Symbol.dispose]();
  return rig;
}

/** A message between processes takes some events of the timeline: so long, when nothing else happens. */
const pulseMs = 50;

const late = {
  client: 0,
  worker: 0,
  maxTokens: 1,
  firstPartMs: 50,
  serviceMs: 100,
  leavesAfterMs: undefined,
};

function meetFate({ world, pool }: Rig, id: string, fate: Fate): void {
  if (fate === "goes" || fate === "comes") {
    if (fate === "comes") world.listed.add(id);
    // The last address stays: a name that cannot be resolved keeps what it had.
    else if (world.listed.size > 1) world.listed.delete(id);
    pool.list([...world.listed]);
    return;
  }
  world.condition.set(id, fate === "dies" ? "dead" : fate === "sickens" ? "sick" : "works");
  if (fate === "dies") for (const die of [...(world.running.get(id) ?? [])]) die();
}

describe("several engines, whatever becomes of them, of callers and of workers", () => {
  it("keep their limits, lose no place and waste none, get a call again after a failure once and elsewhere, and are used again when they are back", async () => {
    await fc.assert(
      fc.asyncProperty(schedules, async (schedule) => {
        const { queue, pool, world, quota } = await play(schedule);
        expect(queue).toMatchObject({ running: 0, waiting: 0 });
        expect(pool.isDown).toBe(false);
        for (const state of pool.states())
          expect(state).toMatchObject({ state: "ready", running: 0, tokens: 0 });
        for (const id of world.condition.keys())
          expect(world.answeredLate.get(id), `${id} is used again`).toBeGreaterThan(0);
        for (const index of [0, 1, 2]) {
          const usage = await quota.usage({ ...client, id: `client ${index}` });
          expect(usage).toMatchObject([{ name: "concurrency", used: 0 }]);
        }
      }),
      { numRuns: 120 },
    );
  }, 120_000);
});
