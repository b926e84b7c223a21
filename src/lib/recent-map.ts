/** A map that forgets: what was set is remembered until half of its size of other keys were set after it, or longer. */
export interface RecentMap<Value> {
  /** Entries remembered now, at most the size that it was made with. */
  readonly size: number;
  get(key: string): Value | undefined;
  set(key: string, value: Value): void;
}

/**
 * Two generations instead of one list in order of age: nothing is ever searched or moved, and when the younger one is full, the
 * older one goes as a whole.
 */
export function createRecentMap<Value>(sizeMax: number): RecentMap<Value> {
  const generationSize = Math.ceil(sizeMax / 2);
  let younger = new Map<string, Value>();
  let older = new Map<string, Value>();
  return {
    get size() {
      return younger.size + older.size;
    },
    get: (key) => younger.get(key) ?? older.get(key),
    set(key, value) {
      older.delete(key);
      younger.set(key, value);
      if (younger.size < generationSize) return;
      older = younger;
      younger = new Map();
    },
  };
}
