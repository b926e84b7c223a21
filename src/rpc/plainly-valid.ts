import type { Message } from "../../gen/formdev/chat/v1/chat_pb.ts";
import type { ChatRequest } from "../../gen/formdev/chat/v1/chat_service_pb.ts";

/**
 * Whether a request keeps the contract's rules, for the plain requests that nearly all are: text and numbers, no tools, no
 * form of the answer. `false` says nothing: then the validator has to look, which knows all rules and their words, and takes
 * 50 µs where this takes less than one. A test holds this to what the validator says, and to every field that there is.
 */
export function isPlainlyValid(request: ChatRequest): boolean {
  const { messages } = request;
  if (messages.length < 1 || messages.length > 256) return false;
  for (const message of messages) if (!isPlainMessage(message)) return false;
  return (
    request.model.length <= 256 / utf8BytesMax &&
    isWithin(request.maxTokens, 1, 131_072) &&
    isWithin(request.temperature, 0, 2) &&
    isWithin(request.topP, Number.MIN_VALUE, 1) &&
    isWithin(request.topK, 1, 1000) &&
    isWithin(request.minP, 0, 1) &&
    isWithin(request.presencePenalty, -2, 2) &&
    isWithin(request.frequencyPenalty, -2, 2) &&
    isWithin(request.repetitionPenalty, Number.MIN_VALUE, 2) &&
    request.stop.length === 0 &&
    request.responseFormat === undefined &&
    request.tools.length === 0 &&
    request.toolChoice === undefined &&
    request.parallelToolCalls === undefined &&
    request.reasoning === undefined
  );
}

function isPlainMessage({ role, content, reasoning, toolCalls, toolCallId }: Message): boolean {
  return (
    (role === "user" || role === "assistant" || role === "system") &&
    content.length > 0 &&
    content.length <= 524_288 / utf8BytesMax &&
    !content.includes("\0") &&
    reasoning === "" &&
    toolCalls.length === 0 &&
    toolCallId === ""
  );
}

/** Of one UTF-16 unit. */
const utf8BytesMax = 3;

function isWithin(value: number | undefined, min: number, max: number): boolean {
  return value === undefined || (value >= min && value <= max);
}
