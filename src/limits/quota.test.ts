import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  isGrant,
  newCall,
  newClient,
  quotaGuarantees,
} from "../../test/support/quota-guarantees.ts";
import { dayMs, minuteMs } from "./limits.ts";
import { createMemoryQuota, type Grant, type QuotaCall, type Refused, windowEnd } from "./quota.ts";

const noon = Date.UTC(2028, 1, 28, 12);

/** A quota with a clock that the test moves. */
function setUp(start = noon) {
  let now = start;
  const quota = createMemoryQuota(() => now);
  return {
    quota,
    take: (call: QuotaCall) => quota.take(call),
    set: (time: number) => {
      now = time;
    },
    pass: (ms: number) => {
      now += ms;
    },
  };
}

function granted(answer: Grant | Refused): Grant {
  if (!answer.granted) throw new Error(`refused: ${answer.refusal.name}`);
  return answer;
}

describe("the quota in memory", () => {
  quotaGuarantees(async () => {
    let now = Date.UTC(2028, 0, 1, 12);
    const quota = createMemoryQuota(() => now);
    return {
      quotas: [quota],
      driftMs: 0,
      async pass(ms) {
        now += ms;
      },
      async nextDay() {
        now += dayMs;
      },
      async nextMonth() {
        const today = new Date(now);
        now = Date.UTC(today.getUTCFullYear(), today.getUTCMonth() + 1, 1, 12);
      },
      [Symbol.asyncDispose]: () => quota[Symbol.asyncDispose](),
    };
  });

  it("names to the millisecond from when the client has its whole limit again", async () => {
    const { take, pass } = setUp();
    const client = newClient({ rpm: 2 });
    await take(newCall(client));
    pass(12_345);
    await take(newCall(client));
    expect(await take(newCall(client))).toMatchObject({ refusal: { retryAfterMs: 47_655 } });
    pass(47_654);
    expect(await take(newCall(client))).toMatchObject({ refusal: { retryAfterMs: 1 } });
    pass(1);
    for (const _ of [1, 2]) granted(await take(newCall(client)));
    expect(await take(newCall(client))).toMatchObject({ refusal: { retryAfterMs: minuteMs } });
  });

  it.each([
    ["dailyTokens", Date.UTC(2028, 1, 29)],
    ["monthlyTokens", Date.UTC(2028, 2, 1)],
  ] as const)("begins %s anew at UTC's midnight, and not before", async (name, end) => {
    const { take, set } = setUp();
    const client = newClient({ [name]: 10 });
    granted(await take(newCall(client, { tokens: 10 })));
    set(end - 1);
    expect(await take(newCall(client))).toMatchObject({ refusal: { name, retryAfterMs: 1 } });
    set(end);
    granted(await take(newCall(client, { tokens: 10 })));
  });

  it("puts tokens right within their window only", async () => {
    const { quota, take, pass } = setUp();
    const client = newClient({ tpm: 100, dailyTokens: 1000 });
    const grant = granted(await take(newCall(client, { tokens: 100 })));
    pass(minuteMs);
    granted(await take(newCall(client, { tokens: 60 })));
    grant.settle(10);
    grant[Symbol.dispose]();
    expect(await quota.usage(client)).toMatchObject([
      { name: "tpm", used: 60 },
      { name: "dailyTokens", used: 70 },
    ]);
  });

  it("counts what a call has cost beyond what it took", async () => {
    const { take } = setUp();
    const client = newClient({ tpm: 100 });
    const grant = granted(await take(newCall(client, { tokens: 50 })));
    grant.settle(95);
    grant[Symbol.dispose]();
    expect(await take(newCall(client, { tokens: 6 }))).toMatchObject({ granted: false });
    granted(await take(newCall(client, { tokens: 5 })));
  });

  it("takes nothing of any limit when one of them refuses, and names the one that lasts longest", async () => {
    const { quota, take } = setUp();
    const client = newClient(
      { rpm: 5, tpm: 100, concurrency: 1, dailyTokens: 50 },
      { mistral: { rpm: 1 } },
    );
    granted(await take(newCall(client, { model: "mistral", tokens: 50 })));
    const before = await quota.usage(client);
    const answer = await take(newCall(client, { model: "mistral", tokens: 50 }));
    expect(answer).toMatchObject({
      refusal: { name: "dailyTokens", limit: 50, amount: 50, retryAfterMs: dayMs / 2 },
    });
    expect(await quota.usage(client)).toEqual(before);
  });

  it("promises nothing to a call that is larger than a limit, nor when nobody knows", async () => {
    const { take } = setUp();
    const client = newClient({ tpm: 10, concurrency: 1 });
    const large = await take(newCall(client, { tokens: 11 }));
    expect(large).toEqual({
      granted: false,
      refusal: { name: "tpm", limit: 10, amount: 11 },
    });
    granted(await take(newCall(client)));
    expect(await take(newCall(client))).toEqual({
      granted: false,
      refusal: { name: "concurrency", limit: 1, amount: 1 },
    });
  });

  it("never makes a client wait longer than a window when the clock is set back", async () => {
    const { take, pass } = setUp();
    const client = newClient({ rpm: 1, dailyTokens: 10 });
    granted(await take(newCall(client, { tokens: 10 })));
    pass(-3 * dayMs);
    const waits = { rpm: minuteMs, dailyTokens: dayMs / 2 };
    expect(await take(newCall(client, { tokens: 0 }))).toMatchObject({
      refusal: { name: "rpm", retryAfterMs: waits.rpm },
    });
    expect(await take(newCall(client))).toMatchObject({
      refusal: { name: "dailyTokens", retryAfterMs: waits.dailyTokens },
    });
    pass(waits.rpm);
    granted(await take(newCall(client, { tokens: 0 })));
    pass(waits.dailyTokens - waits.rpm);
    granted(await take(newCall(client, { tokens: 10 })));
  });

  it("keeps clients apart, and has no limit where none is configured", async () => {
    const { take } = setUp();
    const [one, other, free] = [newClient({ rpm: 1 }), newClient({ rpm: 1 }), newClient({})];
    granted(await take(newCall(one)));
    expect((await take(newCall(one))).granted).toBe(false);
    granted(await take(newCall(other)));
    for (let count = 0; count < 100; count += 1) granted(await take(newCall(free)));
  });

  it("says where a client stands: what remains, and until when", async () => {
    const { quota, take, pass } = setUp();
    const client = newClient({ rpm: 2 });
    expect(quota.standing(client)).toEqual({ limit: 2, remaining: 2, resetMs: minuteMs });
    await take(newCall(client));
    pass(1000);
    expect(quota.standing(client)).toEqual({ limit: 2, remaining: 1, resetMs: 59_000 });
    for (const _ of [1, 2, 3]) await take(newCall(client));
    expect(quota.standing(client)).toMatchObject({ remaining: 0 });
    expect(quota.standing(newClient({ tpm: 1 }))).toBeUndefined();
  });

  it("counts what another has allowed, beyond the limit too, and checks without taking", async () => {
    const { quota, take } = setUp();
    const client = newClient({ rpm: 1, concurrency: 1 });
    for (const _ of [1, 2]) quota.count(newCall(client));
    expect(await quota.usage(client)).toMatchObject([{ used: 2 }, { used: 2 }]);
    expect(quota.check(newCall(client), (name) => name === "rpm")).toMatchObject({ name: "rpm" });
    expect(quota.check(newCall(client), () => false)).toBeUndefined();
    expect((await take(newCall(client))).granted).toBe(false);
    expect(await quota.usage(client)).toMatchObject([{ used: 2 }, { used: 2 }]);
  });

  it("takes a model's name for nothing but a name", async () => {
    const { take } = setUp();
    const client = newClient({}, { mistral: { rpm: 1 } });
    for (const model of ["__proto__", "constructor", "toString"]) {
      const answers = [1, 2].map(() => take(newCall(client, { model })));
      expect((await Promise.all(answers)).every(isGrant)).toBe(true);
    }
  });
});

describe("windowEnd", () => {
  it("is later than now, and by no more than the window, at a boundary of UTC", () => {
    const time = fc.integer({ min: 0, max: Date.UTC(2200, 0) });
    fc.assert(
      fc.property(time, (now) => {
        const day = windowEnd("dailyTokens", now);
        const month = windowEnd("monthlyTokens", now);
        expect(day).toBeGreaterThan(now);
        expect(day - now).toBeLessThanOrEqual(dayMs);
        expect(new Date(day).toISOString()).toMatch(/T00:00:00\.000Z$/);
        expect(month).toBeGreaterThan(now);
        expect(month - now).toBeLessThanOrEqual(31 * dayMs);
        expect(new Date(month).toISOString()).toMatch(/-01T00:00:00\.000Z$/);
        expect(windowEnd("rpm", now)).toBe(now + minuteMs);
      }),
    );
  });
});
