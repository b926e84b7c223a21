/** What the benchmark prints: a line for each run, and the targets. */
import { calls10, type Load, saturated, streams50, streams400, streams1000 } from "./loads.ts";
import { median, type Result, type Results, type Times } from "./results.ts";
import { targets } from "./targets.ts";
import {
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

export const runHeader = `
Times in ms, p50 / p95 / p99: the engine's as they are, all others beyond the engine's in the same repetition. Wait: for the
first token of a stream, or the whole answer of a call. Delay: from the engine's sending of a token to the caller's reading.
Cores: what the subject used. Load busy: the share of its time that the load itself worked; near 100 % it is what is measured.
Load late: how late it began its calls, p99 in ms; what a call took is counted from when it began.

| load | protocol | subject | run | CPU µs/token | CPU µs/call | cores | wait | gap | delay | tokens/s | calls/s | RSS MB | errors | lost | load busy | load late |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|`;

export function runRow(result: Result, results: Results): string {
  const { load, wire, subject, repetition, run } = result;
  const times = (what: Times) =>
    [50, 95, 99]
      .map((percentile) =>
        subject === "engine"
          ? run.tally[what].percentile(percentile) / 1000
          : results.addedMs(result, what, percentile),
      )
      .map((ms) => ms.toFixed(1))
      .join(" / ");
  const cells = [
    load.title,
    wire,
    subject,
    repetition,
    run.cpuUsPerToken.toFixed(1),
    run.cpuUsPerCall.toFixed(0),
    run.cores.toFixed(2),
    times(load.wait),
    ...(load.wait === "callUs" ? ["", ""] : [times("gapUs"), times("delayUs")]),
    run.tokensPerSecond.toFixed(0),
    run.callsPerSecond.toFixed(0),
    run.rssMb.toFixed(0),
    run.tally.errors,
    run.tally.lost,
    `${(run.loadBusy * 100).toFixed(0)} %`,
    "streams" in load.loop ? (run.tally.lateUs.percentile(99) / 1000).toFixed(1) : "",
  ];
  return `| ${cells.join(" | ")} |`;
}

/** One line for each target: the product's median, the range of its runs, whether the target is met. */
export function targetLines(results: Results, coldStartsMs: readonly number[]): readonly string[] {
  const ofPlain = (load: Load, wire: Wire, target: number) => {
    const shares = results.cpuShares(load, wire.name, { subject: "plain", wire: wire.name });
    return line(`CPU as a share of plain, ${wire.name}, ${load.title}`, shares, target);
  };
  const ofNginx = (load: Load) => {
    const nginx = { subject: "nginx", wire: engineStream.name } as const;
    const shares = results.cpuShares(load, grpcStream.name, nginx);
    const name = `CPU as a multiple of nginx, ${grpcStream.name}, ${load.title}`;
    return shares.length === 0 ? [] : [line(name, shares, targets.streamOfNginx)];
  };
  const [load, wire] = [streams400, grpcStream.name];
  const cores = median(results.values(load, "product", wire, (run) => run.cores)).toFixed(2);
  const addedWait = (percentile: number, target: number) => {
    const values = results.addedWaitMs(load, "product", wire, percentile);
    return line(
      `added time to first token, p${percentile}, ms, ${load.title} (${cores} of a core used)`,
      values,
      target,
    );
  };
  const rss = results.values(streams50, "product", grpcStream.name, (run) => run.rssMb);
  return [
    ...[grpcStream, jsonStream, binaryStream, webStream, http1Stream].map((wire) =>
      ofPlain(streams50, wire, targets.streamOfPlain),
    ),
    ofPlain(streams400, grpcStream, targets.streamOfPlain),
    ofPlain(streams1000, grpcStream, targets.streamOfPlain),
    ...[streams50, streams400, streams1000].flatMap(ofNginx),
    ofPlain(saturated, grpcStream, targets.saturatedOfPlain),
    ...[jsonCall, grpcCall, binaryCall, webCall, http1Call].map((wire) =>
      ofPlain(calls10, wire, targets.callOfPlain),
    ),
    addedWait(50, targets.firstTokenMsP50),
    addedWait(99, targets.firstTokenMsP99),
    line(`RSS, MB, ${streams50.title}`, rss, targets.rssMb),
    line("cold start to the first answer, ms", coldStartsMs, targets.coldStartMs),
  ];
}

function line(name: string, values: readonly number[], target: number): string {
  const digits = target < 20 ? 2 : 0;
  const [middle, low, high] = [median(values), Math.min(...values), Math.max(...values)].map(
    (value) => value.toFixed(digits),
  );
  const verdict = median(values) <= target ? "met   " : "MISSED";
  return `${verdict} ${name}: ${middle} (${low} to ${high}), target ${target}`;
}
