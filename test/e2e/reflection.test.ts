import { setTimeout } from "node:timers/promises";
import { fromBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  ServerReflection,
  type ServerReflectionRequestSchema,
} from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { type FakeVllm, startFakeVllm } from "../support/fake-vllm.ts";
import { startApp, type TestApp, transportFor } from "../support/start-app.ts";

let vllm: FakeVllm;
let app: TestApp;
beforeAll(async () => {
  vllm = await startFakeVllm();
  app = await startApp({ VLLM_URL: vllm.url.href });
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await vllm[Symbol.asyncDispose]();
});

const client = () => createClient(ServerReflection, transportFor("gRPC", app.url));

type Query = MessageInitShape<typeof ServerReflectionRequestSchema>;

async function ask(...queries: Query[]) {
  async function* requests() {
    yield* queries;
  }
  const answers = await Array.fromAsync(client().serverReflectionInfo(requests()));
  return answers.map(({ messageResponse }) => messageResponse);
}

describe("server reflection", () => {
  it("lists every service, in both versions", async () => {
    const [v1] = await ask({ messageRequest: { case: "listServices", value: "" } });
    async function* requests() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
    }
    const alphaClient = createClient(ServerReflectionAlpha, transportFor("gRPC", app.url));
    const [alpha] = await Array.fromAsync(alphaClient.serverReflectionInfo(requests()));
    const names = [
      "formdev.chat.v1.ChatService",
      "formdev.model.v1.ModelService",
      "formdev.usage.v1.UsageService",
      "formdev.health.v1.HealthService",
      "grpc.health.v1.Health",
    ];
    const expected = {
      case: "listServicesResponse",
      value: { service: names.map((name) => ({ name })) },
    };
    expect(v1).toMatchObject(expected);
    expect(alpha?.messageResponse).toMatchObject(expected);
  });

  it.each([
    ["fileByFilename", "formdev/chat/v1/chat_service.proto"],
    ["fileContainingSymbol", "formdev.chat.v1.ChatService"],
    ["fileContainingSymbol", "formdev.chat.v1.ChatService.StreamChat"],
    ["fileContainingSymbol", "formdev.chat.v1.ChatRequest"],
    ["fileContainingSymbol", "formdev.chat.v1.ChatRequest.max_tokens"],
  ] as const)("gives the file for %s %s", async (kind, value) => {
    const [answer] = await ask({ messageRequest: { case: kind, value } });
    if (answer?.case !== "fileDescriptorResponse") throw new Error("no file came");
    const [bytes = new Uint8Array()] = answer.value.fileDescriptorProto;
    expect(fromBinary(FileDescriptorProtoSchema, bytes).name).toBe(
      "formdev/chat/v1/chat_service.proto",
    );
  });

  it("gives the rules' own file and its extensions, which clients need to read ours", async () => {
    const [numbers, file] = await ask(
      {
        messageRequest: {
          case: "allExtensionNumbersOfType",
          value: "google.protobuf.FieldOptions",
        },
      },
      {
        messageRequest: {
          case: "fileContainingExtension",
          value: { containingType: "google.protobuf.FieldOptions", extensionNumber: 1159 },
        },
      },
    );
    expect(numbers).toMatchObject({
      case: "allExtensionNumbersResponse",
      value: { extensionNumber: expect.arrayContaining([1159]) },
    });
    expect(file?.case).toBe("fileDescriptorResponse");
  });

  it.each(["fileByFilename", "fileContainingSymbol"] as const)(
    "says NOT_FOUND for an unknown %s, and goes on",
    async (kind) => {
      const [unknown, known] = await ask(
        { messageRequest: { case: kind, value: "../../etc/passwd" } },
        { messageRequest: { case: "listServices", value: "" } },
      );
      expect(unknown).toMatchObject({ case: "errorResponse", value: { errorCode: 5 } });
      expect(known?.case).toBe("listServicesResponse");
    },
  );

  it("keeps a two-way stream open as long as its caller wants", async () => {
    async function* requests() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      // Longer than a refused body's sender is waited for (server/node-http.ts).
      await setTimeout(1300);
      yield { messageRequest: { case: "listServices" as const, value: "" } };
    }
    expect(await Array.fromAsync(client().serverReflectionInfo(requests()))).toHaveLength(2);
    expect(app.logs.filter(({ level }) => Number(level) >= 40)).toEqual([]);
  });
});
