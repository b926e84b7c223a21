import { createServer as createHttp1Server, type ServerOptions } from "node:http";
import {
  type AddressInfo,
  createServer as createNetServer,
  type Server,
  type Socket,
} from "node:net";
import { setTimeout } from "node:timers/promises";
import { createServer as createTlsServer } from "node:tls";
import { Http2Session } from "./http2/session.ts";
import type { Http2Stream } from "./http2/stream.ts";
import type { NodeHandler } from "./node-http.ts";
import { routeByPreface } from "./preface.ts";
import { headerBytesMax } from "./request-guard.ts";

/** Bounds of connections, before any call. Those of HTTP/2 are in http2/session.ts. */
const limits = {
  /** Connections at once; one more is closed. */
  connections: 10_000,
  /** Milliseconds for the headers, and for headers and body together. */
  headersMs: 10_000,
  requestMs: 60_000,
  checkIntervalMs: 1000,
  /** Milliseconds that an HTTP/1.1 connection may idle: longer than nginx keeps its own (60 s), so that it closes first. */
  keepAliveMs: 65_000,
} as const;

const drainPollMs = 50;

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
  readonly handler: NodeHandler;
  /** Called with an error that is a bug of ours: its connection is closed, and no other. */
  readonly onBug: (error: unknown) => void;
}): Listener {
  const sockets = new Set<Socket>();
  const sessions = new Set<Http2Session>();
  let draining = false;
  const track = (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", ignore).once("close", () => sockets.delete(socket));
  };
  const http1 = createHttp1Server(http1Options, options.handler);
  enforceTimeLimits(http1);
  const protocols: Protocols = {
    http1: (socket) => http1.emit("connection", socket),
    http2(socket) {
      const onRequest = (stream: Http2Stream) => options.handler(stream, stream);
      const { onBug } = options;
      const session = new Http2Session(socket, { headerBytesMax, onRequest, onBug });
      sessions.add(session);
      socket.once("close", () => sessions.delete(session));
      if (draining) session.close();
    },
  };
  const undecided = new Set<Socket>();
  const server =
    options.tls === undefined ? cleartext(protocols, undecided) : encrypted(options.tls, protocols);
  server.maxConnections = limits.connections;
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
      if (draining || sockets.size >= limits.connections) socket.destroy();
      else server.emit("connection", socket);
    },
    get connections() {
      return sockets.size;
    },
    async drain() {
      draining = true;
      server.close();
      for (const session of sessions) session.close();
      for (const socket of undecided) socket.destroy();
      // A connection of HTTP/1.1 is idle, and can be closed, only after its answer: Node tells nobody when.
      while (sockets.size > 0) {
        http1.closeIdleConnections();
        await setTimeout(drainPollMs);
      }
    },
    async close() {
      const closed = [...sockets].map(
        (socket) => new Promise((resolve) => socket.once("close", resolve)),
      );
      for (const socket of sockets) socket.destroy();
      await Promise.all(closed);
      // Ends the interval that enforces the time limits of HTTP/1.1.
      http1.close();
      server.close();
    },
  };
}

const http1Options: ServerOptions = {
  maxHeaderSize: headerBytesMax,
  headersTimeout: limits.headersMs,
  requestTimeout: limits.requestMs,
  connectionsCheckingInterval: limits.checkIntervalMs,
  keepAliveTimeout: limits.keepAliveMs,
};

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
    handshakeTimeout: limits.headersMs,
  } as const;
  const server = createTlsServer(options, (socket) => {
    if (socket.alpnProtocol === "h2") http2(socket);
    else http1(socket);
  });
  // Its handshake has failed, or took too long.
  return server.on("tlsClientError", (_error, socket) => socket.destroy());
}

/** A server that never listens itself enforces none of its time limits: their interval starts on this event. */
function enforceTimeLimits(server: { emit(event: "listening"): boolean }): void {
  server.emit("listening");
}

function ignore() {}
