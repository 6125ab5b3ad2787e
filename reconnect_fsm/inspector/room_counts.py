"""The rooms of a client, counted by state, and one page of those that a viewer asks for. Fit for 100,000 rooms.

Nothing is kept for a tracked room, and no room has a listener for it. The rooms are counted while a page is open, in
slices between which the event loop runs other callbacks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass
from itertools import filterfalse
from typing import Any, Final, NamedTuple

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm._asyncio.room import Room, driver_of
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import RoomStatus

__all__ = ["PAGE_SIZE", "Query", "RoomCounts"]

PAGE_SIZE: Final = 50  # rooms to a page
SLICE_SIZE: Final = 1000  # rooms between two turns of the event loop: about a millisecond
LEFT: Final = RoomFSM.left.name  # no tracked room is
MAX_REFUSED: Final = 10_000  # rooms in `error` that are kept, the latest


@dataclass(frozen=True, slots=True)
class Query:
    """The rooms that a viewer asks for: in these states, or in any; with this text in the id, ignoring case."""

    states: frozenset[str] = frozenset()
    text: str = ""
    page: int = 0
    """Counted from 0."""


class Row(NamedTuple):
    """A room, as the page shows it."""

    id: str
    kind: str
    state: str
    status: str
    reason: str
    permission: str | None


class RoomCounts:
    """Counts the rooms of one client; keeps those that went to `error` while a page was open.

    The client itself drops them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[Room, None] = {}  # a set, in order
        self._refused: dict[tuple[str, str], Row] = {}

    def forget(self) -> None:
        """No page is open any more: keep no room alive."""
        self._known = {}

    async def count(self, query: Query) -> tuple[dict[str, Any], float]:
        """The counts and the page asked for, or the last page; and the seconds of the loop that it took."""
        began = time.perf_counter()
        rooms = self._client.rooms
        self._keep_refused(rooms)
        everything: list[Room | Row] = [*rooms, *self._refused.values()]
        states, text = query.states, query.text.casefold()
        counts: Counter[str] = Counter()
        matching: list[Room | Row] = []
        cost = time.perf_counter() - began
        for start in range(0, len(everything), SLICE_SIZE):
            if start:
                await asyncio.sleep(0)
            began = time.perf_counter()
            for room in everything[start : start + SLICE_SIZE]:
                state = room.state
                counts[state] += 1
                if (not states or state in states) and (not text or text in room.id.casefold()):
                    matching.append(room)
            cost += time.perf_counter() - began
        pages = max(math.ceil(len(matching) / PAGE_SIZE), 1)
        page = min(query.page, pages - 1)
        known = driver_of(rooms[0]).fsm.states if rooms else RoomFSM.states
        return {
            "total": len(everything),
            "counts": [[name, state.status.value, counts[name]] for name, state in known.items() if name != LEFT],
            "rows": [_row(room) for room in matching[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]],
            "matching": len(matching),
            "page": page,
            "pages": pages,
            "size": PAGE_SIZE,
        }, cost

    def _keep_refused(self, rooms: tuple[Room, ...]) -> None:
        """A room that was refused or evicted is in `error`, and the client has dropped it."""
        now = dict.fromkeys(rooms)
        for room in filterfalse(now.__contains__, self._known):
            if room.status is RoomStatus.ERROR:
                self._refused[room.id, room.crdt_type.value] = _row(room)
        if self._refused:
            for room in filterfalse(self._known.__contains__, rooms):  # it may be one that was joined again
                self._refused.pop((room.id, room.crdt_type.value), None)
        for key in list(self._refused)[: max(len(self._refused) - MAX_REFUSED, 0)]:
            del self._refused[key]
        self._known = now


def _row(room: Room | Row) -> Row:
    if isinstance(room, Row):
        return room
    kind = room.crdt_type.value
    return Row(room.id, kind, room.state, room.status.value, room.reason, room.permission)
