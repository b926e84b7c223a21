import { Secret } from "../lib/secret.ts";

/**
 * As JSON, together with the values that JSON would lose: secrets, addresses, bytes. For the pipe to another process of ours,
 * and nowhere else: the secrets are readable in it.
 */
export function pack(value: object): string {
  return JSON.stringify(value, function (this: Record<string, unknown>, key, json) {
    // `json` is what the value's own toJSON makes of it.
    const own = this[key];
    if (own instanceof Secret) return { $secret: own.reveal() };
    if (own instanceof URL) return { $url: own.href };
    if (own instanceof Uint8Array) return { $bytes: Buffer.from(own).toString("base64") };
    return json;
  });
}

/** What `pack` was given; members that were undefined are absent. */
export function unpack<T>(text: string): T {
  return JSON.parse(text, (_key, value) => {
    if (typeof value !== "object" || value === null) return value;
    if ("$secret" in value) return new Secret(value.$secret);
    if ("$url" in value) return new URL(value.$url);
    if ("$bytes" in value) return Buffer.from(value.$bytes, "base64");
    return value;
  });
}
