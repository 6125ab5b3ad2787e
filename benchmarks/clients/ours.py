"""What is measured of reconnect_fsm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import measure
from measure import DELAY, Stopwatch, begin

from reconnect_fsm import Client, Connection, Keepalive, RetryPolicy, RoomStatus
from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode


class Nothing:
    """The smallest adaptor: a document with nothing in it."""

    crdt_type = CrdtType.LORO

    def __init__(self) -> None:
        self.send: Callable[[bytes], None] = lambda update: None

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self.send = send
        return lambda: None

    def version(self) -> bytes:
        return b""

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return ()

    def covers(self, server_version: bytes) -> bool:
        return True

    def apply(self, updates: Sequence[bytes]) -> None: ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        raise AssertionError(f"the stub refuses nothing: {status!r}")


class Countdown:
    """Done when it has been called so often."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = asyncio.Event()

    def __call__(self, *_: object) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()

    async def wait(self) -> None:
        await self._done.wait()


class Joined:
    """Done while so many rooms are joined."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = asyncio.Event()

    def __call__(self, change: Any) -> None:
        if change.new is RoomStatus.JOINED:
            self._left -= 1
            if not self._left:
                self._done.set()
        elif change.old is RoomStatus.JOINED:
            self._left += 1
            self._done.clear()

    async def wait(self) -> None:
        await self._done.wait()


def client(url: str) -> Client:
    """A client that reconnects at once, so that what is measured is the work and not the wait."""
    return Client(url, retry=RetryPolicy(base=DELAY, cap=DELAY, jitter=0.0), keepalive=Keepalive(enabled=False))


async def joins(url: str, count: int) -> None:
    """First join → all joined; then: the dial that succeeds → all rejoined."""
    async with client(url) as one:
        await one.wait_connected()
        adaptor, joined = Nothing(), Joined(count)
        begin("join")
        watch = Stopwatch()
        for number in range(count):
            one.join(f"room{number}", adaptor, on_status=joined)
        await joined.wait()
        watch.end("join")
        begin("rejoin")
        lost = asyncio.Event()

        def on_transition(change: Any) -> None:
            if change.new == "retrying":
                watch.start()
            elif change.old == "connected":
                lost.set()

        one.on_transition(on_transition)
        await lost.wait()
        await joined.wait()
        watch.end("rejoin")


async def usable(url: str, count: int) -> None:
    """The server is back → all rooms are joined again."""
    async with client(url) as one:
        joined = Joined(count)
        adaptor = Nothing()
        for number in range(count):
            one.join(f"room{number}", adaptor, on_status=joined)
        await joined.wait()
        lost = asyncio.Event()
        one.on_status(lambda change: lost.set())
        begin("usable")
        watch = Stopwatch()
        await lost.wait()
        await joined.wait()
        watch.end("usable")


async def updates(url: str, count: int) -> None:
    """So many updates of 100 bytes → the last Ack."""
    async with client(url) as one:
        adaptor = Nothing()
        room = await one.join("room", adaptor)
        update = bytes(100)
        begin("updates")
        watch = Stopwatch()
        for _ in range(count):
            adaptor.send(update)
        await room.synced()
        watch.end("updates")


async def edits(url: str, count: int) -> None:
    """So many edits of a real document, each committed → the last Ack."""
    from loro import LoroDoc

    from reconnect_fsm.adaptors import LoroAdaptor

    async with client(url) as one:
        doc = LoroDoc()
        room = await one.join("room", LoroAdaptor(doc))
        text = doc.get_text("text")
        begin("edits")
        watch = Stopwatch()
        for number in range(count):
            text.insert(number, "x")
            doc.commit()
        await room.synced()
        watch.end("edits")


async def applies(url: str, count: int) -> None:
    """The first of so many updates of a real document → the last is applied."""
    from loro import LoroDoc

    from reconnect_fsm.adaptors import LoroAdaptor

    watch = Stopwatch()
    left, done = count, asyncio.Event()

    class Counting(LoroAdaptor):
        def apply(self, updates: Sequence[bytes]) -> None:
            nonlocal left
            if left == count:
                watch.start()
            super().apply(updates)
            left -= 1
            if not left:
                done.set()

    async with client(url) as one:
        doc = LoroDoc()
        await one.join("room", Counting(doc))
        begin("applies")
        await done.wait()
        watch.end("applies")
        assert doc.get_text("text").len_unicode == count


async def receive(url: str, count: int) -> None:
    """So many messages, handed to a callback."""
    got = Countdown(count)
    async with Connection(url, keepalive=Keepalive(enabled=False)) as connection:
        connection.on_message(got)
        await connection.wait_connected()
        begin("receive")
        watch = Stopwatch()
        await got.wait()
        watch.end("receive")


async def decode(url: str, count: int) -> None:
    """So many DocUpdates, decoded and handed to an adaptor."""
    got = Countdown(count)

    class Counting(Nothing):
        def apply(self, updates: Sequence[bytes]) -> None:
            got()

    async with client(url) as one:
        await asyncio.gather(*(one.join(f"room{number}", Counting()) for number in range(10)))
        begin("decode")
        watch = Stopwatch()
        await got.wait()
        watch.end("decode")


async def room_memory(url: str, count: int) -> None:
    """Bytes a joined room, beyond its document."""
    async with client(url) as one:
        await one.wait_connected()
        adaptor, joined = Nothing(), Joined(count)
        names = [f"room{number}" for number in range(count)]
        begin("room_memory")
        before = measure.resident()
        watch = Stopwatch()
        for name in names:
            one.join(name, adaptor, on_status=joined)
        await joined.wait()
        watch.end("room_memory", bytes=(measure.resident() - before) / count)


async def connected(url: str, count: int, **keepalive: Any) -> list[Connection]:
    """So many connections, each with a session of its own."""
    connections = [Connection(url, keepalive=Keepalive(**keepalive)) for _ in range(count)]
    for some in measure.in_groups(connections):
        for each in some:
            each.start()
        await asyncio.gather(*(each.wait_connected() for each in some))
    return connections


async def idle(url: str, count: int) -> None:
    """Processor time of so many connections that do nothing but ping."""
    interval = measure.ping_interval(count)
    connections = await connected(url, count, interval=interval, timeout=interval)
    await asyncio.sleep(interval)  # all of them have pinged once
    begin("idle")
    watch = Stopwatch()
    await asyncio.sleep(interval)
    watch.end("idle")
    await close(connections)


async def idle_memory(url: str, count: int) -> None:
    """Bytes a connection that is open, does nothing, and has a session of its own."""
    await close(await connected(url, 10))  # what the first few cost stays
    begin("idle_memory")
    before = measure.resident()
    watch = Stopwatch()
    connections = await connected(url, count)
    watch.end("idle_memory", bytes=(measure.resident() - before) / count)
    await close(connections)


async def close(connections: Sequence[Connection]) -> None:
    """Close them all."""
    for some in measure.in_groups(connections):
        await asyncio.gather(*(each.close() for each in some))


def half_open(url: str, count: int) -> None:
    """How long the default settings take to notice that the peer is silent, at so many phases of the pings.

    In virtual time: the server and its sockets are in this process, and no second of it is waited for.
    """
    from reconnect_fsm.testing import ScriptedServer, Stall, run_in_virtual_time

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        noticed: list[float] = []

        async def look(connection: Connection) -> None:
            lost = asyncio.Event()
            connection.on_status(lambda change: lost.set())
            await lost.wait()
            noticed.append(loop.time() - silent)
            await connection.close()

        async with ScriptedServer() as server:
            period = Keepalive().interval
            connections = []
            for _ in range(count):
                connections.append(Connection(server.url))
                connections[-1].start()
                await connections[-1].wait_connected()
                await asyncio.sleep(period / count)
            await asyncio.sleep(period / 1000)  # the first of them has just had its pong: the worst moment
            assert server.inflict(Stall()) == count
            silent = loop.time()
            await asyncio.gather(*map(look, connections))
        return noticed

    begin("half_open")
    watch = Stopwatch()
    noticed = run_in_virtual_time(scenario)
    watch.end("half_open", min=min(noticed), max=max(noticed))


if __name__ == "__main__":
    measure.main(joins, usable, updates, edits, applies, receive, decode, room_memory, idle, idle_memory, half_open)
