import {
  type AddressInfo,
  createServer as createNetServer,
  type Server,
  type Socket,
} from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { monotonicClock } from "../lib/clock.ts";
import type { HttpStream } from "./http-stream.ts";
import { Http1Session } from "./http1/session.ts";
import { Http2Session } from "./http2/session.ts";
import { routeByPreface } from "./preface.ts";
import { headerBytesMax } from "./request-guard.ts";

/** Bounds of connections, before any call. Those of each protocol are with its session. */
const limits = {
  connections: 10_000,
  /** Milliseconds for a handshake. */
  handshakeMs: 10_000,
  /** Milliseconds between two looks at the time that requests of HTTP/1.1 take. */
  lookMs: 1000,
} as const;

/** A certificate chain and its key, PEM. */
export interface TlsFiles {
  readonly cert: Buffer;
  readonly key: Buffer;
}

/** Serves HTTP/1.1 and HTTP/2: told apart by the connection preface in cleartext, by ALPN under TLS. */
export interface Listener {
  /**
   * Listens on one port. Resolves with where: the port is the one given, or the free one that was taken for 0. Rejects when
   * the address is taken.
   */
  listen(host: string, port: number): Promise<AddressInfo>;
  /** Serves a connection that another process has accepted. Beyond the bound, and during a drain, it is closed. */
  take(socket: Socket): void;
  /** Those that are open. */
  readonly connections: number;
  /** Takes no new connections. Resolves when the running calls are over and their connections closed. */
  drain(): Promise<void>;
  /** Cuts whatever is still open. Resolves when every socket is closed. */
  close(): Promise<void>;
}

export function createListener(options: {
  readonly tls: TlsFiles | undefined;
  readonly handler: (stream: HttpStream) => void;
  /** Connections at once; one more is closed. Default: 10,000. */
  readonly connectionsMax?: number;
  /** Called with an error that is a bug of ours: its connection is closed, and no other. */
  readonly onBug: (error: unknown) => void;
}): Listener {
  const { connectionsMax = limits.connections } = options;
  const sockets = new Set<Socket>();
  const http1Sessions = new Set<Http1Session>();
  const http2Sessions = new Set<Http2Session>();
  let draining = false;
  let whenEmpty: (() => void) | undefined;
  const track = (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", ignore).once("close", () => {
      sockets.delete(socket);
      if (sockets.size === 0) whenEmpty?.();
    });
  };
  const start = <S extends { close(): void }>(sessions: Set<S>, socket: Socket, session: S) => {
    sessions.add(session);
    socket.once("close", () => sessions.delete(session));
    if (draining) session.close();
  };
  const sessionOptions = {
    headerBytesMax,
    onRequest: options.handler,
    onBug: options.onBug,
  };
  const protocols: Protocols = {
    http1: (socket) => start(http1Sessions, socket, new Http1Session(socket, sessionOptions)),
    http2: (socket) => start(http2Sessions, socket, new Http2Session(socket, sessionOptions)),
  };
  const checkTime = () => {
    const now = monotonicClock();
    for (const session of http1Sessions) session.checkTime(now);
  };
  // After the process was busy, timers run before sockets are read: what came in time may still be waiting there.
  const look = setInterval(() => setImmediate(checkTime), limits.lookMs).unref();
  const undecided = new Set<Socket>();
  const server =
    options.tls === undefined ? cleartext(protocols, undecided) : encrypted(options.tls, protocols);
  server.maxConnections = connectionsMax;
  server.on("connection", track);

  return {
    async listen(host, port) {
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen(port, host, () => resolve());
      });
      const address = server.address();
      if (address === null || typeof address === "string") throw new Error("there is no port");
      return address;
    },
    take(socket) {
      if (draining || sockets.size >= connectionsMax) socket.destroy();
      else server.emit("connection", socket);
    },
    get connections() {
      return sockets.size;
    },
    async drain() {
      draining = true;
      server.close();
      for (const session of [...http1Sessions, ...http2Sessions]) session.close();
      for (const socket of undecided) socket.destroy();
      if (sockets.size > 0) await new Promise<void>((resolve) => (whenEmpty = resolve));
    },
    async close() {
      draining = true;
      server.close();
      const closed = [...sockets].map(
        (socket) => new Promise((resolve) => socket.once("close", resolve)),
      );
      for (const socket of sockets) socket.destroy();
      await Promise.all(closed);
      clearInterval(look);
    },
  };
}

/** What becomes of a connection that has said what it speaks. */
interface Protocols {
  http1(socket: Socket): void;
  http2(socket: Socket): void;
}

/** `undecided` holds the connections that have not yet said what they speak. */
function cleartext({ http1, http2 }: Protocols, undecided: Set<Socket>): Server {
  return createNetServer({ noDelay: true }, (socket) => {
    undecided.add(socket);
    routeByPreface(socket, {
      http1: () => http1(socket),
      http2: () => http2(socket),
      done: () => undecided.delete(socket),
    });
  });
}

function encrypted(tls: TlsFiles, { http1, http2 }: Protocols): Server {
  const options = {
    ...tls,
    noDelay: true,
    ALPNProtocols: ["h2", "http/1.1"],
    minVersion: "TLSv1.2",
    handshakeTimeout: limits.handshakeMs,
  } as const;
  const server = createTlsServer(options, (socket) => {
    if (socket.alpnProtocol === "h2") http2(socket);
    else http1(socket);
  });
  // Its handshake has failed, or took too long.
  return server.on("tlsClientError", (_error, socket) => socket.destroy());
}

function ignore() {}
