import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { canary, chat, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import { answer, hangUp, wholeAnswer } from "../../../test/support/fake-vllm-replies.ts";
import { AppError } from "../../errors.ts";

const text = ["Un", " été", " à", " Besançon"];

describe("U8: a connection that was kept open", () => {
  it.each(["fin", "rst"] as const)(
    "is closed just when it is used again (%s): asked once more",
    async (how) => {
      await using vllm = await startFakeVllm();
      await using engine = engineFor(vllm);
      await chat(engine);
      vllm.reply(hangUp(how), answer({ text }));
      const { text: received, error } = await chat(engine);
      expect({ received, error }).toEqual({ received: text.join(""), error: undefined });
      expect(vllm.requests).toHaveLength(3);
      const [first, second, third] = vllm.requests;
      expect(second?.socket).toBe(first?.socket);
      expect(third?.socket).not.toBe(first?.socket);
      expect(third?.headers["x-request-id"]).not.toBe(second?.headers["x-request-id"]);
      expect(third?.body).toEqual(second?.body);
    },
  );

  it("is asked once more only once", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    await chat(engine);
    vllm.reply(hangUp("rst"), hangUp("rst"), answer({ text }));
    expect((await chat(engine)).error).toMatchObject({ kind: "unavailable" });
    expect(vllm.requests).toHaveLength(3);
  });

  it("is not asked again after the first byte of a reply", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    for (const first of ["H", "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"]) {
      await chat(engine);
      const count = vllm.requests.length;
      vllm.reply((reply) => void reply.socket.end(first));
      expect((await chat(engine)).error).toBeInstanceOf(AppError);
      expect(vllm.requests).toHaveLength(count + 1);
    }
  });

  it("that vLLM closes while it is idle costs nothing", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    await chat(engine);
    for (const socket of vllm.sockets) socket.resetAndDestroy();
    expect((await chat(engine)).error).toBeUndefined();
    expect(vllm.requests).toHaveLength(2);
  });

  it("on which bytes come that nobody asked for is never used for another caller", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    const reply = `data: {"choices":[{"delta":{"content":"${canary}"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n`;
    const extra =
      "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" +
      `content-length: ${reply.length}\r\n\r\n${reply}`;
    for (let i = 0; i < 20; i += 1) {
      vllm.reply(async (first, request) => {
        const { socket } = first;
        first.response.once("finish", () => socket.write(extra));
        await answer({ text })(first, request);
      }, answer({ text }));
      expect((await chat(engine)).text).toBe(text.join(""));
      const second = await chat(engine);
      expect(second.text).not.toContain(canary);
    }
  });

  it("is not kept when the reply does not end after [DONE], and the caller does not wait for it", async () => {
    await using vllm = await startFakeVllm();
    await using engine = engineFor(vllm);
    vllm.reply(wholeAnswer({ text }, () => undefined));
    const startedAt = performance.now();
    expect((await chat(engine)).error).toBeUndefined();
    expect(performance.now() - startedAt).toBeLessThan(500);
    expect(await (await vllm.request(0)).closed).toBe("aborted");
  });
});
