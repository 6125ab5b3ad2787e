"""`check_machine`: a sound subclass passes, and each kind of fault is found, with the shortest way to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from reconnect_fsm import ClientFSM, ClientStatus, RoomFSM, RoomStatus
from reconnect_fsm.effects import Dial, Effect, StartTimer
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, event, ignore, row, state
from reconnect_fsm.retry import SYSTEM, RetryPolicy
from reconnect_fsm.testing.machines import (
    MAX_LISTED,
    ClientWatch,
    MachineFault,
    Moment,
    StatusWatch,
    Watch,
    check_machine,
    drawn_policy,
    run,
)

UP = "connect_requested → socket_opened [not is_stable_at_once]"


# ------------------------------------------------------------------------------------------------------- nothing wrong


class PatientFSM(ClientFSM):
    """Stays away for a minute while the server is being updated: the README's."""

    def is_being_updated(self) -> bool:
        return self.loss.code == 4503

    def wait_a_minute(self) -> None:
        self.retry_in = 60.0
        self.emit(StartTimer(self.retry_in))

    updating = state(
        ClientStatus.RECONNECTING, enter=wait_a_minute, exit=ClientFSM.stop_retry_timer, like=ClientFSM.waiting
    )
    socket_closed = ClientFSM.socket_closed.first(
        row(
            ClientFSM.connected,
            to=updating,
            when=is_being_updated,
            do=ClientFSM.count_attempt,
            after=ClientFSM.is_offline,  # the attempt limit, fatal closes and being offline still win
        )
    )


class TokenFSM(ClientFSM):
    """Has an event of its own."""

    @event(row(ClientFSM.connected, to=ClientFSM.connecting), ignore(OTHERWISE, because="no token in use"))
    def token_expired(self, at: float) -> None:
        """The token of this connection is about to expire."""
        self.pending_reason = f"the token expires at {at:g}"


class FullRoomFSM(RoomFSM):
    """Waits when it is told that there is no place left."""

    full = state(RoomStatus.CONNECTING, enter="start_retry_timer", exit="stop_retry_timer", like=RoomFSM.join_delayed)

    def is_full(self) -> bool:
        return self.is_refused_with(0x7F)

    join_refused = RoomFSM.join_refused.first(row(RoomFSM.joining, to=full, when=is_full, do=RoomFSM.back_off))


@pytest.mark.parametrize("cls", [ClientFSM, RoomFSM, PatientFSM, TokenFSM, FullRoomFSM])
def test_a_sound_machine_passes(cls: type[FSM[Any]]) -> None:
    """From the class alone, in a second or two; what was found out is handed back."""
    found = check_machine(cls)
    assert set(found.paths) == set(cls.states)
    assert found.faults == []


# --------------------------------------------------------------------------------------------------------------- faults


def faults_of(cls: type[FSM[Any]], **options: Any) -> list[str]:
    """What check_machine says, a fault a line."""
    with pytest.raises(MachineFault) as found:
        check_machine(cls, **options)
    return [str(fault) for fault in found.value.faults]


class Trapped(PatientFSM):
    """Forgot the timer of its state."""

    updating = state(ClientStatus.RECONNECTING, like=ClientFSM.waiting)
    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=updating, when="is_being_updated"))


class Sealed(ClientFSM):
    """Cannot be left, not even by hand."""

    def is_banned(self) -> bool:
        return self.loss.code == 4000

    banned = state(ClientStatus.DISCONNECTED, enter=ClientFSM.stop)
    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=banned, when=is_banned))
    connect_requested = ClientFSM.connect_requested.first(ignore(banned, because="banned"))
    retry_requested = ClientFSM.retry_requested.first(ignore(banned, because="banned"))
    start_requested = ClientFSM.start_requested.first(ignore(banned, because="banned"))
    close_requested = ClientFSM.close_requested.first(row(banned, to=STAY, silences=ANY))
    faulted = ClientFSM.faulted.first(row(banned, to=STAY, silences=ANY))
    went_online = ClientFSM.went_online.first(row(banned, to=STAY, silences=ANY))
    went_offline = ClientFSM.went_offline.first(row(banned, to=STAY, silences=ANY))


class TrappedRoom(FullRoomFSM):
    """Waits until the connection is lost."""

    full = state(RoomStatus.CONNECTING, like=RoomFSM.join_delayed)
    join_refused = RoomFSM.join_refused.first(row(RoomFSM.joining, to=full, when="is_full", do=RoomFSM.back_off))
    timer_fired = RoomFSM.timer_fired.first(ignore(full, because="there is none"))
    join_accepted = RoomFSM.join_accepted.first(ignore(full, because="it was refused"))


class Attic(ClientFSM):
    """Has a state that no row leads to."""

    attic = state(ClientStatus.RECONNECTING, like=ClientFSM.paused)


class Outdone(ClientFSM):
    """Put two rows above the inherited ones of which one always passes."""

    pong_missed = ClientFSM.pong_missed.first(
        row(ClientFSM.connected, to=ClientFSM.paused, when="is_offline", silences="is_offline"),
        row(ClientFSM.connected, to=ClientFSM.waiting, unless="is_offline"),
    )


class Impossible(ClientFSM):
    """Expects a socket to close where there is none."""

    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.paused, to=ClientFSM.connecting, silences=ANY))


class Undecided(ClientFSM):
    """Has an event that never does anything."""

    @event(ignore(OTHERWISE, because="not yet"))
    def battery_is_low(self) -> None: ...


class RaisingGuard(PatientFSM):
    """Has a guard with a slip of the pen."""

    def is_being_updated(self) -> bool:
        return bool(self.los.code == 4503)  # type: ignore[attr-defined]


class SometimesRaisingGuard(ClientFSM):
    """Has a guard that raises for one fact only, which is told as a second way."""

    def is_worth_it(self) -> bool:
        return 1 / (1008 - self.loss.code) > 0

    socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=ClientFSM.waiting, when=is_worth_it))


class RaisingAction(ClientFSM):
    """Has an action that raises."""

    def note_offline(self) -> None:
        raise OSError("no such file")


class DialsTwice(ClientFSM):
    """Asks for a second dial."""

    def dial(self) -> None:
        self.emit(Dial())
        self.emit(Dial())


class DialsAgain(ClientFSM):
    """Forgets to give up the dial that is under way."""

    def cancel_dial(self) -> None: ...


class TellsTwice(ClientFSM):
    """Tells each status twice."""

    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None:
        super().status_changed(old, new)
        super().status_changed(old, new)


class TellsNobody(RoomFSM):
    """Forgets its listeners."""

    def status_changed(self, old: RoomStatus, new: RoomStatus) -> None: ...


class LeavesATimer(ClientFSM):
    """Forgets to stop its timer."""

    def stop_retry_timer(self) -> None: ...


class KeepsASocket(ClientFSM):
    """Is done with a connection and does not close it."""

    def close_socket(self) -> None:
        self.notify_rooms("connection_lost")


class Doubtful(ClientFSM):
    """Waits for what is no time."""

    def start_retry_timer(self) -> None:
        self.retry_in = self.policy.delay(self.attempt) - 1
        if self.retry_in < 0:
            raise ValueError("a negative wait")
        self.emit(StartTimer(self.retry_in))


STUCK = "connect_requested or retry_requested or start_requested or went_offline"
CLOSED = f"{UP} → socket_closed"
FAULTY: list[tuple[type[FSM[Any]], str]] = [
    (Trapped, f"no way leads from updating to connected without {STUCK}, after {CLOSED} [is"),
    (Trapped, "the row of timer_fired from updating never fires: nothing is alive there that could bring it about"),
    (Sealed, f"no way leads from banned to connected, after {CLOSED} [is_banned]"),
    (
        TrappedRoom,
        "no way leads from full to joined or resync_delayed or resyncing without connection_lost or cl",
    ),
    (Attic, "nothing leads to the state attic"),
    (Outdone, "the row of pong_missed from connected when is_retrying_off never fires: the rows above it pass w"),
    (Impossible, "the row of socket_closed from paused never fires: nothing is alive there that could bring it abou"),
    (Undecided, "battery_is_low is ignored in every state"),
    (RaisingGuard, "the guard is_being_updated raises AttributeError: 'RaisingGuard' object has no attribute 'los'"),
    (
        SometimesRaisingGuard,
        "the guard is_worth_it raises ZeroDivisionError: division by zero, "
        "after connect_requested → socket_opened → socket_closed(CloseInfo(1008, reason='policy', lasted=60))",
    ),
    (RaisingAction, "went_offline raises OSError: no such file, in disconnected, after went_offline [not is_offline]"),
    (DialsTwice, "Dial() is asked for while there is a dial, after connect_requested"),
    (DialsAgain, "Dial() is asked for while there is a dial, after connect_requested → retry_requested"),
    (
        TellsTwice,
        "the status went from disconnected to connecting, and listeners are notified of "
        "disconnected → connecting and disconnected → connecting, after connect_requested",
    ),
    (
        TellsNobody,
        "the status went from disconnected to connecting, and listeners are notified of nothing, after join_requested",
    ),
    (LeavesATimer, "Dial() is asked for while there is a timer, after connect_requested → dial_failed [not is_misc"),
    (KeepsASocket, "Dial() is asked for while there is a keepalive and a socket and a timer, after connect_request"),
    (Doubtful, "dial_failed raises ValueError: a negative wait, in connecting, after connect_requested → dial_fail"),
]


@pytest.mark.parametrize(("cls", "what"), FAULTY, ids=[f"{cls.__name__}: {what[:40]}" for cls, what in FAULTY])
def test_each_kind_of_fault_is_found_with_the_shortest_way_to_it(cls: type[FSM[Any]], what: str) -> None:
    """In words, and by the events."""
    found = faults_of(cls)
    assert [each for each in found if each.startswith(what)], found


def test_a_trap_is_told_once() -> None:
    """What nobody can end, a person cannot either: that goes without saying."""
    assert [each for each in faults_of(Sealed) if "no way" in each] == [
        f"no way leads from banned to connected, after {CLOSED} [is_banned]"
    ]


def test_several_faults_are_reported_together() -> None:
    """One run tells all; the error holds them as values too, and its text numbers them."""

    class Sloppy(Undecided):
        attic = state(ClientStatus.RECONNECTING, like=ClientFSM.paused)

        def cancel_dial(self) -> None: ...

    with pytest.raises(AssertionError) as raised:
        check_machine(Sloppy)
    assert isinstance(raised.value, MachineFault)
    text = str(raised.value)
    assert "Sloppy has " in text.splitlines()[0]
    assert text.splitlines()[1:3] == [
        "  1. Dial() is asked for while there is a dial",
        "     after connect_requested → retry_requested",
    ]
    assert "nothing leads to the state attic" in text
    assert "battery_is_low is ignored in every state" in text
    first = raised.value.faults[0]
    assert (first.what, first.events) == (
        "Dial() is asked for while there is a dial",
        ["connect_requested", "retry_requested"],
    )


def test_a_long_list_of_faults_is_cut_short() -> None:
    """The first ones are the ones to mend."""

    class Hopeless(ClientFSM):
        def state_changed(self) -> None:
            raise RuntimeError(self.state)

    with pytest.raises(MachineFault) as raised:
        check_machine(Hopeless)
    more = len(raised.value.faults) - MAX_LISTED
    assert more > 0
    assert str(raised.value).splitlines()[-1] == f"     and {more} more"


def test_what_a_subclass_puts_above_an_inherited_row_is_meant() -> None:
    """To outdo an inherited row with one of the same guard is how a decision is changed, and no fault."""

    class Changed(ClientFSM):
        pong_missed = ClientFSM.pong_missed.first(
            row(ClientFSM.connected, to=ClientFSM.paused, when="is_retrying_off", silences="is_retrying_off")
        )

    assert check_machine(Changed).dead_rules() == []


def test_guards_that_raise_where_the_machine_can_never_be_are_no_fault() -> None:
    """While exploring, guards answer anything; one that relies on another is not blamed for it."""

    class Relying(ClientFSM):
        def has_deadline(self) -> bool:
            return self.retry_in is not None

        def is_far_off(self) -> bool:
            assert self.retry_in is not None
            return self.retry_in > 10

        went_offline = ClientFSM.went_offline.first(
            row(ClientFSM.waiting, to=STAY, when=(has_deadline, is_far_off), do=ClientFSM.note_offline)
        )

    assert check_machine(Relying).faults == []


def test_living_stops_somewhere() -> None:
    """A machine that remembers something new each time is lived in only so long."""

    class Counting(ClientFSM):
        count = 0

        def note_online(self) -> None:
            self.count += 1
            super().note_online()

    assert run(Counting, make=lambda cls: cls(RetryPolicy(jitter=0)), watch=ClientWatch(), limit=50) == []


# --------------------------------------------------------------------------------------------- what one may say besides


class Ticket:
    """Nothing that could be made up."""


class Lamp(FSM[bool]):
    """A machine without any of ours, and of which nobody hears."""

    off, on, broken = state(False), state(True), state(False)
    initial = off

    def __init__(self, age: int) -> None:
        super().__init__()
        self.age = age

    def is_old(self) -> bool:
        return self.age > 1

    @event(row(on, to=broken, when=is_old), row(on, to=off), row(off, to=on), ignore(OTHERWISE, because="it is broken"))
    def switched(self, ticket: Ticket, times: int | None, why: Exception, status: ClientStatus) -> None: ...


def test_any_machine_can_be_checked() -> None:
    """It says how one is made, what an event is told, which states are the goal and which are final."""
    arguments = {"switched": [(Ticket(), 1, ValueError(), ClientStatus.CONNECTED)]}
    options: dict[str, Any] = {"make": lambda cls: cls(3), "arguments": arguments}
    check_machine(Lamp, **options)
    check_machine(Lamp, **options, goal=["off"], final=["broken"])
    assert faults_of(Lamp, **options, goal=["off"]) == [
        "no way leads from broken to off, after switched → switched [is_old]"
    ]
    assert faults_of(Lamp, **options, watch=StatusWatch())[0] == (
        "the status went from False to True, and listeners are notified of nothing, after switched"
    )


def test_an_event_that_cannot_be_told_says_what_to_say() -> None:
    """Arguments are made up by their annotations, as far as that goes."""
    with pytest.raises(TypeError, match=r"'ticket' of the event 'switched' .* arguments=\{'switched': \("):
        check_machine(Lamp, make=lambda cls: cls(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": ["conected"]}, "goal: ClientFSM has no conected; there are disconnected, connecting"),
        ({"final": ["left"]}, "final: ClientFSM has no left"),
        ({"arguments": {"token_expired": ()}}, "arguments: ClientFSM has no token_expired"),
    ],
)
def test_a_name_that_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    """Or a slip of the pen would make the check weaker, silently."""
    with pytest.raises(ValueError, match=message):
        check_machine(ClientFSM, **options)


def test_what_is_no_class_of_a_machine_is_refused() -> None:
    """An instance, say."""
    wrong: Any = ClientFSM()
    with pytest.raises(TypeError, match="takes the class of a machine"):
        check_machine(wrong)


@dataclass(frozen=True)
class Polite(ClientWatch):
    """A watch of a user's own: a close frame says why."""

    def complaints(self, moment: Moment) -> Iterator[str]:
        yield from super().complaints(moment)
        if moment.event == "close_requested" and moment.old_state == "connected":
            yield "goodbye was not said"


def test_a_watch_of_ones_own_asks_for_more() -> None:
    """Its complaints are faults like all others."""
    assert faults_of(ClientFSM, watch=Polite()) == [f"goodbye was not said, after {UP} → close_requested"]
    check_machine(DialsTwice, watch=Watch())  # and a weaker one for less


def test_effects_of_ones_own_are_welcome() -> None:
    """They are nobody's business here."""

    class Flash(Effect):
        pass

    class Flashing(ClientFSM):
        def begin_session(self) -> None:
            super().begin_session()
            self.emit(Flash())

    flashing: Callable[..., object] = check_machine
    paths: Collection[str] = check_machine(Flashing).paths
    assert flashing(Flashing)
    assert "connected" in paths


def test_rows_put_first_twice_belong_to_the_class() -> None:
    """A new state may have its only rows in the inner one."""

    class Twice(ClientFSM):
        banished = state(ClientStatus.RECONNECTING)
        timer_fired = ClientFSM.timer_fired.first(row(banished, to=ClientFSM.connecting)).first(
            row(ClientFSM.waiting, to=ClientFSM.connecting, silences="RETRY-1")
        )

    assert {rule.declared_in for rule in Twice.rules if rule.event == "timer_fired"} == {"ClientFSM", "Twice"}


# -------------------------------------------------------------------------------------------- what the policy demands


def patient(**place: Any) -> type[ClientFSM]:
    """`PatientFSM` with its row in another place."""

    class Patient(ClientFSM):
        def is_being_updated(self) -> bool:
            return self.loss.code == 4503

        wait_a_minute = PatientFSM.wait_a_minute
        updating = state(
            ClientStatus.RECONNECTING, enter=wait_a_minute, exit=ClientFSM.stop_retry_timer, like=ClientFSM.waiting
        )
        socket_closed = ClientFSM.socket_closed.first(
            row(ClientFSM.connected, to=updating, when=is_being_updated, do=ClientFSM.count_attempt, **place)
        )

    return Patient


@pytest.mark.parametrize(
    ("place", "faults"),
    [
        ({}, ["RETRY-2", "OFF-1"]),
        ({"before": ClientFSM.are_attempts_used_up}, ["RETRY-2", "OFF-1"]),
        ({"after": ClientFSM.are_attempts_used_up}, ["OFF-1"]),
        ({"after": ClientFSM.is_offline}, []),
    ],
)
def test_retry_2_off_1_a_row_put_first_must_obey_the_attempt_limit_and_offline(
    place: dict[str, Any], faults: list[str]
) -> None:
    """RETRY-2, OFF-1: found with the user's real guard, whatever close code it waits for."""
    if not faults:
        check_machine(patient(**place))
        return
    with pytest.raises(MachineFault) as found:
        check_machine(patient(**place))
    assert [clause for clause in ("RETRY-2", "OFF-1") if clause in str(found.value)] == faults
    assert "socket_closed(CloseInfo(4503))" in str(found.value)


def test_retry_2_a_limit_is_obeyed_after_any_failure() -> None:
    """RETRY-2: a machine that never counts its attempts goes on for ever."""

    class Tireless(ClientFSM):
        def count_attempt(self) -> None:
            pass

    with pytest.raises(MachineFault, match=r"waiting: it goes on with no attempt left \(RETRY-2\)"):
        check_machine(Tireless)


def test_a_policy_of_ones_own_may_be_tried_too() -> None:
    """With a seeded source of chance, so that it is the same each time."""

    class Late(ClientFSM):
        def count_attempt(self) -> None:
            super().count_attempt()
            if self.policy.max_attempts == 7:
                raise LookupError("seven")

    check_machine(Late)
    policy = RetryPolicy(max_attempts=7, random=Random(7))
    state = policy.random.getstate()
    check_machine(ClientFSM, policy=policy)
    assert policy.random.getstate() == state  # it can be used again
    with pytest.raises(MachineFault, match="raises LookupError"):
        check_machine(Late, policy=policy)


@pytest.mark.parametrize("cls", [ClientFSM, RoomFSM])
@pytest.mark.parametrize("source", [Random(7), SYSTEM], ids=["seeded", "the system's"])
def test_waits_may_be_drawn(cls: type[ClientFSM | RoomFSM], source: Random) -> None:
    """Each copy of a machine has its own source of chance: the same event has the same effects."""
    check_machine(cls, make=lambda cls: cls(RetryPolicy(random=source)))


def test_a_policy_is_drawn_from_the_seed() -> None:
    """What only some policies lead to is found with the seeds that draw them."""

    class Odd(ClientFSM):
        def count_attempt(self) -> None:
            super().count_attempt()
            if self.policy.max_attempts == 3:
                raise LookupError("three")

    limits = [drawn_policy(seed).max_attempts for seed in range(50)]
    check_machine(Odd, seed=limits.index(2))
    with pytest.raises(MachineFault, match="raises LookupError: three"):
        check_machine(Odd, seed=limits.index(3))


def test_a_drawn_policy_has_every_setting() -> None:
    """Limits and none, jitter and little of it; the same seed draws the same policy."""
    policies = [drawn_policy(seed) for seed in range(50)]
    assert {each.max_attempts for each in policies} == {None, 0, 1, 2, 3}
    assert {each.reset_on_online for each in policies} == {True, False}
    assert {each.stable_after == 0 for each in policies} == {True, False}
    assert {each.max_retry_after == 0 for each in policies} == {True, False}
    assert policies == [drawn_policy(seed) for seed in range(50)]


def test_retry_2_a_policy_of_ones_own_is_obeyed_too() -> None:
    """RETRY-2: a subclass of the policy may have an ``__init__`` of its own, and retrying may be off in it."""

    class Odd(RetryPolicy):
        def __init__(self, wait: float) -> None:
            super().__init__(enabled=False)
            object.__setattr__(self, "wait", wait)

        def delay(self, attempt: int) -> float:
            return float(vars(self)["wait"])

    class Stubborn(ClientFSM):
        def are_attempts_used_up(self) -> bool:
            return super().are_attempts_used_up() and type(self.policy) is not Odd

    check_machine(ClientFSM, policy=Odd(1.0))
    check_machine(Stubborn)
    with pytest.raises(MachineFault, match=r"\(RETRY-2\)"):
        check_machine(Stubborn, policy=Odd(1.0))
