import { Redis } from "ioredis";
import type { Logger } from "pino";
import { AppError } from "../errors.ts";
import type { Secret } from "../lib/secret.ts";
import { parseRedisUrl, redisBehaviour } from "./redis-options.ts";

/** One connection to Redis, opened again whenever it breaks, until it is disposed of. */
export interface RedisClient extends AsyncDisposable {
  readonly commands: Redis;

  /**
   * Opens the connection. Resolves when it is usable or the first attempt has failed, after 1.3 s at most: a gateway
   * starts without Redis too. Attempts go on in the background.
   */
  connect(): Promise<void>;

  /**
   * Resolves when Redis answers, else throws AppError `unavailable`. That takes 150 ms at most, so an abort is looked
   * for only before and after; it is thrown as `signal.reason`.
   */
  ping(signal: AbortSignal): Promise<void>;
}

/**
 * Makes a client that is not connected yet. Throws AppError `invalid` when `parseRedisUrl` cannot read `url`.
 *
 * Of an outage the log has two lines, when the connection is lost (or cannot be made) and when it is there again. They
 * hold the text of the error only: the error itself can carry the command that failed, and HELLO carries the password.
 */
export function createRedisClient(url: Secret, log: Pick<Logger, "info" | "warn">): RedisClient {
  const commands = new Redis({ ...parseRedisUrl(url), ...redisBehaviour });
  let state: "new" | "connected" | "lost" | "disposed" = "new";

  const lose = (reason: string) => {
    if (state === "lost" || state === "disposed") return;
    state = "lost";
    log.warn({ reason }, "no connection to redis");
  };
  commands.on("error", (error) => lose(toReason(error)));
  commands.on("close", () => lose("closed by the server"));
  commands.on("ready", () => {
    state = "connected";
    log.info("connected to redis");
  });

  return {
    commands,

    async connect() {
      // Why it failed is in the log.
      await commands.connect().catch(() => undefined);
    },

    async ping(signal) {
      signal.throwIfAborted();
      try {
        await commands.ping();
      } catch (cause) {
        throw new AppError("unavailable", "the shared store cannot be reached", { cause });
      }
      signal.throwIfAborted();
    },

    async [Symbol.asyncDispose]() {
      state = "disposed";
      const isOpen = ["connecting", "connect", "ready"].includes(commands.status);
      const ended = new Promise<void>((resolve) => commands.once("end", () => resolve()));
      // Not QUIT: it would wait for a Redis that has stopped, and no command here needs to be finished.
      commands.disconnect();
      if (isOpen) await ended;
    },
  };
}

/** What may be logged of an error: its text, or its code when it has none (none of several addresses answers). */
export function toReason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.message || ("code" in error ? String(error.code) : error.name);
}
