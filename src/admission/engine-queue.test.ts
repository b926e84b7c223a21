import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createFixedCapacity } from "./capacity.ts";
import { batchTurn, createEngineQueue, type QueuedCall } from "./engine-queue.ts";
import type { Seat } from "./seats.ts";

const never = new AbortController().signal;
const call = (overrides: Partial<QueuedCall> = {}): QueuedCall => ({
  client: "erp",
  class: "interactive",
  weight: 1,
  tokens: 100,
  deadlineMs: 600_000,
  affinity: "",
  ...overrides,
});

/** One sequence that is taken, and who is admitted in which order once it is given back. */
async function createCrowd() {
  const admission = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 1000 });
  const first = await admission.enter(call({ client: "first" }), never);
  const order: string[] = [];
  const enter = (given: Partial<QueuedCall>, cost?: number) =>
    admission.enter(call(given), never).then((lease) => {
      order.push(given.client ?? "");
      if (cost !== undefined) lease.settle(cost);
      lease[Symbol.dispose]();
    });
  const run = async (calls: readonly Promise<void>[]) => {
    first[Symbol.dispose]();
    await Promise.all(calls);
    return order;
  };
  return { enter, run };
}

describe("admission", () => {
  it("lets as many in as the engine has sequences, and the others in the order they came", async () => {
    const admission = createEngineQueue({ capacity: createFixedCapacity(2), queueLength: 10 });
    const first = await admission.enter(call(), never);
    await admission.enter(call(), never);
    const order: string[] = [];
    const enterAs = async (name: string) => {
      const slot = await admission.enter(call(), never);
      order.push(name);
      return slot;
    };
    const third = enterAs("third");
    const fourth = enterAs("fourth");
    expect(admission).toMatchObject({ running: 2, waiting: 2 });

    first[Symbol.dispose]();
    (await third)[Symbol.dispose]();
    await fourth;
    expect(order).toEqual(["third", "fourth"]);
    expect(admission).toMatchObject({ running: 2, waiting: 0 });
  });

  it("gives the next sequence to the client that has had least", async () => {
    const { enter, run } = await createCrowd();
    const batch = Array.from({ length: 4 }, () => enter({ client: "flood" }));
    const late = enter({ client: "chat" });
    expect(await run([...batch, late])).toEqual(["flood", "chat", "flood", "flood", "flood"]);
  });

  it("shares by weight", async () => {
    const { enter, run } = await createCrowd();
    const calls = Array.from({ length: 400 }, (_, index) =>
      enter({ client: index % 2 === 0 ? "heavy" : "light", weight: index % 2 === 0 ? 3 : 1 }),
    );
    const order = (await run(calls)).slice(0, 200);
    expect(order.filter((client) => client === "heavy")).toHaveLength(150);
  });

  it("counts what calls have really cost, so that nobody gains by what it announces", async () => {
    const { enter, run } = await createCrowd();
    const calls = Array.from({ length: 100 }, () => [
      enter({ client: "modest", tokens: 1 }, 300),
      enter({ client: "honest", tokens: 100 }, 100),
    ]).flat();
    const order = (await run(calls)).slice(0, 100);
    expect(order.filter((client) => client === "modest")).toHaveLength(25);
  });

  it("keeps no credit for a client that was idle", async () => {
    const { enter, run } = await createCrowd();
    const early = enter({ client: "idle" });
    const busy = Array.from({ length: 20 }, () => enter({ client: "busy" }));
    // Nine calls later: it has its share from now on, and not what it has left to the other.
    const late = busy[9]?.then(() =>
      Promise.all(Array.from({ length: 4 }, () => enter({ client: "idle" }))),
    );
    const order = await run([early, ...busy]);
    await late;
    expect(order.slice(0, 2)).toEqual(["idle", "busy"]);
    const returned = order.indexOf("idle", 1);
    expect(order.slice(returned, returned + 7)).toEqual([
      "idle",
      "busy",
      "idle",
      "busy",
      "idle",
      "busy",
      "idle",
    ]);
  });

  it("prefers persons, and gives a batch its turn all the same", async () => {
    const { enter, run } = await createCrowd();
    const batch = Array.from({ length: 3 }, () => enter({ client: "batch", class: "batch" }));
    const chats = Array.from({ length: 20 }, () => enter({ client: "chat" }));
    const order = await run([...batch, ...chats]);
    expect(order.flatMap((client, index) => (client === "batch" ? [index + 1] : []))).toEqual([
      batchTurn,
      2 * batchTurn,
      23,
    ]);
  });

  it("lets one client have half of the queue, and each further one half of what is left", async () => {
    const admission = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 12 });
    const leases = [admission.enter(call(), never)];
    const fill = async (client: string) => {
      for (let entered = 0; ; entered += 1) {
        const before = admission.waiting;
        const asked = admission.enter(call({ client }), never);
        if (admission.waiting > before) leases.push(asked);
        else {
          await expect(asked).rejects.toMatchObject({ kind: "exhausted" });
          return entered;
        }
      }
    };
    expect(await fill("one")).toBe(6);
    expect(await fill("two")).toBe(3);
    await expect(admission.enter(call({ client: "one" }), never)).rejects.toThrow("of this client");
    expect(await fill("three")).toBe(2);
    expect(await fill("four")).toBe(1);
    await Promise.all(leases.map(async (lease) => (await lease)[Symbol.dispose]()));
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it.each([
    [1, 1000],
    [4000, 8000],
    [600_000, 60_000],
  ])(
    "says, when calls keep a sequence for %i ms, to come back after %i ms",
    async (keptMs, expected) => {
      let now = 0;
      const admission = createEngineQueue({
        capacity: createFixedCapacity(1),
        queueLength: 1,
        clock: () => now,
      });
      const first = await admission.enter(call(), never);
      now += keptMs;
      first[Symbol.dispose]();
      await admission.enter(call(), never);
      admission.enter(call(), never).catch(() => undefined);
      await expect(admission.enter(call(), never)).rejects.toMatchObject({
        retryAfterMs: expected,
      });
    },
  );

  it("refuses at once when the queue is full, and says when to come back", async () => {
    const admission = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 0 });
    await admission.enter(call(), never);
    await expect(admission.enter(call(), never)).rejects.toMatchObject({
      kind: "exhausted",
      retryAfterMs: 1000,
    });
    expect(admission).toMatchObject({ running: 1, waiting: 0 });
  });

  it("forgets who gave up waiting, and rejects with the reason", async () => {
    const admission = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 1 });
    const first = await admission.enter(call(), never);
    const gone = new AbortController();
    const waiting = admission.enter(call(), gone.signal);
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await expect(admission.enter(call(), gone.signal)).rejects.toThrow("left");
    expect(admission.waiting).toBe(0);
    first[Symbol.dispose]();
    expect(admission.running).toBe(0);
  });

  it("takes a sequence back once, however often it is given", async () => {
    const admission = createEngineQueue({ capacity: createFixedCapacity(2), queueLength: 0 });
    const first = await admission.enter(call(), never);
    await admission.enter(call(), never);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    expect(admission.running).toBe(1);
  });

  it("keeps both bounds and loses no sequence, whatever callers do", async () => {
    const action = fc.constantFrom("enter", "release", "abort");
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 60 }), async (actions) => {
        const admission = createEngineQueue({ capacity: createFixedCapacity(3), queueLength: 4 });
        const held: Seat[] = [];
        const waiting: AbortController[] = [];
        for (const each of actions) {
          if (each === "enter") {
            const gone = new AbortController();
            const queued = admission.running === 3 && admission.waiting < 4;
            if (queued) waiting.push(gone);
            admission.enter(call(), gone.signal).then(
              (slot) => {
                held.push(slot);
                waiting.splice(waiting.indexOf(gone), waiting.includes(gone) ? 1 : 0);
              },
              () => undefined,
            );
          } else if (each === "release") held.shift()?.[Symbol.dispose]();
          else waiting.pop()?.abort();
          await Promise.resolve().then(() => Promise.resolve());
          expect(admission.running).toBeLessThanOrEqual(3);
          expect(admission.waiting).toBeLessThanOrEqual(4);
          // Work conservation: nobody waits beside a free sequence.
          if (admission.waiting > 0) expect(admission.running).toBe(3);
        }
        for (const gone of waiting) gone.abort();
        while (held.length > 0) {
          held.shift()?.[Symbol.dispose]();
          await Promise.resolve().then(() => Promise.resolve());
        }
        expect(admission).toMatchObject({ running: 0, waiting: 0 });
      }),
    );
  });
});

describe("a call's deadline", () => {
  /** One place that calls keep for ten seconds. */
  async function createBusy() {
    let now = 0;
    const capacity = createFixedCapacity(1);
    const queue = createEngineQueue({ capacity, queueLength: 10, clock: () => now });
    for (let ended = 0; ended < 8; ended += 1) {
      const seat = await queue.enter(call(), never);
      now += 10_000;
      seat[Symbol.dispose]();
    }
    const running = await queue.enter(call(), never);
    return {
      capacity,
      queue,
      running,
      pass: (ms: number) => {
        now += ms;
      },
    };
  }

  it("that cannot be met is told at once, with the wait to expect", async () => {
    const { queue } = await createBusy();
    await expect(queue.enter(call({ deadlineMs: 9000 }), never)).rejects.toMatchObject({
      kind: "exhausted",
      reason: "deadline",
      retryAfterMs: 10_000,
      message: expect.stringContaining("about 10 s"),
    });
    expect(queue.waiting).toBe(0);
  });

  it("is held against the call's own turn, not against the whole queue", async () => {
    const { queue } = await createBusy();
    for (const _ of [1, 2, 3]) void queue.enter(call({ client: "flood" }), never);
    const asked = { deadlineMs: 15_000 };
    const chat = queue.enter(call({ ...asked, client: "chat" }), never);
    await expect(queue.enter(call({ ...asked, client: "flood" }), never)).rejects.toMatchObject({
      reason: "deadline",
      retryAfterMs: 50_000,
    });
    expect(queue.waiting).toBe(4);
    chat.catch(() => undefined);
  });

  it("refuses nobody as long as nobody knows how long calls take", async () => {
    let now = 0;
    const clock = () => now;
    const queue = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 10, clock });
    const long = await queue.enter(call(), never);
    now = 300_000;
    long[Symbol.dispose]();
    await queue.enter(call(), never);
    void queue.enter(call({ deadlineMs: 1 }), never);
    expect(queue.waiting, "one long answer says nothing").toBe(1);
  });

  it("refuses nobody while an engine is tried out with one call, as nobody knows how many it will run", async () => {
    const trial = { isTrial: true, answered: () => undefined, free: () => undefined };
    const { capacity, queue, running } = await createBusy();
    running[Symbol.dispose]();
    let places = 1;
    capacity.take = () => (places-- > 0 ? trial : undefined);
    await queue.enter(call(), never);
    for (const _ of [1, 2, 3]) void queue.enter(call({ deadlineMs: 9000 }), never);
    expect(queue.waiting).toBe(3);
  });

  it("is known with the wait: a place says how long its call has waited", async () => {
    const { queue, running, pass } = await createBusy();
    expect(running.queueMs).toBe(0);
    const waiting = queue.enter(call(), never);
    pass(1234);
    running[Symbol.dispose]();
    expect((await waiting).queueMs).toBe(1234);
  });
});

describe("a client's own bounds of waiting", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it("end a call's wait, and leave nothing behind", async () => {
    const queue = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 10 });
    const running = await queue.enter(call(), never);
    const failed = expect(queue.enter(call({ waitMs: 2000 }), never)).rejects.toMatchObject({
      kind: "exhausted",
      reason: "wait",
      retryAfterMs: 1000,
    });
    vi.advanceTimersByTime(1999);
    expect(queue.waiting).toBe(1);
    vi.advanceTimersByTime(1);
    await failed;
    expect(queue.waiting).toBe(0);

    const next = queue.enter(call({ waitMs: 2000 }), never);
    running[Symbol.dispose]();
    expect((await next).queueMs).toBeGreaterThanOrEqual(0);
    expect(vi.getTimerCount(), "who has a place waits no more").toBe(0);
  });

  it("refuse at once a call that would wait longer, and one too many", async () => {
    let now = 0;
    const clock = () => now;
    const queue = createEngineQueue({ capacity: createFixedCapacity(1), queueLength: 10, clock });
    for (let ended = 0; ended < 8; ended += 1) {
      const seat = await queue.enter(call(), never);
      now += 10_000;
      seat[Symbol.dispose]();
    }
    await queue.enter(call(), never);
    await expect(queue.enter(call({ waitMs: 9000 }), never)).rejects.toMatchObject({
      reason: "wait",
      retryAfterMs: 10_000,
    });
    const bounded = call({ clientQueueLength: 1 });
    queue.enter(bounded, never).catch(() => undefined);
    await expect(queue.enter(bounded, never)).rejects.toMatchObject({ reason: "client-queue" });
    queue.enter(call({ client: "other" }), never).catch(() => undefined);
    expect(queue.waiting).toBe(2);
  });
});

describe("engines that are lost", () => {
  it("refuse who waits and who comes, as unavailable and not as too many, until one is back", async () => {
    const fixed = createFixedCapacity(1);
    let isDown = false;
    const capacity = {
      ...fixed,
      get isDown() {
        return isDown;
      },
    };
    const queue = createEngineQueue({ capacity, queueLength: 1 });
    const running = await queue.enter(call(), never);
    const waiting = queue.enter(call(), never);
    isDown = true;
    capacity.onChange();
    const unavailable = { kind: "unavailable", reason: "engine", retryAfterMs: 1000 };
    await expect(waiting).rejects.toMatchObject(unavailable);
    await expect(queue.enter(call(), never)).rejects.toMatchObject(unavailable);
    expect(queue).toMatchObject({ running: 1, waiting: 0 });

    running[Symbol.dispose]();
    isDown = false;
    capacity.onChange();
    await queue.enter(call(), never);
    expect(queue.running).toBe(1);
  });
});
