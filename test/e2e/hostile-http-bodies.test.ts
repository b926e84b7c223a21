import { brotliCompressSync, gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import type { FakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { startPlainServer } from "../support/plain-server.ts";
import { ask, codeOf, envelope, head, openRaw, post } from "../support/raw-http.ts";
import { erpKey, type TestApp } from "../support/start-app.ts";
import {
  canary,
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
const type = (contentType: string) => ({ "content-type": contentType });

/** Where a message goes, and how it is written there, over HTTP/1.1. */
const wires = {
  "Connect unary": { path: chatPath, format: "application/", enveloped: false },
  "Connect stream": { path: streamPath, format: "application/connect+", enveloped: true },
  "gRPC-Web unary": { path: chatPath, format: "application/grpc-web+", enveloped: true },
  "gRPC-Web stream": { path: streamPath, format: "application/grpc-web+", enveloped: true },
} as const;
const wireNames = Object.keys(wires) as (keyof typeof wires)[];

async function codeFor(
  wire: keyof typeof wires,
  codec: "json" | "proto",
  message: string | Uint8Array,
  headers: Readonly<Record<string, string>> = key,
): Promise<string | undefined> {
  const { path, format, enveloped } = wires[wire];
  const body = enveloped ? envelope(message) : message;
  const got = await ask(port(), post(path, { ...type(format + codec), ...headers }, body));
  return got && codeOf(got);
}

describe("without a key", () => {
  const bomb = gzipSync(Buffer.alloc(60 * MiB, " "));
  const zipped = { ...json, "content-encoding": "gzip" };

  it.each(wireNames)("a body is not looked at: %s that cannot be parsed is 401", async (wire) => {
    expect(await codeFor(wire, "json", `{"${canary}`, {})).toBe("unauthenticated");
    expect(await codeFor(wire, "proto", Buffer.of(0xff), {})).toBe("unauthenticated");
  });

  it("60 MiB in 60 KB of gzip stay 60 KB", async () => {
    using memory = watchMemory();
    const start = performance.now();
    expect((await ask(port(), post(chatPath, zipped, bomb)))?.status).toBe(401);
    expect(performance.now() - start).toBeLessThan(500);
    expect(memory.peakBufferBytes).toBeLessThan(4 * MiB);
  });

  it.each([
    ["its length", head("POST", chatPath, { ...json, "content-length": String(MiB) })],
    ["chunks", head("POST", chatPath, { ...json, "transfer-encoding": "chunked" })],
    ["the wrong method", head("GET", "/v1/nothing", { "content-length": String(MiB) })],
  ])(
    "a body is not waited for: the answer comes after the headers, with %s",
    async (_by, bytes) => {
      using connection = await openRaw(port());
      connection.send(bytes);
      expect((await connection.answer())?.status).toBe(401);
      await connection.closed;
    },
  );

  it("would be let in by a plain connect-node server, up to its parser", async () => {
    await using plain = await startPlainServer();
    const { http1 } = plain.ports;
    expect((await ask(http1, post(chatPath, json, "{")))?.status).toBe(400);
    expect((await ask(http1, post(chatPath, zipped, bomb)))?.status).toBe(400);
    expect((await plain.state()).peakBufferBytes).toBeGreaterThan(60 * MiB);
  });
});

describe("Brotli, whose decoder was remote code execution", () => {
  const brotli = brotliCompressSync(chatBody);
  const fields = ["content-encoding", "grpc-encoding", "connect-content-encoding"];

  it.each(fields)(
    "is refused in %s before it is decoded, with and without a key",
    async (field) => {
      for (const caller of [{}, key]) {
        for (const value of ["br", "gzip, br", "BR", "identity, br"]) {
          const bytes = post("/v1/chat", { ...json, ...caller, [field]: value }, brotli);
          expect((await ask(port(), bytes))?.status, value).toBe(415);
        }
      }
      expect(vllm.requests).toHaveLength(0);
    },
  );

  it("is never what an answer comes in, however long it is and whatever its reader accepts", async () => {
    const accepted = {
      "accept-encoding": "br",
      "connect-accept-encoding": "br",
      "grpc-accept-encoding": "br",
    };
    for (const wire of wireNames) {
      const { path, format, enveloped } = wires[wire];
      vllm.reply(answer({ text: ["x".repeat(100_000)] }));
      const body = enveloped ? envelope(chatBody) : chatBody;
      const headers = { ...type(`${format}json`), ...key, ...accepted };
      const got = await ask(port(), post(path, headers, body));
      for (const field of fields) expect(got?.headers[field], wire).toBeUndefined();
      expect(got?.body.includes("x".repeat(100_000)), wire).toBe(true);
    }
  });

  it("would be decoded by a plain connect-node server", async () => {
    await using plain = await startPlainServer();
    const headers = { ...json, ...key, "content-encoding": "br" };
    const got = await ask(plain.ports.http1, post(chatPath, headers, brotliCompressSync("{}")));
    expect(got?.status).toBe(200);
  });
});

describe("a message larger than it may be", () => {
  const GiB = 1024 * MiB;
  const enveloped = wireNames.filter((wire) => wires[wire].enveloped);

  it.each(enveloped)("reserves no memory by saying so: %s", async (wire) => {
    using memory = watchMemory();
    const { path, format } = wires[wire];
    const bytes = post(path, { ...type(`${format}proto`), ...key }, envelope("", GiB));
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(port(), bytes)));
    for (const got of answers) expect(got && codeOf(got)).toBe("resource_exhausted");
    expect(memory.peakBufferBytes).toBeLessThan(8 * MiB);
  });

  it.each(["without a key", "with a key"])("is refused by its Content-Length, %s", async (who) => {
    const headers = { ...json, ...(who === "with a key" ? key : {}) };
    for (const length of ["1048582", "2147483648", "9007199254740993"]) {
      const bytes = head("POST", chatPath, { ...headers, "content-length": length });
      expect((await ask(port(), bytes))?.status, length).toBe(413);
    }
  });

  it("is cut off where the limit is, when it comes in chunks without an end", async () => {
    using memory = watchMemory();
    using connection = await openRaw(port());
    connection.send(head("POST", chatPath, { ...json, ...key, "transfer-encoding": "chunked" }));
    const chunk = Buffer.concat([
      Buffer.from("10000\r\n"),
      Buffer.alloc(65_536, " "),
      Buffer.from("\r\n"),
    ]);
    for (let sent = 0; sent < 17; sent += 1) connection.send(chunk);
    const got = await connection.answer();
    expect(got && codeOf(got)).toBe("resource_exhausted");
    await connection.closed;
    expect(memory.peakBufferBytes).toBeLessThan(8 * MiB);
  });

  it("is refused while it is decompressed, not afterwards", async () => {
    const bomb = gzipSync(Buffer.alloc(200 * MiB, " "));
    using memory = watchMemory();
    const unary = post(chatPath, { ...json, ...key, "content-encoding": "gzip" }, bomb);
    const stream = post(
      streamPath,
      { ...type("application/connect+json"), ...key, "connect-content-encoding": "gzip" },
      envelope(bomb, undefined, 1),
    );
    const web = post(
      chatPath,
      { ...type("application/grpc-web+json"), ...key, "grpc-encoding": "gzip" },
      envelope(bomb, undefined, 1),
    );
    for (const bytes of [unary, stream, web]) {
      const got = await ask(port(), bytes);
      expect(got && codeOf(got)).toBe("resource_exhausted");
    }
    expect(memory.peakBufferBytes).toBeLessThan(16 * MiB);
  });

  it("would cost a plain connect-node server what it says", async () => {
    await using plain = await startPlainServer();
    using connection = await openRaw(plain.ports.http1);
    const headers = { ...type("application/connect+proto"), ...key, "content-length": "1000" };
    connection.send(head("POST", streamPath, headers));
    connection.send(envelope("", GiB));
    await expect.poll(async () => (await plain.state()).peakBufferBytes).toBeGreaterThan(GiB / 2);
  });
});

describe("a message in a GET's query, which anybody may send to health", () => {
  const path = "/formdev.health.v1.HealthService/Check";
  const bomb = gzipSync(Buffer.alloc(9 * MiB, " ")).toString("base64url");

  it.each([
    ["Brotli is not decoded", "encoding=json&compression=br&message=%7B%7D", 501],
    ["gzip is bounded", `encoding=json&compression=gzip&base64=1&message=${bomb}`, 429],
    ["base64 that is none is invalid", "encoding=json&base64=1&message=@@@", 400],
    ["protobuf that is none is invalid", "encoding=proto&base64=1&message=_w", 400],
    ["percent signs that say nothing are invalid", "encoding=json&message=%", 400],
  ])("%s", async (_what, query, status) => {
    using memory = watchMemory();
    expect((await ask(port(), head("GET", `${path}?${query}`)))?.status).toBe(status);
    expect(memory.peakBufferBytes).toBeLessThan(8 * MiB);
  });
});

describe("a message that is none", () => {
  const broken = {
    "a tag without a value": Buffer.of(0x0a),
    "a length beyond the end": Buffer.of(0x0a, 0x7f, 0x61),
    "an unknown wire type": Buffer.of(0x0f, 0x01),
    "a varint without an end": Buffer.alloc(16, 0xff),
    "a string that is not UTF-8": Buffer.of(0x0a, 0x02, 0xc3, 0x28),
    "an end of a group that did not begin": Buffer.of(0x0c),
  };

  it.each(wireNames)("is invalid_argument, never our fault: %s", async (wire) => {
    for (const [what, bytes] of Object.entries(broken)) {
      expect(await codeFor(wire, "proto", bytes), what).toBe("invalid_argument");
    }
    for (const text of ["", "{", "null", "[]", '"text"', `{"messages":{}}`, "\u0000", "\ufeff{}"]) {
      expect(await codeFor(wire, "json", text), JSON.stringify(text)).toBe("invalid_argument");
    }
    expect(vllm.requests).toHaveLength(0);
  });

  it("is told by name when a field of JSON is unknown", async () => {
    const got = await ask(port(), post("/v1/chat", { ...json, ...key }, `{"max_tokns":60}`));
    expect(got?.status).toBe(400);
    expect(JSON.parse(String(got?.body)).message).toContain('"max_tokns"');
  });

  it("is invalid_argument when its envelope or its compression is broken", async () => {
    const headers = { ...type("application/connect+json"), ...key };
    const gzipped = { ...headers, "connect-content-encoding": "gzip" };
    const cases = {
      "an envelope that ends early": post(streamPath, headers, envelope("{}", 9)),
      "half an envelope's head": post(streamPath, headers, Buffer.of(0, 0)),
      "a compressed message without its encoding": post(
        streamPath,
        headers,
        envelope("{}", undefined, 1),
      ),
      "gzip that is none": post(streamPath, gzipped, envelope("{}", undefined, 1)),
      "gzip that ends early": post(
        streamPath,
        gzipped,
        envelope(gzipSync(chatBody).subarray(0, 20), undefined, 1),
      ),
      "a unary body that is no gzip": post(
        chatPath,
        { ...json, ...key, "content-encoding": "gzip" },
        chatBody,
      ),
    };
    for (const [what, bytes] of Object.entries(cases)) {
      const got = await ask(port(), bytes);
      expect(got && codeOf(got), what).toBe("invalid_argument");
    }
    expect(vllm.requests).toHaveLength(0);
  });

  it("is an internal error of a plain connect-node server", async () => {
    await using plain = await startPlainServer();
    const bytes = post(chatPath, { ...type("application/proto"), ...key }, Buffer.of(0xff));
    const got = await ask(plain.ports.http1, bytes);
    expect(got && codeOf(got)).toBe("internal");
  });
});
