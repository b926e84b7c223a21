/** Time that only goes forward: milliseconds since some moment, for durations and timers. */
export type MonotonicClock = () => number;

/** The process's own clock. A step of the wall clock does not move it. */
export const monotonicClock: MonotonicClock = () => performance.now();
