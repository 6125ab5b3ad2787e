"""How things stand, in words: each line of the table in its module comes to be, and the rooms are counted rightly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import Idle
from reconnect_fsm import Client, ClientFSM, ClientStatus, CloseInfo, RetryPolicy, RoomFSM, RoomStatus
from reconnect_fsm._asyncio.dispatcher import Dispatcher
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm.effects import Effect, StartTimer, StopTimer
from reconnect_fsm.inspector.demo import NullAdaptor
from reconnect_fsm.machine import OTHERWISE, event, ignore, row, state
from reconnect_fsm.recorder import explain
from reconnect_fsm.recorder.explain import MAX_NAMES, MAX_REASONS, Explanation, explanation
from reconnect_fsm.status import AttemptFailure, FailureKind

NOWHERE: Final = "ws://127.0.0.1:9/"
REFUSED: Final = AttemptFailure(FailureKind.NETWORK, "could not connect: Connection refused")
BUSY: Final = AttemptFailure(FailureKind.ANSWER, "the server answered HTTP 503", 503, 30.0)


class Fixed(RetryPolicy):
    """The default's words, and waits that are the same each time."""

    wait = 6.1

    def no_sooner(self, retry_after: float) -> float:
        return 31.0 if retry_after else self.wait


class Broken(RetryPolicy):
    def is_fatal_close(self, info: CloseInfo) -> bool:
        raise LookupError


class Run:
    """A real machine in which events fire at given times, in seconds."""

    def __init__(self, policy: RetryPolicy | None = None, cls: type[ClientFSM] = ClientFSM) -> None:
        self.dispatcher = Dispatcher()
        self.fsm = cls(policy or Fixed())

    def fire(self, at: float, event: str, *args: Any) -> Run:
        self.dispatcher.now = at
        self.dispatcher.fire(Idle(self.fsm), self.fsm.events[event], *args)
        return self

    def explanation(self, now: float, due: float | None = None, latency: float | None = None) -> Explanation:
        """All that it says."""
        return explanation(self.fsm, self.dispatcher.log, (), now=now, due=due, connect_timeout=10.0, latency=latency)


def connected(policy: RetryPolicy | None = None, cls: type[ClientFSM] = ClientFSM) -> Run:
    return Run(policy, cls).fire(0, "start_requested").fire(1, "socket_opened")


def retried() -> Run:
    """Lost at 4 s, and two more attempts failed: the last one at 14.1 s."""
    run = connected().fire(4, "socket_closed", CloseInfo(1011))
    for began in (6, 14):
        run.fire(began, "timer_fired").fire(began + 0.1, "dial_failed", REFUSED)
    return run


SITUATIONS: Final[dict[str, Callable[[], Explanation]]] = {
    "not started yet": lambda: Run().explanation(0),
    "connecting": lambda: Run().fire(0, "start_requested").explanation(0.8),
    "connected": lambda: connected().explanation(193, latency=0.024),
    "waiting": lambda: retried().explanation(16, due=20.2),
    "asked to wait": lambda: Run().fire(0, "start_requested").fire(1, "dial_failed", BUSY).explanation(4, due=32),
    "retrying": lambda: retried().fire(20.2, "timer_fired").explanation(20.5),
    "paused": lambda: connected().fire(2, "went_offline").explanation(127),
    "disconnected": lambda: connected().fire(2, "close_requested").explanation(6),
    "refused": lambda: connected().fire(2, "socket_closed", CloseInfo(4401)).explanation(6),
    "error": lambda: connected(Broken()).fire(2, "socket_closed", CloseInfo(1011)).explanation(6),
}


class Mine(ClientFSM):
    """With states of every kind that a program may add."""

    def is_updating(self) -> bool:
        return self.loss.code == 4503

    def is_held(self) -> bool:
        return self.loss.code == 4504

    def is_throttled(self) -> bool:
        return self.loss.code == 4505

    def is_resting(self) -> bool:
        return self.loss.code == 4506

    def is_banned(self) -> bool:
        return self.loss.code == 4507

    def wait_a_minute(self) -> None:
        self.emit(StartTimer(60.0))

    def stop_timer(self) -> None:
        self.emit(StopTimer())

    updating = state(ClientStatus.RECONNECTING, like=ClientFSM.waiting, enter=wait_a_minute, exit=stop_timer)
    throttled = state(
        ClientStatus.RECONNECTING, like=ClientFSM.waiting, enter="start_retry_timer", exit="stop_retry_timer"
    )
    held = state(ClientStatus.RECONNECTING, like=ClientFSM.paused, doc="nothing")
    resting = state(ClientStatus.RECONNECTING, like=ClientFSM.waiting, enter=wait_a_minute, exit=stop_timer)
    probing = state(ClientStatus.CONNECTING, like=ClientFSM.connecting, enter="dial", exit="cancel_dial")
    draining = state(ClientStatus.CONNECTED, like=ClientFSM.connected, enter="begin_session", exit="close_socket")
    banned = state(ClientStatus.DISCONNECTED, like=ClientFSM.disconnected, enter="stop")

    socket_closed = ClientFSM.socket_closed.first(
        row(ClientFSM.connected, to=updating, when=is_updating, do="count_attempt"),
        row(ClientFSM.connected, to=throttled, when=is_throttled),
        row(ClientFSM.connected, to=held, when=is_held),
        row(ClientFSM.connected, to=resting, when=is_resting),
        row(ClientFSM.connected, to=banned, when=is_banned, do="stop_refused"),
    )
    timer_fired = ClientFSM.timer_fired.first(row(resting, to=held))
    connect_requested = ClientFSM.connect_requested.first(ignore(banned, because="it is banned"))
    retry_requested = ClientFSM.retry_requested.first(ignore(banned, because="it is banned"))
    went_online = ClientFSM.went_online.first(ignore(held, because="it is held"))

    @event(row(held, to=ClientFSM.retrying), row(ClientFSM.connected, to=draining), ignore(OTHERWISE, because="free"))
    def released(self) -> None:
        """The program lets it go on."""
        self.pending_reason = "released"

    @event(
        row((held, ClientFSM.connected), to=probing),
        row(banned, to=ClientFSM.error),
        ignore(OTHERWISE, because="no need"),
    )
    def probe_requested(self) -> None:
        """The program wants to know."""
        self.pending_reason = "probing"


def closed(code: int) -> Run:
    return connected(cls=Mine).fire(4, "socket_closed", CloseInfo(code))


LOST: Final = "Not connected, and reconnecting for"
ADDED: Final[dict[str, tuple[Callable[[], Explanation], str]]] = {
    "a timer of its own": (
        lambda: closed(4503).explanation(16, due=64),
        f"{LOST} 12 s, in the state updating: closed with code 4503. It has failed once in a row. The next attempt, "
        "retry 1, is in 48 s: the state updating decides how long it waits.\nretry_now() makes it now.",
    ),
    "the backoff": (
        lambda: closed(4505).explanation(5, due=10.1),
        f"{LOST} 1.0 s, in the state throttled: closed with code 4505. The next attempt is in 5.1 s, 6.1 s after it "
        "entered throttled: the backoff, 0.5 s that doubles up to 15 s, give or take 25%.\nretry_now() makes it now.",
    ),
    "a timer that leads to no attempt": (
        lambda: closed(4506).explanation(16, due=64),
        f"{LOST} 12 s, in the state resting: closed with code 4506. Its timer fires in 48 s, and leads to held.\n"
        "retry_now() tries now.",
    ),
    "nothing": (
        lambda: closed(4504).explanation(16),
        f"{LOST} 12 s, in the state held: closed with code 4504. What is alive in held: nothing. Events that lead "
        "on: released (to retrying), probe_requested (to probing).\nretry_now() tries now.",
    ),
    "nothing, and offline": (
        lambda: closed(4504).fire(5, "went_offline").explanation(16),
        f"{LOST} 12 s: offline. It waits to hear that there is a network again, and tries at once then.\n"
        "retry_now() tries now.",
    ),
    "an attempt": (
        lambda: closed(4504).fire(6, "probe_requested").explanation(9),
        "Connecting for 3.0 s, in the state probing: probing. An attempt is under way, and may take 7.0 s more.",
    ),
    "a connection": (
        lambda: connected(cls=Mine).fire(2, "released").explanation(3, due=7),
        "Connected for 2.0 s, in the state draining.\nIts timer fires in 4.0 s. Events that lead on: "
        "probe_requested (to probing).",
    ),
    "a stop without a way on": (
        lambda: closed(4507).explanation(6),
        "Stopped 2.0 s ago, for good, in the state banned: closed with code 4507. That says not to come back. "
        "Events that lead on: probe_requested (to error).",
    ),
}


@pytest.mark.parametrize("what", ADDED)
def test_it_says_what_can_be_known_of_a_state_that_a_subclass_adds(what: str) -> None:
    """Its name, what its effects began, where its timer leads, and the subclass's events that lead on."""
    explain_it, expected = ADDED[what]
    assert explain_it().present.replace("\n", " ") == expected.replace("\n", " ")


def test_a_wait_that_a_subclass_decides_is_not_called_the_backoff() -> None:
    """It overrides the action of `waiting`, or gives the state another one."""

    class Slow(ClientFSM):
        def start_retry_timer(self) -> None:
            self.emit(StartTimer(100.0))

    class Patient(ClientFSM):
        def wait_long(self) -> None:
            self.emit(StartTimer(100.0))

        waiting = state(ClientStatus.RECONNECTING, enter=wait_long, exit="stop_retry_timer")

    for cls in (Slow, Patient):
        run = connected(cls=cls).fire(4, "socket_closed", CloseInfo(1011))
        found = run.explanation(5, due=104)
        assert found.next.endswith(
            f"The next attempt, retry 1, is in 1 min 39 s: {cls.__name__} decides how long it waits."
        )


def test_a_guard_that_raises_spoils_no_explanation() -> None:
    """What it would allow is not known; what else is known is said."""

    class Raises(ClientFSM):
        def is_worth_it(self) -> bool:
            raise LookupError

        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.waiting, to=ClientFSM.paused, when=is_worth_it))
        retry_requested = ClientFSM.retry_requested.first(row(ClientFSM.waiting, to=ClientFSM.paused, when=is_worth_it))

    run = connected(cls=Raises).fire(4, "socket_closed", CloseInfo(1011))
    found = run.explanation(5, due=10)
    assert (found.next, found.remedy) == ("It has failed once in a row. Its timer fires in 5.0 s.", "")


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_end_the_program_is_no_fault_of_a_guard(wish: type[BaseException]) -> None:
    """D-GUARD: it goes on to the caller."""

    class Ends(ClientFSM):
        def is_worth_it(self) -> bool:
            raise wish

        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.waiting, to=ClientFSM.paused, when=is_worth_it))

    run = connected(cls=Ends).fire(4, "socket_closed", CloseInfo(1011))
    with pytest.raises(wish):
        run.explanation(5, due=10)


def test_an_attempt_whose_beginning_the_log_has_lost_is_under_way() -> None:
    """It began at least that long ago."""
    run = Run().fire(0, "start_requested")
    began = run.dispatcher.log[0]
    later = (1.0, "", run.fsm, "went_online", (), "connecting", "connecting", "started", 0, list[Effect](), None)
    assert explanation(run.fsm, [began], (), now=5, due=None, connect_timeout=10.0, latency=None).next.endswith(
        "5.0 s more."
    )
    found = explanation(run.fsm, [later], (), now=5, due=None, connect_timeout=10.0, latency=None)
    assert found.next == "An attempt is under way, and may take 10 s more."


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [
        (RetryPolicy(enabled=False), "The policy says not to retry."),
        (RetryPolicy(max_attempts=0), "It has failed once in a row, and max_attempts is 0."),
    ],
)
def test_the_verdict_is_the_kind_of_stop(policy: RetryPolicy, verdict: str) -> None:
    """D-CAUSE: as the row says it."""
    assert connected(policy).fire(2, "socket_closed", CloseInfo(1011)).explanation(6).next == verdict


def table(after: int = 2) -> dict[str, str]:
    """What a table of the module promises, by its first column: the one after so many of the lines that frame them."""
    assert explain.__doc__ is not None
    rows: dict[str, str] = {}
    when = ""
    for line in explain.__doc__.split(f"{'=' * 21}  ")[after].splitlines()[1:]:
        when = line[:23].strip() or when
        rows[when] = f"{rows.get(when, '')} {line[23:].strip()}".strip()
    return rows


def test_the_table_tells_of_each_situation() -> None:
    """No line of it goes untested."""
    assert table().keys() == SITUATIONS.keys()


@pytest.mark.parametrize("when", SITUATIONS)
def test_it_says_what_the_table_says(when: str) -> None:
    """Word for word, with real machines; an ellipsis in the table stands for anything."""
    promised = re.escape(table()[when]).replace("…", ".+").replace(r"\ ", " ")
    said = " ".join(SITUATIONS[when]().present.split("\n"))
    assert re.fullmatch(promised, said), said


def test_it_says_what_the_table_of_added_states_says() -> None:
    """Likewise."""
    rows = table(after=4)
    examples = {"added: with a timer": "a timer of its own", "added: with nothing": "nothing"}
    assert rows.keys() == examples.keys()
    for when, what in examples.items():
        promised = re.escape(rows[when]).replace("…", ".+").replace(r"\ ", " ")
        said = " ".join(ADDED[what][0]().present.split("\n"))
        assert re.fullmatch(promised, said), said


@pytest.mark.parametrize("when", SITUATIONS)
def test_what_a_program_can_do_is_told_apart(when: str) -> None:
    """For those who watch, and cannot call anything; the whole has each part once, in order."""
    found = SITUATIONS[when]()
    assert "()" not in found.summary + found.next
    assert not found.remedy or "()" in found.remedy
    parts = [found.summary, found.next, found.remedy, found.history, *found.rooms]
    assert re.split(r"\s+", str(found)) == " ".join(each for each in parts if each).split()


def naive(rooms: tuple[Any, ...]) -> list[str]:
    """The lines about rooms, one room at a time."""
    counts = Counter(room.status for room in rooms)
    lines = [f"Rooms: {', '.join(f'{counts[each]:,} {each.value}' for each in RoomStatus if counts[each])}."]
    others: dict[tuple[str, str], list[str]] = {}
    for room in rooms:
        if room.status is not RoomStatus.JOINED:
            others.setdefault((room.status.value, room.reason), []).append(room.id)
    for (status, reason), names in sorted(others.items(), key=lambda item: -len(item[1]))[:MAX_REASONS]:
        more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        lines.append(f"{', '.join(map(repr, names[:MAX_NAMES]))}{more}: {status}, {reason}.")
    if len(others) > MAX_REASONS:
        lines.append(f"And {len(others) - MAX_REASONS:,} more reasons.")
    return lines


@given(st.lists(st.tuples(st.sampled_from(sorted(RoomFSM.states)), st.sampled_from("abcdefg")), min_size=1))
def test_rooms_are_counted_as_if_one_by_one(standing: list[tuple[str, str]]) -> None:
    """In whatever states and for whatever reasons: numbers, names and their order."""
    client = Client(NOWHERE)
    for number, (where, reason) in enumerate(standing):
        fsm = driver_of(client.join(f"{number}", NullAdaptor())).fsm
        fsm.state, fsm.reason = where, reason
    _, _, told = client.explain().partition("Rooms: ")
    assert f"Rooms: {told}" in ("\n".join(naive(client.rooms)), " ".join(naive(client.rooms)))


def test_a_refused_room_is_told_of() -> None:
    """The client tracks it no more; the log remembers it for a while."""
    run = connected()
    room = RoomFSM(Fixed())
    run.dispatcher.now = 2.0
    run.dispatcher.fire(Idle(room, "notes"), RoomFSM.faulted, "its adaptor raised ValueError")
    assert (
        str(run.explanation(5.0)).splitlines()[-1]
        == "Room 'notes' was refused or put out 3.0 s ago: its adaptor raised ValueError."
    )
