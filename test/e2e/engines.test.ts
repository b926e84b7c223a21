import { setTimeout } from "node:timers/promises";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script, silence } from "../support/fake-vllm-replies.ts";
import { startProgram } from "../support/program.ts";
import { erpKey, startApp, type TestApp, transportFor } from "../support/start-app.ts";

let engines: [FakeVllm, FakeVllm];

beforeEach(async () => {
  const first = await startFakeVllm();
  // Two engines behind one name have one port.
  const second = await startFakeVllm({ host: "127.0.0.2", port: Number(first.url.port) });
  engines = [first, second];
});

afterEach(async () => {
  for (const engine of engines) await engine[Symbol.asyncDispose]();
});

const text = ["un ", "deux ", "trois"];
const urls = () => engines.map(({ url }) => url.href).join();
const counts = () => engines.map(({ requests }) => requests.length);
const clientOf = ({ url }: { readonly url: string }) =>
  createClient(ChatService, transportFor("gRPC", url));
const ask = (content: string) => ({ messages: [{ role: "user", content }] });

/** Answers that stop after their first text until they are released. */
function held(): { readonly script: Script; readonly release: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { script: answer({ text }, { after: 2, by: () => promise }), release: resolve };
}

/** A stream that is read to its end: what it said, and how it ended. */
function stream(client: Client<typeof ChatService>, content: string) {
  const state = { said: "", error: undefined as ConnectError | undefined };
  const done = (async () => {
    try {
      for await (const { part } of client.streamChat(ask(content))) {
        if (part.case === "textDelta") state.said += part.value.text;
      }
    } catch (error) {
      state.error = ConnectError.from(error);
    }
    return state;
  })();
  return { state, done };
}

/** Asks again and again until what it does to the engines has happened. */
async function askUntil(what: string, client: Client<typeof ChatService>, holds: () => boolean) {
  const deadline = performance.now() + 8000;
  for (let call = 0; !holds(); call += 1) {
    if (performance.now() > deadline) throw new Error(`not within 8 s: ${what}`);
    await client.chat(ask(`${what} ${call}`)).catch(() => undefined);
    await setTimeout(20);
  }
}

const messages = ({ logs }: TestApp, pattern: RegExp) =>
  logs.filter(({ msg }) => pattern.test(String(msg))).map(({ engine }) => engine);

describe("calls of several engines", () => {
  it("go to the one that has less to do, and conversations to the one that knows them", async () => {
    await using app = await startApp({ VLLM_URL: urls() });
    const client = clientOf(app);
    const { script, release } = held();
    for (const engine of engines) engine.reply(script);
    const streams = [stream(client, "a"), stream(client, "b")];
    await Promise.all(engines.map((engine) => engine.request(0)));
    release();
    for (const { done } of streams)
      expect(await done).toEqual({ said: text.join(""), error: undefined });
    for (let turn = 0; turn < 5; turn += 1) await client.chat(ask("the same conversation"));
    expect(counts().toSorted()).toEqual([1, 6]);
    for (let call = 0; call < 10; call += 1) await client.chat(ask(`conversation ${call}`));
    expect(Math.min(...counts())).toBe(6);
    await eventually("every call is logged", () => messages(app, /^call$/).length >= 17);
    expect(new Set(messages(app, /^call$/))).toEqual(new Set(engines.map(({ url }) => url.href)));
  });

  it("run elsewhere when theirs dies before it has said anything, and fail with DATA_LOSS after that; it is left alone, and used again when it is back", async () => {
    await using app = await startApp({ VLLM_URL: urls() });
    const client = clientOf(app);
    const [dying, other] = engines;
    // By turns: talking, not begun, and begun without a word.
    const begun: Script = (reply) => reply.head();
    dying.reply(held().script, silence, begun);
    const calls = Array.from({ length: 6 }, (_, index) => stream(client, `call ${index}`));
    await Promise.all([dying.request(2), other.request(2)]);
    await eventually("one has begun", () => calls.some(({ state }) => state.said === "un "));
    await dying.refuse();
    const ended = await Promise.all(calls.map(({ done }) => done));
    expect(ended.filter(({ error }) => error === undefined)).toHaveLength(5);
    expect(ended.filter(({ error }) => error !== undefined)).toMatchObject([
      { said: "un ", error: { code: Code.DataLoss } },
    ]);

    const whole = Array.from({ length: 20 }, (_, index) => client.chat(ask(`after ${index}`)));
    for (const { message } of await Promise.all(whole)) expect(message?.content).not.toBe("");
    expect(messages(app, /an engine fails/)).toEqual([dying.url.href]);
    expect((await fetch(`${app.url}/health`)).status).toBe(200);
    const had = dying.requests.length;
    await dying.accept();
    await askUntil("used again", client, () => dying.requests.length >= had + 3);
    expect(messages(app, /an engine answers again/)).toEqual([dying.url.href]);
  });

  it("keep to ENGINE_CONCURRENCY on each engine, and wait beyond", async () => {
    await using app = await startApp({ VLLM_URL: urls(), ENGINE_CONCURRENCY: "2" });
    const client = clientOf(app);
    const { script, release } = held();
    for (const engine of engines) engine.reply(script, script);
    const calls = Array.from({ length: 8 }, (_, index) => stream(client, `call ${index}`));
    await Promise.all(engines.map((engine) => engine.request(1)));
    await client.chat(ask("x"), { timeoutMs: 300 }).catch(() => undefined);
    expect(counts()).toEqual([2, 2]);
    release();
    for (const { done } of calls) expect((await done).error).toBeUndefined();
    expect(counts()).toEqual([4, 4]);
  });

  it("are UNAVAILABLE at once when all are down, those that wait too, and work again within a moment", async () => {
    await using app = await startApp({ VLLM_URL: urls(), ENGINE_CONCURRENCY: "1" });
    const client = clientOf(app);
    for (const engine of engines) engine.reply(silence);
    const waiting = Array.from({ length: 12 }, (_, index) => stream(client, `call ${index}`));
    await Promise.all(engines.map((engine) => engine.request(0)));
    for (const engine of engines) await engine.refuse();
    for (const { done } of waiting)
      expect((await done).error).toMatchObject({ code: Code.Unavailable });
    const startedAt = performance.now();
    await expect(client.chat(ask("x"))).rejects.toMatchObject({ code: Code.Unavailable });
    expect(performance.now() - startedAt).toBeLessThan(500);
    await expect
      .poll(async () => (await fetch(`${app.url}/health`)).status, { timeout: 5000 })
      .toBe(503);
    await engines[1].accept();
    await askUntil("back", client, () => engines[1].requests.length > 2);
    await client.chat(ask("x"));
    await expect
      .poll(async () => (await fetch(`${app.url}/health`)).status, { timeout: 5000 })
      .toBe(200);
  });
});

describe("a name with several addresses", () => {
  it("stands for as many engines; one that is taken off finishes what it runs, and gets nothing more", async () => {
    let addresses = ["127.0.0.1", "127.0.0.2"];
    const url = `http://localhost:${engines[0].url.port}`;
    await using app = await startApp({ VLLM_URL: url }, { resolveEngine: async () => addresses });
    const client = clientOf(app);
    const { script, release } = held();
    for (const engine of engines) engine.reply(script);
    const streams = [stream(client, "a"), stream(client, "b")];
    const requests = await Promise.all(engines.map((engine) => engine.request(0)));
    for (const { headers } of requests) expect(headers.host).toBe(new URL(url).host);
    await eventually("both talk", () => streams.every(({ state }) => state.said === "un "));

    addresses = ["127.0.0.2"];
    let before = counts();
    await askUntil("all to the one that stays", client, () => {
      const now = counts();
      const isAlone = now[0] === before[0] && (now[1] ?? 0) >= (before[1] ?? 0) + 10;
      if (now[0] !== before[0]) before = now;
      return isAlone;
    });
    release();
    for (const { done } of streams)
      expect(await done).toEqual({ said: text.join(""), error: undefined });

    addresses = ["127.0.0.1", "127.0.0.2"];
    const [had = 0] = counts();
    await askUntil("the one that is back", client, () => engines[0].requests.length > had);
  });
});

it("calls of several processes run elsewhere as well when their engine fails", async () => {
  await engines[0].refuse();
  const program = startProgram({
    VLLM_URL: urls(),
    API_KEYS: `erp:${erpKey}`,
    RATE_LIMIT_RPM: "100000",
    PROCESSES: "2",
  });
  const [, url = ""] = await program.printed(/"url":"(http:[^"]+)"/);
  const clients = [clientOf({ url }), clientOf({ url })];
  for (let call = 0; call < 20; call += 1) {
    const client = clients[call % 2];
    expect((await client?.chat(ask(`call ${call}`)))?.message?.content).not.toBe("");
  }
  expect(counts()).toEqual([0, 20]);
  await program.printed(/an engine fails/);
  await engines[0].accept();
  const [client = clientOf({ url })] = clients;
  await askUntil("used again", client, () => engines[0].requests.length >= 3);
  await program.printed(/an engine answers again/);
  program.signalAll("SIGTERM");
  expect(await program.ended).toBe(0);
}, 30_000);
