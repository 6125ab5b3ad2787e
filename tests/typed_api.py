"""The public API as users write it. Never run: `mypy --strict` and pyright read it, and so say what users will see.

Whatever a user's own checker would complain of has to show here first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal, assert_type

import aiohttp
from yarl import URL

from reconnect_fsm import (
    AttemptFailure,
    Client,
    ClientFSM,
    ClientStatus,
    ClientStopped,
    CloseInfo,
    Connection,
    FailureKind,
    FaultKind,
    JoinRefused,
    Keepalive,
    ManualNetwork,
    NetworkSource,
    ReconnectError,
    RetryPolicy,
    Room,
    RoomFSM,
    RoomStatus,
    StateChange,
    StatusChange,
    StopKind,
    Unauthorized,
    UpdatesRefused,
)
from reconnect_fsm.adaptors import Adaptor
from reconnect_fsm.diagrams import sequence
from reconnect_fsm.effects import Effect, StartTimer
from reconnect_fsm.inspector import Inspector, inspect
from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode
from reconnect_fsm.machine import ANY, OTHERWISE, STAY, any_but, event, ignore, row, state
from reconnect_fsm.recorder import Recording, Replay, Transition, replay, transitions_in
from reconnect_fsm.status import Cause
from reconnect_fsm.telemetry import AttemptEnded, Metrics, TelemetryEvent, instrument, observe

# -------------------------------------------------------------------------------------------------------- parts to give


class Notebook:
    """An adaptor of a user's own: it needs no base class."""

    crdt_type = CrdtType.YJS

    def __init__(self) -> None:
        self.pages: list[bytes] = []

    def version(self) -> bytes:
        return len(self.pages).to_bytes(4, "big")

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return self.pages[int.from_bytes(server_version, "big") :]

    def covers(self, server_version: bytes) -> bool:
        return len(self.pages) >= int.from_bytes(server_version, "big")

    def apply(self, updates: Sequence[bytes]) -> None:
        self.pages += updates

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        return lambda: None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        assert_type(status, UpdateStatusCode)


class Stubborn(RetryPolicy):
    """A policy of a user's own."""

    def delay(self, attempt: int) -> float:
        return min(super().delay(attempt), 1.0)

    def is_fatal_close(self, info: CloseInfo) -> bool:
        return info.code == 4401 and "expired" not in info.reason

    def is_fatal_failure(self, failure: AttemptFailure) -> bool:
        return failure.http_status == 410


class Cable:
    """A network source of a user's own."""

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        report(True)
        return lambda: None


# ----------------------------------------------------------------------------------------------------- machines to give


class Patient(ClientFSM):
    """Waits in a state of its own after being kicked, and changes its token before it expires."""

    banished = state(
        ClientStatus.RECONNECTING,
        enter="wait_long",
        exit=ClientFSM.stop_retry_timer,
        like=ClientFSM.waiting,
        doc="a long timer",
    )

    def is_offline(self) -> bool:
        return super().is_offline() or self.attempt > 100

    def was_kicked(self) -> bool:
        return self.loss.reason == "kicked"

    def wait_long(self) -> None:
        self.retry_in = 60.0
        self.emit(StartTimer(self.retry_in))

    socket_closed = ClientFSM.socket_closed.first(
        row(ClientFSM.connected, to=banished, when=was_kicked, clause="RETRY-1"),
    )
    timer_fired = ClientFSM.timer_fired.first(
        row(banished, to="retrying", when=[ClientFSM.is_online, "was_kicked"]),
    )
    pong_missed = ClientFSM.pong_missed.first(
        row(ClientFSM.connected, to=banished, unless=ClientFSM.is_online, before=ClientFSM.is_offline),
        row(ClientFSM.connected, to=banished, unless=[was_kicked, "is_online"], after="RETRY-2", silences=ANY),
    )
    dial_failed = ClientFSM.dial_failed.insert(
        row(ClientFSM.DIALING, to=banished, when=was_kicked), after=ClientFSM.are_attempts_used_up
    )

    @event(
        row(ClientFSM.connected, to=ClientFSM.connecting, do=ClientFSM.forget_attempts),
        row(ClientFSM.BETWEEN, to=STAY),
        row(any_but(*ClientFSM.STOPPED), to=STAY, when=was_kicked),
        ignore(ANY, because="no token is in use", when="is_offline"),
        ignore(OTHERWISE, because="no token is in use"),
    )
    def token_expired(self, seconds: float, why: str = "") -> None:
        """The token expires soon."""
        self.pending_reason = why


class Hasty(RoomFSM):
    """Has less patience."""

    join_timeout = 2.0

    def may_try_another_version(self) -> bool:
        return False


def machines() -> None:
    fsm = Patient(RetryPolicy(jitter=0))
    assert_type(fsm.status, ClientStatus)
    assert_type(fsm.state, str)
    assert_type(fsm.attempt, int)
    assert_type(fsm.retry_in, float | None)
    assert_type(fsm.connect_requested(), list[Effect])
    assert_type(fsm.connect_requested(reset_backoff=True), list[Effect])
    assert_type(fsm.socket_closed(CloseInfo(1006, "kicked", lasted=3.0)), list[Effect])
    assert_type(fsm.token_expired(60.0, why="soon"), list[Effect])
    assert_type(fsm.may(Patient.token_expired), bool)
    assert_type(fsm.may("close_requested"), bool)
    Patient.to_graph_machine(graph_engine="mermaid").get_graph()
    assert_type(Hasty().status, RoomStatus)
    assert_type(Hasty().evicted(JoinRefused(1, "come back"), 100.0), list[Effect])
    for rule in Patient.rules:
        assert_type(rule.target, str | None)
        assert_type(rule.is_ignored, bool)


# --------------------------------------------------------------------------------------------------------- a connection


def fresh_url() -> str:
    return "wss://example.org/feed?token=" + "x"


async def fresh_url_in_time() -> URL:
    return URL("wss://example.org/feed")


async def connections(session: aiohttp.ClientSession) -> None:
    connection = Connection(
        "wss://example.org/feed",
        retry=RetryPolicy(
            enabled=True,
            base=0.1,
            cap=5,
            jitter=0.5,
            max_attempts=10,
            stable_after=1,
            reset_on_online=False,
            fatal_close_codes={1008, 1011},
            fatal_close_reasons=["kicked"],
            fatal_http_statuses=range(400, 500),
            random=random.Random(1),
        ),
        keepalive=Keepalive(interval=10, timeout=5, enabled=True),
        network=ManualNetwork(online=False),
        session=session,
        connect_timeout=3,
        close_timeout=0.5,
        fsm=Patient,
        headers={"Authorization": "x"},
        ssl=False,
        max_msg_size=1024,
    )
    Connection(fresh_url, network=Cable(), retry=Stubborn(max_attempts=3))
    Connection(fresh_url_in_time)
    Connection(URL("ws://127.0.0.1:1"))
    Connection(lambda: "ws://127.0.0.1:1")

    def on_message(data: str | bytes) -> None:
        assert_type(data, str | bytes)

    def on_status(change: StatusChange[ClientStatus]) -> None:
        assert_type(change.old, ClientStatus)
        assert_type(change.new, ClientStatus)
        assert_type(change.reason, str)
        assert_type(change.attempt, int)
        assert_type(change.retry_in, float | None)
        assert_type(change.cause, CloseInfo | AttemptFailure | JoinRefused | None)
        assert_type(change.stop, StopKind | None)
        if change.new is ClientStatus.ERROR:
            connection.close()

    def on_transition(change: StateChange) -> None:
        assert_type(change.event, str)
        assert_type(change.status, ClientStatus)
        assert_type(change.cause, Cause | None)
        assert_type(change.stop, StopKind | None)

    unsubscribe = connection.on_message(on_message)
    assert_type(unsubscribe, Callable[[], None])
    unsubscribe()
    connection.on_message(print)
    connection.on_status(on_status)
    connection.on_transition(on_transition)
    connection.on_latency(lambda seconds: assert_type(seconds, float))

    assert_type(connection.status, ClientStatus)
    assert_type(connection.state, str)
    assert_type(connection.reason, str)
    assert_type(connection.latency, float | None)
    assert_type(connection.cause, CloseInfo | AttemptFailure | JoinRefused | None)

    async with connection as entered:
        assert_type(entered, Connection)
        assert_type(await connection.connect(reset_backoff=True), None)
        assert_type(await connection.retry_now(), None)
        assert_type(await connection.wait_connected(), None)
        assert_type(await connection.ready(), None)
        connection.tell(Patient.token_expired, 60.0, "soon")
        assert_type(connection.machine, ClientFSM)
        assert_type(connection.machine.may(Patient.token_expired), bool)
        assert_type(await connection.ping(timeout=1), float)
        await connection.send("text")
        await connection.send(b"bytes")
        connection.set_online(False)
    connection.start()
    try:
        await connection.connect()
    except ClientStopped as stopped:
        assert_type(stopped.reason, str)
        assert_type(stopped.cause, Cause | None)
        assert_type(stopped.stop, StopKind | None)
    assert_type(await connection.close(), None)


def worth_a_call(cause: Cause | None) -> bool:
    """An application tells causes apart by their types and values, and parses no words (D-CAUSE)."""
    match cause:
        case CloseInfo(code=4000) | AttemptFailure(kind=FailureKind.ANSWER, http_status=503):
            return False
        case AttemptFailure(fault=fault):
            return fault is not FaultKind.OFFLINE
        case JoinRefused():
            return cause.app_code != "busy"
        case _:
            return False


# ------------------------------------------------------------------------------------------------------------- a client


async def token() -> bytes:
    raise Unauthorized("logged out")


async def clients(adaptor: Adaptor) -> None:
    network: NetworkSource = ManualNetwork()
    Client("ws://127.0.0.1:1", max_concurrent_joins=None, max_piece=65_536, max_update_size=1 << 20)
    async with Client("ws://127.0.0.1:1", network=network, fsm=Patient, room_fsm=Hasty) as client:
        assert_type(client, Client)
        room = client.join("notes", Notebook())
        assert_type(room, Room)
        assert_type(await room, Room)
        assert_type(await client.join("notes", adaptor, auth=b"secret"), Room)
        client.join("notes", adaptor, auth=lambda: b"secret")
        client.join("notes", adaptor, auth=token, on_status=print)

        def on_status(change: StatusChange[RoomStatus]) -> None:
            assert_type(change.new, RoomStatus)

        client.join("notes", adaptor, on_status=on_status)
        assert_type(room.on_status(on_status), Callable[[], None])
        assert_type(client.rooms, tuple[Room, ...])
        assert_type(room.id, str)
        assert_type(room.crdt_type, CrdtType)
        assert_type(room.status, RoomStatus)
        assert_type(room.state, str)
        assert_type(room.reason, str)
        assert_type(room.permission, Literal["read", "write"] | None)
        assert_type(room.extra, bytes)
        assert_type(room.is_synced, bool)

        def on_synced(synced: bool) -> None: ...
        def on_error(error: ReconnectError) -> None: ...

        assert_type(room.on_synced(on_synced), Callable[[], None])
        assert_type(room.on_error(on_error), Callable[[], None])
        try:
            assert_type(await room.synced(), None)
            assert_type(await room.resync(), None)
        except UpdatesRefused as lacking:
            assert_type(lacking.status, UpdateStatusCode)
        assert_type(await room.leave(), None)
        try:
            await room
        except JoinRefused as refused:
            assert_type(refused.code, int | None)
            assert_type(refused.message, str)
            assert_type(refused.app_code, str | None)


class Chatty(Client):
    """A client of a user's own, that runs an effect of its own."""

    def run_effect(self, effect: Effect) -> None:
        if not isinstance(effect, StartTimer):
            super().run_effect(effect)


async def subclassed() -> None:
    async with Chatty("ws://127.0.0.1:1") as chatty:
        assert_type(chatty, Chatty)


def awaitable(room: Room) -> Generator[Any, None, Room]:
    return room.__await__()


# ------------------------------------------------------------------------------------------------------ what it shows


async def shown(client: Client, connection: Connection, path: Path) -> None:
    assert_type(client.explain(), str)
    with client.record(path, max_bytes=10**6, hide_rooms=True) as recording:
        assert_type(recording, Recording)
        assert_type(recording.ended, str | None)
    assert_type(connection.export(path), int)
    assert_type(client.transitions(), list[Transition])
    assert_type(sequence(client.transitions()), str)
    with path.open() as lines:
        assert_type(replay(lines, fsm=Patient, room_fsm=Hasty), Replay)
        assert_type(transitions_in(lines), list[Transition])
    async with Inspector(client) as inspector, inspect(connection):
        assert_type(inspector.url, str)


def measured(client: Client, connection: Connection) -> None:
    def seen(event: TelemetryEvent) -> None:
        if isinstance(event, AttemptEnded):
            assert_type(event.duration, float)

    assert_type(observe(client, seen), Callable[[], None])
    assert_type(instrument(connection, attributes={"app": "notes"}), Callable[[], None])
    metrics = Metrics()
    assert_type(metrics.observe(client), Callable[[], None])
    assert_type(metrics.exposition(), str)
