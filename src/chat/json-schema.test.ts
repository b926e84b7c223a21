import { describe, expect, it } from "vitest";
import type { JsonObject, JsonValue } from "../inference/engine.ts";
import { checkJsonSchema } from "./json-schema.ts";

const check = (schema: JsonObject) => checkJsonSchema(schema, "schema");

function nested(levels: number): JsonObject {
  return levels === 1 ? { type: "string" } : { type: "array", items: nested(levels - 1) };
}

describe("checkJsonSchema", () => {
  it("accepts what people write for structured answers", () => {
    check({
      $schema: "https://json-schema.org/draft/2020-12/schema",
      title: "avis",
      type: "object",
      properties: {
        note: { type: "integer", minimum: 1, maximum: 5 },
        sentiment: { enum: ["positif", "neutre", "négatif"] },
        themes: {
          type: "array",
          items: { type: "string", maxLength: 40 },
          minItems: 1,
          maxItems: 5,
        },
        commentaire: { type: ["string", "null"], default: null },
        // A property may have the name of a keyword that is refused.
        pattern: { anyOf: [{ const: 1 }, { type: "boolean" }] },
      },
      required: ["note", "sentiment"],
      additionalProperties: false,
    });
  });

  const refused: readonly (readonly [string, JsonObject])[] = [
    ["an empty schema", {}],
    ["pattern", { type: "string", pattern: "(a+)+$" }],
    ["format", { type: "string", format: "date" }],
    ["$ref", { $ref: "#" }],
    ["an unknown type", { type: "banana" }],
    ["a type that is no name", { type: 7 }],
    ["no types", { type: [] }],
    ["an unknown keyword inside", { type: "array", items: { not: {} } }],
    ["properties that are a list", { properties: [] }],
    ["a schema that is a number", { items: 3 }],
    ["an alternative that is not a list", { anyOf: {} }],
    ["a huge count", { type: "string", minLength: 1e9 }],
    ["a negative count", { type: "array", maxItems: -1 }],
    ["a bound that is no number", { minimum: "1" }],
    ["required names that are no strings", { required: [1] }],
    ["a bound that is not finite", { minimum: Number.NaN }],
    ["a value that is not finite", { enum: [Number.POSITIVE_INFINITY] }],
    ["an empty enum", { enum: [] }],
    ["nine levels", nested(9)],
    ["201 schemas", { anyOf: Array.from({ length: 200 }, (): JsonValue => ({ type: "null" })) }],
    ["more than 16 KiB", { description: "x".repeat(16_384) }],
  ];
  it.each(refused)("refuses %s", (_what, schema) => {
    expect(() => check(schema)).toThrow(expect.objectContaining({ kind: "invalid" }));
  });

  it("accepts eight levels, which is the bound", () => {
    check(nested(8));
  });
});
