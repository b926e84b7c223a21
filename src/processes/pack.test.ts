import { inspect } from "node:util";
import { expect, it } from "vitest";
import { parseConfig } from "../config.ts";
import { Secret } from "../lib/secret.ts";
import { pack, unpack } from "./pack.ts";

it("brings a configuration to another process whole, its secrets, addresses and bytes too", () => {
  const config = parseConfig({
    API_KEYS: "erp:s3cr3t-canary",
    VLLM_URL: "http://vllm:8000/base",
    VLLM_API_KEY: "s3cr3t-canary",
    TRUSTED_PROXIES: "10.0.0.2",
  });
  const tls = { cert: Buffer.from([0, 255]), key: Buffer.from("é") };
  const there = unpack<{ config: typeof config; tls: typeof tls }>(pack({ config, tls }));
  expect(there).toEqual({ config, tls });
  expect(there.config.engine.vllmUrls).toEqual([new URL("http://vllm:8000/base")]);
  expect(there.config.engine.vllmApiKey?.reveal()).toBe("s3cr3t-canary");
  expect(there.config.keys.inline[0]?.key).toBeInstanceOf(Secret);
  expect(Buffer.isBuffer(there.tls.cert)).toBe(true);
  expect(inspect(there, { depth: null, showHidden: true })).not.toContain("canary");
});
