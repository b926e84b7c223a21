import { type Logger, pino } from "pino";
import type { CallRecord } from "./usage/call-record.ts";

/** Milliseconds that a line may wait for the next ones: a write for every call would be a tenth of a short one's cost. */
const logDelayMs = 50;
const logBufferBytes = 3072;
/** A pipe takes so many bytes at once (PIPE_BUF): lines of several processes do not mix. A line that is longer may. */
const logWriteBytes = 4096;

/**
 * JSON lines on standard output, without what a container knows already (process and host). What still waits is written
 * when the process exits.
 */
export function createLogger(level: string): Logger {
  const out = pino.destination({
    sync: false,
    minLength: logBufferBytes,
    maxWrite: logWriteBytes,
    periodicFlush: logDelayMs,
  });
  return pino({ level, base: null }, out);
}

/**
 * What the log says: one function for each thing that happens. No prompt, answer, key or header ever gets here; a caller
 * is named by its client id, and what a caller chose appears only as one of a bounded set.
 */
export function createEvents(log: Logger) {
  return {
    listening(url: string, admin: string, engine: string, processes: number) {
      log.info({ url, admin, engine, processes, node: process.version }, "listening");
    },

    workerReady(pid: number) {
      log.debug({ pid }, "a process takes connections");
    },

    workerEnded(pid: number, reason: string, pauseMs: number) {
      log.error(
        { pid, reason, replaced_after_ms: pauseMs },
        "a process ended: its calls are cut, and it is replaced",
      );
    },

    /** The one line of each call, when its last byte is sent or its caller has gone. */
    callEnded(call: CallRecord, cause: unknown) {
      const { usage } = call;
      const fields = {
        request_id: call.id,
        rpc: call.rpc,
        client: call.client,
        model: call.model,
        engine: call.engine,
        outcome: call.outcome,
        reason: call.reason,
        duration_ms: rounded(call.durationMs),
        queue_ms: rounded(call.queueMs),
        first_token_ms: rounded(call.firstTokenMs),
        engine_first_token_ms: rounded(call.engineFirstTokenMs),
        abort_ms: rounded(call.abortMs),
        prompt_tokens: usage?.promptTokens,
        completion_tokens: usage?.completionTokens,
        cached_prompt_tokens: usage?.cachedPromptTokens,
        err: cause,
      };
      if (call.outcome === "internal") log.error(fields, "call");
      else if (call.outcome === "unavailable" || call.outcome === "data_loss")
        log.warn(fields, "call");
      else if (call.rpc.startsWith("/health")) log.debug(fields, "call");
      else log.info(fields, "call");
    },

    /** In the place of the line that its process can write no more. */
    callLost({ id, client, model }: CallRecord) {
      log.warn(
        { request_id: id, client, model, outcome: "unavailable" },
        "a call was lost with its process",
      );
    },

    shortKey(client: string) {
      log.warn(
        { client },
        "a key of this client is shorter than 16 characters: replace it by a random one",
      );
    },

    modelListStale(error: unknown) {
      log.warn(
        { err: error },
        "the engine's list of models could not be read again: the last one holds",
      );
    },

    engineEjected(engine: string) {
      log.warn({ engine }, "an engine fails: it gets no calls until it answers again");
    },

    engineBack(engine: string) {
      log.info({ engine }, "an engine answers again");
    },

    connectionFailed(error: unknown) {
      log.error({ err: error }, "a connection was closed for a bug of the gateway");
    },

    metricsFailed(error: unknown) {
      log.error({ err: error }, "the metrics could not be read");
    },

    draining(limitMs: number) {
      log.info({ limit_ms: limitMs }, "draining: no new calls, the running ones may finish");
    },

    stopped() {
      log.info("stopped");
    },
  };
}

export type Events = ReturnType<typeof createEvents>;

function rounded(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms);
}
