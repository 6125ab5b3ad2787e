// The real JavaScript client, told what to do by one JSON command a line on stdin:
//
//   {"id": 1, "command": "connect", "url": "ws://..."}  ->  {"id": 1, "result": null}  or  {"id": 1, "error": "..."}
//
// Lines without an id are events: {"event": "status", "status"} and {"event": "room", "room", "crdt", "status"}.
// It ends when stdin closes, so that a dead test run leaves no client behind.

import { createInterface } from "node:readline";
import { LoroAdaptor, LoroEphemeralAdaptor } from "loro-adaptors/loro";
import { EphemeralStore, LoroDoc } from "loro-crdt";
import { LoroWebsocketClient } from "loro-websocket/client";
import { WebSocket } from "ws";

globalThis.console = new console.Console(process.stderr); // the library logs; stdout is for JSON alone
globalThis.WebSocket = WebSocket; // the client wants a global one: Node 20 has none, later ones have another

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

let client;
const joined = new Map(); // `${crdt}${room}` -> {room, doc} or {room, store}

function find(room, crdt) {
  const entry = joined.get(crdt + room);
  if (!entry) throw new Error(`not joined: ${crdt} ${room}`);
  return entry;
}

const commands = {
  // `options` go to the client as they are: pingIntervalMs, reconnect: {initialDelayMs}, ...
  async connect({ url, options }) {
    if (client) throw new Error("already connected");
    client = new LoroWebsocketClient({ url, ...options });
    client.onStatusChange((status) => say({ event: "status", status }));
    await client.waitConnected();
  },

  // Answers once the room holds what the server had. A failed join raises.
  async join({ room, crdt, auth }) {
    const key = crdt + room;
    if (joined.has(key)) throw new Error(`joined already: ${crdt} ${room}`);
    const entry = crdt === "%LOR" ? { doc: new LoroDoc() } : { store: new EphemeralStore() };
    entry.room = await client.join({
      roomId: room,
      crdtAdaptor: entry.doc ? new LoroAdaptor(entry.doc) : new LoroEphemeralAdaptor(entry.store),
      auth: new TextEncoder().encode(auth),
      onStatusChange: (status) => say({ event: "room", room, crdt, status }),
    });
    joined.set(key, entry);
    await entry.room.waitForReachingServerVersion();
  },

  insert({ room, pos, text }) {
    const { doc } = find(room, "%LOR");
    doc.getText("text").insert(pos, text);
    doc.commit();
  },

  text: ({ room }) => find(room, "%LOR").doc.getText("text").toString(),

  eph_set({ room, key, value }) {
    find(room, "%EPH").store.set(key, value);
  },

  eph_get: ({ room, key }) => find(room, "%EPH").store.get(key),

  eph_all: ({ room }) => find(room, "%EPH").store.getAllStates(),

  // Not room.leave(): that tells the server, but the client goes on tracking the room and rejoins it.
  async leave({ room, crdt }) {
    await find(room, crdt).room.destroy();
    joined.delete(crdt + room);
  },

  status: () => client?.getStatus() ?? "disconnected",

  close() {
    client?.close();
  },
};

const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit(0));
lines.on("line", async (line) => {
  const { id, command, ...args } = JSON.parse(line);
  try {
    if (!Object.hasOwn(commands, command)) throw new Error(`no such command: ${command}`);
    say({ id, result: (await commands[command](args)) ?? null });
  } catch (error) {
    say({ id, error: String(error?.message ?? error) });
  }
});
