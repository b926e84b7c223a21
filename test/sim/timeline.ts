import { setImmediate } from "node:timers/promises";

/** Time that passes only from one event to the next, so that hours of a schedule take milliseconds, and always the same way. */
export interface Timeline {
  /** Milliseconds since its beginning. */
  now(): number;
  /** Does it after so many milliseconds, or earlier things first. What falls on the same time keeps the order of planning. */
  after(delayMs: number, action: () => void): void;
  /** Resolves when nothing is planned any more, or at `untilMs`. Between two events every promise has its turn. */
  run(untilMs?: number): Promise<void>;
}

export function createTimeline(onQuiet: () => void = () => undefined): Timeline {
  /** Soonest last. */
  const planned: { readonly atMs: number; readonly action: () => void }[] = [];
  let nowMs = 0;
  return {
    now: () => nowMs,
    after(delayMs, action) {
      const atMs = nowMs + delayMs;
      let index = planned.length;
      while (index > 0 && (planned[index - 1]?.atMs ?? 0) <= atMs) index -= 1;
      planned.splice(index, 0, { atMs, action });
    },
    async run(untilMs = Number.POSITIVE_INFINITY) {
      for (let next = planned.pop(); next !== undefined; next = planned.pop()) {
        if (next.atMs > untilMs) return;
        nowMs = next.atMs;
        next.action();
        await setImmediate();
        onQuiet();
      }
    },
  };
}
