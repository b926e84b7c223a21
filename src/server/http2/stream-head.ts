import { addField, isLength, isToken, isVisible, noFields } from "../http-fields.ts";
import type { StreamHead } from "../http-stream.ts";
import type { DecodedFields } from "./header-decoder.ts";

/**
 * Reads the fields of a request (RFC 9113, section 8.3). undefined for those that are malformed: pseudo-headers that are missing,
 * unknown, twice or too late, fields of connections, and whatever could mean something else to the next one who reads it.
 */
export function toStreamHead(decoded: DecodedFields): StreamHead | undefined {
  const { fields, tooLarge, malformed } = decoded;
  if (malformed) return undefined;
  const headers = noFields();
  const pseudo: Pseudo = {
    ":method": undefined,
    ":scheme": undefined,
    ":path": undefined,
    ":authority": undefined,
  };
  let inPseudo = true;
  for (let at = 0; at < fields.length; at += 2) {
    const name = fields[at] ?? "";
    const value = fields[at + 1] ?? "";
    if (name.charCodeAt(0) === colon) {
      if (!inPseudo || !setPseudo(pseudo, name, value)) return undefined;
      continue;
    }
    inPseudo = false;
    if (!isForRequests(name, value) || !addField(headers, name, value)) return undefined;
  }
  const { ":method": method, ":scheme": scheme, ":path": path, ":authority": authority } = pseudo;
  if (method === undefined || !isToken.test(method)) return undefined;
  if (method === "CONNECT") {
    if (scheme !== undefined || path !== undefined || authority === undefined) return undefined;
  } else if (scheme === undefined || path === undefined || path === "") {
    return undefined;
  }
  if (authority === undefined && headers.host === undefined && !tooLarge) return undefined;
  if (authority !== undefined && !isVisible.test(authority)) return undefined;
  if (path !== undefined && !isVisible.test(path)) return undefined;
  const length = headers["content-length"];
  if (length !== undefined && !isLength.test(length)) {
    return undefined;
  }
  return {
    httpVersion: "2.0",
    method,
    path: path ?? "",
    authority: authority || headers.host,
    headers,
    contentLength: length === undefined ? undefined : Number(length),
    tooLarge,
  };
}

type Pseudo = Record<":method" | ":scheme" | ":path" | ":authority", string | undefined>;

/** False for one that is unknown, or there already. */
function setPseudo(pseudo: Pseudo, name: string, value: string): boolean {
  if (!isPseudo(pseudo, name) || pseudo[name] !== undefined) return false;
  pseudo[name] = value;
  return true;
}

function isPseudo(pseudo: Pseudo, name: string): name is keyof Pseudo {
  return Object.hasOwn(pseudo, name);
}

/** Section 8.2.2: nothing that speaks of a connection of HTTP/1.1. */
function isForRequests(name: string, value: string): boolean {
  switch (name) {
    case "connection":
    case "keep-alive":
    case "proxy-connection":
    case "transfer-encoding":
    case "upgrade":
      return false;
    case "te":
      return value.toLowerCase() === "trailers";
    default:
      return true;
  }
}

const colon = 0x3a;
