"""Limits how many joins are in flight: after a reconnect, ten thousand rooms are not requested at once (JOIN-2)."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

__all__ = ["JoinLimiter"]

T = TypeVar("T")


class JoinLimiter(Generic[T]):
    """A priority queue with a limit on how many of those it has let go are still in flight."""

    def __init__(self, limit: int | None) -> None:
        """``limit``: how many may be in flight at once; None: no limit."""
        self._limit = float("inf") if limit is None else limit
        self.queues: dict[int, deque[T]] = {}
        """Those that wait, by priority; no queue in it is empty."""
        self._order: list[int] = []  # a heap of the priorities there are, the highest first, hence negative
        self.in_flight: set[object] = set()
        """Those that are in flight, whether they waited here or not."""

    def enqueue(self, one: T, priority: int) -> None:
        """Queue up: the higher the priority, the sooner; among equals, first come, first served."""
        queue = self.queues.get(priority)
        if queue is None:
            queue = self.queues[priority] = deque()
            heapq.heappush(self._order, -priority)
        queue.append(one)

    @property
    def has_room(self) -> bool:
        """Whether one more may be in flight."""
        return len(self.in_flight) < self._limit

    def pop(self) -> T | None:
        """Take out the one that is next; None if none waits, or the limit is reached."""
        if not self._order or not self.has_room:
            return None
        priority = -self._order[0]
        one = self.queues[priority].popleft()
        if not self.queues[priority]:
            del self.queues[priority]
            heapq.heappop(self._order)
        return one

    def clear(self) -> None:
        """Forget all that wait and all that are in flight."""
        self.queues.clear()
        self._order.clear()
        self.in_flight.clear()
