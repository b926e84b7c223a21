import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createExportQueue, type ExportFailure } from "./export-queue.ts";

const away: ExportFailure = { reason: "ECONNREFUSED", isTemporary: true };
const refused: ExportFailure = { reason: "HTTP 400", isTemporary: false };

/** A collector that answers as `answer` says, and the log. */
function setUp() {
  const batches: number[][] = [];
  const lines: string[] = [];
  const state: { answer: (signal: AbortSignal) => Promise<ExportFailure | undefined> } = {
    answer: async () => undefined,
  };
  const say = (level: string) => (fields: unknown, text?: string) => {
    lines.push(
      `${level} ${typeof fields === "string" ? fields : `${text} ${JSON.stringify(fields)}`}`,
    );
  };
  const queue = createExportQueue<number>({
    send(batch, signal) {
      batches.push([...batch]);
      return state.answer(signal);
    },
    log: { info: say("info"), warn: say("warn") },
  });
  const addAll = (from: number, to: number) => {
    for (let item = from; item < to; item += 1) queue.add(item);
  };
  return { queue, batches, lines, state, addAll };
}

const later = (ms: number) => vi.advanceTimersByTimeAsync(ms);
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe("createExportQueue", () => {
  it("sends what has gathered after five seconds, and nothing when there is nothing", async () => {
    const { batches, addAll } = setUp();
    addAll(0, 3);
    await later(4999);
    expect(batches).toEqual([]);
    await later(1);
    expect(batches).toEqual([[0, 1, 2]]);
    await later(60_000);
    expect(batches).toHaveLength(1);
  });

  it("sends a full batch at once, one at a time and in order", async () => {
    const { batches, state, addAll } = setUp();
    const first = Promise.withResolvers<undefined>();
    state.answer = () => first.promise;
    addAll(0, 300);
    await later(0);
    expect(batches).toEqual([range(0, 128)]);
    first.resolve(undefined);
    await later(5000);
    expect(batches.slice(1)).toEqual([range(128, 256), range(256, 300)]);
  });

  it("tries every five seconds during an outage, and loses nothing while it has room", async () => {
    const { batches, lines, state, addAll } = setUp();
    state.answer = async () => away;
    addAll(0, 1024);
    await later(14_999);
    expect(batches).toHaveLength(3);
    state.answer = async () => undefined;
    await later(5000);
    expect(batches.slice(3).flat()).toEqual(range(0, 1024));
    expect(lines).toEqual([
      'warn no traces can be sent to the collector {"reason":"ECONNREFUSED"}',
      'info traces are sent to the collector again {"lost":0}',
    ]);
  });

  it("drops the oldest beyond 1,024, and says so once, with their number at the end", async () => {
    const { batches, lines, state, addAll } = setUp();
    state.answer = async () => away;
    addAll(0, 2000);
    await later(20_000);
    addAll(2000, 2100);
    state.answer = async () => undefined;
    batches.length = 0;
    await later(5000);
    await later(5000);
    expect(batches.flat()).toEqual(range(2100 - 1024, 2100));
    expect(lines).toEqual([
      "warn traces are lost: the collector does not take them",
      'warn no traces can be sent to the collector {"reason":"ECONNREFUSED"}',
      'info traces are sent to the collector again {"lost":1076}',
    ]);
  });

  it("does not send again what the collector refuses for good", async () => {
    const { batches, lines, state, addAll } = setUp();
    state.answer = async () => refused;
    addAll(0, 2);
    await later(5000);
    state.answer = async () => undefined;
    addAll(2, 3);
    await later(5000);
    expect(batches).toEqual([[0, 1], [2]]);
    expect(lines.at(-1)).toBe('info traces are sent to the collector again {"lost":2}');
  });

  it("sends everything that waits when it is disposed", async () => {
    const { queue, batches, lines, addAll } = setUp();
    addAll(0, 700);
    await queue[Symbol.asyncDispose]();
    expect(batches.flat()).toEqual(range(0, 700));
    expect(lines).toEqual([]);
  });

  it("waits for the batch that is on its way when it is disposed", async () => {
    const { queue, batches, state, addAll } = setUp();
    const first = Promise.withResolvers<undefined>();
    state.answer = () => first.promise;
    addAll(0, 128);
    let isDone = false;
    const disposed = queue[Symbol.asyncDispose]().then(() => {
      isDone = true;
    });
    await later(1000);
    expect({ isDone, batches: batches.length }).toEqual({ isDone: false, batches: 1 });
    first.resolve(undefined);
    await disposed;
    expect(batches).toHaveLength(1);
  });

  it("waits two seconds for the last batches, and says what was lost", async () => {
    const { queue, batches, lines, state, addAll } = setUp();
    state.answer = (signal) =>
      new Promise((resolve) => signal.addEventListener("abort", () => resolve(away)));
    addAll(0, 300);
    let isDone = false;
    const disposed = queue[Symbol.asyncDispose]().then(() => {
      isDone = true;
    });
    await later(1999);
    expect(isDone).toBe(false);
    state.answer = async () => away;
    await later(1);
    await disposed;
    expect(batches.length).toBeLessThanOrEqual(2);
    expect(lines.at(-1)).toBe('warn calls that are in no trace {"lost":300}');
    expect(vi.getTimerCount()).toBe(0);
  });
});
