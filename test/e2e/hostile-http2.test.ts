import { describe, expect, it } from "vitest";
import { eventually } from "../support/eventually.ts";
import type { FakeVllm } from "../support/fake-vllm.ts";
import { startPlainServer } from "../support/plain-server.ts";
import {
  askHttp2,
  errorCodeOf,
  errorCodes,
  flags,
  frame,
  frameTypes,
  headerBlock,
  openHttp2,
  openRawHttp2,
  requestHeaders,
  resetFrame,
  settingsFrame,
} from "../support/raw-http2.ts";
import { erpKey, type TestApp } from "../support/start-app.ts";
import { chatBody, chatPath, heapBytes, streamPath, withUnharmedApp } from "../support/unharmed.ts";

let vllm: FakeVllm;
let app: TestApp;

/** Who shares a proxy with the others, and nothing else. */
const elsewhere = { "x-forwarded-for": "192.0.2.1" };

withUnharmedApp({ TRUSTED_PROXIES: "127.0.0.1" }, (freshVllm, freshApp) => {
  vllm = freshVllm;
  app = freshApp;
});

const port = () => app.address.port;
const callHeaders = { "content-type": "application/json", "x-api-key": erpKey };

/** HEADERS, and CONTINUATION where the block does not fit into one frame. */
function headersFrames(stream: number, block: Buffer): Buffer {
  const max = 16_384;
  const frames: Buffer[] = [];
  for (let at = 0; at === 0 || at < block.length; at += max) {
    const last = at + max >= block.length ? flags.endHeaders : 0;
    const first = at === 0;
    const type = first ? frameTypes.headers : frameTypes.continuation;
    const bits = first ? last | flags.endStream : last;
    frames.push(frame(type, { flags: bits, stream }, block.subarray(at, at + max)));
  }
  return Buffer.concat(frames);
}

describe("a request that HTTP/2 allows and no URL can hold", () => {
  it.each(["x:99999", "[", "a:b:c"])("is refused with 400: the authority %s", async (authority) => {
    using session = openHttp2(app.url);
    const fields = { ":path": chatPath, ":authority": authority, ...callHeaders };
    expect((await askHttp2(session, fields, chatBody)).status).toBe(400);
    const onlyHost = { ":path": chatPath, ":authority": "", host: authority, ...callHeaders };
    expect((await askHttp2(session, onlyHost)).status ?? 400).toBe(400);
    expect((await askHttp2(session, { ":method": "GET", ":path": "/health" })).status).toBe(200);
  });

  it("ends a plain connect-node server", async () => {
    await using plain = await startPlainServer();
    using session = openHttp2(`http://127.0.0.1:${plain.ports.http2}`);
    await askHttp2(session, { ":path": chatPath, ":authority": "x:99999" });
    expect(await plain.exited).toBe(1);
  });

  it.each(["//health", `//[${chatPath}`, "*", "health"])(
    "is refused with 400: the path %s",
    async (path) => {
      using session = openHttp2(app.url);
      const { status, resetCode } = await askHttp2(session, { ":path": path, ":method": "GET" });
      expect(status ?? (resetCode === 0 ? undefined : 400)).toBe(400);
    },
  );
});

describe("a malformed request", () => {
  const pseudo = { ":method": "POST", ":scheme": "http", ":path": chatPath };
  const blocks = {
    "no authority and no host": headerBlock({ ...pseudo, ...callHeaders }),
    "no path": headerBlock({ ":method": "POST", ":scheme": "http", ":authority": "localhost" }),
    "an empty path": requestHeaders("", callHeaders),
    "an authority with a space": requestHeaders(chatPath, { ":authority": "a b" }),
    "a path with a line break": requestHeaders(`${chatPath}\r\nx-api-key: ${erpKey}`),
    "a path with NUL": requestHeaders(`${chatPath}\0`, callHeaders),
    "a method with a line break": requestHeaders(chatPath, { ":method": "POST\r\n" }),
    "a pseudo-header of answers": requestHeaders(chatPath, { ":status": "200" }),
    "a pseudo-header after the others": headerBlock({ ...callHeaders, ...pseudo }),
    "an upper-case name": requestHeaders(chatPath, { "X-Api-Key": erpKey }),
    "Transfer-Encoding": requestHeaders(chatPath, { "transfer-encoding": "chunked" }),
    Connection: requestHeaders(chatPath, { connection: "close" }),
    "a Content-Length that is none": requestHeaders(chatPath, { "content-length": "abc" }),
    "a Content-Length that does not hold": requestHeaders(chatPath, { "content-length": "5" }),
    "a value with a line break": requestHeaders(chatPath, { "x-a": `1\r\nx-api-key: ${erpKey}` }),
    "two lengths": headerBlock({ ...pseudo, ":authority": "localhost", "content-length": "5, 5" }),
    "a te other than trailers": requestHeaders(chatPath, { ...callHeaders, te: "gzip" }),
  };

  it("is reset, runs nothing, and leaves the connection to the others", async () => {
    using connection = await openRawHttp2(port());
    let stream = 1;
    for (const [what, block] of Object.entries(blocks)) {
      connection.send(headersFrames(stream, block));
      const reset = await connection.frame(frameTypes.rstStream, stream);
      expect(errorCodeOf(reset), what).not.toBe(errorCodes.noError);
      stream += 2;
    }
    connection.send(headersFrames(stream, requestHeaders("/health", { ":method": "GET" })));
    await connection.frame(frameTypes.headers, stream);
    expect(vllm.requests).toHaveLength(0);
  });

  it.each([
    ["more bytes", { "x-large": "a".repeat(17_000) }],
    ["more fields", Object.fromEntries(Array.from({ length: 300 }, (_, at) => [`x-${at}`, "1"]))],
  ])("is refused with 431 when its head has %s than the settings allow", async (_of, fields) => {
    using connection = await openRawHttp2(port());
    connection.send(headersFrames(1, requestHeaders(chatPath, { ...callHeaders, ...fields })));
    await eventually("the refusal", () =>
      connection.frames.some(({ payload }) => payload.includes("must not exceed 16384 bytes")),
    );
    // The next one is decoded as it is, although the last one was not kept.
    using session = openHttp2(app.url);
    expect((await askHttp2(session, { ":method": "GET", ":path": "/health" })).status).toBe(200);
    await eventually("the settings", () => session.remoteSettings.maxHeaderListSize === 16_384);
  });
});

describe("a flood", () => {
  const streams = (count: number, each: (stream: number) => readonly Buffer[]) =>
    Buffer.concat(Array.from({ length: count }, (_, index) => each(index * 2 + 1)).flat());
  const times = (count: number, bytes: Buffer) => Buffer.alloc(count * bytes.length, bytes);
  const head = requestHeaders(chatPath, callHeaders);
  const openHead = (stream: number) =>
    frame(frameTypes.headers, { flags: flags.endHeaders, stream }, head);
  const body = (stream: number) =>
    frame(frameTypes.data, { flags: flags.endStream, stream }, Buffer.from(chatBody));
  const field = headerBlock({ "x-filler": "a".repeat(1000) });

  const floods = {
    "requests that are reset at once": streams(2000, (stream) => [
      openHead(stream),
      resetFrame(stream),
    ]),
    "whole calls that are reset at once": streams(2000, (stream) => [
      openHead(stream),
      body(stream),
      resetFrame(stream),
    ]),
    "CONTINUATION without an end": Buffer.concat([
      frame(frameTypes.headers, { stream: 1 }, head),
      times(2000, frame(frameTypes.continuation, { stream: 1 }, field)),
    ]),
    "empty CONTINUATION": Buffer.concat([
      frame(frameTypes.headers, { stream: 1 }, head),
      times(20_000, frame(frameTypes.continuation, { stream: 1 })),
    ]),
    SETTINGS: times(20_000, settingsFrame({})),
    "large SETTINGS": times(
      2000,
      settingsFrame(Object.fromEntries(Array.from({ length: 40 }, (_, id) => [id + 100, id]))),
    ),
    PING: times(20_000, frame(frameTypes.ping, {}, Buffer.alloc(8))),
    "empty DATA": Buffer.concat([
      openHead(1),
      times(50_000, frame(frameTypes.data, { stream: 1 })),
    ]),
    PRIORITY: times(20_000, frame(frameTypes.priority, { stream: 1 }, Buffer.of(0, 0, 0, 3, 1))),
  };

  it.each(Object.entries(floods))("of %s ends its connection", async (_of, bytes) => {
    using connection = await openRawHttp2(port());
    connection.send(bytes);
    await connection.closed;
    expect(vllm.requests).toHaveLength(0);
  });

  it.each(["SETTINGS", "PING"] as const)(
    "of %s ends its connection also when nobody reads the answers",
    async (of) => {
      using connection = await openRawHttp2(port());
      connection.stopReading();
      const bytes = floods[of];
      for (let sent = 0; sent < 200 && !connection.isClosed; sent += 1) {
        connection.send(bytes);
        await new Promise((resolve) => setImmediate(resolve));
      }
      await connection.closed;
    },
  );

  it.each([
    ["of calls with a key", callHeaders],
    ["of calls without a key", { ...elsewhere, "content-type": "application/json" }],
    [
      "of streams",
      { ...callHeaders, "content-type": "application/connect+json", ":path": streamPath },
    ],
    ["of health checks", { ":method": "GET", ":path": "/health" }],
  ])("of resets leaves no memory behind: %s", async (_of, fields) => {
    const head = requestHeaders(chatPath, fields);
    const bytes = streams(2000, (stream) => [
      frame(frameTypes.headers, { flags: flags.endHeaders, stream }, head),
      resetFrame(stream),
    ]);
    const flood = async (rounds: number) => {
      for (let round = 0; round < rounds; round += 1) {
        using connection = await openRawHttp2(port());
        connection.send(bytes);
        await connection.closed;
      }
      return heapBytes();
    };
    const warm = await flood(2);
    expect((await flood(5)) - warm).toBeLessThan(10 * 1024 * 1024);
  });

  it("of resets runs few of its calls", async () => {
    using connection = await openRawHttp2(port());
    connection.send(floods["requests that are reset at once"]);
    await connection.closed;
    const calls = app.logs.filter(({ msg }) => msg === "call");
    expect(calls.length).toBeLessThan(1000);
  });

  it("of streams is refused beyond a hundred at once", async () => {
    using connection = await openRawHttp2(port());
    connection.send(streams(150, (stream) => [openHead(stream)]));
    const refusals = () => connection.frames.filter(({ type }) => type === frameTypes.rstStream);
    await eventually("50 refusals", () => refusals().length >= 50);
    expect(refusals().map(errorCodeOf)).toEqual(Array(50).fill(errorCodes.refusedStream));
    using session = openHttp2(app.url);
    await eventually("the settings", () => session.remoteSettings.maxConcurrentStreams === 100);
  });

  it("of one-byte DATA frames costs little: 60 kB of them less than 2.5 s of CPU", async () => {
    const text = chatBody.padEnd(60_000);
    const bytes = Buffer.concat([
      openHead(1),
      ...Array.from(Buffer.from(text), (byte, index) => {
        const bits = index === text.length - 1 ? flags.endStream : 0;
        return frame(frameTypes.data, { flags: bits, stream: 1 }, Buffer.of(byte));
      }),
    ]);
    using connection = await openRawHttp2(port());
    const start = process.cpuUsage();
    connection.send(bytes);
    await connection.frame(frameTypes.headers, 1);
    const { user, system } = process.cpuUsage(start);
    expect((user + system) / 1000).toBeLessThan(2500);
    expect(await vllm.request(0)).toBeDefined();
  });
});
