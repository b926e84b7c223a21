import { describe, expect, it } from "vitest";
import { environment, parseConfig } from "../../src/config.ts";
import { composeDefaults, composeVariables, envExample } from "./infra-files.ts";

const names = envExample.map(({ name }) => name);
const schema = Object.keys(environment.shape);
const stated = new Map(envExample.map(({ name, value }) => [name, value]));

/** These must stay without a value: whoever copies the file must not run with a secret that everybody knows. */
const secrets = ["API_KEYS", "VLLM_API_KEY", "HF_TOKEN", "ADMIN_KEY", "OTEL_EXPORTER_OTLP_HEADERS"];

describe("infra/.env.example", () => {
  it("names every variable of the gateway and of the compose files, once, and no other", () => {
    expect([...names].sort()).toEqual([...new Set([...schema, ...composeVariables])].sort());
  });

  it("begins with the founding document's variables, all of them set", () => {
    const founding = [
      "API_KEYS",
      "RATE_LIMIT_RPM",
      "MODEL_ID",
      "MAX_MODEL_LEN",
      "DTYPE",
      "API_PORT",
      "VLLM_PORT",
      "HF_CACHE",
    ];
    expect(names.slice(0, founding.length)).toEqual(founding);
    expect(envExample.filter(({ isSet }) => isSet).map(({ name }) => name)).toEqual(founding);
  });

  it("gives no secret a value", () => {
    expect(secrets.map((name) => stated.get(name))).toEqual(secrets.map(() => ""));
    expect(stated.get("REDIS_URL")).not.toContain("@");
  });

  it("is a valid configuration as it is, and with every line in use", () => {
    const asItIs = envExample.filter(({ isSet }) => isSet);
    for (const lines of [asItIs, envExample]) {
      expect(() =>
        parseConfig(Object.fromEntries(lines.map(({ name, value }) => [name, value]))),
      ).not.toThrow();
    }
  });

  it.each(schema.filter((name) => hasDefault(name)))(
    "states the gateway's default of %s",
    (name) => {
      const vllm = { VLLM_URL: "http://inference:8000" };
      expect(parseConfig({ ...vllm, [name]: stated.get(name) })).toEqual(parseConfig(vllm));
      expect(stated.get(name)).not.toBe("");
    },
  );

  it.each(composeDefaults.filter(({ value }) => value !== "/dev/null"))(
    "states the compose files' default of $name",
    ({ name, value }) => {
      expect(stated.get(name)).toBe(value);
    },
  );
});

/** With HOST and ENGINE_CONCURRENCY, whose defaults depend on others. */
function hasDefault(name: string): boolean {
  if (name === "HOST" || name === "ENGINE_CONCURRENCY") return true;
  const { success, data } = environment.partial().safeParse({});
  return success && data[name as keyof typeof data] !== undefined;
}
