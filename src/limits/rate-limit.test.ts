import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createMemoryRateLimiter, type RateLimitDecision, windowMs } from "./rate-limit.ts";

describe("the limiter in memory", () => {
  beforeEach(() => {
    vi.useFakeTimers({ now: 1_000_000 });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it("allows exactly the limit in a window and says what remains", async () => {
    const limiter = createMemoryRateLimiter();
    const erp = { id: "erp", rpm: 2 };
    expect(await limiter.consume(erp)).toEqual(allowed(2, 1, 60_000));
    vi.advanceTimersByTime(10_000);
    expect(await limiter.consume(erp)).toEqual(allowed(2, 0, 50_000));
    expect(await limiter.consume(erp)).toEqual(refused(2, 50_000));
  });

  it("lets the client in exactly at the end of retryAfterMs, not a millisecond before", async () => {
    const limiter = createMemoryRateLimiter();
    const erp = { id: "erp", rpm: 1 };
    await limiter.consume(erp);
    vi.advanceTimersByTime(12_345);
    expect(await limiter.consume(erp)).toEqual(refused(1, 47_655));
    vi.advanceTimersByTime(47_654);
    expect(await limiter.consume(erp)).toEqual(refused(1, 1));
    vi.advanceTimersByTime(1);
    expect(await limiter.consume(erp)).toEqual(allowed(1, 0, 60_000));
  });

  it("gives the whole limit back after a window in which calls were refused all the time", async () => {
    const limiter = createMemoryRateLimiter();
    const erp = { id: "erp", rpm: 3 };
    for (let elapsedMs = 0; elapsedMs < windowMs; elapsedMs += 500) {
      await limiter.consume(erp);
      vi.advanceTimersByTime(500);
    }
    expect(await limiter.consume(erp)).toEqual(allowed(3, 2, 60_000));
  });

  it("allows exactly the limit of a thousand concurrent calls", async () => {
    const limiter = createMemoryRateLimiter();
    const decisions = await Promise.all(
      Array.from({ length: 1000 }, () => limiter.consume({ id: "erp", rpm: 137 })),
    );
    expect(decisions.filter((decision) => decision.allowed)).toHaveLength(137);
  });

  it("counts each client on its own", async () => {
    const limiter = createMemoryRateLimiter();
    await limiter.consume({ id: "erp", rpm: 1 });
    expect(await limiter.consume({ id: "erp", rpm: 1 })).toMatchObject({ allowed: false });
    expect(await limiter.consume({ id: "extranet", rpm: 5 })).toEqual(allowed(5, 4, 60_000));
  });

  it("applies a changed limit at once, within the running window", async () => {
    const limiter = createMemoryRateLimiter();
    await limiter.consume({ id: "erp", rpm: 1 });
    expect(await limiter.consume({ id: "erp", rpm: 3 })).toEqual(allowed(3, 1, 60_000));
    expect(await limiter.consume({ id: "erp", rpm: 1 })).toEqual(refused(1, 60_000));
  });

  it("never promises a longer wait than a window, also when the wall clock is set back", async () => {
    const limiter = createMemoryRateLimiter();
    await limiter.consume({ id: "erp", rpm: 1 });
    vi.setSystemTime(0);
    expect(await limiter.consume({ id: "erp", rpm: 1 })).toEqual(refused(1, 60_000));
    vi.advanceTimersByTime(60_000);
    expect(await limiter.consume({ id: "erp", rpm: 1 })).toMatchObject({ allowed: true });
  });

  it("forgets a client at the end of its window", async () => {
    const limiter = createMemoryRateLimiter();
    await limiter.consume({ id: "erp", rpm: 1 });
    expect(vi.getTimerCount()).toBe(1);
    vi.advanceTimersByTime(windowMs);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("never allows more than the limit in any of its windows, whatever the pace", async () => {
    const paces = fc.array(fc.integer({ min: 0, max: 20_000 }), { maxLength: 60 });
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 5 }), paces, async (rpm, pauses) => {
        const limiter = createMemoryRateLimiter();
        let windowEnd = Number.NEGATIVE_INFINITY;
        let count = 0;
        for (const pause of pauses) {
          vi.advanceTimersByTime(pause);
          if (Date.now() >= windowEnd) {
            windowEnd = Date.now() + windowMs;
            count = 0;
          }
          count += 1;
          const decision = await limiter.consume({ id: "erp", rpm });
          expect(decision).toMatchObject({
            allowed: count <= rpm,
            remaining: Math.max(0, rpm - count),
            resetMs: windowEnd - Date.now(),
          });
        }
      }),
      { numRuns: 50 },
    );
  });
});

function allowed(limit: number, remaining: number, resetMs: number): RateLimitDecision {
  return { allowed: true, limit, remaining, resetMs };
}

function refused(limit: number, retryAfterMs: number): RateLimitDecision {
  return { allowed: false, limit, remaining: 0, resetMs: retryAfterMs, retryAfterMs };
}
