"""The small parts of the drivers: `EventQueue`, `Waiters`, `Completion`, `LazyCoroutine`, `Listeners`."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reconnect_fsm._asyncio.awaitables import Completion, LazyCoroutine, Waiters
from reconnect_fsm._asyncio.event_queue import NO_JOBS, NO_WORK, EventQueue
from reconnect_fsm._asyncio.listeners import Listeners

# ----------------------------------------------------------------------------------------------------------- EventQueue


def post_all(pump: EventQueue, ran: list[Any], jobs: int) -> None:
    """A job that posts many."""
    for number in range(jobs):
        pump.post(ran.append, number)


def test_a_job_runs_at_once() -> None:
    """Posted while nothing runs, a job has run when `post` returns."""
    ran: list[str] = []
    EventQueue().post(ran.append, "now")
    assert ran == ["now"]


def test_nothing_re_enters() -> None:
    """A job posted by a job waits until that one, and all posted before, have come to their end."""
    pump = EventQueue()
    ran: list[Any] = []

    def outer() -> None:
        pump.post(inner, "first")
        pump.post(ran.append, "second")
        ran.append("outer")

    def inner(name: str) -> None:
        pump.post(ran.append, "third")
        ran.append(name)

    pump.post(outer)
    assert ran == ["outer", "first", "second", "third"]


def test_a_job_that_raises_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """What a job raises goes to the log, with its traceback; the jobs behind it, and later ones, run."""
    pump = EventQueue()
    ran: list[Any] = []

    def outer() -> None:
        pump.post(ran.append, "behind")
        raise RuntimeError("a fault")

    pump.post(outer)
    pump.post(ran.append, "later")
    assert ran == ["behind", "later"]
    assert "RuntimeError: a fault" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_without_a_loop_a_queue_runs_to_its_end() -> None:
    """Before a client is started there is no loop to give way to: everything runs at once, in order."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.post(post_all, pump, ran, 1000)
    assert ran == list(range(1000))


def steps(ran: list[Any], numbers: Iterator[int] | range, tag: str = "") -> Iterator[None]:
    """Work, one number a step."""
    for number in numbers:
        ran.append((tag, number) if tag else number)
        yield


async def test_law_3_long_work_gives_way_to_the_loop() -> None:
    """`EventQueue.SLICE` steps run in one turn of the loop; work that is scheduled meanwhile comes after it."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.bind(asyncio.get_running_loop())
    pump.schedule(steps(ran, range(2 * EventQueue.SLICE)))
    assert ran == [*range(EventQueue.SLICE)]
    pump.schedule_call(ran.append, -1)
    turns = 0
    while ran[-1] != -1:
        await asyncio.sleep(0)
        turns += 1
    assert ran == [*range(2 * EventQueue.SLICE), -1]
    assert turns == 2
    pump.schedule_call(ran.append, -2)  # idle again: at once
    assert ran[-1] == -2


async def test_d_now_an_event_does_not_wait_for_work() -> None:
    """D-NOW: it has run when `post` returns, however much work waits; inside a step, when that step is complete."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.bind(asyncio.get_running_loop())

    def work() -> Iterator[None]:
        for number in range(2 * EventQueue.SLICE):
            pump.post(ran.append, f"event of {number}")
            ran.append(number)
            yield

    pump.schedule(work())
    assert pump.has_work
    done = len(ran)
    pump.post(ran.append, "now")
    assert ran[done:] == ["now"]
    await pump.idle()
    assert ran[:4] == [0, "event of 0", 1, "event of 1"]
    assert not pump.has_work


async def test_d_order_work_is_never_overtaken() -> None:
    """D-ORDER: whatever is posted and scheduled within its steps, a work goes on where it was, and the next follows."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.bind(asyncio.get_running_loop())

    def work(tag: str) -> Iterator[None]:
        for number in range(300):
            ran.append((tag, number))
            pump.post(int)
            pump.schedule_call(int)
            yield

    for tag in "abc":
        pump.schedule(work(tag))
    await pump.idle()
    assert ran == [(tag, number) for tag in "abc" for number in range(300)]


async def test_very_many_events_give_way_to_the_loop() -> None:
    """Events that ask for events without end do not stop the loop; their order stays."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.bind(asyncio.get_running_loop())
    pump.post(post_all, pump, ran, 3 * EventQueue.SLICE)
    assert len(ran) == EventQueue.SLICE - 1  # the one that posted them was the first
    pump.post(ran.append, -1)
    assert ran == [*range(3 * EventQueue.SLICE), -1]  # D-NOW


async def test_a_raising_job_does_not_lose_the_rest_of_a_slice() -> None:
    """Even what is no Exception (a KeyboardInterrupt) leaves the queue running."""
    pump = EventQueue()
    ran: list[Any] = []
    pump.bind(asyncio.get_running_loop())

    def interrupt() -> None:
        pump.post(ran.append, "rest")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pump.post(interrupt)
    await asyncio.sleep(0)
    assert ran == ["rest"]


def test_a_closed_loop_is_not_asked() -> None:
    """When its loop was closed with jobs in the queue, the pump is idle, not stuck."""
    pump = EventQueue()
    ran: list[Any] = []

    async def main() -> None:
        pump.bind(asyncio.get_running_loop())

    asyncio.run(main())
    pump.post(post_all, pump, ran, EventQueue.SLICE + 1)
    pump.post(ran.append, -1)
    assert ran == [*range(EventQueue.SLICE + 1), -1]


async def test_idle_waits_for_the_end_of_the_queue() -> None:
    """`idle` returns at once if nothing waits, and otherwise when all of it has run, also what was posted meanwhile."""
    pump = EventQueue()
    ran: list[Any] = []
    await pump.idle()
    pump.bind(asyncio.get_running_loop())
    pump.post(post_all, pump, ran, 3 * EventQueue.SLICE)
    waiters = [asyncio.create_task(pump.idle()) for _ in range(2)]
    await asyncio.sleep(0)
    pump.post(ran.append, -1)
    waiters[0].cancel()
    await waiters[1]
    assert ran == [*range(3 * EventQueue.SLICE), -1]
    assert waiters[0].cancelled()


class Panic(BaseException):
    """As loro's errors are: no Exception."""


@pytest.mark.parametrize("kind", [ValueError, Panic, StopIteration, asyncio.CancelledError])
def test_d_guard_work_that_raises_keeps_no_other_from_its_turn(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: what comes after it is done; the log has the traceback."""
    pump = EventQueue()
    ran: list[Any] = []

    class Raises:
        def __iter__(self) -> Raises:
            return self

        def __next__(self) -> None:
            raise kind("on purpose")

    def schedule() -> None:
        pump.schedule(iter(Raises()))
        pump.schedule(steps(ran, range(2)))
        pump.schedule(steps(ran, range(0)))
        pump.schedule_call(ran.append, "last")

    pump.post(schedule)
    assert ran == [0, 1, "last"]
    assert ("on purpose" in caplog.text) is (kind is not StopIteration)  # which ends an iterator


# -------------------------------------------------------------------------------------------------------------- Waiters


async def test_everyone_who_waits_gets_the_value_in_order_of_arrival() -> None:
    """A kept promise wakes all who wait, first come first served, and begins anew."""
    promise: Waiters[int] = Waiters()
    woken: list[tuple[str, int]] = []

    async def wait(name: str) -> None:
        woken.append((name, await promise.wait()))

    tasks = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    promise.wake(1)
    late = asyncio.create_task(wait("late"))
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert woken == [("a", 1), ("b", 1), ("c", 1)]
    promise.wake(2)
    await late
    assert woken[-1] == ("late", 2)


async def test_a_broken_promise_raises_in_everyone() -> None:
    """`fail` raises the error in all who wait, and in nobody who comes later."""
    promise: Waiters[int] = Waiters()
    tasks = [asyncio.create_task(promise.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    promise.fail(ValueError("no"))
    assert [str(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == ["no", "no"]
    late = asyncio.create_task(promise.wait())
    await asyncio.sleep(0)
    promise.wake(3)
    assert await late == 3


async def test_a_cancelled_waiter_harms_no_one() -> None:
    """Cancelled before, or in the very turn in which the promise is kept: the others get their value."""
    promise: Waiters[int] = Waiters()
    before, same, other = (asyncio.create_task(promise.wait()) for _ in range(3))
    await asyncio.sleep(0)
    before.cancel()
    await asyncio.sleep(0)
    same.cancel()
    promise.wake(1)
    assert await other == 1
    await asyncio.wait([same])
    assert before.cancelled()
    assert same.cancelled()


async def test_a_promise_nobody_waits_for_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """Failing one with no waiters, or with a waiter that is cancelled in the same turn, warns of nothing."""
    promise: Waiters[int] = Waiters()
    promise.fail(ValueError("no"))
    task = asyncio.create_task(promise.wait())
    await asyncio.sleep(0)
    promise.fail(ValueError("no"))
    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()
    assert caplog.text == ""


# ----------------------------------------------------------------------------------------------------------- Completion


async def test_an_outcome_can_be_awaited_often() -> None:
    """Before and after it is known, once or often, by one or many."""
    completion = Completion()

    async def wait() -> str:
        await completion.wait()
        return "well"

    tasks = [asyncio.create_task(wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not completion.done
    completion.succeed()
    assert completion.done
    assert await asyncio.gather(*tasks, wait(), wait()) == ["well"] * 4


async def test_a_failed_outcome_raises_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """It raises in whoever awaits it; left alone it warns of nothing."""
    completion, ignored = Completion(), Completion()

    async def wait() -> None:
        await completion.wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    completion.fail(ValueError("no"))
    ignored.fail(ValueError("ignored"))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await completion.wait()
    with pytest.raises(ValueError, match="no"):
        await task
    del ignored
    gc.collect()
    assert caplog.text == ""


async def test_a_lazy_coroutine_runs_only_when_awaited() -> None:
    """What nobody awaits neither runs nor warns; each await begins it."""
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    lazy = LazyCoroutine(work)
    await asyncio.sleep(0)
    assert ran == []
    await lazy
    await lazy
    assert ran == [1, 1]
    LazyCoroutine(work)
    gc.collect()
    assert ran == [1, 1]


async def test_a_lazy_coroutine_can_be_a_task() -> None:
    """`create_task`, `gather` and `wait_for` take it; cancelling and closing it reach what runs."""
    ended: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(0)
            return 1
        finally:
            ended.append("ended")

    assert asyncio.iscoroutine(LazyCoroutine(work))
    assert await asyncio.create_task(LazyCoroutine(work)) == 1
    assert await asyncio.gather(LazyCoroutine(work), LazyCoroutine(work)) == [1, 1]
    task = asyncio.create_task(LazyCoroutine(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    early = asyncio.create_task(LazyCoroutine(work))  # cancelled before its first step
    early.cancel()
    await asyncio.wait([early])
    assert early.cancelled()
    lazy = LazyCoroutine(work)
    lazy.close()  # nothing began
    assert lazy.send(None) is None
    lazy.close()
    assert len(ended) == 5


async def test_conn_5_a_lazy_coroutine_is_shared_by_tasks_that_run_it() -> None:
    """CONN-5 D-STOP: each task that runs it has a coroutine of its own, at the same time or one after the other."""
    ended: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(0)
            return 1
        finally:
            ended.append("ended")

    lazy = LazyCoroutine(work)
    first, second, cancelled = (asyncio.create_task(lazy) for _ in range(3))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([first, second, cancelled])
    assert cancelled.cancelled()
    assert (await first, await second) == (1, 1)
    assert await asyncio.wait_for(lazy, 5) == 1
    assert await asyncio.wait_for(lazy, 5) == 1
    assert await lazy == 1
    assert len(ended) == 6


# ------------------------------------------------------------------------------------------------------------ Listeners


def test_d_listen_listeners_are_told_in_order() -> None:
    """D-LISTEN: in the order in which they were added; one that is taken out is told no more."""
    listeners: Listeners[str] = Listeners("on_news")
    told: list[str] = []
    listeners.add(lambda news: told.append(f"a {news}"))
    remove = listeners.add(lambda news: told.append(f"b {news}"))
    listeners.add(lambda news: told.append(f"c {news}"))
    listeners.notify("1")
    remove()
    listeners.notify("2")
    assert told == ["a 1", "b 1", "c 1", "a 2", "c 2"]


def test_d_listen_one_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """D-LISTEN: the others are told, and the log names the kind of listener and the error."""
    listeners: Listeners[str] = Listeners("on_news")
    told: list[str] = []
    listeners.add(lambda news: 1 // 0)
    listeners.add(told.append)
    listeners.notify("x")
    assert told == ["x"]
    assert "a callback of on_news raised" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_taking_out_is_safe_while_telling() -> None:
    """A listener may take itself out, or add others, while it is told."""
    listeners: Listeners[str] = Listeners("on_news")
    told: list[str] = []

    def once(news: str) -> None:
        told.append(news)
        remove()
        listeners.add(told.append)

    remove = listeners.add(once)
    listeners.notify("1")
    assert told == ["1"]
    listeners.notify("2")
    assert told == ["1", "2"]
    remove()  # a second time: nothing
    listeners.notify("3")
    assert told == ["1", "2", "3"]


def test_taking_one_out_twice_spares_its_twin() -> None:
    """The same function added twice is told twice; taking out the first one, however often, leaves the second."""
    listeners: Listeners[str] = Listeners("on_news")
    told: list[str] = []
    first, _ = listeners.add(told.append), listeners.add(told.append)
    listeners.notify("1")
    first()
    first()
    listeners.notify("2")
    assert told == ["1", "1", "2"]


async def _coroutine_function(*_: Any) -> None: ...


class _AsyncCallable:
    async def __call__(self, news: str) -> None: ...


@pytest.mark.parametrize(
    "callback",
    [
        pytest.param(_coroutine_function, id="function"),
        pytest.param(functools.partial(_coroutine_function, 1), id="partial"),
        pytest.param(_AsyncCallable(), id="object"),
    ],
)
def test_d_listen_a_coroutine_function_is_refused(callback: Callable[[str], object]) -> None:
    """D-LISTEN: nobody would await it, so it is a TypeError that says so, however it is wrapped."""
    with pytest.raises(TypeError, match="on_news takes a plain function"):
        Listeners[str]("on_news").add(callback)


@pytest.mark.parametrize("callback", [None, "print", 5])
def test_d_listen_what_cannot_be_called_is_refused(callback: Any) -> None:
    """D-LISTEN: anything but a function is a TypeError, at once."""
    with pytest.raises(TypeError, match="on_news takes a function"):
        Listeners[str]("on_news").add(callback)


def test_what_waited_for_a_loop_that_ended_goes_on_in_the_next() -> None:
    """A queue cut short by the end of its loop is neither lost nor in the way."""
    done: list[int] = []
    pump = EventQueue()

    async def first() -> None:
        pump.bind(asyncio.get_running_loop())
        pump.schedule(steps(done, range(EventQueue.SLICE * 50)))

    async def second() -> None:
        pump.bind(asyncio.get_running_loop())
        pump.schedule_call(done.append, -1)
        await pump.idle()

    asyncio.run(first())
    assert len(done) < EventQueue.SLICE * 50
    asyncio.run(second())
    assert done == [*range(EventQueue.SLICE * 50), -1]


def test_what_waited_for_a_loop_that_ended_can_be_forgotten_with_it() -> None:
    """Without a loop there is nothing to give way to: what comes next is done at once."""
    done: list[int] = []
    pump = EventQueue()

    async def first() -> None:
        pump.bind(asyncio.get_running_loop())
        pump.schedule(steps(done, range(EventQueue.SLICE * 50)))

    asyncio.run(first())
    done.clear()
    pump.reset()
    pump.schedule(steps(done, range(EventQueue.SLICE * 3)))
    assert done == [*range(EventQueue.SLICE * 3)]


async def test_d_thread_an_event_from_another_thread_runs_in_the_loops() -> None:
    """D-THREAD: in the loop's next turn; never, and without a word, once the loop has ended."""
    pump, ran = EventQueue(), list[int]()
    pump.bind(asyncio.get_running_loop())

    def job() -> None:
        ran.append(threading.get_ident())

    await asyncio.to_thread(pump.post_from_any_thread, job)
    await asyncio.sleep(0)
    pump.post_from_any_thread(job)
    assert ran == [threading.get_ident()] * 2
    ended = asyncio.new_event_loop()
    pump.bind(ended)
    ended.close()
    await asyncio.to_thread(pump.post_from_any_thread, job)
    assert len(ran) == 2


async def test_what_is_idle_and_waited_for_by_nobody_says_so() -> None:
    """So that news for nobody costs nothing."""
    promise: Waiters[int] = Waiters()
    assert not promise
    waiting = asyncio.create_task(promise.wait())
    await asyncio.sleep(0)
    assert promise
    promise.wake(1)
    assert not promise
    assert await waiting == 1

    listeners: Listeners[int] = Listeners("on_number")
    assert not listeners
    remove = listeners.add(lambda _: None)
    assert listeners
    remove()
    assert not listeners


def test_an_idle_pump_holds_no_queue_of_its_own() -> None:
    """Thousands of connections are idle: what stands for their empty queues is shared, and stays empty."""
    pump, other = EventQueue(), EventQueue()
    ran: list[int] = []
    pump.post(post_all, pump, ran, 3)
    assert ran == [0, 1, 2]
    assert pump._events is other._events is NO_JOBS
    assert pump._works is other._works is NO_WORK
    assert not NO_JOBS
    assert not NO_WORK


def test_what_waited_is_forgotten_on_demand() -> None:
    """Its loop ended and nobody goes on; what is posted then runs at once."""
    pump = EventQueue()
    ran: list[int] = []

    async def leave_some() -> None:
        pump.bind(asyncio.get_running_loop())
        pump.post(post_all, pump, ran, 100 * EventQueue.SLICE)

    asyncio.run(leave_some())
    assert pump._events
    ran.clear()
    pump.reset()
    assert not pump._events
    pump.post(ran.append, 7)
    assert ran == [7]
