import { createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FinishReason } from "../../gen/formdev/chat/v1/chat_pb.ts";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import {
  erpKey,
  type protocols,
  startApp,
  type TestApp,
  transportFor,
} from "../support/start-app.ts";

let vllm: FakeVllm;
let app: TestApp;

beforeAll(async () => {
  vllm = await startFakeVllm({ model: "formdev", contextTokens: 2048 });
  app = await startApp({
    VLLM_URL: vllm.url.href,
    EMBEDDINGS_URL: vllm.url.href,
    MAX_TOKENS: "500",
    MAX_TOKENS_DEFAULT: "200",
  });
});

afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const hello = { messages: [{ role: "user", content: "Dis bonjour en une phrase." }] };
const clientOf = (protocol: (typeof protocols)[number], version: "1.1" | "2" = "2") =>
  createClient(ChatService, transportFor(protocol, app.url, erpKey, version));

async function lastBody(): Promise<Record<string, unknown>> {
  const request = await vllm.request(vllm.requests.length - 1);
  return request.body as Record<string, unknown>;
}

const wires: readonly (readonly [(typeof protocols)[number], "1.1" | "2"])[] = [
  ["gRPC", "2"],
  ["gRPC-Web", "1.1"],
  ["gRPC-Web", "2"],
  ["Connect JSON", "1.1"],
  ["Connect JSON", "2"],
  ["Connect binary", "1.1"],
  ["Connect binary", "2"],
];

describe.each(wires)("over %s on HTTP/%s", (protocol, version) => {
  it("answers a call with the model's text, its end and the engine's own token counts", async () => {
    vllm.reply(
      answer({ text: ["Bon", "jour", " à", " tous 🎓"], promptTokens: 9, cachedTokens: 4 }),
    );
    const response = await clientOf(protocol, version).chat(hello);
    expect(response.message?.role).toBe("assistant");
    expect(response.message?.content).toBe("Bonjour à tous 🎓");
    expect(response.model).toBe("formdev");
    expect(response.finishReason).toBe(FinishReason.STOP);
    expect(response.usage).toMatchObject({
      promptTokens: 9,
      completionTokens: 5,
      totalTokens: 14,
      cachedPromptTokens: 4,
    });
  });

  it("streams start, deltas in order and one end with the usage", async () => {
    const text = ["Un", ", deux", ", trois", " é", "t", "é"];
    vllm.reply(answer({ reasoning: ["Comp", "tons."], text, promptTokens: 5 }));
    const parts = await Array.fromAsync(clientOf(protocol, version).streamChat(hello));
    const said = (kind: "textDelta" | "reasoningDelta") =>
      parts.map(({ part }) => (part.case === kind ? part.value.text : "")).join("");
    expect(parts[0]?.part).toMatchObject({ case: "start", value: { model: "formdev" } });
    expect(said("reasoningDelta")).toBe("Comptons.");
    expect(said("textDelta")).toBe("Un, deux, trois été");
    expect(parts.filter(({ part }) => part.case === "end")).toHaveLength(1);
    expect(parts.at(-1)?.part).toMatchObject({
      case: "end",
      value: { finishReason: FinishReason.STOP, usage: { promptTokens: 5, completionTokens: 9 } },
    });
  });

  it("streams tool calls by index, and joins them in a call", async () => {
    const script = answer({
      text: [],
      toolCalls: [
        { id: "call_1", name: "meteo", arguments: ['{"ville":', '"Lyon"}'] },
        { id: "call_2", name: "meteo", arguments: ['{"ville":"Brest"}'] },
      ],
    });
    vllm.reply(script, script);
    const tools = [{ function: { name: "meteo", parameters: { type: "object" } } }];
    const response = await clientOf(protocol, version).chat({ ...hello, tools });
    expect(response.finishReason).toBe(FinishReason.TOOL_CALLS);
    expect(response.message?.toolCalls).toMatchObject([
      { id: "call_1", name: "meteo", arguments: '{"ville":"Lyon"}' },
      { id: "call_2", name: "meteo", arguments: '{"ville":"Brest"}' },
    ]);
    const parts = await Array.fromAsync(
      clientOf(protocol, version).streamChat({ ...hello, tools }),
    );
    const pieces = parts.flatMap(({ part }) => (part.case === "toolCallDelta" ? [part.value] : []));
    expect(
      pieces
        .filter(({ index }) => index === 0)
        .map((piece) => piece.arguments)
        .join(""),
    ).toBe('{"ville":"Lyon"}');
    expect(
      pieces.filter(({ id }) => id !== "").map(({ index, id, name }) => [index, id, name]),
    ).toEqual([
      [0, "call_1", "meteo"],
      [1, "call_2", "meteo"],
    ]);
  });
});

describe("what reaches the engine", () => {
  const client = () => clientOf("Connect JSON");

  it("is what the caller asked for, rebuilt, and nothing else", async () => {
    await client().chat({
      model: "formdev",
      messages: [
        { role: "system", content: "Tu es bref." },
        { role: "user", content: "Météo ?" },
        { role: "assistant", toolCalls: [{ id: "c1", name: "meteo", arguments: "{}" }] },
        { role: "tool", toolCallId: "c1", content: "soleil" },
      ],
      maxTokens: 60,
      temperature: 0.5,
      topP: 0.9,
      topK: 20,
      minP: 0.1,
      presencePenalty: 0.1,
      frequencyPenalty: 0.2,
      repetitionPenalty: 1.1,
      stop: ["FIN"],
      seed: 7,
      responseFormat: {
        type: "json_schema",
        jsonSchema: { name: "avis", schema: { type: "object" } },
      },
      tools: [
        {
          type: "function",
          function: { name: "meteo", description: "dit le temps", parameters: { type: "object" } },
        },
      ],
      toolChoice: { mode: "function", function: "meteo" },
      parallelToolCalls: false,
      reasoning: { effort: "low" },
    });
    const { cache_salt: salt, ...body } = await lastBody();
    expect(salt).toMatch(/^[0-9a-f]{32}$/);
    expect(body).toMatchObject({
      model: "formdev",
      temperature: 0.5,
      top_p: 0.9,
      top_k: 20,
      min_p: 0.1,
      presence_penalty: 0.1,
      frequency_penalty: 0.2,
      repetition_penalty: 1.1,
      stop: ["FIN"],
      seed: 7,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      parallel_tool_calls: false,
      reasoning_effort: "low",
      tool_choice: { type: "function", function: { name: "meteo" } },
    });
    expect(body.messages).toMatchObject([
      { role: "system", content: "Tu es bref." },
      { role: "user", content: "Météo ?" },
      {
        role: "assistant",
        tool_calls: [{ id: "c1", type: "function", function: { name: "meteo", arguments: "{}" } }],
      },
      { role: "tool", tool_call_id: "c1", content: "soleil" },
    ]);
  });

  it("has a salt that one tenant keeps and no other shares, and a request id of its own", async () => {
    const other = createClient(
      ChatService,
      transportFor("Connect JSON", app.url, "key-of-the-extranet-0123456789"),
    );
    await client().chat(hello);
    const first = await lastBody();
    await client().chat(hello);
    const second = await lastBody();
    await other.chat(hello);
    const third = await lastBody();
    expect(second.cache_salt).toBe(first.cache_salt);
    expect(third.cache_salt).not.toBe(first.cache_salt);
    const ids = vllm.requests.slice(-3).map(({ headers }) => headers["x-request-id"]);
    expect(new Set(ids).size).toBe(3);
  });

  it("always has a bound on tokens: the default, the caller's, the client's maximum, or what the context leaves", async () => {
    const boundOf = async () => {
      const body = await lastBody();
      return body.max_completion_tokens ?? body.max_tokens;
    };
    await client().chat(hello);
    expect(await boundOf()).toBe(200);
    await client().chat({ ...hello, maxTokens: 42 });
    expect(await boundOf()).toBe(42);
    await client().chat({ ...hello, maxTokens: 131_072 });
    expect(await boundOf()).toBe(500);
    // 7,000 characters are 1,750 tokens and a little for this engine, of 2,048 that the context has.
    await client().chat({
      messages: [{ role: "user", content: "a".repeat(7000) }],
      maxTokens: 500,
    });
    const bound = Number(await boundOf());
    expect(bound).toBeGreaterThan(200);
    expect(bound).toBeLessThan(298);
  });

  it("never sees a prompt that cannot fit: the caller is told both numbers", async () => {
    const before = vllm.requests.length;
    await expect(
      client().chat({ messages: [{ role: "user", content: "a".repeat(20_000) }] }),
    ).rejects.toThrow(
      /\[invalid_argument\] the prompt has 50\d\d tokens and the model's context is 2048/,
    );
    expect(vllm.requests.length).toBe(before);
  });

  it("never sees a request that breaks a rule, and the error names the field", async () => {
    const before = vllm.requests.length;
    const bad: [Parameters<ReturnType<typeof client>["chat"]>[0], string][] = [
      [{ messages: [] }, "messages"],
      [{ messages: [{ role: "robot", content: "x" }] }, "messages[0].role"],
      [{ messages: [{ role: "user", content: "" }] }, "messages[0]"],
      [{ messages: [{ role: "user", content: "a\0b" }] }, "messages[0].content"],
      [{ messages: [{ role: "tool", content: "x" }] }, "messages[0]"],
      [{ ...hello, temperature: 3 }, "temperature"],
      [{ ...hello, temperature: Number.NaN }, "temperature"],
      [{ ...hello, topP: 0 }, "top_p"],
      [{ ...hello, maxTokens: 0 }, "max_tokens"],
      [{ ...hello, stop: ["a", "b", "c", "d", "e"] }, "stop"],
      [{ ...hello, toolChoice: { mode: "auto" } }, "tool_choice"],
      [{ ...hello, tools: [{ function: { name: "not a name" } }] }, "tools[0].function.name"],
      [{ ...hello, responseFormat: { type: "json_schema" } }, "json_schema"],
      [
        {
          ...hello,
          responseFormat: {
            type: "json_schema",
            jsonSchema: { name: "x", schema: { pattern: "(a+)+" } },
          },
        },
        "response_format.json_schema.schema",
      ],
      [{ ...hello, tools: [{ function: { name: "f", parameters: { $ref: "#" } } }] }, "tools"],
    ];
    for (const [request, field] of bad) {
      await expect(client().chat(request), field).rejects.toThrow(/^\[invalid_argument\]/);
      await expect(client().chat(request)).rejects.toThrow(field);
    }
    expect(vllm.requests.length).toBe(before);
  });

  it("never sees a model that is not served: the error names those that are", async () => {
    await expect(client().chat({ ...hello, model: "gpt-5" })).rejects.toThrow(
      "[not_found] this model is not served: use one of formdev",
    );
  });
});

describe("ModelService", () => {
  const client = () => createClient(ModelService, transportFor("gRPC", app.url));

  it("lists the engine's models with the context that holds here", async () => {
    const { models } = await client().listModels({});
    expect(models).toMatchObject([{ id: "formdev", contextTokens: 2048 }]);
  });

  it("counts a prompt's tokens as the engine does", async () => {
    const { promptTokens, contextTokens, model } = await client().countTokens(hello);
    expect(promptTokens).toBeGreaterThan(5);
    expect({ contextTokens, model }).toEqual({ contextTokens: 2048, model: "formdev" });
  });

  it("embeds texts in their order", async () => {
    const { embeddings, promptTokens } = await client().embed({ inputs: ["un", "deux", "un"] });
    expect(embeddings).toHaveLength(3);
    expect(embeddings[0]?.values).toEqual(embeddings[2]?.values);
    expect(embeddings[0]?.values).not.toEqual(embeddings[1]?.values);
    expect(promptTokens).toBeGreaterThan(0);
  });
});
