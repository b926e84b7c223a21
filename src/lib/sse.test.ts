import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SseDecoder } from "./sse.ts";

const decode = (pieces: readonly Uint8Array[], options?: { eventBytesMax?: number }) => {
  const events: string[] = [];
  const decoder = new SseDecoder((data) => events.push(data), options);
  for (const piece of pieces) readAll(decoder, piece);
  return events;
};

/** Reads a piece out of a buffer that has other bytes before and after it. */
const readAll = (decoder: SseDecoder, piece: Uint8Array) => {
  const bytes = Buffer.concat([Buffer.from("\n\n"), piece, Buffer.from("\n\n")]);
  const end = 2 + piece.length;
  for (let at = 2; at < end; ) {
    const { eventCount } = decoder;
    const next = decoder.read(bytes, at, end);
    expect(next === end || decoder.eventCount === eventCount + 1).toBe(true);
    at = next;
  }
  bytes.fill("x");
};

const cut = (bytes: Buffer, offsets: readonly number[]) => {
  const edges = [
    0,
    ...offsets.map((o) => o % (bytes.length + 1)).sort((a, b) => a - b),
    bytes.length,
  ];
  return edges.slice(1).map((edge, i) => bytes.subarray(edges[i], edge));
};

/** The same rules, written for a whole text and for the eye: what the decoder is held against. */
const decodeWhole = (text: string) => {
  const events: string[] = [];
  let data: string[] = [];
  for (const line of text
    .replace(/^\ufeff/, "")
    .split(/\r\n|\r|\n/)
    .slice(0, -1)) {
    if (line === "") {
      if (data.length > 0) events.push(data.join("\n"));
      data = [];
    } else if (/^data(:|$)/.test(line)) data.push(line.replace(/^data:? ?/, ""));
  }
  return events;
};

const streams: Record<string, string> = {
  "a stream as vLLM sends it":
    'data: {"choices":[{"delta":{"content":"é"}}]}\n\ndata: {"usage":1}\n\ndata: [DONE]\n\n',
  "CRLF line ends": "data: un\r\ndata: deux\r\n\r\ndata: trois\r\n\r\n",
  "CR line ends": "data: un\rdata: deux\r\rdata: trois\r\r",
  "mixed line ends": "data: a\n\rdata: b\r\n\ndata: c\r\r\ndata: d\n\n",
  "comments and other fields":
    ": ping\n\nevent: x\nid: 1\nretry: 9\ndata: a\n: note\ndata: b\n\nevent: alone\n\n",
  "empty and unusual data":
    "data\n\ndata:\n\ndata:  two spaces\n\ndata:no space\n\ndatabase: no\n\ndat: no\n\ndata: \n\n",
  "code points of 2 to 4 bytes": "data: é€😀 à\u2028b\n\ndata: 日本\n\n",
  "a byte order mark": "\ufeffdata: a\n\n\ufeffdata: not a field\n\n",
  "an event without its end": "data: a\n\ndata: lost",
};

/** What vLLM 0.32 has streamed. */
const folder = new URL("../../test/fixtures/vllm/", import.meta.url);
const recordings = readdirSync(folder)
  .filter((file) => file.endsWith(".json"))
  .map((file): [string, string] => {
    const fixture = JSON.parse(readFileSync(new URL(file, folder), "utf8"));
    return [file, fixture.response.body];
  })
  .filter(([, body]) => body.startsWith("data: "));

describe("SseDecoder", () => {
  for (const [name, text] of Object.entries(streams)) {
    const bytes = Buffer.from(text);

    it(`gives the same events for ${name}, cut at every two offsets`, () => {
      const expected = decodeWhole(text);
      expect(decode([bytes])).toEqual(expected);
      expect(decode(cut(bytes, [...bytes.keys()]))).toEqual(expected);
      for (let i = 0; i <= bytes.length; i += 1)
        for (let j = i; j <= bytes.length; j += 1)
          expect(decode(cut(bytes, [i, j])), `cut at ${i} and ${j}`).toEqual(expected);
    });
  }

  it.each(recordings)(
    "gives the same events for the recording %s, cut at every offset",
    (_, body) => {
      const bytes = Buffer.from(body);
      const expected = decodeWhole(body);
      expect(decode([bytes])).toEqual(expected);
      for (let i = 0; i <= bytes.length; i += 1) {
        const events = decode([bytes.subarray(0, i), bytes.subarray(i)]);
        if (events.join("\0") !== expected.join("\0"))
          expect(events, `cut at ${i}`).toEqual(expected);
      }
    },
  );

  it("gives the same events for any text of lines in any cut", () => {
    const piece = fc.constantFrom(
      "data",
      "data:",
      "data: ",
      ": c",
      "id: 1",
      "é😀",
      "x",
      "\n",
      "\r",
      "\r\n",
      "\n\n",
      "\ufeff",
    );
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 40 }),
        fc.array(fc.nat(), { maxLength: 12 }),
        (parts, offsets) => {
          const text = parts.join("");
          expect(decode(cut(Buffer.from(text), offsets))).toEqual(decodeWhole(text));
        },
      ),
      { numRuns: 2_000 },
    );
  });

  it("never throws on bytes that are no text", () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 50 }), { maxLength: 8 }), (pieces) => {
        decode(pieces);
      }),
    );
  });

  it("looks at no byte twice: half a megabyte of line ends takes no time to speak of", () => {
    for (const end of ["\r", "\n", "\r\n"]) {
      const startedAt = process.cpuUsage();
      expect(decode([Buffer.from(end.repeat(500_000))])).toEqual([]);
      // Linear work takes 0.1 s here, a scan to the end of the chunk for every line takes half a minute.
      expect(process.cpuUsage(startedAt).user).toBeLessThan(5_000_000);
    }
  });

  it("knows when nothing of an event is kept", () => {
    const decoder = new SseDecoder(() => undefined);
    const states = ["data: a\n\n", "da", "ta: b\n", "\r", "\n", ": c\n", "\n"].map((piece) => {
      readAll(decoder, Buffer.from(piece));
      return decoder.isBetweenEvents;
    });
    expect(states).toEqual([true, false, false, false, true, true, true]);
  });

  describe("refuses an event that is too large", () => {
    const large = "x".repeat(101);
    const cases = {
      "in one chunk": [`data: ${large}\n\n`],
      "in many chunks": ["data: ", ...large],
      "in many lines": [...Array(60)].map(() => "data: x\n"),
      "as a comment that never ends": [": ", ...large],
    };
    for (const [name, pieces] of Object.entries(cases))
      it(name, () => {
        const bytes = pieces.map((piece) => Buffer.from(piece));
        expect(() => decode(bytes, { eventBytesMax: 100 })).toThrow(RangeError);
      });

    it("but takes any number of events below the bound", () => {
      const event = Buffer.from(`data: ${"x".repeat(90)}\n\n`);
      expect(decode(Array(50).fill(event), { eventBytesMax: 100 })).toHaveLength(50);
    });
  });
});
