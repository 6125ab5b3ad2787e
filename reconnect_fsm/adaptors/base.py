"""What a room needs to know of a document: the Protocol that every adaptor meets, yours included."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, TypeVarTuple, Unpack, runtime_checkable

from reconnect_fsm.loro_protocol.messages import CrdtType, UpdateStatusCode

__all__ = ["Adaptor", "guarded", "is_fault"]

Args = TypeVarTuple("Args")
T = TypeVar("T")


@runtime_checkable
class Adaptor(Protocol):
    """Binds one document to one room. Every method is called in the event loop's thread and must not block for long.

    Versions and updates are opaque bytes: only the adaptor and its peers at the other end know what they mean. Applying
    an update twice, or one's own update, must do no harm; that is what a CRDT is for.
    """

    @property
    def crdt_type(self) -> CrdtType:
        """The kind of document, as the protocol tags it."""
        ...

    def version(self) -> bytes:
        """The version that a JoinRequest carries: the server sends what came after it."""
        ...

    def alternative_version(self, server_version: bytes) -> bytes | None:
        """Another version to ask with when the server does not know the first (D-VERSION); None if there is none.

        ``server_version`` is what the server said it has, ``b""`` if it did not say.
        """
        ...

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        """The updates that a server at this version lacks: edits made offline, or before it was joined (D-ACK).

        They are taken one by one, as the server acknowledges those before, so a generator need not hold them all.
        """
        ...

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version; `Room.synced` waits for it."""
        ...

    def apply(self, updates: Sequence[bytes]) -> None:
        """Apply updates from the server. If it raises, the server is told that they were refused (Ack 0x04)."""
        ...

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Pass every local update to ``send`` from now on, from any thread; return a function that ends it."""
        ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """The server refused these updates of ours (D-ACK); they are still in the document."""
        ...


def is_fault(error: BaseException) -> bool:
    """Whether it is a fault of what was called, and not a KeyboardInterrupt, CancelledError or the like.

    loro raises bare BaseException, and its panics are no Exception either.
    """
    return isinstance(error, Exception) or type(error) is BaseException or type(error).__name__ == "PanicException"


def guarded(call: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """Call something of an adaptor's; a fault of it is always an Exception.

    So is a CancelledError: in a plain call it can only be that of some task whose result was asked for.
    """
    try:
        return call(*args)
    except BaseException as error:
        if not isinstance(error, Exception) and (is_fault(error) or isinstance(error, CancelledError)):
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
