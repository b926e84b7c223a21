/**
 * Calls `onStall` once when `limitMs` have passed without a `touch`.
 *
 * One timer for a whole stream: a touch only notes the time, because there is one for every token.
 */
export class StallTimer {
  readonly #onStall: () => void;
  #limitMs: number;
  #touchedAt = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #lastLook: NodeJS.Immediate | undefined;
  #paused = false;

  constructor(limitMs: number, onStall: () => void) {
    this.#limitMs = limitMs;
    this.#onStall = onStall;
    this.#timer = setTimeout(this.#look, limitMs);
  }

  touch(): void {
    this.#touchedAt = performance.now();
  }

  /** Another limit, from now on. */
  restart(limitMs: number): void {
    this.stop();
    this.#limitMs = limitMs;
    this.touch();
    this.#timer = setTimeout(this.#look, limitMs);
  }

  /** Time does not count until `resume`, which starts it anew. */
  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.touch();
  }

  stop(): void {
    clearTimeout(this.#timer);
    clearImmediate(this.#lastLook);
  }

  readonly #look = (): void => {
    const remainingMs = this.#remainingMs();
    if (remainingMs > 0) this.#timer = setTimeout(this.#look, remainingMs);
    // After the process was busy, timers run before sockets are read: what came in time may still be waiting there.
    else this.#lastLook = setImmediate(this.#lookAgain);
  };

  readonly #lookAgain = (): void => {
    const remainingMs = this.#remainingMs();
    if (remainingMs > 0) this.#timer = setTimeout(this.#look, remainingMs);
    else this.#onStall();
  };

  #remainingMs(): number {
    return this.#paused ? this.#limitMs : this.#touchedAt + this.#limitMs - performance.now();
  }
}
