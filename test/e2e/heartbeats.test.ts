import { createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ChatService, type StreamChatResponse } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { envelope } from "../../src/rpc/wire.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, refuse, silence } from "../support/fake-vllm-replies.ts";
import { erpKey, protocols, startApp, type TestApp, transportFor } from "../support/start-app.ts";

// A caller whose call waits, for the engine or for its next token, sees that it is alive, and proxies between see traffic.

let vllm: FakeVllm;
let app: TestApp;

beforeAll(async () => {
  vllm = await startFakeVllm();
  const env = { VLLM_URL: vllm.url.href, ENGINE_CONCURRENCY: "1" };
  app = await startApp(env, { heartbeatMs: 20 });
});

afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const hello = { messages: [{ role: "user", content: "Bonjour" }] };
const caseOf = ({ part }: StreamChatResponse) => part.case ?? "";

/** Takes the engine's one sequence until `leave`. */
async function occupyEngine() {
  const index = vllm.requests.length;
  vllm.reply(silence);
  const caller = new AbortController();
  const client = createClient(ChatService, transportFor("gRPC", app.url));
  const call = client.chat(hello, { signal: caller.signal }).catch(() => undefined);
  await vllm.request(index);
  return {
    async leave() {
      caller.abort();
      await call;
    },
  };
}

describe.each(protocols)("a stream over %s", (protocol) => {
  const client = () => createClient(ChatService, transportFor(protocol, app.url));

  it("gets heartbeats while it waits for the engine, and is told how long it has waited", async () => {
    const engine = await occupyEngine();
    const cases: string[] = [];
    for await (const piece of client().streamChat(hello)) {
      cases.push(caseOf(piece));
      if (cases.length === 2) await engine.leave();
      if (piece.part.case !== "start") continue;
      const { seconds, nanos } = piece.part.value.queueWait ?? { seconds: 0n, nanos: 0 };
      expect(Number(seconds) * 1e9 + nanos).toBeGreaterThan(39e6);
    }
    expect(cases.slice(0, 2)).toEqual(["heartbeat", "heartbeat"]);
    expect(cases.filter((each) => each !== "heartbeat").at(0)).toBe("start");
    expect(cases.at(-1)).toBe("end");
  });

  it("gets heartbeats while the engine says nothing, and all that it says", async () => {
    const more = Promise.withResolvers<void>();
    vllm.reply(answer({ text: ["un", "deux"] }, { after: 2, by: () => more.promise }));
    const cases: string[] = [];
    for await (const piece of client().streamChat(hello)) {
      cases.push(caseOf(piece));
      if (cases.at(-1) === "heartbeat") more.resolve();
    }
    const said = cases.filter((each) => each !== "heartbeat");
    expect(said).toEqual(["start", "textDelta", "textDelta", "end"]);
    expect(cases.indexOf("heartbeat")).toBeGreaterThan(0);
  });

  it("fails with its status after heartbeats too", async () => {
    const engine = await occupyEngine();
    vllm.reply(refuse(400));
    const cases: string[] = [];
    const reading = (async () => {
      for await (const piece of client().streamChat(hello)) {
        cases.push(caseOf(piece));
        if (cases.length === 1) await engine.leave();
      }
    })();
    await expect(reading).rejects.toMatchObject({ rawMessage: expect.stringContaining("engine") });
    expect(cases).toContain("heartbeat");
    expect(cases).not.toContain("end");
  });

  it("frees its place in the queue when its caller leaves between two heartbeats", async () => {
    const engine = await occupyEngine();
    const left = new AbortController();
    const reading = (async () => {
      for await (const _ of client().streamChat(hello, { signal: left.signal })) left.abort();
    })();
    await expect(reading).rejects.toThrow();
    const asked = vllm.requests.length;
    await engine.leave();
    expect((await client().chat(hello)).finishReason).toBeGreaterThan(0);
    expect(vllm.requests).toHaveLength(asked + 1);
  });
});

it("comes when a stream has said nothing for the time of one heartbeat, and not of two", async () => {
  const heartbeatMs = 1000;
  const env = { VLLM_URL: vllm.url.href };
  await using slow = await startApp(env, { heartbeatMs });
  const more = Promise.withResolvers<void>();
  vllm.reply(answer({ text: ["un", "deux"] }, { after: 0, by: () => more.promise }));
  const client = createClient(ChatService, transportFor("gRPC", slow.url));
  let startedAt = 0;
  let silentMs = 0;
  for await (const piece of client.streamChat(hello)) {
    if (caseOf(piece) === "start") startedAt = performance.now();
    if (caseOf(piece) !== "heartbeat") continue;
    silentMs ||= performance.now() - startedAt;
    more.resolve();
  }
  expect(silentMs).toBeGreaterThan(0.9 * heartbeatMs);
  expect(silentMs).toBeLessThan(1.8 * heartbeatMs);
});

it("gets them by Connect's own path too", async () => {
  const engine = await occupyEngine();
  // In capitals: what the direct path does not take.
  const response = await fetch(`${app.url}/formdev.chat.v1.ChatService/StreamChat`, {
    method: "POST",
    headers: { "content-type": "Application/Connect+JSON", "x-api-key": erpKey },
    body: new Uint8Array(envelope(0, Buffer.from(JSON.stringify(hello)))),
  });
  let text = "";
  for await (const chunk of response.body ?? []) {
    text += Buffer.from(chunk).toString("latin1");
    if (text.includes("heartbeat")) await engine.leave();
  }
  expect(text.indexOf('{"heartbeat":{}}')).toBeGreaterThan(0);
  expect(text.indexOf('"start"')).toBeGreaterThan(text.indexOf("heartbeat"));
  expect(text).toContain('"queueWait":"0.');
  expect(text).toContain('"end"');
});
