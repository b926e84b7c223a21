/** The first `used` of these bytes, where `needed` have room: twice that when it must grow, so that each byte costs the same. */
export function withRoom(bytes: Buffer, used: number, needed: number): Buffer {
  if (needed <= bytes.length) return bytes;
  const larger = Buffer.allocUnsafeSlow(Math.max(1024, needed * 2));
  bytes.copy(larger, 0, 0, used);
  return larger;
}
