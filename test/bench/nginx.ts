/** nginx as it is put in front of vLLM: the least that passing the bytes on costs. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { type Running, startChild, toRunning } from "./subjects.ts";

/** Its version, or undefined where it is not installed. */
export function nginxVersion(): string | undefined {
  const { stderr } = spawnSync("nginx", ["-v"], { encoding: "utf8" });
  return /nginx\/([\d.]+)/.exec(stderr ?? "")?.[1];
}

/** Starts it in one process, with a folder of its own for all that it writes. */
export async function startNginx(engine: string): Promise<Running> {
  const port = await freePort();
  const folder = mkdtempSync(join(tmpdir(), "bench-nginx-"));
  const file = join(folder, "nginx.conf");
  writeFileSync(file, config({ port, folder, engine: new URL(engine).host }));
  const child = startChild("nginx", ["-p", folder, "-c", file], {});
  child.stdout?.resume();
  let ended = false;
  child.once("close", () => {
    ended = true;
  });
  while (!(await listens(port))) {
    if (ended) throw new Error("nginx ended before it listened");
    await setTimeout(20);
  }
  // It has read its configuration, and writes nothing there unless a body is large.
  rmSync(folder, { recursive: true });
  return toRunning(`http://127.0.0.1:${port}`, child);
}

function config(at: {
  readonly port: number;
  readonly folder: string;
  readonly engine: string;
}): string {
  // Where each module may write; otherwise nginx takes folders that only root may use.
  const writable = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (module) => `${module}_temp_path ${at.folder}/${module};`,
  );
  return `
daemon off;
master_process off;
worker_processes 1;
pid ${at.folder}/nginx.pid;
error_log stderr error;
events { worker_connections 8192; }
http {
  access_log off;
  ${writable.join("\n  ")}
  upstream engine { server ${at.engine}; keepalive 2048; keepalive_requests 1000000; }
  keepalive_requests 1000000;
  server {
    listen 127.0.0.1:${at.port};
    location / {
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
`;
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });
}
