import { Code, createContextValues } from "@connectrpc/connect";
import {
  createAsyncIterable,
  type UniversalHandler,
  type UniversalServerRequest,
  type UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { type Call, callKey } from "../rpc/call.ts";
import { malformed, recordOutcome } from "../rpc/error-mapping.ts";
import { envelopeBytes } from "../rpc/wire.ts";
import type { Caller } from "./call-scope.ts";
import { boundDeadline } from "./deadline.ts";
import { closeUnread, drained } from "./http-answer.ts";
import { type HttpStream, stallMs } from "./http-stream.ts";
import { ongoingBody, wholeBody } from "./request-body.ts";

export interface RpcAdapterOptions {
  readonly bodyBytesMax: number;
  readonly deadline: { readonly defaultMs: number; readonly maxMs: number };
}

/** One request and its answer. */
export interface HttpExchange {
  readonly stream: HttpStream;
  /** The method's own path, with what the request's has behind it. */
  readonly path: string;
  readonly caller: Caller;
  /** The request's body, when it has been read already. */
  readonly body?: Buffer;
}

/**
 * Runs one call on Connect's protocol-independent handler: the part of connect-node's adapter that we need, without its
 * holes (a hostile Host header cannot end the process, nothing is printed, a stalled reader is cut).
 *
 * Everything behind stops at once when the caller goes away. Resolves when the answer is sent or the caller is gone.
 */
export async function runRpc(
  handler: UniversalHandler,
  call: Call,
  { stream, path, caller, body }: HttpExchange,
  options: RpcAdapterOptions,
): Promise<void> {
  const { methodKind } = handler.method;
  const hasOneMessage = methodKind === "unary" || methodKind === "server_streaming";
  const deadline = boundDeadline(stream.headers, options.deadline);
  call.deadlineAt = call.startedAt + deadline.ms;
  const headers = toHeaders(stream);
  headers.set(...deadline.header);
  const { signal } = caller;
  const bodyLimits = { bytes: options.bodyBytesMax + envelopeBytes, ms: deadline.ms, signal };
  const universal: UniversalServerRequest = {
    httpVersion: stream.httpVersion,
    method: stream.method,
    // Nothing behind needs the caller's authority, so that none reaches a parser.
    url: `http://localhost${path}`,
    header: headers,
    body:
      body !== undefined
        ? createAsyncIterable([body])
        : hasOneMessage
          ? wholeBody(stream, bodyLimits)
          : ongoingBody(stream),
    signal,
    contextValues: createContextValues().set(callKey, call),
  };
  try {
    const answer = await answerOf(handler, call, universal);
    // A caller may go on sending only where the method reads what it sends.
    const onHead = () => {
      if (hasOneMessage || call.refusal !== undefined) closeUnread(stream);
    };
    await send(answer, stream, onHead, signal);
    // Nor after the answer, wherever the method has stopped reading.
    closeUnread(stream);
  } catch (error) {
    // Connect turns what handlers throw into answers; what arrives here is a lost connection or a bug.
    if (!caller.hasLeft && !stream.destroyed) recordOutcome(call, error);
    stream.destroy();
  }
}

async function answerOf(
  handler: UniversalHandler,
  call: Call,
  request: UniversalServerRequest,
): Promise<UniversalServerResponse> {
  const answer = await handler(request);
  if (call.dispatched) return answer;
  if (call.refusal !== undefined) {
    recordOutcome(call, call.refusal);
    return answer;
  }
  // Neither refused nor handed to a handler: Connect could not read or decode the request. Its short answer is taken whole.
  const body = await Array.fromAsync(answer.body ?? []);
  const code = codeOf(answer, Buffer.concat(body).toString("latin1"));
  if (call.outcome === "ok") call.outcome = code;
  if (code !== codeToString(Code.Internal)) return { ...answer, body: createAsyncIterable(body) };
  // Connect answers a malformed protobuf message with `internal`. It is the caller's mistake, and must not look like ours.
  call.refusal = malformed();
  recordOutcome(call, call.refusal);
  return handler({ ...request, body: createAsyncIterable([]) });
}

/** The code that an answer says: gRPC in a trailer, gRPC-Web in a trailer within the body, Connect in the body's JSON. */
function codeOf({ trailer, header }: UniversalServerResponse, body: string): string {
  const grpcStatus =
    trailer?.get("grpc-status") ??
    header?.get("grpc-status") ??
    /grpc-status: *(\d+)/i.exec(body)?.[1];
  if (grpcStatus !== undefined) return codeToString(Number(grpcStatus));
  return /"code":"(\w+)"/.exec(body)?.[1] ?? "unknown";
}

async function send(
  answer: UniversalServerResponse,
  stream: HttpStream,
  onHead: () => void,
  gone: AbortSignal,
): Promise<void> {
  const chunks = answer.body?.[Symbol.asyncIterator]();
  try {
    let chunk = await chunks?.next();
    onHead();
    answer.header?.forEach((value, name) => {
      stream.setHeader(name, value);
    });
    stream.writeHead(answer.status);
    while (chunk !== undefined && chunk.done !== true) {
      gone.throwIfAborted();
      if (!stream.write(chunk.value)) await drained(stream, stallMs);
      chunk = await chunks?.next();
    }
    gone.throwIfAborted();
    if (answer.trailer !== undefined) stream.addTrailers(Object.fromEntries(answer.trailer));
    stream.end();
  } finally {
    // Ends the handler where it stands: its finally blocks give everything back.
    await chunks?.return?.();
  }
}

function toHeaders(stream: HttpStream): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(stream.headers)) {
    if (value !== undefined) headers.set(name, value);
  }
  return headers;
}
