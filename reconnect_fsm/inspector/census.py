"""The rooms of a client, counted by state, and a page of those that somebody asks for. Fit for 100,000 rooms.

Nothing is kept for a tracked room, and nobody subscribes to one: whoever looks has them counted, in slices between
which the event loop gets its turn.
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
from reconnect_fsm._asyncio.room_driver import Room, fsm_of
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import RoomStatus

__all__ = ["PAGE", "Census", "Query"]

PAGE: Final = 50  # rooms to a page
SLICE: Final = 1000  # rooms looked at before the loop gets its turn: about a millisecond
LEFT: Final = RoomFSM.left.name  # no tracked room is
REFUSED: Final = 10_000  # rooms in `error` that are named_context, the latest


@dataclass(frozen=True, slots=True)
class Query:
    """Which rooms somebody wants to see: those in these states, or in any, whose id contains the text, in any case."""

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


class Census:
    """Counts the rooms of one client; remembers those that went to `error` while somebody looked.

    The client itself forgets them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[Room, None] = {}  # a set, in order
        self._refused: dict[tuple[str, str], Row] = {}

    def forget(self) -> None:
        """Nobody looks any more: hold on to no room."""
        self._known = {}

    async def take(self, query: Query) -> tuple[dict[str, Any], float]:
        """The counts and the page asked for, or the last one there is; and the seconds of the loop that it took."""
        began = time.perf_counter()
        rooms = self._client.rooms
        self._notice_refused(rooms)
        everything: list[Room | Row] = [*rooms, *self._refused.values()]
        states, text = query.states, query.text.casefold()
        counts: Counter[str] = Counter()
        matching: list[Room | Row] = []
        cost = time.perf_counter() - began
        for start in range(0, len(everything), SLICE):
            if start:
                await asyncio.sleep(0)
            began = time.perf_counter()
            for room in everything[start : start + SLICE]:
                state = room.state
                counts[state] += 1
                if (not states or state in states) and (not text or text in room.id.casefold()):
                    matching.append(room)
            cost += time.perf_counter() - began
        pages = max(math.ceil(len(matching) / PAGE), 1)
        page = min(query.page, pages - 1)
        known = fsm_of(rooms[0]).states if rooms else RoomFSM.states
        return {
            "total": len(everything),
            "counts": [[name, state.status.value, counts[name]] for name, state in known.items() if name != LEFT],
            "rows": [_row(room) for room in matching[page * PAGE : (page + 1) * PAGE]],
            "matching": len(matching),
            "page": page,
            "pages": pages,
            "size": PAGE,
        }, cost

    def _notice_refused(self, rooms: tuple[Room, ...]) -> None:
        """A room that is refused or put out is in `error`, and in no set of the client's any more."""
        now = dict.fromkeys(rooms)
        for room in filterfalse(now.__contains__, self._known):
            if room.status is RoomStatus.ERROR:
                self._refused[room.id, room.crdt_type.value] = _row(room)
        if self._refused:
            for room in filterfalse(self._known.__contains__, rooms):  # it may be one that was joined again
                self._refused.pop((room.id, room.crdt_type.value), None)
        for key in list(self._refused)[: max(len(self._refused) - REFUSED, 0)]:
            del self._refused[key]
        self._known = now


def _row(room: Room | Row) -> Row:
    if isinstance(room, Row):
        return room
    kind = room.crdt_type.value
    return Row(room.id, kind, room.state, room.status.value, room.reason, room.permission)
