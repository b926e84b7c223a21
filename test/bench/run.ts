/**
 * What the gateway costs (`npm run bench`): CPU time of its process for each token and call, beside the handler that one
 * writes first (plain-handler.ts), on the same engine (engine.ts), in one run. CPU time is read from /proc, user and system
 * together, so that a noisy machine moves it little; ratios within one run are what to compare.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { key, startLoad, type Wire, wires } from "./load.ts";

const concurrency = 50;
const tokensPerCall = 200;
const tokensPerSecond = 100;
const measuredMs = Number(process.argv[2] ?? 10) * 1000;
/** USER_HZ, the unit of /proc/PID/stat: 100 on every Linux that Node runs on. */
const tickUs = 10_000;

interface Subject {
  readonly name: string;
  readonly file: string;
  readonly env: Readonly<Record<string, string>>;
}

const subjects: readonly Subject[] = [
  { name: "plain handler", file: "plain-handler.ts", env: {} },
  {
    name: "FormDev IA",
    file: "../../src/main.ts",
    env: {
      API_PORT: "0",
      API_KEYS: `bench:${key}`,
      RATE_LIMIT_RPM: "1000000",
      ENGINE_CONCURRENCY: "2000",
    },
  },
];

interface Measured {
  readonly cpuUsPerToken: number;
  readonly cpuUsPerCall: number;
  readonly tokensPerSecond: number;
  readonly firstByteMs: { readonly p50: number; readonly p99: number };
  readonly rssMb: number;
  readonly errors: number;
}

async function main(): Promise<void> {
  const { model = "unknown" } = cpus()[0] ?? {};
  print(
    `${model}, ${cpus().length} cores, Node ${process.version}; ${concurrency} calls at once, ${tokensPerCall} tokens each at ${tokensPerSecond}/s\n`,
  );
  print(
    "| | | CPU µs/token | ratio | CPU µs/call | first byte p50/p99 ms | tokens/s | RSS MB | errors |",
  );
  print("|---|---|---|---|---|---|---|---|---|");
  for (const wire of wires) {
    let baseline: Measured | undefined;
    for (const subject of subjects) {
      const measured = await measure(subject, wire);
      baseline ??= measured;
      const ratio = measured.cpuUsPerToken / baseline.cpuUsPerToken;
      const { p50, p99 } = measured.firstByteMs;
      print(
        `| ${wire.name} | ${subject.name} | ${measured.cpuUsPerToken.toFixed(1)} | ${ratio.toFixed(2)} | ${measured.cpuUsPerCall.toFixed(0)} | ${p50.toFixed(1)} / ${p99.toFixed(1)} | ${measured.tokensPerSecond.toFixed(0)} | ${measured.rssMb} | ${measured.errors} |`,
      );
    }
  }
}

async function measure(subject: Subject, wire: Wire): Promise<Measured> {
  const engine = await start("engine.ts", {
    TOKENS: String(tokensPerCall),
    RATE: String(tokensPerSecond),
  });
  const server = await start(subject.file, { ...subject.env, VLLM_URL: engine.url });
  try {
    const load = startLoad(server.url, wire, concurrency);
    await load.warmUp;
    load.take();
    const cpuBefore = cpuUs(server.process);
    const began = performance.now();
    await new Promise((resolve) => setTimeout(resolve, measuredMs));
    const { calls, errors, firstByteMs } = load.take();
    const seconds = (performance.now() - began) / 1000;
    const cpu = cpuUs(server.process) - cpuBefore;
    const rssMb = rss(server.process);
    await load.stop();
    // Calls end in waves: tokens are what the engine's pace makes them, not what the calls that ended had.
    const tokens = concurrency * tokensPerSecond * seconds;
    const sorted = firstByteMs.toSorted((a, b) => a - b);
    return {
      cpuUsPerToken: cpu / tokens,
      cpuUsPerCall: (cpu / tokens) * tokensPerCall,
      tokensPerSecond: (calls * tokensPerCall) / seconds,
      firstByteMs: { p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) },
      rssMb,
      errors,
    };
  } finally {
    server.process.kill("SIGKILL");
    engine.process.kill("SIGKILL");
  }
}

/** Starts a program that prints its address on its first line, alone or in a log line. */
async function start(
  file: string,
  env: Readonly<Record<string, string>>,
): Promise<{ url: string; process: ChildProcess }> {
  const { PATH = "" } = process.env;
  const child = spawn(process.execPath, [join(import.meta.dirname, file)], {
    env: { PATH, ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const line of createInterface(child.stdout)) {
    const [url] = /http:\/\/[\w.]+:\d+/.exec(line) ?? [];
    child.stdout.resume();
    if (url !== undefined) return { url, process: child };
  }
  throw new Error(`${file} did not start`);
}

function cpuUs({ pid }: ChildProcess): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) * tickUs;
}

function rss({ pid }: ChildProcess): number {
  const [, kilobytes] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Math.round(Number(kilobytes) / 1024);
}

function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

await main();
