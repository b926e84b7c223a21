import { isIP } from "node:net";
import { toEngineId } from "./engine-id.ts";

/** Finds the addresses of a name. */
export type ResolveName = (name: string) => Promise<readonly string[]>;

/** An address that comes is used, and one that goes is left, within so many milliseconds. */
const resolveMs = 2000;

/**
 * Tells `onChange` the ids of all engines behind the URLs whenever they have changed: a name that has several addresses stands
 * for as many engines. A name that cannot be resolved keeps what it had. Disposing it ends the watch.
 *
 * A name with one address is not looked behind: each connection resolves it anew, so that nothing is lost when its address
 * changes. Once it has had several it stays a list of addresses, as the engines would change their ids with every change.
 */
export function watchEngineNames(options: {
  readonly urls: readonly URL[];
  readonly onChange: (engines: readonly string[]) => void;
  readonly resolve?: ResolveName;
}): Disposable {
  const { urls, onChange, resolve = lookUp } = options;
  /** The engines of each URL, as far as they are known. */
  const engines = urls.map((url) => [toEngineId(url)]);
  let known = engines.flat().join();
  let isOver = false;
  let isRunning = false;

  const look = async () => {
    if (isRunning) return;
    isRunning = true;
    await Promise.all(
      urls.map(async (url, index) => {
        if (isAddress(url)) return;
        const addresses = await resolve(url.hostname).catch(() => []);
        const isList = addresses.length > 1 || engines[index]?.[0] !== toEngineId(url);
        if (addresses.length > 0 && isList)
          engines[index] = [...new Set(addresses)]
            .sort()
            .map((address) => toEngineId(url, address));
      }),
    );
    isRunning = false;
    const found = engines.flat();
    if (isOver || found.join() === known) return;
    known = found.join();
    onChange(found);
  };

  if (urls.every(isAddress)) return { [Symbol.dispose]: () => undefined };
  void look();
  const timer = setInterval(() => void look(), resolveMs);
  timer.unref();
  return {
    [Symbol.dispose]() {
      isOver = true;
      clearInterval(timer);
    },
  };
}

function isAddress({ hostname }: URL): boolean {
  return hostname.startsWith("[") || isIP(hostname) !== 0;
}

/** Addresses of one family: a host that has one of each, as localhost does, is one engine. */
async function lookUp(name: string): Promise<readonly string[]> {
  const { lookup } = await import("node:dns/promises");
  const all = await lookup(name, { all: true });
  const [first] = all.toSorted((one, other) => one.family - other.family);
  return all.filter(({ family }) => family === first?.family).map(({ address }) => address);
}
