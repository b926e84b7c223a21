import { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import type { Embedder } from "../../model/embedder.ts";
import { fetchJson } from "./fetch-reply.ts";
import { isRecord, parseCount, unreadable } from "./json.ts";
import { createModelList, parseModels } from "./model-list.ts";
import { Upstream } from "./upstream.ts";

export interface VllmEmbedderOptions {
  /** A vLLM server that runs an embedding model: usually not the one that chats. From the operator only. */
  readonly url: URL;
  readonly apiKey?: string;
  /** Requests at once. 4: each carries a batch. */
  readonly connections?: number;
  /** For one request, the wait for a connection included. 60 s: a batch behind others on a CPU. */
  readonly timeoutMs?: number;
}

/**
 * The embedder port on vLLM's `/v1/embeddings`. Errors are those of the engine, and `corrupt` when the vectors do not
 * match the inputs. Disposal ends running calls with `unavailable`.
 */
export function createVllmEmbedder(options: VllmEmbedderOptions): Embedder {
  const { url, apiKey, connections = 4, timeoutMs = 60_000 } = options;
  const upstream = new Upstream({ url, apiKey, connections, connectMs: 2_000 });
  const disposing = new AbortController();
  const models = createModelList({
    load: async () => {
      const limits = { timeoutMs, bytesMax: MODELS_BYTES_MAX, signal: disposing.signal };
      return parseModels(await fetchJson(upstream, { method: "GET", path: "/v1/models" }, limits));
    },
    clock: monotonicClock,
    // The last list holds.
    onStale: () => undefined,
  });
  return {
    async resolveModel(model, signal) {
      if (model !== "") return model;
      const [first] = await models.get(signal);
      if (first === undefined) throw unreadable("model", first);
      return first.id;
    },

    async embed({ model, inputs }, signal) {
      const reply = await fetchJson(
        upstream,
        {
          method: "POST",
          path: "/v1/embeddings",
          // Said explicitly: what a server does without it has changed between versions.
          body: JSON.stringify({ model, input: inputs, encoding_format: "float" }),
        },
        { timeoutMs, bytesMax: REPLY_BYTES + inputs.length * BYTES_PER_INPUT, signal },
      );
      if (!isRecord(reply.usage)) throw unreadable("usage", reply.usage);
      return {
        model,
        vectors: parseVectors(reply.data, inputs.length),
        promptTokens: parseCount(reply.usage.prompt_tokens, 0),
      };
    },
    [Symbol.asyncDispose]() {
      disposing.abort(new AppError("unavailable", "the service is stopping: try again"));
      return upstream[Symbol.asyncDispose]();
    },
  };
}

function parseVectors(data: unknown, count: number): readonly Float32Array[] {
  if (!Array.isArray(data) || data.length !== count) throw unreadable("list of embeddings", data);
  const items = data.map(parseItem).sort((a, b) => a.index - b.index);
  const length = items[0]?.vector.length;
  // In order they are 0, 1, 2...: none twice, none missing.
  if (items.some(({ index, vector }, i) => index !== i || vector.length !== length))
    throw unreadable("list of embeddings", data);
  return items.map(({ vector }) => vector);
}

function parseItem(item: unknown): { index: number; vector: Float32Array } {
  if (!isRecord(item) || typeof item.index !== "number") throw unreadable("embedding", item);
  return { index: item.index, vector: parseVector(item.embedding) };
}

function parseVector(value: unknown): Float32Array {
  if (!Array.isArray(value) || value.length === 0) throw unreadable("embedding", value);
  const vector = Float32Array.from(value, (x: unknown) => (typeof x === "number" ? x : Number.NaN));
  if (!vector.every(Number.isFinite)) throw unreadable("embedding", value);
  return vector;
}

/** 4,096 dimensions of at most 24 characters, and room around them. */
const BYTES_PER_INPUT = 128 * 1024;
const REPLY_BYTES = 64 * 1024;

const MODELS_BYTES_MAX = 1024 * 1024;
