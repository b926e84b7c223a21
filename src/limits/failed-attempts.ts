import { type MonotonicClock, monotonicClock } from "../lib/clock.ts";
import { createRecentMap } from "../lib/recent-map.ts";
import { sourceOf } from "./source-address.ts";

/**
 * Slows down whoever guesses keys. Asked with the caller's address before a key is looked at, told of every key that was
 * refused.
 *
 * After `maxPerMinute` failures within a minute the source (an IPv4 address, an IPv6 /64, or all that is not an address
 * together) is blocked for 1 minute. The next block is twice as long, up to 15 minutes; a source that was free to try for
 * 15 minutes and did not fail begins anew. While it is blocked nothing is counted: whoever shares the address and has a
 * right key is let in again at the promised moment. A right key does not wipe out failures either, so one known key does
 * not help to guess another.
 *
 * Memory is bounded: a source is remembered at least until half of `maxAddresses` other sources have failed after it, and
 * never more than `maxAddresses` are. So a source that has not failed is never blocked, not even by an attacker with any
 * number of addresses (a bucket shared by all further sources would let such an attacker lock everyone out). The price:
 * one who commands more sources than that is slowed down by nothing but the number of requests he can send.
 */
export interface FailedAttempts {
  /** Milliseconds, rounded up, until this address may try again; 0 when it may now. */
  blockedMs(address: string): number;

  /** Counts a failure of this address, unless it is blocked. */
  record(address: string): void;

  /** Sources remembered now, at most `maxAddresses`. Those that have long been quiet are included. */
  readonly sourceCount: number;
}

export interface FailedAttemptsOptions {
  /** Failures within a minute that lead to a block. Default 20: a person who mistypes never gets there. */
  readonly maxPerMinute?: number;
  /** Sources to remember, at most. Default 10,000, which take about 1.5 MB. */
  readonly maxAddresses?: number;
  readonly clock?: MonotonicClock;
}

const minuteMs = 60_000;
const firstBlockMs = minuteMs;
const longestBlockMs = 15 * minuteMs;
/** Time free to try but without a failure, after which the next block is a first one again. */
const quietMs = 15 * minuteMs;

interface Source {
  /** Failures in the running minute. */
  failures: number;
  /** End of the running minute, or of the block. */
  endsAt: number;
  blocked: boolean;
  /** Length of the latest block; 0 before the first. */
  blockMs: number;
}

export function createFailedAttempts(options: FailedAttemptsOptions = {}): FailedAttempts {
  const { maxPerMinute = 20, maxAddresses = 10_000, clock = monotonicClock } = options;
  const sources = createRecentMap<Source>(maxAddresses);

  return {
    blockedMs(address) {
      // As nearly always: then the address need not be read.
      if (sources.size === 0) return 0;
      const source = sources.get(sourceOf(address));
      return source?.blocked ? Math.max(0, Math.ceil(source.endsAt - clock())) : 0;
    },

    record(address) {
      const key = sourceOf(address);
      const now = clock();
      const source = sources.get(key) ?? newSource();
      if (now >= source.endsAt) startMinute(source, now);
      else if (source.blocked) return;

      source.failures += 1;
      if (source.failures >= maxPerMinute) startBlock(source, now);

      sources.set(key, source);
    },

    get sourceCount() {
      return sources.size;
    },
  };
}

function newSource(): Source {
  return { failures: 0, endsAt: Number.NEGATIVE_INFINITY, blocked: false, blockMs: 0 };
}

function startMinute(source: Source, now: number): void {
  if (now >= source.endsAt + quietMs) source.blockMs = 0;
  source.failures = 0;
  source.blocked = false;
  source.endsAt = now + minuteMs;
}

function startBlock(source: Source, now: number): void {
  source.blockMs = Math.min(Math.max(source.blockMs * 2, firstBlockMs), longestBlockMs);
  source.blocked = true;
  source.endsAt = now + source.blockMs;
}
