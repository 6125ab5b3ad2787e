// The real SimpleServer, told what to do by one JSON command a line on stdin:
//
//   {"id": 1, "command": "start", "port": 0}  ->  {"id": 1, "result": {"port": 40123}}  or  {"id": 1, "error": "..."}
//
// It ends when stdin closes, so that a dead test run leaves no server behind. All that it needs beyond the public API
// is the server's own rooms, clients, wss, handleMessage and sendMessage; the package is pinned for that reason.

import { once } from "node:events";
import { createInterface } from "node:readline";
import { LoroDoc } from "loro-crdt";
import { MessageType, RoomErrorCode } from "loro-protocol";
import { SimpleServer } from "loro-websocket/server";

globalThis.console = new console.Console(process.stderr); // the library logs; stdout is for JSON alone

let server; // the last one started; its rooms outlive stop()
let refusal = null; // what a handshake is answered with instead of 101: {status, headers}
const permissions = new Map(); // room id, or null for every other room -> {mode, token}
const paused = new Set();
const counts = { handshakes: 0, connections: 0, pings: 0, joins: 0, leaves: 0, updates: 0, fragments: 0, acks: 0 };
const COUNTED = {
  [MessageType.JoinRequest]: "joins",
  [MessageType.Leave]: "leaves",
  [MessageType.DocUpdate]: "updates",
  [MessageType.DocUpdateFragment]: "fragments",
  [MessageType.Ack]: "acks",
};

const roomKey = (room, crdt) => `${room}:${crdt}`;

// The server forgets its wss as soon as it has stopped.
function sockets() {
  return [...(server?.wss?.clients ?? [])];
}

function members(key) {
  return sockets().filter((ws) => server.clients.get(ws)?.rooms.has(key));
}

async function authenticate(room, _crdt, auth) {
  const { mode, token } = permissions.get(room) ?? permissions.get(null) ?? { mode: "write", token: null };
  if (mode === "hang") return new Promise(() => {});
  return token === null || new TextDecoder().decode(auth) === token ? mode : null;
}

function verifyClient(_info, answer) {
  counts.handshakes += 1;
  if (refusal) answer(false, refusal.status, undefined, refusal.headers);
  else answer(true);
}

function count(instance) {
  const handleMessage = instance.handleMessage.bind(instance);
  instance.handleMessage = (client, message) => {
    if (message.type in COUNTED) counts[COUNTED[message.type]] += 1;
    return handleMessage(client, message);
  };
  instance.wss.on("connection", (ws) => {
    counts.connections += 1;
    ws.on("message", (data, isBinary) => {
      if (!isBinary && data.toString() === "ping") counts.pings += 1;
    });
  });
}

function resume() {
  for (const ws of paused) {
    ws._socket?.uncork();
    ws.resume();
  }
  paused.clear();
}

const commands = {
  async start({ port, keep_rooms }) {
    if (server?.wss) throw new Error("already started");
    const next = new SimpleServer({ port, host: "127.0.0.1", authenticate });
    // Not through onSaveDocument: 0.6.2 hands it NaN for the CRDT type, and leaves the ephemeral rooms out.
    if (keep_rooms && server) next.rooms = server.rooms;
    next.start(); // its promise never settles if the port is taken; the event does
    await once(next.wss, "listening");
    next.wss.options.verifyClient = verifyClient;
    count(next);
    server = next;
    return { port: server.wss.address().port };
  },

  // Everybody hears 1001. Who dials meanwhile is refused: a client let in now would keep stop() waiting for it.
  async stop() {
    resume();
    if (server?.wss) {
      server.wss.options.verifyClient = (_info, answer) => answer(false, 503);
      server.wss._server.closeAllConnections(); // those that have not upgraded yet
    }
    await server?.stop();
  },

  kick({ code, reason }) {
    const kicked = sockets();
    for (const ws of kicked) ws.close(code, reason);
    return kicked.length;
  },

  terminate() {
    const dropped = sockets();
    for (const ws of dropped) ws.terminate();
    return dropped.length;
  },

  // Half-open: nothing is read (so no pong), nothing is written, TCP stays. Only the sockets of this moment.
  pause() {
    for (const ws of sockets()) {
      if (paused.has(ws)) continue;
      ws.pause();
      ws._socket.cork();
      paused.add(ws);
    }
    return paused.size;
  },

  resume,

  room_error({ room, crdt, code, message }) {
    const key = roomKey(room, crdt);
    const told = members(key);
    for (const ws of told) {
      server.sendMessage(ws, { type: MessageType.RoomError, crdt, roomId: room, code, message });
      if (code !== RoomErrorCode.RejoinSuggested) server.clients.get(ws).rooms.delete(key);
    }
    return told.length;
  },

  auth({ room, mode, token }) {
    permissions.set(room, { mode, token });
  },

  http_refuse({ status, headers }) {
    refusal = status === null ? null : { status, headers };
  },

  stats() {
    const rooms = [...(server?.rooms.keys() ?? [])].map((key) => {
      const colon = key.lastIndexOf(":");
      return { room: key.slice(0, colon), crdt: key.slice(colon + 1), members: members(key).length };
    });
    return { clients: sockets().length, rooms, ...counts };
  },

  text({ room }) {
    const data = server?.rooms.get(roomKey(room, "%LOR"))?.data;
    if (!data) return null;
    const doc = new LoroDoc();
    try {
      doc.import(data);
      return doc.getText("text").toString();
    } finally {
      doc.free();
    }
  },
};

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
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
