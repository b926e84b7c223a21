import { expect, it } from "vitest";
import { processCount } from "./process-count.ts";

const vllm = { VLLM_URL: "http://vllm:8000" };

it.each([
  ["one for each core", vllm, 2, 2],
  ["no more than four by default", vllm, 32, 4],
  ["as many as one says", { ...vllm, PROCESSES: "64" }, 2, 64],
  ["one without vLLM", {}, 8, 1],
  ["one when VLLM_URL is empty", { VLLM_URL: "", PROCESSES: "" }, 8, 1],
  ["the default when PROCESSES is empty", { ...vllm, PROCESSES: "" }, 3, 3],
  ["one, to say what is wrong", { ...vllm, PROCESSES: "65" }, 8, 1],
  ["one, to say what is wrong", { ...vllm, PROCESSES: "0" }, 8, 1],
  ["one, to say what is wrong", { ...vllm, PROCESSES: "many" }, 8, 1],
  ["one, to say what is wrong", { PROCESSES: "2" }, 8, 1],
])("%s", (_what, env, cores, count) => {
  expect(processCount(env, cores)).toBe(count);
});
