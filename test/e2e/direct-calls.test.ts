import { once } from "node:events";
import { type ClientHttp2Session, connect, type IncomingHttpHeaders } from "node:http2";
import { create, toBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ChatRequestSchema } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { envelope } from "../../src/rpc/wire.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script } from "../support/fake-vllm-replies.ts";
import { ask as askRaw, openRaw, post, type RawAnswer } from "../support/raw-http.ts";
import { erpKey, startApp, type TestApp } from "../support/start-app.ts";
import { streamPath } from "../support/unharmed.ts";

/*
 * The usual calls are answered without Connect's pipeline, and must be answered as it would. Connect's own path is taken
 * for a content type in capitals, so that both can be asked the same and compared byte for byte.
 */

let vllm: FakeVllm;
let app: TestApp;
let session: ClientHttp2Session;

beforeAll(async () => {
  vllm = await startFakeVllm();
  app = await startApp({ VLLM_URL: vllm.url.href, MAX_BODY_BYTES: "20000" });
  session = connect(app.url);
});

afterAll(async () => {
  session.close();
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const hello = { messages: [{ role: "user", content: "Bonjour" }] };
const json = Buffer.from(JSON.stringify(hello));
const proto = Buffer.from(toBinary(ChatRequestSchema, create(ChatRequestSchema, hello)));

interface Wire {
  readonly type: string;
  readonly method: "Chat" | "StreamChat";
  readonly body: Buffer;
  readonly timeout: (ms: number) => Record<string, string>;
}

const grpcTimeout = (ms: number) => ({ "grpc-timeout": `${ms}m` });
const connectTimeout = (ms: number) => ({ "connect-timeout-ms": String(ms) });

const wires: Wire[] = (["Chat", "StreamChat"] as const).flatMap((method) => [
  ...["application/grpc", "application/grpc+proto", "application/grpc-web+proto"].map((type) => ({
    type,
    method,
    body: envelope(0, proto),
    timeout: grpcTimeout,
  })),
  ...["application/grpc+json", "application/grpc-web+json"].map((type) => ({
    type,
    method,
    body: envelope(0, json),
    timeout: grpcTimeout,
  })),
  {
    type: method === "Chat" ? "application/json" : "application/connect+json",
    method,
    body: method === "Chat" ? json : envelope(0, json),
    timeout: connectTimeout,
  },
  {
    type: method === "Chat" ? "application/proto" : "application/connect+proto",
    method,
    body: method === "Chat" ? proto : envelope(0, proto),
    timeout: connectTimeout,
  },
]);

/** What differs from call to call. */
const volatile = ["date", "x-request-id", "ratelimit-remaining", "ratelimit-reset"];

interface Answer {
  readonly head: IncomingHttpHeaders;
  readonly body: string;
  readonly trailers: IncomingHttpHeaders;
}

async function ask(
  { method }: Wire,
  type: string,
  body: Buffer,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const stream = session.request({
    ":method": "POST",
    ":path": `/formdev.chat.v1.ChatService/${method}`,
    "content-type": type,
    "x-api-key": erpKey,
    te: "trailers",
    ...headers,
  });
  let head: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders = {};
  stream.once("response", (given) => {
    head = given;
  });
  stream.once("trailers", (given) => {
    trailers = given;
  });
  const chunks: Buffer[] = [];
  stream.on("data", (chunk) => chunks.push(chunk));
  stream.end(body);
  await once(stream, "close");
  const id = String(head["x-request-id"]);
  const plain = (given: IncomingHttpHeaders) =>
    Object.fromEntries(Object.entries(given).filter(([name]) => !volatile.includes(name)));
  return {
    head: plain(head),
    trailers: plain(trailers),
    body: Buffer.concat(chunks).toString("latin1").replaceAll(id, "ID"),
  };
}

async function askBoth(wire: Wire, body = wire.body, headers: Record<string, string> = {}) {
  const direct = await ask(wire, wire.type, body, headers);
  const connects = await ask(wire, wire.type.replace("application", "Application"), body, headers);
  return { direct, connects };
}

const scripts: readonly (readonly [string, Script, string])[] = [
  [
    "an answer with everything in it",
    answer({
      reasoning: ["Je réfléchis."],
      text: [`Ça va ? 😀 "\\\n\u2028 ${"long ".repeat(40)}`],
      toolCalls: [{ id: "call-1", name: "f", arguments: ['{"a":1}'] }],
      cachedTokens: 3,
    }),
    "call-1",
  ],
  ["an answer without a word", answer({ text: [] }), ""],
  [
    "an engine that breaks off",
    answer({ text: ["un", "deux"] }, { after: 2, by: (reply) => reply.cut("fin") }),
    "stopped in the middle",
  ],
  [
    "an engine that refuses",
    (reply) => reply.json(400, { error: { message: "no", code: 400 } }),
    "refused this request",
  ],
  ["an engine that is full", (reply) => reply.json(503, {}), "cannot take this request"],
];

describe.each(wires)("$method as $type", (wire) => {
  it.each(scripts)("is answered as Connect would: %s", async (_name, script, contains) => {
    vllm.reply(script, script);
    const { direct, connects } = await askBoth(wire);
    expect(direct).toEqual(connects);
    const said = `${direct.body}${direct.trailers["grpc-message"]}`.replaceAll("%20", " ");
    expect(said).toContain(contains);
  });

  it("is answered as Connect would when the deadline passes", async () => {
    const stalls = answer({ text: ["un"] }, { after: 2, by: () => new Promise(() => undefined) });
    vllm.reply(stalls, stalls);
    const { direct, connects } = await askBoth(wire, wire.body, wire.timeout(200));
    expect(connects.body + connects.trailers["grpc-message"]).toMatch(/timed(%20| )out/);
    expect(direct).toEqual(connects);
  });

  it.each<readonly [string, (body: Buffer) => Buffer]>([
    ["nothing", () => Buffer.alloc(0)],
    ["half a message", (body) => body.subarray(0, body.length - 3)],
    ["two messages", (body) => Buffer.concat([body, body])],
    ["a flag that means compressed", (body) => Buffer.concat([Buffer.of(1), body.subarray(1)])],
    ["a byte order mark", (body) => Buffer.concat([Buffer.from("\ufeff"), body])],
    ["too many bytes", () => Buffer.alloc(20_001, " ")],
    ["far too many bytes", () => Buffer.alloc(100_000, " ")],
  ])("is refused as Connect would: %s", async (_name, change) => {
    const { direct, connects } = await askBoth(wire, change(wire.body));
    expect(direct).toEqual(connects);
  });
});

describe("a stream over HTTP/1.1", () => {
  const request = (type: string, version = "1.1") => {
    const bytes = post(
      streamPath,
      { "content-type": type, "x-api-key": erpKey },
      envelope(0, json),
    );
    return Buffer.from(bytes.toString("latin1").replace("HTTP/1.1", `HTTP/${version}`), "latin1");
  };
  const messagesOf = (given: RawAnswer | undefined) => {
    const id = String(given?.headers["x-request-id"]);
    return given?.body.toString("latin1").replaceAll(id, "ID");
  };
  const ask = (bytes: Buffer) => askRaw(app.address.port, bytes);

  it.each(["1.0", "1.1"])("is answered as Connect would, to a client of %s", async (version) => {
    for (const [name, script] of scripts) {
      vllm.reply(script, script);
      const direct = await ask(request("application/connect+json", version));
      const connects = await ask(request("Application/connect+json", version));
      expect(direct?.status, name).toBe(200);
      expect(messagesOf(direct), name).toBe(messagesOf(connects));
    }
  });

  it("is asked for when the one before it on its connection is whole", async () => {
    using connection = await openRaw(app.address.port);
    const { promise, resolve: release } = Promise.withResolvers<void>();
    const bytes = request("application/connect+json");
    const before = vllm.requests.length;
    vllm.reply(
      answer({ text: ["un", "deux", "trois"] }, { after: 2, by: () => promise }),
      answer(),
      answer({ text: ["quatre", "cinq"] }),
    );
    connection.send(Buffer.concat([bytes, bytes]));
    await eventually("the first has begun", () => connection.received.includes('"un"'));
    // A call that begins now is answered after all that has come before it.
    expect((await ask(bytes))?.status).toBe(200);
    expect(vllm.requests).toHaveLength(before + 2);
    release();
    const textsOf = (given: RawAnswer | undefined) =>
      [...String(given?.body).matchAll(/"text":"(\w+)"/g)].map(([, text]) => text).join("");
    expect(textsOf(await connection.answer(0))).toBe("undeuxtrois");
    expect(textsOf(await connection.answer(1))).toBe("quatrecinq");
  });
});

it("takes the two paths that it compares: only Connect's announces a compression that it never uses", async () => {
  const [wire] = wires.filter(({ type }) => type === "application/grpc+proto");
  if (wire === undefined) throw new Error("no wire");
  const { direct, connects } = await askBoth(wire, wire.body, { "grpc-accept-encoding": "gzip" });
  expect(connects.head["grpc-encoding"]).toBe("gzip");
  expect(direct.head["grpc-encoding"]).toBeUndefined();
  expect(direct.body).toBe(connects.body);
});
