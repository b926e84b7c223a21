import { createRecentMap } from "../lib/recent-map.ts";

/** An engine that has room for the call. */
export interface Candidate {
  readonly id: string;
  /** Tokens that it still has to do for us, as far as can be expected. */
  readonly tokens: number;
}

/** By how many tokens an engine that knows a call's prefix may have more to do than the least loaded one. */
const affinityTokens = 2000;
const affinityPart = 0.2;

/** Chooses where a call runs. */
export interface EngineChoice {
  /** One of the candidates, undefined when there is none. They come in the same order every time. */
  choose<Engine extends Candidate>(
    candidates: readonly Engine[],
    affinity: string,
  ): Engine | undefined;
}

/**
 * The engine that ran the last call of this affinity, if it has hardly more to do than the least loaded one; else that one.
 * Equals have their turns.
 */
export function createEngineChoice(): EngineChoice {
  const lastOf = createRecentMap<string>(affinitiesMax);
  let turn = "";

  return {
    choose(candidates, affinity) {
      const least = Math.min(...candidates.map(({ tokens }) => tokens));
      const equals = candidates.filter(({ tokens }) => tokens === least);
      const last = lastOf.get(affinity);
      const margin = Math.max(affinityTokens, least * affinityPart);
      const chosen =
        candidates.find(({ id, tokens }) => id === last && tokens <= least + margin) ??
        equals[equals.findIndex(({ id }) => id === turn) + 1] ??
        equals[0];
      if (chosen === undefined) return undefined;
      turn = chosen.id;
      lastOf.set(affinity, chosen.id);
      return chosen;
    },
  };
}

/** Affinities to remember, at most: 3 MB of them, more conversations than the prefix caches of a dozen engines hold. */
const affinitiesMax = 20_000;
