"""D-SEND: `send()` waits for its own message, and tells the truth about that one; nothing is lost or overtaken."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import faulty
import tls
from faulty import TEXT, Peer
from kit import PATIENCE, until
from reconnect_fsm import Connection, Keepalive, NotConnected, RetryPolicy
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.transport.handshake import open_socket
from reconnect_fsm._asyncio.transport.sessions import close_session, make_session
from reconnect_fsm._asyncio.transport.socket import BURST, Socket
from reconnect_fsm._redaction import Redaction

LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once lost, it waits
NO_PINGS = Keepalive(enabled=False)
LARGE = bytes(1_000_000)

Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]


@pytest.fixture(params=["ws", "wss"])
def contexts(request: pytest.FixtureRequest) -> Contexts:
    """For the server and for the client."""
    return (None, None) if request.param == "ws" else tls.contexts()


def connection_to(server: faulty.Server, contexts: Contexts = (None, None)) -> Connection:
    """Which waits once it is lost, and sends nothing by itself."""
    options: dict[str, Any] = {} if contexts[1] is None else {"ssl": contexts[1]}
    return Connection(server.url, retry=LATER, keepalive=NO_PINGS, close_timeout=0.1, **options)


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Socket]:
    """A socket without a driver, started."""
    session = make_session(None)
    opened = await open_socket(
        session, url, timeout=5, close_timeout=0.1, max_msg_size=0, options={}, redaction=Redaction()
    )
    try:
        opened.start(lambda batch: None, lambda: None, lambda info: None, _at_once)
        yield opened
    finally:
        await opened.close(1000, "")
        await close_session(session)


async def _at_once() -> None: ...


async def test_d_send_returns_when_its_own_message_is_written(contexts: Contexts) -> None:
    """D-SEND law 8: whatever is sent behind it waits for a server that does not read, and is lost."""
    lose = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        peer.freeze()
        await lose.wait()
        peer.reset()

    async with faulty.server(behave, ssl=contexts[0]) as server, connection_to(server, contexts) as connection:
        await connection.wait_connected()
        small = asyncio.create_task(connection.send("pay 5"))
        large = [asyncio.create_task(connection.send(LARGE)) for _ in range(20)]
        await asyncio.wait_for(small, PATIENCE)
        await until(lambda: server.peer.messages == ["pay 5"])
        assert not large[-1].done()
        lose.set()
        *_, last = await asyncio.gather(*large, return_exceptions=True)
        assert isinstance(last, NotConnected)


@pytest.mark.parametrize("seed", range(6))
async def test_d_send_not_connected_means_that_it_was_not_written(contexts: Contexts, seed: int) -> None:
    """D-SEND: what the server has read was reported as sent, and in the order in which it was sent."""
    chance = random.Random(seed)
    numbers = range(200)

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(chance.randrange(150)):
            await peer.receive()
        if chance.random() < 0.5:
            peer.reset()
        else:
            peer.hang_up()

    async with faulty.server(behave, ssl=contexts[0]) as server, connection_to(server, contexts) as connection:
        await connection.wait_connected()
        sends: list[asyncio.Task[None]] = []
        for number in numbers:
            size = chance.choice((0, 10, 1_000, 100_000))
            sends.append(asyncio.create_task(connection.send(f"{number} " + "x" * size)))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
        ends = await asyncio.gather(*sends, return_exceptions=True)
        await server.quiet()
        read = [int(str(message).split(" ")[0]) for message in server.peer.messages]
    assert read == list(range(len(read)))
    written = [number for number, end in zip(numbers, ends, strict=True) if end is None]
    assert written == list(range(len(written)))
    assert len(written) >= len(read)
    assert all(isinstance(end, NotConnected) for end in ends[len(written) :])


async def test_d_send_who_writes_faster_than_the_network_takes_waits() -> None:
    """D-SEND: as much as the kernel holds, and one message or two, are written; then a caller feels it."""
    async with faulty.server(faulty.deaf) as server, connection_to(server) as connection:
        await connection.wait_connected()
        sent = 0

        async def write_on() -> None:
            nonlocal sent
            while True:
                await connection.send(LARGE)
                sent += 1

        writing = asyncio.create_task(write_on())
        socket = connection_driver_of(connection).socket.content
        assert socket is not None
        await until(lambda: socket.backlog)  # it waits
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 30
        assert socket._unsent() <= 2 * len(LARGE) + 1000
        assert socket.backlog == 1
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


async def test_d_send_one_who_is_cancelled_disturbs_no_order() -> None:
    """D-SEND: those behind it are written after it, and hear of it."""
    async with faulty.server() as server, connection_to(server) as connection:
        await connection.wait_connected()
        sends = [asyncio.create_task(connection.send(str(number))) for number in range(300)]
        await asyncio.sleep(0)
        for send in sends[::3]:
            send.cancel()
        await asyncio.wait(sends)
        assert [send.cancelled() for send in sends] == [number % 3 == 0 for number in range(300)]
        await until(lambda: len(server.peer.messages) == 300)
        assert server.peer.messages == [str(number) for number in range(300)]


async def test_written_waits_for_what_was_sent_before_and_for_nothing_else() -> None:
    """D-SEND law 8: such as the leave of a room; not for a message behind it that nobody reads."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        peer.freeze()
        await asyncio.Event().wait()

    async with faulty.server(behave) as server, bare(server.url) as opened:
        await opened.written()  # nothing was sent
        opened.send("leave")
        leave = asyncio.create_task(opened.written())
        await asyncio.sleep(0)
        others = [asyncio.create_task(opened.write(LARGE)) for _ in range(20)]
        await asyncio.wait_for(leave, PATIENCE)
        await until(lambda: server.peer.messages == ["leave"])
        assert not others[-1].done()
        everything = asyncio.create_task(opened.written())
        await opened.close(1000, "")
        with pytest.raises(NotConnected):
            await everything
        with pytest.raises(NotConnected):
            await others[-1]
        await asyncio.wait(others)


async def test_what_is_sent_after_the_close_is_dropped() -> None:
    """D-SEND: it is neither written nor kept, and who waits for it hears so at once."""
    async with faulty.server() as server, bare(server.url) as opened:
        await opened.write("in time")
        closing = asyncio.create_task(opened.close(1000, ""))
        await asyncio.sleep(0)
        opened.send("too late")
        opened.send([b"too late"])
        assert opened.backlog == 0
        for late in (opened.write("too late"), opened.written()):
            with pytest.raises(NotConnected):
                await late
        await closing
        await server.peer.gone.wait()
        assert server.peer.messages == ["in time"]


async def test_all_kinds_in_one_outbox_keep_their_order() -> None:
    """Text, binary, lists longer than a burst, and those who wait; pings and pongs overtake them, once each."""
    lengthy: list[bytes | str] = [b"%d" % number for number in range(BURST + 10)]
    async with faulty.server() as server, bare(server.url) as opened:
        opened.send("a")
        opened.send(b"b")
        waiting = asyncio.create_task(opened.write("c"))
        await asyncio.sleep(0)
        opened.send(list(lengthy))  # type: ignore[arg-type]
        opened.send([])
        taken_back = [b"never"]
        opened.send(taken_back)
        opened.send("d")
        opened.send_urgent("ping")
        opened.send_urgent("ping")
        taken_back.clear()
        await waiting
        await opened.write(b"e")
        await until(lambda: server.peer.messages[-1:] == [b"e"])
        assert server.peer.messages == ["a", b"b", "c", *lengthy, "d", b"e"]
        assert server.peer.frames[0] == (TEXT, b"ping")
        assert [payload for _, payload in server.peer.frames].count(b"ping") == 1


async def test_a_fault_while_writing_loses_the_connection_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while writing, it is no zombie: who waits hears of it, and a fresh connection is made."""

    async def broken(*_: object) -> None:
        raise LookupError("hunter2")

    async with faulty.server() as server, connection_to(server) as connection:
        await connection.wait_connected()
        assert connection_driver_of(connection).socket.content is not None
        monkeypatch.setattr(connection_driver_of(connection).socket.content._ws, "send_str", broken)
        with pytest.raises(NotConnected):
            await connection.send("x")
        await until(lambda: connection.state == "waiting")
        assert connection.reason == "this program could not write to it (LookupError)"
        await connection.connect()
        await connection.send("y")
        await until(lambda: server.peer.messages == ["y"])
