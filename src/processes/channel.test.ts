import { describe, expect, it } from "vitest";
import { createPipe, quiet } from "../../test/support/pipe.ts";
import { AppError } from "../errors.ts";
import { openChannel } from "./channel.ts";

interface Sums {
  add(numbers: readonly number[]): Promise<number>;
  note(word: string): void;
}
type Nothing = Record<never, never>;

function open(methods: Partial<Sums> = {}) {
  const noted: string[] = [];
  const pipe = createPipe();
  const sums: Sums = {
    add: async (numbers) => numbers.reduce((sum, number) => sum + number, 0),
    note: (word) => void noted.push(word),
    ...methods,
  };
  const right = openChannel<Sums, Nothing>(pipe.right, sums);
  const left = openChannel<Nothing, Sums>(pipe.left, {});
  return { pipe, left, right, noted };
}

describe("a channel", () => {
  it("answers each question with its own answer, whatever order they come in", async () => {
    const waiting: (() => void)[] = [];
    const { left } = open({
      async add([number = 0]) {
        await new Promise<void>((resolve) => waiting.unshift(resolve));
        return number * 10;
      },
    });
    const answers = [1, 2, 3].map((number) => left.ask("add", [number]));
    await quiet();
    for (const answer of waiting) answer();
    expect(await Promise.all(answers)).toEqual([10, 20, 30]);
  });

  it("sends what is said in one turn as one message, and so the answers", async () => {
    const { left, pipe } = open();
    const answers = Array.from({ length: 100 }, (_, index) => left.ask("add", [index, 1]));
    left.tell("note", "a");
    expect(await Promise.all(answers)).toHaveLength(100);
    expect(pipe.sent()).toBe(2);
  });

  it("keeps the order of all that is said", async () => {
    const { left, noted } = open();
    for (const word of ["a", "b"]) left.tell("note", word);
    await quiet();
    left.tell("note", "c");
    await quiet();
    expect(noted).toEqual(["a", "b", "c"]);
  });

  it("carries what a method throws: our errors as they are, others as internal", async () => {
    const error = new AppError("exhausted", "come back", { retryAfterMs: 5 });
    const failing = (thrown: unknown) =>
      open({ add: () => Promise.reject(thrown) }).left.ask("add", []);
    await expect(failing(error)).rejects.toMatchObject({
      kind: "exhausted",
      message: "come back",
      retryAfterMs: 5,
    });
    await expect(failing(new TypeError("oops"))).rejects.toMatchObject({ kind: "internal" });
  });

  it("fails every question when the other side is gone, those asked later too", async () => {
    const { left, pipe } = open({ add: () => new Promise(() => undefined) });
    const asked = left.ask("add", []);
    await quiet();
    expect(left.closed.aborted).toBe(false);
    pipe.cut();
    await expect(asked).rejects.toMatchObject({ kind: "unavailable" });
    await expect(left.ask("add", [])).rejects.toMatchObject({ kind: "unavailable" });
    left.tell("note", "nobody");
    await left.flush();
    expect(left.closed.aborted).toBe(true);
  });
});
