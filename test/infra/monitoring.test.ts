import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { parse } from "yaml";
import { storeReadings } from "../../src/prometheus/readings.ts";
import { type Exposition, scrape } from "../support/exposition.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { erpKey, startApp, type TestApp } from "../support/start-app.ts";
import { chatBody } from "../support/unharmed.ts";
import { compose, readInfra } from "./infra-files.ts";

/** What Prometheus itself adds. */
const ofPrometheus = ["up", "ALERTS"];
const labelsOfPrometheus = ["job", "alertname", "alertstate", "severity"];

let vllm: FakeVllm;
let app: TestApp;
let exposed: Exposition;
beforeAll(async () => {
  vllm = await startFakeVllm({ answer: { text: ["Bonjour."] } });
  app = await startApp({ VLLM_URL: vllm.url.href });
  const ask = (key: string) =>
    fetch(`${app.url}/v1/chat`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-api-key": key },
      body: chatBody,
    });
  expect((await ask(erpKey)).status).toBe(200);
  expect((await ask("a-wrong-key-0123456789")).status).toBe(401);
  exposed = await vi.waitFor(async () => {
    const seen = await scrape(app.adminUrl);
    expect(seen.sum("formdev_calls_total")).toBe(2);
    return seen;
  });
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

/** The metrics that the gateway has, as they are named in queries. */
const queryable = () => [
  ...[...exposed.types].flatMap(([name, type]) =>
    type === "histogram" ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
  ),
  ...storeReadings(true).map(({ name }) => name),
];

const metricsIn = (query: string) =>
  query
    .replaceAll(/\{[^}]*\}|\bby \([^)]*\)/g, " ")
    .match(/\b(?:formdev|gen_ai)_\w+|\bup\b|\bALERTS\b/g) ?? [];
const labelsIn = (query: string) => [
  ...[...query.matchAll(/(\w+)\s*(?:=~|!~|!=|=)\s*"/g)].map(([, label = ""]) => label),
  ...[...query.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list = ""]) => list.split(/,\s*/)),
];

/** Every text under a key of this name. */
function textsUnder(key: string, node: unknown): string[] {
  if (typeof node !== "object" || node === null) return [];
  return Object.entries(node).flatMap(([name, value]) =>
    name === key && typeof value === "string" ? [value] : textsUnder(key, value),
  );
}

const dashboard: unknown = JSON.parse(readInfra("grafana/dashboards/gateway.json"));
const queries = {
  "alerts.yml": textsUnder("expr", parse(readInfra("prometheus/alerts.yml"))),
  "gateway.json": textsUnder("expr", dashboard),
};

describe.each(Object.entries(queries))("the queries of %s", (_, expressions) => {
  it("name metrics that the gateway has, and labels that they have", () => {
    expect(expressions.length).toBeGreaterThan(10);
    const labels = new Set(exposed.samples.flatMap((sample) => Object.keys(sample.labels)));
    for (const expression of expressions) {
      expect([...queryable(), ...ofPrometheus]).toEqual(
        expect.arrayContaining(metricsIn(expression)),
      );
      expect(metricsIn(expression), expression).not.toEqual([]);
      expect([...labels, ...labelsOfPrometheus], expression).toEqual(
        expect.arrayContaining(labelsIn(expression)),
      );
    }
  });
});

describe("the dashboard", () => {
  it("shows every metric", () => {
    const shown = queries["gateway.json"].flatMap(metricsIn);
    const missing = [...exposed.types.keys()].filter(
      (name) => !shown.some((query) => query.startsWith(name)),
    );
    expect(missing).toEqual([]);
  });

  it("has panels that do not overlap, with numbers of their own", () => {
    const { panels } = dashboard as {
      panels: { id: number; gridPos: { x: number; y: number; w: number; h: number } }[];
    };
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, cell) => `${x + (cell % w)},${y + Math.floor(cell / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
  });
});

describe("README.md", () => {
  it("lists every metric, and no other", () => {
    const readme = readFileSync(join(import.meta.dirname, "../../README.md"), "utf8");
    const [, watch = ""] = /\n## Watch\n([\s\S]*?)\n## /.exec(readme) ?? [];
    const listed = [...watch.matchAll(/`((?:formdev|gen_ai)_[a-z_]+)(?:\{[^}]*\})?`/g)].map(
      ([, name]) => name,
    );
    const labels = new Set(exposed.samples.flatMap((sample) => Object.keys(sample.labels)));
    expect(listed.filter((name = "") => !labels.has(name)).sort()).toEqual(
      [...exposed.types.keys(), ...storeReadings(true).map(({ name }) => name)].sort(),
    );
  });
});

describe("prometheus.yml", () => {
  it("asks the gateway where compose has it listen, with the key that it gets there", () => {
    const { scrape_configs: jobs } = parse(readInfra("prometheus/prometheus.yml"));
    const port = compose.services.api?.environment?.ADMIN_PORT;
    expect(jobs).toHaveLength(1);
    expect(jobs[0].static_configs).toEqual([{ targets: [`api:${port}`] }]);
    expect(jobs[0].authorization).toEqual({ credentials_file: "/run/secrets/admin_key" });
    expect(compose.services.prometheus?.secrets).toEqual(["admin_key"]);
  });
});
