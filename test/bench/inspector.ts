/** A look into the memory of a process that was started with --inspect. */

/** Mebibytes, right after a full garbage collection. */
export interface Memory {
  readonly heapMb: number;
  /** Buffers and other memory outside the heap that the heap holds. */
  readonly externalMb: number;
  readonly rssMb: number;
}

export async function inspect(
  address: string,
): Promise<Disposable & { memory(): Promise<Memory> }> {
  const socket = new WebSocket(address);
  await new Promise((resolve, reject) => {
    socket.addEventListener("open", resolve);
    socket.addEventListener("error", () => reject(new Error(`no inspector at ${address}`)));
  });
  const waiting = new Map<number, (result: unknown) => void>();
  socket.addEventListener("message", ({ data }) => {
    const { id, result } = JSON.parse(String(data)) as { id: number; result: unknown };
    waiting.get(id)?.(result);
    waiting.delete(id);
  });
  let lastId = 0;
  const ask = (method: string, params: object = {}) =>
    new Promise<unknown>((resolve) => {
      lastId += 1;
      waiting.set(lastId, resolve);
      socket.send(JSON.stringify({ id: lastId, method, params }));
    });

  return {
    async memory() {
      await ask("HeapProfiler.collectGarbage");
      const expression = "process.memoryUsage()";
      const { result } = (await ask("Runtime.evaluate", { expression, returnByValue: true })) as {
        result: { value: NodeJS.MemoryUsage };
      };
      const { heapUsed, external, rss } = result.value;
      const mebi = 1024 * 1024;
      return { heapMb: heapUsed / mebi, externalMb: external / mebi, rssMb: rss / mebi };
    },
    [Symbol.dispose]: () => socket.close(),
  };
}
