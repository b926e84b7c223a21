import {
  type DescMessage,
  fromBinary,
  fromJsonString,
  type MessageShape,
  toBinary,
  toJsonString,
} from "@bufbuild/protobuf";
import type { ConnectError } from "@connectrpc/connect";
import { createEndStreamSerialization, endStreamFlag } from "@connectrpc/connect/protocol-connect";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";

/**
 * How a content type carries the messages of a call: what the direct methods (rpc/direct.ts) need of the three protocols.
 * Errors before the answer's head are Connect's to write; the words of those after it come from Connect's own functions.
 */
export interface Wire {
  /** Of the answer, as Connect writes it. */
  readonly contentType: string;
  readonly isJson: boolean;
  /** Whether each message has a flag byte and four bytes of length in front. Without them it is the whole body. */
  readonly isEnveloped: boolean;
  /** What comes after the last message: bytes of the body, or HTTP trailers. */
  end(error?: ConnectError): WireEnd;
}

export interface WireEnd {
  readonly bytes?: Buffer;
  readonly trailers?: Readonly<Record<string, string>>;
}

/** A misspelt field must not pass silently. */
export const jsonOptions = { ignoreUnknownFields: false };

/** A flag byte and four bytes of length. */
export const envelopeBytes = 5;

/** A message with its envelope. */
export function envelope(flags: number, message: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(envelopeBytes + message.length);
  bytes[0] = flags;
  bytes.writeUInt32BE(message.length, 1);
  bytes.set(message, envelopeBytes);
  return bytes;
}

/** The message of a request that has one; undefined for anything but one whole, uncompressed, well-formed message. */
export function decode<Desc extends DescMessage>(
  schema: Desc,
  wire: Wire,
  body: Buffer,
): MessageShape<Desc> | undefined {
  if (wire.isEnveloped) {
    const isWhole =
      body.length >= envelopeBytes &&
      body[0] === 0 &&
      body.readUInt32BE(1) === body.length - envelopeBytes;
    if (!isWhole) return undefined;
  }
  const bytes = wire.isEnveloped ? body.subarray(envelopeBytes) : body;
  try {
    return wire.isJson
      ? fromJsonString(schema, bytes.toString("utf8"), jsonOptions)
      : fromBinary(schema, bytes);
  } catch {
    return undefined;
  }
}

/** One message of an answer as it goes into the body. */
export function encode<Desc extends DescMessage>(
  schema: Desc,
  wire: Wire,
  message: MessageShape<Desc>,
): Buffer {
  const bytes = wire.isJson
    ? Buffer.from(toJsonString(schema, message))
    : toBinary(schema, message);
  return wire.isEnveloped
    ? envelope(0, bytes)
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** The wire of a content type, written as clients usually write it; undefined for every other. */
export function wireOf(contentType: string, isStream: boolean): Wire | undefined {
  // gRPC and gRPC-Web without a codec mean protobuf.
  const named = /^application\/grpc(-web)?$/.test(contentType)
    ? `${contentType}+proto`
    : contentType;
  return (isStream ? streamWires : unaryWires).get(named);
}

const endStream = createEndStreamSerialization(undefined);

const grpcEnd = (error?: ConnectError): WireEnd => ({
  trailers: Object.fromEntries(setTrailerStatus(new Headers(), error)),
});
const grpcWebEnd = (error?: ConnectError): WireEnd => {
  const trailer = setTrailerStatus(new Headers(), error);
  return { bytes: envelope(trailerFlag, trailerSerialize(trailer)) };
};
const connectStreamEnd = (error?: ConnectError): WireEnd => {
  const end = { metadata: new Headers(), ...(error !== undefined && { error }) };
  return { bytes: envelope(endStreamFlag, endStream.serialize(end)) };
};

/** An end without an error is always the same. */
function withEnd(end: (error?: ConnectError) => WireEnd): Wire["end"] {
  const ok = end();
  return (error) => (error === undefined ? ok : end(error));
}

/** The two codecs of a protocol. `prefix` is what their content types have in front. */
function codecs(prefix: string, isEnveloped: boolean, end: Wire["end"]): [string, Wire][] {
  return [false, true].map((isJson) => {
    const contentType = `${prefix}${isJson ? "json" : "proto"}`;
    return [contentType, { contentType, isJson, isEnveloped, end }];
  });
}

const grpcWires = new Map([
  ...codecs("application/grpc+", true, withEnd(grpcEnd)),
  ...codecs("application/grpc-web+", true, withEnd(grpcWebEnd)),
]);

const unaryWires = new Map([
  ...grpcWires,
  ...codecs(
    "application/",
    false,
    withEnd(() => ({})),
  ),
]);

const streamWires = new Map([
  ...grpcWires,
  ...codecs("application/connect+", true, withEnd(connectStreamEnd)),
]);
