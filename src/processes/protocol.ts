import type { AdmissionCall, Lease } from "../admission/admission.ts";
import type { Config } from "../config.ts";
import type { ResolvedConfig } from "../config-files.ts";
import type { HealthSource } from "../health/health.ts";
import type { Engine } from "../inference/engine.ts";
import type { CallLimits } from "../limits/call-limits.ts";
import type { CallSink } from "../usage/call-record.ts";
import type { UsageReporter } from "../usage/usage-report.ts";
import type { Vitals } from "../usage/vitals.ts";

/** What the primary answers to a worker, and what a worker tells it. */
export interface PrimarySide {
  /** Whether a call may be made. */
  readonly check: CallLimits["check"];
  readonly count: CallLimits["count"];
  /**
   * Waits for its turn under a number of the worker's choice; resolves when the call is admitted. Whatever becomes of it,
   * `leave` with that number gives back what the number stands for, a place in the queue or at an engine: so it does not
   * matter which message comes first when a worker leaves while the primary admits it.
   */
  enter(asked: { readonly ticket: number; readonly call: AdmissionCall }): Promise<Admitted>;
  leave(left: Left): void;
  /**
   * The engine has begun to answer the call of this ticket. Said at once: of an engine that fails, answers count that come
   * between its failures.
   */
  answered(ticket: number): void;
  /** See `Lease.move`. Null when there is no other place. The ticket has to be left all the same. */
  move(ticket: number): Promise<Admitted | null>;
  /** A call has ended. */
  readonly record: CallSink["record"];
  /** How a client stands. */
  readonly reportUsage: UsageReporter["report"];
  /** Whether the store of this name works. */
  checkStore(name: string): Promise<null>;
  /** The worker takes connections. */
  ready(engine: Engine["kind"]): void;
  /** The worker has the connection that it was handed, and can be handed the next one. */
  took(_: null): void;
  /** The worker could not start, for this reason, and ends. */
  failed(reason: string): void;
}

/** A `Lease`, as far as a worker is told. */
export type Admitted = { readonly engine?: string } & Pick<Lease, "queueMs">;

/** What a worker says when a call is over. */
export interface Left {
  readonly ticket: number;
  /** What the call has really cost, see `Lease.settle`; absent: nobody knows. */
  readonly tokens?: number;
  /** Whether its engine has failed it. */
  readonly hasFailed?: boolean;
}

/** What a worker is told, beside the connections that it is handed. */
export interface WorkerSide {
  /** First of all: a packed `Setup`. */
  start(setup: string): void;
  /** To finish its calls and end. */
  drain(_: null): void;
  /** How it is doing. */
  vitals(_: null): Promise<Vitals>;
}

/** What a worker needs to know: what the primary has read and made, so that all workers have the same. */
export interface Setup {
  readonly config: Config;
  readonly resolved: ResolvedConfig;
  /** The stores that the primary's decisions need. */
  readonly stores: readonly Pick<HealthSource, "name" | "optional">[];
}
