import type { ModelFileReport } from "./inference/embedded/model-file.ts";
import type { Secret } from "./lib/secret.ts";

/** What a first user sees: the key of this run, and a call to paste. The only place that ever prints a key. */
export function firstCall(url: string, key: Secret): string {
  return `
No API_KEYS are set, so this run has a key of its own, and only this machine can call:

  curl -s ${url}/v1/chat \\
    -H "Content-Type: application/json" \\
    -H "X-API-Key: ${key.reveal()}" \\
    -d '{"messages": [{"role": "user", "content": "Dis bonjour en une phrase."}], "max_tokens": 60}'

`;
}

/**
 * Tells about a model download on a stream: a bar that fills on a terminal, a line for each tenth elsewhere, so that a log
 * stays short.
 */
export function modelProgress(
  stream: Pick<NodeJS.WriteStream, "isTTY" | "write">,
): (report: ModelFileReport) => void {
  let tenths = 0;
  return (report) => {
    switch (report.type) {
      case "download-start":
        tenths = 0;
        stream.write(`Downloading a model, once: ${report.source} (${megabytes(report.bytes)})\n`);
        break;
      case "download-progress": {
        const share = report.bytes / report.bytesTotal;
        const now = Math.floor(share * 10);
        if (stream.isTTY) {
          const bar = "#".repeat(Math.floor(share * 40)).padEnd(40);
          stream.write(`\r[${bar}] ${Math.floor(share * 100)} %`);
        } else if (now > tenths) stream.write(`${now * 10} %\n`);
        tenths = now;
        break;
      }
      case "download-end":
        stream.write(`${stream.isTTY ? "\n" : ""}Model ready: ${report.file}\n`);
        break;
      case "source-failed":
        stream.write(`Not to be had from ${report.source}: ${report.reason}\n`);
        break;
    }
  };
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1e6)} MB`;
}
