import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ChatPart } from "../engine.ts";
import { PartQueue } from "./part-queue.ts";

const drain = (queue: PartQueue): ChatPart[] => {
  const parts: ChatPart[] = [];
  for (let part = queue.shift(); part !== undefined; part = queue.shift()) parts.push(part);
  return parts;
};

describe("PartQueue", () => {
  it("joins deltas that follow each other, and nothing else", () => {
    const queue = new PartQueue();
    queue.pushText("reasoning-delta", "hm");
    queue.pushText("reasoning-delta", "m");
    queue.pushText("text-delta", "Bon");
    queue.pushText("text-delta", "jour");
    queue.pushToolCall(0, "", { id: "a", name: "f" });
    queue.pushToolCall(0, '{"x"', {});
    queue.pushToolCall(0, ":1}", {});
    queue.pushToolCall(1, "{}", { id: "b", name: "g" });
    queue.pushText("text-delta", "!");
    queue.pushEnd({ type: "end", finishReason: "tool-calls" });
    expect(drain(queue)).toEqual([
      { type: "reasoning-delta", text: "hmm" },
      { type: "text-delta", text: "Bonjour" },
      { type: "tool-call-delta", index: 0, id: "a", name: "f", arguments: '{"x":1}' },
      { type: "tool-call-delta", index: 1, id: "b", name: "g", arguments: "{}" },
      { type: "text-delta", text: "!" },
      { type: "end", finishReason: "tool-calls" },
    ]);
  });

  it("never changes a part that was taken", () => {
    const queue = new PartQueue();
    queue.pushText("text-delta", "a");
    const taken = queue.shift();
    queue.pushText("text-delta", "b");
    expect(taken).toEqual({ type: "text-delta", text: "a" });
    expect(drain(queue)).toEqual([{ type: "text-delta", text: "b" }]);
  });

  it("keeps order and content, and counts what is unread, whenever parts are taken", () => {
    const text = fc.record({
      type: fc.constantFrom("text-delta" as const, "reasoning-delta" as const),
      text: fc.string({ minLength: 1, maxLength: 5 }),
    });
    fc.assert(
      fc.property(fc.array(fc.oneof(text, fc.constant("take" as const))), (steps) => {
        const queue = new PartQueue();
        const taken: string[] = [];
        let pushed = "";
        let unread = 0;
        const take = (part: ChatPart | undefined) => {
          if (part?.type !== "text-delta" && part?.type !== "reasoning-delta") return;
          unread -= part.text.length;
          for (const unit of part.text.split("")) taken.push(part.type[0] + unit);
        };
        for (const step of steps) {
          if (step === "take") take(queue.shift());
          else {
            queue.pushText(step.type, step.text);
            unread += step.text.length;
            for (const unit of step.text.split("")) pushed += step.type[0] + unit;
          }
          expect(queue.unread).toBe(unread);
        }
        for (const part of drain(queue)) take(part);
        expect(taken.join("")).toBe(pushed);
        expect(queue.unread).toBe(0);
      }),
    );
  });
});
