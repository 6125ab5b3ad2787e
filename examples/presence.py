"""Who is here, and where their cursors are: entries that vanish when their owner does."""

import asyncio

from loro import EphemeralStore

from reconnect_fsm import Client
from reconnect_fsm.adaptors import EphemeralAdaptor
from reconnect_fsm.testing import EmbeddedServer

TIMEOUT = 3.0  # seconds; 30 is usual


def new_store():
    return EphemeralStore(int(TIMEOUT * 1000))  # loro counts in milliseconds


def who(store):
    store.remove_outdated()
    return sorted(store.keys())


async def until(store, names):
    async with asyncio.timeout(10):
        while who(store) != names:
            await asyncio.sleep(0.01)


async def main():
    async with EmbeddedServer() as server, Client(server.url) as his:
        bobs = new_store()
        bobs.set("user/bob", {"name": "Bob"})
        await his.join("presence", EphemeralAdaptor(bobs, timeout=TIMEOUT))
        async with Client(server.url) as hers:
            adas = new_store()
            adas.set("user/ada", {"name": "Ada", "cursor": 7})  # a key of her own
            await hers.join("presence", EphemeralAdaptor(adas, timeout=TIMEOUT))
            await until(bobs, ["user/ada", "user/bob"])
            await asyncio.sleep(1.5 * TIMEOUT)  # she only reads
            print("Bob sees", *who(bobs))
        await until(bobs, ["user/bob"])  # at once, not after a timeout
        print("Bob sees", *who(bobs))


if __name__ == "__main__":
    asyncio.run(main())
