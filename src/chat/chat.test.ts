import { expect, it } from "vitest";
import type { Admission, AdmissionCall } from "../admission/admission.ts";
import type { ChatStream, Engine, Usage } from "../inference/engine.ts";
import type { Client } from "../keys/key-registry.ts";
import { createChat } from "./chat.ts";

const client: Client = {
  id: "erp",
  limits: { rpm: 60 },
  modelLimits: {},
  maxTokens: 1000,
  weight: 3,
  class: "batch",
};

/** A chat whose engine reports this usage, and what its admission is told. */
function createTold(usage: Usage) {
  const told: { call?: AdmissionCall; costs: number[]; disposed: number } = {
    costs: [],
    disposed: 0,
  };
  const admission: Admission = {
    async enter(call) {
      told.call = call;
      return {
        engine: undefined,
        queueMs: 12,
        answered: () => undefined,
        fail: () => undefined,
        move: async () => false,
        settle: (tokens) => told.costs.push(tokens),
        [Symbol.dispose]: () => {
          told.disposed += 1;
        },
      };
    },
  };
  const parts: ChatStream = {
    usage,
    async *[Symbol.asyncIterator]() {
      yield { type: "end", finishReason: "stop" };
    },
  };
  const engine: Engine = {
    kind: "vllm",
    chat: () => parts,
    listModels: async () => [{ id: "model", contextTokens: 8192 }],
    countTokens: () => Promise.reject(new Error("not asked")),
    checkHealth: async () => undefined,
    [Symbol.asyncDispose]: async () => undefined,
  };
  const chat = createChat({
    engine,
    admission,
    defaultModel: "model",
    maxModelLen: 8192,
    maxTokensDefault: 400,
  });
  const begin = (signal: AbortSignal) =>
    chat.begin(
      {
        model: "",
        messages: [{ role: "user", content: "x".repeat(1000), toolCalls: [] }],
        stop: [],
        tools: [],
      },
      { id: "call", client, deadlineMs: 5000, signal },
    );
  return { told, begin };
}

/** 1,000 bytes and what a template may add, at four bytes a token. */
const promptExpected = 382;

it("tells admission who calls, and what the call can cost: its prompt and, of its bound, half as a rule", async () => {
  const { told, begin } = createTold({
    promptTokens: 1,
    completionTokens: 1,
    cachedPromptTokens: 0,
  });
  using answer = await begin(new AbortController().signal);
  expect(told.call).toEqual({
    id: "call",
    client,
    model: "model",
    tokens: promptExpected + 200,
    tokensMax: promptExpected + 400,
    deadlineMs: 5000,
    affinity: expect.any(String),
  });
  expect(answer).toMatchObject({ model: "model", queueMs: 12 });
});

it("tells at the end what the engine has reported", async () => {
  const { told, begin } = createTold({
    promptTokens: 250,
    completionTokens: 60,
    cachedPromptTokens: 0,
  });
  const answer = await begin(new AbortController().signal);
  expect(told.costs).toEqual([]);
  answer[Symbol.dispose]();
  expect(told).toMatchObject({ costs: [310], disposed: 1 });
});

it.each([
  ["what the engine has reported so far", { promptTokens: 250, completionTokens: 7 }, 257],
  [
    "the prompt, where it has reported nothing",
    { promptTokens: 0, completionTokens: 0 },
    promptExpected,
  ],
])(
  "tells when the caller leaves, before anybody disposes the answer: %s",
  async (_what, usage, cost) => {
    const { told, begin } = createTold({ ...usage, cachedPromptTokens: 0 });
    const caller = new AbortController();
    using _answer = await begin(caller.signal);
    caller.abort();
    expect(told).toMatchObject({ costs: [cost], disposed: 1 });
  },
);
