import { expect } from "vitest";
import { AppError } from "../../src/errors.ts";
import type {
  ChatPart,
  ChatStream,
  Engine,
  EngineChatRequest,
} from "../../src/inference/engine.ts";
import {
  createVllmEngine,
  type VllmOptions,
  type VllmTimeouts,
} from "../../src/inference/vllm/vllm-engine.ts";
import { eventually } from "./eventually.ts";
import { type FakeVllm, startFakeVllm } from "./fake-vllm.ts";
import type { Script } from "./fake-vllm-replies.ts";

/** The real adapter, connected to the fake server. */
export function engineFor(
  vllm: FakeVllm,
  { url = vllm.url, ...options }: Partial<VllmOptions> & { readonly url?: URL } = {},
): Engine {
  return createVllmEngine({
    urls: [url],
    connections: 4,
    cacheSaltSecret: Buffer.alloc(32, 7),
    ...options,
  });
}

export function chatRequest(overrides: Partial<EngineChatRequest> = {}): EngineChatRequest {
  return {
    model: "fake-model",
    messages: [{ role: "user", content: "Bonjour", toolCalls: [] }],
    maxTokens: 100,
    stop: [],
    tools: [],
    tenant: "erp",
    ...overrides,
  };
}

export interface Outcome {
  readonly parts: readonly ChatPart[];
  readonly text: string;
  /** What the stream threw, if it threw. */
  readonly error: AppError | undefined;
}

/** Takes everything that a stream gives. */
export async function collect(stream: ChatStream): Promise<Outcome> {
  const parts: ChatPart[] = [];
  let error: AppError | undefined;
  try {
    for await (const part of stream) parts.push(part);
  } catch (thrown) {
    error = thrown as AppError;
  }
  const text = parts.map((part) => (part.type === "text-delta" ? part.text : "")).join("");
  return { parts, text, error };
}

/** Runs one chat to its end. */
export function chat(
  engine: Engine,
  overrides: Partial<EngineChatRequest> = {},
  signal: AbortSignal = new AbortController().signal,
): Promise<Outcome> {
  return collect(engine.chat(chatRequest(overrides), signal));
}

/** Stands in scripts for what upstream must never get into a message. */
export const canary = "CANARY-upstream-text";

/**
 * One chat against a server that answers by this script. Fails if an error is not ours, has upstream text in it, made
 * the adapter ask twice, or left the connection open.
 */
export async function runOnce(
  script: Script,
  options: { timeouts?: Partial<VllmTimeouts>; keepsConnection?: boolean } = {},
) {
  await using vllm = await startFakeVllm();
  await using engine = engineFor(vllm, { timeouts: options.timeouts ?? {} });
  vllm.reply(script);
  const startedAt = performance.now();
  const { error, text: received, parts } = await chat(engine);
  const elapsedMs = performance.now() - startedAt;
  expect(error === undefined || error instanceof AppError, String(error)).toBe(true);
  expect(error?.message ?? "").not.toContain(canary);
  if (error !== undefined && options.keepsConnection !== true)
    await eventually("the connection is closed", () => vllm.sockets.size === 0);
  expect(vllm.requests).toHaveLength(1);
  return { error, kind: error?.kind, received, end: parts.at(-1), elapsedMs };
}
