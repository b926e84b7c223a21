import type { AppError } from "../../errors.ts";
import { corrupt } from "./errors.ts";

/** What the engine sent, as a JSON object; else throws AppError `corrupt`. */
export function parseJsonObject(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // V8's message quotes the text, which may be an answer.
    throw corrupt(UNREADABLE, `${text.length} characters that are not JSON`);
  }
  if (!isRecord(value)) throw unreadable("reply", value);
  return value;
}

/** AppError `corrupt` for a field that is not what it must be. Says its name and type only: its content may be an answer. */
export function unreadable(field: string, value: unknown): AppError {
  return corrupt(UNREADABLE, `${field} is ${value === null ? "null" : typeof value}`);
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A count, or `absent` where there is none; throws AppError `corrupt` for anything else. */
export function parseCount(value: unknown, absent: number): number {
  if (value == null) return absent;
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0)
    throw unreadable("token count", value);
  return value;
}

const UNREADABLE = "the engine answered something that cannot be read";
