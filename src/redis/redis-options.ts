import { isIP } from "node:net";
import type { RedisOptions } from "ioredis";
import { AppError } from "../errors.ts";
import type { Secret } from "../lib/secret.ts";

type RedisAddress = Pick<RedisOptions, "host" | "port" | "db" | "username" | "password" | "tls">;

/**
 * Reads `redis[s]://[user[:password]@]host[:port][/database]`; `rediss` is TLS, verified against the system's
 * authorities and NODE_EXTRA_CA_CERTS. Throws AppError `invalid` for anything else, without quoting it.
 *
 * ioredis could read the URL itself, but it takes options of the client out of the query and sockets' paths out of
 * typing errors, and a failure to open such a path is logged with the password in it.
 */
export function parseRedisUrl(url: Secret): RedisAddress {
  const parsed = URL.parse(url.reveal());
  const database = parsed === null ? null : /^\/?(\d{0,5})$/.exec(parsed.pathname);
  if (
    parsed === null ||
    database === null ||
    !/^rediss?:$/.test(parsed.protocol) ||
    parsed.hostname === "" ||
    parsed.search !== "" ||
    parsed.hash !== ""
  ) {
    throw new AppError(
      "invalid",
      "REDIS_URL must be redis://[user:password@]host[:port][/database], or rediss:// for TLS",
    );
  }
  const host = parsed.hostname.replace(/^\[|\]$/g, "");
  return {
    host,
    port: parsed.port === "" ? 6379 : Number(parsed.port),
    db: Number(database[1]),
    ...(parsed.username !== "" && { username: decode(parsed.username) }),
    ...(parsed.password !== "" && { password: decode(parsed.password) }),
    // Node sends the name that a shared TLS endpoint needs (SNI) only when told; an IP address is never sent.
    ...(parsed.protocol === "rediss:" && { tls: isIP(host) === 0 ? { servername: host } : {} }),
  };
}

/** A stray % in a hand-written password is taken as it is. */
function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * How the client behaves while Redis is away or slow: every command has an answer or an error within
 * `commandTimeout`, so that a request never waits longer for Redis than that.
 */
export const redisBehaviour = {
  /** Milliseconds for one command. A healthy Redis takes under one; a stopped one only this notices. */
  commandTimeout: 150,
  /** Milliseconds to open a connection. */
  connectTimeout: 1000,
  /** Milliseconds that a connection may owe an answer before it is given up: the way out of dead connections. */
  socketTimeout: 1000,
  /** No command waits for a connection: it fails at once. */
  enableOfflineQueue: false,
  /**
   * Commands in flight on a connection that breaks fail with it. With 1 or more ioredis would send them again on the
   * next one, and an INCR that Redis had already run would count twice.
   */
  maxRetriesPerRequest: 0,
  retryStrategy: reconnectDelayMs,
  /** Ready means connected: a Redis that is still loading refuses commands by itself, which callers handle anyway. */
  enableReadyCheck: false,
  /** Milliseconds for a stopped Redis to answer our goodbye. */
  disconnectTimeout: 100,
  lazyConnect: true,
} satisfies RedisOptions;

/**
 * Milliseconds before the reconnection number `attempt` (from 1): doubling from 50 ms up to 2 s, of which the second
 * half is random, so that many gateways do not return to a restarted Redis in step.
 */
export function reconnectDelayMs(attempt: number): number {
  const ceiling = Math.min(2000, 50 * 2 ** Math.min(attempt - 1, 10));
  return ceiling / 2 + Math.random() * (ceiling / 2);
}
