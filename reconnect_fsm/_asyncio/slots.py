"""Slots: each holds one dial, socket, timer or task for as long as it is alive (law 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, TypeVar

__all__ = ["EMPTY", "Slot"]

T = TypeVar("T")


class Slot(Generic[T]):
    """Holds one thing while it is alive. Its callbacks are made by the slot, and do nothing once the slot is empty.

    A slot is filled once and emptied once; the next dial or timer gets a new slot. So no callback has to ask whether it
    belongs to the present one::

        timer: Slot[asyncio.TimerHandle] = Slot()
        timer.fill(loop.call_later(seconds, queue.post, timer.run, self._on_timer))
        self.timer = timer
        ...
        if (handle := self.timer.empty()) is not None:
            handle.cancel()

    The check is made when the callback runs, not when it is queued: in the example the slot may be emptied while
    ``timer.run`` waits in the queue, and then `_on_timer` is not called.

    An owner that holds nothing yet, or nothing any more, holds `EMPTY`, which is shared and costs nothing.
    """

    __slots__ = ("content",)

    def __init__(self, content: T | None = None) -> None:
        self.content: T | None = content
        """What is alive in it; None before it is filled and after it was emptied."""

    def __bool__(self) -> bool:
        """Whether something is alive in it."""
        return self.content is not None

    def fill(self, content: T) -> T:
        """Put it in, where the thing could not be made before its callbacks were. Once only."""
        assert self.content is None
        assert self is not EMPTY
        self.content = content
        return content

    def empty(self) -> T | None:
        """Take out what is in it, if anything is: from now on the callbacks do nothing."""
        content, self.content = self.content, None
        return content

    def run(self, function: Callable[..., object], *args: Any) -> None:
        """Call the function, unless the slot is empty by now."""
        if self.content is not None:
            function(*args)

    def callback(self, function: Callable[..., object], *args: Any) -> Callable[..., None]:
        """A callback that runs the function with these arguments and its own, unless the slot is empty by then."""
        return partial(self.run, function, *args)


EMPTY: Final[Slot[Any]] = Slot()
"""A slot in which nothing ever is."""
