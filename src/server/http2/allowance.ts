/** How often something may happen: `burst` times at once, and `perSecond` times more for each second that passes. */
export class Allowance {
  readonly #burst: number;
  readonly #perSecond: number;
  #left: number;
  #at = performance.now();

  constructor(burst: number, perSecond: number) {
    this.#burst = burst;
    this.#perSecond = perSecond;
    this.#left = burst;
  }

  /** Whether it may happen once more, now. */
  take(): boolean {
    const now = performance.now();
    const gained = ((now - this.#at) / 1000) * this.#perSecond;
    this.#left = Math.min(this.#left + gained, this.#burst) - 1;
    this.#at = now;
    return this.#left >= 0;
  }
}
