/** What the load says in each protocol, and how each protocol says that an answer is whole. */
import { create, toBinary } from "@bufbuild/protobuf";
import { ChatRequestSchema } from "../../gen/formdev/chat/v1/chat_service_pb.ts";

/** The key that every call shows. */
export const key = "key-of-the-bench-0123456789";

/** Of the engine of the benchmark. */
export type Model = "paced" | "unpaced";

export interface Wire {
  readonly name: string;
  readonly http: 1 | 2;
  readonly path: string;
  readonly contentType: string;
  /** The request for an answer of this many tokens. */
  readonly body: (model: Model, tokens: number) => Buffer;
  /** Whether an answer of status 200 ended as this protocol ends a success. */
  readonly isWhole: (end: AnswerEnd) => boolean;
}

export interface AnswerEnd {
  /** The last bytes of the body, latin1. */
  readonly tail: string;
  /** `grpc-status` of the trailers. */
  readonly grpcStatus: string | undefined;
}

const streamPath = "/formdev.chat.v1.ChatService/StreamChat";
const callPath = "/formdev.chat.v1.ChatService/Chat";

const hasGrpcTrailer = ({ grpcStatus }: AnswerEnd) => grpcStatus === "0";
/** In the frame of trailers that ends the body. */
const hasWebTrailer = ({ tail }: AnswerEnd) => /grpc-status: ?0\r\n/i.test(tail);
/** An end-of-stream message (flag 2, and a length of four bytes) without an error. */
const hasConnectEnd = ({ tail }: AnswerEnd) => {
  const at = tail.lastIndexOf("\x02\0\0");
  return at >= 0 && tail.endsWith("}") && !tail.slice(at).includes('"error"');
};
const hasJsonEnd = ({ tail }: AnswerEnd) => tail.endsWith("}");

export const grpcStream: Wire = {
  name: "gRPC stream",
  http: 2,
  path: streamPath,
  contentType: "application/grpc+proto",
  body: inEnvelope(toProtobuf),
  isWhole: hasGrpcTrailer,
};

export const webStream: Wire = {
  name: "gRPC-Web stream",
  http: 2,
  path: streamPath,
  contentType: "application/grpc-web+proto",
  body: inEnvelope(toProtobuf),
  isWhole: hasWebTrailer,
};

export const jsonStream: Wire = {
  name: "Connect JSON stream",
  http: 2,
  path: streamPath,
  contentType: "application/connect+json",
  body: inEnvelope(toJson),
  isWhole: hasConnectEnd,
};

export const binaryStream: Wire = {
  name: "Connect binary stream",
  http: 2,
  path: streamPath,
  contentType: "application/connect+proto",
  body: inEnvelope(toProtobuf),
  isWhole: hasConnectEnd,
};

export const grpcCall: Wire = {
  name: "gRPC call",
  http: 2,
  path: callPath,
  contentType: "application/grpc+proto",
  body: inEnvelope(toProtobuf),
  isWhole: hasGrpcTrailer,
};

export const webCall: Wire = {
  name: "gRPC-Web call",
  http: 2,
  path: callPath,
  contentType: "application/grpc-web+proto",
  body: inEnvelope(toProtobuf),
  isWhole: hasWebTrailer,
};

export const jsonCall: Wire = {
  name: "Connect JSON call",
  http: 2,
  path: callPath,
  contentType: "application/json",
  body: toJson,
  isWhole: hasJsonEnd,
};

export const binaryCall: Wire = {
  name: "Connect binary call",
  http: 2,
  path: callPath,
  contentType: "application/proto",
  body: toProtobuf,
  // It has no mark of its own: HTTP says that it is complete.
  isWhole: () => true,
};

export const http1Stream: Wire = {
  ...jsonStream,
  name: "Connect JSON stream, HTTP/1.1",
  http: 1,
};

export const http1Call: Wire = { ...jsonCall, name: "Connect JSON call, HTTP/1.1", http: 1 };

export const aliasCall: Wire = { ...http1Call, name: "POST /v1/chat", path: "/v1/chat" };

/** The engine's own: what nginx passes on, and what the gateway asks for. */
export const engineStream: Wire = {
  name: "vLLM's SSE",
  http: 1,
  path: "/v1/chat/completions",
  contentType: "application/json",
  body: (model, tokens) => toBuffer({ ...toRequest(model, tokens), stream: true }),
  isWhole: ({ tail }) => tail.endsWith("data: [DONE]\n\n"),
};

/** The plain handler hands no bound on to the engine: the message says it too. */
function toRequest(model: Model, tokens: number) {
  return {
    model,
    max_tokens: tokens,
    messages: [{ role: "user", content: `Count to ${tokens}.` }],
  };
}

function toBuffer(message: object): Buffer {
  return Buffer.from(JSON.stringify(message));
}

function toJson(model: Model, tokens: number): Buffer {
  return toBuffer(toRequest(model, tokens));
}

function toProtobuf(model: Model, tokens: number): Buffer {
  const { messages } = toRequest(model, tokens);
  const request = create(ChatRequestSchema, { model, maxTokens: tokens, messages });
  return Buffer.from(toBinary(ChatRequestSchema, request));
}

function inEnvelope(toMessage: Wire["body"]): Wire["body"] {
  return (model, tokens) => {
    const message = toMessage(model, tokens);
    const head = Buffer.alloc(5);
    head.writeUInt32BE(message.length, 1);
    return Buffer.concat([head, message]);
  };
}
