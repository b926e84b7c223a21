import { once } from "node:events";
import { connect } from "node:net";
import { codeToString } from "@connectrpc/connect/protocol-connect";

/** One answer of HTTP/1.1 as it came over the wire, without interim (1xx) ones. */
export interface RawAnswer {
  readonly status: number;
  /** Names in lower case. A field that occurs twice is joined with a comma. */
  readonly headers: Readonly<Record<string, string>>;
  /** Without its chunked coding. */
  readonly body: Buffer;
}

/** A TCP connection on which a test says exactly the bytes that it wants to say. */
export interface RawConnection extends Disposable {
  send(bytes: string | Uint8Array): void;
  /** Everything so far. */
  readonly received: Buffer;
  /** Whole answers so far. */
  readonly answers: readonly RawAnswer[];
  /** Resolves with the answer number `index`, or undefined when the connection closes before it is whole. */
  answer(index?: number): Promise<RawAnswer | undefined>;
  readonly isClosed: boolean;
  /** Resolves when the other side has closed or reset the connection. */
  readonly closed: Promise<void>;
  /** Takes nothing more from the connection, as a reader that hangs. */
  stopReading(): void;
  readOn(): void;
  /** Says that nothing more comes. */
  end(): void;
}

export async function openRaw(port: number): Promise<RawConnection> {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  let received = Buffer.alloc(0);
  let isClosed = false;
  const closed = Promise.withResolvers<void>();
  let news = Promise.withResolvers<void>();
  const tell = () => {
    news.resolve();
    news = Promise.withResolvers<void>();
  };
  socket.on("data", (bytes: Buffer) => {
    received = Buffer.concat([received, bytes]);
    tell();
  });
  // A reset closes it too.
  socket.on("error", () => undefined);
  socket.on("close", () => {
    isClosed = true;
    closed.resolve();
    tell();
  });
  await Promise.race([once(socket, "connect"), closed.promise]);
  return {
    send: (bytes) => void socket.write(bytes),
    get received() {
      return received;
    },
    get answers() {
      return parseAnswers(received, isClosed);
    },
    async answer(index = 0) {
      while (!isClosed) {
        const answer = parseAnswers(received, false)[index];
        if (answer !== undefined) return answer;
        await news.promise;
      }
      return parseAnswers(received, true)[index];
    },
    get isClosed() {
      return isClosed;
    },
    closed: closed.promise,
    stopReading: () => void socket.pause(),
    readOn: () => void socket.resume(),
    end: () => void socket.end(),
    [Symbol.dispose]: () => void socket.destroy(),
  };
}

/** Says `bytes` on a connection of its own. Resolves with the first answer, or undefined when there is none. */
export async function ask(
  port: number,
  bytes: string | Uint8Array,
): Promise<RawAnswer | undefined> {
  using connection = await openRaw(port);
  connection.send(bytes);
  return await connection.answer();
}

/** A request with its length, in the shape of a correct client. */
export function post(
  path: string,
  headers: Readonly<Record<string, string>>,
  body: string | Uint8Array = "",
): Buffer {
  return Buffer.concat([
    Buffer.from(
      head("POST", path, { ...headers, "content-length": String(Buffer.byteLength(body)) }),
    ),
    Buffer.from(body),
  ]);
}

/** The lines up to the empty one. `host` is given unless the caller gives it. */
export function head(
  method: string,
  path: string,
  headers: Readonly<Record<string, string>> = {},
): string {
  const lines = Object.entries({ host: "localhost", ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  );
  return `${method} ${path} HTTP/1.1\r\n${lines.join("")}\r\n`;
}

/** A message of a stream or of gRPC: a byte of flags (1: compressed), the length, the message. */
export function envelope(message: string | Uint8Array, claimedLength?: number, flags = 0): Buffer {
  const bytes = Buffer.from(message);
  const prefix = Buffer.of(flags, 0, 0, 0, 0);
  prefix.writeUInt32BE(claimedLength ?? bytes.length, 1);
  return Buffer.concat([prefix, bytes]);
}

/** The status code's name that an answer of any protocol but gRPC carries, wherever that protocol puts it. */
export function codeOf({ status, headers, body }: RawAnswer): string {
  const type = headers["content-type"] ?? "";
  if (type === "application/json" && status !== 200) return JSON.parse(body.toString()).code;
  if (type.startsWith("application/connect+")) {
    const end = lastEnvelope(body);
    return JSON.parse(end.toString() || "{}").error?.code ?? "ok";
  }
  if (type.startsWith("application/grpc-web")) {
    const [, code] = /^grpc-status: *(\d+)/im.exec(lastEnvelope(body).toString()) ?? [];
    return codeName(Number(code));
  }
  return status === 200 ? "ok" : `http_${status}`;
}

/** The name of a gRPC status, with `ok` for 0. */
export function codeName(grpcStatus: number): string {
  return grpcStatus === 0 ? "ok" : codeToString(grpcStatus);
}

function lastEnvelope(body: Buffer): Buffer {
  let last = body.subarray(0, 0);
  for (let at = 0; at + 5 <= body.length; ) {
    const length = body.readUInt32BE(at + 1);
    last = body.subarray(at + 5, at + 5 + length);
    at += 5 + length;
  }
  return last;
}

function parseAnswers(bytes: Buffer, isClosed: boolean): RawAnswer[] {
  const answers: RawAnswer[] = [];
  let rest = bytes;
  for (;;) {
    const headEnd = rest.indexOf("\r\n\r\n");
    if (headEnd < 0) return answers;
    const [statusLine = "", ...lines] = rest.toString("latin1", 0, headEnd).split("\r\n");
    const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(statusLine)?.[1]);
    rest = rest.subarray(headEnd + 4);
    if (status >= 100 && status < 200) continue;
    const headers = parseHeaders(lines);
    const body = takeBody(rest, headers, isClosed);
    if (body === undefined) return answers;
    answers.push({ status, headers, body: body.bytes });
    rest = body.rest;
  }
}

function parseHeaders(lines: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon).toLowerCase();
    const value = line.slice(colon + 1).trim();
    headers[name] = headers[name] === undefined ? value : `${headers[name]}, ${value}`;
  }
  return headers;
}

/** Undefined as long as the body is not whole. */
function takeBody(
  bytes: Buffer,
  headers: Readonly<Record<string, string>>,
  isClosed: boolean,
): { readonly bytes: Buffer; readonly rest: Buffer } | undefined {
  if (headers["transfer-encoding"] === "chunked") return takeChunks(bytes);
  const length = headers["content-length"];
  if (length === undefined) {
    return isClosed ? { bytes, rest: bytes.subarray(bytes.length) } : undefined;
  }
  const end = Number(length);
  if (bytes.length < end) return undefined;
  return { bytes: bytes.subarray(0, end), rest: bytes.subarray(end) };
}

function takeChunks(bytes: Buffer): { readonly bytes: Buffer; readonly rest: Buffer } | undefined {
  const chunks: Buffer[] = [];
  for (let at = 0; ; ) {
    const lineEnd = bytes.indexOf("\r\n", at);
    if (lineEnd < 0) return undefined;
    const length = Number.parseInt(bytes.toString("latin1", at, lineEnd), 16);
    const end = lineEnd + 2 + length;
    if (bytes.length < end + 2) return undefined;
    if (length === 0) return { bytes: Buffer.concat(chunks), rest: bytes.subarray(end + 2) };
    chunks.push(bytes.subarray(lineEnd + 2, end));
    at = end + 2;
  }
}
