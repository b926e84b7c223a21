import { hash, timingSafeEqual } from "node:crypto";
import { ConfigError } from "../errors.ts";
import type { Secret } from "../lib/secret.ts";
import { closeUnread, sendJson } from "./http-answer.ts";
import type { HttpStream } from "./http-stream.ts";
import { createListener } from "./listener.ts";

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

/** Listens. Throws ConfigError when the address cannot be had. Disposing it cuts what is still open. */
export async function openAdminServer(options: AdminOptions): Promise<AdminServer> {
  const handle = createAdminHandler(options);
  const { host, port, onError } = options;
  const listener = createListener({
    tls: undefined,
    connectionsMax,
    onBug: onError,
    handler(stream) {
      handle(stream).catch((error) => {
        onError(error);
        sendJson(stream, 500, { code: "internal", message: "internal error" });
      });
    },
  });
  const address = await listener.listen(host, port).catch((error) => {
    const why = "code" in error ? error.code : error.message;
    throw new ConfigError([`ADMIN_PORT ${port} on ${host} cannot be listened on: ${why}`]);
  });
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${address.port}`,
    [Symbol.asyncDispose]: () => listener.close(),
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

  return async (stream: HttpStream): Promise<void> => {
    const refuse = (status: number, code: string, message: string) =>
      sendJson(stream, status, { code, message });
    if (!mayRead(stream.headers.authorization)) {
      stream.setHeader("www-authenticate", "Bearer");
      return refuse(401, "unauthenticated", "the admin key is needed, as Authorization: Bearer");
    }
    if (stream.url.split("?", 1)[0] !== "/metrics") {
      return refuse(404, "not_found", "there is only /metrics");
    }
    if (stream.method !== "GET" && stream.method !== "HEAD") {
      stream.setHeader("allow", "GET, HEAD");
      return refuse(405, "invalid_argument", "send GET or HEAD");
    }
    const { contentType, text } = await readOnce();
    const body = Buffer.from(text);
    closeUnread(stream);
    stream.setHeader("content-type", contentType);
    stream.setHeader("content-length", body.length);
    stream.end(stream.method === "HEAD" ? undefined : body);
  };
}

/** Compares digests, in a time that depends on nothing that was sent but its length. */
function createBearerCheck(key: Secret | undefined): (header: string | undefined) => boolean {
  if (key === undefined) return () => true;
  const digest = (text: string) => hash("sha256", text, "buffer");
  const expected = digest(key.reveal());
  return (header = "") => timingSafeEqual(digest(header.replace(/^Bearer +/i, "")), expected);
}
