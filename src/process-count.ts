import { availableParallelism } from "node:os";

/** Each takes some 130 MB, and the one that decides for all is busy far below what so many can carry. */
export const processesMax = 64;

/** They carry the tokens of several GPUs; the other cores are for who else lives on the machine. */
const processesByDefault = 4;

/**
 * How many processes answer calls: PROCESSES, or one for each core (that the container may use) up to 4. The embedded engine
 * has one, since each would load the model. It is known before the configuration is read, so that processes start at once;
 * what is wrong with PROCESSES is `parseConfig`'s to say, for which one process is enough.
 */
export function processCount(
  env: Readonly<Record<string, string | undefined>>,
  cores: number = availableParallelism(),
): number {
  if (!env.VLLM_URL) return 1;
  if (!env.PROCESSES) return Math.min(cores, processesByDefault);
  const count = /^\d{1,15}$/.test(env.PROCESSES) ? Number(env.PROCESSES) : 1;
  return count >= 1 && count <= processesMax ? count : 1;
}
