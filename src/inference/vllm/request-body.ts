import { createHmac } from "node:crypto";
import type {
  ChatMessage,
  EngineChatRequest,
  JsonObject,
  JsonValue,
  ResponseFormat,
  TokenCountRequest,
  Tool,
  ToolChoice,
} from "../engine.ts";

/**
 * The whole of what vLLM is told about a chat, rebuilt field by field: a field that is not written here cannot leave.
 * vLLM ignores unknown fields and refuses `null` in some known ones, so absent fields are left out.
 */
export function toChatBody(request: EngineChatRequest, cacheSalt: string): string {
  return toJson({
    model: request.model,
    messages: request.messages.map(toMessage),
    max_completion_tokens: request.maxTokens,
    temperature: request.temperature,
    top_p: request.topP,
    top_k: request.topK,
    min_p: request.minP,
    presence_penalty: request.presencePenalty,
    frequency_penalty: request.frequencyPenalty,
    repetition_penalty: request.repetitionPenalty,
    seed: request.seed,
    stop: request.stop.length > 0 ? request.stop : undefined,
    response_format: request.responseFormat && toResponseFormat(request.responseFormat),
    ...toTools(request.tools),
    tool_choice: request.toolChoice && toToolChoice(request.toolChoice),
    parallel_tool_calls: request.parallelToolCalls,
    ...toReasoning(request.reasoningEffort),
    cache_salt: cacheSalt,
    // Always: vLLM notices a caller who left only when it writes, and the tokens of a broken answer are known only
    // when every chunk carries them.
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  });
}

/** The same messages and tools, so that the template makes the same prompt of them. */
export function toTokenizeBody(request: TokenCountRequest): string {
  return toJson({
    model: request.model,
    messages: request.messages.map(toMessage),
    ...toTools(request.tools),
    add_generation_prompt: true,
  });
}

/**
 * Gives each tenant the salt that keeps its prefix cache apart: without it the time to the first token tells whether
 * somebody else has sent the same beginning (CVE-2025-46570). 128 bits of an HMAC, so that vLLM and its logs never see who
 * it is; hex, because free text in this field could kill the engine (CVE-2026-105756). There are as many tenants as the
 * operator has clients, and their salts are kept: an HMAC costs as much as ten tokens.
 */
export function createCacheSalts(secret: Buffer): (tenant: string) => string {
  const salts = new Map<string, string>();
  return (tenant) => {
    const known = salts.get(tenant);
    if (known !== undefined) return known;
    const salt = createHmac("sha256", secret).update(tenant).digest("hex").slice(0, 32);
    salts.set(tenant, salt);
    return salt;
  };
}

function toMessage(message: ChatMessage): Fields {
  return {
    role: message.role,
    content: message.content,
    tool_calls:
      message.toolCalls.length === 0
        ? undefined
        : message.toolCalls.map(({ id, name, arguments: text }) => ({
            id,
            type: "function",
            function: { name, arguments: text },
          })),
    tool_call_id: message.toolCallId,
  };
}

function toTools(tools: readonly Tool[]): Fields {
  if (tools.length === 0) return {};
  const toTool = ({ name, description, parameters, strict }: Tool) => ({
    type: "function",
    function: {
      name,
      description: description === "" ? undefined : description,
      parameters: Object.keys(parameters).length === 0 ? undefined : parameters,
      strict,
    },
  });
  return { tools: tools.map(toTool) };
}

function toToolChoice(choice: ToolChoice): FieldValue {
  if (typeof choice === "string") return choice;
  return { type: "function", function: { name: choice.name } };
}

function toResponseFormat(format: ResponseFormat): Fields {
  if (format.type === "json-object") return { type: "json_object" };
  return { type: "json_schema", json_schema: { name: format.name, schema: format.schema } };
}

/** "none" has no meaning that all templates share: those that can think or not read `enable_thinking`. */
function toReasoning(effort: EngineChatRequest["reasoningEffort"]): Fields {
  if (effort === "none") return { chat_template_kwargs: { enable_thinking: false } };
  return { reasoning_effort: effort };
}

type FieldValue = JsonValue | Fields | readonly FieldValue[] | undefined;
interface Fields {
  readonly [name: string]: FieldValue | JsonObject;
}

/** JSON leaves out what is undefined. */
function toJson(fields: Fields): string {
  return JSON.stringify(fields);
}
