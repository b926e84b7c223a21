import type { OutgoingHttpHeaders, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { FakeRequest } from "./fake-vllm.ts";
import { type Answer, type Chat, chatEvents } from "./fake-vllm-answer.ts";

/** Answers one request. A reply that it leaves open stays open: that is how a server hangs. */
export type Script = (reply: FakeReply, request: FakeRequest) => void | Promise<void>;

/** One reply being written. */
export class FakeReply {
  readonly response: ServerResponse;
  readonly socket: Socket;

  constructor(response: ServerResponse, socket: Socket) {
    this.response = response;
    this.socket = socket;
  }

  /** The head of a stream, unless told otherwise; sent at once. */
  head(headers: OutgoingHttpHeaders = {}, status = 200): void {
    const contentType = "text/event-stream; charset=utf-8";
    this.response.writeHead(status, { "content-type": contentType, ...headers });
    this.response.flushHeaders();
  }

  /** Resolves when there is room for more, or nobody who reads. */
  async bytes(bytes: string | Uint8Array): Promise<void> {
    const { response } = this;
    if (response.write(bytes) || response.destroyed) return;
    await new Promise<void>((resolve) => {
      const onRoom = () => {
        response.off("drain", onRoom).off("close", onRoom);
        resolve();
      };
      response.once("drain", onRoom).once("close", onRoom);
    });
  }

  event(data: object | string): Promise<void> {
    return this.bytes(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
  }

  end(): void {
    this.response.end();
  }

  json(status: number, body: object | string, headers: OutgoingHttpHeaders = {}): void {
    this.response.writeHead(status, { "content-type": "application/json", ...headers });
    this.response.end(typeof body === "string" ? body : JSON.stringify(body));
  }

  /** Ends the connection before the reply has its end: FIN, or RST. */
  cut(how: "fin" | "rst"): void {
    if (how === "rst") this.socket.resetAndDestroy();
    else this.socket.end();
  }
}

/**
 * A whole answer. `interrupt` runs after that many events: what it does to the reply is done, and once it has resolved
 * with the reply still open the rest follows.
 */
export function answer(
  options: Answer = {},
  interrupt?: { after: number; by: (reply: FakeReply) => void | Promise<void> },
): Script {
  return async (reply, request) => {
    reply.head();
    let count = 0;
    for (const event of chatEvents(request.body as Chat, options)) {
      if (count === interrupt?.after) await interrupt.by(reply);
      if (reply.socket.writableEnded || reply.response.writableEnded) return;
      await reply.event(event);
      if (options.paceMs) await delay(options.paceMs);
      count += 1;
    }
    reply.end();
  };
}

/** All events of an answer, and then this instead of the end of the reply. */
export function wholeAnswer(options: Answer, end: (reply: FakeReply) => void): Script {
  return async (reply, request) => {
    reply.head();
    for (const event of chatEvents(request.body as Chat, options)) await reply.event(event);
    end(reply);
  };
}

/** An unsuccessful reply as vLLM makes it, or with a body of your own. */
export function refuse(status: number, body?: object | string): Script {
  const error = { message: `refused with ${status}`, type: "Error", param: null, code: status };
  return (reply) => reply.json(status, body ?? { error });
}

/** Takes the request and never says anything. */
export const silence: Script = () => undefined;

/** Takes the request and closes the connection without a byte of a reply. */
export function hangUp(how: "fin" | "rst"): Script {
  return (reply) => reply.cut(how);
}

/** One of test/fixtures/vllm/*.json: what a real vLLM was asked and what it said. */
export interface Fixture {
  readonly request: { readonly method: string; readonly path: string; readonly body: unknown };
  readonly response: {
    readonly status: number;
    readonly contentType: string | null;
    readonly body: string;
  };
}

/** A recorded reply, in pieces that end at these offsets in bytes. */
export function replay(fixture: Fixture, cuts: readonly number[] = []): Script {
  const { status, contentType, body } = fixture.response;
  const bytes = Buffer.from(body);
  return async (reply) => {
    reply.head(contentType === null ? {} : { "content-type": contentType }, status);
    let start = 0;
    for (const end of [...cuts, bytes.length]) {
      await reply.bytes(bytes.subarray(start, end));
      start = end;
      // So that each piece leaves in a segment of its own.
      await new Promise((resolve) => setImmediate(resolve));
    }
    reply.end();
  };
}
