"""The flight recorder: what it writes, what it never writes, and that a replay of it does the same again."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import http
import io
import json
import stat
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import faulty
from hostile import MIRRORS, SECRET, Sponge
from kit import PATIENCE, Idle, until
from reconnect_fsm import Client, ClientFSM, ClientStopped, CloseInfo, Connection, JoinRefused, RetryPolicy, RoomFSM
from reconnect_fsm._asyncio.awaitables import LazyCoroutine
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.dispatcher import MAX_OLDER_STEPS, MAX_STEPS, Dispatcher
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.diagrams.timeline import sequence
from reconnect_fsm.effects import CloseSocket, Effect, FailWaiters, NotifyRooms, StartTimer, VersionChoice
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.loro_protocol import JoinErrorCode, UpdateStatusCode
from reconnect_fsm.machine import ANY, STAY, event, row
from reconnect_fsm.recorder.format import MAX_DEPTH, MAX_LEVELS, MAX_TEXT, Opaque, decoded, encoded, is_too_deep, same
from reconnect_fsm.recorder.recorder import (
    HeaderData,
    Recorder,
    Recording,
    UnreadableRecording,
    export,
    replay,
    transitions_in,
)
from reconnect_fsm.status import AttemptFailure, FailureKind, FaultKind, StatusChange, StopKind, sanitized
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.server import (
    Answer,
    Close,
    HangUp,
    JoinFails,
    LatePong,
    NoJoinAnswer,
    NoPong,
    RawAnswer,
    Reset,
    RoomFails,
    ScriptedServer,
    Stall,
    StopListening,
)
from reconnect_fsm.testing.simulation import simulate

QUICK = RetryPolicy(base=0.01, cap=0.01)
NETWORK_FAILED = AttemptFailure(FailureKind.NETWORK, "nobody answered")
LOST = CloseInfo(1006, "the network dropped it", 7.25)


def header_data(fsm: type[ClientFSM], policy: RetryPolicy) -> HeaderData:
    """Of a recording that begins with the loop."""
    return HeaderData(fsm=fsm, room_fsm=RoomFSM, policy=policy, keepalive=Keepalive(), written=1_800_000_000.0, now=0.0)


class Run:
    """Machines that are told facts, recorded into a string, without a network."""

    def __init__(self, fsm: type[ClientFSM] = ClientFSM, policy: RetryPolicy | None = None, **options: Any) -> None:
        self.dispatcher = Dispatcher()
        self.policy = policy or RetryPolicy()
        self.client = fsm(self.policy)
        self.file = io.StringIO()
        recorder = Recorder(header_data(fsm, self.policy), sanitized, hide_rooms=options.get("hide_rooms", False))
        self.recording = Recording(self.dispatcher, recorder, self.file, max_bytes=options.get("max_bytes", 10**6))

    def tell(self, event: str, *args: Any, room: RoomFSM | None = None, name: str = "notes") -> None:
        subject = Idle(self.client) if room is None else Idle(room, name)
        self.dispatcher.fire(subject, subject.fsm.events[event], *args)

    def again(self) -> Run:
        """The same machines, recorded from now on into another string."""
        self.recording.close()
        begun = copy.copy(self)
        begun.file = io.StringIO()
        recorder = Recorder(header_data(type(self.client), self.policy), sanitized, hide_rooms=False)
        begun.recording = Recording(self.dispatcher, recorder, begun.file, max_bytes=10**6)
        return begun

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [step for step in map(json.loads, self.lines) if "event" in step]


def an_outage(run: Run) -> Run:
    """Connects, loses the connection, fails once, and is back."""
    run.tell("start_requested")
    run.tell("socket_opened")
    run.tell("socket_closed", LOST)
    run.tell("timer_fired")
    run.tell("dial_failed", NETWORK_FAILED)
    run.tell("timer_fired")
    run.tell("socket_opened")
    return run


# ------------------------------------------------------------------------------------------------------------- writing


def test_the_first_line_tells_what_was_recorded() -> None:
    """Versions, classes and numbers; no address, no options."""
    header = json.loads(Run(policy=RetryPolicy(cap=7.0, fatal_http_statuses={403, 401})).lines[0])
    assert (header["recording"], header["format"]) == ("reconnect_fsm", 1)
    assert header["fsm"] == "reconnect_fsm.client_fsm:ClientFSM"
    assert header["room_fsm"] == "reconnect_fsm.room_fsm:RoomFSM"
    assert (header["policy"]["cap"], header["policy"]["fatal_http_statuses"]) == (7.0, [401, 403])
    assert header["keepalive"]["interval"] == 20.0
    assert "random" not in header["policy"]
    assert (header["time_zero"], header["written"]) == (1_800_000_000.0, "2027-01-15T08:00:00Z")


def test_each_step_is_a_line() -> None:
    """The fact, its arguments, the states, the reason and the effects, with exact numbers."""
    run = an_outage(Run())
    lost = run.steps[2]
    assert {name: lost[name] for name in ("machine", "event", "old", "new", "status", "reason", "attempt")} == {
        "machine": "client", "event": "socket_closed", "old": "connected", "new": "waiting", "status": "reconnecting",
        "reason": "the network dropped it", "attempt": 1,
    }  # fmt: skip
    assert lost["args"] == [{"is": "CloseInfo", "code": 1006, "reason": "the network dropped it", "lasted": 7.25}]
    assert [lost["retry_in"]] == [each.seconds for each in run.dispatcher.log[2][9] if isinstance(each, StartTimer)]
    assert [effect["is"] for effect in lost["effects"]] == [
        "StopKeepalive", "StopTimer", "CloseSocket", "NotifyRooms", "StartTimer", "StartOutageTimer", "NotifyStatus",
    ]  # fmt: skip
    assert lost["effects"][-1]["change"]["cause"] == lost["args"][0]


def test_what_a_machine_remembers_is_written_with_its_first_step() -> None:
    """Once a machine, so that a recording may begin in the middle."""
    run = Run()
    room = RoomFSM(run.policy)
    run.recording.close()
    an_outage(run)
    run.tell("join_requested", room=room)
    begun = run.again()
    begun.tell("socket_closed", LOST)
    begun.tell("connection_lost", "gone", room=room)
    begun.tell("timer_fired")
    assert ["memory" in step for step in begun.steps] == [True, True, False]
    assert begun.steps[0]["memory"]["attempt"] == 2
    assert "policy" not in begun.steps[0]["memory"]


def test_rooms_with_the_same_id_are_told_apart() -> None:
    """One that is joined again after it was left, or that has another type, is another machine."""
    run = Run()
    for _ in range(3):
        run.tell("join_requested", room=RoomFSM(), name="a")
    run.tell("join_requested", room=RoomFSM(), name="client")
    run.tell("join_requested", room=RoomFSM(), name="a (2)")
    assert [step["machine"] for step in run.steps] == ["a", "a (2)", "a (3)", "client (2)", "a (2) (2)"]
    assert replay(run.lines).divergences == ()


def test_what_a_server_answers_to_a_join_is_written_but_for_what_may_be_secret() -> None:
    """Versions are, so that a machine that decides on them can be replayed; what is the application's own never is.

    Nor is a version in which the server says back a secret, or that is very long.
    """
    redaction = Redaction()
    redaction.learn(b"hunter2-hunter2")
    run = Run()
    run.recording.close()
    file = io.StringIO()
    recorder = Recorder(header_data(ClientFSM, run.policy), redaction, hide_rooms=False)
    Recording(run.dispatcher, recorder, file, max_bytes=10**6)
    versions = [b"\x00\xff", b"", b"-hunter2-hunter2-", bytes(201)]
    for number, version in enumerate(versions):
        name, room = f"room {number}", RoomFSM(run.policy)
        run.tell("join_requested", room=room, name=name)
        run.tell("connection_opened", "connected", room=room, name=name)
        run.tell("join_accepted", "read", version, b"a token", room=room, name=name)
        run.tell("evicted", JoinRefused(1, "come back"), 100.0, room=room, name=name)
        run.tell("join_refused", JoinRefused(1, "version unknown"), 101.0, version, room=room, name=name)
    steps = [json.loads(line) for line in file.getvalue().splitlines()[1:]]
    written = [{"is": "bytes", "hex": "00ff"}, {"is": "bytes", "hex": ""}, {"opaque": "<bytes>"}, {"opaque": "<bytes>"}]
    answers = [step for step in steps if step["event"] == "join_accepted"]
    assert [step["args"] for step in answers] == [["read", each, {"opaque": "<bytes>"}] for each in written]
    effects = [effect for step in answers for effect in step["effects"] if effect["is"] == "Synchronise"]
    assert effects == [{"is": "Synchronise", "permission": "read", "version": each} for each in written]
    requests = [effect for step in steps[1:] for effect in step["effects"] if effect["is"] == "RequestJoin"]
    assert [each["server_version"] for each in requests if "server_version" in each] == [written[0], *written[2:]]
    assert b"a token".hex() not in file.getvalue()
    assert b"hunter2".hex() not in file.getvalue()
    assert replay(file.getvalue().splitlines()).divergences == ()


def test_what_a_machine_remembers_of_an_answer_is_written_alike() -> None:
    """A recording that begins in a session."""
    run, room = Run(), RoomFSM()
    run.tell("join_requested", room=room)
    run.tell("connection_opened", "connected", room=room)
    run.tell("join_accepted", "read", b"v", b"a token", room=room)
    again = run.again()
    again.tell("connection_lost", "lost", room=room)
    (memory,) = [step["memory"] for step in again.steps]
    assert (memory["permission"], memory["server_version"]) == ("read", {"is": "bytes", "hex": "76"})
    assert memory["extra"] == {"opaque": "<bytes>"}


def test_ids_of_rooms_can_be_hidden() -> None:
    """They cannot be found by trying names either: each recording hashes with a key of its own."""
    name = "the-merger"
    runs = [Run(hide_rooms=True) for _ in range(2)]
    for run in runs:
        room = RoomFSM()
        run.tell("join_requested", room=room, name=name)
        run.tell("connection_opened", "connected", room=room, name=name)
        refused = JoinRefused(JoinErrorCode.AUTH_FAILED, f"no access to {name}")
        run.tell("join_refused", refused, room=room, name=name)
        assert name not in run.file.getvalue()
        assert len({step["machine"] for step in run.steps}) == 1
        assert replay(run.lines).divergences == ()
    assert runs[0].steps[0]["machine"] != runs[1].steps[0]["machine"]


@pytest.mark.parametrize("name", ["the-merger", "a", "team's plan", "ein\nname", "x" * 128])
def test_hidden_ids_are_hidden_wherever_a_server_says_them(name: str) -> None:
    """In what the client is told, and other rooms: also if the room was joined before, and joined no more."""
    run = Run()
    run.recording.close()
    recorder = Recorder(header_data(ClientFSM, run.policy), sanitized, hide_rooms=True, rooms=[name])
    Recording(run.dispatcher, recorder, run.file, max_bytes=10**6)
    said = sanitized(f"the room ({name}) is full")
    run.tell("start_requested")
    run.tell("socket_opened")
    other = RoomFSM()
    run.tell("join_requested", room=other, name="other")
    run.tell("connection_opened", "connected", room=other, name="other")
    run.tell("join_refused", JoinRefused(JoinErrorCode.APP_ERROR, said, said), room=other, name="other")
    run.tell("socket_closed", CloseInfo(4100, said))
    assert "is full" in run.file.getvalue()
    assert f"({name})" not in run.file.getvalue()
    assert f"({sanitized(name)})" not in run.file.getvalue()
    assert replay(run.lines[2:]).divergences == ()
    own = Run()
    own.tell("join_requested", room=RoomFSM(), name=name)
    own.recording.close()
    export(own.dispatcher.log, Recorder(header_data(ClientFSM, own.policy), sanitized, hide_rooms=True), own.file)
    assert json.loads(own.lines[-2])["machine"].startswith("room-")


def test_d_judged_a_recording_holds_what_may_be_shown_and_replays_what_was_judged() -> None:
    """D-JUDGED: fatal by a word that is taken out, which stands nowhere in the file; the replay knows that it was."""
    run = Run()
    run.tell("start_requested")
    run.tell("socket_opened")
    run.tell("socket_closed", CloseInfo(4000, "room_closed", 1.0, shown="room_…"))
    assert run.client.state == "disconnected"
    run.tell("connect_requested")
    run.tell("socket_opened")
    run.tell("socket_closed", CloseInfo(4000, "said tulips", 1.0, shown="said …"))
    begun = run.again()
    begun.tell("close_requested")
    assert "room_closed" not in "".join(run.lines[1:])  # the header has the policy's words
    assert "tulips" not in run.file.getvalue() + begun.file.getvalue()
    assert [step["args"][0]["is_redacted"] for step in run.steps if step["event"] == "socket_closed"] == [True, True]
    assert replay(run.lines, words=True).divergences == ()
    assert replay(begun.lines, words=True).divergences == ()
    lenient = replay(run.lines, policy=RetryPolicy(fatal_close_codes={4000}))
    assert len(lenient.divergences) == 1  # the second close is fatal now


def test_d_cause_what_ended_it_is_in_a_recording() -> None:
    """D-CAUSE: the cause and the kind of the stop, of the client and of a room, and they come back as they were."""
    run, room = Run(policy=RetryPolicy(max_attempts=0)), RoomFSM()
    run.tell("join_requested", room=room)
    run.tell("start_requested")
    failed = AttemptFailure(FailureKind.NETWORK, "no way", fault=FaultKind.UNREACHABLE)
    run.tell("dial_failed", failed, 12.0)
    run.tell("client_stopped", "no way", failed, StopKind.ATTEMPTS_USED_UP, room=room)
    for step in run.steps[-2:]:
        (told,) = [decoded(each) for each in step["effects"] if each["is"] == "NotifyStatus"]
        assert (told.change.cause, told.change.stop) == (failed, StopKind.ATTEMPTS_USED_UP)
    assert replay(run.lines, words=True).divergences == ()


def test_d_http_a_replay_waits_for_the_rest_of_a_retry_after_as_it_was_recorded() -> None:
    """D-HTTP OFF-2: with its jitter, which is not recorded but for the waits."""
    run = Run(policy=RetryPolicy(random=Random(5)))
    run.tell("start_requested")
    run.tell("dial_failed", AttemptFailure(FailureKind.ANSWER, "HTTP 429", 429, 60.0), 100.0)
    for now in (110.0, 120.0, 159.0, 161.0, 161.1):
        run.tell("went_offline")
        run.tell("went_online", now)
    states = [step["new"] for step in run.steps if step["event"] == "went_online"]
    assert states == ["waiting", "waiting", "waiting", "retrying", "waiting"]
    assert replay(run.lines, words=True).divergences == ()


def test_ids_are_no_part_of_words_that_decide() -> None:
    """A room that is called ``room`` must not make something else of the reason ``room_closed``, nor of what we say."""
    run = Run(hide_rooms=True)
    for name in ("room", "no", "ping_timeout", "connection"):
        run.tell("join_requested", room=RoomFSM(), name=name)
    run.tell("start_requested")
    run.tell("socket_opened")
    run.tell("pong_missed", LOST)
    run.tell("retry_requested")
    run.tell("socket_opened")
    run.tell("socket_closed", CloseInfo(1000, "room_closed"))
    assert run.client.state == "disconnected"
    assert replay(run.lines).divergences == ()


async def test_a_recording_is_closed_with_the_client(tmp_path: Path) -> None:
    """Its file is whole then: header, steps, end; and nobody but its owner can read it."""
    path = tmp_path / "run.jsonl"
    path.touch(0o666)
    path.unlink()
    async with faulty.server() as server, Connection(server.url) as connection:
        recording = connection.record(path)
        await connection.wait_connected()
        assert recording.ended is None
        assert b"socket_opened" in path.read_bytes()  # what the client is told survives a crash
    assert recording.ended == "closed with the client"
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {"end": "closed with the client", "steps": recording.steps}
    assert recording.size == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert replay(path.read_text().splitlines()).divergences == ()
    recording.close()  # once more does no harm


async def test_a_recording_can_be_closed_before(tmp_path: Path) -> None:
    """By itself or as a block; the client goes on, and can be recorded again."""
    async with faulty.server() as server, Connection(server.url) as connection:
        with connection.record(tmp_path / "a.jsonl") as recording:
            await connection.wait_connected()
            with pytest.raises(RuntimeError, match="already"):
                connection.record(tmp_path / "b.jsonl")
        assert recording.ended == "closed by this program"
        steps = recording.steps
        connection.set_online(False)
        assert recording.steps == steps
        connection.record(tmp_path / "c.jsonl").close()


async def test_the_rooms_of_a_client_are_in_its_recording(tmp_path: Path) -> None:
    """All of it hears of the end: also what rooms do when the client is closed."""
    path = tmp_path / "run.jsonl"
    async with EmbeddedServer() as server, Client(f"ws://127.0.0.1:{server.port}/") as client:
        client.record(path)
        await client.join("notes", Sponge())
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [step["event"] for step in told if step.get("machine") == "notes"] == [
        "join_requested", "connection_opened", "join_accepted", "client_stopped",
    ]  # fmt: skip
    assert replay(path.read_text().splitlines(), words=True).divergences == ()


def test_a_recording_has_a_bound() -> None:
    """It ends there, says so, and is whole all the same."""
    run = Run(max_bytes=20_000)
    for _ in range(1000):
        run.tell("went_offline")
        run.tell("went_online")
    assert len(run.file.getvalue()) <= 20_000
    assert run.recording.ended == "it has reached its limit of 20,000 bytes"
    assert run.dispatcher.sink is None
    again = replay(run.lines)
    assert again.steps == run.recording.steps > 20
    assert again.notes == ("the recording ended early: it has reached its limit of 20,000 bytes",)
    with pytest.raises(ValueError, match="max_bytes must be"):
        Run(max_bytes=10)


@pytest.mark.parametrize("error", [OSError("disk full"), LookupError("a fault of ours")])
def test_a_recording_that_cannot_be_written_harms_nobody(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It ends, the log says so once, and the machine goes on."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "socket_closed" in text or self.tell() < 0:
                raise error
            return super().write(text)

    run = Run()
    run.recording.close()
    recorder = Recorder(header_data(ClientFSM, run.policy), sanitized, hide_rooms=False)
    recording = Recording(run.dispatcher, recorder, Full(), max_bytes=10**6)
    an_outage(run)
    assert run.client.state == "connected"
    assert recording.ended == f"writing it raised {type(error).__name__}"
    assert len([each for each in caplog.records if "the recording ended" in each.getMessage()]) == 1


async def test_the_last_steps_can_be_exported_at_any_time(tmp_path: Path) -> None:
    """Without asking for it before; to a file of its own or to one that is open, which stays so."""
    async with faulty.server(faulty.accept_then_close(1012)) as server:
        async with Connection(server.url, retry=QUICK) as connection:
            await until(lambda: connection_driver_of(connection).fsm.attempt > 2)
            steps = connection.export(tmp_path / "last.jsonl")
            file = io.StringIO()
            assert connection.export(file) == steps > 6
            assert not file.closed
        again = replay((tmp_path / "last.jsonl").read_text().splitlines(), words=True)
        assert (again.steps, again.divergences, again.machines) == (steps, (), ("client",))
        with pytest.raises(OSError, match="nowhere"):
            connection.export(tmp_path / "nowhere" / "last.jsonl")


def test_a_flood_of_rooms_does_not_push_out_the_clients_own_steps() -> None:
    """Its last `MAX_OLDER_STEPS` are kept, however much its rooms do; and what begins in the middle replays exactly."""
    run = Run()
    run.recording.close()
    for number in range(150):
        an_outage(run) if number == 0 else run.tell("retry_requested")
    room = RoomFSM()
    run.tell("join_requested", room=room)
    for _ in range(3 * MAX_STEPS):
        run.tell("connection_opened", "connected", room=room)
        run.tell("connection_lost", "lost", room=room)
    own = [step for step in run.dispatcher.log if not step[1]]
    assert len(own) == MAX_OLDER_STEPS
    assert len(run.dispatcher.log) == MAX_STEPS + MAX_OLDER_STEPS
    assert own[-1][3] == "retry_requested"
    file = io.StringIO()
    export(run.dispatcher.log, Recorder(header_data(ClientFSM, run.policy), sanitized, hide_rooms=False), file)
    again = replay(file.getvalue().splitlines(), words=True)
    assert (again.steps, again.divergences) == (MAX_STEPS + MAX_OLDER_STEPS, ())


@pytest.mark.virtual_time
async def test_the_last_steps_hold_nothing_of_those_who_waited() -> None:
    """What a waiter is raised is its own: the frames in its traceback, and what they hold, go with it."""

    class Document:
        """Megabytes of it."""

    held: list[weakref.ref[Document]] = []

    async def wait(ask: Callable[[], Any]) -> None:
        document = Document()
        held.append(weakref.ref(document))
        with pytest.raises((ClientStopped, JoinRefused)):
            await ask()

    script: list[Any] = [(JoinFails(2, "no", room_id="refused"),), *[Answer(401)] * 9]
    async with ScriptedServer(script) as server, Client(server.url) as client:
        refused = client.join("refused", Sponge())
        await wait(lambda: refused)
        await wait(lambda: refused)  # it is over: raised at once
        sponge = Sponge()
        for ask in (
            client.retry_now,
            lambda: client.join("notes", sponge),
            lambda: client.join("notes", sponge).synced(),
        ):
            waiter = asyncio.ensure_future(wait(ask))
            await asyncio.sleep(1.0)
            client.retry_now()
            await waiter
        await asyncio.sleep(1.0)
        gc.collect()
        assert len(connection_driver_of(client).dispatcher.log) > 5
        assert [each() for each in held] == [None] * 5


# ------------------------------------------------------------------------------------------------------------- secrets


class Telling(Effect):
    """An effect of the user's own, whose repr tells too much."""

    def __repr__(self) -> str:
        return f"<Telling {SECRET}>"


class Careless(ClientFSM):
    """A machine of the user's own that remembers the token, in a slot and in an object."""

    __slots__ = ("token", "tokens")

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        super().__init__(policy)
        self.token, self.tokens = SECRET, {"a": SECRET}

    @event(row(ClientFSM.STOPPED + ClientFSM.DIALING + ClientFSM.BETWEEN + (ClientFSM.connected,), to=STAY, do="tell"))
    def token_came(self, token: str, tokens: object) -> None:
        """Here it comes."""
        self.token = token

    def tell(self) -> None:
        """Tell it."""
        self.emit(Telling())
        self.emit(NotifyRooms("connection_lost", "no secret"))


class CarelessClient(Client):
    """Its driver."""

    def run_effect(self, effect: Effect) -> None:
        if not isinstance(effect, Telling):
            super().run_effect(effect)


@pytest.mark.parametrize("mirror", MIRRORS)
async def test_no_secret_is_recorded(mirror: str) -> None:
    """Token in the query, in headers and cookies, in auth bytes, in a machine of the user's; and a server that says it
    all back: neither in a recording nor in an export nor in an explanation."""
    file, last = io.StringIO(), io.StringIO()
    async with asyncio.timeout(PATIENCE), faulty.server(MIRRORS[mirror], faulty.deaf) as server:
        url = server.url.replace("://", f"://user:{SECRET}@") + f"?token={SECRET}"
        headers = {"X-Token": SECRET, "Cookie": f"session={SECRET}"}
        client = CarelessClient(url, headers=headers, retry=QUICK, close_timeout=0.1, fsm=Careless)
        recording = client.record(file)
        explained: list[str] = []
        client.on_transition(lambda _: explained.append(client.explain()))
        async with client:
            client.join("r", Sponge(), auth=SECRET.encode())
            await until(lambda: recording.steps > 5)
            driver = connection_driver_of(client)
            driver.fire(type(driver.fsm).token_came, SECRET, [SECRET])  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)
            client.export(last)
            explained.append(client.explain())
    assert recording.steps > 5
    assert "token_came" in last.getvalue()
    for written in (file.getvalue(), last.getvalue(), *explained):
        assert SECRET not in written
        assert "127.0.0.1" not in written.replace("ws://127.0.0.1:9", "")


def test_what_nobody_told_us_to_be_a_secret_is_not_recorded() -> None:
    """A machine of the user's own may know a token long before the server does."""

    class Told(Careless):
        """And one that keeps it wherever it can."""

        def tell(self) -> None:
            self.emit(Ring(3))
            self.emit(NotifyRooms("connection_lost", "no secret"))

    run = Run(Told)
    run.tell("token_came", SECRET, LookupError(SECRET))
    run.tell(
        "token_came", {"a": SECRET}, [(SECRET, b"abc" + SECRET.encode(), Ring(1, SECRET), CloseInfo(1000, SECRET))]
    )
    run.tell("start_requested")
    assert SECRET not in run.file.getvalue()
    assert "Ring(3, <str>)" in run.file.getvalue()
    assert replay(run.lines, fsm=Told).divergences == ()
    assert not replay(run.lines, fsm=Careless).divergences[0].is_certain


async def test_what_the_users_functions_raise_is_not_recorded() -> None:
    """The url and auth functions may raise with anything in their messages."""
    file = io.StringIO()

    def url() -> str:
        raise LookupError(SECRET)

    async with asyncio.timeout(PATIENCE):
        connection = Connection(url, retry=QUICK)
        connection.record(file)
        async with connection:
            await until(lambda: connection_driver_of(connection).fsm.attempt > 2)
    assert "LookupError" in file.getvalue()
    assert SECRET not in file.getvalue()


# -------------------------------------------------------------------------------------------------------------- values

TEXTS = st.text(max_size=30)
NUMBERS = st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | NUMBERS
    | TEXTS
    | st.sampled_from([*VersionChoice, *FailureKind, UpdateStatusCode.RATE_LIMITED, JoinErrorCode.APP_ERROR])
    | st.builds(CloseInfo, st.integers(1000, 4999), TEXTS, NUMBERS)
    | st.builds(AttemptFailure, st.sampled_from(FailureKind), TEXTS)
    | st.builds(StartTimer, NUMBERS)
    | st.builds(CloseSocket, st.integers(1000, 4999), TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


def through_json(value: Any) -> Any:
    return decoded(json.loads(json.dumps(encoded(value, same), allow_nan=False)))


@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    """Of the same type, to the last bit."""
    depth = lambda each: 1 + max(map(depth, each), default=0) if isinstance(each, list | tuple) else 0  # noqa: E731
    if depth(value) <= 2:
        back = through_json(value)
        assert back == value
        assert type(back) is type(value)
        assert repr(back) == repr(value)


def test_errors_come_back_as_they_were() -> None:
    """With all that is told by them."""
    refused = through_json(JoinRefused(JoinErrorCode.APP_ERROR, "no", "quota", evicted=True))
    assert (type(refused), refused.code, refused.app_code) == (JoinRefused, JoinErrorCode.APP_ERROR, "quota")
    assert str(refused) == str(JoinRefused(JoinErrorCode.APP_ERROR, "no", "quota", evicted=True))
    stopped = through_json(FailWaiters(ClientStopped("closed"))).error
    assert (str(stopped), stopped.reason) == (str(ClientStopped("closed")), "closed")


class Awkward:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    "value",
    [
        Awkward(), object(), {1: 2}, b"secret" * 1000, "x" * 10**6, "\ud800", 2**70, -(2**80), float("nan"), 1j,
        list(range(10**5)), [[[[[[[[[["deep"]]]]]]]]]], LookupError("x" * 10**6), Telling(),
        type("Odd", (str,), {})("x"), StatusChange, lambda: 0,
    ],
)  # fmt: skip
def test_any_value_can_be_written(value: Any) -> None:
    """As what it is or as its type's name, marked as opaque; never at length, and nothing raises."""
    line = json.dumps(encoded(value, same), allow_nan=False)
    assert len(line) <= 6 * MAX_TEXT
    decoded(json.loads(line))
    once = encoded(value, same)
    assert encoded(decoded(once), same) == once  # it is compared in this form


def test_a_list_that_holds_itself_can_be_written() -> None:
    """It ends at some depth."""
    loop: list[Any] = []
    loop.append(loop)
    assert len(json.dumps(encoded(loop, same))) < MAX_TEXT


@dataclasses.dataclass(frozen=True)
class Ring(Effect):
    """An effect of the user's own."""

    volume: int
    token: str = SECRET


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "<object>"), (bytearray(b"token"), "<bytearray>"), (bytes(201), "<bytes>"),
        ({"token": SECRET}, "<dict>"), (asyncio.Task, "<type>"),
        (LookupError(SECRET), "<LookupError>"), (http.HTTPStatus.NOT_FOUND, "HTTPStatus.NOT_FOUND"),
        (Ring(3), "Ring(3, <str>)"), ([Ring(1)], [{"opaque": "Ring(1, <str>)"}]),
    ],
)  # fmt: skip
def test_an_opaque_value_says_what_it_is_and_no_more(value: Any, told: Any) -> None:
    """Of numbers, so that another number is a difference; of texts and of what prints itself nothing."""
    assert encoded(value, same) == ({"opaque": told} if isinstance(told, str) else told)
    assert isinstance(through_json(object()), Opaque)


# --------------------------------------------------------------------------------------------------------------- replay


def test_a_replay_by_the_same_machine_goes_the_same_way() -> None:
    """To the letter."""
    run = an_outage(Run())
    again = replay(run.lines, words=True)
    assert (again.machines, again.steps, again.divergences, again.notes) == (("client",), 7, (), ())
    assert str(again) == "7 steps of 1 machine: all did the same"


class Stubborn(ClientFSM):
    """A later version, which takes no loss for final."""

    def are_attempts_used_up(self) -> bool:
        return False


class Pausing(ClientFSM):
    """A later version, which pauses where another waits."""

    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=ClientFSM.paused, silences=ANY))


def test_a_replay_says_where_another_version_behaves_differently() -> None:
    """The first divergence, with its line, what was recorded, what is done now, and what came before."""
    run = Run(policy=RetryPolicy(max_attempts=1, jitter=0.0))
    an_outage(run)
    (found,) = replay(run.lines, fsm=Stubborn).divergences
    assert (found.machine, found.line, found.event) == ("client", 6, "dial_failed")
    assert found.recorded.startswith("retrying → disconnected; CancelDial, Release")
    assert found.replayed.startswith("retrying → waiting; CancelDial, StartTimer(1.0)")
    assert [each.split(":")[0] for each in found.before] == ["line 2", "line 3", "line 4", "line 5"]
    assert found.is_certain
    assert "client behaves differently on dial_failed" in str(found)

    again = replay(an_outage(Run()).lines, fsm=Pausing)
    (found,) = again.divergences
    assert (found.line, found.event) == (4, "socket_closed")
    assert "1 behaved differently" in str(again)
    assert again.notes == (
        f"recorded with reconnect_fsm.client_fsm:ClientFSM, replayed with {__name__}:Pausing: fsm= takes another class",
    )


def test_a_replay_goes_on_with_the_other_machines() -> None:
    """Each machine's first divergence is told, and no more of that one."""

    class Shy(RoomFSM):
        def may_be_answered_late(self) -> bool:
            return False

    run = Run()
    rooms = {name: RoomFSM() for name in "abc"}
    for name, room in rooms.items():
        run.tell("join_requested", room=room, name=name)
        run.tell("connection_opened", "connected", room=room, name=name)
        if name != "b":
            run.tell("timer_fired", room=room, name=name)
        run.tell("join_accepted", "write", b"", room=room, name=name)
        run.tell("connection_lost", "lost", room=room, name=name)
    again = replay(run.lines, room_fsm=Shy)
    assert [(each.machine, each.event) for each in again.divergences] == [
        ("a", "join_accepted"),
        ("c", "join_accepted"),
    ]


def test_a_divergence_tells_what_was_raised() -> None:
    """By a machine that somebody works on: to see it is why they replay."""

    class Unfinished(ClientFSM):
        def start_retry_timer(self) -> None:
            raise NotImplementedError("the wait")

    (found,) = replay(an_outage(Run()).lines, fsm=Unfinished).divergences
    assert found.event == "socket_closed"
    assert found.replayed.startswith("connected → error")
    assert found.replayed.endswith("it raised NotImplementedError('the wait')")


def test_of_many_divergences_the_first_are_told_in_full() -> None:
    """Ten thousand rooms go the same other way."""

    class Shy(RoomFSM):
        join_timeout = 3.0

    run = Run()
    for number in range(50):
        room = RoomFSM()
        run.tell("join_requested", room=room, name=str(number))
        run.tell("connection_opened", "connected", room=room, name=str(number))
    told = str(replay(run.lines, room_fsm=Shy))
    assert told.count("behaves differently") == 10
    assert "and 40 machines more" in told
    assert "100 steps of 50 machines: 50 behaved differently" in told


def test_wording_is_no_way() -> None:
    """Another text is told only if it is asked for; what the server is told is no wording."""

    class Polite(ClientFSM):
        def state_changed(self) -> None:
            self.pending_reason = f"please: {self.pending_reason.removeprefix('please: ')}"
            super().state_changed()

    class Gruff(ClientFSM):
        def close_socket(self) -> None:
            self.closing = (1000, "bye")
            super().close_socket()

    run = an_outage(Run())
    assert replay(run.lines, fsm=Polite).divergences == ()
    assert replay(run.lines, fsm=Polite, words=True).divergences[0].line == 2
    assert replay(run.lines, fsm=Gruff).divergences[0].event == "socket_closed"


def test_a_state_or_fact_that_is_gone_is_another_way() -> None:
    """What was recorded by a version that had more."""

    class More(ClientFSM):
        resting = ClientFSM.waiting.__class__(ClientFSM.waiting.status, (), (), ClientFSM.waiting, "")
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to="resting", silences=ANY))

        @event(row(ClientFSM.connected, to=STAY, do="tell"), row((*ClientFSM.STOPPED, *ClientFSM.DIALING), to=STAY),
               row((*ClientFSM.BETWEEN, resting), to=STAY))  # fmt: skip
        def tapped(self) -> None:
            """Somebody tapped."""

        def tell(self) -> None:
            self.emit(NotifyRooms("connection_opened", "tapped"))

    run = Run(More)
    run.tell("start_requested")
    run.tell("tapped")
    assert replay(run.lines, fsm=More).divergences == ()
    (found,) = replay(run.lines).divergences
    assert found.replayed == "there is no event tapped"
    run = Run(More)
    for event_name, *args in (("start_requested",), ("socket_opened",), ("socket_closed", LOST), ("timer_fired",)):
        run.tell(event_name, *args)
    assert replay(run.lines, fsm=More).divergences == ()
    assert replay(run.lines).divergences[0].line == 4
    begun_there = [run.lines[0], *run.lines[4:]]
    assert replay(begun_there).divergences[0].replayed == "there is no state resting"


class Panic(BaseException):
    """What extension modules raise: no Exception."""


def test_d_guard_what_a_machine_raised_is_raised_again_if_it_is_no_exception() -> None:
    """D-GUARD: the live client went to error because of it, and so does the replay."""

    class Panicky(ClientFSM):
        def start_retry_timer(self) -> None:
            raise Panic

    run = an_outage(Run(Panicky))
    assert "error" in {step["new"] for step in run.steps}
    assert replay(run.lines, fsm=Panicky, words=True).divergences == ()


def test_what_a_policy_raised_is_raised_again() -> None:
    """D-ERROR: a machine that went to error because of it does so in the replay."""

    class Broken(RetryPolicy):
        def delay(self, attempt: int) -> float:
            raise ZeroDivisionError

    run = an_outage(Run(policy=Broken()))
    assert "error" in {step["new"] for step in run.steps}
    again = replay(run.lines, words=True)
    assert again.divergences == ()
    assert "recorded with the policy" in again.notes[0]


def test_a_policy_of_ones_own_decides_in_a_replay_if_it_is_given() -> None:
    """What is fatal is not in the numbers."""

    class Strict(RetryPolicy):
        def is_fatal_close(self, info: CloseInfo) -> bool:
            return True

    run = an_outage(Run(policy=Strict()))
    assert replay(run.lines).divergences[0].event == "socket_closed"
    assert replay(run.lines, policy=Strict()).divergences == ()


def test_what_is_not_known_is_not_blamed_on_a_version() -> None:
    """A room whose beginning is not recorded, nor what it remembered: its divergence is marked as uncertain."""
    run = Run()
    room = RoomFSM()
    run.tell("join_requested", room=room)
    run.tell("connection_opened", "connected", room=room)
    unknown = JoinRefused(JoinErrorCode.VERSION_UNKNOWN, "which?")
    for _ in range(3):
        run.tell("join_refused", unknown, room=room)
    assert replay(run.lines).divergences == ()
    cut = [line for number, line in enumerate(run.lines) if number not in (1, 2, 3)]
    (found,) = replay(cut).divergences
    assert not found.is_certain
    assert "this may be no difference" in str(found)
    assert "1 behaved differently, 1 of them not for certain" in str(replay(cut))


def test_a_gap_is_noted() -> None:
    """A line that somebody took out: the machine is moved on, and the replay says so."""
    run = an_outage(Run())
    lines = [line for number, line in enumerate(run.lines) if number != 4]
    again = replay(lines)
    assert "client was in waiting, and is in retrying without a recorded event" in again.notes[0]


def nested(depth: int) -> str:
    return '{"is": "tuple", "items": [' * depth + "]}" * depth


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"args": ["DEEP"]}, "too deep inside one another"),
        ({"effects": ["DEEP"], "new": "waiting"}, "too deep inside one another"),
        ({"note": "DEEP"}, "too deep inside one another"),
        ({"effects": [{"is": []}, 1, [[]], None, {"is": "StartTimer", "seconds": []}]}, None),
        ({"args": [{"is": []}]}, "no value can be made"),
        ({"args": [1, 2, 3]}, None),
        ({"args": [{"opaque": []}]}, None),
        ({"at": float("nan")}, "NaN is no number"),
        ({"at": 10**300}, "'at' of this step"),
        ({"retry_in": 1e300}, "'retry_in' of this step"),
        ({"memory": {"__class__": 1}}, "has an attribute __class__ in its context"),
        ({"memory": {"policy": 1}}, "has an attribute policy in its context"),
        ({"memory": {"attempt": "x", "loss": [], "pending_reason": 3, "nonsense": 1}}, None),
        ({"reason": "x" * 10**6}, "more than 1,000,000 characters"),
        ({"machine": "\x1b[2J", "event": "\x1b]0;\x07"}, None),
    ],
)  # fmt: skip
def test_a_hostile_file_does_no_harm(changes: dict[str, Any], what: str | None) -> None:
    """It is refused with its line, or behaves differently; nothing else is raised, no control character shown."""
    run = an_outage(Run())
    first = {name: value for name, value in run.steps[2].items() if name != "memory"}
    lines = [run.lines[0], json.dumps(first | changes).replace('"DEEP"', nested(300)), *run.lines[4:6]]
    if what is None:
        told = str(replay(lines))
        assert "differently" in told
        assert told.replace("\n", "").isprintable()
    else:
        with pytest.raises(UnreadableRecording, match=f"line 2: .*({what})"):
            replay(lines)


def test_what_is_written_is_never_too_deep_to_be_read() -> None:
    """However deep a value is, in a step or in a header; and there is an end to what is read."""
    deep: Any = 1
    for _ in range(MAX_DEPTH + 20):
        deep = StatusChange(deep, 1, "why")
    for tuples in range(MAX_DEPTH):
        value = deep
        for _ in range(tuples):
            value = (value,)
        for line in ({"args": [encoded(value, same)]}, {"policy": {"codes": [encoded(value, same)]}}):
            assert not is_too_deep(line)
    assert not is_too_deep(json.loads(f"{'[' * MAX_LEVELS}1{']' * MAX_LEVELS}"))
    assert is_too_deep(json.loads(f"[{'[' * MAX_LEVELS}1{']' * MAX_LEVELS}]"))


def test_a_line_without_an_end_is_not_read_to_its_end() -> None:
    """Of a file only as much as a line may have is read."""
    file = io.StringIO("x" * 10**7)
    with pytest.raises(UnreadableRecording, match="line 1: it has more than"):
        replay(file)
    assert file.tell() < 2 * 10**6


def test_notes_and_machines_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have billions of either."""
    monkeypatch.setattr(sys.modules["reconnect_fsm.recorder.replay"], "MAX_MACHINES", 30)
    run = Run()
    for number in range(31):
        run.tell("join_requested", room=RoomFSM(), name=str(number))
    with pytest.raises(UnreadableRecording, match="line 32: there are more than 30 machines"):
        replay(run.lines)
    stays = json.dumps(an_outage(run).steps[-1])
    assert len(replay([run.lines[0], *[stays] * 30]).notes) == 11


@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        ([], 1, "empty"),
        (["hello"], 1, "no JSON"),
        (["{}"], 1, "this is no recording"),
        (['{"recording": "reconnect_fsm", "format": 2, "library": "9.1"}'], 1, "format 2, and .* reads format 1.*9.1"),
        (["HEADER", "junk", "STEP"], 2, "no JSON"),
        (["HEADER", "STEP", "[1, 2]"], 3, "a JSON object"),
        (["HEADER", "", '{"at": 1}'], 3, "'machine' of this step is missing"),
        (["HEADER", "STEP", "HEADER"], 3, "another recording begins here"),
        (["HEADER", '{"is":'+ '[' * 100_000, "STEP"], 2, "no JSON"),
        (["HEADER", "BAD"], 2, "no value can be made of"),
        (["HEADER", "WORSE"], 2, "no value can be made of"),
        (["HEADER", "SHAPELESS"], 2, "'memory' of this step"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(lines: list[str], line: int, what: str) -> None:
    """Old formats, junk, what somebody edited."""
    run = an_outage(Run())
    step = run.steps[2]
    stand = {
        "HEADER": run.lines[0],
        "STEP": run.lines[1],
        "BAD": json.dumps({**step, "args": [{"is": "CloseInfo", "colour": "red"}]}),
        "WORSE": json.dumps({**step, "args": [{"is": "Spam"}]}),
        "SHAPELESS": json.dumps({**step, "memory": [1]}),
    }
    with pytest.raises(UnreadableRecording, match=what) as caught:
        replay([stand.get(each, each) for each in lines])
    assert caught.value.line == line
    assert isinstance(caught.value, ValueError)


def test_the_last_line_may_be_cut_short() -> None:
    """By a crash: what is before it is replayed, and it is said."""
    run = an_outage(Run())
    again = replay([*run.lines[:-1], run.lines[-1][:40]])
    assert again.steps == 6
    assert again.notes == ("line 8, the last, is cut short and was left out",)


# -------------------------------------------------------------------------------------------------- replay of real runs


@pytest.mark.virtual_time
async def test_what_happens_in_outages_happens_again() -> None:
    """Every fault that a server can be told to make, and what a user asks for meanwhile; to the letter."""
    faults: list[Any] = [
        Answer(503, {"Retry-After": "2"}), StopListening(1.5), RawAnswer(b"nonsense\r\n\r\n"), HangUp(), Stall(at=0),
        NoPong(), LatePong(1.0), Close(1012, "restart", after=1.0), Reset(after=1.0), NoJoinAnswer(),
        (JoinFails(2, "not you", room_id="refused"), RoomFails(1, "come back", room_id="kept", after=1.0)),
        Close(4401, "no", after=3.0),
    ]  # fmt: skip
    file, last = io.StringIO(), io.StringIO()
    async with ScriptedServer(faults) as server:
        client = Client(
            server.url, retry=RetryPolicy(base=1.0, cap=4.0), keepalive=Keepalive(interval=5.0, timeout=2.0)
        )
        client.record(file)
        async with client:
            client.join("kept", Sponge())
            client.join("refused", Sponge())
            for number in range(60):
                await asyncio.sleep(5.0)
                if number % 20 == 15:
                    client.set_online(False)
                    await asyncio.sleep(5.0)
                    client.set_online(True)
                elif number % 20 == 19:
                    client.retry_now()
            client.export(last)
    for written in (file, last):
        again = replay(written.getvalue().splitlines(), words=True)
        assert (again.divergences, again.notes) == ((), ())
        assert again.steps > 40
        assert {"kept", "refused"} <= set(again.machines)


class Recorded(Client):
    """Records all its lives, each in a file of its own."""

    files: list[io.StringIO]
    every: list[Recorded]

    def start(self) -> None:
        self._record_life()
        super().start()

    def connect(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        self._record_life()
        return super().connect(reset_backoff)

    def retry_now(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        self._record_life()
        return super().retry_now(reset_backoff)

    def _record_life(self) -> None:
        if connection_driver_of(self).dispatcher.sink is None:
            self.files.append(io.StringIO())
            self.record(self.files[-1])
            if self not in self.every:
                self.every.append(self)


def check_real_runs(seed: int, hours: float) -> int:
    """Simulate, and replay what was recorded, from the beginning and from the middle; return the number of steps."""

    class Client(Recorded):
        files: ClassVar = []
        every: ClassVar = []

    simulate(seed=seed, hours=hours, client=Client)
    for client in Client.every:
        client.export(last := io.StringIO())
        Client.files.append(last)
    steps = 0
    for file in Client.files:
        again = replay(file.getvalue().splitlines(), words=True)
        assert again.divergences == (), str(again)
        assert again.notes == ()
        steps += again.steps
    return steps


@pytest.mark.parametrize("seed", [1, 2])
def test_what_happened_in_a_simulation_happens_again(seed: int) -> None:
    """Real clients, rooms and faults: every step of them, to the letter."""
    assert check_real_runs(seed, 1) > 100


@pytest.mark.proof
@pytest.mark.timeout(600)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_what_happened_in_long_simulations_happens_again(seed: int) -> None:
    """The same for many seeds, and so long that the exported steps begin in the middle."""
    assert check_real_runs(seed, 15) > 1000


# --------------------------------------------------------------------------------------------------------- for pictures


def test_transitions_can_be_drawn() -> None:
    """Those of a client and those of a file are the same, and are what a picture is made of."""
    run = an_outage(Run())
    run.tell("went_online")  # known already: no transition
    from_file = transitions_in(run.lines)
    assert len(from_file) == 7
    assert [each.status for each in from_file][:3] == ["connecting", "connected", "reconnecting"]
    assert from_file[1].retry_in is None  # the timer of a connection is no wait
    assert from_file[2].retry_in is not None
    assert sequence(from_file).startswith("<svg")


async def test_a_client_tells_its_transitions() -> None:
    """Those of its rooms too, by their ids."""
    async with EmbeddedServer() as server, Client(f"ws://127.0.0.1:{server.port}/") as client:
        await client.join("notes", Sponge())
        client.export(file := io.StringIO())
        assert client.transitions() == transitions_in(file.getvalue().splitlines())
        assert {each.machine for each in client.transitions()} == {"client", "notes"}


def test_a_machine_without_slots_is_remembered_too() -> None:
    """What a subclass keeps in a dictionary, and a slot that was never set."""

    class Loose(ClientFSM):
        def __init__(self, policy: RetryPolicy | None = None) -> None:
            super().__init__(policy)
            self.seen = 0

        def count_attempt(self) -> None:
            self.seen += 1
            self.attempt += self.seen

    class Unset(ClientFSM):
        __slots__ = ("never",)

    run = Run(Loose)
    run.recording.close()
    an_outage(run)
    begun = run.again()
    begun.tell("socket_closed", LOST)
    assert begun.steps[0]["memory"]["seen"] == 2
    assert replay(begun.lines, fsm=Loose).divergences == ()
    run = an_outage(Run(Unset))
    assert "never" not in run.steps[0]["memory"]
    assert replay(run.lines, fsm=Unset).divergences == ()
