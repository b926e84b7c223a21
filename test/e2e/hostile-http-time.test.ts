import { describe, expect, it } from "vitest";
import { eventually } from "../support/eventually.ts";
import type { FakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { startPlainServer } from "../support/plain-server.ts";
import {
  ask,
  codeOf,
  envelope,
  head,
  openRaw,
  post,
  type RawConnection,
} from "../support/raw-http.ts";
import { flags, frame, frameTypes, preface, requestHeaders } from "../support/raw-http2.ts";
import { findRedisServer, startRedisServer } from "../support/redis-server.ts";
import { erpKey, startApp, type TestApp } from "../support/start-app.ts";
import { chatBody, chatPath, streamPath, withUnharmedApp } from "../support/unharmed.ts";

let vllm: FakeVllm;
let app: TestApp;

withUnharmedApp({ ENGINE_CONCURRENCY: "1", QUEUE_LENGTH: "0" }, (freshVllm, freshApp) => {
  vllm = freshVllm;
  app = freshApp;
});

const port = () => app.address.port;
const key = { "x-api-key": erpKey };
const json = { "content-type": "application/json", ...key };
const streamJson = { "content-type": "application/connect+json", ...key };

/** 15 MB in as many tokens as a call may ask for: more than the buffers of a socket take. */
const flood = answer({ text: Array.from({ length: 4000 }, () => "x".repeat(3500)) });
const floodBody = chatBody.replace("{", '{"max_tokens":4096,');

describe("a caller who takes its time", () => {
  it("is closed after ten seconds, whatever it has said until then", async () => {
    await using plain = await startPlainServer();
    using unlimited = await openRaw(plain.ports.handedOver);
    const partialHead = "POST /v1/chat HTTP/1.1\r\nHost: localhost\r\nX-A: ";
    unlimited.send(partialHead);

    const start = performance.now();
    await using stack = new AsyncDisposableStack();
    const open = async (...bytes: string[]) => {
      const connection = stack.use(await openRaw(port()));
      for (const each of bytes) connection.send(each);
      return connection;
    };
    const dripping = await open(partialHead);
    const drip = setInterval(() => dripping.send("a"), 100);
    stack.defer(() => clearInterval(drip));
    const callers = {
      "says nothing": await open(),
      "says one byte of a preface": await open("P"),
      "says half a preface": await open("PRI * HTTP/2.0\r\n"),
      "says half a head": await open(partialHead),
      "says a head byte by byte": dripping,
      "asks once and then says half a head": await open(head("GET", "/health"), partialHead),
    };
    const times = await Promise.all(
      Object.entries(callers).map(async ([who, connection]) => {
        await connection.closed;
        return [who, performance.now() - start] as const;
      }),
    );
    for (const [who, ms] of times) {
      expect(ms, who).toBeGreaterThan(8000);
      expect(ms, who).toBeLessThan(15_000);
    }
    expect(callers["asks once and then says half a head"].answers[0]?.status).toBe(200);
    // What happens to who shares the port without a limit of its own.
    expect(unlimited.isClosed).toBe(false);
  }, 20_000);

  it("has its deadline although it does not read: the engine stops, and its place is free", async () => {
    vllm.reply(flood);
    using stalled = await openRaw(port());
    stalled.stopReading();
    const start = performance.now();
    const deadline = { ...streamJson, "connect-timeout-ms": "800" };
    stalled.send(post(streamPath, deadline, envelope(floodBody)));
    const chat = await vllm.request(0);
    expect(await chat.closed).toBe("aborted");
    expect(performance.now() - start).toBeGreaterThan(750);
    expect(performance.now() - start).toBeLessThan(1300);
    expect((await ask(port(), post("/v1/chat", json, chatBody)))?.status).toBe(200);
  });

  it("keeps a plain connect-node server's handler past its deadline", async () => {
    await using plain = await startPlainServer();
    using stalled = await openRaw(plain.ports.http1);
    stalled.stopReading();
    const deadline = { ...streamJson, "connect-timeout-ms": "300" };
    stalled.send(post(streamPath, deadline, envelope("{}")));
    await expect.poll(async () => (await plain.state()).aborted).toBe(1);
    expect((await plain.state()).running).toBe(1);
  });
});

const redisServer = findRedisServer();

describe.skipIf(redisServer === undefined)(
  "a caller who leaves while its limit is looked up",
  () => {
    it("never reaches the engine, and its call is over at once", async () => {
      await using redis = await startRedisServer(redisServer ?? "");
      await using limited = await startApp({ VLLM_URL: vllm.url.href, REDIS_URL: redis.url });
      redis.pause();
      const leaving = await openRaw(limited.address.port);
      leaving.send(post(streamPath, streamJson, envelope(chatBody)));
      leaving[Symbol.dispose]();
      const calls = () => limited.logs.filter(({ msg }) => msg === "call");
      await eventually("the call is over", () => calls().length === 1, 2000);
      redis.resume();
      expect(calls()[0]).toMatchObject({ client: "erp", outcome: "canceled" });
      expect(vllm.requests).toHaveLength(0);
    });
  },
);

describe("an HTTP/2 preface", () => {
  const health = frame(
    frameTypes.headers,
    { flags: flags.endHeaders | flags.endStream, stream: 1 },
    requestHeaders("/health", { ":method": "GET" }),
  );
  const opening = Buffer.concat([preface, frame(frameTypes.settings), health]);

  it("may arrive byte by byte", async () => {
    using connection = await openRaw(port());
    for (const byte of opening) {
      connection.send(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await eventually("the answer to /health", () => saysServing(connection));
  });

  it("may arrive together with all that follows", async () => {
    using connection = await openRaw(port());
    connection.send(opening);
    await eventually("the answer to /health", () => saysServing(connection));
  });

  it.each([
    ["that goes wrong after its first line", "PRI * HTTP/2.0\r\n\r\nXX"],
    ["that goes wrong in its last byte", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"],
    ["of HTTP/3", "PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"],
    ["without its settings", `${preface.toString()}GET / HTTP/1.1\r\n\r\n`],
    ["that is none but a TLS hello", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"],
  ])("%s closes the connection", async (_what, bytes) => {
    using connection = await openRaw(port());
    connection.send(Buffer.from(bytes, "latin1"));
    await connection.closed;
  });

  function saysServing(connection: RawConnection): boolean {
    return connection.received.includes("SERVING_STATUS_SERVING");
  }
});

describe("a deadline", () => {
  it.each(["9999999999", "2147483648", "600001"])(
    "beyond the longest is the longest: Connect-Timeout-Ms %s",
    async (value) => {
      const unary = post("/v1/chat", { ...json, "connect-timeout-ms": value }, chatBody);
      expect((await ask(port(), unary))?.status).toBe(200);
      const headers = { ...streamJson, "connect-timeout-ms": value };
      const stream = await ask(port(), post(streamPath, headers, envelope(chatBody)));
      expect(stream && codeOf(stream)).toBe("ok");
    },
  );

  it.each(["99999999H", "99999999M", "99999999S"])(
    "beyond the longest is the longest: grpc-timeout %s",
    async (value) => {
      const headers = {
        "content-type": "application/grpc-web+json",
        ...key,
        "grpc-timeout": value,
      };
      const got = await ask(port(), post(chatPath, headers, envelope(chatBody)));
      expect(got && codeOf(got)).toBe("ok");
    },
  );

  it.each(["-1", "1e3", "1.5", "0x10", "soon", "12345678901", "1, 2", "\u00b2"])(
    "that is no number is invalid_argument: Connect-Timeout-Ms %s",
    async (value) => {
      const headers = { ...json, "connect-timeout-ms": value };
      const got = await ask(port(), post(chatPath, headers, chatBody));
      expect(got && codeOf(got)).toBe("invalid_argument");
      expect(vllm.requests).toHaveLength(0);
    },
  );

  it.each(["10", "S", "-1S", "1s", "123456789S", "1.5S", "1 S"])(
    "that is no number and unit is invalid_argument: grpc-timeout %s",
    async (value) => {
      const headers = {
        "content-type": "application/grpc-web+json",
        ...key,
        "grpc-timeout": value,
      };
      const got = await ask(port(), post(chatPath, headers, envelope(chatBody)));
      expect(got && codeOf(got)).toBe("invalid_argument");
      expect(vllm.requests).toHaveLength(0);
    },
  );

  it("of 9999999999 ms ends a plain connect-node server's stream at once", async () => {
    await using plain = await startPlainServer();
    using connection = await openRaw(plain.ports.http1);
    const headers = { ...streamJson, "connect-timeout-ms": "9999999999" };
    connection.send(post(streamPath, headers, envelope("{}")));
    await expect.poll(async () => (await plain.state()).aborted).toBe(1);
  });
});
