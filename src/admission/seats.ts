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

interface Mover {
  readonly avoid: string;
  /** Takes a place, if there is one for it now. */
  tryPlace(): void;
  /** Goes on without one: there can be none. */
  giveUp(): void;
}

/** The weight of the newest call in the mean of how long calls keep a place: it follows a change within some ten calls. */
const newest = 1 / 8;
/** One answer of five minutes says nothing of the next one. */
const knownAfter = 8;

/** Gives calls their places, and keeps those that lose theirs because an engine fails. */
export class Seats {
  /** Calls that have a place now. */
  running = 0;
  /** How long calls keep a place, in milliseconds: a mean that follows the newest. 0: none has ended yet. */
  keptMs = 0;
  readonly capacity: Capacity;
  readonly clock: MonotonicClock;
  /** Called when there may be room: a call has left an engine that failed it, for another. */
  readonly onFree: () => void;
  /** Those of the running that try out an engine, which has not answered yet. */
  trying = 0;
  readonly #movers = new Set<Mover>();
  #ended = 0;

  constructor(capacity: Capacity, clock: MonotonicClock, onFree: () => void) {
    this.capacity = capacity;
    this.clock = clock;
    this.onFree = onFree;
  }

  /** Calls that have lost their place, and wait for another. As many at most as engines run calls. */
  get moving(): number {
    return this.#movers.size;
  }

  /** Whether so many calls have ended that `keptMs` says something about the next ones. */
  get isKeptKnown(): boolean {
    return this.#ended >= knownAfter;
  }

  /** Whether what runs are calls that try engines out: how many those will run after that says nothing now. */
  get isTrying(): boolean {
    return this.trying > 0 && this.trying === this.running;
  }

  /** A seat for a call that has waited so long, if there is room. `onEnd` hears what it has cost, in tokens. */
  take(call: PlacedCall, queueMs: number, onEnd: (tokens: number) => void): Seat | undefined {
    const taken = this.takePlace(call);
    return taken && new TakenSeat(this, call, taken, queueMs, onEnd);
  }

  /** Gives those that have lost their places new ones, or none where no other engine can be reached. */
  admitMoving(): void {
    for (const mover of this.#movers) if (!this.capacity.hasOther(mover.avoid)) mover.giveUp();
    for (const mover of this.#movers) mover.tryPlace();
  }

  takePlace(call: PlacedCall): TakenPlace | undefined {
    const place = this.capacity.take(call);
    return place && new TakenPlace(this, place);
  }

  ended(keptMs: number): void {
    this.#ended += 1;
    this.keptMs = this.keptMs === 0 ? keptMs : this.keptMs + (keptMs - this.keptMs) * newest;
  }

  /** Waits for a place that is not at this engine; `onPlace` is called as soon as it is taken. */
  move(call: PlacedCall, avoid: string, onPlace: (taken: TakenPlace) => void) {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const end = (isPlaced: boolean) => {
      this.#movers.delete(mover);
      resolve(isPlaced);
    };
    const mover: Mover = {
      avoid,
      tryPlace: () => {
        const taken = this.takePlace({ ...call, avoid });
        if (taken === undefined) return;
        onPlace(taken);
        end(true);
      },
      giveUp: () => end(false),
    };
    this.#movers.add(mover);
    return { isPlaced: promise, giveUp: mover.giveUp };
  }
}

/** A place, given back at most once. */
class TakenPlace {
  readonly engine: string | undefined;
  readonly #seats: Seats;
  readonly #place: Place;
  readonly #sinceMs: number;
  #isTrying: boolean;
  #isTaken = true;

  constructor(seats: Seats, place: Place) {
    this.engine = place.engine;
    this.#seats = seats;
    this.#place = place;
    this.#sinceMs = seats.clock();
    this.#isTrying = place.isTrial;
    seats.running += 1;
    if (place.isTrial) seats.trying += 1;
  }

  answered(): void {
    this.#endTrial();
    this.#place.answered();
  }

  free(hasFailed: boolean): void {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    this.#seats.running -= 1;
    this.#endTrial();
    this.#seats.ended(this.#seats.clock() - this.#sinceMs);
    this.#place.free(hasFailed);
  }

  #endTrial(): void {
    if (this.#isTrying) this.#seats.trying -= 1;
    this.#isTrying = false;
  }
}

class TakenSeat implements Seat {
  queueMs: number;
  readonly #seats: Seats;
  readonly #call: PlacedCall;
  readonly #onEnd: (tokens: number) => void;
  #taken: TakenPlace;
  #cost: number;
  #hasFailed = false;
  #isOver = false;
  /** Ends the wait for another place. Present once it has moved. */
  #giveUp: (() => void) | undefined;

  constructor(
    seats: Seats,
    call: PlacedCall,
    taken: TakenPlace,
    queueMs: number,
    onEnd: (tokens: number) => void,
  ) {
    this.#seats = seats;
    this.#call = call;
    this.#taken = taken;
    this.queueMs = queueMs;
    this.#onEnd = onEnd;
    this.#cost = call.tokens;
  }

  get engine(): string | undefined {
    return this.#taken.engine;
  }

  settle(tokens: number): void {
    this.#cost = tokens;
  }

  answered(): void {
    this.#taken.answered();
  }

  fail(): void {
    this.#hasFailed = true;
  }

  async move(): Promise<boolean> {
    this.#hasFailed = true;
    const { engine } = this;
    const { capacity, clock } = this.#seats;
    if (this.#isOver || this.#giveUp !== undefined) return false;
    if (engine === undefined || !capacity.hasOther(engine)) return false;
    this.#taken.free(true);
    const leftMs = clock();
    const moving = this.#seats.move(this.#call, engine, (next) => {
      this.#taken = next;
      this.queueMs += clock() - leftMs;
      this.#hasFailed = false;
    });
    this.#giveUp = moving.giveUp;
    this.#seats.onFree();
    return await moving.isPlaced;
  }

  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#giveUp?.();
    this.#taken.free(this.#hasFailed);
    this.#onEnd(this.#cost);
  }
}
