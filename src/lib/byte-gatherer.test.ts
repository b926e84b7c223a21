import { describe, expect, it } from "vitest";
import { ByteGatherer } from "./byte-gatherer.ts";

describe("ByteGatherer", () => {
  it("gives what it was given, each time from the beginning", () => {
    const gatherer = new ByteGatherer();
    for (const pieces of [[], ["a"], ["a", "", "b", "cdefghijklmnop"], ["", "x"]]) {
      for (const piece of pieces) gatherer.add(Buffer.from(piece));
      expect(gatherer.length).toBe(pieces.join("").length);
      expect(gatherer.take().toString()).toBe(pieces.join(""));
    }
  });

  it("writes into no memory but its own", () => {
    const memory = Buffer.from("abcdef");
    const gatherer = new ByteGatherer();
    gatherer.add(memory.subarray(0, 4));
    gatherer.add(Buffer.from("XY"));
    expect(gatherer.take().toString()).toBe("abcdXY");
    expect(memory.toString()).toBe("abcdef");
  });

  it("keeps no large memory for a small piece", () => {
    const gatherer = new ByteGatherer();
    gatherer.add(Buffer.alloc(1_000_000).subarray(10, 20));
    expect(gatherer.take().buffer.byteLength).toBeLessThan(1_000_000);
  });
});
