/** The port to an embedding model. */
export interface Embedder extends AsyncDisposable {
  /**
   * Turns each input into a vector, in the order of the inputs. An empty `model` means the one that is served. Throws
   * AppError like Engine, and `signal.reason` once `signal` aborts.
   */
  embed(
    request: { readonly model: string; readonly inputs: readonly string[] },
    signal: AbortSignal,
  ): Promise<{
    readonly model: string;
    readonly vectors: readonly Float32Array[];
    readonly promptTokens: number;
  }>;
}
