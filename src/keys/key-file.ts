import { z } from "zod";
import { Secret } from "../lib/secret.ts";
import type { Limits } from "../limits/limits.ts";
import { type ClientKey, clientPattern, clientRule, keyPattern, keyRule } from "./api-keys.ts";

const tokens = z.int().min(1).max(1e14).optional();

const limits = {
  rpm: z.int().min(1).max(1_000_000).optional(),
  tpm: tokens,
  concurrency: z.int().min(1).max(100_000).optional(),
  daily_tokens: tokens,
  monthly_tokens: tokens,
};

const keyFile = z.strictObject({
  clients: z
    .array(
      z.strictObject({
        id: z.string().regex(clientPattern, clientRule),
        keys: z
          .array(
            z
              .string()
              .refine((key) => /^sha256:[0-9a-f]{64}$/.test(key) || keyPattern.test(key), keyRule),
          )
          .min(1, "must have at least one key"),
        ...limits,
        models: z.record(z.string().min(1).max(256), z.strictObject(limits)).optional(),
        max_tokens: z.int().min(1).max(131_072).optional(),
        weight: z.int().min(1).max(100).optional(),
        class: z.enum(["interactive", "batch"]).optional(),
        queue_length: z.int().min(0).max(100_000).optional(),
        wait_seconds: z.number().min(0.1).max(3600).optional(),
      }),
    )
    .min(1, "must have at least one client"),
});

/**
 * Reads the JSON of API_KEYS_FILE: `{"clients": [{"id", "keys", "rpm"?, "tpm"?, "concurrency"?, "daily_tokens"?,
 * "monthly_tokens"?, "models"?, "max_tokens"?, "weight"?, "class"?, "queue_length"?, "wait_seconds"?}]}`, where `models` has
 * limits by model. A key is the key itself or `sha256:` and the hex digest of it, so that the file need not hold a secret.
 */
export function parseKeyFile(text: string): { keys: ClientKey[]; problems: string[] } {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return { keys: [], problems: ["is not JSON"] };
  }
  const parsed = keyFile.safeParse(json);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `${issue.path.join(".")} ${issue.message}`);
    return { keys: [], problems };
  }
  const keys = parsed.data.clients.flatMap((client) =>
    client.keys.map((key) => ({
      client: client.id,
      key: key.startsWith("sha256:") ? { sha256: key.slice("sha256:".length) } : new Secret(key),
      limits: toLimits(client),
      ...(client.models !== undefined && {
        modelLimits: Object.fromEntries(
          Object.entries(client.models).map(([model, own]) => [model, toLimits(own)]),
        ),
      }),
      ...(client.max_tokens !== undefined && { maxTokens: client.max_tokens }),
      ...(client.weight !== undefined && { weight: client.weight }),
      ...(client.class !== undefined && { class: client.class }),
      ...(client.queue_length !== undefined && { queueLength: client.queue_length }),
      ...(client.wait_seconds !== undefined && { waitSeconds: client.wait_seconds }),
    })),
  );
  return { keys, problems: [] };
}

function toLimits(read: z.output<z.ZodObject<typeof limits>>): Limits {
  return {
    ...(read.rpm !== undefined && { rpm: read.rpm }),
    ...(read.tpm !== undefined && { tpm: read.tpm }),
    ...(read.concurrency !== undefined && { concurrency: read.concurrency }),
    ...(read.daily_tokens !== undefined && { dailyTokens: read.daily_tokens }),
    ...(read.monthly_tokens !== undefined && { monthlyTokens: read.monthly_tokens }),
  };
}
