import { BlockList, isIP } from "node:net";

/**
 * Finds a caller's address: the socket's own, or, behind a trusted proxy, the last address of X-Forwarded-For that is not
 * such a proxy itself. Everything further left was written by the caller and proves nothing.
 *
 * `trustedProxies` are addresses or networks in CIDR form; without any, the header is ignored.
 */
export function createClientAddress(
  trustedProxies: readonly string[],
): (socketAddress: string, forwardedFor: string | undefined) => string {
  const trusted = new BlockList();
  for (const entry of trustedProxies) {
    const [address = "", prefix] = entry.split("/");
    const family = isIP(address) === 6 ? "ipv6" : "ipv4";
    if (prefix === undefined) trusted.addAddress(address, family);
    else trusted.addSubnet(address, Number(prefix), family);
  }
  const isTrusted = (address: string) =>
    isIP(address) !== 0 && trusted.check(address, isIP(address) === 6 ? "ipv6" : "ipv4");

  return (socketAddress, forwardedFor) => {
    if (forwardedFor === undefined || !isTrusted(socketAddress)) return socketAddress;
    // What is no address is nobody's word: the search ends there, since all that is left of it could be made up.
    const hops = forwardedFor.split(",").map(withoutPort);
    const nearest = hops.findLast((hop) => !isTrusted(hop));
    return nearest !== undefined && isIP(nearest) !== 0 ? nearest : socketAddress;
  };
}

/** Some proxies write `192.0.2.1:5678` and `[2001:db8::1]:5678`. */
function withoutPort(hop: string): string {
  const text = hop.trim();
  return /^\[(.+)\](?::\d+)?$/.exec(text)?.[1] ?? /^([\d.]+):\d+$/.exec(text)?.[1] ?? text;
}
