import { expect, it } from "vitest";
import { AppError } from "../errors.ts";
import type { CallLimits } from "../limits/call-limits.ts";
import { createGate } from "./gate.ts";
import type { Client } from "./key-registry.ts";

const client: Client = {
  id: "erp",
  limits: { rpm: 60 },
  modelLimits: {},
  maxTokens: 4096,
  weight: 1,
  class: "interactive",
};

function admit(check: CallLimits["check"]) {
  const registry = {
    identify: (key: string | undefined) => (key === "right" ? client : undefined),
  };
  const gate = createGate({ registry, limits: { check, count: () => undefined } });
  return gate.admit({ id: "call", key: "right", address: "192.0.2.1", counts: "now" });
}

it("asks once, with no more of the client than who decides needs", async () => {
  const asked: unknown[] = [];
  await admit(async (call) => {
    asked.push(call);
    return { blockedMs: 0 };
  });
  const { id, limits, modelLimits } = client;
  const known = { id, limits, modelLimits };
  expect(asked).toEqual([{ id: "call", address: "192.0.2.1", counts: "now", client: known }]);
});

it("refuses what a limit does not allow, and says which and until when", async () => {
  const rate = { limit: 60, remaining: 0, resetMs: 5000 };
  const refusal = { name: "rpm", limit: 60, amount: 1, retryAfterMs: 5000 } as const;
  const access = await admit(async () => ({ blockedMs: 0, rate, refusal }));
  expect(access).toMatchObject({ client, rate });
  expect(access.refusal).toMatchObject({
    kind: "exhausted",
    message: "the limit of 60 requests a minute is reached: try again later",
    retryAfterMs: 5000,
    reason: "rpm",
  });
});

it("refuses a right key from a blocked address, without telling that it is right", async () => {
  const access = await admit(async () => ({ blockedMs: 5000 }));
  expect(access.refusal).toMatchObject({ kind: "exhausted", retryAfterMs: 5000 });
  expect(access.client).toBeUndefined();
});

it("lets nobody in, and never throws, when nobody can decide", async () => {
  const gone = await admit(() => Promise.reject(new AppError("unavailable", "stopping")));
  expect(gone).toEqual({ refusal: expect.objectContaining({ kind: "unavailable" }) });
  const broken = await admit(() => Promise.reject(new TypeError("oops")));
  expect(broken).toEqual({ refusal: expect.objectContaining({ kind: "internal" }) });
});
