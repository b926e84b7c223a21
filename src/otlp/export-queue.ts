import type { Logger } from "pino";

/** What keeps items until somebody outside has them. Disposing it sends what waits, for 2 s at most. */
export interface ExportQueue<Item> extends AsyncDisposable {
  /** Never throws, and does not wait. When too many wait, the oldest is dropped. */
  add(item: Item): void;
}

/** Why a batch did not arrive. */
export interface ExportFailure {
  /** For the log. */
  readonly reason: string;
  /** Whether the same batch may arrive later. */
  readonly isTemporary: boolean;
}

export interface ExportQueueOptions<Item> {
  /** Sends a batch, or gives up when `signal` aborts. Must end within some seconds, and never rejects. */
  readonly send: (
    batch: readonly Item[],
    signal: AbortSignal,
  ) => Promise<ExportFailure | undefined>;
  readonly log: Pick<Logger, "info" | "warn">;
}

/** What waits during an outage: some hundred bytes for each call. */
const itemsMax = 1024;
/** 200 KB of JSON, whose writing holds the process up for 2 ms. */
const batchItems = 128;
/** How long an item waits for others, and a batch that could not be sent for the next attempt. */
const intervalMs = 5000;
/** A stopping service has still to end before its supervisor's patience does. */
const flushMs = 2000;

/**
 * Sends one batch at a time. An outage has two lines in the log, its begin and its end, and one when something is lost for the
 * first time.
 */
export function createExportQueue<Item>(options: ExportQueueOptions<Item>): ExportQueue<Item> {
  const { send, log } = options;
  const waiting: Item[] = [];
  const giveUp = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  let sending: Promise<void> | undefined;
  let isFailing = false;
  let isClosing = false;
  let lost = 0;

  const lose = (count: number) => {
    if (lost === 0 && count > 0) log.warn("traces are lost: the collector does not take them");
    lost += count;
  };

  const report = (failure: ExportFailure | undefined) => {
    if (failure !== undefined && !isFailing)
      log.warn({ reason: failure.reason }, "no traces can be sent to the collector");
    if (failure === undefined && isFailing) {
      log.info({ lost }, "traces are sent to the collector again");
      lost = 0;
    }
    isFailing = failure !== undefined;
  };

  const sendAll = async () => {
    while (waiting.length >= (isClosing ? 1 : batchItems)) if (!(await sendBatch())) return;
  };

  /** Resolves with whether the next one can be tried. */
  const sendBatch = async (): Promise<boolean> => {
    const batch = waiting.splice(0, batchItems);
    const failure = await send(batch, giveUp.signal);
    if (failure?.isTemporary) {
      waiting.unshift(...batch);
      lose(waiting.splice(0, waiting.length - itemsMax).length);
    } else if (failure !== undefined) lose(batch.length);
    report(failure);
    return failure === undefined;
  };

  const start = () => {
    clearTimeout(timer);
    timer = undefined;
    sending = sendBatch()
      .then((isOpen) => (isOpen ? sendAll() : undefined))
      .finally(() => {
        sending = undefined;
        if (waiting.length > 0) schedule();
      });
  };

  const schedule = () => {
    if (sending !== undefined || isClosing) return;
    if (waiting.length >= batchItems && !isFailing) start();
    else timer ??= setTimeout(start, intervalMs).unref();
  };

  return {
    add(item) {
      if (waiting.length === itemsMax) {
        waiting.shift();
        lose(1);
      }
      waiting.push(item);
      schedule();
    },

    async [Symbol.asyncDispose]() {
      isClosing = true;
      clearTimeout(timer);
      const limit = setTimeout(() => giveUp.abort(), flushMs);
      await sending;
      await sendAll();
      clearTimeout(limit);
      lose(waiting.length);
      if (lost > 0) log.warn({ lost }, "calls that are in no trace");
    },
  };
}
