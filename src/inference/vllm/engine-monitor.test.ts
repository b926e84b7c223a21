import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { refuse, type Script, silence } from "../../../test/support/fake-vllm-replies.ts";
import { toEngineId } from "./engine-id.ts";
import { createEngineMonitor } from "./engine-monitor.ts";

const never = new AbortController().signal;

describe("the monitor of engines", () => {
  it("finds a server healthy and reads its gauges, and leaves no connection behind", async () => {
    await using vllm = await startFakeVllm();
    const monitor = createEngineMonitor(undefined);
    const engine = toEngineId(vllm.url);
    await monitor.check(engine, never);
    expect(await monitor.gauges(engine, never)).toEqual({
      running: 0,
      waiting: 0,
      kvUsage: 0,
      preemptions: 0,
    });
    await expect.poll(() => vllm.sockets.size).toBe(0);
  });

  it("connects to the address of the id, under the name of its URL, below its path, with the operator's key", async () => {
    await using vllm = await startFakeVllm({ host: "127.0.0.3" });
    const seen: unknown[] = [];
    vllm.route("GET /base/health", (reply, { headers }) => {
      seen.push(headers.host, headers.authorization);
      reply.json(200, {});
    });
    const url = new URL(`http://vllm.invalid:${vllm.url.port}/base/v1`);
    await createEngineMonitor("secret").check(toEngineId(url, "127.0.0.3"), never);
    expect(seen).toEqual([url.host, "Bearer secret"]);
  });

  const endless: Script = async (reply) => {
    reply.head();
    const megabyte = Buffer.alloc(1024 * 1024, "x");
    while (!reply.response.destroyed) await reply.bytes(megabyte);
  };
  it.each<[string, Script]>([
    ["refuses", refuse(503)],
    ["hangs", silence],
    ["never ends", endless],
    ["ends in the middle", (reply) => void reply.socket.end("HTTP/1.1 200 OK\r\n")],
    ["speaks no HTTP", (reply) => void reply.socket.end("220 mail ready\r\n")],
  ])("rejects when the server %s", async (_how, script) => {
    await using vllm = await startFakeVllm();
    vllm.route("GET /health", script);
    vllm.route("GET /metrics", script);
    const monitor = createEngineMonitor(undefined);
    const startedAt = performance.now();
    const answers = [
      monitor.check(toEngineId(vllm.url), never),
      monitor.gauges(toEngineId(vllm.url), never),
    ];
    for (const answer of answers) await expect(answer).rejects.toThrow();
    expect(performance.now() - startedAt).toBeLessThan(3000);
  });

  it("rejects when nothing listens, and when it is told to stop", async () => {
    await using vllm = await startFakeVllm();
    vllm.route("GET /health", silence);
    const monitor = createEngineMonitor(undefined);
    const stop = new AbortController();
    const hanging = monitor.check(toEngineId(vllm.url), stop.signal);
    stop.abort();
    await expect(hanging).rejects.toThrow();
    await vllm.refuse();
    await expect(monitor.check(toEngineId(vllm.url), never)).rejects.toThrow("ECONNREFUSED");
  });
});
