import { AppError } from "../errors.ts";
import type { Events } from "../events.ts";
import type { Engine } from "../inference/engine.ts";
import { monotonicClock } from "../lib/clock.ts";
import { aborted, delay, within } from "../lib/delay.ts";
import type { ProcessStates } from "../prometheus/readings.ts";
import type { Shared } from "../shared.ts";
import type { Vitals } from "../usage/vitals.ts";
import { openChannel } from "./channel.ts";
import { createDesk } from "./desk.ts";
import type { Door, Seat } from "./door.ts";
import type { PrimarySide, WorkerSide } from "./protocol.ts";
import type { WorkerProcess } from "./worker-process.ts";

/** The workers of the service, each of them replaced when it ends before its time. */
export interface Crew {
  /**
   * Takes this process in as the first worker, alone: when it cannot start, none can. Resolves with its engine when it takes
   * connections; throws AppError with the reason when it ends before that.
   */
  begin(first: WorkerProcess): Promise<Engine["kind"]>;
  /** Starts the others. Resolves when `signal` has aborted and every worker has finished its calls and ended. */
  run(size: number): Promise<void>;
  /** How the workers are doing, by place: `worker-0` and so on. Resolves within a second, whatever they do. */
  states(): Promise<ProcessStates>;
}

interface Member {
  /** Its number among the workers, which its successor takes over. */
  readonly place: number;
  /** Undefined when it does not answer in time. */
  vitals(): Promise<Vitals | undefined>;
  readonly pid: number;
  readonly startedAt: number;
  readonly ready: Promise<Engine["kind"]>;
  /** Resolves with the reason. */
  readonly ended: Promise<string>;
  kill(): void;
}

/** A worker that has lived for so many milliseconds did not fail for want of a good start. */
const settledMs = 10_000;
const firstPauseMs = 100;
const longestPauseMs = 10_000;
/** How much longer than its calls may take a worker gets to end, before it is killed for being stuck. */
const graceMs = 5000;
/** How long a worker may take to say how it is doing, in milliseconds. */
const vitalsMs = 1000;

export function createCrew(options: {
  /** The packed `Setup`. */
  readonly setup: string;
  readonly shared: Shared;
  readonly door: Door;
  readonly events: Events;
  readonly start: () => WorkerProcess;
  /** Ends the service. */
  readonly signal: AbortSignal;
  /** Milliseconds that running calls get from then on. */
  readonly drainMs: number;
}): Crew {
  const { signal, events } = options;
  const members = new Set<Member>();
  let places = 1;
  let restarts = 0;

  const hire = (worker: WorkerProcess, place: number): Member => {
    const desk = createDesk(options.shared);
    const ready = Promise.withResolvers<Engine["kind"]>();
    let seat: Seat | undefined;
    let failure: string | undefined;
    const channel = openChannel<PrimarySide, WorkerSide>(worker.pipe, {
      ...desk,
      ready(engine) {
        events.workerReady(worker.pid);
        seat = options.door.admit(worker);
        ready.resolve(engine);
      },
      took: () => seat?.took(),
      failed(reason) {
        failure = reason;
      },
    });
    const drain = () => {
      channel.tell("drain", null);
      // Now, because a second signal may end this process at any moment.
      void channel.flush();
    };
    channel.tell("start", options.setup);
    if (signal.aborted) drain();
    else signal.addEventListener("abort", drain, { once: true });

    const ended = worker.ended.then((how) => {
      desk[Symbol.dispose]();
      seat?.leave();
      signal.removeEventListener("abort", drain);
      members.delete(member);
      const reason = failure ?? `it ended with ${how}`;
      ready.reject(new AppError("unavailable", failure ?? `a process ended with ${how}`));
      return reason;
    });
    // Who waits for it hears of it; of the others the end is told.
    ready.promise.catch(() => undefined);
    const member: Member = {
      place,
      vitals: askOnce(() => channel.ask("vitals", null)),
      pid: worker.pid,
      startedAt: monotonicClock(),
      ready: ready.promise,
      ended,
      kill: () => worker.kill(),
    };
    members.add(member);
    return member;
  };

  const keep = async (first: Member): Promise<void> => {
    let member = first;
    let early = 0;
    for (;;) {
      const reason = await member.ended;
      if (signal.aborted) return;
      early = monotonicClock() - member.startedAt < settledMs ? early + 1 : 0;
      const pauseMs = pauseBefore(early);
      events.workerEnded(member.pid, reason, pauseMs);
      await delay(pauseMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      restarts += 1;
      member = hire(options.start(), member.place);
    }
  };

  return {
    async begin(first) {
      return await hire(first, 0).ready;
    },
    async run(size) {
      places = size;
      const taken = new Set([...members].map(({ place }) => place));
      for (let place = 0; place < places; place += 1) {
        if (!taken.has(place)) hire(options.start(), place);
      }
      const kept = Promise.all([...members].map(keep));
      await aborted(signal);
      options.door.close();
      const overdue = setTimeout(() => {
        for (const member of members) member.kill();
      }, options.drainMs + graceMs);
      await kept;
      clearTimeout(overdue);
    },
    async states() {
      const vitals = new Map<string, Vitals | undefined>();
      for (let place = 0; place < places; place += 1) vitals.set(`worker-${place}`, undefined);
      const answers = [...members].map(async (member) => {
        vitals.set(`worker-${member.place}`, await member.vitals());
      });
      await Promise.all(answers);
      return { vitals, restarts };
    },
  };
}

/** Asks, and waits `vitalsMs` at most. Who hangs is asked again once it has answered, so that questions do not pile up. */
function askOnce(ask: () => Promise<Vitals>): () => Promise<Vitals | undefined> {
  let asked: Promise<Vitals | undefined> | undefined;
  return () => {
    asked ??= ask()
      .catch(() => undefined)
      .finally(() => {
        asked = undefined;
      });
    return within(asked, vitalsMs);
  };
}

/**
 * Milliseconds before a worker is replaced that is the `early`-th in a row to end soon after its start: none at first, then
 * twice as long each time, so that a fault that all of them have does not eat the machine.
 */
export function pauseBefore(early: number): number {
  return early < 2 ? 0 : Math.min(firstPauseMs * 2 ** (early - 2), longestPauseMs);
}
