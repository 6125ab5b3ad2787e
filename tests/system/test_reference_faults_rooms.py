"""What the reference JavaScript client gets wrong about rooms: for each fault, that we do not have it.

The docstrings begin with the fault, in the words in which it was noted when it was seen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import tracemalloc

import pytest

from doubles import Notebook
from kit import client_of, now, session_of, until
from manual_server import Heard, ManualServer, joined, room_error
from reconnect_fsm import ClientStopped, JoinRefused, RetryPolicy, RoomFSM, RoomStatus
from reconnect_fsm._asyncio import room_session
from reconnect_fsm.loro_protocol import (
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    RoomErrorCode,
)
from reconnect_fsm.testing import EmbeddedServer

pytestmark = pytest.mark.virtual_time


async def test_a_join_in_flight_at_a_drop_does_not_hang(manual: ManualServer) -> None:
    """ "A join in flight at a drop hangs for ever": ours is sent again, and whoever waits gets the room."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        waiting = asyncio.ensure_future(room)
        peer = await manual.peer()
        await peer.next(JoinRequest)
        peer.drop()
        await (await manual.peer()).let_in()
        assert await waiting is room


async def test_leave_untracks(manual: ManualServer) -> None:
    """ "`leave()` does not untrack, the room is rejoined": after a reconnect nobody asks for a room that was left."""
    async with joined(manual) as (client, room, peer):
        await room.leave()
        await peer.next(Leave)
        peer.drop()
        await (await manual.peer()).hears_nothing_else()
        assert client.rooms == ()


async def test_close_leaves_no_join_hanging_and_tells_the_rooms(manual: ManualServer) -> None:
    """ "`close()` leaves queued joins hanging, tells joined rooms nothing": both hear of it, waiters and listeners."""
    async with joined(manual) as (client, room, peer):
        heard, heard_too = Heard(), Heard()
        room.on_status(heard)
        in_flight = client.join("in flight", Notebook(), on_status=heard_too)
        waiting = asyncio.ensure_future(in_flight)
        await peer.next(JoinRequest)
        await client.close()
        with pytest.raises(ClientStopped):
            await waiting
        assert (heard, heard_too) == (["disconnected"], ["connecting", "disconnected"])


async def test_close_leaves_no_queued_join_hanging() -> None:
    """ "`close()` while the server is down crashes the process": ours ends, and the joins that were queued hear it."""
    client = client_of("ws://127.0.0.1:1")
    waiting = [asyncio.ensure_future(client.join(f"room {number}", Notebook())) for number in range(3)]
    async with client:
        await asyncio.sleep(1)
    for each in waiting:
        with pytest.raises(ClientStopped):
            await each


async def test_eviction_shows_as_error(manual: ManualServer) -> None:
    """ "Eviction never shows as `error`": the status is error, the reason is the server's, and waiting raises it."""
    heard = Heard()
    async with joined(manual) as (_, room, peer):
        room.on_status(heard)
        await peer.send(room_error(RoomErrorCode.EVICTED, "you were evicted"))
        await until(lambda: heard == ["error"])
        with pytest.raises(JoinRefused, match="you were evicted"):
            await room


async def test_a_failing_token_provider_does_not_lose_the_room(manual: ManualServer) -> None:
    """ "A failing token provider loses the room": it is asked again, with backoff, and the room is joined after all."""
    failures = [OSError("down")] * 3

    async def token() -> bytes:
        if failures:
            raise failures.pop()
        return b"token"

    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), auth=token)
        assert (await (await manual.peer()).let_in()).auth == b"token"
        await room
        assert client.rooms == (room,)


async def test_version_unknown_is_no_loop(manual: ManualServer) -> None:
    """ "Repeated version_unknown: 11,280 joins/s": three joins in all, then the room is in error."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(alternative=b"other"))
        peer = await manual.peer()
        for _ in range(3):
            await peer.turn_away(JoinErrorCode.VERSION_UNKNOWN)
        await asyncio.sleep(3600)
        await peer.hears_nothing_else()
        assert room.status is RoomStatus.ERROR


async def test_rejoin_suggested_is_no_loop(manual: ManualServer) -> None:
    """ "rejoin_suggested: 441/s": a server that suggests it at every join gets one at once, then one per 30 s."""
    async with joined(manual) as (_, _, peer):
        began = now()
        for _ in range(10):
            await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
            await peer.let_in()
        assert now() - began >= 9 * 30 - 1


async def test_a_queued_join_carries_a_fresh_token(manual: ManualServer) -> None:
    """ "Queued joins carry a stale token": the function is asked when the request is sent, not when join is called."""
    issued = itertools.count()
    client = client_of(manual.url)
    client.join("r", Notebook(), auth=lambda: b"%d" % next(issued))
    await asyncio.sleep(60)
    assert next(issued) == 0  # nobody has asked for one yet
    async with client:
        assert (await (await manual.peer()).let_in()).auth == b"1"


async def test_a_join_does_not_bypass_the_backoff() -> None:
    """ "Join bypasses the backoff": joins while the client waits to reconnect are kept, and dial nothing."""
    async with EmbeddedServer() as server:
        server.refuse_upgrades(503)
        async with client_of(server.url, retry=RetryPolicy(base=10, jitter=0)) as client:
            await until(lambda: client.state == "waiting")
            attempts, state = server.stats.attempts, client.state
            for number in range(100):
                client.join(f"room {number}", Notebook())
            await asyncio.sleep(5)
            assert (server.stats.attempts, client.state) == (attempts, state)


async def test_a_join_has_a_timeout(manual: ManualServer) -> None:
    """ "No join timeout": a request that nobody answers is sent again, on the same connection."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        began = now()
        await peer.let_in()
        await room
        assert now() - began == pytest.approx(RoomFSM.join_timeout, abs=1)


async def test_a_fragment_header_allocates_nothing(manual: ManualServer) -> None:
    """ "A fragment header claiming 2³²−1 allocates 4.3 GB": what it claims is not believed, nor allocated."""
    largest = 2**32 - 1
    async with joined(manual) as (_, room, peer):
        tracemalloc.start()
        try:
            for batch_id, (count, size) in enumerate([(largest, largest), (1, largest), (4096, 2**24), (largest, 1)]):
                await peer.send(
                    DocUpdateFragmentHeader(CrdtType.ELO, "r", batch_id, count, size),
                    DocUpdateFragment(CrdtType.ELO, "r", batch_id, 0, b"x"),
                )
            await asyncio.sleep(60)  # the third is within the limits, so it has to time out
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4_000_000
        assert room.state == "resyncing"  # to get what was in the third


async def test_malformed_frames_are_not_silent(manual: ManualServer, caplog: pytest.LogCaptureFixture) -> None:
    """ "Malformed frames are silent": the log has a warning that says what is wrong, and where."""
    async with joined(manual) as (_, room, peer):
        await peer.send(b"%ELO\x01r\x03\x05")
        await peer.hears_nothing_else()
        assert room.status is RoomStatus.JOINED
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "dropped a malformed message of 8 bytes" in warning
    assert "DocUpdate.updates (byte 7): 5 updates announced" in warning


async def test_unacknowledged_batches_do_not_grow_without_bound(manual: ManualServer) -> None:
    """ "Unacked batches grow without bound": at the bound versions are compared, at most once in 30 s."""
    adaptor = Notebook()
    megabyte = bytes(1024 * 1024)
    async with joined(manual, adaptor) as (_, room, peer):
        for round_of_edits in range(3):
            while room.state == "joined":
                adaptor.edit(megabyte)
                await asyncio.sleep(0)
                assert session_of(room).unacked_bytes <= room_session.MAX_UNACKED_BYTES + len(megabyte)
            while not isinstance(message := await peer.inbox.get(), JoinRequest):
                assert not isinstance(message, DocUpdate)  # each is larger than a frame
            await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
            await until(lambda: room.state == "joined")
            assert session_of(room).unacked_bytes == 0, round_of_edits
