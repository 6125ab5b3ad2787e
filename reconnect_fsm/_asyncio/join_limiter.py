"""Decides which room may ask to join now: JOIN-2, ten thousand rooms are not asked for at once after a reconnect.

Three questions that the rooms' machines cannot answer one by one, because they are about all rooms of a client:
whose turn it is (`JoinLimiter`), which rooms hear of what (`Admission`), and whose answer a join response is
(`AnswersDue`).
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from reconnect_fsm._asyncio.timers import Timer

__all__ = ["Admission", "AnswersDue", "Applicant", "JoinLimiter"]

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


class Applicant(Protocol):
    """A room, as far as it waits for its turn."""

    joined_after: int
    """How many announcements there were when it was joined; `Admission` sets it."""

    @property
    def priority(self) -> int:
        """The higher, the sooner it is its turn."""
        ...


RoomT = TypeVar("RoomT", bound=Applicant)


class Admission(Generic[RoomT]):
    """Which rooms hear of what, and when a room may ask to join.

    The client *announces* what happens to the connection. The rooms hear of it later, in slices, and meanwhile rooms
    are joined and left. A room hears of each announcement once, in order, and only of those made after it was joined.
    Of an opened connection it hears when it is its turn.
    """

    def __init__(self, limit: int | None) -> None:
        """``limit``: how many rooms may be asked for and not answered at the same time; None: no limit."""
        self._limiter: JoinLimiter[tuple[RoomT, Timer | None]] = JoinLimiter(limit)
        self.waiting = self._limiter.queues
        """The rooms that wait for their turn, by priority; empty if none waits."""
        self._announced = 0  # how many announcements there were
        self._begun = 0  # the last one that the rooms have begun to hear of
        self._are_turns_scheduled = False
        self.opened: str | None = None
        """Why there is a connection, as the rooms were told; None if there is none."""

    # Announcements

    def announce(self) -> int:
        """Something happened to the connection; return the number of this announcement."""
        self._announced += 1
        return self._announced

    def begin(self, number: int, opened: str | None) -> None:
        """The rooms begin to hear of this announcement; ``opened`` says why there is a connection now, if there is."""
        self._begun = number
        self.opened = opened
        self._limiter.clear()

    def hears(self, room: RoomT, number: int) -> bool:
        """Whether the room was there when this was announced."""
        return room.joined_after < number

    def add(self, room: RoomT) -> None:
        """The room was joined: it may ask if there is a connection, and all rooms have begun to hear of it."""
        room.joined_after = self._announced
        if self.opened is not None and self._begun == self._announced:  # else it is queued when they do
            self.enqueue(room)

    def missed_by(self, room: RoomT, number: int) -> bool:
        """Whether the room was joined after the announcement had begun: then `add` has queued it already."""
        return room.joined_after > number

    def forget_loop(self) -> None:
        """The event loop has ended, and what was scheduled in it does not run."""
        self.opened = None
        self._are_turns_scheduled = False
        self._begun = self._announced

    # Turns

    def enqueue(self, room: RoomT, timer: Timer | None = None) -> None:
        """The room waits for its turn; with the ``timer`` that has fired for it, if it was asked for before."""
        self._limiter.enqueue((room, timer), room.priority)

    def is_waiting(self, room: RoomT) -> bool:
        """Whether the room waits for its turn."""
        return any(waiting is room for queue in self.waiting.values() for waiting, _ in queue)

    def claim_turns(self) -> bool:
        """Whether there are turns that are not being taken; if so, the caller has to take them, with `next_turn`."""
        limiter = self._limiter
        if not limiter.queues or self._are_turns_scheduled or not limiter.has_room:
            return False
        self._are_turns_scheduled = True
        return True

    def next_turn(self) -> tuple[RoomT, Timer | None] | None:
        """The room whose turn it is; the caller has to ask again until none waits, or the limit is reached."""
        turn = self._limiter.pop()
        self._are_turns_scheduled = turn is not None
        return turn

    # Requests

    def begin_request(self, room: RoomT) -> None:
        """The room is being asked for, and counts until `end_request`."""
        self._limiter.in_flight.add(room)

    def end_request(self, room: RoomT) -> None:
        """The room has its answer, or waits for none any more."""
        self._limiter.in_flight.discard(room)

    def is_requested(self, room: RoomT) -> bool:
        """Whether the room is being asked for."""
        return room in self._limiter.in_flight


class AnswersDue:
    """Whose answer a join response is.

    A response names its room and not its request. The server answers the requests for one room in their order, so that
    those for a room that was left come first: they are dropped, and what follows is for the next room of that name.
    The machine of a room cannot know: it is another one for each of them.
    """

    __slots__ = ("_due", "_of_left")

    def __init__(self) -> None:
        self._due: dict[bytes, int] = {}  # by the room's header: of the tracked room
        self._of_left: dict[bytes, int] = {}  # of rooms of that name that were left

    def __bool__(self) -> bool:
        """Whether answers are due to rooms that were left."""
        return bool(self._of_left)

    def expect(self, header: bytes, is_tracked: bool) -> None:
        """A request was sent for the tracked room, or for one that was just left."""
        due = self._due if is_tracked else self._of_left
        due[header] = due.get(header, 0) + 1

    def take(self, header: bytes) -> bool:
        """A response came: whether it is for the tracked room."""
        if self._of_left and (left := self._of_left.get(header)):
            self._count_down(self._of_left, header, left)
            return False
        if due := self._due.get(header):
            self._count_down(self._due, header, due)
        return True

    def disown(self, header: bytes) -> None:
        """The room was left: what is due now is for nobody."""
        if due := self._due.pop(header, 0):
            self._of_left[header] = self._of_left.get(header, 0) + due

    def clear(self) -> None:
        """The connection is gone, and no answer comes on it."""
        self._due.clear()
        self._of_left.clear()

    @staticmethod
    def _count_down(counts: dict[bytes, int], header: bytes, count: int) -> None:
        if count > 1:
            counts[header] = count - 1
        else:
            del counts[header]
