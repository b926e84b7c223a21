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
    limits: { check: (call) => channel.ask("check", call) },
    admission: createRemoteAdmission(channel),
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
      const lease: Lease = {
        settle(tokens) {
          cost = tokens;
        },
        [Symbol.dispose]() {
          if (taken) channel.tell("leave", { ticket, ...(cost !== undefined && { tokens: cost }) });
          taken = false;
        },
      };
      const { promise, resolve, reject } = Promise.withResolvers<Lease>();
      const leave = () => {
        // The primary may have given it a sequence by now, which nothing has run on.
        lease.settle(0);
        lease[Symbol.dispose]();
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave, { once: true });
      const decided = (done: () => void) => {
        signal.removeEventListener("abort", leave);
        done();
      };
      channel.ask("enter", { ticket, call }).then(
        () => decided(() => resolve(lease)),
        (error) => decided(() => reject(error)),
      );
      return await promise;
    },
  };
}
