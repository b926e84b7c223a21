import { type ConnectError, type ContextValues, createContextKey } from "@connectrpc/connect";
import { AppError } from "../errors.ts";
import type { ChatStream } from "../inference/engine.ts";
import type { Client } from "../keys/key-registry.ts";

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
  /** Why the call must not go on: thrown before its body is read. */
  refusal: AppError | ConnectError | undefined;
  /** Whether the request was decoded and handed to a handler. */
  dispatched: boolean;
  /** The status code's name. `ok` until something fails. */
  outcome: string;
  /** What failed inside, for the log only. */
  cause: unknown;
  /** The answer, whose usage is logged whatever became of it. */
  answer: ChatStream | undefined;
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
