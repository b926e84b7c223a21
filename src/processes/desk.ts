import type { AdmissionCall, Lease } from "../admission/admission.ts";
import { AppError } from "../errors.ts";
import { noUsage } from "../inference/engine.ts";
import type { Shared } from "../shared.ts";
import type { CallRecord } from "../usage/call-record.ts";
import type { Admitted, Left, PrimarySide } from "./protocol.ts";

/**
 * What the primary decides for one worker. Disposing it gives back all that the worker holds and waits for, and records its
 * calls, which nobody else can any more: those that ran have cost what was expected.
 */
export interface Desk
  extends Pick<
      PrimarySide,
      | "check"
      | "count"
      | "enter"
      | "leave"
      | "answered"
      | "move"
      | "record"
      | "reportUsage"
      | "checkStore"
    >,
    Disposable {}

interface OpenCall {
  readonly call: AdmissionCall;
  /** Milliseconds since 1970. */
  readonly beganAt: number;
  /** What it has cost, as far as that is known. */
  tokens: number;
  /** Whether it was admitted, and its request counted with that. */
  isAdmitted: boolean;
}

/** How long a store may take to say that it works, in milliseconds: as health itself allows. */
const checkMs = 2000;

export function createDesk({ limits, admission, calls, usage, sources }: Shared): Desk {
  /** For each ticket how to give back what it stands for now, with what the worker says of it, where it can. */
  const tickets = new Map<number, (left: Partial<Left>) => void>();
  /** The leases of tickets that were admitted. */
  const leases = new Map<number, Lease>();
  /** By their ids the calls that have entered and are not recorded: what is to be said of them when the worker cannot. */
  const open = new Map<string, OpenCall>();

  return {
    check: (call) => limits.check(call),
    count(call) {
      // A worker does not know of a call that it was admitted when its caller left meanwhile.
      if (!open.get(call.id)?.isAdmitted) limits.count(call);
    },

    async enter({ ticket, call }) {
      const left = new AbortController();
      const record: OpenCall = { call, beganAt: Date.now(), tokens: 0, isAdmitted: false };
      open.set(call.id, record);
      tickets.set(ticket, () => left.abort());
      try {
        const lease = await admission.enter(call, left.signal);
        record.isAdmitted = true;
        const giveBack = ({ tokens, hasFailed }: Partial<Left>) => {
          leases.delete(ticket);
          if (tokens !== undefined) lease.settle(tokens);
          if (hasFailed) lease.fail();
          record.tokens = tokens ?? call.tokens;
          lease[Symbol.dispose]();
        };
        // It can be given, and left, within one message: it has never run.
        if (left.signal.aborted) giveBack({ tokens: 0 });
        else {
          tickets.set(ticket, giveBack);
          leases.set(ticket, lease);
        }
        return toAdmitted(lease);
      } catch (error) {
        tickets.delete(ticket);
        throw left.signal.aborted ? new AppError("canceled", "the caller left") : error;
      }
    },

    leave(left) {
      const giveBack = tickets.get(left.ticket);
      tickets.delete(left.ticket);
      giveBack?.(left);
    },

    answered: (ticket) => leases.get(ticket)?.answered(),

    async move(ticket) {
      const lease = leases.get(ticket);
      return lease !== undefined && (await lease.move()) ? toAdmitted(lease) : null;
    },

    record(call) {
      open.delete(call.id);
      calls.record(call);
    },

    reportUsage: (client) => usage.report(client),

    async checkStore(name) {
      const store = sources.find((source) => source.name === name);
      await store?.check(AbortSignal.timeout(checkMs));
      return null;
    },

    [Symbol.dispose]() {
      for (const giveBack of tickets.values()) giveBack({});
      tickets.clear();
      for (const call of open.values()) calls.record(toLostRecord(call));
      open.clear();
    },
  };
}

function toAdmitted({ engine, queueMs }: Lease): Admitted {
  return { queueMs, ...(engine !== undefined && { engine }) };
}

function toLostRecord({ call, beganAt, tokens }: OpenCall): CallRecord {
  return {
    id: call.id,
    startedAt: beganAt,
    durationMs: Date.now() - beganAt,
    rpc: "unknown",
    client: call.client.id,
    model: call.model,
    outcome: "unavailable",
    usage: { ...noUsage, promptTokens: tokens },
    isLost: true,
  };
}
