"""What the outside sees of a client and of a room: statuses, changes of status, and why a connection ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, TypeVar

__all__ = [
    "AttemptFailure",
    "ClientStatus",
    "CloseInfo",
    "FailureKind",
    "RoomStatus",
    "StateChange",
    "StatusChange",
    "presentable",
]


class ClientStatus(StrEnum):
    """The five statuses of a client (CONN-1)."""

    CONNECTING = "connecting"
    """The first attempt, or one asked for by hand, is under way."""
    CONNECTED = "connected"
    """The WebSocket is open."""
    RECONNECTING = "reconnecting"
    """The connection is gone and the client sees to it: it waits, dials, or pauses because the machine is offline."""
    DISCONNECTED = "disconnected"
    """Someone decided that it ends: you, the server, or the attempt limit (D-ERROR)."""
    ERROR = "error"
    """This client cannot work as it is configured; trying again would not help (D-ERROR)."""


class RoomStatus(StrEnum):
    """The five statuses of a room (JOIN-3)."""

    CONNECTING = "connecting"
    """Asked for and not joined yet: kept until the socket is open, or waiting for the server's answer."""
    JOINED = "joined"
    """The server let us in; updates flow both ways."""
    RECONNECTING = "reconnecting"
    """It was joined; it is asked for again as soon as can be."""
    DISCONNECTED = "disconnected"
    """The client was stopped, or the room was left."""
    ERROR = "error"
    """Refused or evicted; no longer tracked."""


StatusT = TypeVar("StatusT", ClientStatus, RoomStatus)


@dataclass(frozen=True, slots=True)
class StatusChange(Generic[StatusT]):
    """One change of status, as ``on_status`` callbacks get it (OBS-1, OBS-2); ``old`` and ``new`` always differ."""

    old: StatusT
    new: StatusT
    reason: str
    """What happened, in words; never holds a query string, a token or auth bytes."""
    attempt: int = 0
    """The number of the retry that is next or under way, counted from 1; 0 when there is none."""
    retry_in: float | None = None
    """Seconds until the next attempt, where one is scheduled."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a client's state: finer than its status, so failed attempts are seen too (``on_transition``)."""

    event: str
    """The fact that led to it, by the name it has in `ClientFSM`."""
    old: str
    new: str
    status: ClientStatus
    reason: str
    attempt: int = 0
    retry_in: float | None = None


@dataclass(frozen=True, slots=True)
class CloseInfo:
    """How a connection ended."""

    code: int
    """The code of the close frame; 1005 if it had none, 1006 if there was no close frame."""
    reason: str = ""
    """The reason of the close frame, or what we found wrong; at most a few hundred characters."""
    lasted: float = 0.0
    """How long the connection was open, in seconds."""

    def __str__(self) -> str:
        if self.code == 1006:
            return self.reason or "the connection was lost"
        return f"closed with code {self.code}" + (f": {self.reason}" if self.reason else "")


def presentable(words: object, most: int = 200) -> str:
    """A server's words, made fit to be shown and logged: text, short, and one line."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:most])


class FailureKind(Enum):
    """Why an attempt to connect failed: what matters for whether to try again."""

    NETWORK = "network"
    """Nobody answered, or not in time, or not as a WebSocket server does."""
    ANSWER = "answer"
    """The server answered the handshake with an HTTP status (D-HTTP)."""
    UNAUTHORIZED = "unauthorized"
    """The ``url`` callable raised `Unauthorized`."""
    MISCONFIGURED = "misconfigured"
    """It cannot work: an unusable URL, a certificate that does not verify (D-ERROR)."""


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """How an attempt to connect failed."""

    kind: FailureKind
    why: str
    """In words, free of secrets."""
    http_status: int | None = None
    retry_after: float = 0.0
    """The server asked us to wait at least this long, in seconds; already clamped (D-HTTP)."""

    def __str__(self) -> str:
        return self.why
