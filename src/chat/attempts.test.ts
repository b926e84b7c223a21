import { describe, expect, it } from "vitest";
import type { Lease } from "../admission/admission.ts";
import { AppError, type ErrorKind } from "../errors.ts";
import { type ChatPart, type ChatStream, noUsage } from "../inference/engine.ts";
import { Attempts } from "./attempts.ts";

const text = (value: string): ChatPart => ({ type: "text-delta", text: value });

/** An answer of these parts; an error is thrown in its place. */
function streamOf(parts: readonly (ChatPart | Error)[]): ChatStream {
  return {
    usage: { ...noUsage, completionTokens: parts.length },
    askedAt: undefined,
    firstPartAt: undefined,
    async *[Symbol.asyncIterator]() {
      for (const part of parts) {
        if (part instanceof Error) throw part;
        yield part;
      }
    },
  };
}

/** Runs a chat for which the engines `a` and `b` have these answers. */
async function run(
  answers: Readonly<Record<string, readonly (ChatPart | Error)[]>>,
  { signal = new AbortController().signal, onMove = () => {} } = {},
) {
  const said: string[] = [];
  let engine = "a";
  const lease: Lease = {
    get engine() {
      return engine;
    },
    queueMs: 0,
    settle: () => undefined,
    answered: () => said.push(`${engine} answered`),
    fail: () => said.push(`${engine} failed`),
    async move() {
      said.push(`${engine} moved`);
      onMove();
      if (engine === "b" || answers.b === undefined) return false;
      engine = "b";
      return true;
    },
    [Symbol.dispose]: () => undefined,
  };
  const attempts = new Attempts({ lease, signal, run: (id) => streamOf(answers[id ?? ""] ?? []) });
  const parts: ChatPart[] = [];
  let error: unknown;
  try {
    for await (const part of attempts) parts.push(part);
  } catch (thrown) {
    error = thrown;
  }
  const { usage, isRefused } = attempts;
  return { said, parts, error, usage, isRefused };
}

const failure = (kind: ErrorKind) => new AppError(kind, "it failed");

describe("a chat", () => {
  it("that the engine answers runs once", async () => {
    const { said, parts, usage } = await run({ a: [text("x"), text("y")], b: [] });
    expect(parts).toEqual([text("x"), text("y")]);
    expect(said).toEqual(["a answered"]);
    expect(usage.completionTokens).toBe(2);
  });

  it.each([
    ["unavailable", [], true],
    ["invalid", [], true],
    ["timeout", [], false],
    ["unavailable", [text("x")], false],
  ] as const)("that fails as %s after %j has cost nothing: %s", async (kind, before, isFree) => {
    const { isRefused, error } = await run({ a: [...before, failure(kind)] });
    expect(error).toMatchObject({ kind });
    expect(isRefused).toBe(isFree);
  });

  it.each(["unavailable", "corrupt"] as const)(
    "whose engine is %s before its first part runs again elsewhere",
    async (kind) => {
      const { said, parts, error, usage } = await run({ a: [failure(kind)], b: [text("x")] });
      expect({ parts, error }).toEqual({ parts: [text("x")], error: undefined });
      expect(said).toEqual(["a moved", "b answered"]);
      expect(usage.completionTokens, "of the engine that answered").toBe(1);
    },
  );

  it("does not run again after its first part", async () => {
    const lost = failure("unavailable");
    const { said, parts, error } = await run({ a: [text("x"), lost], b: [text("y")] });
    expect({ said, parts, error }).toEqual({
      said: ["a answered"],
      parts: [text("x")],
      error: lost,
    });
  });

  it("ends with the first engine's failure where there is no other", async () => {
    const lost = failure("unavailable");
    expect((await run({ a: [lost] })).error).toBe(lost);
  });

  it.each([
    ["timeout", "a failed"],
    ["invalid", "a answered"],
    ["not-found", "a answered"],
  ] as const)("does not run again after %s, and says of its engine: %s", async (kind, expected) => {
    const { said, error } = await run({ a: [failure(kind)], b: [text("x")] });
    expect(error).toMatchObject({ kind });
    expect(said).toEqual([expected]);
  });

  it("whose caller has left says nothing of its engine, and ends with the reason", async () => {
    const caller = new AbortController();
    caller.abort(failure("canceled"));
    const gone = await run({ a: [caller.signal.reason], b: [text("x")] }, caller);
    expect({ said: gone.said, error: gone.error }).toEqual({
      said: [],
      error: caller.signal.reason,
    });
  });

  it("whose caller leaves while it waits for another engine ends with the reason", async () => {
    const caller = new AbortController();
    const onMove = () => caller.abort(failure("canceled"));
    const { error } = await run({ a: [failure("unavailable")] }, { signal: caller.signal, onMove });
    expect(error).toBe(caller.signal.reason);
  });
});
