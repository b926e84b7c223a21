import { isIP } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import { ConfigError } from "./errors.ts";
import { type ClientKey, parseApiKeys } from "./keys/api-keys.ts";
import { parseHeaderList } from "./lib/header-list.ts";
import { Secret } from "./lib/secret.ts";
import type { Limits } from "./limits/limits.ts";
import { processesMax } from "./process-count.ts";

export interface Config {
  readonly server: {
    /** Address to listen on: loopback unless API_KEYS or API_KEYS_FILE is set and HOST says otherwise. */
    readonly host: string;
    readonly port: number;
    /** Certificate and key files, PEM. Absent: cleartext, for loopback or behind a proxy that has the certificate. */
    readonly tls: { readonly certFile: string; readonly keyFile: string } | undefined;
    /** Addresses and networks whose X-Forwarded-For is believed. */
    readonly trustedProxies: readonly string[];
    readonly maxBodyBytes: number;
    /** Milliseconds that running calls get to finish after SIGTERM. */
    readonly drainMs: number;
  };
  /** The port for operators. */
  readonly admin: {
    /** Loopback, unless there is a key. */
    readonly host: string;
    readonly port: number;
    readonly key: Secret | undefined;
  };
  readonly keys: {
    /** From API_KEYS. Empty together with no `file`: one key is made for this run. */
    readonly inline: readonly ClientKey[];
    readonly file: string | undefined;
  };
  readonly limits: {
    /** Of each client, where it has none of its own. */
    readonly perClient: Limits;
    /** Completion tokens when a request names none. */
    readonly maxTokensDefault: number;
    /** The most completion tokens a client without a value of its own may ask for. */
    readonly maxTokens: number;
  };
  readonly engine: {
    /** Where vLLMs listen. None: the embedded engine. */
    readonly vllmUrls: readonly URL[];
    readonly vllmApiKey: Secret | undefined;
    readonly embeddingsUrl: URL | undefined;
    /** The model that answers when a request names none, where the engine serves it. */
    readonly modelId: string;
    /** Prompt and completion together, in tokens: the smaller of this and the engine's own limit holds. */
    readonly maxModelLen: number;
    /** GGUF file for the embedded engine. Absent: the cache, else one download. */
    readonly modelPath: string | undefined;
    readonly modelCacheDir: string;
    /** Base address for model downloads; absent: the public hub. */
    readonly hubUrl: string | undefined;
    /** Sequences that each engine may run for us at once. */
    readonly concurrency: number;
    /** Calls that may wait for the engine; one more is refused. */
    readonly queueLength: number;
  };
  readonly timeouts: {
    /** Milliseconds for a call that names no deadline, and the most that a call may name. */
    readonly defaultMs: number;
    readonly maxMs: number;
    /** Milliseconds until the engine's first token, and between two pieces of an answer. */
    readonly firstTokenMs: number;
    readonly betweenTokensMs: number;
  };
  readonly redisUrl: Secret | undefined;
  /** Absent: calls are not traced. */
  readonly traces:
    | {
        /** Where a collector takes spans. */
        readonly url: URL;
        readonly headers: Readonly<Record<string, Secret>>;
        readonly serviceName: string;
        /** Of the calls that come without a trace, 0 to 1. */
        readonly ratio: number;
      }
    | undefined;
  readonly logLevel: string;
}

const wholeNumber = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,15}$/, "must be a whole number")
    .transform(Number)
    .pipe(z.number().min(min, `must be at least ${min}`).max(max, `must be at most ${max}`));

const int = (min: number, max: number, initial: number) => wholeNumber(min, max).default(initial);

const httpUrl = z
  .string()
  .refine(isPlainHttpUrl, {
    error: "must be an http:// or https:// address without credentials, query and fragment",
  })
  .transform((text) => new URL(text));

const fraction = z
  .string()
  .regex(/^(0|1|1\.0+|0?\.\d{1,15})$/, "must be a number from 0 to 1")
  .transform(Number);

const headerList = z
  .string()
  .refine((text) => parseHeaderList(text) !== undefined, {
    error: "must be name=value,name=value with percent-encoded values",
  })
  .transform(parseHeaderList);

const httpUrls = z
  .string()
  .transform((text) => text.split(",").map((part) => part.trim()))
  .refine((parts) => parts.every(isPlainHttpUrl), {
    error: "must be http:// or https:// addresses without credentials, query and fragment",
  })
  .transform((parts) => parts.map((part) => new URL(part)));

const addresses = z
  .string()
  .transform((text) => text.split(",").map((part) => part.trim()))
  .refine((parts) => parts.every(isNetwork), {
    error: "must be addresses or networks, such as 10.0.0.2,192.168.0.0/24",
  });

/**
 * Every variable that the gateway reads: name, meaning, range, default. README's table and infra/.env.example are held
 * against it by tests.
 */
export const environment = z.object({
  API_KEYS: z
    .string()
    .optional()
    .describe(
      "Clients and their keys: `clientA:key1,clientB:key2`. A client named twice has two keys.",
    ),
  API_KEYS_FILE: z
    .string()
    .optional()
    .describe("JSON file of clients, with hashed keys and limits of their own."),
  API_PORT: int(0, 65_535, 8080).describe("Port of every protocol. 0 takes a free one."),
  HOST: z.string().optional().describe("Address to listen on. Without keys it must be loopback."),
  TLS_CERT_FILE: z
    .string()
    .optional()
    .describe("Certificate chain, PEM. With TLS_KEY_FILE the port speaks TLS only."),
  TLS_KEY_FILE: z.string().optional().describe("Private key of the certificate, PEM."),
  TRUSTED_PROXIES: addresses
    .optional()
    .describe("Proxies whose X-Forwarded-For names the caller's address."),
  ADMIN_PORT: int(0, 65_535, 9464).describe(
    "Port of /metrics, for Prometheus. 0 takes a free one.",
  ),
  ADMIN_HOST: z
    .string()
    .default("127.0.0.1")
    .describe("Address of that port. Without ADMIN_KEY it must be loopback."),
  ADMIN_KEY: z
    .string()
    .regex(/^[!-~]{16,256}$/, "must have 16 to 256 printable ASCII characters, without space")
    .optional()
    .describe("What that port asks for as `Authorization: Bearer`."),
  RATE_LIMIT_RPM: int(1, 1_000_000, 60).describe("Requests a minute for each client."),
  RATE_LIMIT_TPM: wholeNumber(1, 1e12)
    .optional()
    .describe("Tokens a minute for each client, prompts included. Unset: no limit."),
  RATE_LIMIT_CONCURRENCY: wholeNumber(1, 100_000)
    .optional()
    .describe("Requests at once for each client, waiting ones included. Unset: no limit."),
  DAILY_TOKENS: wholeNumber(1, 1e14)
    .optional()
    .describe("Tokens a day (UTC) for each client. Unset: no limit."),
  MONTHLY_TOKENS: wholeNumber(1, 1e14)
    .optional()
    .describe("Tokens a month (UTC) for each client. Unset: no limit."),
  MAX_TOKENS_DEFAULT: int(1, 131_072, 1024).describe(
    "Completion tokens when a request names no max_tokens.",
  ),
  MAX_TOKENS: int(1, 131_072, 4096).describe(
    "The most completion tokens of an answer; a request that asks for more gets these.",
  ),
  MAX_BODY_BYTES: int(1024, 16_777_216, 1_048_576).describe(
    "The most bytes of one request message.",
  ),
  MODEL_ID: z
    .string()
    .max(256)
    .default("Qwen/Qwen2.5-7B-Instruct")
    .describe("The model that answers when a request names none."),
  MAX_MODEL_LEN: int(256, 1_048_576, 8192).describe("Tokens of prompt and answer together."),
  VLLM_URL: httpUrls
    .optional()
    .describe(
      "vLLM's address; several with commas, or a name with several. Without it the embedded engine answers.",
    ),
  VLLM_API_KEY: z
    .string()
    .regex(/^[\x21-\x7e]+$/, "must be printable ASCII without spaces")
    .optional()
    .describe("vLLM's own key (`vllm serve --api-key`)."),
  EMBEDDINGS_URL: httpUrl
    .optional()
    .describe("A vLLM that serves an embedding model, for ModelService/Embed."),
  MODEL_PATH: z.string().optional().describe("GGUF file for the embedded engine."),
  MODEL_CACHE: z.string().optional().describe("Folder for downloaded models."),
  HF_ENDPOINT: httpUrl.optional().describe("Mirror of the model hub."),
  ENGINE_CONCURRENCY: wholeNumber(1, 4096)
    .optional()
    .describe("Sequences that each engine runs for us at once: 64 on vLLM, 2 embedded."),
  QUEUE_LENGTH: int(0, 100_000, 256).describe(
    "Calls that may wait for the engine, half of them from one client at most.",
  ),
  PROCESSES: wholeNumber(1, processesMax)
    .optional()
    .describe("Processes that answer on the port: one for each core up to 4, one when embedded."),
  REQUEST_TIMEOUT_SECONDS: int(1, 3600, 300).describe("Deadline of a call that names none."),
  REQUEST_TIMEOUT_MAX_SECONDS: int(1, 3600, 600).describe(
    "The longest deadline; a later one is lowered to it.",
  ),
  FIRST_TOKEN_TIMEOUT_SECONDS: int(1, 3600, 120).describe(
    "How long the engine may take to begin an answer.",
  ),
  BETWEEN_TOKENS_TIMEOUT_SECONDS: int(1, 3600, 60).describe(
    "How long the engine may pause within an answer.",
  ),
  DRAIN_TIMEOUT_SECONDS: int(0, 3600, 30).describe(
    "How long running calls may go on after SIGTERM.",
  ),
  REDIS_URL: z
    .string()
    .regex(/^rediss?:\/\//, "must begin with redis:// or rediss://")
    .optional()
    .describe("Redis that several gateways share limits in."),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl
    .optional()
    .describe("OpenTelemetry collector, OTLP over HTTP, that gets traces. Unset: nobody does."),
  OTEL_EXPORTER_OTLP_HEADERS: headerList
    .optional()
    .describe("Headers for the collector: `name=value,name=value`, values percent-encoded."),
  OTEL_SERVICE_NAME: z
    .string()
    .max(255)
    .default("formdev")
    .describe("Name of this gateway in traces."),
  OTEL_TRACES_SAMPLER_ARG: fraction
    .default(1)
    .describe("Part of the calls that is traced, 0 to 1; a caller's own trace decides for itself."),
  LOG_LEVEL: z
    .enum(["debug", "info", "warn", "error", "silent"])
    .default("info")
    .describe("Least level that is logged."),
});

/**
 * Reads the gateway's configuration out of environment variables. Pure: it opens no file and no socket. A variable that
 * is set but empty counts as absent, as compose files write it. Throws ConfigError with every problem found.
 */
export function parseConfig(env: Readonly<Record<string, string | undefined>>): Config {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ""));
  const parsed = environment.safeParse(given);
  const problems = parsed.success
    ? []
    : parsed.error.issues.map((issue) => `${issue.path.join(".")} ${issue.message}`);

  const keys = parseApiKeys(given.API_KEYS ?? "");
  problems.push(...keys.problems.map((problem) => `API_KEYS ${problem}`));

  const hasKeys = given.API_KEYS !== undefined || given.API_KEYS_FILE !== undefined;
  const host = given.HOST ?? "127.0.0.1";
  if (!hasKeys && !isLoopback(host)) {
    problems.push(
      "HOST must be a loopback address (127.0.0.1, ::1, localhost) as long as no API_KEYS are set",
    );
  }
  if (given.ADMIN_KEY === undefined && !isLoopback(given.ADMIN_HOST ?? "localhost")) {
    problems.push(
      "ADMIN_HOST must be a loopback address (127.0.0.1, ::1, localhost) as long as no ADMIN_KEY is set",
    );
  }
  if ((given.TLS_CERT_FILE === undefined) !== (given.TLS_KEY_FILE === undefined)) {
    problems.push("TLS_CERT_FILE and TLS_KEY_FILE must be set together");
  }
  if (given.VLLM_URL === undefined && Number(given.PROCESSES) > 1) {
    problems.push(
      "PROCESSES must be 1 without VLLM_URL: each process would load the model into memory again",
    );
  }
  const timeouts = parsed.data;
  if (timeouts && timeouts.REQUEST_TIMEOUT_SECONDS > timeouts.REQUEST_TIMEOUT_MAX_SECONDS) {
    problems.push("REQUEST_TIMEOUT_SECONDS must not exceed REQUEST_TIMEOUT_MAX_SECONDS");
  }
  if (!parsed.success || problems.length > 0) throw new ConfigError(problems);

  const vars = parsed.data;
  return deepFreeze({
    server: {
      host,
      port: vars.API_PORT,
      tls:
        vars.TLS_CERT_FILE !== undefined && vars.TLS_KEY_FILE !== undefined
          ? { certFile: vars.TLS_CERT_FILE, keyFile: vars.TLS_KEY_FILE }
          : undefined,
      trustedProxies: vars.TRUSTED_PROXIES ?? [],
      maxBodyBytes: vars.MAX_BODY_BYTES,
      drainMs: vars.DRAIN_TIMEOUT_SECONDS * 1000,
    },
    admin: {
      host: vars.ADMIN_HOST,
      port: vars.ADMIN_PORT,
      key: vars.ADMIN_KEY === undefined ? undefined : new Secret(vars.ADMIN_KEY),
    },
    keys: { inline: keys.keys, file: vars.API_KEYS_FILE },
    limits: {
      perClient: {
        rpm: vars.RATE_LIMIT_RPM,
        ...(vars.RATE_LIMIT_TPM !== undefined && { tpm: vars.RATE_LIMIT_TPM }),
        ...(vars.RATE_LIMIT_CONCURRENCY !== undefined && {
          concurrency: vars.RATE_LIMIT_CONCURRENCY,
        }),
        ...(vars.DAILY_TOKENS !== undefined && { dailyTokens: vars.DAILY_TOKENS }),
        ...(vars.MONTHLY_TOKENS !== undefined && { monthlyTokens: vars.MONTHLY_TOKENS }),
      },
      maxTokensDefault: Math.min(vars.MAX_TOKENS_DEFAULT, vars.MAX_TOKENS),
      maxTokens: vars.MAX_TOKENS,
    },
    engine: {
      vllmUrls: vars.VLLM_URL ?? [],
      vllmApiKey: vars.VLLM_API_KEY === undefined ? undefined : new Secret(vars.VLLM_API_KEY),
      embeddingsUrl: vars.EMBEDDINGS_URL,
      modelId: vars.MODEL_ID,
      maxModelLen: vars.MAX_MODEL_LEN,
      modelPath: vars.MODEL_PATH,
      modelCacheDir:
        vars.MODEL_CACHE ??
        join(given.XDG_CACHE_HOME ?? join(given.HOME ?? ".", ".cache"), "formdev/models"),
      hubUrl: vars.HF_ENDPOINT?.href,
      concurrency: vars.ENGINE_CONCURRENCY ?? (vars.VLLM_URL === undefined ? 2 : 64),
      queueLength: vars.QUEUE_LENGTH,
    },
    timeouts: {
      defaultMs: vars.REQUEST_TIMEOUT_SECONDS * 1000,
      maxMs: vars.REQUEST_TIMEOUT_MAX_SECONDS * 1000,
      firstTokenMs: vars.FIRST_TOKEN_TIMEOUT_SECONDS * 1000,
      betweenTokensMs: vars.BETWEEN_TOKENS_TIMEOUT_SECONDS * 1000,
    },
    redisUrl: vars.REDIS_URL === undefined ? undefined : new Secret(vars.REDIS_URL),
    traces: toTraces(vars),
    logLevel: vars.LOG_LEVEL,
  });
}

function toTraces(vars: z.infer<typeof environment>): Config["traces"] {
  const endpoint = vars.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (endpoint === undefined) return undefined;
  const headers = Object.entries(vars.OTEL_EXPORTER_OTLP_HEADERS ?? {});
  return {
    url: new URL(`${endpoint.href.replace(/\/+$/, "")}/v1/traces`),
    headers: Object.fromEntries(headers.map(([name, value]) => [name, new Secret(value)])),
    serviceName: vars.OTEL_SERVICE_NAME,
    ratio: vars.OTEL_TRACES_SAMPLER_ARG,
  };
}

/** Where clients on this machine reach the service that listens on `port`. */
export function localUrl({ server: { tls, host } }: Config, port: number): string {
  const isAny = host === "0.0.0.0" || host === "::";
  const name = isAny ? "localhost" : host.includes(":") ? `[${host}]` : host;
  return `${tls === undefined ? "http" : "https"}://${name}:${port}`;
}

/** Whether listening on this address stays inside the machine. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

function isPlainHttpUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, username, password, search, hash } = new URL(text);
  return /^https?:$/.test(protocol) && username + password + search + hash === "";
}

function isNetwork(text: string): boolean {
  const [address = "", prefix, ...rest] = text.split("/");
  const family = isIP(address);
  if (family === 0 || rest.length > 0) return false;
  return (
    prefix === undefined ||
    (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128))
  );
}

function deepFreeze<T extends object>(value: T): T {
  for (const inner of Object.values(value)) {
    if (typeof inner === "object" && inner !== null && !(inner instanceof URL)) deepFreeze(inner);
  }
  return Object.freeze(value);
}
