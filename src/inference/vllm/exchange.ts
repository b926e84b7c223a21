import { randomUUID } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import type { Dispatcher } from "undici";
import type { AppError } from "../../errors.ts";
import { isConnectionLoss, transportError } from "./errors.ts";
import type { Line } from "./line.ts";

export interface UpstreamRequest {
  readonly method: "GET" | "POST";
  /** Below the base of the upstream, such as `/v1/models`. */
  readonly path: string;
  readonly accept: string;
  /** JSON, as bytes. */
  readonly body?: Buffer;
  readonly traceparent?: string | undefined;
}

/**
 * Who gets the reply, in this order: `onHead` once, `onData` any number of times, then `onEnd`; `onError` instead of
 * whatever has not come yet. All are called straight from the parser and must not throw. The chunk is the receiver's
 * to keep.
 */
export interface Receiver {
  onHead(status: number, headers: IncomingHttpHeaders): void;
  onData(chunk: Buffer): void;
  onEnd(): void;
  onError(error: AppError): void;
}

/** What an exchange needs from the upstream that owns it. */
export interface ExchangeOwner {
  readonly basePath: string;
  readonly authorization: string | undefined;
  /** The exchange is over for its caller: it must not be given a line any more. */
  forget(exchange: Exchange): void;
  /** The line is free again. Called once for each line that was given to `run`. */
  release(line: Line): void;
}

/**
 * One HTTP request on its way: waiting for a line, connecting, sent, answered. `abort` stops it in any of them.
 *
 * A connection that was kept open may have been closed by the server at the very moment it is used again. When such a
 * connection dies before the first byte of a reply, the request is sent once more: on a new connection, to which this
 * does not apply. Nothing else is ever repeated, because a request that vLLM has seen may be running.
 */
export class Exchange implements Dispatcher.DispatchHandler {
  readonly #owner: ExchangeOwner;
  readonly #request: UpstreamRequest;
  /** Undefined as soon as nothing more may be told. */
  #receiver: Receiver | undefined;
  #line: Line | undefined;
  #controller: Dispatcher.DispatchController | undefined;
  #onUsedConnection = false;
  #responding = false;

  constructor(owner: ExchangeOwner, request: UpstreamRequest, receiver: Receiver) {
    this.#owner = owner;
    this.#request = request;
    this.#receiver = receiver;
  }

  /** Sends the request over this line, which nobody else uses until `release`. */
  run(line: Line): void {
    const { method, path, accept, body, traceparent } = this.#request;
    this.#line = line;
    line.client.dispatch(
      {
        method,
        path: this.#owner.basePath + path,
        headers: {
          accept,
          // A compressed reply would have to be inflated before it can be bounded.
          "accept-encoding": "identity",
          // vLLM takes this as the id of the request, and two live requests with one id overwrite each other: it is
          // random for every attempt, and never the caller's.
          "x-request-id": randomUUID(),
          ...(body !== undefined && { "content-type": "application/json" }),
          ...(traceparent !== undefined && { traceparent }),
          ...(this.#owner.authorization !== undefined && {
            authorization: this.#owner.authorization,
          }),
        },
        body: body ?? null,
      },
      this,
    );
  }

  /** Ends the exchange now: its socket is destroyed and the receiver hears nothing more. May be called at any time. */
  abort(): void {
    if (this.#receiver === undefined) return;
    this.#settle();
    const reason = new Error("the caller left");
    if (this.#controller !== undefined) this.#controller.abort(reason);
    else this.#line?.cancelConnect(reason);
  }

  /** Ends the exchange now with an error for its receiver. */
  fail(error: AppError): void {
    const receiver = this.#receiver;
    this.abort();
    receiver?.onError(error);
  }

  /** Stops reading from the socket, so that the engine's side fills up and waits. */
  pause(): void {
    this.#controller?.pause();
  }

  resume(): void {
    this.#controller?.resume();
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    this.#onUsedConnection = this.#line?.used === true;
    if (this.#receiver === undefined) controller.abort(new Error("the caller left"));
  }

  onResponseStarted(): void {
    this.#responding = true;
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
  ): void {
    if (status >= 200) this.#receiver?.onHead(status, headers);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#receiver?.onData(chunk);
  }

  onResponseEnd(): void {
    if (this.#line !== undefined) this.#line.used = true;
    this.#settle()?.onEnd();
    this.#release();
  }

  onResponseError(_controller: Dispatcher.DispatchController | null, error: Error): void {
    if (this.#mayRepeat(error)) {
      this.#controller = undefined;
      const line = this.#line;
      // Once undici has forgotten the dead socket.
      queueMicrotask(
        () => line && (this.#receiver === undefined ? this.#release() : this.run(line)),
      );
      return;
    }
    this.#settle()?.onError(transportError(error, this.#responding));
    this.#release();
  }

  #mayRepeat(error: Error): boolean {
    const dead = this.#onUsedConnection && !this.#responding && isConnectionLoss(error);
    return dead && this.#receiver !== undefined;
  }

  #settle(): Receiver | undefined {
    const receiver = this.#receiver;
    this.#receiver = undefined;
    if (receiver !== undefined) this.#owner.forget(this);
    return receiver;
  }

  #release(): void {
    const line = this.#line;
    this.#line = undefined;
    if (line !== undefined) this.#owner.release(line);
  }
}
