import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { chat, chatRequest, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import {
  type Fixture,
  refuse,
  replay,
  type Script,
} from "../../../test/support/fake-vllm-replies.ts";
import type { VllmEvent } from "./vllm-engine.ts";

const folder = new URL("../../../test/fixtures/vllm/", import.meta.url);
const fixture = (name: string): Fixture =>
  JSON.parse(readFileSync(new URL(`${name}.json`, folder), "utf8"));
const never = () => new AbortController().signal;

describe("the other calls", () => {
  it("list the models with their context", async () => {
    await using vllm = await startFakeVllm({ model: "qwen", contextTokens: 4_096 });
    await using engine = engineFor(vllm);
    expect(await engine.listModels(never())).toEqual([{ id: "qwen", contextTokens: 4_096 }]);
    vllm.route("GET /v1/models", replay(fixture("models")));
    await using other = engineFor(vllm);
    expect(await other.listModels(never())).toEqual([{ id: "smollm2", contextTokens: 2_048 }]);
  });

  it("count tokens over the same messages and tools as a chat", async () => {
    await using vllm = await startFakeVllm();
    let body: unknown;
    const script: Script = (reply, request) => {
      body = request.body;
      return replay(fixture("tokenize-messages"))(reply, request);
    };
    vllm.route("POST /tokenize", script);
    await using engine = engineFor(vllm);
    const tools = [{ name: "f", description: "d", parameters: {} }];
    expect(await engine.countTokens(chatRequest({ tools }), never())).toBe(
      JSON.parse(fixture("tokenize-messages").response.body).count,
    );
    expect(body).toEqual({
      model: "fake-model",
      messages: [{ role: "user", content: "Bonjour" }],
      tools: [{ type: "function", function: { name: "f", description: "d" } }],
      add_generation_prompt: true,
    });
  });

  it.each<[string, Script, string]>([
    ["a count that is missing", (reply) => reply.json(200, {}), "corrupt"],
    ["a reply that is not JSON", (reply) => reply.json(200, "CANARY"), "corrupt"],
    ["a page", (reply) => reply.json(200, "CANARY", { "content-type": "text/html" }), "corrupt"],
    ["9 MB", (reply) => reply.json(200, { count: 1, more: "x".repeat(9e6) }), "corrupt"],
    ["an unknown model", refuse(404, "CANARY"), "not-found"],
    ["a refusal of a megabyte", refuse(400, "CANARY".repeat(2e5)), "invalid"],
  ])("tell %s when tokens are counted", async (_, script, kind) => {
    await using vllm = await startFakeVllm();
    vllm.route("POST /tokenize", script);
    await using engine = engineFor(vllm);
    const error = await engine.countTokens(chatRequest(), never()).catch((thrown) => thrown);
    expect(error).toMatchObject({ name: "AppError", kind });
    expect(error.message).not.toContain("CANARY");
  });

  it("say whether the engine is healthy, also while every connection carries a chat", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 1 });
    vllm.reply(() => undefined);
    const leaving = new AbortController();
    const running = chat(engine, {}, leaving.signal);
    await vllm.request(0);
    await engine.checkHealth(never());
    vllm.route("GET /health", refuse(503));
    await expect(engine.checkHealth(never())).rejects.toMatchObject({ kind: "unavailable" });
    await vllm.refuse();
    await expect(engine.checkHealth(never())).rejects.toMatchObject({ kind: "unavailable" });
    leaving.abort();
    await running;
  });

  it("stop when their caller leaves, and throw the reason of the abort", async () => {
    await using vllm = await startFakeVllm();
    const arrived = Promise.withResolvers<void>();
    const closed = Promise.withResolvers<void>();
    const hang: Script = (reply) => {
      arrived.resolve();
      reply.response.once("close", () => closed.resolve());
    };
    for (const route of ["POST /tokenize", "GET /v1/models", "GET /health"])
      vllm.route(route, hang);
    await using engine = engineFor(vllm);
    const leaving = new AbortController();
    const reason = new Error("left");
    const calls = [
      engine.countTokens(chatRequest(), leaving.signal),
      engine.listModels(leaving.signal),
      engine.checkHealth(leaving.signal),
    ].map((call) => call.catch((error) => error));
    await arrived.promise;
    leaving.abort(reason);
    expect(await Promise.all(calls)).toEqual([reason, reason, reason]);
    await closed.promise;
    await expect(engine.listModels(leaving.signal)).rejects.toBe(reason);
  });

  it("give an old list of models when the engine has gone, and tell the operator", async () => {
    const events: VllmEvent[] = [];
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { log: (event) => events.push(event) });
    const models = await engine.listModels(never());
    await vllm.refuse();
    expect(await engine.listModels(never())).toBe(models);
    expect(events).toEqual([]);
  });
});
