import { randomBytes } from "node:crypto";
import type { AddressInfo } from "node:net";
import { setTimeout } from "node:timers/promises";
import type { Logger } from "pino";
import { createAdmission } from "./admission/admission.ts";
import { createChat } from "./chat/chat.ts";
import { createChatHandler } from "./chat/chat-handler.ts";
import type { Config } from "./config.ts";
import { resolveConfig } from "./config-files.ts";
import { AppError } from "./errors.ts";
import { createEvents, createLogger, type Events } from "./events.ts";
import { createHealth, type HealthSource } from "./health/health.ts";
import { createHealthPages } from "./health/health-handler.ts";
import type { ModelFileReport } from "./inference/embedded/model-file.ts";
import type { Engine } from "./inference/engine.ts";
import { createVllmEmbedder } from "./inference/vllm/embeddings.ts";
import { createVllmEngine } from "./inference/vllm/vllm-engine.ts";
import { createGate } from "./keys/gate.ts";
import type { Secret } from "./lib/secret.ts";
import { createFailedAttempts } from "./limits/failed-attempts.ts";
import { createMemoryRateLimiter, type RateLimiter } from "./limits/rate-limit.ts";
import type { Embedder } from "./model/embedder.ts";
import { createModelHandler } from "./model/model-handler.ts";
import { createRedisClient } from "./redis/redis-client.ts";
import { createRedisRateLimiter } from "./redis/redis-rate-limiter.ts";
import { createRoutes, publicRpcs, unmeteredRpcs } from "./rpc/routes.ts";
import { createClientAddress } from "./server/client-address.ts";
import { createHttpHandler } from "./server/http-handler.ts";
import { listen } from "./server/listener.ts";

/** A running service. Disposing it drains it: see `createApp`. */
export interface App extends AsyncDisposable {
  readonly address: AddressInfo;
  /** Where clients on this machine reach it. */
  readonly url: string;
  /** The key made for this run, when none was configured. */
  readonly generatedKey: Secret | undefined;
}

/** What a test or a program may put in the place of what the configuration would give. */
export interface Overrides {
  readonly engine?: Engine;
  readonly logger?: Logger;
  /** Ends a start that takes long, such as a model download. */
  readonly signal?: AbortSignal;
  /** Progress of a model download. */
  readonly onModelFile?: (report: ModelFileReport) => void;
}

/** After the drain's time is over: what calls get to tell their callers that the service stops. */
const unwindMs = 1000;

/**
 * Builds the service and listens. Throws ConfigError for a file that cannot be used, AppError when no engine can be had,
 * and Node's error when the address is taken; nothing stays open then.
 *
 * Disposal takes the service down in this order: health says NOT_SERVING; no new connections and calls; running calls get
 * `config.server.drainMs` to finish; the rest end with UNAVAILABLE; then engine and stores are closed.
 */
export async function createApp(config: Config, overrides: Overrides = {}): Promise<App> {
  await using resources = new AsyncDisposableStack();
  const logger = overrides.logger ?? createLogger(config.logLevel);
  const events = createEvents(logger);

  const { registry, shortKeys, generatedKey, tls } = resolveConfig(config);
  for (const client of shortKeys) events.shortKey(client);

  const engine = resources.use(overrides.engine ?? (await createEngine(config, events, overrides)));
  const embedder = createEmbedder(config);
  if (embedder !== undefined) resources.use(embedder);
  const sources: HealthSource[] = [
    { name: "engine", optional: false, check: (signal) => engine.checkHealth(signal) },
  ];
  const rateLimiter = await createRateLimiter(config, logger, resources, sources);

  const health = createHealth(sources);
  const admission = createAdmission(config.engine);
  const shutdown = new AbortController();
  let draining = false;

  const chat = createChat({
    engine,
    admission,
    defaultModel: config.engine.modelId,
    maxModelLen: config.engine.maxModelLen,
    maxTokensDefault: config.limits.maxTokensDefault,
  });
  const routes = createRoutes({
    chat: createChatHandler(chat),
    model: createModelHandler({
      engine,
      embedder,
      defaultModel: config.engine.modelId,
      maxModelLen: config.engine.maxModelLen,
    }),
    health,
    readMaxBytes: config.server.maxBodyBytes,
    maxTimeoutMs: config.timeouts.maxMs,
    shutdownSignal: shutdown.signal,
  });
  const listener = await listen({
    host: config.server.host,
    port: config.server.port,
    tls,
    handler: createHttpHandler({
      ...routes,
      aliases: [{ method: "POST", path: "/v1/chat", rpc: "formdev.chat.v1.ChatService/Chat" }],
      publicPages: createHealthPages(health),
      publicRpcs,
      unmeteredRpcs,
      gate: createGate({ registry, failedAttempts: createFailedAttempts(), rateLimiter }),
      addressOf: createClientAddress(config.server.trustedProxies),
      bodyBytesMax: config.server.maxBodyBytes,
      deadline: config.timeouts,
      onCallEnd: events.callEnded,
      isDraining: () => draining,
    }),
  });

  resources.defer(async () => {
    events.draining(config.server.drainMs);
    draining = true;
    health.drain();
    const drained = listener.drain();
    await firstOf(drained, config.server.drainMs);
    shutdown.abort(new AppError("unavailable", "the service is stopping: try again"));
    await firstOf(drained, unwindMs);
    await listener.close();
    events.stopped();
  });

  const scheme = config.server.tls === undefined ? "http" : "https";
  const { host } = config.server;
  const isAny = host === "0.0.0.0" || host === "::";
  const name = isAny ? "localhost" : host.includes(":") ? `[${host}]` : host;
  const url = `${scheme}://${name}:${listener.address.port}`;
  events.listening(url, engine.kind);

  const owned = resources.move();
  return {
    address: listener.address,
    url,
    generatedKey,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function firstOf(done: Promise<void>, limitMs: number): Promise<void> {
  const limit = new AbortController();
  await Promise.race([
    done,
    setTimeout(limitMs, undefined, { signal: limit.signal }).catch(() => undefined),
  ]);
  limit.abort();
}

async function createEngine(config: Config, events: Events, overrides: Overrides): Promise<Engine> {
  const { engine, timeouts } = config;
  if (engine.vllmUrl !== undefined) {
    return createVllmEngine({
      url: engine.vllmUrl,
      ...(engine.vllmApiKey !== undefined && { apiKey: engine.vllmApiKey.reveal() }),
      connections: engine.concurrency + spareConnections,
      cacheSaltSecret: randomBytes(32),
      timeouts: {
        firstByteMs: timeouts.firstTokenMs,
        betweenChunksMs: timeouts.betweenTokensMs,
      },
      log: ({ error }) => events.modelListStale(error),
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
      ...(overrides.signal !== undefined && { signal: overrides.signal }),
    },
    overrides.onModelFile ?? (() => undefined),
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

async function createRateLimiter(
  config: Config,
  logger: Logger,
  resources: AsyncDisposableStack,
  sources: HealthSource[],
): Promise<RateLimiter> {
  const memory = resources.use(createMemoryRateLimiter());
  if (config.redisUrl === undefined) return memory;
  const redis = resources.use(createRedisClient(config.redisUrl, logger));
  await redis.connect();
  sources.push({ name: "redis", optional: true, check: (signal) => redis.ping(signal) });
  return resources.use(
    createRedisRateLimiter({
      client: redis.commands,
      fallback: memory,
      log: logger,
    }),
  );
}
