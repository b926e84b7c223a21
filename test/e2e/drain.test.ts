import { expect, it } from "vitest";
import { eventually } from "../support/eventually.ts";
import { startFakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { envelope, head, openRaw, post } from "../support/raw-http.ts";
import { erpKey, startApp } from "../support/start-app.ts";
import { chatBody, streamPath } from "../support/unharmed.ts";

const json = { "content-type": "application/json" };
const chat = post("/v1/chat", { ...json, "x-api-key": erpKey }, chatBody);
const streamType = { "content-type": "application/connect+json" };
const stream = post(streamPath, { ...streamType, "x-api-key": erpKey }, envelope(chatBody));

it.each([
  ["a call is refused, and costs nothing of the rate", chat, 503, /"code":"unavailable"/],
  ["a call without a key is told so", post("/v1/chat", json, chatBody), 401, /"unauthenticated"/],
  ["health answers that it does not serve", head("GET", "/health", {}), 503, /NOT_SERVING/],
  [
    "so does HealthService/Check",
    post("/formdev.health.v1.HealthService/Check", json, "{}"),
    200,
    /"status":"SERVING_STATUS_NOT_SERVING"/,
  ],
])(
  "during a drain, on a connection that still has a call: %s",
  async (_what, next, status, body) => {
    await using vllm = await startFakeVllm();
    const app = await startApp({ VLLM_URL: vllm.url.href });
    const { promise, resolve: release } = Promise.withResolvers<void>();
    vllm.reply(answer({ text: ["un ", "deux"] }, { after: 2, by: () => promise }));
    using connection = await openRaw(app.address.port);
    connection.send(stream);
    await eventually("the stream has begun", () => connection.received.includes('"un "'));
    const drained = app[Symbol.asyncDispose]();
    await eventually("it drains", () =>
      app.logs.some(({ msg }) => String(msg).startsWith("draining")),
    );
    connection.send(next);
    release();
    const running = await connection.answer();
    expect(running?.status).toBe(200);
    expect(String(running?.body)).toContain("deux");
    const refused = await connection.answer(1);
    expect(refused?.status).toBe(status);
    expect(String(refused?.body)).toMatch(body);
    expect(refused?.headers).not.toHaveProperty("ratelimit-remaining");
    expect(refused?.headers.connection).toBe("close");
    expect(vllm.requests).toHaveLength(1);
    await drained;
    await connection.closed;
  },
);

it("tells with an answer that begins during a drain that its connection ends", async () => {
  await using vllm = await startFakeVllm();
  const app = await startApp({ VLLM_URL: vllm.url.href });
  const { promise, resolve: release } = Promise.withResolvers<void>();
  vllm.reply(answer({ text: ["un ", "deux"] }, { after: 1, by: () => promise }));
  using connection = await openRaw(app.address.port);
  using idle = await openRaw(app.address.port);
  idle.send(head("GET", "/health"));
  expect((await idle.answer())?.headers.connection).toBe("keep-alive");
  connection.send(chat);
  await vllm.request(0);
  const drained = app[Symbol.asyncDispose]();
  await idle.closed;
  release();
  const running = await connection.answer();
  expect([running?.status, running?.headers.connection]).toEqual([200, "close"]);
  await drained;
  await connection.closed;
});
