"""Two thousand rooms on one connection, and those on the screen first."""

import asyncio

from loro import LoroDoc

from reconnect_fsm import Client, RetryPolicy
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.testing import EmbeddedServer

ROOMS = 2_000
ON_SCREEN = {"document-1998", "document-1999"}


async def main():
    joined = []

    def noted(room_id):
        return lambda change: change.new == "joined" and joined.append(room_id)

    async with (
        EmbeddedServer() as server,
        Client(server.url, max_concurrent_joins=64, retry=RetryPolicy(base=0.05)) as client,
    ):
        rooms = {}
        for number in range(ROOMS):
            room_id = f"document-{number}"
            rooms[room_id] = client.join(
                room_id,
                LoroAdaptor(LoroDoc()),
                priority=10 if room_id in ON_SCREEN else 0,
                on_status=noted(room_id),
            )
        for room in rooms.values():
            await room
        print(f"{len(client.rooms)} rooms joined; the first: {sorted(joined[:2])}")

        joined.clear()
        server.reset_all()
        while len(joined) < ROOMS:
            await asyncio.sleep(0.01)
        print(f"joined again after a lost connection; the first: {sorted(joined[:2])}")

        await asyncio.gather(*(room.leave() for room_id, room in rooms.items() if room_id not in ON_SCREEN))
        print(f"{len(client.rooms)} rooms left")


if __name__ == "__main__":
    asyncio.run(main())
