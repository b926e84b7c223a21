import { describe, expect, it } from "vitest";
import { AppError } from "../../errors.ts";
import type { Model } from "../engine.ts";
import { createModelList, parseModels } from "./model-list.ts";

const never = new AbortController().signal;
const models: readonly Model[] = [{ id: "a", contextTokens: 8 }];

/** A list whose loads are answered by hand. */
const createList = () => {
  const loads: PromiseWithResolvers<readonly Model[]>[] = [];
  const stale: unknown[] = [];
  const clock = { now: 0 };
  const list = createModelList({
    load: () => {
      const load = Promise.withResolvers<readonly Model[]>();
      loads.push(load);
      return load.promise;
    },
    clock: () => clock.now,
    onStale: (error) => stale.push(error),
  });
  return { list, loads, stale, clock };
};

describe("the list of models", () => {
  it("is loaded once for all who wait for it, and kept for 30 s", async () => {
    const { list, loads, clock } = createList();
    const calls = [list.get(never), list.get(never)];
    loads[0]?.resolve(models);
    expect(await Promise.all(calls)).toEqual([models, models]);
    clock.now = 29_999;
    expect(await list.get(never)).toBe(models);
    expect(loads).toHaveLength(1);
  });

  it("is given at once when it is old, and renewed behind", async () => {
    const { list, loads, clock } = createList();
    const first = list.get(never);
    loads[0]?.resolve(models);
    await first;
    clock.now = 30_000;
    expect(await list.get(never)).toBe(models);
    expect(await list.get(never)).toBe(models);
    expect(loads).toHaveLength(2);
    const renewed: readonly Model[] = [{ id: "b", contextTokens: 9 }];
    loads[1]?.resolve(renewed);
    await loads[1]?.promise;
    expect(await list.get(never)).toBe(renewed);
  });

  it("stays as it is when it cannot be renewed: the operator is told, and a second passes between tries", async () => {
    const { list, loads, clock, stale } = createList();
    const first = list.get(never);
    loads[0]?.resolve(models);
    await first;
    clock.now = 30_000;
    await list.get(never);
    const failure = new Error("down");
    loads[1]?.reject(failure);
    await loads[1]?.promise.catch(() => undefined);
    for (const now of [30_001, 30_999, 31_000, 31_001]) {
      clock.now = now;
      expect(await list.get(never)).toBe(models);
    }
    expect(stale).toEqual([failure]);
    expect(loads).toHaveLength(3);
  });

  it("throws unavailable when it never could be had, and is asked for again by the next call", async () => {
    const { list, loads } = createList();
    const first = list.get(never);
    const failure = new AppError("corrupt", "odd");
    loads[0]?.reject(failure);
    await expect(first).rejects.toMatchObject({ kind: "unavailable", cause: failure });
    const second = list.get(never);
    loads[1]?.resolve(models);
    expect(await second).toBe(models);
  });

  it("lets one who waits leave, and goes on for the others", async () => {
    const { list, loads } = createList();
    const leaving = new AbortController();
    const first = list.get(leaving.signal);
    const second = list.get(never);
    const reason = new Error("left");
    leaving.abort(reason);
    await expect(first).rejects.toBe(reason);
    loads[0]?.resolve(models);
    expect(await second).toBe(models);
  });
});

describe("parseModels", () => {
  it("gives an adapter the context of the model it belongs to, and drops what has none", () => {
    const data = [
      { id: "base", max_model_len: 4_096, parent: null },
      { id: "adapter", parent: "base" },
      { id: "orphan", parent: "gone" },
      { id: "odd", max_model_len: "many" },
    ];
    expect(parseModels({ data })).toEqual([
      { id: "base", contextTokens: 4_096 },
      { id: "adapter", contextTokens: 4_096 },
    ]);
  });

  it.each([{}, { data: {} }, { data: [null] }, { data: [{ id: 7 }] }, { data: [] }])(
    "throws corrupt for %j",
    (reply) => {
      expect(() => parseModels(reply)).toThrow(expect.objectContaining({ kind: "corrupt" }));
    },
  );
});
