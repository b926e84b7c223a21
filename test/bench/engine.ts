/**
 * An engine that costs next to nothing: vLLM's stream, prepared once and sent at a pace. One timer serves all streams, so
 * that the machine's time goes to what is measured.
 */
import { createServer, type ServerResponse } from "node:http";

const tokensPerStream = Number(process.env.TOKENS ?? 200);
const tokensPerSecond = Number(process.env.RATE ?? 100);
/** Milliseconds between two looks at which streams are due. */
const tickMs = 5;

const head = '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",';
const event = (json: string) => `data: ${head}${json}}\n\n`;
const first = event(
  '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":12,"total_tokens":12,"completion_tokens":0}',
);
const chunks = Array.from({ length: tokensPerStream }, (_, index) =>
  Buffer.from(
    event(
      `"choices":[{"index":0,"delta":{"content":" mot${index % 10}"},"logprobs":null,"finish_reason":null,"token_ids":null}],"usage":{"prompt_tokens":12,"total_tokens":${13 + index},"completion_tokens":${index + 1}}`,
    ),
  ),
);
const last = `${event('"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}]')}${event(
  `"choices":[],"usage":{"prompt_tokens":12,"total_tokens":${12 + tokensPerStream},"completion_tokens":${tokensPerStream}}`,
)}data: [DONE]\n\n`;

interface Stream {
  readonly response: ServerResponse;
  readonly startedAt: number;
  sent: number;
}
const streams = new Set<Stream>();

setInterval(() => {
  const now = performance.now();
  for (const stream of streams) {
    const due = Math.min(
      tokensPerStream,
      Math.floor(((now - stream.startedAt) / 1000) * tokensPerSecond),
    );
    while (stream.sent < due) {
      const chunk = chunks[stream.sent];
      if (chunk !== undefined) stream.response.write(chunk);
      stream.sent += 1;
    }
    if (stream.sent === tokensPerStream) {
      stream.response.end(last);
      streams.delete(stream);
    }
  }
}, tickMs);

const server = createServer((request, response) => {
  if (request.url === "/v1/chat/completions") {
    request.resume().once("end", () => {
      response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
      response.write(first);
      const stream = { response, startedAt: performance.now(), sent: 0 };
      streams.add(stream);
      response.once("close", () => streams.delete(stream));
    });
  } else if (request.url === "/v1/models") {
    response.setHeader("content-type", "application/json");
    response.end('{"object":"list","data":[{"id":"bench","object":"model","max_model_len":8192}]}');
  } else response.end();
});
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  if (typeof address === "object" && address !== null)
    process.stdout.write(`http://127.0.0.1:${address.port}\n`);
});
