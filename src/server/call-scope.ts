import { AppError } from "../errors.ts";

/**
 * Who waits for an answer. That it leaves is told to a function and not by an AbortSignal, which is made for Connect's path only:
 * a controller and its listeners cost a call as much as ten tokens.
 */
export class Caller {
  hasLeft = false;
  onLeave: ((reason: AppError) => void) | undefined;
  #controller: AbortController | undefined;

  /** Aborts when the caller leaves, with `canceled`. */
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.hasLeft) this.#controller.abort(callerLeft());
    return this.#controller.signal;
  }

  leave(): void {
    this.hasLeft = true;
    const reason = callerLeft();
    this.#controller?.abort(reason);
    this.onLeave?.(reason);
  }
}

export function callerLeft(): AppError {
  return new AppError("canceled", "the caller left");
}

/** The calls that run, so that all can be ended. */
export class RunningCalls {
  readonly #scopes = new Set<CallScope>();
  readonly #shutdown: AbortSignal;

  /** `shutdown` ends them, and those that come later. Its reason is what their callers see. */
  constructor(shutdown: AbortSignal) {
    this.#shutdown = shutdown;
    const onShutdown = () => {
      for (const scope of this.#scopes) scope.end(shutdown.reason);
    };
    shutdown.addEventListener("abort", onShutdown, { once: true });
  }

  add(scope: CallScope): void {
    if (this.#shutdown.aborted) scope.end(this.#shutdown.reason);
    this.#scopes.add(scope);
  }

  delete(scope: CallScope): void {
    this.#scopes.delete(scope);
  }
}

/**
 * One signal for the three ways in which a call ends early: its caller leaves, its `ms` milliseconds are over, the service stops.
 * Its reason is the error that each of them means. Disposed at the call's end.
 */
export class CallScope implements Disposable {
  readonly #controller = new AbortController();
  readonly #caller: Caller;
  readonly #running: RunningCalls;
  readonly #timer: NodeJS.Timeout;

  constructor(caller: Caller, running: RunningCalls, ms: number) {
    this.#caller = caller;
    this.#running = running;
    this.#timer = setTimeout(() => this.end(outOfTime()), ms);
    caller.onLeave = (reason) => this.end(reason);
    if (caller.hasLeft) this.end(callerLeft());
    running.add(this);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  end(reason: unknown): void {
    this.#controller.abort(reason);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#caller.onLeave = undefined;
    this.#running.delete(this);
  }
}

function outOfTime(): AppError {
  return new AppError("timeout", "the operation timed out");
}
