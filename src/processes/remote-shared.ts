import type { Admission } from "../admission/admission.ts";
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
    async enter(signal) {
      signal.throwIfAborted();
      const ticket = ++lastTicket;
      let taken = true;
      const giveBack = () => {
        if (taken) channel.tell("leave", ticket);
        taken = false;
      };
      const { promise, resolve, reject } = Promise.withResolvers<Disposable>();
      const leave = () => {
        giveBack();
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave, { once: true });
      const settle = (done: () => void) => {
        signal.removeEventListener("abort", leave);
        done();
      };
      channel.ask("enter", ticket).then(
        () => settle(() => resolve({ [Symbol.dispose]: giveBack })),
        (error) => settle(() => reject(error)),
      );
      return await promise;
    },
  };
}
