import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram } from "./third-party.ts";

/** A real Redis of one test file, on loopback, that keeps nothing on disk. */
export interface RedisServer extends AsyncDisposable {
  readonly url: string;
  /** Kills it like a crash: everything in it is lost. */
  stop(): Promise<void>;
  /** Starts it again on the same port, empty. Resolves when it takes commands. */
  start(): Promise<void>;
  /** SIGSTOP: connections stay open, and new ones open, but nothing is answered until `resume`. */
  pause(): void;
  resume(): void;
}

/** What a skipped test says. */
export const redisServerMissing = "needs redis-server: apt-get install redis-server";

const startTimeoutMs = 10_000;

/** As `findProgram`. */
export function findRedisServer(): string | undefined {
  return findProgram("redis-server");
}

/** Starts one. `args` are further options of redis-server, such as `["--maxmemory", "2mb"]`. */
export async function startRedisServer(
  executable: string,
  args: readonly string[] = [],
): Promise<RedisServer> {
  const folder = await mkdtemp(join(tmpdir(), "formdev-redis-"));
  const port = await findFreePort();
  let child: ChildProcess | undefined;
  const kill = () => child?.kill("SIGKILL");
  // A test run that is interrupted leaves no server behind.
  process.once("exit", kill);

  const server: RedisServer = {
    url: `redis://127.0.0.1:${port}`,
    async start() {
      const where = ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder];
      const how = ["--save", "", "--appendonly", "no", "--loglevel", "notice"];
      const started = spawn(executable, [...where, ...how, ...args], {
        stdio: ["ignore", "pipe", "ignore"],
      });
      child = started;
      await untilReady(started);
    },
    async stop() {
      const stopped = child;
      child = undefined;
      const isRunning = stopped?.exitCode === null && stopped.signalCode === null;
      if (stopped?.pid === undefined || !isRunning) return;
      const exited = once(stopped, "exit");
      stopped.kill("SIGKILL");
      await exited;
    },
    pause: () => void child?.kill("SIGSTOP"),
    resume: () => void child?.kill("SIGCONT"),
    async [Symbol.asyncDispose]() {
      await server.stop();
      process.off("exit", kill);
      await rm(folder, { recursive: true, force: true });
    },
  };
  try {
    await server.start();
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

async function untilReady(child: ChildProcess): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let output = "";
  const fail = () => reject(new Error(`redis-server did not start:\n${output}`));
  const timer = setTimeout(fail, startTimeoutMs);
  child.once("error", reject);
  child.once("exit", fail);
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    if (output.includes("Ready to accept connections")) resolve();
  });
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    child.off("exit", fail);
    // Read on, so that it never blocks on a full pipe.
    child.stdout?.removeAllListeners("data").resume();
  }
}

async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no TCP port");
  return address.port;
}
