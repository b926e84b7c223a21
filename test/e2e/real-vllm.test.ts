import { Code, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FinishReason } from "../../gen/formdev/chat/v1/chat_pb.ts";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { protocols, startApp, type TestApp, transportFor } from "../support/start-app.ts";

/** A vLLM with any chat model, started with --enable-auto-tool-choice and a --tool-call-parser. */
const { VLLM_URL: url = "" } = process.env;
const timeout = 120_000;

describe.skipIf(url === "")(
  "against a real vLLM (needs one: VLLM_URL=http://host:8000 npm run test:vllm)",
  { timeout },
  () => {
    let app: TestApp;
    beforeAll(async () => {
      app = await startApp({ VLLM_URL: url });
    });
    afterAll(async () => {
      await app[Symbol.asyncDispose]();
    });

    const french = {
      messages: [{ role: "user", content: "Écris une phrase sur l'été à Orléans." }],
    };
    const client = (protocol: (typeof protocols)[number] = "gRPC") =>
      createClient(ChatService, transportFor(protocol, app.url));
    const models = () => createClient(ModelService, transportFor("gRPC", app.url));

    it.each(protocols)(
      "answers and streams the same text for the same seed over %s",
      async (protocol) => {
        const request = { ...french, maxTokens: 24, seed: 7, temperature: 0 };
        const whole = await client(protocol).chat(request);
        let streamed = "";
        let usage: unknown;
        for await (const { part } of client(protocol).streamChat(request)) {
          if (part.case === "textDelta") streamed += part.value.text;
          if (part.case === "end") usage = part.value.usage;
        }
        expect(whole.message?.content).not.toBe("");
        expect(streamed).toBe(whole.message?.content);
        expect(usage).toMatchObject({
          promptTokens: whole.usage?.promptTokens,
          completionTokens: whole.usage?.completionTokens,
        });
      },
    );

    it("counts a prompt as it is charged", async () => {
      const { promptTokens } = await models().countTokens(french);
      const { usage } = await client().chat({ ...french, maxTokens: 1 });
      expect(usage).toMatchObject({
        promptTokens,
        completionTokens: 1,
        totalTokens: promptTokens + 1,
      });
    });

    it("says LENGTH when max_tokens cut the answer", async () => {
      const response = await client().chat({ ...french, maxTokens: 2 });
      expect(response.finishReason).toBe(FinishReason.LENGTH);
    });

    it("keeps to a JSON schema", async () => {
      const schema = {
        type: "object",
        properties: { note: { type: "integer" } },
        required: ["note"],
        additionalProperties: false,
      };
      const response = await client().chat({
        messages: [{ role: "user", content: "Note ce cours de 1 à 5, en JSON." }],
        maxTokens: 40,
        temperature: 0,
        responseFormat: { type: "json_schema", jsonSchema: { name: "avis", schema } },
      });
      expect(JSON.parse(response.message?.content ?? "")).toEqual({ note: expect.any(Number) });
    });

    it("calls a tool that it must call", async () => {
      const response = await client().chat({
        messages: [{ role: "user", content: "Quel temps fait-il à Lyon ?" }],
        maxTokens: 60,
        temperature: 0,
        tools: [
          {
            function: {
              name: "meteo",
              description: "dit le temps",
              parameters: {
                type: "object",
                properties: { ville: { type: "string", maxLength: 20 } },
                required: ["ville"],
              },
              strict: true,
            },
          },
        ],
        toolChoice: { mode: "function", function: "meteo" },
      });
      expect(response.finishReason).toBe(FinishReason.TOOL_CALLS);
      expect(response.message?.toolCalls[0]?.name).toBe("meteo");
      expect(JSON.parse(response.message?.toolCalls[0]?.arguments ?? "")).toHaveProperty("ville");
    });

    it("refuses a prompt longer than the context, with both numbers", async () => {
      const [model] = (await models().listModels({})).models;
      const content = "mot ".repeat(model?.contextTokens ?? 0);
      await expect(client().chat({ messages: [{ role: "user", content }] })).rejects.toThrow(
        /\[invalid_argument\] the prompt has \d+ tokens and the model's context is \d+/,
      );
    });

    it.each(protocols)("stops generating when the caller of %s leaves", async (protocol) => {
      const left = new AbortController();
      await expect(async () => {
        for await (const { part } of client(protocol).streamChat(
          { ...french, maxTokens: 500, temperature: 1 },
          { signal: left.signal },
        )) {
          if (part.case === "textDelta") left.abort();
        }
      }).rejects.toMatchObject({ code: Code.Canceled });
      const deadline = performance.now() + 2000;
      const running = async () => {
        const metrics = await (await fetch(new URL("/metrics", url))).text();
        return Number(/^vllm:num_requests_running\{[^}]*\} (\S+)/m.exec(metrics)?.[1]);
      };
      while ((await running()) > 0 && performance.now() < deadline);
      expect(await running()).toBe(0);
    });
  },
);
