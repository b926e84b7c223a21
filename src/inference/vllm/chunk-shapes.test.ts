import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Usage } from "../engine.ts";
import { ChunkShapes } from "./chunk-shapes.ts";
import { parseChunk } from "./parse-chunk.ts";

const event = (text: string, total: number | string, completion: number | string) =>
  `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"${text}"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":12,"total_tokens":${total},"completion_tokens":${completion},"completion_tokens_details":null}}`;

const end = (text: string) =>
  event(text, 14, 2).replace('"finish_reason":null', '"finish_reason":"stop"');

const usageOnly =
  '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}';

const toolCall =
  '"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]';

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

const toBytes = (data: string) => Buffer.from(`x\ndata: ${data}\n\ndata: `);

/** Whether the shapes match an event of this data, which lies among other bytes, and all of it. */
function matches(shapes: ChunkShapes, data: string): boolean {
  const bytes = toBytes(data);
  const [start, end] = [2, bytes.length - "data: ".length];
  const at = shapes.match(bytes, start, end);
  expect([-1, end]).toContain(at);
  // Of an event that is cut nothing is said, whatever lies behind the cut.
  expect(shapes.match(bytes, start, end - 1)).toBe(-1);
  return shapes.match(bytes, start, end) !== -1;
}

/** What the shapes make of the event that has matched last. */
function matched({ said }: ChunkShapes, data: string) {
  const { type, textStart, textEnd, escapedText, finishReason } = said;
  const text = escapedText || toBytes(data).toString("utf8", textStart, textEnd);
  const or = (count: number, known: number) => (count === -1 ? known : count);
  return {
    said: [
      ...(text === "" ? [] : [{ type, text }]),
      ...(finishReason === undefined ? [] : [finishReason]),
    ],
    usage: {
      promptTokens: or(said.promptTokens, before.promptTokens),
      completionTokens: or(said.completionTokens, before.completionTokens),
      cachedPromptTokens: or(said.cachedPromptTokens, before.cachedPromptTokens),
    },
  };
}

/** The event that has matched last says what JSON's parser makes of it. */
function expectSame(shapes: ChunkShapes, data: string): void {
  expect(matched(shapes, data)).toEqual(parsed(data));
}

function learned(...events: string[]): ChunkShapes {
  const shapes = new ChunkShapes();
  for (const data of events) shapes.learn(data);
  return shapes;
}

const folder = join(import.meta.dirname, "../../../test/fixtures/vllm");
/** The data of each event of the recorded streams, one list for each answer. */
const recordings = readdirSync(folder)
  .filter((name) => name.startsWith("chat-stream"))
  .map((name) => {
    const { response } = JSON.parse(readFileSync(join(folder, name), "utf8"));
    return [...String(response.body).matchAll(/^data: (.*)$/gm)].map(([, data = ""]) => data);
  });

describe("the shapes of an engine's events", () => {
  it("match in the recorded answers, and read the same as JSON's parser does", () => {
    const shapes = new ChunkShapes();
    let known = 0;
    let unknown = 0;
    for (const data of recordings.flat()) {
      if (data === "[DONE]" || data.includes('"tool_calls"')) continue;
      if (matches(shapes, data)) {
        expectSame(shapes, data);
        known += 1;
      } else {
        shapes.learn(data);
        unknown += 1;
      }
    }
    // Nine shapes, and the answers of a request for two.
    expect(unknown).toBeLessThan(30);
    expect(known).toBeGreaterThan(150);
  });

  it("are known from one answer to the next: all of its events, its first and last ones too", () => {
    const plain = recordings.find(
      (events) => events.length > 10 && !events.join().includes("tool_calls"),
    );
    const other = (plain ?? [])
      .filter((data) => data !== "[DONE]")
      .map((data) =>
        data
          .replace(/"id":"[^"]*"/, '"id":"chatcmpl-9F-_"')
          .replace(/"created":\d+/, '"created":9')
          .replace(/"prompt_tokens":\d+/, '"prompt_tokens":77'),
      );
    expect(other.length).toBeGreaterThan(10);
    const shapes = learned(...(plain ?? []));
    for (const data of other) {
      expect(matches(shapes, data)).toBe(true);
      expectSame(shapes, data);
    }
  });

  it("never read something else than JSON's parser does, whatever the event", () => {
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
    const id = fc.oneof(fc.string(), fc.constantFrom("", "a-B_9", '\\"', '","error":"', "é"));
    const shapes = learned(event(" a", 13, 1), end("stop"), usageOnly);
    fc.assert(
      fc.property(
        fc.array(text, { maxLength: 3 }),
        count,
        count,
        id,
        fc.constantFrom(event("T", "1", "2"), end("T"), usageOnly),
        (texts, total, completion, name, form) => {
          const data = form
            .replace('"chatcmpl-1"', () => `"${name}"`)
            .replace('"T"', () => `"${texts.join("")}"`)
            .replace(/(?<="total_tokens":)\d+/, () => String(total))
            .replace(/(?<="completion_tokens":)\d+/, () => String(completion));
          if (matches(shapes, data)) expectSame(shapes, data);
        },
      ),
      { numRuns: 5000 },
    );
  });

  it("are learned from an event that has no usage", () => {
    const bare = (text: string) => `{"choices":[{"index":0,"delta":{"content":"${text}"}}]}`;
    const shapes = learned(bare("a"));
    for (const text of ["b", ""]) {
      expect(matches(shapes, bare(text))).toBe(true);
      expectSame(shapes, bare(text));
    }
  });

  it("tell reasoning from text", () => {
    const reasoning = (text: string) => event(text, 13, 1).replace('"content"', '"reasoning"');
    const shapes = learned(event("a", 13, 1), reasoning("a"));
    for (const data of [event("b", 14, 2), reasoning("c")]) {
      expect(matches(shapes, data)).toBe(true);
      expectSame(shapes, data);
    }
  });

  it("match texts with escapes, also those of half a code point", () => {
    const shapes = learned(event('\\"a\\n', 13, 1));
    for (const text of ["\\n", '\\"', "é\\\\", "\\t😀\\/", "\\u00e9", "a\\ud83d"]) {
      const data = event(text, 14, 2);
      expect(matches(shapes, data)).toBe(true);
      expectSame(shapes, data);
    }
  });

  it("say nothing of an event that does not match", () => {
    const shapes = learned(event("a", 13, 1));
    expect(matches(shapes, event("b", 14, 2))).toBe(true);
    expect(matches(shapes, event("\\x", 99, 99))).toBe(false);
    expectSame(shapes, event("b", 14, 2));
  });

  it("do not match an event that differs in a single character outside its holes", () => {
    for (const data of [event(" a", 13, 1), end("length"), usageOnly]) {
      const shapes = learned(data);
      expect(matches(shapes, data)).toBe(true);
      for (let at = 0; at < data.length; at += 1) {
        for (const other of ["~", "7", "b"]) {
          const changed = `${data.slice(0, at)}${other}${data.slice(at + 1)}`;
          if (matches(shapes, changed)) expectSame(shapes, changed);
        }
        expect(matches(shapes, data.slice(0, at))).toBe(false);
      }
      expect(matches(shapes, `${data} `)).toBe(false);
    }
  });

  it.each([
    ["two texts", event("a", 13, 1).replace('"content":"a"', '"content":"a","reasoning":"b"')],
    [
      "a text that counts where the first one is empty",
      event("a", 13, 1).replace('"content":"a"', '"reasoning":"a","reasoning_content":"b"'),
    ],
    ["a tool call", event("a", 13, 1).replace('"content":"a"', toolCall)],
    [
      "a count that stands twice",
      event("a", 13, 1).replace('"total_tokens"', '"completion_tokens"'),
    ],
    [
      "a count that stands elsewhere",
      event("a", 13, 1).replace(/"usage".*/, '"x":{"completion_tokens":1}}'),
    ],
    [
      "a count that a later one replaces, by the name that an escape hides",
      event("a", 13, 1).replace('"prompt_tokens":12', '"prompt_tokens":12,"prompt\\u005ftokens":5'),
    ],
    ["a count that is no whole number", event("a", 13, "7.0000000000000002")],
    ["a text that a later one replaces", event("a", 13, 1).replace('"a"', '"a","content":"b"')],
    ["no JSON", event("a", 13, 1).slice(1)],
    ["an error", '{"error":{"message":"\\"delta\\":{\\"content\\":\\"a"}}'],
    ["a very large event", event("a".repeat(3000), 13, 1)],
  ])("are not learned from %s", (_name, data) => {
    expect(matches(learned(data), data)).toBe(false);
  });

  it("are few: those that did not match for long are forgotten", () => {
    const other = (model: number) => event("a", 13, 1).replace('"m"', `"m${model}"`);
    const shapes = learned(event("a", 13, 1));
    for (let model = 0; model < 100; model += 1) {
      shapes.learn(other(model));
      expect(matches(shapes, event("b", 14, 2))).toBe(true);
    }
    expect(matches(shapes, other(99))).toBe(true);
    expect(matches(shapes, other(0))).toBe(false);
  });
});
