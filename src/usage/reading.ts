/**
 * A state that is read whenever somebody asks: one number, or one for each set of labels. `name` ends in its unit, and in
 * `_total` when it only grows; no two readings have the same. Values of labels come from a bounded set, and never from a caller.
 */
export interface Reading {
  readonly name: string;
  readonly help: string;
  readonly values: readonly {
    readonly labels?: Readonly<Record<string, string>>;
    readonly value: number;
  }[];
}
