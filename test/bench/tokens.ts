/**
 * The tokens of the benchmark: text that says its number in the answer and when the engine sent it, `<17:1234567890>`.
 * ASCII that neither JSON nor protobuf changes, so that whoever receives an answer finds the tokens in its raw bytes,
 * whatever the protocol and also when several were merged into one message.
 */

/** Microseconds of the machine's monotonic clock, which all processes share on Linux. */
export function nowUs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e6 + nanoseconds / 1e3;
}

/** The text of token `number`, from 1. `sentUs` is a whole number. */
export function tokenText(number: number, sentUs: number): string {
  return `<${number}:${sentUs}>`;
}

const opening = 0x3c;
const colon = 0x3a;
const closing = 0x3e;
const zero = 0x30;

/**
 * Finds the tokens of one answer in its bytes, in one pass and cut anywhere. A byte of a binary envelope that happens to
 * be `<` does no harm: what follows it is no number, or the token's own `<`, which begins anew.
 */
export class TokenScanner {
  readonly #onToken: (number: number, sentUs: number) => void;
  #inside: "nothing" | "number" | "time" = "nothing";
  #number = 0;
  #value = 0;

  constructor(onToken: (number: number, sentUs: number) => void) {
    this.#onToken = onToken;
  }

  scan(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#inside === "nothing") {
        // Most bytes of an answer are no token's: a native search is quickest to pass over them.
        at = bytes.indexOf(opening, at) + 1;
        if (at === 0) return;
        this.#inside = "number";
      }
      at = this.#scanNumber(bytes, at);
    }
  }

  /** Reads digits on from `at`, and what ends them. Returns where the next byte is. */
  #scanNumber(bytes: Buffer, at: number): number {
    let value = this.#value;
    let end = at;
    for (; end < bytes.length; end += 1) {
      const digit = (bytes[end] ?? 0) - zero;
      if (digit < 0 || digit > 9) break;
      value = value * 10 + digit;
    }
    if (end === bytes.length) {
      this.#value = value;
      return end;
    }
    const last = bytes[end];
    this.#value = 0;
    if (last === opening) this.#inside = "number";
    else if (last === colon && this.#inside === "number") {
      this.#inside = "time";
      this.#number = value;
    } else {
      if (last === closing && this.#inside === "time") this.#onToken(this.#number, value);
      this.#inside = "nothing";
    }
    return end + 1;
  }
}
