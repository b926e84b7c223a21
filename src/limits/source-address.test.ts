import { SocketAddress } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { sourceOf } from "./source-address.ts";

describe("sourceOf", () => {
  it.each([
    ["192.0.2.7", "192.0.2.7"],
    ["::ffff:192.0.2.7", "192.0.2.7"],
    ["::FFFF:192.0.2.7", "192.0.2.7"],
    ["::ffff:c000:207", "192.0.2.7"],
    ["0:0:0:0:0:ffff:192.0.2.7", "192.0.2.7"],
    ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2"],
    ["2001:DB8:1:2::", "2001:db8:1:2"],
    ["2001:0db8:0001:0002:ffff::1", "2001:db8:1:2"],
    ["2001:db8::1", "2001:db8:0:0"],
    ["::1", "0:0:0:0"],
    ["::", "0:0:0:0"],
    ["::192.0.2.7", "0:0:0:0"],
    ["fe80::1%eth0", "fe80:0:0:0"],
    ["::fffe:192.0.2.7", "0:0:0:0"],
  ])("groups %s as %s", (address, source) => {
    expect(sourceOf(address)).toBe(source);
  });

  it.each(["", "unknown", "192.0.2", "192.0.2.7:80", "[::1]", "2001:db8::1::2", "a".repeat(9999)])(
    "puts what is not an address into one group (%#)",
    (text) => {
      expect(sourceOf(text)).toBe("unknown");
    },
  );

  const group = fc.integer({ min: 0, max: 0xffff });
  const address = fc.array(group, { minLength: 8, maxLength: 8 });

  it("gives every spelling of an IPv6 address the same source", () => {
    fc.assert(
      fc.property(address, (groups) => {
        const plain = groups.map((part) => part.toString(16)).join(":");
        const padded = groups.map((part) => part.toString(16).padStart(4, "0")).join(":");
        const canonical = new SocketAddress({ address: plain, family: "ipv6" }).address;
        expect(sourceOf(padded.toUpperCase())).toBe(sourceOf(plain));
        expect(sourceOf(canonical)).toBe(sourceOf(plain));
      }),
    );
  });

  it("keeps two /64 networks apart and the addresses inside one together", () => {
    fc.assert(
      fc.property(address, address, (one, other) => {
        const text = (groups: number[]) => groups.map((part) => part.toString(16)).join(":");
        // A first group of 0 could make an IPv4-mapped address.
        const network = [0x2001, ...one.slice(1, 4)];
        const neighbour = text([...network, ...other.slice(4)]);
        expect(sourceOf(neighbour)).toBe(sourceOf(text([...network, ...one.slice(4)])));
        const elsewhere = [0x2002, ...network.slice(1), ...one.slice(4)];
        expect(sourceOf(text(elsewhere))).not.toBe(sourceOf(neighbour));
      }),
    );
  });
});
