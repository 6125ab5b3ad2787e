"""Every error this package raises, and whose doing each one is.

::

    ReconnectError
    ├── ClientStopped          the client stopped while you waited: closed, refused for good, or out of attempts
    ├── NotConnected           you asked for something that needs a connection, and there is none now
    ├── JoinRefused            the server refused a room, or put us out of it
    ├── UpdatesRefused         the server has refused for good what it would need to have all of the document
    ├── RoomLeft               you left the room that you were waiting for
    ├── Unauthorized           *yours to raise* from a ``url`` or ``auth`` callable: no use asking again
    ├── InvalidURL             (also a ValueError) the address cannot be one of a WebSocket server
    ├── CannotDraw             (in diagrams) something that a picture needs is not installed
    ├── MachineDefinitionError (also a TypeError) a state machine's declaration is wrong; raised when the class is made
    └── ProtocolError          (also a ValueError) bytes that are not a valid message of the Loro syncing protocol

Wrong arguments are plain ``TypeError`` and ``ValueError``, raised where they are given. No message ever contains a
query string, a token or auth bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from reconnect_fsm.loro_protocol.messages import UpdateStatusCode
    from reconnect_fsm.status import Cause, StopKind

__all__ = [
    "ClientStopped",
    "InvalidURL",
    "JoinRefused",
    "MachineDefinitionError",
    "NotConnected",
    "ProtocolError",
    "ReconnectError",
    "RoomLeft",
    "Unauthorized",
    "UpdatesRefused",
]

ErrorT = TypeVar("ErrorT", bound=Exception)


class ReconnectError(Exception):
    """The root of all errors of this package."""


class ClientStopped(ReconnectError):
    """The client stopped while an operation waited (D-STOP).

    Raised by ``await client.connect()``, ``retry_now()``, ``ready()``, ``ping()``, ``join(...)``, ``room.synced()`` and
    ``room.resync()``, also if they begin to wait while it is stopped. A client that was never started is not stopped.
    The client stays stopped until ``connect()`` or ``retry_now()``; rooms stay tracked and are joined then.
    """

    def __init__(self, reason: str, cause: Cause | None = None, stop: StopKind | None = None) -> None:
        super().__init__(f"the client stopped: {reason} (connect() or retry_now() starts it again)")
        self.reason = reason
        """Why it stopped, in words."""
        self.cause = cause
        """What ended it, as data (D-CAUSE); None where this program itself did."""
        self.stop = stop
        """Which kind of stop it is."""


class NotConnected(ReconnectError):
    """The operation needs a connection and there is none at the moment; ``await client.wait_connected()`` first."""


class JoinRefused(ReconnectError):
    """The server refused the room or put us out of it; the room is in ``error`` and no longer tracked (REJOIN-3).

    ``code`` is the wire's JoinError or RoomError code, None where the refusal was our own (credentials, an adaptor
    that raised); ``message`` is the server's or ours; ``app_code`` the application's own code, where it gave one.
    """

    def __init__(self, code: int | None, message: str, app_code: str | None = None, *, evicted: bool = False) -> None:
        what, kind = ("put us out of the room", "RoomError") if evicted else ("refused the room", "JoinError")
        known = "" if code is None else f" ({kind} {code:#04x}{'' if app_code is None else f', {app_code}'})"
        who = "this program" if code is None else "the server"
        super().__init__(f"{who} {what}: {message or 'no reason given'}{known}")
        self.code = code
        self.message = message
        self.app_code = app_code


class UpdatesRefused(ReconnectError):
    """The server lacks updates of ours, and refuses them for good; the room goes on (D-RESYNC).

    Raised by ``room.synced()`` and ``room.resync()`` until a comparison of versions finds that the server has them;
    given to ``room.on_error``. The next edit makes the room compare versions once more, at most once per 30 s.
    """

    def __init__(self, status: UpdateStatusCode) -> None:
        super().__init__(f"the server lacks updates of this document and refuses them: {status.name}")
        self.status = status
        """Why, as the protocol says it."""


class RoomLeft(ReconnectError):
    """``leave()`` was called on the room while an operation waited for it."""


class Unauthorized(ReconnectError):
    """Raise this from a ``url`` or ``auth`` callable to say that asking again is of no use (D-INTENT).

    From ``auth`` it puts the room in ``error``; from ``url`` it stops the client (``disconnected``). Any other
    exception there counts as a failed attempt and is retried with backoff.
    """


class InvalidURL(ReconnectError, ValueError):
    """The address cannot be that of a WebSocket server (D-ERROR)."""


class MachineDefinitionError(ReconnectError, TypeError):
    """The declaration of a state machine is wrong; raised when its class is made."""


class ProtocolError(ReconnectError, ValueError):
    """The bytes are not a valid message of the Loro syncing protocol v1; the message says what is wrong and where."""


def copy_error(error: ErrorT) -> ErrorT:
    """The same again, to be raised: who is raised holds the frames it came through, and all that is in them."""
    kind = type(error)
    again = kind.__new__(kind, *error.args)
    vars(again).update(vars(error))
    return again


def fault_reason(what: str, error: BaseException) -> str:
    """The reason for a state after code of this program raised: the class alone, as its message may hold secrets."""
    return f"{what} raised {type(error).__name__}; the log tells where"


def is_fault(error: BaseException) -> bool:
    """Whether what a plain function raised is a fault of it, and not a wish to end the program.

    A CancelledError is one, too: nothing was awaited, so it can only be that of some other task's ``result()``.
    """
    return not isinstance(error, KeyboardInterrupt | SystemExit)
