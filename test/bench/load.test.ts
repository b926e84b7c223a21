import { describe, expect, it } from "vitest";
import { Answer, Tally } from "./load.ts";
import { tokenText } from "./tokens.ts";
import { aliasCall, engineStream, grpcStream, jsonStream, type Wire, webStream } from "./wires.ts";

/** What is counted of an answer that arrives in these pieces. */
function count(
  pieces: readonly Buffer[],
  end: { wire: Wire; tokens: number; grpcStatus?: string },
): Tally {
  const tally = new Tally();
  const answer = new Answer(() => tally);
  for (const piece of pieces) answer.read(piece);
  answer.end(end.wire, end.tokens, { status: 200, grpcStatus: end.grpcStatus });
  return tally;
}

const texts = (...numbers: number[]) => numbers.map((number) => tokenText(number, 5)).join("");
const grpc = { wire: grpcStream, tokens: 3, grpcStatus: "0" };

describe("the load", () => {
  it("finds each token wherever the bytes are cut, also beside bytes that look like the begin of one", () => {
    const bytes = Buffer.from(`\0\0\0\0<\x12<\n<${texts(1, 2)}\0\0\0\0<\x12:\n8${texts(3)}`);
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      const pieces = [bytes.subarray(0, cut), bytes.subarray(cut)];
      expect(count(pieces, grpc)).toMatchObject({ tokens: 3, calls: 1, errors: 0, lost: 0 });
    }
  });

  it.each([
    ["missing at the end", [1, 2]],
    ["missing in the middle", [1, 3]],
    ["twice", [1, 2, 2, 3]],
    ["out of order", [1, 3, 2]],
    ["too many", [1, 2, 3, 4]],
  ])("counts an answer as lost that has a token %s", (_, numbers) => {
    expect(count([Buffer.from(texts(...numbers))], grpc)).toMatchObject({ errors: 0, lost: 1 });
  });

  it.each<[string, Wire, good: string, bad: string]>([
    [
      "gRPC-Web",
      webStream,
      "\x80\0\0\0\x10grpc-status: 0\r\n",
      "\x80\0\0\0\x11grpc-status: 14\r\n",
    ],
    ["Connect", jsonStream, "\x02\0\0\0\x02{}", '\x02\0\0\0\x1b{"error":{"code":"internal"}}'],
    ["vLLM", engineStream, "data: [DONE]\n\n", "data: {}\n\n"],
    ["JSON", aliasCall, "}", '"'],
  ])("counts an answer of %s without its end as an error", (_, wire, good, bad) => {
    const withEnd = (end: string) =>
      count([Buffer.from(texts(1, 2, 3)), Buffer.from(end, "latin1")], { wire, tokens: 3 });
    expect(withEnd(good)).toMatchObject({ errors: 0, lost: 0 });
    expect(withEnd(bad)).toMatchObject({ errors: 1 });
    expect(withEnd("")).toMatchObject({ errors: 1 });
  });

  it("counts an answer of gRPC without a status, or with another one, as an error", () => {
    const pieces = [Buffer.from(texts(1, 2, 3))];
    expect(count(pieces, { wire: grpcStream, tokens: 3 })).toMatchObject({ errors: 1 });
    expect(count(pieces, { ...grpc, grpcStatus: "15" })).toMatchObject({ errors: 1 });
  });
});
