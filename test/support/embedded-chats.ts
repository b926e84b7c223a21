import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  createEmbeddedEngine,
  type EmbeddedEngineOptions,
} from "../../src/inference/embedded/embedded-engine.ts";
import type {
  ChatMessage,
  ChatStream,
  Engine,
  EngineChatRequest,
  Role,
} from "../../src/inference/engine.ts";
import { type TinyGgufOptions, writeTinyGguf } from "./tiny-gguf.ts";

/** An embedded engine on a model of its own, in a folder that goes away with it. */
export async function startTinyEngine(
  model: TinyGgufOptions = {},
  options: Partial<EmbeddedEngineOptions> = {},
): Promise<Engine> {
  const folder = await mkdtemp(join(tmpdir(), "tiny-engine-"));
  const modelPath = join(folder, "Tiny.gguf");
  await writeTinyGguf(modelPath, model);
  const engine = await createEmbeddedEngine({
    modelPath,
    concurrency: 1,
    contextTokens: 2048,
    threads: 1,
    ...options,
  });
  return {
    ...engine,
    async [Symbol.asyncDispose]() {
      await engine[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export const never = new AbortController().signal;

export function says(role: Role, content: string): ChatMessage {
  return { role, content, toolCalls: [] };
}

/** A request for a few tokens at full temperature, where every token of the tiny model is possible. */
export function chatRequest(overrides: Partial<EngineChatRequest> = {}): EngineChatRequest {
  return {
    model: "tiny",
    messages: [says("user", "Bonjour")],
    maxTokens: 30,
    temperature: 1,
    topK: 0,
    topP: 1,
    repetitionPenalty: 1,
    stop: [],
    tools: [],
    tenant: "a",
    ...overrides,
  };
}

/** Reads a stream to its end. */
export async function readAnswer(stream: ChatStream) {
  const deltas: string[] = [];
  let finishReason: string | undefined;
  for await (const part of stream) {
    if (part.type === "text-delta") deltas.push(part.text);
    if (part.type === "end") finishReason = part.finishReason;
  }
  return { deltas, text: deltas.join(""), finishReason, usage: stream.usage };
}
