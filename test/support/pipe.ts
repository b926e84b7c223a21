import { setImmediate } from "node:timers/promises";
import type { Pipe } from "../../src/processes/channel.ts";

/** Two ends of one pipe within this process, and a hand on what travels. */
export interface PipePair {
  readonly left: Pipe;
  readonly right: Pipe;
  /** Messages sent so far, in both directions. */
  readonly sent: () => number;
  /** From now on what the right end sends stays on its way, until `release`. */
  holdFromRight(): void;
  release(): void;
  /** Breaks it, as the death of the process at the left end does. What is on its way to the right still arrives. */
  cut(): void;
}

class End {
  onMessage: (message: unknown) => void = () => undefined;
  onClose: () => void = () => undefined;
  /** JSON on its way to this end. */
  arriving: string[] = [];
  isHeld = false;

  deliver(): void {
    if (this.isHeld) return;
    const messages = this.arriving;
    this.arriving = [];
    for (const message of messages) this.onMessage(JSON.parse(message));
  }
}

export function createPipe(): PipePair {
  const [left, right] = [new End(), new End()];
  let sent = 0;
  let isOpen = true;
  const pipeOf = (own: End, other: End): Pipe => ({
    async send(message) {
      if (!isOpen) return;
      sent += 1;
      other.arriving.push(JSON.stringify(message));
      await setImmediate();
      other.deliver();
    },
    listen(onMessage, onClose) {
      own.onMessage = onMessage;
      own.onClose = onClose;
    },
  });
  return {
    left: pipeOf(left, right),
    right: pipeOf(right, left),
    sent: () => sent,
    holdFromRight() {
      left.isHeld = true;
    },
    release() {
      left.isHeld = false;
      left.deliver();
    },
    cut() {
      isOpen = false;
      right.deliver();
      right.onClose();
      left.onClose();
    },
  };
}

/** Lets everything that is on its way arrive, and its answers too. */
export async function quiet(): Promise<void> {
  for (let turn = 0; turn < 10; turn += 1) await setImmediate();
}
