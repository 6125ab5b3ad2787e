"""Who waits for a room, and who listens to more than its status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.user_code import UserCodeFailed
from reconnect_fsm.errors import ReconnectError, copy_error

__all__ = ["RoomWatch", "evaluate"]


class RoomWatch:
    """The waiters of a room, and its listeners. Most rooms have none, and so no `RoomWatch`."""

    __slots__ = ("_waiters", "on_error", "on_synced", "was_synced")

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}  # and the predicate that each waits for
        self.on_synced: Listeners[bool] = Listeners("Room.on_synced")
        self.on_error: Listeners[ReconnectError] = Listeners("Room.on_error")
        self.was_synced = False
        """What the listeners were told last, or what it was when they began to listen."""

    @property
    def is_needed(self) -> bool:
        """Whether anybody waits or listens."""
        return bool(self._waiters or self.on_synced or self.on_error)

    @property
    def awaits_change(self) -> bool:
        """Whether a change in the room may be what a waiter or a listener waits for."""
        return bool(self._waiters or self.on_synced)

    async def wait(self, predicate: Callable[[], bool]) -> None:
        """Wait until `wake` finds that the predicate is true, or raise what it or `fail` raises."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = predicate
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def wake(self) -> None:
        """Something changed: wake those whose predicate is true now, not when they get their turn."""
        for waiter, predicate in list(self._waiters.items()):
            if not waiter.done():
                try:
                    if evaluate(predicate):
                        waiter.set_result(None)
                except Exception as error:  # ours, or the adaptor's own, which call_user has reported
                    waiter.set_exception(error)

    def fail(self, error: Exception) -> None:
        """Raise the error in all that wait."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(copy_error(error))

    def forget(self) -> None:
        """Leave those that wait alone: their event loop has ended."""
        self._waiters.clear()


def evaluate(predicate: Callable[[], bool]) -> bool:
    """Call it. What an adaptor raised in it is raised where a future can hold it; UserCodeFailed otherwise."""
    try:
        return predicate()
    except UserCodeFailed as failed:
        if isinstance(failed.error, Exception) and not isinstance(failed.error, StopIteration):
            raise failed.error from None
        raise
