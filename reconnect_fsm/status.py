"""What the outside sees of a client and of a room: statuses, changes of status, and why a connection ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Generic, TypeAlias, TypeVar

from reconnect_fsm.errors import JoinRefused

__all__ = [
    "AttemptFailure",
    "Cause",
    "ClientStatus",
    "CloseInfo",
    "FailureKind",
    "FaultKind",
    "RoomStatus",
    "StateChange",
    "StatusChange",
    "StopKind",
    "sanitized",
]


class ClientStatus(StrEnum):
    """The five statuses of a client (CONN-1)."""

    CONNECTING = "connecting"
    """The first attempt, or one that the program asked for, is under way."""
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


class StopKind(Enum):
    """Why a client stopped, as data (D-CAUSE)."""

    CLOSED = "closed"
    """This program closed it."""
    REFUSED = "refused"
    """The server's close, its answer to the handshake, or the ``url`` function said: do not come back (RETRY-3)."""
    ATTEMPTS_USED_UP = "attempts_used_up"
    """As many attempts in a row have failed as ``max_attempts`` allows (RETRY-2)."""
    RETRYING_OFF = "retrying_off"
    """The policy says not to retry (``enabled=False``)."""
    MISCONFIGURED = "misconfigured"
    """It cannot work as it is configured: the URL, the certificate, ``max_msg_size`` (D-ERROR)."""
    FAULT = "fault"
    """A guard, a policy or something else of this program's own raised (D-ERROR); the log has the traceback."""


class FaultKind(Enum):
    """What went wrong, finer than `FailureKind`, and with whom (D-CAUSE, D-WORDS)."""

    OFFLINE = "offline"
    """The network source reported that there is no network (OFF-1)."""
    NAME_SERVICE = "name_service"
    """The server's name does not resolve."""
    UNREACHABLE = "unreachable"
    """No way leads to the server: no route, no address that works."""
    CONNECTION_REFUSED = "connection_refused"
    """The host is there, but nothing listens on that port."""
    TIMEOUT = "timeout"
    """There was no connection within the time allowed."""
    HUNG_UP = "hung_up"
    """The other end hung up during the handshake."""
    PROXY = "proxy"
    """The proxy refused, or does not work."""
    TLS = "tls"
    """TLS could not be agreed upon."""
    CERTIFICATE = "certificate"
    """The server's certificate does not verify."""
    NOT_WEBSOCKET = "not_websocket"
    """The server does not answer as a WebSocket server does."""
    REDIRECT = "redirect"
    """The server redirects elsewhere, which is never followed (D-HTTP)."""
    URL = "url"
    """The URL cannot be used."""
    OPTIONS = "options"
    """The options or the session given to the client cannot be used."""
    USER_FUNCTION = "user_function"
    """A function of this program's own that is asked at each attempt (``url``, …) raised or took too long."""
    LIMITS = "limits"
    """A limit of this program or of its machine: descriptors, ports, memory, a connector's."""
    LIVENESS = "liveness"
    """A ping went unanswered, or the other end read nothing: the connection is dead (LIVE-2)."""
    MESSAGE_TOO_BIG = "message_too_big"
    """The server sent a message of more than ``max_msg_size`` (D-TOOBIG)."""
    PROTOCOL = "protocol"
    """The other end broke the WebSocket protocol."""


@dataclass(frozen=True, slots=True)
class CloseInfo:
    """How a connection ended."""

    code: int
    """The code of the close frame; 1005 if it had none, 1006 if there was no close frame."""
    reason: str = ""
    """The reason of the close frame, or what we found wrong.

    As the server said it where a policy or a machine judges it (D-JUDGED); without secrets in what listeners get.
    """
    lasted: float = 0.0
    """How long the connection was open, in seconds."""
    shown: str | None = field(default=None, compare=False)
    """The reason as it may be shown, short and without secrets, where that is not the reason itself."""
    fault: FaultKind | None = None
    """What this end found wrong; None if the server closed, or if the connection was just lost."""
    is_redacted: bool = False
    """Whether the server said something else than ``reason``, of which secrets were taken out."""

    def redacted(self) -> CloseInfo:
        """The same, to be shown: its reason is without secrets."""
        if self.shown is None or self.shown == self.reason:
            return self
        return CloseInfo(self.code, self.shown, self.lasted, None, self.fault, True)

    def __str__(self) -> str:
        reason = self.reason if self.shown is None else self.shown
        if self.code == 1006:
            return reason or "the connection was lost"
        return f"closed with code {self.code}" + (f": {reason}" if reason else "")

    def __repr__(self) -> str:
        reason = self.reason if self.shown is None else self.shown
        fault = "" if self.fault is None else f", fault={self.fault}"
        return f"CloseInfo(code={self.code!r}, reason={reason!r}, lasted={self.lasted!r}{fault})"


class FailureKind(Enum):
    """Why an attempt to connect failed: what matters for whether to try again."""

    NETWORK = "network"
    """The server did not answer, or not in time, or not as a WebSocket server does."""
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
    """The server asked us to wait at least this long, in seconds (D-HTTP); `RetryPolicy.no_sooner` bounds it."""
    fault: FaultKind | None = None
    """What went wrong, and with whom; None if that is not known, or if ``http_status`` says it."""

    def __str__(self) -> str:
        return self.why


Cause: TypeAlias = CloseInfo | AttemptFailure | JoinRefused
"""What ended it (D-CAUSE): a connection that closed, an attempt that failed or was not possible, a room's refusal."""


@dataclass(frozen=True, slots=True)
class StatusChange(Generic[StatusT]):
    """One change of status, as ``on_status`` callbacks get it (OBS-1, OBS-2); ``old`` and ``new`` always differ."""

    old: StatusT
    new: StatusT
    reason: str
    """What happened, in words; never holds a query string, a token or auth bytes."""
    cause: Cause | None = field(default=None, compare=False)
    """What ended it, as data (D-CAUSE); None where this program itself asked for the change, and where nothing ended.

    A room that its client's loss or stop concerns has the client's cause. Two changes are compared without it: a
    refusal is an exception, which equals none but itself.
    """
    stop: StopKind | None = field(default=None, compare=False)
    """Why the client stopped; set exactly where it did."""
    attempt: int = 0
    """The number of the retry that is next or under way, counted from 1; 0 when there is none."""
    retry_in: float | None = None
    """Seconds until the next attempt, where one is scheduled."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a client's state: finer than its status, so failed attempts are seen too (``on_transition``)."""

    event: str
    """The event that led to it, by its name in `ClientFSM`."""
    old: str
    new: str
    status: ClientStatus
    reason: str
    attempt: int = 0
    retry_in: float | None = None
    cause: Cause | None = field(default=None, compare=False)
    """As in `StatusChange`."""
    stop: StopKind | None = field(default=None, compare=False)
    """As in `StatusChange`."""


def sanitized(words: object, most: int = 200) -> str:
    """A server's words, made fit to be shown and logged: text, short, and one line."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:most])
