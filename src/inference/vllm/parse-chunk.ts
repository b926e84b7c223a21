import type { FinishReason, Usage } from "../engine.ts";
import { refusalError } from "./errors.ts";
import { isRecord, parseCount, parseJsonObject, unreadable } from "./json.ts";

/** What one event of the stream can say, in the order in which it says it. */
export interface ChunkSink {
  onUsage(usage: Usage): void;
  /** Never empty, and always well-formed Unicode. */
  onText(type: "text-delta" | "reasoning-delta", text: string): void;
  /** `id` and `name` are given as they come: some parsers repeat them, some send empty ones. */
  onToolCall(index: number, id: string, name: string, text: string): void;
  onFinish(reason: FinishReason): void;
}

/**
 * Reads one `chat.completion.chunk`. Only known fields of known types are taken, in today's shapes and in older ones:
 * `reasoning` was `reasoning_content` until 2026, errors had no envelope, and usage may come with any chunk.
 *
 * Throws AppError: what the engine reports as an error inside the stream by the table of refusals, `corrupt` for what
 * cannot be read.
 */
export function parseChunk(data: string, previousUsage: Usage, sink: ChunkSink): void {
  const chunk = parseJsonObject(data);
  if (chunk.error != null || chunk.object === "error") throw toReportedError(chunk.error ?? chunk);
  if (chunk.usage != null) sink.onUsage(parseUsage(chunk.usage, previousUsage));
  if (!Array.isArray(chunk.choices)) throw unreadable("choices", chunk.choices);
  for (const choice of chunk.choices) parseChoice(choice, sink);
}

/** Token counts as vLLM reports them; what a report leaves out stays as it was before. */
function parseUsage(value: unknown, previous: Usage): Usage {
  if (!isRecord(value)) throw unreadable("usage", value);
  const details = value.prompt_tokens_details;
  return {
    promptTokens: parseCount(value.prompt_tokens, previous.promptTokens),
    completionTokens: parseCount(value.completion_tokens, previous.completionTokens),
    cachedPromptTokens: isRecord(details)
      ? parseCount(details.cached_tokens, previous.cachedPromptTokens)
      : previous.cachedPromptTokens,
  };
}

function parseChoice(choice: unknown, sink: ChunkSink): void {
  // One answer was asked for.
  if (!isRecord(choice) || (choice.index ?? 0) !== 0) throw unreadable("choice", choice);
  const { delta, finish_reason: reason } = choice;
  if (isRecord(delta)) {
    // Versions that sent both names sent the same text twice.
    const reasoning =
      parseText("reasoning", delta.reasoning) || parseText("reasoning", delta.reasoning_content);
    if (reasoning !== "") sink.onText("reasoning-delta", reasoning);
    const text = parseText("content", delta.content);
    if (text !== "") sink.onText("text-delta", text);
    if (delta.tool_calls != null) parseToolCalls(delta.tool_calls, sink);
  } else if (delta != null) throw unreadable("delta", delta);
  if (reason != null) sink.onFinish(parseFinishReason(reason));
}

function parseToolCalls(calls: unknown, sink: ChunkSink): void {
  if (!Array.isArray(calls)) throw unreadable("tool_calls", calls);
  for (const call of calls) {
    if (!isRecord(call)) throw unreadable("tool call", call);
    const { index, id } = call;
    const called = call.function ?? {};
    if (typeof index !== "number" || !Number.isInteger(index) || index < 0 || index >= CALLS_MAX)
      throw unreadable("tool call index", index);
    if (!isRecord(called)) throw unreadable("tool call function", called);
    const name = parseText("tool call name", called.name);
    const text = parseText("tool call arguments", called.arguments);
    sink.onToolCall(index, parseText("tool call id", id), name, text);
  }
}

function parseText(field: string, value: unknown): string {
  if (value == null) return "";
  if (typeof value !== "string") throw unreadable(field, value);
  // JSON can hold half a code point, which no protobuf string may.
  return value.isWellFormed() ? value : value.toWellFormed();
}

function parseFinishReason(reason: unknown): FinishReason {
  const known = typeof reason === "string" ? finishReasons.get(reason) : undefined;
  if (known !== undefined) return known;
  if (reason === "abort" || reason === "error") throw refusalError(500, `finish_reason ${reason}`);
  throw unreadable("finish_reason", reason);
}

/** An error that comes under HTTP 200, such as a schema that the grammar compiler refuses (`code` 400). */
function toReportedError(error: unknown): Error {
  const { code, message }: Record<string, unknown> = isRecord(error) ? error : {};
  const status = typeof code === "number" && code >= 400 && code <= 599 ? code : 500;
  return refusalError(status, typeof message === "string" ? message : "an error in the stream");
}

/** Far above what a model calls at once. */
const CALLS_MAX = 128;

const finishReasons = new Map<string, FinishReason>([
  ["stop", "stop"],
  ["length", "length"],
  ["tool_calls", "tool-calls"],
]);
