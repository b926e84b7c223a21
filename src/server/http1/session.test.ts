import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, expect, it, vi } from "vitest";
import { eventually } from "../../../test/support/eventually.ts";
import { echo, numbered, startSessions } from "../../../test/support/http-sessions.ts";
import { head, openRaw, post } from "../../../test/support/raw-http.ts";
import type { HttpStream } from "../http-stream.ts";
import { Http1Session } from "./session.ts";

afterEach(() => void vi.useRealTimers());

const KiB = 1024;
const MiB = 1024 * KiB;

const startServer = (onRequest: (stream: HttpStream) => void) =>
  startSessions(Http1Session, onRequest);

describe("an answer", () => {
  /** Fills the socket of a reader that stalls, and ends the answer with that, or goes on as long as it likes. */
  const fillAndEnd = (sockets: ReadonlySet<Socket>, moreBytes: number) => (stream: HttpStream) => {
    const [socket] = sockets;
    const fill = () => {
      stream.write(numbered(8 * KiB));
      stream.flush();
      if (socket?.writableLength === 0) setImmediate(fill);
      else stream.end(numbered(moreBytes));
    };
    fill();
  };

  const kept = "connection: keep-alive\r\nkeep-alive: timeout=65\r\n";
  const twoPieces = (stream: HttpStream) => {
    stream.write(Buffer.from("un"));
    stream.addTrailers({ "x-end": "1" });
    stream.end(Buffer.from("deux"));
  };
  const get = head("GET", "/");
  const old = get.replace("HTTP/1.1", "HTTP/1.0");
  const ofLength = (stream: HttpStream) => {
    stream.setHeader("content-length", 2);
    stream.end(stream.method === "HEAD" ? undefined : Buffer.from("ok"));
  };

  it.each<[string, (stream: HttpStream) => void, string, string]>([
    [
      "in chunks, with trailers, when its length is not known",
      twoPieces,
      get,
      `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n${kept}\r\n2\r\nun\r\n4\r\ndeux\r\n0\r\nx-end: 1\r\n\r\n`,
    ],
    [
      "up to the connection's end, to HTTP/1.0",
      twoPieces,
      old,
      "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nundeux",
    ],
    [
      "of the length that it says",
      ofLength,
      get,
      `HTTP/1.1 200 OK\r\ncontent-length: 2\r\n${kept}\r\nok`,
    ],
    [
      "without its body, to HEAD",
      ofLength,
      head("HEAD", "/"),
      `HTTP/1.1 200 OK\r\ncontent-length: 2\r\n${kept}\r\n`,
    ],
    [
      "without a body that somebody writes to HEAD",
      twoPieces,
      head("HEAD", "/"),
      `HTTP/1.1 200 OK\r\n${kept}\r\n`,
    ],
    [
      "of no length",
      (stream) => stream.end(),
      get,
      `HTTP/1.1 200 OK\r\ncontent-length: 0\r\n${kept}\r\n`,
    ],
  ])("is written %s", async (_how, onRequest, request, expected) => {
    await using server = await startServer(onRequest);
    using connection = await openRaw(server.port);
    connection.send(request);
    const received = () => connection.received.toString("latin1").replace(/^date: .*\r\n/gm, "");
    await eventually("the answer", () => received().length >= expected.length);
    expect(received()).toBe(expected);
  });

  it("closes the connection when its request says so, or is not whole", async () => {
    for (const request of [
      head("GET", "/", { connection: "Keep-Alive, Close" }),
      head("POST", "/", { "content-length": "9" }),
    ]) {
      await using server = await startServer((stream) => {
        stream.discardBody();
        stream.resetAfterEnd();
        stream.end(Buffer.from("x"));
      });
      using connection = await openRaw(server.port);
      connection.send(request);
      expect((await connection.answer())?.headers.connection).toBe("close");
      await connection.closed;
    }
  });

  it("arrives whole although its request's body goes on", async () => {
    await using server = await startServer((stream) => {
      stream.discardBody();
      stream.resetAfterEnd();
      stream.end(numbered(MiB));
    });
    using connection = await openRaw(server.port);
    connection.stopReading();
    connection.send(head("POST", "/", { "content-length": String(64 * MiB) }));
    for (let sent = 0; sent < 16; sent += 1) connection.send(Buffer.alloc(MiB));
    connection.readOn();
    expect((await connection.answer())?.body.equals(numbered(MiB))).toBe(true);
  });

  it("asks for the body that its sender holds back, once", async () => {
    await using server = await startServer(echo);
    using connection = await openRaw(server.port);
    connection.send(head("POST", "/", { expect: "100-Continue", "content-length": "2" }));
    await eventually("it is asked for", () => connection.received.length > 0);
    expect(connection.received.toString()).toBe("HTTP/1.1 100 Continue\r\n\r\n");
    connection.send("ok");
    expect((await connection.answer())?.body.toString()).toBe("ok");
    expect(connection.received.toString().match(/100 Continue/g)).toHaveLength(1);
  });

  it("that would say another line than it means is not sent, and harms no other connection", async () => {
    const values = ["b\r\nx-c: d", "b\u010d\u010ax-c: d"];
    await using server = await startServer((stream) => {
      const value = values[Number(stream.url.slice(1))];
      if (value !== undefined) stream.setHeader("x-a", value);
      stream.end();
    });
    for (const [index] of values.entries()) {
      using bad = await openRaw(server.port);
      bad.send(head("GET", `/${index}`));
      await bad.closed;
      expect(bad.received.toString()).toBe("");
    }
    expect(server.bugs).toHaveLength(2);
    using good = await openRaw(server.port);
    good.send(head("GET", "/good"));
    expect((await good.answer())?.status).toBe(200);
  });

  it("closes the connection when it says so itself, and says it once", async () => {
    await using server = await startServer((stream) => {
      stream.setHeader("connection", "Close");
      stream.end();
    });
    using connection = await openRaw(server.port);
    connection.send(head("GET", "/"));
    expect((await connection.answer())?.headers.connection).toBe("close");
    await connection.closed;
  });

  it("that is complete is sent to the end to a peer who has nothing more to say", async () => {
    const ended: HttpStream[] = [];
    await using server = await startServer((stream) => {
      fillAndEnd(server.sockets, 1)(stream);
      ended.push(stream);
    });
    const client = connect({ port: server.port, allowHalfOpen: true });
    client.write(head("GET", "/", { connection: "close" }));
    await eventually("it is complete", () => ended[0]?.writableEnded === true);
    client.end();
    const [socket] = server.sockets;
    await eventually("that is heard", () => socket?.readableEnded === true);
    const received = Buffer.concat(await Array.fromAsync(client));
    expect(received.subarray(-5).toString()).toBe("0\r\n\r\n");
  });

  it("is given time to be read as long as its reader goes on sending", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    await using server = await startServer((stream) => {
      stream.discardBody();
      stream.resetAfterEnd();
      stream.end();
    });
    const client = connect({ port: server.port, allowHalfOpen: true });
    client.on("error", () => undefined);
    client.write(head("POST", "/", { "content-length": "1000" }));
    await once(client.resume(), "end");
    const [socket] = server.sockets;
    vi.advanceTimersByTime(900);
    const before = socket?.bytesRead ?? 0;
    client.write("more");
    await eventually("it is read", () => (socket?.bytesRead ?? 0) > before);
    vi.advanceTimersByTime(900);
    expect(socket?.destroyed).toBe(false);
    vi.advanceTimersByTime(100);
    expect(socket?.destroyed).toBe(true);
  });

  it("waits for a slow reader without filling memory, and arrives whole", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => {
      streams.push(stream);
      stream.write(numbered(8 * MiB));
      stream.end();
    });
    using connection = await openRaw(server.port);
    connection.stopReading();
    connection.send(head("GET", "/", { connection: "close" }));
    await eventually("it has to wait", () => (streams[0]?.writableLength ?? 0) > 0);
    const [socket] = server.sockets;
    expect(socket?.writableLength).toBeLessThan(256 * KiB);
    connection.readOn();
    expect((await connection.answer())?.body.equals(numbered(8 * MiB))).toBe(true);
    await connection.closed;
  });

  it.each([
    ["its last bytes are in the socket", 1],
    ["more of it waits", MiB],
  ])("is cut when its reader takes nothing of it for 30 s: %s", async (_where, moreBytes) => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const ended: HttpStream[] = [];
    await using server = await startServer((stream) => {
      fillAndEnd(server.sockets, moreBytes)(stream);
      ended.push(stream);
    });
    using stalled = await openRaw(server.port);
    stalled.stopReading();
    stalled.send(head("GET", "/", { connection: "close" }));
    await eventually("it is complete", () => ended[0]?.writableEnded === true);
    const [socket] = server.sockets;
    vi.advanceTimersByTime(29_000);
    expect(socket?.destroyed).toBe(false);
    vi.advanceTimersByTime(1000);
    expect(socket?.destroyed).toBe(true);
  });

  it("closes the connection at once when its peer does, whatever else that has sent", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    connection.send(head("GET", "/", { connection: "close" }));
    connection.send(Buffer.alloc(MiB));
    const [socket] = server.sockets;
    await eventually("it has to wait", () => socket?.isPaused() === true);
    streams[0]?.end();
    expect((await connection.answer())?.status).toBe(200);
    await connection.closed;
    await eventually("it is closed here too", () => socket?.destroyed === true);
  });
});

describe("a body", () => {
  /** How the body of a request has ended, and who reads it. */
  const hearOfEnd = () => {
    const { promise, resolve } = Promise.withResolvers<"whole" | "broken">();
    const onRequest = (stream: HttpStream) =>
      stream.readBody({
        onData: () => undefined,
        onEnd: () => resolve("whole"),
        onBroken: () => resolve("broken"),
      });
    return { promise, onRequest };
  };

  it("is read no faster than somebody asks for it", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    const sent = numbered(16 * MiB);
    connection.send(post("/", {}, sent));
    const [socket] = server.sockets;
    await eventually("it has to wait", () => socket?.isPaused() === true);
    expect(socket?.bytesRead).toBeLessThan(256 * KiB);
    const pieces: Buffer[] = [];
    streams[0]?.readBody({
      onData: (piece) => void pieces.push(piece),
      onEnd: () => streams[0]?.end(),
      onBroken: () => undefined,
    });
    expect((await connection.answer())?.status).toBe(200);
    expect(Buffer.concat(pieces).equals(sent)).toBe(true);
  });

  it("that nobody has read holds up no other request", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    connection.send(post("/", {}, numbered(100 * KiB)));
    await eventually("it is whole", () => streams[0]?.remoteEnded === true);
    streams[0]?.end();
    await connection.answer();
    connection.send(head("GET", "/next"));
    await eventually("the next one runs", () => streams[1]?.url === "/next");
  });

  it("may come in any number of chunks", async () => {
    await using server = await startServer(echo);
    using connection = await openRaw(server.port);
    connection.send(head("POST", "/", { "transfer-encoding": "chunked" }));
    connection.send(`${"1\r\nx\r\n".repeat(20_000)}0\r\n\r\n`);
    expect((await connection.answer())?.body.toString()).toBe("x".repeat(20_000));
  });

  it("that its sender breaks off is told as broken", async () => {
    const { promise, onRequest } = hearOfEnd();
    await using server = await startServer(onRequest);
    const connection = await openRaw(server.port);
    connection.send(head("POST", "/", { "content-length": "9" }));
    connection.send("abc");
    connection.end();
    expect(await promise).toBe("broken");
  });

  it("that turns out to be none is refused, and whoever reads it is told", async () => {
    const { promise, onRequest } = hearOfEnd();
    await using server = await startServer(onRequest);
    using connection = await openRaw(server.port);
    connection.send(head("POST", "/", { "transfer-encoding": "chunked" }));
    connection.send("1\r\nab\r\n");
    expect(await promise).toBe("broken");
    expect((await connection.answer())?.status).toBe(400);
    await connection.closed;
  });
});

describe("requests that wait behind the one that runs", () => {
  it("are read no further than 64 KiB and a piece", async () => {
    await using server = await startServer(() => undefined);
    using connection = await openRaw(server.port);
    connection.send(head("GET", "/").repeat(100_000));
    const [socket] = server.sockets;
    await eventually("they have to wait", () => socket?.isPaused() === true);
    expect(socket?.bytesRead).toBeLessThan(256 * KiB);
  });

  it("are answered one by one, however many they are", async () => {
    let running = 0;
    await using server = await startServer((stream) => {
      running += 1;
      expect(running).toBe(1);
      setImmediate(() => {
        running -= 1;
        stream.end();
      });
    });
    using connection = await openRaw(server.port);
    connection.send(head("GET", "/").repeat(5000));
    connection.send(head("GET", "/", { connection: "close" }));
    await connection.closed;
    expect(connection.received.toString().match(/^HTTP\/1.1 200 OK\r$/gm)).toHaveLength(5001);
    expect(server.bugs).toEqual([]);
  });

  const trailers = (stream: HttpStream) => {
    stream.addTrailers({ "x-end": "1" });
    stream.end();
  };
  it.each<[string, string, (stream: HttpStream) => void]>([
    ["with a body", "GET", (stream) => stream.end(numbered(16 * KiB))],
    ["without one", "HEAD", (stream) => stream.end()],
    ["with trailers only", "GET", trailers],
  ])(
    "get no answers that nobody reads: %s",
    async (_what, method, onRequest) => {
      let asked = 0;
      await using server = await startServer((stream) => {
        asked += 1;
        onRequest(stream);
      });
      using connection = await openRaw(server.port);
      connection.stopReading();
      connection.send(head(method, "/").repeat(400_000));
      const [socket] = server.sockets;
      let before = -1;
      while (asked > before) {
        before = asked;
        for (let turn = 0; turn < 50; turn += 1) await new Promise(setImmediate);
      }
      expect(socket?.isPaused()).toBe(true);
      expect(socket?.writableLength).toBeLessThan(256 * KiB);
      connection.readOn();
      await eventually("it goes on", () => asked > before + 100);
    },
    30_000,
  );

  it("leave the process its time for others", async () => {
    let asked = 0;
    await using server = await startServer((stream) => {
      asked += 1;
      stream.end();
    });
    const turns: number[] = [];
    const count = () => {
      turns.push(asked);
      asked = 0;
      counting = setImmediate(count);
    };
    let counting = setImmediate(count);
    using connection = await openRaw(server.port);
    connection.send(head("GET", "/").repeat(1000));
    connection.send(head("GET", "/", { connection: "close" }));
    await connection.closed;
    clearImmediate(counting);
    expect(turns.reduce((sum, each) => sum + each, asked)).toBe(1001);
    expect(Math.max(...turns)).toBeLessThanOrEqual(64);
  });

  it("get one more answer when the connection is closing, also one whose head is half here", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    const next = head("GET", "/next");
    connection.send(head("GET", "/") + next.slice(0, 9));
    await eventually("it runs", () => streams.length === 1);
    streams[0]?.write(Buffer.from("x"));
    server.sessions[0]?.close();
    streams[0]?.end();
    await connection.answer();
    connection.send(next.slice(9));
    await eventually("the next one runs", () => streams.length === 2);
    streams[1]?.end();
    expect((await connection.answer(1))?.headers.connection).toBe("close");
    await connection.closed;
  });

  it("do not hold up the end when they turn out to be an empty line", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    connection.send(`${head("GET", "/")}\r`);
    await eventually("it runs", () => streams.length === 1);
    streams[0]?.end();
    await connection.answer();
    server.sessions[0]?.close();
    connection.send("\n");
    await connection.closed;
  });
});

describe("time", () => {
  const later = (ms: number) => performance.now() + ms;

  it("ends what is too slow with 408, and what idles without a word", async () => {
    await using server = await startServer((stream) => {
      if (stream.url === "/idle") stream.end();
    });
    const cases = [
      { sent: "GET / HT", ms: 10_000, status: 408 },
      { sent: head("POST", "/", { "content-length": "9" }), ms: 60_000, status: 408 },
      { sent: head("GET", "/idle"), ms: 65_000, status: 200 },
      { sent: `${head("GET", "/idle")}GET`, ms: 10_000, status: 200 },
    ];
    for (const { sent, ms, status } of cases) {
      using connection = await openRaw(server.port);
      connection.send(sent);
      const session = server.sessions.at(-1);
      const [socket] = [...server.sockets].slice(-1);
      await eventually("it is read", () => socket?.bytesRead === sent.length);
      if (status === 200) await connection.answer();
      session?.checkTime(later(ms - 1000));
      expect(socket?.writableEnded, sent).toBe(false);
      session?.checkTime(later(ms));
      expect((await connection.answer())?.status, sent).toBe(status);
      await connection.closed;
    }
  });

  it("does not end a request that waits for its answer", async () => {
    const streams: HttpStream[] = [];
    await using server = await startServer((stream) => void streams.push(stream));
    using connection = await openRaw(server.port);
    connection.send(post("/", {}, "body"));
    await eventually("it is asked", () => streams.length === 1);
    server.sessions[0]?.checkTime(later(3_600_000));
    streams[0]?.end();
    expect((await connection.answer())?.status).toBe(200);
  });
});
