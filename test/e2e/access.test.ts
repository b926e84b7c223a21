import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { type DescMethod, type DescService, fromBinary } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { HealthService } from "../../gen/formdev/health/v1/health_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { UsageService } from "../../gen/formdev/usage/v1/usage_service_pb.ts";
import { Health as GrpcHealth } from "../../gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import {
  erpKey,
  extranetKey,
  protocols,
  startApp,
  type TestApp,
  transportFor,
} from "../support/start-app.ts";

const services: readonly DescService[] = [
  ChatService,
  ModelService,
  UsageService,
  HealthService,
  GrpcHealth,
  ServerReflection,
  ServerReflectionAlpha,
];

/** The methods that anybody may call: adding one to the product means adding it here. */
const open = new Set([
  "formdev.health.v1.HealthService/Check",
  "grpc.health.v1.Health/Check",
  "grpc.health.v1.Health/List",
]);

const methods = services.flatMap((service) =>
  service.methods.map((method) => [`${service.typeName}/${method.name}`, method] as const),
);

let vllm: FakeVllm;
let app: TestApp;

beforeEach(async () => {
  vllm = await startFakeVllm();
  app = await startApp({ VLLM_URL: vllm.url.href });
});

afterEach(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const hello = { messages: [{ role: "user", content: "Bonjour" }] };

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly trailers: Readonly<Record<string, unknown>>;
  readonly body: string;
}

/** One request over HTTP/2, which carries every protocol. */
async function request(
  path: string,
  headers: Record<string, string>,
  body?: string | Uint8Array,
): Promise<Answer> {
  const session = connectHttp2(app.url);
  try {
    const stream = session.request({ ":method": "POST", ":path": path, ...headers });
    let answered: Record<string, unknown> = {};
    let trailers: Record<string, unknown> = {};
    stream.once("response", (received) => {
      answered = { ...received };
    });
    stream.once("trailers", (received) => {
      trailers = { ...received };
    });
    stream.end(body);
    const received = await text(stream);
    return { status: Number(answered[":status"]), headers: answered, trailers, body: received };
  } finally {
    session.destroy();
  }
}

/** Calls a method with an empty message in the protocol that the content type names. */
function post(path: string, contentType: string, headers: Record<string, string> = {}) {
  const unary = contentType === "application/json" || contentType === "application/proto";
  const empty = contentType === "application/json" ? "{}" : new Uint8Array(unary ? 0 : 5);
  return request(`/${path}`, { "content-type": contentType, ...headers }, empty);
}

/** The name of the RPC status of an answer, wherever its protocol puts it. */
function codeOf({ status, headers, trailers, body }: Answer): string {
  const inBody = /grpc-status: *(\d+)/i.exec(body)?.[1];
  const grpc = trailers["grpc-status"] ?? headers["grpc-status"] ?? inBody;
  if (grpc !== undefined) return (Code[Number(grpc)] ?? String(grpc)).toLowerCase();
  return /"code":"(\w+)"/.exec(body)?.[1] ?? String(status);
}

describe("without a key", () => {
  it.each(methods.filter(([rpc]) => !open.has(rpc)))(
    "%s is refused in every protocol",
    async (rpc, method: DescMethod) => {
      const connect =
        method.methodKind === "unary"
          ? ["application/json", "application/proto"]
          : ["application/connect+json", "application/connect+proto"];
      for (const type of [...connect, "application/grpc-web+proto", "application/grpc+proto"]) {
        expect(codeOf(await post(rpc, type)), type).toBe("unauthenticated");
      }
    },
  );

  it.each([...open])("%s answers", async (rpc) => {
    const response = await post(rpc, "application/json");
    expect(response.status).toBe(200);
  });

  it.each([
    ["/", "GET"],
    ["/metrics", "GET"],
    ["/v1/chat", "GET"],
    ["/v1/chat", "DELETE"],
    ["/v1/chat/completions", "POST"],
    ["/formdev.chat.v1.ChatService/Nothing", "POST"],
    ["/formdev.chat.v1.ChatService/Chat", "GET"],
    ["/formdev.chat.v1.ChatService/Chat", "OPTIONS"],
    ["/health/", "GET"],
    ["/HEALTH", "GET"],
    ["/health", "POST"],
  ])("%s by %s is refused, whether it exists or not", async (path, method) => {
    const { status } = await request(path, { ":method": method });
    expect(status).toBe(401);
  });

  it("the answer is the same for a key that is missing, malformed, unknown or nearly right", async () => {
    const attempts: Record<string, string>[] = [
      {},
      { "x-api-key": "" },
      { "x-api-key": "wrong" },
      { "x-api-key": erpKey.slice(0, -1) },
      { "x-api-key": `${erpKey}, ${erpKey}` },
      { "x-api-key": "' OR 1=1 --" },
      { authorization: "Bearer" },
      { authorization: `Basic ${erpKey}` },
      { authorization: `Bearer ${erpKey}x` },
    ];
    const answers: string[] = [];
    for (const headers of attempts) {
      const response = await post("v1/chat", "application/json", headers);
      const { "x-request-id": _id, date: _date, ...seen } = response.headers;
      answers.push(JSON.stringify([seen, response.body]));
    }
    expect(new Set(answers).size).toBe(1);
    expect(answers[0]).toContain("401");
    expect(vllm.requests).toHaveLength(0);
  });
});

describe("with a key", () => {
  it.each([
    { "x-api-key": erpKey },
    { authorization: `Bearer ${erpKey}` },
    { authorization: `bearer  ${erpKey}` },
  ])("%j is accepted", async (headers) => {
    const typed = { "content-type": "application/json", ...headers };
    const response = await request("/v1/chat", typed, JSON.stringify(hello));
    expect(response.status).toBe(200);
  });

  it("a path that does not exist is UNIMPLEMENTED", async () => {
    const response = await post("v1/nothing", "application/json", { "x-api-key": erpKey });
    expect(response.status).toBe(404);
    expect(codeOf(response)).toBe("unimplemented");
  });

  it("the client is known from the key alone, whatever the request says", async () => {
    const headers = { "x-api-key": extranetKey, "x-client-id": "erp", "x-formdev-client": "erp" };
    await post("v1/chat", "application/json", headers);
    expect(app.logs.findLast(({ msg }) => msg === "call")).toMatchObject({ client: "extranet" });
  });
});

it("locks an address out after twenty wrong keys in a minute, and says until when", async () => {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    expect((await post("v1/chat", "application/json", { "x-api-key": "wrong-key" })).status).toBe(
      401,
    );
  }
  const response = await post("v1/chat", "application/json", { "x-api-key": erpKey });
  expect(response.status).toBe(429);
  const seconds = Number(response.headers["retry-after"]);
  expect(seconds).toBeGreaterThan(0);
  expect(seconds).toBeLessThanOrEqual(60);
  expect((await fetch(`${app.url}/health`)).status).toBe(200);
});

describe("the rate limit", () => {
  let limited: TestApp;
  beforeEach(async () => {
    limited = await startApp({ VLLM_URL: vllm.url.href, RATE_LIMIT_RPM: "3" });
  });
  afterEach(async () => {
    await limited[Symbol.asyncDispose]();
  });

  it.each(protocols)(
    "over %s: RESOURCE_EXHAUSTED, with RetryInfo and the headers, and nothing reaches the engine",
    async (protocol) => {
      const client = createClient(ChatService, transportFor(protocol, limited.url));
      for (let call = 0; call < 3; call += 1) await client.chat(hello);
      const error = await client.chat(hello).catch((reason: unknown) => ConnectError.from(reason));
      if (!(error instanceof ConnectError)) throw new Error("the fourth call was answered");
      expect(error.code).toBe(Code.ResourceExhausted);
      const retryAfter = Number(error.metadata.get("retry-after"));
      expect(retryAfter).toBeGreaterThan(55);
      expect(retryAfter).toBeLessThanOrEqual(60);
      const [detail] = error.details;
      if (detail === undefined || !("type" in detail)) throw new Error("the error has no detail");
      expect(detail.type).toBe("google.rpc.RetryInfo");
      // Its field 1 is a Duration: a tag byte and a length byte, then the message.
      expect(detail.value[0]).toBe(0x0a);
      expect(Number(fromBinary(DurationSchema, detail.value.subarray(2)).seconds)).toBeGreaterThan(
        54,
      );
      expect(vllm.requests).toHaveLength(3);
    },
  );

  it("counts one client, not the other", async () => {
    const erp = createClient(ChatService, transportFor("gRPC", limited.url));
    const extranet = createClient(ChatService, transportFor("gRPC", limited.url, extranetKey));
    for (let call = 0; call < 3; call += 1) await erp.chat(hello);
    await expect(erp.chat(hello)).rejects.toMatchObject({ code: Code.ResourceExhausted });
    await extranet.chat(hello);
  });

  it("lets exactly as many through as it says, of a hundred at once", async () => {
    const client = createClient(ChatService, transportFor("Connect JSON", limited.url));
    const calls = Array.from({ length: 100 }, () =>
      client.chat(hello).then(
        () => "ok",
        () => "refused",
      ),
    );
    const results = await Promise.all(calls);
    expect(results.filter((result) => result === "ok")).toHaveLength(3);
    expect(vllm.requests).toHaveLength(3);
  });

  it("tells every caller where it stands", async () => {
    const response = await fetch(`${limited.url}/v1/chat`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-api-key": erpKey },
      body: JSON.stringify(hello),
    });
    expect(response.headers.get("ratelimit-limit")).toBe("3");
    expect(response.headers.get("ratelimit-remaining")).toBe("2");
    expect(Number(response.headers.get("ratelimit-reset"))).toBeGreaterThan(55);
  });
});

it("takes clients, hashed keys and limits of their own from API_KEYS_FILE", async () => {
  const folder = mkdtempSync(join(tmpdir(), "formdev-keys-"));
  const file = join(folder, "keys.json");
  const sha256 = createHash("sha256").update("key-in-a-file").digest("hex");
  writeFileSync(
    file,
    JSON.stringify({ clients: [{ id: "partner", keys: [`sha256:${sha256}`], rpm: 1 }] }),
  );
  const env = { VLLM_URL: vllm.url.href, API_KEYS: "", API_KEYS_FILE: file };
  try {
    await using filed = await startApp(env);
    const client = createClient(ChatService, transportFor("gRPC", filed.url, "key-in-a-file"));
    await client.chat(hello);
    await expect(client.chat(hello)).rejects.toMatchObject({ code: Code.ResourceExhausted });
    writeFileSync(file, "{}");
    await expect(startApp(env)).rejects.toThrow("API_KEYS_FILE");
  } finally {
    rmSync(folder, { recursive: true });
  }
});
