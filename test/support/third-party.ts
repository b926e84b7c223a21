import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join, resolve } from "node:path";

/** Where CI installs programs, and where `go install` does. */
const ciFolders = [
  join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "formdev-ci/bin"),
  process.env.GOBIN ?? join(process.env.GOPATH ?? join(homedir(), "go"), "bin"),
];

/** Programs that others wrote, how to get them, and where they may be beside PATH. */
const programs = {
  curl: { install: "apt-get install curl", folders: [] },
  "redis-server": { install: "apt-get install redis-server", folders: [] },
  openssl: { install: "apt-get install openssl", folders: [] },
  buf: { install: "npm ci", folders: [resolve(import.meta.dirname, "../../node_modules/.bin")] },
  grpcurl: {
    install: "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    folders: ciFolders,
  },
  promtool: { install: "apt-get install prometheus", folders: ciFolders },
} as const;

export type Program = keyof typeof programs;

/** Path of a program. Without it: undefined, and a line that says which tests are skipped for it. */
export function findProgram(name: Program): string | undefined {
  const { install, folders } = programs[name];
  const path = (process.env.PATH ?? "").split(delimiter).filter((folder) => folder !== "");
  const found = [...path, ...folders].map((folder) => join(folder, name)).find(isExecutable);
  // Reporters count skipped tests without naming them.
  if (found === undefined) {
    process.stderr.write(`skipping tests: they need ${name} (${install})\n`);
  }
  return found;
}

export interface Outcome {
  /** Null when it was killed for taking longer than ten seconds. */
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const runMsMax = 10_000;

/** Runs a program to its end, with nothing on its standard input. Rejects when it cannot be started. */
export async function run(program: string, ...args: readonly string[]): Promise<Outcome> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], timeout: runMsMax });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  return { exitCode, stdout, stderr };
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
