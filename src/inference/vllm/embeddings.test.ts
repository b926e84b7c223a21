import { describe, expect, it } from "vitest";
import { type FakeVllm, startFakeVllm } from "../../../test/support/fake-vllm.ts";
import { refuse, type Script, silence } from "../../../test/support/fake-vllm-replies.ts";
import { createVllmEmbedder } from "./embeddings.ts";

const never = () => new AbortController().signal;
const embedderFor = (vllm: FakeVllm) => createVllmEmbedder({ url: vllm.url, apiKey: "secret" });

describe("the vLLM embedder", () => {
  it("gives one vector per input, in the order of the inputs", async () => {
    await using vllm = await startFakeVllm({ apiKey: "secret" });
    await using embedder = embedderFor(vllm);
    const inputs = ["été", "hiver", "été"];
    const { vectors, model, promptTokens } = await embedder.embed(
      { model: "bge", inputs },
      never(),
    );
    expect(model).toBe("bge");
    expect(promptTokens).toBeGreaterThan(0);
    expect(vectors).toHaveLength(3);
    expect(vectors[0]).toEqual(vectors[2]);
    expect(vectors[0]).not.toEqual(vectors[1]);
    expect(vectors[0]).toBeInstanceOf(Float32Array);
  });

  it("sends the model, the inputs and the encoding", async () => {
    const bodies: unknown[] = [];
    await using vllm = await startFakeVllm();
    vllm.route("POST /v1/embeddings", (reply, { body }) => {
      bodies.push(body);
      const data = [
        { index: 1, embedding: [3, 4] },
        { index: 0, embedding: [1, 2] },
      ];
      reply.json(200, { model: "bge", data, usage: { prompt_tokens: 7 } });
    });
    await using embedder = embedderFor(vllm);
    expect(await embedder.embed({ model: "bge", inputs: ["a", "b"] }, never())).toEqual({
      model: "bge",
      vectors: [Float32Array.of(1, 2), Float32Array.of(3, 4)],
      promptTokens: 7,
    });
    expect(bodies).toEqual([{ model: "bge", input: ["a", "b"], encoding_format: "float" }]);
  });

  it("takes the model that is served for a request that names none", async () => {
    await using vllm = await startFakeVllm({ model: "bge" });
    await using embedder = embedderFor(vllm);
    expect(await embedder.resolveModel("", never())).toBe("bge");
    expect(await embedder.resolveModel("other", never())).toBe("other");
  });

  const data = (...items: unknown[]): Script => {
    return (reply) => reply.json(200, { model: "bge", data: items, usage: { prompt_tokens: 1 } });
  };
  const vector = (index: unknown, embedding: unknown = [1, 2]) => ({ index, embedding });
  it.each<[string, Script, string]>([
    ["too few vectors", data(vector(0)), "corrupt"],
    ["too many", data(vector(0), vector(1), vector(2)), "corrupt"],
    ["one twice", data(vector(0), vector(0)), "corrupt"],
    ["an index out of range", data(vector(0), vector(2)), "corrupt"],
    ["a negative index", data(vector(-1), vector(0)), "corrupt"],
    ["an index that is a text", data(vector("0"), vector(1)), "corrupt"],
    ["vectors of two lengths", data(vector(0), vector(1, [1])), "corrupt"],
    ["an empty vector", data(vector(0, []), vector(1, [])), "corrupt"],
    ["base64", data(vector(0, "AAAA"), vector(1, "AAAA")), "corrupt"],
    ["something that is no number", data(vector(0, [1, null]), vector(1)), "corrupt"],
    ["no usage", (reply) => reply.json(200, { data: [vector(0), vector(1)] }), "corrupt"],
    [
      "more bytes than vectors can have",
      data(vector(0), { ...vector(1), more: "x".repeat(1e6) }),
      "corrupt",
    ],
    ["a model that it does not serve", refuse(404, "CANARY"), "not-found"],
    ["that it is full", refuse(503), "unavailable"],
  ])("throws when the server answers with %s", async (_, script, kind) => {
    await using vllm = await startFakeVllm();
    vllm.route("POST /v1/embeddings", script);
    await using embedder = embedderFor(vllm);
    const call = embedder.embed({ model: "bge", inputs: ["a", "b"] }, never());
    await expect(call).rejects.toMatchObject({ name: "AppError", kind });
  });

  it("closes the connection when its caller leaves, and at its own limit of time", async () => {
    await using vllm = await startFakeVllm();
    const arrived = Promise.withResolvers<void>();
    const closed = Promise.withResolvers<void>();
    vllm.route("POST /v1/embeddings", ({ response }) => {
      response.once("close", () => closed.resolve());
      arrived.resolve();
    });
    await using embedder = embedderFor(vllm);
    const leaving = new AbortController();
    const call = embedder.embed({ model: "bge", inputs: ["a"] }, leaving.signal);
    await arrived.promise;
    leaving.abort(new Error("left"));
    await expect(call).rejects.toThrow("left");
    await closed.promise;

    vllm.route("POST /v1/embeddings", silence);
    await using hasty = createVllmEmbedder({ url: vllm.url, timeoutMs: 50 });
    const late = hasty.embed({ model: "bge", inputs: ["a"] }, never());
    await expect(late).rejects.toMatchObject({ kind: "timeout" });
  });
});
