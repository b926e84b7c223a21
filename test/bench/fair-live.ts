/**
 * What clients do to one another on a real vLLM (`VLLM_URL=… ENGINE_CONCURRENCY=4 npm run bench:fair-live`, three minutes):
 * client A floods, client B asks for one short answer every few seconds. B alone, then beside A on vLLM itself, first come
 * first served, and beside A through the gateway. ENGINE_CONCURRENCY is vLLM's own --max-num-seqs.
 */
import { createHistogram } from "node:perf_hooks";
import { setTimeout } from "node:timers/promises";
import { startProduct } from "./subjects.ts";

const vllmUrl = process.env.VLLM_URL;
if (vllmUrl === undefined) throw new Error("VLLM_URL names the vLLM to measure");
const concurrency = process.env.ENGINE_CONCURRENCY ?? "4";
const measuredMs = 60_000;
const everyMs = 2000;
const flood = { at: 20, maxTokens: 200, prompt: "Écris une longue histoire." };
const short = { maxTokens: 8, prompt: "Dis bonjour." };
const keys = { A: "key-of-client-a-0123456789", B: "key-of-client-b-0123456789" };

interface Asked {
  readonly prompt: string;
  readonly maxTokens: number;
}
/** Streams one answer; resolves with the milliseconds to its first text, and the tokens that the engine has counted. */
type Ask = (
  client: keyof typeof keys,
  asked: Asked,
  signal: AbortSignal,
) => Promise<{ readonly firstMs: number; readonly tokens: number }>;

const { data } = (await (await fetch(new URL("/v1/models", vllmUrl))).json()) as {
  data: { id: string }[];
};
const model = data[0]?.id;

/** Reads a stream to its end: when the first text came, and the last count of tokens. */
async function read(response: Response, isText: RegExp, startedAt: number) {
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  let firstMs = 0;
  let all = "";
  for await (const chunk of response.body ?? []) {
    all += Buffer.from(chunk).toString("latin1");
    if (firstMs === 0 && isText.test(all)) firstMs = performance.now() - startedAt;
  }
  const counts = [...all.matchAll(/"(?:total_tokens|totalTokens)":(\d+)/g)];
  return { firstMs, tokens: Number(counts.at(-1)?.[1] ?? 0) };
}

const askVllm: Ask = async (_client, { prompt, maxTokens }, signal) => {
  const startedAt = performance.now();
  const response = await fetch(new URL("/v1/chat/completions", vllmUrl), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model,
      messages: [{ role: "user", content: prompt }],
      max_tokens: maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  return read(response, /"content":"[^"]/, startedAt);
};

const askGateway =
  (url: string): Ask =>
  async (client, { prompt, maxTokens }, signal) => {
    const startedAt = performance.now();
    const message = Buffer.from(
      JSON.stringify({ messages: [{ role: "user", content: prompt }], max_tokens: maxTokens }),
    );
    const body = new Uint8Array(message.length + 5);
    new DataView(body.buffer).setUint32(1, message.length);
    body.set(message, 5);
    const response = await fetch(`${url}/formdev.chat.v1.ChatService/StreamChat`, {
      method: "POST",
      headers: { "content-type": "application/connect+json", "x-api-key": keys[client] },
      body,
      signal,
    });
    return read(response, /"textDelta"/, startedAt);
  };

async function measure(name: string, ask: Ask, isFlooded: boolean): Promise<void> {
  const times = createHistogram();
  const over = new AbortController();
  let tokens = 0;
  let failed = 0;
  const count = (answer: { readonly tokens: number }) => {
    tokens += answer.tokens;
  };
  const again = async (): Promise<void> => {
    while (!over.signal.aborted) await ask("A", flood, over.signal).then(count, () => undefined);
  };
  const floods = Array.from({ length: isFlooded ? flood.at : 0 }, again);
  // Until the engine is full of A's calls.
  if (isFlooded) await setTimeout(10_000);
  tokens = 0;
  const asks: Promise<void>[] = [];
  const endsAt = performance.now() + measuredMs;
  while (performance.now() < endsAt) {
    const asked = ask("B", short, AbortSignal.timeout(4 * measuredMs)).then(
      (answer) => {
        times.record(Math.max(1, Math.round(answer.firstMs)));
        count(answer);
      },
      () => {
        failed += 1;
      },
    );
    asks.push(asked);
    await setTimeout(everyMs);
  }
  const perSecond = (tokens / measuredMs) * 1000;
  await Promise.all(asks);
  over.abort();
  await Promise.all(floods);
  const cells = [name, times.count, failed, times.percentile(50), times.percentile(99), times.max];
  process.stdout.write(`| ${cells.join(" | ")} | ${perSecond.toFixed(0)} |\n`);
}

await using product = await startProduct(vllmUrl, {
  API_KEYS: `A:${keys.A},B:${keys.B}`,
  ENGINE_CONCURRENCY: concurrency,
  MAX_TOKENS: "200",
});
const gateway = askGateway(product.url);
process.stdout.write(
  `A: ${flood.at} calls at once of up to ${flood.maxTokens} tokens. B: one call in ${everyMs / 1000} s of ${short.maxTokens}. ${concurrency} sequences, ${measuredMs / 1000} s each.\n` +
    "| B | answers | failed | first token ms p50 | p99 | max | tokens/s, both |\n|---|---|---|---|---|---|---|\n",
);
await measure("alone, through the gateway", gateway, false);
await measure("beside A, on vLLM itself", askVllm, true);
await measure("beside A, through the gateway", gateway, true);
