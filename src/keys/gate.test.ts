import { expect, it } from "vitest";
import { AppError } from "../errors.ts";
import type { CallLimits } from "../limits/call-limits.ts";
import { createGate } from "./gate.ts";
import type { Client } from "./key-registry.ts";

const client: Client = {
  id: "erp",
  rpm: 60,
  maxTokens: 4096,
  weight: 1,
  class: "interactive",
};

function admit(check: CallLimits["check"]) {
  const registry = {
    identify: (key: string | undefined) => (key === "right" ? client : undefined),
  };
  const gate = createGate({ registry, limits: { check } });
  return gate.admit({ key: "right", address: "192.0.2.1", metered: true });
}

it("asks once, with no more of the client than who decides needs", async () => {
  const asked: unknown[] = [];
  await admit(async (call) => {
    asked.push(call);
    return { blockedMs: 0 };
  });
  expect(asked).toEqual([{ address: "192.0.2.1", metered: true, client: { id: "erp", rpm: 60 } }]);
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
