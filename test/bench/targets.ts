/** What the gateway may cost, as shares of what others cost in the same run. */
export const targets = {
  /** CPU per token of paced streams. */
  streamOfPlain: 0.55,
  streamOfNginx: 4,
  /** CPU per token when the engine sends as fast as it can. */
  saturatedOfPlain: 0.3,
  /** CPU per unary call. */
  callOfPlain: 0.45,
  /** Added time to the first token at half load. */
  firstTokenMsP50: 1.5,
  firstTokenMsP99: 8,
  /** At 50 streams. */
  rssMb: 150,
  /** From the start of the process to the end of its first answer. */
  coldStartMs: 1000,
  /** Of 1,000 open streams: what each adds to the heap, after garbage collection. */
  heapPerStreamKb: 25,
  /** Of 200 readers that stopped reading, together. */
  stalledRssMb: 50,
  /** Of the tokens that a healthy stream beside them should have had. */
  healthyShare: 0.95,
  /** Growth over a soak: what is left of noise after garbage collection. */
  soakHeapGrowthMb: 2,
  soakRssGrowthMb: 10,
} as const;
