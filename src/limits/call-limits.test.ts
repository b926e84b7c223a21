import { describe, expect, it } from "vitest";
import { newClient } from "../../test/support/quota-guarantees.ts";
import { type Counting, createCallLimits } from "./call-limits.ts";
import { createFailedAttempts } from "./failed-attempts.ts";
import { type LimitedClient, minuteMs } from "./limits.ts";
import { createMemoryQuota } from "./quota.ts";

function setUp() {
  const failedAttempts = createFailedAttempts({ maxPerMinute: 2, clock: () => 0 });
  const quota = createMemoryQuota(() => 0);
  const limits = createCallLimits({ failedAttempts, quota });
  let calls = 0;
  return {
    check: (counts: Counting, client?: LimitedClient, address = "192.0.2.1") => {
      calls += 1;
      return limits.check({ id: `call-${calls}`, address, counts, ...(client && { client }) });
    },
    count: (client: LimitedClient) => limits.count({ id: "refused", client }),
    usedBy: async (client: LimitedClient) =>
      Object.fromEntries((await quota.usage(client)).map(({ name, used }) => [name, used])),
  };
}

describe("the limits of a call", () => {
  it("count a call that is made now, and refuse the one after the last", async () => {
    const { check, usedBy } = setUp();
    const client = newClient({ rpm: 2, tpm: 10, concurrency: 1 });
    const rate = { limit: 2, resetMs: minuteMs };
    expect(await check("now", client)).toEqual({ blockedMs: 0, rate: { ...rate, remaining: 1 } });
    expect(await check("now", client)).toEqual({ blockedMs: 0, rate: { ...rate, remaining: 0 } });
    expect(await check("now", client)).toEqual({
      blockedMs: 0,
      rate: { ...rate, remaining: 0 },
      refusal: { name: "rpm", limit: 2, amount: 1, retryAfterMs: minuteMs },
    });
    // A request that uses no engine holds no place and costs no token.
    expect(await usedBy(client)).toEqual({ rpm: 2, tpm: 0, concurrency: 0 });
  });

  it("count nothing yet of a call that counts later, and say what it will find", async () => {
    const { check, count, usedBy } = setUp();
    const client = newClient({ rpm: 1 });
    for (const _ of [1, 2, 3]) {
      expect(await check("later", client)).toEqual({
        blockedMs: 0,
        rate: { limit: 1, remaining: 0, resetMs: minuteMs },
      });
    }
    expect(await usedBy(client)).toEqual({ rpm: 0 });
    // It came to nothing by its caller's fault.
    count(client);
    expect(await usedBy(client)).toEqual({ rpm: 1 });
    expect(await check("later", client)).toMatchObject({
      refusal: { name: "rpm", limit: 1, amount: 1, retryAfterMs: minuteMs },
    });
  });

  it("never count a call that asks nothing of the engine, nor refuse it", async () => {
    const { check, usedBy } = setUp();
    const client = newClient({ rpm: 1 });
    await check("now", client);
    for (const _ of [1, 2, 3]) expect(await check("never", client)).toEqual({ blockedMs: 0 });
    expect(await usedBy(client)).toEqual({ rpm: 1 });
  });

  it("have no rate for a client without one", async () => {
    const { check } = setUp();
    for (const counts of ["now", "later"] as const) {
      expect(await check(counts, newClient({ tpm: 1 }))).toEqual({ blockedMs: 0 });
    }
  });

  it("block an address after refused keys, for right keys too, and count nothing meanwhile", async () => {
    const { check, usedBy } = setUp();
    const client = newClient({ rpm: 5 });
    for (const _ of [1, 2]) expect(await check("now")).toEqual({ blockedMs: 0 });
    for (const counts of ["now", "later", "never"] as const) {
      expect(await check(counts, client)).toEqual({ blockedMs: minuteMs });
    }
    expect(await usedBy(client)).toEqual({ rpm: 0 });
    expect((await check("now", client, "192.0.2.2")).blockedMs).toBe(0);
    expect(await usedBy(client)).toEqual({ rpm: 1 });
  });
});
