import { inspect } from "node:util";
import { describe, expect, it } from "vitest";
import { parseConfig } from "./config.ts";
import { ConfigError } from "./errors.ts";

function problemsOf(env: Record<string, string>): readonly string[] {
  try {
    parseConfig(env);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
}

describe("parseConfig", () => {
  it("starts with no variable at all: loopback, embedded engine, no keys, no store", () => {
    const config = parseConfig({});
    expect(config.server.host).toBe("127.0.0.1");
    expect(config.server.port).toBe(8080);
    expect(config.keys).toEqual({ inline: [], file: undefined });
    expect(config.engine.vllmUrls).toEqual([]);
    expect(config.redisUrl).toBeUndefined();
  });

  it("limits nothing but requests a minute unless told, and each limit by its own variable", () => {
    expect(parseConfig({}).limits.perClient).toEqual({ rpm: 60 });
    const env = {
      RATE_LIMIT_RPM: "1",
      RATE_LIMIT_TPM: "2",
      RATE_LIMIT_CONCURRENCY: "3",
      DAILY_TOKENS: "4",
      MONTHLY_TOKENS: "5",
    };
    expect(parseConfig(env).limits.perClient).toEqual({
      rpm: 1,
      tpm: 2,
      concurrency: 3,
      dailyTokens: 4,
      monthlyTokens: 5,
    });
    for (const name of Object.keys(env)) {
      expect(problemsOf({ [name]: "0" })).toEqual([expect.stringContaining(`${name} must be`)]);
    }
  });

  it("reports every problem at once, by the variable's name", () => {
    const problems = problemsOf({
      API_PORT: "eighty",
      RATE_LIMIT_RPM: "0",
      VLLM_URL: "ftp://host",
      REDIS_URL: "localhost",
      LOG_LEVEL: "loud",
      API_KEYS: "erp",
      TLS_CERT_FILE: "cert.pem",
      TRUSTED_PROXIES: "10.0.0.0/33",
    });
    for (const name of [
      "API_PORT",
      "RATE_LIMIT_RPM",
      "VLLM_URL",
      "REDIS_URL",
      "LOG_LEVEL",
      "API_KEYS",
      "TLS_CERT_FILE",
      "TRUSTED_PROXIES",
    ]) {
      expect(
        problems.filter((problem) => problem.startsWith(name)),
        name,
      ).toHaveLength(1);
    }
  });

  it.each(["0x10", " ", "1e3", "-1", "1.5", "Infinity", "99999999999999999999"])(
    "takes %j for no number",
    (text) => {
      expect(problemsOf({ RATE_LIMIT_RPM: text })).toEqual([
        expect.stringContaining("RATE_LIMIT_RPM must be"),
      ]);
      expect(problemsOf({ ENGINE_CONCURRENCY: text })).toHaveLength(1);
    },
  );

  it("takes several addresses of vLLM", () => {
    const { vllmUrls } = parseConfig({ VLLM_URL: "http://one:8000, https://two/base" }).engine;
    expect(vllmUrls.map(({ href }) => href)).toEqual(["http://one:8000/", "https://two/base"]);
  });

  it.each([
    "http://user:pass@host",
    "http://host/?a=1",
    "http://host/#x",
    "host:8000",
    "http://host,",
    "http://host,ftp://host",
  ])("refuses VLLM_URL %s, of which parts would be ignored", (text) => {
    expect(problemsOf({ VLLM_URL: text })).toHaveLength(1);
  });

  it("refuses to listen beyond this machine as long as there are no keys", () => {
    expect(problemsOf({ HOST: "0.0.0.0" })).toHaveLength(1);
    expect(problemsOf({ HOST: "0.0.0.0", API_KEYS: "erp:key-of-the-erp" })).toEqual([]);
    expect(problemsOf({ HOST: "::1" })).toEqual([]);
  });

  it("opens the admin port beyond the machine only with a key, which is none that one could guess", () => {
    expect(problemsOf({ ADMIN_HOST: "0.0.0.0" })).toEqual([expect.stringMatching(/^ADMIN_HOST /)]);
    expect(problemsOf({ ADMIN_HOST: "0.0.0.0", API_KEYS: "erp:key-of-the-erp" })).toHaveLength(1);
    expect(problemsOf({ ADMIN_HOST: "0.0.0.0", ADMIN_KEY: "0123456789abcdef" })).toEqual([]);
    expect(problemsOf({ ADMIN_HOST: "127.0.0.2" })).toEqual([]);
    for (const key of ["short", "0123456789 abcdef", "é123456789abcdef"]) {
      expect(problemsOf({ ADMIN_KEY: key })).toEqual([expect.stringMatching(/^ADMIN_KEY must/)]);
    }
  });

  it("takes an empty variable for an absent one, as compose files write it", () => {
    expect(parseConfig({ VLLM_URL: "", API_KEYS: "", API_PORT: "" })).toEqual(parseConfig({}));
  });

  it("refuses a default deadline beyond the longest one", () => {
    const env = { REQUEST_TIMEOUT_SECONDS: "60", REQUEST_TIMEOUT_MAX_SECONDS: "30" };
    expect(problemsOf(env)).toHaveLength(1);
  });

  it("refuses more than one process that would each load the model", () => {
    const vllm = { VLLM_URL: "http://vllm:8000" };
    expect(problemsOf({ PROCESSES: "2" })).toEqual([
      expect.stringContaining("PROCESSES must be 1 without VLLM_URL"),
    ]);
    expect(problemsOf({ PROCESSES: "1" })).toEqual([]);
    expect(problemsOf({ ...vllm, PROCESSES: "64" })).toEqual([]);
    for (const PROCESSES of ["0", "65"]) expect(problemsOf({ ...vllm, PROCESSES })).toHaveLength(1);
  });

  it("traces nothing without a collector, and everything with one", () => {
    const collector = { OTEL_EXPORTER_OTLP_ENDPOINT: "https://collector/base/" };
    expect(parseConfig({ OTEL_EXPORTER_OTLP_HEADERS: "a=b" }).traces).toBeUndefined();
    const { traces } = parseConfig(collector);
    expect(traces?.url.href).toBe("https://collector/base/v1/traces");
    expect(traces).toMatchObject({ serviceName: "formdev", ratio: 1, headers: {} });
  });

  it("takes a part of the calls from 0 to 1 for traces, and headers that HTTP knows", () => {
    const collector = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318" };
    for (const [text, ratio] of Object.entries({ "0": 0, "1": 1, "0.25": 0.25, ".5": 0.5 }))
      expect(parseConfig({ ...collector, OTEL_TRACES_SAMPLER_ARG: text }).traces?.ratio).toBe(
        ratio,
      );
    for (const OTEL_TRACES_SAMPLER_ARG of ["1.1", "-1", "2", "1e-3", "all"])
      expect(problemsOf({ OTEL_TRACES_SAMPLER_ARG })).toHaveLength(1);
    const [problem, ...more] = problemsOf({ OTEL_EXPORTER_OTLP_HEADERS: "a b=s3cr3t" });
    expect(more).toEqual([]);
    expect(problem).not.toContain("s3cr3t");
  });

  it("never shows a secret, neither in a problem nor when the configuration is printed", () => {
    const secret = "s3cr3t-canary";
    const config = parseConfig({
      API_KEYS: `erp:${secret}`,
      VLLM_API_KEY: secret,
      REDIS_URL: `redis://:${secret}@localhost`,
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318",
      OTEL_EXPORTER_OTLP_HEADERS: `authorization=Bearer%20${secret}`,
    });
    expect(inspect(config, { depth: null, showHidden: true })).not.toContain(secret);
    expect(JSON.stringify(config)).not.toContain(secret);
    const problems = problemsOf({ API_KEYS: `erp:${secret} with spaces,${secret}`, API_PORT: "x" });
    expect(problems).toHaveLength(3);
    expect(problems.join()).not.toContain(secret);
  });

  it("cannot be changed afterwards", () => {
    const { server } = parseConfig({});
    expect(() => Object.assign(server, { host: "0.0.0.0" })).toThrow(TypeError);
  });
});
