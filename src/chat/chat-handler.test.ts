import { fromBinary, fromJsonString } from "@bufbuild/protobuf";
import fc from "fast-check";
import { expect, it } from "vitest";
import { StreamChatResponseSchema } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { noUsage } from "../inference/engine.ts";
import { envelopeBytes, wireOf } from "../rpc/wire.ts";
import { encodeStreamPart } from "./chat-handler.ts";

/** Around every length at which a length needs one more byte. */
const text = fc.oneof(
  fc.string({ unit: "binary", minLength: 1 }).filter((each) => each.isWellFormed()),
  fc
    .constantFrom(120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16_375, 16_380, 16_384, 70_000)
    .chain((length) => fc.constantFrom("a".repeat(length), `é${"a".repeat(length - 2)}`)),
);

it.each(["application/grpc+proto", "application/connect+json"])(
  "writes a text by hand as the generated code reads it, in %s",
  (contentType) => {
    const wire = wireOf(contentType, true);
    if (wire === undefined) throw new Error("no wire");
    fc.assert(
      fc.property(fc.constantFrom("text-delta", "reasoning-delta"), text, (type, said) => {
        const bytes = encodeStreamPart(wire, { type, text: said }, noUsage);
        expect(bytes[0]).toBe(0);
        expect(bytes.readUInt32BE(1)).toBe(bytes.length - envelopeBytes);
        const message = bytes.subarray(envelopeBytes);
        const { part } = wire.isJson
          ? fromJsonString(StreamChatResponseSchema, message.toString())
          : fromBinary(StreamChatResponseSchema, message);
        expect(part.case).toBe(type === "text-delta" ? "textDelta" : "reasoningDelta");
        expect(part.value).toMatchObject({ text: said });
      }),
    );
  },
);
