"""What an app gets to know of an end, as data (D-CAUSE), and the log of an outage (D-HEARD): on real sockets."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from loro import LoroDoc

import faulty
from faulty import Behaviour, Peer
from kit import hold, until
from reconnect_fsm import (
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
    RetryPolicy,
    StateChange,
    StatusChange,
    StopKind,
    Unauthorized,
)
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.machine import row
from reconnect_fsm.status import AttemptFailure, RoomStatus
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.server import Close, JoinFails, ScriptedServer

QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)
EXACT = RetryPolicy(jitter=0.0)
NO_PINGS = Keepalive(enabled=False)
virtual = pytest.mark.virtual_time


def refuse_to_say() -> str:
    raise Unauthorized("logged out")


def lists_nothing() -> str:
    raise LookupError("no server is listed")


# ------------------------------------------------------------------------------------------------------------- stops

ANSWERED = AttemptFailure(FailureKind.ANSWER, "the server answered HTTP 403", 403)
STOPS: dict[str, tuple[Behaviour, dict[str, Any], StopKind, dict[str, object]]] = {
    "a fatal close": (
        faulty.accept_then_close(4401, "expired"),
        {},
        StopKind.REFUSED,
        {"code": 4401, "reason": "expired"},
    ),
    "a fatal answer": (faulty.answer(403), {}, StopKind.REFUSED, {"http_status": 403, "kind": FailureKind.ANSWER}),
    "attempts used up": (
        faulty.answer(500),
        {"retry": RetryPolicy(base=0.01, max_attempts=1)},
        StopKind.ATTEMPTS_USED_UP,
        {"http_status": 500},
    ),
    "retrying off": (
        faulty.accept_then_close(1012),
        {"retry": RetryPolicy(enabled=False)},
        StopKind.RETRYING_OFF,
        {"code": 1012},
    ),
}


@pytest.mark.parametrize(("behaviour", "options", "stop", "wanted"), STOPS.values(), ids=STOPS)
async def test_d_cause_whoever_hears_of_a_stop_hears_why_as_data(
    behaviour: Behaviour, options: dict[str, Any], stop: StopKind, wanted: dict[str, object]
) -> None:
    """D-CAUSE: listeners of the client and of a room, operations that wait or begin to, and `cause`: all the same."""
    async with faulty.server(behaviour) as server:
        client = Client(server.url, **options)
        changes: list[StatusChange[ClientStatus]] = []
        of_room: list[StatusChange[RoomStatus]] = []
        states: list[StateChange] = []
        client.on_status(changes.append)
        client.on_transition(states.append)
        room = client.join("notes", LoroAdaptor(LoroDoc()), on_status=of_room.append)
        joining = asyncio.ensure_future(_join(room))
        with pytest.raises(ClientStopped) as raised:
            await _until_stopped(client)
        with pytest.raises(ClientStopped) as room_raised:
            await joining
        with pytest.raises(ClientStopped) as late:
            await client.ready()
        await until(lambda: of_room[-1].new == "disconnected")
        for each in (raised.value, room_raised.value, late.value, changes[-1], of_room[-1], states[-1]):
            assert each.stop is stop
            for name, value in wanted.items():
                assert getattr(each.cause, name) == value
        assert client.cause == changes[-1].cause
        assert [change.stop for change in changes[:-1]] == [None] * (len(changes) - 1)
        await client.close()


async def _until_stopped(connection: Connection) -> None:
    """Operations that wait, one after the other."""
    await connection.connect()
    while True:
        await connection.ready()
        await asyncio.sleep(0.001)


async def _join(room: Any) -> None:
    await room


async def test_d_cause_what_this_program_closes_has_no_cause() -> None:
    """D-CAUSE: for its rooms neither; `close()` is told from all other stops by its kind."""
    async with EmbeddedServer() as server:
        client = Client(server.url)
        changes: list[StatusChange[Any]] = []
        async with client:
            room = await client.join("notes", LoroAdaptor(LoroDoc()))
            client.on_status(changes.append)
            room.on_status(changes.append)
        assert [(change.new.value, change.cause, change.stop) for change in changes] == [
            ("disconnected", None, StopKind.CLOSED)
        ] * 2
        with pytest.raises(ClientStopped) as raised:
            await client.ready()
        assert (raised.value.cause, raised.value.stop) == (None, StopKind.CLOSED)


async def test_d_cause_a_room_has_the_cause_of_its_clients_loss_and_of_its_own() -> None:
    """D-CAUSE: `CloseInfo` while it reconnects, `JoinRefused` once it is refused."""
    script = [(Close(1012, "restarting", after=0.3),), (JoinFails(2, "no"),)]
    async with ScriptedServer(script) as server, Client(server.url, retry=QUICK, keepalive=NO_PINGS) as client:
        changes: list[StatusChange[RoomStatus]] = []
        await client.join("notes", LoroAdaptor(LoroDoc()), on_status=changes.append)
        await until(lambda: any(change.new == "reconnecting" for change in changes))
        lost = next(change for change in changes if change.new == "reconnecting")
        assert isinstance(lost.cause, CloseInfo)
        assert (lost.cause.code, lost.cause.reason, lost.stop) == (1012, "restarting", None)
        await until(lambda: changes[-1].new == "error")
        assert isinstance(changes[-1].cause, JoinRefused)
        assert changes[-1].cause.code == 2


async def test_d_cause_offline_and_back() -> None:
    """D-CAUSE: that there is no network is no failure of the server's."""
    async with faulty.server() as server, Connection(server.url, retry=QUICK) as connection:
        await connection.ready()
        changes: list[StatusChange[ClientStatus]] = []
        connection.on_status(changes.append)
        connection.set_online(False)
        assert connection.cause == changes[-1].cause
        assert isinstance(connection.cause, AttemptFailure)
        assert (connection.cause.fault, changes[-1].stop) == (FaultKind.OFFLINE, None)
        connection.set_online(True)
        await connection.ready()
        assert (connection.cause, changes[-1].cause) == (None, None)


@pytest.mark.parametrize(
    ("url", "status", "stop", "kind", "fault"),
    [
        (refuse_to_say, "disconnected", StopKind.REFUSED, FailureKind.UNAUTHORIZED, FaultKind.USER_FUNCTION),
        (lists_nothing, "reconnecting", None, FailureKind.NETWORK, FaultKind.USER_FUNCTION),
        (lambda: "ftp://127.0.0.1/", "error", StopKind.MISCONFIGURED, FailureKind.MISCONFIGURED, FaultKind.URL),
    ],
)
async def test_d_cause_this_programs_own_part_in_it(
    url: Any, status: str, stop: StopKind | None, kind: FailureKind, fault: FaultKind
) -> None:
    """D-CAUSE D-WORDS: a function of the user's, an address that cannot be."""
    connection = Connection(url, retry=EXACT)
    connection.start()
    await until(lambda: connection.status == status)
    assert isinstance(connection.cause, AttemptFailure)
    assert (connection.cause.kind, connection.cause.fault) == (kind, fault)
    await connection.close()


async def test_d_cause_a_port_where_nobody_listens() -> None:
    """D-CAUSE: told from all else that may go wrong."""
    with hold() as nobody:
        async with Connection(f"ws://127.0.0.1:{nobody.getsockname()[1]}/", retry=EXACT) as connection:
            changes: list[StatusChange[ClientStatus]] = []
            connection.on_status(changes.append)
            await until(lambda: changes)
            (change,) = changes
            assert change.new == "reconnecting"
            assert isinstance(change.cause, AttemptFailure)
            assert change.cause.fault is FaultKind.CONNECTION_REFUSED
            assert connection.cause == change.cause


@virtual
async def test_d_cause_a_dead_connection() -> None:
    """D-CAUSE LIVE-2: no close of the server's, but a verdict of this end."""
    keepalive = Keepalive(interval=5, timeout=2)
    async with faulty.server(faulty.ignore_pings) as server, Connection(server.url, keepalive=keepalive) as connection:
        changes: list[StatusChange[ClientStatus]] = []
        connection.on_status(changes.append)
        await asyncio.sleep(10)
        (cause,) = [change.cause for change in changes if change.new == "reconnecting"]
        assert isinstance(cause, CloseInfo)
        assert (cause.code, cause.fault) == (1006, FaultKind.LIVENESS)


async def test_d_error_a_fault_of_this_program() -> None:
    """D-CAUSE D-ERROR D-STOP: no cause from outside; told again to whoever tries again, with what is wrong now."""
    settings: dict[str, bool] = {}

    class Careful(ClientFSM):
        def is_forbidden(self) -> bool:
            return not settings["may connect"]

        connect_requested = ClientFSM.connect_requested.first(
            row(ClientFSM.STOPPED, to=ClientFSM.disconnected, when=is_forbidden)
        )

    connection = Connection("ws://127.0.0.1:1/", fsm=Careful)
    changes: list[StatusChange[ClientStatus]] = []
    connection.on_status(changes.append)
    for _ in range(3):
        with pytest.raises(ClientStopped, match="raised KeyError") as raised:
            await asyncio.wait_for(_connect(connection), 5)
        assert (raised.value.cause, raised.value.stop) == (None, StopKind.FAULT)
    assert [(change.new, change.stop) for change in changes] == [("error", StopKind.FAULT)]
    await connection.close()


async def _connect(connection: Connection) -> None:
    await connection.connect()


# ------------------------------------------------------------------------------------------------------------ too big


async def _send_too_much(peer: Peer) -> None:
    await peer.upgrade()
    peer.send("x" * 2000)
    await peer.answer_frames()


async def test_d_toobig_a_message_that_is_too_big_for_us_twice_in_a_row() -> None:
    """D-TOOBIG: two connections, then `error`, which says what can be done."""
    async with faulty.server(_send_too_much) as server:
        connection = Connection(server.url, retry=QUICK, keepalive=NO_PINGS, max_msg_size=1000)
        with pytest.raises(ClientStopped) as raised:
            await _until_stopped(connection)
        assert (server.connects, connection.status, raised.value.stop) == (2, "error", StopKind.MISCONFIGURED)
        assert isinstance(raised.value.cause, CloseInfo)
        assert raised.value.cause.fault is FaultKind.MESSAGE_TOO_BIG
        assert "max_msg_size=1000" in connection.reason
        assert "twice in a row" in connection.reason
        await connection.close()


# ------------------------------------------------------------------------------------------------------------ offline


@virtual
async def test_off_2_online_replaces_an_attempt_by_hand_that_hangs() -> None:
    """OFF-2: it was begun without a network; the fresh one does not wait until it has failed."""
    async with faulty.server(faulty.never_answer, faulty.echo) as server:
        connection = Connection(server.url, retry=EXACT)
        connection.set_online(False)
        connection.connect()
        await asyncio.sleep(1)
        assert (connection.state, server.connects) == ("connecting", 1)
        connection.set_online(True)
        await connection.wait_connected()
        assert server.times[1] - server.times[0] == pytest.approx(1, abs=0.05)
        await connection.close()


@virtual
async def test_off_2_a_flapping_network_makes_one_attempt_each_base() -> None:
    """OFF-2: twenty changes within a second, two attempts."""
    async with faulty.server() as server, Connection(server.url, retry=EXACT) as connection:
        await connection.ready()
        for _ in range(10):
            connection.set_online(False)
            await asyncio.sleep(0.02)
            connection.set_online(True)
            connection.set_online(True)  # a source may repeat itself
            await asyncio.sleep(0.08)
        await connection.wait_connected()
        assert server.connects <= 1 + 3
        gaps = [later - earlier for earlier, later in zip(server.times[1:], server.times[2:], strict=False)]
        assert min(gaps, default=1.0) >= 0.5 - 1e-6


# --------------------------------------------------------------------------------------------------------------- heard


def heard(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What the log has of outages."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "reconnect_fsm" and record.levelno >= level and " → " not in record.getMessage()
    ]


@virtual
async def test_d_heard_a_wrong_port_is_heard_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD: after three failures: why, and what comes next; and no more, however long it lasts."""
    caplog.set_level(logging.INFO)
    with hold() as nobody:
        url = f"ws://127.0.0.1:{nobody.getsockname()[1]}/"
        async with Connection(url, retry=EXACT):
            await asyncio.sleep(1.0)
            assert heard(caplog) == []
            await asyncio.sleep(1.0)
            (line,) = heard(caplog)
            assert line.startswith(url[5:-1] + ": not connected: could not connect: ")
            assert line.endswith("; retry 3 comes after a wait of 2.0 s")
            await asyncio.sleep(3600)
    assert heard(caplog, logging.INFO) == [line]


@virtual
async def test_d_heard_an_attempt_that_hangs_is_heard_of(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD: after ten seconds, though nothing has failed yet."""
    async with faulty.server(faulty.never_answer) as server, Connection(server.url, connect_timeout=60.0):
        await asyncio.sleep(9.9)
        assert heard(caplog) == []
        await asyncio.sleep(0.2)
        assert [line.partition(": not ")[2] for line in heard(caplog)] == [
            "connected: started; an attempt is under way"
        ]


@virtual
async def test_d_heard_an_outage_is_over_when_a_connection_has_lasted(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD D-STABLE: one INFO."""
    caplog.set_level(logging.INFO)
    behaviours = [faulty.answer(500)] * 4 + [faulty.accept_then_close(1012), faulty.echo]
    async with faulty.server(*behaviours) as server, Connection(server.url, retry=EXACT) as connection:
        await asyncio.sleep(60)
        assert connection.status == "connected"
        assert [line.partition(": ")[2] for line in heard(caplog, logging.INFO)] == [
            "not connected: the server answered HTTP 500; retry 3 comes after a wait of 2.0 s",
            "the outage is over: the connection has lasted",
        ]


@virtual
async def test_d_heard_offline_is_heard_of(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD: ten seconds without a connection, whatever the reason."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.ready()
        connection.set_online(False)
        await asyncio.sleep(11)
        assert [line.partition(": not ")[2] for line in heard(caplog)] == [
            "connected: offline; it waits to hear that there is a network again"
        ]


@virtual
async def test_d_heard_nothing_is_heard_of_what_is_well(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD: nor of a short outage, nor once it is closed; and no timer is left."""
    async with faulty.server(faulty.accept_then_close(1012, after=1.0), faulty.echo) as server:
        async with Connection(server.url, retry=EXACT) as connection:
            await asyncio.sleep(3600)
            assert connection.status == "connected"
        connection.start()
        await server.stop()
        await connection.close()
        await asyncio.sleep(60)
        assert heard(caplog) == []
