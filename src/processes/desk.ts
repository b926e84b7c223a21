import { AppError } from "../errors.ts";
import type { Shared } from "../shared.ts";
import type { PrimarySide } from "./protocol.ts";

/**
 * What the primary decides for one worker. Disposing it gives back all that the worker holds and waits for; what it held has
 * then cost what was expected, as nobody can say more.
 */
export interface Desk
  extends Pick<PrimarySide, "check" | "enter" | "leave" | "checkStore">,
    Disposable {}

/** How long a store may take to say that it works, in milliseconds: as health itself allows. */
const checkMs = 2000;

export function createDesk({ limits, admission, sources }: Shared): Desk {
  /** For each ticket how to give back what it stands for now, and what it has cost where that is known. */
  const tickets = new Map<number, (tokens?: number) => void>();

  return {
    check: (call) => limits.check(call),

    async enter({ ticket, call }) {
      const left = new AbortController();
      tickets.set(ticket, () => left.abort());
      try {
        const lease = await admission.enter(call, left.signal);
        const giveBack = (tokens?: number) => {
          if (tokens !== undefined) lease.settle(tokens);
          lease[Symbol.dispose]();
        };
        // It can be given, and left, within one message: it has never run.
        if (left.signal.aborted) giveBack(0);
        else tickets.set(ticket, giveBack);
        return null;
      } catch (error) {
        tickets.delete(ticket);
        throw left.signal.aborted ? new AppError("canceled", "the caller left") : error;
      }
    },

    leave({ ticket, tokens }) {
      const giveBack = tickets.get(ticket);
      tickets.delete(ticket);
      giveBack?.(tokens);
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
