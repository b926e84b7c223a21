import type { Fields } from "./http-fields.ts";

const connectHeader = "connect-timeout-ms";
const grpcHeader = "grpc-timeout";

/** Milliseconds in each unit of the gRPC wire format. */
const grpcUnitMs: Readonly<Record<string, number>> = {
  H: 3_600_000,
  M: 60_000,
  S: 1000,
  m: 1,
  u: 1e-3,
  n: 1e-6,
};

export interface Deadline {
  /** Milliseconds that the call has. */
  readonly ms: number;
  /** Whether the caller's value could be read, or none was given. */
  readonly isValid: boolean;
  /** The header of the call's protocol, and the value that Connect is to read there. */
  readonly header: readonly [name: string, value: string];
}

/**
 * Gives every call a deadline: the caller's, lowered to `maxMs`, or `defaultMs` where it names none. Without this a call
 * could wait for ever, and a large value would overflow Node's timers (2^31 - 1 ms) and end the call at once.
 *
 * A malformed value stays as it is: Connect refuses it with the right status for its protocol.
 */
export function boundDeadline(
  headers: Fields,
  { defaultMs, maxMs }: { readonly defaultMs: number; readonly maxMs: number },
): Deadline {
  const isGrpc = /^application\/grpc/i.test(headers["content-type"] ?? "");
  const name = isGrpc ? grpcHeader : connectHeader;
  const toValue = (ms: number) => (isGrpc ? `${ms}m` : String(ms));
  const value = headers[name];
  if (value === undefined) {
    const ms = Math.min(defaultMs, maxMs);
    return { ms, isValid: true, header: [name, toValue(ms)] };
  }
  const givenMs = isGrpc ? parseGrpcTimeout(value) : parseConnectTimeout(value);
  if (givenMs === undefined) {
    return { ms: Math.min(defaultMs, maxMs), isValid: false, header: [name, value] };
  }
  const ms = Math.min(givenMs, maxMs);
  return { ms, isValid: true, header: [name, givenMs > maxMs ? toValue(maxMs) : value] };
}

function parseGrpcTimeout(value: string): number | undefined {
  const [, digits, unit = ""] = /^(\d{1,8})([HMSmun])$/.exec(value) ?? [];
  return digits === undefined ? undefined : Number(digits) * (grpcUnitMs[unit] ?? 0);
}

function parseConnectTimeout(value: string): number | undefined {
  return /^\d{1,10}$/.test(value) ? Number(value) : undefined;
}
