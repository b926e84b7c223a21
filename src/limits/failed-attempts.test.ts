import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createFailedAttempts, type FailedAttempts } from "./failed-attempts.ts";

const minute = 60_000;
const attacker = "198.51.100.9";

/** A clock that the test moves, and the attempts that run on it. */
function setUp(options: { maxPerMinute?: number; maxAddresses?: number } = {}) {
  let now = 0;
  const attempts = createFailedAttempts({ ...options, clock: () => now });
  return {
    attempts,
    advance: (ms: number) => {
      now += ms;
    },
    fail: (address: string, times: number) => {
      for (let count = 0; count < times; count += 1) attempts.record(address);
    },
  };
}

describe("failed attempts of one source", () => {
  it("blocks for a minute after twenty failures within a minute", () => {
    const { attempts, advance, fail } = setUp();
    fail(attacker, 10);
    advance(minute - 1);
    fail(attacker, 9);
    expect(attempts.blockedMs(attacker)).toBe(0);
    fail(attacker, 1);
    expect(attempts.blockedMs(attacker)).toBe(minute);
  });

  it("never blocks a source that fails less often than that", () => {
    const { attempts, advance, fail } = setUp();
    for (let minutes = 0; minutes < 120; minutes += 1) {
      fail(attacker, 19);
      expect(attempts.blockedMs(attacker)).toBe(0);
      advance(minute);
    }
  });

  it("lets the source try again exactly when it said, not before", () => {
    const { attempts, advance, fail } = setUp();
    fail(attacker, 20);
    advance(minute - 0.25);
    expect(attempts.blockedMs(attacker)).toBe(1);
    advance(0.25);
    expect(attempts.blockedMs(attacker)).toBe(0);
  });

  it("does not let attempts during a block prolong it", () => {
    const { attempts, advance, fail } = setUp();
    fail(attacker, 20);
    advance(minute / 2);
    fail(attacker, 1000);
    expect(attempts.blockedMs(attacker)).toBe(minute / 2);
    advance(minute / 2);
    fail(attacker, 19);
    expect(attempts.blockedMs(attacker)).toBe(0);
  });

  it("doubles the block each time, up to fifteen minutes", () => {
    const { attempts, advance, fail } = setUp();
    const blocks = Array.from({ length: 7 }, () => {
      fail(attacker, 20);
      const blockedMs = attempts.blockedMs(attacker);
      advance(blockedMs);
      return blockedMs / minute;
    });
    expect(blocks).toEqual([1, 2, 4, 8, 15, 15, 15]);
  });

  it("begins anew after fifteen minutes in which the source could have tried and did not fail", () => {
    const { attempts, advance, fail } = setUp();
    fail(attacker, 20);
    advance(minute + 15 * minute - 1);
    fail(attacker, 20);
    expect(attempts.blockedMs(attacker)).toBe(2 * minute);
    advance(2 * minute + 15 * minute);
    fail(attacker, 20);
    expect(attempts.blockedMs(attacker)).toBe(minute);
  });

  it("remembers the last block as long as single failures go on", () => {
    const { attempts, advance, fail } = setUp();
    fail(attacker, 20);
    for (let count = 0; count < 10; count += 1) {
      advance(10 * minute);
      fail(attacker, 1);
    }
    fail(attacker, 19);
    expect(attempts.blockedMs(attacker)).toBe(2 * minute);
  });
});

describe("failed attempts of several sources", () => {
  it("counts each source on its own", () => {
    const { attempts, fail } = setUp();
    fail(attacker, 20);
    expect(attempts.blockedMs("198.51.100.10")).toBe(0);
  });

  it("takes the addresses of an IPv6 /64 as one source, and IPv4 written as IPv6 as IPv4", () => {
    const { attempts, fail } = setUp({ maxPerMinute: 4 });
    fail("2001:db8::1", 2);
    fail("2001:db8::ffff:2", 2);
    expect(attempts.blockedMs("2001:db8:0:0:abcd::")).toBe(minute);
    expect(attempts.blockedMs("2001:db8:0:1::1")).toBe(0);
    fail(attacker, 2);
    fail(`::ffff:${attacker}`, 2);
    expect(attempts.blockedMs(attacker)).toBe(minute);
  });

  it.each([0, 1, 2, 3])(
    "remembers a source until half of the most sources have failed after it (%i before it)",
    (before) => {
      const { attempts, fail } = setUp({ maxPerMinute: 2, maxAddresses: 8 });
      for (let last = 1; last <= before; last += 1) fail(`192.0.2.${last}`, 1);
      fail(attacker, 2);
      for (let last = 101; last < 104; last += 1) {
        fail(`192.0.2.${last}`, 1);
        expect(attempts.blockedMs(attacker)).toBe(minute);
      }
    },
  );

  it("forgets a source in the end when ever more others fail", () => {
    const { attempts, fail } = setUp({ maxPerMinute: 2, maxAddresses: 8 });
    fail(attacker, 2);
    for (let last = 1; last <= 8; last += 1) fail(`192.0.2.${last}`, 1);
    expect(attempts.blockedMs(attacker)).toBe(0);
  });
});

type Event = { readonly afterMs: number; readonly source: number };

const events = (sourceCount: number) =>
  fc.array(
    fc.record<Event>({
      afterMs: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 2000 }), fc.constant(minute)),
      source: fc.integer({ min: 0, max: sourceCount - 1 }),
    }),
    { maxLength: 400 },
  );

function replay(
  history: readonly Event[],
  options: { maxPerMinute: number; maxAddresses: number },
  check: (attempts: FailedAttempts, address: string, now: number) => void,
) {
  const { attempts, advance } = setUp(options);
  let now = 0;
  for (const { afterMs, source } of history) {
    now += afterMs;
    advance(afterMs);
    const address = `10.0.0.${source}`;
    check(attempts, address, now);
    attempts.record(address);
  }
}

describe("failed attempts, whatever the history", () => {
  it("never remember more sources than allowed", () => {
    fc.assert(
      fc.property(events(50), fc.integer({ min: 1, max: 10 }), (history, maxAddresses) => {
        replay(history, { maxPerMinute: 3, maxAddresses }, (attempts) => {
          expect(attempts.sourceCount).toBeLessThanOrEqual(maxAddresses);
        });
      }),
    );
  });

  it("never block a source that has not failed, nor any source for more than fifteen minutes", () => {
    fc.assert(
      fc.property(events(20), (history) => {
        replay(history, { maxPerMinute: 2, maxAddresses: 5 }, (attempts, address) => {
          expect(attempts.blockedMs("203.0.113.1")).toBe(0);
          expect(attempts.blockedMs(address)).toBeLessThanOrEqual(15 * minute);
        });
      }),
    );
  });

  it("let at most twice the limit of failures through in any minute", () => {
    fc.assert(
      fc.property(events(3), (history) => {
        const failures = new Map<string, number[]>();
        replay(history, { maxPerMinute: 4, maxAddresses: 3 }, (attempts, address, now) => {
          if (attempts.blockedMs(address) > 0) return;
          const times = [...(failures.get(address) ?? []), now];
          failures.set(address, times);
          expect(times.filter((time) => time > now - minute).length).toBeLessThanOrEqual(8);
        });
      }),
    );
  });

  it("stay within ten thousand sources when a hundred thousand networks fail", () => {
    const { attempts } = setUp();
    let most = 0;
    for (let index = 0; index < 100_000; index += 1) {
      attempts.record(`2001:db8:${(index >> 8).toString(16)}:${(index & 0xff).toString(16)}::1`);
      most = Math.max(most, attempts.sourceCount);
    }
    expect(most).toBeGreaterThan(9_000);
    expect(most).toBeLessThanOrEqual(10_000);
  });
});
