/**
 * The load, made by the benchmark's own process: calls as bytes over Node's HTTP clients, answers read as bytes. Each
 * token is looked at: a number that is missing, twice or out of order counts as lost.
 */
import { Agent, request } from "node:http";
import { type ClientHttp2Session, connect } from "node:http2";
import { createHistogram, type RecordableHistogram } from "node:perf_hooks";
import { nowUs, TokenScanner } from "./tokens.ts";
import { key, type Model, type Wire } from "./wires.ts";

/** What a load has seen, times in microseconds. */
export class Tally {
  tokens = 0;
  /** Calls that ended, whatever their end. */
  calls = 0;
  errors = 0;
  /** Answers that ended well with a token missing, twice or out of order. */
  lost = 0;
  /** The first error, for whoever has to find its cause. */
  problem: string | undefined;
  /** From the call's start to its first token. */
  readonly firstTokenUs = createHistogram();
  /** From one token of an answer to the next. */
  readonly gapUs = createHistogram();
  /** From the engine's sending to the caller's reading, one for each token. */
  readonly delayUs = createHistogram();
  /** From the call's start to its end. */
  readonly callUs = createHistogram();
  /** How late the load started its calls: its own fault, and a sign that the machine is full. */
  readonly lateUs = createHistogram();
}

/** Histograms count whole numbers from 1. */
function record(histogram: RecordableHistogram, us: number): void {
  histogram.record(Math.max(1, Math.round(us)));
}

/** One answer as it arrives. */
export class Answer {
  /** Tokens seen so far, each in its order. */
  count = 0;
  inOrder = true;
  readonly #tally: () => Tally;
  readonly #beganUs = nowUs();
  #lastUs = 0;
  #readUs = 0;
  #tail: readonly Buffer[] = [];
  readonly #scanner = new TokenScanner((number, sentUs) => this.#onToken(number, sentUs));

  constructor(tally: () => Tally) {
    this.#tally = tally;
  }

  read(chunk: Buffer): void {
    this.#readUs = nowUs();
    this.#scanner.scan(chunk);
    const before = this.#tail.at(-1);
    this.#tail = before === undefined ? [chunk] : [before, chunk];
  }

  #onToken(number: number, sentUs: number): void {
    const tally = this.#tally();
    this.count += 1;
    if (number !== this.count) this.inOrder = false;
    tally.tokens += 1;
    record(tally.delayUs, this.#readUs - sentUs);
    if (this.count === 1) record(tally.firstTokenUs, this.#readUs - this.#beganUs);
    else record(tally.gapUs, this.#readUs - this.#lastUs);
    this.#lastUs = this.#readUs;
  }

  /** Counts the call. `status` and `grpcStatus` are those that arrived, if any did. */
  end(
    wire: Wire,
    tokens: number,
    { status, grpcStatus }: { status: number | undefined; grpcStatus: string | undefined },
  ): void {
    const tally = this.#tally();
    tally.calls += 1;
    record(tally.callUs, nowUs() - this.#beganUs);
    const tail = Buffer.concat(this.#tail).toString("latin1").slice(-tailBytes);
    if (status !== 200 || !wire.isWhole({ tail, grpcStatus })) {
      tally.errors += 1;
      tally.problem ??= `${wire.name}: status ${status}, grpc-status ${grpcStatus}, ${JSON.stringify(tail)}`;
    } else if (!this.inOrder || this.count !== tokens) {
      tally.lost += 1;
      tally.problem ??= `${wire.name}: ${this.count} of ${tokens} tokens, in order: ${this.inOrder}`;
    }
  }
}

/** Enough for the end of any answer. */
const tailBytes = 300;

/** Makes calls of one kind. */
export interface Caller {
  /** Resolves when the answer has ended, well or not. */
  call(tokens: number): Promise<void>;
  /** Cuts what is open, uncounted. */
  close(): void;
}

export interface CallerOptions {
  readonly url: string;
  readonly wire: Wire;
  readonly model: Model;
  readonly tally: () => Tally;
}

export function createCaller(options: CallerOptions): Caller {
  const bodies = new Map<number, Buffer>();
  const bodyOf = (tokens: number) => {
    const body = bodies.get(tokens) ?? options.wire.body(options.model, tokens);
    bodies.set(tokens, body);
    return body;
  };
  return options.wire.http === 2 ? http2Caller(options, bodyOf) : http1Caller(options, bodyOf);
}

/** The gateway allows 100 on a connection; it may see the end of one later than we do. */
const streamsPerConnection = 80;

function http2Caller(
  { url, wire, tally }: CallerOptions,
  bodyOf: (tokens: number) => Buffer,
): Caller {
  const connections: { session: ClientHttp2Session; open: number }[] = [];
  let closed = false;
  const headers = {
    ":method": "POST",
    ":path": wire.path,
    "content-type": wire.contentType,
    te: "trailers",
    "x-api-key": key,
  };

  return {
    call(tokens) {
      let connection = connections.find(({ open }) => open < streamsPerConnection);
      if (connection === undefined) {
        connection = { session: connect(url), open: 0 };
        connection.session.on("error", () => undefined);
        connections.push(connection);
      }
      const used = connection;
      used.open += 1;
      return new Promise((resolve) => {
        const answer = new Answer(tally);
        let status: number | undefined;
        let grpcStatus: string | undefined;
        const stream = used.session.request(headers);
        stream.once("response", (fields) => {
          status = fields[":status"];
        });
        stream.once("trailers", (fields) => {
          grpcStatus = String(fields["grpc-status"]);
        });
        stream.on("data", (chunk: Buffer) => answer.read(chunk));
        stream.once("error", () => undefined);
        stream.once("close", () => {
          used.open -= 1;
          if (!closed) answer.end(wire, tokens, { status, grpcStatus });
          resolve();
        });
        stream.end(bodyOf(tokens));
      });
    },
    close() {
      closed = true;
      for (const { session } of connections) session.destroy();
    },
  };
}

function http1Caller(
  { url, wire, tally }: CallerOptions,
  bodyOf: (tokens: number) => Buffer,
): Caller {
  const agent = new Agent({ keepAlive: true });
  let closed = false;

  return {
    call(tokens) {
      return new Promise((resolve) => {
        const body = bodyOf(tokens);
        const answer = new Answer(tally);
        let status: number | undefined;
        const headers = {
          "content-type": wire.contentType,
          "content-length": body.length,
          "x-api-key": key,
        };
        const call = request(`${url}${wire.path}`, { method: "POST", agent, headers });
        call.once("response", (response) => {
          response.on("data", (chunk: Buffer) => answer.read(chunk));
          response.once("error", () => undefined);
          response.once("end", () => {
            status = response.statusCode;
          });
        });
        call.once("error", () => undefined);
        call.once("close", () => {
          if (!closed) answer.end(wire, tokens, { status, grpcStatus: undefined });
          resolve();
        });
        call.end(body);
      });
    },
    close() {
      closed = true;
      agent.destroy();
    },
  };
}

export interface Load {
  /** What was seen since the last time, or since the start. */
  take(): Tally;
  stop(): void;
}

/** Calls that arrive as they do from many independent users: at times that do not depend on how the others fare. */
export interface OpenLoop {
  /** Answers that are open at once, on average. */
  readonly streams: number;
  readonly tokensPerSecond: number;
  readonly tokensPerCall: number;
}

/** Calls that follow one another: `concurrency` at any time, as fast as they are answered. */
export interface ClosedLoop {
  readonly concurrency: number;
  readonly tokensPerCall: number;
}

/**
 * Poisson arrivals of a fixed seed, on the paced engine. It begins with as many calls as there are to be, with what is
 * left of each drawn evenly, spread over the first second: from then on the load is what it stays.
 */
export function startOpenLoop(url: string, wire: Wire, loop: OpenLoop): Load {
  let tally = new Tally();
  const caller = createCaller({ url, wire, model: "paced", tally: () => tally });
  const random = createRandom(seed);
  const callsPerMs = (loop.streams * loop.tokensPerSecond) / loop.tokensPerCall / 1000;
  const nextPauseMs = () => -Math.log(1 - random()) / callsPerMs;
  const begin = Array.from({ length: loop.streams }, (_, index) => ({
    atMs: (index / loop.streams) * 1000,
    tokens: 1 + Math.floor(random() * loop.tokensPerCall),
  }));

  const startedAt = performance.now();
  let nextMs = nextPauseMs();
  let timer: NodeJS.Timeout;
  const startDue = () => {
    const nowMs = performance.now() - startedAt;
    for (let first = begin[0]; first !== undefined && first.atMs <= nowMs; first = begin[0]) {
      begin.shift();
      void caller.call(first.tokens);
    }
    while (nextMs <= nowMs) {
      record(tally.lateUs, (nowMs - nextMs) * 1000);
      void caller.call(loop.tokensPerCall);
      nextMs += nextPauseMs();
    }
    timer = setTimeout(startDue, Math.min(nextMs, begin[0]?.atMs ?? nextMs) - nowMs);
  };
  startDue();

  return {
    take() {
      const taken = tally;
      tally = new Tally();
      return taken;
    },
    stop() {
      clearTimeout(timer);
      caller.close();
    },
  };
}

/** On the unpaced engine. */
export function startClosedLoop(url: string, wire: Wire, loop: ClosedLoop): Load {
  let tally = new Tally();
  let stopped = false;
  const caller = createCaller({ url, wire, model: "unpaced", tally: () => tally });
  const keepCalling = async () => {
    while (!stopped) await caller.call(loop.tokensPerCall);
  };
  for (let started = 0; started < loop.concurrency; started += 1) void keepCalling();

  return {
    take() {
      const taken = tally;
      tally = new Tally();
      return taken;
    },
    stop() {
      stopped = true;
      caller.close();
    },
  };
}

const seed = 20261124;

/** Numbers from 0 to 1 that are the same in each run (mulberry32). */
function createRandom(from: number): () => number {
  let state = from;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
