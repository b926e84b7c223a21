import type { Reporter, TestModule } from "vitest/node";

/**
 * Ends the output with one plain line, `N passed, N failed, N skipped`, for machines that read no colours and no
 * summaries. What failed outside of a test (a file that does not load, an error nobody caught) counts as a failure.
 */
export class CountsReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    const count = { passed: 0, failed: errors.length, skipped: 0, pending: 0 };
    for (const module of modules) {
      for (const test of module.children.allTests()) count[test.result().state] += 1;
      count.failed += module.errors().length;
    }
    process.once("exit", () => {
      process.stdout.write(
        `\n${count.passed} passed, ${count.failed + count.pending} failed, ${count.skipped} skipped\n`,
      );
    });
  }
}
