import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { parseEngineId, toEngineId } from "./engine-id.ts";
import { watchEngineNames } from "./engine-names.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** A watch over these URLs, and what it has told. */
function watch(urls: readonly string[], names: Record<string, readonly string[] | Error>) {
  const told: (readonly string[])[] = [];
  const asked: string[] = [];
  const watching = watchEngineNames({
    urls: urls.map((url) => new URL(url)),
    onChange: (engines) => told.push(engines),
    async resolve(name) {
      asked.push(name);
      const found = names[name] ?? [];
      if (found instanceof Error) throw found;
      return found;
    },
  });
  return { names, told, asked, watching, later: () => vi.advanceTimersByTimeAsync(2000) };
}

it("an engine's id says where to connect, and reads as an address", () => {
  const url = new URL("https://vllm.example:8000/base");
  expect(toEngineId(url)).toBe("https://vllm.example:8000/base");
  for (const address of [undefined, "10.0.0.3", "fd00::3", "fe80::1%eth0"])
    expect(parseEngineId(toEngineId(url, address))).toEqual({ url, address });
});

it("a name with one address is one engine, also when that changes", async () => {
  const { told, names, later } = watch(["http://vllm:8000"], { vllm: ["10.0.0.1"] });
  await later();
  names.vllm = ["10.0.0.2"];
  await later();
  expect(told).toEqual([]);
});

it("a name with several is as many, told only when they change, whatever their order", async () => {
  const { told, names, later } = watch(["http://vllm:8000"], { vllm: ["10.0.0.2", "10.0.0.1"] });
  await later();
  names.vllm = ["10.0.0.1", "10.0.0.2", "10.0.0.1"];
  await later();
  expect(told).toEqual([["http://vllm:8000/#10.0.0.1", "http://vllm:8000/#10.0.0.2"]]);
  names.vllm = ["10.0.0.2"];
  await later();
  expect(told.slice(1), "and keeps its id when it is the last").toEqual([
    ["http://vllm:8000/#10.0.0.2"],
  ]);
});

it("a name that cannot be resolved keeps what it had, beside others that can", async () => {
  const { told, names, later } = watch(["http://one", "http://two/base"], {
    one: ["10.0.0.1", "10.0.0.2"],
    two: ["10.0.1.1", "10.0.1.2"],
  });
  await later();
  names.one = new Error("SERVFAIL");
  names.two = [];
  await later();
  expect(told).toHaveLength(1);
  names.two = ["10.0.1.3"];
  await later();
  expect(told[1]).toEqual([
    "http://one/#10.0.0.1",
    "http://one/#10.0.0.2",
    "http://two/base#10.0.1.3",
  ]);
});

it("addresses are not resolved, and leave no timer behind", async () => {
  const { asked } = watch(["http://127.0.0.1:8000", "http://[::1]:8000"], {});
  expect(asked).toEqual([]);
  expect(vi.getTimerCount()).toBe(0);
});

it("ends with its disposal, also in the middle of a question", async () => {
  const { told, watching } = watch(["http://vllm"], { vllm: ["10.0.0.1", "10.0.0.2"] });
  watching[Symbol.dispose]();
  await vi.advanceTimersByTimeAsync(10_000);
  expect(told).toEqual([]);
  expect(vi.getTimerCount()).toBe(0);
});
