import { AppError } from "../errors.ts";
import type { Model } from "../inference/engine.ts";

/**
 * The model that a request means. Nothing, and the name in MODEL_ID, mean the service's default: the model of that name,
 * or the first one where the engine serves it under another name (as the embedded engine does). Callers can so write the
 * name that their contract names, and the answer says which model gave it.
 *
 * Throws AppError `not-found`, naming what is served, for any other model that is not.
 */
export function resolveModel(
  served: readonly Model[],
  requested: string,
  defaultModel: string,
): Model {
  const isDefault = requested === "" || requested === defaultModel;
  const wanted = isDefault ? defaultModel : requested;
  const model = served.find(({ id }) => id === wanted) ?? (isDefault ? served[0] : undefined);
  if (model !== undefined) return model;
  if (served.length === 0) throw new AppError("unavailable", "the engine serves no model yet");
  const ids = served.slice(0, 10).map(({ id }) => id);
  throw new AppError("not-found", `this model is not served: use one of ${ids.join(", ")}`);
}
