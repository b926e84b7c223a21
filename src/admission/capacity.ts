/** A call, as far as it matters where it runs. */
export interface PlacedCall {
  /** Tokens that it is expected to cost. */
  readonly tokens: number;
  /** Calls with the same word profit from running where the last one ran: an engine keeps the prefixes that it has read. */
  readonly affinity: string;
  /** The engine that it must not run on: the one that has just failed it. */
  readonly avoid?: string;
}

/** Where calls run: the engines, and how much each of them can take. */
export interface Capacity {
  /** A place for this call now; undefined when there is none. */
  take(call: PlacedCall): Place | undefined;
  /** Whether no engine can be reached: waiting for a place would be in vain. */
  readonly isDown: boolean;
  /** Whether a call may find a place at another engine than this one, now or later. */
  hasOther(engine: string): boolean;
  /** Called whenever there may be room where there was none, and when an engine is lost. Never from within the others. */
  onChange: () => void;
}

/** One of an engine's sequences. */
export interface Place {
  /** Which engine; absent where there can be only one. */
  readonly engine?: string;
  /** Whether the engine is being tried out: it gets no other call until it has answered this one. */
  readonly isTrial: boolean;
  /** Says that the engine has begun to answer. */
  answered(): void;
  /** Gives it back, and says whether the engine has failed the call. Called once. */
  free(hasFailed: boolean): void;
}

/** One engine that is always there, and runs so many sequences at once. */
export function createFixedCapacity(concurrency: number): Capacity {
  let taken = 0;
  return {
    isDown: false,
    hasOther: () => false,
    onChange: () => undefined,
    take() {
      if (taken >= concurrency) return undefined;
      taken += 1;
      return {
        isTrial: false,
        answered: () => undefined,
        free() {
          taken -= 1;
        },
      };
    },
  };
}
