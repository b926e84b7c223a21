import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createPipe, quiet } from "../../test/support/pipe.ts";
import { type AdmissionCall, createAdmission } from "../admission/admission.ts";
import { createFixedCapacity } from "../admission/capacity.ts";
import { createEngineQueue } from "../admission/engine-queue.ts";
import { AppError } from "../errors.ts";
import type { Client } from "../keys/key-registry.ts";
import { createCallLimits } from "../limits/call-limits.ts";
import { createFailedAttempts } from "../limits/failed-attempts.ts";
import { createMemoryQuota } from "../limits/quota.ts";
import type { Shared } from "../shared.ts";
import type { CallRecord } from "../usage/call-record.ts";
import { createUsageReporter } from "../usage/usage-report.ts";
import { createUsageTotals } from "../usage/usage-totals.ts";
import { openChannel } from "./channel.ts";
import { createDesk } from "./desk.ts";
import type { PrimarySide } from "./protocol.ts";
import { createRemoteShared } from "./remote-shared.ts";

const never = new AbortController().signal;

const client: Client = {
  id: "erp",
  limits: { rpm: 1000, dailyTokens: 1e6 },
  modelLimits: {},
  maxTokens: 1000,
  weight: 1,
  class: "interactive",
};

function createPrimary(concurrency: number, queueLength = 10) {
  const queue = createEngineQueue({ capacity: createFixedCapacity(concurrency), queueLength });
  const failedAttempts = createFailedAttempts({ maxPerMinute: 3 });
  const quota = createMemoryQuota();
  const records: CallRecord[] = [];
  const shared: Shared = {
    admission: createAdmission({ quota, queue }),
    limits: createCallLimits({ failedAttempts, quota }),
    calls: { record: (call) => records.push(call) },
    usage: createUsageReporter({ quota, totals: createUsageTotals() }),
    sources: [
      {
        name: "redis",
        optional: true,
        check: () => Promise.reject(new AppError("unavailable", "")),
      },
    ],
  };
  /** How much the client has used of a limit. */
  const used = async (limit: string) =>
    (await quota.usage(client)).find(({ name }) => name === limit)?.used;
  return { shared, queue, records, used };
}

/** A worker at the left end, its desk at the right one. */
function hire(shared: Shared) {
  const pipe = createPipe();
  const desk = createDesk(shared);
  const right = openChannel<PrimarySide, object>(pipe.right, {
    ...desk,
    ready: () => undefined,
    took: () => undefined,
    failed: () => undefined,
  });
  right.closed.addEventListener("abort", () => desk[Symbol.dispose]());
  const left = openChannel<object, PrimarySide>(pipe.left, {});
  return { pipe, ...createRemoteShared(left, [{ name: "redis", optional: true }]) };
}

describe("limits of several workers", () => {
  const limited = { ...client, limits: { rpm: 5 } };
  const call = { id: "call", address: "192.0.2.1", client: limited, counts: "now" } as const;

  it("let exactly as many calls through as the limit says, whichever worker they come to", async () => {
    const { shared } = createPrimary(1);
    const workers = [hire(shared), hire(shared), hire(shared)];
    const decisions = await Promise.all(
      Array.from({ length: 30 }, (_, index) => workers[index % 3]?.limits.check(call)),
    );
    expect(decisions.filter((decision) => decision?.refusal === undefined)).toHaveLength(5);
  });

  it("count failures of an address together, and block it for all", async () => {
    const { shared } = createPrimary(1);
    const [one, other] = [hire(shared), hire(shared)];
    const failure = { id: "call", address: "192.0.2.1", counts: "now" } as const;
    for (const worker of [one, other, one]) {
      expect(await worker.limits.check(failure)).toEqual({ blockedMs: 0 });
    }
    const { blockedMs, rate } = await other.limits.check(call);
    expect(blockedMs).toBeGreaterThan(59_000);
    expect(rate).toBeUndefined();
  });

  it("count a call now, never, or later when it is known what became of it", async () => {
    const worker = hire(createPrimary(1).shared);
    const remaining = async (counts: "now" | "later" | "never") =>
      (await worker.limits.check({ ...call, counts })).rate?.remaining;
    expect(await remaining("never")).toBeUndefined();
    expect(await remaining("now")).toBe(4);
    expect(await remaining("later"), "what would remain").toBe(3);
    expect(await remaining("later")).toBe(3);
    worker.limits.count(call);
    expect(await remaining("later")).toBe(2);
  });
});

it("a worker knows from the primary that a store is down", async () => {
  const { sources } = hire(createPrimary(1).shared);
  expect(sources).toMatchObject([{ name: "redis", optional: true }]);
  await expect(sources[0]?.check(never)).rejects.toMatchObject({ kind: "unavailable" });
});

describe("admission of several workers", () => {
  let calls = 0;
  const call = (overrides: Partial<Client> = {}): AdmissionCall => {
    calls += 1;
    return {
      id: `${calls}`,
      client: { ...client, ...overrides },
      model: "model",
      tokens: 100,
      tokensMax: 300,
      deadlineMs: 60_000,
      affinity: "",
    };
  };

  it("hears what a call has cost: the real tokens, none for one that never ran, the most for a dead worker's", async () => {
    const { shared, queue, used } = createPrimary(1);
    const [one, other] = [hire(shared), hire(shared)];
    const first = await one.admission.enter(call(), never);
    const gone = new AbortController();
    const crossing = one.admission.enter(call(), gone.signal);
    await quiet();
    expect(await used("dailyTokens"), "what both can cost").toBe(600);
    one.pipe.holdFromRight();
    first.settle(70);
    first[Symbol.dispose]();
    await quiet();
    gone.abort(new Error("left"));
    await expect(crossing).rejects.toThrow("left");
    await quiet();
    expect(await used("dailyTokens"), "the second was given while its caller left").toBe(70);

    await other.admission.enter(call(), never);
    other.pipe.cut();
    await quiet();
    expect(await used("dailyTokens")).toBe(370);
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("counts a call once whose caller left while it was given a place", async () => {
    const { shared, used } = createPrimary(1);
    const worker = hire(shared);
    const first = await worker.admission.enter(call(), never);
    const gone = new AbortController();
    const asked = call();
    const crossing = worker.admission.enter(asked, gone.signal);
    await quiet();
    worker.pipe.holdFromRight();
    first[Symbol.dispose]();
    await quiet();
    gone.abort(new Error("left"));
    await expect(crossing).rejects.toThrow("left");
    await quiet();
    // As the end of every call says that was not admitted for all that its worker knows.
    worker.limits.count({ id: asked.id, client });
    await quiet();
    expect(await used("rpm")).toBe(2);
  });

  it("records the calls of a worker that dies, each once, and not those that it has recorded", async () => {
    const { shared, records } = createPrimary(1);
    const worker = hire(shared);
    const [done, running, waiting] = [call(), call(), call()];
    const first = await worker.admission.enter(done, never);
    first.settle(70);
    first[Symbol.dispose]();
    const { id } = done;
    worker.calls.record({ id, startedAt: 0, durationMs: 1, rpc: "Chat", outcome: "ok" });
    await worker.admission.enter(running, never);
    worker.admission.enter(waiting, never).catch(() => undefined);
    await quiet();
    worker.pipe.cut();
    await quiet();
    expect(records).toMatchObject([
      { id: done.id, outcome: "ok" },
      { id: running.id, client: "erp", isLost: true, usage: { promptTokens: 100 } },
      { id: waiting.id, client: "erp", isLost: true, usage: { promptTokens: 0 } },
    ]);
  });

  it("tells a worker why a call is refused, and takes nothing for it", async () => {
    const { shared, queue, used } = createPrimary(1);
    const worker = hire(shared);
    const limits = { rpm: 1, dailyTokens: 1000 };
    await worker.admission.enter(call({ limits }), never);
    await expect(worker.admission.enter(call({ limits }), never)).rejects.toMatchObject({
      kind: "exhausted",
      reason: "rpm",
      retryAfterMs: expect.any(Number),
    });
    expect(await used("dailyTokens")).toBe(300);
    expect(queue).toMatchObject({ running: 1, waiting: 0 });
  });

  it("has one order for all, and one bound", async () => {
    const { shared, queue } = createPrimary(1, 2);
    const [one, other] = [hire(shared), hire(shared)];
    const first = await one.admission.enter(call(), never);
    const order: string[] = [];
    const waiting = [other, one].map(async (worker, index) => {
      const sequence = await worker.admission.enter(call({ id: `${index}` }), never);
      order.push(`${index}`);
      sequence[Symbol.dispose]();
    });
    await quiet();
    expect(queue).toMatchObject({ running: 1, waiting: 2 });
    await expect(other.admission.enter(call(), never)).rejects.toMatchObject({
      kind: "exhausted",
      retryAfterMs: 1000,
    });
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    await Promise.all(waiting);
    await quiet();
    expect(order).toEqual(["0", "1"]);
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("forgets who gives up waiting, and rejects with the reason at once", async () => {
    const { shared, queue } = createPrimary(1);
    const worker = hire(shared);
    const first = await worker.admission.enter(call(), never);
    const gone = new AbortController();
    const waiting = worker.admission.enter(call(), gone.signal);
    await quiet();
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await expect(worker.admission.enter(call(), gone.signal)).rejects.toThrow("left");
    await quiet();
    expect(queue).toMatchObject({ running: 1, waiting: 0 });
    first[Symbol.dispose]();
    await quiet();
    expect(queue.running).toBe(0);
  });

  it("takes a sequence back that was given while its caller left", async () => {
    const { shared, queue } = createPrimary(1);
    const [one, other] = [hire(shared), hire(shared)];
    const first = await one.admission.enter(call(), never);
    const gone = new AbortController();
    const waiting = other.admission.enter(call(), gone.signal);
    await quiet();
    other.pipe.holdFromRight();
    first[Symbol.dispose]();
    await quiet();
    expect(queue, "given, and the caller has not heard of it").toMatchObject({ running: 1 });
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await quiet();
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
    other.pipe.release();
    await quiet();
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("takes a sequence back that is given and left by one and the same message", async () => {
    const { shared, queue } = createPrimary(1);
    const worker = hire(shared);
    const first = await worker.admission.enter(call(), never);
    const gone = new AbortController();
    const waiting = worker.admission.enter(call(), gone.signal);
    await quiet();
    first[Symbol.dispose]();
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await quiet();
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("takes back at once what a worker held and waited for when it dies", async () => {
    const { shared, queue } = createPrimary(2);
    const [dying, other] = [hire(shared), hire(shared)];
    await dying.admission.enter(call(), never);
    await dying.admission.enter(call(), never);
    const cut = expect(dying.admission.enter(call(), never)).rejects.toMatchObject({
      kind: "unavailable",
    });
    const waiting = other.admission.enter(call(), never);
    await quiet();
    expect(queue).toMatchObject({ running: 2, waiting: 2 });
    dying.pipe.cut();
    await waiting;
    await quiet();
    expect(queue).toMatchObject({ running: 1, waiting: 0 });
    await cut;
  });

  it("takes back what a worker asked for with its last breath", async () => {
    const { shared, queue } = createPrimary(1);
    const dying = hire(shared);
    const asked = dying.admission.enter(call(), never);
    asked.catch(() => undefined);
    await setImmediate();
    expect(dying.pipe.sent(), "on its way").toBe(1);
    expect(queue.running).toBe(0);
    dying.pipe.cut();
    await quiet();
    expect(queue).toMatchObject({ running: 0, waiting: 0 });
  });

  it("keeps both bounds and loses no sequence, whatever callers do and whoever dies", async () => {
    const action = fc.tuple(
      fc.constantFrom("enter", "enter", "release", "abort", "hold", "die", "wait"),
      fc.nat(2),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 40 }), async (actions) => {
        const { shared, queue } = createPrimary(2, 3);
        const crew = Array.from({ length: 3 }, () => {
          return { ...hire(shared), held: [] as Disposable[], callers: [] as AbortController[] };
        });
        const check = () => {
          expect(queue.running).toBeLessThanOrEqual(2);
          expect(queue.waiting).toBeLessThanOrEqual(3);
          if (queue.waiting > 0) expect(queue.running).toBe(2);
        };
        for (const [what, index] of actions) {
          const worker = crew[index];
          if (worker === undefined) continue;
          if (what === "enter") {
            const caller = new AbortController();
            worker.callers.push(caller);
            const { held } = worker;
            worker.admission.enter(call(), caller.signal).then(
              (sequence) => held.push(sequence),
              () => undefined,
            );
          } else if (what === "release") worker.held.shift()?.[Symbol.dispose]();
          else if (what === "abort") worker.callers.pop()?.abort();
          else if (what === "hold") worker.pipe.holdFromRight();
          else if (what === "die") {
            worker.pipe.cut();
            crew[index] = { ...hire(shared), held: [], callers: [] };
          } else await quiet();
          check();
        }
        for (const { pipe } of crew) pipe.release();
        for (const { callers, held } of crew) {
          for (const caller of callers) caller.abort();
          await quiet();
          for (const sequence of held) sequence[Symbol.dispose]();
        }
        await quiet();
        expect(queue).toMatchObject({ running: 0, waiting: 0 });
      }),
      { numRuns: 200 },
    );
  });
});
