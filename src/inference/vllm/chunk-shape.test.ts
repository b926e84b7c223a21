import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Usage } from "../engine.ts";
import { ChunkShape } from "./chunk-shape.ts";
import { parseChunk } from "./parse-chunk.ts";

const event = (text: string, total: number | string, completion: number | string) =>
  `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"${text}"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":12,"total_tokens":${total},"completion_tokens":${completion},"completion_tokens_details":null}}`;

const before: Usage = { promptTokens: 3, completionTokens: 4, cachedPromptTokens: 5 };

/** What JSON's own parser makes of an event; undefined when it is refused. */
function parsed(data: string) {
  const said: unknown[] = [];
  let usage = before;
  try {
    parseChunk(data, before, {
      onUsage: (reported) => {
        usage = reported;
      },
      onText: (type, text) => said.push({ type, text }),
      onToolCall: (...call) => said.push(call),
      onFinish: (reason) => said.push(reason),
    });
  } catch {
    return undefined;
  }
  return { said, usage };
}

/** Whether the shape matches an event of this data, which lies among other bytes, and all of it. */
function matches(shape: ChunkShape, data: string): boolean {
  const bytes = Buffer.from(`x\ndata: ${data}\n\ndata: `);
  const [start, end] = [2, bytes.length - "data: ".length];
  const at = shape.match(bytes, start, end);
  expect([-1, end]).toContain(at);
  // Of an event that is cut nothing is said, whatever lies behind the cut.
  expect(shape.match(bytes, start, end - 1)).toBe(-1);
  return shape.match(bytes, start, end) !== -1;
}

/** What a shape makes of an event that it matches. */
function matched(shape: ChunkShape) {
  return { said: [{ type: shape.type, text: shape.text }], usage: shape.usageAfter(before) };
}

function learned(data: string): ChunkShape {
  const shape = ChunkShape.learn(data);
  if (shape === undefined) throw new Error("nothing was learned");
  return shape;
}

describe("the shape of an answer's events", () => {
  it("matches every plain text event of the recorded answers, and reads the same in it as JSON's parser", () => {
    const folder = join(import.meta.dirname, "../../../test/fixtures/vllm");
    let count = 0;
    for (const file of readdirSync(folder).filter((name) => name.startsWith("chat-stream"))) {
      const { response } = JSON.parse(readFileSync(join(folder, file), "utf8"));
      let shape: ChunkShape | undefined;
      for (const data of String(response.body).split("\n\n")) {
        const json = data.slice("data: ".length);
        if (shape !== undefined && matches(shape, json)) {
          expect(matched(shape)).toEqual(parsed(json));
          count += 1;
        } else shape = ChunkShape.learn(json) ?? shape;
      }
    }
    expect(count).toBeGreaterThan(100);
  });

  it("never reads something else than JSON's parser does, whatever the event", () => {
    const shape = learned(event(" a", 13, 1));
    const text = fc.oneof(
      fc.string({ unit: "binary" }),
      fc.constantFrom(
        "",
        '"',
        "\\",
        "\\n",
        "\\x",
        "\\\\",
        '\\"',
        "\\ud800",
        "\u0000",
        "\n",
        '"},"x":{"',
        "é😀",
      ),
    );
    const count = fc.oneof(
      fc.nat(),
      fc.constantFrom("", "01", "-1", "1.5", "1e3", "null", '"1"', "9".repeat(15), "9".repeat(16)),
    );
    fc.assert(
      fc.property(fc.array(text, { maxLength: 3 }), count, count, (texts, total, completion) => {
        const data = event(texts.join(""), total, completion);
        if (matches(shape, data)) expect(matched(shape)).toEqual(parsed(data));
      }),
      { numRuns: 2000 },
    );
  });

  it("is learned from an event that has no usage", () => {
    const bare = (text: string) => `{"choices":[{"index":0,"delta":{"content":"${text}"}}]}`;
    const shape = learned(bare("a"));
    expect(matches(shape, bare("b"))).toBe(true);
    expect(matched(shape)).toEqual(parsed(bare("b")));
  });

  it("has nothing of an event that does not match", () => {
    const shape = learned(event("a", 13, 1));
    expect(matches(shape, event("b", 14, 2))).toBe(true);
    expect(matches(shape, event("\\x", 99, 99))).toBe(false);
    expect(shape.usageAfter(before).completionTokens).toBe(2);
  });

  it("matches texts with escapes, but for those that can be half a code point", () => {
    const shape = learned(event('\\"a\\n', 13, 1));
    for (const text of ["\\n", '\\"', "é\\\\", "\\t😀\\/"]) {
      const data = event(text, 14, 2);
      expect(matches(shape, data)).toBe(true);
      expect(matched(shape)).toEqual(parsed(data));
    }
    expect(matches(shape, event("\\u00e9", 14, 2))).toBe(false);
  });

  it("does not match an event that differs in a single character outside its text and counts", () => {
    const data = event(" a", 13, 1);
    const shape = learned(data);
    expect(matches(shape, data)).toBe(true);
    for (let at = 0; at < data.length; at += 1) {
      const changed = `${data.slice(0, at)}~${data.slice(at + 1)}`;
      if (matches(shape, changed)) expect(matched(shape)).toEqual(parsed(changed));
      expect(matches(shape, data.slice(0, at))).toBe(false);
    }
    expect(matches(shape, `${data} `)).toBe(false);
  });

  it.each([
    ["an end", event("a", 13, 1).replace('"finish_reason":null', '"finish_reason":"stop"')],
    ["two texts", event("a", 13, 1).replace('"content":"a"', '"content":"a","reasoning":"b"')],
    ["a tool call", event("a", 13, 1).replace('"content":"a"', '"tool_calls":[]')],
    [
      "counts in another order",
      event("a", 13, 1).replace(
        ',"total_tokens":13,"completion_tokens":1',
        ',"completion_tokens":1,"total_tokens":13',
      ),
    ],
    ["a text that a later one replaces", event("a", 13, 1).replace('"a"', '"a","content":"b"')],
    ["no JSON", event("a", 13, 1).slice(1)],
    ["an error", '{"error":{"message":"\\"delta\\":{\\"content\\":\\"a"}}'],
  ])("is not learned from %s", (_name, data) => {
    expect(ChunkShape.learn(data)).toBeUndefined();
  });

  it("keeps what an event leaves out as it was", () => {
    const shape = learned(event("a", 13, 1));
    expect(matches(shape, event("b", 14, 2))).toBe(true);
    expect(shape.usageAfter(before)).toEqual({
      promptTokens: 12,
      completionTokens: 2,
      cachedPromptTokens: 5,
    });
  });
});
