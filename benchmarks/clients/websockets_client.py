"""What is measured of `websockets`: its reconnecting iterator, and messages of the protocol made by hand."""

from __future__ import annotations

import os

import measure
from measure import DELAY, Stopwatch, begin

for name in ("INITIAL_DELAY", "MIN_DELAY", "MAX_DELAY"):
    os.environ[f"WEBSOCKETS_BACKOFF_{name}"] = str(DELAY)

import websockets  # noqa: E402  # it reads the delays when it is imported
from websockets.asyncio.client import ClientConnection, connect  # noqa: E402

OPTIONS = {"compression": None, "ping_interval": None, "proxy": None}


async def usable(url: str, count: int) -> None:
    """The server is back → all rooms are joined again."""
    rooms = [b"%LOR" + bytes((len(name),)) + name for name in (f"room{number}".encode() for number in range(count))]
    times = 0
    async for ws in connect(url, **OPTIONS):
        try:
            await join(ws, rooms)
            times += 1
            if times == 1:
                begin("usable")
                watch = Stopwatch()
                await ws.wait_closed()
            else:
                watch.end("usable")
                return
        except websockets.ConnectionClosed:
            pass


async def join(ws: ClientConnection, rooms: list[bytes]) -> None:
    """Ask for every room, and wait until all are joined."""
    for room in rooms:
        await ws.send(room + b"\x00\x00\x00")
    left = len(rooms)
    while left:
        message = await ws.recv()
        assert isinstance(message, bytes)
        left -= message[5 + message[4]] == 0x01


async def receive(url: str, count: int) -> None:
    """So many messages."""
    async with connect(url, **OPTIONS) as ws:
        begin("receive")
        watch = Stopwatch()
        left = count
        async for _ in ws:
            left -= 1
            if not left:
                break
        watch.end("receive")


if __name__ == "__main__":
    measure.main(usable, receive)
