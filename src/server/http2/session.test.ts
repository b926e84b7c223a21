import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { eventually } from "../../../test/support/eventually.ts";
import { echo, numbered } from "../../../test/support/http-sessions.ts";
import {
  answering,
  askWithoutReading,
  open,
  startServer,
  windowUpdate,
} from "../../../test/support/http2-server.ts";
import {
  askHttp2,
  errorCodeOf,
  flags,
  frame,
  frameTypes,
  openHttp2,
  openRawHttp2,
  requestHeaders,
  resetFrame,
  settingIds,
  settingsFrame,
} from "../../../test/support/raw-http2.ts";
import type { HttpStream } from "../http-stream.ts";
import { errorCodes } from "./protocol.ts";

afterEach(() => void vi.useRealTimers());

describe("with Node's own client", () => {
  it("reads the fields that it compresses, one request after the other", async () => {
    await using server = await startServer((stream) => {
      stream.end(Buffer.from(JSON.stringify(stream.headers)));
    });
    using session = openHttp2(server.url);
    // Few names and values, so that the table of the connection is used and overflows.
    const name = fc.constantFrom("x-a", "x-b", "x-c", "user-agent", "accept", "x-longer-name");
    const value = fc.oneof(
      fc.constantFrom("1", "application/json", "a".repeat(1500), "b".repeat(900)),
      fc.stringMatching(/^[!-~]([ -~]{0,60}[!-~])?$/),
    );
    await fc.assert(
      fc.asyncProperty(fc.dictionary(name, value, { noNullPrototype: true }), async (fields) => {
        const { body } = await askHttp2(session, { ":path": "/", ...fields });
        expect(JSON.parse(body.toString())).toEqual(fields);
      }),
      { numRuns: 300 },
    );
  });

  it("writes fields, bodies and trailers that it reads", async () => {
    const value = "v".repeat(20_000);
    await using server = await startServer((stream) => {
      stream.setHeader("x-large", value);
      stream.setHeader("x-large", value);
      stream.setHeader("set-cookie", "a=1");
      stream.addTrailers({ "x-trailer": value });
      if (stream.method === "POST") stream.end(Buffer.from("body"));
      else stream.end();
    });
    using session = openHttp2(server.url);
    for (const [method, text] of [
      ["POST", "body"],
      ["GET", ""],
    ]) {
      const { status, headers, body, trailers } = await askHttp2(session, { ":method": method });
      expect([status, body.toString()]).toEqual([200, text]);
      expect(headers).toMatchObject({ "x-large": value, "set-cookie": ["a=1"] });
      expect(trailers).toMatchObject({ "x-trailer": value });
    }
  });

  it("heeds the table that its decoder keeps", async () => {
    await using server = await startServer((stream) => stream.end(Buffer.from("x")));
    const session = connectHttp2(server.url, { settings: { headerTableSize: 0 } });
    expect((await askHttp2(session, {})).status).toBe(200);
    session.settings({ headerTableSize: 100 });
    await once(session, "localSettings");
    expect((await askHttp2(session, {})).status).toBe(200);
    session.destroy();
  });

  it.each([1, 1000, 65_535, 1_000_000])(
    "brings a hundred bodies there and back, through windows of %i bytes",
    async (window) => {
      await using server = await startServer(echo);
      const session = connectHttp2(server.url, { settings: { initialWindowSize: window } });
      const bodies = Array.from({ length: 100 }, (_, at) =>
        numbered(window === 1 ? at : at * 1777, at),
      );
      const answers = await Promise.all(bodies.map((body) => askHttp2(session, {}, body)));
      for (const [at, { body, trailers }] of answers.entries()) {
        expect(body.equals(bodies[at] ?? Buffer.alloc(0)), `body ${at}`).toBe(true);
        expect(trailers["x-end"]).toBe("1");
      }
      session.destroy();
    },
  );

  it("gives the connection's window back, whatever becomes of a body", async () => {
    await using server = await startServer((stream) => {
      if (stream.url === "/echo") echo(stream);
      if (stream.url === "/reset") stream.destroy();
      if (stream.url === "/unread") stream.writeHead(200);
      if (stream.url === "/discard") stream.discardBody();
      if (stream.url === "/discard" || stream.url === "/ignore") {
        stream.resetAfterEnd();
        stream.end();
      }
      if (stream.url === "/late") setImmediate(() => echo(stream));
    });
    using session = openHttp2(server.url);
    for (let round = 0; round < 20; round += 1) {
      for (const path of ["/reset", "/discard", "/ignore", "/late"]) {
        await askHttp2(session, { ":path": path }, numbered(15_000));
      }
      for (const path of ["/echo", "/unread"]) {
        const stream = session.request({ ":method": "POST", ":path": path });
        stream.on("error", () => undefined);
        stream.write(numbered(20_000));
        await once(stream, "response");
        stream.close(errorCodes.cancel);
        await once(stream, "close");
      }
    }
    const large = numbered(500_000);
    const { body } = await askHttp2(session, { ":path": "/echo" }, large);
    expect(body.equals(large)).toBe(true);
  });
});

describe("a connection that is closed", () => {
  it("lets its calls end, refuses further ones as not begun, and ends with the last", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRawHttp2(server.port);
    connection.send(open(1));
    await eventually("the call", () => streams.length === 1);
    server.sessions[0]?.close();
    connection.send(open(3));
    const goAway = await connection.frame(frameTypes.goAway);
    expect([goAway.payload.readUInt32BE(0), errorCodeOf(goAway)]).toEqual([1, errorCodes.noError]);
    const refusal = await connection.frame(frameTypes.rstStream, 3);
    expect(errorCodeOf(refusal)).toBe(errorCodes.refusedStream);
    expect(streams).toHaveLength(1);
    streams[0]?.end(numbered(1000));
    await connection.closed;
    expect(connection.frames.at(-1)).toMatchObject({ stream: 1, flags: flags.endStream });
  });

  it("sends the last answer also to who begins to read it half a minute later", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const length = 300_000;
    await using server = await startServer((stream) => {
      stream.end(numbered(length));
      server.sessions[0]?.close();
    });
    using peer = await askWithoutReading(server.port);
    const [socket] = server.sockets;
    await eventually("all is in the kernel", () => socket?.writableFinished === true);
    vi.advanceTimersByTime(29_999);
    expect((await peer.read()).equals(numbered(length))).toBe(true);
    await eventually("the end", () => socket?.destroyed === true);
  });

  it("is cut off when its peer does not close it", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    await using server = await startServer(() => undefined);
    using connection = await openRawHttp2(server.port);
    await connection.frame(frameTypes.settings);
    connection.stopReading();
    server.sessions[0]?.close();
    const [socket] = server.sockets;
    await eventually("all is in the kernel", () => socket?.writableFinished === true);
    expect(socket?.destroyed).toBe(false);
    vi.advanceTimersByTime(30_000);
    expect(socket?.destroyed).toBe(true);
  });

  it("sends the last answer also to who reads it slowly", async () => {
    await using server = await startServer((stream) => {
      stream.end(numbered(3_000_000));
      server.sessions[0]?.close();
    });
    const session = connectHttp2(server.url, { settings: { initialWindowSize: 2 ** 31 - 1 } });
    session.on("error", () => undefined);
    await once(session, "connect");
    session.setLocalWindowSize(2 ** 30);
    const stream = session.request({ ":path": "/" });
    await once(stream, "response");
    let length = 0;
    for await (const chunk of stream) {
      length += (chunk as Buffer).length;
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(length).toBe(3_000_000);
  });
});

it("takes no offence at what was sent before its reset was heard", async () => {
  await using server = await startServer((stream) => stream.destroy());
  using connection = await openRawHttp2(server.port);
  // More than a peer may have reset, or do wrong, at once.
  for (let stream = 1; stream < 400; stream += 2) {
    const head = requestHeaders(`/${stream}`);
    connection.send(frame(frameTypes.headers, { stream, flags: flags.endHeaders }, head));
    connection.send(frame(frameTypes.data, { stream }, numbered(100)));
    connection.send(frame(frameTypes.headers, { stream, flags: 5 }, requestHeaders("/trailers")));
  }
  connection.send(frame(frameTypes.ping, {}, Buffer.alloc(8)));
  await eventually("the answer", () =>
    connection.frames.some(({ type, flags: it }) => type === frameTypes.ping && it === flags.ack),
  );
  const resets = connection.frames.filter(({ type }) => type === frameTypes.rstStream);
  expect(resets.map(errorCodeOf)).toEqual(Array(200).fill(errorCodes.cancel));
});

describe("more streams than are allowed", () => {
  const opened = (stream: number) =>
    frame(frameTypes.headers, { stream, flags: flags.endHeaders }, requestHeaders("/"));
  const ids = (count: number) => Array.from({ length: count }, (_, at) => at * 2 + 1);

  it("are refused, and the others run, in whatever order a client of good will sends", async () => {
    await using server = await startServer(echo);
    using connection = await openRawHttp2(server.port);
    connection.send(Buffer.concat(ids(320).map(opened)));
    const body = (stream: number) => frame(frameTypes.data, { stream, flags: 1 }, numbered(100));
    connection.send(Buffer.concat(ids(320).map(body)));
    const ended = ({ type, flags: it }: { type: number; flags: number }) =>
      type === frameTypes.headers && it === (flags.endHeaders | flags.endStream);
    await eventually("100 answers", () => connection.frames.filter(ended).length === 100);
    expect(connection.isClosed).toBe(false);
  });

  it("end the connection when there is no end of them", async () => {
    await using server = await startServer(() => undefined);
    using connection = await openRawHttp2(server.port);
    connection.send(Buffer.concat(ids(2000).map(opened)));
    const goAway = await connection.frame(frameTypes.goAway);
    expect(errorCodeOf(goAway)).toBe(errorCodes.enhanceYourCalm);
  });
});

it("answers a PING for each DATA, as clients of gRPC send it, without an end", async () => {
  await using server = await startServer(answering(3000));
  using connection = await openRawHttp2(server.port, { [settingIds.initialWindowSize]: 0 });
  connection.send(open(1));
  const ping = frame(frameTypes.ping, {}, Buffer.alloc(8));
  for (let sent = 0; sent < 3000; sent += 1) {
    connection.send(Buffer.concat([windowUpdate(1, 1), ping]));
  }
  await eventually(
    "the end",
    () => connection.frames.filter(({ type }) => type === frameTypes.ping).length === 3000,
  );
  expect(connection.isClosed).toBe(false);
});

it("tells a bug of ours, and closes its connection only", async () => {
  await using server = await startServer((stream) => {
    if (stream.url === "/bug") throw new Error("bug");
    stream.end();
  });
  using other = await openRawHttp2(server.port);
  using connection = await openRawHttp2(server.port);
  connection.send(open(1, "/bug"));
  expect(errorCodeOf(await connection.frame(frameTypes.goAway))).toBe(errorCodes.internalError);
  await connection.closed;
  expect(server.bugs).toEqual([new Error("bug")]);
  other.send(open(1));
  await other.frame(frameTypes.headers, 1);
});

describe("any frames", () => {
  const type = fc.oneof(fc.integer({ min: 0, max: 10 }), fc.constant(255));
  const anyFrame = fc
    .record({
      type,
      flags: fc.constantFrom(0, 1, 4, 5, 8, 0x20, 0x2d, 255),
      stream: fc.constantFrom(0, 1, 2, 3, 5, 7, 2 ** 31 - 1),
      payload: fc.oneof(
        fc.uint8Array({ maxLength: 40 }),
        fc.constantFrom(4, 5, 6, 8, 300, 16_384).map((length) => new Uint8Array(length).fill(1)),
        fc.constant(requestHeaders("/1")),
        fc.constant(Buffer.of(0, 4, 0x7f, 0xff, 0xff, 0xff)),
      ),
    })
    .map((it) => frame(it.type, it, it.payload));
  const usual = fc.constantFrom(
    open(1),
    open(3),
    open(5),
    frame(frameTypes.headers, { stream: 7, flags: flags.endHeaders }, requestHeaders("/7")),
    frame(frameTypes.data, { stream: 7 }, numbered(100)),
    frame(frameTypes.data, { stream: 7, flags: flags.endStream }, numbered(100)),
    resetFrame(7),
    windowUpdate(1, 10),
    windowUpdate(0, 2 ** 31 - 1),
    settingsFrame({ [settingIds.initialWindowSize]: 0 }),
    frame(frameTypes.headers, { stream: 9 }, requestHeaders("/9").subarray(0, 5)),
    frame(frameTypes.continuation, { stream: 9, flags: 4 }, requestHeaders("/9").subarray(5)),
  );

  it("end in answers or in a fault that is the peer's, never in one of ours", async () => {
    const running = new Set<HttpStream>();
    await using server = await startServer((stream) => {
      running.add(stream);
      stream.once("close", () => running.delete(stream));
      echo(stream);
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.oneof(usual, anyFrame), { minLength: 1, maxLength: 30 }),
        async (frames) => {
          using connection = await openRawHttp2(server.port);
          connection.send(Buffer.concat(frames));
          // Answered in turn, if the connection lives.
          connection.send(frame(frameTypes.ping, {}, Buffer.alloc(8, 7)));
          await eventually(
            "an end",
            () =>
              connection.isClosed ||
              connection.frames.some(({ type: it, payload }) => it === 6 && payload[0] === 7),
          );
          expect(server.bugs).toEqual([]);
        },
      ),
      { numRuns: 400 },
    );
    await eventually("all streams are over", () => running.size === 0);
    await eventually("all connections are closed", () => server.sockets.size === 0);
  });

  it("mean the same however the network cuts them", async () => {
    await using server = await startServer(echo);
    const calls = Buffer.concat([
      frame(frameTypes.headers, { stream: 1 }, requestHeaders("/1").subarray(0, 10)),
      frame(frameTypes.continuation, { stream: 1, flags: 4 }, requestHeaders("/1").subarray(10)),
      frame(frameTypes.data, { stream: 1, flags: 8 }, Buffer.from([3, 65, 66, 0, 0, 0])),
      frame(frameTypes.data, { stream: 1, flags: flags.endStream }, numbered(2000)),
    ]);
    const whole = Buffer.concat([Buffer.from("AB"), numbered(2000)]);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 400 })), async (lengths) => {
        using connection = await openRawHttp2(server.port);
        let at = 0;
        for (const length of lengths) {
          connection.send(calls.subarray(at, at + length));
          at += length;
          await new Promise((resolve) => setImmediate(resolve));
        }
        connection.send(calls.subarray(at));
        await eventually("the end", () =>
          connection.frames.some(({ flags: it, type: of }) => of === 1 && (it & 1) === 1),
        );
        const data = connection.frames.filter((it) => it.type === frameTypes.data);
        expect(Buffer.concat(data.map(({ payload }) => payload)).equals(whole)).toBe(true);
      }),
      { numRuns: 50 },
    );
  });
});
