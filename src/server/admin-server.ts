import { hash, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { ConfigError } from "../errors.ts";
import type { Secret } from "../lib/secret.ts";
import { closeUnread, sendJson } from "./node-http.ts";
import { headerBytesMax } from "./request-guard.ts";

/** The port for operators: `/metrics`, and nothing that a caller of the service could want. */
export interface AdminServer extends AsyncDisposable {
  /** Where programs on this machine reach it. */
  readonly url: string;
}

export interface AdminOptions {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** Asked for as `Authorization: Bearer`, on every path alike. Absent: whoever reaches the port may read. */
  readonly key: Secret | undefined;
  /** What `/metrics` answers. Asked once at a time: who comes meanwhile gets the same answer. */
  readonly metrics: () => Promise<{ readonly contentType: string; readonly text: string }>;
  /** `metrics` has failed, which the caller is not told more of. */
  readonly onError: (error: unknown) => void;
}

/** A Prometheus or two, and a person. */
const connectionsMax = 32;
const headersMs = 5000;
/** Milliseconds without a byte: longer than scrapes are usually apart. */
const idleMs = 65_000;

/** Listens. Throws ConfigError when the address cannot be had. Disposing it cuts what is still open. */
export async function openAdminServer(options: AdminOptions): Promise<AdminServer> {
  const handle = createAdminHandler(options);
  const server = createServer(
    {
      maxHeaderSize: headerBytesMax,
      headersTimeout: headersMs,
      requestTimeout: headersMs,
      keepAliveTimeout: idleMs,
    },
    (request, response) => {
      handle(request, response).catch((error) => {
        options.onError(error);
        sendJson(request, response, 500, { code: "internal", message: "internal error" });
      });
    },
  );
  server.maxConnections = connectionsMax;
  server.setTimeout(idleMs);
  const { host, port } = options;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => {
      const why = "code" in error ? error.code : error.message;
      reject(new ConfigError([`ADMIN_PORT ${port} on ${host} cannot be listened on: ${why}`]));
    });
    server.listen(port, host, () => resolve());
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("there is no port");
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${address.port}`,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

function createAdminHandler({ key, metrics }: AdminOptions) {
  const mayRead = createBearerCheck(key);
  let running: ReturnType<typeof metrics> | undefined;
  const readOnce = () => {
    running ??= metrics().finally(() => {
      running = undefined;
    });
    return running;
  };

  return async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const refuse = (status: number, code: string, message: string) =>
      sendJson(request, response, status, { code, message });
    if (!mayRead(request.headers.authorization)) {
      response.setHeader("www-authenticate", "Bearer");
      return refuse(401, "unauthenticated", "the admin key is needed, as Authorization: Bearer");
    }
    if (request.url?.split("?", 1)[0] !== "/metrics") {
      return refuse(404, "not_found", "there is only /metrics");
    }
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.setHeader("allow", "GET, HEAD");
      return refuse(405, "invalid_argument", "send GET or HEAD");
    }
    const { contentType, text } = await readOnce();
    const body = Buffer.from(text);
    closeUnread(request, response);
    response.writeHead(200, { "content-type": contentType, "content-length": body.length });
    response.end(request.method === "HEAD" ? undefined : body);
  };
}

/** Compares digests, in a time that depends on nothing that was sent but its length. */
function createBearerCheck(key: Secret | undefined): (header: string | undefined) => boolean {
  if (key === undefined) return () => true;
  const digest = (text: string) => hash("sha256", text, "buffer");
  const expected = digest(key.reveal());
  return (header = "") => timingSafeEqual(digest(header.replace(/^Bearer +/i, "")), expected);
}
