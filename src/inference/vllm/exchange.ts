import { randomUUID } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import type { AppError } from "../../errors.ts";
import type { Connection, ConnectionUser } from "./connection.ts";
import { isConnectionLoss, transportError } from "./errors.ts";

export interface UpstreamRequest {
  readonly method: "GET" | "POST";
  /** Below the base of the upstream, such as `/v1/models`. */
  readonly path: string;
  readonly accept: string;
  /** JSON. */
  readonly body?: string;
  readonly traceparent?: string | undefined;
}

/**
 * Who gets the reply, in this order: `onHead` once, `onData` any number of times, then `onEnd`; `onError` instead of
 * whatever has not come yet. All are called as the socket is read and must not throw.
 */
export interface Receiver {
  onHead(status: number, headers: IncomingHttpHeaders): void;
  /** A piece of the body: `bytes` from `start` to before `end`, valid during the call only. */
  onData(bytes: Buffer, start: number, end: number): void;
  /** All is told that one read of the socket has brought, and more is to come. */
  onReadEnd?(): void;
  onEnd(): void;
  onError(error: AppError): void;
}

/** What an exchange needs from the upstream that owns it. */
export interface ExchangeOwner {
  readonly basePath: string;
  /** Lines of the head that are the same for every request. */
  readonly commonHeaders: string;
  /** The exchange is over for its caller: it must not be given a connection any more. */
  forget(exchange: Exchange): void;
  /** Gives the exchange a new connection, in the place of the one that was lost. */
  reconnect(exchange: Exchange): void;
}

/**
 * One HTTP request on its way: waiting for a connection, connecting, sent, answered. `abort` stops it in any of them.
 *
 * A connection that was kept open may have been closed by the server at the very moment it is used again. When such a
 * connection dies before the first byte of a reply, the request is sent once more: on a new connection, to which this
 * does not apply. Nothing else is ever repeated, because a request that vLLM has seen may be running.
 */
export class Exchange implements ConnectionUser {
  readonly #owner: ExchangeOwner;
  readonly #request: UpstreamRequest;
  /** Undefined as soon as nothing more may be told. */
  #receiver: Receiver | undefined;
  #connection: Connection | undefined;

  constructor(owner: ExchangeOwner, request: UpstreamRequest, receiver: Receiver) {
    this.#owner = owner;
    this.#request = request;
    this.#receiver = receiver;
  }

  /** Sends the request over this connection, which nobody else uses until the reply's end. */
  run(connection: Connection): void {
    const { method, path, accept, body, traceparent } = this.#request;
    this.#connection = connection;
    const lines = [
      `${method} ${this.#owner.basePath}${path} HTTP/1.1`,
      `accept: ${accept}`,
      // vLLM takes this as the id of the request, and two live requests with one id overwrite each other: it is random for
      // every attempt, and never the caller's.
      `x-request-id: ${randomUUID()}`,
      ...(body === undefined
        ? []
        : ["content-type: application/json", `content-length: ${Buffer.byteLength(body)}`]),
      ...(traceparent === undefined ? [] : [`traceparent: ${traceparent}`]),
      this.#owner.commonHeaders,
      body ?? "",
    ];
    connection.send(lines.join("\r\n"), this);
  }

  /** Ends the exchange now: its connection is closed and the receiver hears nothing more. May be called at any time. */
  abort(): void {
    if (this.#receiver === undefined) return;
    this.#settle();
    this.#connection?.abort();
  }

  /** Ends the exchange now with an error for its receiver. */
  fail(error: AppError): void {
    const receiver = this.#receiver;
    this.abort();
    receiver?.onError(error);
  }

  /** Stops reading, so that the engine's side fills up and waits. */
  pause(): void {
    if (this.#receiver !== undefined) this.#connection?.pause();
  }

  resume(): void {
    if (this.#receiver !== undefined) this.#connection?.resume();
  }

  onHead(status: number, headers: IncomingHttpHeaders): void {
    this.#receiver?.onHead(status, headers);
  }

  onData(bytes: Buffer, start: number, end: number): void {
    this.#receiver?.onData(bytes, start, end);
  }

  onReadEnd(): void {
    this.#receiver?.onReadEnd?.();
  }

  onEnd(): void {
    this.#settle()?.onEnd();
  }

  onLost(error: Error, responding: boolean): void {
    if (this.#receiver === undefined) return;
    if (this.#connection?.used === true && !responding && isConnectionLoss(error))
      this.#owner.reconnect(this);
    else this.#settle()?.onError(transportError(error, responding));
  }

  #settle(): Receiver | undefined {
    const receiver = this.#receiver;
    this.#receiver = undefined;
    if (receiver !== undefined) this.#owner.forget(this);
    return receiver;
  }
}
