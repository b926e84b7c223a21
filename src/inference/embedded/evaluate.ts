import type { LlamaContextSequence, SequenceEvaluateOptions, Token } from "node-llama-cpp";

/**
 * Tokens of a prompt evaluated at once. Between two batches an abort is noticed: a batch of this size takes 0.2 s for a
 * model of 135 million parameters on one busy core, and larger ones are hardly faster per token on a CPU.
 */
export const promptBatchTokens = 16;

/**
 * Reads `prompt` on an emptied sequence and yields what the model says, its end-of-turn token included, without end.
 *
 * The sequence keeps nothing of an earlier call, so that no caller can learn from timing what another one asked. Once
 * `signal` aborts, at most the batch that runs is finished; then it throws `signal.reason`. Leaving the loop stops it
 * as well.
 */
export async function* evaluate(
  sequence: LlamaContextSequence,
  prompt: readonly Token[],
  options: SequenceEvaluateOptions,
  signal: AbortSignal,
): AsyncGenerator<Token, void, undefined> {
  await sequence.clearHistory();
  let read = 0;
  for (; prompt.length - read > promptBatchTokens; read += promptBatchTokens) {
    signal.throwIfAborted();
    await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(read, read + promptBatchTokens));
  }
  signal.throwIfAborted();
  const tokens = sequence.evaluate(prompt.slice(read), { ...options, yieldEogToken: true });
  for await (const token of tokens) {
    signal.throwIfAborted();
    yield token;
    signal.throwIfAborted();
  }
}
