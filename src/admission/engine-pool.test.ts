import { setImmediate } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Place, PlacedCall } from "./capacity.ts";
import type { EngineGauges } from "./engine-load.ts";
import { createEnginePool, type EnginePoolOptions, type EngineState } from "./engine-pool.ts";

const idle: EngineGauges = { running: 0, waiting: 0, kvUsage: 0, preemptions: 0 };

/** A pool whose time and engines are the test's. */
function createRig(
  engines: readonly string[],
  {
    concurrency = 4,
    random = 0,
    ...rest
  }: { concurrency?: number; random?: number } & Partial<
    Pick<EnginePoolOptions, "onEjected" | "onBack">
  > = {},
) {
  const rig = {
    now: 0,
    isHealthy: new Set(engines),
    gauges: new Map<string, EngineGauges>(),
    checks: 0,
    readings: 0,
    changes: 0,
  };
  let tick: () => void = () => undefined;
  const pool = createEnginePool({
    engines,
    concurrency,
    monitor: {
      async check(engine) {
        rig.checks += 1;
        if (!rig.isHealthy.has(engine)) throw new Error("down");
      },
      async gauges(engine) {
        rig.readings += 1;
        const gauges = rig.gauges.get(engine);
        if (gauges === undefined) throw new Error("no metrics");
        return gauges;
      },
    },
    clock: () => rig.now,
    random: () => random,
    every: (_ms, action) => {
      tick = action;
      return () => undefined;
    },
    ...rest,
  });
  pool.onChange = () => {
    rig.changes += 1;
  };
  const pass = async (seconds: number) => {
    for (let second = 0; second < seconds; second += 1) {
      rig.now += 1000;
      tick();
      await setImmediate();
    }
  };
  const stateOf = (engine: string): EngineState | undefined =>
    pool.states().find(({ id }) => id === engine);
  let calls = 0;
  const take = (call: Partial<PlacedCall> = {}): Place | undefined => {
    calls += 1;
    return pool.take({ tokens: 100, affinity: `call ${calls}`, ...call });
  };
  const fail = (times: number, call: Partial<PlacedCall> = {}) => {
    for (let time = 0; time < times; time += 1) take(call)?.free(true);
  };
  return { rig, pool, pass, stateOf, take, fail };
}

describe("where calls run", () => {
  it("is the engine with the fewest tokens to do, and equals have their turns", () => {
    const { take } = createRig(["a", "b", "c"]);
    const places = ["a", "b", "c"].map((engine) => {
      const place = take({ tokens: 1000 });
      expect(place?.engine).toBe(engine);
      return place;
    });
    places[1]?.free(false);
    expect(take({ tokens: 10 })?.engine).toBe("b");
    expect(take({ tokens: 10 })?.engine).toBe("b");
  });

  it("is where the last call of its affinity ran, as long as that has hardly more to do", () => {
    const { take } = createRig(["a", "b"], { concurrency: 100 });
    const affinity = "conversation";
    const first = take({ affinity, tokens: 1500 });
    expect(first?.engine).toBe("a");
    expect(take({ affinity, tokens: 1000 })?.engine, "1,500 tokens more").toBe("a");
    expect(take({ affinity, tokens: 1000 })?.engine, "2,500 tokens more").toBe("b");
    expect(take({ affinity, tokens: 10 })?.engine, "it has moved with the last").toBe("b");
  });

  it("is elsewhere when the engine of its affinity is full, and never the engine to avoid", () => {
    const { take } = createRig(["a", "b"], { concurrency: 1 });
    expect(take({ affinity: "x" })?.engine).toBe("a");
    expect(take({ affinity: "x", avoid: "b" })).toBeUndefined();
    expect(take({ affinity: "x" })?.engine).toBe("b");
    expect(take()).toBeUndefined();
  });
});

describe("how much an engine gets", () => {
  it("is so many calls at once, and room comes back with each", () => {
    const { take } = createRig(["a"], { concurrency: 2 });
    const place = take();
    take();
    expect(take()).toBeUndefined();
    place?.free(false);
    expect(take()).toBeDefined();
  });

  it("is nine tenths of the tokens that its cache holds, but one call whatever its size", async () => {
    const { rig, take, pass } = createRig(["a"]);
    rig.gauges.set("a", { ...idle, kvTokens: 1000 });
    await pass(1);
    const large = take({ tokens: 5000 });
    expect(large).toBeDefined();
    expect(take({ tokens: 1 })).toBeUndefined();
    large?.free(false);
    take({ tokens: 500 });
    expect(take({ tokens: 401 })).toBeUndefined();
    expect(take({ tokens: 400 })).toBeDefined();
  });

  it("falls to three quarters of what it runs when it preempts, and comes back step by step", async () => {
    const { rig, take, pass, stateOf } = createRig(["a"], { concurrency: 64 });
    for (let call = 0; call < 40; call += 1) take();
    rig.gauges.set("a", idle);
    await pass(2);
    expect(stateOf("a")).toMatchObject({ limit: 64, running: 40 });
    rig.gauges.set("a", { ...idle, preemptions: 1 });
    await pass(1);
    expect(stateOf("a")?.limit).toBe(30);
    expect(take()).toBeUndefined();
    await pass(1);
    expect(stateOf("a")?.limit).toBe(32);
    await pass(32);
    expect(stateOf("a")?.limit).toBe(64);
  });

  it("falls when requests wait inside it twice in a row, and not when they do once", async () => {
    const { rig, take, pass, stateOf } = createRig(["a"], { concurrency: 8 });
    for (let call = 0; call < 8; call += 1) take();
    for (const [waiting, limit] of [
      [3, 8],
      [0, 8],
      [3, 8],
      [3, 6],
      [2, 7],
    ] as const) {
      rig.gauges.set("a", { ...idle, waiting });
      await pass(1);
      expect(stateOf("a")?.limit, `${waiting} wait`).toBe(limit);
    }
  });

  it("is what is configured once the gauges are older than five seconds, and says how old they are", async () => {
    const { rig, take, pass, stateOf } = createRig(["a"], { concurrency: 8 });
    for (let call = 0; call < 8; call += 1) take();
    rig.gauges.set("a", { ...idle, waiting: 100 });
    await pass(2);
    expect(stateOf("a")?.limit).toBe(6);
    rig.gauges.clear();
    await pass(5);
    expect(stateOf("a")).toMatchObject({ limit: 6, gaugesAgeMs: 5000 });
    await pass(1);
    expect(stateOf("a")).toMatchObject({ limit: 8, gaugesAgeMs: 6000 });
  });

  it("is read every second while it has calls, and rarely while it has none", async () => {
    const { rig, take, pass } = createRig(["a", "b"]);
    await pass(20);
    expect(rig.readings).toBe(2);
    take();
    await pass(5);
    expect(rig.readings).toBe(7);
  });

  it("asks nothing of an engine that has not answered yet", async () => {
    let asked = 0;
    let tick = () => {};
    const pool = createEnginePool({
      engines: ["a"],
      concurrency: 1,
      every: (_ms, action) => {
        tick = action;
        return () => undefined;
      },
      monitor: {
        check: async () => undefined,
        gauges: () => {
          asked += 1;
          return new Promise(() => undefined);
        },
      },
    });
    pool.take({ tokens: 1, affinity: "" });
    for (let second = 0; second < 9; second += 1) tick();
    expect(asked).toBe(1);
  });
});

describe("an engine that fails", () => {
  it("is ejected after three failures in a row, and not when an answer comes between them", () => {
    const { take, fail, stateOf } = createRig(["a", "b"]);
    for (let round = 0; round < 5; round += 1) {
      fail(2, { avoid: "b" });
      const place = take({ avoid: "b" });
      place?.answered();
      place?.free(false);
    }
    expect(stateOf("a")?.state).toBe("ready");
    fail(3, { avoid: "b" });
    expect(stateOf("a")?.state).toBe("ejected");
    for (let call = 0; call < 4; call += 1) expect(take()?.engine).toBe("b");
    expect(take(), "the other one is full").toBeUndefined();
  });

  it("is not forgiven for answers to calls that it had before", () => {
    const { rig, take, fail, stateOf } = createRig(["a", "b"]);
    const old = take({ avoid: "b" });
    rig.now += 1;
    fail(2, { avoid: "b" });
    old?.answered();
    fail(1, { avoid: "b" });
    expect(stateOf("a")?.state).toBe("ejected");
  });

  it("gets one call after its pause, if it is healthy, and all again once it has answered that", async () => {
    const told: string[] = [];
    const { rig, pool, take, fail, pass, stateOf } = createRig(["a", "b"], {
      onEjected: (engine) => told.push(`ejected ${engine}`),
      onBack: (engine) => told.push(`back ${engine}`),
    });
    fail(3, { avoid: "b" });
    expect(rig.checks).toBe(0);
    await pass(1);
    expect(stateOf("a")).toMatchObject({ state: "trial", limit: 1 });
    const trial = take({ avoid: "b" });
    expect(trial?.isTrial).toBe(true);
    expect(take({ avoid: "b" })).toBeUndefined();
    const { changes } = rig;
    trial?.answered();
    await setImmediate();
    expect(rig.changes).toBeGreaterThan(changes);
    expect(take({ avoid: "b" })?.isTrial).toBe(false);
    expect(pool.isDown).toBe(false);
    expect(told).toEqual(["ejected a", "back a"]);
  });

  it("rests twice as long each time that its trial fails, 30 s at most, while another one works", async () => {
    const { fail, pass, stateOf } = createRig(["a", "b"]);
    fail(3, { avoid: "b" });
    for (const pause of [1, 2, 4, 8, 16, 30, 30]) {
      await pass(pause - 1);
      expect(stateOf("a")?.state, `after ${pause} s`).toBe("ejected");
      await pass(1);
      expect(stateOf("a")?.state, `after ${pause} s`).toBe("trial");
      fail(1, { avoid: "b" });
    }
  });

  it("rests up to half as long again by chance", async () => {
    const { fail, pass, stateOf } = createRig(["a", "b"], { random: 0.99 });
    fail(3, { avoid: "b" });
    await pass(1);
    expect(stateOf("a")?.state).toBe("ejected");
    await pass(1);
    expect(stateOf("a")?.state).toBe("trial");
  });

  it("stays on trial when its one call ends without a word, and hears nothing of older ones", async () => {
    const { take, fail, pass, stateOf } = createRig(["a", "b"]);
    const old = take({ avoid: "b" });
    fail(3, { avoid: "b" });
    await pass(1);
    old?.answered();
    old?.free(true);
    expect(stateOf("a")?.state).toBe("trial");
    take({ avoid: "b" })?.free(false);
    expect(stateOf("a")?.state).toBe("trial");
    expect(take({ avoid: "b" })?.isTrial).toBe(true);
  });
});

describe("the last engine", () => {
  it("keeps its calls when it is healthy, whatever it has failed", async () => {
    const { rig, pool, take, fail } = createRig(["a"]);
    for (let round = 0; round < 3; round += 1) {
      fail(3);
      await setImmediate();
      expect(rig.checks).toBe(round + 1);
      expect(pool.isDown).toBe(false);
    }
    expect(take()).toBeDefined();
  });

  it("is down when it is not, and is asked every second until it is back", async () => {
    const { rig, pool, take, fail, pass } = createRig(["a"]);
    rig.isHealthy.clear();
    fail(2);
    expect(take(), "two may be chance").toBeDefined();
    fail(1);
    await setImmediate();
    expect(pool.isDown).toBe(true);
    expect(rig.changes).toBeGreaterThan(0);
    expect(take()).toBeUndefined();
    await pass(30);
    expect(rig.checks).toBe(31);
    rig.isHealthy.add("a");
    await pass(1);
    expect(pool.isDown).toBe(false);
    expect(take()).toBeDefined();
  });

  it("is found out without a call when it is idle: it says nothing, and is not healthy", async () => {
    const { pool, rig, pass } = createRig(["a"]);
    await pass(60);
    expect(pool.isDown, "it has no metrics, and is healthy").toBe(false);
    rig.isHealthy.delete("a");
    await pass(31);
    expect(pool.isDown).toBe(true);
    rig.isHealthy.add("a");
    await pass(1);
    expect(pool.isDown).toBe(false);
  });

  it("has the others asked at once, whatever is left of their pauses", async () => {
    const { rig, pool, fail, pass } = createRig(["a", "b"]);
    fail(3, { avoid: "b" });
    for (const pause of [1, 2, 4, 8]) {
      await pass(pause);
      fail(1, { avoid: "b" });
    }
    rig.isHealthy.delete("b");
    fail(3, { avoid: "a" });
    await setImmediate();
    expect(pool.isDown, "b is down, and a rests for 16 s").toBe(true);
    await pass(1);
    expect(pool.isDown).toBe(false);
  });
});

describe("engines that come and go", () => {
  it("get calls from then on, and none from then on, and are forgotten with their last one", () => {
    const { pool, take, stateOf } = createRig(["a"], { concurrency: 1 });
    const running = take();
    expect(take()).toBeUndefined();
    pool.list(["b"]);
    expect(stateOf("a")?.state).toBe("leaving");
    const place = take();
    expect(place?.engine).toBe("b");
    place?.free(false);
    expect(take()?.engine).toBe("b");
    expect(take()).toBeUndefined();
    running?.free(false);
    expect(pool.states().map(({ id }) => id)).toEqual(["b"]);
  });

  it("are the same as before when they come back while they still run a call", () => {
    const { pool, take, stateOf } = createRig(["a"], { concurrency: 1 });
    take();
    pool.list(["b"]);
    pool.list(["a", "b"]);
    expect(stateOf("a")).toMatchObject({ state: "ready", running: 1 });
  });

  it("are told of", async () => {
    const { rig, pool } = createRig(["a"]);
    const { changes } = rig;
    pool.list(["a", "b"]);
    await setImmediate();
    expect(rig.changes).toBeGreaterThan(changes);
  });
});
