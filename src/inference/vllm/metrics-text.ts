import type { EngineGauges } from "../../admission/engine-load.ts";
import { unreadable } from "./json.ts";

/**
 * Reads what vLLM's `/metrics` says about its load, in the text format of Prometheus. Several engines behind one server (data
 * parallelism) count together. Throws AppError `corrupt` where a number is missing or makes no sense.
 */
export function parseGauges(text: string): EngineGauges {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    const sample = line.startsWith("vllm:") ? parseSample(line) : undefined;
    if (sample !== undefined) samples.push(sample);
  }
  const valuesOf = (name: string) => {
    const values = samples.filter((sample) => sample.name === name).map(({ value }) => value);
    if (values.length === 0 || !values.every((value) => Number.isFinite(value) && value >= 0))
      throw unreadable(name, values);
    return values;
  };
  const kvTokens = samples.reduce((sum, sample) => sum + kvTokensOf(sample), 0);
  return {
    running: sumOf(valuesOf("num_requests_running")),
    waiting: sumOf(valuesOf("num_requests_waiting")),
    kvUsage: Math.min(1, Math.max(...valuesOf("kv_cache_usage_perc"))),
    preemptions: sumOf(valuesOf("num_preemptions_total")),
    ...(kvTokens > 0 && { kvTokens }),
  };
}

interface Sample {
  /** Without `vllm:`. */
  readonly name: string;
  readonly labels: string;
  readonly value: number;
}

/** `vllm:name{label="value",…} 1.0`, perhaps followed by a time. */
function parseSample(line: string): Sample | undefined {
  const { name = "", labels = "", value } = samplePattern.exec(line)?.groups ?? {};
  return value === undefined ? undefined : { name, labels, value: Number(value) };
}

const samplePattern = /^vllm:(?<name>\w+)(?:\{(?<labels>.*)\})? (?<value>[\d.eE+-]+)(?: \d+)?\r?$/;

/** Tokens that the KV cache holds: 0 where this sample does not say. Versions before 0.32 name blocks only. */
function kvTokensOf({ name, labels }: Sample): number {
  if (name !== "cache_config_info") return 0;
  const numberOf = (label: string) =>
    Number(new RegExp(`(?:^|,)${label}="(\\d{1,15})"`).exec(labels)?.[1] ?? 0);
  return numberOf("kv_cache_size_tokens") || numberOf("num_gpu_blocks") * numberOf("block_size");
}

function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}
