"""Rooms: each clause about joining, rejoining, leaving and syncing, against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import loro
import pytest

from documents import new_doc, text, write
from doubles import Notebook
from kit import client_of, now, session_of, until
from manual_server import Heard, ManualServer, Peer, joined, manual_server, room_error
from reconnect_fsm import (
    Client,
    ClientStatus,
    ClientStopped,
    JoinRefused,
    RetryPolicy,
    Room,
    RoomFSM,
    RoomLeft,
    RoomStatus,
    StatusChange,
    Unauthorized,
    UpdatesRefused,
)
from reconnect_fsm._asyncio import room_driver, room_session
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm._asyncio.room_driver import Auth
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.effects import Effect
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
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
    Permission,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    encode,
    split,
)
from reconnect_fsm.machine import event, ignore, row, state
from reconnect_fsm.recorder import replay
from reconnect_fsm.testing import EmbeddedServer, leaks
from reconnect_fsm.testing.virtual_time import run

pytestmark = pytest.mark.virtual_time

PATIENCE = 120.0  # seconds of virtual time for what must come


# ------------------------------------------------------------------------------------------------------------- helpers


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer() as server:
        yield server


# ---------------------------------------------------------------------------------------------------------------- JOIN


async def test_join_1_before_start_is_kept_and_sent_once_connected(server: EmbeddedServer) -> None:
    """JOIN-1: a room joined on a client that was not even started is joined as soon as it is."""
    client = client_of(server.url)
    room = client.join("r", Notebook())
    assert (room.status, client.rooms) == (RoomStatus.CONNECTING, (room,))
    async with client:
        assert await room is room
        assert room.status.value == "joined"
    assert server.stats.joins == 1


async def test_join_1_before_the_socket_is_open_is_kept_and_sent_once_connected(server: EmbeddedServer) -> None:
    """JOIN-1: while the server is down a join does not throw; it is sent when the server is there."""
    await server.stop()
    async with client_of(server.url) as client:
        await until(lambda: client.status is ClientStatus.RECONNECTING)
        room = client.join("r", Notebook())
        await asyncio.sleep(1)
        assert room.state == "queued"
        await server.start()
        await room
    assert server.stats.joins == 1


async def test_join_1_while_connected_is_sent_at_once(manual: ManualServer) -> None:
    """JOIN-1: and with a connection there is no wait at all."""
    async with client_of(manual.url) as client:
        peer = await manual.peer()
        await client.wait_connected()
        began = now()
        room = client.join("r", Notebook())
        assert room.state == "joining"
        await peer.let_in()
        await room
        assert now() - began < 0.1


async def test_join_2_there_is_no_bound_on_what_is_kept() -> None:
    """JOIN-2: thousands of joins of a client that never connects are all kept, and none throws."""
    client = client_of("ws://127.0.0.1:1")
    kept = [client.join(f"room {number}", Notebook()) for number in range(5000)]
    assert client.rooms == tuple(kept)
    assert {room.state for room in kept} == {"queued"}


async def test_join_3_the_status_callback_hears_of_every_status(server: EmbeddedServer) -> None:
    """JOIN-3: connecting, joined, reconnecting, disconnected and error, each when it happens, and in order."""
    refused = False
    server = EmbeddedServer(authenticate=lambda *_: None if refused else "write")
    heard = Heard()
    async with server, client_of(server.url) as client:
        room = client.join("r", Notebook(), on_status=heard)
        await room
        server.reset_all()
        await until(lambda: room.status is RoomStatus.RECONNECTING)
        await room
        await client.close()
        assert heard == ["connecting", "joined", "reconnecting", "joined", "disconnected"]
        refused = True
        await client.connect()
        with pytest.raises(JoinRefused):
            await room
    assert heard[5:] == ["connecting", "error"]


async def test_join_3_a_change_says_why_and_which_attempt(manual: ManualServer) -> None:
    """JOIN-3: a StatusChange holds the words of the server, one line and short."""
    changes: list[StatusChange[RoomStatus]] = []
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), on_status=changes.append)
        await (await manual.peer()).turn_away(JoinErrorCode.APP_ERROR, "too\nlate " + "x" * 999, app_code="E42")
        with pytest.raises(JoinRefused) as caught:
            await room
    assert (caught.value.code, caught.value.app_code) == (JoinErrorCode.APP_ERROR, "E42")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) == 200
    assert changes[-1].new is RoomStatus.ERROR
    assert changes[-1].reason == room.reason == str(caught.value)


# -------------------------------------------------------------------------------------------------------------- REJOIN


async def test_rejoin_1_rooms_are_tracked_with_id_type_and_auth(manual: ManualServer) -> None:
    """REJOIN-1: the same id may be joined once for each CRDT type; each is asked for with its own auth, every time."""
    other = Notebook()
    other.crdt_type = CrdtType.FLOCK
    async with client_of(manual.url) as client:
        first = client.join("r", Notebook(), auth=b"one")
        second = client.join("r", other, auth=b"two")
        assert client.rooms == (first, second)
        assert [(room.id, room.crdt_type) for room in client.rooms] == [("r", CrdtType.ELO), ("r", CrdtType.FLOCK)]
        for _ in range(2):
            peer = await manual.peer()
            asked = [await peer.let_in(), await peer.let_in()]
            assert [(each.crdt, each.auth, each.version) for each in asked] == [
                (CrdtType.ELO, b"one", b"current"),
                (CrdtType.FLOCK, b"two", b"current"),
            ]
            await asyncio.gather(first, second)
            peer.drop()


async def test_rejoin_2_every_tracked_room_is_asked_for_again(server: EmbeddedServer) -> None:
    """REJOIN-2: after each reconnect all rooms are joined again, be it after a close frame or without one."""
    async with client_of(server.url) as client:
        tracked = [client.join(f"room {number}", Notebook()) for number in range(300)]
        await asyncio.gather(*tracked)
        server.reset_all()
        await until(lambda: all(room.status is RoomStatus.RECONNECTING for room in tracked))
        await asyncio.gather(*tracked)
        await server.close_all(1001, "restart")
        await until(lambda: server.stats.joins == 900)
        await asyncio.gather(*tracked)


async def test_rejoin_3_a_fatal_rejoin_leads_to_error_and_out_of_the_tracked_set(manual: ManualServer) -> None:
    """REJOIN-3 OK-4: a refused rejoin shows as error, the room is dropped, and never asked for again."""
    heard = Heard()
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        room.on_status(heard)
        peer.drop()
        peer = await manual.peer()
        await peer.turn_away(JoinErrorCode.AUTH_FAILED, "expired")
        await until(lambda: room.status is RoomStatus.ERROR)
        assert heard == ["reconnecting", "error"]
        assert client.rooms == ()
        assert not adaptor.attached
        with pytest.raises(JoinRefused, match="expired"):
            await room  # awaiting a room that is in error raises at once
        with pytest.raises(JoinRefused, match="expired"):
            await room.synced()
        peer.drop()
        await (await manual.peer()).hears_nothing_else()


async def test_ok_4_queued_joins_complete_once_connected_and_failed_ones_show_as_error(
    manual: ManualServer,
) -> None:
    """OK-4: of two rooms that were kept, one is let in and one refused; each hears its own outcome."""
    client = client_of(manual.url)
    good, bad = client.join("good", Notebook()), client.join("bad", Notebook())
    async with client:
        peer = await manual.peer()
        await peer.let_in()
        await peer.turn_away(JoinErrorCode.UNKNOWN, "nope")
        assert await good is good
        with pytest.raises(JoinRefused, match="nope"):
            await bad
        assert client.rooms == (good,)


# --------------------------------------------------------------------------------------------------- OBS-2, D-LISTEN


async def test_obs_2_every_listener_of_a_room_hears_of_it_until_taken_out(server: EmbeddedServer) -> None:
    """OBS-2 D-LISTEN: several listeners are told in order; one that raises harms none; one taken out hears no more."""
    told: list[str] = []

    def shout(change: StatusChange[RoomStatus]) -> None:
        told.append("shout")
        raise RuntimeError("a fault of the listener's own")

    async with client_of(server.url) as client:
        room = client.join("r", Notebook())
        room.on_status(shout)
        room.on_status(lambda _: told.append("second"))
        remove = room.on_status(lambda _: told.append("third"))
        await room
        assert told == ["shout", "second", "third"]
        remove()
        remove()  # twice is harmless
        await room.leave()
        assert told[3:] == ["shout", "second"]


async def test_d_listen_a_coroutine_function_is_refused_as_listener(server: EmbeddedServer) -> None:
    """D-LISTEN: nobody would await it, so it is an error at once, and nothing is joined."""

    async def listener(change: StatusChange[RoomStatus]) -> None: ...

    client = client_of(server.url)
    adaptor = Notebook()
    with pytest.raises(TypeError, match="plain function"):
        client.join("r", adaptor, on_status=listener)
    assert (client.rooms, adaptor.attached) == ((), False)
    with pytest.raises(TypeError, match="takes a function"):
        client.join("r", adaptor).on_status(b"no function")  # type: ignore[arg-type]


async def test_d_listen_a_listener_may_join_leave_and_close(server: EmbeddedServer) -> None:
    """D-LISTEN: a listener that joins, leaves or closes runs after the transition is complete, so all of it is safe."""
    heard = Heard()
    async with client_of(server.url) as client:

        def once_joined(change: StatusChange[RoomStatus]) -> None:
            if change.new is RoomStatus.JOINED:
                first.leave()
                client.join("second", Notebook(), on_status=lambda change: second_heard(change))

        def second_heard(change: StatusChange[RoomStatus]) -> None:
            heard(change)
            if change.new is RoomStatus.JOINED:
                client.close()

        first = client.join("first", Notebook(), on_status=once_joined)
        await until(lambda: client.status is ClientStatus.DISCONNECTED)
        assert heard == ["connecting", "joined", "disconnected"]
        assert [room.id for room in client.rooms] == ["second"]
        assert first.state == "left"


# -------------------------------------------------------------------------------------------------------------- D-STOP


async def test_d_stop_a_close_raises_in_those_who_wait_and_the_room_stays(manual: ManualServer) -> None:
    """D-STOP: `await client.join` and `synced` raise ClientStopped; the room is kept, and joined after connect()."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        waiting = [asyncio.ensure_future(room), asyncio.create_task(room.synced())]
        await asyncio.sleep(0)
        await client.close()
        for each in waiting:
            with pytest.raises(ClientStopped, match="closed by this program"):
                await each
        assert (room.status, client.rooms) == (RoomStatus.DISCONNECTED, (room,))
        for begun_now in (room, room.synced(), room.resync(), client.join("another", Notebook())):
            with pytest.raises(ClientStopped, match="closed by this program"):
                await begun_now
        client.connect()
        await (await manual.peer()).let_in()
        await room
        assert room.status is RoomStatus.JOINED


async def test_d_stop_a_fatal_close_and_used_up_attempts_raise_too(manual: ManualServer) -> None:
    """D-STOP: whatever stops the client, nobody is left waiting."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        await (await manual.peer()).close(1008)
        with pytest.raises(ClientStopped, match="1008"):
            await room
        assert room.status.value == "disconnected"
    async with client_of("ws://127.0.0.1:1", retry=RetryPolicy(max_attempts=0)) as client:
        with pytest.raises(ClientStopped):
            await client.join("r", Notebook())


async def test_d_stop_a_joined_room_is_joined_again_after_connect(manual: ManualServer) -> None:
    """D-STOP: a room that was joined when the client stopped goes through connecting, and keeps its edits for then."""
    adaptor, heard = Notebook(), Heard()
    async with joined(manual, adaptor) as (client, room, _):
        room.on_status(heard)
        await client.close()
        assert room.permission is None
        adaptor.edit(b"made while stopped")
        adaptor.missing = (b"made while stopped",)
        client.connect()
        peer = await manual.peer()
        await peer.let_in()
        assert (await peer.next(DocUpdate)).updates == (b"made while stopped",)
    assert heard == ["disconnected", "connecting", "joined", "disconnected"]


async def test_d_stop_a_join_on_a_stopped_client_is_kept(manual: ManualServer) -> None:
    """D-STOP JOIN-1: joined after a close, it waits for the next start."""
    async with client_of(manual.url) as client:
        await client.close()
        room = client.join("r", Notebook())
        assert room.status is RoomStatus.CONNECTING
        client.retry_now()
        await (await manual.peer()).let_in()
        await room


async def test_d_stop_reaches_who_waits_though_the_room_was_joined_a_moment_before(manual: ManualServer) -> None:
    """D-STOP: a listener of `joined` that closes the client leaves nobody waiting for the join."""
    async with client_of(manual.url) as client:

        def close(change: StatusChange[RoomStatus]) -> None:
            if change.new is RoomStatus.JOINED:
                client.close()

        room = client.join("r", Notebook(), on_status=close)
        waiting = asyncio.ensure_future(room)
        await (await manual.peer()).let_in()
        async with asyncio.timeout(60):
            with suppress(ClientStopped):  # or not: it was joined, for a moment
                await waiting
        assert room.status is RoomStatus.DISCONNECTED


# ----------------------------------------------------------------------------------------------------------- D-TIMEOUT


async def test_d_timeout_a_join_without_an_answer_is_asked_again_with_a_backoff_of_its_own(
    manual: ManualServer,
) -> None:
    """D-TIMEOUT: 10 s for the answer, then the policy's delays; the connection stays, the room stays `connecting`."""
    heard, asked = Heard(), []
    async with client_of(manual.url, retry=RetryPolicy(jitter=0)) as client:
        client.join("r", Notebook(), on_status=heard)
        peer = await manual.peer()
        for _ in range(8):
            await peer.next(JoinRequest)
            asked.append(now())
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert gaps == pytest.approx([10.5, 11, 12, 14, 18, 25, 25], abs=0.01)
        assert client.status is ClientStatus.CONNECTED
        assert heard == ["connecting"]


async def test_d_timeout_the_same_holds_for_a_rejoin(manual: ManualServer) -> None:
    """D-TIMEOUT: a rejoin that is not answered is asked again as well, and the backoff begins anew once joined."""
    heard = Heard()
    async with joined(manual, retry=RetryPolicy(jitter=0)) as (_, room, peer):
        room.on_status(heard)
        for _ in range(2):
            peer.drop()
            peer = await manual.peer()
            await peer.next(JoinRequest)
            asked = now()
            await peer.let_in()
            assert now() - asked == pytest.approx(10.5, abs=0.01)
            await room
    assert heard == ["reconnecting", "joined"] * 2 + ["disconnected"]


@pytest.mark.parametrize("state", ["join_delayed", "rejoin_delayed"])
async def test_d_timeout_a_late_answer_is_accepted(manual: ManualServer, state: str) -> None:
    """D-TIMEOUT: an answer that comes while the room waits to ask again counts, and it is not asked again."""
    async with client_of(manual.url, retry=RetryPolicy(base=5, jitter=0)) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        if state == "rejoin_delayed":
            await peer.let_in()
            await room
            peer.drop()
            peer = await manual.peer()
        await peer.next(JoinRequest)
        await asyncio.sleep(11)
        assert room.state == state
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        await room
        await asyncio.sleep(60)
        await peer.hears_nothing_else()


async def test_d_timeout_a_second_answer_does_no_harm(manual: ManualServer) -> None:
    """D-TIMEOUT: when both requests are answered after all, the second answer changes nothing."""
    heard = Heard()
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), on_status=heard)
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await peer.let_in()
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        await peer.hears_nothing_else()
        assert (heard, room.status) == (["connecting", "joined"], RoomStatus.JOINED)


async def test_d_timeout_a_late_refusal_counts(manual: ManualServer) -> None:
    """D-TIMEOUT REJOIN-3: so does a refusal that comes while the room waits to ask again."""
    async with client_of(manual.url, retry=RetryPolicy(base=5, jitter=0)) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await asyncio.sleep(11)
        await peer.send(JoinError(CrdtType.ELO, "r", JoinErrorCode.AUTH_FAILED, "late"))
        with pytest.raises(JoinRefused, match="late"):
            await room


# ------------------------------------------------------------------------------------------------------------ D-INTENT


@pytest.mark.parametrize("kind", ["plain", "async", "future"])
async def test_d_intent_the_auth_function_is_asked_at_each_join(manual: ManualServer, kind: str) -> None:
    """D-INTENT: a fresh token for the join and for every rejoin, from a plain function, an async one, or a future."""
    count = itertools.count(1)

    def plain() -> bytes:
        return b"token %d" % next(count)

    async def coroutine() -> bytes:
        await asyncio.sleep(0.5)
        return plain()

    def future() -> asyncio.Future[bytes]:
        given: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        given.set_result(plain())
        return given

    async with client_of(manual.url) as client:
        functions: dict[str, Auth] = {"plain": plain, "async": coroutine, "future": future}
        room = client.join("r", Notebook(), auth=functions[kind])
        for number in (1, 2, 3):
            peer = await manual.peer()
            assert (await peer.let_in()).auth == b"token %d" % number
            await room
            peer.drop()


async def test_d_intent_the_token_of_a_queued_join_is_not_stale(server: EmbeddedServer) -> None:
    """D-INTENT: what is queued is the intent; the token is taken when the request is sent."""
    token, seen = [b"old"], []

    def authenticate(room: str, crdt: CrdtType, auth: bytes) -> Permission:
        seen.append(auth)
        return "write"

    await server.stop()
    server = EmbeddedServer(port=server.port, authenticate=authenticate)
    async with client_of(server.url) as client:
        room = client.join("r", Notebook(), auth=lambda: token[0])
        await asyncio.sleep(1)
        token[0] = b"new"
        async with server:
            await room
            await client.close()
    assert seen == [b"new"]


async def test_d_intent_a_request_in_flight_at_a_drop_is_sent_again(manual: ManualServer) -> None:
    """D-INTENT: the answer never came, so the next connection begins with the same question."""
    heard = Heard()
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), on_status=heard)
        for _ in range(3):
            peer = await manual.peer()
            await peer.next(JoinRequest)
            peer.drop()
        await (await manual.peer()).let_in()
        await room
    assert heard == ["connecting", "joined", "disconnected"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("rejoining", [False, True])
async def test_d_intent_an_auth_function_that_raises_is_tried_again_with_backoff(
    manual: ManualServer, is_async: bool, rejoining: bool
) -> None:
    """D-INTENT: the token service being down costs waits, not the room."""
    failing, asked = [not rejoining], []

    def plain() -> bytes:
        asked.append(now())
        if failing[0]:
            raise OSError("the token service is down")
        return b"token"

    async def coroutine() -> bytes:
        return plain()

    async with client_of(manual.url, retry=RetryPolicy(jitter=0)) as client:
        room = client.join("r", Notebook(), auth=coroutine if is_async else plain)
        peer = await manual.peer()
        if rejoining:
            await peer.let_in()
            await room
            failing[0] = True
            asked.clear()
            peer.drop()
            peer = await manual.peer()
        await asyncio.sleep(8)
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert gaps == pytest.approx([0.5, 1, 2, 4], abs=0.01)
        assert room.state == ("rejoin_delayed" if rejoining else "join_delayed")
        assert room.reason == "the auth function raised OSError"
        failing[0] = False
        assert (await peer.let_in()).auth == b"token"
        await room


@pytest.mark.parametrize("is_async", [False, True])
async def test_d_intent_an_auth_function_that_asks_a_cancelled_task_is_tried_again(
    manual: ManualServer, is_async: bool
) -> None:
    """D-INTENT: the CancelledError is that of the function's own helper: no room and no connection ends of it."""
    helper: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    helper.cancel()
    answers: list[Callable[[], bytes]] = [lambda: b"token", helper.result]

    def plain() -> bytes:
        return answers.pop()()

    async def coroutine() -> bytes:
        return plain()

    async with client_of(manual.url) as client:
        peer = await manual.peer()
        await client.wait_connected()
        room = client.join("r", Notebook(), auth=coroutine if is_async else plain)
        assert (await peer.let_in()).auth == b"token"
        await room


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("rejoining", [False, True])
async def test_d_intent_unauthorized_puts_the_room_in_error(
    manual: ManualServer, is_async: bool, rejoining: bool
) -> None:
    """D-INTENT: asking again would be of no use, says the token provider; nothing reaches the server."""
    given = [b"token"] if rejoining else []

    def plain() -> bytes:
        if not given:
            raise Unauthorized("logged out")
        return given.pop()

    async def coroutine() -> bytes:
        return plain()

    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), auth=coroutine if is_async else plain)
        peer = await manual.peer()
        if rejoining:
            await peer.let_in()
            await room
            peer.drop()
            peer = await manual.peer()
        with pytest.raises(JoinRefused, match="Unauthorized") as caught:
            await room
        assert caught.value.code is None
        assert (room.status, client.rooms) == (RoomStatus.ERROR, ())
        await asyncio.sleep(30)
        await peer.hears_nothing_else()


@pytest.mark.parametrize("is_async", [False, True])
async def test_d_intent_an_auth_function_that_returns_no_bytes_is_a_clear_error(
    manual: ManualServer, is_async: bool
) -> None:
    """D-INTENT: it will return a str next time too, so the room goes to error and the reason says what is wrong."""

    def plain() -> Any:
        return "a str"

    async def coroutine() -> Any:
        return "a str"

    async with client_of(manual.url) as client:
        with pytest.raises(JoinRefused, match="the auth function returned str instead of bytes"):
            await client.join("r", Notebook(), auth=coroutine if is_async else plain)
        assert client.rooms == ()


async def test_d_intent_a_hanging_auth_function_is_bounded_cancelled_and_asked_again(manual: ManualServer) -> None:
    """D-INTENT D-TIMEOUT: a coroutine that never returns is cancelled with the join's deadline, then asked anew."""
    cancelled: list[float] = []

    async def hang() -> bytes:
        try:
            if len(cancelled) < 2:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(now())
            raise
        return b"at last"

    async with client_of(manual.url, retry=RetryPolicy(jitter=0)) as client:
        room = client.join("r", Notebook(), auth=hang)
        peer = await manual.peer()
        began = now()
        assert (await peer.let_in()).auth == b"at last"
        assert [when - began for when in cancelled] == pytest.approx([10, 20.5], abs=0.01)
        await room


@pytest.mark.parametrize("end", ["leave", "close", "drop"])
async def test_d_intent_a_hanging_auth_function_ends_with_what_it_was_for(manual: ManualServer, end: str) -> None:
    """D-INTENT: nobody waits for credentials of a room left, a client closed or a connection lost: no task is left."""
    ended = asyncio.Event()

    async def hang() -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with client_of(manual.url, retry=RetryPolicy(base=1, jitter=0)) as client:
        room = client.join("r", Notebook(), auth=hang)
        peer = await manual.peer()
        await client.wait_connected()
        await asyncio.sleep(1)
        if end == "leave":
            room.leave()
        elif end == "close":
            await client.close()
        else:
            peer.drop()
        async with asyncio.timeout(0.5):
            await ended.wait()
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "credentials" in task.get_name()]


async def test_d_intent_credentials_that_come_too_late_are_not_used(manual: ManualServer) -> None:
    """D-INTENT: a function that takes no notice of being cancelled cannot slip a stale token, or a failure, in."""
    answers: list[bytes | Exception] = [b"stale", OSError("stale too"), b"fresh"]

    async def stubborn() -> bytes:
        answer = answers.pop(0)
        if answers:
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                await asyncio.sleep(2)  # still 'busy'
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with client_of(manual.url, retry=RetryPolicy(base=1, jitter=0)) as client:
        room = client.join("r", Notebook(), auth=stubborn)
        peer = await manual.peer()
        assert (await peer.let_in()).auth == b"fresh"
        await room
        await asyncio.sleep(30)
        await peer.hears_nothing_else()


async def test_d_intent_a_join_that_is_left_at_once_does_not_warn(
    manual: ManualServer, recwarn: pytest.WarningsRecorder
) -> None:
    """D-INTENT D-LEAVE: an async auth function that never got to run leaves no "coroutine was never awaited" behind."""

    async def token() -> bytes:
        return b"token"

    async with client_of(manual.url) as client:
        await manual.peer()
        await client.wait_connected()
        client.join("r", Notebook(), auth=token).leave()
        await asyncio.sleep(1)
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def test_d_intent_auth_that_no_frame_can_hold_is_blamed_on_the_auth(manual: ManualServer) -> None:
    """D-INTENT: credentials too large for a frame are a clear error, and not the adaptor's fault."""
    async with client_of(manual.url) as client:
        with pytest.raises((JoinRefused, ValueError)) as caught:
            await client.join("r", Notebook(), auth=b"x" * 300_000)
        assert "adaptor" not in str(caught.value)
        assert client.rooms == ()


# ------------------------------------------------------------------------------------------------------------ D-DEDUPE


async def test_d_dedupe_a_second_join_returns_the_same_room_and_adds_its_callback(manual: ManualServer) -> None:
    """D-DEDUPE: in every state; nothing more is sent, and both callbacks hear what follows."""
    first, second = Heard(), Heard()
    adaptor = Notebook()
    async with client_of(manual.url) as client:
        room = client.join("r", adaptor, on_status=first)
        assert client.join("r", adaptor, on_status=second) is room  # queued
        peer = await manual.peer()
        await peer.next(JoinRequest)
        assert client.join("r", adaptor) is room  # joining
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        assert await client.join("r", adaptor) is room  # joined
        with pytest.raises(ValueError, match="with another adaptor"):
            client.join("r", Notebook())  # a document is never dropped in silence
        await peer.hears_nothing_else()
        assert (first, second) == (["connecting", "joined"], ["joined"])
        assert adaptor.asked["attach"] == 1
        assert client.rooms == (room,)


async def test_d_dedupe_a_new_auth_is_taken_over_at_the_next_request(manual: ManualServer) -> None:
    """D-DEDUPE: a join without one leaves the auth that there is."""
    adaptor = Notebook()
    async with client_of(manual.url) as client:
        room = client.join("r", adaptor, auth=b"old")
        peer = await manual.peer()
        assert (await peer.let_in()).auth == b"old"
        assert client.join("r", adaptor, auth=lambda: b"new", priority=3) is room
        client.join("r", adaptor)
        await peer.hears_nothing_else()
        client.retry_now()
        assert (await (await manual.peer()).let_in()).auth == b"new"


# ------------------------------------------------------------------------------------------------------------- D-LEAVE


async def test_d_leave_online_the_server_is_told_and_the_room_is_not_rejoined(manual: ManualServer) -> None:
    """D-LEAVE: untracked at once, the server hears it, edits stay here, and a reconnect does not bring it back."""
    adaptor, heard = Notebook(), Heard()
    async with joined(manual, adaptor) as (client, room, peer):
        room.on_status(heard)
        going = room.leave()
        assert (client.rooms, room.status, room.permission) == ((), RoomStatus.DISCONNECTED, None)
        assert not adaptor.attached
        await going
        assert await peer.next(Leave) == Leave(CrdtType.ELO, "r")
        adaptor.edit(b"too late")
        await room.leave()  # twice is harmless
        await peer.hears_nothing_else()
        with pytest.raises(RoomLeft):
            await room
        peer.drop()
        await (await manual.peer()).hears_nothing_else()
    assert heard == ["disconnected"]


async def test_d_leave_offline_works_at_once_and_the_room_is_not_rejoined(server: EmbeddedServer) -> None:
    """D-LEAVE: without a connection there is nobody to tell; the room is forgotten all the same."""
    async with client_of(server.url) as client:
        room, kept = client.join("r", Notebook()), client.join("kept", Notebook())
        await asyncio.gather(room, kept)
        await server.stop()
        await until(lambda: room.status is RoomStatus.RECONNECTING)
        await room.leave()
        assert client.rooms == (kept,)
        queued = client.join("queued", Notebook())
        await queued.leave()
        joins = server.stats.joins
        await server.start()
        await kept
        assert server.stats.joins == joins + 1


async def test_d_leave_before_the_client_is_started() -> None:
    """D-LEAVE: a room that was only queued is left, and awaiting it says so."""
    client = client_of("ws://127.0.0.1:1")
    room = client.join("r", Notebook())
    await room.leave()
    assert client.rooms == ()
    with pytest.raises(RoomLeft):
        await room


async def test_d_leave_while_joining_ends_those_who_wait(manual: ManualServer) -> None:
    """D-LEAVE: RoomLeft for who waits to be joined; the answer that comes after it brings nothing back."""
    heard = Heard()
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), on_status=heard)
        waiting = asyncio.ensure_future(room)
        peer = await manual.peer()
        await peer.next(JoinRequest)
        room.leave()
        with pytest.raises(RoomLeft):
            await waiting
        await peer.next(Leave)
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        await peer.hears_nothing_else()
        assert (heard, client.rooms) == (["connecting", "disconnected"], ())


async def test_d_leave_and_join_again_is_a_new_room(server: EmbeddedServer) -> None:
    """D-LEAVE: left and joined in one breath, it is another room, and it works."""
    doc = new_doc()
    async with client_of(server.url) as client:
        room = await client.join("r", LoroAdaptor(doc))
        room.leave()
        again = await client.join("r", LoroAdaptor(doc))
        assert again is not room
        assert client.rooms == (again,)
        write(doc, "still here")
        await again.synced()
        assert text(server.document("r")) == "still here"


async def test_d_leave_not_awaited_warns_of_nothing(manual: ManualServer, recwarn: pytest.WarningsRecorder) -> None:
    """D-LEAVE: leave() acts at once; what it returns may be dropped."""
    async with joined(manual) as (_, room, peer):
        room.leave()
        await peer.next(Leave)
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


# ----------------------------------------------------------------------------------------------------------- D-ROOMERR


async def test_d_roomerr_a_suggested_rejoin_is_followed_at_once_and_then_once_in_30_s(manual: ManualServer) -> None:
    """D-ROOMERR: however often the server suggests it, there is one immediate rejoin and then one per 30 s.

    D-RESYNC: the session goes on meanwhile.
    """
    heard, asked = Heard(), []
    async with joined(manual) as (_, room, peer):
        room.on_status(heard)
        began = now()
        for _ in range(4):
            await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
            await peer.let_in()
            asked.append(now() - began)
            await until(lambda: room.state == "joined")
        assert asked == pytest.approx([0, 30, 60, 90], abs=0.1)
        await asyncio.sleep(200)
        began = now()
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))  # long after the last one: at once again
        await peer.let_in()
        assert now() - began < 0.1
        await room
    assert heard == ["disconnected"]


async def test_d_roomerr_a_flood_of_suggestions_costs_one_rejoin(manual: ManualServer) -> None:
    """D-ROOMERR: suggestions that come while the room is asked for, or waits to be, change nothing."""
    flood = [room_error(RoomErrorCode.REJOIN_SUGGESTED)] * 50
    async with joined(manual) as (_, room, peer):
        await peer.send(*flood)
        await peer.let_in()
        await until(lambda: room.state == "joined")
        await peer.send(*flood)
        await peer.hears_nothing_else()
        assert room.state == "resync_delayed"
        await asyncio.sleep(25)
        await peer.hears_nothing_else()
        await peer.let_in()
        await until(lambda: room.state == "joined")


async def test_d_roomerr_the_wait_never_grows_beyond_the_interval(manual: ManualServer) -> None:
    """D-ROOMERR: one per 30 s means a wait of 30 s at most, also when the connection drops during the waits."""
    async with joined(manual) as (_, room, peer):
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
        await peer.let_in()
        for _ in range(3):
            await until(lambda: room.state == "joined")
            await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
            await until(lambda: room.state == "resync_delayed")
            peer.drop()
            peer = await manual.peer()
            await peer.let_in()  # REJOIN-2: a new connection asks at once
        await until(lambda: room.state == "joined")
        began = now()
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
        await peer.next(JoinRequest)
        assert now() - began <= 31


@pytest.mark.parametrize("code", [RoomErrorCode.EVICTED, RoomErrorCode.UNKNOWN])
async def test_d_roomerr_any_other_code_is_error_and_out_of_the_tracked_set(
    manual: ManualServer, code: RoomErrorCode
) -> None:
    """D-ROOMERR: evicted rooms show as error, with the server's words, and are not rejoined."""
    heard = Heard()
    async with joined(manual) as (client, room, peer):
        room.on_status(heard)
        await peer.send(room_error(code, "out with you"))
        await until(lambda: room.status is RoomStatus.ERROR)
        assert "out with you" in room.reason
        with pytest.raises(JoinRefused) as caught:
            await room
        assert caught.value.code == code
        assert (heard, client.rooms) == (["error"], ())
        await asyncio.sleep(60)
        await peer.hears_nothing_else()


async def test_d_roomerr_while_joining_is_error_too(manual: ManualServer) -> None:
    """D-ROOMERR: a room that is being asked for can be put out as well."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))  # it is being asked for already
        await peer.hears_nothing_else()
        assert room.state == "joining"
        await peer.send(room_error(RoomErrorCode.EVICTED))
        with pytest.raises(JoinRefused):
            await room


async def test_d_roomerr_a_join_error_in_session_is_a_room_error(manual: ManualServer) -> None:
    """D-ROOMERR: the reference server lets a client in, then sends a JoinError if the state is too large for it."""
    async with joined(manual) as (client, room, peer):
        await peer.send(JoinError(CrdtType.ELO, "r", JoinErrorCode.UNKNOWN, "too large"))
        await until(lambda: room.status is RoomStatus.ERROR)
        assert client.rooms == ()


async def test_d_roomerr_a_listener_can_rejoin_inside_the_callback(manual: ManualServer) -> None:
    """D-ROOMERR: the status is delivered after the set is cleared, so a join in the callback makes a new room."""
    async with joined(manual) as (client, room, peer):
        again: list[Room] = []
        adaptor = Notebook()

        def rejoin(change: StatusChange[RoomStatus]) -> None:
            if change.new is RoomStatus.ERROR:
                assert client.rooms == ()
                again.append(client.join("r", adaptor, auth=b"fresh"))

        room.on_status(rejoin)
        await peer.send(room_error(RoomErrorCode.EVICTED))
        assert (await peer.let_in()).auth == b"fresh"
        (new,) = again
        await new
        assert new is not room
        assert client.rooms == (new,)
        adaptor.edit(b"through the new room")
        assert (await peer.next(DocUpdate)).updates == (b"through the new room",)


# ----------------------------------------------------------------------------------------------------------- D-VERSION


async def test_d_version_an_unknown_version_is_asked_with_the_alternative_then_empty_then_error(
    manual: ManualServer,
) -> None:
    """D-VERSION: three requests in all, never a loop."""
    heard = Heard()
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(alternative=b"other"), on_status=heard)
        peer = await manual.peer()
        asked = [await peer.turn_away(JoinErrorCode.VERSION_UNKNOWN, version=b"mine") for _ in range(3)]
        assert [request.version for request in asked] == [b"current", b"other", b""]
        with pytest.raises(JoinRefused) as caught:
            await room
        assert caught.value.code == JoinErrorCode.VERSION_UNKNOWN
        await asyncio.sleep(60)
        await peer.hears_nothing_else()
        assert (heard, client.rooms) == (["connecting", "error"], ())


async def test_d_version_without_an_alternative_the_empty_one_is_next(manual: ManualServer) -> None:
    """D-VERSION: an adaptor that has no other version goes straight to the empty one."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        assert (await peer.turn_away(JoinErrorCode.VERSION_UNKNOWN)).version == b"current"
        assert (await peer.let_in()).version == b""
        await room
        await peer.hears_nothing_else()


async def test_d_version_each_connection_begins_with_the_current_version(manual: ManualServer) -> None:
    """D-VERSION: what one server did not know, the next may."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(alternative=b"other"))
        for _ in range(2):
            peer = await manual.peer()
            assert (await peer.turn_away(JoinErrorCode.VERSION_UNKNOWN)).version == b"current"
            assert (await peer.let_in()).version == b"other"
            await room
            peer.drop()


async def test_d_version_a_late_unknown_version_is_taken_up_when_asked_again(manual: ManualServer) -> None:
    """D-VERSION D-TIMEOUT: the refusal came after the deadline; the next request carries the next version."""
    async with client_of(manual.url, retry=RetryPolicy(base=5, jitter=0)) as client:
        room = client.join("r", Notebook(alternative=b"other"))
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await asyncio.sleep(11)
        await peer.send(JoinError(CrdtType.ELO, "r", JoinErrorCode.VERSION_UNKNOWN, "late"))
        assert (await peer.let_in()).version == b"other"
        await room


# --------------------------------------------------------------------------------------------------------------- D-ACK


async def test_d_ack_what_is_unacknowledged_is_superseded_by_the_version_exchange(manual: ManualServer) -> None:
    """D-ACK: an update without an Ack is not sent again blindly; the rejoin asks the adaptor what the server lacks."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.edit(b"one")
        first = await peer.next(DocUpdate)
        syncing = asyncio.create_task(room.synced())
        peer.drop()
        peer = await manual.peer()
        adaptor.missing = (b"one", b"two")
        await peer.let_in()
        second = await peer.next(DocUpdate)
        assert second.updates == (b"one", b"two")
        await peer.send(Ack(CrdtType.ELO, "r", first.batch_id, UpdateStatusCode.INVALID_UPDATE))  # of the old session
        await peer.hears_nothing_else()
        assert not syncing.done()
        await peer.send(Ack(CrdtType.ELO, "r", second.batch_id, UpdateStatusCode.OK))
        await syncing
        assert adaptor.refusals == []


@pytest.mark.parametrize("code", [code for code in UpdateStatusCode if code is not UpdateStatusCode.OK])
async def test_d_ack_a_refusal_reaches_the_adaptor_and_leads_to_a_comparison(
    manual: ManualServer, code: UpdateStatusCode
) -> None:
    """D-ACK D-RESYNC: `refused` gets the very updates, whatever the code; the comparison brings them, and later edits.

    Those are not sent before, for they depend on what was refused; the session goes on.
    """
    adaptor, heard = Notebook(), Heard()
    async with joined(manual, adaptor) as (_, room, peer):
        room.on_status(heard)
        adaptor.edit(b"lost")
        batch = await peer.next(DocUpdate)
        syncing = asyncio.create_task(room.synced())
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, code))
        await until(lambda: adaptor.refusals)
        adaptor.edit(b"later")
        adaptor.missing = (b"lost", b"later")
        request = await peer.next(JoinRequest)
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"of another",), 1))
        await until(lambda: adaptor.applied == [b"of another"])
        assert not room.is_synced
        await peer.send(JoinResponseOk(request.crdt, request.room_id, "write", b""))
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"lost", b"later")
        assert not syncing.done()
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await syncing
        assert room.is_synced
        adaptor.edit(b"as before")
        assert (await peer.next(DocUpdate)).updates == (b"as before",)
    assert adaptor.refusals == [((b"lost",), code)]
    assert heard == ["disconnected"]


async def test_d_ack_an_ack_for_an_unknown_batch_is_ignored(manual: ManualServer) -> None:
    """D-ACK: whatever it says: it is of an earlier session, or made up."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        for code in UpdateStatusCode:
            await peer.send(Ack(CrdtType.ELO, "r", 5, code))
        await peer.hears_nothing_else()
        assert (adaptor.refusals, room.state, room.is_synced) == ([], "joined", True)


async def test_d_ack_edits_of_a_reader_are_refused_here(manual: ManualServer) -> None:
    """D-ACK D-RESYNC: with permission "read" nothing goes out; edits, and what was made offline, reach `refused`.

    Who wants to be synced has to know.
    """
    adaptor, errors = Notebook(missing=(b"offline",)), []
    async with client_of(manual.url) as client:
        room = client.join("r", adaptor)
        room.on_error(errors.append)
        peer = await manual.peer()
        await peer.let_in(permission="read")
        for _ in range(2):
            with pytest.raises(UpdatesRefused, match="PERMISSION_DENIED"):
                await room.synced()
        assert (room.permission, room.is_synced) == ("read", False)
        adaptor.edit(b"online")
        await peer.hears_nothing_else()
        assert [type(each) for each in errors] == [UpdatesRefused]
        adaptor.missing = ()
        resyncing = asyncio.create_task(room.resync())
        await peer.let_in()
        await resyncing
        assert (room.permission, room.is_synced) == ("write", True)
    denied = UpdateStatusCode.PERMISSION_DENIED
    assert adaptor.refusals == [((b"offline",), denied), ((b"online",), denied)]


async def test_d_resync_a_reader_who_lacks_nothing_is_synced(manual: ManualServer) -> None:
    """D-RESYNC: to read only is no refusal."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        await (await manual.peer()).let_in(permission="read")
        await room.synced()
        assert room.is_synced


async def test_d_ack_an_update_too_large_to_be_sent_is_refused_here(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """D-ACK D-RESYNC: without asking. A comparison may bring it in pieces; if it does not, `synced` raises."""
    adaptor = Notebook()
    huge = bytes(20_001)
    async with joined(manual, adaptor, max_update_size=20_000) as (_, room, peer):
        adaptor.missing = (huge,)
        adaptor.edit(huge)
        await peer.let_in()
        with pytest.raises(UpdatesRefused, match="PAYLOAD_TOO_LARGE"):
            await room.synced()
        assert adaptor.refusals == [((huge,), UpdateStatusCode.PAYLOAD_TOO_LARGE)] * 2
        adaptor.missing = (bytes(20_000), b"x")
        resyncing = asyncio.create_task(room.resync())
        await peer.let_in()
        for _ in range(2):
            batch = await peer.next(DocUpdate)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
            if batch.updates[-1:] == (b"x",):
                break
        await resyncing
        assert room.status is RoomStatus.JOINED
    assert "20001 bytes" in caplog.text


@pytest.mark.parametrize("limit", ["MAX_UNACKED_UPDATES", "MAX_UNACKED_BYTES"])
async def test_d_ack_a_server_that_never_acknowledges_costs_one_rejoin(
    manual: ManualServer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """D-ACK: what is kept is bounded; at the bound versions are compared once, which supersedes it all."""
    monkeypatch.setattr(room_session, limit, 5)
    adaptor, heard = Notebook(), Heard()
    async with joined(manual, adaptor) as (_, room, peer):
        room.on_status(heard)
        for _ in range(20):
            adaptor.edit(b"x")
            await asyncio.sleep(0.001)  # so that it is written
        for _ in range(6):
            await peer.next(DocUpdate)
        adaptor.missing = (b"all of it",)
        assert (await peer.let_in()).version == b"current"
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"all of it",)
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()
        await peer.hears_nothing_else()
    assert heard == ["disconnected"]


async def test_d_ack_what_a_rejoin_supersedes_is_not_sent_any_more(
    manual: ManualServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D-ACK: frames that were not written when the session ended are taken back: a slow link carries nothing twice."""
    monkeypatch.setattr(room_session, "MAX_UNACKED_UPDATES", 5)
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        for _ in range(20):
            adaptor.edit(b"x")  # all before the writer gets its turn
        adaptor.missing = (b"all of it",)
        assert (await peer.let_in()).version == b"current"  # nothing came before it
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"all of it",)
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()
        await peer.hears_nothing_else()


async def test_d_leave_an_upload_without_an_end_is_left(manual: ManualServer) -> None:
    """D-LEAVE: an adaptor whose updates never end keeps nobody in a room, nor the loop from going on."""
    endless = Notebook()
    endless.missing_from = lambda server_version: itertools.repeat(bytes(60_000))  # type: ignore[method-assign,assignment]
    async with joined(manual, endless) as (_, room, peer):
        await room.leave()
        assert room.status is RoomStatus.DISCONNECTED
        while not isinstance(await peer.next(DocUpdate | Leave), Leave):
            pass


@pytest.mark.parametrize("ending", ["leave", "close"])
async def test_d_ack_the_last_edit_before_the_end_is_sent(manual: ManualServer, ending: str) -> None:
    """D-ACK: no join follows that would bring it, so what is not written yet when it ends still is."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        adaptor.edit(b"the last words")
        await (room.leave() if ending == "leave" else client.close())
        assert (await peer.next(DocUpdate)).updates == (b"the last words",)


@pytest.mark.parametrize("code", [UpdateStatusCode.PERMISSION_DENIED, UpdateStatusCode.FRAGMENT_TIMEOUT])
async def test_d_ack_a_batch_may_be_refused_before_all_of_it_was_written(
    manual: ManualServer, code: UpdateStatusCode
) -> None:
    """D-ACK: the adaptor is told, the rest is not written in vain, and nobody waits for an Ack that never comes."""
    adaptor = Notebook()
    large = bytes(8 * 1024 * 1024)
    async with joined(manual, adaptor) as (_client, room, peer):
        adaptor.edit(large)
        header = await peer.next(DocUpdateFragmentHeader)
        assert driver_of(room).rooms.backlog > 0
        await peer.send(Ack(CrdtType.ELO, "r", header.batch_id, code))
        await until(lambda: adaptor.refusals)
        assert adaptor.refusals == [((large,), code)]
        assert not session_of(room).unacked
        await room.leave()
        rest = [peer.inbox.get_nowait() for _ in range(peer.inbox.qsize())]
        assert sum(isinstance(each, DocUpdateFragment) for each in rest) < header.fragment_count


async def test_d_ack_synced_waits_for_acks_and_for_the_servers_version(server: EmbeddedServer) -> None:
    """D-ACK: `synced` returns once every update has its Ack and the document holds what the server had."""
    write(server.document("r"), "theirs")
    server.hold_acks = True
    doc = new_doc()
    write(doc, "ours ")
    async with client_of(server.url) as client:
        room = client.join("r", LoroAdaptor(doc))
        syncing = asyncio.create_task(room.synced())
        await room
        await asyncio.sleep(5)
        assert not syncing.done()
        server.release_acks()
        await syncing
        assert sorted(text(doc)) == sorted("ours theirs")


async def test_d_ack_synced_waits_for_what_the_server_has(manual: ManualServer) -> None:
    """D-ACK: JoinResponseOk tells the server's version; until the backfill has come the room is not synced."""
    theirs, ours = new_doc(), new_doc()
    write(theirs, "theirs")
    async with client_of(manual.url) as client:
        room = client.join("r", LoroAdaptor(ours))
        peer = await manual.peer()
        await peer.let_in(theirs.oplog_vv.encode())
        await room
        syncing = asyncio.create_task(room.synced())
        await asyncio.sleep(5)
        assert not syncing.done()
        update = theirs.export(loro.ExportMode.Updates(ours.oplog_vv))
        await peer.send(DocUpdate(CrdtType.LORO, "r", (update,), 1))
        await syncing
        assert text(ours) == "theirs"


# --------------------------------------------------------------------------------------------------- no edit is lost


async def test_d_ack_edits_made_before_during_and_between_connections_all_arrive(server: EmbeddedServer) -> None:
    """D-ACK: before the start, in session, while offline, at the very drop, while stopped: nothing is lost."""
    doc = new_doc()
    client = client_of(server.url)
    write(doc, "A")
    room = client.join("r", LoroAdaptor(doc))
    write(doc, "B")
    async with client:
        await room
        write(doc, "C")
        server.reset_all()
        write(doc, "D")  # written into a connection that is gone, though nobody knows it yet
        await until(lambda: room.status is RoomStatus.RECONNECTING)
        write(doc, "E")
        await room
        write(doc, "F")
        await client.close()
        write(doc, "G")
        client.connect()
        await room.synced()
    assert text(server.document("r")) == text(doc) == "GFEDCBA"


async def test_d_ack_an_edit_before_the_join_is_answered_arrives(manual: ManualServer) -> None:
    """D-ACK: nothing is sent before JoinResponseOk; the exchange that follows it carries the edit."""
    doc = new_doc()
    async with client_of(manual.url) as client:
        room = client.join("r", LoroAdaptor(doc))
        peer = await manual.peer()
        await peer.next(JoinRequest)
        write(doc, "early")
        await peer.hears_nothing_else()
        await peer.send(JoinResponseOk(CrdtType.LORO, "r", "write", b""))
        await room
        batch = await peer.next(DocUpdate)
        copy = new_doc()
        copy.import_(batch.updates[0])
        assert text(copy) == "early"


async def test_d_ack_an_edit_not_committed_yet_arrives(server: EmbeddedServer) -> None:
    """D-ACK: what the user has not committed when the room is joined is committed for them, and sent once."""
    doc = new_doc()
    async with client_of(server.url) as client:
        doc.get_text("text").insert(0, "pending")
        room = await client.join("r", LoroAdaptor(doc))
        await room.synced()
        assert text(server.document("r")) == "pending"


async def test_d_ack_two_clients_converge_and_nothing_is_applied_twice(server: EmbeddedServer) -> None:
    """D-ACK: across drops both documents are the same, and a subscriber of the document hears of each edit once."""
    ours, theirs = new_doc(), new_doc()
    events: list[object] = []
    subscription = ours.subscribe_root(events.append)
    async with client_of(server.url) as one, client_of(server.url) as two:
        mine, others = one.join("r", LoroAdaptor(ours)), two.join("r", LoroAdaptor(theirs))
        await asyncio.gather(mine, others)
        for number in range(5):
            write(theirs, f"[t{number}]")
            write(ours, f"[o{number}]")
            await asyncio.gather(mine.synced(), others.synced())
            await until(lambda: text(ours) == text(theirs))
            server.reset_all()
            await until(lambda: RoomStatus.RECONNECTING in (mine.status, others.status))
            await asyncio.gather(mine.synced(), others.synced())
        assert text(ours) == text(theirs) == text(server.document("r"))
        assert Counter(text(ours).strip("[]").split("][")).most_common(1)[0][1] == 1
        assert len(events) == 10  # five edits here, five from there
    subscription.unsubscribe()


# ----------------------------------------------------------------------------------------------------------- fragments


async def test_fragments_carry_large_updates_both_ways(server: EmbeddedServer) -> None:
    """D-ACK: a document of 3 MB goes up, comes down, and a further 1 MB update reaches the other member."""
    ours, theirs = new_doc(), new_doc()
    large, larger = bytes(range(256)) * 4096, bytes(reversed(range(256))) * 12288
    ours.get_map("map").insert("larger", larger)
    ours.commit()
    async with client_of(server.url) as one, client_of(server.url) as two:
        mine = one.join("r", LoroAdaptor(ours))
        await mine.synced()
        others = two.join("r", LoroAdaptor(theirs))
        await others.synced()
        assert theirs.get_deep_value() == {"map": {"larger": larger}}
        theirs.get_map("map").insert("large", large)
        theirs.commit()
        await others.synced()
        await until(lambda: ours.get_deep_value() == theirs.get_deep_value())
        assert server.document("r").get_deep_value() == {"map": {"larger": larger, "large": large}}


def fragments(batch_id: int, update: bytes) -> list[bytes]:
    """The frames of one update that is larger than a fragment."""
    (batch,) = split(CrdtType.ELO, "r", [update], lambda: batch_id)
    assert len(batch.frames) > 2
    return list(batch.frames)


async def test_fragments_in_any_order_make_one_update(manual: ManualServer) -> None:
    """Fragments of two batches, interleaved and out of order, are put together."""
    adaptor = Notebook()
    one, two = b"1" * (2 * FRAGMENT_SIZE), b"2" * (2 * FRAGMENT_SIZE + 1)
    async with joined(manual, adaptor) as (_, _, peer):
        first, second = fragments(1, one), fragments(2, two)
        await peer.send(first[0], second[0], second[3], first[2], second[1], first[1], second[2])
        await until(lambda: len(adaptor.applied) == 2)
        assert adaptor.applied == [one, two]
        await peer.hears_nothing_else()


@pytest.mark.parametrize(
    ("count", "total", "status"),
    [
        (2**32 - 1, 2**32 - 1, UpdateStatusCode.PAYLOAD_TOO_LARGE),
        (1, 2**32 - 1, UpdateStatusCode.PAYLOAD_TOO_LARGE),
        (0, 10, UpdateStatusCode.INVALID_UPDATE),
        (1, 1, UpdateStatusCode.PAYLOAD_TOO_LARGE),
        (1, 100, UpdateStatusCode.INVALID_UPDATE),
    ],
)
async def test_fragments_whose_header_lies_are_refused_and_the_room_goes_on(
    manual: ManualServer, count: int, total: int, status: UpdateStatusCode
) -> None:
    """The header is not believed: the server gets one Ack that says so, and the next batch is applied."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        await peer.send(
            DocUpdateFragmentHeader(CrdtType.ELO, "r", 9, count, total),
            DocUpdateFragment(CrdtType.ELO, "r", 9, 0, b"abc"),
        )
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 9, status)
        await peer.next(JoinRequest)  # D-RESYNC
        await peer.send(*fragments(10, b"y" * FRAGMENT_SIZE * 2))
        await until(lambda: adaptor.applied)
        await peer.hears_nothing_else()
        assert room.status is RoomStatus.JOINED


async def test_fragments_that_stay_away_are_given_up_after_30_s(manual: ManualServer) -> None:
    """D-TIMEOUT: a batch of which nothing more comes for 30 s is refused with Ack 0x07; late ones are ignored."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, _, peer):
        header, *rest = fragments(5, b"z" * FRAGMENT_SIZE * 2)
        began = now()
        await peer.send(header, rest[0])
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 5, UpdateStatusCode.FRAGMENT_TIMEOUT)
        assert now() - began == pytest.approx(30, abs=0.1)
        await peer.next(JoinRequest)  # the only way to what was in it
        await peer.send(*rest)
        await peer.hears_nothing_else()
        assert adaptor.applied == []


async def test_fragments_of_an_earlier_session_are_forgotten(manual: ManualServer) -> None:
    """What was half received when the connection dropped neither mixes with the next session nor is refused there."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        header, *rest = fragments(5, b"z" * FRAGMENT_SIZE * 2)
        await peer.send(header, rest[0])
        await peer.hears_nothing_else()
        peer.drop()
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await peer.send(*rest)  # before we are let in: not for this session
        await peer.hears_nothing_else()
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        await room
        await asyncio.sleep(20)
        await peer.hears_nothing_else()
        assert adaptor.applied == []


async def test_fragments_leave_no_timer_behind(manual: ManualServer) -> None:
    """A batch that arrived whole, another that did not, and the client is closed: no timer is left (law 6)."""
    before = leaks.in_loop()
    async with joined(manual) as (_, _, peer):
        await peer.send(*fragments(5, b"z" * FRAGMENT_SIZE * 2), fragments(6, b"z" * FRAGMENT_SIZE * 2)[0])
        await peer.hears_nothing_else()
    left = [what for key, what in leaks.in_loop().items() if key not in before and "_fall_due" in what]
    await asyncio.sleep(20)  # else whatever there is would also be an error of the fixture
    assert left == []


# ---------------------------------------------------------------------------------------------- what servers may send


async def test_a_bad_update_is_refused_and_the_rest_goes_on(server: EmbeddedServer) -> None:
    """D-ACK: an update that the document cannot read gets Ack 0x04; good ones of the batch and other rooms go on."""
    good = new_doc()
    write(good, "good")
    update = good.export(loro.ExportMode.Updates(new_doc().oplog_vv))
    ours, others = new_doc(), new_doc()
    async with client_of(server.url) as client:
        room = await client.join("r", LoroAdaptor(ours))
        other = await client.join("other", LoroAdaptor(others))
        await server.send("r", CrdtType.LORO, DocUpdate(CrdtType.LORO, "r", (b"junk", update, b""), 77))
        await until(lambda: text(ours) == "good")
        write(others, "fine")
        await other.synced()
        assert text(server.document("other")) == "fine"
        assert room.status is RoomStatus.JOINED


async def test_a_bad_update_gets_ack_4(manual: ManualServer) -> None:
    """D-ACK: and the Ack names the batch."""
    adaptor = Notebook()
    adaptor.raises["apply"] = ValueError("junk")
    async with joined(manual, adaptor) as (_, room, peer):
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"junk",), 77))
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 77, UpdateStatusCode.INVALID_UPDATE)
        await peer.next(JoinRequest)  # D-RESYNC
        adaptor.raises.clear()
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"better",), 78))
        await peer.hears_nothing_else()
        assert (adaptor.applied, room.status) == ([b"better"], RoomStatus.JOINED)


async def test_malformed_frames_lose_nothing_and_do_not_flood_the_log(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage from the server is dropped with a warning; a thousand pieces of it do not make a thousand warnings."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        junk = [b"", b"\0", b"%ELO", b"%XXX\x01r\x07", b"%ELO\x01r\xff", b"%ELO\x01r\x03\xff\xff\xff\xff\x0f"] * 200
        await peer.send(*junk, DocUpdate(CrdtType.ELO, "r", (b"good",), 1))
        await until(lambda: adaptor.applied)
        await peer.hears_nothing_else()
        assert (client.status, room.status) == (ClientStatus.CONNECTED, RoomStatus.JOINED)
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert 1 <= len(warnings) <= 20
    assert "malformed" in warnings[0].getMessage()


async def test_messages_for_rooms_that_are_not_tracked_are_ignored(manual: ManualServer) -> None:
    """Rooms never joined, or of another CRDT type, are no concern of ours; nothing is answered."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        for crdt, name in ((CrdtType.ELO, "unknown"), (CrdtType.LORO, "r")):
            await peer.send(
                JoinResponseOk(crdt, name, "write", b""),
                DocUpdate(crdt, name, (b"x",), 1),
                DocUpdateFragment(crdt, name, 1, 0, b"x"),
                Ack(crdt, name, 1, UpdateStatusCode.INVALID_UPDATE),
                RoomError(crdt, name, RoomErrorCode.EVICTED, ""),
                JoinError(crdt, name, JoinErrorCode.UNKNOWN, ""),
            )
        await peer.hears_nothing_else()
        assert (adaptor.applied, adaptor.refusals, client.rooms) == ([], [], (room,))
        assert room.status is RoomStatus.JOINED


async def test_messages_that_only_clients_send_are_ignored(manual: ManualServer) -> None:
    """A JoinRequest or Leave from a server means nothing; neither does an Ack for what was never sent."""
    async with joined(manual) as (_, room, peer):
        await peer.send(
            JoinRequest(CrdtType.ELO, "r", b"", b""),
            Leave(CrdtType.ELO, "r"),
            Ack(CrdtType.ELO, "r", 12345, UpdateStatusCode.UNKNOWN),
        )
        await peer.hears_nothing_else()
        assert room.status is RoomStatus.JOINED


async def test_updates_before_the_join_is_accepted_are_left_to_the_version_exchange(manual: ManualServer) -> None:
    """An update that comes before JoinResponseOk is not applied: it belongs to no session."""
    adaptor = Notebook()
    async with client_of(manual.url) as client:
        client.join("r", adaptor)
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"early",), 1))
        await peer.hears_nothing_else()
        assert adaptor.applied == []


async def test_text_messages_are_passed_on(manual: ManualServer) -> None:
    """Text that is no ping or pong goes to on_message; ping is answered; binary frames are the protocol's."""
    async with joined(manual) as (client, _, peer):
        said: list[str | bytes] = []
        client.on_message(said.append)
        await peer.send("hello", "ping", "pong", Leave(CrdtType.ELO, "nowhere"))
        assert await peer.next(str) == "pong"
        await peer.hears_nothing_else()
        assert said == ["hello"]


# ------------------------------------------------------------------------------------------------- adaptors that raise


@pytest.mark.parametrize("method", ["version", "missing_from", "alternative_version"])
async def test_an_adaptor_that_raises_while_joining_puts_only_its_room_in_error(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """The log has the traceback, the reason says which method; the other room does not notice."""
    bad = LoroAdaptorThatRaises(method)
    doc = new_doc()
    async with client_of(server.url) as client:
        good = client.join("good", LoroAdaptor(doc))
        broken = client.join("bad", bad)
        with pytest.raises(JoinRefused, match="the adaptor raised ZeroDivisionError while asked for") as caught:
            await broken
        assert caught.value.code is None
        assert (broken.status, client.rooms) == (RoomStatus.ERROR, (good,))
        write(doc, "fine")
        await good.synced()
        assert text(server.document("good")) == "fine"
    assert "ZeroDivisionError" in caplog.text


class LoroAdaptorThatRaises(LoroAdaptor):
    """Raises in one method. Its version is junk, so that the alternative is asked for."""

    def __init__(self, method: str) -> None:
        super().__init__(new_doc())
        self._method = method
        if method != "alternative_version":
            setattr(self, method, self._raise)

    def _raise(self, *_: object) -> Any:
        raise ZeroDivisionError("a fault of the adaptor's own")

    def version(self) -> bytes:
        return b"\xff\xff" if self._method == "alternative_version" else super().version()

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return self._raise()  # type: ignore[no-any-return]


async def test_an_adaptor_that_raises_in_session_harms_nothing_else(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """`refused` and detaching are logged, `covers` raises in who asked; the room works, and can be left."""
    adaptor = Notebook()
    for name in ("refused", "detach", "covers"):
        adaptor.raises[name] = ZeroDivisionError(name)
    async with joined(manual, adaptor) as (client, room, peer):
        adaptor.edit(b"x")
        batch = await peer.next(DocUpdate)
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.INVALID_UPDATE))
        await peer.let_in()
        await peer.hears_nothing_else()
        with pytest.raises(ZeroDivisionError):
            await room.synced()
        assert not room.is_synced
        assert (room.status, client.status) == (RoomStatus.JOINED, ClientStatus.CONNECTED)
        await room.leave()
        assert client.rooms == ()
        await peer.next(Leave)
    assert "told of a refusal" in caplog.text
    assert "on being detached" in caplog.text


async def test_an_adaptor_that_raises_while_somebody_waits_raises_in_them(manual: ManualServer) -> None:
    """`covers` is asked again whenever something came; when it raises then, who waits for `synced` hears of it."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.edit(b"x")
        syncing = asyncio.create_task(room.synced())
        batch = await peer.next(DocUpdate)
        adaptor.raises["covers"] = ZeroDivisionError("covers")
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        with pytest.raises(ZeroDivisionError):
            await syncing
        await peer.hears_nothing_else()
        assert room.status is RoomStatus.JOINED


async def test_an_adaptor_that_cannot_be_attached_is_not_joined(manual: ManualServer) -> None:
    """`join` raises what `attach` raised, at once, and nothing is tracked."""
    adaptor = Notebook()
    adaptor.raises["attach"] = ZeroDivisionError("attach")
    async with joined(manual) as (client, room, peer):
        with pytest.raises(ZeroDivisionError):
            client.join("another", adaptor)
        assert client.rooms == (room,)
        await peer.hears_nothing_else()


async def test_an_adaptor_whose_detach_raises_is_detached_from_a_room_in_error(manual: ManualServer) -> None:
    """Refused and raising on the way out: the room is in error and untracked, and its listener hears of it."""
    adaptor, heard = Notebook(), Heard()
    adaptor.raises["detach"] = ZeroDivisionError("detach")
    async with joined(manual, adaptor) as (client, room, peer):
        room.on_status(heard)
        await peer.send(room_error(RoomErrorCode.EVICTED))
        await until(lambda: room.status is RoomStatus.ERROR)
        assert (heard, client.rooms) == (["error"], ())


async def test_an_adaptor_that_raises_loros_base_exceptions_harms_only_its_room(manual: ManualServer) -> None:
    """loro raises bare BaseException; an adaptor of one's own that lets it through costs no connection."""
    adaptor = Notebook()
    adaptor.raises["apply"] = BaseException("what loro raises")
    async with joined(manual, adaptor) as (client, room, peer):
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"junk",), 77))
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 77, UpdateStatusCode.INVALID_UPDATE)
        await peer.let_in()  # D-RESYNC
        await peer.hears_nothing_else()
        assert (client.status, room.status) == (ClientStatus.CONNECTED, RoomStatus.JOINED)


@pytest.mark.parametrize("missing", [[None], 5])
async def test_an_adaptor_that_returns_nonsense_puts_only_its_room_in_error(manual: ManualServer, missing: Any) -> None:
    """What `missing_from` returns is not updates: who waits hears of it, as it would of an exception."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(missing=missing))
        peer = await manual.peer()
        await peer.let_in()
        with pytest.raises(JoinRefused):
            async with asyncio.timeout(60):
                await room.synced()
        assert client.rooms == ()
        assert client.status is ClientStatus.CONNECTED


async def test_an_adaptor_that_sends_no_bytes_is_not_told_that_they_are_too_large(manual: ManualServer) -> None:
    """An update that is not bytes is the adaptor's fault, and is not refused as one of more than 16 MiB."""
    adaptor = Notebook()
    wrong: Any = bytearray(b"not bytes")
    async with joined(manual, adaptor):
        adaptor.edit(wrong)
        assert UpdateStatusCode.PAYLOAD_TOO_LARGE not in [status for _, status in adaptor.refusals]


async def test_an_adaptor_whose_crdt_type_changes_is_still_untracked(manual: ManualServer) -> None:
    """A room is known by what it was joined with, whatever its adaptor says later."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        adaptor.crdt_type = CrdtType.YJS
        await room.leave()
        assert client.rooms == ()
        assert await peer.next(Leave) == Leave(CrdtType.ELO, "r")


# ------------------------------------------------------------------------------------------------------- bad arguments


async def test_bad_arguments_of_join_are_clear_errors_at_once() -> None:
    """What cannot work is said when join is called: what it is, what is wanted, and never the auth bytes."""
    client = client_of("ws://127.0.0.1:1")
    bad: Any
    for bad in (new_doc(), object(), None):
        with pytest.raises(TypeError, match=r"is not an adaptor, it has no .*version.*LoroAdaptor"):
            client.join("r", bad)
    for bad in (b"r", 7, None):
        with pytest.raises(TypeError, match="room id must be a str"):
            client.join(bad, Notebook())
    with pytest.raises(ValueError, match="129 bytes of UTF-8, the limit is 128"):
        client.join("x" * 129, Notebook())
    with pytest.raises(ValueError, match="limit is 128"):
        client.join("é" * 65, Notebook())
    with pytest.raises(ValueError, match="surrogate"):
        client.join("\ud800", Notebook())
    for bad in ("hunter2", 7, None, bytearray(b"hunter2")):
        with pytest.raises(TypeError, match="auth must be bytes, or a function") as caught:
            client.join("r", Notebook(), auth=bad)
        assert "hunter2" not in str(caught.value)
    unknown = Notebook()
    unknown.crdt_type = "%NEW"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="crdt must be one of"):
        client.join("r", unknown)
    assert client.rooms == ()


async def test_a_room_id_of_128_bytes_can_be_joined(server: EmbeddedServer) -> None:
    """The limit itself is allowed, and so is the empty id."""
    async with client_of(server.url) as client:
        await asyncio.gather(client.join("é" * 64, Notebook()), client.join("", Notebook()))


@pytest.mark.parametrize("wrong", [RoomFSM(), dict, None, "RoomFSM"])
async def test_room_fsm_has_to_be_a_subclass(wrong: Any) -> None:
    """An instance, or another class, is refused when the client is made."""
    with pytest.raises(TypeError, match="room_fsm must be a subclass of RoomFSM"):
        client_of("ws://127.0.0.1:1", room_fsm=wrong)


# ------------------------------------------------------------------------------------------------ machines of one's own


async def test_room_fsm_a_subclass_may_be_less_patient(manual: ManualServer) -> None:
    """D-TIMEOUT: join_timeout is an attribute of the class."""

    class Impatient(RoomFSM):
        join_timeout = 1.0

    async with client_of(manual.url, room_fsm=Impatient, retry=RetryPolicy(jitter=0)) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        began = now()
        await peer.let_in()
        assert now() - began == pytest.approx(1.5, abs=0.01)
        await room


async def test_room_fsm_a_guard_that_raises_puts_only_that_room_in_error(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """D-ERROR: the room goes to error with a reason, its waiters hear of it, the client and the other rooms go on."""

    class Faulty(RoomFSM):
        def is_rejoin_due(self) -> bool:
            raise ZeroDivisionError("a fault of the guard's own")

    heard = Heard()
    async with joined(manual, room_fsm=Faulty) as (client, room, peer):
        room.on_status(heard)
        other = client.join("other", Notebook())
        await peer.let_in()
        await other
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
        await peer.next(Leave)
        assert (room.status, heard, client.rooms) == (RoomStatus.ERROR, ["error"], (other,))
        assert room.reason == "the machine Faulty raised ZeroDivisionError; the log tells where"
        with pytest.raises(JoinRefused, match="Faulty"):
            await room
        assert client.status is ClientStatus.CONNECTED
    assert "a fault of the guard's own" in caplog.text


async def test_room_fsm_that_raises_at_a_loss_harms_neither_client_nor_rooms(manual: ManualServer) -> None:
    """D-ERROR: the room cannot even say goodbye, as there is no connection; the others come back."""

    class Faulty(RoomFSM):
        def forget_attempts(self) -> None:
            if self.pending_reason == "the connection was lost" and self.state == "joining":
                raise ZeroDivisionError
            super().forget_attempts()

    async with joined(manual, room_fsm=Faulty) as (client, room, peer):
        other = client.join("other", Notebook())
        await peer.next(JoinRequest)
        peer.drop()
        peer = await manual.peer()
        await peer.let_in()
        await room
        await peer.hears_nothing_else()
        assert (other.status, client.rooms) == (RoomStatus.ERROR, (room,))


@pytest.mark.parametrize("when", ["joined", "error already"])
async def test_room_fsm_that_raises_even_on_its_way_to_error_ends_there(manual: ManualServer, when: str) -> None:
    """D-ERROR: a machine that cannot even be told that it broke is in error all the same, and its waiters hear."""

    class Hopeless(RoomFSM):
        def is_rejoin_due(self) -> bool:
            if when == "error already":
                self.state = "error"
            raise ZeroDivisionError

        def send_leave(self) -> None:
            raise ZeroDivisionError

        @event(
            row(RoomFSM.ON_CONNECTION, to=RoomFSM.error, do=send_leave),
            ignore((*RoomFSM.FINAL, RoomFSM.queued), because=""),
            row((RoomFSM.disconnected, RoomFSM.stale), to=RoomFSM.error),
        )
        def faulted(self, what: str) -> None:
            if when == "error already":
                raise ZeroDivisionError

    heard = Heard()
    async with joined(manual, room_fsm=Hopeless) as (client, room, peer):
        room.on_status(heard)
        await peer.send(room_error(RoomErrorCode.REJOIN_SUGGESTED))
        await peer.hears_nothing_else()
        assert (room.status, client.rooms) == (RoomStatus.ERROR, ())
        assert heard == ["error"]
        with pytest.raises(JoinRefused, match="Hopeless"):
            await room


async def test_room_fsm_may_ask_for_effects_that_rooms_do_not_know(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An effect that nobody knows how to run is logged; the rest of them run."""

    class Sing(Effect):
        def __repr__(self) -> str:
            return "Sing()"

    class Singing(RoomFSM):
        def begin_session(self) -> None:
            self.emit(Sing())
            super().begin_session()

    async with joined(manual, room_fsm=Singing) as (_, room, _):
        assert room.status is RoomStatus.JOINED
    assert "Sing is no effect that rooms know how to run" in caplog.text


# --------------------------------------------------------------------------------------------------------- waiting


async def test_cancelling_who_waits_harms_nobody(manual: ManualServer) -> None:
    """A cancelled `await client.join` leaves the room joining, and the other waiters waiting."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        one, two = asyncio.ensure_future(room), asyncio.ensure_future(room)
        peer = await manual.peer()
        await peer.next(JoinRequest)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await room
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        assert await two is room
        assert client.rooms == (room,)


async def test_a_rejoined_room_ends_a_wait_that_began_before_the_drop(manual: ManualServer) -> None:
    """`synced` holds across reconnects: it returns after the rejoin."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.edit(b"x")
        await peer.next(DocUpdate)
        syncing = asyncio.create_task(room.synced())
        await asyncio.sleep(0)
        peer.drop()
        await (await manual.peer()).let_in()
        await syncing


def test_a_client_can_be_used_in_one_loop_after_another() -> None:
    """Rooms outlive the loop: in the next one they are joined, and ask again when nobody answers, as in the first."""
    addresses: list[str] = []
    client = client_of(lambda: addresses[-1])
    room = client.join("r", Notebook())

    async def life() -> None:
        async with manual_server() as manual:
            addresses.append(manual.url)
            async with client:
                peer = await manual.peer()
                await peer.next(JoinRequest)
                await peer.let_in()
                await room
        assert room.status is RoomStatus.DISCONNECTED

    run(life)
    run(life)


# ------------------------------------------------------------------------------------------- machines of the user's own


class Viewing(RoomFSM):
    """Has a state of its own for rooms that may only be read."""

    __slots__ = ()

    viewing = state(RoomStatus.JOINED, enter=RoomFSM.begin_session, like=RoomFSM.joined, doc="updates flow to us only")

    def is_read_only(self) -> bool:
        """The server lets us read, and no more."""
        return self.permission == "read"

    join_accepted = RoomFSM.join_accepted.first(row(RoomFSM.REQUESTING, to=viewing, when=is_read_only))


async def test_a_users_machine_decides_on_what_the_answer_says(manual: ManualServer) -> None:
    """What the server answers is told to the machine, which may go elsewhere; the session is as in `joined`."""
    adaptor = Notebook()
    file = io.StringIO()
    async with client_of(manual.url, room_fsm=Viewing) as client:
        client.record(file)
        room = client.join("r", adaptor)
        peer = await manual.peer()
        await peer.let_in(b"theirs", "read")
        await room
        assert (room.state, room.status, room.permission) == ("viewing", RoomStatus.JOINED, "read")
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"from others",), 1))
        await until(lambda: adaptor.applied == [b"from others"])
        resynced = asyncio.create_task(room.resync())
        await peer.let_in(b"more", "write")
        await resynced
        assert (room.state, room.permission) == ("joined", "write")
    steps = [json.loads(line) for line in file.getvalue().splitlines()[1:-1]]
    told = [step["args"] for step in steps if step["event"] == "join_accepted"]
    assert [args[0] for args in told] == ["read", "write"]
    assert [bytes.fromhex(args[1]["hex"]) for args in told] == [b"theirs", b"more"]
    assert replay(file.getvalue().splitlines(), room_fsm=Viewing).divergences == ()
    (other,) = replay(file.getvalue().splitlines()).divergences
    assert (other.machine, other.event) == ("r", "join_accepted")


# ------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("kind", ["JoinError", "RoomError"])
def test_d_judged_a_flood_of_long_words_gives_way_to_the_loop(kind: str) -> None:
    """D-JUDGED: to redact 4,000 characters takes as long as dozens of other steps, and counts as so many."""

    def frame(words: str) -> bytes:
        if kind == "JoinError":
            return encode(JoinError(CrdtType.ELO, "r", JoinErrorCode.APP_ERROR, words, app_code="rate-limit"))
        return encode(RoomError(CrdtType.ELO, "r", RoomErrorCode.REJOIN_SUGGESTED, words))

    async def main() -> None:
        async with client_of("ws://127.0.0.1:1") as client:
            room = client.join("r", Notebook())
            steps = [sum(1 for _ in client._rooms.received(frame(words)) or ()) for words in ("full", "+a" * 2_000)]
            assert steps[0] == 0
            assert steps[1] >= 60
            assert room.status is RoomStatus.CONNECTING

    run(main)


async def test_auth_bytes_are_in_no_log_no_repr_and_no_error(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Joined, refused, raised, too large or of the wrong type: the credentials are nowhere to be read."""
    caplog.set_level(logging.DEBUG)
    shown: list[object] = []

    def raising() -> bytes:
        raise OSError("the program's own words")  # its traceback is logged as it is (D-GUARD)

    def unauthorized() -> bytes:
        raise Unauthorized("hunter2")

    async def a_str() -> Any:
        return "hunter2"

    async with client_of(manual.url) as client:
        fine = client.join("fine", Notebook(), auth=b"hunter2", on_status=shown.append)
        refused = client.join("refused", Notebook(), auth=lambda: b"hunter2", on_status=shown.append)
        failing = client.join("failing", Notebook(), auth=raising, on_status=shown.append)
        out = client.join("out", Notebook(), auth=unauthorized, on_status=shown.append)
        wrong = client.join("wrong", Notebook(), auth=a_str, on_status=shown.append)
        too_large = client.join("large", Notebook(), auth=b"hunter2" * 50_000, on_status=shown.append)
        peer = await manual.peer()
        shown += [await peer.let_in(), await peer.turn_away(JoinErrorCode.AUTH_FAILED)]
        await fine
        for room in (refused, out, wrong, too_large):
            with pytest.raises(JoinRefused) as caught:
                await room
            shown += [caught.value, str(caught.value)]
        shown += [fine, refused, failing, out, wrong, client, room.reason, client._rooms]
        await asyncio.sleep(5)
    assert fine.status is RoomStatus.DISCONNECTED
    assert repr(fine) == "<Room 'fine' %ELO disconnected>"
    assert "hunter2" not in caplog.text + repr(shown)
    assert "reconnect_fsm" in caplog.text


async def test_auth_bytes_are_not_the_result_of_a_task(manual: ManualServer, caplog: pytest.LogCaptureFixture) -> None:
    """In debug mode asyncio logs the repr of a task whose last step was slow, and in that is the task's result."""
    asyncio.get_running_loop().slow_callback_duration = 0  # here all of them are slow

    async def token() -> bytes:
        await asyncio.sleep(1)
        return b"hunter2"

    async with client_of(manual.url) as client:
        room = client.join("r", Notebook(), auth=token)
        await (await manual.peer()).let_in()
        await room
    assert "Executing <Task finished" in caplog.text
    assert "hunter2" not in caplog.text


# ------------------------------------------------------------------------------------- what a close reading has found


async def test_d_leave_a_join_that_follows_at_once_makes_a_new_room(manual: ManualServer) -> None:
    """D-LEAVE D-LISTEN: also within a listener, where both wait their turn; the join is not lost."""
    async with joined(manual) as (client, room, _):
        made: list[Room] = []

        def again(change: StatusChange[ClientStatus]) -> None:
            room.leave()
            made.append(client.join("r", Notebook()))

        client.on_status(again)
        client.set_online(False)
        client.set_online(True)
        await (await manual.peer()).let_in()
        await made[-1]
        assert room.state == "left"
        assert client.rooms == (made[-1],)
        assert made[-1] is not room


async def test_an_adaptor_that_asks_a_cancelled_task_harms_only_its_room(manual: ManualServer) -> None:
    """CancelledError out of a plain call is the adaptor's fault, and ends neither the reader nor the connection."""
    adaptor = Notebook()
    adaptor.raises["apply"] = asyncio.CancelledError()
    async with joined(manual, adaptor) as (client, room, peer):
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"x",), 77))
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 77, UpdateStatusCode.INVALID_UPDATE)
        await peer.next(JoinRequest)  # D-RESYNC
        del adaptor.raises["apply"]
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"y",), 78))
        await peer.hears_nothing_else()
        assert adaptor.applied == [b"y"]
        assert (client.status, room.status) == (ClientStatus.CONNECTED, RoomStatus.JOINED)


async def test_what_an_application_calls_its_error_is_made_presentable(manual: ManualServer) -> None:
    """A server's words are short and one line, whatever it sends: they end up in reasons and logs."""
    async with client_of(manual.url) as client:
        room = client.join("r", Notebook())
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await peer.send(JoinError(CrdtType.ELO, "r", JoinErrorCode.APP_ERROR, "no", app_code="a\nb" * 1000))
        with pytest.raises(JoinRefused) as caught:
            await room
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


async def test_a_second_yes_does_not_change_what_we_may_do(manual: ManualServer) -> None:
    """The machine refuses it, and so does all else: the permission stays."""
    async with joined(manual) as (_, room, peer):
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "read", b"other"))
        await peer.hears_nothing_else()
        assert room.permission == "write"


async def test_a_message_over_the_protocols_limit_is_dropped(manual: ManualServer) -> None:
    """256 KiB: more would block the loop for as long as a server likes; the room goes on."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (client, room, peer):
        frame = encode(DocUpdate(CrdtType.ELO, "r", (b"x",) * 100, 1))
        await peer.send(frame + b"\0" * 262_144)
        await peer.hears_nothing_else()
        assert adaptor.applied == []
        assert (client.status, room.status) == (ClientStatus.CONNECTED, RoomStatus.JOINED)


class Jammed:
    """A connection on which five frames go out, and no more."""

    def __init__(self, sent: list[Any]) -> None:
        self.send = sent.append
        self._sent = sent

    @property
    def backlog(self) -> int:
        return 1_000 if len(self._sent) >= 5 else 0

    async def written(self) -> None: ...


async def test_refusals_are_kept_back_when_nothing_is_read(manual: ManualServer) -> None:
    """A server that sends junk and reads nothing cannot fill our memory with Acks."""
    adaptor = Notebook()
    adaptor.raises["apply"] = ValueError("junk")
    async with joined(manual, adaptor) as (client, room, peer):
        sent: list[bytes] = []
        client._rooms._link = Jammed(sent)
        for number in range(20):
            await peer.send(DocUpdate(CrdtType.ELO, "r", (b"x",), number))
        await asyncio.sleep(1)
        assert len(sent) == 5
        assert room.status is RoomStatus.JOINED


async def test_fragments_come_in_a_few_rooms_at_a_time(manual: ManualServer) -> None:
    """Each room may hold 128 MiB of unfinished batches, so only so many rooms may."""
    async with client_of(manual.url) as client:
        rooms = [client.join(f"r{number}", Notebook()) for number in range(17)]
        peer = await manual.peer()
        for room in rooms:
            request = await peer.next(JoinRequest)
            await peer.send(JoinResponseOk(CrdtType.ELO, request.room_id, "write", b""))
            await room
        for number in range(17):
            await peer.send(DocUpdateFragmentHeader(CrdtType.ELO, f"r{number}", 5, 2, 2))
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r16", 5, UpdateStatusCode.RATE_LIMITED)


async def test_d_leave_an_answer_to_who_has_left_is_for_nobody(manual: ManualServer) -> None:
    """D-LEAVE: a room that is joined again at once is not refused for what the first request got wrong."""
    async with client_of(manual.url) as client:
        first = client.join("r", Notebook(), auth=b"wrong")
        peer = await manual.peer()
        assert (await peer.next(JoinRequest)).auth == b"wrong"
        await first.leave()
        second = client.join("r", Notebook(), auth=b"right")
        await peer.next(Leave)
        assert (await peer.next(JoinRequest)).auth == b"right"
        await peer.send(JoinError(CrdtType.ELO, "r", JoinErrorCode.AUTH_FAILED, "wrong"))
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        assert await second is second
        assert client.rooms == (second,)


# -------------------------------------------------------------------------------------------------------- long uploads


class Library(Notebook):
    """An adaptor whose document is large: it hands it out in pieces, and counts those that were taken."""

    PIECE: ClassVar = bytes(200 * 1024)

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.taken = 0

    def missing_from(self, server_version: bytes) -> Iterator[bytes]:
        for _ in range(self.pieces):
            self.taken += 1
            yield self.PIECE


async def test_d_ack_a_large_document_goes_out_as_the_server_takes_it(manual: ManualServer) -> None:
    """D-ACK: no more of it is asked for than a few MiB beyond what was acknowledged, and it ends when all was."""
    adaptor = Library(60)
    async with joined(manual, adaptor) as (_, room, peer):
        syncing = asyncio.create_task(room.synced())
        most = room_session.UPLOAD_AHEAD // len(adaptor.PIECE) + 2
        await asyncio.sleep(5)
        assert 1 < adaptor.taken <= most
        acknowledged = 0
        while acknowledged < 60:
            batch = await peer.next(DocUpdate)
            assert not syncing.done()
            acknowledged += len(batch.updates)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
            assert adaptor.taken <= acknowledged + most
        await syncing
        assert adaptor.taken == 60


async def test_d_ack_a_large_document_begins_anew_on_the_next_connection(manual: ManualServer) -> None:
    """D-ACK: what was not sent when the connection was lost is not sent behind the version exchange's back."""
    adaptor = Library(60)
    async with joined(manual, adaptor) as (_, room, peer):
        await asyncio.sleep(5)
        taken, adaptor.pieces = adaptor.taken, 1
        await peer.close(1001)
        again = await manual.peer()
        await again.let_in()
        await again.next(DocUpdate)
        await again.hears_nothing_else()
        assert room.status is RoomStatus.JOINED
        assert adaptor.taken == taken + 1


async def test_d_leave_the_rest_of_a_large_document_goes_before_the_leave(manual: ManualServer) -> None:
    """D-LEAVE D-ACK: there will be no other time for it."""
    adaptor = Library(60)
    async with joined(manual, adaptor) as (_, room, peer):
        leaving = asyncio.create_task(asyncio.wait_for(room.leave(), PATIENCE))
        for _ in range(60):
            assert (await peer.next(DocUpdate)).updates == (adaptor.PIECE,)
        await peer.next(Leave)
        await leaving


async def test_an_adaptor_that_raises_in_the_middle_of_a_large_document(manual: ManualServer) -> None:
    """D-ERROR: its room is in error, and no other; also if there is no end of what it has to say."""

    async def acknowledge_all(peer: Peer) -> None:
        while True:
            batch = await peer.next(DocUpdate)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))

    class Torn(Notebook):
        def missing_from(self, server_version: bytes) -> Iterator[bytes]:
            yield from itertools.repeat(b"", 300_000)
            raise OSError("the disk is gone")

    async with client_of(manual.url) as client:
        room = client.join("r", Torn())
        peer = await manual.peer()
        await peer.let_in()
        acknowledging = asyncio.create_task(acknowledge_all(peer))
        with pytest.raises(JoinRefused):
            await asyncio.wait_for(room.synced(), PATIENCE)
        acknowledging.cancel()
        assert client.rooms == ()
        assert client.status is ClientStatus.CONNECTED


# ------------------------------------------------------------------------------------------------------------- D-RESYNC


async def test_d_resync_by_hand_versions_are_compared_in_the_session(manual: ManualServer) -> None:
    """D-RESYNC: what the server lacks is sent, and `resync` returns when it has its Ack; the status is the same."""
    adaptor, heard = Notebook(), Heard()
    async with joined(manual, adaptor) as (_, room, peer):
        room.on_status(heard)
        adaptor.missing = (b"lost long ago",)
        resyncing = asyncio.create_task(room.resync())
        request = await peer.next(JoinRequest)
        assert (request.version, room.state, room.status) == (b"current", "resyncing", RoomStatus.JOINED)
        adaptor.edit(b"meanwhile")
        assert (await peer.next(DocUpdate)).updates == (b"meanwhile",)
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b"", b"another day"))
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"lost long ago",)
        assert not resyncing.done()
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await resyncing
        assert (room.extra, room.is_synced) == (b"another day", True)
    assert heard == ["disconnected"]


async def test_d_resync_while_not_connected_waits_for_the_join(manual: ManualServer) -> None:
    """D-RESYNC: which compares versions, too."""
    async with joined(manual) as (_, room, peer):
        peer.drop()
        await until(lambda: room.status is RoomStatus.RECONNECTING)
        resyncing = asyncio.create_task(room.resync())
        peer = await manual.peer()
        await peer.let_in()
        await resyncing
        await peer.hears_nothing_else()


async def test_d_resync_two_at_once_are_one(manual: ManualServer) -> None:
    """D-RESYNC: the answer under way is for both."""
    async with joined(manual) as (_, room, peer):
        both = [asyncio.create_task(room.resync()) for _ in range(2)]
        await peer.let_in()
        await asyncio.gather(*both)
        await peer.hears_nothing_else()


async def test_d_resync_no_answer_is_asked_again_and_the_session_goes_on(manual: ManualServer) -> None:
    """D-RESYNC D-TIMEOUT: with the room's own backoff."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        resyncing = asyncio.create_task(room.resync())
        await peer.next(JoinRequest)
        await peer.next(JoinRequest)  # 10 s later
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"theirs",), 1))
        await until(lambda: adaptor.applied)
        assert room.permission == "write"
        await peer.send(JoinResponseOk(CrdtType.ELO, "r", "write", b""))
        await resyncing


async def test_d_resync_an_update_that_waits_for_another_leads_to_a_comparison(manual: ManualServer) -> None:
    """D-RESYNC: `apply` said so; until it is answered, and what the server had has come, the room is not synced."""

    class Gappy(Notebook):
        def apply(self, updates: Sequence[bytes]) -> bool:
            super().apply(updates)
            return b"too early" not in updates

        def covers(self, server_version: bytes) -> bool:
            return server_version != b"all" or b"the gap" in self.applied

    adaptor = Gappy()
    async with joined(manual, adaptor) as (_, room, peer):
        for _ in range(3):
            await peer.send(DocUpdate(CrdtType.ELO, "r", (b"too early",), 1))
        request = await peer.next(JoinRequest)
        await peer.hears_nothing_else()
        syncing = asyncio.create_task(room.synced())
        await peer.send(JoinResponseOk(request.crdt, "r", "write", b"all"))
        await until(lambda: room.state == "joined")
        assert not room.is_synced
        await peer.send(DocUpdate(CrdtType.ELO, "r", (b"the gap",), 2))
        await syncing
        assert room.is_synced


async def test_d_resync_a_refusal_for_good_is_raised_until_it_is_over(manual: ManualServer) -> None:
    """D-RESYNC: `synced` raises, listeners of errors hear of it once; the next edit makes one more comparison."""
    adaptor, errors, denied = Notebook(), list[Exception](), UpdateStatusCode.PERMISSION_DENIED
    async with joined(manual, adaptor) as (_, room, peer):
        room.on_error(errors.append)

        async def refuse() -> None:
            batch = await peer.next(DocUpdate)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, denied))

        adaptor.edit(b"a")
        waiting = asyncio.create_task(room.synced())
        adaptor.missing = (b"a",)
        await refuse()
        await peer.let_in()
        await refuse()
        with pytest.raises(UpdatesRefused) as caught:
            await waiting
        assert caught.value.status is denied
        with pytest.raises(UpdatesRefused):
            await room.synced()
        assert (room.status, room.is_synced) == (RoomStatus.JOINED, False)
        adaptor.edit(b"b")
        adaptor.missing = (b"a", b"b")
        began = now()
        await peer.let_in()
        assert now() - began == pytest.approx(30, abs=0.5)
        batch = await peer.next(DocUpdate)
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()
        await asyncio.sleep(0)
    assert [type(each) for each in errors] == [UpdatesRefused]
    assert adaptor.refusals == [((b"a",), denied)] * 2


async def test_d_resync_an_ack_for_a_later_edit_ends_no_doubt(manual: ManualServer) -> None:
    """D-RESYNC: two updates are on their way, the first is refused, and the second gets its OK."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.edit(b"a")
        adaptor.edit(b"b, on top of a")
        first, second = await peer.next(DocUpdate), await peer.next(DocUpdate)
        await peer.send(
            Ack(CrdtType.ELO, "r", first.batch_id, UpdateStatusCode.UNKNOWN),
            Ack(CrdtType.ELO, "r", second.batch_id, UpdateStatusCode.OK),
        )
        await peer.next(JoinRequest)
        assert not session_of(room).unacked
        assert not room.is_synced


async def test_d_joinerr_a_rate_limit_is_waited_for_and_the_session_goes_on(manual: ManualServer) -> None:
    """D-JOINERR D-RESYNC: later each time; edits are kept back, and go out in one go."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.edit(b"a")
        for wait in (0.125, 0.25, 0.25):  # as `client_of` has it
            batch = await peer.next(DocUpdate)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.RATE_LIMITED))
            await until(lambda: room.state == "resync_delayed")
            began = now()
            adaptor.edit(b"another")
            adaptor.missing = (b"all",)
            await peer.let_in()
            assert now() - began == pytest.approx(wait, abs=0.05)
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"all",)
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()


async def test_d_joinerr_an_unspecified_refusal_loses_no_room_that_was_good(manual: ManualServer) -> None:
    """D-JOINERR: neither at a rejoin, nor while versions are compared."""
    async with joined(manual) as (client, room, peer):
        resyncing = asyncio.create_task(room.resync())
        await peer.turn_away(JoinErrorCode.UNKNOWN)
        assert room.status is RoomStatus.JOINED
        await peer.let_in()
        await resyncing
        peer.drop()
        peer = await manual.peer()
        await peer.turn_away(JoinErrorCode.UNKNOWN)
        await peer.let_in()
        await room
        assert client.rooms == (room,)


async def test_d_resync_on_synced_hears_of_every_change(manual: ManualServer) -> None:
    """D-RESYNC: once for each change, and not inside the document's own call."""
    adaptor, heard = Notebook(), list[bool]()
    async with joined(manual, adaptor) as (_, room, peer):
        assert room.is_synced
        forget = room.on_synced(heard.append)
        adaptor.edit(b"a")
        adaptor.edit(b"b")
        assert (heard, room.is_synced) == ([], False)
        for _ in range(2):
            batch = await peer.next(DocUpdate)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()
        await until(lambda: len(heard) == 2)
        peer.drop()
        await (await manual.peer()).let_in()
        await until(lambda: len(heard) == 4)
        forget()
        adaptor.edit(b"c")
        await asyncio.sleep(1)
    assert heard == [False, True, False, True]


async def test_d_resync_edits_that_are_not_committed_are_committed_first(server: EmbeddedServer) -> None:
    """D-RESYNC: `is_synced` knows of them, `synced` commits them."""
    doc = new_doc()
    async with client_of(server.url) as client:
        room = await client.join("r", LoroAdaptor(doc))
        await room.synced()
        doc.get_text("text").insert(0, "not committed")
        assert not room.is_synced
        await room.synced()
        assert text(server.document("r")) == "not committed"


async def test_on_error_hears_why_a_room_ends(manual: ManualServer) -> None:
    """D-ROOMERR D-ERROR: also if it is this program's own doing."""
    errors: list[Exception] = []
    adaptor = Notebook()
    async with joined(manual) as (client, room, peer):
        room.on_error(errors.append)
        await peer.send(room_error(RoomErrorCode.EVICTED, "out"))
        await until(lambda: errors)
        bad = client.join("bad", adaptor)
        bad.on_error(errors.append)
        await peer.let_in()
        await bad
        adaptor.raises["version"] = ZeroDivisionError()
        with pytest.raises(JoinRefused):
            await bad.resync()
        await until(lambda: len(errors) == 2)
    assert [(type(each), getattr(each, "code", 0)) for each in errors] == [(JoinRefused, 2), (JoinRefused, None)]


# ------------------------------------------------------------------------------------------------ D-ANYWAY, D-PRESENCE


class Hoarder(Notebook):
    """Passes nothing on, and tells that there is something."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []
        self.max_piece = FRAGMENT_SIZE

    def keep(self, *updates: bytes) -> None:
        self.kept += updates
        send: Any = self.edit
        send(None)

    def unsent(self) -> Iterator[bytes]:
        self._called("unsent")
        while self.kept:
            yield self.kept.pop(0)


async def test_d_anyway_what_was_not_passed_on_is_taken_in_a_later_turn(manual: ManualServer) -> None:
    """D-ANYWAY: in order, and the room is not synced until it is sent and acknowledged."""
    adaptor = Hoarder()
    async with joined(manual, adaptor) as (_, room, peer):
        adaptor.keep(b"one", b"two")
        adaptor.keep(b"three")
        assert (adaptor.asked["unsent"], room.is_synced) == (0, False)
        batch = await peer.next(DocUpdate)
        assert batch.updates == (b"one", b"two", b"three")
        assert not room.is_synced
        await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        await room.synced()
        await peer.hears_nothing_else()


async def test_d_anyway_while_something_is_uploaded_it_comes_next(manual: ManualServer) -> None:
    """D-ANYWAY: what came to the document during the upload of a join goes after it."""
    adaptor = Hoarder()
    adaptor.missing = [bytes(200_000)] * 30
    async with client_of(manual.url) as client:
        room = client.join("r", adaptor)
        peer = await manual.peer()
        await peer.let_in()
        await peer.next(DocUpdate)
        adaptor.keep(b"the last")
        sent = 1
        while (batch := await peer.next(DocUpdate)).updates != (b"the last",):
            sent += len(batch.updates)
            await peer.send(Ack(CrdtType.ELO, "r", batch.batch_id, UpdateStatusCode.OK))
        assert sent == 30
        assert not room.is_synced


async def test_d_anyway_an_adaptor_whose_unsent_raises_puts_its_room_in_error(manual: ManualServer) -> None:
    """D-ANYWAY D-GUARD: it is asked in the loop, not in the document's call."""
    adaptor = Hoarder()
    async with joined(manual, adaptor) as (_, room, _):
        adaptor.raises["unsent"] = BaseException("as loro does")
        adaptor.keep(b"x")
        await until(lambda: room.status is RoomStatus.ERROR)


class Presence(Notebook):
    """Has entries that expire."""

    def __init__(self, interval: float | None) -> None:
        super().__init__()
        self.renew_interval = interval
        self.renewed: list[float] = []

    def renew(self) -> None:
        self._called("renew")
        self.renewed.append(now())
        self.edit(b"here")

    def take_back(self) -> Sequence[bytes]:
        self._called("take_back")
        return [b"gone"]


async def test_d_presence_is_renewed_for_as_long_as_the_room_is_joined(manual: ManualServer) -> None:
    """D-PRESENCE: each interval, whatever a renewal raises; not while there is no session."""
    adaptor = Presence(10.0)
    async with joined(manual, adaptor) as (_, room, peer):
        began = now()
        for _ in range(2):
            assert (await peer.next(DocUpdate)).updates == (b"here",)
        adaptor.raises["renew"] = ZeroDivisionError()
        await asyncio.sleep(10)
        adaptor.raises.clear()
        assert (await peer.next(DocUpdate)).updates == (b"here",)
        assert [round(at - began) for at in adaptor.renewed] == [10, 20, 40]
        peer.drop()
        peer = await manual.peer()
        await peer.next(JoinRequest)
        await asyncio.sleep(9)
        assert len(adaptor.renewed) == 3
        await room.leave()
        await asyncio.sleep(60)
        assert (len(adaptor.renewed), adaptor.asked["take_back"]) == (3, 0)


@pytest.mark.parametrize("ending", ["leave", "close"])
async def test_d_presence_is_taken_back_at_the_end(manual: ManualServer, ending: str) -> None:
    """D-PRESENCE: before the Leave, or the close frame; once."""
    adaptor = Presence(None)
    async with joined(manual, adaptor) as (client, room, peer):
        await (room.leave() if ending == "leave" else client.close())
        assert (await peer.next(DocUpdate)).updates == (b"gone",)
        if ending == "leave":
            await peer.next(Leave)
            await client.close()
    assert adaptor.asked["take_back"] == 1


async def test_d_presence_a_connection_that_is_made_anew_takes_nothing_back(manual: ManualServer) -> None:
    """D-PRESENCE: the others would see us go and come."""
    adaptor = Presence(None)
    async with joined(manual, adaptor) as (client, room, _):
        client.retry_now()
        await (await manual.peer()).let_in()
        await room
        assert adaptor.asked["take_back"] == 0


# ------------------------------------------------------------------------------------------------------------ D-TOOBIG


async def test_d_toobig_pieces_are_halved_until_they_are_taken(manual: ManualServer) -> None:
    """D-TOOBIG: of updates and of fragments, at each 1009, down to 16 KiB; the adaptor is told."""
    adaptor = Hoarder()
    adaptor.missing = (bytes(100_000), bytes(300_000))
    async with client_of(manual.url) as client:
        client.join("r", adaptor)
        sizes = []
        for _ in range(6):
            peer = await manual.peer()
            await peer.let_in()
            message = await peer.next(DocUpdate if not sizes else Message)  # type: ignore[type-var]
            sizes.append(adaptor.max_piece)
            while isinstance(message, DocUpdate | DocUpdateFragmentHeader):
                message = await peer.next(Message)  # type: ignore[type-var]
            assert isinstance(message, DocUpdateFragment)
            assert len(encode(message)) <= max(256 * 1024 >> len(sizes) - 1, 16 * 1024)
            await peer.close(1009)
    assert sizes == [
        FRAGMENT_SIZE,
        *[size - room_driver.MAX_FRAME_OVERHEAD for size in (131072, 65536, 32768, 16384, 16384)],
    ]


async def test_d_toobig_a_close_for_nothing_of_ours_halves_nothing(manual: ManualServer) -> None:
    """D-TOOBIG: nothing was on its way."""
    async with joined(manual) as (client, room, peer):
        await peer.close(1009)
        await (await manual.peer()).let_in()
        await room
        assert client._rooms.max_piece == 256 * 1024


@pytest.mark.parametrize("name", ["max_piece", "max_update_size"])
@pytest.mark.parametrize("wrong", [0, 16 * 1024 - 1, 1e6, "x", None, True])
def test_d_toobig_a_size_that_makes_no_sense_is_refused(name: str, wrong: Any) -> None:
    """D-TOOBIG: at once, in words."""
    with pytest.raises(ValueError, match=f"{name} must be a number of bytes, at least 16384"):
        Client("ws://127.0.0.1:1", **{name: wrong})


async def test_d_toobig_the_first_size_can_be_set(manual: ManualServer) -> None:
    """D-TOOBIG: no frame is larger, small edits included."""
    adaptor = Notebook()
    async with joined(manual, adaptor, max_piece=16 * 1024) as (_, _, peer):
        adaptor.edit(bytes(16_383))
        adaptor.edit(b"end")
        frames: list[Message | str] = []
        while not frames or getattr(frames[-1], "updates", ()) != (b"end",):
            frames.append(await peer.next(Message))  # type: ignore[type-var]
        assert max(len(encode(each)) for each in frames if not isinstance(each, str)) <= 16 * 1024


# ------------------------------------------------------------------------------------------------------- large messages


async def test_a_batch_of_very_many_updates_is_applied_in_slices(manual: ManualServer) -> None:
    """The loop has its turns meanwhile; order is kept; one Ack for the batch, if it is refused."""
    adaptor, turns = Notebook(), 0
    many = tuple(number.to_bytes(2, "big") for number in range(20_000))

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async with joined(manual, adaptor) as (_, _, peer):
        await peer.send(DocUpdate(CrdtType.ELO, "r", many, 1), DocUpdate(CrdtType.ELO, "r", (b"next",), 2))
        await until(lambda: adaptor.applied)
        turn()
        await until(lambda: len(adaptor.applied) == len(many) + 1)
        assert adaptor.applied == [*many, b"next"]
        assert adaptor.asked["apply"] == -(-len(many) // room_session.MAX_APPLIED_AT_ONCE) + 1
        adaptor.raises["apply"] = ValueError("junk")
        await peer.send(DocUpdate(CrdtType.ELO, "r", many, 3))
        assert await peer.next(Ack) == Ack(CrdtType.ELO, "r", 3, UpdateStatusCode.INVALID_UPDATE)
        await peer.next(JoinRequest)
        await peer.hears_nothing_else()


async def test_a_batch_that_is_being_applied_ends_with_its_session(manual: ManualServer) -> None:
    """The next session begins with a comparison; a room that was left applies nothing."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        steps = driver_of(room).rooms.received(encode(DocUpdate(CrdtType.ELO, "r", (b"x",) * 1000, 1)))
        assert steps is not None
        next(iter(steps))
        room.leave()
        assert len(list(steps)) < 100
        assert len(adaptor.applied) == room_session.MAX_APPLIED_AT_ONCE
        await peer.next(Leave)


async def test_a_large_frame_that_is_cut_off_is_dropped_whole(
    manual: ManualServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read to its end before anything of it is applied."""
    adaptor = Notebook()
    async with joined(manual, adaptor) as (_, room, peer):
        await peer.send(encode(DocUpdate(CrdtType.ELO, "r", (b"x",) * 5000, 1))[:-1])
        await peer.hears_nothing_else()
        assert (adaptor.applied, room.status) == ([], RoomStatus.JOINED)
    assert "dropped a malformed message" in caplog.text


async def test_d_thread_a_wait_in_another_loop_raises_at_once(manual: ManualServer) -> None:
    """D-THREAD: whatever would wait for a room, join it or leave it."""
    async with joined(manual) as (client, room, _):

        async def each(ask: Callable[[], Any]) -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                await ask()

        for ask in (room.synced, room.resync, lambda: room, room.leave, lambda: client.join("x", Notebook())):
            await asyncio.to_thread(asyncio.run, each(ask))
