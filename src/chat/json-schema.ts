import { AppError } from "../errors.ts";
import type { JsonObject, JsonValue } from "../inference/engine.ts";

/** Bounds of a schema that an engine compiles into a grammar: each has stopped an engine somewhere when it was missing. */
const bytesMax = 16_384;
const depthMax = 8;
const schemasMax = 200;
const countMax = 4096;

const types = ["null", "boolean", "integer", "number", "string", "array", "object"];
const subschema = new Set(["items", "additionalProperties"]);
const subschemaList = new Set(["anyOf", "oneOf", "allOf", "prefixItems"]);
const count = new Set([
  "minLength",
  "maxLength",
  "minItems",
  "maxItems",
  "minProperties",
  "maxProperties",
]);
const number = new Set([
  "minimum",
  "maximum",
  "exclusiveMinimum",
  "exclusiveMaximum",
  "multipleOf",
]);
const annotation = new Set([
  "title",
  "description",
  "default",
  "examples",
  "$schema",
  "strict",
  "deprecated",
  "uniqueItems",
]);

/**
 * Refuses a JSON Schema that an engine should not compile: an allow-list of keywords (so without `pattern`, `format`
 * and `$ref`), known types only, and bounds on size, depth and counts.
 *
 * `where` names the field in the error. Throws AppError `invalid`, saying what to change.
 */
export function checkJsonSchema(schema: JsonObject, where: string): void {
  if (Object.keys(schema).length === 0) throw invalid(where, "must not be empty");
  const text = JSON.stringify(schema, (_name, value: unknown) => {
    // JSON has no such numbers, protobuf has: they would reach the engine as null.
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw invalid(where, "has a number that is not finite");
    }
    return value;
  });
  if (Buffer.byteLength(text) > bytesMax) {
    throw invalid(where, `must not exceed ${bytesMax} bytes as JSON`);
  }
  checkSchema(schema, where, { schemas: 0 }, 1);
}

function checkSchema(schema: JsonValue, where: string, seen: { schemas: number }, depth: number) {
  if (typeof schema === "boolean") return;
  if (!isObject(schema)) throw invalid(where, "has a schema that is not an object");
  if (depth > depthMax) throw invalid(where, `must not be deeper than ${depthMax} levels`);
  seen.schemas += 1;
  if (seen.schemas > schemasMax)
    throw invalid(where, `must not have more than ${schemasMax} schemas`);

  const check = (inner: JsonValue) => checkSchema(inner, where, seen, depth + 1);
  for (const [keyword, value] of Object.entries(schema)) {
    if (keyword === "type") checkTypes(value, where);
    else if (keyword === "properties") {
      if (!isObject(value)) throw invalid(where, "has properties that are not an object");
      Object.values(value).forEach(check);
    } else if (subschema.has(keyword)) check(value);
    else if (subschemaList.has(keyword)) list(value, keyword, where).forEach(check);
    else if (count.has(keyword)) {
      if (!Number.isInteger(value) || Number(value) < 0 || Number(value) > countMax) {
        throw invalid(where, `has a ${keyword} that is not a whole number from 0 to ${countMax}`);
      }
    } else if (number.has(keyword)) {
      if (typeof value !== "number") throw invalid(where, `has a ${keyword} that is not a number`);
    } else if (keyword === "required") {
      if (!list(value, keyword, where).every((name) => typeof name === "string")) {
        throw invalid(where, "has names in required that are not strings");
      }
    } else if (keyword === "enum") {
      if (list(value, keyword, where).length === 0) throw invalid(where, "has an empty enum");
    } else if (keyword !== "const" && !annotation.has(keyword)) {
      throw invalid(
        where,
        `has the keyword ${JSON.stringify(keyword.slice(0, 40))}, which is not supported`,
      );
    }
  }
}

function checkTypes(value: JsonValue, where: string) {
  const given: readonly JsonValue[] = Array.isArray(value) ? value : [value];
  if (given.length === 0 || !given.every((type) => types.includes(String(type)))) {
    throw invalid(where, `has a type that is not one of ${types.join(", ")}`);
  }
}

function list(value: JsonValue, keyword: string, where: string): readonly JsonValue[] {
  if (!Array.isArray(value)) throw invalid(where, `has a ${keyword} that is not a list`);
  return value;
}

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function invalid(where: string, problem: string): AppError {
  return new AppError("invalid", `${where} ${problem}`);
}
