"""Law 4: what lives in a slot has no callbacks once the slot is empty."""

from __future__ import annotations

import pytest

from reconnect_fsm._asyncio.event_queue import EventQueue
from reconnect_fsm._asyncio.slots import EMPTY, Slot


def test_callbacks_run_while_something_is_in_it() -> None:
    """With the arguments that they were made with, then those that they are called with."""
    calls: list[tuple[object, ...]] = []
    slot = Slot("a dial")
    slot.callback(lambda *args: calls.append(args), 1)(2, 3)
    slot.run(lambda *args: calls.append(args), 4)
    assert calls == [(1, 2, 3), (4,)]


def test_once_it_is_empty_they_do_nothing() -> None:
    """Emptying it gives back what was in it, once; emptying it again does nothing."""
    calls: list[int] = []
    slot = Slot("a dial")
    callback = slot.callback(calls.append, 1)
    assert slot
    assert slot.empty() == "a dial"
    callback()
    slot.run(calls.append, 2)
    assert slot.empty() is None
    assert not slot
    assert calls == []


def test_callbacks_may_be_made_before_it_is_filled() -> None:
    """A timer is made with its callback."""
    calls: list[int] = []
    slot: Slot[str] = Slot()
    callback = slot.callback(calls.append, 1)
    callback()
    assert slot.fill("a timer") == "a timer"
    callback()
    assert calls == [1]


def test_law_4_it_is_looked_at_when_the_callback_runs() -> None:
    """A timer fires while an event is under way that stops it: when its turn has come it leads to nothing."""
    queue, calls, timer = EventQueue(), list[str](), Slot("a timer")

    def event() -> None:
        queue.post(timer.run, calls.append, "the timer")
        calls.append("the event")
        timer.empty()

    queue.post(event)
    assert calls == ["the event"]


def test_the_next_one_does_not_revive_callbacks() -> None:
    """What follows has a slot of its own; a slot in use takes nothing else, and `EMPTY` takes nothing at all."""
    first, second = Slot("first"), Slot("second")
    calls: list[int] = []
    callback = first.callback(calls.append, 1)
    first.empty()
    callback()
    assert calls == []
    for slot in (second, EMPTY):
        with pytest.raises(AssertionError):
            slot.fill("third")
    assert EMPTY.empty() is None
