import type { ServiceImpl } from "@connectrpc/connect";
import type { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import type { Admission } from "../admission/admission.ts";
import { tokensOfBytes } from "../chat/chat.ts";
import { parseMessages, parseTools } from "../chat/chat-handler.ts";
import { AppError } from "../errors.ts";
import { type Engine, hasCostNothing, noUsage } from "../inference/engine.ts";
import { monotonicClock } from "../lib/clock.ts";
import { callOf, clientOf } from "../rpc/call.ts";
import type { Embedder } from "./embedder.ts";
import { resolveModel } from "./models.ts";

/** Translates ModelService to the engine's port. `embedder` is absent where no embedding engine is configured. */
export function createModelHandler(options: {
  readonly engine: Engine;
  readonly admission: Admission;
  readonly embedder: Embedder | undefined;
  /** The model for requests that name none. */
  readonly defaultModel: string;
  /** Prompt and completion together, in tokens, at most. */
  readonly maxModelLen: number;
}): ServiceImpl<typeof ModelService> {
  const { engine, admission, embedder, defaultModel, maxModelLen } = options;
  return {
    async listModels(_request, { signal }) {
      const served = await engine.listModels(signal);
      const first = resolveModel(served, "", defaultModel);
      const models = [first, ...served.filter((model) => model !== first)];
      return {
        models: models.map(({ id, contextTokens }) => ({
          id,
          contextTokens: Math.min(contextTokens, maxModelLen),
        })),
      };
    },

    async countTokens(request, { signal }) {
      const model = resolveModel(await engine.listModels(signal), request.model, defaultModel);
      const promptTokens = await engine.countTokens(
        {
          model: model.id,
          messages: parseMessages(request.messages),
          tools: parseTools(request.tools),
        },
        signal,
      );
      const contextTokens = Math.min(model.contextTokens, maxModelLen);
      return { promptTokens, contextTokens, model: model.id };
    },

    async embed(request, context) {
      const { signal } = context;
      if (embedder === undefined) {
        throw new AppError("unsupported", "this service has no embedding engine (EMBEDDINGS_URL)");
      }
      const call = callOf(context);
      const { id, deadlineAt } = call;
      const deadlineMs = deadlineAt - monotonicClock();
      const asked = await embedder.resolveModel(request.model, signal);
      const tokens = tokensOfBytes(
        request.inputs.reduce((sum, input) => sum + Buffer.byteLength(input), 0),
      );
      using lease = await admission.enter(
        {
          id,
          client: clientOf(call),
          model: asked,
          tokens,
          tokensMax: tokens,
          deadlineMs,
        },
        signal,
      );
      call.counted = true;
      const askedAt = monotonicClock();
      const { inputs } = request;
      const { model, vectors, promptTokens } = await embedder
        .embed({ model: asked, inputs }, signal)
        .catch((error: unknown) => {
          if (!signal.aborted && hasCostNothing(error)) lease.settle(0);
          throw error;
        });
      lease.settle(promptTokens);
      const usage = { ...noUsage, promptTokens };
      call.answer = { model, queueMs: lease.queueMs, parts: { usage, askedAt } };
      return {
        model,
        promptTokens,
        embeddings: vectors.map((vector) => ({ values: Array.from(vector) })),
      };
    },
  };
}
