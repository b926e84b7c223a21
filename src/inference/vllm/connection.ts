import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { ReplyReader, type ReplySink } from "./reply-reader.ts";

/** Where an engine listens, and how. */
export interface ConnectionTarget {
  /** http or https. */
  readonly url: URL;
  /** The IP address to connect to, in the place of those that the name in `url` has. */
  readonly address?: string | undefined;
  /** For name resolution, TCP and TLS together. */
  readonly connectMs: number;
}

/** Who gets the reply to the request that a connection carries: `onHead`, `onData`, then `onEnd` or `onLost`, once. */
export interface ConnectionUser extends ReplySink {
  /** All is told that one read has brought, and more is to come. */
  onReadEnd(): void;
  /** The reply is complete, and the connection free or gone. */
  onEnd(): void;
  /** The connection is lost, or says what cannot be read. `responding`: the server had begun to answer. */
  onLost(error: Error, responding: boolean): void;
}

/** What becomes of a connection is told to whoever keeps it. */
export interface ConnectionKeeper {
  /** It is open and carries nothing. */
  onFree(connection: Connection): void;
  /** It carries nothing any more. Called once. */
  onClosed(connection: Connection): void;
}

/**
 * A connection to vLLM, with one request on it at a time, so that closing it stops that request and no other.
 *
 * HTTP/1.1 is written and read here and not by a library, because this is where every token comes in. Node reads all
 * connections into one buffer, and the pieces of a reply are handed on where they lie in it: no stream, no Buffer and no copy
 * for each token. Through undici, a token cost a fifth of all that the gateway does for it.
 */
export class Connection {
  /** Whether it has already carried a whole reply: then the server may be closing it. */
  used = false;
  readonly #keeper: ConnectionKeeper;
  readonly #socket: Socket;
  readonly #idleTimer: NodeJS.Timeout;
  #user: ConnectionUser | undefined;
  #reader: ReplyReader | undefined;
  #responding = false;
  #error: Error | undefined;
  /** The request that is about to be written to a used connection. */
  #writing: NodeJS.Immediate | undefined;
  /** Present until the turn of the event loop is over in which the last reply has ended. */
  #ending: NodeJS.Immediate | undefined;

  constructor(target: ConnectionTarget, keeper: ConnectionKeeper) {
    this.#keeper = keeper;
    const { connectMs, url } = target;
    const socket = open(target, (length, bytes) => this.#onRead(length, bytes));
    this.#socket = socket;
    const timer = setTimeout(() => {
      this.close(new Error(`no connection within ${connectMs} ms`));
    }, connectMs);
    this.#idleTimer = setTimeout(() => this.#closeIdle(), IDLE_MS).unref();
    socket
      .setNoDelay(true)
      .setKeepAlive(true, TCP_KEEP_ALIVE_MS)
      .once(url.protocol === "https:" ? "secureConnect" : "connect", () => clearTimeout(timer))
      .once("end", () => this.#onServerEnd())
      .on("error", (error) => {
        this.#error ??= error;
      })
      .once("close", () => {
        clearTimeout(timer);
        clearTimeout(this.#idleTimer);
        clearImmediate(this.#writing);
        clearImmediate(this.#ending);
        this.#lose(this.#error ?? connectionLoss());
        keeper.onClosed(this);
      });
  }

  /** Sends a request, all of it. The connection must be free, or new. */
  send(request: string, user: ConnectionUser): void {
    this.#user = user;
    this.#reader = new ReplyReader(user);
    this.#responding = false;
    const write = () => {
      this.#writing = undefined;
      this.#socket.write(request);
    };
    // What the server has sent to a connection that was idle, or that it has closed it, is read before: a next request would
    // take those bytes for its reply (as in undici, GHSA-35p6-xmwp-9g52). In the turn in which the last reply has ended, nobody
    // has looked for such bytes yet.
    const later = () => {
      this.#writing = setImmediate(write);
    };
    if (this.#ending !== undefined) this.#writing = setImmediate(later);
    else if (this.used) later();
    else write();
  }

  /** Closes it now, in every state. Whoever uses it hears nothing more; `onClosed` follows. */
  abort(): void {
    this.#user = undefined;
    this.close();
  }

  /** Closes it now; its user is told of the error at once. */
  close(error?: Error): void {
    this.#socket.destroy();
    if (error !== undefined) this.#lose(error);
  }

  /** Reads no further, so that the server's side fills up and waits. What was read already is still told. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  #onRead(length: number, bytes: Buffer): void {
    const reader = this.#reader;
    if (this.#user === undefined || reader === undefined || this.#writing !== undefined) {
      // Nobody has asked, or has not been heard yet.
      this.close(connectionLoss());
      return;
    }
    this.#responding = true;
    try {
      const taken = reader.read(bytes, length);
      if (reader.isDone) this.#endReply(taken === length && reader.keepsConnection);
      else this.#user?.onReadEnd();
    } catch (error) {
      this.close(error instanceof Error ? error : new Error(String(error)));
    }
  }

  /** A server that answers before it has read the whole request may read its rest as the next one. */
  #endReply(keepsConnection: boolean): void {
    const user = this.#user;
    this.#user = undefined;
    this.used = true;
    const isKept = keepsConnection && this.#socket.writableLength === 0 && !this.#socket.destroyed;
    if (!isKept) this.#socket.destroy();
    user?.onEnd();
    if (!isKept) return;
    this.#idleTimer.refresh();
    // Under TLS, records that have arrived are told after a pause too: the reply's end may have been in one.
    if (this.#socket.isPaused()) this.#socket.resume();
    this.#ending = setImmediate(() => {
      this.#ending = undefined;
    });
    this.#keeper.onFree(this);
  }

  #onServerEnd(): void {
    if (this.#user !== undefined && this.#reader?.end() === true) this.#endReply(false);
    else this.#socket.destroy();
  }

  #lose(error: Error): void {
    const user = this.#user;
    this.#user = undefined;
    user?.onLost(error, this.#responding);
  }

  #closeIdle(): void {
    if (this.#user === undefined) this.close();
  }
}

/** One for all connections: what a read brings is dealt with before the next one. Node's size for a read. */
const readBuffer = Buffer.allocUnsafeSlow(64 * 1024);

function open(
  { url, address }: ConnectionTarget,
  onRead: (length: number, bytes: Buffer) => void,
): Socket {
  // The name of an IPv6 address has brackets in a URL.
  const name = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const secure = url.protocol === "https:";
  const options = {
    host: address ?? name,
    port: Number(url.port || (secure ? 443 : 80)),
    onread: {
      buffer: readBuffer,
      callback(length: number) {
        onRead(length, readBuffer);
        return true;
      },
    },
  };
  if (!secure) return connectTcp(options);
  return connectTls({
    ...options,
    // An address is no server name (RFC 6066, section 3).
    ...(isIP(name) === 0 && { servername: name }),
    // With HTTP/2 many requests would share a connection, and closing it is how one request is stopped.
    ALPNProtocols: ["http/1.1"],
  });
}

/** As the kernel says it of a connection that was closed under a request. */
function connectionLoss(): Error {
  return Object.assign(new Error("the server has closed the connection"), { code: "ECONNRESET" });
}

/** uvicorn closes an idle connection after 5 s: well before that, so that few requests meet a closing one. */
const IDLE_MS = 2_000;

/** The kernel notices a machine that vanished, whatever the other limits are. The value of most HTTP clients. */
const TCP_KEEP_ALIVE_MS = 60_000;
