import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseExposition } from "../../test/support/exposition.ts";
import { createCounter, createHistogram, readingsText } from "./text-format.ts";

describe("createCounter", () => {
  it("keeps sets of labels apart, whatever is in them", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.string(), fc.string())), (given) => {
        const counter = createCounter({ name: "seen_total", help: "Seen.", labels: ["a", "b"] });
        const expected = new Map<string, number>();
        for (const values of given) {
          counter.add(values);
          const key = JSON.stringify(values);
          expected.set(key, (expected.get(key) ?? 0) + 1);
        }
        const read = parseExposition(counter.text()).samples.map(
          ({ labels, value }) => [JSON.stringify([labels.a, labels.b]), value] as const,
        );
        expect(new Map(read)).toEqual(expected);
      }),
    );
  });
});

describe("createHistogram", () => {
  it("counts each amount in every bucket whose bound it does not exceed", () => {
    const amounts = fc.array(fc.double({ noNaN: true, min: 0, max: 20 }), { minLength: 1 });
    fc.assert(
      fc.property(amounts, (given) => {
        const histogram = createHistogram({ name: "took", help: "Took.", bounds: [0, 1, 2.5, 10] });
        for (const amount of given) histogram.observe([], amount);
        const { samples, sum } = parseExposition(histogram.text());
        for (const { name, labels, value } of samples) {
          if (name !== "took_bucket") continue;
          const bound = labels.le === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels.le);
          expect(value).toBe(given.filter((amount) => amount <= bound).length);
        }
        expect(sum("took_count")).toBe(given.length);
        expect(sum("took_sum")).toBeCloseTo(given.reduce((a, b) => a + b, 0));
        expect(samples).toHaveLength(7);
      }),
    );
  });

  it("tells of a metric before anything was measured", () => {
    const { types } = parseExposition(
      createHistogram({ name: "took", help: "", bounds: [1] }).text(),
    );
    expect(types.get("took")).toBe("histogram");
  });
});

describe("readingsText", () => {
  it("calls what only grows a counter", () => {
    const { types, samples } = parseExposition(
      readingsText([
        { name: "ended_total", help: "Ended.", values: [{ value: 3 }] },
        { name: "open", help: "Open.", values: [{ labels: { of: 'a"\\\n' }, value: 0.5 }] },
      ]),
    );
    expect([...types.values()]).toEqual(["counter", "gauge"]);
    expect(samples).toEqual([
      { name: "ended_total", labels: {}, value: 3 },
      { name: "open", labels: { of: 'a"\\\n' }, value: 0.5 },
    ]);
  });
});
