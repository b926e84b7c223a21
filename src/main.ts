import { existsSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { aborted } from "./lib/delay.ts";
import { processCount } from "./process-count.ts";
import { startFailure } from "./processes/start-failure.ts";

/** Variables of the operator's file hold where the environment does not say otherwise. */
const envFile = join(import.meta.dirname, "../infra/.env");
if (existsSync(envFile)) process.loadEnvFile(envFile);
keepCompiledCode();

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    // The first signal drains; a second one ends the process at once, as it would without us.
    process.removeAllListeners("SIGINT").removeAllListeners("SIGTERM");
    stop.abort();
  });
}

try {
  const processes = processCount(process.env);
  if (processes === 1) await runAlone();
  else await runMany(processes);
} catch (error) {
  process.stderr.write(`${startFailure(error)}\n`);
  process.exitCode = 1;
}

async function runMany(processes: number): Promise<void> {
  const { startWorker } = await import("./processes/worker-process.ts");
  const first = startWorker();
  const { runPrimary } = await import("./processes/primary.ts");
  const print = (text: string) => void process.stderr.write(text);
  await runPrimary({ env: process.env, first, processes, signal: stop.signal, print });
}

async function runAlone(): Promise<void> {
  const [{ createApp }, { parseConfig }, { firstCall, modelProgress }] = await Promise.all([
    import("./app.ts"),
    import("./config.ts"),
    import("./greeting.ts"),
  ]);
  const config = parseConfig(process.env);
  await using app = await createApp(config, {
    signal: stop.signal,
    onModelFile: modelProgress(process.stderr),
  });
  if (app.generatedKey !== undefined) process.stderr.write(firstCall(app.url, app.generatedKey));
  await aborted(stop.signal);
}

/**
 * Has Node keep what it compiles (without types, and as V8's code) for the next start, which then takes half the time. In the
 * user's own folder: whoever can write to it decides what runs. Where it cannot be written, every start compiles.
 */
function keepCompiledCode(): void {
  const { HOME, XDG_CACHE_HOME, NODE_COMPILE_CACHE } = process.env;
  if (NODE_COMPILE_CACHE) return;
  const cache = XDG_CACHE_HOME || (HOME && join(HOME, ".cache"));
  if (!cache) return;
  const folder = join(cache, "formdev/compiled");
  enableCompileCache(folder);
  // For the other processes, from their first module on.
  process.env.NODE_COMPILE_CACHE = folder;
}
