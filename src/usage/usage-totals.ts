import { noUsage, type Usage } from "../inference/engine.ts";
import type { Mutable } from "../lib/mutable.ts";
import { dayMs } from "../limits/limits.ts";
import type { CallRecord, CallSink } from "./call-record.ts";

export type PeriodKind = "day" | "month";

/** What calls have used in one day or month of UTC. */
export interface PeriodTotals {
  readonly kind: PeriodKind;
  /** Its first moment, in milliseconds since 1970. */
  readonly start: number;
  readonly models: readonly ModelTotals[];
}

/** What calls have used of one model; tokens are the engine's own counts. */
export interface ModelTotals extends Usage {
  /** Empty for calls that came to no model. */
  readonly model: string;
  /** All of them, the refused ones included. */
  readonly requests: number;
  /** Those that a rule refused. */
  readonly refusedRequests: number;
}

/**
 * Adds calls up, by client, model, day and month: exactly, whatever became of a call, as long as the process lives. A call
 * belongs to the period in which it began: the quota's windows count it there too, so that both say the same.
 *
 * It keeps the periods that run and those before them, which calls that began in them may still end in. Memory is bounded by
 * the clients, which are the operator's, and `modelsMax`.
 */
export interface UsageTotals extends CallSink {
  /** When it began to count, in milliseconds since 1970. */
  readonly countedSince: number;
  /** Today, this month, then yesterday and the month before, where the client called in them. */
  of(client: string): readonly PeriodTotals[];
}

/** Models of one client that are told apart in one period. More than a gateway serves: their names are the engine's. */
const modelsMax = 100;
/** What all further models are counted under. */
const otherModels = "other";

const kinds: readonly PeriodKind[] = ["day", "month"];

interface Period {
  readonly kind: PeriodKind;
  readonly start: number;
  readonly models: Map<string, Mutable<ModelTotals>>;
}

/** `now` is milliseconds since 1970. */
export function createUsageTotals(now: () => number = Date.now): UsageTotals {
  const clients = new Map<string, readonly Period[]>();

  const find = (client: string, kind: PeriodKind, start: number): Period | undefined =>
    clients.get(client)?.find((period) => period.kind === kind && period.start === start);

  /** Undefined for a period that is forgotten. */
  const open = (client: string, kind: PeriodKind, start: number): Period | undefined => {
    const isKept = (period: Period) => period.start >= startBefore(period.kind, now());
    const period: Period = { kind, start, models: new Map() };
    if (!isKept(period)) return undefined;
    clients.set(client, [...(clients.get(client) ?? []).filter(isKept), period]);
    return period;
  };

  return {
    countedSince: now(),

    record(call) {
      const { client, startedAt } = call;
      if (client === undefined) return;
      for (const kind of kinds) {
        const start = startOf(kind, startedAt);
        const period = find(client, kind, start) ?? open(client, kind, start);
        if (period !== undefined) add(period.models, call);
      }
    },

    of(client) {
      const at = now();
      const running = kinds.map((kind) => {
        const start = startOf(kind, at);
        return find(client, kind, start) ?? { kind, start, models: new Map() };
      });
      const before = kinds.flatMap((kind) => find(client, kind, startBefore(kind, at)) ?? []);
      return [...running, ...before].map(({ models, ...period }) => ({
        ...period,
        models: [...models.values()].map((totals) => ({ ...totals })),
      }));
    },
  };
}

function add(models: Period["models"], call: CallRecord): void {
  const { model: named = "", reason, usage = noUsage } = call;
  const model = models.has(named) || models.size < modelsMax ? named : otherModels;
  const totals = models.get(model) ?? { model, ...nothing };
  models.set(model, totals);
  totals.requests += 1;
  if (reason !== undefined) totals.refusedRequests += 1;
  totals.promptTokens += usage.promptTokens;
  totals.cachedPromptTokens += usage.cachedPromptTokens;
  totals.completionTokens += usage.completionTokens;
}

const nothing = { requests: 0, refusedRequests: 0, ...noUsage };

/** The first moment of the period that `at` is in. */
function startOf(kind: PeriodKind, at: number): number {
  if (kind === "day") return Math.floor(at / dayMs) * dayMs;
  const day = new Date(at);
  return Date.UTC(day.getUTCFullYear(), day.getUTCMonth());
}

/** The first moment of the period before that one. */
function startBefore(kind: PeriodKind, at: number): number {
  return startOf(kind, startOf(kind, at) - 1);
}
