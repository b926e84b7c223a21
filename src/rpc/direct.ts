import type { Call } from "./call.ts";
import type { Wire } from "./wire.ts";

/**
 * A method whose usual calls are answered without Connect's pipeline, which costs a chain of generators, several sets of
 * Headers and four AbortControllers for each call, and a dozen promises for each message. Usual is one whole,
 * uncompressed, valid message in a content type as clients write it. Connect answers everything else, from the same
 * bytes, and writes every error that comes before the head of an answer (server/direct-call.ts).
 */
export interface DirectMethod {
  /** What a request asks; undefined when Connect has to say what is wrong with it. */
  open(wire: Wire, body: Buffer): DirectRequest | undefined;
}

export type DirectRequest =
  /** Resolves to the one message of the answer, as it goes into the body. */
  | { readonly isStream: false; answer(caller: DirectCaller): Promise<Buffer> }
  /** Resolves when the answer has begun; `heartbeat` is a message for callers who wait, as it goes into the body. */
  | {
      readonly isStream: true;
      readonly heartbeat: Buffer;
      answer(caller: DirectCaller): Promise<DirectStream>;
    };

export interface DirectCaller {
  readonly call: Call;
  /** Aborts when the caller leaves, at the deadline and when the service stops. */
  readonly signal: AbortSignal;
}

/** An answer that has begun: whoever got it must dispose it. Its messages are as they go into the body. */
export interface DirectStream<Part = unknown> extends Disposable {
  readonly start: Buffer;
  readonly parts: AsyncIterable<Part>;
  toMessage(part: Part): Buffer;
}
