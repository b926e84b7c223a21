import { Secret } from "../lib/secret.ts";
import type { Limits } from "../limits/limits.ts";

/** Whether a person waits for the answer, or a program that has time. */
export type CallClass = "interactive" | "batch";

/** One key of one client, as configured: the key itself, or its SHA-256 in hex. */
export interface ClientKey {
  readonly client: string;
  readonly key: Secret | { readonly sha256: string };
  /** Those that differ from the service's own. */
  readonly limits?: Limits;
  /** Limits of single models, which hold besides. */
  readonly modelLimits?: Readonly<Record<string, Limits>>;
  /** Completion tokens of one request; absent: the service's own. */
  readonly maxTokens?: number;
  /** The client's share of the engine beside others that wait, from 1 to 100; absent: 1. */
  readonly weight?: number;
  /** Absent: interactive. */
  readonly class?: CallClass;
  /** Calls of this client that may wait for the engine, and seconds that one may; absent: what holds for all. */
  readonly queueLength?: number;
  readonly waitSeconds?: number;
}

/** Client names go into logs, metrics and limiter keys: short, and without separators. */
export const clientPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** Printable ASCII without space, comma and colon, which separate keys here and in HTTP headers. */
export const keyPattern = /^[!-+\--9;-~]{4,256}$/;

export const keyRule =
  "keys must have 4 to 256 printable ASCII characters, without space, comma or colon";
export const clientRule = "client names must have 1 to 64 letters, digits, '.', '_' or '-'";

/**
 * Reads `clientA:key1,clientB:key2`. A client that occurs twice has two keys, so that a new key can be rolled out before
 * the old one goes. Problems name the position, never the key.
 */
export function parseApiKeys(text: string): { keys: ClientKey[]; problems: string[] } {
  const keys: ClientKey[] = [];
  const problems: string[] = [];
  const entries = text.split(",").map((entry) => entry.trim());
  for (const [index, entry] of entries.entries()) {
    if (entry === "") continue;
    const colon = entry.indexOf(":");
    const client = entry.slice(0, Math.max(colon, 0));
    const key = entry.slice(colon + 1);
    const where = `entry ${index + 1}:`;
    if (colon < 0) problems.push(`${where} must be client:key`);
    else if (!clientPattern.test(client)) problems.push(`${where} ${clientRule}`);
    else if (!keyPattern.test(key)) problems.push(`${where} ${keyRule}`);
    else keys.push({ client, key: new Secret(key) });
  }
  if (text !== "" && keys.length === 0 && problems.length === 0) problems.push("has no client:key");
  return { keys, problems };
}
