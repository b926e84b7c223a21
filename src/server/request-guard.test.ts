import { describe, expect, it } from "vitest";
import { checkRequestHead, presentedKey } from "./request-guard.ts";

const bodyBytesMax = 1000;

function statusOf(head: Partial<Parameters<typeof checkRequestHead>[0]>): number | undefined {
  const usual = {
    url: "/v1/chat",
    authority: "localhost:8080",
    headers: {},
    headersTooLarge: false,
  };
  return checkRequestHead({ ...usual, ...head }, bodyBytesMax)?.status;
}

describe("the head of a request", () => {
  it.each(["localhost", "api.example.fr:8080", "[::1]:8080", "10.0.0.1"])(
    "may name %s",
    (authority) => {
      expect(statusOf({ authority })).toBeUndefined();
    },
  );

  it.each([undefined, "", "a b", "foo|bar", "x:99999", "["])("may not name %j", (authority) => {
    expect(statusOf({ authority })).toBe(400);
  });

  it.each(["", "*", "v1/chat", "//evil/x", "http://evil/"])("may not ask for %j", (url) => {
    expect(statusOf({ url })).toBe(400);
  });

  it.each(["content-encoding", "grpc-encoding", "connect-content-encoding"])(
    "may have gzip as %s, and nothing else",
    (field) => {
      expect(statusOf({ headers: { [field]: "gzip" } })).toBeUndefined();
      expect(statusOf({ headers: { [field]: "identity" } })).toBeUndefined();
      for (const encoding of ["br", "deflate", "zstd", "gzip, br"]) {
        expect(statusOf({ headers: { [field]: encoding } }), encoding).toBe(415);
      }
    },
  );

  it("may announce a message of the largest size in its envelope, and no byte more", () => {
    expect(statusOf({ headers: { "content-length": "1005" } })).toBeUndefined();
    expect(statusOf({ headers: { "content-length": "1006" } })).toBe(413);
  });

  it("may not exceed the bound of its fields", () => {
    expect(statusOf({ headersTooLarge: true })).toBe(431);
  });
});

describe("the key of a request", () => {
  it.each([
    [{ "x-api-key": "abc" }, "abc"],
    [{ authorization: "Bearer abc" }, "abc"],
    [{ authorization: "bearer   abc" }, "abc"],
    [{ "x-api-key": "abc", authorization: "Bearer def" }, "abc"],
    [{ authorization: "Basic abc" }, undefined],
    [{ authorization: "Bearer abc def" }, undefined],
    [{}, undefined],
  ])("in %j is %s", (headers, expected) => {
    expect(presentedKey(headers)).toBe(expected);
  });
});
