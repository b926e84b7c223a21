import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { CallRecord } from "./call-record.ts";
import { createUsageTotals, type PeriodTotals } from "./usage-totals.ts";

const hour = 3_600_000;
const begin = Date.parse("2026-12-30T22:00:00Z");

function setUp() {
  let now = begin;
  return {
    totals: createUsageTotals(() => now),
    at(time: string | number) {
      now = new Date(time).getTime();
    },
  };
}

const call = (overrides: Partial<CallRecord> = {}): CallRecord => ({
  id: "call",
  startedAt: begin,
  durationMs: 1,
  rpc: "formdev.chat.v1.ChatService/Chat",
  client: "erp",
  model: "qwen",
  outcome: "ok",
  usage: { promptTokens: 10, cachedPromptTokens: 4, completionTokens: 3 },
  ...overrides,
});

/** The requests in each period, by its kind and first day. */
const requestsIn = (periods: readonly PeriodTotals[]) =>
  Object.fromEntries(
    periods.map(({ kind, start, models }) => [
      `${kind} ${new Date(start).toISOString().slice(0, 10)}`,
      models.reduce((sum, { requests }) => sum + requests, 0),
    ]),
  );

const calls = fc.record({
  startedAt: fc.integer({ min: -40 * 24, max: 0 }),
  client: fc.option(fc.constantFrom("erp", "extranet"), { nil: undefined }),
  model: fc.option(fc.constantFrom("qwen", "mistral", "__proto__"), { nil: undefined }),
  outcome: fc.constantFrom("ok", "canceled", "data_loss", "resource_exhausted", "unavailable"),
  reason: fc.option(fc.constantFrom("rpm" as const, "queue" as const), { nil: undefined }),
  usage: fc.option(
    fc.record({
      promptTokens: fc.nat(10_000),
      cachedPromptTokens: fc.nat(10_000),
      completionTokens: fc.nat(10_000),
    }),
    { nil: undefined },
  ),
});

/** How much of an ISO time names the period. */
const lengthOf = { day: "2026-12-30".length, month: "2026-12".length };

/** What is to be told at `now` of calls of one client. */
function expectedOf(records: readonly CallRecord[], now: number) {
  const iso = (ms: number) => new Date(ms).toISOString();
  const month = iso(now).slice(0, lengthOf.month);
  const running = [iso(now).slice(0, lengthOf.day), month];
  const before = [
    iso(now - 24 * hour).slice(0, lengthOf.day),
    iso(Date.parse(month) - 1).slice(0, lengthOf.month),
  ];
  return [...running, ...before].flatMap((period) => {
    const within = records.filter(({ startedAt }) => iso(startedAt).startsWith(period));
    if (within.length === 0 && before.includes(period)) return [];
    const models = [...new Set(within.map(({ model = "" }) => model))];
    return [{ period, models: models.map((model) => sumOf(within, model)) }];
  });
}

/** What calls of one model add up to. */
function sumOf(records: readonly CallRecord[], model: string) {
  const own = records.filter((record) => (record.model ?? "") === model);
  const sum = (of: (record: CallRecord) => number) => own.reduce((all, each) => all + of(each), 0);
  return {
    model,
    requests: own.length,
    refusedRequests: sum(({ reason }) => (reason === undefined ? 0 : 1)),
    promptTokens: sum(({ usage }) => usage?.promptTokens ?? 0),
    cachedPromptTokens: sum(({ usage }) => usage?.cachedPromptTokens ?? 0),
    completionTokens: sum(({ usage }) => usage?.completionTokens ?? 0),
  };
}

describe("the totals", () => {
  it("are the sums of all records of a client, whatever became of the calls and in whatever order they come", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(calls, fc.nat(30))), (steps) => {
        const { totals, at } = setUp();
        const records: CallRecord[] = [];
        let now = begin;
        for (const [each, hoursLater] of steps) {
          now += hoursLater * hour;
          at(now);
          const { client, model, reason, usage, ...rest } = each;
          const record: CallRecord = {
            id: String(records.length),
            durationMs: 0,
            rpc: "unknown",
            ...rest,
            startedAt: now + each.startedAt * hour,
            ...(client !== undefined && { client }),
            ...(model !== undefined && { model }),
            ...(reason !== undefined && { reason }),
            ...(usage !== undefined && { usage }),
          };
          records.push(record);
          totals.record(record);
        }
        for (const client of ["erp", "extranet"]) {
          const own = records.filter((record) => record.client === client);
          const told = totals.of(client).map(({ start, kind, models }) => ({
            period: new Date(start).toISOString().slice(0, lengthOf[kind]),
            models,
          }));
          expect(told).toEqual(expectedOf(own, now));
        }
      }),
    );
  });

  it("begin anew with each day and month of UTC, and keep the ones before", () => {
    const { totals, at } = setUp();
    totals.record(call());
    expect(requestsIn(totals.of("erp"))).toEqual({ "day 2026-12-30": 1, "month 2026-12-01": 1 });

    at("2026-12-31T00:00:00Z");
    totals.record(call({ startedAt: Date.parse("2026-12-31T00:00:00Z") }));
    expect(requestsIn(totals.of("erp"))).toEqual({
      "day 2026-12-31": 1,
      "month 2026-12-01": 2,
      "day 2026-12-30": 1,
    });

    at("2027-01-01T00:00:00Z");
    expect(requestsIn(totals.of("erp"))).toEqual({
      "day 2027-01-01": 0,
      "month 2027-01-01": 0,
      "day 2026-12-31": 1,
      "month 2026-12-01": 2,
    });
  });

  it("count a call where it began, however late it ends", () => {
    const { totals, at } = setUp();
    at("2027-01-01T00:00:01Z");
    totals.record(call({ startedAt: Date.parse("2026-12-31T23:59:59Z"), durationMs: 2000 }));
    expect(requestsIn(totals.of("erp"))).toEqual({
      "day 2027-01-01": 0,
      "month 2027-01-01": 0,
      "day 2026-12-31": 1,
      "month 2026-12-01": 1,
    });
  });

  it("forget what is older than that", () => {
    const { totals, at } = setUp();
    totals.record(call());
    at("2027-02-01T00:00:00Z");
    totals.record(call());
    expect(requestsIn(totals.of("erp"))).toEqual({ "day 2027-02-01": 0, "month 2027-02-01": 0 });
  });

  it("tell a hundred models apart and lose nothing of the others", () => {
    const { totals } = setUp();
    for (let index = 0; index < 500; index += 1) totals.record(call({ model: `model-${index}` }));
    totals.record(call({ model: "model-7" }));
    const [today] = totals.of("erp");
    expect(today?.models).toHaveLength(101);
    expect(today?.models[7]).toMatchObject({ model: "model-7", requests: 2 });
    expect(today?.models[100]).toMatchObject({ model: "other", requests: 400, promptTokens: 4000 });
  });

  it("hold no more after a year of calls than after two months", () => {
    const { totals, at } = setUp();
    for (let day = 0; day < 365; day += 1) {
      const now = begin + day * 24 * hour;
      at(now);
      totals.record(call({ startedAt: now }));
    }
    expect(totals.of("erp")).toHaveLength(4);
    expect(totals.countedSince).toBe(begin);
  });
});
