import { type MonotonicClock, monotonicClock } from "../lib/clock.ts";
import type { Capacity, Place, PlacedCall } from "./capacity.ts";
import { type Candidate, createEngineChoice } from "./engine-choice.ts";
import { type EngineGauges, EngineLoad } from "./engine-load.ts";
import { EngineTrust } from "./engine-trust.ts";

/** Asks engines how they are. Both give up by themselves after some seconds, and when `signal` aborts. */
export interface EngineMonitor {
  /** Resolves when the engine can serve, else rejects. */
  check(engine: string, signal: AbortSignal): Promise<void>;
  /** Rejects when the engine cannot be asked, or its answer cannot be read. */
  gauges(engine: string, signal: AbortSignal): Promise<EngineGauges>;
}

/** `trial`: it is tried out with one call. `leaving`: it is not listed any more, and finishes what it runs. */
export type EngineStanding = "ready" | "trial" | "ejected" | "leaving";

/** One engine of the pool, for the operator. */
export interface EngineState {
  readonly id: string;
  readonly state: EngineStanding;
  /** Our calls that it may run now, and those that it runs, with the tokens that they are expected to cost. */
  readonly limit: number;
  readonly running: number;
  readonly tokens: number;
  /** What it has said last, and how long ago in milliseconds; absent before the first time. */
  readonly gauges?: EngineGauges;
  readonly gaugesAgeMs?: number;
}

/** Several engines as one capacity. Disposing it ends its questions; places may still be given back. */
export interface EnginePool extends Capacity, Disposable {
  states(): readonly EngineState[];
  /**
   * Says which engines there are now. One that is not named any more gets no new call, and is forgotten with its last one.
   */
  list(engines: readonly string[]): void;
}

export interface EnginePoolOptions {
  /** Their ids, one at least. */
  readonly engines: readonly string[];
  /** Calls at once, of each engine. */
  readonly concurrency: number;
  readonly monitor: EngineMonitor;
  /** Told when an engine gets no more calls because it fails, and when it gets them again. */
  readonly onEjected?: (engine: string) => void;
  readonly onBack?: (engine: string) => void;
  readonly clock?: MonotonicClock;
  /** 0 to 1. */
  readonly random?: () => number;
  /** Does it again and again, until what it returns is called. By default with a timer that keeps no process alive. */
  readonly every?: (ms: number, action: () => void) => () => void;
}

/** How often engines are looked after: busy ones are read, ejected ones whose pause is over are checked. */
const tickMs = 1000;
const idleReadMs = 30_000;

interface PooledEngine extends Candidate {
  readonly load: EngineLoad;
  readonly trust: EngineTrust;
  isListed: boolean;
  /** Whether it has the call that decides its trial. */
  isTried: boolean;
  /** Whether its health, and its gauges, are being asked for; and when the gauges were last. */
  isChecked: boolean;
  isRead: boolean;
  readAt: number;
}

/**
 * A call goes to the engine that has the fewest tokens to do, or to the one that knows its prefix if that has hardly more.
 * How much each may take is its `EngineLoad`.
 *
 * An engine that fails three calls in a row is ejected: it gets no more, until after a pause it is healthy and answers a trial
 * call. The last one is only ejected when it is not healthy, as it is better than none: what fails may be the calls. When all
 * are ejected they are asked every second, so that the first that is back gets calls within about one.
 */
export function createEnginePool(options: EnginePoolOptions): EnginePool {
  const pool = new Pool(options);
  pool.list(options.engines);
  return pool;
}

class Pool implements EnginePool {
  onChange: () => void = () => undefined;
  readonly #options: EnginePoolOptions;
  readonly #now: MonotonicClock;
  readonly #engines = new Map<string, PooledEngine>();
  readonly #choice = createEngineChoice();
  readonly #ended = new AbortController();
  readonly #stopTicking: () => void;
  #isChanged = false;

  constructor(options: EnginePoolOptions) {
    this.#options = options;
    this.#now = options.clock ?? monotonicClock;
    this.#stopTicking = (options.every ?? repeat)(tickMs, () => this.#tick());
  }

  get isDown(): boolean {
    return !this.#hasUsable(() => true);
  }

  hasOther(engine: string): boolean {
    return this.#hasUsable(({ id }) => id !== engine);
  }

  states(): EngineState[] {
    const now = this.#now();
    return [...this.#engines.values()].map((engine) => {
      const { id, isListed, load, trust } = engine;
      const { standing } = trust;
      const { running, tokens, gauges } = load;
      return {
        id,
        state: isListed ? standing : "leaving",
        limit: standing === "ready" ? load.limit : standing === "trial" ? 1 : 0,
        running,
        tokens,
        ...(gauges !== undefined && { gauges, gaugesAgeMs: load.gaugesAgeMs(now) }),
      };
    });
  }

  list(ids: readonly string[]): void {
    const listed = new Set(ids);
    for (const id of listed) {
      if (!this.#engines.has(id)) this.#engines.set(id, this.#newEngine(id));
    }
    for (const engine of this.#engines.values()) {
      engine.isListed = listed.has(engine.id);
      this.#forgetIfGone(engine);
    }
    this.#changed();
  }

  take(call: PlacedCall): Place | undefined {
    const engine = this.#choose(call);
    if (engine === undefined) return undefined;
    const { id, load } = engine;
    const { tokens } = call;
    const takenAt = this.#now();
    load.running += 1;
    load.tokens += tokens;
    const isTrial = engine.trust.standing === "trial";
    if (isTrial) engine.isTried = true;
    return {
      engine: id,
      isTrial,
      answered: () => this.#onAnswer(engine, takenAt),
      free: (hasFailed) => {
        load.running -= 1;
        load.tokens -= tokens;
        if (isTrial) engine.isTried = false;
        if (hasFailed) this.#onFailure(engine, takenAt);
        this.#forgetIfGone(engine);
      },
    };
  }

  [Symbol.dispose](): void {
    this.#stopTicking();
    this.#ended.abort();
  }

  #newEngine(id: string): PooledEngine {
    const load = new EngineLoad(this.#options.concurrency);
    return {
      id,
      load,
      get tokens() {
        return load.tokens;
      },
      trust: new EngineTrust(),
      isListed: true,
      isTried: false,
      isChecked: false,
      isRead: false,
      readAt: Number.NEGATIVE_INFINITY,
    };
  }

  #forgetIfGone(engine: PooledEngine): void {
    if (!engine.isListed && engine.load.running === 0) this.#engines.delete(engine.id);
  }

  #hasUsable(isMeant: (engine: PooledEngine) => boolean): boolean {
    for (const engine of this.#engines.values()) {
      if (engine.isListed && engine.trust.standing !== "ejected" && isMeant(engine)) return true;
    }
    return false;
  }

  #hasRoom({ id, isListed, isTried, load, trust }: PooledEngine, call: PlacedCall): boolean {
    if (!isListed || trust.standing === "ejected" || id === call.avoid) return false;
    if (trust.standing === "trial" && isTried) return false;
    return load.hasRoom(call);
  }

  #choose(call: PlacedCall): PooledEngine | undefined {
    const usable = [...this.#engines.values()].filter((engine) => this.#hasRoom(engine, call));
    return this.#engines.size === 1 ? usable[0] : this.#choice.choose(usable, call.affinity);
  }

  #onAnswer(engine: PooledEngine, takenAt: number): void {
    if (!engine.trust.answer(takenAt)) return;
    this.#options.onBack?.(engine.id);
    this.#changed();
  }

  #onFailure(engine: PooledEngine, takenAt: number): void {
    if (!engine.isListed || !engine.trust.fail(takenAt, this.#now())) return;
    if (this.hasOther(engine.id)) this.#eject(engine);
    else void this.#check(engine);
  }

  #eject({ id, trust }: PooledEngine): void {
    trust.eject(this.#now(), (this.#options.random ?? Math.random)());
    this.#options.onEjected?.(id);
    this.#changed();
  }

  #tick(): void {
    const now = this.#now();
    const { isDown } = this;
    for (const engine of this.#engines.values()) {
      const { isListed, load, trust, readAt } = engine;
      if (!isListed) continue;
      if (load.expire(now)) this.#changed();
      if (trust.standing === "ejected") {
        if (isDown || trust.isRested(now)) void this.#check(engine);
      } else if (load.running > 0 || now - readAt >= idleReadMs) void this.#read(engine);
    }
  }

  /** Asks whether it is healthy. An ejected engine that is will be tried out; the last one that is not will be ejected. */
  async #check(engine: PooledEngine): Promise<void> {
    if (engine.isChecked) return;
    engine.isChecked = true;
    const isHealthy = await this.#options.monitor.check(engine.id, this.#ended.signal).then(
      () => true,
      () => false,
    );
    engine.isChecked = false;
    if (this.#ended.signal.aborted || !engine.isListed) return;
    const { trust } = engine;
    if (trust.standing !== "ejected") {
      if (isHealthy) trust.forgive();
      else this.#eject(engine);
    } else if (isHealthy) {
      trust.tryOut(this.#now());
      this.#changed();
    }
  }

  async #read(engine: PooledEngine): Promise<void> {
    if (engine.isRead) return;
    engine.isRead = true;
    engine.readAt = this.#now();
    try {
      const gauges = await this.#options.monitor.gauges(engine.id, this.#ended.signal);
      engine.load.read(gauges, this.#now());
      this.#changed();
    } catch {
      // The credit alone holds: that it has no gauges is no reason to keep calls from it. But where no call can tell whether
      // it is there at all, its health does.
      if (engine.load.running === 0) void this.#check(engine);
    } finally {
      engine.isRead = false;
    }
  }

  /** Told once everything is decided: whoever takes or gives back a place is in the middle of something. */
  #changed(): void {
    if (this.#isChanged) return;
    this.#isChanged = true;
    queueMicrotask(() => {
      this.#isChanged = false;
      this.onChange();
    });
  }
}

function repeat(ms: number, action: () => void): () => void {
  const timer = setInterval(action, ms);
  timer.unref();
  return () => clearInterval(timer);
}
