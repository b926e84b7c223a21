import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import type { Span } from "../../src/otlp/call-spans.ts";

/** An OpenTelemetry collector that takes OTLP in JSON over HTTP, and keeps it. */
export interface FakeCollector extends AsyncDisposable {
  readonly url: string;
  readonly requests: readonly CollectorRequest[];
  /** Of all requests that it has taken. */
  spans(): readonly Span[];
  /** The status of its answers from now on; 0: it never answers. */
  answer(status: number): void;
}

export interface CollectorRequest {
  readonly path: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export async function startFakeCollector(): Promise<FakeCollector> {
  const requests: CollectorRequest[] = [];
  let status = 200;
  const server = createServer(async (request, response) => {
    const body = await text(request);
    requests.push({ path: request.url, headers: request.headers, body });
    if (status === 0) return;
    response.writeHead(status, { "content-type": "application/json", location: "/elsewhere" });
    response.end("{}");
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    requests,
    spans: () => requests.flatMap(({ body }) => spansOf(JSON.parse(body))),
    answer(next) {
      status = next;
    },
    async [Symbol.asyncDispose]() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

interface ExportRequest {
  readonly resourceSpans: readonly {
    readonly scopeSpans: readonly { readonly spans: readonly Span[] }[];
  }[];
}

function spansOf({ resourceSpans }: ExportRequest): readonly Span[] {
  return resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans));
}
