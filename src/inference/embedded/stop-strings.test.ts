import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createStopStrings } from "./stop-strings.ts";

/** What is shown of these pieces, and whether a stop string ended them. */
function show(pieces: readonly string[], stops: readonly string[]) {
  const reader = createStopStrings(stops);
  let shown = "";
  for (const piece of pieces) {
    const { text, stopped } = reader.push(piece);
    shown += text;
    if (stopped) return { shown, stopped };
  }
  return { shown: shown + reader.flush(), stopped: false };
}

describe("stop strings", () => {
  it("end the text in front of the first of them, however it is cut into pieces", () => {
    const letters = fc.string({ unit: fc.constantFrom("a", "b", "é", "😀"), maxLength: 30 });
    const stop = fc.string({
      unit: fc.constantFrom("a", "b", "é", "😀"),
      minLength: 1,
      maxLength: 4,
    });
    const stops = fc.array(stop, { maxLength: 4 });
    fc.assert(
      fc.property(letters, stops, fc.array(fc.nat(5)), (text, stops, cuts) => {
        const found = stops.map((stop) => text.indexOf(stop)).filter((index) => index >= 0);
        const end = found.length === 0 ? text.length : Math.min(...found);
        const pieces: string[] = [];
        let rest = text;
        for (const length of cuts) {
          pieces.push(rest.slice(0, length));
          rest = rest.slice(length);
        }
        const { shown, stopped } = show([...pieces, rest], stops);
        // A stop that completes early ends the text before a longer one, beginning earlier, is complete.
        expect(text.startsWith(shown)).toBe(true);
        expect(stopped).toBe(found.length > 0);
        expect(stops.some((stop) => shown.includes(stop))).toBe(false);
        expect(shown.length).toBeGreaterThanOrEqual(end);
      }),
    );
  });

  it("hold back only what may still become one", () => {
    const reader = createStopStrings(["END"]);
    expect(reader.push("text E").text).toBe("text ");
    expect(reader.push("N").text).toBe("");
    expect(reader.push("ough").text).toBe("ENough");
    expect(reader.push("EN").text).toBe("");
    expect(reader.flush()).toBe("EN");
  });

  it("that are empty stop nothing", () => {
    expect(show(["abc"], [""])).toEqual({ shown: "abc", stopped: false });
  });
});
