/**
 * An engine that costs next to nothing: vLLM's stream of events, each token with its number, the time it is sent at and
 * the usage so far. Two models: `paced` sends RATE tokens a second, as a GPU does; `unpaced` sends them as fast as the
 * socket takes them. One timer serves all paced streams, so that the machine's time goes to what is measured.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { nowUs, tokenText } from "./tokens.ts";

const tokensPerSecond = Number(process.env.RATE ?? 100);
/** Milliseconds between two looks at which streams are due. */
const tickMs = 5;
const promptTokens = 12;

const head =
  '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":';
const usage = (tokens: number) =>
  `"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + tokens},"completion_tokens":${tokens}}`;
const first = `data: ${head}[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],${usage(0)}}\n\n`;
const beforeText = `data: ${head}[{"index":0,"delta":{"content":"`;
const afterText = '"},"logprobs":null,"finish_reason":null,"token_ids":null}],';
const last = (tokens: number) =>
  `data: ${head}[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}],${usage(tokens)}}\n\n` +
  `data: ${head}[],${usage(tokens)}}\n\ndata: [DONE]\n\n`;

interface Stream {
  readonly response: ServerResponse;
  readonly socket: Socket;
  readonly beganUs: number;
  readonly tokens: number;
  sent: number;
}
const paced = new Set<Stream>();

setInterval(() => {
  const now = nowUs();
  for (const stream of paced) sendDue(stream, now);
}, tickMs);

/** The first token goes out at once, each other one at its time after it. */
function sendDue(stream: Stream, now: number): void {
  const due = 1 + Math.floor(((now - stream.beganUs) / 1e6) * tokensPerSecond);
  while (stream.sent < Math.min(due, stream.tokens)) sendNext(stream, nowUs());
  if (stream.sent < stream.tokens) return;
  stream.response.end(last(stream.tokens));
  paced.delete(stream);
}

function sendAll(stream: Stream): void {
  const now = nowUs();
  while (stream.sent < stream.tokens) {
    if (sendNext(stream, now)) continue;
    // In a later turn: a socket that takes everything at once would otherwise keep all other streams waiting.
    stream.socket.once("drain", () => setImmediate(sendAll, stream));
    return;
  }
  stream.response.end(last(stream.tokens));
}

/**
 * One event in an HTTP chunk of its own, as vLLM's server sends it. The chunk is framed here, in one piece: Node makes four
 * of it, which costs more than all the rest. Whether the socket takes more.
 */
function sendNext(stream: Stream, now: number): boolean {
  stream.sent += 1;
  const text = tokenText(stream.sent, Math.floor(now));
  const event = `${beforeText}${text}${afterText}${usage(stream.sent)}}\n\n`;
  return stream.socket.write(`${event.length.toString(16)}\r\n${event}\r\n`, "latin1");
}

function answer(body: string, response: ServerResponse): void {
  // The plain handler names no bound: the message says the number too.
  const [, tokens] =
    /"max_(?:completion_)?tokens":(\d+)/.exec(body) ?? /Count to (\d+)/.exec(body) ?? [];
  const { socket } = response;
  if (socket === null) return;
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
  response.write(first);
  const stream = { response, socket, beganUs: nowUs(), tokens: Number(tokens), sent: 0 };
  if (body.includes('"model":"unpaced"')) sendAll(stream);
  else {
    paced.add(stream);
    response.once("close", () => paced.delete(stream));
    sendDue(stream, stream.beganUs);
  }
}

function read(request: IncomingMessage, onBody: (body: string) => void): void {
  let body = "";
  request.setEncoding("latin1");
  request.on("data", (text: string) => {
    body += text;
  });
  request.once("end", () => onBody(body));
}

const model = (id: string) => `{"id":"${id}","object":"model","max_model_len":1048576}`;
const server = createServer((request, response) => {
  if (request.url === "/v1/chat/completions") read(request, (body) => answer(body, response));
  else if (request.url === "/v1/models") {
    response.setHeader("content-type", "application/json");
    response.end(`{"object":"list","data":[${model("paced")},${model("unpaced")}]}`);
  } else response.end();
});
// Longer than any pause of a run: no connection that a subject keeps is closed under its next request.
server.keepAliveTimeout = 600_000;
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  if (typeof address === "object" && address !== null)
    process.stdout.write(`http://127.0.0.1:${address.port}\n`);
});
