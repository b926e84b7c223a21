import type { Mutable } from "../../lib/mutable.ts";
import type { ChatPart } from "../engine.ts";

/**
 * The parts that the engine has sent and the consumer has not taken yet, in order.
 *
 * A delta that continues the last part in the queue is joined to it: a consumer that is slower than the engine, or
 * only waits for its turn, gets one large part instead of many small ones, and nobody is delayed for that.
 */
export class PartQueue {
  readonly #parts: MutablePart[] = [];
  /** UTF-16 units of text and tool arguments inside. */
  unread = 0;

  pushText(type: "text-delta" | "reasoning-delta", text: string): void {
    this.unread += text.length;
    const last = this.#parts.at(-1);
    if (last?.type === type) last.text += text;
    else this.#parts.push({ type, text });
  }

  /** `identity` comes with the first piece of a call only. */
  pushToolCall(index: number, text: string, identity: { id?: string; name?: string }): void {
    this.unread += text.length;
    const last = this.#parts.at(-1);
    const continues = last?.type === "tool-call-delta" && last.index === index;
    if (continues && identity.id === undefined && identity.name === undefined)
      last.arguments += text;
    else this.#parts.push({ type: "tool-call-delta", index, ...identity, arguments: text });
  }

  pushEnd(part: ChatPart & { type: "end" }): void {
    this.#parts.push(part);
  }

  shift(): ChatPart | undefined {
    const part = this.#parts.shift();
    if (part?.type === "tool-call-delta") this.unread -= part.arguments.length;
    else if (part !== undefined && part.type !== "end") this.unread -= part.text.length;
    return part;
  }

  /**
   * Lets go of what the parts were made of: a text that was joined from pieces keeps each of them, and a piece the whole
   * event that it was cut from, which is twenty times as large.
   */
  compact(): void {
    for (const part of this.#parts) {
      if (part.type === "tool-call-delta") part.arguments = copyOf(part.arguments);
      else if (part.type !== "end") part.text = copyOf(part.text);
    }
  }

  clear(): void {
    this.#parts.length = 0;
    this.unread = 0;
  }
}

/** The same well-formed text, in memory of its own. */
function copyOf(text: string): string {
  return Buffer.from(text).toString();
}

type MutablePart = Mutable<ChatPart>;
