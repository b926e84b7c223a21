import { describe, expect, it } from "vitest";
import type { ChatPart } from "../engine.ts";
import { createThoughts, type ThoughtTags } from "./thoughts.ts";

const tags = { open: "<think>", close: "</think>" };

/** Reasoning and answer of `text`, given in pieces of `length` characters. */
function split(text: string, length: number, opened = false, given: ThoughtTags | null = tags) {
  const thoughts = createThoughts(given ?? undefined, opened);
  const parts: ChatPart[] = [];
  for (let at = 0; at < text.length; at += length) {
    parts.push(...thoughts.push(text.slice(at, at + length)));
  }
  parts.push(...thoughts.flush());
  const join = (type: ChatPart["type"]) =>
    parts.map((part) => (part.type === type && "text" in part ? part.text : "")).join("");
  return { reasoning: join("reasoning-delta"), answer: join("text-delta") };
}

describe.each([1, 3, 100])("reasoning, in pieces of %i characters,", (length) => {
  it("in front of the answer is told apart from it", () => {
    expect(split("<think>\nhm, 2 < 3\n</think>\n\nThree.", length)).toEqual({
      reasoning: "hm, 2 < 3\n",
      answer: "Three.",
    });
  });

  it("that the prompt opened is told apart as well", () => {
    expect(split("hm</think>Three.", length, true)).toEqual({ reasoning: "hm", answer: "Three." });
  });

  it("that is cut off stays reasoning", () => {
    expect(split("<think>hm </thi", length)).toEqual({ reasoning: "hm </thi", answer: "" });
  });

  it("is not seen in an answer that writes about the tags", () => {
    const text = "Write <think> and </think>.";
    expect(split(text, length)).toEqual({ reasoning: "", answer: text });
  });

  it("is not seen in an answer that begins almost like it, or for a model without tags", () => {
    expect(split("<th>cell</th>", length)).toEqual({ reasoning: "", answer: "<th>cell</th>" });
    expect(split("  <thi", length)).toEqual({ reasoning: "", answer: "  <thi" });
    const text = "<think>a</think>";
    expect(split(text, length, false, null)).toEqual({ reasoning: "", answer: text });
  });
});
