"""Hostile servers: whatever one sends, refuses or never does, it meets a bound

One test for every thing that a server can make a client hold, compute, send, log or wait for. The bounds themselves,
and which test is about which, are in bounds.py. What costs time runs under virtual time, what costs memory on real
sockets.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import itertools
import logging
import random
import struct
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from loro import ExportMode, LoroDoc

import bounds
import faulty
from faulty import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Behaviour, Peer, Watch
from figures import Figures, soak
from hostile import (
    MIRRORS,
    ROOM,
    SECRET,
    Hostile,
    Sponge,
    dawdle,
    echo_head,
    frame,
    let_in_then,
    pour,
    quiet,
    welcome,
    wire,
    with_room,
)
from kit import PATIENCE, now, session_of, until
from reconnect_fsm import Client, JoinRefused, Keepalive, RetryPolicy, Room, RoomFSM, RoomStatus, room_fsm
from reconnect_fsm._asyncio import room_driver, room_session
from reconnect_fsm._asyncio.connection import MAX_MSG_SIZE, Connection, connection_driver_of
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm._asyncio.transport.failures import MAX_RETRY_AFTER
from reconnect_fsm._asyncio.transport.socket import BURST
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
    MAX_MESSAGE_SIZE,
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    Reassembler,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    encode,
)

# Amounts: what every `make test` does, and what a proof does.
FEW_FRAMES, MANY_FRAMES = 30_000, 1_000_000
FEW_DROPS, MANY_DROPS = 200, 10_000
FEW_MESSAGES, MANY_MESSAGES = 2_000, 5_000  # of the random server, a run
FEW_SEEDS, MANY_SEEDS = 3, 60

MIB: Final = 1 << 20
CONTROLS: Final = "\n\r\x00\x1b[31m\x1b]0;x\x07\u202e\u2028\x85\x7f"


def amounts(few: int, many: int) -> list[Any]:
    """A small amount for every run, a large one for the proof."""
    return [pytest.param(few, id="few"), pytest.param(many * soak(), id="many", marks=pytest.mark.proof)]


@pytest.fixture
async def _full_speed() -> None:
    """asyncio's debug mode, in which all tests run, costs several times what is measured here."""
    asyncio.get_running_loop().set_debug(False)


# ------------------------------------------------------------------------------------------------------------- helpers


def update(room: str = "r", *updates: bytes, batch_id: int = 1) -> DocUpdate:
    return DocUpdate(ROOM, room, updates or (b"x",), batch_id)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Strain:
    """What something cost while it lasted."""

    def __init__(self) -> None:
        self.turns = 0
        """Of the event loop."""
        self.grown = 0
        """Most bytes that this process held beyond what it held before."""


@asynccontextmanager
async def strain() -> AsyncIterator[Strain]:
    """Count the turns of the loop and watch the memory, of client and server together, in real time."""
    gc.collect()
    found, before = Strain(), resident()

    async def watch() -> None:
        while True:
            found.turns += 1
            if found.turns % 16 == 0:
                found.grown = max(found.grown, resident() - before)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        found.grown = max(found.grown, resident() - before)


def client_of(server: faulty.Server, **options: Any) -> Client:
    return Client(server.url, **{"retry": RetryPolicy(random=random.Random(1)), **options})


def reassembler_of(room: Room) -> Reassembler | None:
    """What puts the room's fragments together, if any have come in this session."""
    session = driver_of(room).session
    incoming = None if session is None else session._incoming
    return None if incoming is None else incoming._reassembler


def batches_under_way(room: Room) -> int:
    """How many batches have come in part."""
    reassembler = reassembler_of(room)
    return 0 if reassembler is None else len(reassembler._live)


def unwritten(client: Client) -> int:
    """Bytes of messages that wait in the client's send queue."""
    socket = connection_driver_of(client).socket.content
    if socket is None:
        return 0
    items = socket._outbox
    return sum(sum(map(len, item)) if isinstance(item, list) else len(item) for item in items)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the client logged at WARNING or above; asyncio's own, about slow machines, does not count."""
    return [
        each.getMessage() for each in caplog.records if each.name == "reconnect_fsm" and each.levelno >= logging.WARNING
    ]


def busiest(times: Sequence[float], window: float) -> int:
    """The most that happened within any ``window`` seconds."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] > window:
            first += 1
        most = max(most, last - first + 1)
    return most


# ------------------------------------------------------------------------------------------------------- the handshake


@pytest.mark.virtual_time
async def test_a_handshake_byte_by_byte_ends_with_the_attempt() -> None:
    """An attempt has its time, from the first byte to the last, however many bytes come."""

    async def dawdle(peer: Peer) -> None:
        await peer.request()
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 1000:
            peer.write(bytes((byte,)))
            await asyncio.sleep(1)

    async with faulty.server(dawdle) as server, Connection(server.url) as connection:
        watch, began = Watch(connection), now()
        await watch.seen("dial_failed")
        assert now() - began == pytest.approx(bounds.value("connect_timeout"), abs=0.1)


def endless_headers(peer: Peer) -> Awaitable[None]:
    peer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
    return pour(peer, b"X-Header: value\r\n" * 1000, 10_000)


def one_endless_header(peer: Peer) -> Awaitable[None]:
    peer.write(b"HTTP/1.1 101 Switching Protocols\r\nX-Header: ")
    return pour(peer, b"v" * 65536, 10_000)


def an_endless_status_line(peer: Peer) -> Awaitable[None]:
    peer.write(b"HTTP/1.1 101 ")
    return pour(peer, b"v" * 65536, 10_000)


def informational_answers(peer: Peer) -> Awaitable[None]:
    return pour(peer, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 100_000)


def an_endless_body(peer: Peer) -> Awaitable[None]:
    peer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    return pour(peer, b"10000\r\n" + b"b" * 65536 + b"\r\n", 10_000)


def a_compressed_body(peer: Peer) -> Awaitable[None]:
    body = gzip.compress(bytes(64 * MIB))
    peer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return pour(peer, b"", 1)


@pytest.mark.parametrize(
    "answer",
    [
        endless_headers,
        one_endless_header,
        an_endless_status_line,
        informational_answers,
        an_endless_body,
        a_compressed_body,
    ],
    ids=lambda each: each.__name__,
)
async def test_an_answer_without_end_costs_no_memory(answer: Behaviour) -> None:
    """Header lines, their number, informational answers, bodies: the attempt fails, little is held, the loop turns."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await answer(peer)
        await peer.wait_gone()

    async with asyncio.timeout(PATIENCE), faulty.server(behave) as server:
        async with Connection(server.url, connect_timeout=1.0) as connection, strain() as cost:
            watch = Watch(connection)
            await watch.seen("dial_failed")
        assert cost.grown < 32 * MIB
        assert cost.turns > 10
        assert max(map(len, watch.reasons)) < 300


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "asked",
    [
        "99999999999999999999999",
        "1e308",
        "-5",
        "-99999999999",
        "NaN",
        "inf",
        "²",
        "0x7fffffff",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 99 Zzz 99999999999999999999 99:99:99 +99999999999",
        "300, 300",
        "\t ",
        "9" * 8000,
    ],
    ids=lambda asked: f"{asked:.24}" if isinstance(asked, str) else None,
)
async def test_retry_after_is_clamped(status: int, asked: str) -> None:
    """D-HTTP: a wait is at most `MAX_RETRY_AFTER`, jitter apart (or the policy's own), whatever was asked."""
    async with faulty.server(faulty.answer(status, f"Retry-After: {asked}")) as server:
        policy = RetryPolicy(random=random.Random(1))
        async with Connection(server.url, retry=policy) as connection:
            watch = Watch(connection)
            await watch.seen("dial_failed")
            (wait,) = watch.waits
            assert policy.base * (1 - policy.jitter) <= wait <= MAX_RETRY_AFTER * (1 + 2 * policy.jitter)
            await asyncio.sleep(wait + 1)
            assert server.connects >= 2


def test_no_retry_after_raises() -> None:
    """Random words in the places of a date or a number: seconds from 0 to `MAX_RETRY_AFTER`, never an exception."""
    from reconnect_fsm._asyncio.transport.failures import retry_after

    words = ["Mon,", "01", "31", "99", "Jan", "Dec", "0001", "9999", "00:00:00", "23:59:60", "99:99", "+2359", "-2359"]
    words += ["GMT", "EST", "-0000", "nan", ",", ";", "-", "+", "٣", "²", "1_0"]
    chance = random.Random(5)
    for _ in range(20_000):
        asked, date = (" ".join(chance.choices(words, k=chance.randint(1, 8))) for _ in range(2))
        assert 0.0 <= retry_after({"Retry-After": asked, "Date": date}) <= MAX_RETRY_AFTER, asked


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    """D-HTTP: no other origin is ever contacted, whatever the answer's number, and nothing of the target is shown."""
    async with (
        asyncio.timeout(PATIENCE),
        faulty.server() as elsewhere,
        faulty.server(faulty.redirect(elsewhere.url, status)) as server,
    ):
        policy = RetryPolicy(base=0.01, cap=0.01)
        async with Connection(server.url, retry=policy, headers={"X-Api-Key": SECRET}) as connection:
            watch = Watch(connection)
            await until(lambda: server.connects > 3)
        assert elsewhere.connects == 0
        assert str(elsewhere.port) not in " ".join(watch.reasons)


async def test_cookies_do_not_pile_up() -> None:
    """What a server sets at each attempt is kept, and sent back, only up to a limit (aiohttp's)."""
    attempts = 12

    async def set_cookies(peer: Peer) -> None:
        head = await peer._reader.readuntil(b"\r\n\r\n")  # how long it is, is the question
        sizes.append(len(head))
        lines = [f"Set-Cookie: c{len(sizes)}x{i}={'v' * 2000}; Max-Age=99999999" for i in range(100)]
        peer.write("\r\n".join(["HTTP/1.1 500 No", "Content-Length: 0", *lines, "", ""]).encode())
        await peer.wait_gone()

    sizes: list[int] = []
    async with asyncio.timeout(PATIENCE), faulty.server(set_cookies) as server:
        # A jar takes no cookies from a bare address.
        url = server.url.replace(faulty.HOST, "localhost")
        async with Connection(url, retry=RetryPolicy(base=0.01, cap=0.01)) as connection:
            await until(lambda: len(sizes) >= attempts)
            assert connection_driver_of(connection).session is not None
            assert len(connection_driver_of(connection).session.cookie_jar) <= bounds.value("_MAX_COOKIES_PER_DOMAIN")
    assert max(sizes) < bounds.value("_MAX_COOKIE_HEADER_LENGTH") + 1000


# ---------------------------------------------------------------------------------------------------- again and again


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.virtual_time
@pytest.mark.timeout(300)
@pytest.mark.parametrize("drops", amounts(FEW_DROPS, MANY_DROPS))
async def test_a_server_that_accepts_and_drops_is_not_hammered(drops: int, figures: Figures) -> None:
    """RETRY-1, D-STABLE: after the first few attempts they come as rarely as the cap says, for ever."""
    policy = RetryPolicy(random=random.Random(2))
    async with faulty.server(faulty.accept_then_hang_up) as server, Connection(server.url, retry=policy):
        while server.connects < drops:
            await asyncio.sleep(3600)
            for peer in server.peers:
                peer.frames.clear()
        times = server.times
    least = policy.cap / (1 + policy.jitter) * (1 - policy.jitter)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[8:])]
    assert min(gaps) >= least * 0.999
    assert busiest(times, 60.0) <= 60 / least + 5
    if drops > FEW_DROPS:
        figures("server accepts and drops at once", drops=len(times), most_attempts_a_minute=busiest(times, 60.0))


@pytest.mark.virtual_time
@pytest.mark.parametrize("behaviour", [faulty.hang_up_in_handshake, faulty.answer(500), faulty.wrong_accept])
async def test_a_server_that_refuses_is_not_hammered(behaviour: Behaviour) -> None:
    """RETRY-1: the same for failed handshakes."""
    policy = RetryPolicy(random=random.Random(2))
    async with faulty.server(behaviour) as server, Connection(server.url, retry=policy):
        await asyncio.sleep(900)
        assert busiest(server.times[8:], 60.0) <= 60 / (policy.cap / (1 + policy.jitter) * (1 - policy.jitter)) + 1


@pytest.mark.virtual_time
async def test_a_server_that_drops_when_stable_is_not_hammered() -> None:
    """D-STABLE: a connection that counts as stable begins the backoff anew, but it must have lasted for that."""
    policy = RetryPolicy(random=random.Random(2))
    drop = faulty.accept_then_close(1001, after=policy.stable_after + 0.01)
    async with faulty.server(drop) as server, Connection(server.url, retry=policy):
        await asyncio.sleep(600)
        least = policy.stable_after + policy.base * (1 - policy.jitter)
        assert min(b - a for a, b in itertools.pairwise(server.times)) >= least
        assert server.connects > 90


# ----------------------------------------------------------------------------------------------- frames, by the million

EMPTY_AND_SMALL = {
    "empty PING": wire(PING),
    "full PING": wire(PING, b"p" * 125),
    "PONG": wire(PONG, b"p"),
    "empty text": wire(TEXT),
    "empty binary": wire(BINARY),
    "text": wire(TEXT, b"news"),
    "the text ping": wire(TEXT, b"ping"),
    "the text pong": wire(TEXT, b"pong"),
    "malformed message": wire(BINARY, b"%ELO\x01r\xff"),
}


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("many", amounts(FEW_FRAMES, MANY_FRAMES))
@pytest.mark.parametrize("kind", EMPTY_AND_SMALL)
async def test_a_flood_of_small_frames_to_a_client_whose_answers_are_not_read(
    kind: str, many: int, figures: Figures
) -> None:
    """Frames of a few bytes, by the million, from a server that reads nothing: little is held, and the loop turns."""

    sent = 0

    async def flood(peer: Peer) -> None:
        await peer.upgrade()
        peer.freeze()
        nonlocal sent
        for _ in range(many // 1000):
            await pour(peer, EMPTY_AND_SMALL[kind] * 1000, 1)
            sent += 1000
        peer.send("the end")
        await peer.drain()
        await asyncio.Event().wait()

    async with asyncio.timeout(280), faulty.server(flood) as server:
        client = client_of(server, keepalive=Keepalive(interval=300, timeout=300), close_timeout=0.1)
        ended, latencies = asyncio.Event(), list[float]()
        client.on_message(lambda text: ended.set() if text == "the end" else None)
        client.on_latency(latencies.append)
        answers = unsent = 0
        async with client:
            await client.wait_connected()
            async with strain() as cost:
                while not ended.is_set():
                    await asyncio.sleep(0.005)
                    socket = connection_driver_of(client).socket.content
                    if socket is not None:
                        answers = max(answers, socket.backlog + len(socket._urgent) + len(socket._pongs))
                        unsent = max(unsent, socket._unsent())
            assert client.status == "connected"
    assert answers <= bounds.value("PONGS") + len(("ping", "pong"))
    assert unsent < 256 * 1024
    assert cost.grown < 48 * MIB
    assert cost.turns > many / BURST / 10
    assert latencies == []  # no ping was sent: pongs that answer nothing are no round trips
    if many > FEW_FRAMES:
        figures(f"{kind}: frames of a server that reads nothing", frames=sent, most_MiB=cost.grown // MIB)


@pytest.mark.virtual_time
async def test_pongs_that_were_not_asked_for_tell_nothing() -> None:
    """A round trip is told once for each ping of ours, however many pongs there are."""

    async def pongs(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(600):
            for _ in range(50):
                peer.send("pong")
                peer.send_frame(PONG, b"pong")
            await asyncio.sleep(0.5)

    async with faulty.server(pongs) as server, Client(server.url, keepalive=Keepalive(10.0, 5.0)) as client:
        latencies = list[float]()
        client.on_latency(latencies.append)
        await asyncio.sleep(290)
        assert len(latencies) == 28 or len(latencies) == 29
        assert client.status == "connected"


@pytest.mark.virtual_time
async def test_late_pongs_are_no_messages() -> None:
    """A server that talks and answers pings late: its pongs answer the keepalive, all of them."""

    async def answer_late(peer: Peer) -> None:
        await peer.upgrade()
        for number in range(100):
            peer.send("news")
            await asyncio.sleep(1)
            if number == 50:
                for _ in range(3):
                    peer.send("pong")

    heard: list[object] = []
    async with (
        faulty.server(answer_late) as server,
        Connection(server.url, keepalive=Keepalive(10.0, 5.0)) as connection,
    ):
        connection.on_message(heard.append)
        await asyncio.sleep(90)
    assert set(heard) == {"news"}


async def test_messages_of_the_largest_size_back_to_back() -> None:
    """A message of `max_msg_size` is taken, many follow, and no more than a few of them are held."""
    count = 40
    blob = wire(BINARY, bytes(MAX_MSG_SIZE))

    async def flood(peer: Peer) -> None:
        await peer.upgrade()
        await pour(peer, blob, count)
        await peer.answer_frames()

    sizes: list[int] = []
    async with asyncio.timeout(PATIENCE), faulty.server(flood) as server, Connection(server.url) as connection:
        connection.on_message(lambda data: sizes.append(len(data)))
        async with strain() as cost:
            await until(lambda: len(sizes) == count)
    assert set(sizes) == {MAX_MSG_SIZE}
    assert cost.grown < 8 * MAX_MSG_SIZE + 16 * MIB


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        pytest.param((wire(BINARY, bytes(MAX_MSG_SIZE + 1)),), "max_msg_size", id="in one frame"),
        pytest.param((struct.pack("!BBQ", 0x82, 127, 1 << 62),), "max_msg_size", id="announced"),
        pytest.param((struct.pack("!BBQ", 0x82, 127, (1 << 64) - 1),), "max_msg_size", id="announced beyond 63 bits"),
        pytest.param(
            (wire(TEXT, b"a" * 65536, fin=False), *[wire(CONTINUATION, b"a" * 65536, fin=False)] * 80),
            "max_msg_size",
            id="in fragments without end",
        ),
        pytest.param((wire(PING, b"p" * 126),), "broke the WebSocket protocol", id="a control frame"),
        pytest.param((wire(CLOSE, b"\x03\xe8" + b"r" * 4000),), "broke the WebSocket protocol", id="a close reason"),
    ],
)
async def test_what_is_too_large_ends_the_connection(pieces: tuple[bytes, ...], why: str) -> None:
    """Nothing is allocated for what is only announced, and the reason is short."""

    async def send(peer: Peer) -> None:
        await peer.upgrade()
        for piece in pieces:
            peer.write(piece)
            await peer.drain()
        await peer.answer_frames()

    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(send, faulty.echo) as server,
        Connection(server.url) as connection,
    ):
        watch = Watch(connection)
        async with strain() as cost:
            step = await watch.seen("socket_closed")
        assert cost.grown < 4 * MAX_MSG_SIZE + 16 * MIB
        assert why in step.reason
        assert len(step.reason) < 300


@pytest.mark.parametrize("offered", [False, True], ids=["never offered", "offered by the user"])
async def test_a_compressed_bomb_does_not_go_off(offered: bool) -> None:
    """Compression is not negotiated unless the user asks for it; then a message inflates to `max_msg_size` at most."""
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflate.compress(bytes(MIB)) for _ in range(256)) + deflate.flush(zlib.Z_SYNC_FLUSH)

    async def send(peer: Peer) -> None:
        await peer.upgrade("Sec-WebSocket-Extensions: permessage-deflate")
        peer.write(wire(BINARY, bomb.removesuffix(b"\0\0\xff\xff"), rsv=4))
        await peer.answer_frames()

    heard: list[Any] = []
    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(send, faulty.echo) as server,
        Connection(server.url, compress=15 if offered else 0) as connection,
    ):
        connection.on_message(heard.append)
        watch = Watch(connection)
        async with strain() as cost:
            await watch.seen("socket_closed")
    assert heard == []
    assert cost.grown < 4 * MAX_MSG_SIZE + 16 * MIB


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("start", "more"),
    [
        (struct.pack("!BBQ", 0x82, 127, 1 << 20), b"."),
        (wire(TEXT, b"", fin=False), wire(CONTINUATION, b"", fin=False)),
    ],
    ids=["a frame byte by byte", "fragments without end or content"],
)
async def test_what_never_becomes_a_message_is_no_sign_of_life(start: bytes, more: bytes) -> None:
    """LIVE-2: a connection on which nothing ever comes whole is dead after interval + timeout."""

    async def drip(peer: Peer) -> None:
        await peer.upgrade()
        peer.write(start)
        while True:
            peer.write(more)
            await peer.drain()
            await asyncio.sleep(0.5)

    async with faulty.server(drip) as server, Connection(server.url) as connection:
        watch, began = Watch(connection), now()
        await watch.seen("pong_missed")
        assert now() - began <= bounds.value("interval") + bounds.value("timeout") + 0.1


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999])
async def test_a_close_code_that_is_never_on_the_wire_breaks_the_protocol(code: int) -> None:
    """RFC 6455, 7.4: it is answered with 1002, and the connection counts as lost, not as closed."""
    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(faulty.accept_then_close(code), faulty.echo) as server,
        Connection(server.url) as connection,
    ):
        step = await Watch(connection).seen("socket_closed")
        await until(lambda: server.peers[0].closed_with)
    assert server.peers[0].closed_with is not None
    assert server.peers[0].closed_with[0] == 1002
    assert "broke the WebSocket protocol" in step.reason


async def test_a_storm_of_close_frames_is_one_loss() -> None:
    """The first close frame ends it; what follows is not read."""

    async def storm(peer: Peer) -> None:
        await peer.upgrade()
        await pour(peer, wire(CLOSE, struct.pack("!H", 1001) + b"r" * 123) * 100, 1000)
        await peer.wait_gone()

    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(storm, faulty.echo) as server,
        Connection(server.url, close_timeout=0.5) as connection,
    ):
        watch = Watch(connection)
        await watch.seen("socket_closed")
        await until(lambda: server.connects > 1 and connection.status == "connected")
        assert [step.event for step in watch.steps].count("socket_closed") == 1


@pytest.mark.usefixtures("_full_speed")
async def test_a_server_that_chatters_through_the_close_does_not_delay_it() -> None:
    """D-TIMEOUT: the close frame is never answered, data comes for ever; `close` returns all the same."""

    async def chatter(peer: Peer) -> None:
        await peer.upgrade()
        await pour(peer, wire(TEXT) * 1000, 1_000_000)

    async with asyncio.timeout(PATIENCE), faulty.server(chatter) as server:
        connection = Connection(server.url, close_timeout=0.2)
        connection.start()
        await connection.wait_connected()
        async with asyncio.timeout(20):
            await connection.close()


@pytest.mark.virtual_time
async def test_a_server_that_talks_and_never_reads_is_dead_too() -> None:
    """LIVE-2, D-TIMEOUT: frames of ours that wait for ever do not wait for ever."""

    async def talk(peer: Peer) -> None:
        await peer.upgrade()
        peer.freeze()
        while True:
            peer.send_frame(PING, b"still here")
            await asyncio.sleep(5)

    async with faulty.server(talk) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        sending = asyncio.create_task(connection.send(bytes(MAX_MSG_SIZE)))
        await asyncio.sleep(600)
        stuck = not sending.done()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert not stuck


@pytest.mark.virtual_time
async def test_who_awaits_send_has_one_message_in_the_queue() -> None:
    """The send queue of a `Connection` holds what its user put there: `await send` is the bound."""
    most = 0
    async with faulty.server(faulty.deaf) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        with suppress(Exception):
            for _ in range(1000):
                sending = asyncio.create_task(connection.send(b"x" * 65536))
                while not sending.done():
                    socket = connection_driver_of(connection).socket.content
                    most = max(most, 0 if socket is None else socket.backlog)
                    await asyncio.sleep(0.1)
                await sending
    assert most == 1


# --------------------------------------------------------------------------------------------- updates, by the million


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("many", amounts(FEW_FRAMES, MANY_FRAMES))
async def test_a_flood_of_updates_at_a_slow_adaptor(many: int, figures: Figures) -> None:
    """The server is slowed down to the adaptor's pace: memory flat, pings and other rooms go on, nothing is lost."""
    others = many // 1000

    async def flood(peer: Peer) -> None:
        await pour(peer, frame(update("r")) * 999 + frame(update("other")), others)

    hostile = Hostile(flood, rooms=2)
    async with (
        asyncio.timeout(280),
        faulty.server(hostile) as server,
        client_of(server, keepalive=Keepalive(interval=0.1, timeout=PATIENCE)) as client,
    ):
        slow, quick = Sponge(slow=True), Sponge()
        await client.join("r", slow)
        await client.join("other", quick)
        pings = hostile.pings
        async with strain() as cost:
            await until(lambda: slow.applied >= others * 999, within=280)
        pings = hostile.pings - pings
        assert (slow.applied, client.status) == (others * 999, "connected")
        await until(lambda: quick.applied == others)
    assert cost.grown < 48 * MIB
    assert cost.turns > many / BURST / 10
    if many > FEW_FRAMES:
        assert pings > 1
        took = slow.applied + quick.applied
        figures(
            "updates at a slow adaptor",
            updates=took,
            most_MiB=cost.grown // MIB,
            pings_meanwhile=pings,
            lost=many - took,
        )


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("many", amounts(FEW_FRAMES, MANY_FRAMES))
async def test_a_flood_of_texts_at_a_slow_listener(many: int, figures: Figures) -> None:
    """The same for `on_message` of a bare connection."""

    async def flood(peer: Peer) -> None:
        await peer.upgrade()
        await pour(peer, frame("news") * 1000, many // 1000)
        await peer.answer_frames()

    heard = 0

    def listen(text: object) -> None:
        nonlocal heard
        heard += text == "news"
        dawdle(heard)

    async with asyncio.timeout(280), faulty.server(flood) as server, Connection(server.url) as connection:
        connection.on_message(listen)
        async with strain() as cost:
            await until(lambda: heard >= many, within=280)
        assert (heard, connection.status) == (many, "connected")
    assert cost.grown < 48 * MIB
    assert cost.turns > many / BURST / 10
    if many > FEW_FRAMES:
        figures("texts at a slow listener", texts=heard, most_MiB=cost.grown // MIB, lost=many - heard)


@pytest.mark.parametrize("shape", ["empty updates", "one update", "too large"])
async def test_the_largest_update_frames(shape: str) -> None:
    """A frame holds 256 KiB at most, hence so many updates; what is larger is dropped before it is read."""
    count = 8
    updates = {"empty updates": (b"",) * (MAX_MESSAGE_SIZE - 32), "one update": (bytes(FRAGMENT_SIZE),)}.get(shape)
    blob = wire(BINARY, bytes(MAX_MESSAGE_SIZE + 1)) if updates is None else frame(update("r", *updates))

    async def flood(peer: Peer) -> None:
        await pour(peer, blob, count)
        peer.send(encode(update("other")))

    async with asyncio.timeout(PATIENCE), faulty.server(Hostile(flood, rooms=2)) as server, client_of(server) as client:
        adaptor, other = Sponge(), Sponge()
        await client.join("r", adaptor)
        await client.join("other", other)
        async with strain() as cost:
            await until(lambda: other.applied)
        assert adaptor.applied == count * len(updates or ())
        assert client.status == "connected"
    assert cost.grown < 48 * MIB


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.virtual_time  # whose sockets hold little
@pytest.mark.parametrize("reads", [True, False], ids=["read", "not read"])
async def test_an_adaptor_that_raises_at_each_update(reads: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The room stays joined; refusals are held back at `MAX_REPLIES`, and warnings at `MAX_COMPLAINTS`."""
    many = 20_000

    async def flood(peer: Peer) -> None:
        if not reads:
            peer.freeze()
        await pour(peer, frame(update("r", b"junk")) * 100, many // 100)
        peer.send(encode(update("other")))

    hostile = Hostile(flood, rooms=2)
    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(hostile) as server,
        client_of(server, close_timeout=0.1) as client,
    ):
        adaptor, other = Sponge(raising=ValueError("bad")), Sponge()
        room = await client.join("r", adaptor)
        await client.join("other", other)
        waiting = 0
        while not other.applied:
            await asyncio.sleep(0.001)
            waiting = max(waiting, client._rooms.backlog)
        assert adaptor.applied == many
        assert waiting <= room_session.MAX_REPLIES
        assert room.status is RoomStatus.JOINED
        if reads:
            await until(lambda: len(hostile.acks()) > 10)
    assert 1 <= len(warnings(caplog)) <= room_driver.MAX_COMPLAINTS


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


Panic.__name__ = "PanicException"


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "fault",
    [ValueError(), MemoryError(), RecursionError(), BaseException("loro"), Panic(), asyncio.CancelledError()],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("method", ["apply", "version", "missing_from", "covers", "refused"])
async def test_what_an_import_does_to_an_adaptor_costs_its_room_only(method: str, fault: BaseException) -> None:
    """Whatever an update from the server makes an adaptor raise, the other rooms and the connection go on."""

    class Broken(Sponge):
        pass

    def broken(*_: object) -> Any:
        raise fault

    setattr(Broken, method, broken)

    async def send(peer: Peer) -> None:
        for number in range(3):
            peer.send(encode(update("r", b"bomb", batch_id=number)))
            peer.send(encode(update("other", batch_id=number)))

    hostile = Hostile(send, rooms=1)
    async with faulty.server(hostile) as server, client_of(server) as client:
        other = Sponge()
        good = client.join("other", other)
        client.join("r", Broken(missing=[b"refuse me"]))
        await good
        await until(lambda: other.applied == 3)
        assert (client.status, good.status) == ("connected", RoomStatus.JOINED)


# ---------------------------------------------------------------------------------------------------------------- rooms


def nonsense(chance: random.Random, room: str, crdt: CrdtType = ROOM) -> Message:
    """Any message that a server may send, or may not, about a room."""
    batch, junk = chance.randrange(4), chance.randbytes(chance.randrange(12))
    words = "".join(chance.choices("words " + CONTROLS, k=chance.randrange(9)))

    def number() -> int:
        return chance.choice([0, 1, 2, 9, 2**32 - 1])

    kinds: list[Callable[[], Message]] = [
        lambda: DocUpdate(crdt, room, (junk,) * chance.randrange(3), batch),
        lambda: DocUpdateFragmentHeader(
            crdt, room, batch, chance.choice([0, 1, 2, 2**32 - 1]), chance.choice([0, 9, 2**32 - 1])
        ),
        lambda: DocUpdateFragment(crdt, room, batch, chance.choice([0, 1, 2, 2**32 - 1]), junk),
        lambda: JoinResponseOk(crdt, room, chance.choice(["read", "write"]), junk),
        lambda: JoinError(crdt, room, JoinErrorCode.VERSION_UNKNOWN, words, junk),
        lambda: RoomError(crdt, room, RoomErrorCode.REJOIN_SUGGESTED, words),
        lambda: Ack(crdt, room, batch, chance.choice(list(UpdateStatusCode))),
        lambda: Leave(crdt, room),
        lambda: JoinRequest(crdt, room, junk, junk),
    ]
    return chance.choice(kinds)()


@pytest.mark.usefixtures("_full_speed")
@pytest.mark.timeout(300)
@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("seeds", "messages"),
    [
        pytest.param(FEW_SEEDS, FEW_MESSAGES, id="few"),
        pytest.param(MANY_SEEDS * soak(), MANY_MESSAGES, id="many", marks=pytest.mark.proof),
    ],
)
async def test_a_server_that_sends_anything(
    seeds: int, messages: int, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    """Random valid messages for an hour, by seed: joins, log lines, statuses and what is held stay within bounds."""
    most_joins = most_lines = sent = 0
    violations: list[str] = []
    caplog.set_level(logging.INFO)
    # One suggestion followed in 30 s, each with two more versions, and one unanswered request in 10 s.
    limit = 2 * (1 + len(room_fsm.NEXT_VERSION)) + RoomFSM.rejoin_interval / RoomFSM.join_timeout
    for seed in range(seeds):
        caplog.clear()
        changes: list[float] = []
        hostile = await an_hour_of_nonsense(random.Random(seed), messages, changes)
        joins, lines = busiest(hostile.joins, RoomFSM.rejoin_interval), len(caplog.records)
        violations += [
            f"seed {seed} (rerun with range({seed}, {seed + 1})): {what} {count}, at most {most} allowed"
            for what, count, most in (
                ("JoinRequests in 30 s", joins, limit),
                ("statuses in 30 s", busiest(changes, RoomFSM.rejoin_interval), 2 * limit),
                ("warnings", len(warnings(caplog)), room_driver.MAX_COMPLAINTS),
                ("log lines", lines, room_driver.MAX_COMPLAINTS + 5),
            )
            if count > most
        ]
        most_joins, most_lines, sent = max(most_joins, joins), max(most_lines, lines), sent + hostile.sent
    assert violations == []
    if seeds > FEW_SEEDS:
        figures(
            "random messages about a room, an hour a seed",
            messages=sent,
            seeds=f"0–{seeds - 1}",
            most_joins_in_30_s=most_joins,
            most_log_lines=most_lines,
            violations=len(violations),
        )


async def an_hour_of_nonsense(chance: random.Random, messages: int, changes: list[float]) -> Hostile:
    """One run."""

    async def attack(peer: Peer) -> None:
        left = messages
        while left > 0:
            burst = min(left, chance.choice([1, 1, 5, 200]))
            left -= burst
            for _ in range(burst):
                peer.send(encode(nonsense(chance, "r")))
            hostile.sent += burst
            await peer.drain()
            await asyncio.sleep(chance.expovariate(messages / 40 / 3600))

    hostile = Hostile(attack, rooms=0, answer=lambda request: welcome(request) if chance.random() < 0.5 else ())
    async with faulty.server(hostile) as server, client_of(server) as client:
        room = client.join("r", Sponge(missing=[b"ours"]))
        room.on_status(lambda _: changes.append(now()))
        await asyncio.sleep(3600)
        assert client.status == "connected"
        assert len(client._rooms.fragmented) <= 1
        assert not client._rooms.answers
        reassembler = reassembler_of(room)
        if reassembler is not None:
            assert len(reassembler._live) <= Reassembler.MAX_BATCHES
            assert len(reassembler._settled) <= Reassembler.MAX_SETTLED
    return hostile


@pytest.mark.virtual_time
async def test_messages_about_rooms_never_joined_are_held_nowhere() -> None:
    """Nothing is answered, kept or logged of them, whatever they say and however many rooms they name."""
    many, chance = 20_000, random.Random(3)

    async def flood(peer: Peer) -> None:
        for number in range(many):
            crdt = chance.choice(list(CrdtType))
            peer.send(encode(nonsense(chance, f"unknown {number}", crdt)))
            if number % 100 == 0:
                await peer.drain()
        peer.send(encode(update("r")))

    hostile = Hostile(flood)
    async with faulty.server(hostile) as server, client_of(server) as client:
        adaptor = Sponge()
        room = await client.join("r", adaptor)
        await until(lambda: adaptor.applied)
        held = client._rooms
        assert (client.rooms, bool(held.answers), len(held.fragmented), len(held.timers)) == ((room,), False, 0, 0)
        assert hostile.heard == []


LIES: dict[str, Message] = {
    "no fragments": DocUpdateFragmentHeader(ROOM, "r", 7, 0, 10),
    "too many fragments": DocUpdateFragmentHeader(ROOM, "r", 7, Reassembler.MAX_FRAGMENTS + 1, 10),
    "2**32 - 1 fragments": DocUpdateFragmentHeader(ROOM, "r", 7, 2**32 - 1, 2**32 - 1),
    "too many bytes": DocUpdateFragmentHeader(ROOM, "r", 7, 2, Reassembler.MAX_BATCH_BYTES + 1),
    "a fragment of nothing": DocUpdateFragment(ROOM, "r", 7, 0, b"x"),
    "fragment number 2**32 - 1": DocUpdateFragment(ROOM, "r", 7, 2**32 - 1, b"x"),
}


@pytest.mark.virtual_time
@pytest.mark.parametrize("lie", LIES)
async def test_a_fragment_that_lies_costs_one_refusal(lie: str) -> None:
    """Counts, sizes and indexes that cannot be: one Ack each, nothing allocated, the room goes on."""
    many = 1000

    async def send(peer: Peer) -> None:
        for _ in range(many):
            peer.send(encode(LIES[lie]))

    hostile = Hostile(send)
    async with faulty.server(hostile) as server, client_of(server) as client:
        room = await client.join("r", Sponge())
        await asyncio.sleep(5)
        assert 1 <= len(hostile.acks()) <= many
        assert {ack.ref_id for ack in hostile.acks()} == {7}
        assert batches_under_way(room) == 0
        assert client.status == "connected"


@pytest.mark.virtual_time
async def test_batches_that_never_end_are_bounded_in_number_and_time() -> None:
    """So many batches a room, so many rooms, so many seconds; what is beyond is refused at once, the rest in time."""
    count = room_session.MAX_FRAGMENTED_ROOMS + 4

    async def send(peer: Peer) -> None:
        for number in range(count):
            for batch in range(Reassembler.MAX_BATCHES):
                peer.send(encode(DocUpdateFragmentHeader(ROOM, f"r{number}", batch, 2, 100)))
                peer.send(encode(DocUpdateFragment(ROOM, f"r{number}", batch, 0, b"x")))
        await asyncio.sleep(5)
        peer.send(encode(DocUpdateFragmentHeader(ROOM, "r0", 99, 2, 100)))

    def refused(status: UpdateStatusCode) -> set[tuple[str, int]]:
        return {(ack.room_id, ack.ref_id) for ack in hostile.acks() if ack.status is status}

    hostile = Hostile(send, rooms=count)
    async with faulty.server(hostile) as server, client_of(server) as client:
        joined = [client.join(f"r{number}", Sponge()) for number in range(count)]
        for room in joined:
            await room
        await asyncio.sleep(3)
        live = [batches_under_way(room) for room in joined]
        assert sorted(set(live)) == [0, Reassembler.MAX_BATCHES]
        assert sum(n > 0 for n in live) == len(client._rooms.fragmented) == room_session.MAX_FRAGMENTED_ROOMS
        assert {room_id for room_id, _ in refused(UpdateStatusCode.RATE_LIMITED)} == {f"r{n}" for n in range(16, count)}
        asked = len(hostile.joins)
        await asyncio.sleep(room_session.FRAGMENT_PATIENCE)
        assert ("r0", 99) in refused(UpdateStatusCode.RATE_LIMITED)  # one more in a room that has all it may
        assert len(client._rooms.fragmented) == 0
        late = room_session.MAX_FRAGMENTED_ROOMS * Reassembler.MAX_BATCHES
        assert len(refused(UpdateStatusCode.FRAGMENT_TIMEOUT)) == late
        assert len(hostile.joins) - asked <= count


async def test_half_received_batches_of_all_rooms_together_are_bounded() -> None:
    """What is held of batches that have not come whole is a budget of the connection, not of each batch."""
    count = room_session.MAX_FRAGMENT_BYTES // Reassembler.MAX_BATCH_BYTES + 2

    async def send(peer: Peer) -> None:
        pieces = Reassembler.MAX_BATCH_BYTES // FRAGMENT_SIZE
        for number in range(count):
            peer.send(encode(DocUpdateFragmentHeader(ROOM, f"r{number}", 1, pieces + 1, Reassembler.MAX_BATCH_BYTES)))
            for piece in range(pieces):
                peer.send(encode(DocUpdateFragment(ROOM, f"r{number}", 1, piece, bytes(FRAGMENT_SIZE))))
                await peer.drain()
        peer.send(encode(update("end")))

    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(Hostile(send, rooms=count + 1)) as server,
        client_of(server) as client,
    ):
        for number in range(count):
            await client.join(f"r{number}", Sponge())
        end = Sponge()
        await client.join("end", end)
        held = 0
        while not end.applied:
            await asyncio.sleep(0.01)
            held = max(held, sum(each.size for each in client._rooms.fragmented))
        assert room_session.MAX_FRAGMENT_BYTES / 2 < held <= room_session.MAX_FRAGMENT_BYTES


STORMS: dict[str, tuple[Message, ...]] = {
    "rejoin suggested": (RoomError(ROOM, "r", RoomErrorCode.REJOIN_SUGGESTED, "go on"),),
    "version unknown": (JoinError(ROOM, "r", JoinErrorCode.VERSION_UNKNOWN, "what?", b"v"),),
    "accepted": (JoinResponseOk(ROOM, "r", "write", b"v"),),
    "out and in": (
        RoomError(ROOM, "r", RoomErrorCode.REJOIN_SUGGESTED, "go on"),
        JoinResponseOk(ROOM, "r", "write", b"v"),
    ),
    "out, unknown, in": (
        RoomError(ROOM, "r", RoomErrorCode.REJOIN_SUGGESTED, "go on"),
        JoinError(ROOM, "r", JoinErrorCode.VERSION_UNKNOWN, "what?"),
        JoinError(ROOM, "r", JoinErrorCode.VERSION_UNKNOWN, "what?"),
        JoinResponseOk(ROOM, "r", "write", b"v"),
    ),
    "a batch that never comes": (
        DocUpdateFragment(ROOM, "r", 1, 0, b"x"),
        JoinResponseOk(ROOM, "r", "write", b"v"),
        DocUpdateFragment(ROOM, "r", 2, 0, b"x"),
    ),
}


@pytest.mark.virtual_time
@pytest.mark.parametrize("storm", STORMS)
async def test_a_storm_does_not_make_a_storm_of_requests(storm: str) -> None:
    """D-ROOMERR, D-VERSION: fifty a second for three minutes; the requests are counted."""
    minutes = 3

    async def send(peer: Peer) -> None:
        for _ in range(minutes * 60):
            for _ in range(50):
                for message in STORMS[storm]:
                    peer.send(encode(message))
            await peer.drain()
            await asyncio.sleep(1)

    hostile = Hostile(send)
    async with faulty.server(hostile) as server, client_of(server) as client:
        client.join("r", Sponge(missing=[b"ours"]))
        await asyncio.sleep(minutes * 60 + 10)
        assert client.status == "connected"
    followed = minutes * 60 / RoomFSM.rejoin_interval + 2
    assert len(hostile.joins) <= followed * (1 + len(room_fsm.NEXT_VERSION))
    assert len([each for each in hostile.heard if isinstance(each, DocUpdate)]) <= followed


@pytest.mark.virtual_time
async def test_version_unknown_is_asked_three_times_in_all() -> None:
    """D-VERSION: current, alternative, empty; then the room is in error, and never asked for again."""
    unknown = JoinError(ROOM, "r", JoinErrorCode.VERSION_UNKNOWN, "no idea", b"v")
    hostile = Hostile(quiet, rooms=0, answer=lambda _: (unknown,) * 100)
    async with faulty.server(hostile) as server, client_of(server) as client:
        with pytest.raises(JoinRefused):
            await client.join("r", Sponge())
        await asyncio.sleep(600)
        assert client.rooms == ()
    assert len(hostile.joins) == 1 + len(room_fsm.NEXT_VERSION) == 3


@pytest.mark.virtual_time
async def test_joins_that_are_never_answered_are_asked_again_with_a_backoff() -> None:
    """D-TIMEOUT: the server has 10 s to answer, then the room waits longer each time, up to the policy's cap."""
    hostile = Hostile(quiet, rooms=0, answer=lambda _: ())
    async with faulty.server(hostile) as server, client_of(server) as client:
        room = client.join("r", Sponge())
        await asyncio.sleep(3600)
        assert room.status is RoomStatus.CONNECTING
    gaps = [later - earlier for earlier, later in itertools.pairwise(hostile.joins)]
    assert min(gaps) >= RoomFSM.join_timeout
    assert max(gaps) <= RoomFSM.join_timeout + RetryPolicy().cap


@pytest.mark.virtual_time
async def test_a_server_that_never_acks_is_not_sent_the_document_with_each_edit() -> None:
    """D-ACK: the rejoin that supersedes what waits for an Ack is made once in `rejoin_interval`."""
    hostile = Hostile(quiet)
    pieces = room_session.MAX_UNACKED_BYTES // FRAGMENT_SIZE + 1
    async with faulty.server(hostile) as server, client_of(server) as client:
        adaptor = Sponge(missing=[bytes(FRAGMENT_SIZE)] * pieces)
        await client.join("r", adaptor)
        for _ in range(10):
            adaptor.edit(b"a key")
            await asyncio.sleep(1)
            hostile.heard.clear()
    assert len(hostile.joins) <= 3


@pytest.mark.virtual_time
async def test_a_server_that_lets_in_and_never_reads_does_not_fill_the_send_queue() -> None:
    """What waits to be written for rooms is bounded: two documents' worth, before the connection counts as dead."""

    async def let_in(peer: Peer) -> None:
        peer.freeze()
        while True:
            peer.send(encode(JoinResponseOk(ROOM, "r", "write", b"")))
            await asyncio.sleep(1)

    pieces = room_session.MAX_UNACKED_BYTES // FRAGMENT_SIZE + 1
    most = 0
    async with faulty.server(Hostile(let_in)) as server, client_of(server) as client:
        adaptor = Sponge(missing=[bytes(FRAGMENT_SIZE)] * pieces)
        await client.join("r", adaptor)
        for _ in range(20):
            adaptor.edit(b"a key")
            await asyncio.sleep(1)
            most = max(most, unwritten(client))
    assert most <= 3 * room_session.MAX_UNACKED_BYTES


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "acks",
    [False, True],
    ids=["no acks", "acks for what it has not read"],
)
async def test_a_server_that_reads_slowly_does_not_fill_the_send_queue(acks: bool) -> None:
    """Each rejoin sends what the server says it lacks; what was not written of the session before is superseded."""
    size = 64 * FRAGMENT_SIZE

    async def sip(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        peer.send(encode(JoinResponseOk(ROOM, "r", "write", b"")))
        for second in itertools.count(1):  # the stream takes no more than its buffer holds
            await asyncio.sleep(1)
            if second % 5 == 0:
                peer.send_frame(PING)
                await peer._reader.read(65536)
            if second % RoomFSM.rejoin_interval == 0:
                peer.send(encode(RoomError(ROOM, "r", RoomErrorCode.REJOIN_SUGGESTED, "")))
                peer.send(encode(JoinResponseOk(ROOM, "r", "write", b"")))

    most = 0
    async with faulty.server(sip) as server, client_of(server) as client:
        room = await client.join("r", Sponge(missing=[bytes(FRAGMENT_SIZE)] * 64))
        for _ in range(20):
            for batch_id in session_of(room).unacked if acks else ():  # they count up: who has seen one knows the next
                server.peer.send(encode(Ack(ROOM, "r", batch_id, UpdateStatusCode.OK)))
            await asyncio.sleep(RoomFSM.rejoin_interval)
            most = max(most, unwritten(client))
    assert most <= 2 * size


@pytest.mark.virtual_time
async def test_acks_for_what_was_never_sent_change_nothing() -> None:
    """A storm of refusals: each update of ours is refused once at most, and what no one sent never."""

    async def storm(peer: Peer) -> None:
        for ref_id in range(20_000):
            peer.send(encode(Ack(ROOM, "r", ref_id, UpdateStatusCode.INVALID_UPDATE)))
            if ref_id % 100 == 0:
                await peer.drain()
        for message in hostile.heard.copy():
            if isinstance(message, DocUpdate):
                for _ in range(1000):
                    peer.send(encode(Ack(ROOM, "r", message.batch_id, UpdateStatusCode.INVALID_UPDATE)))

    hostile = Hostile(storm, rooms=2)
    async with faulty.server(hostile) as server, client_of(server) as client:
        adaptor = Sponge(missing=[b"one", b"two"])
        room = await client.join("r", adaptor)
        await until(lambda: hostile.heard)
        await client.join("go", Sponge())
        await until(lambda: adaptor.refusals)
        await asyncio.sleep(10)
        # D-RESYNC: it was sent once more after a comparison, and that is not answered.
        assert (adaptor.refusals, room.status, len(session_of(room).unacked)) == (2, RoomStatus.JOINED, 1)
        assert session_of(room).unacked_bytes == len(b"onetwo")


ABSURD = {
    "random bytes": random.Random(9).randbytes(200_000),
    "a count of 2**32": b"\xff\xff\xff\xff\x0f",
    "a count of 2**64": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "zeros": bytes(200_000),
}


@pytest.mark.parametrize("version", ABSURD)
async def test_a_version_that_makes_no_sense_is_as_good_as_none(version: str) -> None:
    """A server that is at an absurd version gets all there is; nothing is allocated for what it claims."""
    hostile = Hostile(
        quiet,
        answer=lambda request: (JoinResponseOk(request.crdt, request.room_id, "write", ABSURD[version], bytes(9)),),
    )
    doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
    doc.get_text("text").insert(0, "ours")
    doc.commit()
    async with asyncio.timeout(PATIENCE), faulty.server(hostile) as server, client_of(server) as client:
        async with strain() as cost:
            room = await client.join("r", LoroAdaptor(doc))
            await until(lambda: hostile.heard)
        assert room.status is RoomStatus.JOINED
        (sent,) = hostile.heard
        assert isinstance(sent, DocUpdate)
        assert sent.updates == (doc.export(ExportMode.Updates(type(doc.oplog_vv)())),)
    assert cost.grown < 32 * MIB


async def test_updates_that_are_no_updates_harm_no_document() -> None:
    """Random and damaged bytes for a real document: refused, each, and the document is as it was."""
    chance, many = random.Random(4), 500
    other = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
    other.get_text("text").insert(0, "theirs " * 50)
    good = other.export(ExportMode.Snapshot())
    doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
    doc.get_text("text").insert(0, "ours")
    doc.commit()

    def damaged() -> bytes:
        junk = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            junk[chance.randrange(len(junk))] = chance.randrange(256)
        return (
            bytes(junk[: chance.randrange(len(junk))]) if chance.random() < 0.5 else chance.randbytes(50) + bytes(junk)
        )

    async def send(peer: Peer) -> None:
        for number in range(many):
            peer.send(encode(DocUpdate(CrdtType.LORO, "r", (damaged(),), number)))
            await peer.drain()

    hostile = Hostile(send)
    async with asyncio.timeout(PATIENCE), faulty.server(hostile) as server, client_of(server) as client:
        async with strain() as cost:
            room = await client.join("r", LoroAdaptor(doc))
            await until(lambda: len(hostile.acks()) == many)
        assert room.status is RoomStatus.JOINED
        assert doc.get_text("text").to_string() == "ours"
    assert cost.grown < 64 * MIB


# -------------------------------------------------------------------------------------------------- what is said of it


class Said:
    """Everything that a client says: its log at any level, its statuses, reasons, errors and reprs."""

    def __init__(self) -> None:
        self._log = io.StringIO()
        self._handler = logging.StreamHandler(self._log)
        self._handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self._words: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        root = logging.getLogger()
        level = root.level
        root.addHandler(self._handler)
        root.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            root.removeHandler(self._handler)
            root.setLevel(level)

    def hear(self, connection: Connection) -> None:
        connection.on_status(lambda change: self._words.append(f"{change!r} {change.reason}"))
        connection.on_transition(lambda change: self._words.append(f"{change!r} {change.reason}"))

    def note(self, *things: object) -> None:
        for thing in things:
            self._words += [repr(thing), str(thing)]
            if isinstance(thing, BaseException):
                self._words += ["".join(traceback.format_exception(thing)), str(thing.__dict__)]

    @property
    def words(self) -> list[str]:
        return [*self._words, *self._log.getvalue().splitlines()]

    @property
    def log(self) -> str:
        return self._log.getvalue()


@pytest.mark.parametrize("mirror", MIRRORS)
async def test_a_secret_that_the_server_reflects_is_shown_nowhere(mirror: str) -> None:
    """Token in the query, in headers and cookies, in the auth bytes: not in logs, statuses, errors or reprs."""
    said = Said()
    async with asyncio.timeout(PATIENCE), faulty.server(MIRRORS[mirror], faulty.deaf) as server:
        with said.listening():
            url = server.url.replace("://", f"://user:{SECRET}@") + f"?token={SECRET}"
            headers = {"X-Token": SECRET, "Cookie": f"session={SECRET}"}
            client = Client(url, headers=headers, retry=RetryPolicy(base=0.01, cap=0.01), close_timeout=0.1)
            said.hear(client)
            async with client:
                room = client.join("r", Sponge(), auth=SECRET.encode())
                room.on_status(said.note)
                waiting = asyncio.create_task(room.synced())
                await asyncio.wait([waiting], timeout=0.5)
                await until(lambda: said.log)
                await asyncio.sleep(0.3)
                said.note(client, room, client.reason, room.reason, waiting)
            said.note(*await asyncio.gather(waiting, return_exceptions=True))
            with suppress(Exception):
                await client.ping()
    assert said.log
    assert [each for each in said.words if SECRET in each] == []


async def test_a_secret_that_is_reflected_in_part_is_not_shown() -> None:
    """A long token, cut short by the frame that brings it back."""
    token = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=600))
    said = Said()
    async with (
        asyncio.timeout(PATIENCE),
        faulty.server(faulty.accept_then_close(4000, f"bad token {token}"[:120])) as server,
    ):
        with said.listening():
            async with Connection(f"{server.url}?token={token}", retry=RetryPolicy(enabled=False)) as connection:
                said.hear(connection)
                await until(lambda: connection.status == "disconnected")
                said.note(connection.reason)
    assert [each for each in said.words if token[:30] in each] == []


@pytest.mark.virtual_time
async def test_each_room_has_its_own_secret() -> None:
    """A hundred rooms, each with auth bytes of its own, which the server says back to it."""
    many = 100

    def secret(room_id: str) -> str:
        return f"secret-of-{room_id}"

    async def refuse(peer: Peer) -> None:
        for number in range(many):
            room_id = f"r{number}"
            peer.send(encode(RoomError(ROOM, room_id, RoomErrorCode.EVICTED, f"no {secret(room_id)}")))

    reasons: list[str] = []
    async with faulty.server(Hostile(refuse, rooms=many)) as server, client_of(server) as client:
        for number in range(many):
            room = client.join(f"r{number}", Sponge(), auth=secret(f"r{number}").encode())
            room.on_status(lambda change: reasons.append(change.reason))
        await until(lambda: not client.rooms)
    assert [reason for reason in reasons if "secret-of-" in reason] == []


async def test_a_secret_that_a_proxy_reflects_is_shown_nowhere() -> None:
    """The same for the proxy's password."""
    said = Said()
    async with asyncio.timeout(PATIENCE), faulty.server(echo_head) as proxy:
        with said.listening():
            through = proxy.url.replace("ws://", f"http://user:{SECRET}@")
            client = Connection("ws://host.invalid/", proxy=through, retry=RetryPolicy(base=0.01, cap=0.01))
            said.hear(client)
            async with client:
                await until(lambda: proxy.connects > 2)
                said.note(client, client.reason)
    assert [each for each in said.words if SECRET in each] == []


WORDS: dict[str, Behaviour] = {
    "a close reason": faulty.accept_then_close(4000, CONTROLS),
    "a JoinError": with_room(JoinError(ROOM, "r", JoinErrorCode.UNKNOWN, CONTROLS * 1000)),
    "an app code": with_room(JoinError(ROOM, "r", JoinErrorCode.APP_ERROR, CONTROLS, None, CONTROLS * 1000)),
    "a RoomError": let_in_then(RoomError(ROOM, "r", RoomErrorCode.EVICTED, CONTROLS * 1000)),
    "malformed messages": let_in_then(),
    "an HTTP answer": faulty.answer(500, "X-Told: \x1b[31m"),
}


@pytest.mark.parametrize("where", WORDS)
async def test_a_servers_words_cannot_forge_the_log(where: str) -> None:
    """Newlines, escape sequences and the like are replaced, in the log and in every reason; and words are cut short."""
    said = Said()

    async def junk(peer: Peer) -> None:
        await WORDS[where](peer)

    async with asyncio.timeout(PATIENCE), faulty.server(junk, faulty.deaf) as server:
        with said.listening():
            async with client_of(server, close_timeout=0.1) as client:
                said.hear(client)
                reasons: list[str] = []
                client.on_status(lambda change: reasons.append(change.reason))
                room = client.join("r", Sponge())
                room.on_status(lambda change: reasons.append(change.reason))
                await until(lambda: "reconnect_fsm" in said.log)
                await asyncio.sleep(0.3)
                reasons += [client.reason, room.reason, str(driver_of(room).fsm.last_error)]
    ours = [line for line in said.log.split("\n") if line.startswith("reconnect_fsm")]
    assert ours
    assert all(line.isprintable() and len(line) < 700 for line in ours)
    assert all(reason.isprintable() and len(reason) < 600 for reason in reasons)


async def test_an_adaptors_words_cannot_forge_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An adaptor that quotes the update in its exception gives a server no way to write lines of its own."""

    class Quoting(Sponge):
        def apply(self, updates: Sequence[bytes]) -> None:
            raise ValueError(f"bad update {updates[0].decode()}")

    forged = f"{CONTROLS}root: all is well{'x' * 10_000}"

    async def send(peer: Peer) -> None:
        peer.send(encode(update("r", forged.encode())))

    hostile = Hostile(send)
    async with asyncio.timeout(PATIENCE), faulty.server(hostile) as server, client_of(server) as client:
        await client.join("r", Quoting())
        await until(hostile.acks)
    messages = [record.getMessage() for record in caplog.records if record.name == "reconnect_fsm"]
    assert messages
    assert all(message.isprintable() and len(message) < 700 for message in messages)


@pytest.mark.virtual_time
async def test_malformed_messages_cost_a_few_log_lines_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    """`MAX_COMPLAINTS` warnings a connection, and connections are as rare as the backoff makes them."""

    async def junk(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(50):
            peer.send(b"%ELO\x01r\xff")
            peer.send(b"\0" * 10)
        await peer.drain()
        await asyncio.sleep(0.5)
        peer.send_close(1001)

    caplog.set_level(logging.INFO)
    async with faulty.server(junk) as server, client_of(server):
        await asyncio.sleep(600)
        assert server.connects > 30
    a_connection = room_driver.MAX_COMPLAINTS + 3  # lost, wait, opened
    assert len(caplog.records) <= (server.connects + 1) * a_connection


@pytest.mark.virtual_time
async def test_a_listener_that_raises_at_each_text_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The server decides how often a listener raises, so the log tells of it only so many times."""

    async def texts(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(2000):
            peer.send("{not json")
        await peer.answer_frames()

    heard: list[object] = []

    def listen(text: object) -> None:
        heard.append(text)
        raise ValueError("no JSON")

    async with faulty.server(texts) as server, Connection(server.url) as connection:
        connection.on_message(listen)
        await until(lambda: len(heard) == 2000)
    assert 1 <= len(warnings(caplog)) <= 5 * room_driver.MAX_COMPLAINTS


# ----------------------------------------------------------------------------------------------------------- the page


def test_the_page_of_bounds_is_what_the_product_says() -> None:
    """docs/bounds.md is made of bounds.py, which reads every number from the product: `python tests/bounds.py`."""
    assert bounds.PAGE.read_text() == bounds.page(), "docs/bounds.md is out of date: run python tests/bounds.py"


def test_every_bound_names_a_test_of_its_own() -> None:
    """No bound is only claimed."""
    for bound in bounds.BOUNDS:
        assert callable(globals().get(bound.test)), f"{bound.what}: there is no test {bound.test}"
