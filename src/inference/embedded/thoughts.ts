import type { ChatPart } from "../engine.ts";
import { overlap } from "./stop-strings.ts";

/** What a model writes around its reasoning, such as `<think>` and `</think>`. */
export interface ThoughtTags {
  readonly open: string;
  readonly close: string;
}

/** Splits an answer into the reasoning in front of it and the answer itself. */
export interface Thoughts {
  push(text: string): ChatPart[];
  /** What was held back as the possible begin of a tag. */
  flush(): ChatPart[];
}

/**
 * Reasoning counts only at the very begin of an answer, so that an answer may write about the tags. `opened` says that
 * the prompt already ended in the opening tag. Without `tags` all text is answer.
 */
export function createThoughts(tags: ThoughtTags | undefined, opened: boolean): Thoughts {
  let state: "begin" | "lead" | "thought" | "gap" | "answer" = "answer";
  if (tags !== undefined) state = opened ? "lead" : "begin";
  let held = "";

  return {
    push(text) {
      held += text;
      if (tags === undefined) return takeAnswer();
      const parts: ChatPart[] = [];
      if (state === "begin") {
        const start = held.trimStart();
        if (start.startsWith(tags.open)) {
          held = start.slice(tags.open.length);
          state = "lead";
        } else if (start !== "" && overlap(start, tags.open) !== start.length) state = "answer";
      }
      if (state === "lead" || state === "gap") {
        // The line breaks behind a tag belong to neither reasoning nor answer.
        held = held.trimStart();
        if (held !== "") state = state === "lead" ? "thought" : "answer";
      }
      if (state === "thought") {
        const end = held.indexOf(tags.close);
        const length = end < 0 ? held.length - overlap(held, tags.close) : end;
        if (length > 0) parts.push({ type: "reasoning-delta", text: held.slice(0, length) });
        held = held.slice(end < 0 ? length : end + tags.close.length);
        if (end >= 0) {
          held = held.trimStart();
          state = held === "" ? "gap" : "answer";
        }
      }
      return state === "answer" ? [...parts, ...takeAnswer()] : parts;
    },
    flush() {
      if (state !== "thought") return takeAnswer();
      const text = held;
      held = "";
      return text === "" ? [] : [{ type: "reasoning-delta", text }];
    },
  };

  function takeAnswer(): ChatPart[] {
    const text = held;
    held = "";
    return text === "" ? [] : [{ type: "text-delta", text }];
  }
}
