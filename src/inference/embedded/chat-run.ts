import type { SequenceEvaluateOptions, Token } from "node-llama-cpp";
import { AppError } from "../../errors.ts";
import type { ChatPart, EngineChatRequest, FinishReason, Usage } from "../engine.ts";
import { abortable } from "./abortable.ts";
import { type ChatPrompt, renderPrompt, toolsUnsupported } from "./chat-prompt.ts";
import { evaluate } from "./evaluate.ts";
import { unsupportedFormat } from "./gbnf.ts";
import { createJsonGrammar } from "./json-grammar.ts";
import type { LoadedModel } from "./load-model.ts";
import type { SequencePool } from "./pool.ts";
import { toSampling } from "./sampling.ts";
import { createStopStrings } from "./stop-strings.ts";
import { createThoughts } from "./thoughts.ts";
import { createTokenText } from "./token-text.ts";

export interface ChatRun {
  readonly loaded: LoadedModel;
  readonly sequences: SequencePool;
  readonly request: EngineChatRequest;
  readonly signal: AbortSignal;
  /** Called whenever the numbers have changed. The end-of-turn token counts as a completion token, as vLLM has it. */
  readonly onUsage: (usage: Usage) => void;
}

/**
 * One chat from its request to its `end` part, on a sequence of its own. An abort is thrown at once, in every phase; the
 * sequence goes back when the batch that is being computed then is done.
 */
export async function* runChat(run: ChatRun): AsyncGenerator<ChatPart, void, undefined> {
  const { loaded, request, signal } = run;
  signal.throwIfAborted();
  if (request.tools.length > 0) throw toolsUnsupported();
  const prompt = renderPrompt(request.messages, loaded);
  const limit = fitCompletion(request.maxTokens, prompt, loaded.contextTokens);
  const answer: Token[] = [];
  const options = {
    ...toSampling(request, loaded.sampling, answer, limit),
    ...(await toGrammar(request, loaded)),
  };

  const lease = await run.sequences.acquire(signal);
  const tokens = evaluate(lease.item, prompt.tokens, options, signal);
  const reader = createReader(loaded, prompt, request.stop);
  let finishReason: FinishReason | undefined;
  try {
    while (finishReason === undefined) {
      run.onUsage(toUsage(prompt, answer));
      const token = await nextToken(tokens, signal);
      answer.push(token);
      if (loaded.model.isEogToken(token)) finishReason = "stop";
      else {
        yield* reader.push(token);
        if (reader.stopped) finishReason = "stop";
        else if (answer.length >= limit) finishReason = "length";
      }
    }
  } finally {
    run.onUsage(toUsage(prompt, answer));
    lease.releaseAfter(tokens.return());
  }
  yield* reader.flush();
  yield { type: "end", finishReason };
}

async function nextToken(tokens: AsyncGenerator<Token, void>, signal: AbortSignal): Promise<Token> {
  let cause: unknown;
  try {
    const { value } = await abortable(tokens.next(), signal);
    if (value !== undefined) return value;
  } catch (error) {
    signal.throwIfAborted();
    cause = error;
  }
  throw new AppError("corrupt", "the model stopped in the middle of its answer", { cause });
}

/** From tokens to parts: whole characters, up to a stop string, reasoning apart. */
function createReader(loaded: LoadedModel, prompt: ChatPrompt, stop: readonly string[]) {
  const text = createTokenText(
    (tokens, before) => loaded.model.detokenize(tokens, false, before),
    prompt.tokens,
  );
  const stops = createStopStrings([...stop, ...prompt.stopTexts]);
  const thoughts = createThoughts(prompt.thoughtTags, prompt.opensThought);
  let stopped = false;

  const read = (piece: string) => {
    const shown = stops.push(piece);
    stopped = shown.stopped;
    return thoughts.push(shown.text);
  };
  return {
    get stopped() {
      return stopped;
    },
    push: (token: Token) => read(text.push(token)),
    /** What was still held back. After a stop string there is no text left to show. */
    flush: () => [
      ...(stopped ? [] : read(text.flush())),
      ...thoughts.push(stops.flush()),
      ...thoughts.flush(),
    ],
  };
}

function fitCompletion(maxTokens: number, prompt: ChatPrompt, contextTokens: number): number {
  const room = contextTokens - prompt.tokens.length;
  if (room > 0) return Math.min(maxTokens, room);
  throw new AppError(
    "invalid",
    `the prompt has ${prompt.tokens.length} tokens and the model's context is ${contextTokens}: shorten the messages`,
  );
}

async function toGrammar(
  request: EngineChatRequest,
  loaded: LoadedModel,
): Promise<SequenceEvaluateOptions> {
  if (request.responseFormat === undefined) return {};
  const { llama, model, module } = loaded;
  const text = createJsonGrammar(request.responseFormat);
  try {
    const grammar = await llama.createGrammar({ grammar: text });
    return { grammarEvaluationState: new module.LlamaGrammarEvaluationState({ model, grammar }) };
  } catch (error) {
    throw Object.assign(unsupportedFormat("a schema of this size"), { cause: error });
  }
}

function toUsage(prompt: ChatPrompt, answer: readonly Token[]): Usage {
  return {
    promptTokens: prompt.tokens.length,
    completionTokens: answer.length,
    cachedPromptTokens: 0,
  };
}
