"""The one place that calls code of the user's: callbacks, adaptors, url and auth functions, network sources (D-GUARD).

Whatever such code raises is logged with its traceback and reported to the event loop's exception handler, here, and
changes nothing else. That includes errors that are no `Exception`: loro raises bare BaseExceptions, pyo3's panics and
``pytest.fail`` are such, too. Only what means to end the program, or the task that is running, goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar, TypeVarTuple, Unpack

from reconnect_fsm.errors import is_fault

__all__ = [
    "FaultCounter",
    "UserCodeFailed",
    "What",
    "await_user",
    "call_user",
    "is_cancelled",
    "must_propagate",
    "notify_user",
    "report",
]

Args = TypeVarTuple("Args")
T = TypeVar("T")
logger = logging.getLogger("reconnect_fsm")


What: TypeAlias = str | tuple[str, *tuple[object, ...]]
"""Names what is called, in the log: words, or a format and what belongs into it, put together if they are needed."""


class UserCodeFailed(Exception):
    """Code of the user's raised; `report` has told of it. ``what`` names it, ``error`` is what it raised."""

    def __init__(self, what: What, error: BaseException) -> None:
        self.what = _words(what)
        super().__init__(f"{self.what} raised {type(error).__name__}")  # its own words may hold secrets
        self.error = error


class FaultCounter:
    """Counts the faults of one source, so that one which raises at each message does not flood the log."""

    __slots__ = ("faults",)

    def __init__(self) -> None:
        self.faults = 0


def call_user(what: What, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """Call a plain function of the user's and return what it returns.

    ``what`` names it in the log: ``"the url function"``, or ``("the adaptor of room {!r}", "a")``. Raises
    UserCodeFailed, once reported, if it raises.
    """
    try:
        return function(*args)
    except BaseException as error:
        if not is_fault(error):
            raise
        report(what, error)
        raise UserCodeFailed(what, error) from error


async def await_user(what: What, awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable of the user's. Raises as `call_user`; the running task's own cancellation goes on."""
    try:
        return await awaitable
    except BaseException as error:
        if must_propagate(error):
            raise
        report(what, error)
        raise UserCodeFailed(what, error) from error


def must_propagate(error: BaseException) -> bool:
    """Whether it ends the program or the running task, and so is no fault of the user's code."""
    if isinstance(error, asyncio.CancelledError):
        return is_cancelled()
    return isinstance(error, GeneratorExit) or not is_fault(error)


def is_cancelled() -> bool:
    """Whether the running task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def notify_user(
    what: What, function: Callable[[Unpack[Args]], object], *args: *Args, counter: FaultCounter | None = None
) -> None:
    """Call a function of the user's whose result is not used; what it raises is reported."""
    try:
        function(*args)
    except BaseException as error:
        if not is_fault(error):
            raise
        if counter is None:
            report(what, error)
        else:
            counter.faults += 1
            report(what, error, counter.faults)


def report(what: What, error: BaseException, times: int = 1) -> None:
    """Log the error with its traceback, and tell the running loop's exception handler (D-GUARD).

    Of one source that raises again and again, for the ``times``-th time now, the log gets the first ten faults and then
    ever fewer. An exception handler that the program has set hears of all.
    """
    what = _words(what)
    is_logged = times <= 10 or times.bit_count() == 1
    if is_logged:
        so_often = "" if times == 1 else f" ({times} times so far)"
        logger.error("%s raised %s%s", what, type(error).__name__, so_often, exc_info=error)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if is_logged or loop.get_exception_handler() is not None:
        loop.call_exception_handler({"message": f"reconnect_fsm: {what} raised", "exception": error})


def _words(what: What) -> str:
    return what if isinstance(what, str) else what[0].format(*what[1:])
