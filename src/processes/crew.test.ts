import { expect, it } from "vitest";
import { pauseBefore } from "./crew.ts";

it("replaces a worker at once, and with a growing pause when they die again and again", () => {
  const pauses = [0, 1, 2, 3, 4, 8, 9, 10, 100].map(pauseBefore);
  expect(pauses).toEqual([0, 0, 100, 200, 400, 6400, 10_000, 10_000, 10_000]);
});
