"""The small parts of the drivers: facts run one at a time, promises can be awaited, listeners are told."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import FunctionType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from .errors import twin

__all__ = ["Lazily", "Listeners", "Outcome", "Promise", "Pump", "raised"]

T = TypeVar("T")
logger = logging.getLogger("reconnect_fsm")


Job: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]
NONE: Final[deque[Job]] = deque()  # never written to; an empty deque takes 600 bytes, and connections are many


class Pump:
    """Runs jobs one at a time, in order, each to its end (the driver's first law).

    A job posted while another runs waits its turn, so nothing re-enters. A job posted otherwise runs at once. Long
    queues are run in slices, between which the event loop gets its turn; the slices are counted, not timed, so that a
    run under virtual time can be repeated.
    """

    SLICE = 128

    def __init__(self) -> None:
        self.waiting: deque[Job] = NONE
        """Jobs that wait for their turn."""
        self._running = False
        self._rest: asyncio.Handle | None = None  # what goes on with a long queue in the loop's next turn
        self._idle: Promise[None] = Promise()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let long queues give way to this loop; until then a queue runs to its end."""
        self._loop = loop
        if self._rest is not None:  # it waited for a loop that has ended
            self._rest.cancel()
            self._rest = loop.call_soon(self._run)

    async def idle(self) -> None:
        """Wait until no job runs or waits for its turn."""
        while self._running:
            await self._idle.wait()

    def reset(self) -> None:
        """Forget what waits: the loop that it waited for has ended."""
        self.waiting.clear()
        self._running = False
        self._rest = None

    def post(self, job: Callable[..., None], *args: Any) -> None:
        """Run the job: now if nothing runs or waits, else in its turn."""
        if self._running or self.waiting:
            self._queue().append((job, args))
            if not self._running:  # its loop was closed with jobs in the queue
                self._running = True
                self._run()
            return
        self._running = True
        try:
            job(*args)
        except (Exception, asyncio.CancelledError):
            _complain()
        finally:
            self._run(self.SLICE - 1)

    def _queue(self) -> deque[Job]:
        if self.waiting is NONE:
            self.waiting = deque()
        return self.waiting

    def post_each(self, job: Callable[..., None], items: Iterable[Any], *args: Any) -> None:
        """Run the job for every item, in its turn, before anything that is posted later."""
        iterator = iter(items)

        def step() -> None:
            for item in iterator:
                self._queue().appendleft((step, ()))
                job(item, *args)
                return

        self.post(step)

    def _run(self, left: int = SLICE) -> None:
        # _running stays True while a rest waits for the loop: whatever is posted then queues up behind it.
        self._rest = None
        try:
            while self.waiting:
                if left == 0 and self._loop is not None:
                    return
                left -= 1
                job, args = self.waiting.popleft()
                try:
                    job(*args)
                except (Exception, asyncio.CancelledError):
                    _complain()
        finally:
            if self.waiting and self._loop is not None and not self._loop.is_closed():
                self._rest = self._loop.call_soon(self._run)
            else:
                self._running = False
                self.waiting = self.waiting or NONE
                if self._idle:
                    self._idle.keep(None)


def _complain() -> None:
    logger.exception("a job of the driver raised; this is a fault of reconnect_fsm, please report it")


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

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done:
            yield from self._promise.wait().__await__()
        elif self._error is not None:
            raise twin(self._error)


class Lazily:
    """Work that begins only if it is awaited; left alone it neither runs nor warns."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, None, None]:
        return self._begin().__await__()


class Listeners(Generic[T]):
    """Callbacks for one kind of news (D-LISTEN)."""

    __slots__ = ("_callbacks", "_faults", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._faults = 0
        self._callbacks: tuple[tuple[object, Callable[[T], object]], ...] = ()  # each with a token of its own

    def __bool__(self) -> bool:
        """Whether somebody listens."""
        return bool(self._callbacks)

    def add(self, callback: Callable[[T], object]) -> Callable[[], None]:
        """Add a plain function; returns one that takes it out again. Raises TypeError for anything else."""
        if not callable(callback):
            raise TypeError(f"{self._what} takes a function, not {callback!r}")
        if _is_coroutine_function(callback):
            raise TypeError(
                f"{self._what} takes a plain function, but {callback!r} is a coroutine function, which nobody would "
                "await. Start a task of your own from a plain function"
            )
        token = object()
        self._callbacks += ((token, callback),)

        def remove() -> None:
            self._callbacks = tuple(each for each in self._callbacks if each[0] is not token)

        return remove

    def tell(self, news: T) -> None:
        """Call every callback; one that raises is logged and harms nothing."""
        for _, callback in self._callbacks:
            try:
                callback(news)
            except (Exception, asyncio.CancelledError):  # the latter from the result() of some cancelled task
                self._complain()

    def _complain(self) -> None:
        """A callback that raises at each message must not flood the log; it is not forgotten either."""
        self._faults += 1
        if self._faults <= 10 or self._faults.bit_count() == 1:
            times = "" if self._faults == 1 else f" ({self._faults} times so far)"
            logger.exception("a callback of %s raised%s; the others are told all the same", self._what, times)


def _is_coroutine_function(callback: Callable[..., object]) -> bool:
    if type(callback) is FunctionType:  # inspect takes ten times as long to find out, and rooms are many
        return bool(callback.__code__.co_flags & inspect.CO_COROUTINE) or hasattr(callback, "_is_coroutine_mark")
    call = type(callback).__call__
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call)


def raised(what: str, error: BaseException) -> str:
    """In words for a reason: the error's class alone, for its message may hold secrets."""
    return f"{what} raised {type(error).__name__}; the log tells where"
