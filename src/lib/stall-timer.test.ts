import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { StallTimer } from "./stall-timer.ts";

describe("StallTimer", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  const start = (limitMs: number) => {
    const onStall = vi.fn();
    return { timer: new StallTimer(limitMs, onStall), onStall };
  };

  it("calls once when nothing was touched for the whole limit", () => {
    const { onStall } = start(100);
    vi.advanceTimersByTime(99);
    expect(onStall).not.toHaveBeenCalled();
    vi.advanceTimersByTime(2);
    expect(onStall).toHaveBeenCalledTimes(1);
    vi.advanceTimersByTime(1_000);
    expect(onStall).toHaveBeenCalledTimes(1);
  });

  it("counts from the last touch", () => {
    const { timer, onStall } = start(100);
    for (let i = 0; i < 10; i += 1) {
      vi.advanceTimersByTime(90);
      timer.touch();
    }
    expect(onStall).not.toHaveBeenCalled();
    vi.advanceTimersByTime(101);
    expect(onStall).toHaveBeenCalledTimes(1);
  });

  it("does not count while it is paused, and counts anew afterwards", () => {
    const { timer, onStall } = start(100);
    vi.advanceTimersByTime(90);
    timer.pause();
    vi.advanceTimersByTime(10_000);
    timer.resume();
    vi.advanceTimersByTime(99);
    expect(onStall).not.toHaveBeenCalled();
    vi.advanceTimersByTime(2);
    expect(onStall).toHaveBeenCalledTimes(1);
  });

  it("takes another limit", () => {
    const { timer, onStall } = start(1_000);
    vi.advanceTimersByTime(900);
    timer.restart(50);
    vi.advanceTimersByTime(49);
    expect(onStall).not.toHaveBeenCalled();
    vi.advanceTimersByTime(2);
    expect(onStall).toHaveBeenCalledTimes(1);
  });

  it("leaves nothing behind when it is stopped", () => {
    const { timer, onStall } = start(100);
    vi.advanceTimersByTime(50);
    timer.stop();
    expect(vi.getTimerCount()).toBe(0);
    vi.advanceTimersByTime(1_000);
    expect(onStall).not.toHaveBeenCalled();
  });

  it("looks once more at the sockets before it calls, because a busy process runs its timers first", () => {
    // Runs just before the timer, as a socket that became readable in time is read just after it.
    let touch = () => {};
    setTimeout(() => setImmediate(() => touch()), 100);
    const { timer, onStall } = start(100);
    touch = () => timer.touch();
    vi.advanceTimersByTime(190);
    expect(onStall).not.toHaveBeenCalled();
    vi.advanceTimersByTime(20);
    expect(onStall).toHaveBeenCalledTimes(1);
  });
});
