import { AppError } from "../../errors.ts";
import { basePathOf } from "./engine-id.ts";
import { Exchange, type ExchangeOwner, type Receiver, type UpstreamRequest } from "./exchange.ts";
import { createLine, type Line } from "./line.ts";

export interface UpstreamOptions {
  /** http or https; a path is put before every path, and a `/v1` at its end is dropped. */
  readonly url: URL;
  /** The IP address to connect to, in the place of those that the name in `url` has. */
  readonly address?: string | undefined;
  readonly apiKey?: string | undefined;
  /** Sockets at most, and so requests at once. */
  readonly connections: number;
  /** For name resolution, TCP and TLS together. */
  readonly connectMs: number;
}

/**
 * The connections to one server, one request on each.
 *
 * undici's Pool does the same but for two things that this product stands on: a request that waits there for a
 * connection, or for its opening, cannot be taken back, and nobody can tell whether it goes over a used connection.
 * Hence a list of undici's Clients, the last used first, so that few connections go stale.
 */
export class Upstream implements ExchangeOwner, AsyncDisposable {
  readonly basePath: string;
  readonly authorization: string | undefined;
  readonly #options: UpstreamOptions;
  readonly #lines: Line[] = [];
  readonly #free: Line[] = [];
  readonly #running = new Set<Exchange>();
  /** First come, first served. */
  readonly #waiting = new Set<Exchange>();
  #closed = false;

  constructor(options: UpstreamOptions) {
    this.#options = options;
    this.basePath = basePathOf(options.url);
    this.authorization = options.apiKey === undefined ? undefined : `Bearer ${options.apiKey}`;
  }

  /** Whether it carries no request now. */
  get isIdle(): boolean {
    return this.#running.size + this.#waiting.size === 0;
  }

  /**
   * Sends a request as soon as a connection is free. How long that may take is the caller's to bound, with `abort`.
   * May call `receiver.onError` before it returns.
   */
  send(request: UpstreamRequest, receiver: Receiver): Exchange {
    const exchange = new Exchange(this, request, receiver);
    if (this.#closed) exchange.fail(stopping());
    else if (this.#waiting.size >= WAITING_MAX) exchange.fail(tooManyWaiting());
    else {
      const line = this.#free.pop() ?? this.#openLine();
      if (line === undefined) this.#waiting.add(exchange);
      else this.#run(exchange, line);
    }
    return exchange;
  }

  forget(exchange: Exchange): void {
    this.#waiting.delete(exchange);
    this.#running.delete(exchange);
  }

  release(line: Line): void {
    // Not before undici has finished with the last request: only then does it look for bytes that nobody asked for,
    // which a next request would take for its reply (GHSA-35p6-xmwp-9g52).
    queueMicrotask(() => {
      const [next] = this.#waiting;
      if (next === undefined) this.#free.push(line);
      else {
        this.#waiting.delete(next);
        this.#run(next, line);
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const exchange of [...this.#waiting, ...this.#running]) exchange.fail(stopping());
    await Promise.all(this.#lines.map((line) => line.client.destroy()));
  }

  #run(exchange: Exchange, line: Line): void {
    this.#running.add(exchange);
    exchange.run(line);
  }

  #openLine(): Line | undefined {
    if (this.#lines.length >= this.#options.connections) return undefined;
    const { url, connectMs, address } = this.#options;
    const line = createLine(url.origin, connectMs, address);
    this.#lines.push(line);
    return line;
  }
}

/** Admission keeps requests out long before; this only bounds memory should it fail to. */
const WAITING_MAX = 1_024;

const stopping = () => new AppError("unavailable", "the service is stopping: try again");

const tooManyWaiting = () =>
  new AppError("unavailable", "the engine cannot take this request now: try again", {
    cause: new Error(`${WAITING_MAX} requests wait for a connection`),
    retryAfterMs: 1_000,
  });
