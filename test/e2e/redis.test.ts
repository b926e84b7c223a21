import { Code, createClient } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { startFakeVllm } from "../support/fake-vllm.ts";
import { findRedisServer, startRedisServer } from "../support/redis-server.ts";
import { erpKey, extranetKey, startApp, transportFor } from "../support/start-app.ts";

const executable = findRedisServer();
const hello = { messages: [{ role: "user", content: "Bonjour" }] };
const clientOf = (url: string, key = erpKey) =>
  createClient(ChatService, transportFor("gRPC", url, key));

describe.skipIf(executable === undefined)("with REDIS_URL (needs redis-server)", () => {
  it("two gateways share one limit, and serve without Redis, each within the limit", async () => {
    await using vllm = await startFakeVllm();
    await using redis = await startRedisServer(executable ?? "");
    const env = { VLLM_URL: vllm.url.href, REDIS_URL: redis.url, RATE_LIMIT_RPM: "6" };
    await using first = await startApp(env);
    await using second = await startApp(env);
    // A first call compiles and connects, which on a busy machine looks like a slow Redis.
    for (const { url } of [first, second]) await clientOf(url).chat(hello);
    const calls = [first, second, first, second].map(({ url }) => clientOf(url).chat(hello));
    await Promise.all(calls);
    for (const { url } of [first, second]) {
      await expect(clientOf(url).chat(hello)).rejects.toMatchObject({
        code: Code.ResourceExhausted,
      });
    }

    for (const { url } of [first, second]) await clientOf(url, extranetKey).chat(hello);
    await redis.stop();
    // Each has let one of these calls through itself, and gives the client what is left of the limit: no 5xx.
    for (const { url } of [first, second]) {
      for (let count = 2; count <= 6; count += 1) await clientOf(url, extranetKey).chat(hello);
      await expect(clientOf(url, extranetKey).chat(hello)).rejects.toMatchObject({
        code: Code.ResourceExhausted,
      });
    }
    const health = await fetch(`${first.url}/health`);
    expect(health.status).toBe(200);
    expect(await health.json()).toMatchObject({
      status: "SERVING_STATUS_SERVING",
      components: [{ name: "engine" }, { name: "redis", status: "SERVING_STATUS_DEGRADED" }],
    });
  });

  it("a gateway starts without Redis, and its limit holds", async () => {
    await using vllm = await startFakeVllm();
    await using app = await startApp({
      VLLM_URL: vllm.url.href,
      REDIS_URL: "redis://:password-canary@127.0.0.1:1",
      RATE_LIMIT_RPM: "1",
    });
    await clientOf(app.url).chat(hello);
    await expect(clientOf(app.url).chat(hello)).rejects.toMatchObject({
      code: Code.ResourceExhausted,
    });
    expect(JSON.stringify(app.logs)).not.toContain("password-canary");
  });
});
