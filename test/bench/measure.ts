/** One run: an engine, one subject, one load. */
import { performance } from "node:perf_hooks";
import { setTimeout } from "node:timers/promises";
import {
  type ClosedLoop,
  type OpenLoop,
  startClosedLoop,
  startOpenLoop,
  type Tally,
} from "./load.ts";
import {
  cpuUs,
  type Running,
  rssMb,
  startEngine,
  startPlainHandler,
  startProduct,
} from "./subjects.ts";
import type { Wire } from "./wires.ts";

export type Loop = OpenLoop | ClosedLoop;

/** Starts what is measured in front of an engine, for calls over that wire; `undefined` asks the engine itself. */
export type Subject = (engine: string, wire: Wire) => Promise<Running>;
export const plain: Subject = (engine, { http }) => startPlainHandler(engine, http);
export const product: Subject = (engine) => startProduct(engine);

export interface Run {
  readonly cpuUsPerToken: number;
  /** For streams: of an answer of the load's length. */
  readonly cpuUsPerCall: number;
  /** Share of one core that the subject used. */
  readonly cores: number;
  readonly tokensPerSecond: number;
  readonly callsPerSecond: number;
  readonly rssMb: number;
  /** Share of its time that the load's own thread was at work. Near 1 it is the load that is measured. */
  readonly loadBusy: number;
  readonly tally: Tally;
}

export interface Times {
  /** Short calls, as fast as they are answered, before the load begins. */
  readonly warmUpCalls?: number | undefined;
  readonly warmUpMs: number;
  readonly measuredMs: number;
}

export async function measure(
  subject: Subject | undefined,
  wire: Wire,
  loop: Loop,
  { warmUpCalls = 0, warmUpMs, measuredMs }: Times,
): Promise<Run> {
  await using engine = await startEngine("streams" in loop ? loop.tokensPerSecond : 0);
  await using started = await subject?.(engine.url, wire);
  const { url, group } = started ?? engine;
  await makeCalls(url, wire, warmUpCalls);
  const load =
    "streams" in loop ? startOpenLoop(url, wire, loop) : startClosedLoop(url, wire, loop);
  try {
    await setTimeout(warmUpMs);
    const warm = load.take();
    const cpuBefore = cpuUs(group);
    const began = performance.now();
    const busyBefore = performance.eventLoopUtilization();
    await setTimeout(measuredMs);
    const tally = load.take();
    const seconds = (performance.now() - began) / 1000;
    const cpu = cpuUs(group) - cpuBefore;
    // A call that failed while the subject warmed up is as bad as one that fails later.
    tally.errors += warm.errors;
    tally.lost += warm.lost;
    tally.problem ??= warm.problem;
    return {
      cpuUsPerToken: cpu / tally.tokens,
      cpuUsPerCall: (cpu / tally.tokens) * loop.tokensPerCall,
      cores: cpu / 1e6 / seconds,
      tokensPerSecond: tally.tokens / seconds,
      callsPerSecond: tally.calls / seconds,
      rssMb: rssMb(group),
      loadBusy: performance.eventLoopUtilization(busyBefore).utilization,
      tally,
    };
  } finally {
    load.stop();
  }
}

async function makeCalls(url: string, wire: Wire, calls: number): Promise<void> {
  if (calls === 0) return;
  const load = startClosedLoop(url, wire, { concurrency: 10, tokensPerCall: 5 });
  for (let made = 0; made < calls; made += load.take().calls) await setTimeout(50);
  load.stop();
}
