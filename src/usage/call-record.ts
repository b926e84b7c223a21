import type { RefusalReason } from "../errors.ts";
import type { Usage } from "../inference/engine.ts";
import type { CallTrace } from "./call-trace.ts";

/**
 * What became of one call, told once when it has ended: when its last byte is sent, its caller has gone, or the process that
 * answered it has died. Durations in milliseconds. No prompt, answer, key or header is in it.
 */
export interface CallRecord {
  /** The call's own id. */
  readonly id: string;
  /** Milliseconds since 1970. */
  readonly startedAt: number;
  readonly durationMs: number;
  /** `package.Service/Method`, a page's path, or `unknown`: of a bounded set, whatever the caller asked for. */
  readonly rpc: string;
  /** Absent when the key was refused, and on public methods. */
  readonly client?: string;
  /** The model that answered; absent when it did not come to that. */
  readonly model?: string;
  /** The engine that it ran on, where there are several. */
  readonly engine?: string;
  /** The status code's name: `ok`, `canceled`, `resource_exhausted`… */
  readonly outcome: string;
  /** Which rule refused it. */
  readonly reason?: RefusalReason;
  /** How long it waited for the engine; absent when it did not get that far. */
  readonly queueMs?: number;
  /** From the call's beginning until the engine was asked. */
  readonly engineAskedMs?: number;
  /** From the call's beginning to its first token, and from the engine's: the difference, less the wait, is ours. */
  readonly firstTokenMs?: number;
  readonly engineFirstTokenMs?: number;
  /** From its caller's departure until everything that it had was given back. */
  readonly abortMs?: number;
  /** The engine's own counts, up to its last report when the call was cut; absent when it did not run. */
  readonly usage?: Usage;
  /** The process that answered it has died: `usage` is what was expected, and the rest is unknown. */
  readonly isLost?: true;
  /** Present when spans are to be made of it; only calls of clients have one. */
  readonly trace?: CallTrace;
}

/** Who is told of calls. Never throws, and does not wait: whatever it does with a record is its own affair. */
export interface CallSink {
  record(call: CallRecord): void;
}
