/**
 * What the gateway costs (`npm run bench`, twenty minutes): beside the engine asked directly, nginx, and the handler that one
 * writes first (plain-handler.ts), on the same engine (engine.ts), in one run. This process makes the load. Every run is
 * printed; medians go into README.md and README.fr.md. `npm run bench -- short` is for working on the gateway: each case
 * once and shorter, and the documents stay as they are.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, release, tmpdir } from "node:os";
import { join } from "node:path";
import { documentTable, writeDocument } from "./document-table.ts";
import { createCaller, Tally } from "./load.ts";
import {
  calls10,
  calls64,
  type Load,
  saturated,
  streams50,
  streams400,
  streams1000,
} from "./loads.ts";
import { measure, plain, product, type Subject } from "./measure.ts";
import { nginxVersion, startNginx } from "./nginx.ts";
import { runHeader, runRow, targetLines } from "./report.ts";
import { Results, type SubjectName } from "./results.ts";
import { startEngine, startProduct } from "./subjects.ts";
import {
  aliasCall,
  binaryCall,
  binaryStream,
  engineStream,
  grpcCall,
  grpcStream,
  http1Call,
  http1Stream,
  jsonCall,
  jsonStream,
  type Wire,
  webCall,
  webStream,
} from "./wires.ts";

const isShort = process.argv[2] === "short";
const repetitions = isShort ? 1 : 3;
const measuredMs = isShort ? 2500 : 4000;

const subjects: Readonly<Record<SubjectName, Subject | undefined>> = {
  engine: undefined,
  nginx: startNginx,
  plain,
  product,
  "product, 2 processes": (engine) => startProduct(engine, { PROCESSES: "2" }),
};

type Case = readonly [subject: SubjectName, wire: Wire];
const both = (wire: Wire): readonly Case[] => [
  ["plain", wire],
  ["product", wire],
];
/** What is compared in one repetition runs in one go. The engine comes first: all others are told beyond it. */
const outside: readonly Case[] = [
  ["engine", engineStream],
  ["nginx", engineStream],
];
const twoProcesses = "product, 2 processes";

const plan: readonly {
  readonly load: Load;
  readonly repeated: readonly Case[];
  readonly once?: readonly Case[];
}[] = [
  {
    load: streams50,
    repeated: [...outside, ...both(grpcStream), ...both(jsonStream)],
    once: [...both(binaryStream), ...both(webStream), ...both(http1Stream)],
  },
  { load: streams400, repeated: [...outside, ...both(grpcStream)] },
  { load: streams1000, repeated: [], once: [...outside, ...both(grpcStream)] },
  { load: saturated, repeated: [...outside, ...both(grpcStream), [twoProcesses, grpcStream]] },
  {
    load: calls10,
    repeated: [...outside, ...[jsonCall, grpcCall, binaryCall, webCall, http1Call].flatMap(both)],
    once: [["product", aliasCall]],
  },
  { load: calls64, repeated: [], once: [...outside, ...both(jsonCall), [twoProcesses, jsonCall]] },
];

const nginx = nginxVersion();
const [cpu] = cpus();
/** Written so that it needs no translation. */
const machine = `${cpu?.model ?? "unknown CPU"}, ${cpus().length} cores, Linux ${release()}, Node ${process.version}, ${nginx === undefined ? "no nginx" : `nginx ${nginx}`}`;

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/**
 * Milliseconds from the start of the process to the end of its first answer; with what the start before has left in `compiled`,
 * as with `npm start` and in the image.
 */
async function coldStartMs(compiled: string): Promise<number> {
  await using engine = await startEngine(0);
  const began = performance.now();
  await using started = await startProduct(engine.url, { NODE_COMPILE_CACHE: compiled });
  const tally = new Tally();
  const caller = createCaller({
    url: started.url,
    wire: jsonCall,
    model: "unpaced",
    tally: () => tally,
  });
  await caller.call(50);
  const tookMs = performance.now() - began;
  caller.close();
  if (tally.errors + tally.lost > 0) throw new Error(tally.problem);
  await started.stop();
  return tookMs;
}

async function runPlan(): Promise<Results> {
  const results = new Results();
  const isThere = ([subject]: Case) => subject !== "nginx" || nginx !== undefined;
  print(machine);
  if (nginx === undefined) print("nginx is left out: it is not installed (Debian's package nginx)");
  print(runHeader);
  for (const { load, repeated, once = [] } of plan) {
    for (let repetition = 1; repetition <= repetitions; repetition += 1) {
      const cases = repetition === 1 ? [...repeated, ...once] : repeated;
      for (const [subject, wire] of cases.filter(isThere)) {
        const times = { ...load, measuredMs };
        const run = await measure(subjects[subject], wire, load.loop, times);
        const result = { load, subject, wire: wire.name, repetition, run };
        results.add(result);
        print(runRow(result, results));
        if (run.tally.problem !== undefined) print(`first problem: ${run.tally.problem}`);
      }
    }
  }
  return results;
}

const results = await runPlan();
const compiled = mkdtempSync(join(tmpdir(), "formdev-bench-"));
process.once("exit", () => rmSync(compiled, { recursive: true }));
const firstStartMs = await coldStartMs(compiled);
print(`\nThe very first start, which compiles everything: ${Math.round(firstStartMs)} ms`);
const coldStarts: number[] = [];
for (let repetition = 1; repetition <= repetitions; repetition += 1)
  coldStarts.push(await coldStartMs(compiled));
print("\nThe product's median over the runs (their range), and its target:");
for (const line of targetLines(results, coldStarts)) print(line);
for (const language of ["en", "fr"] as const) {
  const table = `${documentTable(results, coldStarts, language)}\n\n${machine}.`;
  print(`\n${table}`);
  if (!isShort) writeDocument(language, table);
}
