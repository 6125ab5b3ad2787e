// The real codec, npm loro-protocol, told what to do by one JSON command a line on stdin:
//
//   {"id": 1, "command": "decode", "frames": ["254c4f52..."]}  ->  {"id": 1, "result": [{"type": 7, ...}]}
//
// A message is as in the library, with bytes in hex; one that it refuses is null. It ends when stdin closes.

import { createInterface } from "node:readline";
import { decode, encode } from "loro-protocol";

const BYTES = ["auth", "version", "extra", "receiverVersion", "fragment"];
const toHex = (bytes) => Buffer.from(bytes).toString("hex");
const toBytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));

function convert(message, bytes) {
  const converted = { ...message };
  for (const name of BYTES) if (message[name] !== undefined) converted[name] = bytes(message[name]);
  if (message.updates) converted.updates = message.updates.map(bytes);
  return converted;
}

function orNull(attempt) {
  return (argument) => {
    try {
      return attempt(argument);
    } catch {
      return null;
    }
  };
}

const commands = {
  encode: ({ messages }) => messages.map(orNull((message) => toHex(encode(convert(message, toBytes))))),
  decode: ({ frames }) => frames.map(orNull((frame) => convert(decode(toBytes(frame)), toHex))),
};

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit(0));
lines.on("line", (line) => {
  const { id, command, ...args } = JSON.parse(line);
  try {
    if (!Object.hasOwn(commands, command)) throw new Error(`no such command: ${command}`);
    say({ id, result: commands[command](args) });
  } catch (error) {
    say({ id, error: String(error?.message ?? error) });
  }
});
