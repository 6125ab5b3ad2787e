"""What both drivers have in common: the log of steps, and what becomes of a machine or an effect that raises."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from reconnect_fsm import ClientFSM, ClientStopped, Connection, RoomFSM
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.dispatcher import MAX_OLDER_STEPS, MAX_STEPS, Dispatcher
from reconnect_fsm._steps import Step
from reconnect_fsm.effects import Dial, Effect, FailWaiters, NotifyRooms, NotifyStatus, Release, RequestJoin, StartTimer

BROKEN = "the machine {} raised LookupError; the log tells where"


class Desk:
    """A subject that writes its effects down, and raises on those that it is told to."""

    def __init__(self, fsm: ClientFSM | RoomFSM | None = None, name: str = "") -> None:
        self.dispatcher = Dispatcher()
        self.fsm = fsm or ClientFSM()
        self.name = name
        self.ran: list[Effect] = []
        self.raises: dict[type, BaseException] = {}
        self.done: list[tuple[str, str]] = []

    def run_effect(self, effect: Effect) -> None:
        self.ran.append(effect)
        if type(effect) in self.raises:
            raise self.raises[type(effect)]

    def event_done(self, event: str, old_state: str) -> None:
        self.done.append((event, old_state))

    @property
    def faults(self) -> list[str]:
        """What `faulted` was fired with, in order."""
        return [args[0] for _, event, args, *_ in map(told, self.dispatcher.log) if event == "faulted"]

    def tell(self, event: str, *args: Any) -> None:
        """Post an event."""
        self.dispatcher.post_event(self, self.fsm.events[event], *args)

    def fire(self, event: str, *args: Any) -> None:
        """Fire it now: inside another event."""
        self.dispatcher.fire(self, self.fsm.events[event], *args)

    @property
    def kinds(self) -> list[str]:
        """The effects that were run, in order."""
        return [type(effect).__name__ for effect in self.ran]


def told(step: Step) -> tuple[Any, ...]:
    """Of a step: whose, event, arguments, state before and after, reason."""
    _, whose, _, event, args, old, new, reason, *_ = step
    return whose, event, args, old, new, reason


def effects(step: Step) -> list[Effect]:
    """Of a step: what was asked for."""
    return next(each for each in step if type(each) is list)


# ---------------------------------------------------------------------------------------------------------------- steps


def test_an_event_fires_and_its_effects_run_in_order() -> None:
    """All of them, once; then the subject is told that the event is done."""
    desk = Desk()
    desk.tell("start_requested")
    assert desk.done == [("start_requested", "disconnected")]
    assert desk.fsm.state == "connecting"
    assert desk.ran == effects(desk.dispatcher.log[0])
    assert "Dial" in desk.kinds


def test_a_step_says_what_was_told_and_what_came_of_it() -> None:
    """Whose machine, event and arguments, states, the reason, the effects; a room's under its id."""
    desk = Desk()
    desk.tell("start_requested")
    desk.tell("connect_requested", True)
    room = Desk(RoomFSM(), "notes")
    room.tell("join_requested")
    assert [told(step) for step in desk.dispatcher.log] == [
        ("", "start_requested", (), "disconnected", "connecting", "started"),
        ("", "connect_requested", (True,), "connecting", "connecting", "started"),
    ]
    assert effects(desk.dispatcher.log[1]) == []
    assert [told(step) for step in room.dispatcher.log] == [
        ("notes", "join_requested", (), "disconnected", "queued", "asked to join")
    ]


@pytest.mark.virtual_time
async def test_a_step_says_when() -> None:
    """In the loop's seconds, which are those of `now`; before there is a loop it is zero."""
    desk = Desk()
    desk.tell("went_offline")
    desk.dispatcher.bind(asyncio.get_running_loop())
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(7)
    desk.tell("went_online")
    assert [step[0] for step in desk.dispatcher.log] == [0.0, pytest.approx(began + 7)]
    assert desk.dispatcher.now == desk.dispatcher.log[-1][0]


def test_the_log_is_bounded_and_holds_the_last_steps() -> None:
    """`MAX_STEPS` of them, and `MAX_OLDER_STEPS` of the client's own before those."""
    desk = Desk()
    for number in range(5 * MAX_STEPS):
        desk.tell("connect_requested", number)
        assert len(desk.dispatcher.log) == min(number + 1, MAX_STEPS + MAX_OLDER_STEPS)
    numbers = [told(step)[2][0] for step in desk.dispatcher.log]
    assert numbers == list(range(4 * MAX_STEPS - MAX_OLDER_STEPS, 5 * MAX_STEPS))


@pytest.mark.parametrize("every", [2, 10, 50])
def test_what_rooms_do_does_not_push_out_the_clients_own_steps(every: int) -> None:
    """The last `MAX_OLDER_STEPS` of its own that are not among the last `MAX_STEPS` of all stay, in order."""
    desk, room = Desk(), Desk(RoomFSM(), "notes")
    steps: list[tuple[str, int]] = []
    for number in range(MAX_OLDER_STEPS * every + 3 * MAX_STEPS):
        subject = room if number % every else desk
        steps.append((subject.name, number))
        desk.dispatcher.fire(subject, subject.fsm.events["faulted"], number)
        if number % 97:
            continue
        older = [step for step in steps[:-MAX_STEPS] if not step[0]]
        logged = [(told(step)[0], told(step)[2][0]) for step in desk.dispatcher.log]
        assert logged == older[-MAX_OLDER_STEPS:] + steps[-MAX_STEPS:]


async def test_a_connection_keeps_its_steps() -> None:
    """The log is that of what is used, and outlives a stop."""
    connection = Connection("ws://127.0.0.1:1", connect_timeout=5)
    connection.start()
    await connection.close()
    log = connection_driver_of(connection).dispatcher.log
    assert [told(step)[1] for step in log] == ["start_requested", "close_requested"]


# --------------------------------------------------------------------------------------------------------- what raises


@pytest.mark.parametrize(
    "error", [LookupError("hunter2"), asyncio.CancelledError()], ids=["an error", "a cancellation"]
)
def test_an_effect_that_raises_is_the_next_fact(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """D-ERROR: the rest of its step is run all the same; the reason names the effect, and never quotes the error."""
    desk = Desk()
    desk.raises[Dial] = error
    desk.tell("start_requested")
    what = f"running Dial raised {type(error).__name__}; the log tells where"
    assert desk.faults == [what]
    assert (desk.fsm.state, desk.fsm.reason) == ("error", what)
    first, second = desk.dispatcher.log
    assert told(second)[1:5] == ("faulted", (what,), "connecting", "error")
    assert desk.ran == effects(first) + effects(second)
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_fault_of_an_effect_waits_its_turn() -> None:
    """The driver's first law: what runs is run to its end before the fault is told."""
    desk = Desk()
    desk.raises[Dial] = LookupError()

    def job() -> None:
        desk.fire("start_requested")
        assert desk.faults == []
        assert desk.fsm.state == "connecting"

    desk.dispatcher.post(job)
    assert desk.fsm.state == "error"


def test_each_effect_that_raises_is_told() -> None:
    """Also those on the way to `error`, where the second word changes nothing."""
    desk = Desk()
    desk.raises = {Dial: LookupError(), FailWaiters: LookupError(), Release: LookupError()}
    desk.tell("start_requested")
    assert [what.split()[1] for what in desk.faults] == ["Dial", "Release", "FailWaiters"]
    assert (desk.fsm.state, desk.fsm.reason) == ("error", "running Dial raised LookupError; the log tells where")


class Breaks(ClientFSM):
    """Raises when it dials."""

    def dial(self) -> None:
        raise LookupError("hunter2")


class BreaksTwice(Breaks):
    """And once more on its way to error."""

    def stop(self) -> None:
        raise LookupError("hunter2")


class RoomBreaksTwice(RoomFSM):
    def request_join(self) -> None:
        raise LookupError("hunter2")

    def untrack(self) -> None:
        raise LookupError("hunter2")


def test_a_machine_that_raises_is_in_error() -> None:
    """D-ERROR: what it asked for until then is lost; it stops with that reason."""
    desk = Desk(Breaks())
    desk.tell("start_requested")
    assert (desk.fsm.state, desk.fsm.reason) == ("error", BROKEN.format("Breaks"))
    assert "Dial" not in desk.kinds
    (stopped,) = [effect.error for effect in desk.ran if isinstance(effect, FailWaiters)]
    assert isinstance(stopped, ClientStopped)
    assert len(desk.dispatcher.log) == 1
    assert told(desk.dispatcher.log[0])[1:5] == ("start_requested", (), "disconnected", "error")


def test_a_machine_that_raises_again_on_its_way_to_error_is_not_asked_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """D-ERROR: it is in `error` all the same; everything is released, and rooms, waiters and listeners hear of it."""
    desk = Desk(BreaksTwice())
    with caplog.at_level(logging.ERROR):
        desk.tell("start_requested")
    assert (desk.fsm.state, desk.fsm.reason) == ("error", BROKEN.format("BreaksTwice"))
    assert desk.kinds == ["Release", "NotifyRooms", "FailWaiters", "NotifyStatus"]
    assert [record.getMessage() for record in caplog.records] == [
        "BreaksTwice, on start_requested in state disconnected, raised LookupError",
        "BreaksTwice, on its way to error, raised LookupError",
    ]
    desk.tell("went_offline")  # and it goes on to be told what happens
    assert told(desk.dispatcher.log[-1])[1:5] == ("went_offline", (), "error", "error")


def test_a_room_that_raises_again_is_untracked() -> None:
    """REJOIN-3: nothing of it is left."""
    desk = Desk(RoomBreaksTwice(), "notes")
    desk.tell("join_requested")
    desk.tell("connection_opened", "connected")
    assert (desk.fsm.state, desk.fsm.reason) == ("error", BROKEN.format("RoomBreaksTwice"))
    assert "Untrack" in desk.kinds
    assert not any(isinstance(effect, RequestJoin | StartTimer | NotifyRooms) for effect in desk.ran)
    assert sum(isinstance(effect, NotifyStatus) for effect in desk.ran) == 2
