import { vi } from "vitest";
import { Secret } from "../../src/lib/secret.ts";
import { createMemoryQuota } from "../../src/limits/quota.ts";
import { createRedisClient } from "../../src/redis/redis-client.ts";
import { createRedisQuota } from "../../src/redis/redis-quota.ts";

/** One gateway's quota on a Redis of its own connection, what it has logged, and the modes that it has changed to. */
export async function openRedisQuota(url: string) {
  const stack = new AsyncDisposableStack();
  const log = { info: vi.fn(), warn: vi.fn() };
  const client = stack.use(createRedisClient(new Secret(url), { info: vi.fn(), warn: vi.fn() }));
  await client.connect();
  const changes: string[] = [];
  const quota = stack.use(
    createRedisQuota({
      client: client.commands,
      fallback: createMemoryQuota(),
      log,
      onModeChange: (mode) => changes.push(mode),
    }),
  );
  return {
    quota,
    redis: client.commands,
    log,
    changes,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}
