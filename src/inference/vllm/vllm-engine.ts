import { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import type { Engine, TokenCountRequest } from "../engine.ts";
import { VllmChatStream } from "./chat-stream.ts";
import { ChunkShapes } from "./chunk-shapes.ts";
import { fetchJson, fetchSuccess } from "./fetch-reply.ts";
import { parseCount, unreadable } from "./json.ts";
import { createModelList, parseModels } from "./model-list.ts";
import { createCacheSalts, toChatBody, toTokenizeBody } from "./request-body.ts";
import { Servers } from "./servers.ts";

export interface VllmOptions {
  /**
   * Where vLLMs listen, one at least, all with the same models: http or https, with or without a path in front of `/v1`. From
   * the operator only.
   */
  readonly urls: readonly URL[];
  /** vLLM's `--api-key`. */
  readonly apiKey?: string;
  /** Chats at once with each vLLM, each on a connection of its own: the sequences that it runs for us, and a few more. */
  readonly connections: number;
  /** At least 32 bytes; the same in all processes, or tenants lose their prefix cache at every change of process. */
  readonly cacheSaltSecret: Buffer;
  readonly timeouts?: Partial<VllmTimeouts>;
  readonly log?: (event: VllmEvent) => void;
}

export interface VllmTimeouts {
  /** To open a connection, name resolution and TLS included. 2 s: it is a machine nearby. */
  readonly connectMs: number;
  /** From the call to the first event, the wait for a connection included. 2 min: a long prompt in a full engine. */
  readonly firstByteMs: number;
  /** Between two events, while we are ready to take them. 1 min: a preempted sequence is computed anew. */
  readonly betweenChunksMs: number;
}

export type VllmEvent = { readonly type: "model-list-stale"; readonly error: unknown };

/**
 * The engine port on vLLM servers (recorded and tried with 0.32). It connects when it is first used, and remembers nothing
 * about a server but its list of models: every call finds out anew whether vLLM is up.
 *
 * A chat runs on the server that its request names, which may also be one address of a name in `urls`; whatever else is asked
 * goes to any that answers. It is healthy when one of them is.
 *
 * Errors are AppError: `unavailable` (refused, unreachable, full, restarting, or our key is wrong), `timeout` (one of
 * the limits above), `invalid` and `not-found` (vLLM refused the request), `corrupt` (what it said makes no sense, or
 * it stopped in the middle). Disposal ends running calls with `unavailable`.
 */
export function createVllmEngine(options: VllmOptions): Engine {
  const timeouts = { ...defaultTimeouts, ...options.timeouts };
  const { urls, apiKey, connections, cacheSaltSecret, log } = options;
  const cacheSaltOf = createCacheSalts(cacheSaltSecret);
  const { connectMs, firstByteMs, betweenChunksMs } = timeouts;
  const servers = new Servers({ urls, apiKey, connections, connectMs });
  const shapes = new ChunkShapes();
  const disposing = new AbortController();

  const models = createModelList({
    load: async () => {
      const limits = { timeoutMs: CONTROL_MS_MAX, bytesMax: MODELS_BYTES_MAX };
      const request = { method: "GET", path: "/v1/models" } as const;
      const { signal } = disposing;
      return await servers.askAny(async (control) =>
        parseModels(await fetchJson(control, request, { ...limits, signal })),
      );
    },
    clock: monotonicClock,
    onStale: (error) => log?.({ type: "model-list-stale", error }),
  });

  return {
    kind: "vllm",

    chat: (request, signal) =>
      new VllmChatStream({
        upstream: servers.at(request.engine).chats,
        body: () => toChatBody(request, cacheSaltOf(request.tenant)),
        traceparent: request.traceparent,
        maxTokens: request.maxTokens,
        shapes,
        firstByteMs,
        betweenChunksMs,
        signal,
      }),

    listModels: (signal) => models.get(signal),

    countTokens: async (request: TokenCountRequest, signal: AbortSignal) => {
      const body = toTokenizeBody(request);
      const limits = { timeoutMs: CONTROL_MS_MAX, bytesMax: TOKENS_BYTES_MAX, signal };
      const reply = await servers.askAny((control) =>
        fetchJson(control, { method: "POST", path: "/tokenize", body }, limits),
      );
      if (reply.count == null) throw unreadable("count", reply.count);
      return parseCount(reply.count, 0);
    },

    checkHealth: async (signal) => {
      const limits = { timeoutMs: HEALTH_MS_MAX, bytesMax: 1_024 };
      const known = new AbortController();
      const either = AbortSignal.any([signal, known.signal]);
      // All at once: one that hangs must not hide that another works.
      const checks = servers.all.map(({ control }) =>
        fetchSuccess(control, "/health", { ...limits, signal: either }),
      );
      try {
        await Promise.any(checks);
      } catch (error) {
        signal.throwIfAborted();
        throw new AppError("unavailable", "the engine is not ready", { cause: error });
      } finally {
        known.abort();
      }
    },

    async [Symbol.asyncDispose]() {
      disposing.abort(new AppError("unavailable", "the service is stopping: try again"));
      await servers[Symbol.asyncDispose]();
    },
  };
}

const defaultTimeouts: VllmTimeouts = {
  connectMs: 2_000,
  firstByteMs: 120_000,
  betweenChunksMs: 60_000,
};

/** These calls never wait for the GPU. */
const CONTROL_MS_MAX = 10_000;

/** vLLM answers `/health` at once or not at all. */
const HEALTH_MS_MAX = 2_000;

const MODELS_BYTES_MAX = 1024 * 1024;

/** `/tokenize` lists every token id, 8 bytes each at most: a million tokens. */
const TOKENS_BYTES_MAX = 8 * 1024 * 1024;
