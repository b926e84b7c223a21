import { create } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import { createConnectRouter, type ServiceImpl } from "@connectrpc/connect";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { compressionGzip } from "@connectrpc/connect-node";
import { createValidateInterceptor } from "@connectrpc/validate";
import { ChatRequestSchema, ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";
import { HealthService } from "../../gen/formdev/health/v1/health_service_pb.ts";
import { ModelService } from "../../gen/formdev/model/v1/model_service_pb.ts";
import { UsageService } from "../../gen/formdev/usage/v1/usage_service_pb.ts";
import { Health as GrpcHealthService } from "../../gen/grpc/health/v1/health_pb.ts";
import type { ChatHandler } from "../chat/chat-handler.ts";
import type { Health } from "../health/health.ts";
import { createGrpcHealthHandler, createHealthHandler } from "../health/health-handler.ts";
import type { Counting } from "../limits/call-limits.ts";
import { callOf } from "./call.ts";
import type { DirectMethod } from "./direct.ts";
import { mapErrors, toConnectError } from "./error-mapping.ts";
import { isPlainlyValid } from "./plainly-valid.ts";
import { addReflection } from "./reflection.ts";
import { decode, envelopeBytes, jsonOptions } from "./wire.ts";

/** The services with an own contract. A client's key opens all of them. */
const services = [ChatService, ModelService, UsageService, HealthService] as const;

/** Needs no key: what load balancers and orchestrators ask. Everything else is refused without one. */
export const publicRpcs: ReadonlySet<string> = new Set([
  `${HealthService.typeName}/Check`,
  `${GrpcHealthService.typeName}/Check`,
  `${GrpcHealthService.typeName}/List`,
]);

/** How a method counts that needs a key: what asks nothing of an engine does not, and what costs tokens asks for them itself. */
export function countingOf(rpc: string): Counting {
  return countings.get(rpc) ?? "now";
}

const countings: ReadonlyMap<string, Counting> = new Map([
  [`${ChatService.typeName}/Chat`, "later"],
  [`${ChatService.typeName}/StreamChat`, "later"],
  [`${ModelService.typeName}/Embed`, "later"],
  // Asking what is left must not use it up.
  [`${UsageService.typeName}/GetUsage`, "never"],
  [`${GrpcHealthService.typeName}/Watch`, "never"],
  ["grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "never"],
  ["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "never"],
]);

export interface Routes {
  readonly handlers: readonly UniversalHandler[];
  /** By path: the methods whose usual calls do not need Connect's pipeline. */
  readonly direct: ReadonlyMap<string, DirectMethod>;
}

/**
 * Every method that the port serves, in the three protocols, with the same rules for each: refusals of the gate before
 * the body is read, limits of size and time, validation after the contract's rules, one mapping of errors.
 */
export function createRoutes(options: {
  readonly chat: ChatHandler;
  readonly model: ServiceImpl<typeof ModelService>;
  readonly usage: ServiceImpl<typeof UsageService>;
  readonly health: Health;
  /** The most bytes of one message, also after decompression. */
  readonly readMaxBytes: number;
  /** The longest deadline. Later ones are lowered to it before they get here. */
  readonly maxTimeoutMs: number;
  /** Aborts, with the error that callers see, when the drain's time is over. */
  readonly shutdownSignal: AbortSignal;
}): Routes {
  const validator = createValidator();
  // Compiles the rules now, which takes 0.1 s, and not while the first caller waits.
  validator.validate(ChatRequestSchema, create(ChatRequestSchema));
  const router = createConnectRouter({
    readMaxBytes: options.readMaxBytes,
    maxTimeoutMs: options.maxTimeoutMs,
    shutdownSignal: options.shutdownSignal,
    // Requests may be gzipped. Never Brotli: its decoder would be open to everybody (CVE-2026-111497).
    acceptCompression: [compressionGzip],
    // Answers are not compressed: tokens are small, and the CPU is the gateway's scarce good.
    compressMinBytes: uncompressed,
    jsonOptions,
    requestGate(context) {
      const { refusal } = callOf(context);
      if (refusal !== undefined) throw toConnectError(refusal);
    },
    interceptors: [mapErrors, createValidateInterceptor({ validator })],
  });
  router.service(ChatService, options.chat.service);
  router.service(ModelService, options.model);
  router.service(UsageService, options.usage);
  router.service(HealthService, createHealthHandler(options.health));
  const names = new Set(services.map(({ typeName }) => typeName));
  router.service(GrpcHealthService, createGrpcHealthHandler(options.health, names));
  addReflection(router, [...services, GrpcHealthService]);

  const direct = (open: ChatHandler["direct"]["chat"]): DirectMethod => ({
    open(wire, body) {
      if (body.length - (wire.isEnveloped ? envelopeBytes : 0) > options.readMaxBytes)
        return undefined;
      const request = decode(ChatRequestSchema, wire, body);
      if (request === undefined) return undefined;
      const isValid =
        isPlainlyValid(request) || validator.validate(ChatRequestSchema, request).kind === "valid";
      return isValid ? open(request, wire) : undefined;
    },
  });
  return {
    handlers: router.handlers,
    direct: new Map([
      [`/${ChatService.typeName}/Chat`, direct(options.chat.direct.chat)],
      [`/${ChatService.typeName}/StreamChat`, direct(options.chat.direct.streamChat)],
    ]),
  };
}

/** Connect's largest limit: no answer reaches it. */
const uncompressed = 0xffffffff;
