/** A load of gRPC, gRPC-Web or Connect calls over HTTP/2, cheap for the machine: requests are bytes, answers are counted. */
import { type ClientHttp2Session, connect } from "node:http2";
import { create, toBinary } from "@bufbuild/protobuf";
import { ChatRequestSchema } from "../../gen/formdev/chat/v1/chat_service_pb.ts";

export const key = "key-of-the-bench-0123456789";
const message = { model: "bench", messages: [{ role: "user", content: "Dis bonjour." }] };
const json = Buffer.from(JSON.stringify(message));
const binary = Buffer.from(toBinary(ChatRequestSchema, create(ChatRequestSchema, message)));

export interface Wire {
  readonly name: string;
  readonly method: "Chat" | "StreamChat";
  readonly contentType: string;
  readonly body: Buffer;
}

export const wires: readonly Wire[] = [
  {
    name: "gRPC stream",
    method: "StreamChat",
    contentType: "application/grpc+proto",
    body: envelope(binary),
  },
  {
    name: "gRPC-Web stream",
    method: "StreamChat",
    contentType: "application/grpc-web+proto",
    body: envelope(binary),
  },
  {
    name: "Connect JSON stream",
    method: "StreamChat",
    contentType: "application/connect+json",
    body: envelope(json),
  },
  {
    name: "Connect binary stream",
    method: "StreamChat",
    contentType: "application/connect+proto",
    body: envelope(binary),
  },
  {
    name: "gRPC call",
    method: "Chat",
    contentType: "application/grpc+proto",
    body: envelope(binary),
  },
  { name: "Connect JSON call", method: "Chat", contentType: "application/json", body: json },
];

function envelope(bytes: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

export interface Counts {
  readonly calls: number;
  readonly errors: number;
  /** Milliseconds from the request to the first byte of its answer's body, one for each call. */
  readonly firstByteMs: readonly number[];
}

const streamsPerConnection = 50;

/**
 * Keeps `concurrency` calls running: each that ends is followed by the next. `warmUp` resolves after one round of calls;
 * what is counted begins there and ends with `stop`.
 */
export function startLoad(url: string, wire: Wire, concurrency: number) {
  const sessions = Array.from({ length: Math.ceil(concurrency / streamsPerConnection) }, () =>
    connect(url),
  );
  const counts = { calls: 0, errors: 0, firstByteMs: [] as number[] };
  let stopped = false;
  const { promise: warmUp, resolve: onWarm } = Promise.withResolvers<void>();
  let warmCalls = 0;

  const keepCalling = async (session: ClientHttp2Session) => {
    while (!stopped) {
      const began = performance.now();
      const { ok, firstByteAt } = await call(session, wire);
      warmCalls += 1;
      if (warmCalls === concurrency) onWarm();
      counts.calls += 1;
      if (!ok) counts.errors += 1;
      counts.firstByteMs.push(firstByteAt - began);
    }
  };
  const workers = Array.from({ length: concurrency }, (_, index) => {
    const session = sessions[index % sessions.length];
    return session === undefined ? undefined : keepCalling(session);
  });

  return {
    warmUp,
    /** The counts since the last time, or since the start. */
    take(): Counts {
      const taken = { ...counts, firstByteMs: counts.firstByteMs };
      counts.calls = 0;
      counts.errors = 0;
      counts.firstByteMs = [];
      return taken;
    },
    async stop() {
      stopped = true;
      await Promise.all(workers);
      for (const session of sessions) session.destroy();
    },
  };
}

function call(session: ClientHttp2Session, { method, contentType, body }: Wire) {
  return new Promise<{ ok: boolean; firstByteAt: number }>((resolve) => {
    const stream = session.request({
      ":method": "POST",
      ":path": `/formdev.chat.v1.ChatService/${method}`,
      "content-type": contentType,
      te: "trailers",
      "x-api-key": key,
    });
    let ok = false;
    let firstByteAt = Number.POSITIVE_INFINITY;
    stream.once("response", (headers) => {
      ok = headers[":status"] === 200;
    });
    stream.once("trailers", (trailers) => {
      ok = ok && trailers["grpc-status"] === "0";
    });
    stream.once("data", () => {
      firstByteAt = performance.now();
    });
    stream.on("data", () => undefined);
    stream.once("error", () => {
      ok = false;
    });
    stream.once("close", () => resolve({ ok, firstByteAt }));
    stream.end(body);
  });
}
