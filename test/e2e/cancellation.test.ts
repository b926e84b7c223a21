import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script, silence } from "../support/fake-vllm-replies.ts";
import { envelope } from "../support/raw-http.ts";
import {
  flags,
  frame,
  frameTypes,
  openRawHttp2,
  type RawHttp2,
  requestHeaders,
  resetFrame,
} from "../support/raw-http2.ts";
import { erpKey, protocols, startApp, type TestApp, transportFor } from "../support/start-app.ts";

/** How long the engine may go on for a caller who left. */
const stopMs = 250;

let vllm: FakeVllm;
let app: TestApp;

beforeEach(async () => {
  vllm = await startFakeVllm();
  app = await startApp({ VLLM_URL: vllm.url.href, ENGINE_CONCURRENCY: "1", QUEUE_LENGTH: "2" });
});

afterEach(async () => {
  // Everything that a caller had who left was given back in time, in whatever phase that was.
  const canceled = app.logs.filter(({ outcome }) => outcome === "canceled");
  for (const { abort_ms: abortMs } of canceled) expect(abortMs).toBeLessThan(stopMs);
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const hello = { messages: [{ role: "user", content: "Bonjour" }] };
const body = JSON.stringify(hello);
const endless: Script = answer({ text: Array.from({ length: 100_000 }, () => "mot "), paceMs: 5 });

/** Phases in which a caller can leave while the engine holds its request. */
const phases: readonly (readonly [string, Script])[] = [
  ["before the first token", silence],
  ["in the middle of the answer", endless],
];

async function expectEngineStops(request: number, leave: () => void): Promise<void> {
  const chat = await vllm.request(request);
  if (chat.state !== "running") throw new Error("the engine did not run");
  leave();
  const leftAt = performance.now();
  expect(await chat.closed).toBe("aborted");
  expect((chat.closedAt ?? Number.POSITIVE_INFINITY) - leftAt).toBeLessThan(stopMs);
}

/** After whatever happened, the one sequence is free: the next call is answered. */
async function expectSequenceIsFree(): Promise<void> {
  vllm.reply(answer({ text: ["libre"] }));
  const client = createClient(ChatService, transportFor("Connect JSON", app.url));
  expect((await client.chat(hello)).message?.content).toBe("libre");
}

/** The line of the first call, as soon as it is there. */
async function loggedCall() {
  const find = () => app.logs.find(({ msg }) => msg === "call");
  await eventually("the call is logged", () => find() !== undefined);
  return find();
}

describe.each(protocols)("over %s, the engine stops within 250 ms", (protocol) => {
  const client = () => createClient(ChatService, transportFor(protocol, app.url));

  it.each(phases)("when a stream's caller cancels %s", async (_phase, script) => {
    vllm.reply(script);
    const left = new AbortController();
    const reading = Array.fromAsync(client().streamChat(hello, { signal: left.signal }));
    const failed = expect(reading).rejects.toMatchObject({ code: Code.Canceled });
    await expectEngineStops(0, () => left.abort());
    await failed;
    await expectSequenceIsFree();
  });

  it.each(phases)("when a unary call's caller cancels %s", async (_phase, script) => {
    vllm.reply(script);
    const left = new AbortController();
    const failed = expect(client().chat(hello, { signal: left.signal })).rejects.toMatchObject({
      code: Code.Canceled,
    });
    await expectEngineStops(0, () => left.abort());
    await failed;
    await expectSequenceIsFree();
  });

  it.each(phases)("when the deadline comes %s", async (_phase, script) => {
    vllm.reply(script);
    const error = await client()
      .chat(hello, { timeoutMs: 300 })
      .catch((reason: unknown) => ConnectError.from(reason));
    expect(error).toMatchObject({ code: Code.DeadlineExceeded });
    const chat = await vllm.request(0);
    expect(await chat.closed).toBe("aborted");
    await expectSequenceIsFree();
  });

  it("and a caller who leaves the queue never reaches the engine", async () => {
    vllm.reply(silence);
    const first = new AbortController();
    const running = client()
      .chat(hello, { signal: first.signal })
      .catch(() => "left");
    await vllm.request(0);
    const second = new AbortController();
    const queued = client()
      .chat(hello, { signal: second.signal })
      .catch(() => "left");
    second.abort();
    expect(await queued).toBe("left");
    first.abort();
    expect(await running).toBe("left");
    await expectSequenceIsFree();
    expect(vllm.requests).toHaveLength(2);
  });
});

describe("the engine stops within 250 ms when the connection goes", () => {
  const head = (path: string, type: string, length: number) =>
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${erpKey}\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`;

  function openHttp1(path: string, streamed: boolean): Socket {
    const socket = connect(app.address.port, "127.0.0.1");
    socket.on("error", () => undefined).resume();
    const bytes = Buffer.from(body);
    if (streamed) {
      const envelope = Buffer.alloc(5);
      envelope.writeUInt32BE(bytes.length, 1);
      socket.write(head(path, "application/connect+json", bytes.length + 5));
      socket.write(Buffer.concat([envelope, bytes]));
    } else {
      socket.write(head(path, "application/json", bytes.length));
      socket.write(bytes);
    }
    return socket;
  }

  const ends: readonly (readonly [string, (socket: Socket) => void])[] = [
    ["FIN", (socket) => socket.end()],
    ["RST", (socket) => socket.resetAndDestroy()],
  ];
  const calls = [
    ["POST /v1/chat", "/v1/chat", false],
    ["a stream", "/formdev.chat.v1.ChatService/StreamChat", true],
  ] as const;

  for (const [how, end] of ends) {
    for (const [what, path, streamed] of calls) {
      it.each(phases)(`by ${how}, during ${what}, %s`, async (_phase, script) => {
        vllm.reply(script);
        const socket = openHttp1(path, streamed);
        await expectEngineStops(0, () => end(socket));
        await expectSequenceIsFree();
      });
    }
  }

  it.each(phases)(
    "by RST_STREAM, %s, and the connection's other calls go on",
    async (_phase, script) => {
      vllm.reply(script);
      const session = connectHttp2(app.url);
      session.on("error", () => undefined);
      const stream = session.request({
        ":method": "POST",
        ":path": "/v1/chat",
        "content-type": "application/json",
        "x-api-key": erpKey,
      });
      stream.on("error", () => undefined).end(body);
      await expectEngineStops(0, () => stream.close(8));
      await expectSequenceIsFree();
      expect(session.closed).toBe(false);
      session.close();
    },
  );
});

describe("a caller who leaves while its body arrives has done nothing wrong", () => {
  const streamPath = "/formdev.chat.v1.ChatService/StreamChat";
  const connectStream = { "content-type": "application/connect+json" };
  const requests: readonly (readonly [string, string, Readonly<Record<string, string>>])[] = [
    ["a stream", streamPath, connectStream],
    ["a gzipped stream", streamPath, { ...connectStream, "connect-content-encoding": "gzip" }],
    ["a call", "/v1/chat", { "content-type": "application/json" }],
    [
      "a call of another method",
      "/formdev.model.v1.ModelService/ListModels",
      { "content-type": "application/json" },
    ],
  ];
  /** The server says that it goes on when it hands the request on. */
  const expected = { expect: "100-continue", "x-api-key": erpKey };

  it.each(requests)("over HTTP/1.1: %s", async (_what, path, headers) => {
    const socket = connect(app.address.port, "127.0.0.1");
    socket.on("error", () => undefined);
    const fields = { host: "localhost", "content-length": "100", ...headers, ...expected };
    const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}`);
    socket.write(`POST ${path} HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
    await once(socket, "data");
    socket.resetAndDestroy();
    expect(await loggedCall()).toMatchObject({ outcome: "canceled" });
  });

  for (const [name, code] of Object.entries({ NO_ERROR: 0, INTERNAL_ERROR: 2, CANCEL: 8 })) {
    it.each(requests)(`over HTTP/2, by ${name}: %s`, async (_what, path, headers) => {
      using connection = await openRawHttp2(app.address.port);
      const head = requestHeaders(path, { ...headers, ...expected });
      connection.send(frame(frameTypes.headers, { flags: flags.endHeaders, stream: 1 }, head));
      await connection.frame(frameTypes.headers, 1);
      connection.send(
        Buffer.concat([
          frame(frameTypes.data, { stream: 1 }, Buffer.alloc(10)),
          resetFrame(1, code),
        ]),
      );
      expect(await loggedCall()).toMatchObject({ outcome: "canceled" });
    });
  }
});

it.each([
  ["RST_STREAM", (connection: RawHttp2) => connection.send(resetFrame(1))],
  ["the end of the connection", (connection: RawHttp2) => connection[Symbol.dispose]()],
])("logs a caller of reflection who left by %s as canceled", async (_how, leave) => {
  using connection = await openRawHttp2(app.address.port);
  const head = requestHeaders("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {
    "content-type": "application/grpc+proto",
    "x-api-key": erpKey,
    te: "trailers",
  });
  /** list_services, field 7 of ServerReflectionRequest: an empty string. */
  const listServices = envelope(Buffer.of((7 << 3) | 2, 0));
  connection.send(
    Buffer.concat([
      frame(frameTypes.headers, { flags: flags.endHeaders, stream: 1 }, head),
      frame(frameTypes.data, { stream: 1 }, listServices),
    ]),
  );
  await connection.frame(frameTypes.data, 1);
  leave(connection);
  expect(await loggedCall()).toMatchObject({ outcome: "canceled" });
  expect(app.logs.filter(({ level }) => Number(level) >= 40)).toEqual([]);
});

it("logs a caller who left as canceled, with the tokens that were made, at no level that calls somebody", async () => {
  vllm.reply(endless);
  const left = new AbortController();
  const client = createClient(ChatService, transportFor("gRPC", app.url));
  await expect(async () => {
    for await (const { part } of client.streamChat(hello, { signal: left.signal })) {
      if (part.case === "textDelta") left.abort();
    }
  }).rejects.toMatchObject({ code: Code.Canceled });
  const line = await loggedCall();
  expect(line).toMatchObject({ outcome: "canceled", client: "erp" });
  expect(line?.completion_tokens).toBeGreaterThan(0);
  expect(app.logs.filter(({ level }) => Number(level) >= 40)).toEqual([]);
});
