import { AppError, ConfigError } from "../errors.ts";

/** Why the program could not start, for the person who starts it: a stack only when it is a bug of ours. */
export function startFailure(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const isExpected =
    error instanceof ConfigError || error instanceof AppError || "syscall" in error;
  return isExpected ? error.message : String(error.stack);
}
