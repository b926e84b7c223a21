import { existsSync } from "node:fs";
import { join } from "node:path";
import { createApp } from "./app.ts";
import { ConfigError, parseConfig } from "./config.ts";
import { AppError } from "./errors.ts";
import { firstCall, modelProgress } from "./greeting.ts";

/** Variables of the operator's file hold where the environment does not say otherwise. */
const envFile = join(import.meta.dirname, "../infra/.env");
if (existsSync(envFile)) process.loadEnvFile(envFile);

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    // The first signal drains; a second one ends the process at once, as it would without us.
    process.removeAllListeners("SIGINT").removeAllListeners("SIGTERM");
    stop.abort();
  });
}

try {
  const config = parseConfig(process.env);
  await using app = await createApp(config, {
    signal: stop.signal,
    onModelFile: modelProgress(process.stderr),
  });
  if (app.generatedKey !== undefined) process.stderr.write(firstCall(app.url, app.generatedKey));
  if (!stop.signal.aborted) {
    await new Promise((resolve) => stop.signal.addEventListener("abort", resolve, { once: true }));
  }
} catch (error) {
  const expected =
    error instanceof ConfigError || error instanceof AppError || isSystemError(error);
  process.stderr.write(`${expected ? error.message : String((error as Error).stack)}\n`);
  process.exitCode = 1;
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "syscall" in error;
}
