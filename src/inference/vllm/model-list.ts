import { AppError } from "../../errors.ts";
import type { MonotonicClock } from "../../lib/clock.ts";
import type { Model } from "../engine.ts";
import { isRecord, unreadable } from "./json.ts";

export interface ModelList {
  /** The models, at most `freshMs` old when they can be had; throws `unavailable` if they never could. */
  get(signal: AbortSignal): Promise<readonly Model[]>;
}

/**
 * Remembers what the engine serves. Only the first call waits for the engine: an old list is given at once, and
 * renewed behind it, because an old list is better than none. `load` runs once at a time, whoever waits for it.
 */
export function createModelList(options: {
  load: () => Promise<readonly Model[]>;
  clock: MonotonicClock;
  /** Told about a renewal that failed while an old list is in use. */
  onStale: (error: unknown) => void;
}): ModelList {
  let models: readonly Model[] | undefined;
  let loading: Promise<readonly Model[]> | undefined;
  let nextLoadAt = 0;

  const load = async () => {
    try {
      models = await options.load();
      nextLoadAt = options.clock() + FRESH_MS;
      return models;
    } catch (error) {
      nextLoadAt = options.clock() + RETRY_MS;
      if (models !== undefined) options.onStale(error);
      throw new AppError("unavailable", "nobody can say now which models are served: try again", {
        cause: error,
        retryAfterMs: RETRY_MS,
      });
    } finally {
      loading = undefined;
    }
  };

  return {
    async get(signal) {
      signal.throwIfAborted();
      if (models !== undefined && options.clock() < nextLoadAt) return models;
      if (loading === undefined) {
        loading = load();
        // Whoever waits gets the error; nobody may.
        loading.catch(() => undefined);
      }
      return models ?? untilAborted(loading, signal);
    },
  };
}

/** Reads the answer of `/v1/models`. */
export function parseModels(reply: Record<string, unknown>): readonly Model[] {
  if (!Array.isArray(reply.data)) throw unreadable("data", reply.data);
  const cards = reply.data.slice(0, MODELS_MAX).map((card: unknown) => {
    if (!isRecord(card) || typeof card.id !== "string" || card.id === "")
      throw unreadable("model", card);
    return { id: card.id, parent: card.parent, length: card.max_model_len };
  });
  const models = cards.flatMap(({ id, parent, length }) => {
    // A LoRA adapter has the length of the model it belongs to.
    const contextTokens = length ?? cards.find((card) => card.id === parent)?.length;
    return typeof contextTokens === "number" && contextTokens > 0 ? [{ id, contextTokens }] : [];
  });
  if (models.length === 0) throw unreadable("model with max_model_len", undefined);
  return models;
}

/** The first wait of the two to end. The work itself goes on, for others. */
function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/** The operator restarts vLLM to change its models: half a minute is soon enough to notice. */
const FRESH_MS = 30_000;

/** Between two tries while the engine does not answer. */
const RETRY_MS = 1_000;

const MODELS_MAX = 1_000;
