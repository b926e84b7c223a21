import { createClient } from "@connectrpc/connect";
import { expect, it } from "vitest";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { startFakeVllm } from "../support/fake-vllm.ts";
import { startApp, transportFor } from "../support/start-app.ts";

/**
 * nodejs/node#65677: from Node 24.20 on, reading an HTTP/2 answer that is already buffered can end in
 * ERR_STREAM_PREMATURE_CLOSE. Our clients are built on exactly that.
 */
it.each(["gRPC", "gRPC-Web", "Connect JSON"] as const)(
  "loses none of 100 calls and 10 streams over HTTP/2 with %s, although each answer is there at once",
  async (protocol) => {
    await using vllm = await startFakeVllm();
    await using app = await startApp({ VLLM_URL: vllm.url.href });
    const client = createClient(ChatService, transportFor(protocol, app.url));
    const hello = { messages: [{ role: "user", content: "Bonjour" }] };

    let calls = 0;
    for (; calls < 100; calls += 1) {
      expect((await client.chat(hello)).message?.content).not.toBe("");
    }
    const streams = Array.from({ length: 10 }, () => Array.fromAsync(client.streamChat(hello)));
    for (const parts of await Promise.all(streams)) {
      expect(parts.at(-1)?.part.case).toBe("end");
    }
    expect(vllm.requests).toHaveLength(110);
  },
);
