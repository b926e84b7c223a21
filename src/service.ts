import type { AddressInfo, Socket } from "node:net";
import { createChat } from "./chat/chat.ts";
import { createChatHandler } from "./chat/chat-handler.ts";
import type { Config } from "./config.ts";
import type { ResolvedConfig } from "./config-files.ts";
import { AppError } from "./errors.ts";
import type { Events } from "./events.ts";
import { createHealth, type HealthSource } from "./health/health.ts";
import { createHealthPages } from "./health/health-handler.ts";
import type { ModelFileReport } from "./inference/embedded/model-file.ts";
import type { Engine } from "./inference/engine.ts";
import { createVllmEmbedder } from "./inference/vllm/embeddings.ts";
import { createVllmEngine } from "./inference/vllm/vllm-engine.ts";
import { createGate } from "./keys/gate.ts";
import { createKeyRegistry } from "./keys/key-registry.ts";
import { within } from "./lib/delay.ts";
import type { Embedder } from "./model/embedder.ts";
import { createModelHandler } from "./model/model-handler.ts";
import { type Call, toRecord } from "./rpc/call.ts";
import { countingOf, createRoutes, publicRpcs } from "./rpc/routes.ts";
import { RunningCalls } from "./server/call-scope.ts";
import { createClientAddress } from "./server/client-address.ts";
import { createHttpHandler } from "./server/http-handler.ts";
import { createListener } from "./server/listener.ts";
import type { Shared } from "./shared.ts";
import { createStartTrace } from "./usage/call-trace.ts";
import { createUsageHandler } from "./usage/usage-handler.ts";
import type { Activity } from "./usage/vitals.ts";

/** What answers calls, in one process. Disposing it drains it: see `createService`. */
export interface Service extends AsyncDisposable {
  readonly engine: Engine["kind"];
  /** Takes connections on the configured address, and resolves with its port. Rejects with Node's error when it is taken. */
  listen(): Promise<AddressInfo>;
  /** Serves a connection that another process has accepted there. */
  take(socket: Socket): void;
  /** What it has in hand now. */
  activity(): Activity;
}

/** What the configuration does not give. */
export interface ServiceParts {
  readonly resolved: ResolvedConfig;
  readonly shared: Shared;
  readonly events: Events;
  /** In the place of the engine that the configuration names. */
  readonly engine?: Engine;
  /** Ends a start that takes long, such as a model download. */
  readonly signal?: AbortSignal;
  /** Milliseconds after which a silent stream gets a heartbeat, in the place of the usual 15 s. */
  readonly heartbeatMs?: number;
  /** Progress of a model download. */
  readonly onModelFile?: (report: ModelFileReport) => void;
}

/** Outcomes of a call that asked for nothing of the engine because of what its caller did. */
const callersFaults = new Set([
  "invalid_argument",
  "not_found",
  "unimplemented",
  "canceled",
  "deadline_exceeded",
  // Without a reason: the request's own size, as every limit has one.
  "resource_exhausted",
]);
const isCallersFault = ({ outcome, reason }: Call) =>
  callersFaults.has(outcome) && reason === undefined;

/** A quarter of what proxies allow a silent stream, nginx and most others, before they cut it: one may get lost. */
const usualHeartbeatMs = 15_000;

/** After the drain's time is over: what calls get to tell their callers that the service stops. */
const unwindMs = 1000;

/**
 * Builds it. Throws AppError when no engine can be had; nothing stays open then.
 *
 * Disposal takes it down in this order: health says NOT_SERVING; no new connections and calls; running calls get
 * `config.server.drainMs` to finish; the rest end with UNAVAILABLE; then the engine is closed.
 */
export async function createService(config: Config, parts: ServiceParts): Promise<Service> {
  await using resources = new AsyncDisposableStack();
  const { resolved, shared, events, heartbeatMs = usualHeartbeatMs } = parts;

  const engine = resources.use(parts.engine ?? (await createEngine(config, parts)));
  const embedder = createEmbedder(config);
  if (embedder !== undefined) resources.use(embedder);
  const engineHealth: HealthSource = {
    name: "engine",
    optional: false,
    check: (signal) => engine.checkHealth(signal),
  };
  const health = createHealth([engineHealth, ...shared.sources]);
  const shutdown = new AbortController();
  let draining = false;
  let running = 0;

  const chat = createChat({
    engine,
    admission: shared.admission,
    defaultModel: config.engine.modelId,
    maxModelLen: config.engine.maxModelLen,
    maxTokensDefault: config.limits.maxTokensDefault,
  });
  const routes = createRoutes({
    chat: createChatHandler(chat, heartbeatMs),
    model: createModelHandler({
      engine,
      admission: shared.admission,
      embedder,
      defaultModel: config.engine.modelId,
      maxModelLen: config.engine.maxModelLen,
    }),
    usage: createUsageHandler(shared.usage),
    health,
    readMaxBytes: config.server.maxBodyBytes,
    maxTimeoutMs: config.timeouts.maxMs,
    shutdownSignal: shutdown.signal,
  });
  const registry = createKeyRegistry(resolved.keys, config.limits);
  const listener = createListener({
    tls: resolved.tls,
    onBug: events.connectionFailed,
    handler: createHttpHandler({
      ...routes,
      aliases: [{ method: "POST", path: "/v1/chat", rpc: "formdev.chat.v1.ChatService/Chat" }],
      publicPages: createHealthPages(health),
      publicRpcs,
      countingOf,
      gate: createGate({ registry, limits: shared.limits }),
      startTrace: config.traces && createStartTrace(config.traces.ratio),
      addressOf: createClientAddress(config.server.trustedProxies),
      bodyBytesMax: config.server.maxBodyBytes,
      deadline: config.timeouts,
      heartbeatMs,
      running: new RunningCalls(shutdown.signal),
      onCallStart() {
        running += 1;
      },
      onCallEnd(call, durationMs) {
        running -= 1;
        const { id, client, counted, cause } = call;
        if (client !== undefined && !counted && isCallersFault(call))
          shared.limits.count({ id, client });
        const record = toRecord(call, durationMs);
        events.callEnded(record, cause);
        shared.calls.record(record);
      },
      isDraining: () => draining,
    }),
  });

  resources.defer(async () => {
    draining = true;
    health.drain();
    const drained = listener.drain();
    await within(drained, config.server.drainMs);
    shutdown.abort(new AppError("unavailable", "the service is stopping: try again"));
    await within(drained, unwindMs);
    await listener.close();
  });

  const owned = resources.move();
  return {
    engine: engine.kind,
    listen: () => listener.listen(config.server.host, config.server.port),
    take: listener.take,
    activity: () => ({ calls: running, connections: listener.connections }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function createEngine(config: Config, parts: ServiceParts): Promise<Engine> {
  const { engine, timeouts } = config;
  if (engine.vllmUrls.length > 0) {
    return createVllmEngine({
      urls: engine.vllmUrls,
      ...(engine.vllmApiKey !== undefined && { apiKey: engine.vllmApiKey.reveal() }),
      connections: engine.concurrency + spareConnections,
      cacheSaltSecret: parts.resolved.cacheSaltSecret,
      timeouts: {
        firstByteMs: timeouts.firstTokenMs,
        betweenChunksMs: timeouts.betweenTokensMs,
      },
      log: ({ error }) => parts.events.modelListStale(error),
    });
  }
  // Whoever uses vLLM does not load the embedded engine, nor has it in the image.
  const { findModel } = await import("./inference/embedded/model-file.ts");
  const { createEmbeddedEngine } = await import("./inference/embedded/embedded-engine.ts");
  const modelPath = await findModel(
    {
      modelPath: engine.modelPath,
      cacheDir: engine.modelCacheDir,
      hubUrl: engine.hubUrl,
      ...(parts.signal !== undefined && { signal: parts.signal }),
    },
    parts.onModelFile ?? (() => undefined),
  );
  return createEmbeddedEngine({
    modelPath,
    concurrency: engine.concurrency,
    contextTokens: Math.min(engine.maxModelLen, embeddedContextMax),
  });
}

/** Connections beside those of running chats, for the moment in which one is closed and its successor opened. */
const spareConnections = 4;

/** A larger context costs the embedded engine memory for every sequence, used or not. */
const embeddedContextMax = 4096;

function createEmbedder(config: Config): Embedder | undefined {
  const { embeddingsUrl, vllmApiKey } = config.engine;
  if (embeddingsUrl === undefined) return undefined;
  return createVllmEmbedder({
    url: embeddingsUrl,
    ...(vllmApiKey !== undefined && { apiKey: vllmApiKey.reveal() }),
  });
}
