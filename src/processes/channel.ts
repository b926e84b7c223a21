import { AppError, type ErrorKind, type RefusalReason } from "../errors.ts";

/** One end of a pipe between two processes of ours. It keeps the order, and loses nothing as long as it is open. */
export interface Pipe {
  /** Resolves when the message has left, also when the other end is gone. JSON is what survives. */
  send(message: unknown): Promise<void>;
  /** Called once, before which nothing arrives. `onClose` is the last call. */
  listen(onMessage: (message: unknown) => void, onClose: () => void): void;
}

/** The names of `Side` that answer. */
type Question<Side> = {
  [Name in keyof Side]: Side[Name] extends (payload: never) => Promise<unknown> ? Name : never;
}[keyof Side] &
  string;

/** The names of `Side` that are only told something. */
type News<Side> = Exclude<keyof Side, Question<Side>> & string;

type Payload<Method> = Method extends (payload: infer Given) => unknown ? Given : never;
type Answer<Method> = Method extends (payload: never) => Promise<infer Given> ? Given : never;

/** What one process says to another, which understands `Remote`: its methods that return promises, and those that do not. */
export interface Channel<Remote> {
  /**
   * Resolves with what the other side's method of this name returns. Rejects with the AppError that it throws, with AppError
   * `internal` for anything else, and with `unavailable` when the other side is gone.
   */
  ask<Name extends Question<Remote>>(
    name: Name,
    payload: Payload<Remote[Name]>,
  ): Promise<Answer<Remote[Name]>>;
  /** Calls the other side's method of this name, if it is still there. */
  tell<Name extends News<Remote>>(name: Name, payload: Payload<Remote[Name]>): void;
  /** Resolves when everything said so far has left. */
  flush(): Promise<void>;
  /** Aborts when the other side is gone. */
  readonly closed: AbortSignal;
}

/** A call of a method. With an id it wants an answer. */
type Call = readonly [name: string, payload: unknown, id?: number];
type Reply = readonly [id: number, value: unknown, error?: WireError];
type WireError = readonly [
  kind: ErrorKind,
  message: string,
  details: { readonly retryAfterMs?: number; readonly reason?: RefusalReason },
];

/**
 * Opens a channel whose other side may call the methods of `local`. What is said within one turn of the event loop travels
 * in one message: a pipe costs by the message, and under load a turn serves many calls.
 */
export function openChannel<Local, Remote>(pipe: Pipe, local: Local): Channel<Remote> {
  const methods = new Map<string, (payload: unknown) => unknown>(Object.entries(local as object));
  const closed = new AbortController();
  const pending = new Map<number, PromiseWithResolvers<unknown>>();
  let lastId = 0;
  let outgoing: (Call | Reply)[] = [];
  let sent = Promise.resolve();

  const flush = () => {
    if (outgoing.length > 0) sent = pipe.send(outgoing);
    outgoing = [];
    return sent;
  };
  const say = (item: Call | Reply) => {
    if (outgoing.length === 0) setImmediate(flush);
    outgoing.push(item);
  };

  const onCall = async ([name, payload, id]: Call) => {
    const method = methods.get(name);
    if (id === undefined) {
      method?.(payload);
      return;
    }
    try {
      say([id, await method?.(payload)]);
    } catch (error) {
      say([id, null, toWire(error)]);
    }
  };
  const onReply = ([id, value, error]: Reply) => {
    const question = pending.get(id);
    pending.delete(id);
    if (error === undefined) question?.resolve(value);
    else question?.reject(fromWire(error));
  };

  pipe.listen(
    (message) => {
      for (const item of message as readonly (Call | Reply)[]) {
        if (isReply(item)) onReply(item);
        else void onCall(item);
      }
    },
    () => {
      closed.abort();
      for (const question of pending.values()) question.reject(gone());
      pending.clear();
    },
  );

  return {
    closed: closed.signal,
    flush,
    async ask(name, payload) {
      if (closed.signal.aborted) throw gone();
      const id = ++lastId;
      const question = Promise.withResolvers<unknown>();
      pending.set(id, question);
      say([name, payload, id]);
      return (await question.promise) as never;
    },
    tell(name, payload) {
      if (!closed.signal.aborted) say([name, payload]);
    },
  };
}

function isReply(item: Call | Reply): item is Reply {
  return typeof item[0] === "number";
}

function toWire(error: unknown): WireError {
  if (!(error instanceof AppError)) return ["internal", String(error), {}];
  const { kind, message, retryAfterMs, reason } = error;
  return [
    kind,
    message,
    {
      ...(retryAfterMs !== undefined && { retryAfterMs }),
      ...(reason !== undefined && { reason }),
    },
  ];
}

function fromWire([kind, message, details]: WireError): AppError {
  return new AppError(kind, message, details);
}

function gone(): AppError {
  return new AppError("unavailable", "the service is stopping: try again", { retryAfterMs: 1000 });
}
