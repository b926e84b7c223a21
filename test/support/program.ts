import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { onTestFinished } from "vitest";

export interface Program extends AsyncDisposable {
  readonly process: ChildProcess;
  /** Everything that it has printed. */
  readonly output: () => string;
  /** Resolves with the first match of `pattern` in what it prints; rejects when it ends without. */
  printed(pattern: RegExp): Promise<RegExpExecArray>;
  /** Sends a signal to it and to every process it has started, as a terminal does. */
  signalAll(signal: NodeJS.Signals): void;
  /** Resolves with the exit code, or the name of the signal that ended it, when the processes it has started are gone too. */
  readonly ended: Promise<number | string>;
}

/** Of earlier runs, so that a test does not wait for the compiler each time. */
const compiled = join(import.meta.dirname, "../../node_modules/.cache/formdev-compiled");

/** `npm start` without npm: the program in a process of its own, with these variables and no others. For the time of a test. */
export function startProgram(env: Readonly<Record<string, string>>): Program {
  const main = join(import.meta.dirname, "../../src/main.ts");
  const { PATH = "" } = process.env;
  // A group of its own, so that all its processes can be signalled, and none of ours.
  const child = spawn(process.execPath, [main], {
    env: { PATH, API_PORT: "0", ADMIN_PORT: "0", NODE_COMPILE_CACHE: compiled, ...env },
    detached: true,
  });
  let output = "";
  const waiting = new Set<() => void>();
  const onOutput = (chunk: Buffer) => {
    output += chunk.toString();
    for (const look of waiting) look();
  };
  child.stdout.on("data", onOutput);
  child.stderr.on("data", onOutput);
  const signalAll = (signal: NodeJS.Signals) => {
    if (child.pid !== undefined && child.stdout.readable) process.kill(-child.pid, signal);
  };
  const kill = () => signalAll("SIGKILL");
  // A test that is given up after its time disposes of nothing.
  onTestFinished(kill);
  // Its processes share its output, which closes with the last of them.
  const ended = once(child, "close").then(([code, signal]) => code ?? signal);

  return {
    process: child,
    output: () => output,
    signalAll,
    ended,
    printed: (pattern) =>
      new Promise((resolve, reject) => {
        const look = () => {
          const match = pattern.exec(output);
          if (match === null) return;
          waiting.delete(look);
          resolve(match);
        };
        waiting.add(look);
        look();
        ended.then(() => reject(new Error(`it ended without ${pattern}:\n${output}`)), reject);
      }),
    async [Symbol.asyncDispose]() {
      kill();
      await ended;
    },
  };
}
