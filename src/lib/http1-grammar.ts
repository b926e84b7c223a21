/** What both sides of HTTP/1.1 (RFC 9112) read alike: the gateway as vLLM's client, and as its callers' server. */

/** What the line before a chunk says, its extensions left out: bytes, less than 4 GiB. undefined for a line that says none. */
export function parseChunkSize(line: string): number | undefined {
  const [, digits] = /^([0-9a-fA-F]{1,8})[ \t]*(?:;.*)?$/.exec(line) ?? [];
  return digits === undefined ? undefined : Number.parseInt(digits, 16);
}

/** Whether a Connection field says that nothing more comes on the connection. */
export function saysClose(connection: string | undefined): boolean {
  return /(?:^|,)[ \t]*close[ \t]*(?:,|$)/i.test(connection ?? "");
}

/**
 * A field's value from `from` on, without the spaces and tabs around it, and no more: those of Unicode are part of it. Not by an
 * expression: what looks for spaces at an end takes quadratic time for many that are not there.
 */
export function withoutPadding(text: string, from = 0): string {
  let start = from;
  let end = text.length;
  while (start < end && isPadding(text.charCodeAt(start))) start += 1;
  while (end > start && isPadding(text.charCodeAt(end - 1))) end -= 1;
  return text.slice(start, end);
}

function isPadding(code: number): boolean {
  return code === 0x20 || code === 0x09;
}
