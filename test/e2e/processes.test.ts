import { once } from "node:events";
import { connect, createServer } from "node:net";
import { setImmediate } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer, type Script, wholeAnswer } from "../support/fake-vllm-replies.ts";
import { type Program, startProgram } from "../support/program.ts";
import { ask, head, openRaw, post } from "../support/raw-http.ts";
import { transportFor } from "../support/start-app.ts";
import { chatBody } from "../support/unharmed.ts";

const key = "key-of-the-erp-0123456789";
const processes = 4;
// Five processes that start take their time on a small machine.
vi.setConfig({ testTimeout: 60_000 });

let vllm: FakeVllm;
beforeEach(async () => {
  vllm = await startFakeVllm();
});
afterEach(async () => {
  await vllm[Symbol.asyncDispose]();
});

interface Running {
  readonly url: string;
  readonly port: number;
  /** Of the processes that answer calls, in the order of their start. */
  readonly pids: () => readonly number[];
}

const start = (env: Readonly<Record<string, string>> = {}) =>
  startProgram({
    VLLM_URL: vllm.url.href,
    API_KEYS: `erp:${key}`,
    PROCESSES: String(processes),
    LOG_LEVEL: "debug",
    ...env,
  });

/** Resolves when `count` processes have begun to take calls, replaced ones included. */
async function untilRunning(program: Program, count = processes): Promise<Running> {
  await program.printed(new RegExp(`(a process takes connections[\\s\\S]*){${count}}`));
  const [, url = ""] = await program.printed(/"url":"(http:[^"]+)"/);
  const pids = () =>
    [...program.output().matchAll(/"pid":(\d+),"msg":"a process takes connections"/g)].map(
      ([, pid]) => Number(pid),
    );
  return { url, port: Number(new URL(url).port), pids };
}

const chatWith = (presented: string) =>
  post("/v1/chat", { "content-type": "application/json", "x-api-key": presented }, chatBody);

/** Answers that stop in their middle until they are released. */
function held(): { readonly script: Script; readonly release: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const script = answer({ text: ["un ", "deux ", "trois"] }, { after: 2, by: () => promise });
  return { script, release: resolve };
}

/** A stream on a connection of its own. Resolves with its whole text. */
async function read(url: string): Promise<string> {
  const client = createClient(ChatService, transportFor("gRPC", url, key));
  let said = "";
  for await (const { part } of client.streamChat({
    messages: [{ role: "user", content: "Bonjour" }],
  })) {
    if (part.case === "textDelta") said += part.value.text;
  }
  return said;
}

/** As many streams as there are processes, one on each: connections are handed out in turn. */
async function streamOnEach(url: string): Promise<readonly Promise<string>[]> {
  const streams: Promise<string>[] = [];
  for (let index = 0; index < processes; index += 1) {
    const stream = read(url);
    stream.catch(() => undefined);
    streams.push(stream);
    await vllm.request(index);
  }
  return streams;
}

/** Resolves when nobody takes connections on this port. */
async function refused(port: number): Promise<void> {
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    try {
      await once(socket, "connect");
    } catch {
      return;
    } finally {
      socket.destroy();
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

const count = (program: Program, text: string) => program.output().split(text).length - 1;

describe("what holds for all processes together", () => {
  it("a thousand calls at once over many connections: as many pass as the rate allows, as many run as the engine takes", async () => {
    const concurrency = 3;
    await using program = start({
      RATE_LIMIT_RPM: "300",
      ENGINE_CONCURRENCY: String(concurrency),
      QUEUE_LENGTH: "1000",
    });
    const { port } = await untilRunning(program);
    let running = 0;
    let most = 0;
    const full = Promise.withResolvers<void>();
    const script: Script = async (reply, request) => {
      running += 1;
      most = Math.max(most, running);
      if (running === concurrency) full.resolve();
      await full.promise;
      await setImmediate();
      await wholeAnswer({}, () => {
        running -= 1;
        reply.end();
      })(reply, request);
    };
    vllm.route("POST /v1/chat/completions", script);

    const callsEach = 4;
    const statuses = await Promise.all(
      Array.from({ length: 250 }, async () => {
        using connection = await openRaw(port);
        for (let call = 0; call < callsEach; call += 1) connection.send(chatWith(key));
        await connection.answer(callsEach - 1);
        return connection.answers.map(({ status }) => status);
      }),
    );
    const of = (status: number) => statuses.flat().filter((each) => each === status).length;
    expect({ passed: of(200), refused: of(429) }).toEqual({ passed: 300, refused: 700 });
    expect(vllm.requests).toHaveLength(300);
    expect(most).toBe(concurrency);
  });

  it("an address that guesses keys is blocked, whichever process its guesses and its next call reach", async () => {
    await using program = start();
    const { port } = await untilRunning(program);
    for (let guess = 0; guess < 20; guess += 1) {
      expect((await ask(port, chatWith("a-wrong-key")))?.status).toBe(401);
    }
    for (let call = 0; call < processes; call += 1) {
      expect((await ask(port, chatWith(key)))?.status).toBe(429);
    }
    expect(vllm.requests).toHaveLength(0);
  });

  it("the key made for this run is printed once, and every process knows it", async () => {
    await using program = start({ API_KEYS: "" });
    const { port } = await untilRunning(program);
    const [, made = ""] = await program.printed(/X-API-Key: (formdev_[\w-]+)/);
    for (let call = 0; call < processes; call += 1) {
      expect((await ask(port, chatWith(made)))?.status).toBe(200);
    }
    expect(count(program, made)).toBe(1);
    expect(count(program, '"listening"')).toBe(1);
    const salts = vllm.requests.map(({ body }) => (body as { cache_salt: string }).cache_salt);
    expect(new Set(salts).size, "one cache of prefixes").toBe(1);
  });
});

describe("a process that is killed", () => {
  it("gives back its sequences, is replaced, and no other stream suffers", async () => {
    await using program = start({ ENGINE_CONCURRENCY: String(processes) });
    const { url, pids } = await untilRunning(program);
    const { script, release } = held();
    vllm.reply(...Array<Script>(processes).fill(script));
    const streams = await streamOnEach(url);
    // Two that wait for a sequence, on two processes: one of them at least outlives the other process.
    const waiting = Promise.allSettled([read(url), read(url)]);

    process.kill(pids()[1] ?? 0, "SIGKILL");
    await vllm.request(processes);
    await program.printed(/"reason":"it ended with SIGKILL","replaced_after_ms":0/);
    release();
    const ended = await Promise.allSettled(streams);
    const whole = ended.filter(
      (stream) => stream.status === "fulfilled" && stream.value === "un deux trois",
    );
    expect(whole).toHaveLength(processes - 1);
    expect((await waiting).some(({ status }) => status === "fulfilled")).toBe(true);

    const replaced = await untilRunning(program, processes + 1);
    expect(replaced.pids().filter(isAlive)).toHaveLength(processes);
    for (let call = 0; call < processes; call += 1) {
      expect((await ask(replaced.port, chatWith(key)))?.status).toBe(200);
    }
  });

  it("loses no connection that it has not taken", async () => {
    await using program = start();
    const { port, pids } = await untilRunning(program);
    const stuck = pids()[1] ?? 0;
    process.kill(stuck, "SIGSTOP");
    // The stuck one is handed one of them, and no more: the others are answered by the other processes.
    const live = head("GET", "/health/live", { connection: "close" });
    let answered = 0;
    const answers = Array.from({ length: 3 * processes }, async () => {
      const reply = await ask(port, live);
      answered += 1;
      return reply?.status;
    });
    await eventually("all are answered but one", () => answered === answers.length - 1);
    process.kill(stuck, "SIGKILL");
    expect(await Promise.all(answers)).toEqual(answers.map(() => 200));
  });

  it("the first one: the others stop, for want of the one that decides, when their calls are over", async () => {
    await using program = start();
    const { url, port } = await untilRunning(program);
    const { script, release } = held();
    vllm.reply(...Array<Script>(processes).fill(script));
    const streams = await streamOnEach(url);
    program.process.kill("SIGKILL");
    await once(program.process, "exit");
    await refused(port);
    release();
    expect(await Promise.all(streams)).toEqual(Array(processes).fill("un deux trois"));
    expect(await program.ended).toBe("SIGKILL");
  });
});

describe("the end", () => {
  it.each([
    ["SIGTERM to the first process", (program: Program) => program.process.kill("SIGTERM")],
    ["Ctrl-C, which reaches all of them", (program: Program) => program.signalAll("SIGINT")],
  ])("%s: running streams finish on every process, and it ends with 0", async (_what, signal) => {
    await using program = start();
    const { url, port } = await untilRunning(program);
    const { script, release } = held();
    vllm.reply(...Array<Script>(processes).fill(script));
    const streams = await streamOnEach(url);
    signal(program);
    await program.printed(/draining/);
    await refused(port);
    release();
    expect(await Promise.all(streams)).toEqual(Array(processes).fill("un deux trois"));
    expect(await program.ended).toBe(0);
    for (const once of ['"listening"', "draining", '"stopped"']) {
      expect(count(program, once), once).toBe(1);
    }
    expect(program.output()).not.toContain("a process ended");
  });

  it("comes at once for all of them at the second signal", async () => {
    await using program = start({ DRAIN_TIMEOUT_SECONDS: "600" });
    const { url } = await untilRunning(program);
    vllm.reply(...Array<Script>(processes).fill(() => undefined));
    const streams = await streamOnEach(url);
    program.process.kill("SIGTERM");
    await program.printed(/draining/);
    program.process.kill("SIGTERM");
    expect(await program.ended).toBe("SIGTERM");
    const ended = await Promise.allSettled(streams);
    expect(ended.map(({ status }) => status)).toEqual(Array(processes).fill("rejected"));
  });
});

describe("a start that fails says why once, and ends with 1", () => {
  it("for a wrong configuration", async () => {
    await using program = start({ RATE_LIMIT_RPM: "-1", API_KEYS: "erp" });
    expect(await program.ended).toBe(1);
    expect(count(program, "the configuration is not valid")).toBe(1);
    expect(count(program, "RATE_LIMIT_RPM")).toBe(1);
    expect(program.output()).not.toMatch(/\n {4}at /);
  });

  it("for a file that cannot be read", async () => {
    const missing = { TLS_CERT_FILE: "/does/not/exist", TLS_KEY_FILE: "/does/not/exist" };
    await using program = start(missing);
    expect(await program.ended).toBe(1);
    expect(count(program, "TLS_CERT_FILE cannot be read")).toBe(1);
  });

  it("for an address that is taken", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const address = other.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    await using program = start({ API_PORT: String(port) });
    expect(await program.ended).toBe(1);
    expect(count(program, "EADDRINUSE")).toBe(1);
    expect(program.output()).not.toMatch(/\n {4}at /);
    other.close();
  });

  it("for more processes than there can be", async () => {
    for (const env of [{ PROCESSES: "65" }, { VLLM_URL: "" }]) {
      await using program = start(env);
      expect(await program.ended).toBe(1);
      expect(count(program, "  - PROCESSES must be")).toBe(1);
    }
  });
});
