/**
 * A vLLM server without a model: real HTTP on a free port, the shapes of vLLM 0.32 (fake-vllm.test.ts holds it against
 * recordings of the real one), and any fault on demand. For tests, benches and developers without a GPU.
 *
 *     await using vllm = await startFakeVllm();
 *     vllm.reply(answer({ text: ["Bon", "jour"] }), refuse(503));   // the next two chats
 *     const request = await vllm.request(0);                        // the first chat that arrived
 *     await request.closed;                                         // "finished", or "aborted" by the client
 */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { text } from "node:stream/consumers";
import { type Answer, type Chat, countPromptTokens } from "./fake-vllm-answer.ts";
import { answer, FakeReply, refuse, type Script } from "./fake-vllm-replies.ts";

export interface FakeVllmOptions {
  /** By default `fake-model`. */
  readonly model?: string;
  /** By default 8,192. */
  readonly contextTokens?: number;
  /** Asked for on `/v1` when given. */
  readonly apiKey?: string;
  /** By default 127.0.0.1, and a free port. */
  readonly host?: string;
  readonly port?: number;
  /** What every chat gets for which no script waits. */
  readonly answer?: Answer;
}

export interface FakeVllm extends AsyncDisposable {
  readonly url: URL;
  /** Every chat that has arrived, in order. */
  readonly requests: readonly FakeRequest[];
  /** Connections that are open now. */
  readonly sockets: ReadonlySet<Socket>;
  /** How the next chats are answered, one script each. */
  reply(...scripts: Script[]): void;
  /** The chat number `index`, from 0, as soon as it has arrived. */
  request(index: number): Promise<FakeRequest>;
  /** Answers a route, such as `GET /health`, by this script from now on. */
  route(name: string, script: Script): void;
  /** Closes everything and refuses connections until `accept`, which listens on the same port again. */
  refuse(): Promise<void>;
  accept(): Promise<void>;
}

export interface FakeRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  /** JSON, or text if it is none. */
  readonly body: unknown;
  readonly socket: Socket;
  readonly state: "running" | "finished" | "aborted";
  /** When it was closed, in `performance.now()`. */
  readonly closedAt: number | undefined;
  /** Resolves when the reply was sent whole, or when the connection has closed before. */
  readonly closed: Promise<"finished" | "aborted">;
}

export async function startFakeVllm(options: FakeVllmOptions = {}): Promise<FakeVllm> {
  const { model = "fake-model", contextTokens = 8_192, apiKey, host = "127.0.0.1" } = options;
  const requests: FakeRequest[] = [];
  const awaited = new Map<number, PromiseWithResolvers<FakeRequest>>();
  const scripts: Script[] = [];
  const sockets = new Set<Socket>();

  const routes = new Map<string, Script>([
    ["POST /v1/chat/completions", chat],
    ["POST /v1/embeddings", embed],
    ["POST /tokenize", tokenize],
    ["GET /v1/models", listModels],
    ["GET /metrics", writeMetrics],
    ["GET /version", (reply) => reply.json(200, { version: "0.32.0" })],
    ["GET /health", (reply) => void reply.response.writeHead(200, { "content-length": 0 }).end()],
  ]);

  // uvicorn closes idle connections after 5 s as well.
  const server = createServer({ keepAliveTimeout: 5_000 }, async (message, response) => {
    const request = new TrackedRequest(message, await text(message).catch(() => ""));
    if (response.closed) request.close(false);
    else response.once("close", () => request.close(response.writableFinished));
    if (request.path.endsWith("/v1/chat/completions")) {
      requests.push(request);
      awaited.get(requests.length - 1)?.resolve(request);
    }
    const script = routes.get(`${message.method} ${message.url}`) ?? notFound;
    const isAllowed =
      apiKey === undefined ||
      !request.path.startsWith("/v1/") ||
      request.headers.authorization === `Bearer ${apiKey}`;
    const reply = new FakeReply(response, message.socket);
    await (isAllowed ? script : unauthorized)(reply, request);
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });

  function chat(reply: FakeReply, request: FakeRequest) {
    const script = scripts.shift();
    if (script !== undefined) return script(reply, request);
    const body = request.body as Partial<Chat> | null;
    if (!Array.isArray(body?.messages)) return refuse(400)(reply, request);
    if (body.model !== model) return reply.json(404, unknownModel(body.model));
    if (body.stream !== true) return refuse(501, "only streams are faked")(reply, request);
    return answer(options.answer)(reply, request);
  }

  function listModels(reply: FakeReply) {
    const card = { id: model, object: "model", created: now(), owned_by: "vllm", root: model };
    const data = [{ ...card, parent: null, max_model_len: contextTokens }];
    reply.json(200, { object: "list", data });
  }

  function tokenize(reply: FakeReply, { body }: FakeRequest) {
    const count = countPromptTokens(body as Chat);
    const tokens = Array.from({ length: count }, (_, id) => id);
    reply.json(200, { count, max_model_len: contextTokens, tokens, token_strs: null });
  }

  function writeMetrics(reply: FakeReply) {
    const labels = `{engine="0",model_name="${model}"}`;
    const running = requests.filter(({ state }) => state === "running").length;
    const gauge = (name: string, value: number) =>
      `# TYPE vllm:${name} gauge\nvllm:${name}${labels} ${value.toFixed(1)}\n`;
    reply.response.writeHead(200, { "content-type": "text/plain; version=1.0.0; charset=utf-8" });
    reply.response.end(
      gauge("num_requests_running", running) +
        gauge("num_requests_waiting", 0) +
        gauge("kv_cache_usage_perc", 0) +
        gauge("num_preemptions_total", 0),
    );
  }

  let { port = 0 } = options;
  async function listen() {
    await once(server.listen(port, host), "listening");
    ({ port } = server.address() as AddressInfo);
  }
  async function close() {
    const closed = once(server, "close");
    server.close();
    server.closeAllConnections();
    await closed;
  }

  await listen();
  return {
    url: new URL(`http://${host}:${port}`),
    requests,
    sockets,
    reply: (...more) => void scripts.push(...more),
    async request(index) {
      const request = requests[index];
      if (request !== undefined) return request;
      const arrival = awaited.get(index) ?? Promise.withResolvers<FakeRequest>();
      awaited.set(index, arrival);
      return arrival.promise;
    },
    route: (name, script) => void routes.set(name, script),
    refuse: close,
    accept: listen,
    async [Symbol.asyncDispose]() {
      if (server.listening) await close();
    },
  };
}

class TrackedRequest implements FakeRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: unknown;
  readonly socket: Socket;
  state: FakeRequest["state"] = "running";
  closedAt: number | undefined;
  readonly #closed = Promise.withResolvers<"finished" | "aborted">();

  constructor(message: IncomingMessage, body: string) {
    this.method = message.method ?? "";
    this.path = message.url ?? "";
    this.headers = message.headers;
    this.body = parseJson(body);
    this.socket = message.socket;
  }

  get closed(): Promise<"finished" | "aborted"> {
    return this.#closed.promise;
  }

  close(isFinished: boolean): void {
    const state = isFinished ? "finished" : "aborted";
    this.state = state;
    this.closedAt = performance.now();
    this.#closed.resolve(state);
  }
}

const unknownModel = (model: unknown) => ({
  error: {
    message: `The model \`${model}\` does not exist.`,
    type: "NotFoundError",
    param: "model",
    code: 404,
  },
});
const notFound = refuse(404, { detail: "Not Found" });
const unauthorized = refuse(401, { error: "Unauthorized" });

/** Vectors that depend on the text alone, so that equal texts are near each other and others are not. */
function embed(reply: FakeReply, { body }: FakeRequest) {
  const { model, input } = body as { model?: string; input: string | string[] };
  const data = [input].flat().map((item, index) => {
    const bytes = createHash("sha256").update(item).digest();
    const length = Math.hypot(...bytes);
    return { index, object: "embedding", embedding: Array.from(bytes, (byte) => byte / length) };
  });
  const tokens = countPromptTokens({ messages: [input].flat() });
  const usage = { prompt_tokens: tokens, total_tokens: tokens, completion_tokens: 0 };
  const head = { id: "embd-fake", object: "list", created: now(), model: model ?? "fake-embedder" };
  reply.json(200, { ...head, data, usage: { ...usage, prompt_tokens_details: null } });
}

const now = () => Math.floor(Date.now() / 1000);

function parseJson(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    return body;
  }
}
