import { describe, expect, it } from "vitest";
import type { FakeVllm } from "../support/fake-vllm.ts";
import { startPlainServer } from "../support/plain-server.ts";
import { ask, head, openRaw, post, type RawAnswer } from "../support/raw-http.ts";
import { erpKey, type TestApp } from "../support/start-app.ts";
import { chatBody, chatPath, streamPath, withUnharmedApp } from "../support/unharmed.ts";

let vllm: FakeVllm;
let app: TestApp;

withUnharmedApp({}, (freshVllm, freshApp) => {
  vllm = freshVllm;
  app = freshApp;
});

const port = () => app.address.port;
const key = { "x-api-key": erpKey };
const json = { "content-type": "application/json" };
const refused = (answer: RawAnswer | undefined) =>
  answer === undefined || (answer.status >= 400 && answer.status < 500);

/** Each of these ends a plain connect-node server: there is no URL with such an authority. */
const deadlyHeads = {
  "a space in Host": `POST ${chatPath} HTTP/1.1\r\nHost: a b\r\n\r\n`,
  "a bar in Host": `POST ${chatPath} HTTP/1.1\r\nHost: foo|bar\r\n\r\n`,
  "an empty Host": `POST ${chatPath} HTTP/1.1\r\nHost:\r\n\r\n`,
  "no Host, in HTTP/1.0": `POST ${chatPath} HTTP/1.0\r\n\r\n`,
  "a port that does not exist in Host": `POST ${chatPath} HTTP/1.1\r\nHost: x:99999\r\n\r\n`,
  "an open bracket in Host": `POST ${chatPath} HTTP/1.1\r\nHost: [\r\n\r\n`,
};

describe("a request that ends a plain connect-node server", () => {
  it.each(Object.entries(deadlyHeads))("is refused with 400: %s", async (_what, bytes) => {
    expect((await ask(port(), bytes))?.status).toBe(400);
    expect((await ask(port(), bytes.replace(chatPath, "/health")))?.status).toBe(400);
  });

  it("really does end one", async () => {
    const ends = Object.entries(deadlyHeads).map(async ([what, bytes]) => {
      await using plain = await startPlainServer();
      await ask(plain.ports.http1, bytes);
      expect(await plain.exited, what).toBe(1);
    });
    await Promise.all(ends);
  });
});

describe("a request target that is no path of ours", () => {
  it.each([
    ["two slashes", "GET //health"],
    ["two slashes and what no URL can hold", `POST //[${chatPath}`],
    ["an absolute URL", "GET http://elsewhere/health"],
    ["an asterisk", "OPTIONS *"],
    ["an asterisk for another method", "GET *"],
    ["no slash", "GET health"],
    ["a backslash", "GET \\health"],
  ])("is refused with 400: %s", async (_what, target) => {
    const answer = await ask(port(), `${target} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    expect(answer?.status).toBe(400);
  });

  it.each(["CONNECT elsewhere:443", "CONNECT a|b"])("opens no tunnel: %s", async (target) => {
    const answer = await ask(port(), `${target} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    expect(refused(answer)).toBe(true);
  });
});

describe("a method or a content type that no method has", () => {
  const cases = [
    ["405", head("PUT", chatPath), head("PUT", chatPath, key)],
    ["405", head("GET", chatPath), head("GET", chatPath, key)],
    ["405", head("DELETE", streamPath), head("DELETE", streamPath, key)],
    ["415", post(chatPath, { "content-type": "text/plain" }), plainText(chatPath)],
    ["415", post(streamPath, json, "{}"), post(streamPath, { ...json, ...key }, "{}")],
    ["415", post(chatPath, {}, "{}"), post(chatPath, key, "{}")],
  ] as const;

  it.each(cases)("is %s with a key, and 401 without one", async (status, without, withKey) => {
    expect((await ask(port(), without))?.status).toBe(401);
    expect((await ask(port(), withKey))?.status).toBe(Number(status));
  });

  function plainText(path: string) {
    return post(path, { "content-type": "text/plain", ...key }, "Bonjour");
  }
});

describe("headers beyond the limit", () => {
  it.each([
    ["one field of 17,000 bytes", head("GET", "/health", { "x-large": "a".repeat(17_000) })],
    [
      "3,000 fields",
      head("GET", "/health").replace("\r\n\r\n", `\r\n${"a:\r\n".repeat(3000)}\r\n`),
    ],
    ["a path of 20,000 bytes", head("GET", `/${"a".repeat(20_000)}`)],
  ])("are refused with 431: %s", async (_what, bytes) => {
    using connection = await openRaw(port());
    connection.send(bytes);
    expect((await connection.answer())?.status).toBe(431);
    await connection.closed;
  });

  it("are not waited for: 100 MB of them are cut off after the first bytes", async () => {
    using connection = await openRaw(port());
    connection.send("GET /health HTTP/1.1\r\nHost: localhost\r\n");
    const line = Buffer.from(`x-large: ${"a".repeat(100_000)}\r\n`);
    for (let sent = 0; sent < 1000 && !connection.isClosed; sent += 1) {
      connection.send(line);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await connection.closed;
  });
});

describe("a request whose length two readers could understand differently", () => {
  const start = `POST ${chatPath} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`;
  const length = `Content-Length: ${chatBody.length}\r\n`;
  const size = chatBody.length.toString(16);
  const chunks = `${size}\r\n${chatBody}\r\n0\r\n\r\n`;
  const chunked = (field: string, body = chunks) => `${start}${field}\r\n\r\n${body}`;
  const hidden = `${start}${length}X-API-Key: ${erpKey}\r\n\r\n${chatBody}`;

  const ambiguous = {
    "Content-Length and Transfer-Encoding": `${start}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}${hidden}`,
    "Transfer-Encoding and Content-Length": `${start}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n${chunks}${hidden}`,
    "two lengths": `${start}${length}Content-Length: 5\r\n\r\n${chatBody}`,
    "the same length twice": `${start}${length}${length}\r\n${chatBody}`,
    "a list of lengths": `${start}Content-Length: 5, 5\r\n\r\n${chatBody}`,
    "a length with a plus": `${start}Content-Length: +5\r\n\r\n${chatBody}`,
    "a length in hexadecimal": `${start}Content-Length: 0x5\r\n\r\n${chatBody}`,
    "a negative length": `${start}Content-Length: -1\r\n\r\n${chatBody}`,
    "a length of 23 digits": `${start}Content-Length: 99999999999999999999999\r\n\r\n${chatBody}`,
    "a space before the colon": `${start}Content-Length : 5\r\n\r\n${chatBody}`,
    "an unknown coding": chunked("Transfer-Encoding: xchunked"),
    "a coding in quotes": chunked('Transfer-Encoding: "chunked"'),
    "a coding after a vertical tab": chunked("Transfer-Encoding: \x0bchunked"),
    "a coding in a folded line": chunked("Transfer-Encoding:\r\n chunked"),
    "a space before the coding's colon": chunked("Transfer-Encoding : chunked"),
    "chunked, then identity": chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "chunked before another coding": chunked("Transfer-Encoding: chunked, identity"),
    "identity alone": chunked("Transfer-Encoding: identity"),
    "a folded header": `${start}X-A: b\r\n c\r\n${length}\r\n${chatBody}`,
    "lines that end in LF": hidden.replaceAll("\r\n", "\n"),
    "one line that ends in LF": `${start}X-A: b\n${length}\r\n${chatBody}`,
    "a CR in a value": `${start}X-A: b\rX-B: c\r\n${length}\r\n${chatBody}`,
    "a NUL in a value": `${start}X-A: b\0\r\n${length}\r\n${chatBody}`,
    "a line break in a chunk extension": chunked(
      "Transfer-Encoding: chunked",
      `${size};a="b\r\nc"\r\n${chatBody}\r\n0\r\n\r\n`,
    ),
    "a chunk size that ends in LF": chunked(
      "Transfer-Encoding: chunked",
      `${size}\n${chatBody}\r\n0\r\n\r\n`,
    ),
    "a chunk extension of 64 KiB": chunked(
      "Transfer-Encoding: chunked",
      `${size};${"a".repeat(65_536)}\r\n${chatBody}\r\n0\r\n\r\n`,
    ),
    "a chunk of 2^68 bytes": chunked(
      "Transfer-Encoding: chunked",
      `fffffffffffffffff\r\n${chatBody}`,
    ),
    "a negative chunk": chunked("Transfer-Encoding: chunked", `-1\r\n${chatBody}\r\n0\r\n\r\n`),
    "a chunk with something else than a line's end behind it": chunked(
      "Transfer-Encoding: chunked",
      `${size}\r\n${chatBody}XX0\r\n\r\n`,
    ),
    "chunk extensions of 64 KiB together": chunked(
      "Transfer-Encoding: chunked",
      `${`1;${"a".repeat(60)}\r\n \r\n`.repeat(1100)}0\r\n\r\n`,
    ),
    "a trailer that is none": chunked(
      "Transfer-Encoding: chunked",
      `${size}\r\n${chatBody}\r\n0\r\nno field\r\n\r\n`,
    ),
    "a chunk longer than it says": chunked(
      "Transfer-Encoding: chunked",
      `3\r\n${chatBody}\r\n0\r\n\r\n`,
    ),
  };

  it.each(["without a key", "with a key"])(
    "is refused, its connection closed, and nothing after it runs, %s",
    async (who) => {
      for (const [what, bytes] of Object.entries(ambiguous)) {
        using connection = await openRaw(port());
        const sent =
          who === "with a key" ? bytes.replace(start, `${start}X-API-Key: ${erpKey}\r\n`) : bytes;
        connection.send(Buffer.from(sent, "latin1"));
        await connection.closed;
        expect(
          connection.answers.map(({ status }) => status),
          what,
        ).toEqual([expect.toSatisfy((status) => status >= 400 && status < 500)]);
      }
      expect(vllm.requests).toHaveLength(0);
    },
  );

  it("gets one answer for each request of a pipeline, in their order", async () => {
    using connection = await openRaw(port());
    const unary = post("/v1/chat", { ...json, ...key }, chatBody);
    const denied = post("/v1/chat", json, chatBody);
    connection.send(Buffer.concat([unary, Buffer.from(head("GET", "/health")), denied, unary]));
    await connection.answer(3);
    expect(connection.answers.map(({ status }) => status)).toEqual([200, 200, 401, 200]);
    expect(vllm.requests).toHaveLength(2);
  });

  it("never takes a body for a request", async () => {
    using connection = await openRaw(port());
    const inner = post("/v1/chat", { ...json, ...key }, chatBody);
    connection.send(
      Buffer.concat([
        Buffer.from(head("GET", "/health", { "content-length": String(inner.length) })),
        inner,
      ]),
    );
    expect((await connection.answer())?.status).toBe(200);
    expect((await ask(port(), head("GET", "/health")))?.status).toBe(200);
    expect(connection.answers).toHaveLength(1);
    expect(vllm.requests).toHaveLength(0);
  });

  it("takes no key from a chunked body's trailers", async () => {
    const body = `${size}\r\n${chatBody}\r\n0\r\nX-API-Key: ${erpKey}\r\n\r\n`;
    expect((await ask(port(), chunked("Transfer-Encoding: chunked", body)))?.status).toBe(401);
    expect(vllm.requests).toHaveLength(0);
  });
});
