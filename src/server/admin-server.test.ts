import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, it } from "vitest";
import { askHttp2, openHttp2 } from "../../test/support/raw-http2.ts";
import { ConfigError } from "../errors.ts";
import { Secret } from "../lib/secret.ts";
import { type AdminOptions, openAdminServer } from "./admin-server.ts";

const open = (options: Partial<AdminOptions> = {}) =>
  openAdminServer({
    host: "127.0.0.1",
    port: 0,
    key: undefined,
    metrics: async () => ({ contentType: "text/plain; version=0.0.4", text: "up 1\n" }),
    onError: () => undefined,
    ...options,
  });

describe("openAdminServer", () => {
  it("answers GET and HEAD of /metrics", async () => {
    await using server = await open();
    const got = await fetch(`${server.url}/metrics?name=up`);
    expect(await got.text()).toBe("up 1\n");
    expect(got.headers.get("content-type")).toBe("text/plain; version=0.0.4");
    const head = await fetch(`${server.url}/metrics`, { method: "HEAD" });
    expect([head.status, head.headers.get("content-length")]).toEqual([200, "5"]);
  });

  it("has no other path and no other method", async () => {
    await using server = await open();
    const status = async (path: string, method = "GET") =>
      (await fetch(server.url + path, { method })).status;
    expect(await status("/")).toBe(404);
    expect(await status("/metrics/")).toBe(404);
    expect(await status("/metrics", "POST")).toBe(405);
    expect(await status("/metrics", "DELETE")).toBe(405);
  });

  it.each([
    ["no key", undefined, 401],
    ["a wrong one", "Bearer wrong-key-0123456789", 401],
    ["the beginning of it", "Bearer admin-key-012345678", 401],
    ["another scheme", "Basic admin-key-0123456789", 401],
    ["the key", "Bearer admin-key-0123456789", 200],
  ])("with a key set answers %s alike on every path", async (_, authorization, expected) => {
    await using server = await open({ key: new Secret("admin-key-0123456789") });
    const headers = authorization === undefined ? undefined : { authorization };
    const answer = await fetch(`${server.url}/metrics`, { headers: headers ?? {} });
    expect(answer.status).toBe(expected);
    if (expected === 200) return;
    expect(answer.headers.get("www-authenticate")).toBe("Bearer");
    const elsewhere = await fetch(`${server.url}/elsewhere`, { headers: headers ?? {} });
    expect([elsewhere.status, await elsewhere.text()]).toEqual([401, await answer.text()]);
  });

  it("reads the metrics once for all who ask meanwhile", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    let reads = 0;
    const metrics = async () => {
      reads += 1;
      await promise;
      return { contentType: "text/plain", text: `${reads}` };
    };
    await using server = await open({ metrics });
    // Over HTTP/2: all three are there before the first is answered.
    using session = openHttp2(server.url);
    const asked = [1, 2, 3].map(() => askHttp2(session, { ":method": "GET", ":path": "/metrics" }));
    await new Promise((answered) => session.ping(answered));
    resolve();
    const texts = (await Promise.all(asked)).map(({ body }) => body.toString());
    expect(texts).toEqual(["1", "1", "1"]);
    expect(await (await fetch(`${server.url}/metrics`)).text()).toBe("2");
  });

  it("says nothing of what has failed inside, except to the log", async () => {
    const errors: unknown[] = [];
    const failure = new Error("secret detail");
    await using server = await open({
      metrics: () => Promise.reject(failure),
      onError: (error) => errors.push(error),
    });
    const answer = await fetch(`${server.url}/metrics`);
    expect([answer.status, await answer.json()]).toEqual([
      500,
      { code: "internal", message: "internal error" },
    ]);
    expect(errors).toEqual([failure]);
  });

  it("does not read a body, and takes any host", async () => {
    await using server = await open();
    const socket = connect(Number(new URL(server.url).port), "127.0.0.1");
    socket.write("GET /metrics HTTP/1.1\r\nhost: ]]evil:x\r\ncontent-length: 1000000\r\n\r\n");
    // Closed by the server, as nobody will read what was announced.
    expect(await text(socket)).toMatch(/^HTTP\/1\.1 200 [\s\S]*up 1\n$/);
  });

  it("names ADMIN_PORT when the port is taken", async () => {
    await using server = await open();
    const port = Number(new URL(server.url).port);
    const error = await open({ port }).then(
      () => undefined,
      (reason) => reason,
    );
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.problems).toEqual([
      `ADMIN_PORT ${port} on 127.0.0.1 cannot be listened on: EADDRINUSE`,
    ]);
  });
});
