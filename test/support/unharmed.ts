import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach, expect } from "vitest";
import { type FakeVllm, startFakeVllm } from "./fake-vllm.ts";
import { erpKey, extranetKey, startApp, type TestApp } from "./start-app.ts";

/** A text that hostile requests carry as their prompt: it must not appear in any log. */
export const canary = "canary-9e1f";

export const chatPath = "/formdev.chat.v1.ChatService/Chat";
export const streamPath = "/formdev.chat.v1.ChatService/StreamChat";
export const chatBody = JSON.stringify({ messages: [{ role: "user", content: canary }] });

const errorLevel = 50;

/** What must hold after every hostile request: the next caller is served, and the log has neither errors nor secrets. */
export async function expectUnharmed(app: TestApp): Promise<void> {
  const response = await fetch(`${app.url}/v1/chat`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": erpKey, connection: "close" },
    body: chatBody,
  });
  expect(await response.json()).toMatchObject({ finishReason: "FINISH_REASON_STOP" });
  expectQuietLog(app);
}

/** Gives each test of a file an app with its engine, through `use`, and checks after it that the app is unharmed. */
export function withUnharmedApp(
  env: Readonly<Record<string, string>>,
  use: (vllm: FakeVllm, app: TestApp) => void,
): void {
  let vllm: FakeVllm;
  let app: TestApp;
  beforeEach(async () => {
    vllm = await startFakeVllm();
    app = await startApp({ VLLM_URL: vllm.url.href, ...env });
    use(vllm, app);
  });
  afterEach(async () => {
    try {
      await expectUnharmed(app);
    } finally {
      await app[Symbol.asyncDispose]();
      await vllm[Symbol.asyncDispose]();
    }
  });
}

/** The log has no error, no key and no prompt. */
export function expectQuietLog(app: TestApp): void {
  expect(app.logs.filter(({ level }) => Number(level) >= errorLevel)).toEqual([]);
  const log = JSON.stringify(app.logs);
  for (const secret of [erpKey, extranetKey, canary]) expect(log).not.toContain(secret);
}

/** Bytes of the JavaScript heap that are in use, once garbage is collected. */
export function heapBytes(): number {
  setFlagsFromString("--expose-gc");
  runInNewContext("gc")();
  return process.memoryUsage().heapUsed;
}

export interface MemoryWatch extends Disposable {
  /** The most that this process's buffers have taken at once, in bytes beyond those at the start. */
  readonly peakBufferBytes: number;
}

/** Watches the memory outside of the JavaScript heap: where message bodies and decompressed data are. */
export function watchMemory(): MemoryWatch {
  const start = process.memoryUsage().arrayBuffers;
  let peakBufferBytes = 0;
  const look = () => {
    peakBufferBytes = Math.max(peakBufferBytes, process.memoryUsage().arrayBuffers - start);
  };
  const timer = setInterval(look, 2);
  return {
    get peakBufferBytes() {
      look();
      return peakBufferBytes;
    },
    [Symbol.dispose]: () => clearInterval(timer),
  };
}
