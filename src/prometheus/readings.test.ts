import { describe, expect, it } from "vitest";
import { parseExposition } from "../../test/support/exposition.ts";
import { engineReadings, processReadings, queueReadings, storeReadings } from "./readings.ts";
import { readingsText } from "./text-format.ts";

const vitals = {
  activity: { calls: 3, connections: 2 },
  delayMs: { p50: 1, p99: 20, max: 250 },
  residentBytes: 150e6,
  heapBytes: 40e6,
  cpuSeconds: 1.5,
};

describe("processReadings", () => {
  it("shows a process that does not answer as down, and makes no number up for it", () => {
    const states = new Map([
      ["worker-0", vitals],
      ["worker-1", undefined],
    ]);
    const { samples, sum } = parseExposition(
      readingsText(processReadings({ vitals: states, restarts: 4 })),
    );
    expect(sum("formdev_process_up", { process: "worker-0" })).toBe(1);
    expect(samples.filter(({ labels }) => labels.process === "worker-1")).toEqual([
      { name: "formdev_process_up", labels: { process: "worker-1" }, value: 0 },
    ]);
    expect(sum("formdev_worker_restarts_total")).toBe(4);
    expect(sum("formdev_calls_in_flight")).toBe(3);
    expect(sum("formdev_event_loop_delay_seconds", { statistic: "max" })).toBe(0.25);
  });
});

describe("engineReadings", () => {
  it("shows an engine without calls as down, and says nothing for one that has said nothing", () => {
    const gauges = { running: 9, waiting: 2, kvUsage: 0.75, preemptions: 3 };
    const silent = { id: "a", state: "ejected", limit: 64, running: 1, tokens: 500 } as const;
    const well = { ...silent, id: "b", state: "ready", gauges, gaugesAgeMs: 250 } as const;
    const { samples, sum } = parseExposition(readingsText(engineReadings([silent, well])));
    expect(sum("formdev_engine_up", { engine: "a" })).toBe(0);
    expect(sum("formdev_engine_up", { engine: "b" })).toBe(1);
    expect(sum("formdev_engine_kv_usage_ratio", { engine: "b" })).toBe(0.75);
    expect(sum("formdev_engine_preemptions_total", { engine: "b" })).toBe(3);
    expect(sum("formdev_engine_gauges_age_seconds", { engine: "b" })).toBe(0.25);
    const told = samples.filter(({ labels }) => labels.engine === "a").map(({ name }) => name);
    expect(told).toEqual([
      "formdev_engine_up",
      "formdev_engine_calls",
      "formdev_engine_calls_limit",
      "formdev_engine_tokens_outstanding",
    ]);
  });
});

describe("the other readings", () => {
  it("tell the queue of each class, and whether the store decides", () => {
    const queue = { running: 5, waitingOf: (name: string) => (name === "batch" ? 7 : 1) };
    const { sum } = parseExposition(
      readingsText([...queueReadings(queue), ...storeReadings(false)]),
    );
    expect(sum("formdev_queue_length", { class: "batch" })).toBe(7);
    expect(sum("formdev_engine_calls_running")).toBe(5);
    expect(sum("formdev_store_shared")).toBe(0);
  });
});
