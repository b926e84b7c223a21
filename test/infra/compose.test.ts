import { describe, expect, it } from "vitest";
import { environment, parseConfig } from "../../src/config.ts";
import { type ComposeService, compose, composeCpu, readInfra, resolve } from "./infra-files.ts";

const { api, inference, download, redis, prometheus, grafana } = compose.services as Record<
  string,
  ComposeService
>;
const services = Object.entries(compose.services);

describe("infra/docker-compose.yml", () => {
  it("publishes one port: the gateway's, and Grafana's on this machine", () => {
    const published = services.flatMap(([name, { ports = [] }]) =>
      ports.map((port) => [name, port]),
    );
    expect(published).toEqual([
      ["api", expect.stringMatching(/^\$\{API_PORT:-8080\}:8080$/)],
      ["grafana", expect.stringMatching(/^127\.0\.0\.1:\$\{GRAFANA_PORT:-3000\}:3000$/)],
    ]);
  });

  it("keeps vLLM, Redis and Prometheus on networks of their own, without a way out", () => {
    expect(inference?.networks).toEqual(["engine"]);
    expect(redis?.networks).toEqual(["store"]);
    expect(prometheus?.networks).toEqual(["metrics"]);
    expect(grafana?.networks).toEqual(["metrics", "screen"]);
    expect(compose.networks).toEqual({
      edge: null,
      engine: { internal: true },
      store: { internal: true },
      metrics: { internal: true },
      screen: null,
    });
  });

  it("gives no service a share of the host", () => {
    for (const [name, service] of services) {
      for (const key of ["privileged", "network_mode", "pid", "ipc", "userns_mode", "devices"]) {
        expect(service, name).not.toHaveProperty(key);
      }
      expect(service.security_opt, name).toEqual(["no-new-privileges:true"]);
      expect(JSON.stringify(service), name).not.toContain("docker.sock");
    }
  });

  it("confines the gateway", () => {
    expect(api).toMatchObject({ read_only: true, cap_drop: ["ALL"], tmpfs: ["/tmp"], init: true });
    expect(api).toMatchObject({ restart: "unless-stopped" });
    expect(api).toHaveProperty("mem_limit");
    expect(api).toHaveProperty("pids_limit");
    expect(api).not.toHaveProperty("user");
  });

  it("keeps budgets over a restart of Redis, in the one place that it can write to", () => {
    const command = [...(redis?.command ?? [])].join(" ");
    expect(command).toContain("--appendonly yes");
    expect(command).toContain("--maxmemory-policy noeviction");
    expect(redis).toMatchObject({
      read_only: true,
      cap_drop: ["ALL"],
      user: "redis",
      volumes: ["redis-data:/data"],
    });
    expect(redis).not.toHaveProperty("tmpfs");
    expect(compose.volumes).toHaveProperty("redis-data");
  });

  it("pins every image to a release, and vLLM to one that a single request cannot kill", () => {
    const images = [...services, ...Object.entries(composeCpu.services)]
      .filter(([, { build }]) => build === undefined)
      .map(([, { image = "" }]) => resolve(image));
    for (const image of images) expect(image).toMatch(/:v?\d+\.\d+\.\d+(-|$)/);

    const versions = images.flatMap((image) => /^vllm\/.*:v0\.(\d+)\./.exec(image)?.[1] ?? []);
    expect(new Set(versions).size, "one version of vLLM").toBe(1);
    expect(Number(versions[0])).toBeGreaterThanOrEqual(31);
    expect(download?.image).toBe(inference?.image);
    expect(composeCpu.services.download?.image).toBe(composeCpu.services.inference?.image);
  });

  it("starts neither without keys nor with keys that everybody knows", () => {
    expect(api?.environment?.API_KEYS).toMatch(/^\$\{API_KEYS:\?/);
    for (const name of ["VLLM_API_KEY", "HF_TOKEN", "REDIS_URL", "ADMIN_KEY"]) {
      const given = services.flatMap(([, { environment: env = {} }]) =>
        name in env ? [env[name]] : [],
      );
      expect(new Set(given), name).toEqual(new Set([null]));
    }
  });

  it("gives each secret to those who need it", () => {
    const holders = (variable: string) =>
      services.filter(([, s]) => variable in (s.environment ?? {})).map(([name]) => name);
    expect(holders("API_KEYS")).toEqual(["api"]);
    expect(holders("VLLM_API_KEY")).toEqual(["api", "inference"]);
    expect(holders("HF_TOKEN")).toEqual(["download"]);
    expect(holders("ADMIN_KEY")).toEqual(["api"]);
    // It would be another port to vLLM than to us.
    expect(holders("VLLM_PORT")).toEqual([]);
  });

  it("lets the operator set every variable of the gateway", () => {
    const ofTheEmbeddedEngine = ["MODEL_PATH", "MODEL_CACHE", "HF_ENDPOINT"];
    expect(Object.keys(api?.environment ?? {}).sort()).toEqual(
      Object.keys(environment.shape)
        .filter((name) => !ofTheEmbeddedEngine.includes(name))
        .sort(),
    );
  });

  it("gives the gateway a configuration that it accepts", () => {
    const env = Object.entries(api?.environment ?? {}).map(([name, value]) => [
      name,
      name === "API_KEYS" ? "erp:0123456789abcdef" : resolve(value ?? ""),
    ]);
    const config = parseConfig(Object.fromEntries(env));
    expect(config.server).toMatchObject({ host: "0.0.0.0", port: 8080 });
    expect(config.engine.vllmUrls.map(({ href }) => href)).toEqual(["http://inference:8000/"]);
  });

  it("waits longer than the gateway drains before it kills", () => {
    const graceMs = Number.parseInt(resolve(api?.stop_grace_period ?? ""), 10) * 1000;
    expect(graceMs).toBeGreaterThanOrEqual(parseConfig({}).server.drainMs + 5000);
  });

  it("serves the gateway's model under the gateway's name, at the gateway's sizes, offline", () => {
    const config = parseConfig({ VLLM_URL: "http://inference:8000" });
    const args = resolve(String(inference?.command)).trim().split(/\s+/);
    expect(args[0]).toBe(config.engine.modelId);
    expect(args).toEqual(
      expect.arrayContaining([
        `--served-model-name=${config.engine.modelId}`,
        `--max-model-len=${config.engine.maxModelLen}`,
        `--max-num-seqs=${config.engine.concurrency}`,
        "--port=8000",
        "--dtype=half",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
      ]),
    );
    expect(inference?.environment).toMatchObject({ HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1" });
  });

  it("checks the health of what runs", () => {
    expect(JSON.stringify(inference?.healthcheck)).toContain("/health");
    expect(redis).toHaveProperty("healthcheck");
    expect(readInfra("Dockerfile")).toMatch(/^HEALTHCHECK /m);
  });
});
