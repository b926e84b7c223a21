import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  FinishReason as FinishReasonProto,
  type Message as MessageProto,
  type Tool as ToolProto,
  UsageSchema,
} from "../../gen/formdev/chat/v1/chat_pb.ts";
import {
  type ChatRequest as ChatRequestProto,
  ChatResponseSchema,
  type ChatService,
  StreamChatResponseSchema,
} from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { AppError } from "../errors.ts";
import type {
  ChatMessage,
  ChatPart,
  FinishReason,
  JsonObject,
  ReasoningEffort,
  Role,
  Tool,
  ToolCall,
  ToolCallDelta,
  ToolChoice,
  Usage,
} from "../inference/engine.ts";
import { monotonicClock } from "../lib/clock.ts";
import { settlesWithin } from "../lib/delay.ts";
import { callOf, clientOf } from "../rpc/call.ts";
import type { DirectCaller, DirectRequest } from "../rpc/direct.ts";
import { encode, envelope, envelopeBytes, type Wire } from "../rpc/wire.ts";
import { engineTraceparent } from "../usage/call-trace.ts";
import type { Answer, Chat, ChatRequest } from "./chat.ts";

export interface ChatHandler {
  readonly service: ServiceImpl<typeof ChatService>;
  /** The same two methods, for the usual calls. */
  readonly direct: {
    chat(request: ChatRequestProto, wire: Wire): DirectRequest;
    streamChat(request: ChatRequestProto, wire: Wire): DirectRequest;
  };
}

/**
 * Translates ChatService to the chat use case and back; rules, limits and errors live elsewhere. A stream that has nothing to
 * say for `heartbeatMs` milliseconds says that it lives.
 */
export function createChatHandler(chat: Chat, heartbeatMs: number): ChatHandler {
  async function begin(request: ChatRequestProto, { call, signal }: DirectCaller): Promise<Answer> {
    const { id, deadlineAt, trace } = call;
    const client = clientOf(call);
    const deadlineMs = deadlineAt - monotonicClock();
    const answer = await chat.begin(parseChatRequest(request), {
      id,
      client,
      deadlineMs,
      ...(trace !== undefined && { traceparent: engineTraceparent(trace) }),
      signal,
    });
    call.answer = answer;
    call.counted = true;
    return answer;
  }

  async function answerWhole(request: ChatRequestProto, caller: DirectCaller) {
    using answer = await begin(request, caller);
    const collected = await collect(answer.parts);
    return create(ChatResponseSchema, {
      id: caller.call.id,
      model: answer.model,
      message: {
        role: "assistant",
        content: collected.content,
        reasoning: collected.reasoning,
        toolCalls: collected.toolCalls.map((toolCall) => ({ ...toolCall })),
      },
      finishReason: toFinishReason(collected.finishReason),
      usage: toUsage(answer.parts.usage),
    });
  }

  return {
    service: {
      chat: (request, context) =>
        answerWhole(request, { call: callOf(context), signal: context.signal }),

      async *streamChat(request, context) {
        const caller = { call: callOf(context), signal: context.signal };
        const beginning = begin(request, caller);
        try {
          while (!(await settlesWithin(beginning, heartbeatMs))) yield heartbeat;
          const answer = await beginning;
          yield toStart(caller.call.id, answer);
          for await (const each of withHeartbeats(answer.parts, heartbeatMs))
            yield each === undefined ? heartbeat : toStreamPart(each, answer.parts.usage);
        } finally {
          // Also when the reader has left while it waited.
          beginning.then(dispose, ignore);
        }
      },
    },

    direct: {
      chat: (request, wire) => ({
        isStream: false,
        answer: async (caller) =>
          encode(ChatResponseSchema, wire, await answerWhole(request, caller)),
      }),

      streamChat: (request, wire) => ({
        isStream: true,
        heartbeat: encode(StreamChatResponseSchema, wire, heartbeat),
        async answer(caller) {
          const answer = await begin(request, caller);
          const { parts } = answer;
          return {
            start: encode(StreamChatResponseSchema, wire, toStart(caller.call.id, answer)),
            parts,
            toMessage: (part: ChatPart) => encodeStreamPart(wire, part, parts.usage),
            [Symbol.dispose]: () => answer[Symbol.dispose](),
          };
        },
      }),
    },
  };
}

export function parseMessages(messages: readonly MessageProto[]): ChatMessage[] {
  return messages.map((message) => ({
    role: parseRole(message.role),
    content: message.content,
    toolCalls: message.toolCalls.map(({ id, name, arguments: text }) => ({
      id,
      name,
      arguments: text,
    })),
    ...(message.toolCallId !== "" && { toolCallId: message.toolCallId }),
  }));
}

export function parseTools(tools: readonly ToolProto[]): Tool[] {
  return tools.map(({ function: definition }) => {
    if (definition === undefined) throw new AppError("invalid", "tools: function is required");
    return {
      name: definition.name,
      description: definition.description,
      parameters: definition.parameters ?? {},
      ...(definition.strict !== undefined && { strict: definition.strict }),
    };
  });
}

function parseChatRequest(request: ChatRequestProto): ChatRequest {
  const responseFormat = parseResponseFormat(request);
  const toolChoice = parseToolChoice(request);
  const effort = parseEffort(request.reasoning?.effort ?? "");
  return {
    model: request.model,
    messages: parseMessages(request.messages),
    stop: request.stop,
    tools: parseTools(request.tools),
    ...(request.maxTokens !== undefined && { maxTokens: request.maxTokens }),
    ...(request.temperature !== undefined && { temperature: request.temperature }),
    ...(request.topP !== undefined && { topP: request.topP }),
    ...(request.topK !== undefined && { topK: request.topK }),
    ...(request.minP !== undefined && { minP: request.minP }),
    ...(request.presencePenalty !== undefined && { presencePenalty: request.presencePenalty }),
    ...(request.frequencyPenalty !== undefined && { frequencyPenalty: request.frequencyPenalty }),
    ...(request.repetitionPenalty !== undefined && {
      repetitionPenalty: request.repetitionPenalty,
    }),
    ...(request.seed !== undefined && { seed: request.seed }),
    ...(request.parallelToolCalls !== undefined && {
      parallelToolCalls: request.parallelToolCalls,
    }),
    ...(responseFormat !== undefined && { responseFormat }),
    ...(toolChoice !== undefined && { toolChoice }),
    ...(effort !== undefined && { reasoningEffort: effort }),
  };
}

function parseResponseFormat({ responseFormat }: ChatRequestProto): ChatRequest["responseFormat"] {
  if (responseFormat?.type === "json_object") return { type: "json-object" };
  if (responseFormat?.type !== "json_schema") return undefined;
  const { name = "", schema = {} } = responseFormat.jsonSchema ?? {};
  return { type: "json-schema", name, schema: schema as JsonObject };
}

function parseToolChoice({ toolChoice }: ChatRequestProto): ToolChoice | undefined {
  switch (toolChoice?.mode) {
    case undefined:
      return undefined;
    case "function":
      return { name: toolChoice.function };
    case "auto":
    case "none":
    case "required":
      return toolChoice.mode;
    default:
      throw new AppError("invalid", "tool_choice.mode is not known");
  }
}

function parseRole(role: string): Role {
  switch (role) {
    case "system":
    case "user":
    case "assistant":
    case "tool":
      return role;
    default:
      throw new AppError("invalid", "messages: the role is not known");
  }
}

function parseEffort(effort: string): ReasoningEffort | undefined {
  switch (effort) {
    case "":
      return undefined;
    case "none":
    case "low":
    case "medium":
    case "high":
      return effort;
    default:
      throw new AppError("invalid", "reasoning.effort is not known");
  }
}

/** Joins the parts of an answer. The engine promises exactly one `end`; the loop throws where there is none. */
async function collect(parts: AsyncIterable<ChatPart>) {
  const text: string[] = [];
  const reasoning: string[] = [];
  const toolCalls = new Map<number, { id: string; name: string; arguments: string }>();
  for await (const each of parts) {
    if (each.type === "text-delta") text.push(each.text);
    else if (each.type === "reasoning-delta") reasoning.push(each.text);
    else if (each.type === "tool-call-delta") appendToolCall(toolCalls, each);
    else {
      return {
        content: text.join(""),
        reasoning: reasoning.join(""),
        toolCalls: [...toolCalls.values()] satisfies ToolCall[],
        finishReason: each.finishReason,
      };
    }
  }
  throw new AppError("corrupt", "the engine stopped before the answer was complete: try again");
}

function appendToolCall(
  toolCalls: Map<number, { id: string; name: string; arguments: string }>,
  delta: ToolCallDelta,
) {
  const { index, id = "", name = "", arguments: text } = delta;
  const known = toolCalls.get(index);
  if (known === undefined) toolCalls.set(index, { id, name, arguments: text });
  else known.arguments += text;
}

function toStart(id: string, { model, queueMs }: Answer) {
  const ms = Math.round(queueMs);
  const queueWait = ms > 0 ? { queueWait: durationFromMs(ms) } : {};
  return part({ case: "start", value: { id, model, ...queueWait } });
}

const heartbeat = part({ case: "heartbeat", value: {} });

/** The same items; undefined whenever `ms` milliseconds pass without one. */
async function* withHeartbeats<T>(
  items: AsyncIterable<T>,
  ms: number,
): AsyncGenerator<T | undefined> {
  const iterator = items[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = iterator.next();
      while (!(await settlesWithin(next, ms))) yield undefined;
      const { done, value } = await next;
      if (done) return;
      yield value;
    }
  } finally {
    // Not waited for: an engine that says nothing need not say that it has stopped.
    iterator.return?.().catch(ignore);
  }
}

function dispose(held: Disposable): void {
  held[Symbol.dispose]();
}

function ignore() {}

/** Text is nearly all that is ever streamed, and is written here field by field; Connect's path proves it equal. */
export function encodeStreamPart(wire: Wire, each: ChatPart, usage: Usage): Buffer {
  if (each.type === "text-delta" || each.type === "reasoning-delta") {
    const { json, tag } = textDeltas[each.type];
    return wire.isJson
      ? envelope(0, Buffer.from(`{"${json}":{"text":${JSON.stringify(each.text)}}}`))
      : encodeText(tag, each.text);
  }
  return encode(StreamChatResponseSchema, wire, toStreamPart(each, usage));
}

/** The fields of StreamChatResponse that hold text: their names in JSON, their tags (number << 3 | length-delimited). */
const textDeltas = {
  "text-delta": { json: "textDelta", tag: (2 << 3) | 2 },
  "reasoning-delta": { json: "reasoningDelta", tag: (3 << 3) | 2 },
} as const;

/** TextDelta.text and ReasoningDelta.text are both field 1, length-delimited. */
const textTag = (1 << 3) | 2;

/** An envelope with a StreamChatResponse that holds one text: two nested fields, each a tag, a length and its bytes. */
function encodeText(tag: number, text: string): Buffer {
  const textBytes = Buffer.byteLength(text);
  const deltaBytes = 1 + varintBytes(textBytes) + textBytes;
  const messageBytes = 1 + varintBytes(deltaBytes) + deltaBytes;
  const bytes = Buffer.allocUnsafe(envelopeBytes + messageBytes);
  bytes[0] = 0;
  bytes.writeUInt32BE(messageBytes, 1);
  bytes[envelopeBytes] = tag;
  const deltaAt = writeVarint(bytes, envelopeBytes + 1, deltaBytes);
  bytes[deltaAt] = textTag;
  bytes.write(text, writeVarint(bytes, deltaAt + 1, textBytes));
  return bytes;
}

function varintBytes(value: number): number {
  let bytes = 1;
  for (let rest = value >>> 7; rest > 0; rest >>>= 7) bytes += 1;
  return bytes;
}

/** Returns where the next byte goes. */
function writeVarint(bytes: Buffer, at: number, value: number): number {
  let next = at;
  let rest = value;
  for (; rest > 0x7f; rest >>>= 7) {
    bytes[next] = (rest & 0x7f) | 0x80;
    next += 1;
  }
  bytes[next] = rest;
  return next + 1;
}

function toStreamPart(each: ChatPart, usage: Usage) {
  switch (each.type) {
    case "text-delta":
      return part({ case: "textDelta", value: { text: each.text } });
    case "reasoning-delta":
      return part({ case: "reasoningDelta", value: { text: each.text } });
    case "tool-call-delta": {
      const { index, id = "", name = "", arguments: text } = each;
      return part({ case: "toolCallDelta", value: { index, id, name, arguments: text } });
    }
    case "end": {
      const finishReason = toFinishReason(each.finishReason);
      return part({ case: "end", value: { finishReason, usage: toUsage(usage) } });
    }
  }
}

function part(value: MessageInitShape<typeof StreamChatResponseSchema>["part"]) {
  return create(StreamChatResponseSchema, value === undefined ? {} : { part: value });
}

const finishReasons = {
  stop: FinishReasonProto.STOP,
  length: FinishReasonProto.LENGTH,
  "tool-calls": FinishReasonProto.TOOL_CALLS,
} as const;

function toFinishReason(reason: FinishReason) {
  return finishReasons[reason];
}

function toUsage(usage: Usage) {
  return create(UsageSchema, {
    promptTokens: usage.promptTokens,
    completionTokens: usage.completionTokens,
    totalTokens: usage.promptTokens + usage.completionTokens,
    cachedPromptTokens: usage.cachedPromptTokens,
  });
}
