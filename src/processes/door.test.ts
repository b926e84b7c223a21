import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { eventually } from "../../test/support/eventually.ts";
import { type Door, openDoor, type Seat } from "./door.ts";

let door: Door;
let callers: Socket[];
beforeEach(async () => {
  door = await openDoor("127.0.0.1", 0);
  callers = [];
});
afterEach(() => {
  door.close();
  for (const caller of callers) caller.destroy();
});

/** Resolves when the connection is open; with `said` everything that is said on it. */
async function call(): Promise<{ readonly said: Promise<string> }> {
  const caller = connect(door.address.port, "127.0.0.1");
  callers.push(caller);
  const said = text(caller).catch(() => "reset");
  await once(caller, "connect");
  return { said };
}

/** A worker that takes connections only when the test says so. */
function admit() {
  const handed: Socket[] = [];
  const seat: Seat = door.admit({ hand: (socket) => void handed.push(socket) });
  return { handed, ...seat };
}

describe("the door", () => {
  it("hands connections to the workers in turn, and to none a second one before it has the first", async () => {
    const [one, other] = [admit(), admit()];
    for (let index = 0; index < 3; index += 1) await call();
    await eventually("both have one", () => one.handed.length + other.handed.length === 2);
    expect(one.handed).toHaveLength(1);
    other.took();
    expect(other.handed).toHaveLength(2);
    other.took();
    one.took();
    await call();
    await eventually("the one that waited longest has it", () => other.handed.length === 3);
    expect(one.handed).toHaveLength(1);
  });

  it("keeps connections for the first worker that comes", async () => {
    const { said } = await call();
    const worker = admit();
    await eventually("it has one", () => worker.handed.length === 1);
    worker.handed[0]?.end("bonjour");
    expect(await said).toBe("bonjour");
  });

  it("hands to another what a worker has not taken when it dies, and only that", async () => {
    const dying = admit();
    await call();
    await eventually("it has one", () => dying.handed.length === 1);
    dying.took();
    const { said } = await call();
    await eventually("it has two", () => dying.handed.length === 2);
    const other = admit();
    dying.leave();
    expect(other.handed).toEqual([dying.handed[1]]);
    other.handed[0]?.end("bonjour");
    expect(await said).toBe("bonjour");
    await call();
    await call();
    other.took();
    await eventually("the dead one gets nothing", () => other.handed.length === 2);
    expect(dying.handed).toHaveLength(2);
  });

  it("cuts what no worker has when it closes, and what comes back later", async () => {
    const worker = admit();
    const handed = await call();
    await eventually("it has one", () => worker.handed.length === 1);
    const waiting = await call();
    door.close();
    expect(await waiting.said).toMatch(/^(reset)?$/);
    worker.leave();
    expect(await handed.said).toMatch(/^(reset)?$/);
    const late = connect(door.address.port, "127.0.0.1");
    await expect(once(late, "connect")).rejects.toThrow("ECONNREFUSED");
  });

  it("says that its address is taken", async () => {
    await expect(openDoor("127.0.0.1", door.address.port)).rejects.toThrow("EADDRINUSE");
  });
});
