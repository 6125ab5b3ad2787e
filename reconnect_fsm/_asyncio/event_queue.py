"""The small parts of the drivers: events run one at a time, promises can be awaited, listeners are notified."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from types import FunctionType, TracebackType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from reconnect_fsm._asyncio.user_code import FaultCounter, What, is_fault, notify_user, report
from reconnect_fsm.errors import twin

__all__ = ["LazyCoroutine", "Listeners", "Outcome", "Promise", "Pump", "raised"]

T = TypeVar("T")


Job: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]
Work: TypeAlias = Iterator[object]
"""Steps, each of which is one `next()`; what they give does not matter."""
NO_JOBS: Final[deque[Job]] = deque()  # never written to; an empty deque takes 600 bytes, and connections are many
NO_WORK: Final[deque[Work]] = deque()


class Pump:
    """Runs what happens one at a time, each to its end (laws 1 to 3 of the drivers).

    An *event* (`post`) runs at once; if another is under way, as soon as that one is complete. *Work* (`schedule`) is
    long: what came over a socket, ten thousand rooms to be notified. It is done step by step, and works follow each
    other in the order in which they were scheduled: nothing that waits is ever overtaken or put back (D-ORDER). Events
    do not wait for work, they run between two steps of it (D-NOW).

    After `SLICE` steps the event loop gets its turn. Steps are counted, not timed, so that a run under virtual time can
    be repeated.
    """

    SLICE = 128

    def __init__(self) -> None:
        self._events: deque[Job] = NO_JOBS
        self._works: deque[Work] = NO_WORK
        self._running = False
        self._rest: asyncio.Handle | None = None  # what goes on in the loop's next turn
        self._idle: Promise[None] = Promise()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # that of the loop

    @property
    def has_work(self) -> bool:
        """Whether work is under way or waits for its turn."""
        return bool(self._works)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let long work give way to this loop, which runs in this thread; until then it is done at once."""
        self._loop, self._thread = loop, threading.get_ident()
        if self._rest is not None:  # it waited for a loop that has ended
            self._rest.cancel()
            self._rest = loop.call_soon(self._go_on)

    async def idle(self) -> None:
        """Wait until no event and no work is left."""
        while self._works or self._events:
            await self._idle.wait()

    def reset(self) -> None:
        """Forget what waits, and the loop that it waited for: that has ended."""
        self._events, self._works, self._rest, self._loop = NO_JOBS, NO_WORK, None, None
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
        if self._loop is None or threading.get_ident() == self._thread:
            self.post(job, *args)
        else:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self.post, job, *args)

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

    def _go_on(self) -> None:
        self._rest = None
        if not self._running:  # else an event runs the loop itself: what waits is run when it ends
            self._run(self.SLICE)

    def _run(self, left: int) -> None:
        """Run the events that wait, then work, unless that waits for the loop's next turn."""
        self._running = True
        try:
            while left > 0 or self._loop is None:
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
                if self._rest is None and self._loop is not None and not self._loop.is_closed():
                    self._rest = self._loop.call_soon(self._go_on)
            else:
                self._events, self._works = NO_JOBS, NO_WORK
                if self._idle:
                    self._idle.keep(None)

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


class Promise(Generic[T]):
    """Something many can wait for; it begins anew each time it is kept or failed. A cancelled waiter harms no one."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[T], None] = {}  # in order of arrival, so that runs can be repeated

    def __bool__(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiters)

    async def wait(self) -> T:
        """Wait until it is next kept; raises what it is next broken with."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            return await waiter
        finally:
            self._waiters.pop(waiter, None)

    def forget(self) -> None:
        """Leave those who wait alone: their event loop has ended."""
        self._waiters = {}

    def keep(self, value: T) -> None:
        """Give everyone who waits the value."""
        for waiter in self._settle():
            waiter.set_result(value)

    def fail(self, error: Exception) -> None:
        """Raise the error in everyone who waits."""
        for waiter in self._settle():
            waiter.set_exception(twin(error))  # the error itself is kept: in the log of the last steps, and elsewhere

    def _settle(self) -> list[asyncio.Future[T]]:
        if not self._waiters:
            return []
        waiters, self._waiters = self._waiters, {}
        return [waiter for waiter in waiters if not waiter.done()]


class Outcome:
    """How something that was asked for came out. Await it or not, once or often; nothing is lost and nothing warns."""

    __slots__ = ("__weakref__", "_error", "_promise", "done")

    def __init__(self) -> None:
        self.done = False
        self._error: Exception | None = None
        self._promise: Promise[None] = Promise()

    def succeed(self) -> None:
        """It came out well."""
        self.done = True
        self._promise.keep(None)

    def fail(self, error: Exception) -> None:
        """It came to nothing."""
        self.done = True
        self._error = error
        self._promise.fail(error)

    async def wait(self) -> None:
        """Return or raise as it came out, once it has."""
        if not self.done:
            await self._promise.wait()
        elif self._error is not None:
            raise twin(self._error)


class LazyCoroutine(Coroutine[Any, Any, T]):
    """A coroutine that is made when it is first awaited, or run by a task; left alone it neither runs nor warns.

    Awaited again it is made again, so it may be kept and shared, also by tasks that run it as their coroutine (as
    ``create_task`` and Python 3.11's ``wait_for`` make them): each has one of its own.
    """

    __slots__ = ("_begin", "_coroutines")

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._begin = begin
        self._coroutines: dict[asyncio.Task[Any] | None, Coroutine[Any, Any, T]] = {}  # by the task that runs it

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine's: what a task calls."""
        return self._run(lambda coroutine: coroutine.send(value))

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> Any:
        """As a coroutine's: what a task that is cancelled calls."""
        error = kind if isinstance(kind, BaseException) else value if isinstance(value, BaseException) else kind()
        if traceback is not None:
            error = error.with_traceback(traceback)
        return self._run(lambda coroutine: coroutine.throw(error))

    def close(self) -> None:
        """As a coroutine's."""
        coroutine = self._coroutines.pop(_running_task(), None)
        if coroutine is not None:
            coroutine.close()

    def _run(self, step: Callable[[Coroutine[Any, Any, T]], Any]) -> Any:
        task = _running_task()
        coroutine = self._coroutines.get(task)
        if coroutine is None:
            coroutine = self._coroutines[task] = self._begin()
        try:
            return step(coroutine)
        except BaseException:  # it has ended, one way or the other: the next time it is made again
            del self._coroutines[task]
            raise


def _running_task() -> asyncio.Task[Any] | None:
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


class Listeners(FaultCounter, Generic[T]):
    """Callbacks for one kind of news (D-LISTEN)."""

    __slots__ = ("_callbacks", "_name", "_what")

    def __init__(self, what: str) -> None:
        self.faults = 0
        self._name = what
        self._what: What = ("a callback of {}", what)
        self._callbacks: tuple[tuple[object, Callable[[T], object]], ...] = ()  # each with a token of its own

    def __bool__(self) -> bool:
        """Whether somebody listens."""
        return bool(self._callbacks)

    def add(self, callback: Callable[[T], object]) -> Callable[[], None]:
        """Add a plain function; returns one that takes it out again. Raises TypeError for anything else."""
        if not callable(callback):
            raise TypeError(f"{self._name} takes a function, not {callback!r}")
        if _is_coroutine_function(callback):
            raise TypeError(
                f"{self._name} takes a plain function, but {callback!r} is a coroutine function, which nobody would "
                "await. Start a task of your own from a plain function"
            )
        token = object()
        self._callbacks += ((token, callback),)

        def remove() -> None:
            self._callbacks = tuple(each for each in self._callbacks if each[0] is not token)

        return remove

    def tell(self, news: T) -> None:
        """Call every callback; one that raises is reported and harms nothing (D-GUARD)."""
        for _, callback in self._callbacks:
            notify_user(self._what, callback, news, counter=self)


def _is_coroutine_function(callback: Callable[..., object]) -> bool:
    if type(callback) is FunctionType:  # inspect takes ten times as long to find out, and rooms are many
        return bool(callback.__code__.co_flags & inspect.CO_COROUTINE) or hasattr(callback, "_is_coroutine_mark")
    call = type(callback).__call__
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call)


def raised(what: str, error: BaseException) -> str:
    """In words for a reason: the error's class alone, for its message may hold secrets."""
    return f"{what} raised {type(error).__name__}; the log tells where"
