"""What ``watch`` knows of a client: recorded as it happens, bounded, and without secrets."""

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
    from reconnect_fsm._asyncio.room import Room

__all__ = ["Update", "WatchedClient", "WatchedRoom", "beginning", "shown_url"]

Update: TypeAlias = dict[str, Any]
"""One thing that happened: ``time``, ``at``, ``kind``, and the fields of that kind."""

MAX_KEPT: Final = 200  # updates in the history, and round trips
MAX_UPDATES: Final = 10_000  # that are not shown yet; then the oldest are dropped
MAX_OPERATIONS: Final = 200_000  # of a document whose value is read: that takes a tenth of a second
MAX_VALUE: Final = 400  # characters
SILENT_AFTER: Final = 5.0  # seconds; a server that has answered no ping by then hardly will
PRESENCE: Final = 60_000  # milliseconds after which an entry of an ephemeral store is forgotten
STOPPED: Final = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)


def shown_url(url: str) -> str:
    """The address without user, password, query and fragment. Raises InvalidURL."""
    return str(check_url(url).with_user(None).with_query(None).with_fragment(None))


def beginning(contents: object) -> str:
    """The first characters of a value as JSON, in one line."""
    return sanitized(json.dumps(contents, ensure_ascii=False, default=repr), MAX_VALUE)


@dataclass
class WatchedRoom:
    """A room, and the contents of its document."""

    room: Room
    operations: int = 0
    """Of the document; for an ephemeral store, the number of keys."""
    value: str = "{}"
    """The beginning of its contents."""

    @property
    def is_ephemeral(self) -> bool:
        return self.room.crdt_type is CrdtType.EPHEMERAL

    def refresh(self) -> bool:
        """Read the contents; return whether they have changed."""
        before = (self.operations, self.value)
        adaptor: Any = self.room.adaptor
        if self.is_ephemeral:
            contents = adaptor.store.get_all_states()
            self.operations, self.value = len(contents), beginning(contents)
        elif adaptor.doc.len_ops != self.operations:
            self.operations = adaptor.doc.len_ops
            is_small = self.operations <= MAX_OPERATIONS
            self.value = beginning(adaptor.doc.get_deep_value()) if is_small else "(too large to show)"
        return (self.operations, self.value) != before


class WatchedClient:
    """Follows a client and its rooms. Raises InvalidURL for an invalid address."""

    def __init__(self, url: str, *, pings: bool = True) -> None:
        self.url = shown_url(url)
        self.pings = pings
        """Whether the latency is measured."""
        self.rooms: list[WatchedRoom] = []
        self.updates: deque[Update] = deque(maxlen=MAX_UPDATES)
        """Those that are not shown yet."""
        self.history: deque[Update] = deque(maxlen=MAX_KEPT)
        """The last transitions, changes of rooms, and log records."""
        self.latencies: deque[float] = deque(maxlen=MAX_KEPT)
        self.connects = 0
        self.failures = 0
        """Attempts that failed."""
        self.losses = 0
        """Connections that ended."""
        self.status = ClientStatus.DISCONNECTED
        self.state = ""
        self.reason = ""
        self.since = 0.0
        """When the present status began; a time of `now`."""
        self.attempt = 0
        self.next_attempt: float | None = None
        """When the next attempt is due; a time of `now`."""
        self._client: Client | None = None
        self._began = time.monotonic()
        self._woken = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    # What happens

    def follow(self, client: Client, rooms: list[tuple[str, str]], auth: bytes = b"") -> None:
        """Begin to follow the client, and join these rooms (id and CRDT), which needs loro."""
        self._client = client
        self._add("start", url=self.url, rooms=[room_id for room_id, _ in rooms])
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
        self._add(
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
        self._add(
            "status",
            old=str(change.old),
            new=str(change.new),
            reason=change.reason,
            attempt=change.attempt,
            retry_in=_rounded(change.retry_in),
        )

    def _measured(self, seconds: float) -> None:
        self.latencies.append(seconds)
        self._add("latency", seconds=round(seconds, 6))

    def _room_changed(self, watched: WatchedRoom, change: StatusChange[RoomStatus]) -> None:
        self._add(
            "room",
            room=watched.room.id,
            crdt=str(watched.room.crdt_type),
            old=str(change.old),
            new=str(change.new),
            reason=change.reason,
            permission=watched.room.permission,
        )

    def refresh(self) -> None:
        """Read the contents of the documents."""
        for each in self.rooms:
            if each.refresh():
                room = each.room
                self._add(
                    "document",
                    room=room.id,
                    crdt=str(room.crdt_type),
                    operations=each.operations,
                    value=each.value,
                )

    def end(self, code: int) -> None:
        """Add the last update, with the exit code. After it the client is only closed."""
        self._add(
            "end",
            status=str(self.status),
            reason=self.reason,
            connects=self.connects,
            failures=self.failures,
            losses=self.losses,
            exit_code=code,
        )

    @contextmanager
    def capturing_log(self) -> Generator[None, None, None]:
        """Turn the library's warnings into updates meanwhile; on the screen they would spoil a live view."""
        logger = logging.getLogger("reconnect_fsm")
        handler = _LogHandler(self)
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates

    def logged(self, level: str, message: str) -> None:
        self._add("log", level=level, message=sanitized(message, MAX_VALUE))

    def _add(self, kind: str, **what: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        update: Update = {"time": now, "at": round(self.now, 3), "kind": kind, **what}
        self.updates.append(update)
        if kind in ("transition", "room", "log"):
            self._add_to_history(update)
        self._woken.set()

    def _add_to_history(self, update: Update) -> None:
        """Add an update to the history. Rooms that change alike are counted as one: each loss may change thousands."""
        last = self.history[-1] if self.history else {}
        if (
            all(last.get(each) == update.get(each) for each in ("kind", "old", "new", "reason"))
            and update["kind"] == "room"
        ):
            last["rooms"] += 1
        else:
            self.history.append({**update, "rooms": 1})

    async def wait(self, seconds: float) -> None:
        """Wait for an update, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    # The present status

    @property
    def has_stopped(self) -> bool:
        """Whether the client has stopped, and does not try again."""
        return self.state != "" and self.status in STOPPED

    @property
    def is_well(self) -> bool:
        """Whether it is connected and all rooms are joined."""
        joined = all(each.room.status is RoomStatus.JOINED for each in self.rooms)
        return self.status is ClientStatus.CONNECTED and joined

    @property
    def refused(self) -> list[Room]:
        """The rooms that the server refused; the client does not join them again."""
        return [each.room for each in self.rooms if each.room.status is RoomStatus.ERROR]

    @property
    def hint(self) -> str:
        """What the user may try; may be empty."""
        if not self.pings or self.latencies or not self.connects:
            return ""
        is_silent = self.status is ClientStatus.CONNECTED and self.now - self.since > SILENT_AFTER
        if is_silent or any(each.get("event") == "pong_missed" for each in self.history):
            return "the server never answered a ping; if it does not know the text 'ping', say --no-ping"
        return ""

    def explained(self) -> str:
        """The reason of the status and what comes next, without the methods that a program could call."""
        assert self._client is not None
        next_step = explanation_of(self._client).next
        if self.status is ClientStatus.CONNECTED:
            return next_step
        return f"{self.reason if self.reason.endswith('.') else f'{self.reason}.'} {next_step}".strip()


class _LogHandler(logging.Handler):
    def __init__(self, watched: WatchedClient) -> None:
        super().__init__(logging.WARNING)
        self._watched = watched

    def emit(self, record: logging.LogRecord) -> None:
        self._watched.logged(record.levelname.lower(), record.getMessage())


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
