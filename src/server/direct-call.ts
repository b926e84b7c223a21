import type { ConnectError } from "@connectrpc/connect";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { StallTimer } from "../lib/stall-timer.ts";
import type { Call } from "../rpc/call.ts";
import type { DirectMethod, DirectStream } from "../rpc/direct.ts";
import { recordOutcome } from "../rpc/error-mapping.ts";
import { envelopeBytes, type Wire, type WireEnd, wireOf } from "../rpc/wire.ts";
import { CallScope, type RunningCalls } from "./call-scope.ts";
import { boundDeadline } from "./deadline.ts";
import { written } from "./http-answer.ts";
import { type HttpStream, stallMs, unsentBytesMax } from "./http-stream.ts";
import { readBody } from "./request-body.ts";
import { type HttpExchange, type RpcAdapterOptions, runRpc } from "./rpc-adapter.ts";

export interface DirectCallOptions extends RpcAdapterOptions {
  /** Milliseconds without a message after which a stream gets a heartbeat. */
  readonly heartbeatMs: number;
  /** All calls that run here. */
  readonly running: RunningCalls;
}

/**
 * Runs one call of a direct method: the streaming path, from the request's bytes to the answer's. Whatever is unusual is
 * handed to Connect (`runRpc`), with the body that was read, or with the error that it has to write.
 *
 * A message goes out as soon as its part is there: what one turn of the event loop has written is sent together, the first
 * part at once.
 * A reader that does not take it is waited for, so that the engine's stream is not read on.
 *
 * Resolves when the answer is sent or the caller is gone.
 */
export async function runDirect(
  method: DirectMethod,
  handler: UniversalHandler,
  call: Call,
  exchange: HttpExchange,
  options: DirectCallOptions,
): Promise<void> {
  const { stream, caller } = exchange;
  const wire = usualWire(stream, handler.method.methodKind === "server_streaming");
  const deadline = boundDeadline(stream.headers, options.deadline);
  const isUsual = deadline.isValid && deadline.ms >= 1 && call.refusal === undefined;
  if (wire === undefined || !isUsual) return runRpc(handler, call, exchange, options);

  call.deadlineAt = call.startedAt + deadline.ms;
  using scope = new CallScope(caller, options.running, deadline.ms);
  const { signal } = scope;
  try {
    const bytes = options.bodyBytesMax + envelopeBytes;
    const body = await readBody(stream, { bytes, ms: deadline.ms, signal });
    const asked = method.open(wire, body);
    if (asked === undefined) return await runRpc(handler, call, { ...exchange, body }, options);
    call.dispatched = true;
    if (asked.isStream) {
      using sender = new Sender(wire, stream, asked.heartbeat, options.heartbeatMs);
      await sendStream(asked.answer({ call, signal }), sender, call, exchange);
    } else {
      const message = await asked.answer({ call, signal });
      // As Connect does, and so that a client over HTTP/1.1 gets it in one piece.
      if (!wire.isEnveloped) stream.setHeader("content-length", message.length);
      writeWireHead(stream, wire);
      end(stream, wire.end(), message);
    }
  } catch (error) {
    if (caller.hasLeft || stream.headersSent) {
      // A lost connection, or a bug: nothing more can be said.
      if (!caller.hasLeft) recordOutcome(call, error);
      stream.destroy();
      return;
    }
    call.refusal = recordOutcome(call, error);
    await runRpc(handler, call, exchange, options);
  }
}

/** The wire of a request that a direct method may answer. */
function usualWire({ method, headers }: HttpStream, isStream: boolean): Wire | undefined {
  const isCompressed =
    headers["content-encoding"] ?? headers["grpc-encoding"] ?? headers["connect-content-encoding"];
  if (method !== "POST" || isCompressed !== undefined) return undefined;
  return wireOf(headers["content-type"] ?? "", isStream);
}

/** The way of a stream's messages to its reader. Its first message sends the head. */
class Sender implements Disposable {
  hasBegun = false;
  readonly #wire: Wire;
  readonly #stream: HttpStream;
  readonly #silence: StallTimer;

  constructor(wire: Wire, stream: HttpStream, heartbeat: Buffer, heartbeatMs: number) {
    this.#wire = wire;
    this.#stream = stream;
    this.#silence = new StallTimer(heartbeatMs, () => {
      this.#silence.restart(heartbeatMs);
      // A reader who has not taken the last message knows that there is more.
      if (this.#stream.writableLength > 0 || this.#stream.destroyed) return;
      this.#write(heartbeat);
    });
  }

  /** Resolves at once as long as the reader keeps up. */
  send(message: Buffer): Promise<void> | undefined {
    this.#silence.touch();
    if (this.hasBegun && this.#stream.writableLength >= unsentBytesMax)
      return written(this.#stream, message, stallMs);
    this.#write(message);
    return undefined;
  }

  /** A token that somebody waits for does not wait for what else a busy turn has to do: 0.2 ms at 400 streams. */
  flush(): void {
    this.#stream.flush();
  }

  /** Ends the answer. */
  end(error?: ConnectError): void {
    this.#begin();
    end(this.#stream, this.#wire.end(error));
  }

  [Symbol.dispose](): void {
    this.#silence.stop();
  }

  #write(message: Buffer): void {
    this.#begin();
    this.#stream.write(message);
  }

  #begin(): void {
    if (this.hasBegun) return;
    this.hasBegun = true;
    writeWireHead(this.#stream, this.#wire);
  }
}

async function sendStream(
  answer: Promise<DirectStream>,
  sender: Sender,
  call: Call,
  { caller }: HttpExchange,
): Promise<void> {
  try {
    using stream = await answer;
    await sender.send(stream.start);
    let isFirst = true;
    for await (const part of stream.parts) {
      const waiting = sender.send(stream.toMessage(part));
      if (isFirst) sender.flush();
      isFirst = false;
      if (waiting !== undefined) await waiting;
    }
    sender.end();
  } catch (error) {
    // What fails before anything was sent is Connect's to tell.
    if (caller.hasLeft || !sender.hasBegun) throw error;
    sender.end(recordOutcome(call, error));
  }
}

function writeWireHead(stream: HttpStream, { contentType }: Wire): void {
  stream.setHeader("content-type", contentType);
  stream.writeHead(200);
}

function end(stream: HttpStream, { bytes, trailers }: WireEnd, message?: Buffer): void {
  if (trailers !== undefined) stream.addTrailers(trailers);
  const isOne = message === undefined || bytes === undefined;
  stream.end(isOne ? (message ?? bytes) : Buffer.concat([message, bytes]));
}
