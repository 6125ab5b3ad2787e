"""Many deadlines, one timer: order, cancelling, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconnect_fsm._asyncio.timers import SLICE, Timer, TimerQueue
from reconnect_fsm.testing import virtual_time


def run(job: Callable[..., None], *args: Any) -> None:
    """What falls due is simply run."""
    job(*args)


def timers(loop: Any) -> list[asyncio.TimerHandle]:
    """The loop's timers that will run."""
    return [timer for timer in loop._scheduled if not timer.cancelled()]


class Log:
    """What fell due, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadlines = TimerQueue(run)
        self.seen: list[tuple[float, str]] = []

    def set(self, seconds: float, name: str) -> Timer:
        return self.deadlines.call_later(self.loop, seconds, self.due, name)

    def due(self, deadline: Timer, name: str) -> None:
        assert isinstance(deadline, Timer)
        self.seen.append((round(self.loop.time(), 3), name))

    @property
    def names(self) -> str:
        return "".join(name for _, name in self.seen)


@pytest.mark.virtual_time
async def test_they_fall_due_in_order_whatever_order_they_were_set_in() -> None:
    """The earliest first, each at its own time; those of the same time in the order in which they were set."""
    log = Log()
    for seconds, name in ((3, "e"), (1, "a"), (2, "b"), (2, "c"), (2, "d")):
        log.set(seconds, name)
    assert len(log.deadlines) == 5
    await asyncio.sleep(10)
    assert log.seen == [(1, "a"), (2, "b"), (2, "c"), (2, "d"), (3, "e")]
    assert len(log.deadlines) == 0


@pytest.mark.virtual_time
async def test_there_is_one_timer_however_many_deadlines() -> None:
    """A thousand deadlines hold one timer of the loop; none is left when the last has come."""
    log = Log()
    before = len(timers(log.loop))
    for number in range(1000):
        log.set(1 + number % 7, "x")
        assert len(timers(log.loop)) == before + 1
    await asyncio.sleep(7.5)
    assert len(log.seen) == 1000
    assert len(timers(log.loop)) == before


@pytest.mark.virtual_time
async def test_a_timer_that_is_cancelled_while_its_call_waits_in_a_queue_does_nothing() -> None:
    """Law 4: the owner need not ask whether the call belongs to its present timer; that one fired counts once."""
    loop, seen, waiting = asyncio.get_running_loop(), list[str](), list[Callable[[], None]]()
    queue = TimerQueue(waiting.append)
    first = queue.call_later(loop, 1, lambda _: seen.append("first"))
    queue.call_later(loop, 1, lambda _: seen.append("second"))
    queue.call_later(loop, 5, lambda _: seen.append("third"))
    await asyncio.sleep(2)
    assert (len(waiting), len(queue), first.has_fired, first.is_cancelled) == (2, 1, True, False)
    queue.cancel(first)
    queue.cancel(first)
    assert (len(queue), first.is_cancelled) == (1, True)
    for call in waiting:
        call()
        call()
    assert seen == ["second"]
    await asyncio.sleep(4)
    waiting[-1]()
    assert (seen, len(queue)) == (["second", "third"], 0)


@pytest.mark.virtual_time
async def test_a_cancelled_deadline_does_not_come() -> None:
    """Whether it is the first, in the middle or the last; cancelling twice, or what has come, does nothing."""
    log = Log()
    first, second, third = log.set(1, "a"), log.set(2, "b"), log.set(3, "c")
    log.deadlines.cancel(first)
    log.deadlines.cancel(first)
    assert len(log.deadlines) == 2
    await asyncio.sleep(2.5)
    log.deadlines.cancel(second)
    assert len(log.deadlines) == 1
    await asyncio.sleep(10)
    log.deadlines.cancel(third)
    assert log.seen == [(2, "b"), (3, "c")]
    assert len(log.deadlines) == 0


@pytest.mark.virtual_time
async def test_no_timer_is_left_when_the_last_one_is_cancelled() -> None:
    """Cancelling all leaves nothing in the loop, and it can be used again."""
    log = Log()
    before = timers(log.loop)
    for each in [log.set(seconds, "x") for seconds in (3, 1, 2)]:
        log.deadlines.cancel(each)
    assert timers(log.loop) == before
    log.set(1, "y")
    await asyncio.sleep(5)
    assert log.names == "y"


@pytest.mark.virtual_time
async def test_a_job_may_set_and_cancel_others() -> None:
    """Also those of the same time: one that is cancelled by the one before it does not come."""
    log = Log()

    def meddle(_: Timer) -> None:
        log.deadlines.cancel(doomed)
        log.set(0, "now")
        log.set(1, "later")

    log.deadlines.call_later(log.loop, 1, meddle)
    doomed = log.set(1, "doomed")
    await asyncio.sleep(5)
    assert log.seen == [(1, "now"), (2, "later")]


@pytest.mark.virtual_time
async def test_cancelled_ones_do_not_pile_up() -> None:
    """TimerQueue that are set and cancelled for ever, as those of joins are, take no more room than those that live."""
    log = Log()
    log.set(50, "kept")
    for _ in range(10_000):
        log.deadlines.cancel(log.set(60, "x"))
    assert len(log.deadlines._heap) < 200
    await asyncio.sleep(100)
    assert log.seen == [(50, "kept")]


@given(
    plan=st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40),
    cancelled_at=st.integers(0, 20),
)
def test_what_comes_is_what_was_set_and_not_cancelled(plan: list[tuple[int, bool]], cancelled_at: int) -> None:
    """For any deadlines, of which any are cancelled at any time: each of the others comes once, in order."""

    async def scenario() -> None:
        log = Log()
        marked = []
        for number, (seconds, cancel) in enumerate(plan):
            deadline = log.set(seconds, f"{number};")
            if cancel:
                marked.append(deadline)
        await asyncio.sleep(cancelled_at + 0.5)
        for deadline in marked:
            log.deadlines.cancel(deadline)
        await asyncio.sleep(30)
        assert log.seen == sorted(
            ((float(s), f"{n};") for n, (s, cancel) in enumerate(plan) if not cancel or s <= cancelled_at),
            key=lambda seen: (seen[0], int(seen[1][:-1])),
        )
        assert len(log.deadlines) == 0

    virtual_time.run(scenario)


def test_a_timer_that_runs_a_little_early_counts() -> None:
    """asyncio runs a timer up to the clock's resolution before its time; to set it again would make the loop spin."""

    class EarlyLoop:
        """A loop whose clock stands still, a hundred-thousandth of a second before every deadline."""

        armed = 0

        def time(self) -> float:
            return 0.0

        def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> Any:
            self.armed += 1
            self.fire = lambda: callback(*args)
            return self

        def cancel(self) -> None: ...

    loop: Any = EarlyLoop()
    came: list[Timer] = []
    deadlines = TimerQueue(run)
    deadlines.call_later(loop, 1e-5, came.append)
    loop.fire()
    assert len(came) == 1
    assert loop.armed == 1


async def test_one_that_is_dropped_from_the_head_takes_no_other_along() -> None:
    """Cancelled ones are dropped together; the timer that was set for the first must not run a later one early."""
    came: list[float] = []
    loop = asyncio.get_running_loop()
    deadlines = TimerQueue(run)
    began = loop.time()
    early = [deadlines.call_later(loop, 0.01, lambda _: came.append(0.01)) for _ in range(200)]
    late = deadlines.call_later(loop, 0.3, lambda _: came.append(loop.time() - began))
    for each in early:
        deadlines.cancel(each)
    await asyncio.sleep(0.1)
    assert came == []
    deadlines.cancel(late)


@pytest.mark.virtual_time
async def test_one_that_may_come_early_comes_with_another_that_is_due() -> None:
    """Up to so many seconds before its time, and at its own if nobody else is due then."""
    log = Log()
    began = log.loop.time()
    for when, early, name in ((1.0, 0.0, "a"), (1.5, 0.5, "b"), (1.625, 0.5, "c"), (3.0, 0.5, "d"), (4.0, 9.0, "e")):
        log.deadlines.call_at(log.loop, began + when, log.due, name, slack=early)
    await asyncio.sleep(10)
    assert [(seen - round(began, 3), name) for seen, name in log.seen] == [
        (1.0, "a"),
        (1.0, "b"),  # at the very edge
        (1.625, "c"),  # an eighth of a second too early
        (3.0, "d"),
        (3.0, "e"),
    ]


@pytest.mark.virtual_time
async def test_many_that_are_due_at_once_give_way_to_the_loop() -> None:
    """In slices; and what they set meanwhile comes in its time."""
    log = Log()
    turn = 0
    slices: list[int] = []

    def due(_: Timer) -> None:
        nonlocal turn
        if turn == 0:
            log.loop.call_soon(next_turn)
        turn += 1
        log.set(1, "x")

    def next_turn() -> None:
        nonlocal turn
        slices.append(turn)
        turn = 0

    before = len(timers(log.loop))
    for _ in range(300):
        log.deadlines.call_later(log.loop, 1, due)
    await asyncio.sleep(5)
    assert slices == [SLICE, SLICE, 300 - 2 * SLICE]
    assert log.seen == [(2, "x")] * 300
    assert len(timers(log.loop)) == before


async def test_all_of_a_loop_share_theirs() -> None:
    """Each loop has its own; a job there is called with its deadline, and no more."""
    loop = asyncio.get_running_loop()
    shared = TimerQueue.shared(loop)
    assert TimerQueue.shared(loop) is shared
    other = asyncio.new_event_loop()
    try:
        assert TimerQueue.shared(other) is not shared
    finally:
        other.close()
    came: asyncio.Future[tuple[Timer, str]] = loop.create_future()
    deadline = shared.call_later(loop, 0, lambda *given: came.set_result(given), "word")
    assert await came == (deadline, "word")


def test_what_is_shared_goes_with_its_loop() -> None:
    """Also if a deadline was left in it: nobody ever asks for it again."""
    loop = asyncio.new_event_loop()
    TimerQueue.shared(loop).call_later(loop, 60, run)
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


@pytest.mark.virtual_time
async def test_a_job_that_raises_holds_up_no_other() -> None:
    """The loop is told of it; those that are due at the same time, and those that come later, come."""
    log = Log()
    told: list[BaseException | None] = []
    log.loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    error = LookupError()

    def fails(_: Timer) -> None:
        raise error

    log.set(1, "a")
    log.deadlines.call_later(log.loop, 1, fails)
    for seconds, name in ((1, "b"), (2, "c")):
        log.set(seconds, name)
    await asyncio.sleep(5)
    assert told == [error]
    assert log.seen == [(1, "a"), (1, "b"), (2, "c")]
