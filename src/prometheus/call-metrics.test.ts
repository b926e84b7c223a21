import { describe, expect, it } from "vitest";
import { parseExposition } from "../../test/support/exposition.ts";
import type { CallRecord } from "../usage/call-record.ts";
import { createCallMetrics } from "./call-metrics.ts";

const chat: CallRecord = {
  id: "1",
  startedAt: 0,
  durationMs: 1050,
  rpc: "formdev.chat.v1.ChatService/StreamChat",
  client: "erp",
  model: "qwen",
  outcome: "ok",
  queueMs: 20,
  firstTokenMs: 50,
  engineFirstTokenMs: 27,
  usage: { promptTokens: 300, completionTokens: 11, cachedPromptTokens: 256 },
};
const labels = {
  gen_ai_operation_name: "chat",
  gen_ai_request_model: "qwen",
  client: "erp",
};

/** What is measured of these calls. */
function measured(...calls: readonly Partial<CallRecord>[]) {
  const metrics = createCallMetrics();
  for (const call of calls) metrics.record({ ...chat, ...call });
  return parseExposition(metrics.text());
}

/** A call that was refused before anything was asked of an engine. */
const refused: Partial<CallRecord> = { model: undefined, usage: undefined } as object;

describe("createCallMetrics", () => {
  it("tells an answered call's tokens and times, as OpenTelemetry names them", () => {
    const { sum } = measured(chat);
    const tokens = (type: string) =>
      sum("gen_ai_client_token_usage_sum", { ...labels, gen_ai_token_type: type });
    expect([tokens("input"), tokens("output")]).toEqual([300, 11]);
    expect(sum("formdev_cached_prompt_tokens_total", { client: "erp" })).toBe(256);
    expect(sum("gen_ai_server_request_duration_seconds_sum", labels)).toBeCloseTo(1.05);
    expect(sum("gen_ai_server_time_to_first_token_seconds_sum", labels)).toBeCloseTo(0.05);
    expect(sum("gen_ai_server_time_per_output_token_seconds_sum", labels)).toBeCloseTo(0.1);
    expect(sum("formdev_overhead_seconds_sum")).toBeCloseTo(0.003);
  });

  it("has no time per further token of a single one, and none of an answer that was cut", () => {
    const one = { promptTokens: 1, completionTokens: 1, cachedPromptTokens: 0 };
    const { sum } = measured({ usage: one }, { outcome: "canceled" });
    expect(sum("gen_ai_server_time_per_output_token_seconds_count")).toBe(0);
    expect(sum("gen_ai_server_request_duration_seconds_count", { error_type: "canceled" })).toBe(1);
    expect(sum("gen_ai_server_request_duration_seconds_count", { error_type: "" })).toBe(1);
  });

  it("tells embeddings from chats", () => {
    const { sum } = measured({ rpc: "formdev.model.v1.ModelService/Embed" });
    expect(
      sum("gen_ai_client_token_usage_count", { gen_ai_operation_name: "embeddings" }),
    ).toBeGreaterThan(0);
  });

  it("counts refusals by client and rule, and those without a key together", () => {
    const nobody = { ...refused, client: undefined, outcome: "unauthenticated" } as object;
    const { sum, samples } = measured(
      { ...refused, outcome: "resource_exhausted", reason: "rpm" },
      nobody,
      nobody,
    );
    expect(sum("formdev_refusals_total", { client: "erp", reason: "rpm" })).toBe(1);
    expect(sum("formdev_refusals_total", { client: "", reason: "unauthenticated" })).toBe(2);
    expect(samples.filter(({ name }) => name === "formdev_calls_total")).toHaveLength(2);
  });

  it("counts a lost call, and guesses neither its tokens nor its times", () => {
    const { sum } = measured({ isLost: true, outcome: "unavailable" });
    expect(sum("formdev_lost_calls_total", { client: "erp" })).toBe(1);
    expect(sum("formdev_calls_total", { code: "unavailable" })).toBe(1);
    expect(sum("gen_ai_client_token_usage_count")).toBe(0);
    expect(sum("gen_ai_server_request_duration_seconds_count")).toBe(0);
  });

  it("does not let the clocks of two processes make an overhead negative", () => {
    expect(measured({ queueMs: 40 }).sum("formdev_overhead_seconds_sum")).toBe(0);
  });

  it("has no more series however many clients and models there are", () => {
    const calls = Array.from({ length: 1000 }, (_, index) => ({
      client: `client-${index}`,
      model: `model-${index % 100}`,
    }));
    const { samples, sum } = measured(...calls);
    const values = (label: string) => new Set(samples.map(({ labels: own }) => own[label] ?? ""));
    expect(values("client").size).toBeLessThanOrEqual(202);
    expect(values("gen_ai_request_model").size).toBeLessThanOrEqual(52);
    expect(sum("formdev_calls_total")).toBe(1000);
    expect(sum("formdev_calls_total", { client: "other" })).toBe(800);
  });

  it("tells how long calls of each class have waited", () => {
    const metrics = createCallMetrics();
    metrics.waited("batch", 1500);
    metrics.waited("interactive", 0);
    const { sum } = parseExposition(metrics.text());
    expect(sum("formdev_queue_wait_seconds_sum", { class: "batch" })).toBe(1.5);
    expect(sum("formdev_queue_wait_seconds_bucket", { class: "interactive", le: "0.001" })).toBe(1);
  });
});
