import { setImmediate } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Capacity } from "./capacity.ts";
import { createEngineQueue, type QueuedCall } from "./engine-queue.ts";

const never = new AbortController().signal;
const call = (client: string): QueuedCall => ({
  client,
  class: "interactive",
  weight: 1,
  tokens: 100,
  deadlineMs: 60_000,
  affinity: "",
});

/** Engines of one place each, the first that is free first, and what was said of them. */
function createEngines(...ids: string[]) {
  const free = [...ids];
  const usable = new Set(ids);
  const failed: string[] = [];
  const capacity: Capacity = {
    isDown: false,
    onChange: () => undefined,
    hasOther: (engine) => [...usable].some((id) => id !== engine),
    take({ avoid }) {
      const engine = free.find((id) => id !== avoid && usable.has(id));
      if (engine === undefined) return undefined;
      free.splice(free.indexOf(engine), 1);
      return {
        engine,
        isTrial: false,
        answered: () => undefined,
        free(hasFailed) {
          free.push(engine);
          if (hasFailed) failed.push(engine);
        },
      };
    },
  };
  const lose = (engine: string) => {
    usable.delete(engine);
    capacity.onChange();
  };
  return { queue: createEngineQueue({ capacity, queueLength: 10 }), failed, lose };
}

describe("a call whose engine fails", () => {
  it("gets a place at another one, and what it had is said to have failed", async () => {
    const { queue, failed } = createEngines("a", "b");
    const seat = await queue.enter(call("erp"), never);
    expect(seat.engine).toBe("a");
    expect(await seat.move()).toBe(true);
    expect(seat.engine).toBe("b");
    expect(queue.running).toBe(1);
    seat[Symbol.dispose]();
    seat[Symbol.dispose]();
    expect(failed).toEqual(["a"]);
    expect(queue.running).toBe(0);
  });

  it("waits for it before all who have not had their turn, and leaves them its own", async () => {
    const { queue } = createEngines("a", "b");
    const [first, other] = [
      await queue.enter(call("erp"), never),
      await queue.enter(call("erp"), never),
    ];
    const order: string[] = [];
    const waiting = ["second", "third"].map((name) =>
      queue.enter(call(name), never).then((seat) => {
        order.push(`${name} at ${seat.engine}`);
        return seat;
      }),
    );
    const moved = first.move().then(() => order.push(`first at ${first.engine}`));
    await setImmediate();
    expect(order, "nobody overtakes it, not even to the engine that it has left").toEqual([]);
    const late = queue.enter(call("late"), never);
    other[Symbol.dispose]();
    await moved;
    await waiting[0];
    expect(order.toSorted()).toEqual(["first at b", "second at a"]);
    first[Symbol.dispose]();
    (await waiting[0])?.[Symbol.dispose]();
    for (const seat of [waiting[1], late]) (await seat)?.[Symbol.dispose]();
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("moves once", async () => {
    const { queue, failed } = createEngines("a", "b");
    const seat = await queue.enter(call("erp"), never);
    await seat.move();
    expect(await seat.move()).toBe(false);
    seat[Symbol.dispose]();
    expect(failed).toEqual(["a", "b"]);
    expect(queue.running).toBe(0);
  });

  it("has nowhere to go from the only engine", async () => {
    const { queue, failed } = createEngines("a");
    const seat = await queue.enter(call("erp"), never);
    expect(await seat.move()).toBe(false);
    seat[Symbol.dispose]();
    expect(failed).toEqual(["a"]);
  });

  it("waits no longer once the other engine is lost, nor once it is disposed", async () => {
    for (const end of ["lost", "disposed"]) {
      const { queue, lose } = createEngines("a", "b");
      const [seat, other] = [
        await queue.enter(call("erp"), never),
        await queue.enter(call("erp"), never),
      ];
      const moved = seat.move();
      const next = queue.enter(call("next"), never);
      await setImmediate();
      expect(queue).toMatchObject({ running: 1, waiting: 1 });
      if (end === "lost") lose("b");
      else seat[Symbol.dispose]();
      expect(await moved).toBe(false);
      expect((await next).engine, "who waits behind it goes on").toBe("a");
      seat[Symbol.dispose]();
      other[Symbol.dispose]();
      (await next)[Symbol.dispose]();
      expect(queue.running).toBe(0);
    }
  });
});
