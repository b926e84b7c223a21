import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { AppError } from "../errors.ts";
import type { Call } from "../rpc/call.ts";
import type { DirectMethod, DirectStream } from "../rpc/direct.ts";
import { recordOutcome } from "../rpc/error-mapping.ts";
import { envelopeBytes, type Wire, type WireEnd, wireOf } from "../rpc/wire.ts";
import { boundDeadline } from "./deadline.ts";
import {
  cutOff,
  type NodeRequest,
  type NodeResponse,
  stallMs,
  writeHead,
  written,
} from "./node-http.ts";
import { readBody } from "./request-body.ts";
import { type HttpExchange, type RpcAdapterOptions, runRpc } from "./rpc-adapter.ts";

export interface DirectCallOptions extends RpcAdapterOptions {
  /** Aborts, with the error that callers see, when the drain's time is over. */
  readonly shutdownSignal: AbortSignal;
}

/**
 * Runs one call of a direct method: the streaming path, from the request's bytes to the answer's. Whatever is unusual is
 * handed to Connect (`runRpc`), with the body that was read, or with the error that it has to write.
 *
 * A message goes out as soon as its part is there: HTTP/2 sends what one turn of the event loop has written together.
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
  const { request, response, caller } = exchange;
  const wire = usualWire(request, handler.method.methodKind === "server_streaming");
  const deadline = boundDeadline(request.headers, options.deadline);
  const isUsual = deadline.isValid && deadline.ms >= 1 && call.refusal === undefined;
  if (wire === undefined || !isUsual) return runRpc(handler, call, exchange, options);

  call.deadlineAt = call.startedAt + deadline.ms;
  using scope = openScope(caller, options.shutdownSignal, deadline.ms);
  const { signal } = scope;
  try {
    const bytes = options.bodyBytesMax + envelopeBytes;
    const body = await readBody(request, { bytes, ms: deadline.ms, caller });
    const asked = method.open(wire, body);
    if (asked === undefined) return await runRpc(handler, call, { ...exchange, body }, options);
    call.dispatched = true;
    if (asked.isStream) {
      using stream = await asked.answer({ call, signal });
      await sendStream(stream, wire, call, exchange);
    } else {
      const message = await asked.answer({ call, signal });
      // As Connect does, and so that a client over HTTP/1.1 gets it in one piece.
      if (!wire.isEnveloped) response.setHeader("content-length", message.length);
      writeHead(response, 200, wire.contentType);
      end(response, wire.end(), message);
    }
  } catch (error) {
    if (caller.aborted || response.headersSent) {
      // A lost connection, or a bug: nothing more can be said.
      if (!caller.aborted) recordOutcome(call, error);
      cutOff(response);
      return;
    }
    call.refusal = recordOutcome(call, error);
    await runRpc(handler, call, exchange, options);
  }
}

/** The wire of a request that a direct method may answer. */
function usualWire({ method, headers }: NodeRequest, isStream: boolean): Wire | undefined {
  const isCompressed =
    headers["content-encoding"] ?? headers["grpc-encoding"] ?? headers["connect-content-encoding"];
  if (method !== "POST" || isCompressed !== undefined) return undefined;
  return wireOf(headers["content-type"] ?? "", isStream);
}

/** What may wait in Node for a slow reader before its stream waits for it. Node's own mark is four times that. */
const unsentBytesMax = 16 * 1024;

async function sendStream(
  stream: DirectStream,
  wire: Wire,
  call: Call,
  { response, caller }: HttpExchange,
): Promise<void> {
  writeHead(response, 200, wire.contentType);
  // Over HTTP/2 the stream itself: it knows how much its reader has not taken yet.
  const body = "stream" in response ? response.stream : response;
  let last = wire.end();
  try {
    body.write(stream.start);
    for await (const part of stream.parts) {
      const message = stream.toMessage(part);
      if (body.writableLength < unsentBytesMax) body.write(message);
      else await written(response, message, stallMs);
    }
  } catch (error) {
    if (caller.aborted) throw error;
    last = wire.end(recordOutcome(call, error));
  }
  end(response, last);
}

function end(response: NodeResponse, { bytes, trailers }: WireEnd, message?: Buffer): void {
  if (trailers !== undefined) response.addTrailers(trailers);
  response.end(Buffer.concat([message ?? nothing, bytes ?? nothing]));
}

const nothing = Buffer.alloc(0);

interface Scope extends Disposable {
  readonly signal: AbortSignal;
}

/** One signal for the three ways in which a call ends early: its caller leaves, its time is over, the service stops. */
function openScope(caller: AbortSignal, shutdown: AbortSignal, ms: number): Scope {
  const controller = new AbortController();
  const onCaller = () => controller.abort(caller.reason);
  const onShutdown = () => controller.abort(shutdown.reason);
  const onDeadline = () => controller.abort(new AppError("timeout", "the operation timed out"));
  const timer = setTimeout(onDeadline, ms);
  caller.addEventListener("abort", onCaller);
  shutdown.addEventListener("abort", onShutdown);
  if (caller.aborted) onCaller();
  if (shutdown.aborted) onShutdown();
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      clearTimeout(timer);
      caller.removeEventListener("abort", onCaller);
      shutdown.removeEventListener("abort", onShutdown);
    },
  };
}
