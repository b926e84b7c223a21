import { AppError } from "../../errors.ts";
import { Connection, type ConnectionKeeper, type ConnectionTarget } from "./connection.ts";
import { basePathOf } from "./engine-id.ts";
import { Exchange, type ExchangeOwner, type Receiver, type UpstreamRequest } from "./exchange.ts";

/** `url` may have a path: it is put before every path, and a `/v1` at its end is dropped. */
export interface UpstreamOptions extends ConnectionTarget {
  /** Printable ASCII. */
  readonly apiKey?: string | undefined;
  /** Connections at most, and so requests at once. */
  readonly connections: number;
}

/**
 * The connections to one server, one request on each: those that are free are used again, the last one first, so that few go
 * stale. What waits for one can be taken back.
 */
export class Upstream implements ExchangeOwner, ConnectionKeeper, AsyncDisposable {
  readonly basePath: string;
  readonly commonHeaders: string;
  readonly #options: UpstreamOptions;
  readonly #connections = new Set<Connection>();
  readonly #free: Connection[] = [];
  readonly #running = new Set<Exchange>();
  /** First come, first served. */
  readonly #waiting = new Set<Exchange>();
  #closed: PromiseWithResolvers<void> | undefined;

  constructor(options: UpstreamOptions) {
    this.#options = options;
    this.basePath = basePathOf(options.url);
    this.commonHeaders = [
      `host: ${options.url.host}`,
      // A compressed reply would have to be inflated before it can be bounded.
      "accept-encoding: identity",
      ...(options.apiKey === undefined ? [] : [`authorization: Bearer ${options.apiKey}`]),
      "",
    ].join("\r\n");
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
    if (this.#closed !== undefined) exchange.fail(stopping());
    else if (this.#waiting.size >= WAITING_MAX) exchange.fail(tooManyWaiting());
    else {
      this.#waiting.add(exchange);
      this.#runNext();
    }
    return exchange;
  }

  forget(exchange: Exchange): void {
    this.#waiting.delete(exchange);
    this.#running.delete(exchange);
  }

  reconnect(exchange: Exchange): void {
    exchange.run(this.#connect());
  }

  onFree(connection: Connection): void {
    this.#free.push(connection);
    this.#runNext();
  }

  onClosed(connection: Connection): void {
    this.#connections.delete(connection);
    const at = this.#free.indexOf(connection);
    if (at !== -1) this.#free.splice(at, 1);
    if (this.#closed === undefined) this.#runNext();
    else if (this.#connections.size === 0) this.#closed.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= Promise.withResolvers();
    for (const exchange of [...this.#waiting, ...this.#running]) exchange.fail(stopping());
    for (const connection of this.#connections) connection.close();
    if (this.#connections.size > 0) await this.#closed.promise;
  }

  /** Gives the first that waits a connection, if there may be one for it. */
  #runNext(): void {
    const [next] = this.#waiting;
    if (next === undefined) return;
    const connection =
      this.#free.pop() ??
      (this.#connections.size < this.#options.connections ? this.#connect() : undefined);
    if (connection === undefined) return;
    this.#waiting.delete(next);
    this.#running.add(next);
    next.run(connection);
  }

  #connect(): Connection {
    const connection = new Connection(this.#options, this);
    this.#connections.add(connection);
    return connection;
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
