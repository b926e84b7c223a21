import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Exposition, scrape } from "../support/exposition.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { answer } from "../support/fake-vllm-replies.ts";
import { type Program, startProgram } from "../support/program.ts";
import { ask, openRaw, post } from "../support/raw-http.ts";
import { findProgram } from "../support/third-party.ts";
import { chatBody } from "../support/unharmed.ts";

const erp = "key-of-the-erp-0123456789";
const extranet = "key-of-the-extranet-0123456789";
const rpm = 30;
const processes = 2;
const checker = findProgram("promtool");
// Processes that start take their time on a small machine.
vi.setConfig({ testTimeout: 60_000 });

let vllm: FakeVllm;
beforeEach(async () => {
  vllm = await startFakeVllm({ answer: { text: ["un ", "deux ", "trois"] } });
});
afterEach(async () => {
  await vllm[Symbol.asyncDispose]();
});

const start = (env: Readonly<Record<string, string>> = {}) =>
  startProgram({
    VLLM_URL: vllm.url.href,
    API_KEYS: `erp:${erp},extranet:${extranet}`,
    RATE_LIMIT_RPM: String(rpm),
    PROCESSES: String(processes),
    LOG_LEVEL: "debug",
    ...env,
  });

interface Running {
  readonly port: number;
  readonly admin: string;
  /** Of the processes that answer calls. */
  readonly pids: readonly number[];
}

async function untilRunning(program: Program): Promise<Running> {
  await program.printed(new RegExp(`(a process takes connections[\\s\\S]*){${processes}}`));
  const [, url = "", admin = ""] = await program.printed(/"url":"([^"]+)","admin":"([^"]+)"/);
  const ready = program.output().matchAll(/"pid":(\d+),"msg":"a process takes connections"/g);
  return { port: Number(new URL(url).port), admin, pids: [...ready].map(([, pid]) => Number(pid)) };
}

const chatWith = (key: string) =>
  post("/v1/chat", { "content-type": "application/json", "x-api-key": key }, chatBody);

/** Resolves with the first scrape that `isThere` finds right. */
async function scrapeUntil(
  what: string,
  admin: string,
  isThere: (seen: Exposition) => boolean,
): Promise<Exposition> {
  return vi.waitFor(
    async () => {
      const seen = await scrape(admin);
      expect(isThere(seen), what).toBe(true);
      return seen;
    },
    { timeout: 10_000, interval: 20 },
  );
}

describe("the metrics of several processes", () => {
  it("count every call exactly once, whatever became of it and wherever it ran", async () => {
    await using program = start();
    const { port, admin, pids } = await untilRunning(program);
    const statuses = async (key: string, calls: number) => {
      const answers = Array.from({ length: calls }, () => ask(port, chatWith(key)));
      return (await Promise.all(answers)).map((got) => got?.status);
    };

    // Each on a connection of its own, and connections are handed out in turn.
    expect(new Set(await statuses(erp, 20))).toEqual(new Set([200]));
    const flood = await statuses(extranet, rpm + 5);
    expect(flood.filter((status) => status === 429)).toHaveLength(5);
    expect(new Set(await statuses("a-wrong-key-0123456789", 3))).toEqual(new Set([401]));

    const { promise: released, resolve: release } = Promise.withResolvers<void>();
    const held = answer({ text: ["un ", "deux "] }, { after: 1, by: () => released });
    const answered = vllm.requests.length;
    vllm.reply(held, held, held);
    // One who leaves, and then one on each process, of which one dies.
    const leaving = await openRaw(port);
    leaving.send(chatWith(erp));
    await vllm.request(answered);
    leaving[Symbol.dispose]();
    await scrapeUntil("one has left", admin, ({ sum }) => sum("formdev_abort_seconds_count") === 1);
    const streams = [
      ask(port, chatWith(erp)),
      vllm.request(answered + 1).then(() => ask(port, chatWith(erp))),
    ];
    await vllm.request(answered + 2);
    process.kill(pids[0] ?? 0, "SIGKILL");
    await scrapeUntil("one is lost", admin, ({ sum }) => sum("formdev_lost_calls_total") === 1);
    release();
    await Promise.all(streams);

    const calls = 20 + (rpm + 5) + 3 + 1 + 2;
    const total = ({ sum }: Exposition) => sum("formdev_calls_total");
    const seen = await scrapeUntil("all have ended", admin, (now) => total(now) === calls);
    const { sum } = seen;
    const ended = (labels: Record<string, string>) => sum("formdev_calls_total", labels);
    expect(ended({ client: "erp", code: "ok" })).toBe(21);
    expect(ended({ client: "extranet", code: "ok" })).toBe(rpm);
    expect(ended({ client: "extranet", code: "resource_exhausted" })).toBe(5);
    expect(ended({ client: "", code: "unauthenticated" })).toBe(3);
    expect(ended({ client: "erp", code: "canceled" })).toBe(1);
    expect(ended({ client: "erp", code: "unavailable" })).toBe(1);
    expect(sum("formdev_refusals_total", { client: "extranet", reason: "rpm" })).toBe(5);
    expect(sum("formdev_refusals_total", { reason: "unauthenticated" })).toBe(3);
    expect(sum("formdev_lost_calls_total", { client: "erp" })).toBe(1);
    expect(program.output()).toMatch(/"client":"erp".*"msg":"a call was lost with its process"/);
    expect(sum("formdev_worker_restarts_total")).toBe(1);
    expect(sum("formdev_queue_wait_seconds_count", { class: "interactive" })).toBe(21 + rpm + 2);
    expect(sum("gen_ai_server_request_duration_seconds_count", { error_type: "" })).toBe(21 + rpm);

    // Nothing is in hand any more, and nothing is counted later.
    const later = await scrapeUntil(
      "the successor works",
      admin,
      (now) => now.sum("formdev_process_up") === processes + 1,
    );
    expect(total(later)).toBe(calls);
    for (const process of ["primary", "worker-0", "worker-1"]) {
      expect(later.sum("formdev_process_up", { process }), process).toBe(1);
    }
    for (const name of [
      "formdev_calls_in_flight",
      "formdev_engine_calls_running",
      "formdev_queue_length",
    ]) {
      expect(later.sum(name), name).toBe(0);
    }
  });

  it("have labels of bounded sets only, whatever strangers send", async () => {
    await using program = start();
    const { port, admin } = await untilRunning(program);
    for (let index = 0; index < 5; index += 1) {
      const headers = {
        "content-type": "application/json",
        "x-api-key": `stranger-${index}-0123456789`,
      };
      await ask(port, post(`/path-${index}`, headers, JSON.stringify({ model: `model-${index}` })));
    }
    const asked = { "content-type": "application/json", "x-api-key": erp };
    const body = { model: "stranger", messages: [{ role: "user", content: "?" }] };
    const unserved = await ask(port, post("/v1/chat", asked, JSON.stringify(body)));
    expect(unserved?.status).toBe(404);
    expect((await ask(port, chatWith(erp)))?.status).toBe(200);

    const { samples } = await scrapeUntil(
      "all have ended",
      admin,
      ({ sum }) => sum("formdev_calls_total") === 7,
    );
    const names = new Set(samples.flatMap(({ labels }) => Object.keys(labels)));
    names.delete("le");
    const valuesOf = (name: string) => new Set(samples.flatMap(({ labels }) => labels[name] ?? []));
    expect(Object.fromEntries([...names].map((name) => [name, valuesOf(name)]))).toEqual({
      rpc: new Set(["unknown", "formdev.chat.v1.ChatService/Chat"]),
      client: new Set(["", "erp"]),
      code: new Set(["unauthenticated", "not_found", "ok"]),
      reason: new Set(["unauthenticated"]),
      class: new Set(["interactive", "batch"]),
      engine: new Set([vllm.url.href]),
      process: new Set(["primary", "worker-0", "worker-1"]),
      statistic: new Set(["p50", "p99", "max"]),
      gen_ai_operation_name: new Set(["chat"]),
      gen_ai_request_model: new Set(["fake-model"]),
      gen_ai_token_type: new Set(["input", "output"]),
      error_type: new Set([""]),
    });
  });

  it("show a process that hangs as down, within a second, and count it again when it goes on", async () => {
    await using program = start();
    const { admin, pids } = await untilRunning(program);
    const [hanging = 0] = pids;
    process.kill(hanging, "SIGSTOP");
    const began = performance.now();
    const seen = await scrape(admin);
    expect(performance.now() - began).toBeLessThan(2500);
    expect(seen.sum("formdev_process_up")).toBe(processes);
    expect(seen.sum("formdev_process_up", { process: "primary" })).toBe(1);
    process.kill(hanging, "SIGCONT");
    await scrapeUntil(
      "it is back",
      admin,
      ({ sum }) => sum("formdev_process_up") === processes + 1,
    );
  });

  it("can be watched until the last call of a drain has ended", async () => {
    await using program = start();
    const { port, admin } = await untilRunning(program);
    const { promise: released, resolve: release } = Promise.withResolvers<void>();
    vllm.reply(answer({ text: ["un ", "deux "] }, { after: 1, by: () => released }));
    const last = ask(port, chatWith(erp));
    await vllm.request(0);
    program.process.kill("SIGTERM");
    await program.printed(/"msg":"draining/);
    expect((await scrape(admin)).sum("formdev_calls_in_flight")).toBe(1);
    release();
    expect((await last)?.status).toBe(200);
    expect(await program.ended).toBe(0);
    await expect(scrape(admin)).rejects.toThrow();
  });

  it.skipIf(checker === undefined)("are what Prometheus' own checker wants to read", async () => {
    await using program = start();
    const { port, admin } = await untilRunning(program);
    expect((await ask(port, chatWith(erp)))?.status).toBe(200);
    const { text } = await scrapeUntil(
      "it has ended",
      admin,
      ({ sum }) => sum("formdev_calls_total") === 1,
    );
    const checked = spawnSync(checker ?? "", ["check", "metrics"], { input: text });
    expect(String(checked.stderr)).toBe("");
    expect(checked.status).toBe(0);
  });
});

describe("the admin port", () => {
  it("asks for its key, and is not the port of the service", async () => {
    const key = "admin-key-0123456789";
    await using program = start({ ADMIN_KEY: key, PROCESSES: "1" });
    const [, url = "", admin = ""] = await program.printed(/"url":"([^"]+)","admin":"([^"]+)"/);
    expect((await fetch(`${admin}/metrics`)).status).toBe(401);
    expect(
      (await fetch(`${admin}/metrics`, { headers: { authorization: `Bearer ${erp}` } })).status,
    ).toBe(401);
    expect((await scrape(admin, key)).sum("formdev_process_up")).toBe(1);

    const headers = { "x-api-key": erp, authorization: `Bearer ${key}` };
    expect((await fetch(`${url}/metrics`, { headers })).status).toBe(404);
    expect((await fetch(`${url}/metrics`)).status).toBe(401);
    expect((await fetch(`${admin}/health`, { headers })).status).toBe(404);
  });

  it.each(["1", "2"])(
    "says which variable to change when its port is taken, with %s processes",
    async (count) => {
      const taken = createServer().listen(0, "127.0.0.1");
      await once(taken, "listening");
      const address = taken.address();
      const port = typeof address === "object" ? String(address?.port) : "";
      await using program = start({ ADMIN_PORT: port, PROCESSES: count });
      expect(await program.ended).toBe(1);
      expect(program.output()).toContain(
        `ADMIN_PORT ${port} on 127.0.0.1 cannot be listened on: EADDRINUSE`,
      );
      expect(program.output()).not.toContain("    at ");
      taken.close();
    },
  );
});
