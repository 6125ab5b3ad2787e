"""An adaptor of your own: a plain dict in which the last writer wins, shared through a room."""

import asyncio
import json
import time
import uuid

from reconnect_fsm import Client
from reconnect_fsm.loro_protocol import CrdtType
from reconnect_fsm.testing import EmbeddedServer


class SharedDict:
    """A document: of each key, the value that was written last. Who wrote decides between equals."""

    def __init__(self):
        self._who = uuid.uuid4().hex
        self._entries = {}  # key -> (when, who, value)
        self.on_write = None

    def __getitem__(self, key):
        return self._entries[key][2]

    def __setitem__(self, key, value):
        last = self._entries.get(key, (0.0,))[0]
        self._entries[key] = (max(time.time(), last + 1e-6), self._who, value)
        if self.on_write is not None:
            self.on_write({key: self._entries[key]})

    def entries(self):
        return dict(self._entries)

    def merge(self, entries):  # in any order, and as often as you like: the outcome is the same
        for key, entry in entries.items():
            if tuple(entry[:2]) > self._entries.get(key, (0.0, ""))[:2]:
                self._entries[key] = tuple(entry)


class SharedDictAdaptor:
    """What a room needs to know of it. Versions and updates are bytes of which the server understands nothing."""

    crdt_type = CrdtType.YJS  # the embedded server keeps what it gets, and sends it to each client that joins

    def __init__(self, shared):
        self._shared = shared

    def version(self):
        return b""  # no versions: a client that joins gets everything

    def alternative_version(self, server_version):
        return None

    def missing_from(self, server_version):
        entries = self._shared.entries()
        return [encode(entries)] if entries else []

    def covers(self, server_version):
        return True

    def apply(self, updates):
        for update in updates:
            self._shared.merge(json.loads(update))  # if it raises, the server gets an Ack that refuses it

    def attach(self, send):
        self._shared.on_write = lambda entries: send(encode(entries))

        def detach():
            self._shared.on_write = None

        return detach

    def refused(self, updates, status):
        print("the server refused", status.name)


def encode(entries):
    return json.dumps(entries).encode()


async def main():
    alice, bob = SharedDict(), SharedDict()
    async with EmbeddedServer() as server, Client(server.url) as hers, Client(server.url) as his:
        alice["colour"] = "red"  # before she is connected
        await hers.join("settings", SharedDictAdaptor(alice))
        room = await his.join("settings", SharedDictAdaptor(bob))
        async with asyncio.timeout(5):
            while "colour" not in bob.entries():
                await asyncio.sleep(0.01)
        print("Bob sees", bob["colour"])
        bob["colour"] = "blue"
        await room.synced()  # the server has it
        async with asyncio.timeout(5):
            while alice["colour"] != "blue":
                await asyncio.sleep(0.01)
        print("Alice sees", alice["colour"])


if __name__ == "__main__":
    asyncio.run(main())
