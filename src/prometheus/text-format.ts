import type { Reading } from "../usage/reading.ts";

// Prometheus' text format, version 0.0.4: github.com/prometheus/docs, "Exposition formats". The usual library for it takes
// 40 ms to load, before the first worker is told to start, and a microsecond for each number: it holds far more than this.

/** Of what the functions here make. */
export const contentType = "text/plain; version=0.0.4; charset=utf-8";

/** Names a metric. Values of labels are given in the order of their names, and come from bounded sets. */
interface Naming {
  readonly name: string;
  readonly help: string;
  readonly labels?: readonly string[];
}

/** Numbers that only grow. */
export interface Counter {
  add(values: readonly string[], amount?: number): void;
  text(): string;
}

/** How amounts are distributed. */
export interface Histogram {
  observe(values: readonly string[], amount: number): void;
  text(): string;
}

/** Numbers that only grow, one for each set of values. It keeps every set that it has seen. */
export function createCounter({ name, help, labels = [] }: Naming): Counter {
  const series = createSeries(labels, () => ({ total: 0 }));
  return {
    add(values, amount = 1) {
      series.of(values).total += amount;
    },
    text() {
      const lines = series.all().map(({ key, state }) => sample(name, key, state.total));
      return family(name, help, "counter", lines);
    },
  };
}

/** How often amounts were at most as large as each of `bounds`, which ascend. It keeps every set of values that it has seen. */
export function createHistogram(
  options: Naming & { readonly bounds: readonly number[] },
): Histogram {
  const { name, help, labels = [], bounds } = options;
  const tops = [...bounds, Number.POSITIVE_INFINITY];
  const series = createSeries(labels, () => ({ counts: tops.map(() => 0), sum: 0 }));

  const linesOf = (key: string, counts: readonly number[], sum: number) => {
    let below = 0;
    const buckets = counts.map((count, index) => {
      below += count;
      const bound = `le="${bounds[index] ?? "+Inf"}"`;
      return sample(`${name}_bucket`, key === "" ? bound : `${key},${bound}`, below);
    });
    return [...buckets, sample(`${name}_sum`, key, sum), sample(`${name}_count`, key, below)];
  };

  return {
    observe(values, amount) {
      const state = series.of(values);
      const bucket = tops.findIndex((top) => amount <= top);
      state.counts[bucket] = (state.counts[bucket] ?? 0) + 1;
      state.sum += amount;
    },
    text() {
      const lines = series.all().flatMap(({ key, state }) => linesOf(key, state.counts, state.sum));
      return family(name, help, "histogram", lines);
    },
  };
}

/** What is kept for each set of values, and the set as text. */
function createSeries<State>(labels: readonly string[], begin: () => State) {
  const series = new Map<string, { readonly key: string; readonly state: State }>();
  return {
    of(values: readonly string[]): State {
      // A fifth of what the set's own text would take. No value holds a NUL.
      const id = values.join("\0");
      const known = series.get(id);
      if (known !== undefined) return known.state;
      const state = begin();
      series.set(id, { key: labelText(labels, values), state });
      return state;
    },
    all: () => [...series.values()],
  };
}

/** Readings as text: those that only grow, as their names tell, as counters. */
export function readingsText(readings: readonly Reading[]): string {
  return readings
    .map(({ name, help, values }) => {
      const type = name.endsWith("_total") ? "counter" : "gauge";
      const lines = values.map(({ labels = {}, value }) =>
        sample(name, labelText(Object.keys(labels), Object.values(labels)), value),
      );
      return family(name, help, type, lines);
    })
    .join("");
}

function family(name: string, help: string, type: string, lines: readonly string[]): string {
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.map((line) => `${line}\n`).join("")}`;
}

function sample(name: string, labels: string, value: number): string {
  return labels === "" ? `${name} ${value}` : `${name}{${labels}} ${value}`;
}

function labelText(names: readonly string[], values: readonly string[]): string {
  let text = "";
  for (const [index, name] of names.entries()) {
    text += `${index === 0 ? "" : ","}${name}="${escaped(values[index] ?? "")}"`;
  }
  return text;
}

function escaped(value: string): string {
  if (!/["\\\n]/.test(value)) return value;
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
