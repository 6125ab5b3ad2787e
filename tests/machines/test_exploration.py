"""Both machines explored to the last guard, then lived in by Hypothesis; and faulty ones, to see the faults found."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect, NotifyRooms, NotifyStatus, StartTimer, StopTimer
from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.loro_protocol import UpdateStatusCode
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, event, ignore, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, FailureKind, RoomStatus
from reconnect_fsm.testing.machines import (
    ClientWatch,
    Exploration,
    Moment,
    RoomWatch,
    StatusWatch,
    Watch,
    explore,
    of_client,
    of_room,
    said,
)

BY_HAND = {"start_requested", "connect_requested", "retry_requested"}


# -------------------------------------------------------------------------------------------------------- both machines


@pytest.fixture(scope="module")
def client() -> Exploration:
    """What there is to know about a client's machine."""
    return of_client()


@pytest.fixture(scope="module")
def room() -> Exploration:
    """What there is to know about a room's machine."""
    return of_room()


def listed(found: Exploration) -> list[str]:
    """The faults, as a reader wants them."""
    return [str(fault) for fault in found.faults]


def test_a_client_keeps_every_invariant_whatever_the_guards_say(client: Exploration) -> None:
    """CONN-1 D-STOP D-LISTEN: no hole, no exception, one of everything at a time, and nothing after a stop."""
    assert listed(client) == []


def test_a_room_keeps_every_invariant_whatever_the_guards_say(room: Exploration) -> None:
    """JOIN-3 D-TIMEOUT D-LEAVE D-LISTEN: no hole, no exception, one request or session, and untracked once."""
    assert listed(room) == []


@pytest.mark.parametrize("machine", ["client", "room"])
def test_every_state_is_reached_and_every_rule_fires(machine: str, request: pytest.FixtureRequest) -> None:
    """There is nothing in the tables that could be taken out."""
    found: Exploration = request.getfixturevalue(machine)
    assert found.unreachable() == []
    assert found.dead_rules() == []
    assert len(found.paths) == len(found.cls.states)


def test_a_client_is_never_trapped(client: Exploration) -> None:
    """CTRL-1 OK-1 OK-2 OK-3: from everywhere a way leads back; without a person, from all but the stopped states."""
    assert client.traps(goal={"connected"}) == []
    assert [
        fault.path for fault in client.traps(goal={"connected"}, final={"disconnected", "error"}, without=BY_HAND)
    ] == []


def test_retry_4_ctrl_2_a_stopped_client_starts_by_hand_only(client: Exploration) -> None:
    """RETRY-4 CTRL-2: every way out of a stop begins with a person."""
    stopped = {"disconnected", "error"}
    assert {event for old, event, new in client.moves if old in stopped and new not in stopped} == BY_HAND
    assert [fault.events for fault in client.traps(goal={"connected"}, without=BY_HAND)] == [[], ["faulted"]]


def test_a_room_is_never_trapped(room: Exploration) -> None:
    """OK-4: all but ``left`` and ``error``, which are meant to be final, lead to ``joined``; and final they are."""
    assert room.traps(goal={"joined"}, final={"left", "error"}) == []
    assert {new for old, _, new in room.moves if old == "left"} == {"left"}
    assert {new for old, _, new in room.moves if old == "error"} == {"error"}


def test_a_client_never_offline_never_pauses(client: Exploration) -> None:
    """OFF-1 OFF-2: into ``paused`` and out of it lead only what they should."""
    assert {event for old, event, new in client.moves if new == "paused" != old} == {
        "start_requested",
        "went_offline",
        "dial_failed",
        "socket_closed",
        "pong_missed",
    }
    assert {(event, new) for old, event, new in client.moves if old == "paused" != new} == {
        ("went_online", "retrying"),
        ("went_online", "waiting"),  # the server asked to stay away, or the network flaps
        ("connect_requested", "connecting"),
        ("retry_requested", "connecting"),
        ("close_requested", "disconnected"),
        ("went_offline", "disconnected"),
        ("faulted", "error"),
    }


# ---------------------------------------------------------------------------------------------------------- the clauses


def clauses(text: str) -> frozenset[str]:
    """The ids in a text."""
    return frozenset(text.split())


SPECIFIED = clauses(
    """
    CONN-1 CONN-2 CONN-3 CONN-4 CONN-5 RETRY-1 RETRY-2 RETRY-3 RETRY-4 LIVE-1 LIVE-2 OFF-1 OFF-2 JOIN-1 JOIN-2 JOIN-3
    REJOIN-1 REJOIN-2 REJOIN-3 CTRL-1 CTRL-2 OBS-1 OBS-2 OBS-3 OK-1 OK-2 OK-3 OK-4 D-ERROR D-STOP D-HTTP D-CODES
    D-JITTER D-STABLE D-TIMEOUT D-FORCE D-INTENT D-DEDUPE D-LEAVE D-ROOMERR D-VERSION D-ACK D-LISTEN D-CAUSE D-JUDGED
    D-ORDER D-NOW D-GUARD D-RESYNC D-ANYWAY D-JOINERR D-PRESENCE D-SEND D-THREAD D-URL D-WORDS D-SESSION D-HEARD
    D-TOOBIG
    """
)
IN_CLIENT_TABLE = clauses(
    """
    CONN-2 CONN-3 CONN-4 CONN-5 RETRY-1 RETRY-2 RETRY-3 RETRY-4 LIVE-2 OFF-1 OFF-2 CTRL-1 CTRL-2 OK-1 OK-2 OK-3
    D-ERROR D-HTTP D-CODES D-STABLE D-FORCE D-STOP D-HEARD D-TOOBIG
    """
)
IN_ROOM_TABLE = clauses(
    """
    JOIN-1 JOIN-3 REJOIN-2 REJOIN-3 OK-4 D-ERROR D-STOP D-TIMEOUT D-INTENT D-DEDUPE D-LEAVE D-ROOMERR D-VERSION D-ACK
    D-RESYNC D-JOINERR
    """
)
# Decided by a machine too, but by what an action does or a state shows, and not by a row.
IN_CLIENT_BESIDES = clauses("CONN-1 LIVE-1 OBS-1 D-CAUSE D-JUDGED")
IN_ROOM_BESIDES = clauses("OBS-2")


@pytest.mark.parametrize(("machine", "wanted"), [(ClientFSM, IN_CLIENT_TABLE), (RoomFSM, IN_ROOM_TABLE)])
def test_every_clause_that_a_table_answers_stands_beside_a_row(machine: type[FSM[Any]], wanted: frozenset[str]) -> None:
    """From clause to row; and no row names a clause that there is not."""
    written = {clause for each in machine.rules for clause in each.clause.split()}
    assert wanted <= written
    assert written <= SPECIFIED


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("test_client_fsm.py", IN_CLIENT_TABLE | IN_CLIENT_BESIDES),
        ("test_room_fsm.py", IN_ROOM_TABLE | IN_ROOM_BESIDES),
    ],
)
def test_every_clause_that_a_machine_decides_has_a_test_named_for_it(file: str, wanted: frozenset[str]) -> None:
    """From clause to test: the id is in the name or the docstring, and what is in a name is in the docstring."""
    found: set[str] = set()
    for node in ast.parse(Path(__file__).with_name(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = ast.get_docstring(node) or ""
            ids = set(re.findall(r"\b[A-Z]+-[0-9]\b|\bD-[A-Z]+\b", text))
            named = node.name.upper().replace("_", "-")
            first = re.match(r"TEST-(D-[A-Z]+|(?:CONN|RETRY|LIVE|OFF|JOIN|REJOIN|CTRL|OBS|OK)-[0-9])", named)
            assert first is None or first[1] in ids, f"{node.name} does not say {first[1]} in its docstring"
            found |= ids
    assert found <= SPECIFIED
    assert wanted <= found


# ---------------------------------------------------------------------------------------- a user's machines, and faults


class Patient(ClientFSM):
    """A subclass as a user would write it, with nothing wrong."""

    banished = state(
        ClientStatus.RECONNECTING, enter="start_retry_timer", exit="stop_retry_timer", like=ClientFSM.waiting
    )

    def was_kicked(self) -> bool:
        return self.loss.reason == "kicked"

    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=banished, when=was_kicked))

    @event(row(ClientFSM.connected, to=ClientFSM.connecting), ignore(OTHERWISE, because="no token in use"))
    def token_expired(self) -> None:
        """The token of this connection is about to expire."""
        self.pending_reason = "the token expired"


class FullRoom(RoomFSM):
    """A room that waits when it is told that there is no place left."""

    full = state(RoomStatus.CONNECTING, enter="start_retry_timer", exit="stop_retry_timer", like=RoomFSM.join_delayed)

    def is_full(self) -> bool:
        return self.is_refused_with(0x7F)

    join_refused = RoomFSM.join_refused.first(row(RoomFSM.joining, to=full, when=is_full, do=RoomFSM.back_off))


def test_a_users_client_can_be_explored() -> None:
    """It is held to the same invariants, without its guards being true by luck."""
    found = of_client(Patient)
    assert listed(found) == []
    assert found.unreachable() == []
    assert found.dead_rules() == []
    assert found.traps(goal={"connected"}, final={"disconnected", "error"}, without=BY_HAND) == []
    assert [str(step) for step in found.paths["banished"]] == [
        "connect_requested",
        "socket_opened [not is_stable_at_once]",
        "socket_closed [was_kicked]",
    ]


def test_a_users_room_can_be_explored() -> None:
    """Likewise."""
    found = of_room(FullRoom)
    assert listed(found) == []
    assert found.unreachable() == []
    assert found.dead_rules() == []
    assert found.traps(goal={"joined"}, final={"left", "error"}) == []


def test_a_trap_is_found_with_the_shortest_way_into_it() -> None:
    """A state that a person alone could free: its timer was forgotten, and offline is no news to it."""

    class Trapped(Patient):
        banished = state(ClientStatus.RECONNECTING, like=ClientFSM.waiting)
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=banished, when="was_kicked"))
        went_offline = ClientFSM.went_offline.first(row(banished, to=STAY, do="note_offline", silences=ANY))

    (trap,) = of_client(Trapped).traps(goal={"connected"}, final={"disconnected", "error"}, without=BY_HAND)
    assert str(trap) == (
        "no way leads from banished to connected without connect_requested or retry_requested or start_requested, "
        "after connect_requested → socket_opened [not is_stable_at_once] → socket_closed [was_kicked]"
    )
    assert trap.events == ["connect_requested", "socket_opened", "socket_closed"]


def test_an_unreachable_state_and_dead_rules_are_found() -> None:
    """A state that no row leads to, and a row that a guard above it keeps from ever firing."""

    class Odd(Patient):
        attic = state(ClientStatus.RECONNECTING, like=ClientFSM.paused)
        pong_missed = ClientFSM.pong_missed.first(
            row(ClientFSM.connected, to=ClientFSM.paused, when="is_retrying_off", unless="is_retrying_off")
        )

    found = of_client(Odd)
    assert found.unreachable() == ["attic"]
    dead = [(each.event, each.source, each.when) for each in found.dead_rules() if each.source != "attic"]
    assert dead == [("pong_missed", "connected", ("is_retrying_off", "not is_retrying_off"))]


class Leaking(ClientFSM):
    """Forgets to give up its dial."""

    def cancel_dial(self) -> None: ...


class Babbling(ClientFSM):
    """Tells listeners of every change of state."""

    def state_changed(self) -> None:
        super().state_changed()
        if self.state == "retrying":
            self.status_changed(self.status, self.status)


class Busy(ClientFSM):
    """Does something after listeners have heard."""

    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None:
        super().status_changed(old, new)
        self.emit(StopTimer())


class Mute(ClientFSM):
    """Stops without telling anyone."""

    def stop(self) -> None: ...


class Raising(ClientFSM):
    """Has an action that raises."""

    def note_offline(self) -> None:
        raise OSError("no such file")


class Straying(ClientFSM):
    """Has an action that sets the state."""

    def forget_attempts(self) -> None:
        self.state = "error"


class Whimsical(ClientFSM):
    """Does not do the same twice."""

    dice = random.Random(1)

    def start_retry_timer(self) -> None:
        self.emit(StartTimer(self.dice.random()))


class Doubling(ClientFSM):
    """Pings a socket twice over."""

    def begin_session(self) -> None:
        super().begin_session()
        super().begin_session()


class Boasting(ClientFSM):
    """Shows a status that it has not."""

    paused = state(ClientStatus.CONNECTED)


class Lingering(RoomFSM):
    """Keeps its request when the answer has come, and its session when the connection is lost."""

    def abandon_request(self) -> None: ...

    def end_session(self) -> None: ...


class Waiting(RoomFSM):
    """Asks without a deadline, leaves without leaving."""

    queued = state(RoomStatus.CONNECTING, enter="send_leave")

    def request_join(self) -> None:
        super().request_join()
        self.stop_retry_timer()


class Clearing(RoomFSM):
    """Untracks what it keeps, goes on, and talks to its neighbours."""

    stale = state(RoomStatus.RECONNECTING, enter=("untrack", "shout"))

    def shout(self) -> None:
        self.emit(NotifyRooms("connection_lost", "lost"))


ASK = "connect_requested"
UP = f"{ASK} → socket_opened [not is_stable_at_once]"
FAULTY: list[tuple[type[ClientFSM] | type[RoomFSM], str]] = [
    (Leaking, f"Dial() is asked for while there is a dial, after {ASK} → retry_requested"),
    (Leaking, f"the client has stopped in disconnected, and there is still a dial, after {ASK} → close_requested"),
    (Leaking, f"the client has stopped in error, and there is still a dial, after {ASK} → faulted"),
    (
        Babbling,
        "the status went from reconnecting to reconnecting, "
        "and listeners are notified of reconnecting → reconnecting, after ",
    ),
    (Busy, f"there is an effect after the listeners are notified, after {ASK}"),
    (Mute, "Release is asked for never, not once, after faulted"),
    (Mute, "FailWaiters is asked for never, not once, after faulted"),
    (Mute, f"rooms are notified of connection_lost, not client_stopped, after {UP} → close_requested"),
    (Raising, "went_offline raises OSError: no such file, in disconnected, after went_offline [not is_offline]"),
    (
        Straying,
        f"connect_requested leads from connecting to error, not to connecting, after {ASK} → {ASK} [is_reset_asked]",
    ),
    (
        Whimsical,
        f"dial_failed does not do the same twice in connecting, after {ASK} → dial_failed [not is_misconfigured",
    ),
    (Doubling, f"StartKeepalive() is asked for while there is a keepalive and a socket and a timer, after {UP}"),
    (Boasting, "the status of paused is connected, and there is nothing alive, after start_requested [is_offline]"),
    (
        Lingering,
        "Synchronise('write', b'v') is asked for while there is a request and a timer, "
        "after connection_opened → join_accepted",
    ),
    (
        Lingering,
        "StartTimer(10) is asked for while there is a request and a timer, after connection_opened → join_refused",
    ),
    (
        Lingering,
        "the room has ended in left, and there is still a request and a timer, after ",
    ),
    (Lingering, "the status of stale is reconnecting, and there is a request and a session and a timer, after "),
    (Waiting, "SendLeave is asked for, and the room is not left, after join_requested"),
    (Waiting, "a request is made without a deadline, after connection_opened"),
    (Clearing, "Untrack is asked for once, not never, after connection_opened → join_accepted → connection_lost"),
    (Clearing, "NotifyRooms is asked for once, not never, after connection_opened → join_accepted → connection_lost"),
    (Clearing, "something is done about a room that is not tracked, after connection_opened → "),
]


@pytest.mark.parametrize(("cls", "what"), FAULTY, ids=[f"{cls.__name__}: {what[:40]}" for cls, what in FAULTY])
def test_a_broken_invariant_is_found(cls: type[Any], what: str) -> None:
    """With the shortest way there: an exploration that found nothing would prove nothing."""
    found = of_client(cls) if issubclass(cls, ClientFSM) else of_room(cls)
    assert [each for each in listed(found) if each.startswith(what)]


@dataclass(frozen=True)
class Flash(Effect):
    """An effect of a user's own."""


class Lamp(FSM[bool]):
    """A machine of a user's own, without any of ours."""

    off = state(False)
    on = state(True)
    broken = state(False)
    initial = off

    def is_old(self) -> bool:
        return False

    def flash(self) -> None:
        self.emit(Flash())

    @event(
        row(on, to=broken, when=is_old, do=flash),
        row(on, to=off),
        row(off, to=on),
        ignore(OTHERWISE, because="it is broken"),
    )
    def switched(self, times: int) -> None:
        """Somebody used the switch."""


def test_a_machine_of_ones_own_can_be_explored() -> None:
    """It says what its facts are told; a trap may be a state that is meant to be final."""
    found = explore(Lamp, arguments={"switched": (1,)}, watch=Watch())
    assert listed(found) == []
    assert found.dead_rules() == []
    (trap,) = found.traps(goal={"off"})
    assert str(trap) == "no way leads from broken to off, after switched → switched [is_old]"
    assert found.traps(goal={"off"}, final={"broken"}) == []


def test_a_change_of_status_is_to_be_told() -> None:
    """The lamp does not tell it; that is found after one event."""
    assert listed(explore(Lamp, arguments={"switched": (1,)}, watch=StatusWatch())) == [
        "the status went from False to True, and listeners are notified of nothing, after switched",
        "the status went from True to False, and listeners are notified of nothing, "
        "after switched → switched [not is_old]",
    ]


def test_a_fact_that_is_told_wrongly_is_a_fault() -> None:
    """``facts`` has the arguments of an event; where it has none, they are made up."""
    assert listed(explore(Lamp, arguments={"switched": (1, 2)}))[0].startswith("switched raises TypeError: ")
    assert listed(explore(Lamp, arguments={})) == []


def test_a_hole_would_be_found() -> None:
    """Classes with holes cannot be made; a rule that is gone all the same leaves one."""

    class Holed(Lamp):
        pass

    Holed.rules = tuple(rule for rule in Lamp.rules if rule.source != "broken")
    found = explore(Holed, arguments={"switched": (1,)}, watch=Watch())
    assert listed(found) == ["switched is not decided in broken, after switched → switched [is_old] → switched"]


# -------------------------------------------------------------------------------------------- real guards, random facts

SECONDS = st.floats(0, 600)
WORDS = st.sampled_from(["", "restarting", "permission_changed", "kicked"])
CODES = st.sampled_from([1000, 1001, 1005, 1006, 1008, 1011, 4399, 4400, 4499, 4500])
CLOSES = st.builds(CloseInfo, CODES, WORDS, SECONDS)
FAILURES = st.builds(
    AttemptFailure,
    st.sampled_from(FailureKind),
    WORDS,
    st.sampled_from([None, 200, 301, 401, 403, 404, 429, 503]),
    st.one_of(st.just(0.0), SECONDS),
)
REFUSALS = st.builds(JoinRefused, st.sampled_from([None, 0, 1, 2, 0x7F]), WORDS)
POLICIES = st.builds(
    partial,
    st.just(RetryPolicy),
    enabled=st.booleans() | st.just(True),
    base=st.floats(0.001, 1),
    cap=st.floats(1, 60),
    jitter=st.floats(0, 0.99),
    max_attempts=st.none() | st.integers(0, 5),
    stable_after=st.floats(0, 10),
    reset_on_online=st.booleans(),
)


class Living(RuleBasedStateMachine):
    """Tells a machine facts, possible or not, and watches it."""

    make: Callable[[], Any]
    fsm: Any
    watch: Watch

    def begin(self, cls: type[Any], policy: partial[RetryPolicy], seed: int, watch: Watch) -> None:
        self.make = lambda: cls(policy(random=random.Random(seed)))
        self.fsm, self.watch = self.make(), watch
        self.heard = self.fsm.status
        self.told: list[tuple[str, tuple[Any, ...], list[str]]] = []

    def tell(self, event: str, *args: Any) -> None:
        old_state, old_status = self.fsm.state, self.fsm.status
        effects: list[Effect] = getattr(self.fsm, event)(*args)
        self.told.append((event, args, said(effects)))
        entered = self.fsm.state != old_state
        self.watch, wrong = self.watch.after(Moment(event, old_state, old_status, self.fsm, entered, effects))
        assert not wrong
        for effect in effects:
            match effect:
                case StartTimer():
                    self.check_wait(event, effect.seconds)
                case NotifyStatus():
                    assert effect.change.old == self.heard != effect.change.new
                    self.heard = effect.change.new
        assert self.heard == self.fsm.status

    def check_wait(self, event: str, seconds: float) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        """A run can be repeated: the same facts, the same seed, the same effects."""
        if hasattr(self, "told"):
            again = self.make()
            assert [said(getattr(again, event)(*args)) for event, args, _ in self.told] == [
                effects for _, _, effects in self.told
            ]


class LivingClient(Living):
    """A client with real guards and a real policy."""

    @initialize(policy=POLICIES, seed=st.integers(0, 2**32))
    def start(self, policy: partial[RetryPolicy], seed: int) -> None:
        self.begin(ClientFSM, policy, seed, ClientWatch())

    def check_wait(self, event: str, seconds: float) -> None:
        if event == "socket_opened":
            assert seconds == self.fsm.policy.stable_after
            return
        policy = self.fsm.policy
        least = max((self.fsm.not_before or 0.0) - self.fsm.now, 0.0)
        assert least <= seconds <= max(least * (1 + 2 * policy.jitter), policy.cap)
        assert seconds == self.fsm.retry_in

    @rule(event=st.sampled_from(["retry_requested", "socket_opened", "timer_fired", "went_offline", "went_online"]))
    def something_happens(self, event: str) -> None:
        self.tell(event)

    @rule(reset=st.booleans())
    def somebody_connects(self, reset: bool) -> None:
        self.tell("connect_requested", reset)
        assert self.fsm.status in ("connecting", "connected", "reconnecting")

    @rule()
    def somebody_closes(self) -> None:
        self.tell("close_requested")
        assert self.fsm.status == "disconnected"

    @rule(failure=FAILURES)
    def a_dial_fails(self, failure: AttemptFailure) -> None:
        self.tell("dial_failed", failure)

    @rule(info=CLOSES, event=st.sampled_from(["socket_closed", "pong_missed"]))
    def a_connection_is_lost(self, event: str, info: CloseInfo) -> None:
        self.tell(event, info)
        assert self.fsm.status != "connected"

    @rule()
    def it_breaks(self) -> None:
        self.tell("faulted", "a guard raised")
        assert self.fsm.status == "error"


class LivingRoom(Living):
    """A room with real guards and a real policy."""

    now = 0.0

    @initialize(policy=POLICIES, seed=st.integers(0, 2**32))
    def start(self, policy: partial[RetryPolicy], seed: int) -> None:
        self.begin(RoomFSM, policy, seed, RoomWatch())

    def check_wait(self, event: str, seconds: float) -> None:
        interval = self.fsm.rejoin_interval + 1e-9 * self.now  # the sum of two floats
        if self.fsm.state in ("joining", "rejoining", "resyncing"):
            assert seconds == self.fsm.join_timeout
        elif self.fsm.waits_for_limit:
            assert 0 < seconds <= max(interval, self.fsm.policy.cap)
        elif event in ("evicted", "acks_overdue", "batch_refused", "updates_lost", "edited_in_doubt", "join_refused"):
            assert 0 < seconds <= max(interval, self.fsm.policy.cap * (event == "join_refused"))
        else:
            assert 0 < seconds <= self.fsm.policy.cap

    @rule(event=st.sampled_from(["join_requested", "timer_fired"]))
    def something_happens(self, event: str) -> None:
        self.tell(event)

    @rule(permission=st.sampled_from(["read", "write"]), version=st.binary(max_size=1))
    def it_is_joined(self, permission: str, version: bytes) -> None:
        self.tell("join_accepted", permission, version)

    @rule(event=st.sampled_from(["connection_opened", "connection_lost", "client_started", "client_stopped"]))
    def the_client_tells(self, event: str) -> None:
        self.tell(event, "why")

    @rule()
    def it_is_joined_on_a_new_connection(self) -> None:
        self.tell("connection_lost", "lost")
        self.tell("connection_opened", "connected")
        self.tell("join_accepted", "write", b"")

    @rule(refusal=REFUSALS)
    def it_is_refused(self, refusal: JoinRefused) -> None:
        self.tell("join_refused", refusal, self.now)

    @rule(status=st.sampled_from(UpdateStatusCode), later=st.floats(0, 60))
    def updates_are_refused(self, status: UpdateStatusCode, later: float) -> None:
        self.now += later
        self.tell("batch_refused", status, "no", self.now)

    @rule(status=st.sampled_from(UpdateStatusCode), later=st.floats(0, 60))
    def updates_are_lost(self, status: UpdateStatusCode, later: float) -> None:
        self.now += later
        self.tell("updates_lost", status, "lost", self.now)

    @rule(later=st.floats(0, 60))
    def there_is_an_edit(self, later: float) -> None:
        self.now += later
        if self.fsm.keeps_edits_back:
            self.tell("edited_in_doubt", self.now)

    @rule()
    def all_is_acknowledged(self) -> None:
        self.tell("acks_complete")
        assert not (self.fsm.in_doubt and self.fsm.state == "joined" and self.fsm.refused_status is None)

    @rule()
    def somebody_asks_for_a_comparison(self) -> None:
        self.tell("resync_requested")
        assert self.fsm.state not in ("joined", "resync_delayed")

    @rule(unauthorized=st.booleans())
    def credentials_fail(self, unauthorized: bool) -> None:
        self.tell("credentials_failed", "the auth function raised", unauthorized)

    @rule(refusal=REFUSALS | st.just(JoinRefused(1, "come back")), later=st.floats(0, 60))
    def it_is_put_out(self, refusal: JoinRefused, later: float) -> None:
        self.now += later
        self.tell("evicted", refusal, self.now)

    @rule(later=st.floats(0, 60))
    def acks_are_overdue(self, later: float) -> None:
        self.now += later
        self.tell("acks_overdue", self.now)

    @rule(event=st.sampled_from(["leave_requested", "faulted"]), once_in=st.integers(0, 9))
    def it_ends(self, event: str, once_in: int) -> None:
        if once_in == 0:
            self.tell(event, *(["the adaptor raised"] if event == "faulted" else []))


TestLivingClient = LivingClient.TestCase
TestLivingRoom = LivingRoom.TestCase
