// The official server, on this machine only: node server.mjs [PORT]

import { SimpleServer } from "loro-websocket/server";

const port = Number(process.argv[2] ?? 8787);
const server = new SimpleServer({ host: "127.0.0.1", port });
await server.start();
console.log(`listening on ws://127.0.0.1:${server.wss.address().port}`);
