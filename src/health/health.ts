import { monotonicClock } from "../lib/clock.ts";

/** What readiness depends on. */
export interface HealthSource {
  readonly name: "engine" | "redis";
  /** Whether the service can go on without it, with less. */
  readonly optional: boolean;
  /** Resolves when it works, else rejects. */
  check(signal: AbortSignal): Promise<void>;
}

export type ServingStatus = "serving" | "degraded" | "not-serving";

export interface HealthReport {
  readonly status: ServingStatus;
  readonly components: readonly { readonly name: string; readonly status: ServingStatus }[];
}

export interface Health {
  /** The state, at most one second old. Never rejects. */
  report(): Promise<HealthReport>;
  /** From now on the state is not-serving, so that probes send no more calls here. */
  drain(): void;
  readonly isDraining: boolean;
}

/** How old a report may be: a storm of probes costs each component one check in this time. */
const maxAgeMs = 1000;
/** A component that has not answered by then counts as down. */
const checkMs = 2000;

export function createHealth(sources: readonly HealthSource[]): Health {
  let draining = false;
  let latest: HealthReport["components"] = [];
  let measuredAt = Number.NEGATIVE_INFINITY;
  let running: Promise<void> | undefined;

  const measure = async () => {
    latest = await Promise.all(
      sources.map(async ({ name, optional, check }) => {
        const works = await check(AbortSignal.timeout(checkMs)).then(
          () => true,
          () => false,
        );
        const down = optional ? "degraded" : "not-serving";
        return { name, status: works ? "serving" : down } as const;
      }),
    );
    measuredAt = monotonicClock();
    running = undefined;
  };

  return {
    async report() {
      if (monotonicClock() - measuredAt > maxAgeMs) {
        running ??= measure();
        await running;
      }
      const components = latest;
      const worst = components.some(({ status }) => status === "not-serving")
        ? "not-serving"
        : components.some(({ status }) => status === "degraded")
          ? "degraded"
          : "serving";
      return { status: draining ? "not-serving" : worst, components };
    },
    drain() {
      draining = true;
    },
    get isDraining() {
      return draining;
    },
  };
}
