import { once } from "node:events";
import { brotliCompressSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { eventually } from "../support/eventually.ts";
import type { FakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { codeName, envelope } from "../support/raw-http.ts";
import {
  askHttp2,
  errorCodeOf,
  errorCodes,
  flags,
  frame,
  frameTypes,
  type Http2Answer,
  headerBlock,
  openHttp2,
  openRawHttp2,
  requestHeaders,
  resetFrame,
  settingIds,
} from "../support/raw-http2.ts";
import { erpKey, type TestApp } from "../support/start-app.ts";
import {
  chatBody,
  chatPath,
  streamPath,
  watchMemory,
  withUnharmedApp,
} from "../support/unharmed.ts";

let vllm: FakeVllm;
let app: TestApp;

withUnharmedApp({}, (freshVllm, freshApp) => {
  vllm = freshVllm;
  app = freshApp;
});

const MiB = 1024 * 1024;
const port = () => app.address.port;
const key = { "x-api-key": erpKey };
const json = { "content-type": "application/json" };
const streamJson = { ":path": streamPath, "content-type": "application/connect+json", ...key };
/** How long the engine may go on for a caller who left. */
const stopMs = 250;
const words = Array.from({ length: 1000 }, () => "mot ");

describe("gRPC", () => {
  const grpc = { "content-type": "application/grpc+proto", te: "trailers" };
  const grpcJson = { "content-type": "application/grpc+json", te: "trailers" };
  const paths = [chatPath, streamPath];
  const codeOf = ({ headers, trailers }: Http2Answer) =>
    codeName(Number(trailers["grpc-status"] ?? headers["grpc-status"]));

  it.each(paths)("says invalid_argument to bytes that are no message: %s", async (path) => {
    using session = openHttp2(app.url);
    for (const bytes of [Buffer.of(0x0a), Buffer.of(0x0f, 1), Buffer.alloc(16, 0xff)]) {
      const got = await askHttp2(session, { ":path": path, ...grpc, ...key }, envelope(bytes));
      expect(codeOf(got)).toBe("invalid_argument");
    }
    for (const text of ["{", "[]", `{"mesages":[]}`]) {
      const got = await askHttp2(session, { ":path": path, ...grpcJson, ...key }, envelope(text));
      expect(codeOf(got)).toBe("invalid_argument");
    }
    expect(vllm.requests).toHaveLength(0);
  });

  it.each(paths)("looks at no body without a key: %s", async (path) => {
    using session = openHttp2(app.url);
    const got = await askHttp2(session, { ":path": path, ...grpc }, envelope(Buffer.of(0xff)));
    expect(codeOf(got)).toBe("unauthenticated");
  });

  it.each(paths)("reserves no memory for a length of 1 GiB: %s", async (path) => {
    using memory = watchMemory();
    using session = openHttp2(app.url);
    const body = envelope("", 1024 * MiB);
    const calls = Array.from({ length: 20 }, () =>
      askHttp2(session, { ":path": path, ...grpc, ...key }, body),
    );
    for (const got of await Promise.all(calls)) expect(codeOf(got)).toBe("resource_exhausted");
    expect(memory.peakBufferBytes).toBeLessThan(8 * MiB);
  });

  it("decodes no Brotli, with and without a key", async () => {
    using session = openHttp2(app.url);
    const body = envelope(brotliCompressSync(chatBody), undefined, 1);
    for (const caller of [{}, key]) {
      const headers = { ":path": chatPath, ...grpcJson, ...caller, "grpc-encoding": "br" };
      expect((await askHttp2(session, headers, body)).status).toBe(415);
    }
  });

  it.each(["99999999H", "99999999M", "2147484S"])("takes a deadline of %s", async (deadline) => {
    using session = openHttp2(app.url);
    const headers = { ":path": chatPath, ...grpcJson, ...key, "grpc-timeout": deadline };
    expect(codeOf(await askHttp2(session, headers, envelope(chatBody)))).toBe("ok");
  });
});

describe("an answer to a call whose body nobody reads", () => {
  it("comes whole, and the stream is closed after it without an error", async () => {
    using connection = await openRawHttp2(port());
    const head = requestHeaders(chatPath, json);
    connection.send(
      Buffer.concat([
        frame(frameTypes.headers, { flags: flags.endHeaders, stream: 1 }, head),
        frame(frameTypes.data, { stream: 1 }, Buffer.alloc(16_000)),
      ]),
    );
    const reset = await connection.frame(frameTypes.rstStream, 1);
    expect(errorCodeOf(reset)).toBe(errorCodes.noError);
    const types = connection.frames.filter(({ stream }) => stream === 1);
    expect(types.at(-2)?.flags).toBe(flags.endStream);
    expect(Buffer.concat(types.map(({ payload }) => payload)).includes("an API key")).toBe(true);
  });

  it.each([
    ["401", {}],
    ["415", { ...key, "content-encoding": "br" }],
    ["413", { ...key, "content-length": "70000000" }],
  ])("is %s, and leaves the connection to its other calls", async (status, fields) => {
    vllm.reply(answer({ text: words.slice(0, 50), paceMs: 2 }));
    using session = openHttp2(app.url);
    const running = askHttp2(session, streamJson, envelope(chatBody));
    await vllm.request(0);
    // More than the window of a connection: it must not be used up by what is thrown away.
    for (let count = 0; count < 10; count += 1) {
      const stream = session.request({ ":method": "POST", ":path": chatPath, ...json, ...fields });
      stream.on("error", () => undefined);
      stream.write(Buffer.alloc(60_000));
      const [head] = await once(stream, "response");
      expect(head[":status"]).toBe(Number(status));
      stream.close();
    }
    const large = { ":path": chatPath, ...json, ...key };
    expect((await askHttp2(session, large, chatBody.padEnd(500_000))).status).toBe(200);
    expect((await running).body.includes('"end"')).toBe(true);
  });
});

describe("the engine stops", () => {
  it("at the deadline of a caller whose window is 0", async () => {
    vllm.reply(answer({ text: words, paceMs: 2 }));
    using connection = await openRawHttp2(port(), { [settingIds.initialWindowSize]: 0 });
    const start = performance.now();
    const head = requestHeaders(streamPath, { ...streamJson, "connect-timeout-ms": "500" });
    connection.send(
      Buffer.concat([
        frame(frameTypes.headers, { flags: flags.endHeaders, stream: 1 }, head),
        frame(frameTypes.data, { flags: flags.endStream, stream: 1 }, envelope(chatBody)),
      ]),
    );
    expect(await (await vllm.request(0)).closed).toBe("aborted");
    expect(performance.now() - start).toBeGreaterThan(450);
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it("when a caller resets its stream in the middle of an answer", async () => {
    vllm.reply(answer({ text: words, paceMs: 5 }));
    using session = openHttp2(app.url);
    const stream = session.request({ ":method": "POST", ...streamJson });
    stream.on("error", () => undefined);
    stream.end(envelope(chatBody));
    await once(stream, "data");
    const chat = await vllm.request(0);
    const leftAt = performance.now();
    stream.close(errorCodes.cancel);
    expect(await chat.closed).toBe("aborted");
    expect((chat.closedAt ?? Number.POSITIVE_INFINITY) - leftAt).toBeLessThan(stopMs);
  });

  it("for every call of a connection that goes", async () => {
    const script = answer({ text: words, paceMs: 5 });
    vllm.reply(...Array.from({ length: 10 }, () => script));
    using session = openHttp2(app.url);
    const calls = Array.from({ length: 10 }, () =>
      askHttp2(session, streamJson, envelope(chatBody)),
    );
    const chats = await Promise.all(calls.map((_, index) => vllm.request(index)));
    const leftAt = performance.now();
    session.destroy();
    for (const chat of chats) {
      expect(await chat.closed).toBe("aborted");
      expect((chat.closedAt ?? Number.POSITIVE_INFINITY) - leftAt).toBeLessThan(stopMs);
    }
  });

  it("not for a caller who says goodbye with GOAWAY and waits for the rest", async () => {
    vllm.reply(answer({ text: words.slice(0, 50), paceMs: 2 }));
    using session = openHttp2(app.url);
    const running = askHttp2(session, streamJson, envelope(chatBody));
    const chat = await vllm.request(0);
    session.close();
    expect((await running).body.includes('"end"')).toBe(true);
    expect(await chat.closed).toBe("finished");
  });
});

describe("a method that reads many messages", () => {
  const path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
  const call = { ":path": path, "content-type": "application/connect+json", ...key };

  it.each([
    ["a message that is none", envelope("{"), "invalid_argument"],
    ["a length beyond every message", envelope("", 1024 * MiB), "resource_exhausted"],
  ])("says what is wrong with %s, and closes the stream", async (_name, bytes, code) => {
    using session = openHttp2(app.url);
    const stream = session.request({ ":method": "POST", ...call });
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    // Not ended: what comes after the mistake is nobody's business any more.
    stream.write(bytes);
    const [headers] = await once(stream, "response");
    await once(stream, "close");
    expect(headers[":status"]).toBe(200);
    expect(Buffer.concat(chunks).toString()).toContain(`"code":"${code}"`);
  });
});

it("ends a call whose caller takes it back, without an error, while it is refused", async () => {
  const ended = () => app.logs.filter(({ msg }) => msg === "call").length;
  using connection = await openRawHttp2(port());
  for (let stream = 1; stream < 9; stream += 2) {
    const before = ended();
    const head = requestHeaders(chatPath, { ...json, ...key, "content-length": String(9 * MiB) });
    const request = frame(frameTypes.headers, { stream, flags: flags.endHeaders }, head);
    connection.send(Buffer.concat([request, resetFrame(stream, errorCodes.noError)]));
    await eventually("the call ends", () => ended() === before + 1);
  }
  expect(connection.isClosed).toBe(false);
});

describe("HTTP/2 as HTTP/1.1", () => {
  it("answers HEAD without a body, and with the length that GET has", async () => {
    using session = openHttp2(app.url);
    const get = await askHttp2(session, { ":method": "GET", ":path": "/health" });
    const head = await askHttp2(session, { ":method": "HEAD", ":path": "/health" });
    expect([head.status, head.body.length]).toEqual([200, 0]);
    expect(head.headers["content-length"]).toBe(String(get.body.length));
  });

  it("gives leave to who waits for it, and no other expectation", async () => {
    using session = openHttp2(app.url);
    const call = { ":path": chatPath, ...json, ...key };
    const stream = session.request({ ":method": "POST", ...call, expect: "100-continue" });
    await once(stream, "continue");
    stream.end(chatBody);
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(200);
    stream.close();
    const other = await askHttp2(session, { ...call, expect: "a-miracle" }, chatBody);
    expect(other.status).toBe(417);
  });

  it("is no proxy", async () => {
    using session = openHttp2(app.url);
    const stream = session.request({ ":method": "CONNECT", ":authority": "example.com:443" });
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(405);
    stream.close();
  });

  it.each([
    ["CONNECT", headerBlock({ ":method": "CONNECT", ":authority": "x:1" })],
    ["an expectation that nobody meets", requestHeaders(chatPath, { expect: "a-miracle" })],
    ["an expectation", requestHeaders(chatPath, { expect: "100-continue" })],
  ])(
    "lives on when %s is reset in the same packet, or the connection broken",
    async (_name, head) => {
      const broken = frame(frameTypes.data, {}, Buffer.of(0));
      for (const end of [errorCodes.noError, errorCodes.protocolError, undefined]) {
        using connection = await openRawHttp2(port());
        const request = frame(frameTypes.headers, { stream: 1, flags: flags.endHeaders }, head);
        const last = end === undefined ? broken : resetFrame(1, end);
        connection.send(Buffer.concat([request, last]));
        if (end === undefined) await connection.closed;
        using session = openHttp2(app.url);
        const got = await askHttp2(session, { ":method": "GET", ":path": "/health" });
        expect(got.status).toBe(200);
      }
    },
  );
});
