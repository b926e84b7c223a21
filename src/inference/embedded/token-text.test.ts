import type { Token } from "node-llama-cpp";
import { describe, expect, it } from "vitest";
import { createTokenText } from "./token-text.ts";

/** A vocabulary where every token is one byte. */
const detokenize = (tokens: readonly number[]) => Buffer.from(tokens).toString("utf8");

function read(bytes: Uint8Array) {
  const text = createTokenText(detokenize, []);
  const deltas = Array.from(bytes, (byte) => text.push(byte as Token));
  return { deltas, text: deltas.join("") + text.flush() };
}

describe("the text of tokens", () => {
  it("comes in whole characters", () => {
    const { deltas, text } = read(Buffer.from("été 😀!"));
    expect(text).toBe("été 😀!");
    expect(deltas.filter((delta) => delta !== "")).toEqual(Array.from("été 😀!"));
  });

  it("shows the begin of a character that never ends, when the text ends", () => {
    const { deltas, text } = read(Buffer.from("a😀").subarray(0, 3));
    expect(deltas).toEqual(["a", "", ""]);
    expect(text).toBe("a\uFFFD");
  });

  it("goes on after bytes that are no character, and holds back few of them", () => {
    const { deltas, text } = read(Buffer.from([...Array(20).fill(0xff), 0x61]));
    expect(text).toBe(`${"\uFFFD".repeat(20)}a`);
    expect(deltas.findIndex((delta) => delta !== "")).toBe(15);
  });

  it("asks for the tokens in front, which decide about spaces", () => {
    const seen: number[][] = [];
    const text = createTokenText(
      (tokens, before) => {
        seen.push([...before]);
        return detokenize(tokens);
      },
      [1, 2] as Token[],
    );
    text.push(0x61 as Token);
    text.push(0x62 as Token);
    expect(seen).toEqual([
      [1, 2],
      [1, 2, 0x61],
    ]);
  });
});
