import { setTimeout } from "node:timers/promises";

/** Waits until `predicate` holds, looking often; fails with `what` when it does not within `timeoutMs`. */
export async function eventually(
  what: string,
  predicate: () => boolean,
  timeoutMs = 5000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!predicate()) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await setTimeout(5);
  }
}
