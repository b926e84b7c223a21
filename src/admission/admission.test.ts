import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createAdmission } from "./admission.ts";

const never = new AbortController().signal;

describe("admission", () => {
  it("lets as many in as the engine has sequences, and the others in the order they came", async () => {
    const admission = createAdmission({ concurrency: 2, queueLength: 10 });
    const first = await admission.enter(never);
    await admission.enter(never);
    const order: string[] = [];
    const enterAs = async (name: string) => {
      const slot = await admission.enter(never);
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

  it("refuses at once when the queue is full, and says when to come back", async () => {
    const admission = createAdmission({ concurrency: 1, queueLength: 0 });
    await admission.enter(never);
    await expect(admission.enter(never)).rejects.toMatchObject({
      kind: "exhausted",
      retryAfterMs: 1000,
    });
    expect(admission).toMatchObject({ running: 1, waiting: 0 });
  });

  it("forgets who gave up waiting, and rejects with the reason", async () => {
    const admission = createAdmission({ concurrency: 1, queueLength: 1 });
    const first = await admission.enter(never);
    const gone = new AbortController();
    const waiting = admission.enter(gone.signal);
    gone.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await expect(admission.enter(gone.signal)).rejects.toThrow("left");
    expect(admission.waiting).toBe(0);
    first[Symbol.dispose]();
    expect(admission.running).toBe(0);
  });

  it("takes a sequence back once, however often it is given", async () => {
    const admission = createAdmission({ concurrency: 2, queueLength: 0 });
    const first = await admission.enter(never);
    await admission.enter(never);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    expect(admission.running).toBe(1);
  });

  it("keeps both bounds and loses no sequence, whatever callers do", async () => {
    const action = fc.constantFrom("enter", "release", "abort");
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 60 }), async (actions) => {
        const admission = createAdmission({ concurrency: 3, queueLength: 4 });
        const held: Disposable[] = [];
        const waiting: AbortController[] = [];
        for (const each of actions) {
          if (each === "enter") {
            const gone = new AbortController();
            const queued = admission.running === 3 && admission.waiting < 4;
            if (queued) waiting.push(gone);
            admission.enter(gone.signal).then(
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
