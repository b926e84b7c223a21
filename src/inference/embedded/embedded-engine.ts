import { basename } from "node:path";
import { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import { type ChatStream, type Engine, type Model, noUsage, type Usage } from "../engine.ts";
import { renderPrompt, toolsUnsupported } from "./chat-prompt.ts";
import { runChat } from "./chat-run.ts";
import { loadModel } from "./load-model.ts";
import { createPool } from "./pool.ts";

export interface EmbeddedEngineOptions {
  /** A GGUF file. Its name without `.gguf`, in lower case, is the model's id. */
  readonly modelPath: string;
  /** Sequences that run at once. Each costs memory for its context; on a CPU they share the speed of one. */
  readonly concurrency: number;
  /** Prompt and completion of one call together, in tokens; what the model was trained on where that is less. */
  readonly contextTokens: number;
  /** Threads that compute. All cores but one unless given: see load-model.ts for why never more than that. */
  readonly threads?: number;
}

/**
 * The engine that runs llama.cpp in this process, on the CPU, without any other service. Computing happens on threads of
 * its own, so that the event loop stays free; only compiling the grammar of a response format takes it, 0.4 s for the worst
 * schema that is accepted.
 *
 * The same request with the same seed gives the same text on the same machine, whatever runs beside it. Calls share no
 * state: `cachedPromptTokens` is always 0. Calls beyond `concurrency` wait in order of arrival. Tools are refused as
 * `unsupported`; response formats are enforced by a grammar, within the bounds of json-grammar.ts. Disposing ends running
 * and waiting calls with AppError `unavailable` and frees all memory.
 *
 * Throws AppError `unavailable` when node-llama-cpp is not installed or knows no binary for this machine, `invalid` when
 * the file is no model or memory does not suffice.
 */
export async function createEmbeddedEngine(options: EmbeddedEngineOptions): Promise<Engine> {
  const loaded = await loadModel(options);
  const sequences = createPool(
    Array.from({ length: options.concurrency }, () => loaded.context.getSequence()),
  );
  const served: Model = {
    id: basename(options.modelPath)
      .replace(/\.gguf$/i, "")
      .toLowerCase(),
    contextTokens: loaded.contextTokens,
  };
  const stopping = new AbortController();
  let disposal: Promise<void> | undefined;

  const assertServed = (model: string) => {
    if (model === served.id) return;
    throw new AppError("not-found", `this model is not served: use ${served.id}`);
  };

  return {
    kind: "llama.cpp",

    chat(request, signal): ChatStream {
      let usage: Usage = noUsage;
      let askedAt: number | undefined;
      let firstPartAt: number | undefined;
      return {
        get usage() {
          return usage;
        },
        get askedAt() {
          return askedAt;
        },
        get firstPartAt() {
          return firstPartAt;
        },
        async *[Symbol.asyncIterator]() {
          assertServed(request.model);
          askedAt = monotonicClock();
          const parts = runChat({
            loaded,
            sequences,
            request,
            signal: AbortSignal.any([signal, stopping.signal]),
            onUsage: (reported) => {
              usage = reported;
            },
          });
          for await (const part of parts) {
            firstPartAt ??= monotonicClock();
            yield part;
          }
        },
      };
    },

    async listModels() {
      stopping.signal.throwIfAborted();
      return [served];
    },

    async countTokens({ model, messages, tools }) {
      stopping.signal.throwIfAborted();
      assertServed(model);
      if (tools.length > 0) throw toolsUnsupported();
      return renderPrompt(messages, loaded).tokens.length;
    },

    async checkHealth() {
      stopping.signal.throwIfAborted();
    },

    [Symbol.asyncDispose]() {
      disposal ??= dispose();
      return disposal;
    },
  };

  async function dispose() {
    stopping.abort(new AppError("unavailable", "the service is stopping: try again later"));
    await sequences.idle();
    await loaded[Symbol.asyncDispose]();
  }
}
