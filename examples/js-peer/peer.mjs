// The official client shares the text of a room: node peer.mjs [URL]

import { LoroAdaptor } from "loro-adaptors/loro";
import { LoroDoc } from "loro-crdt";
import { LoroWebsocketClient } from "loro-websocket/client";
import { WebSocket } from "ws";

globalThis.WebSocket = WebSocket; // in a browser there is one already

const doc = new LoroDoc();
const text = doc.getText("text");
doc.subscribe(() => console.log(`-----\n${text.toString()}`));

const client = new LoroWebsocketClient({ url: process.argv[2] ?? "ws://127.0.0.1:8787" });
client.onStatusChange((status) => console.log(`[${status}]`));
const room = await client.join({ roomId: "notes", crdtAdaptor: new LoroAdaptor(doc) });
await room.waitForReachingServerVersion();

text.insert(text.length, "Hello from JavaScript\n");
doc.commit();
