import { describe, expect, it } from "vitest";
import { parseTraceparent } from "../lib/traceparent.ts";
import { createStartTrace, engineTraceparent } from "./call-trace.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const parentSpanId = "00f067aa0ba902b7";
const sampled = { traceparent: `00-${traceId}-${parentSpanId}-01` };
const unsampled = { traceparent: `00-${traceId}-${parentSpanId}-00` };
const all = createStartTrace(1);
const none = createStartTrace(0);

describe("createStartTrace", () => {
  it("goes on with the caller's trace as its child, under an id of its own", () => {
    const trace = all(sampled);
    expect(trace).toMatchObject({ traceId, parentSpanId, isSampled: true });
    expect(new Set([trace.spanId, trace.engineSpanId, parentSpanId]).size).toBe(3);
  });

  it("begins a trace where the header is absent, broken or there twice", () => {
    const broken = [{}, { traceparent: "01" }, { traceparent: [sampled.traceparent] }];
    const traces = broken.map((headers) => all({ ...headers, tracestate: "a=b" }));
    expect(new Set(traces.map((trace) => trace.traceId)).size).toBe(broken.length);
    for (const trace of traces) {
      expect(trace).not.toHaveProperty("parentSpanId");
      expect(trace).not.toHaveProperty("tracestate");
      expect(parseTraceparent(engineTraceparent(trace))).toBeDefined();
    }
  });

  it("does as the caller's trace says, whatever the ratio", () => {
    expect(none(sampled).isSampled).toBe(true);
    expect(all(unsampled).isSampled).toBe(false);
  });

  it("samples the given part of the calls that come without a trace", () => {
    const start = createStartTrace(0.25);
    const count = Array.from({ length: 4000 }, () => start({}).isSampled).filter(Boolean).length;
    // Eight standard deviations.
    expect(Math.abs(count - 1000)).toBeLessThan(220);
    expect(Array.from({ length: 100 }, () => none({}).isSampled)).not.toContain(true);
  });

  it("keeps 512 characters of tracestate, and drops what is longer or no text", () => {
    const of = (tracestate: string | string[]) => all({ ...sampled, tracestate }).tracestate;
    const longest = `a=${"b".repeat(510)}`;
    expect(of(longest)).toBe(longest);
    for (const bad of [`${longest}b`, "", "a=é", "a=\n", ["a=b"]]) expect(of(bad)).toBeUndefined();
  });

  it("tells what the caller speaks", () => {
    const of = (type?: string) => all({ "content-type": type }).rpcSystem;
    expect(["application/grpc", "application/grpc-web+proto"].map(of)).toEqual(["grpc", "grpc"]);
    expect(["application/json", undefined].map(of)).toEqual(["connectrpc", "connectrpc"]);
  });
});

describe("engineTraceparent", () => {
  it("names the engine's span, and the decision for calls that are not sampled too", () => {
    const trace = all(unsampled);
    const expected = { traceId, spanId: trace.engineSpanId, isSampled: false };
    expect(parseTraceparent(engineTraceparent(trace))).toEqual(expected);
  });
});
