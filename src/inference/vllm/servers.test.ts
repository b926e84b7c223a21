import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { createServer } from "node:tls";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type FakeVllm, startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { chat, chatRequest, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import { refuse, silence } from "../../../test/support/fake-vllm-replies.ts";
import { toEngineId } from "./engine-id.ts";
import { createEngineMonitor } from "./engine-monitor.ts";
import { Servers } from "./servers.ts";

const never = new AbortController().signal;
let engines: [FakeVllm, FakeVllm];
beforeEach(async () => {
  engines = [await startFakeVllm(), await startFakeVllm({ host: "127.0.0.2" })];
});
afterEach(async () => {
  for (const engine of engines) await engine[Symbol.asyncDispose]();
});
const both = () => engineFor(engines[0], { urls: engines.map(({ url }) => url) });

describe("several vLLMs", () => {
  it("run the chats that name them, also by an address behind a name, and the first those that name none", async () => {
    await using engine = both();
    const [first, second] = engines;
    await chat(engine);
    await chat(engine, { engine: toEngineId(second.url) });
    const named = new URL(`http://vllm.invalid:${second.url.port}`);
    expect((await chat(engine, { engine: toEngineId(named, "127.0.0.2") })).error).toBeUndefined();
    expect([first.requests.length, second.requests.length]).toEqual([1, 2]);
    expect(second.requests[1]?.headers.host).toBe(named.host);
    expect(JSON.stringify(second.requests[1]?.body)).not.toContain("127.0.0.2");
  });

  it("are asked for by the name of their URL under TLS, by chats and by the monitor, whatever their address", async () => {
    const asked: string[] = [];
    const server = createServer({
      SNICallback(name, done) {
        asked.push(name);
        done(new Error("that is all"));
      },
    });
    await once(server.listen(0, "127.0.0.4"), "listening");
    const { port } = server.address() as AddressInfo;
    const id = toEngineId(new URL(`https://vllm.invalid:${port}`), "127.0.0.4");
    await using engine = both();
    expect((await chat(engine, { engine: id })).error).toMatchObject({ kind: "unavailable" });
    await expect(createEngineMonitor(undefined).check(id, never)).rejects.toThrow();
    expect(asked).toEqual(["vllm.invalid", "vllm.invalid"]);
    server.close();
  });

  it("count tokens and list models for one another", async () => {
    await using engine = both();
    for (const down of engines) {
      await down.refuse();
      expect(await engine.countTokens(chatRequest(), never)).toBeGreaterThan(0);
      expect(await engine.listModels(never)).toHaveLength(1);
      await down.accept();
    }
  });

  it("are asked in vain once: what does not answer is not the first to be asked again", async () => {
    await using engine = both();
    let asked = 0;
    engines[0].route("POST /tokenize", (reply, request) => {
      asked += 1;
      return refuse(503)(reply, request);
    });
    for (let call = 0; call < 5; call += 1) await engine.countTokens(chatRequest(), never);
    expect(asked).toBe(1);
  });

  it("say to the caller what the last of them says when none can answer", async () => {
    await using engine = both();
    for (const each of engines) each.route("POST /tokenize", refuse(503));
    await expect(engine.countTokens(chatRequest(), never)).rejects.toMatchObject({
      kind: "unavailable",
    });
    engines[0].route("POST /tokenize", refuse(400));
    engines[1].route("POST /tokenize", refuse(400));
    await expect(engine.countTokens(chatRequest(), never)).rejects.toMatchObject({
      kind: "invalid",
    });
  });

  it("are healthy as long as one is, also when another hangs", async () => {
    await using engine = both();
    const startedAt = performance.now();
    engines[0].route("GET /health", silence);
    await engine.checkHealth(never);
    expect(performance.now() - startedAt).toBeLessThan(1000);
    await engines[1].refuse();
    engines[0].route("GET /health", refuse(503));
    await expect(engine.checkHealth(never)).rejects.toMatchObject({ kind: "unavailable" });
  });

  it("that come and go do not pile up, and one that is in use stays", async () => {
    await using servers = new Servers({
      urls: [engines[0].url],
      apiKey: undefined,
      connections: 1,
      connectMs: 1000,
    });
    vi.useFakeTimers();
    try {
      const busy = servers.at(toEngineId(engines[1].url));
      Object.defineProperty(busy.chats, "isIdle", { value: false });
      for (let index = 0; index < 50; index += 1) {
        servers.at(toEngineId(engines[0].url, `10.0.0.${index}`));
        vi.advanceTimersByTime(300_000);
      }
      expect(servers.all.length).toBeLessThanOrEqual(5);
      expect(servers.all).toContain(busy);
    } finally {
      vi.useRealTimers();
    }
  });
});
