import { describe, expect, it } from "vitest";
import { demandsOf, type Refusal, toLimitError } from "./limits.ts";

describe("what a call demands", () => {
  const limits = { rpm: 1, tpm: 2, concurrency: 3, dailyTokens: 4, monthlyTokens: 5 };
  const client = { id: "erp", limits, modelLimits: { mistral: { rpm: 6, tpm: 7 } } };
  const namesOf = (taking: Parameters<typeof demandsOf>[1]) =>
    demandsOf(client, taking).map(({ name, model = "" }) => `${name} ${model}`.trim());

  it("is every limit of its client and of its model, and of no other model", () => {
    const own = ["rpm", "concurrency", "tpm", "dailyTokens", "monthlyTokens"];
    expect(namesOf({ tokens: 1, holds: true })).toEqual(own);
    expect(namesOf({ tokens: 1, holds: true, model: "qwen" })).toEqual(own);
    expect(namesOf({ tokens: 1, holds: true, model: "mistral" })).toEqual([
      ...own,
      "rpm mistral",
      "tpm mistral",
    ]);
  });

  it("is nothing of the limits that it takes nothing of", () => {
    expect(namesOf({ tokens: 0, holds: false })).toEqual(["rpm"]);
  });
});

describe("what a refused caller is told", () => {
  it.each<[Refusal, { kind: string; retryAfterMs?: number; message: string }]>([
    [
      { name: "rpm", limit: 60, amount: 1, retryAfterMs: 1234 },
      {
        kind: "exhausted",
        retryAfterMs: 1234,
        message: "the limit of 60 requests a minute is reached: try again later",
      },
    ],
    [
      { name: "concurrency", model: "mistral", limit: 2, amount: 1 },
      {
        kind: "exhausted",
        retryAfterMs: 1000,
        message: "the limit of 2 requests at once of mistral is reached: try again later",
      },
    ],
    [
      { name: "dailyTokens", limit: 100, amount: 101 },
      {
        kind: "invalid",
        message:
          "the request may cost 101 tokens, more than the limit of 100 tokens a day: shorten it, or lower max_tokens",
      },
    ],
  ])("is what to do: %j", (refusal, told) => {
    expect(toLimitError(refusal)).toMatchObject({ ...told, reason: refusal.name });
  });
});
