import { describe, expect, it } from "vitest";
import { createClientAddress } from "./client-address.ts";

describe("a caller's address", () => {
  it("is the connection's, whatever a caller claims, as long as no proxy is trusted", () => {
    const addressOf = createClientAddress([]);
    expect(addressOf("203.0.113.9", "198.51.100.1")).toBe("203.0.113.9");
    expect(addressOf("127.0.0.1", "198.51.100.1")).toBe("127.0.0.1");
  });

  const addressOf = createClientAddress(["10.0.0.0/8", "2001:db8::1"]);
  it.each([
    ["10.1.2.3", "198.51.100.1", "198.51.100.1"],
    ["10.1.2.3", "6.6.6.6, 198.51.100.1", "198.51.100.1"],
    ["10.1.2.3", "198.51.100.1, 10.9.9.9", "198.51.100.1"],
    ["2001:db8::1", "2001:db8:5::7", "2001:db8:5::7"],
    ["10.1.2.3", "nonsense", "10.1.2.3"],
    ["10.1.2.3", "6.6.6.6, unknown", "10.1.2.3"],
    ["10.1.2.3", "6.6.6.6, 198.51.100.1:5678", "198.51.100.1"],
    ["10.1.2.3", "6.6.6.6, [2001:db8:5::7]:443", "2001:db8:5::7"],
    ["10.1.2.3", "6.6.6.6, [2001:db8:5::7]", "2001:db8:5::7"],
    ["10.1.2.3", undefined, "10.1.2.3"],
    ["203.0.113.9", "198.51.100.1", "203.0.113.9"],
  ])("from %s, forwarded for %s, is %s", (socket, forwarded, expected) => {
    expect(addressOf(socket, forwarded)).toBe(expected);
  });

  it("is found for an IPv4 proxy on a socket that speaks IPv6", () => {
    expect(addressOf("::ffff:10.1.2.3", "198.51.100.1")).toBe("198.51.100.1");
  });
});
