import { hash, randomBytes } from "node:crypto";
import type { LimitedClient, Limits } from "../limits/limits.ts";
import { type CallClass, type ClientKey, keyPattern } from "./api-keys.ts";

/** Who calls, and how much it may. A client is known from its key alone, never from anything that a request says. */
export interface Client extends LimitedClient {
  /** The most completion tokens of one request. */
  readonly maxTokens: number;
  /** The share of the engine beside other clients of the same class that wait, from 1 to 100. */
  readonly weight: number;
  readonly class: CallClass;
  /** Calls that may wait for the engine. Absent: as many as the queue leaves to one client. */
  readonly queueLength?: number;
  /** Milliseconds that a call may wait for the engine. Absent: until its deadline. */
  readonly waitMs?: number;
}

export interface KeyRegistry {
  /** The client that this key belongs to. A key that is malformed, unknown or absent is the same: undefined. */
  identify(key: string | undefined): Client | undefined;
}

/**
 * Keeps keys as SHA-256 over a secret, which lives as long as this process, and the key's own SHA-256: memory holds no key
 * and no digest that could be looked up elsewhere. (Both inputs have a fixed length, so that this is as good as an HMAC, and
 * a tenth of its time.) Finding the entry takes a time that depends only on that digest, which a caller can neither steer nor
 * know.
 *
 * `defaults` holds for clients that configure no limits of their own. Throws when two clients have the same key.
 */
export function createKeyRegistry(
  keys: readonly ClientKey[],
  defaults: { readonly perClient: Limits; readonly maxTokens: number },
): KeyRegistry {
  const pepper = randomBytes(32).toString("hex");
  const digest = (sha256: string) => hash("sha256", pepper + sha256, "hex");

  const ordinary = (id: string): Client => ({
    id,
    limits: defaults.perClient,
    modelLimits: {},
    maxTokens: defaults.maxTokens,
    weight: 1,
    class: "interactive",
  });
  const clients = new Map<string, Client>();
  for (const key of keys) {
    const known = clients.get(key.client) ?? ordinary(key.client);
    const queueLength = key.queueLength ?? known.queueLength;
    const waitMs = key.waitSeconds === undefined ? known.waitMs : key.waitSeconds * 1000;
    clients.set(key.client, {
      id: key.client,
      limits: { ...known.limits, ...key.limits },
      modelLimits: { ...known.modelLimits, ...key.modelLimits },
      maxTokens: key.maxTokens ?? known.maxTokens,
      weight: key.weight ?? known.weight,
      class: key.class ?? known.class,
      ...(queueLength !== undefined && { queueLength }),
      ...(waitMs !== undefined && { waitMs }),
    });
  }

  const owners = new Map<string, Client>();
  for (const { client, key } of keys) {
    const own = digest("sha256" in key ? key.sha256 : sha256(key.reveal()));
    const other = owners.get(own);
    if (other !== undefined && other.id !== client) {
      throw new Error(`the clients ${other.id} and ${client} have the same key`);
    }
    owners.set(own, clients.get(client) ?? ordinary(client));
  }

  return {
    identify(key) {
      if (key === undefined || !keyPattern.test(key)) return undefined;
      return owners.get(digest(sha256(key)));
    },
  };
}

function sha256(key: string): string {
  return hash("sha256", key, "hex");
}
