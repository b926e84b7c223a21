import { afterEach, describe, expect, it, vi } from "vitest";
import { eventually } from "../../../test/support/eventually.ts";
import { numbered } from "../../../test/support/http-sessions.ts";
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

describe("the flow of an answer", () => {
  const bodyOf = (
    frames: readonly { type: number; stream: number; payload: Buffer }[],
    id: number,
  ) =>
    Buffer.concat(
      frames
        .filter(({ type, stream }) => type === frameTypes.data && stream === id)
        .map(({ payload }) => payload),
    );

  it("stops where its window ends, also one that becomes negative, and goes on from there", async () => {
    await using server = await startServer(answering(3000));
    using connection = await openRawHttp2(server.port, { [settingIds.initialWindowSize]: 1000 });
    connection.send(open(1));
    await eventually("1000 bytes", () => bodyOf(connection.frames, 1).length === 1000);
    connection.send(settingsFrame({ [settingIds.initialWindowSize]: 0 }));
    connection.send(windowUpdate(1, 1500));
    await eventually("1500 bytes", () => bodyOf(connection.frames, 1).length === 1500);
    connection.send(settingsFrame({ [settingIds.initialWindowSize]: 10_000 }));
    await eventually("all", () => bodyOf(connection.frames, 1).length === 3000);
    expect(bodyOf(connection.frames, 1).equals(numbered(3000, 1))).toBe(true);
    expect(connection.frames.at(-1)?.flags).toBe(flags.endStream);
  });

  it("shares the connection's window with the other answers, a frame each in turn", async () => {
    await using server = await startServer(answering(200_000));
    using connection = await openRawHttp2(server.port, {
      [settingIds.initialWindowSize]: 1_000_000,
    });
    for (const stream of [1, 3, 5]) connection.send(open(stream));
    await eventually("the first window", () => total() === 65_535);
    connection.send(windowUpdate(0, 1_000_000));
    await eventually("all", () => total() === 600_000);
    const order = connection.frames.flatMap(({ type, stream }) =>
      type === frameTypes.data ? [stream] : [],
    );
    // The first one alone has had the first window.
    for (const stream of [1, 3, 5]) {
      expect(bodyOf(connection.frames, stream).equals(numbered(200_000, stream))).toBe(true);
      expect(order.indexOf(stream)).toBeLessThan(9);
    }
    function total() {
      return [1, 3, 5].reduce((sum, id) => sum + bodyOf(connection.frames, id).length, 0);
    }
  });

  it("goes on in turn where the last window ended", async () => {
    await using server = await startServer(answering(100_000));
    using connection = await openRawHttp2(server.port, {
      [settingIds.initialWindowSize]: 1_000_000,
    });
    for (const stream of [1, 3, 5]) connection.send(open(stream));
    const data = () => connection.frames.filter(({ type }) => type === frameTypes.data);
    const received = () => data().reduce((sum, { payload }) => sum + payload.length, 0);
    await eventually("the first window", () => received() === 65_535);
    const before = data().length;
    for (let update = 1; update <= 6; update += 1) {
      connection.send(windowUpdate(0, 16_384));
      await eventually("a frame", () => received() === 65_535 + update * 16_384);
    }
    const turns = data().slice(before);
    expect(turns.map(({ stream }) => stream).join("")).toMatch(/(135){2}|(351){2}|(513){2}/);
  });

  it("is reset when it would be more than a connection may have waiting", async () => {
    const body = Buffer.alloc(8 * 1024 * 1024);
    await using server = await startServer((stream) => stream.end(body));
    using connection = await openRawHttp2(server.port, { [settingIds.initialWindowSize]: 0 });
    for (let stream = 1; stream <= 17; stream += 2) connection.send(open(stream));
    const reset = await connection.frame(frameTypes.rstStream);
    expect([reset.stream, errorCodeOf(reset)]).toEqual([17, errorCodes.enhanceYourCalm]);
  });

  it("is cut when its reader has not taken any of its end for 30 s", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    await using server = await startServer(answering(3000));
    using connection = await openRawHttp2(server.port, { [settingIds.initialWindowSize]: 1000 });
    connection.send(open(1));
    await eventually("1000 bytes", () => bodyOf(connection.frames, 1).length === 1000);
    vi.advanceTimersByTime(29_000);
    connection.send(windowUpdate(1, 1));
    await eventually("one more", () => bodyOf(connection.frames, 1).length === 1001);
    vi.advanceTimersByTime(29_000);
    connection.send(windowUpdate(1, 1));
    await eventually("one more", () => bodyOf(connection.frames, 1).length === 1002);
    vi.advanceTimersByTime(30_000);
    const reset = await connection.frame(frameTypes.rstStream);
    expect([reset.stream, errorCodeOf(reset)]).toEqual([1, errorCodes.cancel]);
  });

  it("waits for a peer who reads nothing, and is whole when he does", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => {
      streams.push(stream);
      answering(8_000_000)(stream);
    });
    using peer = await askWithoutReading(server.port);
    await eventually("it waits", () => (streams[0]?.writableLength ?? 0) > 0);
    // Nothing of what waits in the stream is copied for the socket.
    const [held] = server.sockets;
    expect(held?.writableLength).toBeLessThan(200_000);
    expect((await peer.read()).equals(numbered(8_000_000, 1))).toBe(true);
    expect(streams[0]?.destroyed).toBe(true);
  });

  it("keeps small pieces as they were while their peer does not read them", async () => {
    const piece = (number: number) => Buffer.from(String(number).padStart(500, "."));
    let written = 0;
    let ended = false;
    await using server = await startServer((stream) => {
      const more = () => {
        ended = stream.writableLength > 0;
        if (ended) return stream.end();
        stream.write(piece(written));
        written += 1;
        setImmediate(more);
      };
      more();
    });
    using peer = await askWithoutReading(server.port);
    await eventually("the socket takes no more", () => ended);
    const whole = Buffer.concat(Array.from({ length: written }, (_, number) => piece(number)));
    expect((await peer.read()).equals(whole)).toBe(true);
  });
});

it("tells who begins to read a body late that its sender has broken it off", async () => {
  const streams: HttpStream[] = [];
  await using server = await startServer((stream) => void streams.push(stream));
  using connection = await openRawHttp2(server.port);
  const head = frame(frameTypes.headers, { stream: 1, flags: 4 }, requestHeaders("/"));
  connection.send(Buffer.concat([head, frame(frameTypes.data, { stream: 1 }, numbered(10))]));
  connection.send(resetFrame(1));
  await eventually("the reset", () => streams[0]?.destroyed === true);
  const heard: string[] = [];
  streams[0]?.readBody({
    onData: () => heard.push("data"),
    onEnd: () => heard.push("end"),
    onBroken: () => heard.push("broken"),
  });
  expect(heard).toEqual(["broken"]);
  expect(streams[0]?.takeBody()).toBeUndefined();
});

it("sends a flushed piece at once, the others at the end of the turn", async () => {
  const written: number[] = [];
  await using server = await startServer((stream) => {
    const [socket] = server.sockets;
    const note = () => written.push(socket?.bytesWritten ?? 0);
    note();
    stream.write(numbered(100));
    note();
    stream.flush();
    note();
    stream.end(numbered(100));
    note();
  });
  using session = openHttp2(server.url);
  expect((await askHttp2(session, {})).body).toHaveLength(200);
  const [before = 0, waiting, flushed, last] = written;
  expect(waiting).toBe(before);
  expect(flushed).toBeGreaterThan(before + 100);
  expect(last).toBe(flushed);
});
