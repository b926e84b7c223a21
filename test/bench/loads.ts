/** The loads of the benchmark. */
import type { Loop } from "./measure.ts";

export interface Load {
  readonly title: string;
  readonly loop: Loop;
  readonly warmUpCalls?: number;
  readonly warmUpMs: number;
  /** What a caller waits for: the first token of a stream, the whole answer of a call. */
  readonly wait: "firstTokenUs" | "callUs";
}

export const streams50: Load = {
  title: "50 streams × 100/s",
  loop: { streams: 50, tokensPerSecond: 100, tokensPerCall: 200 },
  warmUpMs: 2500,
  wait: "firstTokenUs",
};
/**
 * About half of what one process of the gateway can do on a slow core: the load for its latencies. Its 50 calls a second would
 * take a minute to have what begins a call compiled, of which a server that is at work has seen the end long ago.
 */
export const streams400: Load = {
  title: "400 streams × 25/s",
  loop: { streams: 400, tokensPerSecond: 25, tokensPerCall: 200 },
  warmUpCalls: 5000,
  warmUpMs: 2500,
  wait: "firstTokenUs",
};
export const streams1000: Load = {
  title: "1,000 streams × 10/s",
  loop: { streams: 1000, tokensPerSecond: 10, tokensPerCall: 200 },
  warmUpMs: 4000,
  wait: "firstTokenUs",
};
export const saturated: Load = {
  title: "50 streams, saturated",
  loop: { concurrency: 50, tokensPerCall: 1000 },
  warmUpMs: 2000,
  wait: "firstTokenUs",
};
/**
 * V8 compiles for good what runs once in a call after some 10,000 of them, on threads of the subject: up to a quarter of its time
 * until then. A server that is at work has done that long ago.
 */
const calls = { warmUpCalls: 20_000, warmUpMs: 3000, wait: "callUs" } as const;
export const calls10: Load = {
  title: "10 calls at once",
  loop: { concurrency: 10, tokensPerCall: 50 },
  ...calls,
};
export const calls64: Load = {
  title: "64 calls at once",
  loop: { concurrency: 64, tokensPerCall: 50 },
  ...calls,
};
