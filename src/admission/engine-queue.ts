import { AppError, type RefusalReason } from "../errors.ts";
import type { CallClass } from "../keys/api-keys.ts";
import { type MonotonicClock, monotonicClock } from "../lib/clock.ts";
import type { Capacity, PlacedCall } from "./capacity.ts";
import { createFairQueue, type FairCall, type FairQueue, type Waiter } from "./fair-queue.ts";
import { type Seat, Seats } from "./seats.ts";

/** A call that wants a place at an engine. All calls of a client have the same weight. */
export interface QueuedCall extends FairCall, PlacedCall {
  readonly class: CallClass;
  /** Milliseconds until its deadline. */
  readonly deadlineMs: number;
  /** Calls of its client that may wait in its class; absent: as many as the queue leaves to one client. */
  readonly clientQueueLength?: number;
  /** Milliseconds that it may wait; absent: until its deadline. */
  readonly waitMs?: number;
}

/** Decides in which order calls get the engines. */
export interface EngineQueue {
  /** Calls that have a place now. */
  readonly running: number;
  /** Calls that wait for their turn now, and those of one class. */
  readonly waiting: number;
  waitingOf(callClass: CallClass): number;
  /**
   * Waits for a place. The caller must dispose what it gets; until then the place is taken.
   *
   * Throws AppError `exhausted` at once when the queue or the client's part of it is full and when the call would wait longer
   * than it may, and later when it has waited as long as it may; `unavailable` when no engine can be reached, also when that
   * happens while it waits; and `signal.reason` when the caller gives up. In all cases nothing stays taken.
   */
  enter(call: QueuedCall, signal: AbortSignal): Promise<Seat>;
}

/**
 * While batch calls wait, one of so many admissions is theirs. Small enough that a batch goes on under any load of persons,
 * an eighth of the engine at the least, and large enough that a person hardly notices.
 */
export const batchTurn = 8;

/** A refused caller may try again after the expected wait, but neither at once nor after it has forgotten. */
const retryAfterMsMin = 1000;
const retryAfterMsMax = 60_000;

/**
 * No place is idle while a call waits that it has room for. Interactive calls go first, all but every `batchTurn`th; within a
 * class clients share by weight, see `createFairQueue`. Nobody overtakes the call whose turn it is, also when that one needs
 * more room than there is: it would never be let in. Nor a call that has had its turn, and then an engine that failed: it is
 * charged once, and the next place at another engine is its. The engine's own queue stays empty, so that a caller who leaves
 * never costs it anything.
 *
 * At most `queueLength` calls wait, and a client may add one as long as it has fewer waiting than there are places left (the
 * dynamic threshold of Choudhury and Hahne, 1998). So one client gets half of the queue at most, and each further one half of
 * what is left: whoever fills its part refuses itself, and several that do still leave places to a client that has none.
 */
export function createEngineQueue(options: {
  readonly capacity: Capacity;
  readonly queueLength: number;
  readonly clock?: MonotonicClock;
}): EngineQueue {
  const { capacity, queueLength, clock = monotonicClock } = options;
  const queues: Record<CallClass, FairQueue<QueuedCall>> = {
    interactive: createFairQueue(),
    batch: createFairQueue(),
  };
  const waiters = new Set<{ fail(error: AppError): void }>();
  /** Interactive calls that were admitted since batch calls wait or had their turn. */
  let passedBatch = 0;

  const waiting = () => queues.interactive.size + queues.batch.size;

  const seats = new Seats(capacity, clock, () => admitWaiting());

  /** A seat for a call, which its queue then has to charge. */
  const take = (call: QueuedCall, queueMs: number): Seat | undefined =>
    seats.take(call, queueMs, (tokens) => {
      queues[call.class].end(call, tokens);
      admitWaiting();
    });

  const admitWaiting = () => {
    seats.admitMoving();
    if (seats.moving > 0) return;
    const { interactive, batch } = queues;
    for (;;) {
      const isBatch = batch.size > 0 && (interactive.size === 0 || passedBatch >= batchTurn - 1);
      const queue = isBatch ? batch : interactive;
      const waiter = queue.first() as QueuedWaiter | undefined;
      if (waiter === undefined) return;
      waiter.seat = take(waiter.call, clock() - waiter.sinceMs);
      if (waiter.seat === undefined) return;
      passedBatch = isBatch || batch.size === 0 ? 0 : passedBatch + 1;
      queue.admit(waiter);
    }
  };

  capacity.onChange = () => {
    if (capacity.isDown) for (const waiter of waiters) waiter.fail(down());
    admitWaiting();
  };

  /** Milliseconds that one more call would wait: a place is free every `keptMs / running`. 0 while nobody knows. */
  const expectedWaitMs = (ahead: number) =>
    seats.isTrying ? 0 : ((ahead + 1) * seats.keptMs) / Math.max(seats.running, 1);

  const refuse = (waitMs: number, reason: RefusalReason, message: string): AppError => {
    const retryAfterMs = Math.min(Math.max(Math.ceil(waitMs), retryAfterMsMin), retryAfterMsMax);
    return new AppError("exhausted", message, { retryAfterMs, reason });
  };

  /** Throws when the call may not wait. */
  const checkQueue = (call: QueuedCall) => {
    const { interactive, batch } = queues;
    const own = queues[call.class];
    const places = queueLength - waiting();
    const allMs = expectedWaitMs(waiting());
    if (places <= 0) {
      throw refuse(allMs, "queue", "too many calls wait for the engine: try again later");
    }
    if (own.sizeOf(call.client) >= Math.min(places, call.clientQueueLength ?? places)) {
      const message = "too many calls of this client wait for the engine: try again later";
      throw refuse(allMs, "client-queue", message);
    }
    if (!seats.isKeptKnown) return;
    const others =
      call.class === "batch" ? interactive.size : Math.min(batch.size, own.size / batchTurn);
    const waitMs = expectedWaitMs(own.aheadOf(call) + others);
    const seconds = Math.ceil(waitMs / 1000);
    const message = `the call would wait for the engine about ${seconds} s, longer than`;
    if (waitMs > call.deadlineMs)
      throw refuse(waitMs, "deadline", `${message} its deadline allows`);
    if (call.waitMs !== undefined && waitMs > call.waitMs)
      throw refuse(waitMs, "wait", `${message} this client may`);
  };

  /** Ends the wait of a call that may not wait until its deadline, when it has waited long enough. */
  const limitWait = ({ call, fail }: QueuedWaiter): (() => void) => {
    if (call.waitMs === undefined) return () => undefined;
    const message =
      "the call has waited for the engine as long as this client may: try again later";
    const timer = setTimeout(
      () => fail(refuse(expectedWaitMs(waiting()), "wait", message)),
      call.waitMs,
    );
    return () => clearTimeout(timer);
  };

  return {
    get running() {
      return seats.running;
    },
    get waiting() {
      return waiting();
    },
    waitingOf: (callClass) => queues[callClass].size,

    async enter(call, signal) {
      signal.throwIfAborted();
      if (capacity.isDown) throw down();
      const queue = queues[call.class];
      const seat = waiting() + seats.moving === 0 ? take(call, 0) : undefined;
      if (seat !== undefined) {
        queue.pass(call);
        return seat;
      }
      checkQueue(call);
      return new Promise<Seat>((resolve, reject) => {
        const forget = () => {
          waiters.delete(waiter);
          stopLimit();
          signal.removeEventListener("abort", leave);
        };
        const leave = () => waiter.fail(signal.reason);
        const waiter: QueuedWaiter = {
          call,
          sinceMs: clock(),
          seat: undefined,
          admit() {
            forget();
            if (waiter.seat !== undefined) resolve(waiter.seat);
          },
          fail(error) {
            forget();
            queue.remove(waiter);
            reject(error);
            // It may have been the one that needed more room than there is.
            admitWaiting();
          },
        };
        waiters.add(waiter);
        queue.add(waiter);
        const stopLimit = limitWait(waiter);
        signal.addEventListener("abort", leave, { once: true });
      });
    },
  };
}

interface QueuedWaiter extends Waiter<QueuedCall> {
  readonly sinceMs: number;
  /** Its place, once it has one. */
  seat: Seat | undefined;
  fail(error: AppError): void;
}

function down(): AppError {
  return new AppError("unavailable", "the engine cannot be reached: try again", {
    retryAfterMs: retryAfterMsMin,
    reason: "engine",
  });
}
