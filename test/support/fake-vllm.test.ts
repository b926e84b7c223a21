import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { startFakeVllm } from "./fake-vllm.ts";
import type { Answer } from "./fake-vllm-answer.ts";
import { answer, type Fixture, refuse, replay } from "./fake-vllm-replies.ts";

// The fake is only worth something as long as it says what a real vLLM says: every recording is held against it.

const folder = new URL("../fixtures/vllm/", import.meta.url);
const fixtures = new Map(
  readdirSync(folder)
    .filter((file) => file.endsWith(".json"))
    .map((file): [string, Fixture] => [
      file.replace(".json", ""),
      JSON.parse(readFileSync(new URL(file, folder), "utf8")),
    ]),
);

const recorded = (name: string): Fixture => {
  const fixture = fixtures.get(name);
  if (fixture === undefined) throw new Error(`no recording ${name}`);
  return fixture;
};

interface Chunk {
  choices: {
    index: number;
    delta: {
      role?: string;
      content?: string | null;
      tool_calls?: {
        index: number;
        id?: string;
        function: { name?: string; arguments?: string };
      }[];
    };
    finish_reason: string | null;
    stop_reason?: string | null;
  }[];
  usage?: { prompt_tokens: number; prompt_tokens_details?: { cached_tokens: number } };
}

const parseEvents = (body: string): (Chunk | "[DONE]")[] =>
  body
    .split("\n\n")
    .filter((event) => event !== "")
    .map((event) => event.replace(/^data: /, ""))
    .map((data) => (data === "[DONE]" ? data : JSON.parse(data)));

/** What the fake must be told to say the same as a recording. */
const toAnswer = (fixture: Fixture): Answer => {
  const chunks = parseEvents(fixture.response.body).filter((chunk) => chunk !== "[DONE]");
  const choices = chunks.flatMap((chunk) => chunk.choices);
  const text = choices.flatMap(({ delta }) => delta.content || []);
  const pieces = choices.flatMap(({ delta }) => delta.tool_calls ?? []);
  const toolCalls = pieces
    .filter((piece) => piece.function.name !== undefined)
    .map(({ index, id = "", function: { name = "" } }) => ({
      id,
      name,
      arguments: pieces.flatMap((p) => (p.index === index && p.function.arguments) || []),
    }));
  const usage = chunks.at(-1)?.usage;
  return {
    ...(toolCalls.length > 0 && { toolCalls }),
    text,
    finishReason: choices.find((choice) => choice.finish_reason)?.finish_reason ?? "stop",
    promptTokens: usage?.prompt_tokens ?? 0,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? 0,
  };
};

/** Without what differs between any two answers. */
const normalize = (body: string) =>
  body
    .replaceAll(/"id":"chatcmpl-(?!tool)[^"]+"/g, '"id":""')
    .replaceAll(/"created":\d+/g, '"created":0')
    .replaceAll(/"created_cache_tokens":\d+/g, '"created_cache_tokens":0')
    .replaceAll(/"vllm-0\.32\.0-\w+"/g, '"vllm-0.32.0"');

/** In the fake an event is a token: where vLLM put several into one event, the counts differ. */
const withoutCounts = (body: string) =>
  body.replaceAll(/"(total|completion)_tokens":\d+/g, '"$1_tokens":0');

const ask = async (url: URL, { request }: Fixture): Promise<Fixture["response"]> => {
  const response = await fetch(new URL(request.path, url), {
    method: request.method,
    ...(request.method === "POST" && { body: JSON.stringify(request.body) }),
  });
  const contentType = response.headers.get("content-type");
  return { status: response.status, contentType, body: await response.text() };
};

const withoutValues = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.slice(0, 1).map(withoutValues);
  if (typeof value !== "object" || value === null) return typeof value;
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, withoutValues(v)]));
};

describe("the fake vLLM says byte for byte what vLLM 0.32 said", () => {
  const plain = [
    "chat-stream",
    "chat-stream-plain",
    "chat-stream-length",
    "chat-stream-json-schema",
    "chat-stream-json-object",
    "chat-stream-cached",
    "chat-stream-tools-auto-text",
  ];
  it.each(plain)("%s", async (name) => {
    const fixture = recorded(name);
    await using vllm = await startFakeVllm({ model: "smollm2" });
    vllm.reply(answer(toAnswer(fixture)));
    const { body, ...rest } = await ask(vllm.url, fixture);
    expect({ ...rest, body: normalize(body) }).toEqual({
      ...fixture.response,
      body: normalize(fixture.response.body),
    });
  });

  const manyTokensInOneEvent = [
    "chat-stream-french",
    "chat-stream-seed-a",
    "chat-stream-tools-auto",
    "chat-stream-tools-parallel",
    "chat-stream-tools-required",
  ];
  it.each(manyTokensInOneEvent)("%s, but for the counts", async (name) => {
    const fixture = recorded(name);
    await using vllm = await startFakeVllm({ model: "smollm2" });
    vllm.reply(answer(toAnswer(fixture)));
    const { body } = await ask(vllm.url, fixture);
    expect(withoutCounts(normalize(body))).toBe(withoutCounts(normalize(fixture.response.body)));
  });
});

describe("the fake vLLM answers the other routes in the shapes of vLLM 0.32", () => {
  it.each([
    "models",
    "tokenize-messages",
    "version",
    "health",
    "error-unknown-model",
    "error-unknown-path",
  ])("%s", async (name) => {
    const fixture = recorded(name);
    await using vllm = await startFakeVllm({ model: "smollm2" });
    const shape = ({ status, contentType, body }: Fixture["response"]) => {
      const json = body === "" ? undefined : withoutValues(JSON.parse(body));
      return { status, contentType, json };
    };
    const { json: expected, ...head } = shape(fixture.response);
    const { json: actual, ...actualHead } = shape(await ask(vllm.url, fixture));
    expect(actualHead).toEqual(head);
    if (expected !== undefined) expect(expected).toMatchObject(actual as object);
  });

  it("metrics, with the names of the gauges that admission reads", async () => {
    await using vllm = await startFakeVllm({ model: "smollm2" });
    const { body } = await ask(vllm.url, recorded("metrics"));
    const { body: real } = recorded("metrics").response;
    for (const line of body.split("\n").filter((l) => l.startsWith("vllm:")))
      expect(real).toContain(line);
  });
});

describe("a recording is replayed as it is", () => {
  it.each([...fixtures.keys()])("%s", async (name) => {
    const fixture = recorded(name);
    await using vllm = await startFakeVllm();
    vllm.route(`${fixture.request.method} ${fixture.request.path}`, replay(fixture, [10, 11, 40]));
    if (fixture.request.path === "/v1/chat/completions") vllm.reply(replay(fixture, [10]));
    const { status, body } = await ask(vllm.url, fixture);
    expect({ status, body }).toEqual({
      status: fixture.response.status,
      body: fixture.response.body,
    });
  });
});

describe("the fake vLLM tells what became of a request", () => {
  it("finished, or aborted when the client closes the connection", async () => {
    await using vllm = await startFakeVllm();
    const { request } = recorded("chat-stream");
    vllm.reply(answer());
    await ask(vllm.url, recorded("chat-stream"));
    expect(await (await vllm.request(0)).closed).toBe("finished");

    vllm.reply(answer({}, { after: 2, by: () => new Promise(() => undefined) }));
    const leaving = new AbortController();
    const response = await fetch(new URL(request.path, vllm.url), {
      method: "POST",
      body: JSON.stringify(request.body),
      signal: leaving.signal,
    });
    expect(response.status).toBe(200);
    leaving.abort();
    expect(await (await vllm.request(1)).closed).toBe("aborted");
  });

  it("refuses connections and accepts them again on the same port", async () => {
    await using vllm = await startFakeVllm();
    await vllm.refuse();
    await expect(fetch(new URL("/health", vllm.url))).rejects.toThrow();
    await vllm.accept();
    expect((await fetch(new URL("/health", vllm.url))).status).toBe(200);
    vllm.route("GET /health", refuse(503));
    expect((await fetch(new URL("/health", vllm.url))).status).toBe(503);
  });
});
