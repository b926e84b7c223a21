import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Code, createClient } from "@connectrpc/connect";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { LimitKind, PeriodKind } from "../../gen/formdev/usage/v1/usage_pb.ts";
import {
  type GetUsageResponse,
  UsageService,
} from "../../gen/formdev/usage/v1/usage_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script } from "../support/fake-vllm-replies.ts";
import { startProgram } from "../support/program.ts";
import {
  erpKey,
  extranetKey,
  type Protocol,
  protocols,
  startApp,
  type TestApp,
  transportFor,
} from "../support/start-app.ts";

const erp = {
  id: "erp",
  keys: [erpKey],
  rpm: 7,
  concurrency: 1,
  daily_tokens: 100_000,
  monthly_tokens: 5_000_000_000,
  models: { "fake-model": { tpm: 5000 } },
};
const hello = { messages: [{ role: "user", content: "Bonjour" }], maxTokens: 100 };
const never = new Promise<void>(() => undefined);

let folder: string;
let keyFile: string;
let vllm: FakeVllm;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "formdev-usage-"));
  keyFile = join(folder, "keys.json");
  const clients = [erp, { id: "extranet", keys: [extranetKey] }];
  await writeFile(keyFile, JSON.stringify({ clients }));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});
beforeEach(async () => {
  vllm = await startFakeVllm();
});
afterEach(async () => {
  await vllm[Symbol.asyncDispose]();
});

const start = (env: Readonly<Record<string, string>> = {}) =>
  startApp({
    VLLM_URL: vllm.url.href,
    EMBEDDINGS_URL: vllm.url.href,
    API_KEYS: "",
    API_KEYS_FILE: keyFile,
    ...env,
  });

const usageOf = (url: string, key = erpKey, protocol: Protocol = "gRPC") =>
  createClient(UsageService, transportFor(protocol, url, key)).getUsage({});

/** A call is counted when it has ended, which is when it is logged. */
const untilCounted = (app: TestApp, calls: number) =>
  eventually(`${calls} calls have ended`, () => {
    const ended = app.logs.filter(
      ({ msg, rpc }) => msg === "call" && !String(rpc).includes("Usage"),
    );
    return ended.length >= calls;
  });

/** The totals of each model, of all periods of a kind: two of them when midnight passes during a test. */
function totalsOf({ periods }: GetUsageResponse, kind: PeriodKind) {
  const totals = new Map<string, bigint[]>();
  for (const { models } of periods.filter((period) => period.kind === kind)) {
    for (const each of models) {
      const counts = [
        each.requests,
        each.refusedRequests,
        each.promptTokens,
        each.cachedPromptTokens,
        each.completionTokens,
      ];
      const before = totals.get(each.model) ?? [];
      totals.set(
        each.model,
        counts.map((count, index) => count + (before[index] ?? 0n)),
      );
    }
  }
  return Object.fromEntries([...totals].map(([model, counts]) => [model, counts.map(Number)]));
}

/** Reads a stream until it has said this, and leaves it. Resolves when that is done. */
async function leaveAfter(url: string, protocol: Protocol, said: string): Promise<void> {
  const left = new AbortController();
  const client = createClient(ChatService, transportFor(protocol, url));
  let text = "";
  const reading = async () => {
    for await (const { part } of client.streamChat(hello, { signal: left.signal })) {
      if (part.case === "textDelta") text += part.value.text;
      if (text === said) left.abort();
    }
  };
  await expect(reading()).rejects.toMatchObject({ code: Code.Canceled });
}

describe.each(protocols)("over %s", (protocol) => {
  it("a client is told exactly what the engine reported of its calls, whatever became of them, and what is left", async () => {
    await using app = await start();
    const transport = transportFor(protocol, app.url);
    const chat = createClient(ChatService, transport);
    const model = createClient(ModelService, transport);
    const begin = Date.now();
    const two = ["un ", "deux ", "trois "];
    vllm.reply(
      answer({ text: ["oui"], promptTokens: 100, cachedTokens: 64 }),
      answer({ text: two, promptTokens: 200 }),
      answer({ text: two, promptTokens: 300 }, { after: 3, by: () => never }),
      answer({ text: two, promptTokens: 400 }, { after: 3, by: (reply) => reply.cut("fin") }),
    );

    await chat.chat(hello);
    await Array.fromAsync(chat.streamChat(hello));
    const leaving = leaveAfter(app.url, protocol, "un deux ");
    await vllm.request(2);
    const refused = { code: Code.ResourceExhausted };
    await expect(chat.chat(hello), "the second at once").rejects.toMatchObject(refused);
    await leaving;
    await untilCounted(app, 4);
    await expect(chat.chat(hello)).rejects.toMatchObject({ code: Code.DataLoss });
    const { promptTokens } = await model.embed({ model: "fake-embedder", inputs: ["un", "deux"] });
    await model.listModels({});
    const large = { ...hello, maxTokens: 4000 };
    await expect(chat.chat(large), "too many tokens").rejects.toMatchObject(refused);
    await expect(chat.chat({})).rejects.toMatchObject({ code: Code.InvalidArgument });
    await untilCounted(app, 9);
    await expect(chat.chat(hello), "the eighth in a minute").rejects.toMatchObject(refused);
    await untilCounted(app, 10);

    const usage = await usageOf(app.url, erpKey, protocol);
    expect(usage.client).toBe("erp");
    const totals = {
      // Requests, refused ones, tokens of prompts, the cached ones of them, of completions: a stop is a token too.
      "fake-model": [4, 0, 100 + 200 + 300 + 400, 64, 2 + 4 + 2 + 2],
      "fake-embedder": [1, 0, promptTokens, 0, 0],
      "": [5, 3, 0, 0, 0],
    };
    expect(totalsOf(usage, PeriodKind.DAY)).toEqual(totals);
    expect(totalsOf(usage, PeriodKind.MONTH)).toEqual(totals);

    const chatTokens = 1000 + 10;
    const tokens = chatTokens + promptTokens;
    expect(
      usage.limits.map(({ kind, model, limit, used, remaining }) => [
        ...[kind, model, Number(limit), Number(used), Number(remaining)],
      ]),
    ).toEqual([
      [LimitKind.REQUESTS_PER_MINUTE, "", 7, 7, 0],
      [LimitKind.CONCURRENT_REQUESTS, "", 1, 0, 1],
      [LimitKind.TOKENS_PER_DAY, "", 100_000, tokens, 100_000 - tokens],
      [LimitKind.TOKENS_PER_MONTH, "", 5_000_000_000, tokens, 5_000_000_000 - tokens],
      [LimitKind.TOKENS_PER_MINUTE, "fake-model", 5000, chatTokens, 5000 - chatTokens],
    ]);
    const [minute, running, day, month] = usage.limits.map(({ resetTime }) =>
      resetTime === undefined ? undefined : timestampMs(resetTime),
    );
    expect(minute).toBeGreaterThanOrEqual(begin + 60_000);
    expect(minute).toBeLessThanOrEqual(Date.now() + 61_000);
    expect(running).toBeUndefined();
    expect(new Date(day ?? 0).toISOString()).toMatch(/T00:00:00\.000Z$/);
    expect(new Date(month ?? 0).toISOString()).toMatch(/-01T00:00:00\.000Z$/);
  });

  it("says so while a call runs: its place, and the most that it can cost", async () => {
    await using app = await start();
    vllm.reply(answer({ text: ["oui"], promptTokens: 5 }, { after: 1, by: () => never }));
    const left = new AbortController();
    const chat = createClient(ChatService, transportFor(protocol, app.url));
    const reading = Array.fromAsync(chat.streamChat(hello, { signal: left.signal }));
    const failed = expect(reading).rejects.toMatchObject({ code: Code.Canceled });
    await vllm.request(0);
    const { limits, periods } = await usageOf(app.url, erpKey, protocol);
    expect(limits[1]).toMatchObject({ used: 1n, remaining: 0n });
    expect(Number(limits[2]?.used)).toBeGreaterThan(hello.maxTokens);
    expect(periods.flatMap(({ models }) => models)).toEqual([]);
    left.abort();
    await failed;
  });
});

it("shows no client anything of another one, and cannot be asked to", async () => {
  await using app = await start();
  await createClient(ChatService, transportFor("gRPC", app.url)).chat(hello);
  await untilCounted(app, 1);
  const other = await usageOf(app.url, extranetKey);
  expect(other.client).toBe("extranet");
  expect(other.limits.map(({ used }) => used)).toEqual([0n]);
  expect(totalsOf(other, PeriodKind.MONTH)).toEqual({});

  const asked = await fetch(`${app.url}/formdev.usage.v1.UsageService/GetUsage`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": extranetKey },
    body: '{"client":"erp"}',
  });
  expect(asked.status).toBe(400);
});

it("takes nothing of what is left, however often it is asked", async () => {
  await using app = await start({ RATE_LIMIT_RPM: "1" });
  for (let question = 0; question < 20; question += 1) {
    const { limits } = await usageOf(app.url, extranetKey);
    expect(limits).toMatchObject([{ limit: 1n, used: 0n, remaining: 1n }]);
    expect(limits[0]?.resetTime).toBeUndefined();
  }
  await createClient(ChatService, transportFor("gRPC", app.url, extranetKey)).chat(hello);
  const { limits } = await usageOf(app.url, extranetKey);
  expect(limits).toMatchObject([{ used: 1n, remaining: 0n }]);
});

it("answers a GET for its key alone, is kept by no cache, and writes in JSON that nothing is left", async () => {
  await using app = await start({ RATE_LIMIT_RPM: "1" });
  const url = `${app.url}/formdev.usage.v1.UsageService/GetUsage?encoding=json&message=%7B%7D`;
  expect((await fetch(url)).status).toBe(401);
  await createClient(ChatService, transportFor("gRPC", app.url, extranetKey)).chat(hello);
  const response = await fetch(url, { headers: { "x-api-key": extranetKey } });
  expect(response.status).toBe(200);
  expect(response.headers.get("cache-control")).toBe("no-store");
  expect(await response.json()).toMatchObject({
    client: "extranet",
    limits: [{ kind: "LIMIT_KIND_REQUESTS_PER_MINUTE", limit: "1", used: "1", remaining: "0" }],
    countedSince: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
  });
});

it("adds up what all processes have answered, and counts the calls of one that is killed once", async () => {
  await using program = startProgram({
    VLLM_URL: vllm.url.href,
    API_KEYS: `erp:${erpKey}`,
    PROCESSES: "2",
    LOG_LEVEL: "debug",
  });
  const takes = /"pid":(\d+),"msg":"a process takes connections"/g;
  await program.printed(/(a process takes connections[\s\S]*){2}/);
  const [, url = ""] = await program.printed(/"url":"(http:[^"]+)"/);
  const [pid = ""] = [...program.output().matchAll(takes)].map(([, each]) => each);
  // Each on a connection of its own: they are handed out in turn.
  const chat = () => createClient(ChatService, transportFor("gRPC", url)).chat(hello);
  const modelTotals = async () => totalsOf(await usageOf(url), PeriodKind.MONTH)["fake-model"];
  const ended = (outcome: string) =>
    program.output().match(new RegExp(`"outcome":"${outcome}"[^\\n]*completion_tokens`, "g"))
      ?.length;

  const whole: Script = answer({ text: ["oui"], promptTokens: 100 });
  vllm.reply(whole, whole, whole, whole);
  for (let call = 0; call < 4; call += 1) await chat();
  await eventually("four calls have ended", () => ended("ok") === 4);
  for (let question = 0; question < 2; question += 1) {
    expect(await modelTotals()).toEqual([4, 0, 400, 0, 8]);
  }

  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  const held: Script = answer(
    { text: ["oui"], promptTokens: 100 },
    { after: 1, by: () => released },
  );
  vllm.reply(held, held);
  const streams: Promise<unknown>[] = [];
  for (let index = 4; index < 6; index += 1) {
    streams.push(chat());
    await vllm.request(index);
  }
  const results = Promise.allSettled(streams);
  process.kill(Number(pid), "SIGKILL");
  await program.printed(/(a process takes connections[\s\S]*){3}/);
  release();
  expect((await results).map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"]);
  await eventually("the fifth call has ended", () => ended("ok") === 5);

  const [requests, refused, promptTokens = 0, , completionTokens] = (await modelTotals()) ?? [];
  expect({ requests, refused, completionTokens }).toEqual({
    requests: 6,
    refused: 0,
    completionTokens: 10,
  });
  expect(promptTokens, "the lost call costs what was expected").toBeGreaterThan(
    500 + hello.maxTokens / 2,
  );
});
