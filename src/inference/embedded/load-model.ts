import { availableParallelism } from "node:os";
import { basename } from "node:path";
import type { ChatWrapper, Llama, LlamaContext, LlamaModel } from "node-llama-cpp";
import { AppError } from "../../errors.ts";
import { promptBatchTokens } from "./evaluate.ts";
import { type SamplingDefaults, samplingDefaults } from "./sampling.ts";

type LlamaModule = typeof import("node-llama-cpp");

/** A model in memory. Disposing it frees all of it; nothing may use it then. */
export interface LoadedModel extends AsyncDisposable {
  readonly module: LlamaModule;
  readonly llama: Llama;
  readonly model: LlamaModel;
  readonly context: LlamaContext;
  readonly wrapper: ChatWrapper;
  readonly sampling: SamplingDefaults;
  /** Prompt and completion of one sequence together, in tokens. */
  readonly contextTokens: number;
}

export interface LoadOptions {
  readonly modelPath: string;
  readonly concurrency: number;
  readonly contextTokens: number;
  readonly threads?: number;
}

/**
 * Loads a GGUF file for the CPU, with room for `concurrency` sequences of `contextTokens` each, or of what the model was
 * trained on where that is less.
 *
 * llama.cpp itself is loaded here and nowhere else, so that a service which uses vLLM does not need it. Throws AppError
 * `unavailable` when it is not installed or has no binary for this machine, `invalid` when the file cannot be loaded.
 */
export async function loadModel(
  options: LoadOptions,
  importLlama: () => Promise<LlamaModule> = () => import("node-llama-cpp"),
): Promise<LoadedModel> {
  const threads = options.threads ?? defaultThreads();
  const { module, llama } = await startLlama(importLlama, threads);
  await using undo = new AsyncDisposableStack();
  undo.defer(() => llama.dispose());
  const { modelPath, concurrency } = options;
  const model = await llama.loadModel({ modelPath }).catch((cause) => {
    if (cause instanceof module.InsufficientMemoryError) throw noRoom(options, cause);
    const file = basename(modelPath);
    throw new AppError("invalid", `${file} is not a model that llama.cpp can load`, { cause });
  });
  const contextTokens = Math.min(options.contextTokens, model.trainContextSize);
  const context = await model
    .createContext({
      contextSize: contextTokens,
      sequences: concurrency,
      threads,
      batchSize: promptBatchTokens,
      batching: { itemPrioritizationStrategy: oneSequenceAtATime },
    })
    .catch((cause) => {
      throw noRoom(options, cause);
    });
  const wrapper = chooseWrapper(module, model);
  const sampling = samplingDefaults(model.fileInfo.metadata.general?.basename);
  const owned = undo.move();
  return {
    ...{ module, llama, model, context, wrapper, sampling, contextTokens },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/**
 * One core stays free for the event loop and for other processes. The threads of llama.cpp wait for each other by
 * spinning, so that one too many is a disaster: on two cores shared with other work, two threads gave 2.5 tokens a second
 * where one gave 33 (SmolLM2 135M).
 */
function defaultThreads(): number {
  return Math.max(1, availableParallelism() - 1);
}

async function startLlama(importLlama: () => Promise<LlamaModule>, threads: number) {
  try {
    const module = await importLlama();
    const llama = await module.getLlama({
      gpu: false,
      build: "never",
      progressLogs: false,
      logLevel: module.LlamaLogLevel.disabled,
      logger: () => undefined,
      maxThreads: threads,
    });
    return { module, llama };
  } catch (error) {
    throw new AppError(
      "unavailable",
      "the embedded engine is not installed for this machine: run npm install without --omit=optional, or set VLLM_URL",
      { cause: error },
    );
  }
}

/**
 * Each batch belongs to one sequence, in the order of the requests. Sequences that share a batch would change the last
 * bits of each other's numbers, and so now and then a token: a seed would no longer give the same text. On a CPU sharing
 * gains nothing (two sequences at once: 17 tokens a second each, one alone: 33).
 */
const oneSequenceAtATime = <Item extends { tokens: readonly unknown[] }>(queue: {
  items: readonly Item[];
  size: number;
}) =>
  queue.items
    .slice(0, 1)
    .map((item) => ({ item, processAmount: Math.min(item.tokens.length, queue.size) }));

/**
 * The template in the file decides, as it does in vLLM, its default system prompt included; llama.cpp's stand-ins for
 * well-known templates are for files without one. Templates that insist on turns may refuse a conversation.
 */
function chooseWrapper(module: LlamaModule, model: LlamaModel): ChatWrapper {
  const template = model.fileInfo.metadata.tokenizer?.chat_template;
  if (template !== undefined) {
    try {
      const { tokenizer } = model;
      const asWritten = { joinAdjacentMessagesOfTheSameType: false };
      return new module.JinjaTemplateChatWrapper({ template, tokenizer, ...asWritten });
    } catch {
      // A template that cannot be compiled: the stand-in for this model's family is the next best.
    }
  }
  return module.resolveChatWrapper(model, { warningLogs: false, noJinja: true });
}

function noRoom({ concurrency, contextTokens }: LoadOptions, cause: unknown): AppError {
  return new AppError(
    "invalid",
    `there is no room for ${concurrency} times ${contextTokens} tokens beside the model: lower ENGINE_CONCURRENCY or MAX_MODEL_LEN, or take a smaller model`,
    { cause },
  );
}
