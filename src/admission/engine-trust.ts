/** Calls in a row that an engine may fail. Fewer are bad luck, and cost little: they run elsewhere. */
const failuresMax = 3;

/** How long an ejected engine rests, twice as long each time that its trial fails; up to half of it more, by chance. */
const firstPauseMs = 1000;
const longestPauseMs = 30_000;

/**
 * Whether calls are given to one engine, by what became of those that it had. It is `ready`; `ejected` after failing several in
 * a row; and after a pause, once it is healthy, on `trial`: it gets one call, which decides. Time is given in monotonic
 * milliseconds.
 */
export class EngineTrust {
  #standing: "ready" | "ejected" | "trial" = "ready";
  /** Failures since the last answer, and when the last of them came. */
  #failures = 0;
  #failedAt = Number.NEGATIVE_INFINITY;
  /** Since when it gets calls: what older ones say is about another time. */
  #trustedAt = Number.NEGATIVE_INFINITY;
  /** Ejections since it was last ready. */
  #ejections = 0;
  #retryAt = Number.NEGATIVE_INFINITY;

  get standing(): "ready" | "ejected" | "trial" {
    return this.#standing;
  }

  /** Whether its pause is over. */
  isRested(now: number): boolean {
    return now >= this.#retryAt;
  }

  /** A call that was given to it at `takenAt` was answered. Returns whether that ends its trial. */
  answer(takenAt: number): boolean {
    if (takenAt < this.#failedAt || takenAt < this.#trustedAt) return false;
    this.#failures = 0;
    if (this.#standing !== "trial") return false;
    this.#standing = "ready";
    this.#ejections = 0;
    return true;
  }

  /** It has failed a call that was given to it at `takenAt`. Returns whether it is not to be trusted any more. */
  fail(takenAt: number, now: number): boolean {
    if (this.#standing === "ejected" || takenAt < this.#trustedAt) return false;
    this.#failures += 1;
    this.#failedAt = now;
    return this.#failures >= failuresMax;
  }

  /** It is healthy, whatever calls it has failed. */
  forgive(): void {
    this.#failures = 0;
  }

  /** `chance`, 0 to 1, keeps several gateways from coming back at once. */
  eject(now: number, chance: number): void {
    const pauseMs = Math.min(firstPauseMs * 2 ** this.#ejections, longestPauseMs);
    this.#standing = "ejected";
    this.#ejections += 1;
    this.#retryAt = now + pauseMs * (1 + chance / 2);
  }

  /** It was healthy when its pause was over. */
  tryOut(now: number): void {
    this.#standing = "trial";
    this.#failures = failuresMax - 1;
    this.#trustedAt = now;
  }
}
