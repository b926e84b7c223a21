import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { type buildConnector, Client } from "undici";

/** A way to the server for one request at a time: its connection is opened when needed and kept for a moment. */
export interface Line {
  readonly client: Client;
  /** Whether the connection that is open now has already carried a whole reply. */
  used: boolean;
  /** Gives up a connection that is not open yet: its socket is destroyed now. Does nothing otherwise. */
  cancelConnect(reason: Error): void;
}

/**
 * `origin` is http or https; `connectMs` covers name resolution, TCP and TLS together. With an `address` the connection goes
 * there, and the name in `origin` is not resolved.
 */
export function createLine(origin: string, connectMs: number, address?: string): Line {
  let opening: Socket | undefined;

  // undici's own connector shows nobody the socket before it is open, so a caller who leaves early could not close it.
  const connect: buildConnector.connector = ({ protocol, hostname, port }, callback) => {
    const secure = protocol === "https:";
    const host = address ?? hostname;
    const socket = secure ? openTls(host, port, hostname) : openTcp(host, port);
    opening = socket;
    const timer = setTimeout(() => {
      socket.destroy(new Error(`no connection within ${connectMs} ms`));
    }, connectMs);
    const isFirstOutcome = () => {
      clearTimeout(timer);
      const first = opening === socket;
      if (first) opening = undefined;
      return first;
    };
    socket
      .setNoDelay(true)
      .setKeepAlive(true, TCP_KEEP_ALIVE_MS)
      .on("error", (error) => {
        if (isFirstOutcome()) callback(error, null);
      })
      .once(secure ? "secureConnect" : "connect", () => {
        line.used = false;
        if (isFirstOutcome()) callback(null, socket);
      });
  };

  const client = new Client(origin, {
    connect,
    allowH2: false,
    keepAliveTimeout: KEEP_ALIVE_MS,
    keepAliveMaxTimeout: KEEP_ALIVE_MS,
    // Whoever asks sets the limits: undici's are coarse, and do not cover the wait for a line.
    headersTimeout: 0,
    bodyTimeout: 0,
  });
  const line: Line = { client, used: false, cancelConnect: (reason) => opening?.destroy(reason) };
  return line;
}

function openTcp(host: string, port: string): Socket {
  return connectTcp({ host, port: Number(port || 80) });
}

function openTls(host: string, port: string, name: string): Socket {
  return connectTls({
    host,
    port: Number(port || 443),
    // An address is no server name (RFC 6066, section 3).
    ...(isIP(name) === 0 && { servername: name }),
    // With HTTP/2 many requests would share a connection, and closing it is how one request is stopped.
    ALPNProtocols: ["http/1.1"],
  });
}

/** uvicorn closes an idle connection after 5 s: well before that, so that few requests meet a closing one. */
const KEEP_ALIVE_MS = 2_000;

/** undici's value: the kernel notices a machine that vanished, whatever the other limits are. */
const TCP_KEEP_ALIVE_MS = 60_000;
