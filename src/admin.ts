import type { Config } from "./config.ts";
import type { Events } from "./events.ts";
import { type ProcessStates, processReadings } from "./prometheus/readings.ts";
import { contentType, readingsText } from "./prometheus/text-format.ts";
import { type AdminServer, openAdminServer } from "./server/admin-server.ts";
import type { OwnShared } from "./shared.ts";
import { type Activity, watchVitals } from "./usage/vitals.ts";

/** Opens the port for operators, in the process that decides. Throws ConfigError when the port cannot be had. */
export async function openAdmin(
  config: Config,
  parts: {
    readonly shared: OwnShared;
    readonly events: Events;
    /** What this process itself has in hand; undefined as long as it answers no calls. */
    readonly activity?: () => Activity | undefined;
    /** How the other processes are doing. */
    readonly workers?: () => Promise<ProcessStates>;
  },
): Promise<AdminServer> {
  const { shared, events, activity, workers } = parts;
  await using resources = new AsyncDisposableStack();
  const own = resources.use(watchVitals());
  const states = async (): Promise<ProcessStates> => {
    const others = await workers?.();
    const vitals = new Map([["primary", own.read(activity?.())], ...(others?.vitals ?? [])]);
    return { vitals, restarts: others?.restarts ?? 0 };
  };
  const server = resources.use(
    await openAdminServer({
      ...config.admin,
      async metrics() {
        const text = readingsText(processReadings(await states()));
        return { contentType, text: shared.metricsText() + text };
      },
      onError: events.metricsFailed,
    }),
  );
  const owned = resources.move();
  return { url: server.url, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
