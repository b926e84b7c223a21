/**
 * Whether something has gone grossly wrong with the gateway's cost (`npm run bench:quick`, less than a minute): the gateway
 * beside the plain handler, in short runs whose ratios a busy machine moves little. Fails at twice the ratio that it has
 * had, and at any error or lost token.
 */
import { calls10, type Load, saturated, streams50 } from "./loads.ts";
import { measure, plain, product } from "./measure.ts";
import { grpcStream, jsonCall, jsonStream, type Wire } from "./wires.ts";

const measuredMs = 2500;

/** With the ratios of CPU time, per token, to the plain handler's that were measured when this was written. */
const cases: readonly [wire: Wire, load: Load, usual: number][] = [
  [grpcStream, streams50, 0.35],
  [jsonStream, streams50, 0.35],
  [grpcStream, saturated, 0.2],
  [jsonCall, calls10, 0.4],
];

const failures: string[] = [];
for (const [wire, { title: loadTitle, loop, warmUpMs }, usual] of cases) {
  const title = `${wire.name}, ${loadTitle}`;
  const baseline = await measure(plain, wire, loop, { warmUpMs, measuredMs });
  const run = await measure(product, wire, loop, { warmUpMs, measuredMs });
  const ratio = run.cpuUsPerToken / baseline.cpuUsPerToken;
  const { errors, lost, problem } = run.tally;
  process.stdout.write(
    `${title}: ${run.cpuUsPerToken.toFixed(1)} µs/token, plain handler ${baseline.cpuUsPerToken.toFixed(1)}; ratio ${ratio.toFixed(2)}, usually ${usual}; ` +
      `${run.tokensPerSecond.toFixed(0)} tokens/s and ${baseline.tokensPerSecond.toFixed(0)}; errors ${errors}, lost ${lost}\n`,
  );
  if (errors + lost > 0 || run.tally.tokens === 0)
    failures.push(`${title}: ${errors} errors, ${lost} answers with lost tokens: ${problem}`);
  // Written so that a ratio that is no number fails too.
  if (!(ratio <= 2 * usual))
    failures.push(`${title}: ratio ${ratio.toFixed(2)}, more than twice ${usual}`);
}
for (const failure of failures) process.stdout.write(`FAILED ${failure}\n`);
process.exitCode = failures.length === 0 ? 0 : 1;
