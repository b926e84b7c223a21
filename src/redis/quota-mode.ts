import type { Logger } from "pino";
import { toReason } from "./redis-client.ts";

/** Who decides: Redis, for all gateways together, or each gateway for itself because Redis does not answer. */
export type QuotaMode = "shared" | "degraded";

/** Disposing it ends the attempts to leave degraded mode, and all reports. */
export interface ModeSwitch extends Disposable {
  /** `shared` until the first failure, also before the first call. */
  readonly mode: QuotaMode;
  /** Says that Redis has failed. Degraded mode lasts until a probe has succeeded. */
  degrade(error: unknown): void;
}

/** Milliseconds between two attempts to leave degraded mode, of which calls notice nothing. */
const probeEveryMs = 500;

export function createModeSwitch(options: {
  /** Resolves when Redis works again; must end within a bounded time. */
  readonly probe: () => Promise<void>;
  readonly log: Pick<Logger, "info" | "warn">;
  /** Called once per change, after it. */
  readonly onChange: (mode: QuotaMode) => void;
}): ModeSwitch {
  const { probe, log, onChange } = options;
  let mode: QuotaMode = "shared";
  let timer: NodeJS.Timeout | undefined;
  let disposed = false;

  const recover = () => {
    if (disposed) return;
    mode = "shared";
    log.info("limits are shared through redis again");
    onChange(mode);
  };
  const scheduleProbe = () => {
    if (disposed) return;
    timer = setTimeout(() => probe().then(recover, scheduleProbe), probeEveryMs);
    timer.unref();
  };

  return {
    get mode() {
      return mode;
    },

    degrade(error) {
      if (mode === "degraded" || disposed) return;
      mode = "degraded";
      log.warn({ reason: toReason(error) }, "limits are kept by each gateway on its own");
      scheduleProbe();
      onChange(mode);
    },

    [Symbol.dispose]() {
      disposed = true;
      clearTimeout(timer);
    },
  };
}
