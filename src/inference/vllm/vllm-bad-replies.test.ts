import { describe, expect, it } from "vitest";
import { canary, runOnce } from "../../../test/support/fake-vllm-chats.ts";
import { answer, refuse, type Script } from "../../../test/support/fake-vllm-replies.ts";

// The faults U6 and U7 of the test programme: the engine says something that cannot be read, or refuses. The caller gets
// one of our errors in our words: that no upstream text is in them is checked by runOnce.

const text = ["Un", " été", " à", " Besançon"];

describe("U6: vLLM says something that cannot be read", () => {
  const event = (data: string): Script =>
    answer({ text }, { after: 3, by: (reply) => reply.event(data) });
  const cases: Record<string, [script: Script, kind: string, received: string]> = {
    "JSON that is cut": [event(`{"${canary}`), "corrupt", "Un été"],
    "an error in the stream": [
      event(`{"error":{"message":"${canary}","code":500}}`),
      "unavailable",
      "Un été",
    ],
    "[DONE] too early": [event("[DONE]"), "corrupt", "Un été"],
    "a line of 10 MB": [event("x".repeat(10_000_000)), "corrupt", "Un été"],
    "a compressed reply": [(reply) => reply.head({ "content-encoding": "gzip" }), "corrupt", ""],
    "a whole answer under another type": [
      async (reply) => {
        reply.head({ "content-type": "text/html" });
        const choices = [{ delta: { content: canary }, finish_reason: "stop" }];
        await reply.bytes(`data: ${JSON.stringify({ choices })}\n\ndata: [DONE]\n\n`);
      },
      "corrupt",
      "",
    ],
    "a head that is no HTTP": [
      (reply) => void reply.socket.end(`${canary}\r\n\r\n`),
      "corrupt",
      "",
    ],
    "a head without end": [
      (reply) => void reply.socket.write(`HTTP/1.1 200 OK\r\nx: ${"x".repeat(100_000)}`),
      "corrupt",
      "",
    ],
    "a body that is not as it was announced": [
      (reply) => {
        reply.socket.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        reply.socket.end("transfer-encoding: chunked\r\n\r\nzz\r\n");
      },
      "corrupt",
      "",
    ],
    "text without end": [
      async (reply) => {
        reply.head();
        const data = JSON.stringify({ choices: [{ delta: { content: "x" } }] });
        while (!reply.response.closed) await reply.bytes(`data: ${data}\n\n`.repeat(100));
      },
      "corrupt",
      "x".repeat(656),
    ],
  };
  it.each(Object.entries(cases))("%s", async (_, [script, kind, received]) => {
    const outcome = await runOnce(script);
    expect({ kind: outcome.kind, received: outcome.received }).toEqual({ kind, received });
  });
});

describe("U7: vLLM refuses", () => {
  it.each([
    [300, "corrupt"],
    [400, "invalid"],
    [401, "unavailable"],
    [403, "unavailable"],
    [404, "not-found"],
    [405, "corrupt"],
    [408, "timeout"],
    [413, "invalid"],
    [418, "corrupt"],
    [422, "invalid"],
    [429, "unavailable", 1_000],
    [500, "unavailable"],
    [501, "unavailable"],
    [502, "unavailable"],
    [503, "unavailable", 1_000],
    [504, "timeout"],
    [204, "corrupt"],
  ])("with %i: %s", async (status, kind, retryAfterMs = undefined) => {
    for (const body of [
      { error: { message: canary } },
      { object: "error", message: canary },
      canary,
      "",
    ]) {
      const { error } = await runOnce(refuse(status, body), { keepsConnection: true });
      expect(error).toMatchObject({ kind });
      expect(error?.retryAfterMs).toBe(retryAfterMs);
    }
  });

  it("tells the operator why, but neither a caller nor a prompt that vLLM quotes", async () => {
    const message = `1 validation error:\n  {'type': 'float_parsing', 'msg': 'no\u0000\n number', 'input': '${canary}'}`;
    const { error } = await runOnce(refuse(400, { error: { message } }), { keepsConnection: true });
    const cause = String(error?.cause);
    expect(cause).toMatch(/vLLM answered 400: .*float_parsing/);
    expect(cause).not.toMatch(/\p{Cc}|CANARY/u);
  });

  it("with a body that is too long or never ends: from the status alone, and soon", async () => {
    const bodies: Script[] = [
      refuse(400, canary.repeat(100_000)),
      async (reply) => {
        reply.head({ "content-type": "application/json" }, 400);
        await reply.bytes(canary);
      },
    ];
    for (const script of bodies) {
      const { kind, elapsedMs } = await runOnce(script);
      expect(kind).toBe("invalid");
      expect(elapsedMs).toBeLessThan(2_500);
    }
  });
});
