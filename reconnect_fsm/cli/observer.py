"""What ``watch`` knows of a client: kept as it happens, bounded, and free of secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from reconnect_fsm._asyncio.connection import explanation_of
from reconnect_fsm._asyncio.transport.url import check_url
from reconnect_fsm.loro_protocol import CrdtType
from reconnect_fsm.status import ClientStatus, RoomStatus, StateChange, StatusChange, sanitized

if TYPE_CHECKING:
    from reconnect_fsm._asyncio.client import Client
    from reconnect_fsm._asyncio.room_driver import Room

__all__ = ["News", "Observer", "WatchedRoom", "beginning", "shown_url"]

News: TypeAlias = dict[str, Any]
"""What happened: ``time``, ``at``, ``kind``, and what the kind has."""

KEPT: Final = 200  # of what happened, and round trips
WAITING: Final = 10_000  # news that nobody has shown yet; then the oldest are dropped
MOST_OPERATIONS: Final = 200_000  # of a document whose value is still looked at: that takes a tenth of a second
MOST_VALUE: Final = 400  # characters
PATIENCE: Final = 5.0  # seconds; who answers no ping by then hardly will
PRESENCE: Final = 60_000  # milliseconds after which an entry of an ephemeral store is forgotten
STOPPED: Final = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)


def shown_url(url: str) -> str:
    """The address without user, password, query and fragment. Raises InvalidURL."""
    return str(check_url(url).with_user(None).with_query(None).with_fragment(None))


def beginning(contents: object) -> str:
    """The first characters of some contents as JSON, in one line."""
    return sanitized(json.dumps(contents, ensure_ascii=False, default=repr), MOST_VALUE)


@dataclass
class WatchedRoom:
    """A room, and what is in the document that it was joined with."""

    room: Room
    operations: int = 0
    """Of a document; of an ephemeral store, how many keys it has."""
    value: str = "{}"
    """The beginning of what it holds."""

    @property
    def is_ephemeral(self) -> bool:
        return self.room.crdt_type is CrdtType.EPHEMERAL

    def look(self) -> bool:
        """See what it holds now; return whether that is something else than before."""
        before = (self.operations, self.value)
        adaptor: Any = self.room.adaptor
        if self.is_ephemeral:
            contents = adaptor.store.get_all_states()
            self.operations, self.value = len(contents), beginning(contents)
        elif adaptor.doc.len_ops != self.operations:
            self.operations = adaptor.doc.len_ops
            is_small = self.operations <= MOST_OPERATIONS
            self.value = beginning(adaptor.doc.get_deep_value()) if is_small else "(too large to show)"
        return (self.operations, self.value) != before


class Observer:
    """Follows a client and its rooms. Raises InvalidURL for an address that is none."""

    def __init__(self, url: str, *, pings: bool = True) -> None:
        self.url = shown_url(url)
        self.pings = pings
        """Whether the latency is measured."""
        self.rooms: list[WatchedRoom] = []
        self.news: deque[News] = deque(maxlen=WAITING)
        """What nobody has shown yet."""
        self.history: deque[News] = deque(maxlen=KEPT)
        """What happened last: transitions, rooms' changes, what was logged."""
        self.latencies: deque[float] = deque(maxlen=KEPT)
        self.connects = 0
        self.failures = 0
        """Attempts that failed."""
        self.losses = 0
        """Connections that ended."""
        self.status = ClientStatus.DISCONNECTED
        self.state = ""
        self.reason = ""
        self.since = 0.0
        """Of the status; a time of `now`."""
        self.attempt = 0
        self.next_attempt: float | None = None
        """When it is due; a time of `now`."""
        self._client: Client | None = None
        self._began = time.monotonic()
        self._woken = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    # What happens

    def follow(self, client: Client, rooms: list[tuple[str, str]], auth: bytes = b"") -> None:
        """Begin to; join these rooms (id and crdt), for which loro is needed."""
        self._client = client
        self._tell("start", url=self.url, rooms=[room_id for room_id, _ in rooms])
        client.on_transition(self._moved)
        client.on_status(self._changed)
        client.on_latency(self._measured)
        for room_id, crdt in rooms:
            self._join(client, room_id, crdt, auth)

    def _join(self, client: Client, room_id: str, crdt: str, auth: bytes) -> None:
        from loro import EphemeralStore, LoroDoc

        from reconnect_fsm.adaptors import EphemeralAdaptor, LoroAdaptor

        adaptor = (
            EphemeralAdaptor(EphemeralStore(PRESENCE)) if crdt == "ephemeral" else LoroAdaptor(LoroDoc())  # type: ignore[no-untyped-call]  # loro's stub
        )
        watched = WatchedRoom(client.join(room_id, adaptor, auth=auth))
        watched.room.on_status(lambda change: self._room_changed(watched, change))
        self.rooms.append(watched)

    def _moved(self, change: StateChange) -> None:
        self.connects += change.new == "connected"
        self.losses += change.old == "connected"
        self.failures += change.event == "dial_failed"
        self.state, self.reason, self.attempt = change.new, change.reason, change.attempt
        self.next_attempt = None if change.retry_in is None else self.now + change.retry_in
        if change.status is not self.status:
            self.status, self.since = change.status, self.now
        self._tell(
            "transition",
            event=change.event,
            old=change.old,
            new=change.new,
            status=str(change.status),
            reason=change.reason,
            attempt=change.attempt,
            retry_in=_rounded(change.retry_in),
        )

    def _changed(self, change: StatusChange[ClientStatus]) -> None:
        self._tell(
            "status",
            old=str(change.old),
            new=str(change.new),
            reason=change.reason,
            attempt=change.attempt,
            retry_in=_rounded(change.retry_in),
        )

    def _measured(self, seconds: float) -> None:
        self.latencies.append(seconds)
        self._tell("latency", seconds=round(seconds, 6))

    def _room_changed(self, watched: WatchedRoom, change: StatusChange[RoomStatus]) -> None:
        self._tell(
            "room",
            room=watched.room.id,
            crdt=str(watched.room.crdt_type),
            old=str(change.old),
            new=str(change.new),
            reason=change.reason,
            permission=watched.room.permission,
        )

    def look(self) -> None:
        """See what is in the documents now."""
        for each in self.rooms:
            if each.look():
                room = each.room
                self._tell(
                    "document",
                    room=room.id,
                    crdt=str(room.crdt_type),
                    operations=each.operations,
                    value=each.value,
                )

    def end(self, code: int) -> None:
        """It is over, with this exit code; what follows is only the client being closed."""
        self._tell(
            "end",
            status=str(self.status),
            reason=self.reason,
            connects=self.connects,
            failures=self.failures,
            losses=self.losses,
            exit_code=code,
        )

    @contextmanager
    def listening_to_the_log(self) -> Generator[None, None, None]:
        """Meanwhile, what the library warns of is news, and nothing that spoils a live view."""
        logger = logging.getLogger("reconnect_fsm")
        handler = _LogNews(self)
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates

    def logged(self, level: str, message: str) -> None:
        self._tell("log", level=level, message=sanitized(message, MOST_VALUE))

    def _tell(self, kind: str, **what: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        news: News = {"time": now, "at": round(self.now, 3), "kind": kind, **what}
        self.news.append(news)
        if kind in ("transition", "room", "log"):
            self._remember(news)
        self._woken.set()

    def _remember(self, news: News) -> None:
        """Rooms that do the same at the same time are one piece of history: thousands may do so at each loss."""
        last = self.history[-1] if self.history else {}
        if (
            all(last.get(each) == news.get(each) for each in ("kind", "old", "new", "reason"))
            and news["kind"] == "room"
        ):
            last["rooms"] += 1
        else:
            self.history.append({**news, "rooms": 1})

    async def wait(self, seconds: float) -> None:
        """For news, and at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    # How it stands

    @property
    def has_stopped(self) -> bool:
        """Whether the client made up its mind not to try again."""
        return self.state != "" and self.status in STOPPED

    @property
    def is_well(self) -> bool:
        """Whether it is connected and all rooms are joined."""
        joined = all(each.room.status is RoomStatus.JOINED for each in self.rooms)
        return self.status is ClientStatus.CONNECTED and joined

    @property
    def refused(self) -> list[Room]:
        """The rooms that the server refused; nobody asks for them again."""
        return [each.room for each in self.rooms if each.room.status is RoomStatus.ERROR]

    @property
    def hint(self) -> str:
        """What a person may try, if there is something to try; else empty."""
        if not self.pings or self.latencies or not self.connects:
            return ""
        is_silent = self.status is ClientStatus.CONNECTED and self.now - self.since > PATIENCE
        if is_silent or any(each.get("event") == "pong_missed" for each in self.history):
            return "the server never answered a ping; if it does not know the text 'ping', say --no-ping"
        return ""

    def explained(self) -> str:
        """In words: why it is as it is, and what comes next; without what a program could call."""
        assert self._client is not None
        coming = explanation_of(self._client).next
        if self.status is ClientStatus.CONNECTED:
            return coming
        return f"{self.reason if self.reason.endswith('.') else f'{self.reason}.'} {coming}".strip()


class _LogNews(logging.Handler):
    def __init__(self, observer: Observer) -> None:
        super().__init__(logging.WARNING)
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        self._observer.logged(record.levelname.lower(), record.getMessage())


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
