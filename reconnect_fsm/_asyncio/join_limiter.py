"""Whose turn it is to be asked for: after a reconnect ten thousand rooms do not ask at once."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue with priorities, and a bound on how many that have had their turn are not done yet."""

    def __init__(self, most: int | None) -> None:
        """``most`` at once; None: no bound."""
        self._most = float("inf") if most is None else most
        self.queues: dict[int, deque[T]] = {}
        """Who waits, by priority; none is empty."""
        self._order: list[int] = []  # a heap of the priorities there are, the highest first, hence negative
        self.busy: set[object] = set()
        """Who has had a turn, its own or not, and is not done yet."""

    def wait(self, one: T, priority: int) -> None:
        """Queue up: the higher the priority, the sooner; among equals, first come, first served."""
        queue = self.queues.get(priority)
        if queue is None:
            queue = self.queues[priority] = deque()
            heapq.heappush(self._order, -priority)
        queue.append(one)

    @property
    def has_place(self) -> bool:
        """Whether one more may be busy."""
        return len(self.busy) < self._most

    def next(self) -> T | None:
        """Whose turn it is now; None if nobody waits, or too many are busy."""
        if not self._order or not self.has_place:
            return None
        priority = -self._order[0]
        one = self.queues[priority].popleft()
        if not self.queues[priority]:
            del self.queues[priority]
            heapq.heappop(self._order)
        return one

    def clear(self) -> None:
        """Nobody waits any more, and nobody is busy."""
        self.queues.clear()
        self._order.clear()
        self.busy.clear()
