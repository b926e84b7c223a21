import { inspect } from "node:util";
import { describe, expect, it } from "vitest";
import { AppError } from "../errors.ts";
import { Secret } from "../lib/secret.ts";
import { parseRedisUrl, reconnectDelayMs } from "./redis-options.ts";

const parse = (url: string) => parseRedisUrl(new Secret(url));

describe("parseRedisUrl", () => {
  it.each([
    ["redis://cache", { host: "cache", port: 6379, db: 0 }],
    ["redis://cache:6380/3", { host: "cache", port: 6380, db: 3 }],
    ["redis://[::1]:6380/", { host: "::1", port: 6380, db: 0 }],
    ["redis://:s3cret@cache", { host: "cache", port: 6379, db: 0, password: "s3cret" }],
    [
      "redis://gateway:a%2Fb%40c@cache",
      { host: "cache", port: 6379, db: 0, username: "gateway", password: "a/b@c" },
    ],
    ["redis://:50%@cache", { host: "cache", port: 6379, db: 0, password: "50%" }],
    ["rediss://cache", { host: "cache", port: 6379, db: 0, tls: { servername: "cache" } }],
    ["rediss://10.0.0.9", { host: "10.0.0.9", port: 6379, db: 0, tls: {} }],
  ])("reads %s", (url, options) => {
    expect(parse(url)).toEqual(options);
  });

  it.each([
    "",
    "cache:6379",
    "http://:s3cret@cache",
    "redis://",
    "redis:///0",
    "redis://:s3cret@cache/one",
    "redis://:s3cret@cache:70000",
    "redis://:s3cret@cache?enableOfflineQueue=true",
    "redis://:s3cret@cache#0",
    "s3cret@cache:6379",
  ])("refuses %s without quoting it", (url) => {
    const refusal = catchError(() => parse(url));
    expect(refusal).toBeInstanceOf(AppError);
    expect(refusal).toMatchObject({ kind: "invalid" });
    expect(inspect(refusal)).not.toContain("s3cret");
  });
});

describe("reconnectDelayMs", () => {
  it("grows to between one and two seconds and stays there", () => {
    const delays = Array.from({ length: 200 }, (_, index) => reconnectDelayMs(index + 1));
    expect(delays[0]).toBeLessThanOrEqual(50);
    expect(Math.min(...delays.slice(6))).toBeGreaterThanOrEqual(1000);
    expect(Math.max(...delays)).toBeLessThanOrEqual(2000);
  });

  it("differs from process to process", () => {
    expect(new Set(Array.from({ length: 50 }, () => reconnectDelayMs(10))).size).toBeGreaterThan(
      40,
    );
  });
});

function catchError(run: () => unknown): unknown {
  try {
    return run();
  } catch (error) {
    return error;
  }
}
