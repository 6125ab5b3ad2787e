"""LIVE-2 on real sockets: who is slow lives, who is gone dies; plain and over TLS, through proxies, cables and kernels.

Times are scaled down, and no test asserts one: it asserts what came first, the message or the end of the connection.
The numbers of the default settings are in test_keepalive.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest
from yarl import URL

import faulty
import namespaces
import tls
from faulty import BINARY, Behaviour, Peer, Watch
from kit import PATIENCE, until
from reconnect_fsm import Connection, Keepalive, NotConnected, RetryPolicy
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver
from reconnect_fsm._asyncio.transport.handshake import open_socket
from reconnect_fsm._asyncio.transport.sessions import close_session, make_session
from reconnect_fsm._asyncio.transport.socket import Data, Socket
from reconnect_fsm._asyncio.transport.tcp_info import read_counters
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.keepalive import Counters
from reconnect_fsm.testing import ChaosProxy

LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once lost, it waits
SCALED = Keepalive(interval=0.75, timeout=0.75)
RATE: Final = 300_000  # bytes a second
LARGE: Final = 1_000_000  # bytes; takes several intervals at that rate

Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]


@pytest.fixture(params=["ws", "wss"])
def contexts(request: pytest.FixtureRequest) -> Contexts:
    """For the server and for the client."""
    return (None, None) if request.param == "ws" else tls.contexts()


def connection_to(url: str, contexts: Contexts, **options: Any) -> Connection:
    """Which waits once it is lost."""
    if contexts[1] is not None:
        options["ssl"] = contexts[1]
    return Connection(url, **{"retry": LATER, "keepalive": SCALED, "close_timeout": 0.1, **options})


@asynccontextmanager
async def through_a_proxy(behaviour: Behaviour, contexts: Contexts) -> AsyncIterator[tuple[ChaosProxy, Connection]]:
    """A connection through a proxy that can spoil it."""
    async with (
        faulty.server(behaviour, ssl=contexts[0]) as server,
        ChaosProxy(server.url) as proxy,
        connection_to(proxy.url, contexts) as connection,
    ):
        await asyncio.wait_for(connection.wait_connected(), PATIENCE)
        yield proxy, connection


@asynccontextmanager
async def narrow(url: str) -> AsyncIterator[str]:
    """A relay that lets `RATE` bytes a second through each way, and holds next to nothing, as a cable does."""
    loop, upstream = asyncio.get_running_loop(), URL(url)
    relays: set[asyncio.Task[None]] = set()

    async def relay(source: socket.socket, sink: socket.socket) -> None:
        free_at = loop.time()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 8192):
                free_at = max(free_at, loop.time()) + len(data) / RATE
                await asyncio.sleep(free_at - loop.time())
                await loop.sock_sendall(sink, data)
            sink.shutdown(socket.SHUT_WR)

    async def serve() -> None:
        while True:
            client, _ = await loop.sock_accept(listener)
            server = _small_buffers(socket.socket())
            for each in (client, server):
                stack.enter_context(each)
                each.setblocking(False)
            await loop.sock_connect(server, (faulty.HOST, upstream.port))
            relays.update(loop.create_task(relay(*pair)) for pair in ((client, server), (server, client)))

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_small_buffers(socket.socket()))
        listener.setblocking(False)
        listener.bind((faulty.HOST, 0))
        listener.listen()
        relays.add(loop.create_task(serve()))
        try:
            yield str(upstream.with_port(listener.getsockname()[1]))
        finally:
            for task in relays:
                task.cancel()
            await asyncio.wait(relays)


def _small_buffers(sock: socket.socket) -> socket.socket:
    """Those that it accepts have them, too."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 16 * 1024)
    return sock


async def first_of(connection: Connection, done: Callable[[], object]) -> str:
    """Wait for what comes first: it is done, or the connection is lost; say which, and why."""
    await until(lambda: done() or connection.status != "connected")
    return "done" if done() else connection.reason


# ----------------------------------------------------------------------------------------------------------- slow links


@pytest.mark.parametrize("way", ["up", "down"])
async def test_live_2_a_large_message_on_a_slow_link(contexts: Contexts, way: str) -> None:
    """LIVE-2: no pong can come meanwhile, neither in the middle of a message nor from behind ours."""
    arrived: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            opcode, payload = await peer.receive()
            if payload == b"ping":
                peer.send("pong")
            elif payload == b"send":
                peer.send(bytes(LARGE))
            elif opcode == BINARY:
                arrived.append(len(payload))

    async with (
        faulty.server(behave, ssl=contexts[0]) as server,
        narrow(server.url) as url,
        connection_to(url, contexts) as connection,
    ):
        connection.on_message(lambda data: arrived.append(len(data)))
        await asyncio.wait_for(connection.wait_connected(), PATIENCE)
        await connection.send("send" if way == "down" else bytes(LARGE))
        assert await first_of(connection, lambda: arrived) == "done"
        assert arrived == [LARGE]
        assert await connection.ping() > 0


@pytest.mark.skipif(namespaces.why_not() is not None, reason=str(namespaces.why_not()))
@pytest.mark.parametrize("way", ["up", "down"])
async def test_live_2_a_large_message_on_a_narrow_cable(way: str) -> None:
    """LIVE-2: the same between two kernels, with packets of 1,500 bytes that queue without bound."""
    arrived: list[int] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.upgrade()
        if way == "down":
            peer.send(bytes(LARGE))
        while True:
            opcode, payload = await peer.receive()
            if payload == b"ping":
                peer.send("pong")
            elif opcode == BINARY:
                arrived.append(len(payload))

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        except (ConnectionError, EOFError):
            writer.transport.abort()

    async with namespaces.Cable() as cable:
        with cable.there:
            server = await asyncio.start_server(accepted, namespaces.THERE)
        cable.weather = namespaces.narrow(RATE)
        port = server.sockets[0].getsockname()[1]
        async with connection_to(f"ws://{namespaces.THERE}:{port}/", (None, None)) as connection:
            connection.on_message(lambda data: arrived.append(len(data)))
            await asyncio.wait_for(connection.wait_connected(), PATIENCE)
            if way == "up":
                await connection.send(bytes(LARGE))
            assert await first_of(connection, lambda: arrived) == "done"
        server.close()
        await server.wait_closed()


@pytest.mark.virtual_time
async def test_live_2_a_round_trip_of_two_seconds() -> None:
    """LIVE-2: with the defaults: idle, and while messages go both ways; a satellite and a bad day."""
    messages: list[str | bytes] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            _, payload = await peer.receive()
            peer.send("pong" if payload == b"ping" else payload)

    async with (
        faulty.server(behave) as server,
        ChaosProxy(server.url) as proxy,
        Connection(proxy.url, retry=LATER) as connection,
    ):
        proxy.delay(1.0)
        watch = Watch(connection)
        connection.on_message(messages.append)
        await connection.wait_connected()
        for number in range(100):
            await connection.send(str(number) * 1000)
            await asyncio.sleep(7)
        await asyncio.sleep(300)
        assert watch.states == ["connected"]
        assert len(messages) == 100
        assert connection.latency == pytest.approx(2, abs=0.1)


@pytest.mark.virtual_time
@pytest.mark.parametrize(("interval", "timeout", "late"), [(20.0, 10.0, 9.9), (5.0, 10.0, 9.9), (1.0, 30.0, 29.0)])
async def test_live_2_pongs_that_are_late_and_steady(interval: float, timeout: float, late: float) -> None:
    """LIVE-2: a server that takes nearly the whole timeout for each pong is alive."""

    async def answer_late(peer: Peer) -> None:
        await peer.upgrade()
        loop = asyncio.get_running_loop()
        while True:
            await peer.receive()
            loop.call_later(late, peer.send, "pong")

    async with (
        faulty.server(answer_late) as server,
        Connection(server.url, retry=LATER, keepalive=Keepalive(interval, timeout)) as connection,
    ):
        await connection.wait_connected()
        await asyncio.sleep(2000)
        assert connection.status == "connected"
        assert server.connects == 1
        server.peer.freeze()
        await asyncio.sleep(interval + timeout + late)  # what it has still to say is said


async def test_live_2_the_first_message_is_in_flight_when_the_heart_beats(contexts: Contexts) -> None:
    """LIVE-2: sent at each millisecond before, after an idle interval; the other kernel takes 40 ms to acknowledge."""
    keepalive = Keepalive(interval=0.5, timeout=0.25)

    async def one(url: str, before: float) -> str:
        async with connection_to(url, contexts, keepalive=keepalive) as connection:
            await connection.wait_connected()
            await asyncio.sleep(keepalive.interval - before)
            await connection.send("the first")
            await asyncio.sleep(before + 2 * keepalive.timeout)
            return connection.reason

    async with faulty.server(faulty.echo, ssl=contexts[0]) as server:
        ends = await asyncio.gather(*(one(server.url, milliseconds / 1000) for milliseconds in range(0, 45, 3)))
    assert set(ends) == {"connected"}


# ------------------------------------------------------------------------------------------------------------- the dead


async def test_live_2_a_drip_is_no_sign_of_life(contexts: Contexts) -> None:
    """LIVE-2: single bytes of a message that never ends, a hundred a second; over TLS each is a record of 23 bytes."""
    async with (
        faulty.server(faulty.drip, ssl=contexts[0]) as server,
        connection_to(server.url, contexts, keepalive=Keepalive(0.2, 0.4)) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert "no answer to a ping" in connection.reason


@pytest.mark.parametrize("size", [0, 100, 10_000_000])
@pytest.mark.parametrize("how", ["black hole", "stopped"])
async def test_live_2_a_half_open_link_is_noticed_whatever_waits(contexts: Contexts, how: str, size: int) -> None:
    """LIVE-2: nothing, a little, or more than the kernels hold; a link that is cut, or a program that hangs."""
    async with through_a_proxy(faulty.deaf if how == "stopped" else faulty.echo, contexts) as (proxy, connection):
        watch = Watch(connection)
        if how == "black hole":
            proxy.black_hole()
        if size:
            sending = asyncio.create_task(connection.send(bytes(size)))
        await until(lambda: connection.state == "waiting")
        assert watch.steps[0].event == "pong_missed"
        if size:
            await sending  # it was handed to the network before that was known to be none


async def test_live_2_a_program_that_hangs_while_its_kernel_takes_what_we_send(contexts: Contexts) -> None:
    """LIVE-2: some kilobytes a second, which its kernel acknowledges: the ping among them is not answered."""
    async with (
        faulty.server(faulty.deaf, ssl=contexts[0]) as server,
        connection_to(server.url, contexts) as connection,
    ):
        await connection.wait_connected()
        watch = Watch(connection)

        async def write_on() -> None:
            for _ in range(2000):
                await connection.send(b"x" * 100)
                await asyncio.sleep(0.01)

        with pytest.raises(NotConnected):
            await write_on()
        assert watch.steps[0].event == "pong_missed"


# ------------------------------------------------------------------------------------------------------- we do not read


@pytest.mark.parametrize(("count", "seconds"), [(40, 0.05), (400, 0.005)])
async def test_live_2_a_slow_callback_of_ours_kills_nobody(contexts: Contexts, count: int, seconds: float) -> None:
    """LIVE-2: it takes several intervals until what has come is handled; the pongs are behind it."""
    handled = 0

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        for number in range(count):
            peer.send(str(number) * 1000)
        await peer.answer_frames()

    def handle(_: str | bytes) -> None:
        nonlocal handled
        handled += 1
        time.sleep(seconds)

    async with (
        faulty.server(behave, ssl=contexts[0]) as server,
        connection_to(server.url, contexts, keepalive=Keepalive(0.2, 0.2)) as connection,
    ):
        watch = Watch(connection)
        connection.on_message(handle)
        await until(lambda: handled == count)
        assert await connection.ping() > 0
        assert watch.states == ["connected"]


async def test_live_2_nobody_is_judged_while_messages_wait_to_be_handled() -> None:
    """LIVE-2: the server answers no ping, and what it said before is not handled yet; once it is, silence counts."""
    handled = asyncio.Event()

    class SlowDriver(ConnectionDriver):
        def received(self, data: Data) -> Iterator[object]:
            while not handled.is_set():
                yield

    class Slow(Connection):
        _driver_type = SlowDriver

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.send("a lot of work")
        await peer.read_on()

    async with (
        faulty.server(behave) as server,
        Slow(server.url, retry=LATER, keepalive=Keepalive(0.05, 0.05), close_timeout=0.1) as connection,
    ):
        await connection.wait_connected()
        await until(lambda: len(server.peer.frames) >= 5)  # pings go on
        assert connection.status == "connected"
        handled.set()
        await until(lambda: connection.state == "waiting")


@asynccontextmanager
async def bare(url: str | URL, contexts: Contexts = (None, None), **options: Any) -> AsyncIterator[Socket]:
    """A socket without a driver."""
    given = options.pop("session", None)
    session = make_session(given)
    if contexts[1] is not None:
        options["ssl"] = contexts[1]
    try:
        opened = await open_socket(
            session, url, timeout=5, close_timeout=0.1, max_msg_size=0, options=options, redaction=Redaction()
        )
        try:
            yield opened
        finally:
            await opened.close(1000, "")
    finally:
        await close_session(session)


def unread(opened: Socket) -> bool:
    return not opened.is_reading(opened.counters())


async def test_live_2_whether_we_read_is_known(contexts: Contexts) -> None:
    """LIVE-2: while who gets the messages has not caught up, they wait in aiohttp, in asyncio, in the kernel."""
    release, heard = asyncio.Event(), 0

    async def wait() -> None:
        await release.wait()

    def hear(batch: list[Data]) -> None:
        nonlocal heard
        heard += len(batch)

    async with faulty.server(faulty.echo, ssl=contexts[0]) as server, bare(server.url, contexts) as opened:
        assert not unread(opened)
        opened.start(hear, lambda: None, lambda info: None, wait)
        await until(lambda: server.peer.head)
        for _ in range(1000):
            server.peer.send(bytes(1000))
        await until(lambda: heard and unread(opened))
        assert heard < 1000
        release.set()
        await until(lambda: heard == 1000 and not unread(opened))


async def test_live_2_bytes_that_nobody_has_read_are_seen(contexts: Contexts) -> None:
    """LIVE-2: those that are in the kernel when the loop was busy, and the timer runs before they are read."""
    async with faulty.server(faulty.echo, ssl=contexts[0]) as server, bare(server.url, contexts) as opened:
        await until(lambda: server.peers and server.peer.head)
        await asyncio.sleep(0.05)
        server.peer.send("x")
        counters = opened.counters()
        assert counters is not None
        assert counters.unread > 0
        assert unread(opened)


# --------------------------------------------------------------------------------------------------------- the counters


async def test_live_2_the_kernel_counts_what_moves(contexts: Contexts) -> None:
    """LIVE-2: what it took from us, what came, what waits; over TLS the same, but for what is TLS's own."""
    async with faulty.server(faulty.echo, ssl=contexts[0]) as server, bare(server.url, contexts) as opened:
        opened.start(lambda batch: None, lambda: None, lambda info: None, _at_once)
        before = opened.counters()
        assert before is not None
        await opened.write(bytes(50_000))
        await until(lambda: opened.counters().waiting == 0)  # type: ignore[union-attr]
        after = opened.counters()
        assert after is not None
        assert 50_000 <= after.acked - before.acked < 52_000
        server.peer.send(bytes(50_000))
        await until(lambda: opened.counters().received - before.received > 49_000)  # type: ignore[union-attr]


async def test_live_2_what_waits_is_all_that_was_not_taken(contexts: Contexts) -> None:
    """LIVE-2: in the kernel, in asyncio's buffer, and in a burst that waits for it."""
    size = 16_000_000
    async with faulty.server(faulty.deaf, ssl=contexts[0]) as server, bare(server.url, contexts) as opened:
        before = opened.counters()
        assert before is not None
        for _ in range(2):
            opened.send(bytes(size // 2))
        await until(lambda: (opened.counters() or before).waiting > size * 0.6)
        counters = opened.counters()
        assert counters is not None
        if contexts[0] is None:  # of TLS, what asyncio's inner transport holds is not seen
            assert counters.waiting + counters.acked - before.acked >= size
        await until(lambda: server.peers)


async def test_live_2_a_transport_that_tells_by_itself() -> None:
    """LIVE-2: a simulation's; and its word is all that counts."""

    class Tells:
        def __init__(self, told: Counters | None) -> None:
            self.told = told

        def get_extra_info(self, name: str, default: object = None) -> object:
            return {"reconnect_fsm.counters": lambda: self.told}.get(name, default)

    told = Counters(received=1, acked=2, waiting=3, unread=4)
    assert read_counters(Tells(told)) is told  # type: ignore[arg-type]
    assert read_counters(Tells(None)) is None  # type: ignore[arg-type]


async def test_live_2_where_the_kernel_does_not_count(tmp_path: Any) -> None:
    """LIVE-2: of a Unix socket, what asyncio's buffer shows: something was stuck in it, and left it."""
    path = str(tmp_path / "socket")

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await go.wait()
            await peer.sip(100_000)
            await asyncio.sleep(0)

    go = asyncio.Event()
    async with (
        faulty.server(slow, unix=path) as server,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        bare("ws://localhost/", session=session) as opened,
    ):
        assert opened.counters() == Counters()
        opened.send(bytes(2_000_000))
        await until(lambda: (opened.counters() or Counters()).waiting)
        stuck = opened.counters()
        assert stuck is not None
        assert stuck.acked == 0  # the kernel took some, which is not the other end
        again = opened.counters()
        assert again == stuck
        go.set()
        await until(lambda: (opened.counters() or Counters()).acked >= stuck.waiting)
        await until(lambda: server.peers)


class _Transport:
    """Has a socket, or what there is instead of one."""

    def __init__(self, sock: object) -> None:
        self._sock = sock

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._sock if name == "socket" else default


class _Short:
    """A kernel of long ago."""

    def getsockopt(self, *_: int) -> bytes:
        return bytes(104)


def test_live_2_sockets_of_which_nothing_is_known() -> None:
    """LIVE-2: none, one in memory, a closed one, an old kernel's, a Unix socket."""
    closed = socket.socket()
    closed.close()
    one, other = socket.socketpair()
    with one, other:
        for sock in (None, object(), closed, _Short(), one):
            assert read_counters(_Transport(sock)) is None  # type: ignore[arg-type]


async def _at_once() -> None: ...
