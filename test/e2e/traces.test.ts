import { createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import type { Span } from "../../src/otlp/call-spans.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeCollector, startFakeCollector } from "../support/fake-collector.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { startProgram } from "../support/program.ts";
import { erpKey, protocols, startApp, transportFor } from "../support/start-app.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const callersSpan = "00f067aa0ba902b7";
const sampled = `00-${traceId}-${callersSpan}-01`;
const question = "canary-of-a-prompt";
const said = "canary-of-an-answer";
const messages = [{ role: "user", content: question }];

let vllm: FakeVllm;
let collector: FakeCollector;
beforeEach(async () => {
  vllm = await startFakeVllm({ answer: { text: [said, "."] } });
  collector = await startFakeCollector();
});
afterEach(async () => {
  await vllm[Symbol.asyncDispose]();
  await collector[Symbol.asyncDispose]();
});

const start = (env: Readonly<Record<string, string>> = {}) =>
  startApp({
    VLLM_URL: vllm.url.href,
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    ...env,
  });

type Headers = Readonly<Record<string, string>>;

const post = (url: string, headers: Headers, path = "/v1/chat") =>
  fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": erpKey, ...headers },
    body: JSON.stringify({ messages }),
  });

/** What a drained gateway has sent, by its spans' names. */
const named = (name: string) => collector.spans().filter((span) => span.name === name);

const attribute = (span: Span | undefined, name: string) =>
  Object.values(span?.attributes.find(({ key }) => key === name)?.value ?? {})[0];

describe("with a collector", () => {
  it.each(protocols)(
    "%s: the caller's trace goes on through our spans to vLLM",
    async (protocol) => {
      await using app = await start();
      const client = createClient(ChatService, transportFor(protocol, app.url));
      const headers = { traceparent: sampled, tracestate: "vendor=1" };
      for await (const _ of client.streamChat({ messages }, { headers }));
      await app[Symbol.asyncDispose]();

      const [call] = named("formdev.chat.v1.ChatService/StreamChat");
      const [queue] = named("queue");
      const [engine] = named("chat fake-model");
      expect(collector.spans()).toHaveLength(3);
      for (const span of [call, queue, engine])
        expect(span).toMatchObject({ traceId, traceState: "vendor=1" });
      expect(call?.parentSpanId).toBe(callersSpan);
      expect([queue?.parentSpanId, engine?.parentSpanId]).toEqual([call?.spanId, call?.spanId]);
      expect(attribute(call, "formdev.client")).toBe("erp");
      expect(attribute(call, "rpc.system.name")).toBe(
        protocol.startsWith("gRPC") ? "grpc" : "connectrpc",
      );
      expect(Number(attribute(engine, "gen_ai.usage.output_tokens"))).toBeGreaterThan(0);
      expect(attribute(engine, "server.port")).toBe(vllm.url.port);

      const asked = await vllm.request(0);
      expect(asked.headers.traceparent).toBe(`00-${traceId}-${engine?.spanId}-01`);
      expect(asked.headers).not.toHaveProperty("tracestate");
    },
  );

  it("a call that takes Connect's path carries the same trace to vLLM", async () => {
    await using app = await start();
    // A message that has to be unpacked is not a usual one.
    const answered = await fetch(`${app.url}/formdev.chat.v1.ChatService/Chat`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "content-encoding": "gzip",
        "x-api-key": erpKey,
        traceparent: sampled,
      },
      body: await new Response(
        new Blob([JSON.stringify({ messages })])
          .stream()
          .pipeThrough(new CompressionStream("gzip")),
      ).bytes(),
    });
    expect(answered.status).toBe(200);
    await app[Symbol.asyncDispose]();
    const { headers } = await vllm.request(0);
    expect(headers.traceparent).toBe(`00-${traceId}-${named("chat fake-model")[0]?.spanId}-01`);
  });

  it("embeddings have a span too", async () => {
    await using app = await start({ EMBEDDINGS_URL: vllm.url.href });
    const client = createClient(ModelService, transportFor("gRPC", app.url));
    await client.embed({ model: "fake-embedder", inputs: [question] });
    await app[Symbol.asyncDispose]();
    expect(collector.spans().map(({ kind }) => kind)).toEqual([2, 1, 3]);
    expect(named("embeddings fake-embedder")).toHaveLength(1);
  });

  it("a call without a trace begins one; one that its caller does not record is in no trace", async () => {
    await using app = await start();
    await post(app.url, {});
    await post(app.url, { traceparent: sampled.replace(/01$/, "00") });
    await app[Symbol.asyncDispose]();
    const [call, ...more] = named("formdev.chat.v1.ChatService/Chat");
    expect(more).toEqual([]);
    expect(call).not.toHaveProperty("parentSpanId");
    const headers = vllm.requests.map((request) => request.headers.traceparent);
    expect(headers[0]).toBe(`00-${call?.traceId}-${named("chat fake-model")[0]?.spanId}-01`);
    // Told, so that vLLM leaves it out as well.
    expect(headers[1]).toMatch(new RegExp(`^00-${traceId}-(?!${callersSpan})[0-9a-f]{16}-00$`));
  });

  it("nobody without a key has anything traced, whatever trace it sends", async () => {
    await using app = await start();
    const statuses = [
      await post(app.url, { "x-api-key": "a-wrong-key-0123456789", traceparent: sampled }),
      await post(app.url, { "x-api-key": "", traceparent: sampled }),
      await post(app.url, { "x-api-key": "", traceparent: sampled }, "/nowhere"),
      await fetch(`${app.url}/health`, { headers: { traceparent: sampled } }),
      await fetch(`${app.url}/formdev.health.v1.HealthService/Check`, {
        method: "POST",
        headers: { "content-type": "application/json", traceparent: sampled },
        body: "{}",
      }),
    ].map(({ status }) => status);
    expect(statuses).toEqual([401, 401, 401, 200, 200]);
    await app[Symbol.asyncDispose]();
    expect(collector.requests).toEqual([]);
  });

  it("no prompt, answer, key or header is in what the collector gets; the collector's own headers are", async () => {
    const credential = "canary-of-the-collector";
    await using app = await start({
      OTEL_EXPORTER_OTLP_HEADERS: `authorization=Bearer%20${credential}`,
      OTEL_SERVICE_NAME: "gateway-in-paris",
      VLLM_API_KEY: "canary-of-vllm",
    });
    await post(app.url, { "x-canary": "canary-of-a-header", "user-agent": "canary-of-an-agent" });
    await post(app.url, { traceparent: "canary-of-a-trace", tracestate: "canary-of-a-state" });
    await app[Symbol.asyncDispose]();
    expect(collector.requests.length).toBeGreaterThan(0);
    for (const { path, headers, body } of collector.requests) {
      expect(path).toBe("/v1/traces");
      expect(headers.authorization).toBe(`Bearer ${credential}`);
      expect(headers["content-type"]).toBe("application/json");
      expect(body).not.toMatch(new RegExp(`canary|${erpKey}`));
      expect(body).toContain("gateway-in-paris");
    }
    expect(JSON.stringify(app.logs)).not.toContain("canary");
  });

  it.each([
    ["is not there", undefined],
    ["refuses", 400],
    ["is overloaded", 503],
    ["sends us elsewhere", 307],
    ["never answers", 0],
  ])(
    "a collector that %s changes no answer, and the end waits two seconds for it at most",
    async (_, status) => {
      if (status === undefined) await collector[Symbol.asyncDispose]();
      else collector.answer(status);
      await using app = await start({ OTEL_EXPORTER_OTLP_HEADERS: "authorization=canary" });
      const answers = await Promise.all(Array.from({ length: 20 }, () => post(app.url, {})));
      for (const each of answers) {
        expect(each.status).toBe(200);
        expect(await each.json()).toMatchObject({ message: { content: `${said}.` } });
      }
      const stoppedAt = performance.now();
      await app[Symbol.asyncDispose]();
      expect(performance.now() - stoppedAt).toBeLessThan(3000);
      const warnings = app.logs.filter(({ msg }) => /collector/.test(String(msg)));
      expect(warnings.length).toBeGreaterThan(0);
      expect(JSON.stringify(app.logs)).not.toContain("canary");
      expect(collector.requests.map(({ path }) => path)).not.toContain("/elsewhere");
      if (status === undefined) collector = await startFakeCollector();
    },
  );
});

describe("without a collector", () => {
  it("vLLM is told no trace, and nothing is loaded for one", async () => {
    vi.doMock("../../src/otlp/otlp-traces.ts", () => {
      throw new Error("loaded");
    });
    try {
      await using app = await startApp({ VLLM_URL: vllm.url.href, OTEL_TRACES_SAMPLER_ARG: "1" });
      expect((await post(app.url, { traceparent: sampled, tracestate: "a=b" })).status).toBe(200);
      const { headers } = await vllm.request(0);
      expect(headers).not.toHaveProperty("traceparent");
      expect(headers).not.toHaveProperty("tracestate");
      await expect(start()).rejects.toThrow();
    } finally {
      vi.doUnmock("../../src/otlp/otlp-traces.ts");
    }
  });
});

describe("several processes", () => {
  it("send each call once, those that run while they stop too", { timeout: 60_000 }, async () => {
    const { promise, resolve: release } = Promise.withResolvers<void>();
    const calls = 12;
    for (let call = 0; call < calls; call += 1)
      vllm.reply(answer({ text: ["un", "deux"] }, { after: 1, by: () => promise }));
    await using program = startProgram({
      VLLM_URL: vllm.url.href,
      API_KEYS: `erp:${erpKey}`,
      PROCESSES: "2",
      LOG_LEVEL: "debug",
      OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/base/`,
    });
    await program.printed(/(a process takes connections[\s\S]*){2}/);
    const [, url = ""] = await program.printed(/"url":"(http:[^"]+)"/);
    const answers = Array.from({ length: calls }, () => post(url, {}));
    await eventually("all calls run", () => vllm.requests.length === calls);
    program.process.kill("SIGTERM");
    await program.printed(/draining/);
    release();
    for (const each of await Promise.all(answers)) expect(each.status).toBe(200);
    expect(await program.ended).toBe(0);

    const traced = named("formdev.chat.v1.ChatService/Chat");
    expect(new Set(traced.map((span) => span.traceId)).size).toBe(calls);
    expect(collector.spans()).toHaveLength(3 * calls);
    expect(new Set(collector.requests.map(({ path }) => path))).toEqual(
      new Set(["/base/v1/traces"]),
    );
    const told = vllm.requests.map(({ headers }) => String(headers.traceparent).split("-")[2]);
    const engines = named("chat fake-model").map(({ spanId }) => spanId);
    expect(told.sort()).toEqual(engines.sort());
  });
});
