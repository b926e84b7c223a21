import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Fixture } from "../../../test/support/fake-vllm-replies.ts";
import { AppError } from "../../errors.ts";
import type { ChatPart } from "../engine.ts";
import { AnswerReader } from "./answer-reader.ts";
import { ChunkShapes } from "./chunk-shapes.ts";

/** What a read buffer has around what was read. */
const stale = Buffer.from("x");

/** Reads a stream of these bytes. The parts and the usage are those that a consumer would have got. */
const read = (pieces: readonly Uint8Array[], maxTokens = 100) => {
  const reader = new AnswerReader(maxTokens, new ChunkShapes());
  const parts: ChatPart[] = [];
  let error: unknown;
  try {
    for (const piece of pieces)
      reader.read(Buffer.concat([stale, piece, stale]), 1, 1 + piece.length);
  } catch (thrown) {
    error = thrown;
  }
  for (let part = reader.parts.shift(); part; part = reader.parts.shift()) parts.push(part);
  return { parts, usage: reader.usage, done: reader.done, error: error as AppError | undefined };
};

const toBytes = (...events: unknown[]) =>
  Buffer.from(
    events.map((e) => `data: ${typeof e === "string" ? e : JSON.stringify(e)}\n\n`).join(""),
  );
const delta = (fields: object, more: object = {}) => ({
  choices: [{ index: 0, delta: fields, finish_reason: null, ...more }],
});
const stop = delta({}, { finish_reason: "stop" });
const readEvents = (...events: unknown[]) => read([toBytes(...events)]);

const folder = new URL("../../../test/fixtures/vllm/", import.meta.url);
const recordings = readdirSync(folder)
  .filter((file) => file.startsWith("chat-stream") && file.endsWith(".json"))
  .map((file): [string, Fixture] => [
    file,
    JSON.parse(readFileSync(new URL(file, folder), "utf8")),
  ]);

describe("AnswerReader reads what vLLM 0.32 said", () => {
  it.each(recordings.filter(([file]) => !file.includes("n2")))(
    "%s, whole and byte by byte",
    (_, fixture) => {
      const { body } = fixture.response;
      const bytes = Buffer.from(body);
      const whole = read([bytes]);
      expect(whole.error).toBeUndefined();
      expect(whole.done).toBe(true);
      const chunks = body.match(/^data: \{.*$/gm)?.map((line) => JSON.parse(line.slice(6))) ?? [];
      const said = chunks.flatMap((chunk) => chunk.choices[0]?.delta.content ?? []).join("");
      const text = whole.parts
        .map((part) => (part.type === "text-delta" ? part.text : ""))
        .join("");
      expect(text).toBe(said);
      const usage = chunks.at(-1).usage;
      if (usage)
        expect(whole.usage).toEqual({
          promptTokens: usage.prompt_tokens,
          completionTokens: usage.completion_tokens,
          cachedPromptTokens: usage.prompt_tokens_details.cached_tokens,
        });
      // Ids that vLLM gives are kept, so that two readings of one stream are equal.
      expect(read(Array.from(bytes, (byte) => Uint8Array.of(byte)))).toEqual(whole);
    },
  );

  it("joins the pieces of each tool call into one JSON object", () => {
    for (const [file, fixture] of recordings.filter(([f]) => /tools-(auto|parallel)\./.test(f))) {
      const { parts } = read([Buffer.from(fixture.response.body)]);
      const calls = parts.filter((part) => part.type === "tool-call-delta");
      expect(calls.length, file).toBeGreaterThan(0);
      for (const call of calls) {
        expect(call).toMatchObject({ id: expect.any(String), name: "get_weather" });
        expect(JSON.parse(call.arguments)).toEqual({ city: expect.any(String) });
      }
      expect(parts.at(-1)).toEqual({ type: "end", finishReason: "tool-calls" });
    }
  });

  it("refuses a second answer, because one was asked for", () => {
    const [, fixture] = recordings.find(([file]) => file.includes("n2")) ?? [];
    expect(read([Buffer.from(fixture?.response.body ?? "")]).error).toMatchObject({
      kind: "corrupt",
    });
  });
});

it("keeps the order of what one read brings, however it is written", () => {
  const long = "é".repeat(20_000);
  const usual = (text: string) => delta({ content: text });
  const events = [
    ...["un ", "deux ", "trois "].map(usual),
    delta({ reasoning: "hm " }),
    delta({ reasoning: "oui " }),
    usual("quatre\n"),
    usual("cinq "),
    { ...usual("six "), x: [1] },
    usual("sept "),
    usual(long),
    usual("x".repeat(16_000)),
    usual("y".repeat(1000)),
    delta({ tool_calls: [{ index: 0, id: "a", function: { name: "f", arguments: "{}" } }] }),
    usual("fin"),
  ];
  const once = readEvents(usual("d"), delta({ reasoning: "d" }), ...events, stop, "[DONE]");
  const each = read(
    [usual("d"), delta({ reasoning: "d" }), ...events, stop, "[DONE]"].map((one) => toBytes(one)),
  );
  expect(once.error).toBeUndefined();
  expect(once).toEqual(each);
  expect(once.parts).toEqual([
    { type: "text-delta", text: "d" },
    { type: "reasoning-delta", text: "d" },
    { type: "text-delta", text: "un deux trois " },
    { type: "reasoning-delta", text: "hm oui " },
    {
      type: "text-delta",
      text: `quatre\ncinq six sept ${long}${"x".repeat(16_000)}${"y".repeat(1000)}`,
    },
    { type: "tool-call-delta", index: 0, id: "a", name: "f", arguments: "{}" },
    { type: "text-delta", text: "fin" },
    { type: "end", finishReason: "tool-calls" },
  ]);
});

it("keeps the texts of answers apart that are read in turn, before anybody asks for them", () => {
  const shapes = new ChunkShapes();
  const readers = [0, 1].map(() => new AnswerReader(100, shapes));
  const texts = ["a", "b", "c", "d"];
  for (const text of ["", ...texts])
    for (const [index, reader] of readers.entries()) {
      const bytes = toBytes(delta({ content: text === "" ? "" : `${text}${index}` }));
      reader.read(bytes, 0, bytes.length);
    }
  for (const [index, reader] of readers.entries()) {
    const text = texts.map((each) => `${each}${index}`).join("");
    expect(reader.parts.shift()).toEqual({ type: "text-delta", text });
    expect(reader.parts.shift()).toBeUndefined();
  }
});

describe("AnswerReader reads the shapes of other versions", () => {
  it.each([
    ["reasoning", { reasoning: "hm" }],
    ["reasoning_content, as it was called until 2026", { reasoning_content: "hm" }],
    ["both, which must not be said twice", { reasoning: "hm", reasoning_content: "hm" }],
  ])("%s", (_, fields) => {
    const { parts } = readEvents(delta(fields), delta({ content: "oui" }), stop, "[DONE]");
    expect(parts).toEqual([
      { type: "reasoning-delta", text: "hm" },
      { type: "text-delta", text: "oui" },
      { type: "end", finishReason: "stop" },
    ]);
  });

  it("takes usage from any chunk, also from the last one that has a choice", () => {
    const usage = {
      prompt_tokens: 5,
      completion_tokens: 2,
      prompt_tokens_details: { cached_tokens: 4 },
    };
    const { usage: seen } = readEvents({ ...stop, usage }, "[DONE]");
    expect(seen).toEqual({ promptTokens: 5, completionTokens: 2, cachedPromptTokens: 4 });
  });

  it("keeps what the last report knew when a later one leaves it out", () => {
    const { usage } = readEvents(
      {
        choices: [],
        usage: {
          prompt_tokens: 5,
          completion_tokens: 1,
          prompt_tokens_details: { cached_tokens: 4 },
        },
      },
      { choices: [], usage: { prompt_tokens: 5, completion_tokens: 2 } },
    );
    expect(usage).toEqual({ promptTokens: 5, completionTokens: 2, cachedPromptTokens: 4 });
  });

  it("gives id and name of a tool call once, and an id to a call that has none", () => {
    const call = (fields: object) => delta({ tool_calls: [{ index: 0, ...fields }] });
    const { parts } = readEvents(
      call({ function: { name: "f", arguments: "{" } }),
      delta({ content: "!" }),
      call({ id: "x", function: { name: "f", arguments: "}" } }),
      stop,
      "[DONE]",
    );
    expect(parts).toEqual([
      {
        type: "tool-call-delta",
        index: 0,
        id: expect.stringMatching(/^call-/),
        name: "f",
        arguments: "{",
      },
      { type: "text-delta", text: "!" },
      { type: "tool-call-delta", index: 0, arguments: "}" },
      { type: "end", finishReason: "tool-calls" },
    ]);
  });

  it("replaces half a code point, which no client could be sent", () => {
    const { parts } = readEvents('{"choices":[{"delta":{"content":"a\\ud83d"}}]}', stop, "[DONE]");
    expect(parts[0]).toEqual({ type: "text-delta", text: "a\ufffd" });
  });
});

describe("AnswerReader never takes a broken answer for a whole one", () => {
  const canary = "CANARY-upstream-text";
  const cases: Record<string, [events: unknown[], kind: string]> = {
    "text that is not JSON": [[`{"choices": ${canary}`], "corrupt"],
    "JSON that is no object": [["[]"], "corrupt"],
    "[DONE] without a finish reason": [["[DONE]"], "corrupt"],
    "an event after [DONE]": [[stop, "[DONE]", delta({ content: canary })], "corrupt"],
    "an error object": [[{ error: { message: canary, code: 500 } }], "unavailable"],
    "an error object without an envelope": [
      [{ object: "error", message: canary, code: 400 }],
      "invalid",
    ],
    "an error object that says 400": [[{ error: { message: canary, code: 400 } }], "invalid"],
    "an error that is a text": [[{ error: canary }], "unavailable"],
    "an error with a code of no meaning": [
      [{ error: { code: 7, message: { toString: 1 } } }],
      "unavailable",
    ],
    "the finish reason abort": [[delta({}, { finish_reason: "abort" })], "unavailable"],
    "the finish reason error": [[delta({}, { finish_reason: "error" })], "unavailable"],
    "an unknown finish reason": [[delta({}, { finish_reason: canary })], "corrupt"],
    "a finish reason that is inherited": [[delta({}, { finish_reason: "constructor" })], "corrupt"],
    "text that is a number": [[delta({ content: 7 })], "corrupt"],
    "text that is an object": [[delta({ content: { toString: canary } })], "corrupt"],
    "choices that are missing": [[{}], "corrupt"],
    "a choice that is null": [[{ choices: [null] }], "corrupt"],
    "a choice of another answer": [[{ choices: [{ index: 1, delta: {} }] }], "corrupt"],
    "a delta that is a list": [[delta([canary])], "corrupt"],
    "usage that is a text": [[{ choices: [], usage: canary }], "corrupt"],
    "a negative token count": [[{ choices: [], usage: { completion_tokens: -1 } }], "corrupt"],
    "a token count past all numbers": [
      ['{"choices":[],"usage":{"prompt_tokens":1e999}}'],
      "corrupt",
    ],
    "tool calls that are an object": [[delta({ tool_calls: {} })], "corrupt"],
    "a tool call without an index": [
      [delta({ tool_calls: [{ function: { name: "f" } }] })],
      "corrupt",
    ],
    "a tool call far out": [
      [delta({ tool_calls: [{ index: 1e9, function: { name: "f" } }] })],
      "corrupt",
    ],
    "a tool call without a name": [[delta({ tool_calls: [{ index: 0, id: "a" }] })], "corrupt"],
    "arguments that are an object": [
      [delta({ tool_calls: [{ index: 0, function: { name: "f", arguments: {} } }] })],
      "corrupt",
    ],
  };
  it.each(Object.entries(cases))("%s", (_, [events, kind]) => {
    const { parts, error } = readEvents(delta({ content: "Bon" }), ...events);
    expect(parts[0]).toEqual({ type: "text-delta", text: "Bon" });
    expect(error).toBeInstanceOf(AppError);
    expect(error?.kind).toBe(kind);
    expect(error?.message).not.toContain(canary);
  });

  it("an event larger than a megabyte", () => {
    const { error } = read([Buffer.from("data: "), Buffer.alloc(1_100_000, "x")]);
    expect(error?.kind).toBe("corrupt");
  });

  it("more events than the tokens it was allowed", () => {
    const { error } = read([toBytes(...Array(300).fill(delta({ content: "" })))], 1);
    expect(error?.kind).toBe("corrupt");
  });

  it("more bytes than the tokens it was allowed, in comments that never end", () => {
    const comment = Buffer.from(": ping\n".repeat(10_000));
    const { error } = read(Array(50).fill(comment), 1);
    expect(error?.kind).toBe("corrupt");
  });

  it("any JSON at all: AppError or nothing", () => {
    const field = fc.constantFrom(
      "choices",
      "delta",
      "content",
      "usage",
      "error",
      "tool_calls",
      "index",
      "object",
    );
    const { tree } = fc.letrec((tie) => ({
      tree: fc.oneof(
        { depthSize: "medium" },
        fc.constantFrom(null, true, 0, -1, 1.5, "", "stop", "error"),
        fc.array(tie("tree"), { maxLength: 3 }),
        fc.dictionary(field, tie("tree"), { maxKeys: 4 }),
      ),
    }));
    fc.assert(
      fc.property(tree, fc.boolean(), (value, inside) => {
        const { error } = readEvents(inside ? { choices: [value] } : value);
        if (error !== undefined) expect(error).toBeInstanceOf(AppError);
      }),
      { numRuns: 3_000 },
    );
  });

  it("a recording with any byte changed: the text so far and an AppError, or an answer with its end", () => {
    const bytes = Buffer.from(recordings[0]?.[1].response.body ?? "");
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
        const changed = Buffer.from(bytes);
        changed[at] = value;
        const { error, done, parts } = read([changed]);
        if (error !== undefined) expect(error).toBeInstanceOf(AppError);
        expect(parts.at(-1)?.type === "end").toBe(done);
      }),
      { numRuns: 2_000 },
    );
  });
});
