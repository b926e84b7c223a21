import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";

/** The part of a compose file that the tests look at, as written: before variables are resolved and files are merged. */
export interface ComposeFile {
  readonly services: Readonly<Record<string, ComposeService>>;
  readonly networks?: Readonly<Record<string, { readonly internal?: boolean } | null>>;
  readonly volumes?: Readonly<Record<string, unknown>>;
}

export interface ComposeService {
  readonly image?: string;
  readonly command?: string | readonly string[];
  readonly environment?: Readonly<Record<string, string | null>>;
  readonly healthcheck?: unknown;
  readonly networks?: readonly string[];
  readonly ports?: readonly string[];
  readonly stop_grace_period?: string;
  readonly [other: string]: unknown;
}

const infra = join(import.meta.dirname, "../../infra");

export const readInfra = (name: string) => readFileSync(join(infra, name), "utf8");

/** `merge` is for `<<`; Compose's own tags, such as !reset, are of no interest here. */
export const readCompose = (name: string): ComposeFile =>
  parse(readInfra(name), { merge: true, logLevel: "error" });

export const compose = readCompose("docker-compose.yml");
export const composeCpu = readCompose("docker-compose.cpu.yml");

/** Every text of the compose files, without comments. */
const texts = [compose, composeCpu].flatMap(function textsOf(node: unknown): string[] {
  if (typeof node === "string") return [node];
  return typeof node === "object" && node !== null ? Object.values(node).flatMap(textsOf) : [];
});

/** Names that a service takes over from the operator's file as they are. */
const passedOn = [compose, composeCpu]
  .flatMap(({ services }) => Object.values(services))
  .flatMap(({ environment = {} }) => Object.entries(environment))
  .filter(([, value]) => value === null)
  .map(([name]) => name);

/** Every variable that the compose files take from the operator's file. */
export const composeVariables = new Set([
  ...texts.flatMap((text) => [...text.matchAll(/\$\{([A-Z0-9_]+)/g)].map(([, name = ""]) => name)),
  ...passedOn,
]);

/** The defaults that the compose files give: NAME and value of every `${NAME:-value}`. */
export const composeDefaults = texts.flatMap((text) =>
  [...text.matchAll(/\$\{([A-Z0-9_]+):-((?:[^{}]|\$\{[^{}]*\})*)\}/g)].map(
    ([, name = "", value = ""]) => ({ name, value: resolve(value) }),
  ),
);

/** What Compose makes of a text when the operator's file is empty. */
export function resolve(text: string): string {
  const resolved = text.replaceAll(/\$\{[A-Z0-9_]+(?::-([^{}]*)|[^{}]*)\}/g, "$1");
  return resolved === text ? text : resolve(resolved);
}

/** The variables of .env.example: those that are set, and those that a comment shows. */
export const envExample = readInfra(".env.example")
  .split("\n")
  .flatMap((line) => {
    const [, comment, name, value] = /^(# )?([A-Z][A-Z0-9_]*)=(.*)$/.exec(line) ?? [];
    if (name === undefined || value === undefined) return [];
    return [{ name, value, isSet: comment === undefined }];
  });
