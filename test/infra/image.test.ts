import { describe, expect, it } from "vitest";
import { readInfra } from "./infra-files.ts";

/** One instruction a line: comments and continuations are gone. */
const instructions = readInfra("Dockerfile")
  .replaceAll(/^#.*\n/gm, "")
  .replaceAll("\\\n", "")
  .split("\n")
  .filter((line) => line !== "");
const of = (name: string) => instructions.filter((line) => line.startsWith(`${name} `));

describe("infra/Dockerfile", () => {
  it("builds on one pinned Node, with the fix of CVE-2026-111497", () => {
    const [base, ...stages] = of("FROM");
    const [, major, minor, patch] =
      /^FROM node:(\d+)\.(\d+)\.(\d+)-\S+ AS node$/.exec(base ?? "") ?? [];
    expect(Number(major)).toBe(24);
    expect(Number(minor) * 1000 + Number(patch)).toBeGreaterThanOrEqual(22_001);
    for (const stage of stages) expect(stage).toMatch(/^FROM (node|gateway)( AS \w+)?$/);
  });

  it("installs what the lock file says, without development and optional packages and without their scripts", () => {
    const install = of("RUN").find((line) => line.includes("npm "));
    expect(install).toMatch(/^RUN npm ci /);
    for (const flag of ["--omit=dev", "--omit=optional", "--ignore-scripts"]) {
      expect(install).toContain(flag);
    }
  });

  it("runs as a user without rights, who owns no file of the image", () => {
    expect(instructions.findLast((line) => line.startsWith("USER "))).toBe("USER 1000:1000");
    for (const copy of of("COPY")) expect(copy).not.toContain("--chown");
  });

  it("starts Node itself, so that SIGTERM reaches it", () => {
    expect(of("ENTRYPOINT")).toEqual(['ENTRYPOINT ["node", "src/main.ts"]']);
    expect(of("CMD")).toEqual([]);
  });

  it("gets from the context what it copies, and nothing else", () => {
    const copied = of("COPY")
      .filter((line) => !line.includes("--from="))
      .flatMap((line) => line.split(/\s+/).slice(1, -1));
    const [first, ...rules] = readInfra("Dockerfile.dockerignore")
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("#"));
    expect(first).toBe("*");
    expect(rules.filter((rule) => rule.startsWith("!")).sort()).toEqual(
      [...new Set(copied)].map((path) => `!${path}`).sort(),
    );
    expect(rules.at(-1)).toBe("**/*.test.ts");
  });
});
