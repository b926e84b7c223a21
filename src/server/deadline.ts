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

/**
 * Gives every call a deadline: the caller's, lowered to `maxMs`, or `defaultMs` where it names none. Without this a call
 * could wait for ever, and a large value would overflow Node's timers (2^31 - 1 ms) and end the call at once.
 *
 * A malformed value stays as it is: Connect refuses it with the right status for its protocol. Returns the milliseconds
 * that the call has.
 */
export function boundDeadline(
  headers: Headers,
  { defaultMs, maxMs }: { readonly defaultMs: number; readonly maxMs: number },
): number {
  if (/^application\/grpc/i.test(headers.get("content-type") ?? "")) {
    const given = headers.get(grpcHeader);
    const [, digits, unit = ""] = /^(\d{1,8})([HMSmun])$/.exec(given ?? "") ?? [];
    const givenMs = Number(digits) * (grpcUnitMs[unit] ?? 0);
    if (given === null) headers.set(grpcHeader, `${defaultMs}m`);
    else if (givenMs > maxMs) headers.set(grpcHeader, `${maxMs}m`);
    return Math.min(digits === undefined ? defaultMs : givenMs, maxMs);
  }
  const given = headers.get(connectHeader);
  const givenMs = /^\d{1,10}$/.test(given ?? "") ? Number(given) : undefined;
  if (given === null) headers.set(connectHeader, String(defaultMs));
  else if (givenMs !== undefined && givenMs > maxMs) headers.set(connectHeader, String(maxMs));
  return Math.min(givenMs ?? defaultMs, maxMs);
}
