import type { MonotonicClock } from "../lib/clock.ts";
import type { Capacity, Place, PlacedCall } from "./capacity.ts";

/** A place that a call has. Disposing it, once or more often, gives it back. */
export interface Seat extends Disposable {
  /** Which engine; absent where there can be only one. */
  readonly engine: string | undefined;
  /** Milliseconds that the call has waited. */
  readonly queueMs: number;
  /**
   * Says what the call has really cost, in tokens of prompt and completion; 0 for one that never ran. It counts from the
   * disposal on, the last word before which holds. Without a word it has cost what was expected.
   */
  settle(tokens: number): void;
  /** Says that the engine has begun to answer. */
  answered(): void;
  /** Says that the engine has failed the call. It counts from the disposal on. */
  fail(): void;
  /**
   * Gives the place back as one whose engine has failed, and waits for one at another engine, before all who have not had their
   * turn yet. Resolves with whether there is one: not a second time, not when no other engine can be reached, and not when the
   * seat is disposed meanwhile. Without one the call is over.
   */
  move(): Promise<boolean>;
}

/** Gives calls their places, and keeps those that lose theirs because an engine fails. */
export interface Seats {
  /** Calls that have a place now. */
  readonly running: number;
  /** Calls that have lost theirs, and wait for another. As many at most as engines run calls. */
  readonly moving: number;
  /** How long calls keep a place, in milliseconds: a mean that follows the newest. 0: none has ended yet. */
  readonly keptMs: number;
  /** Whether so many calls have ended that this says something about the next ones. */
  readonly isKeptKnown: boolean;
  /** Whether what runs are calls that try engines out: how many those will run after that says nothing now. */
  readonly isTrying: boolean;
  /** A seat for a call that has waited so long, if there is room. `onEnd` hears what it has cost, in tokens. */
  take(call: PlacedCall, queueMs: number, onEnd: (tokens: number) => void): Seat | undefined;
  /** Gives those that have lost their places new ones, or none where no other engine can be reached. */
  admitMoving(): void;
}

interface Mover {
  /** Takes a place, if there is one for it now. */
  tryPlace(): void;
  /** Goes on without one when there can be none. */
  giveUpIfLost(): void;
}

/** The weight of the newest call in the mean of how long calls keep a place: it follows a change within some ten calls. */
const newest = 1 / 8;
/** One answer of five minutes says nothing of the next one. */
const knownAfter = 8;

/** `onFree` is called when there may be room: a call has left an engine that failed it, for another. */
export function createSeats(capacity: Capacity, clock: MonotonicClock, onFree: () => void): Seats {
  const movers = new Set<Mover>();
  let running = 0;
  /** Those of them that try out an engine, which has not answered yet. */
  let trying = 0;
  let keptMs = 0;
  let ended = 0;

  const takePlace = (call: PlacedCall): TakenPlace | undefined => {
    const place = capacity.take(call);
    if (place === undefined) return undefined;
    running += 1;
    let isTrying = place.isTrial;
    if (isTrying) trying += 1;
    const endTrial = () => {
      if (isTrying) trying -= 1;
      isTrying = false;
    };
    const sinceMs = clock();
    let isTaken = true;
    return {
      place,
      answered() {
        endTrial();
        place.answered();
      },
      free(hasFailed) {
        if (!isTaken) return;
        isTaken = false;
        running -= 1;
        endTrial();
        const ownMs = clock() - sinceMs;
        ended += 1;
        keptMs = keptMs === 0 ? ownMs : keptMs + (ownMs - keptMs) * newest;
        place.free(hasFailed);
      },
    };
  };

  /** Waits for a place that is not at this engine; `onPlace` is called as soon as it is taken. */
  const move = (call: PlacedCall, avoid: string, onPlace: (taken: TakenPlace) => void) => {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const end = (isPlaced: boolean) => {
      movers.delete(mover);
      resolve(isPlaced);
    };
    const mover: Mover = {
      tryPlace() {
        const taken = takePlace({ ...call, avoid });
        if (taken === undefined) return;
        onPlace(taken);
        end(true);
      },
      giveUpIfLost() {
        if (!capacity.hasOther(avoid)) end(false);
      },
    };
    movers.add(mover);
    return { isPlaced: promise, giveUp: () => end(false) };
  };

  return {
    get running() {
      return running;
    },
    get moving() {
      return movers.size;
    },
    get keptMs() {
      return keptMs;
    },
    get isKeptKnown() {
      return ended >= knownAfter;
    },
    get isTrying() {
      return trying > 0 && trying === running;
    },

    admitMoving() {
      for (const mover of movers) mover.giveUpIfLost();
      for (const mover of movers) mover.tryPlace();
    },

    take(call, queueMs, onEnd) {
      const first = takePlace(call);
      if (first === undefined) return undefined;
      let taken = first;
      let waitedMs = queueMs;
      let cost = call.tokens;
      let hasFailed = false;
      let isOver = false;
      let giveUp: (() => void) | undefined;
      return {
        get engine() {
          return taken.place.engine;
        },
        get queueMs() {
          return waitedMs;
        },
        settle(tokens) {
          cost = tokens;
        },
        answered: () => taken.answered(),
        fail() {
          hasFailed = true;
        },
        async move() {
          hasFailed = true;
          const { engine } = taken.place;
          const hasMoved = giveUp !== undefined;
          if (isOver || hasMoved || engine === undefined || !capacity.hasOther(engine))
            return false;
          taken.free(hasFailed);
          const leftMs = clock();
          const moving = move(call, engine, (next) => {
            taken = next;
            waitedMs += clock() - leftMs;
            hasFailed = false;
          });
          giveUp = moving.giveUp;
          onFree();
          return await moving.isPlaced;
        },
        [Symbol.dispose]() {
          if (isOver) return;
          isOver = true;
          giveUp?.();
          taken.free(hasFailed);
          onEnd(cost);
        },
      };
    },
  };
}

/** A place, given back at most once. */
interface TakenPlace {
  readonly place: Place;
  answered(): void;
  free(hasFailed: boolean): void;
}
