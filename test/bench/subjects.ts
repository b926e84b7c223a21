/** The programs of the benchmark, each in a process group of its own that ends with the benchmark whatever happens. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import packageJson from "../../package.json" with { type: "json" };
import { key, type Wire } from "./wires.ts";

export interface Running extends AsyncDisposable {
  readonly url: string;
  /** Its process group: the program and whatever it started. */
  readonly group: number;
  /** Ends it as an operator does. Resolves when it is gone. */
  stop(): Promise<void>;
}

export function startEngine(tokensPerSecond: number): Promise<Running> {
  return startNode("engine.ts", { RATE: String(tokensPerSecond) });
}

/** It speaks one version of HTTP. */
export function startPlainHandler(engine: string, http: Wire["http"]): Promise<Running> {
  return startNode("plain-handler.ts", { VLLM_URL: engine, HTTP: String(http) });
}

/** The gateway with keys, limits and metering on, and room for every load of the benchmark. */
export function startProduct(
  engine: string,
  env: Readonly<Record<string, string>> = {},
): Promise<Running> {
  return startProgram(nodeFlags, "../../src/main.ts", { ...productEnv(engine), ...env });
}

/** Those of `npm start`. */
const nodeFlags = packageJson.scripts.start.split(" ").filter((word) => word.startsWith("--"));

/** The same with a debugger's port, through which its memory can be looked at. */
export async function startInspectedProduct(
  engine: string,
  env: Readonly<Record<string, string>>,
): Promise<Running & { readonly inspector: string }> {
  const main = join(import.meta.dirname, "../../src/main.ts");
  const args = [...nodeFlags, "--inspect=127.0.0.1:0", main];
  const child = startChild(process.execPath, args, { ...productEnv(engine), ...env }, "pipe");
  const [url, inspector] = await Promise.all([
    printed(child, child.stdout, address),
    printed(child, child.stderr, /(ws:\/\/\S+)/),
  ]);
  return { ...toRunning(url, child), inspector };
}

function productEnv(engine: string): Record<string, string> {
  return {
    VLLM_URL: engine,
    API_PORT: "0",
    ADMIN_PORT: "0",
    API_KEYS: `bench:${key}`,
    RATE_LIMIT_RPM: "1000000",
    ENGINE_CONCURRENCY: "2000",
    PROCESSES: "1",
  };
}

function startNode(file: string, env: Readonly<Record<string, string>>): Promise<Running> {
  return startProgram([], file, env);
}

/** Starts a program, given relative to this folder, that prints its address. */
async function startProgram(
  flags: readonly string[],
  file: string,
  env: Readonly<Record<string, string>>,
): Promise<Running> {
  const child = startChild(process.execPath, [...flags, join(import.meta.dirname, file)], env);
  return toRunning(await printed(child, child.stdout, address), child);
}

/** Alone on a line, or as `url` of a log line. */
const address = /(?:^|"url":")(http:\/\/[\w.]+:\d+)/m;

/** The first group of the first match in what a program prints. What it prints afterwards is taken, and not looked at. */
function printed(child: ChildProcess, stream: Readable | null, pattern: RegExp): Promise<string> {
  return new Promise((resolve, reject) => {
    let output = "";
    const look = (chunk: Buffer) => {
      output += chunk.toString();
      const [, found] = pattern.exec(output) ?? [];
      if (found === undefined) return;
      stream?.off("data", look).resume();
      resolve(found);
    };
    stream?.on("data", look);
    child.once("close", () => reject(new Error(`it ended without ${pattern}:\n${output}`)));
  });
}

const children = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of children) endGroup(child);
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.once(signal, () => process.exit(1));

/** Starts a program with these variables and no others. Its standard output is for the caller to read. */
export function startChild(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  stderr: "inherit" | "pipe" = "inherit",
): ChildProcess {
  const { PATH = "" } = process.env;
  const child = spawn(program, args, {
    env: { PATH, ...env },
    stdio: ["ignore", "pipe", stderr],
    detached: true,
  });
  children.add(child);
  child.once("close", () => children.delete(child));
  return child;
}

export function toRunning(url: string, child: ChildProcess): Running {
  return {
    url,
    group: child.pid ?? 0,
    async stop() {
      const closed = once(child, "close");
      child.kill("SIGTERM");
      await closed;
    },
    async [Symbol.asyncDispose]() {
      const closed = once(child, "close");
      endGroup(child);
      if (children.has(child)) await closed;
    },
  };
}

function endGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

/** Microseconds on a CPU, user and system, of every thread of the group so far. */
export function cpuUs(group: number): number {
  let nanoseconds = 0;
  for (const pid of processesOf(group)) {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      // In nanoseconds; what /proc/PID/stat says is in hundredths of a second, too coarse for nginx.
      const [used] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ");
      nanoseconds += Number(used);
    }
  }
  return nanoseconds / 1e3;
}

/** Megabytes of memory in use by the group, shared pages counted in each process. */
export function rssMb(group: number): number {
  let kilobytes = 0;
  for (const pid of processesOf(group)) {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    kilobytes += Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]);
  }
  return kilobytes / 1024;
}

function processesOf(group: number): readonly string[] {
  return readdirSync("/proc").filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      // After the name in parentheses: state, parent, group.
      const stat = readFileSync(`/proc/${name}/stat`, "utf8");
      return stat.slice(stat.lastIndexOf(")")).split(" ")[3] === String(group);
    } catch {
      return false; // It ended meanwhile.
    }
  });
}
