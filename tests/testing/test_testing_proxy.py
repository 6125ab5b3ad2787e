"""The chaos proxy: each way of spoiling a connection, alone and with the real client, under real and virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loro import LoroDoc

import tls
from faulty import Watch
from kit import PATIENCE, now, until
from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.testing import EmbeddedServer, leaks, virtual_time
from reconnect_fsm.testing.proxy import CHUNK, ChaosProxy, Direction

UP, DOWN, BOTH = Direction.UP, Direction.DOWN, Direction.BOTH
KEEPALIVE = Keepalive(interval=2.0, timeout=1.0)
HOST = "127.0.0.1"
virtual = pytest.mark.virtual_time

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and closes when the other end does."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Upstream:
    """A plain TCP server, and who came."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.tasks: set[asyncio.Task[None]] = set()
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.tasks.add(asyncio.get_running_loop().create_task(self._handler(reader, writer)))


@asynccontextmanager
async def upstream(handler: Handler = echo) -> AsyncIterator[Upstream]:
    served = Upstream(handler)
    server = await asyncio.start_server(served.accept, HOST, 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for writer in served.writers:
            writer.transport.abort()
        for task in served.tasks:
            task.cancel()
        await asyncio.gather(*served.tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(handler: Handler = echo, **options: Any) -> AsyncIterator[tuple[ChaosProxy, Upstream]]:
    async with upstream(handler) as served, ChaosProxy(f"tcp://{HOST}:{served.port}", **options) as proxy:
        yield proxy, served


async def connect(proxy: ChaosProxy) -> Streams:
    return await asyncio.open_connection(HOST, proxy.port)


async def echoed(streams: Streams, data: bytes) -> float:
    """Send it and wait until it is back; how long that took."""
    reader, writer = streams
    began = now()
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        assert await reader.readexactly(len(data)) == data
    return now() - began


async def silent(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether nothing comes, not even the end."""
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end, be it a FIN or an RST."""
    got = b""
    async with asyncio.timeout(PATIENCE):
        try:
            while data := await reader.read(1 << 16):
                got += data
        except ConnectionError:
            pass
    return got


# --------------------------------------------------------------------------------------------------------- a good proxy


async def test_it_passes_everything_on() -> None:
    """Bytes, both ways, far more than it buffers; a FIN of either end; and counts them."""
    async with proxied() as (proxy, _):
        reader, writer = streams = await connect(proxy)
        await echoed(streams, b"hello")
        big = bytes(range(256)) * 8192
        sending = asyncio.ensure_future(echoed(streams, big))
        await sending
        writer.write_eof()
        assert await ended(reader) == b""
        writer.close()
        await until(lambda: proxy.connections == 0)
        assert proxy.counts.connections == 1
        assert proxy.counts.bytes_up == proxy.counts.bytes_down == len(big) + 5


async def test_its_url_is_the_servers_but_for_host_and_port() -> None:
    """Path and query stay; a server without an address is refused."""
    proxy = ChaosProxy("wss://sync.example.org/path?token=1", port=8443)
    assert proxy.url == "wss://127.0.0.1:8443/path?token=1"
    for wrong in ("tcp://localhost", "/path"):
        with pytest.raises(ValueError, match="needs a host and a port"):
            ChaosProxy(wrong)


async def test_it_can_be_started_once_and_stopped_twice() -> None:
    """And started again, on the same port."""
    async with proxied() as (proxy, _):
        with pytest.raises(RuntimeError, match="started already"):
            await proxy.start()
        port = proxy.port
        await proxy.stop()
        await proxy.stop()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        await proxy.start()
        assert proxy.port == port
        _, writer = streams = await connect(proxy)
        await echoed(streams, b"hello")
        writer.close()


async def test_an_unreachable_server_is_a_reset() -> None:
    """The client was accepted, so it cannot be refused any more."""
    async with upstream() as served:
        pass
    async with ChaosProxy(f"tcp://{HOST}:{served.port}") as proxy:
        reader, writer = await connect(proxy)
        assert await ended(reader) == b""
        writer.close()
        assert proxy.counts.unreachable == 1


@pytest.mark.parametrize("abort", [True, False])
async def test_the_servers_end_reaches_the_client(abort: bool) -> None:
    """An RST as an RST, a FIN as a FIN."""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"bye")
        if abort:
            await asyncio.sleep(0.05)
            writer.transport.abort()
        else:
            writer.close()

    async with proxied(leave) as (proxy, _):
        reader, writer = await connect(proxy)
        writer.write(b"x" if not abort else b"xy")  # what was not read makes an RST of the end
        assert await ended(reader) in (b"bye", b"")
        writer.close()
        await until(lambda: proxy.connections == 0)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda proxy: proxy.delay(-1), "delay is a number of seconds, not -1"),
        (lambda proxy: proxy.delay(1, jitter=-1), "jitter is a number of seconds"),
        (lambda proxy: proxy.bandwidth(0), "more than nothing"),
        (lambda proxy: proxy.drip(0), "at least one byte"),
        (lambda proxy: proxy.drip(every=float("nan")), "every is a number of seconds"),
        (lambda proxy: proxy.truncate(-1), "after is a number of bytes"),
    ],
)
async def test_conditions_that_cannot_be_are_refused(what: Callable[[ChaosProxy], None], message: str) -> None:
    """Where they are given."""
    with pytest.raises(ValueError, match=message):
        what(ChaosProxy("tcp://localhost:1"))


# -------------------------------------------------------------------------------------------- conditions, one at a time


@virtual
async def test_delay_and_heal() -> None:
    """Per direction, on a present connection; what was under way is let go when it is healed."""
    async with proxied() as (proxy, _):
        reader, writer = streams = await connect(proxy)
        assert await echoed(streams, b"a") == pytest.approx(0, abs=1e-3)
        proxy.delay(2.0, direction=UP)
        proxy.delay(1.0, direction=DOWN)
        assert await echoed(streams, b"b") == pytest.approx(3.0, abs=1e-3)
        proxy.delay(3600)
        writer.write(b"c")
        assert await silent(reader, 60)
        proxy.heal()
        assert await echoed(streams, b"") == 0
        assert await reader.readexactly(1) == b"c"
        writer.close()


@virtual
async def test_a_delay_is_no_bandwidth() -> None:
    """What follows is not held up: everything comes so much later."""
    async with proxied() as (proxy, _):
        reader, writer = await connect(proxy)
        proxy.delay(10.0, direction=UP)
        began = now()
        for _ in range(5):
            writer.write(b"x")
            await asyncio.sleep(1)
        await reader.readexactly(5)
        assert now() - began == pytest.approx(14.0, abs=1e-3)
        writer.close()


@virtual
async def test_jitter_keeps_the_order_and_has_a_seed() -> None:
    """Within its bounds, different each time, and the same for the same seed."""

    async def times(seed: int) -> list[float]:
        async with proxied(seed=seed) as (proxy, _):
            proxy.delay(1.0, jitter=0.5, direction=UP)
            _, writer = streams = await connect(proxy)
            took = [await echoed(streams, bytes([number])) for number in range(10)]
            writer.close()
            return [round(each, 4) for each in took]

    first = await times(1)
    assert all(0.5 <= each <= 1.501 for each in first)
    assert len(set(first)) > 5
    assert await times(1) == first != await times(2)


@virtual
async def test_bandwidth() -> None:
    """So many bytes a second through each connection."""
    async with proxied() as (proxy, _):
        _, writer = streams = await connect(proxy)
        proxy.bandwidth(1000, direction=DOWN)
        assert await echoed(streams, b"x" * 10_000) == pytest.approx(10, rel=0.05)
        other = await connect(proxy)
        both = await asyncio.gather(echoed(streams, b"x" * 1000), echoed(other, b"y" * 1000))
        assert both == pytest.approx([1, 1], rel=0.1)
        for each in (writer, other[1]):
            each.close()


@virtual
async def test_drip() -> None:
    """A byte at a time, with a pause after each."""
    async with proxied() as (proxy, _):
        proxy.drip(size=2, every=1.0, direction=DOWN)
        reader, writer = await connect(proxy)
        writer.write(b"abcdef")
        drops = []
        for _ in range(3):
            drops.append((await reader.read(100), round(now(), 2)))
        assert [drop for drop, _ in drops] == [b"ab", b"cd", b"ef"]
        pauses = [then - before for (_, before), (_, then) in itertools.pairwise(drops)]
        assert pauses == pytest.approx([1, 1])
        writer.close()


@virtual
@pytest.mark.parametrize("direction", [UP, DOWN, BOTH])
async def test_stall(direction: Direction) -> None:
    """Nothing comes, not even on a new connection, and nothing is lost."""
    async with proxied() as (proxy, _):
        reader, writer = streams = await connect(proxy)
        await echoed(streams, b"a")
        proxy.stall(direction)
        writer.write(b"b")
        other = await connect(proxy)
        other[1].write(b"c")
        assert await silent(reader, 3600)
        assert await silent(other[0], 3600)
        assert proxy.counts.stalls >= 2
        proxy.heal()
        assert await reader.readexactly(1) == b"b"
        assert await other[0].readexactly(1) == b"c"
        for each in (writer, other[1]):
            each.close()


@virtual
async def test_a_stall_hides_the_end_of_a_connection() -> None:
    """Neither end hears that the other has gone, until it is healed."""
    async with proxied() as (proxy, served):
        reader, writer = streams = await connect(proxy)
        await echoed(streams, b"a")
        proxy.stall()
        served.writers[0].close()
        assert await silent(reader, 3600)
        proxy.heal()
        assert await ended(reader) == b""
        writer.close()


@virtual
async def test_black_hole() -> None:
    """What is sent is lost, and so is the news of an end; healed, what lost something is reset, the rest goes on."""
    async with proxied() as (proxy, served):
        first, second, third = [await connect(proxy) for _ in range(3)]
        for each in (first, second, third):
            await echoed(each, b"a")
        proxy.black_hole()
        first[1].write(b"lost")
        served.writers[1].close()
        assert await silent(first[0], 3600)
        assert await silent(second[0], 3600)
        fourth = await connect(proxy)
        fourth[1].write(b"x" * 100_000)
        assert await silent(fourth[0], 10)
        assert proxy.counts.swallowed == 100_004
        proxy.heal()
        for gone in (first, second, fourth):
            assert await ended(gone[0]) == b""
        await echoed(third, b"b")
        assert proxy.counts.resets == 3
        for streams in (first, second, third, fourth):
            streams[1].close()


@virtual
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [0, 1, 5, CHUNK + 1])
async def test_truncate(after: int, reset: bool) -> None:
    """Present connections and new ones are cut after exactly so many bytes more."""
    async with proxied() as (proxy, _):
        present = await connect(proxy)
        await echoed(present, b"abc")
        proxy.truncate(after, reset=reset)
        coming = await connect(proxy)
        for reader, writer in (present, coming):
            writer.write(b"x" * (after + 10))
            assert await ended(reader) == b"x" * after
            writer.close()
        assert (proxy.counts.resets, proxy.counts.cuts) == ((2, 0) if reset else (0, 2))
        proxy.heal()
        _, writer = streams = await connect(proxy)
        await echoed(streams, b"x" * (after + 10))
        writer.close()


async def test_refuse_and_heal() -> None:
    """The kernel refuses; what is open stays; healed, the port is the same, at once."""
    async with proxied() as (proxy, _):
        present = await connect(proxy)
        proxy.refuse()
        proxy.refuse()
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await connect(proxy)
        await echoed(present, b"still there")
        proxy.heal()
        proxy.heal()
        await asyncio.sleep(0.1)
        coming = await connect(proxy)
        await echoed(coming, b"again")
        for each in (present, coming):
            each[1].close()
        proxy.refuse()
        proxy.heal()
        proxy.refuse()
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)


# ------------------------------------------------------------------------------------------------------------ done once


async def test_reset() -> None:
    """An RST to both ends, on the connections that there are."""
    async with proxied() as (proxy, served):
        streams = await connect(proxy)
        await echoed(streams, b"a")
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await streams[0].readexactly(1)
        await asyncio.wait_for(next(iter(served.tasks)), PATIENCE)
        assert proxy.counts.resets == 1
        assert proxy.reset() == 0
        _, writer = streams = await connect(proxy)
        await echoed(streams, b"b")
        writer.close()


async def test_cut() -> None:
    """A FIN to both ends."""
    async with proxied() as (proxy, served):
        reader, writer = streams = await connect(proxy)
        await echoed(streams, b"a")
        assert proxy.cut() == 1
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await asyncio.wait_for(next(iter(served.tasks)), PATIENCE)
        assert proxy.counts.cuts == 1
        writer.close()


async def test_half_close() -> None:
    """The client hears the end, the server does not; it reads on, and what it sends is lost."""
    got = bytearray()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        while data := await reader.read(100):
            got.extend(data)
            writer.write(b"lost")
        writer.close()

    async with proxied(collect) as (proxy, _):
        reader, writer = await connect(proxy)
        assert await reader.readexactly(5) == b"hello"
        assert proxy.half_close() == 1
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.write(b"still here")
        await until(lambda: got == b"still here")
        assert proxy.connections == 1
        writer.close()
        await until(lambda: proxy.connections == 0)
        assert proxy.counts.half_closes == 1


# ----------------------------------------------------------------------------------------------------- bounds and leaks


@virtual
@pytest.mark.parametrize("spoil", [lambda p: p.stall(UP), lambda p: p.delay(1e6), lambda p: p.bandwidth(1)])
async def test_its_buffers_are_bounded(spoil: Callable[[ChaosProxy], None]) -> None:
    """A sender feels a proxy that passes nothing on, as on a real network."""
    size = 1 << 22
    async with proxied() as (proxy, _):
        spoil(proxy)
        _, writer = await connect(proxy)
        writer.write(b"x" * size)
        await asyncio.sleep(60)
        taken = size - writer.transport.get_write_buffer_size()
        assert taken < 2 * proxy.BUFFER + (1 << 18)
        writer.transport.abort()


@virtual
async def test_a_peer_that_does_not_read_stops_the_sender() -> None:
    """Back pressure passes through, with nothing spoilt at all."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    size = 1 << 22
    async with proxied(deaf) as (proxy, _):
        _, writer = await connect(proxy)
        writer.write(b"x" * size)
        await asyncio.sleep(60)
        assert size - writer.transport.get_write_buffer_size() < 2 * proxy.BUFFER + (1 << 19)
        writer.transport.abort()


def refuse_and_heal(proxy: ChaosProxy) -> None:
    proxy.refuse()
    proxy.heal()


SPOILT: list[Callable[[ChaosProxy], object]] = [
    lambda proxy: None,
    lambda proxy: proxy.delay(1000),
    lambda proxy: proxy.bandwidth(1),
    lambda proxy: proxy.drip(every=100),
    lambda proxy: proxy.stall(),
    lambda proxy: proxy.black_hole(),
    lambda proxy: proxy.truncate(10_000),
    lambda proxy: proxy.refuse(),
    lambda proxy: proxy.half_close(),
    lambda proxy: proxy.half_close(BOTH),
    lambda proxy: proxy.reset(),
    lambda proxy: proxy.cut(),
    refuse_and_heal,
]


@pytest.mark.parametrize("spoil", SPOILT)
async def test_nothing_is_left_of_a_proxy_that_was_stopped(spoil: Callable[[ChaosProxy], object]) -> None:
    """In whatever state it was, in the middle of sending."""
    async with upstream() as served:
        before = leaks.in_process() | leaks.in_loop()
        async with ChaosProxy(f"tcp://{HOST}:{served.port}") as proxy:
            streams = [await connect(proxy) for _ in range(3)]
            for _, writer in streams:
                writer.write(b"x" * 300_000)
            await asyncio.sleep(0.02)
            spoil(proxy)
            await asyncio.sleep(0.02)
        for _, writer in streams:
            writer.transport.abort()
        for writer in served.writers:
            writer.transport.abort()
        await asyncio.wait(served.tasks)
        assert await leaks.left_over(before) == []


# --------------------------------------------------------------------------------------------------- with a real client


def make_client(proxy: ChaosProxy, **options: Any) -> Client:
    policy = RetryPolicy(base=0.1, cap=1.0, jitter=0, stable_after=0)
    return Client(proxy.url, **{"retry": policy, "keepalive": KEEPALIVE, "connect_timeout": 2.0, **options})


def write(document: LoroDoc, text: str) -> None:
    document.get_text("text").insert(0, text)
    document.commit()


def refuse_and_reset(proxy: ChaosProxy) -> None:
    proxy.refuse()
    proxy.reset()


OUTAGES: dict[str, Callable[[ChaosProxy], object]] = {
    "delay": lambda proxy: proxy.delay(0.2, jitter=0.1),
    "bandwidth": lambda proxy: proxy.bandwidth(500),
    "drip": lambda proxy: proxy.drip(size=3, every=0.01),
    "stall": lambda proxy: proxy.stall(),
    "stall up": lambda proxy: proxy.stall(UP),
    "stall down": lambda proxy: proxy.stall(DOWN),
    "black hole": lambda proxy: proxy.black_hole(),
    "truncate": lambda proxy: proxy.truncate(10),
    "truncate up": lambda proxy: proxy.truncate(10, reset=True, direction=UP),
    "refuse and reset": refuse_and_reset,
    "reset": lambda proxy: proxy.reset(),
    "cut": lambda proxy: proxy.cut(),
    "half close down": lambda proxy: proxy.half_close(),
    "half close up": lambda proxy: proxy.half_close(UP),
}


async def outage(kind: str, seconds: float, tls: Any = None, *, is_lost: bool = True) -> None:
    """A client edits before, during and after an outage; everything arrives."""
    served, trusted = tls or (None, None)
    document = LoroDoc()  # type: ignore[no-untyped-call]
    async with EmbeddedServer(ssl=served) as server, ChaosProxy(server.url) as proxy:
        async with make_client(proxy, **({"ssl": trusted} if trusted else {})) as client:
            watch = Watch(client)
            room = client.join("r", LoroAdaptor(document))
            async with asyncio.timeout(PATIENCE):
                await room
                write(document, "before ")
                await room.synced()
                OUTAGES[kind](proxy)
                write(document, "during ")
                await asyncio.sleep(seconds)
                proxy.heal()
                write(document, "after ")
                await client.wait_connected()
                await room.synced()
            assert server.document("r").get_text("text").to_string() == document.get_text("text").to_string()
            assert ("reconnecting" in watch.statuses) == is_lost
        assert proxy.counts.connections > is_lost


@virtual
@pytest.mark.parametrize("kind", OUTAGES)
async def test_a_client_comes_through(kind: str) -> None:
    """Ten seconds of each kind of outage."""
    await outage(kind, 10.0, is_lost=kind not in ("delay", "bandwidth", "drip"))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_client_comes_through_under_real_time(secure: bool) -> None:
    """TLS passes through untouched."""
    secured = tls.contexts() if secure else None
    await outage("drip", 0.3, secured, is_lost=False)
    for kind in ("black hole", "truncate", "refuse and reset", "half close down"):
        await outage(kind, 0.5, secured)


def test_a_run_is_a_function_of_its_seed() -> None:
    """Under virtual time, to the byte and the microsecond."""

    async def run() -> list[tuple[float, str, str]]:
        steps: list[tuple[float, str, str]] = []
        async with EmbeddedServer() as server, ChaosProxy(server.url, seed=7) as proxy, make_client(proxy) as client:
            client.on_transition(lambda step: steps.append((now(), step.event, step.new)))
            proxy.delay(0.3, jitter=0.3)
            proxy.truncate(150)
            await asyncio.sleep(60)
        return steps

    scenario: Callable[[], Awaitable[list[tuple[float, str, str]]]] = run
    first = virtual_time.run(scenario)
    assert len(first) > 20
    assert virtual_time.run(scenario) == first


def test_there_is_no_address_before_the_start() -> None:
    """A client would dial port 0 for ever."""
    with pytest.raises(RuntimeError, match="not started yet"):
        _ = ChaosProxy("ws://127.0.0.1:1/").url


def test_a_direction_is_no_word() -> None:
    """It says what it is."""
    with pytest.raises(TypeError, match=r"Direction\.DOWN or Direction\.BOTH, not 'down'"):
        ChaosProxy("ws://127.0.0.1:1/").stall("down")  # type: ignore[arg-type]
