import fc from "fast-check";
import { expect, it } from "vitest";
import { dayMs, type LimitedClient, type Limits, minuteMs } from "../../src/limits/limits.ts";
import type { Grant, Quota, QuotaCall, Refused } from "../../src/limits/quota.ts";

/** A quota whose time the tests move. */
export interface QuotaInTest extends AsyncDisposable {
  /** All that decide together, one for each gateway. */
  readonly quotas: readonly [Quota, ...Quota[]];
  /** Lets time pass, less than a day in all, in which no day ends. */
  pass(ms: number): Promise<void>;
  /** Goes to the next day, and to the first day of the next month. */
  nextDay(): Promise<void>;
  nextMonth(): Promise<void>;
  /** Milliseconds that pass by themselves during a test, at most. */
  readonly driftMs: number;
}

let clientCount = 0;

/** A client that nothing is counted of yet, in whatever store. */
export function newClient(
  limits: Limits,
  modelLimits: LimitedClient["modelLimits"] = {},
): LimitedClient {
  clientCount += 1;
  return { id: `client-${clientCount}`, limits, modelLimits };
}

/** No call that goes on is forgotten for having taken too long. */
const foreverMs = 10_000 * dayMs;

let callCount = 0;

/** A call for 1 token, unless `call` says otherwise. */
export function newCall(client: LimitedClient, call: Partial<QuotaCall> = {}): QuotaCall {
  callCount += 1;
  return { id: `call-${callCount}`, client, tokens: 1, holds: true, lastsMs: foreverMs, ...call };
}

/** What every quota promises, wherever it counts. */
export function quotaGuarantees(start: () => Promise<QuotaInTest>): void {
  const kinds = ["rpm", "tpm", "concurrency", "dailyTokens", "monthlyTokens"] as const;
  const models = ["", "mistral"];

  it.each(kinds.flatMap((name) => models.map((model) => ({ name, model }))))(
    "grants exactly the limit of a thousand concurrent calls: $name $model",
    async ({ name, model }) => {
      await using subject = await start();
      const amount = name.endsWith("okens") || name === "tpm" ? 3 : 1;
      const limits = { [name]: 137 * amount + (amount - 1) };
      const client = newClient(model ? {} : limits, model ? { [model]: limits } : {});
      const answers = await Promise.all(
        Array.from({ length: 1000 }, (_, index) => {
          const quota = subject.quotas[index % subject.quotas.length] ?? subject.quotas[0];
          return quota.take(newCall(client, { tokens: amount, ...(model && { model }) }));
        }),
      );
      expect(answers.filter(({ granted }) => granted)).toHaveLength(137);
      for (const answer of answers) {
        if (!answer.granted) expect(answer.refusal).toMatchObject({ name, amount });
      }
    },
  );

  it("grants what its limits allow and nothing else, and counts it until its window ends, whatever happens", async () => {
    await using subject = await start();
    await fc.assert(
      fc.asyncProperty(limitsOfClient, fc.array(step, { maxLength: 60 }), async (limits, steps) => {
        await replay(subject, newClient(limits.own, { mistral: limits.ofModel }), steps);
      }),
      { numRuns: 60 },
    );
  });

  it.each([
    ["cancelled", (grant: Grant) => grant.cancel(), { rpm: 0, tpm: 0, dailyTokens: 0 }],
    ["over", (grant: Grant) => grant[Symbol.dispose](), { rpm: 9, tpm: 90, dailyTokens: 90 }],
  ])("gives back once what a call that is %s has taken", async (_, end, used) => {
    await using subject = await start();
    const [quota] = subject.quotas;
    const client = newClient({ rpm: 9, tpm: 90, concurrency: 9, dailyTokens: 90 });
    const calls = Array.from({ length: 9 }, () => quota.take(newCall(client, { tokens: 10 })));
    for (const grant of (await Promise.all(calls)).filter(isGrant)) {
      end(grant);
      // Whatever comes after the first end is too late.
      grant.settle(1000);
      grant[Symbol.dispose]();
      grant.cancel();
    }
    const states = (await quota.usage(client)).map((state) => [state.name, state.used]);
    expect(Object.fromEntries(states)).toEqual({ ...used, concurrency: 0 });
  });
}

export function isGrant(answer: Grant | Refused): answer is Grant {
  return answer.granted;
}

const optional = (min: number, max: number) =>
  fc.option(fc.integer({ min, max }), { nil: undefined });
const limits = fc
  .record({
    rpm: optional(1, 6),
    tpm: optional(20, 150),
    concurrency: optional(1, 4),
    dailyTokens: optional(50, 400),
    monthlyTokens: optional(100, 800),
  })
  .map((all): Limits => Object.fromEntries(Object.entries(all).filter(([, limit]) => limit)));
const limitsOfClient = fc.record({ own: limits, ofModel: limits });

type Step =
  | { readonly take: Pick<QuotaCall, "tokens" | "holds"> & { readonly model: string | undefined } }
  | { readonly end: number; readonly how: "cancel" | "dispose" | number }
  | { readonly passSeconds: number }
  | { readonly next: "day" | "month" };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({
      take: fc.record({
        model: fc.constantFrom(undefined, "mistral", "qwen"),
        tokens: fc.integer({ min: 0, max: 60 }),
        holds: fc.boolean(),
      }),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      end: fc.nat(60),
      how: fc.oneof(
        fc.constantFrom("cancel" as const, "dispose" as const),
        fc.integer({ min: 0, max: 90 }),
      ),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ passSeconds: fc.constantFrom(1, 7, 25, 59, 60) }),
  },
  { weight: 1, arbitrary: fc.record({ next: fc.constantFrom("day" as const, "month" as const) }) },
);

async function replay(subject: QuotaInTest, client: LimitedClient, steps: readonly Step[]) {
  const [quota] = subject.quotas;
  const ledger = createLedger(client);
  const running: { readonly grant: Grant; readonly entry: Entry }[] = [];
  await subject.nextMonth();
  for (const one of steps) {
    if ("take" in one) {
      const { model, ...rest } = one.take;
      const call = newCall(client, { ...rest, ...(model !== undefined && { model }) });
      const answer = await quota.take(call);
      const reasons = ledger.reasonsAgainst(call);
      if (answer.granted) {
        expect(reasons, "granted against a limit").toEqual([]);
        running.push({ grant: answer, entry: ledger.enter(call) });
      } else expectReason(answer, reasons, subject.driftMs);
    } else if ("end" in one) {
      const [ended] = running.splice(one.end % Math.max(1, running.length), 1);
      if (ended === undefined) continue;
      if (typeof one.how === "number") ended.grant.settle(one.how);
      if (one.how === "cancel") ended.grant.cancel();
      ended.grant[Symbol.dispose]();
      ledger.end(ended.entry, one.how);
    } else if ("passSeconds" in one) {
      await subject.pass(one.passSeconds * 1000);
      ledger.pass(one.passSeconds * 1000);
    } else if (one.next === "month" || ledger.dayOfMonth < 28) {
      await (one.next === "day" ? subject.nextDay() : subject.nextMonth());
      ledger.next(one.next);
    }
    const used = (await quota.usage(client)).map((state) => [keyOf(state), state.used]);
    expect(Object.fromEntries(used)).toEqual(ledger.used());
  }
}

interface Reason {
  readonly key: string;
  /** Milliseconds to wait, where the ledger knows; days are more than minutes, and months at least as much as days. */
  readonly waitMs: number;
}

function expectReason({ refusal }: Refused, reasons: readonly Reason[], driftMs: number) {
  const reason = reasons.find(({ key }) => key === keyOf(refusal));
  expect(reason, "refused for a limit that is not reached").toBeDefined();
  const { waitMs } = reason ?? { waitMs: 0 };
  const longest = Math.max(...reasons.map((other) => other.waitMs));
  // The end of a day can be as near as that of a minute or a month.
  if (longest < dayMs || longest === Number.POSITIVE_INFINITY) expect(waitMs).toBe(longest);
  if (waitMs === Number.POSITIVE_INFINITY || waitMs === 0) {
    expect(refusal.retryAfterMs).toBeUndefined();
  } else if (waitMs <= minuteMs) {
    expect(refusal.retryAfterMs).toBeLessThanOrEqual(waitMs);
    expect(refusal.retryAfterMs).toBeGreaterThanOrEqual(waitMs - driftMs);
  }
}

interface Entry {
  readonly parts: { readonly book: Book; readonly window: number; amount: number }[];
}

interface Book {
  readonly key: string;
  readonly name: keyof Limits;
  readonly model: string | undefined;
  readonly limit: number;
  /** Which window runs: its number, and where it ends. */
  window: number;
  endsAt: number;
  entries: { window: number; amount: number }[];
}

const keyOf = ({ name, model }: { readonly name: string; readonly model?: string | undefined }) =>
  `${name} ${model ?? ""}`;

/** The plainest account of what a client has used: every amount ever taken, summed up anew for each question. */
function createLedger(client: LimitedClient) {
  let now = 0;
  let dayOfMonth = 1;
  const bookOf =
    (model: string | undefined) =>
    ([name, limit]: [string, number]) =>
      ({
        key: keyOf({ name, model }),
        name,
        model,
        limit,
        window: 0,
        endsAt: 0,
        entries: [],
      }) as Book;
  const books = [
    ...Object.entries(client.limits).map(bookOf(undefined)),
    ...Object.entries(client.modelLimits).flatMap(([model, own]) =>
      Object.entries(own).map(bookOf(model)),
    ),
  ];
  const isMinute = ({ name }: Book) => name === "rpm" || name === "tpm";
  const usedOf = (book: Book) => {
    if (isMinute(book) && now >= book.endsAt) return 0;
    const own = book.entries.filter(({ window }) => window === book.window);
    return own.reduce((sum, { amount }) => sum + amount, 0);
  };
  const amountOf = ({ name }: Book, { tokens, holds }: QuotaCall) =>
    name === "rpm" ? 1 : name === "concurrency" ? Number(holds) : tokens;
  const concerned = (call: QuotaCall) =>
    books.filter((book) => (book.model ?? call.model) === call.model && amountOf(book, call) > 0);
  const waitOf = (book: Book, amount: number) => {
    if (amount > book.limit) return Number.POSITIVE_INFINITY;
    if (book.name === "concurrency") return 0;
    return isMinute(book) ? book.endsAt - now : dayMs;
  };

  return {
    get dayOfMonth() {
      return dayOfMonth;
    },
    reasonsAgainst: (call: QuotaCall): Reason[] =>
      concerned(call)
        .filter((book) => usedOf(book) + amountOf(book, call) > book.limit)
        .map((book) => ({ key: book.key, waitMs: waitOf(book, amountOf(book, call)) })),
    enter(call: QuotaCall): Entry {
      return {
        parts: concerned(call).map((book) => {
          if (isMinute(book) && now >= book.endsAt) {
            book.window += 1;
            book.endsAt = now + minuteMs;
          }
          const line = { window: book.window, amount: amountOf(book, call) };
          book.entries.push(line);
          return Object.assign(line, { book });
        }),
      };
    },
    end({ parts }: Entry, how: "cancel" | "dispose" | number) {
      for (const part of parts) {
        if (how === "cancel" || part.book.name === "concurrency") part.amount = 0;
        else if (typeof how === "number" && part.book.name !== "rpm") part.amount = how;
      }
    },
    pass(ms: number) {
      now += ms;
    },
    next(period: "day" | "month") {
      now += dayMs;
      dayOfMonth = period === "day" ? dayOfMonth + 1 : 1;
      for (const book of books) {
        if (book.name === "dailyTokens" || (period === "month" && book.name === "monthlyTokens")) {
          book.window += 1;
        }
      }
    },
    used: () => Object.fromEntries(books.map((book) => [book.key, usedOf(book)])),
  };
}
