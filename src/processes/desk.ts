import { AppError } from "../errors.ts";
import type { Shared } from "../shared.ts";
import type { PrimarySide } from "./protocol.ts";

/** What the primary decides for one worker. Disposing it gives back all that the worker holds and waits for. */
export interface Desk
  extends Pick<PrimarySide, "check" | "enter" | "leave" | "checkStore">,
    Disposable {}

/** How long a store may take to say that it works, in milliseconds: as health itself allows. */
const checkMs = 2000;

export function createDesk({ limits, admission, sources }: Shared): Desk {
  /** For each ticket how to give back what it stands for now. */
  const tickets = new Map<number, () => void>();

  return {
    check: (call) => limits.check(call),

    async enter(ticket) {
      const left = new AbortController();
      tickets.set(ticket, () => left.abort());
      try {
        const sequence = await admission.enter(left.signal);
        // It can be given, and left, within one message.
        if (left.signal.aborted) sequence[Symbol.dispose]();
        else tickets.set(ticket, () => sequence[Symbol.dispose]());
        return null;
      } catch (error) {
        tickets.delete(ticket);
        throw left.signal.aborted ? new AppError("canceled", "the caller left") : error;
      }
    },

    leave(ticket) {
      const giveBack = tickets.get(ticket);
      tickets.delete(ticket);
      giveBack?.();
    },

    async checkStore(name) {
      const store = sources.find((source) => source.name === name);
      await store?.check(AbortSignal.timeout(checkMs));
      return null;
    },

    [Symbol.dispose]() {
      for (const giveBack of tickets.values()) giveBack();
      tickets.clear();
    },
  };
}
