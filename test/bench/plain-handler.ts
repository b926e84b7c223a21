/**
 * The baseline: the handler that one writes first. connect-node's adapter, an async generator over the lines of the
 * engine's answer, undici's `request`; no keys, no limits, no metering.
 */
import { createServer as createHttp1Server } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import { create } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Agent, request } from "undici";
import {
  type ChatRequest,
  ChatResponseSchema,
  ChatService,
  StreamChatResponseSchema,
} from "../../gen/formdev/chat/v1/chat_service_pb.ts";

const engine = process.env.VLLM_URL ?? "";
const dispatcher = new Agent({ connections: 2000 });

async function* tokens(message: ChatRequest, signal: AbortSignal): AsyncGenerator<string> {
  const { body } = await request(`${engine}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: message.model,
      messages: message.messages.map(({ role, content }) => ({ role, content })),
      stream: true,
    }),
    dispatcher,
    signal,
  });
  let rest = "";
  for await (const chunk of body.setEncoding("utf8")) {
    const lines = (rest + String(chunk)).split("\n\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data) as { choices: { delta: { content?: string } }[] };
      const text = parsed.choices[0]?.delta.content;
      if (text !== undefined && text !== "") yield text;
    }
  }
}

const handler = connectNodeAdapter({
  routes: (router) =>
    router.service(ChatService, {
      async chat(message, { signal }) {
        let content = "";
        for await (const text of tokens(message, signal)) content += text;
        return create(ChatResponseSchema, { message: { role: "assistant", content } });
      },
      async *streamChat(message, { signal }) {
        for await (const text of tokens(message, signal)) {
          yield create(StreamChatResponseSchema, {
            part: { case: "textDelta", value: { text } },
          });
        }
      },
    }),
});
const server = process.env.HTTP === "1" ? createHttp1Server(handler) : createHttp2Server(handler);
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  if (typeof address === "object" && address !== null)
    process.stdout.write(`http://127.0.0.1:${address.port}\n`);
});
