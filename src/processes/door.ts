import { type AddressInfo, createServer, type Socket } from "node:net";

/**
 * The port of the service, in the primary. It hands connections to the workers in turn, so that two long ones of HTTP/2 are
 * on two workers, and never two at once to the same, so that a busy worker is passed over. What no worker has taken yet
 * stays here: it survives a worker's death, and waits when there is none for the moment.
 *
 * node:cluster does nearly the same, but a connection on its way to a worker that dies is then open for ever, answered by
 * nobody. With sockets of the workers' own (SO_REUSEPORT) chance would spread connections, those that wait on a dying
 * worker's socket would be reset, and a second gateway on the same port would not be noticed.
 */
export interface Door {
  readonly address: AddressInfo;
  /** From now on connections are handed to this worker too. */
  admit(worker: Taker): Seat;
  /** Takes no new connections, and cuts those that no worker has. */
  close(): void;
}

export interface Taker {
  /** Gives it a connection, of which another process may have a copy already: nothing may be done with it here. */
  hand(socket: Socket): void;
}

/** One worker's place in the turn. */
export interface Seat {
  /** The worker has what it was handed. */
  took(): void;
  /** The worker is gone: what it was handed and has not taken goes to another. */
  leave(): void;
}

/** Connections that wait for a worker, at most: as many as one worker may have. */
const waitingMax = 10_000;

/** Listens. Rejects with Node's error when the address is taken. */
export async function openDoor(host: string, port: number): Promise<Door> {
  const waiting: Socket[] = [];
  const idle = new Set<Taker>();
  const onTheWay = new Map<Taker, Socket>();
  let closed = false;

  const handOut = () => {
    for (const worker of idle) {
      const socket = waiting.shift();
      if (socket === undefined) return;
      idle.delete(worker);
      onTheWay.set(worker, socket);
      worker.hand(socket);
    }
  };
  // Nothing is read here: it belongs to the worker.
  const server = createServer({ noDelay: true, pauseOnConnect: true }, (socket) => {
    socket.on("error", ignore);
    waiting.push(socket);
    handOut();
  });
  server.maxConnections = waitingMax;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => resolve());
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("there is no port");

  return {
    address,
    admit(worker) {
      idle.add(worker);
      handOut();
      return {
        took() {
          // Only our copy of it is closed.
          onTheWay.get(worker)?.destroy();
          onTheWay.delete(worker);
          idle.add(worker);
          handOut();
        },
        leave() {
          const socket = onTheWay.get(worker);
          onTheWay.delete(worker);
          idle.delete(worker);
          if (closed) socket?.destroy();
          else if (socket !== undefined) waiting.unshift(socket);
          handOut();
        },
      };
    },
    close() {
      closed = true;
      server.close();
      for (const socket of waiting.splice(0)) socket.destroy();
    },
  };
}

function ignore() {}
