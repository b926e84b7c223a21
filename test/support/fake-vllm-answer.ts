import { randomUUID } from "node:crypto";

/** What the fake model says. Every string is one token, and one event. */
export interface Answer {
  readonly reasoning?: readonly string[];
  /** By default a sentence in French. */
  readonly text?: readonly string[];
  readonly toolCalls?: readonly {
    readonly id?: string;
    readonly name: string;
    readonly arguments: readonly string[];
  }[];
  /** As vLLM says it. By default `stop` or `tool_calls`, and `length` when the request allows fewer tokens. */
  readonly finishReason?: string;
  /** By default a quarter of the characters of messages and tools. */
  readonly promptTokens?: number;
  readonly cachedTokens?: number;
  /** Milliseconds between two events; 0: as fast as the reader takes them. */
  readonly paceMs?: number;
}

/** The fields of a chat that the fake looks at. */
export interface Chat {
  readonly model: string;
  readonly messages: readonly unknown[];
  readonly tools?: readonly unknown[];
  readonly max_completion_tokens?: number;
  readonly max_tokens?: number;
  readonly stream?: boolean;
  readonly stream_options?: {
    readonly include_usage?: boolean;
    readonly continuous_usage_stats?: boolean;
  };
}

export function countPromptTokens({
  messages,
  tools = [],
}: Pick<Chat, "messages" | "tools">): number {
  return Math.ceil(JSON.stringify([messages, tools]).length / 4);
}

/** The events of one answer, in the shapes of vLLM 0.32, down to the order of their fields. */
export function* chatEvents(chat: Chat, answer: Answer): Generator<object | "[DONE]"> {
  const max = chat.max_completion_tokens ?? chat.max_tokens ?? Number.POSITIVE_INFINITY;
  const deltas = toDeltas(answer).slice(0, max);
  const isCut = deltas.length === max;
  const finishReason =
    answer.finishReason ?? (isCut ? "length" : answer.toolCalls ? "tool_calls" : "stop");
  const prompt = answer.promptTokens ?? countPromptTokens(chat);
  const { include_usage: includeUsage, continuous_usage_stats: continuousUsage } =
    chat.stream_options ?? {};
  const head = {
    id: `chatcmpl-${randomUUID()}`,
    object: "chat.completion.chunk",
    created: Math.floor(Date.now() / 1000),
    model: chat.model,
  };
  const usage = (completion: number) => ({
    prompt_tokens: prompt,
    total_tokens: prompt + completion,
    completion_tokens: completion,
  });
  const chunk = (completion: number, choice: object, extra: object = {}) => ({
    ...head,
    choices: [{ index: 0, ...choice }],
    ...(includeUsage &&
      continuousUsage && { usage: { ...usage(completion), completion_tokens_details: null } }),
    ...extra,
  });
  const finish = { finish_reason: finishReason, stop_reason: null };
  const last = includeUsage ? {} : { system_fingerprint: FINGERPRINT };

  yield chunk(
    0,
    { delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null },
    { prompt_token_ids: null, prompt_text: null },
  );
  let completion = 0;
  for (const delta of deltas) {
    completion += 1;
    const ends = finishReason === "length" && completion === deltas.length;
    const reason = ends ? finish : { finish_reason: null };
    yield chunk(
      completion,
      { delta, logprobs: null, ...reason, token_ids: null },
      ends ? last : {},
    );
  }
  if (finishReason !== "length" || completion === 0) {
    // The token that ends an answer is counted and has no text.
    completion += 1;
    yield chunk(completion, { delta: {}, logprobs: null, ...finish, token_ids: null }, last);
  }
  if (includeUsage)
    yield {
      ...head,
      choices: [],
      usage: {
        ...usage(completion),
        prompt_tokens_details: { cached_tokens: answer.cachedTokens ?? 0, created_cache_tokens: 0 },
      },
      system_fingerprint: FINGERPRINT,
    };
  yield "[DONE]";
}

function toDeltas({ reasoning = [], text, toolCalls = [] }: Answer): object[] {
  const say = text ?? (toolCalls.length > 0 ? [] : usualText);
  return [
    ...reasoning.map((token) => ({ reasoning: token })),
    ...say.map((token) => ({ content: token })),
    ...toolCalls.flatMap((call, index) => [
      toolDelta({
        id: call.id ?? `chatcmpl-tool-${randomUUID()}`,
        type: "function",
        index,
        function: { name: call.name },
      }),
      ...call.arguments.map((piece) => toolDelta({ index, function: { arguments: piece } })),
    ]),
  ];
}

const toolDelta = (call: object) => ({ content: null, tool_calls: [call] });

const usualText = ["Bonjour", " !", " Je", " suis", " un", " modèle", " factice", "."];

const FINGERPRINT = "vllm-0.32.0-fake";
