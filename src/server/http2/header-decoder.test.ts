import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { HeaderDecoder } from "./header-decoder.ts";
import { HeaderEncoder } from "./header-encoder.ts";
import { ConnectionFault } from "./protocol.ts";

const newDecoder = () => new HeaderDecoder({ bytes: 16_384, fields: 128 });
const bytes = (hex: string) => Buffer.from(hex.replaceAll(" ", ""), "hex");

/** The pairs of a block, as text: `name: value`. */
function decode(decoder: HeaderDecoder, hex: string): string[] {
  const { fields } = decoder.decode(bytes(hex));
  return fields.flatMap((name, at) => (at % 2 === 0 ? [`${name}: ${fields[at + 1]}`] : []));
}

describe("the examples of RFC 7541", () => {
  it.each([
    ["C.2.1", "400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header"],
    ["C.2.2", "040c2f73616d706c652f70617468", ":path: /sample/path"],
    ["C.2.3", "100870617373776f726406736563726574", "password: secret"],
    ["C.2.4", "82", ":method: GET"],
  ])("%s", (_section, hex, field) => {
    expect(decode(newDecoder(), hex)).toEqual([field]);
  });

  it("C.4, three requests that refer to one another", () => {
    const decoder = newDecoder();
    const request = (scheme: string, path: string, ...more: string[]) => [
      ":method: GET",
      `:scheme: ${scheme}`,
      `:path: ${path}`,
      ":authority: www.example.com",
      ...more,
    ];
    expect(decode(decoder, "828684418cf1e3c2e5f23a6ba0ab90f4ff")).toEqual(request("http", "/"));
    expect(decode(decoder, "828684be5886a8eb10649cbf")).toEqual(
      request("http", "/", "cache-control: no-cache"),
    );
    expect(decode(decoder, "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")).toEqual(
      request("https", "/index.html", "custom-key: custom-value"),
    );
  });

  it("C.6, three answers whose table holds 256 bytes", () => {
    const decoder = newDecoder();
    const size = "3fe101";
    const location = "location: https://www.example.com";
    const first = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    expect(
      decode(
        decoder,
        `${size} 488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff
         6e919d29ad171863c78f0b97c8e9ae82ae43d3`.replace(/\s/g, ""),
      ),
    ).toEqual([":status: 302", "cache-control: private", first, location]);
    expect(decode(decoder, "4883640effc1c0bf")).toEqual([
      ":status: 307",
      "cache-control: private",
      first,
      location,
    ]);
    expect(
      decode(
        decoder,
        `88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335
         dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007`.replace(/\s/g, ""),
      ),
    ).toEqual([
      ":status: 200",
      "cache-control: private",
      "date: Mon, 21 Oct 2013 20:13:22 GMT",
      location,
      "content-encoding: gzip",
      "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ]);
  });
});

describe("a block that nothing can be decoded after", () => {
  it.each([
    ["refers to index 0", "80"],
    ["refers to what is not in the table", "be"],
    ["names what is not in the table", "7f80ffff0f0161"],
    ["ends within an integer", "ff"],
    ["ends within a string", "400a6375"],
    ["has an integer without an end", "ffffffffffffffff7f"],
    ["enlarges the table beyond its bound", "3fe21f"],
    ["changes the table's size after a field", "8220"],
    ["pads a string with zeros", "400161 82f1e0"],
    ["pads a string with eight bits", "400161 83f1e3ff"],
    ["has the end of strings in a string", "400161 84ffffffff"],
  ])("%s", (_what, hex) => {
    expect(() => newDecoder().decode(bytes(hex))).toThrow(ConnectionFault);
  });

  it("is found among any bytes, and nothing else ever happens", () => {
    const decoder = newDecoder();
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (random) => {
        try {
          decoder.decode(Buffer.from(random));
        } catch (error) {
          if (!(error instanceof ConnectionFault)) throw error;
        }
      }),
      { numRuns: 5000 },
    );
  });
});

describe("fields beyond the bounds", () => {
  it("are thrown away, and the next block is read as it is", () => {
    const decoder = new HeaderDecoder({ bytes: 100, fields: 3 });
    const large = new HeaderEncoder().encode(["x-large", "a".repeat(200)], false);
    expect(decoder.decode(large)).toMatchObject({ tooLarge: true, fields: [] });
    const many = new HeaderEncoder().encode(["a", "1", "b", "2", "c", "3", "d", "4"], false);
    expect(decoder.decode(many).tooLarge).toBe(true);
    // Added to the table by a block that was too large itself.
    const added = Buffer.concat([bytes("400178 0131"), large]);
    expect(decoder.decode(added).tooLarge).toBe(true);
    expect(decode(decoder, "be")).toEqual(["x: 1"]);
  });

  it("are not made by referring to one large entry again and again", () => {
    const decoder = newDecoder();
    const entry = bytes(`400178 7fa11e${"61".repeat(4000)}`);
    expect(decoder.decode(entry).tooLarge).toBe(false);
    const { fields, tooLarge } = decoder.decode(Buffer.alloc(60_000, 0xbe));
    expect(tooLarge).toBe(true);
    expect(fields.join("").length).toBeLessThan(16_384);
  });
});

it("says which fields no one may send, also when they come from the table", () => {
  const decoder = newDecoder();
  const add = (name: string, value: string) =>
    Buffer.concat([
      Buffer.of(0x40, name.length),
      Buffer.from(name),
      Buffer.of(value.length),
      Buffer.from(value, "latin1"),
    ]);
  for (const [name, value] of [
    ["X-Upper", "1"],
    ["a b", "1"],
    ["", "1"],
    ["x", "1\r\nx-api-key: 2"],
    ["x", "\0"],
  ] as const) {
    expect(decoder.decode(add(name, value)).malformed, `${name}: ${value}`).toBe(true);
    expect(decoder.decode(bytes("be")).malformed).toBe(true);
  }
  expect(decoder.decode(add("x", "1\n")).malformed).toBe(true);
  // Only the name is taken from the table.
  expect(decoder.decode(Buffer.of(0x7e, 1, 0x31)).malformed).toBe(false);
  expect(decoder.decode(add("x", " é ")).malformed).toBe(false);
  expect(decoder.decode(bytes("be")).malformed).toBe(false);
});

it("reads what the encoder writes, whatever its length", () => {
  const encoder = new HeaderEncoder();
  const decoder = new HeaderDecoder({ bytes: 200_000, fields: 128 });
  const name = fc.stringMatching(/^[a-z][a-z0-9-]{0,200}$/);
  const value = fc.string({ maxLength: 20_000, unit: "grapheme-ascii" });
  fc.assert(
    fc.property(fc.array(fc.tuple(name, value), { maxLength: 5 }), fc.boolean(), (pairs, reset) => {
      expect(decoder.decode(encoder.encode(pairs.flat(), reset)).fields).toEqual(pairs.flat());
    }),
  );
});
