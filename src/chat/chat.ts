import type { Admission } from "../admission/admission.ts";
import { AppError } from "../errors.ts";
import type { ChatStream, Engine, EngineChatRequest } from "../inference/engine.ts";
import type { Client } from "../keys/key-registry.ts";
import { resolveModel } from "../model/models.ts";
import { checkJsonSchema } from "./json-schema.ts";

/** A conversation as a caller asks for it: the model may be empty, and the number of tokens open. */
export type ChatRequest = Omit<EngineChatRequest, "maxTokens" | "tenant"> & {
  readonly maxTokens?: number;
};

/** An answer that has begun. Disposing it gives the engine's sequence back; so does the end of the call. */
export interface Answer extends Disposable {
  readonly model: string;
  readonly parts: ChatStream;
}

export interface Chat {
  /**
   * Resolves when the engine has a sequence for this conversation; reading `parts` then runs it.
   *
   * The caller must dispose the answer. Throws AppError `invalid` for a prompt that does not fit the model or a schema
   * that is refused, `not-found` for a model that is not served, `exhausted` when too many calls wait, whatever the
   * engine throws, and `signal.reason` once `signal` aborts. What fails before it begins has cost nothing.
   */
  begin(
    request: ChatRequest,
    caller: { readonly client: Client; readonly signal: AbortSignal },
  ): Promise<Answer>;
}

/** The use case of both chat methods: choose the model, bound the answer, wait for the engine, run. */
export function createChat(options: {
  readonly engine: Engine;
  readonly admission: Admission;
  /** The model for requests that name none. */
  readonly defaultModel: string;
  /** Prompt and completion together, in tokens, at most. */
  readonly maxModelLen: number;
  /** Completion tokens of a request that names no number. */
  readonly maxTokensDefault: number;
}): Chat {
  const { engine, admission } = options;

  return {
    async begin(request, { client, signal }) {
      if (request.responseFormat?.type === "json-schema") {
        checkJsonSchema(request.responseFormat.schema, "response_format.json_schema.schema");
      }
      for (const tool of request.tools) {
        if (Object.keys(tool.parameters).length > 0) {
          checkJsonSchema(tool.parameters, `tools: the parameters of ${tool.name}`);
        }
      }
      const model = resolveModel(
        await engine.listModels(signal),
        request.model,
        options.defaultModel,
      );
      const context = Math.min(model.contextTokens, options.maxModelLen);
      const wanted = Math.min(request.maxTokens ?? options.maxTokensDefault, client.maxTokens);
      const named = { ...request, model: model.id, tenant: client.id };
      const maxTokens = await fitTokens(engine, named, { wanted, context }, signal);

      const sequence = await admission.enter(signal);
      const release = () => sequence[Symbol.dispose]();
      // A reader that stalls must not hold the sequence of a call that is over: the abort gives it back by itself.
      signal.addEventListener("abort", release, { once: true });
      return {
        model: model.id,
        parts: engine.chat({ ...named, maxTokens }, signal),
        [Symbol.dispose]() {
          signal.removeEventListener("abort", release);
          release();
        },
      };
    },
  };
}

/** Tokens that chat templates may add: a few for each message, and a preamble for the system prompt and tools. */
const templateTokensPerMessage = 16;
const templateTokens = 512;

/**
 * How many tokens the answer may have beside its prompt. A token is at least one byte, so that most prompts are known to
 * fit from their size alone; only the others cost a question to the engine.
 */
async function fitTokens(
  engine: Engine,
  request: Omit<EngineChatRequest, "maxTokens">,
  { wanted, context }: { readonly wanted: number; readonly context: number },
  signal: AbortSignal,
): Promise<number> {
  if (promptTokensMax(request) + wanted <= context) return wanted;
  const prompt = await engine.countTokens(request, signal);
  if (prompt >= context) {
    throw new AppError(
      "invalid",
      `the prompt has ${prompt} tokens and the model's context is ${context}: shorten the messages`,
    );
  }
  return Math.min(wanted, context - prompt);
}

function promptTokensMax(request: Omit<EngineChatRequest, "maxTokens">): number {
  let bytes = templateTokens;
  for (const message of request.messages) {
    bytes += templateTokensPerMessage + Buffer.byteLength(message.content);
    if (message.toolCalls.length > 0) bytes += Buffer.byteLength(JSON.stringify(message.toolCalls));
  }
  if (request.tools.length > 0) bytes += Buffer.byteLength(JSON.stringify(request.tools));
  return bytes;
}
