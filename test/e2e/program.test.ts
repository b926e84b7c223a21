import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import {
  Health,
  HealthCheckResponse_ServingStatus as Status,
} from "../../gen/grpc/health/v1/health_pb.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script } from "../support/fake-vllm-replies.ts";
import { startProgram } from "../support/program.ts";
import { protocols, transportFor } from "../support/start-app.ts";
import { writeTinyGguf } from "../support/tiny-gguf.ts";

const key = "key-of-the-erp-0123456789";
const hello = { messages: [{ role: "user", content: "Bonjour" }] };
const listening = /"url":"(http:[^"]+)"/;

let vllm: FakeVllm;
beforeEach(async () => {
  vllm = await startFakeVllm();
});
afterEach(async () => {
  await vllm[Symbol.asyncDispose]();
});

const start = (env: Record<string, string> = {}) =>
  startProgram({ VLLM_URL: vllm.url.href, API_KEYS: `erp:${key}`, ...env });

describe("the start", () => {
  it("makes one key when there is none, prints it once with a call to paste, and that call is answered", async () => {
    await using program = start({ API_KEYS: "" });
    const [, url = ""] = await program.printed(/curl -s (http:\S+)\/v1\/chat/);
    const [, made = ""] = await program.printed(/X-API-Key: (formdev_[\w-]+)/);
    expect(new URL(url).hostname).toBe("127.0.0.1");
    const client = createClient(ChatService, transportFor("Connect JSON", url, made));
    expect((await client.chat(hello)).message?.content).not.toBe("");
    expect(program.output().split(made)).toHaveLength(2);
  });

  it("leaves what it has compiled in the user's cache folder, for the next start of all its processes", async () => {
    const home = await mkdtemp(join(tmpdir(), "formdev-home-"));
    const env = { HOME: home, NODE_COMPILE_CACHE: "", PROCESSES: "2" };
    for (const run of ["the first", "the next"]) {
      await using program = start(env);
      await program.printed(listening);
      program.process.kill("SIGTERM");
      expect(await program.ended, run).toBe(0);
    }
    const [version = ""] = await readdir(join(home, ".cache/formdev/compiled"));
    const files = await readdir(join(home, ".cache/formdev/compiled", version));
    expect(files.length).toBeGreaterThan(100);
    await rm(home, { recursive: true });
  });

  it("starts also where it cannot leave anything", async () => {
    await using program = start({ HOME: "/dev/null", NODE_COMPILE_CACHE: "" });
    await program.printed(listening);
  });

  it("says everything that is wrong with the configuration at once, without a secret, and fails", async () => {
    await using program = start({
      API_KEYS: "erp:secret canary",
      API_PORT: "x",
      RATE_LIMIT_RPM: "-1",
    });
    expect(await program.ended).toBe(1);
    for (const name of ["API_KEYS", "API_PORT", "RATE_LIMIT_RPM"])
      expect(program.output()).toContain(name);
    expect(program.output()).not.toContain("canary");
  });

  it("says at once what is wrong with the files and addresses it is given, before it downloads anything", async () => {
    await using program = start({
      VLLM_URL: "",
      API_KEYS: "a:the-same-key,b:the-same-key",
      API_KEYS_FILE: "/does/not/exist",
      TLS_CERT_FILE: import.meta.filename,
      TLS_KEY_FILE: import.meta.filename,
      REDIS_URL: "redis://",
    });
    expect(await program.ended).toBe(1);
    for (const name of ["API_KEYS ", "API_KEYS_FILE", "TLS_CERT_FILE", "REDIS_URL"]) {
      expect(program.output()).toContain(`  - ${name}`);
    }
    expect(program.output()).not.toMatch(/the-same-key|\n {4}at |Downloading/);
  });

  it("names the three ways out when there is neither an engine nor a model to be had", async () => {
    const cache = await mkdtemp(join(tmpdir(), "formdev-cache-"));
    await using program = start({
      VLLM_URL: "",
      MODEL_CACHE: cache,
      HF_ENDPOINT: "http://127.0.0.1:9",
      PATH: "",
    });
    expect(await program.ended).toBe(1);
    for (const way of ["VLLM_URL", "MODEL_PATH", "pip"]) expect(program.output()).toContain(way);
    await rm(cache, { recursive: true });
  });

  it("serves a model file of one's own in the process", async () => {
    const folder = await mkdtemp(join(tmpdir(), "formdev-model-"));
    const path = join(folder, "tiny.gguf");
    await writeTinyGguf(path);
    await using program = start({ VLLM_URL: "", MODEL_PATH: path });
    const [, url = ""] = await program.printed(listening);
    const client = createClient(ChatService, transportFor("gRPC", url, key));
    const response = await client.chat({ ...hello, maxTokens: 5, seed: 1 });
    expect(response.model).toBe("tiny");
    expect(response.usage?.completionTokens).toBe(5);
    await rm(folder, { recursive: true });
  });
});

describe.each(protocols)("over %s, SIGTERM", (protocol) => {
  /** An answer that stops in its middle until it is released. */
  function held(): { script: Script; release: () => void } {
    const { promise, resolve } = Promise.withResolvers<void>();
    const script = answer({ text: ["un ", "deux ", "trois"] }, { after: 2, by: () => promise });
    return { script, release: resolve };
  }

  it("lets a running stream finish, takes no new call, and ends with 0", async () => {
    await using program = start();
    const [, url = ""] = await program.printed(listening);
    const { script, release } = held();
    vllm.reply(script);
    const client = createClient(ChatService, transportFor(protocol, url, key));
    let said = "";
    const reading = (async () => {
      for await (const { part } of client.streamChat(hello)) {
        if (part.case === "textDelta") said += part.value.text;
      }
    })();
    await vllm.request(0);
    program.process.kill("SIGTERM");
    await program.printed(/draining/);
    await expect(
      createClient(ChatService, transportFor(protocol, url, key)).chat(hello),
    ).rejects.toThrow();
    release();
    await reading;
    expect(said).toBe("un deux trois");
    expect(await program.ended).toBe(0);
  });

  it("ends what goes on beyond the limit with UNAVAILABLE, and stops the engine", async () => {
    await using program = start({ DRAIN_TIMEOUT_SECONDS: "0" });
    const [, url = ""] = await program.printed(listening);
    vllm.reply(held().script);
    const client = createClient(ChatService, transportFor(protocol, url, key));
    const reading = Array.fromAsync(client.streamChat(hello)).catch((reason: unknown) =>
      ConnectError.from(reason),
    );
    const request = await vllm.request(0);
    program.process.kill("SIGTERM");
    expect(await reading).toMatchObject({
      code: Code.Unavailable,
      rawMessage: "the service is stopping: try again",
    });
    expect(await request.closed).toBe("aborted");
    expect(await program.ended).toBe(0);
  });
});

it("ends at once at the second signal", async () => {
  await using program = start({ DRAIN_TIMEOUT_SECONDS: "600" });
  const [, url = ""] = await program.printed(listening);
  vllm.reply(() => undefined);
  const call = createClient(ChatService, transportFor("gRPC", url, key))
    .chat(hello)
    .catch(() => "cut");
  await vllm.request(0);
  program.process.kill("SIGTERM");
  await program.printed(/draining/);
  program.process.kill("SIGTERM");
  expect(await program.ended).toBe("SIGTERM");
  expect(await call).toBe("cut");
});

it("tells a health watcher that it drains, and does not wait for him", async () => {
  await using program = start({ DRAIN_TIMEOUT_SECONDS: "600" });
  const [, url = ""] = await program.printed(listening);
  const seen: Status[] = [];
  const watching = (async () => {
    for await (const { status } of createClient(Health, transportFor("gRPC", url, key)).watch({})) {
      seen.push(status);
      if (seen.length === 1) program.process.kill("SIGTERM");
    }
  })();
  await expect(watching).rejects.toMatchObject({ code: Code.Unavailable });
  expect(seen).toEqual([Status.SERVING, Status.NOT_SERVING]);
  expect(await program.ended).toBe(0);
});
