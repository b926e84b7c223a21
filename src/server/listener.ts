import { createServer as createHttp1Server, type ServerOptions } from "node:http";
import {
  createServer as createHttp2Server,
  createSecureServer,
  type ServerOptions as Http2Options,
  type Http2Server,
  type ServerHttp2Session,
} from "node:http2";
import {
  type AddressInfo,
  createServer as createNetServer,
  type Server,
  type Socket,
} from "node:net";
import { setTimeout } from "node:timers/promises";
import { http2Messages } from "./http2-messages.ts";
import type { NodeHandler } from "./node-http.ts";
import { routeByPreface } from "./preface.ts";
import { headerBytesMax } from "./request-guard.ts";

/** Bounds of connections, before any call. The figures of HTTP/2 are those that Envoy advises for an edge. */
const limits = {
  /** Connections at once; one more is closed. */
  connections: 10_000,
  /** Milliseconds for the headers, and for headers and body together. */
  headersMs: 10_000,
  requestMs: 60_000,
  checkIntervalMs: 1000,
  /** Milliseconds that an HTTP/1.1 connection may idle: longer than nginx keeps its own (60 s), so that it closes first. */
  keepAliveMs: 65_000,
  http2Streams: 100,
  http2SessionMemoryMb: 10,
  /** Milliseconds without a frame after which an HTTP/2 connection is closed gracefully. */
  http2IdleMs: 300_000,
  /** Streams that a client may reset at once, and each second (CVE-2023-44487, rapid reset). */
  http2ResetBurst: 100,
  http2ResetsPerSecond: 20,
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
}): Listener {
  const sockets = new Set<Socket>();
  const sessions = new Set<ServerHttp2Session>();
  let draining = false;
  const track = (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", ignore).once("close", () => sockets.delete(socket));
  };
  const trackSession = (session: ServerHttp2Session) => {
    sessions.add(session);
    session.on("error", ignore).once("close", () => sessions.delete(session));
    session.setTimeout(limits.http2IdleMs, () => session.close());
  };

  const { server, http1, undecided } =
    options.tls === undefined
      ? cleartext(options.handler, trackSession)
      : encrypted(options.tls, options.handler, trackSession);
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
      undecided?.forEach((socket) => {
        socket.destroy();
      });
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

const http2Options = {
  ...http2Messages,
  maxSessionMemory: limits.http2SessionMemoryMb,
  streamResetBurst: limits.http2ResetBurst,
  streamResetRate: limits.http2ResetsPerSecond,
  settings: {
    maxConcurrentStreams: limits.http2Streams,
    maxHeaderListSize: headerBytesMax,
  },
} as const satisfies Http2Options;

interface Protocols {
  /** The server that owns the port. */
  readonly server: Server;
  /** The server of HTTP/1.1 connections, to close idle ones. */
  readonly http1: { readonly closeIdleConnections: () => void; readonly close: () => void };
  /** Connections that have not yet said what they speak. */
  readonly undecided?: ReadonlySet<Socket>;
}

function cleartext(
  handler: NodeHandler,
  onSession: (session: ServerHttp2Session) => void,
): Protocols {
  const http1 = createHttp1Server(http1Options, handler);
  const http2: Http2Server = createHttp2Server(http2Options, handler);
  http2.on("session", onSession);
  const undecided = new Set<Socket>();
  const server = createNetServer({ noDelay: true }, (socket) => {
    undecided.add(socket);
    routeByPreface(socket, {
      http1: () => http1.emit("connection", socket),
      http2: () => http2.emit("connection", socket),
      done: () => undecided.delete(socket),
    });
  });
  enforceTimeLimits(http1);
  return { server, http1, undecided };
}

function encrypted(
  tls: TlsFiles,
  handler: NodeHandler,
  onSession: (session: ServerHttp2Session) => void,
): Protocols {
  const server = createSecureServer(
    {
      ...http1Options,
      ...http2Options,
      allowHTTP1: true,
      ...tls,
      minVersion: "TLSv1.2",
      handshakeTimeout: limits.headersMs,
    },
    handler,
  );
  server.on("session", onSession);
  server.on("tlsClientError", ignore);
  enforceTimeLimits(server);
  // With allowHTTP1 the server has this method; its types do not tell.
  const closeIdleConnections = () => {
    if ("closeIdleConnections" in server && typeof server.closeIdleConnections === "function") {
      server.closeIdleConnections();
    }
  };
  return { server, http1: { closeIdleConnections, close: () => server.close() } };
}

/** A server that never listens itself enforces none of HTTP/1.1's time limits: their interval starts on this event. */
function enforceTimeLimits(server: { emit(event: "listening"): boolean }): void {
  server.emit("listening");
}

function ignore() {}
