"""Many deadlines, one timer of the event loop: ten thousand rooms, or connections, need no timer each."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

__all__ = ["Timer", "TimerQueue"]

SLICE: Final = 128  # that run before the event loop gets its turn


class Timer:
    """Calls a function at a time, unless it is cancelled: also if it has fired, and the call waits for its turn."""

    __slots__ = ("_args", "_job", "has_fired", "is_cancelled", "slack", "when")

    def __init__(self, when: float, job: Callable[..., None], args: tuple[Any, ...], slack: float) -> None:
        self.when = when
        """When it is due. The clock may say a little less when it runs: asyncio may run a timer early."""
        self.slack = slack
        """Seconds that it may fire before."""
        self.has_fired = False
        """Whether its time has come."""
        self.is_cancelled = False
        """Whether its owner cancelled it."""
        self._job: Callable[..., None] | None = job
        self._args = args

    def run(self) -> None:
        """Make the call, unless it was cancelled by now (law 4)."""
        if self._job is not None:
            job, self._job = self._job, None
            job(self, *self._args)

    def cancel(self) -> None:
        """Do not make the call; let go of what it would be given."""
        self.is_cancelled = True
        self._job, self._args = None, ()


class TimerQueue:
    """A heap of deadlines of one event loop. Times are the loop's, in seconds."""

    def __init__(self, run: Callable[..., None]) -> None:
        """``run(timer.run)`` is called when a timer fires."""
        self._run = run
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0  # of all there ever were: keeps those of the same time in order
        self._live = 0
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @staticmethod
    def shared(loop: asyncio.AbstractEventLoop) -> TimerQueue:
        """Those that everybody in this loop uses, for as long as somebody keeps them; here a job is just called."""
        found = _shared.get(id(loop))
        if found is None or found._loop is not loop:  # ids come again
            found = _shared[id(loop)] = TimerQueue(_call)
            found._loop = loop
        return found

    def __len__(self) -> int:
        return self._live

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, job: Callable[..., None], *args: Any
    ) -> Timer:
        """Have ``job(deadline, *args)`` run in so many seconds."""
        return self.call_at(loop, loop.time() + seconds, job, *args)

    def call_at(
        self, loop: asyncio.AbstractEventLoop, when: float, job: Callable[..., None], *args: Any, slack: float = 0.0
    ) -> Timer:
        """Have ``job(deadline, *args)`` run at that time.

        Or up to ``slack`` seconds before, if another is due then: waking the loop costs more than most jobs do.
        """
        deadline = Timer(when, job, args, slack)
        self._count += 1
        self._live += 1
        heapq.heappush(self._heap, (when, self._count, deadline))
        if self._heap[0][2] is deadline:
            self._set_timer(loop)
        return deadline

    def forget(self) -> None:
        """Drop all of them: their event loop has ended."""
        self._heap.clear()
        self._live = 0
        self._timer = None

    def cancel(self, deadline: Timer) -> None:
        """It is not to run; cancelling what has run or was cancelled does nothing."""
        if deadline.has_fired or deadline.is_cancelled:
            deadline.cancel()
            return
        deadline.cancel()
        self._live -= 1
        if self._live == 0:  # the last one: nothing may be left behind
            self._heap.clear()
            self._stop_timer()
        elif len(self._heap) > 8 * self._live + 64:  # cancelled ones are dropped when they fall due, or are too many
            self._heap = [entry for entry in self._heap if not entry[2].is_cancelled]
            heapq.heapify(self._heap)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stop_timer()
        if self._heap:
            self._timer = loop.call_at(self._heap[0][0], self._fall_due, loop, self._heap[0][0])

    def _fall_due(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._timer = None
        now = max(loop.time(), at)  # asyncio may run a timer a little early
        left = SLICE
        try:
            while left and self._heap and self._heap[0][0] - self._heap[0][2].slack <= now:
                left -= 1
                _, _, deadline = heapq.heappop(self._heap)
                if not deadline.is_cancelled:
                    deadline.has_fired = True
                    self._live -= 1
                    self._run(deadline.run)
        finally:  # whatever one of them did, the others come in their time
            if left:
                self._set_timer(loop)
            else:
                self._stop_timer()  # one of those that ran may have set it
                self._timer = loop.call_soon(self._fall_due, loop, at)


def _call(job: Callable[..., None], *args: Any) -> None:
    job(*args)


# By the loop's id, and weak: what is kept here must not keep a loop that is abandoned, nor what lived in it.
_shared: WeakValueDictionary[int, TimerQueue] = WeakValueDictionary()
