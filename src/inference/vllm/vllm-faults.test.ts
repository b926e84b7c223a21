import { describe, expect, it } from "vitest";
import { eventually } from "../../../test/support/eventually.ts";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { chat, chatRequest, engineFor, runOnce } from "../../../test/support/fake-vllm-chats.ts";
import {
  answer,
  type FakeReply,
  hangUp,
  type Script,
  silence,
  wholeAnswer,
} from "../../../test/support/fake-vllm-replies.ts";
import { startSilentServer } from "../../../test/support/fake-vllm-silent.ts";

// The faults U1 to U4 and U9 of the test programme: the engine cannot be reached, does not answer, or stops. The caller
// keeps the text so far, in order, and gets one of our errors; the connection is closed, and nothing is left behind.

const text = ["Un", " été", " à", " Besançon"];
const never = () => new AbortController().signal;
const forever = () => new Promise<void>(() => undefined);

describe("U1: vLLM cannot be reached", () => {
  it("is unavailable at once when it refuses connections, and works again when it is back", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    await vllm.refuse();
    const startedAt = performance.now();
    const { error } = await chat(engine);
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    expect(error).toMatchObject({ kind: "unavailable", retryAfterMs: 1_000 });
    expect(error?.message).not.toContain("127.0.0.1");
    await vllm.accept();
    expect((await chat(engine)).error).toBeUndefined();
  });

  it("is unavailable when its name is unknown", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { url: new URL("http://vllm.invalid:8000") });
    expect((await chat(engine)).error).toMatchObject({ kind: "unavailable" });
    await expect(engine.listModels(never())).rejects.toMatchObject({ kind: "unavailable" });
  });

  it("is unavailable when a connection does not open in time", async () => {
    await using silent = await startSilentServer();
    await using vllm = await startFakeVllm();
    const { url } = silent;
    await using engine = engineFor(vllm, { url, timeouts: { connectMs: 100 } });
    const startedAt = performance.now();
    expect((await chat(engine)).error).toMatchObject({ kind: "unavailable" });
    expect(performance.now() - startedAt).toBeLessThan(400);
    await eventually("the connection is closed", () => silent.sockets.size === 0);
  });
});

describe("U2: vLLM does not begin to answer", () => {
  const cases: Record<string, Script> = {
    "nothing at all": silence,
    "a head only": (reply) => reply.head(),
    "comments that never end": async (reply) => {
      reply.head();
      while (!reply.response.closed) {
        await reply.bytes(": ping\n");
        await new Promise((resolve) => setImmediate(resolve));
      }
    },
    "one byte a moment": async (reply) => {
      reply.head();
      for (const byte of `data: ${"x".repeat(1_000_000)}`) {
        if (reply.response.closed) return;
        await reply.bytes(byte);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    },
  };
  it.each(Object.entries(cases))("times out at the set time: %s", async (_, script) => {
    const { kind, elapsedMs } = await runOnce(script, { timeouts: { firstByteMs: 200 } });
    expect(kind).toBe("timeout");
    expect(elapsedMs).toBeGreaterThan(190);
    expect(elapsedMs).toBeLessThan(400);
  });

  it("times out while it waits for a free connection", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 1, timeouts: { firstByteMs: 100 } });
    vllm.reply(answer({ text }, { after: 1, by: forever }));
    const stream = engine.chat(chatRequest(), never())[Symbol.asyncIterator]();
    const first = stream.next();
    await vllm.request(0);
    expect((await chat(engine)).error).toMatchObject({ kind: "timeout" });
    expect(vllm.requests).toHaveLength(1);
    await stream.return?.();
    await first;
  });
});

describe("U3: vLLM dies in the middle of an answer", () => {
  const cases: Record<string, (reply: FakeReply) => void> = {
    FIN: (reply) => reply.cut("fin"),
    RST: (reply) => reply.cut("rst"),
    "an end of the reply without [DONE]": (reply) => reply.end(),
  };
  it.each(Object.entries(cases))("keeps the text so far and is corrupt: %s", async (_, by) => {
    // Not before the text has arrived: what the kernel holds is lost in a reset.
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const read = Promise.withResolvers<void>();
    vllm.reply(
      answer({ text }, { after: 3, by: async (reply) => by(await read.promise.then(() => reply)) }),
    );
    const stream = engine.chat(chatRequest(), never());
    let received = "";
    const error = await (async () => {
      for await (const part of stream) {
        if (part.type === "text-delta") received += part.text;
        if (received === "Un été") read.resolve();
      }
    })().catch((thrown) => thrown);
    expect(received).toBe("Un été");
    expect(error).toMatchObject({ kind: "corrupt" });
    expect(stream.usage).toMatchObject({ completionTokens: 2 });
  });

  it("is unavailable when it dies before it says anything, and is not asked twice", async () => {
    for (const how of ["fin", "rst"] as const) {
      const { kind } = await runOnce(hangUp(how));
      expect(kind).toBe("unavailable");
    }
  });

  it("is whole when it dies right after [DONE]", async () => {
    const { kind, received, end } = await runOnce(
      wholeAnswer({ text }, (reply) => reply.cut("fin")),
    );
    expect({ kind, received }).toEqual({ kind: undefined, received: text.join("") });
    expect(end).toEqual({ type: "end", finishReason: "stop" });
  });
});

describe("U4: vLLM stops in the middle of an answer", () => {
  it("times out between two events, with the text so far", async () => {
    const script = answer({ text }, { after: 3, by: forever });
    const { kind, received, elapsedMs } = await runOnce(script, {
      timeouts: { betweenChunksMs: 150 },
    });
    expect({ kind, received }).toEqual({ kind: "timeout", received: "Un été" });
    expect(elapsedMs).toBeGreaterThan(140);
    expect(elapsedMs).toBeLessThan(400);
  });

  it("goes on when it goes on in time", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const released = Promise.withResolvers<void>();
    vllm.reply(answer({ text }, { after: 3, by: () => released.promise }));
    const stream = engine.chat(chatRequest(), never());
    let received = "";
    for await (const part of stream) {
      if (part.type === "text-delta") received += part.text;
      if (received === "Un été") released.resolve();
    }
    expect(received).toBe(text.join(""));
  });
});

describe("U9: vLLM comes and goes", () => {
  it("fails cleanly while it is away, works as soon as it is back, and leaks no connection", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 2 });
    for (let i = 0; i < 10; i += 1) {
      const away = i % 2 === 1;
      if (away) await vllm.refuse();
      const outcomes = await Promise.all([chat(engine), chat(engine), chat(engine)]);
      for (const { error } of outcomes) expect(error?.kind).toBe(away ? "unavailable" : undefined);
      if (away) await vllm.accept();
      expect(vllm.sockets.size).toBeLessThanOrEqual(2);
    }
  });
});
