import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  chatRequest,
  never,
  readAnswer,
  says,
  startTinyEngine,
} from "../../../test/support/embedded-chats.ts";
import { eventually } from "../../../test/support/eventually.ts";
import type { ChatPart, Engine, EngineChatRequest } from "../engine.ts";
import { loadModel } from "./load-model.ts";

/** How soon an abort must be felt. */
const abortMs = 250;
const contextTokens = 8192;
const gone = new Error("the caller left");

let engine: Engine;
beforeAll(async () => {
  engine = await startTinyEngine({ endOfTurnLogit: -1000 }, { contextTokens, concurrency: 2 });
});
afterAll(async () => engine[Symbol.asyncDispose]());

/** A chat whose parts are taken one by one, to stop in the middle of it. */
function start(on: Engine, overrides: Partial<EngineChatRequest> = {}) {
  const controller = new AbortController();
  const stream = on.chat(chatRequest({ maxTokens: 5000, ...overrides }), controller.signal);
  return { controller, stream, parts: stream[Symbol.asyncIterator]() };
}

async function expectGone(pending: Promise<unknown>, controller: AbortController) {
  const aborted = performance.now();
  controller.abort(gone);
  await expect(pending).rejects.toBe(gone);
  expect(performance.now() - aborted).toBeLessThan(abortMs);
}

/** Fails by its time limit when a sequence is still taken: both must be free to run these two at once. */
async function expectAllFree() {
  const answers = [start(engine), start(engine)];
  const firsts = await Promise.all(answers.map(({ parts }) => parts.next()));
  expect(firsts.map(({ done }) => done)).toEqual([false, false]);
  await Promise.all(answers.map(({ parts }) => parts.return?.()));
}

describe("an abort", () => {
  it("is thrown at once while the prompt is read, and frees the sequence", async () => {
    const { controller, stream, parts } = start(engine, {
      messages: [says("user", "z".repeat(contextTokens - 100))],
    });
    const pending = parts.next();
    await eventually("the prompt is being read", () => stream.usage.promptTokens > 0);
    await expectGone(pending, controller);
    expect(stream.usage).toMatchObject({ completionTokens: 0 });
    await expectAllFree();
  });

  it("is thrown at once while the model writes, and the tokens so far are counted", async () => {
    const { controller, stream, parts } = start(engine);
    for (let count = 0; count < 5; count += 1) await parts.next();
    await expectGone(parts.next(), controller);
    expect(stream.usage.promptTokens).toBeGreaterThan(0);
    expect(stream.usage.completionTokens).toBeGreaterThanOrEqual(5);
    await expectAllFree();
  });

  it("is thrown at once while the call waits for a sequence", async () => {
    const running = [start(engine), start(engine)];
    for (const { parts } of running) await parts.next();
    const { controller, parts } = start(engine);
    await expectGone(parts.next(), controller);
    await Promise.all(running.map((call) => call.parts.return?.()));
    await expectAllFree();
  });

  it("before the first part costs nothing", async () => {
    const { controller, stream, parts } = start(engine);
    controller.abort(gone);
    await expect(parts.next()).rejects.toBe(gone);
    expect(stream.usage.promptTokens).toBe(0);
  });
});

describe("a consumer that leaves its loop", () => {
  it("frees the sequence", async () => {
    for (let count = 0; count < 3; count += 1) {
      for await (const part of engine.chat(chatRequest({ maxTokens: 5000 }), never)) {
        expect(part.type).toBe("text-delta");
        break;
      }
    }
    await expectAllFree();
  });
});

describe("calls beyond the concurrency", () => {
  it("wait until a sequence is free, and get it in order of arrival", async () => {
    const running = [start(engine), start(engine)];
    for (const { parts } of running) await parts.next();
    const order: string[] = [];
    const wait = async (name: string) => {
      const { parts } = start(engine, { maxTokens: 3 });
      await parts.next();
      order.push(name);
      await parts.return?.();
    };
    const waiting = [wait("third"), wait("fourth"), wait("fifth")];
    for (let count = 0; count < 10; count += 1) {
      for (const { parts } of running) await parts.next();
    }
    expect(order).toEqual([]);
    await running[0]?.parts.return?.();
    await Promise.all(waiting);
    expect(order).toEqual(["third", "fourth", "fifth"]);
    await running[1]?.parts.return?.();
  });

  it("do not start before the first part is asked for", async () => {
    const unread = [start(engine), start(engine), start(engine)];
    await readAnswer(engine.chat(chatRequest(), never));
    expect(unread.map(({ stream }) => stream.usage.promptTokens)).toEqual([0, 0, 0]);
  });
});

describe("disposal", () => {
  it("ends running and waiting calls as unavailable, and refuses later ones", async () => {
    const own = await startTinyEngine({ endOfTurnLogit: -1000 });
    const running = start(own);
    await running.parts.next();
    const waiting: Promise<IteratorResult<ChatPart>> = start(own).parts.next();
    const disposed = own[Symbol.asyncDispose]();
    const stopping = { kind: "unavailable" };
    await expect(running.parts.next()).rejects.toMatchObject(stopping);
    await expect(waiting).rejects.toMatchObject(stopping);
    await disposed;
    await expect(start(own).parts.next()).rejects.toMatchObject(stopping);
    await expect(own.checkHealth(never)).rejects.toMatchObject(stopping);
    await expect(own.listModels(never)).rejects.toMatchObject(stopping);
    await own[Symbol.asyncDispose]();
  });

  it("waits for a prompt that is being read", async () => {
    const own = await startTinyEngine({}, { contextTokens });
    const { stream, parts } = start(own, { messages: [says("user", "z".repeat(8000))] });
    const pending = parts.next();
    await eventually("the prompt is being read", () => stream.usage.promptTokens > 0);
    const disposed = own[Symbol.asyncDispose]();
    await expect(pending).rejects.toMatchObject({ kind: "unavailable" });
    await disposed;
  });
});

describe("loading", () => {
  const options = { modelPath: import.meta.filename, concurrency: 1, contextTokens: 256 };

  it("says how to install llama.cpp, or do without it, when it is missing", async () => {
    const missing = () => Promise.reject(new Error("Cannot find package 'node-llama-cpp'"));
    await expect(loadModel(options, missing)).rejects.toMatchObject({
      kind: "unavailable",
      message: expect.stringMatching(/npm install.*VLLM_URL/),
    });
  });

  it("names the file that is no model", async () => {
    await expect(loadModel(options)).rejects.toMatchObject({
      kind: "invalid",
      message: expect.stringContaining("embedded-engine-lifecycle.test.ts"),
    });
  });
});
