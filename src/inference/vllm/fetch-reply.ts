import type { IncomingHttpHeaders } from "node:http";
import type { AppError } from "../../errors.ts";
import { StallTimer } from "../../lib/stall-timer.ts";
import { corrupt, tooSlow } from "./errors.ts";
import type { Exchange, Receiver, UpstreamRequest } from "./exchange.ts";
import { parseJsonObject } from "./json.ts";
import { checkHead, Refusal } from "./reply.ts";
import type { Upstream } from "./upstream.ts";

export interface FetchOptions {
  /** For everything, from the wait for a connection to the last byte. */
  readonly timeoutMs: number;
  readonly bytesMax: number;
  readonly signal: AbortSignal;
}

/**
 * Asks for a short reply and gives it as a JSON object. Throws AppError as the chat does: by the table of refusals,
 * `unavailable`, `timeout`, or `corrupt` for a reply that is too long or cannot be read. An abort closes the socket
 * and is thrown as the signal's reason.
 */
export async function fetchJson(
  upstream: Upstream,
  request: Omit<UpstreamRequest, "accept">,
  options: FetchOptions,
): Promise<Record<string, unknown>> {
  const bytes = await fetchReply(upstream, { ...request, accept: JSON_TYPE }, options, JSON_TYPE);
  return parseJsonObject(bytes.toString("utf8"));
}

/** The same for a reply of which only the success matters. */
export async function fetchSuccess(
  upstream: Upstream,
  path: string,
  options: FetchOptions,
): Promise<void> {
  await fetchReply(upstream, { method: "GET", path, accept: "*/*" }, options);
}

function fetchReply(
  upstream: Upstream,
  request: UpstreamRequest,
  options: FetchOptions,
  mediaType?: string,
): Promise<Buffer> {
  if (options.signal.aborted) return Promise.reject(options.signal.reason);
  const call = new Call(options, mediaType);
  call.start(upstream, request);
  return call.reply.promise;
}

class Call implements Receiver {
  readonly reply = Promise.withResolvers<Buffer>();
  readonly #options: FetchOptions;
  readonly #mediaType: string | undefined;
  readonly #timer: StallTimer;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #refusal: Refusal | undefined;
  #exchange: Exchange | undefined;

  constructor(options: FetchOptions, mediaType: string | undefined) {
    this.#options = options;
    this.#mediaType = mediaType;
    this.#timer = new StallTimer(options.timeoutMs, () =>
      this.onError(tooSlow("the engine did not answer in time", options.timeoutMs)),
    );
    options.signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  start(upstream: Upstream, request: UpstreamRequest): void {
    this.#exchange = upstream.send(request, this);
  }

  onHead(status: number, headers: IncomingHttpHeaders): void {
    if (status !== 200) {
      this.#refusal = new Refusal(status);
    } else if (this.#mediaType !== undefined) {
      const error = checkHead(headers, this.#mediaType);
      if (error !== undefined) this.onError(error);
    }
  }

  onData(bytes: Buffer, start: number, end: number): void {
    const chunk = bytes.subarray(start, end);
    if (this.#refusal !== undefined) {
      if (!this.#refusal.add(chunk)) this.onError(this.#refusal.toError());
      return;
    }
    this.#bytes += chunk.length;
    this.#chunks.push(Buffer.from(chunk));
    if (this.#bytes > this.#options.bytesMax)
      this.onError(corrupt("the engine answered more than it was asked for", "too many bytes"));
  }

  onEnd(): void {
    if (this.#refusal !== undefined) this.onError(this.#refusal.toError());
    this.reply.resolve(Buffer.concat(this.#chunks));
    this.#stop();
  }

  onError(error: AppError): void {
    this.reply.reject(this.#refusal?.toError() ?? error);
    this.#stop();
  }

  readonly #onAbort = (): void => {
    this.reply.reject(this.#options.signal.reason);
    this.#stop();
  };

  #stop(): void {
    this.#timer.stop();
    this.#options.signal.removeEventListener("abort", this.#onAbort);
    this.#exchange?.abort();
  }
}

const JSON_TYPE = "application/json";
