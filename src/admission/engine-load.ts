import type { PlacedCall } from "./capacity.ts";

/** What an engine says about itself. */
export interface EngineGauges {
  /** Sequences that it runs, and requests that wait inside it. */
  readonly running: number;
  readonly waiting: number;
  /** The part of its KV cache that is in use, 0 to 1. */
  readonly kvUsage: number;
  /** How often it has had to stop a sequence for want of KV cache, since its start. */
  readonly preemptions: number;
  /** Tokens that its KV cache holds; absent where it does not say. */
  readonly kvTokens?: number;
}

/**
 * Gauges that are older say nothing about now: vLLM itself is seconds behind in them (vllm#49538), and a limit that lives on
 * after its reason has stopped whole services (llm-d#2100).
 */
const gaugesMaxAgeMs = 5000;

/** Where an engine's KV cache is nearly full it preempts: a sequence that is stopped is computed anew. */
const kvPart = 0.9;

/** Requests that may wait inside the engine: those that have come since its last step. */
const waitingMax = 2;
/** In so many readings in a row, or it is chance. */
const crowdedReadings = 2;

/** What is left of the running calls where there are too many. */
const backOff = 3 / 4;
/** Readings in which an engine comes from no call back to all of them. */
const recoveryReadings = 32;

/**
 * How much one engine may take, of our calls: its credit. At most `concurrency` calls, and at most the part of its KV cache
 * that leaves it some air, in tokens that they are expected to cost.
 *
 * Its gauges correct that, as others may use it too and estimates are wrong: when it preempts or lets requests wait, it gets a
 * quarter fewer calls than it runs now, and step by step all of them again when it does not (additive increase, multiplicative
 * decrease: Chiu and Jain, 1989). Without recent gauges the credit alone holds.
 */
export class EngineLoad {
  /** Our calls that it runs, and the tokens that they are expected to cost. */
  running = 0;
  tokens = 0;
  readonly #concurrency: number;
  #limit: number;
  #gauges: EngineGauges | undefined;
  #readAt = Number.NEGATIVE_INFINITY;
  /** Whether the gauges count. */
  #isRecent = false;
  /** Readings in a row in which too many waited. */
  #crowded = 0;

  constructor(concurrency: number) {
    this.#concurrency = concurrency;
    this.#limit = concurrency;
  }

  /** Calls that it may run now. */
  get limit(): number {
    return this.#limit;
  }

  /** The last that it has said, however old. */
  get gauges(): EngineGauges | undefined {
    return this.#gauges;
  }

  gaugesAgeMs(now: number): number {
    return now - this.#readAt;
  }

  /** Whether there is room for this call beside those that run. An idle engine has room for any. */
  hasRoom({ tokens }: PlacedCall): boolean {
    if (this.running === 0) return true;
    const tokensMax = (this.#gauges?.kvTokens ?? Number.POSITIVE_INFINITY) * kvPart;
    return this.running < this.#limit && this.tokens + tokens <= tokensMax;
  }

  /** To be called often: gauges that have become too old do not count any more. Returns whether that makes room. */
  expire(now: number): boolean {
    if (!this.#isRecent || this.gaugesAgeMs(now) <= gaugesMaxAgeMs) return false;
    this.#isRecent = false;
    this.#limit = this.#concurrency;
    this.#crowded = 0;
    return true;
  }

  read(gauges: EngineGauges, now: number): void {
    const before = this.#isRecent ? this.#gauges : undefined;
    this.#gauges = gauges;
    this.#readAt = now;
    this.#isRecent = true;
    this.#crowded = gauges.waiting > waitingMax ? this.#crowded + 1 : 0;
    const hasPreempted = before !== undefined && gauges.preemptions > before.preemptions;
    if (hasPreempted || this.#crowded >= crowdedReadings) {
      // Of what it runs, not of the limit: the limit may be far above, and its effect comes later than the next reading.
      const fewer = Math.max(1, Math.floor(this.running * backOff));
      this.#limit = Math.min(this.#limit, fewer);
    } else if (this.#crowded === 0) {
      const step = Math.ceil(this.#concurrency / recoveryReadings);
      this.#limit = Math.min(this.#concurrency, this.#limit + step);
    }
  }
}
