import { Code, ConnectError, createContextValues } from "@connectrpc/connect";
import type {
  UniversalHandler,
  UniversalServerRequest,
  UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { AppError } from "../errors.ts";
import { type Call, callKey } from "../rpc/call.ts";
import { recordOutcome } from "../rpc/error-mapping.ts";
import { boundDeadline } from "./deadline.ts";
import {
  closeUnread,
  cutOff,
  drained,
  type NodeRequest,
  type NodeResponse,
  stallMs,
} from "./node-http.ts";
import { wholeBody } from "./request-body.ts";

export interface RpcAdapterOptions {
  readonly bodyBytesMax: number;
  readonly deadline: { readonly defaultMs: number; readonly maxMs: number };
}

/**
 * Runs one call on Connect's protocol-independent handler: the part of connect-node's adapter that we need, without its
 * holes (a hostile Host header cannot end the process, nothing is printed, a stalled reader is cut).
 *
 * The call's signal aborts when its connection goes away, so that everything behind stops at once. Resolves when the
 * answer is sent or the connection is gone; never rejects.
 */
export async function runRpc(
  handler: UniversalHandler,
  call: Call,
  request: NodeRequest,
  response: NodeResponse,
  target: { readonly method: string; readonly path: string },
  options: RpcAdapterOptions,
): Promise<void> {
  const abort = new AbortController();
  response.once("close", () => {
    // Node calls every closed HTTP/2 response finished; ours is when we have ended it.
    if (!response.writableEnded) {
      if (call.outcome === "ok") call.outcome = "canceled";
      abort.abort(new ConnectError("the caller left", Code.Canceled));
    }
  });
  const { methodKind } = handler.method;
  const hasOneMessage = methodKind === "unary" || methodKind === "server_streaming";
  const headers = toHeaders(request);
  boundDeadline(headers, options.deadline);
  const universal: UniversalServerRequest = {
    httpVersion: request.httpVersion,
    method: target.method,
    // Nothing behind needs the caller's authority, so that none reaches a parser.
    url: `http://localhost${target.path}`,
    header: headers,
    body: hasOneMessage ? wholeBody(request, options.bodyBytesMax + envelopeBytes) : request,
    signal: abort.signal,
    contextValues: createContextValues().set(callKey, call),
  };
  try {
    const answer = await answerOf(handler, call, universal);
    // A caller may go on sending only where the method reads what it sends.
    const onHead = () => {
      if (hasOneMessage || call.refusal !== undefined) closeUnread(request, response);
    };
    await send(answer, response, onHead, abort.signal);
  } catch (error) {
    // Connect turns what handlers throw into answers; what arrives here is a lost connection or a bug.
    if (!abort.signal.aborted) recordOutcome(call, error);
    cutOff(response);
  }
}

/** A streamed or gRPC message has a flag byte and four bytes of length in front. */
const envelopeBytes = 5;

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
  // Neither refused nor handed to a handler: Connect could not decode the request, or the method or media type is wrong.
  call.outcome = answer.status === 200 ? "invalid_argument" : `http_${answer.status}`;
  if (!isInternal(answer)) return answer;
  // Connect answers a malformed protobuf message with `internal`. It is the caller's mistake, and must not look like ours.
  call.refusal = new AppError("invalid", "the request is not a valid message of this method");
  call.outcome = "invalid_argument";
  return handler({ ...request, body: emptyBody() });
}

async function* emptyBody(): AsyncIterable<Uint8Array> {}

function isInternal(answer: UniversalServerResponse): boolean {
  const grpcStatus = answer.trailer?.get("grpc-status") ?? answer.header?.get("grpc-status");
  return answer.status === 500 || grpcStatus === String(Code.Internal);
}

async function send(
  answer: UniversalServerResponse,
  response: NodeResponse,
  onHead: () => void,
  gone: AbortSignal,
): Promise<void> {
  const chunks = answer.body?.[Symbol.asyncIterator]();
  try {
    let chunk = await chunks?.next();
    onHead();
    answer.header?.forEach((value, name) => {
      response.setHeader(name, value);
    });
    // Said explicitly: an HTTP/2 answer without a body would otherwise end with its head, and lose its trailers.
    writeHead(response, answer.status);
    while (chunk !== undefined && chunk.done !== true) {
      gone.throwIfAborted();
      if (!write(response, chunk.value)) await drained(response, stallMs);
      chunk = await chunks?.next();
    }
    gone.throwIfAborted();
    if (answer.trailer !== undefined) response.addTrailers(Object.fromEntries(answer.trailer));
    response.end();
  } finally {
    // Ends the handler where it stands: its finally blocks give everything back.
    await chunks?.return?.();
  }
}

// The two kinds of response have the same methods, in types that TypeScript cannot unite.

function writeHead(response: NodeResponse, status: number): void {
  if ("stream" in response) response.writeHead(status);
  else response.writeHead(status);
}

/** Whether more may be written at once. */
function write(response: NodeResponse, bytes: Uint8Array): boolean {
  return "stream" in response ? response.write(bytes) : response.write(bytes);
}

function toHeaders(request: NodeRequest): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(request.headers)) {
    if (value === undefined || name.startsWith(":")) continue;
    headers.set(name, Array.isArray(value) ? value.join(", ") : value);
  }
  return headers;
}
