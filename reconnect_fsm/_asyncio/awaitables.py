"""What callers of the client await: wake-ups, completions, and coroutines that begin when they are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from reconnect_fsm.errors import copy_error

__all__ = ["Completion", "LazyCoroutine", "Waiters"]

T = TypeVar("T")


class Waiters(Generic[T]):
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

    def wake(self, value: T) -> None:
        """Give everyone who waits the value."""
        for waiter in self._settle():
            waiter.set_result(value)

    def fail(self, error: Exception) -> None:
        """Raise the error in everyone who waits."""
        for waiter in self._settle():
            waiter.set_exception(
                copy_error(error)
            )  # the error itself is kept: in the log of the last steps, and elsewhere

    def _settle(self) -> list[asyncio.Future[T]]:
        if not self._waiters:
            return []
        waiters, self._waiters = self._waiters, {}
        return [waiter for waiter in waiters if not waiter.done()]


class Completion:
    """How something that was asked for came out. Await it or not, once or often; nothing is lost and nothing warns."""

    __slots__ = ("__weakref__", "_error", "_waiters", "done")

    def __init__(self) -> None:
        self.done = False
        self._error: Exception | None = None
        self._waiters: Waiters[None] = Waiters()

    def succeed(self) -> None:
        """It came out well."""
        self.done = True
        self._waiters.wake(None)

    def fail(self, error: Exception) -> None:
        """It came to nothing."""
        self.done = True
        self._error = error
        self._waiters.fail(error)

    async def wait(self) -> None:
        """Return or raise as it came out, once it has."""
        if not self.done:
            await self._waiters.wait()
        elif self._error is not None:
            raise copy_error(self._error)


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
