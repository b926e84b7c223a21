import type { Token } from "node-llama-cpp";

/** Turns tokens into text as they come. */
export interface TokenText {
  /** The text that this token completes: empty while a character is still missing bytes. */
  push(token: Token): string;
  /** What is left at the end: replacement characters, when the model stopped inside a character. */
  flush(): string;
}

/** Text of `tokens`, where `before` (the tokens in front of them) decides about a leading space. */
export type Detokenize = (tokens: readonly Token[], before: readonly Token[]) => string;

/**
 * Tokens that may wait for the rest of a character. A character has four bytes at most, and a token ends inside the next
 * one only rarely, so that more waiting tokens than this are bytes that never become text.
 */
const pendingMax = 16;

/** As many earlier tokens as any tokenizer looks at for spacing. */
const beforeMax = 8;

/** How the detokenizer shows bytes that are no character, or not yet one. */
const replacement = "\uFFFD";

/** `prompt` is what the model read before its first token. */
export function createTokenText(detokenize: Detokenize, prompt: readonly Token[]): TokenText {
  let before = prompt.slice(-beforeMax);
  let pending: Token[] = [];

  const take = (text: string) => {
    before = [...before, ...pending].slice(-beforeMax);
    pending = [];
    return text;
  };

  return {
    push(token) {
      pending.push(token);
      const text = detokenize(pending, before);
      return text.endsWith(replacement) && pending.length < pendingMax ? "" : take(text);
    },
    flush: () => (pending.length === 0 ? "" : take(detokenize(pending, before))),
  };
}
