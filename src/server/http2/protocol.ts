/** Names of RFC 9113 (HTTP/2) that are used here. */

/** Section 6. */
export const frameTypes = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goAway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

export const flags = {
  /** Of DATA and HEADERS. */
  endStream: 0x1,
  /** Of SETTINGS and PING. */
  ack: 0x1,
  endHeaders: 0x4,
  padded: 0x8,
  priority: 0x20,
} as const;

/** Section 7. */
export const errorCodes = {
  noError: 0,
  protocolError: 1,
  internalError: 2,
  flowControlError: 3,
  streamClosed: 5,
  frameSizeError: 6,
  refusedStream: 7,
  cancel: 8,
  compressionError: 9,
  enhanceYourCalm: 11,
} as const;

export type ErrorCode = (typeof errorCodes)[keyof typeof errorCodes];

/** Section 6.5.2. */
export const settingIds = {
  headerTableSize: 1,
  enablePush: 2,
  maxConcurrentStreams: 3,
  initialWindowSize: 4,
  maxFrameSize: 5,
  maxHeaderListSize: 6,
} as const;

/** Section 3.4: what every client sends first. */
export const clientPreface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/** Length, type, flags and stream id in front of every frame. */
export const frameHeadBytes = 9;

/** The longest payload, as long as nobody has asked for a longer one: we do not, and send none either. */
export const frameBytesMax = 16_384;

/** Flow-control windows before any setting, and what they may grow to (section 6.9). */
export const defaultWindow = 65_535;
export const windowMax = 2 ** 31 - 1;

/** What a peer has done wrong with the whole connection: it is closed, and told the code. Nobody reads a text. */
export class ConnectionFault extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode) {
    super(`HTTP/2 error ${code}`);
    this.code = code;
  }
}

/** A frame that may not come here, or says what it may not. */
export function violation(): ConnectionFault {
  return new ConnectionFault(errorCodes.protocolError);
}

export function wrongSize(): ConnectionFault {
  return new ConnectionFault(errorCodes.frameSizeError);
}

/** A window that is exceeded, by bytes or by what it would grow to. */
export function wrongFlow(): ConnectionFault {
  return new ConnectionFault(errorCodes.flowControlError);
}

/** A peer that takes more than its share, although each of its frames is allowed. */
export function tooMuch(): ConnectionFault {
  return new ConnectionFault(errorCodes.enhanceYourCalm);
}
