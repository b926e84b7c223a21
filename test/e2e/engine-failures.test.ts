import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import {
  answer,
  type FakeReply,
  refuse,
  type Script,
  silence,
} from "../support/fake-vllm-replies.ts";
import { protocols, startApp, type TestApp, transportFor } from "../support/start-app.ts";

let vllm: FakeVllm;
let app: TestApp;

beforeEach(async () => {
  vllm = await startFakeVllm();
  app = await startApp({
    VLLM_URL: vllm.url.href,
    FIRST_TOKEN_TIMEOUT_SECONDS: "1",
    BETWEEN_TOKENS_TIMEOUT_SECONDS: "1",
  });
});

afterEach(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const prompt = "prompt-canary";
const hello = { messages: [{ role: "user", content: prompt }] };
/** What an engine may say about its inside; none of it may reach a caller. */
const canary = "0xdeadbeef /usr/lib/vllm upstream-canary";
const words = Array.from({ length: 40 }, (_, index) => `mot${index} `);

const interrupted = (by: (reply: FakeReply) => void | Promise<void>): Script =>
  answer({ text: words }, { after: 20, by });

const midStream: readonly (readonly [string, Code, Script])[] = [
  ["closes the connection", Code.DataLoss, interrupted((reply) => reply.cut("fin"))],
  ["resets the connection", Code.DataLoss, interrupted((reply) => reply.cut("rst"))],
  ["ends without a finish reason", Code.DataLoss, interrupted((reply) => reply.end())],
  [
    "says [DONE] without a finish reason",
    Code.DataLoss,
    interrupted(async (reply) => {
      await reply.event("[DONE]");
      reply.end();
    }),
  ],
  [
    "sends an error inside the stream",
    Code.Unavailable,
    interrupted(async (reply) => {
      await reply.event({ error: { message: canary, type: "InternalServerError", code: 500 } });
      await reply.event("[DONE]");
      reply.end();
    }),
  ],
  [
    "sends what is no JSON",
    Code.DataLoss,
    interrupted((reply) => reply.event(`{"choices": [${canary}`)),
  ],
  ["falls silent", Code.DeadlineExceeded, interrupted(() => new Promise<void>(() => undefined))],
];

describe.each(protocols)(
  "over %s, when the engine fails in the middle of an answer",
  (protocol) => {
    const client = () => createClient(ChatService, transportFor(protocol, app.url));

    it.each(midStream)(
      "and %s, the stream keeps what was said and ends with an error, never with `end`",
      async (how, code, script) => {
        vllm.reply(script);
        let said = "";
        const ends: unknown[] = [];
        const error = await (async () => {
          for await (const { part } of client().streamChat(hello)) {
            if (part.case === "textDelta") said += part.value.text;
            if (part.case === "end") ends.push(part);
          }
        })().catch((reason: unknown) => ConnectError.from(reason));
        expect(error).toMatchObject({ code });
        expect(String(error)).not.toContain("canary");
        expect(ends).toEqual([]);
        expect(words.join("").startsWith(said)).toBe(true);
        // A reset throws away what was still on its way.
        if (how !== "resets the connection") expect(said).toContain("mot10");
      },
    );

    it.each(midStream)("and %s, a unary call fails whole", async (_how, code, script) => {
      vllm.reply(script);
      await expect(client().chat(hello)).rejects.toMatchObject({ code });
    });
  },
);

describe("when the engine refuses a request", () => {
  const client = () => createClient(ChatService, transportFor("Connect JSON", app.url));

  it.each([
    [400, Code.InvalidArgument],
    [401, Code.Unavailable],
    [403, Code.Unavailable],
    [404, Code.NotFound],
    [413, Code.InvalidArgument],
    [422, Code.InvalidArgument],
    [429, Code.Unavailable],
    [500, Code.Unavailable],
    [503, Code.Unavailable],
  ])("with %i, the caller gets our status and our words", async (status, code) => {
    const script = refuse(status, { error: { message: canary, type: canary, code: status } });
    vllm.reply(script, script);
    const unary = await client()
      .chat(hello)
      .catch((reason: unknown) => ConnectError.from(reason));
    const streamed = await Array.fromAsync(client().streamChat(hello)).catch((reason: unknown) =>
      ConnectError.from(reason),
    );
    for (const error of [unary, streamed]) {
      expect(error).toMatchObject({ code });
      expect(String(error)).not.toContain("canary");
    }
  });

  it("with 400 inside a stream that has not begun, which vLLM does for a bad schema, it is the caller's mistake", async () => {
    vllm.reply(async (reply) => {
      reply.head();
      await reply.event({
        error: { message: canary, type: "BadRequestError", param: null, code: 400 },
      });
      await reply.event("[DONE]");
      reply.end();
    });
    await expect(client().chat(hello)).rejects.toMatchObject({ code: Code.InvalidArgument });
  });
});

describe("when the engine cannot be had", () => {
  const client = () => createClient(ChatService, transportFor("gRPC", app.url));

  it("because nothing listens: UNAVAILABLE at once, health says so, and both recover by themselves", async () => {
    await client().chat(hello);
    expect((await fetch(`${app.url}/health`)).status).toBe(200);
    await vllm.refuse();
    const began = performance.now();
    await expect(client().chat(hello)).rejects.toMatchObject({ code: Code.Unavailable });
    expect(performance.now() - began).toBeLessThan(1500);
    let health = await fetch(`${app.url}/health`);
    const untilStatus = async (status: number) => {
      const deadline = performance.now() + 5000;
      while (health.status !== status && performance.now() < deadline)
        health = await fetch(`${app.url}/health`);
      expect(health.status).toBe(status);
    };
    await untilStatus(503);
    expect(await health.json()).toEqual({
      status: "SERVING_STATUS_NOT_SERVING",
      components: [{ name: "engine", status: "SERVING_STATUS_NOT_SERVING" }],
    });
    expect((await fetch(`${app.url}/health/live`)).status).toBe(200);
    await vllm.accept();
    // An engine that was found to be gone is asked every second whether it is back.
    await vi.waitFor(() => client().chat(hello), { timeout: 5000 });
    await untilStatus(200);
  });

  it("because it accepts and never answers: DEADLINE_EXCEEDED at the limit, and its socket is closed", async () => {
    vllm.reply(silence);
    await expect(client().chat(hello)).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    expect(await (await vllm.request(0)).closed).toBe("aborted");
  });

  it("because as many calls as it may run, and as many as may wait, are there: RESOURCE_EXHAUSTED", async () => {
    await using small = await startApp({
      VLLM_URL: vllm.url.href,
      ENGINE_CONCURRENCY: "1",
      QUEUE_LENGTH: "1",
    });
    const narrow = createClient(ChatService, transportFor("gRPC", small.url));
    const { promise: released, resolve: release } = Promise.withResolvers<void>();
    vllm.reply(answer({ text: ["a"] }, { after: 1, by: () => released }));
    const calls = [narrow.chat(hello)];
    await vllm.request(0);
    const outcomes = await Promise.all(
      [narrow.chat(hello), narrow.chat(hello)].map(async (call, index) => {
        calls.push(call);
        return index === 1 ? call.catch((reason: unknown) => ConnectError.from(reason)) : undefined;
      }),
    );
    expect(outcomes[1]).toMatchObject({ code: Code.ResourceExhausted });
    release();
    await Promise.allSettled(calls);
  });
});

it("keeps prompts, keys and the engine's words out of the log, whatever fails", async () => {
  const client = createClient(ChatService, transportFor("Connect JSON", app.url));
  const echo = `body.messages.0.content: {'input': '${prompt}', 'ctx': {}}`;
  vllm.reply(
    refuse(400, { error: { message: echo, type: "Bad Request", code: 400 } }),
    refuse(500, { error: { message: `input_value='${prompt}'`, code: 500 } }),
    ...midStream.map(([, , script]) => script),
  );
  for (let call = 0; call < 2 + midStream.length; call += 1)
    await client.chat(hello).catch(() => undefined);
  await eventually(
    "every call is logged",
    () => app.logs.filter(({ msg }) => msg === "call").length >= 2 + midStream.length,
  );
  const log = JSON.stringify(app.logs);
  expect(log).not.toContain(prompt);
  expect(log).not.toContain("key-of-the-");
});
