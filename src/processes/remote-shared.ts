import type { Admission, Lease } from "../admission/admission.ts";
import type { HealthSource } from "../health/health.ts";
import type { Shared } from "../shared.ts";
import type { Channel } from "./channel.ts";
import type { PrimarySide } from "./protocol.ts";

/** What all processes share, as a worker has it: the primary decides. `stores` are the names of the primary's sources. */
export function createRemoteShared(
  channel: Channel<PrimarySide>,
  stores: readonly Pick<HealthSource, "name" | "optional">[],
): Shared {
  return {
    limits: {
      check: (call) => channel.ask("check", call),
      count: (call) => channel.tell("count", call),
    },
    admission: createRemoteAdmission(channel),
    calls: { record: (call) => channel.tell("record", call) },
    usage: { report: (client) => channel.ask("reportUsage", client) },
    sources: stores.map(({ name, optional }) => ({
      name,
      optional,
      async check(signal) {
        signal.throwIfAborted();
        await channel.ask("checkStore", name);
      },
    })),
  };
}

function createRemoteAdmission(channel: Channel<PrimarySide>): Admission {
  let lastTicket = 0;
  return {
    async enter(call, signal) {
      signal.throwIfAborted();
      const ticket = ++lastTicket;
      let taken = true;
      let cost: number | undefined;
      const giveBack = () => {
        if (taken) channel.tell("leave", { ticket, ...(cost !== undefined && { tokens: cost }) });
        taken = false;
      };
      const { promise, resolve, reject } = Promise.withResolvers<Lease>();
      const leave = () => {
        // The primary may have given it a place by now, which nothing has run on.
        cost = 0;
        giveBack();
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave, { once: true });
      const decided = (done: () => void) => {
        signal.removeEventListener("abort", leave);
        done();
      };
      channel.ask("enter", { ticket, call }).then(
        ({ engine, queueMs }) =>
          decided(() =>
            resolve({
              engine,
              queueMs,
              settle(tokens) {
                cost = tokens;
              },
              [Symbol.dispose]: giveBack,
            }),
          ),
        (error) => decided(() => reject(error)),
      );
      return await promise;
    },
  };
}
