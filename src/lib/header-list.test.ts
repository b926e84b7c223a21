import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseHeaderList } from "./header-list.ts";

describe("parseHeaderList", () => {
  it("reads names and percent-encoded values, and leaves out empty pairs", () => {
    expect(parseHeaderList("Authorization=Bearer%20a%2Cb=, x-team = blue ,")).toEqual({
      authorization: "Bearer a,b=",
      "x-team": "blue",
    });
    expect(parseHeaderList("")).toEqual({});
  });

  it.each(["name", "=value", "a b=c", "a=%0d%0ab: c", "a=%zz", "a=", "a=é"])(
    "refuses %j, which is no header",
    (text) => expect(parseHeaderList(text)).toBeUndefined(),
  );

  it("gives of any text nothing that HTTP does not take, and never throws", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom("a", "b", "=", ",", "%0a", "%20", "%", "é")),
        (parts) => {
          expect(() => new Headers(parseHeaderList(parts.join("")))).not.toThrow();
        },
      ),
    );
  });
});
