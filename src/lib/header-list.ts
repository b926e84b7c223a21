/**
 * Reads `name=value,name=value`, values percent-encoded, as OpenTelemetry writes HTTP headers into a variable. Undefined when
 * a name or a value cannot be one of a header.
 */
export function parseHeaderList(text: string): Readonly<Record<string, string>> | undefined {
  const headers: Record<string, string> = {};
  for (const pair of text.split(",")) {
    if (pair.trim() === "") continue;
    const [name = "", ...rest] = pair.split("=");
    const value = decode(rest.join("=").trim());
    if (!isName.test(name.trim()) || value === undefined || !isValue.test(value)) return undefined;
    headers[name.trim().toLowerCase()] = value;
  }
  return headers;
}

/** A token of RFC 9110, section 5.6.2. */
const isName = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const isValue = /^[\x20-\x7e]+$/;

function decode(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}
