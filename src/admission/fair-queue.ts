/** What the order of a queue needs to know about a call. */
export interface FairCall {
  /** Who calls. The calls of one client go in the order they came. */
  readonly client: string;
  /** The client's share beside others that wait: one of weight 3 gets three times the tokens of one of weight 1. */
  readonly weight: number;
  /** Tokens that the call is expected to cost, prompt and completion together. At least 1. */
  readonly tokens: number;
}

/** A call that waits. */
export interface Waiter<Call extends FairCall = FairCall> {
  readonly call: Call;
  /** Told that its turn has come. The queue has forgotten it by then. */
  readonly admit: () => void;
}

/** In which order clients get the engine, and what each has had of it. */
export interface FairQueue<Call extends FairCall> {
  /** Calls that wait now. */
  readonly size: number;
  /** Calls of this client that wait now. */
  sizeOf(client: string): number;
  add(waiter: Waiter<Call>): void;
  /** For a caller who left: its client is charged nothing. */
  remove(waiter: Waiter<Call>): void;
  /** Calls that have their turn before a new one of this client, as far as can be told while nobody else comes. */
  aheadOf(call: Call): number;
  /** The call whose turn it is. */
  first(): Waiter<Call> | undefined;
  /** Takes this one out, whose turn it is, and charges its client what it is expected to cost. */
  admit(waiter: Waiter<Call>): void;
  /** Charges a call that need not wait, as nobody does. */
  pass(call: Call): void;
  /** A call that was charged has ended. `tokens` is what it has really cost. */
  end(call: Call, tokens: number): void;
}

interface Flow<Call extends FairCall> {
  /** Virtual time at which the client's next call starts: what it has been charged, in tokens over its weight. */
  startTag: number;
  /** Who waits, oldest first, with the number of its arrival. A Map lets one leave from the middle at no cost. */
  readonly waiting: Map<Waiter<Call>, number>;
}

/**
 * Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with tokens as the cost. Each client has a start tag, which
 * every call of its moves on by tokens over weight; the least tag of those that wait goes next, and ties go by arrival. The
 * virtual time is the tag of the call that began last. A client that begins to wait is moved up to it: nobody saves up credit
 * by being idle.
 *
 * The tag belongs to the client, not to each call, so that the difference between real and expected cost, once known, moves
 * everything that the client still has waiting: a wrong estimate helps for as long as the call runs, and never longer.
 *
 * While client I waits, client J is charged at most `charged(I) / weight(I) + largest(I) / weight(I) + largest(J) / weight(J)`
 * times its weight, where `largest` is a client's largest call; where estimates are wrong, each `largest` counts once more for
 * every sequence of the engine, as that many calls can be corrected later.
 *
 * A decision looks at every client that has called since the engine was last idle: there are as many as the operator has
 * given keys to, and comparing a hundred tags takes about a microsecond. A heap would have to move a client at each
 * correction and each departure, for a gain that cannot be seen beside a call of a second.
 */
export function createFairQueue<Call extends FairCall>(): FairQueue<Call> {
  const flows = new Map<string, Flow<Call>>();
  let virtualTime = 0;
  let size = 0;
  let running = 0;
  let arrivals = 0;

  const flowOf = (client: string): Flow<Call> => {
    const known = flows.get(client);
    if (known !== undefined) return known;
    const flow: Flow<Call> = { startTag: virtualTime, waiting: new Map() };
    flows.set(client, flow);
    return flow;
  };
  const catchUp = (flow: Flow<Call>) => {
    if (flow.waiting.size === 0) flow.startTag = Math.max(flow.startTag, virtualTime);
  };
  const charge = (flow: Flow<Call>, call: Call) => {
    running += 1;
    // A correction may have put the tag behind the virtual time, which does not go back.
    virtualTime = Math.max(virtualTime, flow.startTag);
    flow.startTag += call.tokens / call.weight;
  };

  return {
    get size() {
      return size;
    },
    sizeOf: (client) => flows.get(client)?.waiting.size ?? 0,

    add(waiter) {
      const flow = flowOf(waiter.call.client);
      catchUp(flow);
      flow.waiting.set(waiter, ++arrivals);
      size += 1;
    },

    remove(waiter) {
      if (flows.get(waiter.call.client)?.waiting.delete(waiter)) size -= 1;
    },

    aheadOf({ client, weight }) {
      const own = flows.get(client)?.waiting.size ?? 0;
      let ahead = own;
      for (const [other, { waiting }] of flows) {
        const [waiter] = waiting.keys();
        if (other === client || waiter === undefined) continue;
        // While this client's calls have their turns, the other has one for each, times its weight beside this one's.
        ahead += Math.min(waiting.size, Math.floor((own * waiter.call.weight) / weight));
      }
      return ahead;
    },

    first() {
      let first: { flow: Flow<Call>; waiter: Waiter<Call>; arrival: number } | undefined;
      for (const flow of flows.values()) {
        for (const [waiter, arrival] of flow.waiting) {
          const isBefore =
            first === undefined ||
            flow.startTag < first.flow.startTag ||
            (flow.startTag === first.flow.startTag && arrival < first.arrival);
          if (isBefore) first = { flow, waiter, arrival };
          break;
        }
      }
      return first?.waiter;
    },

    admit(waiter) {
      const flow = flowOf(waiter.call.client);
      if (!flow.waiting.delete(waiter)) return;
      size -= 1;
      charge(flow, waiter.call);
      waiter.admit();
    },

    pass(call) {
      const flow = flowOf(call.client);
      catchUp(flow);
      charge(flow, call);
    },

    end(call, tokens) {
      running -= 1;
      flowOf(call.client).startTag += (tokens - call.tokens) / call.weight;
      if (running > 0 || size > 0) return;
      // Nobody was kept waiting by what is past: it is forgotten, and the numbers begin anew.
      flows.clear();
      virtualTime = 0;
    },
  };
}
