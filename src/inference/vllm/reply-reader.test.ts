import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ReplyReader } from "./reply-reader.ts";

/** What is said of a reply that arrives in these pieces; what follows it is `extra`. */
function readAll(pieces: readonly Buffer[], closed = false) {
  const heads: { status: number; type: string | undefined }[] = [];
  let body = "";
  let extra = 0;
  const reader = new ReplyReader({
    onHead: (status, headers) => heads.push({ status, type: headers["content-type"] }),
    onData: (bytes, start, end) => {
      expect(end).toBeGreaterThan(start);
      body += bytes.toString("latin1", start, end);
    },
  });
  for (const piece of pieces) {
    // As the connection does: a buffer that is longer than what was read into it, and is used again.
    const buffer = Buffer.concat([piece, Buffer.from("stale bytes of another caller\r\n\r\n")]);
    const taken = reader.isDone ? 0 : reader.read(buffer, piece.length);
    extra += piece.length - taken;
    buffer.fill("#");
  }
  if (closed) reader.end();
  const { isDone, keepsConnection } = reader;
  return { heads, body, extra, isDone, keepsConnection };
}

/** The same bytes cut at these places. */
function cut(reply: string, places: readonly number[]): Buffer[] {
  const bytes = Buffer.from(reply, "latin1");
  const ends = [...places, bytes.length]
    .map((place) => Math.min(place, bytes.length))
    .toSorted((one, other) => one - other);
  return ends.map((end, index) => bytes.subarray(ends[index - 1] ?? 0, end));
}

const places = fc.array(fc.nat(400), { maxLength: 12 });
const ok = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
const head = { status: 200, type: "text/event-stream" };
const whole = { heads: [head], extra: 0, isDone: true, keepsConnection: true };

describe("a reply, however the network has cut it", () => {
  const chunked = `${ok}transfer-encoding: chunked\r\n\r\n`;
  const replies: Record<string, [reply: string, said: object]> = {
    "of a length": [`${ok}content-length: 9\r\n\r\ndata: 1\n\n`, { ...whole, body: "data: 1\n\n" }],
    "in chunks": [
      `${chunked}9\r\ndata: 1\n\n\r\nA\r\ndata: 22\n\n\r\n0\r\n\r\n`,
      { ...whole, body: "data: 1\n\ndata: 22\n\n" },
    ],
    "in chunks with extensions, zeros, capitals and trailers": [
      `${ok}Transfer-Encoding: Chunked\r\n\r\n000a ; x="\t;"\r\n0123456789\r\n0;last\r\ndigest: 1\r\nx: 2\r\n\r\n`,
      { ...whole, body: "0123456789" },
    ],
    "with nothing in it": [`${ok}Content-Length:0\r\n\r\n`, { ...whole, body: "" }],
    "after interim ones": [
      `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n${chunked}1\r\nx\r\n0\r\n\r\n`,
      { ...whole, body: "x" },
    ],
    "that has no body": [
      "HTTP/1.1 204 No Content\r\n\r\n",
      { ...whole, heads: [{ status: 204, type: undefined }], body: "" },
    ],
    "after which the server closes": [
      `${chunked.replace("\r\n\r\n", "\r\nconnection: x, Close\r\n\r\n")}1\r\nx\r\n0\r\n\r\n`,
      { ...whole, body: "x", keepsConnection: false },
    ],
    "of HTTP/1.0": [
      `${ok.replace("1.1", "1.0")}content-length: 1\r\n\r\nx`,
      { ...whole, body: "x", keepsConnection: false },
    ],
    "with bytes after it that nobody asked for": [
      `${chunked}1\r\nx\r\n0\r\n\r\n${ok}\r\n`,
      { ...whole, body: "x", extra: ok.length + 2 },
    ],
    "that is not over": [`${chunked}5\r\nxxx`, { ...whole, body: "xxx", isDone: false }],
  };
  it.each(Object.entries(replies))("%s", (_, [reply, said]) => {
    fc.assert(
      fc.property(places, (at) => {
        expect(readAll(cut(reply, at))).toEqual(said);
      }),
    );
  });

  it("up to the end of the connection, and only that kind is complete with it", () => {
    fc.assert(
      fc.property(places, (at) => {
        const open = readAll(cut(`${ok}\r\nto the end`, at), true);
        expect(open).toEqual({ ...whole, body: "to the end", keepsConnection: false });
        expect(readAll(cut(`${chunked}5\r\nxx`, at), true).isDone).toBe(false);
        expect(readAll(cut(ok, at), true).isDone).toBe(false);
      }),
    );
  });

  it("of any body in chunks of any sizes", () => {
    const body = fc.string({ unit: "binary", maxLength: 60 });
    fc.assert(
      fc.property(fc.array(body, { maxLength: 8 }), places, (parts, at) => {
        const chunks = parts.map((part) => Buffer.from(part)).filter(({ length }) => length > 0);
        const reply = chunks.map(
          (chunk) => `${chunk.length.toString(16)}\r\n${chunk.toString("latin1")}\r\n`,
        );
        const sent = Buffer.concat(chunks).toString("latin1");
        const said = readAll(cut(`${chunked}${reply.join("")}0\r\n\r\n`, at));
        expect(said).toEqual({ ...whole, body: sent });
      }),
    );
  });
});

describe("a head as long as may be", () => {
  it.each([
    ["spaces around nothing", " ".repeat(16_000), 200],
    ["spaces within a value", `a${" ".repeat(16_000)}b`, 200],
    ["spaces before what is refused", `${" ".repeat(16_000)}\u0001`, undefined],
  ])("is read in no time to speak of: %s", (_, value, status) => {
    const startedAt = process.cpuUsage();
    const read = () => readAll([Buffer.from(`${ok}content-length: 0\r\nx:${value}\r\n\r\n`)]);
    if (status === undefined) expect(read).toThrow(Error);
    else expect(read().heads[0]).toMatchObject({ status });
    // Linear work takes a millisecond, an expression that tries every way minutes.
    expect(process.cpuUsage(startedAt).user).toBeLessThan(200_000);
  });
});

describe("what could be understood in two ways is refused, however it is cut", () => {
  const replies: Record<string, string> = {
    "no HTTP": "ICY 200 OK\r\n\r\n",
    "another version": "HTTP/2 200 OK\r\n\r\n",
    "a status that is none": "HTTP/1.1 20 OK\r\n\r\n",
    "another protocol": "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    "lines without CR": `${ok.replaceAll("\r", "")}content-length: 1\r\n\r\nx`,
    "a folded header": `${ok}x: 1\r\n 2\r\n\r\n`,
    "a header without a colon": `${ok}x\r\n\r\n`,
    "a space before the colon": `${ok}content-length : 1\r\n\r\nx`,
    "a control character in a header": `${ok}x: \0\r\n\r\n`,
    "two lengths": `${ok}content-length: 1\r\ncontent-length: 2\r\n\r\nx`,
    "a length beside chunks": `${ok}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n`,
    "a length that is none": `${ok}content-length: +1\r\n\r\nx`,
    "another coding": `${ok}transfer-encoding: gzip, chunked\r\n\r\n`,
    "a chunk without its size": `${ok}transfer-encoding: chunked\r\n\r\n\r\nx`,
    "a size that is none": `${ok}transfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n`,
    "a size beyond all bounds": `${ok}transfer-encoding: chunked\r\n\r\n123456789\r\nx\r\n`,
    "a chunk that is longer than it says": `${ok}transfer-encoding: chunked\r\n\r\n1\r\nxy\r\n`,
    "a head without end": `${ok}x: ${"x".repeat(17_000)}`,
    "an extension without end": `${ok}transfer-encoding: chunked\r\n\r\n1;${"x".repeat(17_000)}`,
    "trailers without end": `${ok}transfer-encoding: chunked\r\n\r\n0\r\n${"x: 1\r\n".repeat(5_000)}`,
  };
  it.each(Object.entries(replies))("%s", (_, reply) => {
    fc.assert(
      fc.property(places, (at) => {
        expect(() => readAll(cut(reply, at))).toThrow(Error);
      }),
      { numRuns: 20 },
    );
  });
});
