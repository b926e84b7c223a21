import type { Admission, Lease } from "../admission/admission.ts";
import type { HealthSource } from "../health/health.ts";
import type { Shared } from "../shared.ts";
import type { Channel } from "./channel.ts";
import type { Admitted, PrimarySide } from "./protocol.ts";

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
      const { promise, resolve, reject } = Promise.withResolvers<Lease>();
      const leave = () => {
        // The primary may have given it a place by now, which nothing has run on.
        channel.tell("leave", { ticket, tokens: 0 });
        reject(signal.reason);
      };
      signal.addEventListener("abort", leave, { once: true });
      const decided = (done: () => void) => {
        signal.removeEventListener("abort", leave);
        if (!signal.aborted) done();
      };
      channel.ask("enter", { ticket, call }).then(
        (admitted) => decided(() => resolve(createRemoteLease(channel, ticket, admitted))),
        (error) => decided(() => reject(error)),
      );
      return await promise;
    },
  };
}

function createRemoteLease(channel: Channel<PrimarySide>, ticket: number, first: Admitted): Lease {
  let admitted = first;
  let tokens: number | undefined;
  let hasFailed = false;
  let isOver = false;
  /** Ends the wait for another place. */
  let giveUp: () => void = () => undefined;

  return {
    get engine() {
      return admitted.engine;
    },
    get queueMs() {
      return admitted.queueMs;
    },
    settle(cost) {
      tokens = cost;
    },
    answered() {
      if (!isOver) channel.tell("answered", ticket);
    },
    fail() {
      hasFailed = true;
    },
    async move() {
      if (isOver) return false;
      const left = Promise.withResolvers<null>();
      giveUp = () => left.resolve(null);
      // That the engine has failed is said herewith.
      hasFailed = false;
      const next = await Promise.race([
        channel.ask("move", ticket).catch(() => null),
        left.promise,
      ]);
      if (next === null || isOver) return false;
      admitted = next;
      return true;
    },
    [Symbol.dispose]() {
      if (isOver) return;
      isOver = true;
      channel.tell("leave", {
        ticket,
        ...(tokens !== undefined && { tokens }),
        ...(hasFailed && { hasFailed }),
      });
      giveUp();
    },
  };
}
