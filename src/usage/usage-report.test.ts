import { expect, it } from "vitest";
import { createMemoryQuota } from "../limits/quota.ts";
import { createUsageReporter } from "./usage-report.ts";
import { createUsageTotals } from "./usage-totals.ts";

const client = {
  id: "erp",
  limits: { rpm: 60, concurrency: 2, dailyTokens: 1000, monthlyTokens: 5000 },
  modelLimits: { qwen: { tpm: 100 } },
};

it("says what is used, what is left, and when a limit that is in use is whole again", async () => {
  let now = Date.parse("2026-12-31T23:59:30.250Z");
  const clock = () => now;
  const quota = createMemoryQuota(clock);
  const totals = createUsageTotals(clock);
  const { report } = createUsageReporter({ quota, totals }, clock);

  const call = { id: "1", client, model: "qwen", tokens: 80, holds: true, lastsMs: 1000 };
  const grant = quota.count(call);
  // More than was expected, and more than the model's limit.
  grant.settle(130);
  expect((await report(client)).limits).toEqual([
    { name: "rpm", limit: 60, used: 1, remaining: 59, resetAt: Date.parse("2027-01-01T00:00:31Z") },
    { name: "concurrency", limit: 2, used: 1, remaining: 1 },
    { name: "dailyTokens", limit: 1000, used: 80, remaining: 920, resetAt: Date.UTC(2027, 0) },
    { name: "monthlyTokens", limit: 5000, used: 80, remaining: 4920, resetAt: Date.UTC(2027, 0) },
    {
      name: "tpm",
      model: "qwen",
      limit: 100,
      used: 80,
      remaining: 20,
      resetAt: Date.parse("2027-01-01T00:00:31Z"),
    },
  ]);

  grant[Symbol.dispose]();
  const after = (await report(client)).limits;
  expect(after[1]).toEqual({ name: "concurrency", limit: 2, used: 0, remaining: 2 });
  expect(after[4]).toMatchObject({ used: 130, remaining: 0 });

  now = Date.UTC(2027, 0);
  expect((await report(client)).limits[2]).toEqual({
    name: "dailyTokens",
    limit: 1000,
    used: 0,
    remaining: 1000,
  });
});

it("tells each client of itself alone", async () => {
  const quota = createMemoryQuota();
  const totals = createUsageTotals();
  const { report } = createUsageReporter({ quota, totals });
  const record = { id: "1", startedAt: Date.now(), durationMs: 1, rpc: "unknown", outcome: "ok" };
  totals.record({ ...record, client: "erp" });
  quota.count({ id: "1", client, tokens: 0, holds: true, lastsMs: 1000 });
  const other = await report({ ...client, id: "extranet" });
  expect(other.client).toBe("extranet");
  expect(other.limits.map(({ used }) => used)).toEqual([0, 0, 0, 0, 0]);
  expect(other.periods.flatMap(({ models }) => models)).toEqual([]);
});
