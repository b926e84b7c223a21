import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AppError } from "../../errors.ts";
import { parseGauges } from "./metrics-text.ts";

const file = new URL("../../../test/fixtures/vllm/metrics.json", import.meta.url);
const recorded: string = JSON.parse(readFileSync(file, "utf8")).response.body;

const sample = (name: string, value: string, labels = 'engine="0"') =>
  `vllm:${name}{${labels}} ${value}\n`;
const whole = (value = "1.0") =>
  ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"]
    .map((name) => sample(name, value))
    .join("");

describe("the gauges of an engine", () => {
  it("are read from what vLLM 0.32 says", () => {
    expect(parseGauges(recorded)).toEqual({
      running: 0,
      waiting: 0,
      kvUsage: 0,
      preemptions: 0,
      kvTokens: 46_592,
    });
  });

  it("count engines behind one server together, the fullest cache for all", () => {
    const text =
      sample("num_requests_running", "3.0") +
      sample("num_requests_running", "4.0", 'engine="1"') +
      sample("num_requests_waiting", "1e1") +
      sample("num_requests_waiting_by_reason", "99") +
      sample("kv_cache_usage_perc", "0.25") +
      sample("kv_cache_usage_perc", "0.5", 'engine="1",model_name="a } 7 b"') +
      `vllm:num_preemptions_total 5 1700000000000\r\n` +
      sample("cache_config_info", "1.0", 'block_size="16",num_gpu_blocks="100"') +
      sample("cache_config_info", "1.0", 'engine="1",block_size="16",num_gpu_blocks="100"');
    expect(parseGauges(text)).toEqual({
      running: 7,
      waiting: 10,
      kvUsage: 0.5,
      preemptions: 5,
      kvTokens: 3200,
    });
  });

  it("say nothing of tokens where the server does not", () => {
    for (const labels of ["", 'num_gpu_blocks="None",block_size="16"'])
      expect(parseGauges(whole() + sample("cache_config_info", "1.0", labels))).not.toHaveProperty(
        "kvTokens",
      );
  });

  it.each(["NaN", "-1", "+Inf", "1e999", "--", ""])("are corrupt where one is %j", (value) => {
    expect(() => parseGauges(whole(value))).toThrow(AppError);
  });

  it("are numbers or an error, whatever the text", () => {
    const piece = fc.oneof(
      fc.constantFrom(...recorded.split(/(?<=\n)|(?=[{} ,"])/)),
      fc.string({ unit: "binary" }),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 60 }), fc.boolean(), (pieces, isWhole) => {
        try {
          const gauges = parseGauges((isWhole ? whole() : "") + pieces.join(""));
          for (const value of Object.values(gauges)) expect(value).toBeGreaterThanOrEqual(0);
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("take no time to speak of in a megabyte that is made to", () => {
    const startedAt = process.cpuUsage();
    for (const part of ["}", "{", "vllm:a{} ", '"', "vllm:"]) {
      const line = `vllm:a{${part.repeat(1_000_000 / part.length)} x`;
      expect(() => parseGauges(line)).toThrow(AppError);
    }
    expect(process.cpuUsage(startedAt).user).toBeLessThan(5_000_000);
  });
});
