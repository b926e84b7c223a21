import { AppError } from "../../errors.ts";
import type { JsonValue } from "../engine.ts";

/** Repetitions that llama.cpp's grammars allow are fewer than 2000 (llama-grammar.cpp, MAX_REPETITION_THRESHOLD). */
const repetitionsMax = 1999;

/**
 * Rules for JSON text. Spaces are at most one wide and lines are never broken, so that no model can fill its answer with
 * blanks; strings take no `\u` escape, so that no half of a character can be spelt; numbers fit a double.
 */
export const jsonRules: Readonly<Record<string, string>> = {
  ws: '" "?',
  char: '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" ["\\\\/bfnrt]',
  string: '"\\"" char* "\\""',
  natural: '"0" | [1-9] [0-9]{0,14}',
  integer: '"-"? natural',
  fraction: '("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
  number: "integer fraction",
  boolean: '"true" | "false"',
  null: '"null"',
  value: "object | array | string | number | boolean | null",
  pair: 'string ":" ws value',
  object: '"{" ws (pair ("," ws pair)*)? ws "}"',
  array: '"[" ws (value ("," ws value)*)? ws "]"',
};

/** `value` as JSON, as a GBNF literal. */
export function literal(value: JsonValue): string {
  return `"${JSON.stringify(value).replace(/[\\"]/g, "\\$&")}"`;
}

/** The GBNF repetition from `min` to `max` times. Throws AppError `invalid` for counts that grammars do not take. */
export function repetition(min: number, max: number): string {
  if (min === 0 && max === Number.POSITIVE_INFINITY) return "*";
  const most = max === Number.POSITIVE_INFINITY ? "" : max;
  if ((most || min) > repetitionsMax) throw unsupportedFormat(`a count above ${repetitionsMax}`);
  if (max < min) throw unsupportedFormat("a minimum above its maximum");
  return `{${min},${most}}`;
}

/** The refusal of a response format that this engine cannot enforce. */
export function unsupportedFormat(what: string): AppError {
  return new AppError(
    "invalid",
    `the embedded model cannot follow a response format with ${what}: leave it out, or use a vLLM engine (VLLM_URL)`,
  );
}
