import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { type Chat, chatEvents } from "../../../test/support/fake-vllm-answer.ts";
import { chat, chatRequest, collect, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import { type Fixture, replay } from "../../../test/support/fake-vllm-replies.ts";
import { noUsage } from "../engine.ts";

const folder = new URL("../../../test/fixtures/vllm/", import.meta.url);
const fixture = (name: string): Fixture =>
  JSON.parse(readFileSync(new URL(`${name}.json`, folder), "utf8"));
const never = () => new AbortController().signal;

describe("what comes back", () => {
  it("is text, reasoning, tool calls and one end, in order, with the usage", async () => {
    await using vllm = await startFakeVllm({
      answer: {
        reasoning: ["h", "m"],
        text: ["Un", " été"],
        toolCalls: [{ id: "a", name: "f", arguments: ['{"x"', ":1}"] }],
        promptTokens: 12,
        cachedTokens: 5,
      },
    });
    await using engine = engineFor(vllm);
    const stream = engine.chat(chatRequest(), never());
    expect(stream.usage).toEqual(noUsage);
    const { parts, error } = await collect(stream);
    expect(error).toBeUndefined();
    // However the network cut it, deltas joined are the answer.
    const joined = parts.reduce((all, part) => all + JSON.stringify(part), "");
    expect(joined.match(/"end"/g)).toHaveLength(1);
    const text = (type: string) =>
      parts.map((part) => (part.type === type && "text" in part ? part.text : "")).join("");
    expect(text("reasoning-delta")).toBe("hm");
    expect(text("text-delta")).toBe("Un été");
    const calls = parts.filter((part) => part.type === "tool-call-delta");
    expect(calls[0]).toMatchObject({ index: 0, id: "a", name: "f" });
    expect(calls.map((call) => call.arguments).join("")).toBe('{"x":1}');
    expect(parts.at(-1)).toEqual({ type: "end", finishReason: "tool-calls" });
    expect(stream.usage).toEqual({ promptTokens: 12, completionTokens: 8, cachedPromptTokens: 5 });
  });

  it("has the finish reason length when the tokens ran out", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const { parts } = await chat(engine, { maxTokens: 3 });
    expect(parts.at(-1)).toEqual({ type: "end", finishReason: "length" });
  });

  it("is the same however the bytes of a real vLLM are cut into segments", async () => {
    const recorded = fixture("chat-stream-french");
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(replay(recorded));
    const whole = await chat(engine);
    expect(whole.error).toBeUndefined();
    expect(whole.text).not.toBe("");
    const offset = fc.nat(Buffer.byteLength(recorded.response.body));
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(offset, { maxLength: 20 }), async (cuts) => {
        vllm.reply(
          replay(
            recorded,
            cuts.sort((a, b) => a - b),
          ),
        );
        const { text, error, parts } = await chat(engine);
        expect({ text, error, end: parts.at(-1) }).toEqual({
          text: whole.text,
          error: undefined,
          end: whole.parts.at(-1),
        });
      }),
      { numRuns: 30 },
    );
  });

  it("is what each recording says, or the error that it means", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const kinds: Record<string, string | undefined> = {};
    for (const file of readdirSync(folder).filter((name) =>
      /^(chat-stream|error)-.*json$/.test(name),
    )) {
      const recorded = fixture(file.replace(".json", ""));
      vllm.reply(replay(recorded));
      kinds[file.replace(".json", "")] = (await chat(engine)).error?.kind;
    }
    expect(kinds).toMatchObject({
      "chat-stream-tools-auto": undefined,
      "error-in-stream": "unavailable",
      "error-engine-dead": "unavailable",
      "error-queue-full": "unavailable",
      "error-internal": "unavailable",
      "error-schema-invalid": "invalid",
      "error-context-too-long": "invalid",
      "error-bad-json": "invalid",
      "error-unknown-model": "not-found",
      "error-wrong-method": "corrupt",
    });
  });

  it("arrives in one piece when it was not taken one by one, with nothing lost", async () => {
    const text = Array.from({ length: 200 }, (_, i) => `${i},`);
    await using vllm = await startFakeVllm({ answer: { text } });
    await using engine = engineFor(vllm);
    const stream = engine.chat(chatRequest({ maxTokens: 1_000 }), never())[Symbol.asyncIterator]();
    const first = await stream.next();
    expect(await (await vllm.request(0)).closed).toBe("finished");
    // Everything is on this side now; a round trip to the same server lets the last bytes be read.
    await engine.checkHealth(never());
    const rest = await collect({ usage: noUsage, [Symbol.asyncIterator]: () => stream });
    expect((first.value as { text: string }).text + rest.text).toBe(text.join(""));
    expect(rest.parts.length).toBeLessThan(5);
  });

  it("wakes a waiting consumer once for all that one read of the socket brought", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(async (reply, request) => {
      reply.head();
      // Many HTTP chunks, one segment.
      reply.socket.cork();
      for (const event of chatEvents(request.body as Chat, { text: ["Un", " é", "té"] }))
        await reply.event(event);
      reply.end();
      reply.socket.uncork();
    });
    expect((await chat(engine)).parts).toEqual([
      { type: "text-delta", text: "Un été" },
      { type: "end", finishReason: "stop" },
    ]);
  });

  it("goes over the same connection, one chat after the other", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    for (let i = 0; i < 5; i += 1) await chat(engine);
    expect(new Set(vllm.requests.map(({ socket }) => socket)).size).toBe(1);
  });
});
