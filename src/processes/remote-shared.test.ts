import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createPipe, quiet } from "../../test/support/pipe.ts";
import {
  type AdmissionCall,
  type AdmissionQueue,
  createAdmission,
} from "../admission/admission.ts";
import { AppError } from "../errors.ts";
import { createCallLimits } from "../limits/call-limits.ts";
import { createFailedAttempts } from "../limits/failed-attempts.ts";
import { createMemoryRateLimiter } from "../limits/rate-limit.ts";
import type { Shared } from "../shared.ts";
import { openChannel } from "./channel.ts";
import { createDesk } from "./desk.ts";
import type { PrimarySide } from "./protocol.ts";
import { createRemoteShared } from "./remote-shared.ts";

const never = new AbortController().signal;

function createPrimary(concurrency: number, queueLength = 10) {
  const admission = createAdmission({ concurrency, queueLength });
  const failedAttempts = createFailedAttempts({ maxPerMinute: 3 });
  const rateLimiter = createMemoryRateLimiter();
  const shared: Shared = {
    admission,
    limits: createCallLimits({ failedAttempts, rateLimiter }),
    sources: [
      {
        name: "redis",
        optional: true,
        check: () => Promise.reject(new AppError("unavailable", "")),
      },
    ],
  };
  return { shared, admission };
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
  const client = { id: "erp", rpm: 5 };
  const call = { address: "192.0.2.1", client, metered: true };

  it("let exactly as many calls through as the limit says, whichever worker they come to", async () => {
    const { shared } = createPrimary(1);
    const workers = [hire(shared), hire(shared), hire(shared)];
    const decisions = await Promise.all(
      Array.from({ length: 30 }, (_, index) => workers[index % 3]?.limits.check(call)),
    );
    expect(decisions.filter((decision) => decision?.rate?.allowed)).toHaveLength(5);
  });

  it("count failures of an address together, and block it for all", async () => {
    const { shared } = createPrimary(1);
    const [one, other] = [hire(shared), hire(shared)];
    const failure = { address: "192.0.2.1", metered: true };
    for (const worker of [one, other, one]) {
      expect(await worker.limits.check(failure)).toEqual({ blockedMs: 0 });
    }
    const { blockedMs, rate } = await other.limits.check(call);
    expect(blockedMs).toBeGreaterThan(59_000);
    expect(rate).toBeUndefined();
  });

  it("count no call that is not metered", async () => {
    const worker = hire(createPrimary(1).shared);
    expect(await worker.limits.check({ ...call, metered: false })).toEqual({ blockedMs: 0 });
    expect((await worker.limits.check(call)).rate?.remaining).toBe(4);
  });
});

it("a worker knows from the primary that a store is down", async () => {
  const { sources } = hire(createPrimary(1).shared);
  expect(sources).toMatchObject([{ name: "redis", optional: true }]);
  await expect(sources[0]?.check(never)).rejects.toMatchObject({ kind: "unavailable" });
});

describe("admission of several workers", () => {
  const call: AdmissionCall = { client: "erp", class: "interactive", weight: 1, tokens: 100 };

  /** An admission that records what it is told of each lease. */
  function recorded(queue: AdmissionQueue) {
    const costs: (number | undefined)[] = [];
    const admission: AdmissionQueue = {
      get running() {
        return queue.running;
      },
      get waiting() {
        return queue.waiting;
      },
      async enter(asked, signal) {
        const lease = await queue.enter(asked, signal);
        let cost: number | undefined;
        return {
          settle(tokens) {
            cost = tokens;
            lease.settle(tokens);
          },
          [Symbol.dispose]() {
            costs.push(cost);
            lease[Symbol.dispose]();
          },
        };
      },
    };
    return { admission, costs };
  }

  it("hears what a call has cost: the real tokens, none for one that never ran, nobody knows for a dead worker's", async () => {
    const { shared } = createPrimary(1);
    const { admission, costs } = recorded(createAdmission({ concurrency: 1, queueLength: 10 }));
    const [one, other] = [hire({ ...shared, admission }), hire({ ...shared, admission })];
    const first = await one.admission.enter(call, never);
    const gone = new AbortController();
    const crossing = one.admission.enter(call, gone.signal);
    await quiet();
    one.pipe.holdFromRight();
    first.settle(70);
    first[Symbol.dispose]();
    await quiet();
    gone.abort(new Error("left"));
    await expect(crossing).rejects.toThrow("left");
    await quiet();
    expect(costs, "the second was given while its caller left").toEqual([70, 0]);

    await other.admission.enter(call, never);
    other.pipe.cut();
    await quiet();
    expect(costs).toEqual([70, 0, undefined]);
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it("has one order for all, and one bound", async () => {
    const { shared, admission } = createPrimary(1, 2);
    const [one, other] = [hire(shared), hire(shared)];
    const first = await one.admission.enter(call, never);
    const order: string[] = [];
    const waiting = [other, one].map(async (worker, index) => {
      const sequence = await worker.admission.enter({ ...call, client: `${index}` }, never);
      order.push(`${index}`);
      sequence[Symbol.dispose]();
    });
    await quiet();
    expect(admission).toMatchObject({ running: 1, waiting: 2 });
    await expect(other.admission.enter(call, never)).rejects.toMatchObject({
      kind: "exhausted",
      retryAfterMs: 1000,
    });
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    await Promise.all(waiting);
    await quiet();
    expect(order).toEqual(["0", "1"]);
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it("forgets who gives up waiting, and rejects with the reason at once", async () => {
    const { shared, admission } = createPrimary(1);
    const worker = hire(shared);
    const first = await worker.admission.enter(call, never);
    const gone = new AbortController();
    const waiting = worker.admission.enter(call, gone.signal);
    await quiet();
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await expect(worker.admission.enter(call, gone.signal)).rejects.toThrow("left");
    await quiet();
    expect(admission).toMatchObject({ running: 1, waiting: 0 });
    first[Symbol.dispose]();
    await quiet();
    expect(admission.running).toBe(0);
  });

  it("takes a sequence back that was given while its caller left", async () => {
    const { shared, admission } = createPrimary(1);
    const [one, other] = [hire(shared), hire(shared)];
    const first = await one.admission.enter(call, never);
    const gone = new AbortController();
    const waiting = other.admission.enter(call, gone.signal);
    await quiet();
    other.pipe.holdFromRight();
    first[Symbol.dispose]();
    await quiet();
    expect(admission, "given, and the caller has not heard of it").toMatchObject({ running: 1 });
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await quiet();
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
    other.pipe.release();
    await quiet();
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it("takes a sequence back that is given and left by one and the same message", async () => {
    const { shared, admission } = createPrimary(1);
    const worker = hire(shared);
    const first = await worker.admission.enter(call, never);
    const gone = new AbortController();
    const waiting = worker.admission.enter(call, gone.signal);
    await quiet();
    first[Symbol.dispose]();
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await quiet();
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it("takes back at once what a worker held and waited for when it dies", async () => {
    const { shared, admission } = createPrimary(2);
    const [dying, other] = [hire(shared), hire(shared)];
    await dying.admission.enter(call, never);
    await dying.admission.enter(call, never);
    const cut = expect(dying.admission.enter(call, never)).rejects.toMatchObject({
      kind: "unavailable",
    });
    const waiting = other.admission.enter(call, never);
    await quiet();
    expect(admission).toMatchObject({ running: 2, waiting: 2 });
    dying.pipe.cut();
    await waiting;
    await quiet();
    expect(admission).toMatchObject({ running: 1, waiting: 0 });
    await cut;
  });

  it("takes back what a worker asked for with its last breath", async () => {
    const { shared, admission } = createPrimary(1);
    const dying = hire(shared);
    const asked = dying.admission.enter(call, never);
    asked.catch(() => undefined);
    await setImmediate();
    expect(dying.pipe.sent(), "on its way").toBe(1);
    expect(admission.running).toBe(0);
    dying.pipe.cut();
    await quiet();
    expect(admission).toMatchObject({ running: 0, waiting: 0 });
  });

  it("keeps both bounds and loses no sequence, whatever callers do and whoever dies", async () => {
    const action = fc.tuple(
      fc.constantFrom("enter", "enter", "release", "abort", "hold", "die", "wait"),
      fc.nat(2),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 40 }), async (actions) => {
        const { shared, admission } = createPrimary(2, 3);
        const crew = Array.from({ length: 3 }, () => {
          return { ...hire(shared), held: [] as Disposable[], callers: [] as AbortController[] };
        });
        const check = () => {
          expect(admission.running).toBeLessThanOrEqual(2);
          expect(admission.waiting).toBeLessThanOrEqual(3);
          if (admission.waiting > 0) expect(admission.running).toBe(2);
        };
        for (const [what, index] of actions) {
          const worker = crew[index];
          if (worker === undefined) continue;
          if (what === "enter") {
            const caller = new AbortController();
            worker.callers.push(caller);
            const { held } = worker;
            worker.admission.enter(call, caller.signal).then(
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
        expect(admission).toMatchObject({ running: 0, waiting: 0 });
      }),
      { numRuns: 200 },
    );
  });
});
