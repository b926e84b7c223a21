import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { canary, chat, chatRequest, engineFor } from "../../../test/support/fake-vllm-chats.ts";
import {
  answer,
  hangUp,
  refuse,
  type Script,
  silence,
  wholeAnswer,
} from "../../../test/support/fake-vllm-replies.ts";
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

describe("connections, whatever callers and the engine do", () => {
  /** What the engine does with a request. */
  const fates: Record<string, (text: string[]) => Script> = {
    answers: (own) => answer({ text: own }),
    "answers and closes": (own) => async (reply, request) => {
      reply.response.setHeader("connection", "close");
      await answer({ text: own })(reply, request);
    },
    "says nothing for ever": () => async (reply) => {
      reply.head();
      while (!reply.response.closed) {
        await reply.bytes(": ping\n\n");
        await new Promise(setImmediate);
      }
    },
    "stops in an answer": (own) => answer({ text: own }, { after: 3, by: (r) => r.cut("rst") }),
    "closes in an answer": (own) => answer({ text: own }, { after: 3, by: (r) => r.cut("fin") }),
    "hangs up": () => hangUp("fin"),
    resets: () => hangUp("rst"),
    refuses: () => refuse(503),
    "says nothing": () => silence,
  };
  const calls = fc.array(
    fc.record({
      fate: fc.constantFrom(...Object.keys(fates)),
      /** After how many parts its caller leaves, and after how many turns of the event loop at the latest. */
      parts: fc.nat(6),
      turns: fc.nat(60),
    }),
    { minLength: 1, maxLength: 24 },
  );

  it("are never mixed up, never lost, and never too many", async () => {
    await fc.assert(
      fc.asyncProperty(calls, async (planned) => {
        await using vllm = await startFakeVllm();
        await using engine = engineFor(vllm, { connections: 3 });
        const textOf = (index: number) =>
          Array.from({ length: 4 }, (_, part) => `<${index}.${part}>`);
        const serve: Script = (reply, request) => {
          const { messages } = request.body as { messages: { content: string }[] };
          const index = Number(messages[0]?.content);
          const script = fates[planned[index]?.fate ?? "answers"];
          return script?.(textOf(index))(reply, request);
        };
        vllm.reply(...Array(200).fill(serve));
        const ask = (index: number, signal: AbortSignal) =>
          engine.chat(
            chatRequest({ messages: [{ role: "user", content: `${index}`, toolCalls: [] }] }),
            signal,
          );
        const run = async ({ parts, turns }: (typeof planned)[number], index: number) => {
          const leaving = new AbortController();
          void (async () => {
            for (let turn = 0; turn < turns; turn += 1) await new Promise(setImmediate);
            leaving.abort(new Error("left"));
          })();
          let text = "";
          let taken = 0;
          try {
            for await (const part of ask(index, leaving.signal)) {
              if (part.type === "text-delta") text += part.text;
              taken += 1;
              if (taken > parts) break;
            }
          } catch {
            // What it gets until then has to be its own.
          }
          expect(textOf(index).join("").startsWith(text), `${text} for ${index}`).toBe(true);
        };
        await Promise.all(planned.map(run));
        expect(vllm.sockets.size).toBeLessThanOrEqual(3 + planned.length);
        // All three connections can be had again, at once.
        const last = [1000, 1001, 1002].map(async (index) => {
          let text = "";
          for await (const part of ask(index, new AbortController().signal))
            if (part.type === "text-delta") text += part.text;
          expect(text).toBe(textOf(index).join(""));
        });
        await Promise.all(last);
        expect(vllm.sockets.size).toBeLessThanOrEqual(3);
      }),
      { numRuns: 60 },
    );
  }, 30_000);
});
