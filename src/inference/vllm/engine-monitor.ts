import type { IncomingMessage, RequestOptions } from "node:http";
import { isIP } from "node:net";
import type { EngineMonitor } from "../../admission/engine-pool.ts";
import { basePathOf, parseEngineId } from "./engine-id.ts";
import { corrupt } from "./errors.ts";
import { parseGauges } from "./metrics-text.ts";

/** vLLM answers both at once, or is not well. */
const answerMs = 2000;

/** Ten times what a server with many models says. */
const metricsBytesMax = 1024 * 1024;

/**
 * Asks vLLM servers how they are, in the process that decides: with Node's own client, as that process loads no other, and on
 * a connection of its own each time, as one that was kept says nothing about whether the next can be opened.
 */
export function createEngineMonitor(apiKey: string | undefined): EngineMonitor {
  const get = (engine: string, path: string, signal: AbortSignal) =>
    fetchText(engine, path, apiKey, AbortSignal.any([signal, AbortSignal.timeout(answerMs)]));
  return {
    async check(engine, signal) {
      await get(engine, "/health", signal);
    },
    gauges: async (engine, signal) => parseGauges(await get(engine, "/metrics", signal)),
  };
}

/** Rejects for every answer but a success, and for one that is too long. */
async function fetchText(
  engine: string,
  path: string,
  apiKey: string | undefined,
  signal: AbortSignal,
): Promise<string> {
  const { url, address } = parseEngineId(engine);
  const isSecure = url.protocol === "https:";
  const { request } = isSecure ? await import("node:https") : await import("node:http");
  const name = url.hostname.replace(/^\[|\]$/g, "");
  const options: RequestOptions & { servername?: string } = {
    host: address ?? name,
    port: url.port,
    path: basePathOf(url) + path,
    agent: false,
    signal,
    headers: {
      host: url.host,
      "accept-encoding": "identity",
      ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
    },
    ...(isSecure && isIP(name) === 0 && { servername: name }),
  };
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    request(options, resolve).on("error", reject).end();
  });
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > metricsBytesMax)
      throw corrupt("the engine says too much", `more than ${bytes} bytes`);
  }
  const { statusCode } = response;
  if (statusCode !== 200) throw corrupt("the engine is not well", `${path}: ${statusCode}`);
  return Buffer.concat(chunks).toString("utf8");
}
