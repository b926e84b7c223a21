import { Agent, request } from "undici";
import type { HubFile } from "./model-sources.ts";
import { writeVerified } from "./verified-file.ts";

const publicHub = "https://huggingface.co";

/** The hub sends downloads on to a store of its own, in one or two steps. */
const redirectsMax = 5;

/** A machine without a way out must not wait long before the next source is tried. */
const timeouts = { connect: 5_000, headersTimeout: 15_000, bodyTimeout: 30_000 } as const;

/**
 * Downloads a pinned file of the hub, or of the mirror at `hubUrl`, to `path`. `onBytes` hears how many bytes are there,
 * at most a hundred times.
 *
 * Throws AppError `corrupt` when other bytes come than pinned, `signal.reason` once `signal` aborts, and an ordinary
 * error when the hub cannot be reached, refuses, or stops sending for half a minute.
 */
export async function downloadFromHub(
  source: HubFile,
  options: {
    readonly path: string;
    readonly hubUrl: string | undefined;
    readonly onBytes: (bytes: number) => void;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const { repo, revision, file } = source;
  const base = (options.hubUrl ?? publicHub).replace(/\/+$/, "");
  const agent = new Agent({ connect: { timeout: timeouts.connect } });
  try {
    const url = new URL(`${base}/${repo}/resolve/${revision}/${file}`);
    const body = await follow(url, agent, options.signal);
    await writeVerified(body, source, options);
  } finally {
    await agent.destroy();
  }
}

/** The body behind `url`. Redirects may lead to another host, but never from https to http. */
async function follow(url: URL, dispatcher: Agent, signal: AbortSignal) {
  let next = url;
  for (let redirects = 0; redirects <= redirectsMax; redirects += 1) {
    const { statusCode, headers, body } = await request(next, {
      dispatcher,
      signal,
      headersTimeout: timeouts.headersTimeout,
      bodyTimeout: timeouts.bodyTimeout,
      // The checksum is that of the file itself.
      headers: { "accept-encoding": "identity" },
    });
    if (statusCode === 200) return body;
    await body.dump();
    if (statusCode < 300 || statusCode > 399 || typeof headers.location !== "string") {
      throw new Error(`the hub answered ${statusCode}`);
    }
    next = new URL(headers.location, next);
    if (url.protocol === "https:" && next.protocol !== "https:") {
      throw new Error("the hub redirected to an address without TLS");
    }
  }
  throw new Error(`the hub redirected more than ${redirectsMax} times`);
}
