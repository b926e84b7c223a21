import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { describe, expect, it } from "vitest";
import { cutWhenStalled } from "./node-http.ts";

/** What the kernel cannot hold of a connection, and takes longer than the limit to be read. */
const answerBytes = 256 * 1024 * 1024;
const limitMs = 50;

describe("a complete answer over HTTP/1.1", () => {
  it("is cut when its reader takes nothing of it", async () => {
    await using asked = await ask();
    asked.client.pause();
    await asked.closed;
    expect(asked.response.writableFinished).toBe(false);
  });

  it("is not cut while its reader takes some of it", async () => {
    await using asked = await ask();
    const began = performance.now();
    let bytes = 0;
    for await (const chunk of asked.client) {
      bytes += chunk.length;
      if (bytes > answerBytes) break;
    }
    // Longer than it may take nothing at all.
    expect(performance.now() - began).toBeGreaterThan(limitMs);
    expect(bytes).toBeGreaterThan(answerBytes);
  });

  it("leaves no limit to the next one on its connection", async () => {
    await using asked = await ask();
    asked.client.write(requestHead("/late"));
    let tail = "";
    for await (const chunk of asked.client) {
      tail = String(chunk.subarray(-lateBody.length));
      if (tail === lateBody) break;
    }
    expect(tail).toBe(lateBody);
  });
});

const lateBody = "late";
const requestHead = (path: string) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`;

/** A client that has sent a request, and the answer that is complete on the server's side. */
async function ask() {
  const answering = Promise.withResolvers<ServerResponse>();
  const server = createServer((request, response) => {
    if (request.url === "/late") {
      setTimeout(() => response.end(lateBody), 10 * limitMs);
      return;
    }
    response.end(Buffer.alloc(answerBytes));
    cutWhenStalled(response, limitMs);
    answering.resolve(response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("there is no port");
  const client = connect(address.port, "127.0.0.1");
  client.on("error", () => undefined);
  client.write(requestHead("/"));
  const response = await answering.promise;
  return {
    client,
    response,
    closed: once(response, "close"),
    async [Symbol.asyncDispose]() {
      client.destroy();
      server.closeAllConnections();
      server.close();
    },
  };
}
