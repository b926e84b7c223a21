import type { Fields } from "./http-fields.ts";

/** Why a request is not HTTP that this service answers: an HTTP status, and what to tell its sender. */
export interface HttpRefusal {
  readonly status: 400 | 413 | 415 | 431;
  readonly message: string;
}

/** What is known of a request before its body: the same for HTTP/1.1 and HTTP/2. */
export interface RequestHead {
  readonly url: string;
  /** `:authority`, or Host where there is none. */
  readonly authority: string | undefined;
  readonly headers: Fields;
  /** Whether its fields exceed `headerBytesMax`. */
  readonly headersTooLarge: boolean;
}

/** Characters of all header fields. Over HTTP/1.1, of the whole head: there its connection refuses more. */
export const headerBytesMax = 16_384;

/**
 * Refuses what would trip the layers behind: an authority that no URL can hold (it kills a plain connect-node server), a
 * path that is not absolute, a message in an encoding other than gzip (a Brotli decoder open to everybody was remote code
 * execution, CVE-2026-111497), and a body announced larger than any message may be.
 */
export function checkRequestHead(head: RequestHead, bodyBytesMax: number): HttpRefusal | undefined {
  const { url, authority, headers, headersTooLarge } = head;
  if (headersTooLarge) {
    return { status: 431, message: `the headers must not exceed ${headerBytesMax} bytes` };
  }
  if (authority === undefined || !isAuthority(authority)) {
    return { status: 400, message: "the Host header must name this server" };
  }
  if (!url.startsWith("/") || url.startsWith("//")) {
    return { status: 400, message: "the path must begin with one slash" };
  }
  const encodings = [
    headers["content-encoding"],
    headers["grpc-encoding"],
    headers["connect-content-encoding"],
  ];
  if (
    !encodings.every(
      (encoding) => encoding === undefined || encoding === "identity" || encoding === "gzip",
    )
  ) {
    return { status: 415, message: "the only supported compression is gzip" };
  }
  // An envelope's five bytes come on top of the message.
  if (Number(headers["content-length"] ?? 0) > bodyBytesMax + 5) {
    return { status: 413, message: `the body must not exceed ${bodyBytesMax} bytes` };
  }
  return undefined;
}

/** The last one that was found good: nearly all requests name the same. */
let lastAuthority: string | undefined;

function isAuthority(text: string): boolean {
  if (text === lastAuthority) return true;
  if (text === "" || !URL.canParse(`http://${text}/`)) return false;
  lastAuthority = text;
  return true;
}

/**
 * The API key of a request: X-API-Key, else the token of `Authorization: Bearer`. What is malformed comes back as it is
 * and is refused like an unknown key.
 */
export function presentedKey(headers: Fields): string | undefined {
  const key = headers["x-api-key"];
  return key ?? /^bearer +(\S+)$/i.exec(headers.authorization ?? "")?.[1];
}
