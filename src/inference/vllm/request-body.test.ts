import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { chat, chatRequest, collect, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import { answer } from "../../../test/support/fake-vllm-replies.ts";
import type { EngineChatRequest } from "../engine.ts";

const never = () => new AbortController().signal;

describe("what leaves for vLLM", () => {
  const sent = async (overrides: Partial<EngineChatRequest>) => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    expect((await chat(engine, overrides)).error).toBeUndefined();
    return await vllm.request(0);
  };

  it("is these fields and headers, and nothing else, for the smallest request", async () => {
    const { path, headers, body } = await sent({});
    expect(path).toBe("/v1/chat/completions");
    expect(body).toEqual({
      model: "fake-model",
      messages: [{ role: "user", content: "Bonjour" }],
      max_completion_tokens: 100,
      cache_salt: expect.stringMatching(/^[0-9a-f]{32}$/),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    });
    expect(headers).toEqual({
      host: expect.any(String),
      accept: "text/event-stream",
      "accept-encoding": "identity",
      "content-type": "application/json",
      "content-length": expect.any(String),
      "x-request-id": expect.stringMatching(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/),
    });
  });

  it("is these fields, and nothing else, for the largest request, whatever else hangs on the object", async () => {
    const schema = { type: "object", properties: { city: { type: "string" } } } as const;
    const { body } = await sent({
      messages: [
        { role: "system", content: "Sois bref.", toolCalls: [] },
        { role: "assistant", content: "", toolCalls: [{ id: "a", name: "f", arguments: "{}" }] },
        { role: "tool", content: "1", toolCalls: [], toolCallId: "a" },
      ],
      temperature: 0,
      topP: 0.9,
      topK: 40,
      minP: 0.05,
      presencePenalty: 0.1,
      frequencyPenalty: 0.2,
      repetitionPenalty: 1.1,
      seed: 7,
      stop: ["###"],
      responseFormat: { type: "json-schema", name: "city", schema },
      tools: [{ name: "f", description: "d", parameters: schema, strict: true }],
      toolChoice: { name: "f" },
      parallelToolCalls: false,
      reasoningEffort: "low",
      ...{ prompt_logprobs: 5, n: 16, chat_template: "{{ x }}", priority: -1, cache_salt: "mine" },
    });
    expect(body).toEqual({
      model: "fake-model",
      messages: [
        { role: "system", content: "Sois bref." },
        {
          role: "assistant",
          content: "",
          tool_calls: [{ id: "a", type: "function", function: { name: "f", arguments: "{}" } }],
        },
        { role: "tool", content: "1", tool_call_id: "a" },
      ],
      max_completion_tokens: 100,
      temperature: 0,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      presence_penalty: 0.1,
      frequency_penalty: 0.2,
      repetition_penalty: 1.1,
      seed: 7,
      stop: ["###"],
      response_format: { type: "json_schema", json_schema: { name: "city", schema } },
      tools: [
        {
          type: "function",
          function: { name: "f", description: "d", parameters: schema, strict: true },
        },
      ],
      tool_choice: { type: "function", function: { name: "f" } },
      parallel_tool_calls: false,
      reasoning_effort: "low",
      cache_salt: expect.stringMatching(/^[0-9a-f]{32}$/),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    });
  });

  it("never holds null, and says no thinking in the way that templates know", async () => {
    const { body } = await sent({
      reasoningEffort: "none",
      responseFormat: { type: "json-object" },
    });
    expect(JSON.stringify(body)).not.toContain("null");
    expect(body).toMatchObject({
      chat_template_kwargs: { enable_thinking: false },
      response_format: { type: "json_object" },
    });
    expect(body).not.toHaveProperty("reasoning_effort");
  });

  it("has one cache salt per tenant, that depends on the secret and does not show the tenant", async () => {
    const salts = new Set<string>();
    for (const secret of [1, 2])
      for (const tenant of ["erp", "extranet", "erp"]) {
        await using vllm = await startFakeVllm();
        await using engine = engineFor(vllm, { cacheSaltSecret: Buffer.alloc(32, secret) });
        await chat(engine, { tenant });
        const { body } = await vllm.request(0);
        salts.add((body as { cache_salt: string }).cache_salt);
      }
    expect(salts.size).toBe(4);
  });

  it("carries the operator's key, below the operator's path, and a new request id every time", async () => {
    await using vllm = await startFakeVllm({ apiKey: "secret" });
    vllm.route("POST /a/b/v1/chat/completions", answer());
    for (const path of ["/a/b", "/a/b/", "/a/b/v1", "/a/b/v1/"]) {
      await using engine = engineFor(vllm, { url: new URL(path, vllm.url), apiKey: "secret" });
      expect((await chat(engine)).error).toBeUndefined();
    }
    expect(vllm.requests.map(({ headers }) => headers.authorization)).toEqual(
      Array(4).fill("Bearer secret"),
    );
    expect(new Set(vllm.requests.map(({ headers }) => headers["x-request-id"])).size).toBe(4);
  });

  it("is nothing before the first next()", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const stream = engine.chat(chatRequest(), never());
    await engine.checkHealth(never());
    expect(vllm.requests).toEqual([]);
    await collect(stream);
    expect(vllm.requests).toHaveLength(1);
  });
});
