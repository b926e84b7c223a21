/** What a connection answers by itself. */
export type FaultStatus = 400 | 408 | 413 | 417 | 431 | 505;

/**
 * What a peer says that is not HTTP/1.1, or that this server does not take: an HTTP status, and what to tell it. Its connection is
 * closed, because nobody knows where its next request would begin.
 */
export class MessageFault extends Error {
  readonly status: FaultStatus;

  constructor(status: FaultStatus, message: string) {
    super(message);
    this.status = status;
  }
}

/** For persons who read along: the statuses of this server. Node's list would load all of its `http`. */
export const reasonPhrases: Readonly<Record<number, string>> = {
  200: "OK",
  400: "Bad Request",
  401: "Unauthorized",
  403: "Forbidden",
  404: "Not Found",
  405: "Method Not Allowed",
  408: "Request Timeout",
  409: "Conflict",
  413: "Content Too Large",
  415: "Unsupported Media Type",
  417: "Expectation Failed",
  429: "Too Many Requests",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  501: "Not Implemented",
  503: "Service Unavailable",
  504: "Gateway Timeout",
  505: "HTTP Version Not Supported",
};
