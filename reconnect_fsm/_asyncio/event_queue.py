"""The small parts of the drivers: events run one at a time, promises can be awaited, listeners are notified."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

from reconnect_fsm._asyncio.awaitables import Waiters
from reconnect_fsm._asyncio.user_code import report
from reconnect_fsm.errors import is_fault

__all__ = ["EventQueue"]

T = TypeVar("T")


Job: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]
Work: TypeAlias = Iterator[object]
"""Steps, each of which is one `next()`; what they give does not matter."""
NO_JOBS: Final[deque[Job]] = deque()  # never written to; an empty deque takes 600 bytes, and connections are many
NO_WORK: Final[deque[Work]] = deque()


class EventQueue:
    """Runs what happens one at a time, each to its end (laws 1 to 3 of the drivers).

    An *event* (`post`) runs at once; if another is under way, as soon as that one is complete. *Work* (`schedule`) is
    long: what came over a socket, ten thousand rooms to be notified. It is done step by step, and works follow each
    other in the order in which they were scheduled: nothing that waits is ever overtaken or put back (D-ORDER). Events
    do not wait for work, they run between two steps of it (D-NOW).

    After `SLICE` steps the event loop gets its turn. Steps are counted, not timed, so that a run under virtual time can
    be repeated.
    """

    __slots__ = ("_events", "_idle", "_rest", "_running", "_works", "loop", "thread")

    SLICE = 128

    def __init__(self) -> None:
        self._events: deque[Job] = NO_JOBS
        self._works: deque[Work] = NO_WORK
        self._running = False
        self._rest: asyncio.Handle | None = None  # what goes on in the loop's next turn
        self._idle: Waiters[None] = Waiters()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that long work gives way to, once it is bound."""
        self.thread = 0
        """The identifier of the thread of that loop."""

    @property
    def is_running(self) -> bool:
        """Whether an event or a step of work is under way."""
        return self._running

    @property
    def has_work(self) -> bool:
        """Whether work is under way or waits for its turn."""
        return bool(self._works)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let long work give way to this loop, which runs in this thread; until then it is done at once."""
        self.loop, self.thread = loop, threading.get_ident()
        if self._rest is not None:  # it waited for a loop that has ended
            self._rest.cancel()
            self._rest = loop.call_soon(self._continue_work)

    async def idle(self) -> None:
        """Wait until no event and no work is left."""
        while self._works or self._events:
            await self._idle.wait()

    def reset(self) -> None:
        """Forget what waits, and the loop that it waited for: that has ended."""
        self._events, self._works, self._rest, self.loop = NO_JOBS, NO_WORK, None, None
        self._running = False
        self._idle.forget()

    def post(self, job: Callable[..., None], *args: Any) -> None:
        """Run an event: now, or as soon as the one under way is complete."""
        if self._running or self._events:
            if self._events is NO_JOBS:
                self._events = deque()
            self._events.append((job, args))
            if not self._running:  # an interrupt, or very many of them, left some behind: this one has its turn now
                self._run(max(self.SLICE, len(self._events)))
            return
        self._running = True
        try:
            _call(job, args)
        finally:
            self._running = False
            if self._events or self._works:
                self._run(self.SLICE - 1)

    def post_from_any_thread(self, job: Callable[..., None], *args: Any) -> None:
        """As `post`; from another thread than the loop's, in the loop's next turn, and never if the loop has ended."""
        if self.loop is None or threading.get_ident() == self.thread:
            self.post(job, *args)
        else:
            with contextlib.suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self.post, job, *args)

    def schedule(self, work: Work) -> None:
        """Do this work after all that was scheduled before."""
        if self._works is NO_WORK:
            self._works = deque()
        self._works.append(work)
        if not self._running and self._rest is None:
            self._run(self.SLICE)

    def schedule_call(self, job: Callable[..., None], *args: Any) -> None:
        """Make this call after all that was scheduled before."""
        self.schedule(_once(job, args))

    def _continue_work(self) -> None:
        self._rest = None
        if not self._running:  # else an event runs the loop itself: what waits is run when it ends
            self._run(self.SLICE)

    def _run(self, left: int) -> None:
        """Run the events that wait, then work, unless that waits for the loop's next turn."""
        self._running = True
        try:
            while left > 0 or self.loop is None:
                if self._events:
                    job, args = self._events.popleft()
                    _call(job, args)
                    left -= 1
                elif self._works and self._rest is None:
                    left -= self._do(self._works[0], left)
                else:
                    break
        finally:
            self._running = False
            if self._events or self._works:
                if self._rest is None and self.loop is not None and not self.loop.is_closed():
                    self._rest = self.loop.call_soon(self._continue_work)
            else:
                self._events, self._works = NO_JOBS, NO_WORK
                if self._idle:
                    self._idle.wake(None)

    def _do(self, work: Work, most: int) -> int:
        """Do steps of this work until an event comes up, but not many; return how many they were."""
        done = 0
        try:
            for _ in work:
                done += 1
                if self._events or done >= most:
                    return done
        except BaseException as error:
            if not is_fault(error):
                raise
            report(OURS, error)
        if self._works and self._works[0] is work:  # not after `reset`
            self._works.popleft()
        return done + 1


OURS: Final = "an event of reconnect_fsm's own (this is a fault of reconnect_fsm, please report it)"


def _once(job: Callable[..., None], args: tuple[Any, ...]) -> Work:
    job(*args)
    yield None


def _call(job: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        job(*args)
    except BaseException as error:
        if not is_fault(error):
            raise
        report(OURS, error)
