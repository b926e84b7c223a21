/** Lets text through up to the first stop string, also when that comes in pieces. */
export interface StopStrings {
  /** What may be shown so far, and whether a stop string ended the text. */
  push(text: string): { readonly text: string; readonly stopped: boolean };
  /** What was held back as the possible begin of a stop string, when no more text comes. */
  flush(): string;
}

/** Holds back at most one character less than the longest stop string. Empty stop strings are ignored. */
export function createStopStrings(stops: readonly string[]): StopStrings {
  const wanted = stops.filter((stop) => stop !== "");
  let held = "";

  return {
    push(text) {
      held += text;
      const found = wanted.map((stop) => held.indexOf(stop)).filter((index) => index >= 0);
      const stopped = found.length > 0;
      const shown = held.slice(0, stopped ? Math.min(...found) : held.length - heldLength());
      held = stopped ? "" : held.slice(shown.length);
      return { text: shown, stopped };
    },
    flush() {
      const rest = held;
      held = "";
      return rest;
    },
  };

  /** Length of the longest end of `held` that a stop string begins with. */
  function heldLength(): number {
    return Math.max(0, ...wanted.map((stop) => overlap(held, stop)));
  }
}

/** Length of the longest end of `text` that `target` begins with, without being all of `target`. */
export function overlap(text: string, target: string): number {
  for (let length = Math.min(text.length, target.length - 1); length > 0; length -= 1) {
    if (text.endsWith(target.slice(0, length))) return length;
  }
  return 0;
}
