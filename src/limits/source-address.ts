import { isIP } from "node:net";

/**
 * The key of what one sender controls as a whole: an IPv4 address, or the first 64 bits of an IPv6 address (the other 64
 * are the host's own to choose, RFC 4291 section 2.5.4). IPv4 written as IPv6 (`::ffff:192.0.2.1`) is that IPv4 address.
 * Whatever is not an address has one key in common, so that made-up text makes no keys.
 */
export function sourceOf(address: string): string {
  const version = isIP(address);
  // A copy: V8 keeps the whole header alive for a substring of it, and the key is kept long.
  if (version === 4) return address.split(".").join(".");
  if (version === 0) return "unknown";

  const groups = ipv6Groups(address);
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) {
    return groups
      .slice(6)
      .flatMap((group) => [group >> 8, group & 0xff])
      .join(".");
  }
  return groups
    .slice(0, 4)
    .map((group) => group.toString(16))
    .join(":");
}

/** The eight 16-bit groups of an address that `isIP` calls version 6. A zone (`%eth0`) is left out. */
function ipv6Groups(address: string): number[] {
  const [withoutZone = ""] = address.split("%");
  const [head = "", tail] = withoutZone.split("::");
  const left = parseGroups(head);
  const right = tail === undefined ? [] : parseGroups(tail);
  const zeros = new Array<number>(8 - left.length - right.length).fill(0);
  return [...left, ...zeros, ...right];
}

function parseGroups(text: string): number[] {
  if (text === "") return [];
  return text.split(":").flatMap((group) => {
    if (!group.includes(".")) return [Number.parseInt(group, 16)];
    const [a = 0, b = 0, c = 0, d = 0] = group.split(".").map(Number);
    return [(a << 8) | b, (c << 8) | d];
  });
}
