import { readdirSync, readFileSync } from "node:fs";
import { join, relative, resolve, sep } from "node:path";
import { describe, expect, it } from "vitest";

const root = resolve(import.meta.dirname, "..");
const src = join(root, "src");

interface Module {
  /** Relative to src, with forward slashes. */
  readonly path: string;
  /** First folder, or the file's own name at the top. */
  readonly area: string;
  readonly text: string;
  /** What it imports: own modules relative to the repository, packages by name. */
  readonly imports: readonly string[];
  /** Those that are loaded before it runs: neither types, nor what it imports later. */
  readonly loads: readonly string[];
}

const modules: readonly Module[] = readdirSync(src, { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".ts") && !path.endsWith(".test.ts"))
  .map((path) => {
    const file = join(src, path);
    const text = readFileSync(file, "utf8");
    const named = (pattern: RegExp) =>
      [...text.matchAll(pattern)].map(([, name = ""]) =>
        name.startsWith(".") ? toPosix(relative(root, resolve(file, "..", name))) : name,
      );
    const posix = toPosix(path);
    return {
      path: posix,
      area: posix.split("/")[0] ?? posix,
      text,
      imports: named(/(?:from|import)\s*\(?\s*"([^"]+)"/g),
      loads: named(/^(?:import|export)\s(?!type\b)(?:[^;]*?from )?"([^"]+)";/gm),
    };
  });

const features = ["chat", "model", "health", "keys", "limits", "admission", "usage"];
const adapters = [
  "src/inference/vllm/",
  "src/inference/embedded/",
  "src/redis/",
  "src/prometheus/",
  "src/otlp/",
];
const transports = ["@connectrpc/", "gen/"];
/** They run as processes; what else is in `processes/` belongs to them. */
const programs = ["main.ts", "processes/worker.ts"];
const composition = ["admin.ts", "app.ts", "service.ts", "shared.ts", "main.ts", "processes/"];
const isHandler = ({ path }: Module) => path.endsWith("-handler.ts");
const knowsTransport = (module: Module) =>
  ["server", "rpc"].includes(module.area) || isHandler(module);

/** `path imports name` for each import of `from` that `forbidden` starts. */
function breaches(from: readonly Module[], forbidden: readonly string[]): string[] {
  return from.flatMap(({ path, imports }) =>
    imports
      .filter((name) => forbidden.some((start) => name.startsWith(start)))
      .map((name) => `${path} imports ${name}`),
  );
}

/** Everything that is loaded together with a module of ours. */
function loadedBy(path: string, loaded = new Set<string>()): ReadonlySet<string> {
  for (const name of modules.find((module) => module.path === path)?.loads ?? []) {
    if (loaded.has(name)) continue;
    loaded.add(name);
    if (name.startsWith("src/")) loadedBy(name.slice("src/".length), loaded);
  }
  return loaded;
}

describe("the direction of imports", () => {
  it("sees the modules and their imports, so that the other checks mean something", () => {
    expect(modules.length).toBeGreaterThan(30);
    const importsOf = (name: string) => modules.find(({ path }) => path === name)?.imports;
    expect(importsOf("service.ts")).toContain("src/chat/chat.ts");
    expect(importsOf("events.ts")).toContain("pino");
  });

  it("lets only server/, rpc/ and the handlers know transports and generated code", () => {
    expect(
      breaches(
        modules.filter((module) => !knowsTransport(module)),
        transports,
      ),
    ).toEqual([]);
  });

  it("keeps features away from adapters and from the libraries that adapters wrap", () => {
    const inFeatures = modules.filter(({ area }) => features.includes(area));
    const libraries = ["undici", "ioredis", "pg", "node-llama-cpp", "pino"];
    expect(breaches(inFeatures, [...adapters, ...libraries])).toEqual([]);
  });

  it("keeps one adapter from importing another, and lib/ from importing anything of ours", () => {
    for (const adapter of adapters) {
      const own = modules.filter(({ path }) => `src/${path}`.startsWith(adapter));
      const others = adapters.filter((other) => other !== adapter);
      expect(breaches(own, [...others, "src/server/", "src/rpc/"])).toEqual([]);
    }
    const inLib = modules.filter(({ area }) => area === "lib");
    const ours = inLib.flatMap(({ path, imports }) =>
      imports
        .filter((name) => name.startsWith("src/") && !/^src\/(lib\/|errors\.ts)/.test(name))
        .map((name) => `${path} imports ${name}`),
    );
    expect(ours).toEqual([]);
  });

  it("lets nobody but the programs and what composes them import the composition", () => {
    expect(
      breaches(
        modules.filter(({ path }) => !composition.some((part) => path.startsWith(part))),
        composition.map((part) => `src/${part}`),
      ),
    ).toEqual([]);
  });

  it("keeps the process out of everything but the programs", () => {
    const touching = modules.filter(({ text }) =>
      /\bprocess\.(env|on|once|exit|exitCode|argv|std(out|err|in))\b/.test(text),
    );
    expect(touching.map(({ path }) => path)).toEqual(programs);
  });

  it.each([
    ["main.ts", [""]],
    ["processes/primary.ts", ["@connectrpc/", "@bufbuild/", "undici", "ioredis"]],
    ["processes/worker.ts", ["zod", "ioredis"]],
  ])(
    "loads no package for %s that starts with %j: a start takes as long as its modules",
    (path, starts) => {
      const packages = [...loadedBy(path)].filter((name) => !/^(src\/|gen\/|node:)/.test(name));
      expect(packages.filter((name) => starts.some((start) => name.startsWith(start)))).toEqual([]);
    },
  );

  it("loads llama.cpp by a dynamic import alone, in its own folder", () => {
    const loading = modules.filter(({ text }) => text.includes("node-llama-cpp"));
    for (const { path, text } of loading) {
      expect(path).toMatch(/^inference\/embedded\//);
      expect(text).not.toMatch(/^import (?!type)[^;]*"node-llama-cpp"/m);
    }
    const statically = modules.filter(({ text }) =>
      /^import (?!type)[^;]*inference\/embedded/m.test(text),
    );
    expect(statically.map(({ path }) => path)).toEqual([]);
  });
});

function toPosix(path: string): string {
  return path.split(sep).join("/");
}
