import { openAdmin } from "../admin.ts";
import { localUrl, parseConfig } from "../config.ts";
import { resolveConfig } from "../config-files.ts";
import { createEvents, createLogger } from "../events.ts";
import { firstCall } from "../greeting.ts";
import { aborted } from "../lib/delay.ts";
import { openShared } from "../shared.ts";
import { createCrew } from "./crew.ts";
import { openDoor } from "./door.ts";
import { pack } from "./pack.ts";
import type { Setup } from "./protocol.ts";
import { startWorker, type WorkerProcess } from "./worker-process.ts";

/**
 * The process that answers no calls: it reads the configuration, decides what holds for all (limits, the order in which calls
 * get the engine), keeps `processes` workers running, and speaks for all of them.
 *
 * `first` has been started before this module was loaded, so that both load at the same time; it waits to be told more.
 * Resolves when `signal` has aborted and every worker has finished its calls. Throws like `createApp`; no worker is left then.
 */
export async function runPrimary(options: {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly first: WorkerProcess;
  readonly processes: number;
  readonly signal: AbortSignal;
  readonly print: (text: string) => void;
}): Promise<void> {
  const { first, processes, signal } = options;
  using _first = { [Symbol.dispose]: () => first.kill() };
  const config = parseConfig(options.env);
  const resolved = resolveConfig(config);
  const logger = createLogger(config.logLevel);
  const events = createEvents(logger);
  for (const client of resolved.shortKeys) events.shortKey(client);
  await using shared = await openShared(config, logger);

  const { host, port, drainMs } = config.server;
  const door = await openDoor(host, port);
  using _door = { [Symbol.dispose]: () => door.close() };
  const stores = shared.sources.map(({ name, optional }) => ({ name, optional }));
  const setup = pack({ config, resolved, stores } satisfies Setup);
  const crew = createCrew({ setup, shared, door, events, start: startWorker, signal, drainMs });
  const ready = crew.begin(first);
  // The worker starts while this opens. What fails here ends it, and is what is told.
  ready.catch(() => undefined);
  await using admin = await openAdmin(config, { shared, events, workers: crew.states });
  const engine = await ready;
  const url = localUrl(config, door.address.port);
  events.listening(url, admin.url, engine, processes);
  if (resolved.generatedKey !== undefined) options.print(firstCall(url, resolved.generatedKey));

  const done = crew.run(processes);
  await aborted(signal);
  events.draining(drainMs);
  await done;
  events.stopped();
}
