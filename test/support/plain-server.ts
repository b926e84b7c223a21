import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { createServer as createHttp1Server } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import { type AddressInfo, createServer as createNetServer, type Server } from "node:net";
import { fileURLToPath } from "node:url";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { ChatService } from "../../gen/formdev/chat/v1/chat_service_pb.ts";

/**
 * The gateway that one would write first: ChatService on connect-node's own adapter with its defaults, and keys checked by
 * an interceptor. In a process of its own, as some requests end it.
 *
 * Tests of hostile requests send each one here too. What does not hurt this server proves nothing about ours.
 */
export interface PlainServer extends AsyncDisposable {
  readonly ports: Ports;
  state(): Promise<State>;
  /** Resolves with the exit code once the process is gone. */
  readonly exited: Promise<number | null>;
}

interface Ports {
  readonly http1: number;
  readonly http2: number;
  /** HTTP/1.1 whose connections another server accepted, as one that shares its port with HTTP/2 does. */
  readonly handedOver: number;
}

interface State {
  /** The most memory that its buffers have taken at once, in bytes beyond those at the start. */
  readonly peakBufferBytes: number;
  /** StreamChat calls that hold their resources now. */
  readonly running: number;
  /** StreamChat calls whose signal has aborted. */
  readonly aborted: number;
}

/** What `state` asks the process. */
const stateQuestion = "state";

export async function startPlainServer(): Promise<PlainServer> {
  const child = fork(fileURLToPath(import.meta.url), { execArgv: [], silent: true });
  const exited = once(child, "exit").then(([code]) => code as number | null);
  const ports = await nextMessage<Ports>(child);
  return {
    ports,
    exited,
    state() {
      const state = nextMessage<State>(child);
      child.send(stateQuestion);
      return state;
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

async function nextMessage<T>(child: ChildProcess): Promise<T> {
  const [message] = await once(child, "message");
  return message as T;
}

async function serve(): Promise<void> {
  const start = process.memoryUsage().arrayBuffers;
  let peakBufferBytes = 0;
  let running = 0;
  let aborted = 0;
  setInterval(() => {
    peakBufferBytes = Math.max(peakBufferBytes, process.memoryUsage().arrayBuffers - start);
  }, 2);

  const checkKey: Interceptor = (next) => (request) => {
    if (!request.header.has("x-api-key")) throw new ConnectError("no key", Code.Unauthenticated);
    return next(request);
  };
  const handler = connectNodeAdapter({
    interceptors: [checkKey],
    routes: (router) =>
      router.service(ChatService, {
        chat: () => ({ id: "plain" }),
        async *streamChat(_request, { signal }) {
          signal.addEventListener("abort", () => (aborted += 1), { once: true });
          running += 1;
          try {
            const text = "x".repeat(65_536);
            while (!signal.aborted) yield { part: { case: "textDelta", value: { text } } };
          } finally {
            running -= 1;
          }
        },
      }),
  });
  const unlistened = createHttp1Server(handler);
  const ports: Ports = {
    http1: await listen(createHttp1Server(handler)),
    http2: await listen(createHttp2Server(handler)),
    handedOver: await listen(
      createNetServer((socket) => void unlistened.emit("connection", socket)),
    ),
  };
  process.on("message", () => process.send?.({ peakBufferBytes, running, aborted }));
  process.once("disconnect", () => process.exit());
  process.send?.(ports);
}

async function listen(server: Server): Promise<number> {
  await once(server.listen(0, "127.0.0.1"), "listening");
  return (server.address() as AddressInfo).port;
}

if (import.meta.main) await serve();
