/** The small table of README.md and README.fr.md. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  calls10,
  calls64,
  type Load,
  saturated,
  streams50,
  streams400,
  streams1000,
} from "./loads.ts";
import type { Run } from "./measure.ts";
import { median, type Results, type SubjectName } from "./results.ts";
import { engineStream, grpcStream, http1Stream, jsonCall, jsonStream, type Wire } from "./wires.ts";

type Language = "en" | "fr";
type Texts = Readonly<Record<Language, string>>;

const documents: Texts = { en: "README.md", fr: "README.fr.md" };
const head: Texts = {
  en: "| | nginx | plain handler | FormDev IA |",
  fr: "| | nginx | handler simple | FormDev IA |",
};

export function documentTable(
  results: Results,
  coldStartsMs: readonly number[],
  language: Language,
): string {
  const number = (value: number, digits: number) =>
    Number.isNaN(value)
      ? ""
      : value.toLocaleString(language, {
          minimumFractionDigits: digits,
          maximumFractionDigits: digits,
        });
  const row = (title: Texts, cells: readonly string[]) =>
    `| ${[title[language], ...cells].join(" | ")} |`;
  /** A value of each subject, the median of its runs. nginx speaks the engine's protocol alone. */
  const values = (
    title: Texts,
    [load, wire]: readonly [Load, Wire],
    value: (run: Run) => number,
    digits = 0,
  ) =>
    row(
      title,
      (["nginx", "plain", "product"] as const).map((subject) => {
        const spoken = subject === "nginx" ? engineStream : wire;
        return number(median(results.values(load, subject, spoken.name, value)), digits);
      }),
    );
  const waits = (title: Texts, load: Load, wire: Wire) => {
    const ms = (subject: SubjectName, spoken: Wire) =>
      [50, 99]
        .map((p) => number(median(results.addedWaitMs(load, subject, spoken.name, p)), 1))
        .filter((text) => text !== "")
        .join(" / ");
    return row(title, [ms("nginx", engineStream), ms("plain", wire), ms("product", wire)]);
  };
  const cpuOfToken = (run: Run) => run.cpuUsPerToken;
  return [
    head[language],
    "|---|---|---|---|",
    values(
      {
        en: "CPU, µs per token: 50 gRPC streams × 100/s",
        fr: "CPU, µs par token : 50 flux gRPC × 100/s",
      },
      [streams50, grpcStream],
      cpuOfToken,
      1,
    ),
    values(
      { en: "50 Connect JSON streams × 100/s", fr: "50 flux Connect JSON × 100/s" },
      [streams50, jsonStream],
      cpuOfToken,
      1,
    ),
    values(
      { en: "The same over HTTP/1.1", fr: "De même, sur HTTP/1.1" },
      [streams50, http1Stream],
      cpuOfToken,
      1,
    ),
    values(
      { en: "1,000 gRPC streams × 10/s", fr: "1 000 flux gRPC × 10/s" },
      [streams1000, grpcStream],
      cpuOfToken,
      1,
    ),
    values(
      {
        en: "50 gRPC streams, as fast as the engine can",
        fr: "50 flux gRPC, aussi vite que le moteur peut",
      },
      [saturated, grpcStream],
      cpuOfToken,
      1,
    ),
    values(
      {
        en: "CPU, µs per call: JSON, answers of 50 tokens, 10 at once",
        fr: "CPU, µs par appel : JSON, réponses de 50 tokens, 10 à la fois",
      },
      [calls10, jsonCall],
      (run) => run.cpuUsPerCall,
    ),
    values(
      {
        en: "Calls per second: the same, 64 at once",
        fr: "Appels par seconde : de même, 64 à la fois",
      },
      [calls64, jsonCall],
      (run) => run.callsPerSecond,
    ),
    waits(
      {
        en: "Added time to first token, ms, p50 / p99: 400 gRPC streams × 25/s",
        fr: "Délai ajouté au premier token, ms, p50 / p99 : 400 flux gRPC × 25/s",
      },
      streams400,
      grpcStream,
    ),
    values(
      { en: "Memory, MB: 50 gRPC streams", fr: "Mémoire, Mo : 50 flux gRPC" },
      [streams50, grpcStream],
      (run) => run.rssMb,
    ),
    row({ en: "Start to first answer, ms", fr: "Du lancement à la première réponse, ms" }, [
      "",
      "",
      number(median(coldStartsMs), 0),
    ]),
  ].join("\n");
}

const begin = "<!-- benchmark: written by npm run bench -->\n";
const end = "\n<!-- end of benchmark -->";

/** Puts a text between the markers of the document of that language. */
export function writeDocument(language: Language, text: string): void {
  const file = join(import.meta.dirname, "../..", documents[language]);
  const [before, rest, ...more] = readFileSync(file, "utf8").split(begin);
  const after = rest?.slice(rest.indexOf(end));
  if (before === undefined || !after?.startsWith(end) || more.length > 0)
    throw new Error(`${documents[language]} has no place for the table: ${begin}…${end}`);
  writeFileSync(file, `${before}${begin}${text}${after}`);
}
