import { hash } from "node:crypto";
import type { Admission, Lease } from "../admission/admission.ts";
import { AppError } from "../errors.ts";
import type { ChatStream, Engine, EngineChatRequest } from "../inference/engine.ts";
import type { Client } from "../keys/key-registry.ts";
import { resolveModel } from "../model/models.ts";
import { Attempts } from "./attempts.ts";
import { checkJsonSchema } from "./json-schema.ts";

/** A conversation as a caller asks for it: the model may be empty, and the number of tokens open. */
export type ChatRequest = Omit<
  EngineChatRequest,
  "maxTokens" | "tenant" | "traceparent" | "engine"
> & {
  readonly maxTokens?: number;
};

/** An answer that has begun. Disposing it gives the engine's sequence back; so does the end of the call. */
export interface Answer extends Disposable {
  readonly model: string;
  /** The engine that answers, where there are several. */
  readonly engine: string | undefined;
  /** Milliseconds that it has waited for the engine. */
  readonly queueMs: number;
  readonly parts: ChatStream;
}

/** Whose conversation it is. */
export interface ChatCaller {
  /** The call's own id. */
  readonly id: string;
  readonly client: Client;
  /** Milliseconds until the call's deadline. */
  readonly deadlineMs: number;
  /** For the engine, where calls are traced. */
  readonly traceparent?: string;
  readonly signal: AbortSignal;
}

export interface Chat {
  /**
   * Resolves when the engine has a sequence for this conversation; reading `parts` then runs it.
   *
   * The caller must dispose the answer. Throws AppError `invalid` for a prompt that does not fit the model or a schema
   * that is refused, `not-found` for a model that is not served, what `Admission` throws, whatever the engine throws, and
   * `signal.reason` once `signal` aborts. What fails before it begins has cost nothing.
   */
  begin(request: ChatRequest, caller: ChatCaller): Promise<Answer>;
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
    async begin(request, { id, client, deadlineMs, traceparent, signal }) {
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
      const promptMax = promptTokensMax(named);
      const maxTokens =
        promptMax + wanted <= context
          ? wanted
          : await fitTokens(engine, named, { wanted, context }, signal);

      const promptTokens = tokensOfBytes(promptMax);
      const call = {
        id,
        client,
        model: model.id,
        tokens: promptTokens + Math.ceil(maxTokens * completionPart),
        tokensMax: promptTokens + maxTokens,
        deadlineMs,
        affinity: affinityOf(named),
      };
      const lease = await admission.enter(call, signal);
      const run = { ...named, maxTokens, ...(traceparent !== undefined && { traceparent }) };
      const parts = new Attempts({
        lease,
        signal,
        run: (id) => engine.chat(id === undefined ? run : { ...run, engine: id }, signal),
      });
      return new LeasedAnswer(model.id, promptTokens, parts, lease, signal);
    },
  };
}

/** An answer with its place, which the call's end gives back. */
class LeasedAnswer implements Answer {
  readonly model: string;
  readonly parts: Attempts;
  readonly #promptTokens: number;
  readonly #lease: Lease;
  readonly #signal: AbortSignal;

  constructor(
    model: string,
    promptTokens: number,
    parts: Attempts,
    lease: Lease,
    signal: AbortSignal,
  ) {
    this.model = model;
    this.parts = parts;
    this.#promptTokens = promptTokens;
    this.#lease = lease;
    this.#signal = signal;
    // A reader that stalls must not hold the sequence of a call that is over: the abort gives it back by itself.
    signal.addEventListener("abort", this.#release, { once: true });
  }

  get engine(): string | undefined {
    return this.#lease.engine;
  }

  get queueMs(): number {
    return this.#lease.queueMs;
  }

  readonly #release = (): void => {
    const { usage, isRefused } = this.parts;
    // An engine that was left before its first report has read some of the prompt, and nobody knows how much.
    const read = usage.promptTokens || (isRefused ? 0 : this.#promptTokens);
    this.#lease.settle(read + usage.completionTokens);
    this.#lease[Symbol.dispose]();
  };

  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#release);
    this.#release();
  }
}

/** Tokens that chat templates may add: a few for each message, and a preamble for the system prompt and tools. */
const templateTokensPerMessage = 16;
const templateTokens = 512;

/** How many tokens the answer may have beside its prompt, which the engine counts. */
async function fitTokens(
  engine: Engine,
  request: Omit<EngineChatRequest, "maxTokens">,
  { wanted, context }: { readonly wanted: number; readonly context: number },
  signal: AbortSignal,
): Promise<number> {
  const prompt = await engine.countTokens(request, signal);
  if (prompt >= context) {
    throw new AppError(
      "invalid",
      `the prompt has ${prompt} tokens and the model's context is ${context}: shorten the messages`,
    );
  }
  return Math.min(wanted, context - prompt);
}

/** Bytes of a message that tell conversations apart, and are not more than a hash is worth. */
const affinityBytes = 256;

/**
 * Conversations of a tenant that begin alike: an engine's prefix cache has what they have in common, and what one said before.
 * A digest, since it may be told to another process, and prompts stay where they are.
 */
function affinityOf({ tenant, messages }: Pick<EngineChatRequest, "tenant" | "messages">): string {
  const begin = messages.slice(0, 2).map(({ content }) => content.slice(0, affinityBytes));
  return hash("sha1", JSON.stringify([tenant, ...begin]), "base64url");
}

/**
 * The part of its bound that an answer is expected to take. Most stop far before it; what is wrong with it is put right when
 * the call ends, so that it only has to keep a client from starting many long answers at the price of short ones.
 */
const completionPart = 1 / 2;

/** Bytes of a token in French, English or JSON, as tokenizers of 100,000 entries and more cut them. */
const bytesPerToken = 4;

/** How many tokens a text of so many bytes is expected to be, at least 1. */
export function tokensOfBytes(bytes: number): number {
  return Math.max(1, Math.ceil(bytes / bytesPerToken));
}

/**
 * The most tokens that the prompt can have, from its size alone: a token is at least one byte. So most prompts are known to
 * fit, and only the others cost a question to the engine.
 */
function promptTokensMax(request: Omit<EngineChatRequest, "maxTokens">): number {
  let bytes = templateTokens;
  for (const message of request.messages) {
    bytes += templateTokensPerMessage + Buffer.byteLength(message.content);
    if (message.toolCalls.length > 0) bytes += Buffer.byteLength(JSON.stringify(message.toolCalls));
  }
  if (request.tools.length > 0) bytes += Buffer.byteLength(JSON.stringify(request.tools));
  return bytes;
}
