import { createHash, randomUUID } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { AppError } from "../../errors.ts";
import type { PinnedFile } from "./model-sources.ts";

/** Parts that nobody has written to for so long are left over from a process that was killed. */
const staleMs = 3_600_000;

/**
 * Writes `content` to `path` if it is the pinned file: first beside it under a name of its own, then on disk for good,
 * then renamed. Until then, and after any failure, `path` is untouched and the part is gone.
 *
 * `onBytes` hears how many bytes are there, at most a hundred times. Throws AppError `corrupt` when there are more or
 * fewer bytes than pinned, or others, and `signal.reason` once `signal` aborts.
 */
export async function writeVerified(
  content: Readable,
  pinned: PinnedFile,
  options: {
    readonly path: string;
    readonly signal: AbortSignal;
    readonly onBytes?: (bytes: number) => void;
  },
): Promise<void> {
  const { path, signal, onBytes } = options;
  await mkdir(dirname(path), { recursive: true });
  await removeStaleParts(path);
  const part = `${path}.${randomUUID()}.part`;
  try {
    // `flush` asks for an fsync before the file closes.
    const file = createWriteStream(part, { flags: "wx", flush: true });
    await pipeline(
      content,
      (chunks: AsyncIterable<Buffer>) => verify(chunks, pinned, onBytes),
      file,
      {
        signal,
      },
    );
    await rename(part, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(part, { force: true });
    signal.throwIfAborted();
    throw error;
  }
}

/** Passes the chunks on; fails at the end when they are not the pinned file, or as soon as they are too many. */
async function* verify(
  chunks: AsyncIterable<Buffer>,
  { bytes: bytesTotal, sha256 }: PinnedFile,
  onBytes: (bytes: number) => void = () => undefined,
): AsyncGenerator<Buffer> {
  const hash = createHash("sha256");
  const step = Math.ceil(bytesTotal / 100);
  let bytes = 0;
  for await (const chunk of chunks) {
    const before = bytes;
    bytes += chunk.length;
    if (bytes > bytesTotal) throw notPinned(`more than ${bytesTotal} bytes`);
    hash.update(chunk);
    yield chunk;
    if (Math.floor(bytes / step) > Math.floor(before / step)) onBytes(bytes);
  }
  if (bytes < bytesTotal) throw notPinned(`${bytes} of ${bytesTotal} bytes`);
  const digest = hash.digest("hex");
  if (digest !== sha256) throw notPinned(`SHA-256 ${digest}`);
}

function notPinned(found: string): AppError {
  return new AppError(
    "corrupt",
    "the downloaded model is not the file that this version was made for; nothing of it was kept",
    { cause: new Error(`the source gave ${found}`) },
  );
}

/** Makes the new name in the folder durable. Where folders cannot be opened, as on Windows, there is nothing to do. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder).catch(() => undefined);
  if (handle === undefined) return;
  await handle.sync().finally(() => handle.close());
}

async function removeStaleParts(path: string): Promise<void> {
  const folder = dirname(path);
  for (const name of await readdir(folder)) {
    if (!name.startsWith(basename(path)) || !name.endsWith(".part")) continue;
    const part = join(folder, name);
    const written = await stat(part).catch(() => undefined);
    if (written !== undefined && Date.now() - written.mtimeMs > staleMs)
      await rm(part, { force: true });
  }
}

/** Like `writeVerified`, from a file on this machine. */
export function copyVerified(
  from: string,
  pinned: PinnedFile,
  options: { readonly path: string; readonly signal: AbortSignal },
): Promise<void> {
  return writeVerified(createReadStream(from), pinned, options);
}
