import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { environment } from "../src/config.ts";
import { type FakeVllm, startFakeVllm } from "./support/fake-vllm.ts";
import { erpKey, startApp, type TestApp } from "./support/start-app.ts";

const root = resolve(import.meta.dirname, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");

/** Each command of the README's `sh` blocks, its continued lines joined. */
const commands = [...readme.matchAll(/```sh\n([\s\S]*?)```/g)].flatMap(([, block = ""]) =>
  block
    .replaceAll("\\\n", " ")
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== ""),
);

/** Commands that are run for real elsewhere: by .ci/run, by the program's own tests, or by infra/validate.ts. */
const runElsewhere = [
  /^npm ci && npm (start|test)$/,
  /^API_KEY="the key that was printed"$/,
  /^VLLM_URL=\S+ npm start$/,
  /^cp infra\/\.env\.example infra\/\.env$/,
  /^docker compose -f infra\/docker-compose\.yml --env-file infra\/\.env (up -d --build|run --rm download)$/,
];

let vllm: FakeVllm;
let app: TestApp;
beforeAll(async () => {
  vllm = await startFakeVllm({ answer: { text: ["Bon", "jour", "."] } });
  app = await startApp({ VLLM_URL: vllm.url.href });
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

describe("README.md", () => {
  it("has a start, a test and calls", () => {
    expect(commands).toContain("npm ci && npm start");
    expect(commands).toContain("npm ci && npm test");
    expect(commands.filter((command) => /^(curl|npx buf curl) /.test(command))).toHaveLength(6);
  });

  it.each(commands.filter((command) => !runElsewhere.some((known) => known.test(command))))(
    "%s",
    async (command) => {
      const shell = command
        .replaceAll("http://localhost:8080", app.url)
        .replaceAll("http://localhost:9464", app.adminUrl);
      const { PATH = "" } = process.env;
      const env = {
        PATH: `${join(root, "node_modules/.bin")}:${PATH}`,
        API_KEY: erpKey,
        HOME: tmpdir(),
      };
      const { stdout } = await promisify(execFile)("bash", ["-c", shell], { env, cwd: root });
      expect(stdout).toMatch(
        /"content":"Bonjour\."|"text": "|"models":\[|"countedSince":|SERVING_STATUS_SERVING|formdev_process_up/,
      );
    },
  );

  it("lists every variable with its default, and no other", () => {
    const rows = [...readme.matchAll(/^\| `([A-Z_]+)` \| (?:`([^`]+)`)? *\|/gm)];
    const listed = Object.fromEntries(rows.map(([, name, initial]) => [name, initial]));
    const expected = Object.entries(environment.shape).map(([name, schema]) => {
      const initial = schema.safeParse(undefined);
      return [
        name,
        initial.success && initial.data !== undefined ? String(initial.data) : undefined,
      ];
    });
    expect(listed).toStrictEqual(Object.fromEntries(expected));
  });
});
