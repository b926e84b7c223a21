import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { CallRecord } from "../usage/call-record.ts";
import { createStartTrace } from "../usage/call-trace.ts";
import { type Span, toSpans } from "./call-spans.ts";

const record: CallRecord = {
  id: "call-1",
  startedAt: 1_800_000_000_000.25,
  durationMs: 1000,
  rpc: "formdev.chat.v1.ChatService/StreamChat",
  outcome: "ok",
  client: "erp",
  model: "qwen",
  queueMs: 20,
  engineAskedMs: 25.5,
  firstTokenMs: 75.5,
  engineFirstTokenMs: 50,
  usage: { promptTokens: 12, completionTokens: 34, cachedPromptTokens: 8 },
};
const parent = {
  traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
  tracestate: "a=b",
  "content-type": "application/grpc",
};
const trace = createStartTrace(1)(parent);
const addresses = { chat: new URL("http://vllm:8000"), embeddings: new URL("https://embed") };
const spansOf = (changes: Partial<CallRecord> = {}) =>
  toSpans({ ...record, ...changes }, trace, addresses);

const attributesOf = (span: Span | undefined) =>
  Object.fromEntries(
    span?.attributes.map(({ key, value }) => [key, Object.values(value)[0]]) ?? [],
  );

describe("toSpans", () => {
  it("makes the call a child of the caller's span, and puts its wait and its engine inside", () => {
    const [call, queue, engine, ...more] = spansOf();
    expect(more).toEqual([]);
    expect(call).toMatchObject({
      name: record.rpc,
      kind: 2,
      spanId: trace.spanId,
      parentSpanId: "00f067aa0ba902b7",
    });
    expect(queue).toMatchObject({ name: "queue", kind: 1, parentSpanId: trace.spanId });
    expect(engine).toMatchObject({
      name: "chat qwen",
      kind: 3,
      spanId: trace.engineSpanId,
      parentSpanId: trace.spanId,
    });
    const inTrace = { traceId: "4bf92f3577b34da6a3ce929d0e0e4736", traceState: "a=b" };
    for (const span of spansOf()) expect(span).toMatchObject(inTrace);
  });

  it("has the first span of a trace without a parent", () => {
    const [call] = toSpans(record, createStartTrace(1)({}), addresses);
    expect(call).not.toHaveProperty("parentSpanId");
    expect(call).not.toHaveProperty("traceState");
  });

  it("tells the time in nanoseconds: the wait ends where the engine begins", () => {
    const times = spansOf().map((span) => [span.startTimeUnixNano, span.endTimeUnixNano]);
    expect(times).toEqual([
      ["1800000000000250000", "1800000001000250000"],
      ["1800000000005750000", "1800000000025750000"],
      ["1800000000025750000", "1800000001000250000"],
    ]);
  });

  it("says who called what, and at the engine's span alone what it has cost", () => {
    const [call, queue, engine] = spansOf();
    const asked = { "gen_ai.operation.name": "chat", "gen_ai.request.model": "qwen" };
    expect(attributesOf(call)).toEqual({
      ...asked,
      "rpc.system.name": "grpc",
      "rpc.method": record.rpc,
      "formdev.request_id": "call-1",
      "formdev.client": "erp",
      "formdev.outcome": "ok",
    });
    expect(attributesOf(queue)).toEqual({});
    expect(attributesOf(engine)).toEqual({
      ...asked,
      "gen_ai.provider.name": "vllm",
      "server.address": "vllm",
      "server.port": "8000",
      "gen_ai.response.time_to_first_chunk": 0.05,
      "gen_ai.usage.input_tokens": "12",
      "gen_ai.usage.output_tokens": "34",
      "gen_ai.usage.cache_read.input_tokens": "8",
    });
  });

  it("names the engine that answered, where there are several", () => {
    const [, , engine] = spansOf({ engine: "http://vllm-2:9000/#10.0.0.3" });
    expect(attributesOf(engine)).toMatchObject({
      "server.address": "vllm-2",
      "server.port": "9000",
      "formdev.engine": "http://vllm-2:9000/#10.0.0.3",
    });
  });

  it.each([
    ["ok", false],
    ["canceled", false],
    ["resource_exhausted", false],
    ["unavailable", true],
    ["data_loss", true],
  ])("the outcome %s is an error: %s", (outcome, isError) => {
    for (const span of spansOf({ outcome }).filter(({ name }) => name !== "queue")) {
      expect(span.status).toEqual(isError ? { code: 2 } : undefined);
      expect(attributesOf(span)["error.type"]).toBe(isError ? outcome : undefined);
    }
  });

  it("has one span for a call that did not get as far as the engine", () => {
    const { engineAskedMs: _, queueMs: __, model: ___, usage: ____, ...refused } = record;
    const spans = toSpans({ ...refused, outcome: "resource_exhausted", reason: "rpm" }, trace, {});
    expect(spans).toHaveLength(1);
    expect(attributesOf(spans[0])).toMatchObject({ "formdev.reason": "rpm" });
    expect(attributesOf(spans[0])).not.toHaveProperty("gen_ai.request.model");
  });

  it("counts no tokens for an engine that has reported none", () => {
    const [, , engine] = spansOf({
      usage: { promptTokens: 0, completionTokens: 0, cachedPromptTokens: 0 },
    });
    expect(attributesOf(engine)).not.toHaveProperty("gen_ai.usage.input_tokens");
  });

  it("names embeddings, and the address of what makes them", () => {
    const [, , engine] = spansOf({ rpc: "formdev.model.v1.ModelService/Embed" });
    expect(engine?.name).toBe("embeddings qwen");
    expect(attributesOf(engine)).toMatchObject({ "server.address": "embed", "server.port": "443" });
  });

  it("keeps every span within the call, for any times", () => {
    const ms = fc.double({ min: 0, max: 3_600_000, noNaN: true });
    fc.assert(
      fc.property(ms, ms, ms, (queueMs, before, after) => {
        const engineAskedMs = queueMs + before;
        const durationMs = engineAskedMs + after;
        const [call, ...inside] = spansOf({ queueMs, engineAskedMs, durationMs });
        for (const { startTimeUnixNano: start, endTimeUnixNano: end } of inside) {
          expect(BigInt(start)).toBeGreaterThanOrEqual(BigInt(call?.startTimeUnixNano ?? 0));
          expect(BigInt(end)).toBeGreaterThanOrEqual(BigInt(start));
          expect(BigInt(end)).toBeLessThanOrEqual(BigInt(call?.endTimeUnixNano ?? 0));
        }
      }),
    );
  });
});
