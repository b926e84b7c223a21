import { type ChildProcess, fork } from "node:child_process";
import type { Socket } from "node:net";
import type { Pipe } from "./channel.ts";

/** A process that answers calls, as the primary has it. */
export interface WorkerProcess {
  /** 0 when it could not be started. */
  readonly pid: number;
  readonly pipe: Pipe;
  /** Gives it a connection. The socket stays open here, in case that the worker dies before it has it. */
  hand(socket: Socket): void;
  /** Resolves when it is gone and its pipe empty, with what ended it, such as `exit code 1` or `SIGKILL`. */
  readonly ended: Promise<string>;
  kill(): void;
}

/** Starts one; never throws. */
export function startWorker(): WorkerProcess {
  try {
    return toWorkerProcess(fork(new URL("./worker.ts", import.meta.url)));
  } catch (error) {
    return neverStarted(error);
  }
}

function toWorkerProcess(child: ChildProcess): WorkerProcess {
  const { pid = 0 } = child;
  const ended = new Promise<string>((resolve) => {
    // Not "exit", after which messages can still come, nor "disconnect", which does not come when the worker dies while a
    // connection is on its way.
    child.once("close", (code, signal) => resolve(signal ?? `exit code ${code}`));
    child.on("error", (error) => {
      if (pid === 0) resolve(String(error));
    });
  });
  return {
    pid,
    ended,
    kill: () => void child.kill("SIGKILL"),
    hand: (socket) => void child.send("connection", socket, { keepOpen: true }, ignore),
    pipe: {
      // With a callback, it is no error that the worker has just died.
      send: (message) => new Promise((resolve) => child.send(message as object, () => resolve())),
      listen(onMessage, onClose) {
        child.on("message", onMessage);
        void ended.then(onClose);
      },
    },
  };
}

function neverStarted(error: unknown): WorkerProcess {
  return {
    pid: 0,
    ended: Promise.resolve(String(error)),
    kill: ignore,
    hand: ignore,
    pipe: { send: async () => undefined, listen: (_, onClose) => onClose() },
  };
}

function ignore() {}
