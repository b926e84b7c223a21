import { AppError } from "../errors.ts";

/**
 * The port to whatever runs the model: vLLM over HTTP (inference/vllm) or llama.cpp in the process
 * (inference/embedded). Every value here is already validated and clamped; an engine translates, it does not decide.
 */
export interface Engine extends AsyncDisposable {
  /** Which implementation answers, as health reports it. */
  readonly kind: "vllm" | "llama.cpp";

  /**
   * Runs one chat and streams what the model says, in order. Nothing starts before the first `next()`.
   *
   * The stream ends with exactly one `end` part, or throws: an engine that stops without a finish reason is an
   * AppError `corrupt`, one that cannot be reached is `unavailable`, one that is too slow is `timeout`. When `signal`
   * aborts, or when the consumer leaves the loop, the engine stops working for this call at once; an abort is thrown
   * as `signal.reason`.
   */
  chat(request: EngineChatRequest, signal: AbortSignal): ChatStream;

  /** The models this engine serves now; the first one is the default. Throws `unavailable` when nobody can say. */
  listModels(signal: AbortSignal): Promise<readonly Model[]>;

  /** How many tokens these messages are, chat template and tools included, as this engine would count its prompt. */
  countTokens(request: TokenCountRequest, signal: AbortSignal): Promise<number>;

  /** Resolves when the engine can serve, else throws AppError `unavailable`. */
  checkHealth(signal: AbortSignal): Promise<void>;
}

/**
 * Whether an engine that throws this before it has said anything has done nothing that costs: it could not be reached, or did
 * not take the request. One that was too slow may have worked all the time.
 */
export function hasCostNothing(error: unknown): boolean {
  return error instanceof AppError && error.kind !== "timeout" && error.kind !== "canceled";
}

export interface ChatStream extends AsyncIterable<ChatPart> {
  /** What the engine has reported so far: exact at `end`, the last report after a failure or an abort. */
  readonly usage: Usage;
  /** When the engine was asked, and when the first of its answer was there, in monotonic milliseconds: as far as it has come. */
  readonly askedAt?: number | undefined;
  readonly firstPartAt?: number | undefined;
}

export type ChatPart =
  | { readonly type: "text-delta"; readonly text: string }
  | { readonly type: "reasoning-delta"; readonly text: string }
  | ToolCallDelta
  | { readonly type: "end"; readonly finishReason: FinishReason };

/**
 * A piece of the tool call number `index` (from 0) of this answer. `id` and `name` come once, with its first piece;
 * the pieces of `arguments`, joined, are one JSON object.
 */
export interface ToolCallDelta {
  readonly type: "tool-call-delta";
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments: string;
}

export type FinishReason = "stop" | "length" | "tool-calls";

/** Token counts as the engine reports them. `cachedPromptTokens` is the part of the prompt that a prefix cache held. */
export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedPromptTokens: number;
}

export const noUsage: Usage = { promptTokens: 0, completionTokens: 0, cachedPromptTokens: 0 };

export interface Model {
  readonly id: string;
  /** Prompt and completion together, in tokens. */
  readonly contextTokens: number;
}

export type Role = "system" | "user" | "assistant" | "tool";

export interface ChatMessage {
  readonly role: Role;
  readonly content: string;
  /** Calls that an assistant message made; empty for every other role. */
  readonly toolCalls: readonly ToolCall[];
  /** Which call a tool message answers. */
  readonly toolCallId?: string;
}

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** One JSON object, as text. */
  readonly arguments: string;
}

export interface Tool {
  readonly name: string;
  readonly description: string;
  /** A JSON Schema of type object, checked by chat/json-schema.ts. */
  readonly parameters: JsonObject;
  readonly strict?: boolean;
}

export type ToolChoice = "auto" | "none" | "required" | { readonly name: string };

export type ResponseFormat =
  | { readonly type: "json-object" }
  | { readonly type: "json-schema"; readonly name: string; readonly schema: JsonObject };

export type ReasoningEffort = "none" | "low" | "medium" | "high";

export interface EngineChatRequest {
  /** An id that `listModels` gave. */
  readonly model: string;
  /** At least one. */
  readonly messages: readonly ChatMessage[];
  /** Completion tokens at most, reasoning included; at least 1. */
  readonly maxTokens: number;
  /** Sampling fields are absent when the caller left them to the model's own defaults. */
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly repetitionPenalty?: number;
  readonly seed?: number;
  readonly stop: readonly string[];
  /** Absent: free text. */
  readonly responseFormat?: ResponseFormat;
  readonly tools: readonly Tool[];
  /** Only with tools. Absent: the engine's default, which is `auto`. */
  readonly toolChoice?: ToolChoice;
  readonly parallelToolCalls?: boolean;
  readonly reasoningEffort?: ReasoningEffort;
  /** Whose request this is. Engines that share a prefix cache keep tenants apart by it; it never leaves as it is. */
  readonly tenant: string;
  /** For an engine that traces: what its spans belong to (W3C Trace Context). Ours, never a caller's header. */
  readonly traceparent?: string;
  /** Which of several engines runs it: an id that admission gave. Absent: the first, where there can be several. */
  readonly engine?: string;
}

export type TokenCountRequest = Pick<EngineChatRequest, "model" | "messages" | "tools">;

export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}
