"""Tasks that are about to end: each has an owner, and `Connection.close` waits for them (law 9)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["Teardown"]

logger = logging.getLogger("reconnect_fsm")

SLICES = 5  # of a wait for tasks to end: a stall of our own loop, after which everything is overdue, is one of them


class Teardown:
    """The tasks of one connection that were cancelled, or that close something, and have not ended yet."""

    __slots__ = ("_patience", "tasks")

    def __init__(self, patience: float) -> None:
        """``patience`` is how long to wait for a task, in seconds, before it is left behind (D-TIMEOUT)."""
        self._patience = patience
        self.tasks: dict[asyncio.Task[Any], None] = {}  # a set that is small when it is empty

    def own(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself within a bound."""
        self.own_task(loop.create_task(work, name="reconnect_fsm teardown"))

    def own_task(self, task: asyncio.Task[Any]) -> None:
        """Take charge of a task that was cancelled, until it has ended."""
        self.tasks[task] = None
        task.add_done_callback(self._forget)

    def forget(self) -> None:
        """Their event loop has ended, and they with it."""
        self.tasks.clear()

    async def ended(self) -> None:
        """Wait until all of them have ended, those that come meanwhile too."""
        while self.tasks:
            await self.these_ended(self.tasks)

    async def these_ended(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Wait until these have ended; leave behind a user's coroutine that refuses to be cancelled (D-TIMEOUT)."""
        refusing = set(tasks)
        for _ in range(SLICES):
            if refusing:
                _, refusing = await asyncio.wait(refusing, timeout=self._patience / SLICES)
        for task in refusing:
            logger.error("%s does not end though it was cancelled; it is left behind", task.get_name())
            self._forget(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
