import type { Interceptor, Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { pino } from "pino";
import { type App, createApp, type Overrides } from "../../src/app.ts";
import { parseConfig } from "../../src/config.ts";

/** Keys of the two clients that every test app has. */
export const erpKey = "key-of-the-erp-0123456789";
export const extranetKey = "key-of-the-extranet-0123456789";

export interface TestApp extends App {
  /** The last thousand lines that were logged, parsed: more would look like a leak of the product in tests of memory. */
  readonly logs: readonly Readonly<Record<string, unknown>>[];
}

const logLinesMax = 1000;

/** The product itself, in this process, on a free port: configured by `env` as an operator would. */
export async function startApp(
  env: Readonly<Record<string, string>>,
  overrides: Overrides = {},
): Promise<TestApp> {
  const logs: Record<string, unknown>[] = [];
  const logger = pino(
    { level: "debug", base: null },
    {
      write(line) {
        logs.push(JSON.parse(line));
        if (logs.length > logLinesMax) logs.shift();
      },
    },
  );
  const config = parseConfig({
    API_PORT: "0",
    ADMIN_PORT: "0",
    API_KEYS: `erp:${erpKey},extranet:${extranetKey}`,
    RATE_LIMIT_RPM: "100000",
    DRAIN_TIMEOUT_SECONDS: "5",
    ...env,
  });
  const app = await createApp(config, { logger, ...overrides });
  return { ...app, logs };
}

export const protocols = ["gRPC", "gRPC-Web", "Connect JSON", "Connect binary"] as const;
export type Protocol = (typeof protocols)[number];

/** A client's side of one protocol, as the official library speaks it. */
export function transportFor(
  protocol: Protocol,
  baseUrl: string,
  key: string | undefined = erpKey,
  httpVersion: "1.1" | "2" = "2",
): Transport {
  const options = {
    baseUrl,
    httpVersion,
    interceptors: [withKey(key)],
  };
  switch (protocol) {
    case "gRPC":
      return createGrpcTransport({ baseUrl, interceptors: options.interceptors });
    case "gRPC-Web":
      return createGrpcWebTransport(options);
    case "Connect JSON":
      return createConnectTransport({ ...options, useBinaryFormat: false });
    case "Connect binary":
      return createConnectTransport({ ...options, useBinaryFormat: true });
  }
}

function withKey(key: string | undefined): Interceptor {
  return (next) => (request) => {
    if (key !== undefined) request.header.set("x-api-key", key);
    return next(request);
  };
}
