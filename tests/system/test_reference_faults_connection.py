"""What the reference JavaScript client gets wrong about its connection, and we do not: one test for each fault.

The quoted lines are the faults as they were found by running it (FACTS.md). Those of rooms have a file of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

import faulty
from faulty import Peer, Watch
from kit import now, until
from reconnect_fsm import ClientStatus, Connection, Keepalive, RetryPolicy

EXACT = RetryPolicy(jitter=0.0)
LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)
NOBODY = "ws://127.0.0.1:1/"  # under virtual time, where only our own servers are

pytestmark = pytest.mark.virtual_time


def lose(peer: Peer) -> Awaitable[None]:
    return faulty.accept_then_close(1012)(peer)


async def test_reconnecting_and_error_are_statuses() -> None:
    """Fault: "No `reconnecting`/`error` status"."""
    async with faulty.server(lose) as server:
        urls = [server.url, "no url"]
        connection = Connection(lambda: urls.pop(0))
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(5)
        assert watch.statuses == ["connecting", "connected", "reconnecting", "error"]
        assert connection.status is ClientStatus.ERROR
        await connection.close()


async def test_waits_at_the_cap_are_spread() -> None:
    """Fault: "from the 7th attempt every client waits exactly 15.000 s"."""
    waits: list[float] = []
    for _ in range(5):
        async with Connection(NOBODY) as connection:
            watch = Watch(connection)
            await asyncio.sleep(300)
            waits += watch.waits[6:]
    assert len(waits) > 50
    assert len(set(waits)) == len(waits)
    assert min(waits) < 10.5
    assert 13.5 < max(waits) <= 15


async def test_the_handshake_has_a_deadline() -> None:
    """Fault: "no handshake timeout"."""
    async with (
        faulty.server(faulty.never_answer, faulty.echo) as server,
        Connection(server.url, retry=EXACT) as connection,
    ):
        await asyncio.sleep(10.6)
        assert connection.status == "connected"
        assert server.connects == 2


async def test_half_open_is_noticed_in_time() -> None:
    """Fault: "half-open noticed after 70–120 s, then 30 s more “connected”"."""
    async with faulty.server(faulty.deaf) as server, Connection(server.url, retry=LATER) as connection:
        watch = Watch(connection)
        await asyncio.sleep(29.99)
        assert connection.status == "connected"
        await asyncio.sleep(0.02)
        assert connection.status == "reconnecting"
        assert watch.times[-1] - server.times[0] == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_http_refusals_stop_it(status: int) -> None:
    """Fault: "401/403/404 retried for ever".

    401 and 403 are fatal; a 404 may be a server that is being deployed, so it backs off (D-HTTP), and a policy may
    call it fatal.
    """
    retry = RetryPolicy(fatal_http_statuses={401, 403, 404}) if status == 404 else RetryPolicy()
    async with faulty.server(faulty.answer(status)) as server, Connection(server.url, retry=retry) as connection:
        await asyncio.sleep(3600)
        assert connection.status == "disconnected"
        assert server.connects == 1


async def test_a_server_that_accepts_and_closes_is_not_hammered() -> None:
    """Fault: "an accept-then-close server resets the backoff each time"."""
    async with faulty.server(lose) as server, Connection(server.url, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep(60)
        assert watch.waits[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0]
        assert server.connects == 8


async def test_online_resets_the_backoff() -> None:
    """Fault: "`online` does not reset the backoff"."""
    async with Connection(NOBODY, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep(20)
        assert watch.waits[-1] == 15.0
        connection.set_online(False)
        connection.set_online(True)
        await asyncio.sleep(0.1)
        assert watch.waits[-1] == 0.5


async def test_retry_now_on_a_half_open_socket_dials_afresh() -> None:
    """Fault: "`retryNow()` on a half-open socket does nothing"."""
    async with faulty.server(faulty.deaf, faulty.echo) as server, Connection(server.url, retry=LATER) as connection:
        await connection.wait_connected()
        await asyncio.sleep(5)
        start = now()
        await connection.retry_now()
        assert now() - start < 0.01
        assert server.connects == 2
        assert await connection.ping() < 0.01


async def test_a_ping_in_flight_at_offline_is_forgotten() -> None:
    """Fault: "a ping in flight at `offline` kills the next connection"."""
    keepalive = Keepalive(interval=20.0, timeout=10.0)
    async with (
        faulty.server(faulty.deaf, faulty.echo) as server,
        Connection(server.url, keepalive=keepalive) as connection,
    ):
        await asyncio.sleep(21)
        connection.set_online(False)
        connection.set_online(True)
        await connection.wait_connected()
        watch = Watch(connection)
        await asyncio.sleep(300)
        assert watch.steps == []
        assert server.connects == 2


async def test_a_failing_token_provider_is_a_failed_attempt() -> None:
    """Fault: "a failing token provider loses the room"; here: what the url function raises loses nothing."""
    failures = [LookupError(), OSError(), RuntimeError()]

    async def url() -> str:
        if failures:
            raise failures.pop()
        return server.url

    async with faulty.server() as server, Connection(url, retry=EXACT) as connection:
        watch = Watch(connection)
        await connection.wait_connected()
        assert watch.waits == [0.5, 1.0, 2.0]


async def test_malformed_frames_are_told() -> None:
    """Fault: "malformed frames are silent"; here: those that break the WebSocket protocol."""

    async def babble(peer: Peer) -> None:
        await peer.upgrade()
        peer.write(b"\xf3\x00")
        await peer.wait_gone()

    async with faulty.server(babble) as server, Connection(server.url, retry=LATER) as connection:
        await until(lambda: connection.state == "waiting")
        assert connection.reason.startswith("the server broke the WebSocket protocol: ")
        assert server.connects == 1


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.5])
async def test_close_while_the_server_is_down_is_a_close(moment: float) -> None:
    """Fault: "`close()` while the server is down crashes the process"."""
    connection = Connection(NOBODY, retry=EXACT)
    connection.start()
    await asyncio.sleep(moment)
    await connection.close()
    assert connection.status == "disconnected"
