"""What a machine may ask for: plain values, which the drivers run in order.

An effect says what is to be done, never how. To run one twice, or to stop what is not running, is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from reconnect_fsm.status import Cause, StatusChange, StopKind

if TYPE_CHECKING:
    from reconnect_fsm.loro_protocol.messages import Permission

__all__ = [
    "AbandonRequest",
    "AnnounceConnected",
    "CancelDial",
    "CloseSocket",
    "DeclareDead",
    "Dial",
    "DiscardUnsent",
    "Effect",
    "EndSession",
    "FailWaiters",
    "NotifyError",
    "NotifyRooms",
    "NotifyStatus",
    "Release",
    "ReportLatency",
    "ReportOutage",
    "ReportRecovery",
    "RequestJoin",
    "SendLeave",
    "SendPing",
    "StartKeepalive",
    "StartOutageTimer",
    "StartTimer",
    "StopKeepalive",
    "StopOutageTimer",
    "StopTimer",
    "Synchronise",
    "Untrack",
    "VersionChoice",
]


@dataclass(frozen=True, slots=True)
class Effect:
    """The base of all effects. A subclass of a machine may add its own, for a driver that knows how to run them."""


# Either machine


@dataclass(frozen=True, slots=True)
class StartTimer(Effect):
    """Fire the machine's timer event after ``seconds``; a machine has one timer at most."""

    seconds: float


class StopTimer(Effect):
    """Stop the machine's timer."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NotifyStatus(Effect):
    """Notify the status listeners (OBS-1, OBS-2)."""

    change: StatusChange[Any]


@dataclass(frozen=True, slots=True)
class FailWaiters(Effect):
    """Raise an error in every operation that waits at this moment (D-STOP)."""

    error: Exception


# The client's


class Release(Effect):
    """The client stops: let go of everything there is, whatever state it came from."""

    __slots__ = ()


class Dial(Effect):
    """Begin one attempt to connect."""

    __slots__ = ()


class CancelDial(Effect):
    """Cancel the attempt that is under way."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class CloseSocket(Effect):
    """Close the socket, with a close frame if it is still open."""

    code: int
    reason: str


class StartKeepalive(Effect):
    """Begin to ping (LIVE-1)."""

    __slots__ = ()


class StopKeepalive(Effect):
    """Stop pinging."""

    __slots__ = ()


class AnnounceConnected(Effect):
    """Resolve the promise of CONN-5, and the operations that waited for a connection."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StartOutageTimer(Effect):
    """Fire `outage_lasted` after ``seconds`` without a connection (D-HEARD); beside the machine's own timer."""

    seconds: float


class StopOutageTimer(Effect):
    """Stop that timer: there is a connection, or the client is stopped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ReportOutage(Effect):
    """Say in the log, as a warning, why there is no connection and what comes next (D-HEARD)."""

    why: str
    next: str
    attempt: int
    """How many attempts or connections have failed in a row."""


class ReportRecovery(Effect):
    """Say in the log that the outage of which it has heard is over (D-HEARD)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NotifyRooms(Effect):
    """Fire the event of this name in every tracked room, and say why (D-CAUSE)."""

    event: str
    why: str
    cause: Cause | None = None
    stop: StopKind | None = None


# A room's


class VersionChoice(Enum):
    """Which version a JoinRequest carries (D-VERSION)."""

    CURRENT = "current"
    ALTERNATIVE = "alternative"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class RequestJoin(Effect):
    """Ask for credentials and version now, and send a JoinRequest with them (D-INTENT)."""

    version: VersionChoice
    server_version: bytes = b""
    """What the server said it has, for another version than the current one."""


class AbandonRequest(Effect):
    """The request is over: its answer came, or it is too late. Stop asking for credentials."""

    __slots__ = ()


class SendLeave(Effect):
    """Send a Leave message."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Synchronise(Effect):
    """Versions were compared: send what the server lacks, and from now on every local update; wake the waiters.

    Begins a session if there is none. In one that goes on, what has no Ack yet is superseded (D-RESYNC).
    """

    permission: Permission
    """What the server lets us do."""
    version: bytes
    """What the server has."""
    extra: bytes = field(default=b"", repr=False)
    """The application's own in the server's answer; it may be a secret."""


class DiscardUnsent(Effect):
    """Do not write the updates that are still to be written: the next comparison of versions supersedes them."""

    __slots__ = ()


class EndSession(Effect):
    """No longer joined: drop what belonged to this session (updates without an Ack, half-received batches)."""

    __slots__ = ()


class Untrack(Effect):
    """Take the room out of the tracked set, and let go of its document."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NotifyError(Effect):
    """Notify the error listeners: the room has ended, or the server has refused updates for good."""

    error: Exception


# The heartbeat's


class SendPing(Effect):
    """Send a ping, and fire `ping_sent` (LIVE-1)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class DeclareDead(Effect):
    """The connection is dead, in these words (LIVE-2)."""

    why: str


@dataclass(frozen=True, slots=True)
class ReportLatency(Effect):
    """Tell the latency listeners the round trip of a ping, in seconds (OBS-3)."""

    seconds: float
