/** The same, to be changed by its owner. */
export type Mutable<T> = T extends unknown ? { -readonly [Key in keyof T]: T[Key] } : never;
