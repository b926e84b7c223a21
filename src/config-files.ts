import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import type { Config } from "./config.ts";
import { ConfigError } from "./errors.ts";
import type { ClientKey } from "./keys/api-keys.ts";
import { parseKeyFile } from "./keys/key-file.ts";
import { createKeyRegistry } from "./keys/key-registry.ts";
import { Secret } from "./lib/secret.ts";
import { parseRedisUrl } from "./redis/redis-options.ts";
import type { TlsFiles } from "./server/listener.ts";

/**
 * What the configuration means once its files are read, and what is made up for this run: read and made once, so that every
 * process has the same.
 */
export interface ResolvedConfig {
  readonly keys: readonly ClientKey[];
  /** Clients that have a key a person could guess. */
  readonly shortKeys: readonly string[];
  /** The key made for this run, when none was configured. */
  readonly generatedKey: Secret | undefined;
  readonly tls: TlsFiles | undefined;
  /** Keeps what clients share in vLLM's prefix cache apart. */
  readonly cacheSaltSecret: Buffer;
}

/** Keys shorter than this are worth a warning: the ones we make have 40 characters. */
const shortKey = 16;

/**
 * Reads and checks what the configuration points to, before anything is started or downloaded. Throws ConfigError with
 * every problem found.
 */
export function resolveConfig(config: Config): ResolvedConfig {
  const problems: string[] = [];
  const attempt = <T>(variable: string, read: () => T): T | undefined => {
    try {
      return read();
    } catch (error) {
      const why = error instanceof Error && "syscall" in error ? "cannot be read" : describe(error);
      problems.push(`${variable} ${why}`);
      return undefined;
    }
  };

  const { inline, file } = config.keys;
  const filed = file === undefined ? [] : attempt("API_KEYS_FILE", () => readKeyFile(file));
  const hasNone = inline.length === 0 && file === undefined;
  const generatedKey = hasNone
    ? new Secret(`formdev_${randomBytes(24).toString("base64url")}`)
    : undefined;
  const keys: readonly ClientKey[] =
    generatedKey === undefined
      ? [...inline, ...(filed ?? [])]
      : [{ client: "local", key: generatedKey }];
  attempt("API_KEYS", () => createKeyRegistry(keys, config.limits));

  const { tls: paths } = config.server;
  const cert = paths && attempt("TLS_CERT_FILE", () => readFileSync(paths.certFile));
  const key = paths && attempt("TLS_KEY_FILE", () => readFileSync(paths.keyFile));
  const tls = cert && key && { cert, key };
  if (tls !== undefined) {
    attempt("TLS_CERT_FILE and TLS_KEY_FILE", () => {
      try {
        createSecureContext(tls);
      } catch {
        throw new Error("must hold a certificate and its key, PEM");
      }
    });
  }
  const { redisUrl } = config;
  if (redisUrl !== undefined) attempt("REDIS_URL", () => parseRedisUrl(redisUrl));

  if (problems.length > 0) throw new ConfigError(problems);
  const shortKeys = keys.flatMap(({ client, key: secret }) =>
    secret instanceof Secret && secret.reveal().length < shortKey ? [client] : [],
  );
  return { keys, shortKeys, generatedKey, tls, cacheSaltSecret: randomBytes(32) };
}

function readKeyFile(path: string): readonly ClientKey[] {
  const { keys, problems } = parseKeyFile(readFileSync(path, "utf8"));
  if (problems.length > 0) throw new Error(problems.join("; "));
  return keys;
}

function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
