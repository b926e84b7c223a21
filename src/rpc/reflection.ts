import {
  createRegistry,
  type DescFile,
  type DescService,
  type Registry,
  toBinary,
} from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectRouter } from "@connectrpc/connect";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.ts";

/**
 * Serves server reflection, v1 and v1alpha, so that grpcurl, `buf curl` and their like can call the API without its
 * protos. It tells about `services` and whatever their files import.
 */
export function addReflection(router: ConnectRouter, services: readonly DescService[]): void {
  const files = new Map<string, DescFile>();
  for (const service of services) addFile(service.file, files);
  const registry = createRegistry(...files.values());
  const names = services.map(({ typeName }) => ({ name: typeName }));

  // Both versions have the same messages under two package names.
  async function* reflect(requests: AsyncIterable<ReflectionRequest>) {
    for await (const request of requests) {
      yield {
        validHost: request.host,
        messageResponse: respond(request.messageRequest, { files, registry, names }),
      };
    }
  }
  router.service(ServerReflection, { serverReflectionInfo: reflect });
  router.service(ServerReflectionAlpha, { serverReflectionInfo: reflect });
}

interface ReflectionRequest {
  readonly host: string;
  readonly messageRequest: Query;
}

type Query =
  | { case: "fileByFilename" | "fileContainingSymbol"; value: string }
  | { case: "allExtensionNumbersOfType" | "listServices"; value: string }
  | {
      case: "fileContainingExtension";
      value: { readonly containingType: string; readonly extensionNumber: number };
    }
  | { case: undefined; value?: undefined };

interface Known {
  readonly files: ReadonlyMap<string, DescFile>;
  readonly registry: Registry;
  readonly names: { name: string }[];
}

function respond(query: Query, known: Known) {
  switch (query.case) {
    case "listServices":
      return { case: "listServicesResponse" as const, value: { service: known.names } };
    case "fileByFilename":
      return fileResponse(known.files.get(query.value));
    case "fileContainingSymbol":
      return fileResponse(fileOfSymbol(query.value, known.registry));
    case "fileContainingExtension": {
      const message = known.registry.getMessage(query.value.containingType);
      const extension =
        message && known.registry.getExtensionFor(message, query.value.extensionNumber);
      return fileResponse(extension?.file);
    }
    case "allExtensionNumbersOfType": {
      const extensionNumber = [...known.registry].flatMap((desc) =>
        desc.kind === "extension" && desc.extendee.typeName === query.value ? [desc.number] : [],
      );
      return {
        case: "allExtensionNumbersResponse" as const,
        value: { baseTypeName: query.value, extensionNumber },
      };
    }
    default:
      return error(Code.InvalidArgument, "the request asks for nothing");
  }
}

function fileResponse(file: DescFile | undefined) {
  if (file === undefined) return error(Code.NotFound, "not found");
  return {
    case: "fileDescriptorResponse" as const,
    value: { fileDescriptorProto: [toBinary(FileDescriptorProtoSchema, file.proto)] },
  };
}

function error(errorCode: Code, errorMessage: string) {
  return { case: "errorResponse" as const, value: { errorCode, errorMessage } };
}

/** A symbol is a type or service, or a member of one: then its file is that of the type it belongs to. */
function fileOfSymbol(symbol: string, registry: Registry): DescFile | undefined {
  const parent = symbol.slice(0, Math.max(symbol.lastIndexOf("."), 0));
  return (registry.get(symbol) ?? registry.get(parent))?.file;
}

function addFile(file: DescFile, files: Map<string, DescFile>): void {
  if (files.has(file.proto.name)) return;
  files.set(file.proto.name, file);
  for (const dependency of file.dependencies) addFile(dependency, files);
}
