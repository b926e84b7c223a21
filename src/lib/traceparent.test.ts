import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatTraceparent, parseTraceparent } from "./traceparent.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const spanId = "00f067aa0ba902b7";

const hex = (digits: number, alphabet = "0123456789abcdef") =>
  fc.string({
    unit: fc.constantFrom(...alphabet),
    minLength: digits,
    maxLength: digits,
  });
const notZero = (digits: number) => hex(digits).filter((text) => !/^0+$/.test(text));

describe("parseTraceparent", () => {
  it.each([
    ["00", true],
    ["01", false],
    ["cc", false],
    ["fe", false],
  ])("reads version %s, with more behind it only where that may be", (version, isExact) => {
    const header = `${version}-${traceId}-${spanId}-01`;
    const parsed = { traceId, spanId, isSampled: true };
    expect(parseTraceparent(header)).toEqual(parsed);
    expect(parseTraceparent(`${header}-later`)).toEqual(isExact ? undefined : parsed);
    expect(parseTraceparent(`${header}.later`)).toBeUndefined();
  });

  it.each(["00", "01", "02", "03", "fe", "ff"])(
    "takes the flags %s by their lowest bit",
    (flags) => {
      const isSampled = ["01", "03", "ff"].includes(flags);
      expect(parseTraceparent(`00-${traceId}-${spanId}-${flags}`)?.isSampled).toBe(isSampled);
    },
  );

  it.each([
    ["version ff", `ff-${traceId}-${spanId}-01`],
    ["no version", `${traceId}-${spanId}-01`],
    ["a trace of zeros", `00-${"0".repeat(32)}-${spanId}-01`],
    ["a span of zeros", `00-${traceId}-${"0".repeat(16)}-01`],
    ["capital letters", `00-${traceId.toUpperCase()}-${spanId}-01`],
    ["capital flags", `00-${traceId}-${spanId}-0A`],
    ["a short trace", `00-${traceId.slice(1)}-${spanId}-01`],
    ["a long span", `00-${traceId}-${spanId}0-01`],
    ["one digit of flags", `00-${traceId}-${spanId}-1`],
    ["no flags", `00-${traceId}-${spanId}`],
    ["white space", ` 00-${traceId}-${spanId}-01`],
    ["two of them", `00-${traceId}-${spanId}-01, 00-${traceId}-${spanId}-01`],
    ["a line end", `00-${traceId}-${spanId}-01\n`],
    ["nothing", ""],
  ])("refuses %s", (_, header) => {
    expect(parseTraceparent(header)).toBeUndefined();
  });

  it("never throws, and what it takes of any text is what the specification allows", () => {
    const nearly = fc
      .tuple(
        fc.oneof(hex(2), fc.string({ maxLength: 3 })),
        fc.oneof(hex(32), hex(32, "0123456789abcdefABCDEFg"), hex(32, "0")),
        fc.oneof(hex(16), hex(16, "0123456789abcdefABCDEFg"), hex(16, "0"), hex(15)),
        fc.oneof(hex(2), fc.string({ maxLength: 3 })),
        fc.oneof(fc.constant(""), fc.string({ maxLength: 5 })),
      )
      .map(([version, trace, span, flags, rest]) => `${version}-${trace}-${span}-${flags}${rest}`);
    fc.assert(
      fc.property(fc.oneof(fc.string(), nearly), (header) => {
        const parsed = parseTraceparent(header);
        if (parsed === undefined) return;
        expect(header).toMatch(/^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}($|-)/);
        expect(header.startsWith("ff")).toBe(false);
        if (header.startsWith("00")) expect(header).toHaveLength(55);
        expect(parsed.traceId).not.toMatch(/^0+$/);
        expect(parsed.spanId).not.toMatch(/^0+$/);
      }),
      { numRuns: 2000 },
    );
  });

  it("reads what formatTraceparent writes", () => {
    const any = fc.record({
      traceId: notZero(32),
      spanId: notZero(16),
      isSampled: fc.boolean(),
    });
    fc.assert(
      fc.property(any, (parent) => {
        expect(parseTraceparent(formatTraceparent(parent))).toEqual(parent);
      }),
    );
  });
});
