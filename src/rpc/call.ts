import { type ConnectError, type ContextValues, createContextKey } from "@connectrpc/connect";
import { AppError, type RefusalReason } from "../errors.ts";
import type { ChatStream } from "../inference/engine.ts";
import type { Client } from "../keys/key-registry.ts";
import type { CallRecord } from "../usage/call-record.ts";
import type { CallTrace } from "../usage/call-trace.ts";

/**
 * What is known of one call, from its first header to its last byte: made by the HTTP edge, completed on the way, and
 * logged once when the call ends.
 */
export interface Call {
  /** Ours, never the caller's: it names the call in answers, logs and towards the engine's logs. */
  readonly id: string;
  /** The caller's network address, behind trusted proxies the one that they name. */
  readonly address: string;
  /** Monotonic milliseconds. */
  readonly startedAt: number;
  /** `package.Service/Method`, or `unknown`: of a bounded set, whatever the caller asked for. */
  rpc: string;
  /** Set once the key is accepted; absent on public methods. */
  client: Client | undefined;
  /** Set with the client, where calls are traced. */
  trace: CallTrace | undefined;
  /** Monotonic milliseconds at which the call's deadline is reached. */
  deadlineAt: number;
  /** Why the call must not go on: thrown before its body is read. */
  refusal: AppError | ConnectError | undefined;
  /** Whether the request was decoded and handed to a handler. */
  dispatched: boolean;
  /** Whether the client's limits have counted it. */
  counted: boolean;
  /** The status code's name. `ok` until something fails. */
  outcome: string;
  /** Which rule refused it. */
  reason: RefusalReason | undefined;
  /** What failed inside, for the log only. */
  cause: unknown;
  /** What answers, how long the call waited for it, and the answer, whose usage counts whatever becomes of it. */
  answer: CallAnswer | undefined;
  /** Milliseconds from its caller's departure until everything that it had was given back. */
  abortMs: number | undefined;
}

export interface CallAnswer {
  readonly model: string;
  readonly engine?: string | undefined;
  readonly queueMs: number;
  readonly parts: Pick<ChatStream, "usage" | "askedAt" | "firstPartAt">;
}

/** What is left of a call that has ended `durationMs` after its beginning. */
export function toRecord(call: Call, durationMs: number): CallRecord {
  const { client, trace, answer, reason, abortMs } = call;
  const { askedAt, firstPartAt } = answer?.parts ?? {};
  return {
    id: call.id,
    startedAt: Date.now() - durationMs,
    durationMs,
    rpc: call.rpc,
    outcome: call.outcome,
    ...(client !== undefined && { client: client.id }),
    ...(reason !== undefined && { reason }),
    ...(abortMs !== undefined && { abortMs }),
    ...(answer !== undefined && {
      model: answer.model,
      queueMs: answer.queueMs,
      usage: answer.parts.usage,
    }),
    ...(answer?.engine !== undefined && { engine: answer.engine }),
    ...(askedAt !== undefined && { engineAskedMs: askedAt - call.startedAt }),
    ...(firstPartAt !== undefined &&
      askedAt !== undefined && {
        firstTokenMs: firstPartAt - call.startedAt,
        engineFirstTokenMs: firstPartAt - askedAt,
      }),
    ...(trace?.isSampled && { trace }),
  };
}

export const callKey = createContextKey<Call | undefined>(undefined, {
  description: "the call that this request belongs to",
});

export function callOf(context: { readonly values: ContextValues }): Call {
  const call = context.values.get(callKey);
  if (call === undefined) throw new AppError("internal", "the request came in without a call");
  return call;
}

/** The caller of a method that is not public: the gate has let nobody else through. */
export function clientOf(call: Call): Client {
  if (call.client === undefined) throw new AppError("internal", "the call has no client");
  return call.client;
}
