"""The hook: the steps of a client's machines, turned into events that can be counted and timed.

All but the pings is derived from the steps alone, by the effects and not by the names of states, so that a subclass of
a machine is measured, too. All times are the event loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm._asyncio.connection import Connection, observation_of
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.room import Room, driver_of
from reconnect_fsm._asyncio.room_driver import RoomDriver
from reconnect_fsm._steps import Step
from reconnect_fsm.effects import (
    AnnounceConnected,
    CancelDial,
    CloseSocket,
    Dial,
    NotifyStatus,
    Release,
    RequestJoin,
    Untrack,
)
from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.loro_protocol import JoinErrorCode, RoomErrorCode
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, RoomStatus

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "ConnectionLost",
    "ConnectionOpened",
    "JoinEnded",
    "JoinStarted",
    "PingAnswered",
    "RoomCounted",
    "RoomFailed",
    "StatusCounted",
    "TelemetryEvent",
    "observe",
]


@dataclass(frozen=True, slots=True)
class TelemetryEvent:
    """The base of all telemetry events."""

    at: float
    """When, in the event loop's seconds."""


@dataclass(frozen=True, slots=True)
class AttemptStarted(TelemetryEvent):
    """A dial has begun."""

    retry: int
    """The number of the retry, counted from 1; 0 for the first attempt, and for one after a stable connection."""


@dataclass(frozen=True, slots=True)
class AttemptEnded(TelemetryEvent):
    """That dial has ended; one for each `AttemptStarted`."""

    duration: float
    """In seconds, from DNS to the end of the handshake."""
    outcome: Literal["connected", "failed", "cancelled"]
    """"cancelled": the client cancelled it, because it was closed, is to dial afresh, or is offline."""
    failure: AttemptFailure | None = None
    """Why it failed."""

    @property
    def error(self) -> str | None:
        """The failure as one of few words: the HTTP status if there was an answer, else the kind of the failure."""
        if self.failure is None:
            return None
        return self.failure.kind.value if self.failure.http_status is None else str(self.failure.http_status)


@dataclass(frozen=True, slots=True)
class ConnectionOpened(TelemetryEvent):
    """The client is connected."""


@dataclass(frozen=True, slots=True)
class ConnectionLost(TelemetryEvent):
    """That connection has ended; one for each `ConnectionOpened`."""

    duration: float
    """How long it was open, in seconds."""
    cause: str
    """The event of `ClientFSM` that ended it: ``socket_closed``, ``pong_missed``, ``went_offline``,
    ``close_requested``, ``retry_requested``, ``faulted``."""
    close: CloseInfo | None = None
    """How it was closed, unless this program closed it."""

    @property
    def is_wanted(self) -> bool:
        """Whether this program ended it on purpose."""
        return self.cause in ("close_requested", "retry_requested")


@dataclass(frozen=True, slots=True)
class StatusCounted(TelemetryEvent):
    """The client is in another status. The first of these has no ``old``; the last, at the end of the
    observation, no ``new``."""

    old: ClientStatus | None
    new: ClientStatus | None
    cause: str
    """The event of `ClientFSM` that led to it."""
    reason: str
    """Why, in words that hold no secrets."""


@dataclass(frozen=True, slots=True)
class JoinStarted(TelemetryEvent):
    """A join has begun."""

    room: Room


@dataclass(frozen=True, slots=True)
class JoinEnded(TelemetryEvent):
    """That join has ended; one for each `JoinStarted`."""

    room: Room
    duration: float
    """In seconds, from the first request over this connection; the waits between two requests are part of it."""
    outcome: Literal["joined", "refused", "abandoned"]
    """"abandoned": the connection was lost, the client stopped, or the room was left before there was an answer."""
    error: str | None = None
    """Why it was refused: the name of the code (``auth_failed``, …) or event (``credentials_failed``, ``faulted``)."""


@dataclass(frozen=True, slots=True)
class RoomCounted(TelemetryEvent):
    """A tracked room is in another status. No ``old``: it is tracked from now on; no ``new``: no longer."""

    room: Room
    old: RoomStatus | None
    new: RoomStatus | None


@dataclass(frozen=True, slots=True)
class RoomFailed(TelemetryEvent):
    """A room is in ``error``: its join was refused, or it was evicted. It is no longer tracked."""

    room: Room
    error: str
    """As that of `JoinEnded`."""


@dataclass(frozen=True, slots=True)
class PingAnswered(TelemetryEvent):
    """A pong has arrived."""

    duration: float
    """The round trip, in seconds."""


def observe(client: Connection, callback: Callable[[TelemetryEvent], object]) -> Callable[[], None]:
    """Call the function with each `TelemetryEvent` of a `Connection` or `Client`. Returns one that ends it.

    At the beginning it is called for the present status and each tracked room (events without ``old``), and at the end
    for the same (events without ``new``), so that sums are right whenever it begins, and zero in the end. It is not
    called for an attempt or a join that is under way at the beginning.

    The function is called between an event and its effects: it should return soon. If it raises, that is logged and
    harms nothing. Call both in the thread of the event loop.

    Raises TypeError if the function is none, or is a coroutine function.
    """
    return _EventSource(client, callback).begin()


Outcome: TypeAlias = Literal["joined", "refused", "abandoned"]
OUTCOMES: Final[Mapping[RoomStatus, Outcome]] = {
    RoomStatus.JOINED: "joined",
    RoomStatus.ERROR: "refused",
    RoomStatus.DISCONNECTED: "abandoned",
}
ENDED_BY_OTHERS: Final = ("socket_closed", "pong_missed")  # their argument is a CloseInfo


class _EventSource:
    """Makes telemetry events from the steps of one client. Its memory is bounded by the tracked rooms."""

    def __init__(self, client: Connection, callback: Callable[[TelemetryEvent], object]) -> None:
        self._client = client
        self._listeners: Listeners[TelemetryEvent] = Listeners("telemetry.observe")
        self._listeners.add(callback)
        self._emit = self._listeners.notify
        self._dialing: float | None = None  # since when
        self._connected: float | None = None
        self._joining: dict[Room, float] = {}
        self._tracked: dict[Room, RoomStatus] = {}
        self._stop: tuple[Callable[[], None], ...] = ()

    def begin(self) -> Callable[[], None]:
        client, now = self._client, observation_of(self._client)
        at, self._connected = now.now, now.opened_at
        self._emit(StatusCounted(at, None, client.status, "", client.reason))
        for room in client.rooms if isinstance(client, Client) else ():
            self._count(at, room, room.status)
        self._stop = now.on_step(self._on_step), client.on_latency(self._on_latency)
        return self._end

    def _end(self) -> None:
        if self._stop:
            for stop in self._stop:
                stop()
            self._stop = ()
            at = self._now()
            for room in tuple(self._tracked):
                self._count(at, room, None)
            self._emit(StatusCounted(at, self._client.status, None, "", self._client.reason))

    def _on_latency(self, seconds: float) -> None:
        self._emit(PingAnswered(self._now(), seconds))

    def _now(self) -> float:
        return observation_of(self._client).now

    def _on_step(self, taken: tuple[Step, Any]) -> None:
        step, subject = taken
        if isinstance(subject, RoomDriver):
            if subject.handle is not None:  # else the room was over before
                self._on_room_step(step, subject.handle)
        else:
            self._on_client_step(step)

    def _on_client_step(self, step: Step) -> None:
        at, _, _, event, args, _, _, _, attempt, effects, _ = step
        by_type = {type(effect): effect for effect in effects}
        if self._dialing is not None and (CancelDial in by_type or Release in by_type):
            duration, self._dialing = at - self._dialing, None
            if event == "dial_failed":
                self._emit(AttemptEnded(at, duration, "failed", args[0]))
            else:
                self._emit(AttemptEnded(at, duration, "connected" if AnnounceConnected in by_type else "cancelled"))
        if self._connected is not None and (CloseSocket in by_type or Release in by_type):
            duration, self._connected = at - self._connected, None
            close = (
                args[0].redacted() if event in ENDED_BY_OTHERS else None
            )  # D-JUDGED: the machine has the words unredacted
            self._emit(ConnectionLost(at, duration, event, close))
        if isinstance(status := by_type.get(NotifyStatus), NotifyStatus):
            self._emit(StatusCounted(at, status.change.old, status.change.new, event, status.change.reason))
        if AnnounceConnected in by_type:
            self._connected = at
            self._emit(ConnectionOpened(at))
        if Dial in by_type:
            self._dialing = at
            self._emit(AttemptStarted(at, attempt))

    def _on_room_step(self, step: Step, room: Room) -> None:
        at, _, _, event, args, old, new, _, _, effects, _ = step
        kinds = {type(effect) for effect in effects}
        error = _error(event, args) if room.status is RoomStatus.ERROR else None
        if room in self._joining:
            outcome = "abandoned" if event == "connection_lost" else OUTCOMES.get(room.status)
            if outcome is not None:
                self._emit(JoinEnded(at, room, at - self._joining.pop(room), outcome, error))
        if error is not None and old != new:
            self._emit(RoomFailed(at, room, error))
        stays = Untrack not in kinds and driver_of(room).is_tracked
        self._count(at, room, room.status if stays else None)
        if RequestJoin in kinds and room not in self._joining:
            self._joining[room] = at
            self._emit(JoinStarted(at, room))

    def _count(self, at: float, room: Room, new: RoomStatus | None) -> None:
        old = self._tracked.get(room)
        if new is not old:
            if new is None:
                del self._tracked[room]
            else:
                self._tracked[room] = new
            self._emit(RoomCounted(at, room, old, new))


def _error(event: str, args: tuple[Any, ...]) -> str:
    """Why a room failed, as one of few words: the name of the server's code, if it sent one, else of the event."""
    codes = [arg.code for arg in args if isinstance(arg, JoinRefused)]
    return codes[0].name.lower() if codes and isinstance(codes[0], JoinErrorCode | RoomErrorCode) else event
