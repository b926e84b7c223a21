import { createHash } from "node:crypto";
import { inspect } from "node:util";
import { describe, expect, it } from "vitest";
import { parseApiKeys } from "./api-keys.ts";
import { parseKeyFile } from "./key-file.ts";
import { createKeyRegistry } from "./key-registry.ts";

const defaults = { perClient: { rpm: 60 }, maxTokens: 4096 };

function registryOf(text: string) {
  const { keys, problems } = parseApiKeys(text);
  expect(problems).toEqual([]);
  return createKeyRegistry(keys, defaults);
}

describe("API_KEYS", () => {
  it("knows each client by each of its keys, so that keys can be rolled", () => {
    const registry = registryOf("clientA:key1,clientB:key2, clientA:key3");
    expect(registry.identify("key1")?.id).toBe("clientA");
    expect(registry.identify("key3")?.id).toBe("clientA");
    expect(registry.identify("key2")?.id).toBe("clientB");
  });

  it("knows nobody by a missing, partial, extended or differently written key", () => {
    const registry = registryOf("erp:FormdevINF26");
    for (const key of [
      undefined,
      "",
      "FormdevINF2",
      "FormdevINF26x",
      "formdevinf26",
      "key, FormdevINF26",
    ]) {
      expect(registry.identify(key), String(key)).toBeUndefined();
    }
  });

  it.each([
    ["erp", "no key"],
    ["erp:", "an empty key"],
    ["erp:abc", "a key that is too short"],
    ["erp:key with space", "a space in a key"],
    ["erp:key:more", "a colon in a key"],
    [":key-of-nobody", "no client"],
    ["er p:key-of-erp", "a space in a client"],
    [`${"x".repeat(65)}:key-of-erp`, "a client name that is too long"],
    [",", "nothing at all"],
  ])("refuses %j: %s", (text) => {
    expect(parseApiKeys(text).problems).toHaveLength(1);
  });

  it("refuses one key for two clients, as nobody could say whose call it is", () => {
    const { keys } = parseApiKeys("a:same-key,b:same-key");
    expect(() => createKeyRegistry(keys, defaults)).toThrow("the same key");
  });

  it("keeps no key in readable form", () => {
    expect(inspect(registryOf("erp:canary-key"), { depth: null, showHidden: true })).not.toContain(
      "canary-key",
    );
  });
});

describe("API_KEYS_FILE", () => {
  const sha256 = createHash("sha256").update("key-of-the-erp").digest("hex");

  it("accepts a key by its SHA-256, and gives the client limits of its own", () => {
    const file = {
      clients: [
        {
          id: "erp",
          keys: [`sha256:${sha256}`, "second-key"],
          rpm: 7,
          tpm: 8000,
          concurrency: 2,
          daily_tokens: 1_000_000,
          monthly_tokens: 20_000_000,
          models: { large: { rpm: 1, daily_tokens: 5000 } },
          max_tokens: 9,
          weight: 3,
          class: "batch",
          queue_length: 20,
          wait_seconds: 2.5,
        },
        { id: "extranet", keys: ["third-key"] },
      ],
    };
    const { keys, problems } = parseKeyFile(JSON.stringify(file));
    expect(problems).toEqual([]);
    const registry = createKeyRegistry(keys, defaults);
    const erp = {
      id: "erp",
      limits: {
        rpm: 7,
        tpm: 8000,
        concurrency: 2,
        dailyTokens: 1_000_000,
        monthlyTokens: 20_000_000,
      },
      modelLimits: { large: { rpm: 1, dailyTokens: 5000 } },
      maxTokens: 9,
      weight: 3,
      class: "batch",
      queueLength: 20,
      waitMs: 2500,
    };
    expect(registry.identify("key-of-the-erp")).toEqual(erp);
    expect(registry.identify("second-key")).toEqual(erp);
    expect(registry.identify("third-key")).toEqual({
      id: "extranet",
      limits: defaults.perClient,
      modelLimits: {},
      maxTokens: defaults.maxTokens,
      weight: 1,
      class: "interactive",
    });
    expect(registry.identify(sha256)).toBeUndefined();
  });

  it.each([
    ["not json"],
    ["{}"],
    ['{"clients": []}'],
    ['{"clients": [{"id": "erp", "keys": []}]}'],
    ['{"clients": [{"id": "erp"}]}'],
    ['{"clients": [{"id": "erp", "keys": ["sha256:abc"]}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "role": "admin"}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "rpm": 0}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "tpm": -1}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "models": {"m": {"weight": 2}}}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "weight": 0}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "weight": 101}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "weight": 1.5}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "class": "urgent"}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "queue_length": -1}]}'],
    ['{"clients": [{"id": "erp", "keys": ["key-of-erp"], "wait_seconds": 0}]}'],
  ])("refuses %s", (text) => {
    expect(parseKeyFile(text).problems.length).toBeGreaterThan(0);
  });
});
