import { randomUUID } from "node:crypto";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { codeToHttpStatus } from "@connectrpc/connect/protocol-connect";
import { AppError } from "../errors.ts";
import type { Gate } from "../keys/gate.ts";
import type { Client } from "../keys/key-registry.ts";
import { monotonicClock } from "../lib/clock.ts";
import type { Counting } from "../limits/call-limits.ts";
import type { RateStanding } from "../limits/limits.ts";
import type { Call } from "../rpc/call.ts";
import type { DirectMethod } from "../rpc/direct.ts";
import { recordOutcome } from "../rpc/error-mapping.ts";
import type { Routes } from "../rpc/routes.ts";
import type { StartTrace } from "../usage/call-trace.ts";
import { Caller } from "./call-scope.ts";
import { type DirectCallOptions, runDirect } from "./direct-call.ts";
import { sendJson, whenClosed } from "./http-answer.ts";
import type { HttpStream } from "./http-stream.ts";
import { checkRequestHead, presentedKey } from "./request-guard.ts";
import { runRpc } from "./rpc-adapter.ts";

/** A path of the founding document that is another name of a method. */
export interface Alias {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly rpc: string;
}

/** A path that is answered without a message to decode; always public. */
export interface PublicPage {
  readonly path: string;
  /** Resolves to an HTTP status and a JSON body; never rejects. */
  answer(): Promise<{ readonly status: number; readonly body: unknown }>;
}

export interface HttpHandlerOptions extends DirectCallOptions, Routes {
  readonly aliases: readonly Alias[];
  readonly publicPages: readonly PublicPage[];
  /** `package.Service/Method` of the methods that need no key. Everything else does. */
  readonly publicRpcs: ReadonlySet<string>;
  /** How a method that needs a key counts against its client's limits. */
  readonly countingOf: (rpc: string) => Counting;
  readonly gate: Gate;
  readonly addressOf: (socketAddress: string, forwardedFor: string | undefined) => string;
  /** Absent: calls are not traced. Asked only for calls of clients. */
  readonly startTrace?: StartTrace | undefined;
  /** Called once for each request, also for those that are refused; then `onCallEnd` is called too. */
  readonly onCallStart: () => void;
  /** Called once for each call that ends, and for each request that is refused. */
  readonly onCallEnd: (call: Call, durationMs: number) => void;
  /** Whether new calls are refused. */
  readonly isDraining: () => boolean;
}

/**
 * What happens to every HTTP request, in this order and from its headers alone: is it HTTP that we answer, whose key is
 * it, may it call now; then the method runs. A path that does not exist needs a key like every other, so that nobody
 * without one learns which paths exist.
 */
export function createHttpHandler(options: HttpHandlerOptions): (stream: HttpStream) => void {
  const targets = toTargets(options);
  const pages = new Map(options.publicPages.map((page) => [page.path, page]));

  return (stream) => {
    const call = startCall(stream, options);
    options.onCallStart();
    const caller = new Caller();
    const closed = whenClosed(stream).then(() => {
      if (stream.writableEnded) return;
      if (call.outcome === "ok") call.outcome = "canceled";
      leftAt = monotonicClock();
      caller.leave();
    });
    let leftAt: number | undefined;
    void handle(call, stream, caller)
      .catch((error) => {
        recordOutcome(call, error);
        if (stream.headersSent) stream.destroy();
        else sendError(stream, 500, "internal", "internal error");
      })
      .then(() => {
        if (leftAt !== undefined) call.abortMs = monotonicClock() - leftAt;
      })
      // The handler can end before its last byte is sent, or after its caller is gone: the call ends with the later one.
      .then(() => closed)
      .then(() => options.onCallEnd(call, monotonicClock() - call.startedAt));
  };

  async function handle(call: Call, stream: HttpStream, caller: Caller): Promise<void> {
    stream.setHeader("x-request-id", call.id);
    const { url, method, headers } = stream;
    const refusal = checkRequestHead(stream, options.bodyBytesMax);
    if (refusal !== undefined) {
      call.outcome = `http_${refusal.status}`;
      const code = refusal.status === 413 ? "resource_exhausted" : "invalid_argument";
      return sendError(stream, refusal.status, code, refusal.message);
    }

    const queryAt = url.indexOf("?");
    const path = queryAt === -1 ? url : url.slice(0, queryAt);
    const isRead = method === "GET" || method === "HEAD";
    const page = isRead ? pages.get(path) : undefined;
    if (page !== undefined) {
      call.rpc = page.path;
      const { status, body } = await page.answer();
      return sendJson(stream, status, body);
    }

    const found = targets.get(path);
    const isMeant = found?.onlyMethod === undefined || found.onlyMethod === method;
    const target = isMeant ? found : undefined;
    if (target !== undefined) call.rpc = target.rpc;

    const runs = target !== undefined && accepts(target.handler, stream);
    if (target?.isPublic !== true) {
      const key = presentedKey(headers);
      // A connection of HTTP/1.1 that is kept alive can bring another call during a drain: it is refused, and costs nothing.
      const draining = options.isDraining();
      const counts = runs && !draining ? target.counts : "never";
      const access = await options.gate.admit({ id: call.id, key, address: call.address, counts });
      call.counted = counts !== "later" || access.refusal !== undefined;
      const wanted = headers[classHeader];
      call.client = access.client && inClass(access.client, wanted);
      if (access.client !== undefined) call.trace = options.startTrace?.(headers);
      call.refusal = access.refusal ?? (draining ? stopping() : undefined) ?? checkClass(wanted);
      if (access.rate !== undefined) setRateHeaders(stream, access.rate);
      if (access.refusal?.kind === "unauthenticated")
        stream.setHeader("www-authenticate", "Bearer");
    }

    if (runs) {
      const { handler, direct } = target;
      const exchange = {
        stream,
        path: handler.requestPath + url.slice(path.length),
        caller,
      };
      return direct === undefined
        ? runRpc(handler, call, exchange, options)
        : runDirect(direct, handler, call, exchange, options);
    }
    if (call.refusal !== undefined) {
      const error = recordOutcome(call, call.refusal);
      const retryAfter = error.metadata.get("retry-after");
      if (retryAfter !== null) stream.setHeader("retry-after", retryAfter);
      const status = codeToHttpStatus(error.code);
      return sendError(stream, status, call.outcome, error.rawMessage);
    }
    if (target !== undefined) {
      const { handler } = target;
      const isMethod = handler.allowedMethods.includes(method);
      call.outcome = isMethod ? "http_415" : "http_405";
      stream.setHeader("allow", handler.allowedMethods.join(", "));
      const message =
        "send POST with Content-Type: application/json, or another type of the protocols served";
      return sendError(stream, isMethod ? 415 : 405, "invalid_argument", message);
    }
    call.outcome = "unimplemented";
    return sendError(stream, 404, "unimplemented", "there is no such method");
  }
}

/** What a path stands for. */
interface Target {
  /** `package.Service/Method` */
  readonly rpc: string;
  readonly handler: UniversalHandler;
  /** Present for methods whose usual calls need no more than it. */
  readonly direct: DirectMethod | undefined;
  readonly isPublic: boolean;
  readonly counts: Counting;
  /** The HTTP method of an alias. */
  readonly onlyMethod?: Alias["method"];
}

/** By path. */
function toTargets(options: HttpHandlerOptions): ReadonlyMap<string, Target> {
  const targets = new Map<string, Target>();
  for (const handler of options.handlers) {
    const { requestPath } = handler;
    const rpc = requestPath.slice(1);
    targets.set(requestPath, {
      rpc,
      handler,
      direct: options.direct.get(requestPath),
      isPublic: options.publicRpcs.has(rpc),
      counts: options.countingOf(rpc),
    });
  }
  for (const { method, path, rpc } of options.aliases) {
    const target = targets.get(`/${rpc}`);
    if (target !== undefined) targets.set(path, { ...target, onlyMethod: method });
  }
  return targets;
}

function stopping(): AppError {
  return new AppError("unavailable", "the service is stopping: try again", { retryAfterMs: 1000 });
}

function startCall({ headers, remoteAddress = "" }: HttpStream, options: HttpHandlerOptions): Call {
  return {
    id: randomUUID(),
    address: options.addressOf(remoteAddress, headers["x-forwarded-for"]),
    startedAt: monotonicClock(),
    rpc: "unknown",
    client: undefined,
    trace: undefined,
    refusal: undefined,
    deadlineAt: Number.POSITIVE_INFINITY,
    dispatched: false,
    counted: true,
    outcome: "ok",
    reason: undefined,
    cause: undefined,
    answer: undefined,
    abortMs: undefined,
  };
}

/** Whether the handler will speak one of its protocols, so that a refusal can be told in that protocol. */
function accepts(handler: UniversalHandler, { method, headers }: HttpStream): boolean {
  if (method === "GET") return handler.allowedMethods.includes("GET");
  return (
    handler.allowedMethods.includes(method) &&
    handler.supportedContentType(headers["content-type"] ?? "")
  );
}

/** In which class a caller wants its call to be. */
const classHeader = "x-formdev-class";

function checkClass(wanted: string | undefined): AppError | undefined {
  if (wanted === undefined || wanted === "interactive" || wanted === "batch") return undefined;
  return new AppError("invalid", `${classHeader} must be interactive or batch`);
}

/** A call may step back behind those that persons wait for; a client of class batch does not get before them by asking. */
function inClass(client: Client, wanted: string | undefined): Client {
  return wanted === "batch" && client.class !== "batch" ? { ...client, class: "batch" } : client;
}

/** The field names of the IETF draft on RateLimit headers, version 03, which HTTP clients know. */
function setRateHeaders(stream: HttpStream, rate: RateStanding): void {
  stream.setHeader("ratelimit-limit", rate.limit);
  stream.setHeader("ratelimit-remaining", rate.remaining);
  stream.setHeader("ratelimit-reset", Math.ceil(rate.resetMs / 1000));
}

/** The error body of the Connect protocol, for requests that no protocol handler answers. gRPC clients read the status. */
function sendError(stream: HttpStream, status: number, code: string, message: string): void {
  sendJson(stream, status, { code, message });
}
