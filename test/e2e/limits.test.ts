import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, refuse, silence } from "../support/fake-vllm-replies.ts";
import { erpKey, extranetKey, startApp, type TestApp, transportFor } from "../support/start-app.ts";

let vllm: FakeVllm;

beforeAll(async () => {
  vllm = await startFakeVllm();
});
afterAll(() => vllm[Symbol.asyncDispose]());

const hello = { messages: [{ role: "user", content: "Bonjour" }] };
/** What the gateway expects of such a prompt, before the engine has counted it. */
const promptExpected = 134;
/** A prompt of 90 tokens and an answer of 10. */
const hundred = () => answer({ text: Array.from({ length: 9 }, () => "mot "), promptTokens: 90 });

const clientOf = ({ url }: TestApp) => createClient(ChatService, transportFor("gRPC", url));
const start = (env: Readonly<Record<string, string>>) =>
  startApp({ VLLM_URL: vllm.url.href, ...env });

async function failureOf(call: Promise<unknown>): Promise<ConnectError> {
  const error = await call.then(
    () => new Error("it was answered"),
    (reason: unknown) => ConnectError.from(reason),
  );
  if (!(error instanceof ConnectError)) throw error;
  return error;
}

/** The requests that the client could still have made, as an answer's headers say. */
async function remaining(app: TestApp): Promise<number> {
  const response = await fetch(`${app.url}/formdev.model.v1.ModelService/ListModels`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": erpKey },
    body: "{}",
  });
  return Number(response.headers.get("ratelimit-remaining"));
}

describe("tokens a minute", () => {
  it("are reserved with the most that a call can cost, and settled with what the engine counted", async () => {
    const maxTokens = 100;
    const reserved = promptExpected + maxTokens;
    await using app = await start({ RATE_LIMIT_TPM: String(reserved + 150) });
    const chat = () => clientOf(app).chat({ ...hello, maxTokens });
    vllm.reply(hundred(), hundred());
    expect((await chat()).usage?.totalTokens).toBe(100);
    await chat();
    // 200 are spent, and one more call could cost more than the 184 that are left.
    const error = await failureOf(chat());
    expect(error.code).toBe(Code.ResourceExhausted);
    expect(error.rawMessage).toContain(`${reserved + 150} tokens a minute`);
    expect(Number(error.metadata.get("retry-after"))).toBeGreaterThan(55);
    vllm.reply(hundred());
    await clientOf(app).chat({ ...hello, maxTokens: 50 });
  });

  it("are not exceeded by calls that come together", async () => {
    const reserved = promptExpected + 100;
    await using app = await start({ RATE_LIMIT_TPM: String(5 * reserved + 1) });
    const before = vllm.requests.length;
    vllm.reply(...Array.from({ length: 5 }, () => silence));
    const left = new AbortController();
    const calls = Array.from({ length: 50 }, () =>
      failureOf(clientOf(app).chat({ ...hello, maxTokens: 100 }, { signal: left.signal })),
    );
    const codes: Code[] = [];
    for (const call of calls) void call.then(({ code }) => codes.push(code));
    await eventually("all others are refused", () => codes.length === 45);
    left.abort();
    await Promise.all(calls);
    expect(codes.filter((code) => code === Code.ResourceExhausted)).toHaveLength(45);
    expect(vllm.requests.length - before).toBe(5);
  });

  it("of a call that is cut are those that the engine has reported", async () => {
    await using app = await start({ DAILY_TOKENS: String(promptExpected + 1000) });
    vllm.reply(
      answer({ text: Array.from({ length: 1000 }, () => "mot "), promptTokens: 90, paceMs: 2 }),
    );
    const left = new AbortController();
    let deltas = 0;
    await failureOf(
      (async () => {
        for await (const { part } of clientOf(app).streamChat(
          { ...hello, maxTokens: 1000 },
          { signal: left.signal },
        )) {
          if (part.case === "textDelta") deltas += 1;
          if (deltas === 5) left.abort();
        }
      })(),
    );
    const line = () => app.logs.find(({ outcome }) => outcome === "canceled");
    await eventually("the call is logged", () => line() !== undefined);
    const spent = Number(line()?.prompt_tokens) + Number(line()?.completion_tokens);
    expect(spent).toBeGreaterThanOrEqual(95);
    // What is left is exactly what has not been spent.
    const left1 = promptExpected + 1000 - spent;
    const tooMuch = { ...hello, maxTokens: left1 - promptExpected + 1 };
    expect((await failureOf(clientOf(app).chat(tooMuch))).code).toBe(Code.ResourceExhausted);
    await clientOf(app).chat({ ...hello, maxTokens: left1 - promptExpected });
  });

  it("that are fewer than one call can cost are told as what has to change", async () => {
    await using app = await start({ RATE_LIMIT_TPM: "500" });
    const error = await failureOf(clientOf(app).chat(hello));
    expect(error.code).toBe(Code.InvalidArgument);
    expect(error.rawMessage).toContain("lower max_tokens");
    await clientOf(app).chat({ ...hello, maxTokens: 100 });
  });
});

describe("a refused call", () => {
  it("takes nothing: for want of places it costs no request, and none of the tokens", async () => {
    await using app = await start({
      RATE_LIMIT_RPM: "10",
      RATE_LIMIT_CONCURRENCY: "2",
      DAILY_TOKENS: String(3 * (promptExpected + 100)),
    });
    vllm.reply(silence, silence);
    const left = new AbortController();
    const asked = { ...hello, maxTokens: 100 };
    const begun = vllm.requests.length;
    const running = [1, 2].map(() => failureOf(clientOf(app).chat(asked, { signal: left.signal })));
    await vllm.request(begun + 1);
    for (const _ of [1, 2, 3, 4, 5]) {
      const error = await failureOf(clientOf(app).chat(asked));
      expect(error.code).toBe(Code.ResourceExhausted);
      expect(error.rawMessage).toContain("2 requests at once");
    }
    expect(await remaining(app)).toBe(7);
    left.abort();
    await Promise.all(running);
    await clientOf(app).chat(asked);
  });

  it("names the limit that lasts longest, and the reason is in the log", async () => {
    await using app = await start({
      RATE_LIMIT_RPM: "1",
      DAILY_TOKENS: String(promptExpected + 20),
    });
    vllm.reply(hundred());
    await clientOf(app).chat({ ...hello, maxTokens: 20 });
    await failureOf(clientOf(app).chat({ ...hello, maxTokens: 20 }));
    const line = () => app.logs.find(({ outcome }) => outcome === "resource_exhausted");
    await eventually("the call is logged", () => line() !== undefined);
    expect(line()).toMatchObject({ reason: "rpm", client: "erp" });
  });
});

it("a request that its caller got wrong counts as one", async () => {
  await using app = await start({ RATE_LIMIT_RPM: "3" });
  const wrong = { messages: [] };
  for (const _ of [1, 2]) {
    expect((await failureOf(clientOf(app).chat(wrong))).code).toBe(Code.InvalidArgument);
  }
  const logged = () => app.logs.filter(({ outcome }) => outcome === "invalid_argument");
  await eventually("both calls are over", () => logged().length === 2);
  expect(await remaining(app)).toBe(0);
  expect((await failureOf(clientOf(app).chat(wrong))).code).toBe(Code.ResourceExhausted);
});

it("a request whose body turns out to be too large counts as one", async () => {
  await using app = await start({ RATE_LIMIT_RPM: "5", MAX_BODY_BYTES: "2048" });
  // Sent in chunks: its size is not announced.
  const sent = request(`${app.url}/formdev.chat.v1.ChatService/Chat`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": erpKey },
  });
  sent.on("error", () => undefined).write(Buffer.alloc(4096, " "));
  const logged = () => app.logs.some(({ outcome }) => outcome === "resource_exhausted");
  await eventually("the call is over", logged);
  expect(await remaining(app)).toBe(3);
  sent.destroy();
});

it("a model has limits of its own", async () => {
  const folder = mkdtempSync(join(tmpdir(), "formdev-keys-"));
  try {
    const file = join(folder, "keys.json");
    const models = { "fake-model": { rpm: 1 }, other: { rpm: 5 } };
    writeFileSync(file, JSON.stringify({ clients: [{ id: "erp", keys: [erpKey], models }] }));
    await using app = await start({ API_KEYS: "", API_KEYS_FILE: file });
    await clientOf(app).chat(hello);
    const error = await failureOf(clientOf(app).chat(hello));
    expect(error.code).toBe(Code.ResourceExhausted);
    expect(error.rawMessage).toContain("1 requests a minute of fake-model");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it("a call that its engine does not take costs its request, and no token", async () => {
  await using app = await start({
    DAILY_TOKENS: String(promptExpected + 100),
    RATE_LIMIT_RPM: "9",
  });
  const asked = { ...hello, maxTokens: 100 };
  for (const status of [503, 503, 400]) {
    vllm.reply(refuse(status));
    await failureOf(clientOf(app).chat(asked));
  }
  await clientOf(app).chat(asked);
  expect(await remaining(app)).toBe(4);
});

it("an embedding model's limits hold for those who do not name it, and a refused text costs nothing", async () => {
  const folder = mkdtempSync(join(tmpdir(), "formdev-keys-"));
  await using embedder = await startFakeVllm({ model: "fake-embedder" });
  try {
    const file = join(folder, "keys.json");
    const models = { "fake-embedder": { rpm: 2, daily_tokens: 3 } };
    writeFileSync(file, JSON.stringify({ clients: [{ id: "erp", keys: [erpKey], models }] }));
    const env = { API_KEYS: "", API_KEYS_FILE: file, EMBEDDINGS_URL: embedder.url.href };
    await using app = await start(env);
    const client = createClient(ModelService, transportFor("gRPC", app.url));
    const inputs = ["un texte"];
    embedder.route("POST /v1/embeddings", refuse(503));
    expect((await failureOf(client.embed({ inputs }))).code).toBe(Code.Unavailable);
    const data = [{ index: 0, embedding: [1] }];
    embedder.route("POST /v1/embeddings", (reply) =>
      reply.json(200, { model: "fake-embedder", data, usage: { prompt_tokens: 2 } }),
    );
    await client.embed({ inputs });
    const error = await failureOf(client.embed({ inputs }));
    expect(error.rawMessage).toContain("of fake-embedder");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

describe("x-formdev-class", () => {
  /** Calls that wait, in the order in which they then begin. */
  async function orderOf(app: TestApp, calls: readonly (readonly [string, string?])[]) {
    const first = vllm.requests.length;
    vllm.reply(silence);
    const left = new AbortController();
    const running = failureOf(clientOf(app).chat(hello, { signal: left.signal }));
    await vllm.request(first);
    const answers: Promise<unknown>[] = [];
    for (const [content, wanted] of calls) {
      const headers = wanted === undefined ? {} : { "x-formdev-class": wanted };
      answers.push(clientOf(app).chat({ messages: [{ role: "user", content }] }, { headers }));
      await vi.waitFor(async () => expect(await waitingAt(app)).toBe(answers.length));
    }
    left.abort();
    await Promise.all([running, ...answers]);
    return vllm.requests
      .slice(first + 1)
      .map(({ body }) => (body as { messages: { content: string }[] }).messages[0]?.content);
  }

  async function waitingAt({ adminUrl }: TestApp): Promise<number> {
    const text = await (await fetch(`${adminUrl}/metrics`)).text();
    const lengths = [...text.matchAll(/^formdev_queue_length\{.*\} (\d+)$/gm)];
    return lengths.reduce((sum, [, length]) => sum + Number(length), 0);
  }

  it("lets a call step back behind those that persons wait for", async () => {
    await using app = await start({ ENGINE_CONCURRENCY: "1" });
    expect(
      await orderOf(app, [["for later", "batch"], ["now", "interactive"], ["now too"]]),
    ).toEqual(["now", "now too", "for later"]);
  });

  it("brings no call of a batch client before others, and is refused when nobody knows what it means", async () => {
    const folder = mkdtempSync(join(tmpdir(), "formdev-keys-"));
    try {
      const file = join(folder, "keys.json");
      const clients = [
        { id: "erp", keys: [erpKey], class: "batch" },
        { id: "extranet", keys: [extranetKey] },
      ];
      writeFileSync(file, JSON.stringify({ clients }));
      await using app = await start({
        ENGINE_CONCURRENCY: "1",
        API_KEYS: "",
        API_KEYS_FILE: file,
      });
      const first = vllm.requests.length;
      vllm.reply(silence);
      const left = new AbortController();
      const running = failureOf(clientOf(app).chat(hello, { signal: left.signal }));
      await vllm.request(first);
      const headers = { "x-formdev-class": "interactive" };
      const batch = clientOf(app).chat(hello, { headers });
      await vi.waitFor(async () => expect(await waitingAt(app)).toBe(1));
      const person = createClient(ChatService, transportFor("gRPC", app.url, extranetKey)).chat({
        messages: [{ role: "user", content: "a person" }],
      });
      await vi.waitFor(async () => expect(await waitingAt(app)).toBe(2));
      left.abort();
      await Promise.all([running, batch, person]);
      expect(JSON.stringify(vllm.requests[first + 1]?.body)).toContain("a person");

      const unknown = clientOf(app).chat(hello, { headers: { "x-formdev-class": "urgent" } });
      expect((await failureOf(unknown)).code).toBe(Code.InvalidArgument);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
