import { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import type { Engine, TokenCountRequest } from "../engine.ts";
import { VllmChatStream } from "./chat-stream.ts";
import { fetchJson, fetchSuccess } from "./fetch-reply.ts";
import { parseCount, unreadable } from "./json.ts";
import { createModelList, parseModels } from "./model-list.ts";
import { createCacheSalts, toChatBody, toTokenizeBody } from "./request-body.ts";
import { Upstream } from "./upstream.ts";

export interface VllmOptions {
  /** Where vLLM listens, http or https, with or without a path in front of `/v1`. From the operator only. */
  readonly url: URL;
  /** vLLM's `--api-key`. */
  readonly apiKey?: string;
  /** Chats at once, each on a connection of its own: the sequences that vLLM runs for us, and a few more. */
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
 * The engine port on a vLLM server (recorded and tried with 0.32). It connects when it is first used, and remembers
 * nothing about the server but its list of models: every call finds out anew whether vLLM is up.
 *
 * Errors are AppError: `unavailable` (refused, unreachable, full, restarting, or our key is wrong), `timeout` (one of
 * the limits above), `invalid` and `not-found` (vLLM refused the request), `corrupt` (what it said makes no sense, or
 * it stopped in the middle). Disposal ends running calls with `unavailable`.
 */
export function createVllmEngine(options: VllmOptions): Engine {
  const timeouts = { ...defaultTimeouts, ...options.timeouts };
  const { url, apiKey, cacheSaltSecret, log } = options;
  const cacheSaltOf = createCacheSalts(cacheSaltSecret);
  const { connectMs, firstByteMs, betweenChunksMs } = timeouts;
  const chats = new Upstream({ url, apiKey, connections: options.connections, connectMs });
  // Apart, so that health and the rest are answered while every connection carries a chat.
  const control = new Upstream({ url, apiKey, connections: CONTROL_CONNECTIONS, connectMs });
  const disposing = new AbortController();

  const models = createModelList({
    load: async () => {
      const limits = { timeoutMs: CONTROL_MS_MAX, bytesMax: MODELS_BYTES_MAX };
      const request = { method: "GET", path: "/v1/models" } as const;
      return parseModels(
        await fetchJson(control, request, { ...limits, signal: disposing.signal }),
      );
    },
    clock: monotonicClock,
    onStale: (error) => log?.({ type: "model-list-stale", error }),
  });

  return {
    kind: "vllm",

    chat: (request, signal) =>
      new VllmChatStream({
        upstream: chats,
        body: () => toChatBody(request, cacheSaltOf(request.tenant)),
        traceparent: request.traceparent,
        maxTokens: request.maxTokens,
        firstByteMs,
        betweenChunksMs,
        signal,
      }),

    listModels: (signal) => models.get(signal),

    countTokens: async (request: TokenCountRequest, signal: AbortSignal) => {
      const body = toTokenizeBody(request);
      const limits = { timeoutMs: CONTROL_MS_MAX, bytesMax: TOKENS_BYTES_MAX, signal };
      const reply = await fetchJson(control, { method: "POST", path: "/tokenize", body }, limits);
      if (reply.count == null) throw unreadable("count", reply.count);
      return parseCount(reply.count, 0);
    },

    checkHealth: async (signal) => {
      try {
        await fetchSuccess(control, "/health", {
          timeoutMs: HEALTH_MS_MAX,
          bytesMax: 1_024,
          signal,
        });
      } catch (error) {
        signal.throwIfAborted();
        throw new AppError("unavailable", "the engine is not ready", { cause: error });
      }
    },

    async [Symbol.asyncDispose]() {
      disposing.abort(new AppError("unavailable", "the service is stopping: try again"));
      await Promise.all([chats[Symbol.asyncDispose](), control[Symbol.asyncDispose]()]);
    },
  };
}

const defaultTimeouts: VllmTimeouts = {
  connectMs: 2_000,
  firstByteMs: 120_000,
  betweenChunksMs: 60_000,
};

/** Token counts, mostly: they cost vLLM no GPU, and one of its processes answers them all. */
const CONTROL_CONNECTIONS = 8;

/** These calls never wait for the GPU. */
const CONTROL_MS_MAX = 10_000;

/** vLLM answers `/health` at once or not at all. */
const HEALTH_MS_MAX = 2_000;

const MODELS_BYTES_MAX = 1024 * 1024;

/** `/tokenize` lists every token id, 8 bytes each at most: a million tokens. */
const TOKENS_BYTES_MAX = 8 * 1024 * 1024;
