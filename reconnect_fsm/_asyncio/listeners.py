"""The callbacks that a program has registered (D-LISTEN)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Generic, TypeVar

from reconnect_fsm._asyncio.user_code import FaultCounter, What, notify_user

__all__ = ["Listeners"]

T = TypeVar("T")


class Listeners(FaultCounter, Generic[T]):
    """Callbacks for one kind of news (D-LISTEN)."""

    __slots__ = ("_callbacks", "_name", "_what")

    def __init__(self, what: str) -> None:
        self.faults = 0
        self._name = what
        self._what = _in_the_log(what)
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

    def notify(self, news: T) -> None:
        """Call every callback; one that raises is reported and harms nothing (D-GUARD)."""
        for _, callback in self._callbacks:
            notify_user(self._what, callback, news, counter=self)


@cache  # listeners are many, and their names few
def _in_the_log(name: str) -> What:
    return "a callback of {}", name


def _is_coroutine_function(callback: Callable[..., object]) -> bool:
    if type(callback) is FunctionType:  # inspect takes ten times as long to find out, and rooms are many
        return bool(callback.__code__.co_flags & inspect.CO_COROUTINE) or hasattr(callback, "_is_coroutine_mark")
    call = type(callback).__call__
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call)
