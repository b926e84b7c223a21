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
    const hops = forwardedFor.split(",").map((hop) => hop.trim());
    const caller = hops.findLast((hop) => isIP(hop) !== 0 && !isTrusted(hop));
    return caller ?? socketAddress;
  };
}
