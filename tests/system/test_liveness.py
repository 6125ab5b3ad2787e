"""Liveness through the driver: pings, pongs, half-open connections, and `ping()` (LIVE-1, LIVE-2, OBS-3)."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import pytest

import faulty
import tls
from faulty import PING, PONG, Peer, Watch
from kit import until
from reconnect_fsm import ClientStopped, Connection, Keepalive, NotConnected, RetryPolicy

QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)
LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once lost, it waits
OFTEN = Keepalive(interval=0.05, timeout=0.1)
NO_PINGS = Keepalive(enabled=False)


# --------------------------------------------------------------------------------------------------- LIVE-1: the pings


@pytest.mark.virtual_time
async def test_live_1_a_text_ping_goes_out_periodically() -> None:
    """LIVE-1: while connected, the text frame ``ping`` goes out every 20 s, by default."""
    times: list[float] = []

    async def note(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            if await peer.receive() == (faulty.TEXT, b"ping"):
                times.append(asyncio.get_running_loop().time())
                peer.send("pong")

    async with faulty.server(note) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        await asyncio.sleep(101)
        assert times == pytest.approx([20, 40, 60, 80, 100], abs=1e-3)
        assert connection.status == "connected"
        assert server.connects == 1


@pytest.mark.virtual_time
async def test_live_1_no_pings_when_switched_off() -> None:
    """LIVE-1: with ``enabled=False`` nothing goes out, and silence is no reason to reconnect."""
    async with faulty.server(faulty.echo) as server, Connection(server.url, keepalive=NO_PINGS) as connection:
        await connection.wait_connected()
        await asyncio.sleep(3600)
        assert server.peer.frames == []
        assert connection.status == "connected"


@pytest.mark.virtual_time
async def test_live_1_pongs_are_no_messages() -> None:
    """LIVE-1: the answer to a ping is not delivered; an unasked ``pong`` is a message like any other."""
    messages: list[str | bytes] = []
    async with faulty.server(faulty.echo) as server, Connection(server.url) as connection:
        connection.on_message(messages.append)
        await connection.wait_connected()
        await asyncio.sleep(50)
        assert len(server.peer.frames) == 2
        assert messages == []
        server.peer.send("pong")
        await until(lambda: messages == ["pong"])


# ------------------------------------------------------------------------------------------------ LIVE-2: missing pongs


@pytest.mark.virtual_time
async def test_live_2_default_times() -> None:
    """LIVE-2: with the defaults a silent server is given up after exactly 20 s + 10 s."""
    async with faulty.server(faulty.deaf) as server, Connection(server.url, retry=LATER) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        await asyncio.sleep(29.9)
        assert connection.status == "connected"
        await asyncio.sleep(0.2)
        assert connection.status == "reconnecting"
        assert watch.steps[-1].event == "pong_missed"
        assert watch.times[-1] - server.times[0] == pytest.approx(30, abs=1e-3)
        assert "no answer to a ping within 10 s" in connection.reason


@pytest.mark.virtual_time
async def test_live_2_the_backoff_is_the_ordinary_one() -> None:
    """LIVE-2: after a missing pong come the ordinary backoff and a fresh connection."""
    retry = RetryPolicy(jitter=0.0)
    async with faulty.server(faulty.deaf, faulty.echo) as server, Connection(server.url, retry=retry) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        await asyncio.sleep(31)
        assert connection.status == "connected"
        assert watch.statuses == ["connected", "reconnecting", "connected"]
        assert watch.waited == pytest.approx([0.5], abs=1e-3)


async def test_live_2_half_open_on_a_real_socket() -> None:
    """LIVE-2: a peer that keeps TCP open and neither reads nor answers is noticed, and left for a fresh connection."""
    async with (
        faulty.server(faulty.deaf, faulty.echo) as server,
        Connection(server.url, retry=QUICK, keepalive=OFTEN, close_timeout=0.1) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: watch.states == ["connected", "waiting", "retrying", "connected"])
        opened, missed = watch.times[:2]
        assert watch.steps[1].event == "pong_missed"
        assert missed - opened >= OFTEN.interval + OFTEN.timeout - 0.01
        await asyncio.sleep(4 * (OFTEN.interval + OFTEN.timeout))
        assert server.connects == 2  # the second one is healthy


async def test_live_2_the_server_is_told_why() -> None:
    """LIVE-2: the close is controlled: a server that still reads sees a close frame with a liveness reason."""
    async with (
        faulty.server(faulty.ignore_pings, faulty.echo) as server,
        Connection(server.url, retry=QUICK, keepalive=OFTEN) as connection,
    ):
        await until(lambda: server.connects == 2)
        await server.peers[0].gone.wait()
        assert server.peers[0].closed_with == (1001, "ping_timeout: liveness check failed, no pong")
        await connection.wait_connected()


async def test_live_2_bytes_that_never_become_a_message_are_no_sign_of_life() -> None:
    """LIVE-2: a peer that drips single bytes of an endless frame is as dead as a silent one."""
    async with (
        faulty.server(faulty.drip) as server,
        Connection(server.url, retry=LATER, keepalive=OFTEN, close_timeout=0.05) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert "no answer to a ping" in connection.reason
        assert server.connects == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("opcode", [faulty.TEXT, faulty.BINARY, PING, PONG])
async def test_live_2_any_frame_proves_life(opcode: int) -> None:
    """LIVE-2: a server that answers no ping but sends anything else is alive; once it stops, it is given up."""

    async def talk(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(100):
            await asyncio.sleep(7)
            peer.send_frame(opcode, b"x")
        await peer.read_on()

    async with faulty.server(talk) as server, Connection(server.url, retry=LATER) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        await asyncio.sleep(705)
        assert connection.status == "connected"
        await asyncio.sleep(30)
        assert watch.steps[-1].event == "pong_missed"
        assert watch.times[-1] - server.times[0] <= 700 + 20 + 10


async def test_live_2_a_stall_of_our_own_loop_does_not_kill_a_healthy_connection() -> None:
    """LIVE-2: when our loop was blocked until after the deadline, the pong that has come meanwhile still counts."""
    stalls = 0

    async def stall(peer: Peer) -> None:
        nonlocal stalls
        await peer.upgrade()
        while True:
            if await peer.receive() == (faulty.TEXT, b"ping"):
                peer.send("pong")  # now it is in the client's socket
                if stalls < 3:
                    time.sleep(3 * OFTEN.timeout)  # noqa: ASYNC251  # that is the point
                    stalls += 1

    round_trips: list[float] = []
    async with (
        faulty.server(stall) as server,
        Connection(server.url, retry=LATER, keepalive=OFTEN, close_timeout=0.05) as connection,
    ):
        watch = Watch(connection)
        connection.on_latency(round_trips.append)
        await until(lambda: len(round_trips) >= 4)
        assert stalls == 3
        assert server.connects == 1
        assert watch.states == ["connected"]


async def test_live_2_a_stall_does_not_save_a_dead_connection() -> None:
    """LIVE-2: after a stall of our own there is one grace period, not more: what is dead ends all the same."""
    async with (
        faulty.server(faulty.deaf) as server,
        Connection(server.url, retry=LATER, keepalive=OFTEN, close_timeout=0.05) as connection,
    ):
        watch = Watch(connection)
        await connection.wait_connected()
        await asyncio.sleep(OFTEN.interval * 1.5)  # a ping is in flight
        time.sleep(2 * OFTEN.timeout)  # noqa: ASYNC251
        await until(lambda: connection.state == "waiting")
        assert watch.steps[-1].event == "pong_missed"
        assert server.connects == 1


@pytest.mark.virtual_time
async def test_live_2_a_ping_in_flight_belongs_to_its_socket() -> None:
    """LIVE-2: a ping that was in flight when the socket went does not count against the next one."""
    keepalive = Keepalive(interval=20.0, timeout=10.0)
    async with (
        faulty.server(faulty.deaf, faulty.echo) as server,
        Connection(server.url, keepalive=keepalive) as connection,
    ):
        await connection.wait_connected()
        await asyncio.sleep(25)  # the ping went out 5 s ago
        connection.set_online(False)
        await asyncio.sleep(1)
        connection.set_online(True)
        await connection.wait_connected()
        await asyncio.sleep(15)
        assert connection.status == "connected"
        assert server.peer.frames == []  # the next ping is due 20 s after the connection, not sooner
        await asyncio.sleep(100)
        assert server.connects == 2


# ------------------------------------------------------------------------------------------------------ OBS-3, ping()


@pytest.mark.virtual_time
async def test_obs_3_latency_callback() -> None:
    """OBS-3: the callback and `latency` are fed by the round trips of pings, until it is taken out."""

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await peer.receive()
            await asyncio.sleep(0.25)
            peer.send("pong")

    round_trips: list[float] = []
    async with faulty.server(slow) as server, Connection(server.url) as connection:
        unsubscribe = connection.on_latency(round_trips.append)
        assert connection.latency is None
        await connection.wait_connected()
        await asyncio.sleep(45)
        assert round_trips == pytest.approx([0.25, 0.25], abs=1e-3)
        assert connection.latency == round_trips[-1]
        unsubscribe()
        await asyncio.sleep(20)
        assert len(round_trips) == 2
        assert server.connects == 1


@pytest.mark.parametrize("keepalive", [Keepalive(), NO_PINGS], ids=["keepalive", "no keepalive"])
async def test_ping_returns_the_round_trip(keepalive: Keepalive) -> None:
    """`ping()` gives the round trip in seconds, with and without the periodic pings, and feeds OBS-3."""
    round_trips: list[float] = []
    async with faulty.server(faulty.echo) as server, Connection(server.url, keepalive=keepalive) as connection:
        connection.on_latency(round_trips.append)
        await connection.wait_connected()
        first, second = await connection.ping(), await connection.ping()
        assert round_trips == [first, second]
        assert min(round_trips) > 0
        assert connection.latency == second
        assert [payload for _, payload in server.peer.frames] == [b"ping", b"ping"]


@pytest.mark.virtual_time
async def test_ping_is_shared() -> None:
    """`ping()` while one is in flight, whoever sent it, waits for the same pong; nothing more is sent."""

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await peer.receive()
            await asyncio.sleep(2)
            peer.send("pong")

    async with faulty.server(slow) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        assert await asyncio.gather(*(connection.ping() for _ in range(5))) == pytest.approx([2] * 5, abs=1e-3)
        assert len(server.peer.frames) == 1
        await asyncio.sleep(21 - 2)  # the periodic one is on its way
        assert await connection.ping() == pytest.approx(2, abs=1e-3)
        assert len(server.peer.frames) == 2


@pytest.mark.virtual_time
async def test_ping_times_out_without_harm() -> None:
    """`ping(timeout)` raises TimeoutError; that alone does not end the connection."""

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await peer.receive()
            await asyncio.sleep(8)
            peer.send("pong")

    async with faulty.server(slow) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        with pytest.raises(TimeoutError):
            await connection.ping(timeout=5)
        assert connection.status == "connected"
        assert await connection.ping(timeout=5) == pytest.approx(8, abs=1e-3)  # still the first one
        await asyncio.sleep(100)
        assert server.connects == 1


@pytest.mark.virtual_time
async def test_live_2_a_ping_by_hand_is_also_a_test_of_life() -> None:
    """LIVE-2: when the pong to a `ping()` is missing for the keepalive's timeout, the connection is given up."""
    async with faulty.server(faulty.deaf) as server, Connection(server.url, retry=LATER) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        await asyncio.sleep(1)
        with pytest.raises(NotConnected, match="before the pong came"):
            await connection.ping(timeout=100)
        assert watch.steps[-1].event == "pong_missed"
        assert watch.times[-1] - server.times[0] == pytest.approx(11, abs=1e-3)


@pytest.mark.virtual_time
async def test_ping_timeout_without_keepalive_is_harmless() -> None:
    """`ping()` with the periodic pings switched off: unanswered, it times out and the connection stays."""
    async with faulty.server(faulty.ignore_pings) as server, Connection(server.url, keepalive=NO_PINGS) as connection:
        await connection.wait_connected()
        with pytest.raises(TimeoutError):
            await connection.ping()
        await asyncio.sleep(1000)
        assert connection.status == "connected"


async def test_ping_needs_a_connection() -> None:
    """`ping()` raises NotConnected, and says why, before the start and while waiting; after `close()` ClientStopped."""
    connection = Connection(f"ws://127.0.0.1:{faulty.unused_port()}/", retry=LATER)
    with pytest.raises(NotConnected, match="not started"):
        await connection.ping()
    connection.start()
    await until(lambda: connection.state == "waiting")
    with pytest.raises(NotConnected, match="reconnecting"):
        await connection.ping()
    await connection.close()
    with pytest.raises(ClientStopped, match="closed by this program"):
        await connection.ping()


async def test_ping_when_the_connection_is_lost_meanwhile() -> None:
    """`ping()` raises NotConnected at once when the connection goes before the pong."""

    async def go(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        peer.hang_up()

    async with faulty.server(go) as server, Connection(server.url, retry=LATER) as connection:
        await connection.wait_connected()
        results = await asyncio.gather(connection.ping(60), connection.ping(60), return_exceptions=True)
        assert [type(result) for result in results] == [NotConnected, NotConnected]


@pytest.mark.parametrize("how", ["close", "fatal"])
async def test_d_stop_ping_raises_client_stopped(how: str) -> None:
    """D-STOP: a `ping()` that waits when the client stops, by hand or by the server, raises ClientStopped."""

    async def refuse(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        if how == "fatal":
            peer.send_close(1008, "go away")
        await peer.read_on()

    async with faulty.server(refuse) as server, Connection(server.url, close_timeout=0.05) as connection:
        await connection.wait_connected()
        ping = asyncio.create_task(connection.ping(60))
        await until(lambda: server.peer.frames)
        if how == "close":
            connection.close()
        with pytest.raises(ClientStopped, match="closed by this program" if how == "close" else "go away"):
            await ping


async def test_a_cancelled_ping_disturbs_no_other() -> None:
    """A cancelled `ping()` harms neither the one that shares its pong nor the connection."""

    async def wait(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        await release.wait()
        peer.send("pong")
        await peer.answer_frames()

    release = asyncio.Event()
    async with faulty.server(wait) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        cancelled, other = (asyncio.create_task(connection.ping(60)) for _ in range(2))
        await until(lambda: server.peer.frames)
        cancelled.cancel()
        release.set()
        assert await other > 0
        assert cancelled.cancelled()
        assert await connection.ping() > 0


async def test_ok_2_missing_pongs_and_half_open_links_recover() -> None:
    """OK-2: whatever way the far end falls silent, the client is connected again by itself."""
    async with (
        faulty.server(faulty.deaf, faulty.ignore_pings, faulty.drip, faulty.echo) as server,
        Connection(server.url, retry=QUICK, keepalive=OFTEN, close_timeout=0.05) as connection,
    ):
        await until(lambda: server.connects == 4 and connection.status == "connected")
        assert await connection.ping() > 0


async def test_live_2_a_slow_uplink_is_not_dead() -> None:
    """LIVE-2: pings overtake what waits to be written, and a write that was blocked and went on proves life."""

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        await peer.read_slowly(16_000_000, every=0.01)
        await peer.answer_frames()

    quick = Keepalive(interval=0.2, timeout=0.4)
    async with faulty.server(slow) as server, Connection(server.url, keepalive=quick, close_timeout=0.2) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        for _ in range(120):
            await connection.send(b"x" * 200_000)
        assert watch.states == ["connected"]
        assert server.connects == 1


# ------------------------------------------------------------------------------- servers that talk, and read or do not


async def slow_reader(peer: Peer) -> None:
    """Talks all the time, and reads steadily, but far more slowly than it is written to."""
    await peer.upgrade()
    while True:
        peer.send("talk")
        await peer.sip(20_000)
        await asyncio.sleep(0.02)


async def deaf_talker(peer: Peer) -> None:
    """Talks all the time, and reads nothing."""
    await peer.upgrade()
    peer.freeze()
    while True:
        peer.send("talk")
        await peer.drain()
        await asyncio.sleep(0.02)


@pytest.fixture(params=["ws", "wss"])
def contexts(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """For the server and for the client."""
    if request.param == "ws":
        return None, None
    return tls.contexts()


@pytest.mark.parametrize("reads", [True, False])
async def test_live_2_a_slow_reader_is_alive_and_a_deaf_talker_is_not(
    contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None], reads: bool
) -> None:
    """LIVE-2: what counts is whether the other end takes what we say; the kernel tells us, ever so slow as it is."""
    server_side, client_side = contexts
    options: dict[str, Any] = {} if client_side is None else {"ssl": client_side}
    keepalive = Keepalive(interval=1.0, timeout=2.0)  # a busy machine makes pauses of its own
    async with (
        faulty.server(slow_reader if reads else deaf_talker, ssl=server_side) as server,
        Connection(server.url, keepalive=keepalive, close_timeout=0.1, **options) as connection,
    ):
        watch = Watch(connection)
        await connection.wait_connected()

        async def upload() -> None:
            while True:
                await connection.send(bytes(256 * 1024))

        uploading = asyncio.create_task(upload())
        if reads:
            await asyncio.sleep(2 * (keepalive.interval + keepalive.timeout))
            assert connection.status == "connected"
            assert not uploading.done()  # there was always something that waited
            uploading.cancel()
        else:
            await until(lambda: any("read nothing" in reason for reason in watch.reasons))
        with pytest.raises((asyncio.CancelledError, NotConnected)):
            await uploading
