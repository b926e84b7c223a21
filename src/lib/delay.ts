import { setTimeout } from "node:timers/promises";

/** Resolves after `ms` milliseconds; rejects with `signal.reason` as soon as `signal` aborts. Leaves no timer behind. */
export async function delay(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await setTimeout(ms, undefined, { signal });
  } catch {
    throw signal.reason;
  }
}

/** Whether `promise` is settled after `ms` milliseconds at the latest; resolves as soon as it is. Leaves no timer behind. */
export async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const settled = promise.then(
    () => true,
    () => true,
  );
  return (await within(settled, ms)) === true;
}

/** What `promise` resolves with, or undefined when it takes longer than `ms` milliseconds. Leaves no timer behind. */
export async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const limit = new AbortController();
  const late = setTimeout(ms, undefined, { signal: limit.signal }).catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    limit.abort();
  }
}

/** Resolves when `signal` aborts. */
export async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
}
