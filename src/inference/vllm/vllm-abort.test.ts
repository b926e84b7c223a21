import { once } from "node:events";
import type { Socket } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { eventually } from "../../../test/support/eventually.ts";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { chat, chatRequest, collect, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import {
  answer,
  type Script,
  silence,
  wholeAnswer,
} from "../../../test/support/fake-vllm-replies.ts";
import { startSilentServer } from "../../../test/support/fake-vllm-silent.ts";
import { AppError } from "../../errors.ts";
import { noUsage } from "../engine.ts";

// A caller who leaves must not cost the GPU anything more: the engine's socket is closed at once, in every phase.

const left = new AppError("canceled", "the caller left");
const never = () => new AbortController().signal;
const forever = () => new Promise<void>(() => undefined);

/** C1 of the test programme. */
const CLOSED_WITHIN_MS = 250;

describe("an abort", () => {
  const phases: Record<string, Script> = {
    "before the head": silence,
    "before the first token": (reply) => reply.head(),
    "in the middle": answer({}, { after: 4, by: forever }),
    "in the middle of an event": async (reply) => {
      reply.head();
      await reply.bytes('data: {"choices":[{"delta":{"content":"Bon');
    },
    "during a refusal": async (reply) => {
      reply.head({}, 400);
      await reply.bytes("x");
    },
  };
  it.each(Object.entries(phases))(
    "closes the engine's connection at once: %s",
    async (_, script) => {
      await using vllm = await startFakeVllm();
      await using engine = engineFor(vllm);
      vllm.reply(script);
      const leaving = new AbortController();
      const stream = engine.chat(chatRequest(), leaving.signal);
      const outcome = collect(stream);
      const request = await vllm.request(0);
      // Whatever the script sends at first has arrived once another connection has made a round trip.
      await engine.checkHealth(never());
      const abortedAt = performance.now();
      leaving.abort(left);
      expect((await outcome).error).toBe(left);
      expect(performance.now() - abortedAt).toBeLessThan(CLOSED_WITHIN_MS);
      expect(await request.closed).toBe("aborted");
      expect((request.closedAt ?? Number.NaN) - abortedAt).toBeLessThan(CLOSED_WITHIN_MS);
      await engine.checkHealth(never());
    },
  );

  it("takes back a request that waits for a connection, and the next one gets its turn", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 1 });
    const released = Promise.withResolvers<void>();
    vllm.reply(answer({}, { after: 2, by: () => released.promise }));
    const first = chat(engine);
    await vllm.request(0);
    const leaving = new AbortController();
    const second = chat(engine, { tenant: "second" }, leaving.signal);
    const third = chat(engine, { tenant: "third" });
    leaving.abort(left);
    expect((await second).error).toBe(left);
    released.resolve();
    expect((await first).error).toBeUndefined();
    expect((await third).error).toBeUndefined();
    expect(vllm.requests).toHaveLength(2);
    expect(new Set(vllm.requests.map(({ socket }) => socket)).size).toBe(1);
  });

  it("closes a connection that is being opened", async () => {
    await using silent = await startSilentServer();
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { url: silent.url, connections: 1 });
    // Twice: the first leaves its place to the second.
    for (let i = 0; i < 2; i += 1) {
      const connected = once(silent.server, "connection");
      const leaving = new AbortController();
      const outcome = chat(engine, {}, leaving.signal);
      const [socket] = (await connected) as [Socket];
      const closed = once(socket, "close");
      const abortedAt = performance.now();
      leaving.abort(left);
      expect((await outcome).error).toBe(left);
      await closed;
      expect(performance.now() - abortedAt).toBeLessThan(CLOSED_WITHIN_MS);
    }
  });

  it("takes back a request that is about to use an open connection", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 1 });
    await chat(engine);
    await (await vllm.request(0)).closed;
    // An idle connection is looked at before the next request is written to it: that is the moment.
    await engine.checkHealth(never());
    const leaving = new AbortController();
    const outcome = chat(engine, {}, leaving.signal);
    leaving.abort(left);
    expect((await outcome).error).toBe(left);
    expect((await chat(engine, { tenant: "next" })).error).toBeUndefined();
    expect(vllm.requests).toHaveLength(2);
  });

  it("before the start sends nothing", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    expect((await chat(engine, {}, AbortSignal.abort(left))).error).toBe(left);
    await engine.checkHealth(never());
    expect(vllm.requests).toEqual([]);
  });

  it("is thrown before what was received and not taken yet", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(answer({}, { after: 4, by: forever }));
    const leaving = new AbortController();
    const stream = engine.chat(chatRequest(), leaving.signal)[Symbol.asyncIterator]();
    await stream.next();
    leaving.abort(left);
    await expect(stream.next()).rejects.toBe(left);
    expect(await stream.next()).toEqual({ done: true, value: undefined });
  });

  it("keeps the usage that was reported so far", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(answer({ text: ["a", "b", "c"], promptTokens: 9 }, { after: 3, by: forever }));
    const leaving = new AbortController();
    const stream = engine.chat(chatRequest(), leaving.signal);
    let text = "";
    const outcome = (async () => {
      for await (const part of stream) {
        if (part.type === "text-delta") text += part.text;
        if (text === "ab") leaving.abort(left);
      }
    })();
    await expect(outcome).rejects.toBe(left);
    expect(stream.usage).toEqual({ promptTokens: 9, completionTokens: 2, cachedPromptTokens: 0 });
  });

  it("after the end changes nothing, and leaves no listener on the signal", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const leaving = new AbortController();
    const { error, parts } = await chat(engine, {}, leaving.signal);
    expect(error).toBeUndefined();
    expect(parts.at(-1)).toMatchObject({ type: "end" });
    leaving.abort(left);
    expect(await (await vllm.request(0)).closed).toBe("finished");
    expect((await chat(engine)).error).toBeUndefined();
    expect(new Set(vllm.requests.map(({ socket }) => socket)).size).toBe(1);
  });

  it("at any moment leaves nothing behind", async () => {
    await using vllm = await startFakeVllm({ answer: { text: Array(20).fill(" mot") } });
    await using engine = engineFor(vllm, { connections: 3 });
    const turns = async (count: number) => {
      for (let i = 0; i < count; i += 1) await new Promise((resolve) => setImmediate(resolve));
    };
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(30), { minLength: 1, maxLength: 8 }), async (moments) => {
        const from = vllm.requests.length;
        const outcomes = moments.map(async (moment) => {
          const leaving = new AbortController();
          const outcome = chat(engine, {}, leaving.signal);
          await turns(moment);
          leaving.abort(left);
          return await outcome;
        });
        for (const { error, parts } of await Promise.all(outcomes)) {
          if (error === undefined) expect(parts.at(-1)).toMatchObject({ type: "end" });
          else expect(error).toBe(left);
        }
        // The next one gets a connection, and a whole answer.
        expect((await chat(engine)).error).toBeUndefined();
        for (const request of vllm.requests.slice(from)) await request.closed;
        expect(vllm.sockets.size).toBeLessThanOrEqual(4);
      }),
      { numRuns: 60 },
    );
  });
});

describe("a consumer who leaves the loop", () => {
  it("closes the engine's connection at once", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(answer({}, { after: 4, by: forever }));
    for await (const _ of engine.chat(chatRequest(), never())) break;
    const leftAt = performance.now();
    const request = await vllm.request(0);
    expect(await request.closed).toBe("aborted");
    expect((request.closedAt ?? Number.NaN) - leftAt).toBeLessThan(CLOSED_WITHIN_MS);
  });

  it("at the end part keeps the connection for the next chat", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm, { connections: 1 });
    const left = Promise.withResolvers<void>();
    // The end of the reply comes later than the end of the answer.
    vllm.reply(wholeAnswer({}, (reply) => void left.promise.then(() => reply.end())));
    for await (const part of engine.chat(chatRequest(), never())) if (part.type === "end") break;
    left.resolve();
    expect((await chat(engine)).error).toBeUndefined();
    expect(new Set(vllm.requests.map(({ socket }) => socket)).size).toBe(1);
  });

  it("before the loop, or while it waits, gets the end", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const unused = engine.chat(chatRequest(), never())[Symbol.asyncIterator]();
    expect(await unused.return?.()).toEqual({ done: true, value: undefined });
    expect(await unused.next()).toEqual({ done: true, value: undefined });
    vllm.reply(silence);
    const waiting = engine.chat(chatRequest(), never())[Symbol.asyncIterator]();
    const part = waiting.next();
    const request = await vllm.request(0);
    await waiting.return?.();
    expect(await part).toEqual({ done: true, value: undefined });
    expect(await request.closed).toBe("aborted");
  });
});

describe("disposal of the engine", () => {
  it("ends running and waiting calls with unavailable, and closes every connection", async () => {
    await using vllm = await startFakeVllm();
    const engine = engineFor(vllm, { connections: 2 });
    vllm.reply(silence, answer({}, { after: 4, by: forever }));
    vllm.route("POST /tokenize", silence);
    const calls = [chat(engine), chat(engine), chat(engine)];
    const counting = engine.countTokens(chatRequest(), never()).catch((error) => error);
    await vllm.request(1);
    await engine[Symbol.asyncDispose]();
    for (const { error } of await Promise.all(calls)) expect(error?.kind).toBe("unavailable");
    expect((await counting).kind).toBe("unavailable");
    expect((await chat(engine)).error?.kind).toBe("unavailable");
    await expect(engine.listModels(never())).rejects.toMatchObject({ kind: "unavailable" });
    await eventually("every connection is closed", () => vllm.sockets.size === 0);
  });
});

describe("a consumer who is slower than the engine", () => {
  const chunk = "x".repeat(1_000);
  const text = Array.from({ length: 20_000 }, () => chunk);

  it("stops the engine by its socket, whatever the size of the answer, and then gets all of it", async () => {
    await using vllm = await startFakeVllm({ answer: { text } });
    // Shorter than the pause: time that the consumer takes is not the engine's.
    await using engine = engineFor(vllm, { timeouts: { betweenChunksMs: 100 } });
    const stream = engine.chat(chatRequest({ maxTokens: 30_000 }), never());
    const iterator = stream[Symbol.asyncIterator]();
    const first = await iterator.next();
    const request = await vllm.request(0);
    const { socket } = request;
    let sent = -1;
    // Until the engine has been standing for half a second.
    for (let stands = 0; stands < 5; stands = socket.bytesWritten === sent ? stands + 1 : 0) {
      sent = socket.bytesWritten;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(request.state).toBe("running");
    // What the two kernels hold, and a read or two here; the whole answer has 26 MB.
    expect(sent).toBeLessThan(10_000_000);
    const rest = await collect({ usage: noUsage, [Symbol.asyncIterator]: () => iterator });
    expect(rest.error).toBeUndefined();
    const length = (first.value as { text: string }).text.length + rest.text.length;
    expect(length).toBe(20_000 * chunk.length);
    expect(stream.usage.completionTokens).toBe(20_001);
  });

  it("never holds more than a bounded part of the answer", async () => {
    await using vllm = await startFakeVllm({ answer: { text } });
    await using engine = engineFor(vllm);
    let longest = 0;
    for await (const part of engine.chat(chatRequest({ maxTokens: 30_000 }), never())) {
      if (part.type === "text-delta") longest = Math.max(longest, part.text.length);
      await new Promise((resolve) => setImmediate(resolve));
    }
    // Three reads of a socket, at most 64 KiB each.
    expect(longest).toBeLessThan(3 * 64 * 1024);
  });
});
