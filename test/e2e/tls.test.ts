import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { type AddressInfo, connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type ConnectionOptions,
  connect,
  createServer,
  getCACertificates,
  setDefaultCACertificates,
  type TLSSocket,
} from "node:tls";
import { Code, createClient, type Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { eventually } from "../support/eventually.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { type Chat, chatEvents } from "../support/fake-vllm-answer.ts";
import { chat, chatRequest, engineFor } from "../support/fake-vllm-chats.ts";
import { startProgram } from "../support/program.ts";
import { ask, head, openRaw } from "../support/raw-http.ts";
import { preface } from "../support/raw-http2.ts";
import { erpKey, startApp, type TestApp } from "../support/start-app.ts";
import { findProgram, run } from "../support/third-party.ts";
import { canary, expectQuietLog } from "../support/unharmed.ts";

const openssl = findProgram("openssl");

describe.skipIf(openssl === undefined)("the port under TLS", () => {
  let folder: string;
  let certificate: { readonly TLS_CERT_FILE: string; readonly TLS_KEY_FILE: string };
  let ca: string;
  let vllm: FakeVllm;
  let app: TestApp;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "formdev-tls-"));
    certificate = {
      TLS_CERT_FILE: join(folder, "certificate.pem"),
      TLS_KEY_FILE: join(folder, "key.pem"),
    };
    const made = await run(
      openssl ?? "",
      ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
      ...["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
      ...["-days", "1", "-keyout", certificate.TLS_KEY_FILE, "-out", certificate.TLS_CERT_FILE],
    );
    if (made.exitCode !== 0) throw new Error(made.stderr);
    ca = await readFile(certificate.TLS_CERT_FILE, "utf8");
  });

  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  beforeEach(async () => {
    vllm = await startFakeVllm();
    app = await startApp({ VLLM_URL: vllm.url.href, ...certificate });
  });

  afterEach(async () => {
    try {
      // Whatever was tried, the next caller is served.
      await expectAnswer(createGrpcTransport(clientOptions()));
      expectQuietLog(app);
    } finally {
      await app[Symbol.asyncDispose]();
      await vllm[Symbol.asyncDispose]();
    }
  });

  const clientOptions = () => ({
    baseUrl: app.url,
    nodeOptions: { ca },
  });

  async function expectAnswer(transport: Transport): Promise<void> {
    const client = createClient(ChatService, transport);
    const hello = { messages: [{ role: "user", content: canary }] };
    const options = { headers: { "x-api-key": erpKey } };
    expect((await client.chat(hello, options)).message?.content).not.toBe("");
    const parts = await Array.fromAsync(client.streamChat(hello, options));
    expect(parts.at(-1)?.part.case).toBe("end");
  }

  async function handshake(options: ConnectionOptions): Promise<TLSSocket> {
    const socket = connect({ host: "127.0.0.1", port: app.address.port, ca, ...options });
    await once(socket, "secureConnect");
    return socket;
  }

  it("says so in its address", () => {
    expect(app.url).toMatch(/^https:/);
  });

  it.each([
    ["gRPC", () => createGrpcTransport(clientOptions())],
    [
      "gRPC-Web on HTTP/1.1",
      () => createGrpcWebTransport({ ...clientOptions(), httpVersion: "1.1" }),
    ],
    ["gRPC-Web on HTTP/2", () => createGrpcWebTransport({ ...clientOptions(), httpVersion: "2" })],
    [
      "Connect on HTTP/1.1",
      () => createConnectTransport({ ...clientOptions(), httpVersion: "1.1" }),
    ],
    ["Connect on HTTP/2", () => createConnectTransport({ ...clientOptions(), httpVersion: "2" })],
  ] as const)("serves %s", async (_protocol, transport) => {
    await expectAnswer(transport());
  });

  it.each([
    ["HTTP/2 when a client knows it", ["h2", "http/1.1"], "h2"],
    ["HTTP/2 whatever a client prefers", ["http/1.1", "h2"], "h2"],
    ["HTTP/1.1 when a client knows nothing else", ["http/1.1"], "http/1.1"],
    ["HTTP/1.1 when a client does not negotiate", undefined, false],
  ] as const)("agrees on %s", async (_what, offered, agreed) => {
    using socket = closing(await handshake(offered ? { ALPNProtocols: [...offered] } : {}));
    expect(socket.alpnProtocol).toBe(agreed);
    if (agreed === "h2") return;
    socket.write(head("GET", "/health"));
    const [bytes] = await once(socket, "data");
    expect(String(bytes)).toMatch(/^HTTP\/1\.1 200 /);
  });

  it("refuses a client that offers only protocols it does not speak", async () => {
    await expect(handshake({ ALPNProtocols: ["spdy/3"] })).rejects.toMatchObject({
      code: "ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
    });
  });

  it.each(["TLSv1", "TLSv1.1"] as const)("refuses %s", async (version) => {
    // Clients of today would not even offer it.
    const old = { minVersion: version, maxVersion: version, ciphers: "DEFAULT@SECLEVEL=0" };
    await expect(handshake(old)).rejects.toMatchObject({
      code: "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION",
    });
  });

  it.each(["TLSv1.2", "TLSv1.3"] as const)("takes %s", async (version) => {
    using socket = closing(await handshake({ minVersion: version, maxVersion: version }));
    expect(socket.getProtocol()).toBe(version);
  });

  it.each([
    ["HTTP/1.1", head("GET", "/health")],
    ["HTTP/2", preface],
    ["bytes that mean nothing", Buffer.alloc(1000, 0xff)],
    ["a TLS record that is broken", Buffer.from("160301000501000001ff", "hex")],
  ])("answers no %s in the clear", async (_what, bytes) => {
    using connection = await openRaw(app.address.port);
    connection.send(bytes);
    await connection.closed;
    expect(connection.received.includes("HTTP/1.1 2")).toBe(false);
    expect(await ask(app.address.port, bytes)).toBeUndefined();
  });

  it("closes who does not finish a handshake or a head within ten seconds", async () => {
    const start = performance.now();
    using silent = await openRaw(app.address.port);
    using partial = await openRaw(app.address.port);
    partial.send(Buffer.from("16030100a5", "hex"));
    using slow = closing(await handshake({ ALPNProtocols: ["http/1.1"] }));
    slow.resume().write("GET /health HTTP/1.1\r\nHost: local");
    await Promise.all([silent.closed, partial.closed, once(slow, "close")]);
    expect(performance.now() - start).toBeGreaterThan(8000);
    expect(performance.now() - start).toBeLessThan(15_000);
  }, 20_000);

  it("is served by several processes, with the same limits of time", async () => {
    const env = { VLLM_URL: vllm.url.href, API_KEYS: `erp:${erpKey}`, PROCESSES: "2" };
    await using program = startProgram({ ...env, ...certificate, LOG_LEVEL: "debug" });
    const [, baseUrl = ""] = await program.printed(/"url":"(https:[^"]+)"/);
    await program.printed(/(a process takes connections[\s\S]*){2}/);
    const options = { baseUrl, nodeOptions: { ca } };
    await expectAnswer(createGrpcTransport(options));
    await expectAnswer(createConnectTransport({ ...options, httpVersion: "1.1" }));
    const start = performance.now();
    const { port } = new URL(baseUrl);
    const slow = connect({ host: "127.0.0.1", port: Number(port), ca });
    using _ = closing(slow);
    await once(slow, "secureConnect");
    slow.resume().write("GET /health HTTP/1.1\r\nHost: local");
    await once(slow, "close");
    expect(performance.now() - start).toBeGreaterThan(8000);
  }, 30_000);

  /** The fake vLLM, under TLS. */
  async function startTlsEngine() {
    const cert = await readFile(certificate.TLS_CERT_FILE);
    const key = await readFile(certificate.TLS_KEY_FILE);
    const server = createServer({ cert, key }, (socket) => {
      const behind = connectTcp(Number(vllm.url.port), vllm.url.hostname);
      socket.on("error", () => behind.destroy()).pipe(behind);
      behind.on("error", () => socket.destroy()).pipe(socket);
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as AddressInfo;
    return {
      url: `https://localhost:${port}`,
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  }

  it("reaches an engine under TLS whose certificate it trusts, and no other", async () => {
    await using engine = await startTlsEngine();
    const env = {
      VLLM_URL: engine.url,
      API_KEYS: `erp:${erpKey}`,
      PROCESSES: "1",
    };
    const trusted = { NODE_EXTRA_CA_CERTS: certificate.TLS_CERT_FILE };

    await using trusting = startProgram({ ...env, ...trusted });
    const [, baseUrl = ""] = await trusting.printed(/"url":"(http:[^"]+)"/);
    await expectAnswer(createGrpcTransport({ baseUrl }));

    await using wary = startProgram(env);
    const [, waryUrl = ""] = await wary.printed(/"url":"(http:[^"]+)"/);
    const answer = expectAnswer(createGrpcTransport({ baseUrl: waryUrl }));
    await expect(answer).rejects.toMatchObject({ code: Code.Unavailable });
    for (const each of [trusting, wary]) each.signalAll("SIGKILL");
    await Promise.all([trusting.ended, wary.ended]);
  }, 20_000);

  it.each([
    ["takes everything slowly", false],
    ["leaves", true],
  ])("has its connection to an engine under TLS back when a caller %s", async (_, leaves) => {
    const known = getCACertificates("default");
    setDefaultCACertificates([...known, ca]);
    await using tls = await startTlsEngine();
    const options = { connections: 1, timeouts: { firstByteMs: 2000 } };
    await using engine = engineFor(vllm, { url: new URL(tls.url), ...options });
    const taken = Promise.withResolvers<void>();
    // More than one record of TLS, and more than may wait for a reader: a record that has arrived is told after a pause too.
    const text = Array<string>(60).fill("many words that nobody takes ".repeat(4));
    vllm.reply(async (reply, request) => {
      reply.head();
      const events = [...chatEvents(request.body as Chat, { text })].map(
        (event) => `data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`,
      );
      await reply.bytes(events.slice(0, 2).join(""));
      await taken.promise;
      reply.socket.cork();
      await reply.bytes(events.slice(2).join(""));
      reply.end();
      reply.socket.uncork();
    });
    const caller = new AbortController();
    const stream = engine.chat(chatRequest({ maxTokens: 1000 }), caller.signal);
    const parts = stream[Symbol.asyncIterator]();
    await parts.next();
    taken.resolve();
    await eventually("all is read", () => stream.usage.completionTokens >= text.length);
    if (leaves) caller.abort();
    if (leaves) await parts.return?.();
    else while (!(await parts.next()).done);
    expect((await chat(engine)).error).toBeUndefined();
    setDefaultCACertificates(known);
  });

  it("does not start with a certificate that cannot be used", async () => {
    const missing = { ...certificate, TLS_CERT_FILE: join(folder, "missing.pem") };
    const swapped = { ...certificate, TLS_CERT_FILE: certificate.TLS_KEY_FILE };
    for (const files of [missing, swapped]) {
      await expect(startApp({ VLLM_URL: vllm.url.href, ...files })).rejects.toThrow();
    }
  });
});

function closing(socket: TLSSocket): TLSSocket & Disposable {
  socket.on("error", () => undefined);
  return Object.assign(socket, { [Symbol.dispose]: () => void socket.destroy() });
}
