/**
 * What went wrong, in words of the product. Edges map each kind to their own codes by one table
 * (rpc/error-mapping.ts), so that no feature and no adapter knows a transport.
 */
export type ErrorKind =
  /** The request can never succeed as it is: the message says what to change. */
  | "invalid"
  | "unauthenticated"
  | "not-found"
  /** A limit of the caller or of the service is reached: `retryAfterMs` says when to come back. */
  | "exhausted"
  /** The engine or a store cannot be reached, or the service is stopping: the same call may succeed later. */
  | "unavailable"
  /** A limit of time ran out: the caller's deadline, or one of ours towards the engine. */
  | "timeout"
  /** The caller left. */
  | "canceled"
  /** The engine answered something that cannot be read, or stopped in the middle of an answer. */
  | "corrupt"
  /** This engine or this build cannot do it. */
  | "unsupported"
  /** A bug of ours: the message stays inside. */
  | "internal";

/** The rules that refuse calls. */
export type RefusalReason =
  /** A limit of the client: see limits/limits.ts. */
  | "rpm"
  | "tpm"
  | "concurrency"
  | "dailyTokens"
  | "monthlyTokens"
  /** Its address has shown too many wrong keys. */
  | "address"
  /** Too many calls wait for the engine, of all clients or of this one. */
  | "queue"
  | "client-queue"
  /** The call would wait for the engine longer than its deadline, or its client, allows; or has. */
  | "deadline"
  | "wait"
  /** No engine can be reached. */
  | "engine";

/**
 * The only error that features and adapters throw on purpose.
 *
 * `message` is public: it reaches the caller word for word, so it says what to do and names nothing of the inside
 * (no address, no upstream text). What the operator needs goes into `cause`, which is logged and never sent.
 */
export class AppError extends Error {
  override readonly name = "AppError";
  readonly kind: ErrorKind;
  /** Milliseconds after which the same call may succeed. Absent when waiting does not help or nobody knows. */
  readonly retryAfterMs: number | undefined;
  /** Which rule refused the call, for logs and metrics. Absent when none did. */
  readonly reason: RefusalReason | undefined;

  constructor(
    kind: ErrorKind,
    message: string,
    options: { cause?: unknown; retryAfterMs?: number; reason?: RefusalReason } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = kind;
    this.retryAfterMs = options.retryAfterMs;
    this.reason = options.reason;
  }
}

/** Every problem of a configuration at once. Its text names variables and rules, never a secret's value. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(
      `the configuration is not valid:\n${problems.map((problem) => `  - ${problem}`).join("\n")}`,
    );
    this.problems = problems;
  }
}
