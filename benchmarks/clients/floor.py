"""The floor: bare aiohttp, the messages made by hand, no state machine, frames written together.

It is what a program could do that knew its server and never failed. What it leaves out is what the others are for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import measure
from measure import DELAY, Stopwatch, begin

try:  # aiohttp's own masking, in C; it is no public API
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:
    from aiohttp.http_websocket import websocket_mask  # type: ignore[attr-defined, no-redef]

BURST = 64  # frames that are written together
JOIN_RESPONSE_OK, DOC_UPDATE, ACK = 0x01, 0x03, 0x08

random_mask = random.Random(1).getrandbits


def frame(payload: bytes) -> bytes:
    """A client's frame, of less than 64 KiB."""
    mask, masked, size = random_mask(32).to_bytes(4, "big"), bytearray(payload), len(payload)
    websocket_mask(mask, masked)
    head = bytes((0x82, 0x80 | size)) if size < 126 else b"\x82\xfe" + size.to_bytes(2, "big")
    return head + mask + masked


def write(ws: aiohttp.ClientWebSocketResponse, payloads: Sequence[bytes]) -> None:
    """Write messages, many at a time, past aiohttp's writer."""
    transport = ws._response.connection.transport  # type: ignore[union-attr]
    for at in range(0, len(payloads), BURST):
        transport.write(b"".join(map(frame, payloads[at : at + BURST])))  # type: ignore[union-attr]


def head(room: str) -> bytes:
    """What every message for the room begins with."""
    return b"%LOR" + bytes((len(room),)) + room.encode()


def dial(session: aiohttp.ClientSession, url: str) -> Any:
    """Open a WebSocket."""
    return session.ws_connect(url, autoclose=False, autoping=False, compress=0, max_msg_size=0)


async def until(ws: aiohttp.ClientWebSocketResponse, kind: int, count: int) -> bool:
    """Receive so many messages of this kind; False if the connection ends before."""
    receive = ws.receive
    while count:
        message = await receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return False
        data = message.data
        if data[5 + data[4]] == kind:
            count -= 1
    return True


async def join(ws: aiohttp.ClientWebSocketResponse, rooms: Sequence[bytes]) -> bool:
    """Join rooms, and wait until all are joined."""
    write(ws, [room + b"\x00\x00\x00" for room in rooms])
    return await until(ws, JOIN_RESPONSE_OK, len(rooms))


async def joins(url: str, count: int) -> None:
    """First join → all joined; then: the dial that succeeds → all rejoined."""
    async with aiohttp.ClientSession() as session:
        ws = await dial(session, url)
        begin("join")
        watch = Stopwatch()
        rooms = [head(f"room{number}") for number in range(count)]
        assert await join(ws, rooms)
        watch.end("join")
        begin("rejoin")
        await rejoin(session, url, ws, rooms, watch.start)
        watch.end("rejoin")


async def usable(url: str, count: int) -> None:
    """The server is back → all rooms are joined again."""
    rooms = [head(f"room{number}") for number in range(count)]
    async with aiohttp.ClientSession() as session:
        ws = await dial(session, url)
        assert await join(ws, rooms)
        begin("usable")
        watch = Stopwatch()
        await rejoin(session, url, ws, rooms, lambda: None)
        watch.end("usable")


async def rejoin(
    session: aiohttp.ClientSession,
    url: str,
    ws: aiohttp.ClientWebSocketResponse,
    rooms: Sequence[bytes],
    dialling: Callable[[], None],
) -> None:
    """Wait for the end of this connection, dial until there is another, and join the rooms again."""
    await until(ws, ACK, 1)
    await ws.close()
    joined = False
    while not joined:
        await asyncio.sleep(DELAY)
        dialling()
        try:
            ws = await dial(session, url)
        except aiohttp.ClientError:
            continue
        joined = await join(ws, rooms)


async def updates(url: str, count: int) -> None:
    """So many updates of 100 bytes → the last Ack."""
    async with aiohttp.ClientSession() as session:
        ws = await dial(session, url)
        room = head("room")
        await join(ws, [room])
        update = bytes(100)
        begin("updates")
        watch = Stopwatch()
        start = room + b"\x03\x01\x64"
        write(ws, [start + update + number.to_bytes(8, "big") for number in range(count)])
        assert await until(ws, ACK, count)
        watch.end("updates")


async def receive(url: str, count: int) -> None:
    """So many messages."""
    async with aiohttp.ClientSession() as session:
        ws = await dial(session, url)
        begin("receive")
        watch = Stopwatch()
        left, next_message, binary = count, ws.receive, aiohttp.WSMsgType.BINARY
        while left:
            message = await next_message()
            assert message.type is binary
            left -= 1
        watch.end("receive")


async def decode(url: str, count: int) -> None:
    """So many DocUpdates, decoded and handed to what would apply them."""
    left = count

    def apply(updates: Sequence[bytes]) -> None:
        nonlocal left
        left -= 1

    async with aiohttp.ClientSession() as session:
        ws = await dial(session, url)
        rooms = {head(f"room{number}"): apply for number in range(10)}
        await join(ws, list(rooms))
        begin("decode")
        watch = Stopwatch()
        next_message, binary = ws.receive, aiohttp.WSMsgType.BINARY
        while left:
            message = await next_message()
            assert message.type is binary
            data: bytes = message.data
            at = 5 + data[4]
            if data[at] == DOC_UPDATE and data[at + 1] == 1 and data[at + 2] < 0x80:  # one update, a short one
                end = at + 3 + data[at + 2]
                batch_id = int.from_bytes(data[end : end + 8], "big")
                assert batch_id >= 0
                rooms[data[:at]]((data[at + 3 : end],))
        watch.end("decode")


class Idle:
    """An open connection, a session of its own, and a task that waits for what comes."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession()
        self._reader: asyncio.Task[bool]
        self.ws: aiohttp.ClientWebSocketResponse

    async def open(self, url: str) -> None:
        self.ws = await dial(self._session, url)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> bool:
        ws = self.ws
        while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        return ws.closed

    async def close(self) -> None:
        self._reader.cancel()
        await self.ws.close()
        await self._session.close()


async def connected(url: str, count: int) -> list[Idle]:
    """So many connections."""
    connections = [Idle() for _ in range(count)]
    for some in measure.in_groups(connections):
        await asyncio.gather(*(each.open(url) for each in some))
    return connections


async def idle(url: str, count: int) -> None:
    """Processor time of so many connections that do nothing but ping, one wheel turning for all of them."""
    interval = measure.ping_interval(count)
    connections = await connected(url, count)
    wheel = asyncio.create_task(turn(connections, interval))
    await asyncio.sleep(interval)
    begin("idle")
    watch = Stopwatch()
    await asyncio.sleep(interval)
    watch.end("idle")
    wheel.cancel()
    await asyncio.gather(*(each.close() for each in connections))


async def turn(connections: Sequence[Idle], interval: float) -> None:
    """Ping a share of the connections every 100 ms, all of them in an interval."""
    loop = asyncio.get_running_loop()
    slots = max(1, round(interval / 0.1))
    at = loop.time()
    while True:
        for slot in range(slots):
            for each in connections[slot::slots]:
                await each.ws.send_str("ping")
            at += interval / slots
            await asyncio.sleep(at - loop.time())


async def idle_memory(url: str, count: int) -> None:
    """Bytes a connection that is open, does nothing, and has a session of its own."""
    for each in await connected(url, 10):  # what the first few cost stays
        await each.close()
    begin("idle_memory")
    before = measure.resident()
    watch = Stopwatch()
    connections = await connected(url, count)
    watch.end("idle_memory", bytes=(measure.resident() - before) / count)
    await asyncio.gather(*(each.close() for each in connections))


if __name__ == "__main__":
    measure.main(joins, usable, updates, receive, decode, idle, idle_memory)
