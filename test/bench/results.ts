import type { Tally } from "./load.ts";
import type { Load } from "./loads.ts";
import type { Run } from "./measure.ts";

export type SubjectName = "engine" | "nginx" | "plain" | "product" | "product, 2 processes";

/** One run and what it was of. */
export interface Result {
  readonly load: Load;
  readonly subject: SubjectName;
  /** The protocol's name. */
  readonly wire: string;
  /** From 1. Runs of a load with the same number were made right after one another. */
  readonly repetition: number;
  readonly run: Run;
}

/** The histograms of a tally. */
export type Times = {
  [K in keyof Tally]: Tally[K] extends Tally["gapUs"] ? K : never;
}[keyof Tally];

/** The results of one benchmark, asked for values of one kind: one value for each repetition. */
export class Results {
  readonly #all: Result[] = [];

  add(result: Result): void {
    this.#all.push(result);
  }

  values(
    load: Load,
    subject: SubjectName,
    wire: string,
    value: (run: Run) => number,
  ): readonly number[] {
    return this.#of(load, subject, wire).map(({ run }) => value(run));
  }

  /** The product's CPU per token as a share of another's. */
  cpuShares(
    load: Load,
    wire: string,
    other: { readonly subject: SubjectName; readonly wire: string },
  ): readonly number[] {
    const others = this.#of(load, other.subject, other.wire);
    return this.#of(load, "product", wire).flatMap(({ run, repetition }) => {
      const beside = others.find((each) => each.repetition === repetition);
      return beside === undefined ? [] : [run.cpuUsPerToken / beside.run.cpuUsPerToken];
    });
  }

  /** What callers wait beyond those of the engine, in milliseconds. */
  addedWaitMs(
    load: Load,
    subject: SubjectName,
    wire: string,
    percentile: number,
  ): readonly number[] {
    return this.#of(load, subject, wire).map((result) =>
      this.addedMs(result, load.wait, percentile),
    );
  }

  /** A percentile beyond that of the engine, which was asked directly in the same load and repetition. */
  addedMs({ load, repetition, run }: Result, times: Times, percentile: number): number {
    const engine = this.#all.find(
      (each) => each.subject === "engine" && each.load === load && each.repetition === repetition,
    );
    if (engine === undefined) throw new Error(`the engine was not asked directly: ${load.title}`);
    const engineUs = engine.run.tally[times].percentile(percentile);
    return (run.tally[times].percentile(percentile) - engineUs) / 1000;
  }

  #of(load: Load, subject: SubjectName, wire: string): readonly Result[] {
    return this.#all.filter(
      (each) => each.load === load && each.subject === subject && each.wire === wire,
    );
  }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}
