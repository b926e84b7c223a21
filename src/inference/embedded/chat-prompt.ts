import type { ChatHistoryItem, ChatWrapper, LlamaModel, Token } from "node-llama-cpp";
import { AppError } from "../../errors.ts";
import type { ChatMessage } from "../engine.ts";
import type { ThoughtTags } from "./thoughts.ts";

/** A conversation as the model reads it, and how its answer ends. */
export interface ChatPrompt {
  readonly tokens: readonly Token[];
  /** Texts that end the model's turn beside its end-of-turn tokens. */
  readonly stopTexts: readonly string[];
  /** Absent for models that do not reason in the open. */
  readonly thoughtTags: ThoughtTags | undefined;
  /** Whether the prompt ends inside a thought, as some templates have it. */
  readonly opensThought: boolean;
}

/**
 * Characters that a token stands for at most, on average over a whole prompt: about 4 in practice. Tokenizing blocks the
 * event loop for up to 2 ms per 1000 characters, so that a prompt that cannot fit is refused by its length.
 */
const charactersPerToken = 16;

/**
 * Lays out messages by the model's own chat template, with the answer of the assistant to come. What callers write is
 * never read as a special token: a message cannot end its turn or speak for another role.
 *
 * Throws AppError `unsupported` for tool messages and calls, `invalid` when the messages are hopelessly longer than
 * `contextTokens` or the template refuses them.
 */
export function renderPrompt(
  messages: readonly ChatMessage[],
  { model, wrapper, contextTokens }: PromptOptions,
): ChatPrompt {
  const characters = messages.reduce((sum, { content }) => sum + content.length, 0);
  if (characters > contextTokens * charactersPerToken) {
    throw new AppError(
      "invalid",
      `the prompt has ${characters} characters and the model's context is ${contextTokens} tokens: shorten the messages`,
    );
  }
  const { contextText, stopGenerationTriggers } = layOut(wrapper, messages.map(toHistoryItem));
  const stopTexts = stopGenerationTriggers
    .map(String)
    // A trigger of a built-in token ("EOS") has a name but no text; the model's end-of-turn tokens cover it.
    .filter((text) => text !== "" && !builtInTokens.has(text));
  const thoughtTags = findThoughtTags(wrapper);
  return {
    tokens: contextText.tokenize(model.tokenizer),
    stopTexts: [...new Set(stopTexts)],
    thoughtTags,
    opensThought:
      thoughtTags !== undefined && contextText.toString().trimEnd().endsWith(thoughtTags.open),
  };
}

interface PromptOptions {
  readonly model: LlamaModel;
  readonly wrapper: ChatWrapper;
  readonly contextTokens: number;
}

const builtInTokens = new Set(["BOS", "EOS", "NL", "EOT", "SEP"]);

function layOut(wrapper: ChatWrapper, history: ChatHistoryItem[]) {
  try {
    return wrapper.generateContextState({
      chatHistory: [...history, { type: "model", response: [] }],
    });
  } catch (error) {
    throw new AppError(
      "invalid",
      "this model's chat template refuses the conversation: user and assistant must take turns, system comes first",
      { cause: error },
    );
  }
}

function toHistoryItem(message: ChatMessage): ChatHistoryItem {
  if (message.role === "tool" || message.toolCalls.length > 0) throw toolsUnsupported();
  if (message.role === "system") return { type: "system", text: message.content };
  if (message.role === "user") return { type: "user", text: message.content };
  return { type: "model", response: [message.content] };
}

/** The refusal of anything about tools, here and where a request offers them. */
export function toolsUnsupported(): AppError {
  return new AppError(
    "unsupported",
    "the embedded model cannot call tools: the service needs a vLLM engine (VLLM_URL) for that",
  );
}

function findThoughtTags(wrapper: ChatWrapper): ThoughtTags | undefined {
  const thought = wrapper.settings.segments?.thought;
  const open = String(thought?.prefix ?? "").trim();
  const close = String(thought?.suffix ?? "").trim();
  return open === "" || close === "" ? undefined : { open, close };
}
