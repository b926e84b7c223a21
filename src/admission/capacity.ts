/** A call, as far as it matters where it runs. */
export interface PlacedCall {
  /** Tokens that it is expected to cost. */
  readonly tokens: number;
  /** Calls with the same word profit from running where the last one ran: an engine keeps the prefixes that it has read. */
  readonly affinity: string;
}

/** Where calls run: the engines, and how much each of them can take. */
export interface Capacity {
  /** A place for this call now; undefined when there is none. */
  take(call: PlacedCall): Place | undefined;
  /** Whether no engine can be reached: waiting for a place would be in vain. */
  readonly isDown: boolean;
  /** Called whenever there may be room where there was none, and when all engines are lost. Not by `free`. */
  onChange: () => void;
}

/** One of an engine's sequences. */
export interface Place {
  /** Which engine; absent where there is only one. */
  readonly engine?: string;
  /** Gives it back. Called once. */
  free(): void;
}

/** One engine that is always there, and runs so many sequences at once. */
export function createFixedCapacity(concurrency: number): Capacity {
  let taken = 0;
  return {
    isDown: false,
    onChange: () => undefined,
    take() {
      if (taken >= concurrency) return undefined;
      taken += 1;
      return {
        free() {
          taken -= 1;
        },
      };
    },
  };
}
