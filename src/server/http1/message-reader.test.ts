import { once } from "node:events";
import { createServer, METHODS } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { startSessions } from "../../../test/support/http-sessions.ts";
import { openRaw } from "../../../test/support/raw-http.ts";
import type { HttpStream } from "../http-stream.ts";
import { Http1Session } from "./session.ts";

/** What a request said, as far as it can be told apart by who reads it. */
interface Read {
  readonly method: string;
  readonly url: string;
  readonly fields: unknown;
  readonly body: string;
}

/** Answers each whole request with nothing, and keeps what it said. */
function keep(requests: Read[]) {
  return (stream: HttpStream) => {
    const pieces: Buffer[] = [];
    stream.readBody({
      onData: (piece) => void pieces.push(piece),
      onEnd() {
        const { method, url, headers } = stream;
        const body = Buffer.concat(pieces).toString("latin1");
        requests.push({ method, url, fields: { ...headers }, body });
        stream.end();
      },
      onBroken: () => undefined,
    });
  };
}

/** The body of a request whose sender has broken it off. */
const broken = "\u2026";

/** Node's own server, which reads with llhttp. */
async function startNodeServer(requests: Read[]) {
  const server = createServer(
    { maxHeaderSize: 16_384, requireHostHeader: false },
    async (request, response) => {
      const { method = "", url = "", headers } = request;
      // It begins the next one before this one is answered.
      const place = requests.push({ method, url, fields: { ...headers }, body: broken }) - 1;
      const pieces = await Array.fromAsync(request).catch(() => undefined);
      if (pieces === undefined) return;
      const body = Buffer.concat(pieces).toString("latin1");
      requests[place] = { method, url, fields: { ...headers }, body };
      response.end();
    },
  );
  server.on("clientError", (_error, socket) => socket.destroy());
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  return { port, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** Both servers behind one call: what each of them has read of these bytes when it closes the connection. */
async function startBoth() {
  const ours: Read[] = [];
  const nodes: Read[] = [];
  const own = await startSessions(Http1Session, keep(ours));
  const node = await startNodeServer(nodes);
  const say = async (port: number, pieces: readonly Buffer[], requests: Read[]) => {
    using connection = await openRaw(port);
    for (const piece of pieces) {
      connection.send(piece);
      await new Promise((resolve) => setImmediate(resolve));
    }
    // What is still open then waits for more.
    connection.end();
    await connection.closed;
    return requests.splice(0);
  };
  return {
    own,
    read: async (pieces: readonly Buffer[]) => ({
      ours: await say(own.port, pieces, ours),
      nodes: await say(node.port, pieces, nodes),
    }),
    async [Symbol.asyncDispose]() {
      await own[Symbol.asyncDispose]();
      await node[Symbol.asyncDispose]();
    },
  };
}

const names = ["X-A", "x-b", "Accept", "User-Agent", "Content-Type", "X-API-Key", "Cookie"];
const value = fc.stringMatching(/^([!-~\x80-\xff]([ -~\t\x80-\xff]{0,30}[!-~\x80-\xff])?)?$/);
const field = fc.tuple(
  fc.constantFrom(...names),
  fc.constantFrom("", " ", "\t ", "  "),
  value,
  fc.constantFrom("", " ", " \t"),
);
const byte = fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code));
const body = fc.string({ unit: byte, maxLength: 60 });
const framing = fc.oneof(
  fc.record({ as: fc.constant("none" as const) }),
  fc.record({ as: fc.constant("length" as const), body }),
  fc.record({
    as: fc.constant("chunks" as const),
    chunks: fc.array(fc.string({ unit: byte, minLength: 1, maxLength: 40 }), { maxLength: 4 }),
    extension: fc.constantFrom("", ";a", ';a="b c"', ";a=b;c"),
    trailer: fc.constantFrom("", "X-Trailer: t\r\n"),
    isUpper: fc.boolean(),
  }),
);
const request = fc
  .record({
    method: fc.constantFrom("GET", "POST", "PUT", "OPTIONS", "DELETE"),
    url: fc.stringMatching(/^\/[!-~]{0,20}$/),
    fields: fc.uniqueArray(field, { maxLength: 6, selector: ([name]) => name }),
    framing,
  })
  .map(({ method, url, fields, framing: how }) => {
    let text = `${method} ${url} HTTP/1.1\r\nHost: localhost\r\n`;
    for (const [name, before, what, after] of fields)
      text += `${name}:${before}${what}${after}\r\n`;
    if (how.as === "none") text += "\r\n";
    if (how.as === "length") text += `Content-Length: ${how.body.length}\r\n\r\n${how.body}`;
    if (how.as === "chunks") {
      text += "Transfer-Encoding: Chunked\r\n\r\n";
      for (const chunk of how.chunks) {
        const size = chunk.length.toString(16);
        text += `${how.isUpper ? size.toUpperCase() : size}${how.extension}\r\n${chunk}\r\n`;
      }
      text += `0\r\n${how.trailer}\r\n`;
    }
    return Buffer.from(text, "latin1");
  });

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const places = at.map((part) => Math.floor(part * bytes.length)).sort((a, b) => a - b);
  return [0, ...places].map((from, index) => bytes.subarray(from, places[index] ?? bytes.length));
}

const part = fc.double({ min: 0, max: 1, noNaN: true });

describe("requests", () => {
  it("that are correct are read as Node reads them, one behind the other and in any cut", async () => {
    await using both = await startBoth();
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 4 }),
        fc.array(part, { maxLength: 4 }),
        async (requests, places) => {
          const { ours, nodes } = await both.read(cut(Buffer.concat(requests), places));
          expect(ours).toHaveLength(requests.length);
          expect(ours).toEqual(nodes);
        },
      ),
      { numRuns: 300 },
    );
    expect(both.own.bugs).toEqual([]);
  });

  it("are read byte by byte as in one piece", async () => {
    await using both = await startBoth();
    for (const bytes of fc.sample(request, { numRuns: 20, seed: 1 })) {
      const { ours } = await both.read([bytes]);
      const pieces = Array.from(bytes, (byte) => Buffer.of(byte));
      expect((await both.read(pieces)).ours).toEqual(ours);
    }
  });

  it("that are broken are never read otherwise than by Node, and read no further", async () => {
    await using both = await startBoth();
    const change = fc.record({
      at: part,
      removed: fc.nat({ max: 3 }),
      added: fc.string({ unit: fc.constantFrom(...'\r\n\0\t :;,"0159aAfxX-\x80'), maxLength: 3 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 3 }),
        fc.array(change, { minLength: 1, maxLength: 3 }),
        async (requests, changes) => {
          let text = Buffer.concat(requests).toString("latin1");
          for (const { at, removed, added } of changes) {
            const place = Math.floor(at * text.length);
            text = text.slice(0, place) + added + text.slice(place + removed);
          }
          const { ours, nodes } = await both.read([Buffer.from(text, "latin1")]);
          // Node has a list of methods, and knows what a target looks like: both are for others to judge here, as a missing Host is.
          const unknown = ours.findIndex(
            ({ method, url }) => !METHODS.includes(method) || !url.startsWith("/"),
          );
          const known = unknown === -1 ? ours : ours.slice(0, unknown);
          expect(nodes.slice(0, known.length)).toEqual(known);
        },
      ),
      { numRuns: 1000 },
    );
    expect(both.own.bugs).toEqual([]);
  });
});
