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
from reconnect_fsm import Client, ClientFSM, CloseInfo, RetryPolicy, RoomFSM, RoomStatus
from reconnect_fsm._asyncio.dispatcher import Dispatcher
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm.inspector.demo import NullAdaptor
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
    """A real machine that is told facts at given times, in seconds."""

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.dispatcher = Dispatcher()
        self.fsm = ClientFSM(policy or Fixed())

    def tell(self, at: float, event: str, *args: Any) -> Run:
        self.dispatcher.now = at
        self.dispatcher.fire(Idle(self.fsm), self.fsm.events[event], *args)
        return self

    def explanation(self, now: float, due: float | None = None, latency: float | None = None) -> Explanation:
        """All that it says."""
        return explanation(self.fsm, self.dispatcher.log, (), now=now, due=due, connect_timeout=10.0, latency=latency)


def connected(policy: RetryPolicy | None = None) -> Run:
    return Run(policy).tell(0, "start_requested").tell(1, "socket_opened")


def retried() -> Run:
    """Lost at 4 s, and two more attempts failed: the last one at 14.1 s."""
    run = connected().tell(4, "socket_closed", CloseInfo(1011))
    for began in (6, 14):
        run.tell(began, "timer_fired").tell(began + 0.1, "dial_failed", REFUSED)
    return run


SITUATIONS: Final[dict[str, Callable[[], Explanation]]] = {
    "not started yet": lambda: Run().explanation(0),
    "connecting": lambda: Run().tell(0, "start_requested").explanation(0.8),
    "connected": lambda: connected().explanation(193, latency=0.024),
    "waiting": lambda: retried().explanation(16, due=20.2),
    "asked to wait": lambda: Run().tell(0, "start_requested").tell(1, "dial_failed", BUSY).explanation(4, due=32),
    "retrying": lambda: retried().tell(20.2, "timer_fired").explanation(20.5),
    "paused": lambda: connected().tell(2, "went_offline").explanation(127),
    "disconnected": lambda: connected().tell(2, "close_requested").explanation(6),
    "refused": lambda: connected().tell(2, "socket_closed", CloseInfo(4401)).explanation(6),
    "error": lambda: connected(Broken()).tell(2, "socket_closed", CloseInfo(1011)).explanation(6),
}


def table() -> dict[str, str]:
    """What the module's table promises, by its first column."""
    assert explain.__doc__ is not None
    rows: dict[str, str] = {}
    when = ""
    for line in explain.__doc__.split(f"{'=' * 21}  ")[2].splitlines()[1:]:
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
    for number, (state, reason) in enumerate(standing):
        fsm = driver_of(client.join(f"{number}", NullAdaptor())).fsm
        fsm.state, fsm.reason = state, reason
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
