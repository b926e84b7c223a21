import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  LimitKind,
  type LimitSchema,
  PeriodKind as PeriodKindProto,
  type PeriodSchema,
} from "../../gen/formdev/usage/v1/usage_pb.ts";
import type { UsageService } from "../../gen/formdev/usage/v1/usage_service_pb.ts";
import type { LimitName } from "../limits/limits.ts";
import { callOf, clientOf } from "../rpc/call.ts";
import type { LimitStanding, UsageReporter } from "./usage-report.ts";
import type { PeriodKind, PeriodTotals } from "./usage-totals.ts";

/** Translates UsageService to the use case. The client is the caller's own, whatever the request says. */
export function createUsageHandler(usage: UsageReporter): ServiceImpl<typeof UsageService> {
  return {
    async getUsage(_request, context) {
      const report = await usage.report(clientOf(callOf(context)));
      // A cache on the way does not know that X-API-Key decides whose answer it is.
      context.responseHeader.set("cache-control", "no-store");
      return {
        client: report.client,
        limits: report.limits.map(toLimit),
        periods: report.periods.map(toPeriod),
        countedSince: timestampFromMs(report.countedSince),
      };
    },
  };
}

const limitKinds: Readonly<Record<LimitName, LimitKind>> = {
  rpm: LimitKind.REQUESTS_PER_MINUTE,
  tpm: LimitKind.TOKENS_PER_MINUTE,
  concurrency: LimitKind.CONCURRENT_REQUESTS,
  dailyTokens: LimitKind.TOKENS_PER_DAY,
  monthlyTokens: LimitKind.TOKENS_PER_MONTH,
};

const periodKinds: Readonly<Record<PeriodKind, PeriodKindProto>> = {
  day: PeriodKindProto.DAY,
  month: PeriodKindProto.MONTH,
};

function toLimit(standing: LimitStanding): MessageInitShape<typeof LimitSchema> {
  const { name, model = "", limit, used, remaining, resetAt } = standing;
  return {
    kind: limitKinds[name],
    model,
    limit: BigInt(limit),
    used: BigInt(used),
    remaining: BigInt(remaining),
    ...(resetAt !== undefined && { resetTime: timestampFromMs(resetAt) }),
  };
}

function toPeriod({ kind, start, models }: PeriodTotals): MessageInitShape<typeof PeriodSchema> {
  return {
    kind: periodKinds[kind],
    startTime: timestampFromMs(start),
    models: models.map((totals) => ({
      model: totals.model,
      requests: BigInt(totals.requests),
      refusedRequests: BigInt(totals.refusedRequests),
      promptTokens: BigInt(totals.promptTokens),
      cachedPromptTokens: BigInt(totals.cachedPromptTokens),
      completionTokens: BigInt(totals.completionTokens),
    })),
  };
}
