import { randomInt } from "node:crypto";
import type { SequenceEvaluateOptions, Token } from "node-llama-cpp";
import type { EngineChatRequest } from "../engine.ts";

/** What callers get who leave a field open. */
export interface SamplingDefaults {
  readonly temperature: number;
  readonly topP: number;
  /** 0: the whole vocabulary. */
  readonly topK: number;
  readonly repetitionPenalty: number;
}

/**
 * GGUF files carry no sampling defaults that could be relied on. These are what the authors of the two models that are
 * downloaded by default recommend: Qwen2.5 in its generation_config.json, which vLLM applies as well, SmolLM2 in its
 * model card. For all other models Qwen's are as good a guess as any.
 */
const qwen: SamplingDefaults = { temperature: 0.7, topP: 0.8, topK: 20, repetitionPenalty: 1.05 };
const smollm2: SamplingDefaults = { temperature: 0.2, topP: 0.9, topK: 0, repetitionPenalty: 1 };

/** `basename` is the model's family as its file names it. */
export function samplingDefaults(basename: string | undefined): SamplingDefaults {
  return basename?.toLowerCase() === "smollm2" ? smollm2 : qwen;
}

/**
 * How llama.cpp is to choose the next token. Penalties look at `answer`, the tokens of this answer so far, which grows
 * while the call runs and never gets longer than `answerTokensMax`. A request without a seed gets a random one.
 */
export function toSampling(
  request: EngineChatRequest,
  defaults: SamplingDefaults,
  answer: readonly Token[],
  answerTokensMax: number,
): SequenceEvaluateOptions {
  return {
    temperature: request.temperature ?? defaults.temperature,
    topP: request.topP ?? defaults.topP,
    // Zero and less mean the whole vocabulary, here and in the API.
    topK: Math.max(0, request.topK ?? defaults.topK),
    minP: request.minP ?? 0,
    seed: toSeed(request.seed ?? randomInt(2 ** 32)),
    repeatPenalty: {
      punishTokens: () => [...answer],
      // A constant: llama.cpp rebuilds its history whenever this number changes.
      maxPunishTokens: answerTokensMax,
      penalty: request.repetitionPenalty ?? defaults.repetitionPenalty,
      frequencyPenalty: request.frequencyPenalty ?? 0,
      presencePenalty: request.presencePenalty ?? 0,
    },
  };
}

/** llama.cpp's seeds are 32 bits wide, and the highest one means "random" (LLAMA_DEFAULT_SEED). */
function toSeed(seed: number): number {
  return Math.min(seed >>> 0, 0xffff_fffe);
}
