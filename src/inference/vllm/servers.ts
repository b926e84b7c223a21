import { AppError } from "../../errors.ts";
import { monotonicClock } from "../../lib/clock.ts";
import { parseEngineId, toEngineId } from "./engine-id.ts";
import { Upstream, type UpstreamOptions } from "./upstream.ts";

/** The connections to one engine. */
export interface Server {
  readonly chats: Upstream;
  /** Apart, so that health and the rest are answered while every connection carries a chat. */
  readonly control: Upstream;
  /** Monotonic milliseconds. */
  usedAt: number;
}

export interface ServersOptions
  extends Pick<UpstreamOptions, "apiKey" | "connections" | "connectMs"> {
  /** One at least: the engines that are there from the beginning, and stay. */
  readonly urls: readonly URL[];
}

/** The engines that this process talks to: those that the operator has named, and addresses behind those names. */
export class Servers implements AsyncDisposable {
  readonly #options: ServersOptions;
  readonly #named: ReadonlySet<string>;
  readonly #servers = new Map<string, Server>();
  /** Where the next question goes first: the one that has answered last, or the next of one that has not. */
  #asked = 0;

  constructor(options: ServersOptions) {
    this.#options = options;
    this.#named = new Set(options.urls.map((url) => toEngineId(url)));
    for (const id of this.#named) this.#open(id);
  }

  /** The engine of this id; without one the first. */
  at(id: string = [...this.#named][0] ?? ""): Server {
    const server = this.#servers.get(id) ?? this.#open(id);
    server.usedAt = monotonicClock();
    return server;
  }

  get all(): readonly Server[] {
    return [...this.#servers.values()];
  }

  /** Asks one engine, and the next one for as long as they throw AppError `unavailable`. */
  async askAny<T>(ask: (control: Upstream) => Promise<T>): Promise<T> {
    const servers = this.all;
    const first = this.#asked;
    for (let tried = 1; ; tried += 1) {
      const at = (first + tried - 1) % servers.length;
      const server = servers[at] ?? this.at();
      try {
        return await ask(server.control);
      } catch (error) {
        // Whatever is wrong with it: if it hangs, the next question shall not wait for it too.
        this.#asked = at + 1;
        const mayHelp = error instanceof AppError && error.kind === "unavailable";
        if (!mayHelp || tried >= servers.length) throw error;
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.all.map(close));
  }

  #open(id: string): Server {
    this.#forgetUnused();
    const { apiKey, connections, connectMs } = this.#options;
    const options = { ...parseEngineId(id), apiKey, connectMs };
    const server = {
      chats: new Upstream({ ...options, connections }),
      control: new Upstream({ ...options, connections: CONTROL_CONNECTIONS }),
      usedAt: monotonicClock(),
    };
    this.#servers.set(id, server);
    return server;
  }

  /** Addresses come and go for as long as the process lives. */
  #forgetUnused(): void {
    const longAgo = monotonicClock() - UNUSED_MS_MAX;
    for (const [id, server] of this.#servers) {
      const isUsed = this.#named.has(id) || server.usedAt > longAgo || !server.chats.isIdle;
      if (isUsed || !server.control.isIdle) continue;
      this.#servers.delete(id);
      void close(server);
    }
  }
}

async function close({ chats, control }: Server): Promise<void> {
  await Promise.all([chats[Symbol.asyncDispose](), control[Symbol.asyncDispose]()]);
}

/** Token counts, mostly: they cost vLLM no GPU, and one of its processes answers them all. */
const CONTROL_CONNECTIONS = 8;

/** An engine that had no call for so long is probably gone. If not, opening it again costs nothing: no connection is kept. */
const UNUSED_MS_MAX = 600_000;
