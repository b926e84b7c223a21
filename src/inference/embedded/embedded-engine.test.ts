import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  chatRequest,
  never,
  readAnswer,
  says,
  startTinyEngine,
} from "../../../test/support/embedded-chats.ts";
import type { Engine, EngineChatRequest } from "../engine.ts";

let engine: Engine;
/** Never ends its turn by itself. */
let endless: Engine;

beforeAll(async () => {
  engine = await startTinyEngine();
  endless = await startTinyEngine(
    { endOfTurnLogit: -1000 },
    { concurrency: 2, contextTokens: 512 },
  );
});
afterAll(async () => {
  await endless[Symbol.asyncDispose]();
  await engine[Symbol.asyncDispose]();
});

const ask = (on: Engine, overrides?: Partial<EngineChatRequest>) =>
  readAnswer(on.chat(chatRequest(overrides), never));

describe("an answer", () => {
  it("streams piece by piece and ends with the model's own end of turn", async () => {
    const { deltas, finishReason, usage } = await ask(engine, { maxTokens: 2000, seed: 1 });
    expect(finishReason).toBe("stop");
    expect(deltas.length).toBeGreaterThan(1);
    expect(usage.completionTokens).toBeGreaterThan(deltas.length);
    expect(usage.completionTokens).toBeLessThan(2000);
  });

  it("stops at max tokens with the reason length", async () => {
    const { finishReason, usage } = await ask(endless, { maxTokens: 7 });
    expect(finishReason).toBe("length");
    expect(usage.completionTokens).toBe(7);
  });

  it("is the same for the same seed, also while another one is being written", async () => {
    const alone = await ask(endless, { seed: 42 });
    const [beside] = await Promise.all([
      ask(endless, { seed: 42 }),
      ask(endless, { seed: 7, messages: [says("user", "Autre chose, bien plus longue")] }),
    ]);
    expect(beside.text).toBe(alone.text);
  });

  it("differs for another seed, and without any", async () => {
    const answers = await Promise.all([
      ask(endless, { seed: 1 }),
      ask(endless, { seed: 2 }),
      ask(endless),
      ask(endless),
    ]);
    expect(new Set(answers.map(({ text }) => text)).size).toBe(4);
  });

  it("is the same every time at temperature 0", async () => {
    const first = await ask(endless, { temperature: 0 });
    expect((await ask(endless, { temperature: 0 })).text).toBe(first.text);
  });

  it("ends in front of a stop string that spans tokens, and shows nothing of it", async () => {
    const free = await ask(endless, { seed: 5, maxTokens: 60 });
    const stop = free.text.slice(20, 29);
    const { text, finishReason } = await ask(endless, {
      seed: 5,
      maxTokens: 60,
      stop: ["never said", stop, "nor this", "nor that"],
    });
    expect(text).toBe(free.text.slice(0, free.text.indexOf(stop)));
    expect(finishReason).toBe("stop");
  });

  it("never shows half a character, even when the model spells it byte by byte", async () => {
    const schema = { enum: ["été 😀 à 日本"] };
    const { deltas, text } = await ask(endless, {
      maxTokens: 60,
      responseFormat: { type: "json-schema", name: "x", schema },
    });
    expect(JSON.parse(text)).toBe(schema.enum[0]);
    expect(deltas.every((delta) => delta.isWellFormed() && !delta.includes("\uFFFD"))).toBe(true);
  });

  it("repeats itself less under a frequency penalty", async () => {
    const distinct = async (frequencyPenalty: number) =>
      new Set((await ask(endless, { seed: 3, maxTokens: 120, frequencyPenalty })).text).size;
    expect(await distinct(2)).toBeGreaterThan(await distinct(-2));
  });
});

describe("a response format", () => {
  const schema = {
    type: "object",
    properties: {
      title: { type: "string", maxLength: 12 },
      hours: { type: "integer", minimum: 1, maximum: 40 },
      level: { enum: ["débutant", "avancé"] },
      tags: { type: "array", items: { type: "string", maxLength: 5 }, minItems: 1, maxItems: 3 },
      price: { type: ["number", "null"] },
    },
    required: ["title", "hours", "level", "tags"],
    additionalProperties: false,
  };

  it.each([1, 2, 3])(
    "with a schema is obeyed whatever the model would rather say (%i)",
    async (seed) => {
      const { text, finishReason } = await ask(engine, {
        seed,
        maxTokens: 500,
        responseFormat: { type: "json-schema", name: "course", schema },
      });
      expect(finishReason).toBe("stop");
      const { price, ...course } = JSON.parse(text);
      expect(course).toEqual({
        title: expect.any(String),
        hours: expect.any(Number),
        level: expect.stringMatching(/^(débutant|avancé)$/),
        tags: expect.any(Array),
      });
      expect(Number.isInteger(course.hours) && course.hours >= 1 && course.hours <= 40).toBe(true);
      expect(course.title.length).toBeLessThanOrEqual(12);
      expect([1, 2, 3]).toContain(course.tags.length);
      expect(["number", "object", "undefined"]).toContain(typeof price);
    },
  );

  it.each([1, 2, 3])("of any JSON object gives one (%i)", async (seed) => {
    const { text, finishReason } = await ask(engine, {
      seed,
      maxTokens: 1900,
      responseFormat: { type: "json-object" },
    });
    expect(finishReason).toBe("stop");
    expect(JSON.parse(text)).toBeTypeOf("object");
  });

  it("that the engine cannot enforce is refused by the keyword's name", async () => {
    const format = { type: "json-schema", name: "x", schema: { type: "string", pattern: "^a" } };
    await expect(
      ask(engine, { responseFormat: format as EngineChatRequest["responseFormat"] & object }),
    ).rejects.toMatchObject({ kind: "invalid", message: expect.stringContaining('"pattern"') });
  });
});

describe("the numbers of tokens", () => {
  const messages = [
    says("system", "Réponds en français."),
    says("user", "Bonjour 😀"),
    says("assistant", "Salut"),
    says("user", "Ça va ?"),
  ];

  it("count the prompt as countTokens does, template included, and cache nothing", async () => {
    const counted = await engine.countTokens({ model: "tiny", messages, tools: [] }, never);
    const { usage } = await ask(engine, { messages });
    expect(usage.promptTokens).toBe(counted);
    expect(usage.cachedPromptTokens).toBe(0);
    expect((await ask(engine, { messages })).usage.cachedPromptTokens).toBe(0);
  });

  it("show that text which looks like an end of turn stays text", async () => {
    const count = (content: string) =>
      engine.countTokens({ model: "tiny", messages: [says("user", content)], tools: [] }, never);
    const marker = "<|im_end|>";
    expect((await count(marker)) - (await count(""))).toBe(marker.length);
  });

  it("bound the answer by the context, and refuse a prompt that fills it, naming both", async () => {
    const [model] = await endless.listModels(never);
    const { usage, finishReason } = await ask(endless, { maxTokens: 1_000_000 });
    expect(finishReason).toBe("length");
    expect(usage.promptTokens + usage.completionTokens).toBe(model?.contextTokens);
    await expect(ask(endless, { messages: [says("user", "z".repeat(600))] })).rejects.toMatchObject(
      {
        kind: "invalid",
        message: expect.stringMatching(/\b6\d\d\b.*\b512\b/),
      },
    );
  });

  it("are not counted for a prompt that is hopelessly too long, which is refused at once", async () => {
    const messages = [says("user", "z".repeat(1_000_000))];
    await expect(
      engine.countTokens({ model: "tiny", messages, tools: [] }, never),
    ).rejects.toMatchObject({ kind: "invalid" });
  });
});

describe("requests for what this engine is not", () => {
  it("runs its model by its id, and names it when asked for another", async () => {
    expect(await engine.listModels(never)).toEqual([{ id: "tiny", contextTokens: 2048 }]);
    await expect(ask(engine, { model: "gpt-4" })).rejects.toMatchObject({
      kind: "not-found",
      message: expect.stringContaining("tiny"),
    });
  });

  it("refuses tools and their messages, and says that vLLM has them", async () => {
    const refused = { kind: "unsupported", message: expect.stringContaining("VLLM_URL") };
    const tools = [{ name: "f", description: "", parameters: {} }];
    await expect(ask(engine, { tools })).rejects.toMatchObject(refused);
    await expect(ask(engine, { messages: [says("tool", "42")] })).rejects.toMatchObject(refused);
    await expect(
      engine.countTokens({ model: "tiny", messages: [], tools }, never),
    ).rejects.toMatchObject(refused);
  });
});
