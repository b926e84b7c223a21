import { AppError, type ErrorKind } from "../../errors.ts";

/** What an answer that is not a success means. Our own words: nothing of the engine's text reaches a caller. */
export function refusalError(status: number, body: string): AppError {
  const { kind, message, retryAfterMs } = refusals.get(status) ?? otherRefusal(status);
  const cause = new Error(`vLLM answered ${status}: ${clipUpstreamText(body)}`);
  return new AppError(
    kind,
    message,
    retryAfterMs === undefined ? { cause } : { cause, retryAfterMs },
  );
}

/** A failure below HTTP. `responding` says whether the engine had begun to answer. */
export function transportError(cause: unknown, responding: boolean): AppError {
  if (cause instanceof AppError) return cause;
  return responding
    ? corrupt("the engine stopped in the middle of an answer", cause)
    : new AppError("unavailable", unavailable, { cause, retryAfterMs: RETRY_AFTER_MS });
}

/** The engine answered something that cannot be read; `detail` is for the operator. */
export function corrupt(message: string, detail: unknown): AppError {
  return new AppError("corrupt", message, {
    cause: detail instanceof Error ? detail : new Error(String(detail)),
  });
}

/** Our own limit of time towards the engine ran out. */
export function tooSlow(message: string, limitMs: number): AppError {
  return new AppError("timeout", message, { cause: new Error(`limit of ${limitMs} ms`) });
}

/**
 * Upstream text for the log: one line, bounded, and without what FastAPI and Pydantic quote of the request
 * (`'input': ...`, `input_value=...`), because prompts are never logged.
 */
export function clipUpstreamText(text: string): string {
  const [beforeInput = ""] = text
    .slice(0, CAUSE_CHARS_MAX)
    .split(/['"\\]*\binput(?:_value)?\b['"\\]*\s*[:=]/, 1);
  return beforeInput.replaceAll(/[\p{Cc}\u2028\u2029]+/gu, " ").trim();
}

/** Whether a connection that was kept open died under a request before the engine said anything about it. */
export function isConnectionLoss(error: Error): boolean {
  const code = "code" in error ? error.code : undefined;
  return code === "ECONNRESET" || code === "EPIPE";
}

interface Refusal {
  readonly kind: ErrorKind;
  readonly message: string;
  readonly retryAfterMs?: number;
}

const CAUSE_CHARS_MAX = 500;

/** When to come back to an engine that is full or restarting: vLLM itself never says. */
const RETRY_AFTER_MS = 1_000;

const unavailable = "the engine cannot be reached now: try again";

const invalid =
  "the engine refused this request: check its length, the JSON schema, the tools and the sampling fields";

const busy: Refusal = {
  kind: "unavailable",
  message: "the engine cannot take this request now: try again",
  retryAfterMs: RETRY_AFTER_MS,
};

const refusals = new Map<number, Refusal>([
  [400, { kind: "invalid", message: invalid }],
  // Our own key is wrong. That is the operator's problem and says nothing about the caller's key.
  [401, { kind: "unavailable", message: unavailable }],
  [403, { kind: "unavailable", message: unavailable }],
  [404, { kind: "not-found", message: "the engine does not serve this model: list the models" }],
  [408, { kind: "timeout", message: "the engine ran out of time" }],
  [413, { kind: "invalid", message: "this request is too large for the engine: shorten it" }],
  [422, { kind: "invalid", message: invalid }],
  [429, busy],
  [503, busy],
  [504, { kind: "timeout", message: "the engine ran out of time" }],
]);

function otherRefusal(status: number): Refusal {
  return status >= 500 && status <= 599
    ? { kind: "unavailable", message: "the engine failed on this request: try again" }
    : { kind: "corrupt", message: "the engine answered something unexpected" };
}
