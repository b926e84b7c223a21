/** Where an engine listens. */
export interface EngineAddress {
  /** http or https: names the host to the engine, and its certificate. */
  readonly url: URL;
  /** The IP address to connect to, where the name stands for several engines. Absent: whatever the name stands for then. */
  readonly address: string | undefined;
}

/**
 * The id of an engine says where it listens, so that whoever has it can connect: its URL, and where the name has several
 * addresses, this one's as the fragment. No secret is in it.
 */
export function toEngineId(url: URL, address?: string): string {
  return address === undefined ? url.href : `${url.href}#${address}`;
}

export function parseEngineId(id: string): EngineAddress {
  const [href = "", address] = id.split("#");
  return { url: new URL(href), address };
}

/** What comes before `/v1` and `/health` in the engine's paths. */
export function basePathOf(url: URL): string {
  return url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "");
}
