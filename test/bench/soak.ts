/**
 * Whether the gateway stays what it is under 1,000 open streams, and what readers cost that stop reading (`npm run
 * bench:soak`, 300 s of streams unless an argument says otherwise). Exits with 1 when a token was lost, memory grew, or a
 * target is missed.
 */
import { connect } from "node:http2";
import { setTimeout } from "node:timers/promises";
import { inspect, type Memory } from "./inspector.ts";
import { createCaller, Tally } from "./load.ts";
import { rssMb, startEngine, startInspectedProduct } from "./subjects.ts";
import { targets } from "./targets.ts";
import {
  binaryStream,
  grpcStream,
  jsonStream,
  key,
  type Model,
  type Wire,
  webStream,
} from "./wires.ts";

const seconds = Number(process.argv[2] ?? 300);
const streams = 1000;
const tokensPerSecond = 10;
const stalledReaders = 200;
const wires: readonly Wire[] = [grpcStream, webStream, jsonStream, binaryStream];
/** Answers may be as long as the soak. */
const env = {
  MAX_TOKENS: "131072",
  MAX_MODEL_LEN: "1048576",
  REQUEST_TIMEOUT_SECONDS: "3600",
  REQUEST_TIMEOUT_MAX_SECONDS: "3600",
};

let missed = 0;
function check(isMet: boolean, text: string): void {
  if (!isMet) missed += 1;
  print(`${isMet ? "met   " : "MISSED"} ${text}`);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Calls in all protocols in turn. */
function openStreams(url: string, model: Model, count: number, tokens: number) {
  const tally = new Tally();
  const callers = wires.map((wire) => createCaller({ url, wire, model, tally: () => tally }));
  let opened = 0;
  const calls: Promise<void>[] = [];
  return {
    tally,
    /** Opens them evenly over this time. */
    async open(overMs: number): Promise<void> {
      const began = performance.now();
      while (opened < count) {
        const due = Math.ceil(((performance.now() - began + 1) / overMs) * count);
        for (; opened < Math.min(due, count); opened += 1) {
          const call = callers[opened % callers.length]?.call(tokens);
          if (call !== undefined) calls.push(call);
        }
        await setTimeout(5);
      }
    },
    async ended(): Promise<void> {
      await Promise.all(calls);
      for (const caller of callers) caller.close();
    },
  };
}

async function warmUp(url: string): Promise<void> {
  const calls = openStreams(url, "unpaced", 100, 50);
  await calls.open(1000);
  await calls.ended();
  // Time for what runs after the end of a call.
  await setTimeout(1000);
}

async function soak(): Promise<void> {
  await using engine = await startEngine(tokensPerSecond);
  await using product = await startInspectedProduct(engine.url, env);
  using inspector = await inspect(product.inspector);
  await warmUp(product.url);
  const idle = await inspector.memory();
  print(`nothing open: ${toText(idle)}`);

  const tokens = seconds * tokensPerSecond;
  const open = openStreams(product.url, "paced", streams, tokens);
  await open.open(5000);
  const openedAt = performance.now();
  await setTimeout(3000);
  const samples: { readonly minutes: number; readonly memory: Memory }[] = [];
  // The first answers end 5 s before the last ones: until then all are open.
  const allOpenMs = (seconds - 5) * 1000;
  const everyMs = Math.max(2000, allOpenMs / 40);
  while (performance.now() - openedAt < allOpenMs - 1000) {
    const memory = await inspector.memory();
    const minutes = (performance.now() - openedAt) / 60_000;
    samples.push({ minutes, memory });
    print(`${minutes.toFixed(2)} min, ${streams} open: ${toText(memory)}`);
    await setTimeout(everyMs);
  }
  await open.ended();
  const { tally } = open;
  print(`all ended: ${toText(await inspector.memory())}`);

  const wanted = streams * tokens;
  check(
    tally.errors + tally.lost === 0 && tally.tokens === wanted && tally.calls === streams,
    `${tally.tokens} tokens of ${wanted} in ${tally.calls} answers; ${tally.errors} errors, ${tally.lost} answers with a token lost, doubled or out of order${tally.problem === undefined ? "" : `: ${tally.problem}`}`,
  );
  const first = samples[0]?.memory;
  if (first === undefined) throw new Error("too short to look at the memory: at least 20 seconds");
  const perStreamKb = ((first.heapMb - idle.heapMb) * 1024) / streams;
  check(
    perStreamKb < targets.heapPerStreamKb,
    `heap of an open stream ${perStreamKb.toFixed(1)} KiB, target ${targets.heapPerStreamKb}`,
  );
  // The beginning is left out: code is still being compiled, and the heap still finds its size.
  const steady = samples.slice(Math.floor(samples.length / 4));
  const minutes = (steady.at(-1)?.minutes ?? 0) - (steady[0]?.minutes ?? 0);
  for (const [name, value, target] of [
    ["heap", (memory: Memory) => memory.heapMb, targets.soakHeapGrowthMb],
    ["RSS", (memory: Memory) => memory.rssMb, targets.soakRssGrowthMb],
  ] as const) {
    const slope = slopeOf(steady.map((each) => [each.minutes, value(each.memory)]));
    check(
      slope * minutes < target,
      `${name} grew by ${slope.toFixed(2)} MiB a minute, ${(slope * minutes).toFixed(1)} MiB in ${minutes.toFixed(1)} minutes, target ${target}`,
    );
  }
}

async function stalled(): Promise<void> {
  const pace = 100;
  const aloneMs = 4000;
  const stalledMs = 15_000;
  /** Readers come one after the other, as callers do. */
  const openingMs = 5000;
  await using engine = await startEngine(pace);
  await using product = await startInspectedProduct(engine.url, env);
  using inspector = await inspect(product.inspector);
  await warmUp(product.url);

  let tally = new Tally();
  const caller = createCaller({
    url: product.url,
    wire: grpcStream,
    model: "paced",
    tally: () => tally,
  });
  const healthy = caller.call(((aloneMs + stalledMs) / 1000) * pace);
  await setTimeout(aloneMs);
  const before = await inspector.memory();
  tally = new Tally();
  const began = performance.now();
  const readers: ReturnType<typeof openStalled>[] = [];
  let peakMb = 0;
  while (performance.now() - began < stalledMs * 0.8) {
    const due = Math.min(1, (performance.now() - began) / openingMs) * stalledReaders;
    while (readers.length < due) readers.push(openStalled(product.url));
    peakMb = Math.max(peakMb, rssMb(product.group));
    await setTimeout(openingMs / stalledReaders);
  }
  const during = tally.tokens / (((performance.now() - began) / 1000) * pace);
  const gapMs = tally.gapUs.percentile(99) / 1000;
  const after = await inspector.memory();
  const answering = readers.filter(({ isAnswered }) => isAnswered()).length;
  await healthy;
  for (const { session } of readers) session.destroy();
  caller.close();

  print(`before the stalled readers: ${toText(before)}`);
  print(
    `with ${stalledReaders} of them: ${toText(after)}; the highest RSS, with what was to be collected, was ${peakMb.toFixed(0)} MiB`,
  );
  check(
    answering === stalledReaders,
    `${answering} of ${stalledReaders} got the begin of an answer`,
  );
  const cost = after.rssMb - before.rssMb;
  check(
    cost < targets.stalledRssMb,
    `RSS of ${stalledReaders} stalled readers ${cost.toFixed(0)} MiB, target ${targets.stalledRssMb}`,
  );
  check(
    during >= targets.healthyShare && tally.errors + tally.lost === 0,
    `a healthy stream beside them got ${(during * 100).toFixed(0)} % of its tokens in time (p99 of its gaps ${gapMs.toFixed(0)} ms), and ${tally.lost === 0 ? "all" : "not all"} in the end${tally.problem === undefined ? "" : `: ${tally.problem}`}`,
  );
}

/** A client of its own that asks for a long answer, takes its first bytes, and reads no more. */
function openStalled(url: string) {
  const session = connect(url);
  session.on("error", () => undefined);
  const stream = session.request({
    ":method": "POST",
    ":path": grpcStream.path,
    "content-type": grpcStream.contentType,
    te: "trailers",
    "x-api-key": key,
  });
  let answered = false;
  stream.on("error", () => undefined);
  stream.once("data", () => {
    answered = true;
    stream.pause();
  });
  stream.end(grpcStream.body("unpaced", 100_000));
  return { session, isAnswered: () => answered };
}

function toText({ heapMb, externalMb, rssMb: rss }: Memory): string {
  return `heap ${heapMb.toFixed(1)}, external ${externalMb.toFixed(1)}, RSS ${rss.toFixed(0)} MiB`;
}

/** Least squares: how much y grows with one of x. */
function slopeOf(points: readonly (readonly [x: number, y: number])[]): number {
  const mean = (values: readonly number[]) =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanX = mean(points.map(([x]) => x));
  const meanY = mean(points.map(([, y]) => y));
  const covariance = mean(points.map(([x, y]) => (x - meanX) * (y - meanY)));
  return covariance / mean(points.map(([x]) => (x - meanX) ** 2));
}

await soak();
await stalled();
process.exitCode = missed === 0 ? 0 : 1;
