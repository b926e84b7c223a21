/** The port to an embedding model. */
export interface Embedder extends AsyncDisposable {
  /** The model that a request of this name means: the one that is served when it names none. Throws as `embed` does. */
  resolveModel(model: string, signal: AbortSignal): Promise<string>;

  /**
   * Turns each input into a vector, in the order of the inputs. Throws AppError like Engine, and `signal.reason` once `signal` aborts.
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
