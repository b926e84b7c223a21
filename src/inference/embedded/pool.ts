import type { LlamaContextSequence } from "node-llama-cpp";

/** The sequences of a context: what one call runs on. */
export type SequencePool = Pool<LlamaContextSequence>;

/** A fixed set of items that one holder each may use at a time. */
export interface Pool<T> {
  /**
   * Waits for a free item, first come first served. Rejects with `signal.reason` when `signal` aborts before; then
   * nothing stays taken.
   */
  acquire(signal: AbortSignal): Promise<Lease<T>>;
  /** Resolves once every item is back. */
  idle(): Promise<void>;
}

export interface Lease<T> {
  readonly item: T;
  /** Gives the item back when `work`, which still uses it, has settled. May be called once. */
  releaseAfter(work: Promise<unknown>): void;
}

/** The queue has no bound of its own: whoever admits calls keeps it short. */
export function createPool<T>(items: readonly T[]): Pool<T> {
  const free = [...items];
  // A Set keeps the order of arrival and lets a waiter leave from the middle at no cost.
  const waiting = new Set<(item: T) => void>();
  let onIdle = Promise.withResolvers<void>();
  onIdle.resolve();

  const giveBack = (item: T) => {
    const [next] = waiting;
    if (next !== undefined) return next(item);
    free.push(item);
    if (free.length === items.length) onIdle.resolve();
  };

  const lease = (item: T): Lease<T> => ({
    item,
    releaseAfter(work) {
      const done = () => giveBack(item);
      work.then(done, done);
    },
  });

  return {
    idle: () => onIdle.promise,
    async acquire(signal) {
      signal.throwIfAborted();
      if (free.length === items.length) onIdle = Promise.withResolvers<void>();
      const item = free.shift();
      if (item !== undefined) return lease(item);
      return new Promise((resolve, reject) => {
        const admit = (freed: T) => {
          waiting.delete(admit);
          signal.removeEventListener("abort", leave);
          resolve(lease(freed));
        };
        const leave = () => {
          waiting.delete(admit);
          reject(signal.reason);
        };
        waiting.add(admit);
        signal.addEventListener("abort", leave, { once: true });
      });
    },
  };
}
