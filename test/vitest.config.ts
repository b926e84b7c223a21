import { defineConfig } from "vitest/config";
import { CountsReporter } from "./support/counts-reporter.ts";

export default defineConfig({
  test: {
    root: new URL("..", import.meta.url).pathname,
    include: ["src/**/*.test.ts", "test/**/*.test.ts"],
    reporters: ["default", new CountsReporter()],
    testTimeout: 15_000,
    hookTimeout: 30_000,
  },
});
