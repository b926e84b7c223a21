import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { startApp, type TestApp } from "../support/start-app.ts";
import { findProgram, type Outcome, run } from "../support/third-party.ts";
import { expectQuietLog } from "../support/unharmed.ts";

// Clients that nobody here wrote, with the key, the model and the words of the founding document.
const key = "FormdevINF26";
const model = "Qwen/Qwen2.5-7B-Instruct";
const said = "Bonjour ! Je suis un modèle factice.";
const prompt = JSON.stringify({
  model,
  messages: [{ role: "user", content: "Dis bonjour en une phrase." }],
  max_tokens: 60,
});
const chat = "formdev.chat.v1.ChatService/Chat";
const streamChat = "formdev.chat.v1.ChatService/StreamChat";
const services = [
  "formdev.chat.v1.ChatService",
  "formdev.health.v1.HealthService",
  "formdev.model.v1.ModelService",
  "formdev.usage.v1.UsageService",
  "grpc.health.v1.Health",
];

let vllm: FakeVllm;
let app: TestApp;

beforeAll(async () => {
  vllm = await startFakeVllm({ model });
  app = await startApp({ VLLM_URL: vllm.url.href, API_KEYS: `erp:${key}` });
});

afterAll(async () => {
  try {
    expectQuietLog(app);
  } finally {
    await app[Symbol.asyncDispose]();
    await vllm[Symbol.asyncDispose]();
  }
});

/** The text pieces of a stream that was printed as one JSON object after another. */
function streamedText(output: string): string {
  const pieces = [...output.matchAll(/"textDelta":\s*\{\s*"text":\s*("(?:[^"\\]|\\.)*")/g)];
  return pieces.map(([, text = '""']) => JSON.parse(text)).join("");
}

function expectSuccess({ exitCode, stderr }: Outcome): void {
  expect(stderr).toBe("");
  expect(exitCode).toBe(0);
}

const curl = findProgram("curl");

describe.skipIf(curl === undefined)("curl", () => {
  const versions = ["--http1.1", "--http2", "--http2-prior-knowledge"];

  it("does what the founding document says", async () => {
    const shell = (script: string) =>
      run("sh", "-c", script.replaceAll("localhost:8080", `localhost:${app.address.port}`));

    const health = await shell("curl -s http://localhost:8080/health");
    expectSuccess(health);
    expect(JSON.parse(health.stdout)).toMatchObject({ status: "SERVING_STATUS_SERVING" });

    const answer = await shell(`API_KEY="FormdevINF26"
curl -s http://localhost:8080/v1/chat \\
  -H "Content-Type: application/json" \\
  -H "X-API-Key: \${API_KEY}" \\
  -d '{
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "messages": [{"role":"user","content":"Dis bonjour en une phrase."}],
    "max_tokens": 60
  }'`);
    expectSuccess(answer);
    expect(JSON.parse(answer.stdout)).toMatchObject({
      model,
      message: { role: "assistant", content: said },
      usage: { completionTokens: 9 },
    });
  });

  it.each(versions)("asks for health and a chat with %s", async (version) => {
    const health = await run(curl ?? "", "-sS", version, `${app.url}/health`);
    expectSuccess(health);
    expect(JSON.parse(health.stdout).status).toBe("SERVING_STATUS_SERVING");
    const answer = await run(
      curl ?? "",
      ...["-sS", version, `${app.url}/v1/chat`, "-d", prompt],
      ...["-H", "content-type: application/json", "-H", `authorization: Bearer ${key}`],
    );
    expectSuccess(answer);
    expect(JSON.parse(answer.stdout).message.content).toBe(said);
  });

  it.each(versions)("sees the head of health without its body with %s", async (version) => {
    const head = await run(curl ?? "", "-sS", "-I", version, `${app.url}/health`);
    expectSuccess(head);
    expect(head.stdout).toMatch(/^HTTP\/[\d.]+ 200/);
    expect(head.stdout).toMatch(/content-length: [1-9]/i);
  });

  it.each(versions)("hears the refusal of what it is still sending with %s", async (version) => {
    const folder = await mkdtemp(join(tmpdir(), "formdev-curl-"));
    try {
      for (const [bytes, status] of [
        [100_000, "401"],
        [1_000_000, "401"],
        [5_000_000, "413"],
      ] as const) {
        const body = join(folder, String(bytes));
        await writeFile(body, Buffer.alloc(bytes, " "));
        const refused = await run(
          curl ?? "",
          ...["-sS", version, "-o", join(folder, "answer"), "-w", "%{http_code}"],
          ...["-H", "content-type: application/json", "-H", "expect:"],
          ...["--data-binary", `@${body}`, `${app.url}/v1/chat`],
        );
        expect(refused).toEqual({ exitCode: 0, stderr: "", stdout: status });
      }
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});

const buf = findProgram("buf");

describe.skipIf(buf === undefined)("buf curl, which learns the API by reflection", () => {
  const call = (protocol: string, ...args: readonly string[]) =>
    run(
      buf ?? "",
      ...["curl", "--http2-prior-knowledge", "--protocol", protocol],
      ...["--reflect-header", `x-api-key: ${key}`, ...args],
    );
  const withKey = ["-H", `x-api-key: ${key}`];

  it.each(["connect", "grpc", "grpcweb"])("calls and streams over %s", async (protocol) => {
    const answer = await call(protocol, ...withKey, "-d", prompt, `${app.url}/${chat}`);
    expectSuccess(answer);
    expect(JSON.parse(answer.stdout).message.content).toBe(said);

    const stream = await call(protocol, ...withKey, "-d", prompt, `${app.url}/${streamChat}`);
    expectSuccess(stream);
    expect(streamedText(stream.stdout)).toBe(said);
    expect(stream.stdout).toContain("FINISH_REASON_STOP");
  });

  it.each(["connect", "grpc", "grpcweb"])(
    "is told over %s that it has no key",
    async (protocol) => {
      const refused = await call(protocol, "-d", prompt, `${app.url}/${chat}`);
      expect(refused.exitCode).not.toBe(0);
      expect(refused.stderr).toContain("unauthenticated");
    },
  );

  it("lists every method", async () => {
    const listed = await call("grpc", "--list-methods", app.url);
    expectSuccess(listed);
    const methods = listed.stdout.trim().split("\n");
    expect(methods).toEqual(expect.arrayContaining([chat, streamChat]));
    expect([...new Set(methods.map((method) => method.split("/")[0]))]).toEqual(services);
  });
});

const grpcurl = findProgram("grpcurl");

describe.skipIf(grpcurl === undefined)("grpcurl, which learns the API by reflection", () => {
  const address = () => `127.0.0.1:${app.address.port}`;
  const call = (...args: readonly string[]) => run(grpcurl ?? "", "-plaintext", ...args);
  const withKey = ["-H", `x-api-key: ${key}`];
  /** The key for reflection alone, not for the call. */
  const reflecting = ["-reflect-header", `x-api-key: ${key}`];

  it("lists the services", async () => {
    const listed = await call(...withKey, address(), "list");
    expectSuccess(listed);
    expect(listed.stdout.trim().split("\n")).toEqual(services);
  });

  it("describes services, messages with their rules, and fields", async () => {
    const method = await call(
      ...withKey,
      address(),
      "describe",
      "formdev.chat.v1.ChatService.Chat",
    );
    expectSuccess(method);
    expect(method.stdout).toContain("rpc Chat ( .formdev.chat.v1.ChatRequest )");
    const message = await call(...withKey, address(), "describe", "formdev.chat.v1.ChatRequest");
    expectSuccess(message);
    expect(message.stdout).toContain("optional uint32 max_tokens = 3");
    expect(message.stdout).toContain(".buf.validate.field");
  });

  it("calls and streams", async () => {
    const answer = await call(...withKey, "-d", prompt, address(), chat);
    expectSuccess(answer);
    expect(JSON.parse(answer.stdout).message.content).toBe(said);

    const stream = await call(...withKey, "-d", prompt, address(), streamChat);
    expectSuccess(stream);
    expect(streamedText(stream.stdout)).toBe(said);
    expect(stream.stdout).toContain("FINISH_REASON_STOP");
  });

  it.each(["", "formdev.chat.v1.ChatService"])(
    "checks health without a key: %o",
    async (service) => {
      const request = JSON.stringify({ service });
      const checked = await call(
        ...reflecting,
        "-d",
        request,
        address(),
        "grpc.health.v1.Health/Check",
      );
      expectSuccess(checked);
      expect(JSON.parse(checked.stdout)).toEqual({ status: "SERVING" });
    },
  );

  it("is told of a service that does not exist, of a missing key and of a wrong field", async () => {
    const health = "grpc.health.v1.Health/Check";
    const unknown = await call(...reflecting, "-d", `{"service":"nobody"}`, address(), health);
    expect(unknown.stderr).toContain("Code: NotFound");
    const refused = await call(...reflecting, "-d", prompt, address(), chat);
    expect(refused.stderr).toContain("Code: Unauthenticated");
    const listing = await call(address(), "list");
    expect(listing.stderr).toContain("Unauthenticated");
    const wrong = await call(...withKey, "-d", `{"messages":[]}`, address(), chat);
    expect(wrong.stderr).toContain("Code: InvalidArgument");
    expect(wrong.stderr).toContain("messages");
  });
});
