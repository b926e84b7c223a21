import { getLlama, type Llama, LlamaLogLevel } from "node-llama-cpp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { JsonObject } from "../engine.ts";
import { createJsonGrammar } from "./json-grammar.ts";

let llama: Llama;
beforeAll(async () => {
  const logLevel = LlamaLogLevel.disabled;
  llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel });
});
afterAll(() => llama.dispose());

const grammarOf = (schema: JsonObject) =>
  createJsonGrammar({ type: "json-schema", name: "x", schema });

const person = { name: { type: "string" }, age: { type: "integer", minimum: 0 } };

describe("a grammar for a JSON Schema", () => {
  it.each<[string, JsonObject]>([
    ["any value", { title: "anything" }],
    ["constants of every kind", { enum: ['a "b" \\ c\n', 1.5, true, null, { a: [1] }, "é😀"] }],
    ["a constant", { const: "x" }],
    ["several types", { type: ["string", "number", "integer", "boolean", "null"] }],
    ["lengths", { type: "string", minLength: 2, maxLength: 1999 }],
    ["a least length", { type: "string", minLength: 2 }],
    ["numbers that are not negative", { type: "number", minimum: 0 }],
    ["a scale", { type: "integer", minimum: -2, maximum: 2 }],
    ["a list", { type: "array" }],
    ["a list of a size", { items: { type: "string" }, minItems: 2, maxItems: 2 }],
    ["a list of one at most", { type: "array", items: { const: 1 }, maxItems: 1 }],
    ["an empty list", { type: "array", maxItems: 0 }],
    ["an object of any kind", { type: "object" }],
    ["an empty object", { type: "object", properties: {}, additionalProperties: false }],
    ["a map", { type: "object", additionalProperties: { type: "integer" } }],
    ["optional properties", { type: "object", properties: person }],
    ["required properties", { properties: person, required: ["age"] }],
    ["choices", { anyOf: [{ type: "null" }, { allOf: [{ type: "object", properties: person }] }] }],
  ])("of %s is one that llama.cpp takes", async (_, schema) => {
    await expect(llama.createGrammar({ grammar: grammarOf(schema) })).resolves.toBeDefined();
  });

  it("of 200 optional properties grows with their number", () => {
    const names = Array.from({ length: 200 }, (_, index) => [`p${index}`, { type: "string" }]);
    const grammar = grammarOf({ type: "object", properties: Object.fromEntries(names) });
    expect(grammar.split("\n").length).toBeLessThan(1100);
  });

  it.each<[string, JsonObject]>([
    ['"pattern"', { type: "string", pattern: "^a" }],
    ['"format"', { type: "string", format: "email" }],
    ['"$ref"', { $ref: "#/$defs/a" }],
    ['"prefixItems"', { type: "array", prefixItems: [{ type: "string" }] }],
    ['"minProperties"', { type: "object", minProperties: 1 }],
    ['"multipleOf"', { type: "number", multipleOf: 2 }],
    ['"minItems"', { type: "string", minItems: 1 }],
    ['"minimum"', { anyOf: [{ type: "null" }], minimum: 3 }],
    ["minimum", { type: "number", minimum: 3 }],
    ["minimum and maximum", { type: "integer", minimum: 3 }],
    ["1000 values", { type: "integer", minimum: 0, maximum: 1000 }],
    ["1999", { type: "string", maxLength: 2000 }],
    ["minimum above its maximum", { type: "string", minLength: 3, maxLength: 2 }],
    ["allOf", { allOf: [{ type: "string" }, { type: "string" }] }],
    ["required", { type: "object", properties: person, required: ["surname"] }],
    ['"date"', { type: "date" }],
    ["not an object", { type: "array", items: 7 }],
  ])("is refused by name for %s", (name, schema) => {
    expect(() => grammarOf(schema)).toThrowError(
      expect.objectContaining({ kind: "invalid", message: expect.stringContaining(name) }),
    );
  });
});
