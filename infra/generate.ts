/**
 * Lays out the standard protos that our own import, then generates gen/ (`npm run generate`).
 *
 * The standard protos come from the packages that ship them, so that no other project's source is committed and no
 * schema registry is needed. `--protos-only` stops after the layout, for lint and breaking checks.
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type {
  DescriptorProto,
  EnumDescriptorProto,
  FieldDescriptorProto,
} from "@bufbuild/protobuf/wkt";
import {
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
} from "@bufbuild/protobuf/wkt";
import { file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";

const root = join(import.meta.dirname, "..");
const vendor = join(root, ".proto-vendor");
const require = createRequire(import.meta.url);

/** Where each standard proto lies in its package, and the path that its imports use. */
const copies = [
  ["grpc-health-check/package.json", "proto/health/v1/health.proto", "grpc/health/v1/health.proto"],
  [
    "@grpc/reflection/package.json",
    "build/proto/grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1/reflection.proto",
  ],
  [
    "@grpc/reflection/package.json",
    "build/proto/grpc/reflection/v1alpha/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
  ],
] as const;

rmSync(vendor, { recursive: true, force: true });
for (const [manifest, from, to] of copies) {
  mkdirSync(dirname(join(vendor, to)), { recursive: true });
  copyFileSync(join(dirname(require.resolve(manifest)), from), join(vendor, to));
}
mkdirSync(join(vendor, "buf/validate"), { recursive: true });
writeFileSync(join(vendor, "buf/validate/validate.proto"), printValidateProto());

if (!process.argv.includes("--protos-only")) {
  execFileSync("buf", ["generate"], { cwd: root, stdio: "inherit" });
}

/**
 * buf.validate ships as a descriptor only. This prints what a compiler needs to read our annotations: names, numbers and
 * types. The rules' own meaning stays where it is evaluated, in the package.
 */
function printValidateProto(): string {
  const file = file_buf_validate_validate.proto;
  const extensions = file.extension.map(
    (field) => `extend ${field.extendee} {\n${printField(field, false)}}\n`,
  );
  return [
    'syntax = "proto2";\n',
    `package ${file.package};\n`,
    ...file.dependency.map((path) => `import "${path}";`),
    ...file.enumType.map(printEnum),
    ...file.messageType.map(printMessage),
    ...extensions,
  ].join("\n");
}

function printMessage(message: DescriptorProto): string {
  const oneofs = message.oneofDecl.map((oneof, index) => {
    const fields = message.field.filter(
      (field) => field.oneofIndex === index && Object.hasOwn(field, "oneofIndex"),
    );
    return `oneof ${oneof.name} {\n${fields.map((field) => printField(field, true)).join("")}}\n`;
  });
  return [
    `message ${message.name} {\n`,
    ...message.enumType.map(printEnum),
    ...message.nestedType.map(printMessage),
    ...message.field
      .filter((field) => !Object.hasOwn(field, "oneofIndex"))
      .map((field) => printField(field, false)),
    ...oneofs,
    ...message.extensionRange.map((range) => `extensions ${range.start} to ${range.end - 1};\n`),
    "}\n",
  ].join("");
}

function printEnum(enumeration: EnumDescriptorProto): string {
  const values = enumeration.value.map((value) => `${value.name} = ${value.number};\n`);
  return `enum ${enumeration.name} {\n${values.join("")}}\n`;
}

function printField(field: FieldDescriptorProto, inOneof: boolean): string {
  const label = inOneof ? "" : `${Label[field.label]?.toLowerCase()} `;
  const type = field.typeName === "" ? Type[field.type]?.toLowerCase() : field.typeName;
  return `${label}${type} ${field.name} = ${field.number};\n`;
}
