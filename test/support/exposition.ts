/** One number of what /metrics answers. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Exposition {
  readonly text: string;
  /** Names and types of the metrics, those without a number included. */
  readonly types: ReadonlyMap<string, string>;
  readonly samples: readonly Sample[];
  /** The sum of the samples with this name and at least these labels. */
  sum(name: string, labels?: Readonly<Record<string, string>>): number;
}

/** Reads Prometheus' text format. Throws at a line that is none. */
export function parseExposition(text: string): Exposition {
  const types = new Map<string, string>();
  const samples: Sample[] = [];
  for (const line of text.trimEnd().split("\n")) {
    const [, named, type] = /^# TYPE (\S+) (counter|gauge|histogram)$/.exec(line) ?? [];
    if (named !== undefined && type !== undefined) types.set(named, type);
    if (line.startsWith("# ")) continue;
    const [, name, , labels = "", value] =
      /^([a-z_]+)(\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined || Number.isNaN(Number(value))) throw new Error(`not a sample: ${line}`);
    const pairs = [...labels.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)].map(
      ([, label = "", given = ""]) => [
        label,
        given.replaceAll(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c)),
      ],
    );
    samples.push({ name, labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return {
    text,
    types,
    samples,
    sum: (name, labels = {}) =>
      samples
        .filter(
          (sample) =>
            sample.name === name &&
            Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
        )
        .reduce((sum, { value }) => sum + value, 0),
  };
}

/** What this admin port answers on /metrics. */
export async function scrape(adminUrl: string, key?: string): Promise<Exposition> {
  const headers: HeadersInit = key === undefined ? {} : { authorization: `Bearer ${key}` };
  const answer = await fetch(`${adminUrl}/metrics`, { headers });
  if (answer.status !== 200) throw new Error(`/metrics answers ${answer.status}`);
  return parseExposition(await answer.text());
}
