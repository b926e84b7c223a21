import type { JsonObject, JsonValue, ResponseFormat } from "../engine.ts";
import { jsonRules, literal, repetition, unsupportedFormat } from "./gbnf.ts";

/** An integer with both bounds is written as a list of its values, up to so many. */
const listedIntegersMax = 1000;

/** Keywords that do not say which values are valid. */
const annotations = [
  ...["title", "description", "default", "examples", "$schema", "$id", "$comment"],
  ...["deprecated", "readOnly", "writeOnly", "strict"],
];

const keywordsOf: Readonly<Record<string, readonly string[]>> = {
  object: ["properties", "required", "additionalProperties"],
  array: ["items", "minItems", "maxItems"],
  string: ["minLength", "maxLength"],
  integer: ["minimum", "maximum"],
  number: ["minimum"],
  boolean: [],
  null: [],
};

/**
 * The grammar (GBNF) whose texts are the JSON values of a response format.
 *
 * Properties come in the order of the schema; those that are not required may be missing, and beside those that are
 * named there are none, which every schema allows. Throws AppError `invalid` naming what grammars here cannot express.
 */
export function createJsonGrammar(format: ResponseFormat): string {
  const rules = Object.entries(jsonRules).map(([name, body]) => `${name} ::= ${body}`);
  const root = format.type === "json-object" ? "object" : defineSchema(format.schema);
  return [`root ::= ${root}`, ...rules].join("\n");

  /** Adds a rule and gives back its name. */
  function define(body: string): string {
    const name = `r${rules.length}`;
    rules.push(`${name} ::= ${body}`);
    return name;
  }

  function defineSchema(schema: JsonValue): string {
    if (schema === true) return "value";
    if (!isObject(schema)) throw unsupportedFormat("a schema that is not an object");
    if (schema.const !== undefined) return define(literal(schema.const));
    if (Array.isArray(schema.enum)) return define(schema.enum.map(literal).join(" | "));
    const choices = schema.anyOf ?? schema.oneOf ?? onlyOne(schema.allOf);
    if (Array.isArray(choices)) {
      refuseUnknown(schema, ["anyOf", "oneOf", "allOf"]);
      return define(choices.map(defineSchema).join(" | "));
    }
    const types = typesOf(schema);
    refuseUnknown(schema, ["type", ...types.flatMap((type) => keywordsOf[type] ?? [])]);
    return types.length === 0
      ? "value"
      : define(types.map((type) => defineType(type, schema)).join(" | "));
  }

  function defineType(type: string, schema: JsonObject): string {
    if (type === "object") return defineObject(schema);
    if (type === "array") return defineArray(schema);
    if (type === "integer") return defineInteger(schema);
    if (type === "string") {
      const { minLength, maxLength } = schema;
      return define(`"\\"" char${repetition(least(minLength), most(maxLength))} "\\""`);
    }
    if (type === "number") {
      if (schema.minimum === undefined) return "number";
      if (schema.minimum === 0) return define("natural fraction");
      throw unsupportedFormat("a minimum of a number that is not 0");
    }
    if (keywordsOf[type] !== undefined) return type;
    throw unsupportedFormat(`the type ${JSON.stringify(type)}`);
  }

  function defineInteger({ minimum, maximum }: JsonObject): string {
    if (minimum === undefined && maximum === undefined) return "integer";
    if (minimum === 0 && maximum === undefined) return "natural";
    const low = Math.ceil(Number(minimum));
    const count = Math.floor(Number(maximum)) - low + 1;
    if (!(count >= 1 && count <= listedIntegersMax)) {
      throw unsupportedFormat(
        `an integer whose minimum and maximum are not both given, at most ${listedIntegersMax} values apart`,
      );
    }
    return define(Array.from({ length: count }, (_, step) => literal(low + step)).join(" | "));
  }

  function defineArray({ items, minItems, maxItems }: JsonObject): string {
    if (maxItems === 0) return define('"[" ws "]"');
    const item = defineSchema(items ?? true);
    const more = define(`"," ws ${item}`);
    const counts = repetition(Math.max(0, least(minItems) - 1), most(maxItems) - 1);
    const filled = define(`${item} ${more}${counts}`);
    return define(`"[" ws ${filled}${least(minItems) > 0 ? "" : "?"} ws "]"`);
  }

  /**
   * Two rules for each property, from the last to the first, say what may follow when nothing, or something, stands in
   * front of it; so the grammar grows with the number of optional properties and not with that of their combinations.
   */
  function defineObject(schema: JsonObject): string {
    const properties = Object.entries(isObject(schema.properties) ? schema.properties : {});
    const required: readonly JsonValue[] = Array.isArray(schema.required) ? schema.required : [];
    if (required.some((name) => !properties.some(([known]) => known === name))) {
      throw unsupportedFormat("a required property that properties does not describe");
    }
    if (properties.length === 0) return defineMap(schema.additionalProperties ?? true);

    let afterNothing = define('""');
    let afterSome = afterNothing;
    for (const [name, value] of properties.reverse()) {
      const pair = define(`${literal(name)} ":" ws ${defineSchema(value)}`);
      const [first, next] = [`${pair} ${afterSome}`, `"," ws ${pair} ${afterSome}`];
      const optional = !required.includes(name);
      afterNothing = define(optional ? `${first} | ${afterNothing}` : first);
      afterSome = define(optional ? `${next} | ${afterSome}` : next);
    }
    return define(`"{" ws ${afterNothing} ws "}"`);
  }

  function defineMap(values: JsonValue): string {
    if (values === true) return "object";
    if (values === false) return define('"{" ws "}"');
    const pair = define(`string ":" ws ${defineSchema(values)}`);
    return define(`"{" ws (${pair} ("," ws ${pair})*)? ws "}"`);
  }
}

function least(count: JsonValue | undefined): number {
  return Number(count ?? 0);
}

function most(count: JsonValue | undefined): number {
  return Number(count ?? Number.POSITIVE_INFINITY);
}

/** An allOf of one schema is that schema, which is how some generators write a reference with a description. */
function onlyOne(schemas: JsonValue | undefined): JsonValue | undefined {
  if (schemas === undefined || (Array.isArray(schemas) && schemas.length === 1)) return schemas;
  throw unsupportedFormat("an allOf of several schemas");
}

function typesOf(schema: JsonObject): readonly string[] {
  if (Array.isArray(schema.type)) return schema.type.map(String);
  if (schema.type !== undefined) return [String(schema.type)];
  if (schema.properties !== undefined) return ["object"];
  return schema.items === undefined ? [] : ["array"];
}

function refuseUnknown(schema: JsonObject, known: readonly string[]): void {
  for (const keyword of Object.keys(schema)) {
    if (known.includes(keyword) || annotations.includes(keyword)) continue;
    throw unsupportedFormat(`the keyword ${JSON.stringify(keyword.slice(0, 40))}`);
  }
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
