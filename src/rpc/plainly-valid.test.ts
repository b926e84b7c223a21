import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MessageSchema } from "../../gen/formdev/chat/v1/chat_pb.ts";
import { ChatRequestSchema } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { isPlainlyValid } from "./plainly-valid.ts";

type Init = MessageInitShape<typeof ChatRequestSchema>;

const validator = createValidator();
const isValid = (request: Init) =>
  validator.validate(ChatRequestSchema, create(ChatRequestSchema, request)).kind === "valid";
const isPlain = (request: Init) => isPlainlyValid(create(ChatRequestSchema, request));

const hello = { role: "user", content: "Bonjour" };

/** Values around each bound of each rule, and some far from them. */
const number = fc.constantFrom(
  ...[-2.1, -2, -1, -0, 0, 5e-324, 0.5, 1, 1.1, 2, 2.1, Number.NaN, Infinity, -Infinity],
);
const whole = fc.constantFrom(0, 1, 2, 1000, 1001, 131_072, 131_073, 0xffff_ffff);
const text = (...lengths: number[]) =>
  fc
    .tuple(fc.constantFrom("a", "é", "€", "😀", "\ud800", "\0"), fc.constantFrom(0, 1, ...lengths))
    .map(([character, length]) => character.repeat(length));
const flag = fc.boolean();
const role = fc.constantFrom("system", "user", "user", "assistant", "tool", "", "User");
const toolCall = fc.record({
  id: text(64, 65),
  name: fc.constantFrom("f", "", "é"),
  arguments: text(),
});
const tool = fc.record(
  {
    type: fc.constantFrom("", "function", "x"),
    function: fc.record({ name: fc.constantFrom("f", "g", "") }),
  },
  { requiredKeys: [] },
);
/** One or two of these fields, any way: two that are wrong would hide each other. */
const someOf = (fields: Record<string, fc.Arbitrary<unknown>>) =>
  fc
    .uniqueArray(fc.constantFrom(...Object.keys(fields)), { minLength: 1, maxLength: 2 })
    .chain((names) =>
      fc.record(
        Object.fromEntries(Object.entries(fields).filter(([name]) => names.includes(name))),
      ),
    );
const messageFields = {
  role,
  content: text(85, 174_762, 174_763, 524_288, 524_289),
  reasoning: text(174_763, 524_289),
  toolCalls: fc.array(toolCall, { maxLength: 2 }),
  toolCallId: text(21, 22, 64, 65),
};
const message = someOf(messageFields).map((change) => ({ ...hello, ...change }));
const fields: Record<keyof Omit<Init, "$typeName" | "$unknown">, fc.Arbitrary<unknown>> = {
  model: text(85, 86, 256, 257),
  messages: fc.oneof(
    fc.array(message, { maxLength: 3 }),
    fc.constantFrom(256, 257).map((length) => Array(length).fill(hello)),
  ),
  maxTokens: whole,
  temperature: number,
  topP: number,
  topK: whole,
  minP: number,
  presencePenalty: number,
  frequencyPenalty: number,
  repetitionPenalty: number,
  stop: fc.array(text(64, 65), { maxLength: 5 }),
  seed: whole,
  responseFormat: fc.record({
    type: fc.constantFrom("", "text", "json_object", "json_schema", "x"),
  }),
  tools: fc.array(tool, { maxLength: 33 }),
  toolChoice: fc.record({ mode: fc.constantFrom("", "auto", "none", "function") }),
  parallelToolCalls: flag,
  reasoning: fc.record({ effort: fc.constantFrom("", "low", "x") }),
};

describe("what is taken for valid without the validator", () => {
  it("is valid, with any one or two fields at the bounds of their rules", () => {
    let plain = 0;
    fc.assert(
      fc.property(someOf(fields), (change) => {
        const request = { messages: [hello], ...change } as Init;
        if (!isPlain(request)) return;
        plain += 1;
        expect(isValid(request)).toBe(true);
      }),
      { numRuns: 3000 },
    );
    expect(plain).toBeGreaterThan(300);
  });

  it("knows every field that a request has", () => {
    expect(ChatRequestSchema.fields.map(({ localName }) => localName)).toEqual(Object.keys(fields));
    expect(MessageSchema.fields.map(({ localName }) => localName)).toEqual(
      Object.keys(messageFields),
    );
  });

  it("are the plain requests, so that the validator is spared for them", () => {
    const conversation = ["system", "user", "assistant", "user"].map((each) => ({
      role: each,
      content: "Réponds en français : où est né Victor Hugo ?",
    }));
    expect(isPlain({ messages: [hello] })).toBe(true);
    expect(
      isPlain({
        model: "Qwen/Qwen2.5-7B-Instruct",
        messages: conversation,
        maxTokens: 1024,
        temperature: 0.7,
        topP: 1,
        topK: 40,
        minP: 0,
        presencePenalty: -2,
        frequencyPenalty: 2,
        repetitionPenalty: 1.1,
        seed: 0,
      }),
    ).toBe(true);
  });
});
