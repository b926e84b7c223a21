import type { IncomingHttpHeaders } from "node:http";
import type { AppError } from "../../errors.ts";
import { corrupt, refusalError } from "./errors.ts";

/** What is wrong with the head of a successful reply that must be of this media type; undefined when nothing is. */
export function checkHead(headers: IncomingHttpHeaders, mediaType: string): AppError | undefined {
  const type = headers["content-type"]?.split(";", 1)[0]?.trim().toLowerCase();
  if (type !== mediaType) return corrupt(UNEXPECTED, "a content type that was not asked for");
  const encoding = headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity")
    return corrupt(UNEXPECTED, "a content encoding that was not asked for");
  return undefined;
}

/** Collects what an unsuccessful reply says, for the operator: as much of it as comes, up to a bound. */
export class Refusal {
  readonly #status: number;
  readonly #chunks: Buffer[] = [];
  #bytesLeft = REFUSAL_BYTES_MAX;

  constructor(status: number) {
    this.#status = status;
  }

  /** Copies what there is room for. Returns whether there is room for more. */
  add(chunk: Buffer): boolean {
    this.#chunks.push(Buffer.from(chunk.subarray(0, this.#bytesLeft)));
    this.#bytesLeft -= Math.min(chunk.length, this.#bytesLeft);
    return this.#bytesLeft > 0;
  }

  toError(): AppError {
    return refusalError(this.#status, Buffer.concat(this.#chunks).toString("utf8"));
  }
}

/** How long an unsuccessful reply may take to come to its end: what it means is known from its status. */
export const REFUSAL_MS_MAX = 2_000;

const REFUSAL_BYTES_MAX = 64 * 1024;

const UNEXPECTED = "the engine answered something unexpected";
