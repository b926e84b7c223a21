import { Socket } from "node:net";
import { createEvents, createLogger } from "../events.ts";
import { aborted } from "../lib/delay.ts";
import { createService } from "../service.ts";
import { type Activity, watchVitals } from "../usage/vitals.ts";
import { openChannel, type Pipe } from "./channel.ts";
import { unpack } from "./pack.ts";
import type { PrimarySide, Setup, WorkerSide } from "./protocol.ts";
import { createRemoteShared } from "./remote-shared.ts";
import { startFailure } from "./start-failure.ts";

/** The program of a process that answers calls. The primary starts it, tells it what to do, and decides when it ends. */

// A terminal's Ctrl-C and some supervisors signal the whole group: the primary hears it too, and leads the drain.
process.on("SIGINT", () => undefined).on("SIGTERM", () => undefined);

const vitals = watchVitals();
let activity = (): Activity => ({ calls: 0, connections: 0 });
let take = (socket: Socket): void => void socket.destroy();
const pipe: Pipe = {
  send: (message) =>
    new Promise((resolve) => process.send?.(message, undefined, undefined, () => resolve())),
  listen(onMessage, onClose) {
    process.on("message", (message, handle) => {
      if (message !== "connection") return onMessage(message);
      // Said before a byte of it is read: what a worker has begun must not go to another one when it dies.
      channel.tell("took", null);
      // Absent when the caller has closed it meanwhile.
      if (handle instanceof Socket) take(handle);
    });
    process.once("disconnect", onClose);
  },
};
const started = Promise.withResolvers<Setup>();
const stop = new AbortController();
const channel = openChannel<WorkerSide, PrimarySide>(pipe, {
  start: (setup) => started.resolve(unpack(setup)),
  drain: () => stop.abort(),
  vitals: async () => vitals.read(activity()),
});
let state: "starting" | "serving" | "ended" = "starting";
channel.closed.addEventListener("abort", () => {
  // The pipe was closed here: what the log still has to write keeps this process.
  if (state === "ended") return;
  // A primary that goes in the middle of a drain was told to end at once. One that dies otherwise leaves calls to finish.
  if (state === "starting" || stop.signal.aborted) process.exit();
  stop.abort();
});

try {
  const { config, resolved, stores } = await started.promise;
  await using service = await createService(config, {
    resolved,
    shared: createRemoteShared(channel, stores),
    events: createEvents(createLogger(config.logLevel)),
  });
  state = "serving";
  take = service.take;
  activity = service.activity;
  channel.tell("ready", service.engine);
  await aborted(stop.signal);
} catch (error) {
  process.exitCode = 1;
  channel.tell("failed", startFailure(error));
}
await channel.flush();
state = "ended";
if (process.connected) process.disconnect();
