import type { AddressInfo } from "node:net";
import type { Logger } from "pino";
import { openAdmin } from "./admin.ts";
import { type Config, localUrl } from "./config.ts";
import { resolveConfig } from "./config-files.ts";
import { createEvents, createLogger } from "./events.ts";
import type { Secret } from "./lib/secret.ts";
import { createService, type Service, type ServiceParts } from "./service.ts";
import { openShared, type SharedParts } from "./shared.ts";

/** A running service in one process. Disposing it drains it: see `createService`. */
export interface App extends AsyncDisposable {
  readonly address: AddressInfo;
  /** Where clients on this machine reach it. */
  readonly url: string;
  /** Where operators do. */
  readonly adminUrl: string;
  /** The key made for this run, when none was configured. */
  readonly generatedKey: Secret | undefined;
}

/** What a test or a program may put in the place of what the configuration would give. */
export interface Overrides
  extends Pick<ServiceParts, "engine" | "signal" | "onModelFile" | "heartbeatMs">,
    SharedParts {
  readonly logger?: Logger;
}

/**
 * Builds the service and listens. Throws ConfigError for a file or an admin port that cannot be used, AppError when no engine
 * can be had, and Node's error when the address is taken; nothing stays open then.
 */
export async function createApp(config: Config, overrides: Overrides = {}): Promise<App> {
  await using resources = new AsyncDisposableStack();
  const logger = overrides.logger ?? createLogger(config.logLevel);
  const events = createEvents(logger);
  const resolved = resolveConfig(config);
  for (const client of resolved.shortKeys) events.shortKey(client);

  const shared = resources.use(await openShared(config, logger, overrides));
  // Closed last, so that a drain can be watched.
  let service: Service | undefined;
  const activity = () => service?.activity();
  const admin = resources.use(await openAdmin(config, { shared, events, activity }));
  service = resources.use(await createService(config, { ...overrides, resolved, shared, events }));
  const address = await service.listen();
  const url = localUrl(config, address.port);
  events.listening(url, admin.url, service.engine, 1);

  const owned = resources.move();
  return {
    address,
    url,
    adminUrl: admin.url,
    generatedKey: resolved.generatedKey,
    async [Symbol.asyncDispose]() {
      events.draining(config.server.drainMs);
      await owned.disposeAsync();
      events.stopped();
    },
  };
}
