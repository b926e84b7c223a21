import { describe, expect, it } from "vitest";
import { boundDeadline } from "./deadline.ts";

const limits = { defaultMs: 300_000, maxMs: 600_000 };

it("is found in whatever case the content type is written", () => {
  const headers = bounded({ "content-type": "Application/gRPC", "grpc-timeout": "99999999H" });
  expect(headers["grpc-timeout"]).toBe("600000m");
});

function bounded(headers: Record<string, string>): Record<string, string> {
  const [name, value] = boundDeadline(headers, limits).header;
  return { [name]: value };
}

describe("a call's deadline", () => {
  it.each([
    [undefined, "300000"],
    ["0", "0"],
    ["500", "500"],
    ["600000", "600000"],
    ["600001", "600000"],
    ["9999999999", "600000"],
    ["soon", "soon"],
    ["-1", "-1"],
    ["99999999999", "99999999999"],
  ])("in Connect's header: %s becomes %s", (given, expected) => {
    const headers = bounded(given === undefined ? {} : { "connect-timeout-ms": given });
    expect(headers["connect-timeout-ms"]).toBe(expected);
  });

  it.each([
    [undefined, "300000m"],
    ["1S", "1S"],
    ["10M", "10M"],
    ["11M", "600000m"],
    ["99999999H", "600000m"],
    ["99999999n", "99999999n"],
    ["600001m", "600000m"],
    ["1", "1"],
    ["999999999S", "999999999S"],
  ])("in gRPC's header: %s becomes %s", (given, expected) => {
    const type = { "content-type": "application/grpc+proto" };
    const headers = bounded(given === undefined ? type : { ...type, "grpc-timeout": given });
    expect(headers["grpc-timeout"]).toBe(expected);
    expect(headers["connect-timeout-ms"]).toBeUndefined();
  });
});
