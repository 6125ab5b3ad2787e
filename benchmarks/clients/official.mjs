// What is measured of the official client, npm loro-websocket. Run as the Python clients are: see measure.py.

// Its packages are those of the directory that it is started in.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { mock } from "node:test";

const require = createRequire(`${process.cwd()}/`);
const { LoroAdaptor } = require("loro-adaptors/loro");
const { LoroDoc } = require("loro-crdt");
const { LoroWebsocketClient } = require("loro-websocket/client");
const { WebSocket } = require("ws");

globalThis.console = new console.Console(process.stderr); // the library logs; stdout is for JSON alone
globalThis.WebSocket = WebSocket; // the client wants a global one: Node 20 has none, later ones have another

const DELAY = 10; // milliseconds: every wait before another attempt
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

async function begin(section) {
  globalThis.gc(); // a section pays for its own garbage, not for what went before
  say({ begin: section });
  if ((await lines.next()).done) throw new Error("the runner is gone");
}

class Stopwatch {
  constructor() {
    this.start();
  }
  start() {
    [this.wall, this.cpu] = [monotonic(), process.cpuUsage()];
  }
  end(section, figures = {}) {
    const [at, { user, system }] = [monotonic(), process.cpuUsage(this.cpu)];
    say({ end: section, wall: at - this.wall, cpu: (user + system) / 1e6, at, ...figures });
  }
}

const monotonic = () => Number(process.hrtime.bigint()) / 1e9;

// The smallest adaptor: a document with nothing in it.
class Nothing {
  crdtType = "%LOR";
  setCtx(ctx) {
    this.ctx = ctx;
  }
  async handleJoinOk() {}
  async waitForReachingServerVersion() {}
  applyUpdate() {}
  cmpVersion() {
    return 0;
  }
  getVersion() {
    return new Uint8Array();
  }
  destroy() {}
}

async function connect(url) {
  const reconnect = { initialDelayMs: DELAY, maxDelayMs: DELAY, jitter: 0 };
  const client = new LoroWebsocketClient({ url, disablePing: true, reconnect });
  await client.waitConnected();
  return client;
}

// Done while so many rooms are joined.
class Joined {
  constructor(count) {
    this.left = count;
    this.joined = new Set();
  }
  of(room) {
    return (status) => {
      if (status === "joined") {
        this.joined.add(room);
        if (this.joined.size === this.left) this.done?.();
      } else this.joined.delete(room);
    };
  }
  wait() {
    return new Promise((done) => {
      this.done = done;
    });
  }
}

function joinAll(client, count) {
  const joined = new Joined(count);
  const adaptor = new Nothing();
  for (let room = 0; room < count; room++) {
    client.join({ roomId: `room${room}`, crdtAdaptor: adaptor, onStatusChange: joined.of(room) });
  }
  return joined;
}

// Every batch that was sent has its Ack. The client has no callback for it; it removes what is acknowledged from its list.
function acknowledged(client) {
  const consume = client.consumeSentBatch.bind(client);
  return new Promise((done) => {
    client.consumeSentBatch = (id) => {
      const batch = consume(id);
      if (!client.sentUpdateBatches.size) done();
      return batch;
    };
  });
}

const works = {
  async joins(url, count) {
    const client = await connect(url);
    await begin("join");
    const watch = new Stopwatch();
    const joined = joinAll(client, count);
    await joined.wait();
    watch.end("join");
    await begin("rejoin");
    client.onStatusChange((status) => status === "connecting" && watch.start());
    await joined.wait();
    watch.end("rejoin");
  },

  async usable(url, count) {
    const client = await connect(url);
    const joined = joinAll(client, count);
    await joined.wait();
    await begin("usable");
    const watch = new Stopwatch();
    await joined.wait();
    watch.end("usable");
  },

  async updates(url, count) {
    const client = await connect(url);
    const adaptor = new Nothing();
    await client.join({ roomId: "room", crdtAdaptor: adaptor });
    const update = new Uint8Array(100);
    await begin("updates");
    const watch = new Stopwatch();
    for (let sent = 0; sent < count; sent++) adaptor.ctx.send([update]);
    await acknowledged(client);
    watch.end("updates");
  },

  async edits(url, count) {
    const client = await connect(url);
    const doc = new LoroDoc();
    await client.join({ roomId: "room", crdtAdaptor: new LoroAdaptor(doc) });
    const text = doc.getText("text");
    await begin("edits");
    const watch = new Stopwatch();
    for (let number = 0; number < count; number++) {
      text.insert(number, "x");
      doc.commit();
    }
    // Its subscriptions are called in a microtask: nothing has been sent yet.
    await acknowledged(client);
    watch.end("edits");
  },

  async applies(url, count) {
    const client = await connect(url);
    const watch = new Stopwatch();
    const doc = new LoroDoc();
    const adaptor = new LoroAdaptor(doc);
    const apply = adaptor.applyUpdate.bind(adaptor);
    let left = count;
    const done = new Promise((resolve) => {
      adaptor.applyUpdate = (updates) => {
        if (left === count) watch.start();
        apply(updates);
        if (!--left) resolve();
      };
    });
    await client.join({ roomId: "room", crdtAdaptor: adaptor });
    await begin("applies");
    await done;
    watch.end("applies");
    if (doc.getText("text").length !== count) throw new Error("updates are missing");
  },

  async decode(url, count) {
    const client = await connect(url);
    let left = count;
    let resolve;
    const done = new Promise((resolved) => {
      resolve = resolved;
    });
    for (let room = 0; room < 10; room++) {
      const adaptor = new Nothing();
      adaptor.applyUpdate = () => {
        if (!--left) resolve();
      };
      await client.join({ roomId: `room${room}`, crdtAdaptor: adaptor });
    }
    await begin("decode");
    const watch = new Stopwatch();
    await done;
    watch.end("decode");
  },

  async room_memory(url, count) {
    const client = await connect(url);
    const usage = () => {
      for (let times = 0; times < 3; times++) globalThis.gc();
      return process.memoryUsage();
    };
    await begin("room_memory");
    const before = usage();
    const watch = new Stopwatch();
    await joinAll(client, count).wait();
    const after = usage();
    watch.end("room_memory", {
      bytes: (after.rss - before.rss) / count,
      live: (after.heapUsed + after.external - before.heapUsed - before.external) / count,
    });
  },

  // Its timers and its clock are made to jump, a second at a time; its sockets are real.
  async half_open(url, count) {
    const turns = async () => {
      for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
    };
    mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
    const clients = [];
    for (let second = 0; second < 30; second++) {
      if (clients.length < (count * (second + 1)) / 30) {
        clients.push(new LoroWebsocketClient({ url }));
        await clients.at(-1).waitConnected();
      }
      mock.timers.tick(1000);
      await turns();
    }
    await begin("half_open");
    const watch = new Stopwatch();
    const noticed = new Map();
    for (let second = 1; second <= 300 && noticed.size < clients.length; second++) {
      mock.timers.tick(1000);
      await turns();
      for (const client of clients) {
        if (client.getStatus() !== "connected" && !noticed.has(client)) noticed.set(client, second);
      }
    }
    if (noticed.size < clients.length) throw new Error("some never noticed");
    watch.end("half_open", { min: Math.min(...noticed.values()), max: Math.max(...noticed.values()) });
  },
};

const [work, url, count] = process.argv.slice(2);
await works[work](url, Number(count));
process.exit(0);
