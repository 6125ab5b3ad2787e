"""What a room needs to know of a document: the Protocol that every adaptor meets, yours included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from reconnect_fsm.loro_protocol.messages import CrdtType, UpdateStatusCode

__all__ = ["Adaptor", "CommitsEdits", "KeepsPresence", "KeepsUnsent", "MakesPieces"]


@runtime_checkable
class Adaptor(Protocol):
    """Binds one document to one room. Every method is called in the event loop's thread and must not block for long.

    Versions and updates are opaque bytes: only the adaptor and its peers at the other end know what they mean. Applying
    an update twice, or one's own update, must do no harm; that is what a CRDT is for.

    An adaptor may have more members, which a room uses where they are there: those of `KeepsUnsent`, `CommitsEdits`,
    `MakesPieces` and `KeepsPresence`.
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

    def apply(self, updates: Sequence[bytes]) -> bool | None:
        """Apply updates from the server; a large batch comes in parts, one call each.

        Return False if some of them wait for others that have not come: the room then compares versions with the
        server (D-RESYNC). If it raises, the server is told that they were refused (Ack 0x04).
        """
        ...

    def attach(self, send: Callable[[bytes | None], None]) -> Callable[[], None]:
        """Pass every local update to ``send`` from now on, from any thread; return a function that ends it.

        What `apply` brought is never passed on (D-ANYWAY). What entered the document otherwise, and is in no update
        that was passed to ``send``, is announced by ``send(None)``: see `KeepsUnsent`.
        """
        ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """The server refused these updates of ours (D-ACK); they are still in the document."""
        ...


class KeepsUnsent(Protocol):
    """Optional members of an adaptor whose document changes by more than local updates (D-ANYWAY).

    Something entered the document that is in no update given to ``send``: the program imported it, another room brought
    it, or one update would be too large for a message. Then the adaptor calls ``send(None)``.
    """

    def unsent(self) -> Iterable[bytes]:
        """Updates that hold all of it, in causal order. They are taken one by one, as `Adaptor.missing_from`'s are.

        The room asks for them after ``send(None)``, in a later turn of the loop, and is not synced until they are sent.
        From ``send(None)`` until the last of them was taken, no local update is passed to ``send``: they hold it.
        """
        ...


class CommitsEdits(Protocol):
    """Optional members of an adaptor whose document keeps edits back until they are committed."""

    def has_uncommitted(self) -> bool:
        """Whether there are edits that were not committed, or not passed on. A room with such edits is not synced."""
        ...

    def commit(self) -> None:
        """Commit them. `Room.synced` does so first."""
        ...


class MakesPieces(Protocol):
    """An optional member of an adaptor that can cut what it sends to size (D-TOOBIG)."""

    max_piece: int
    """What `Adaptor.missing_from` and `KeepsUnsent.unsent` return is no larger, in bytes, where it can be cut.

    The room sets it.
    """


class KeepsPresence(Protocol):
    """Optional members of an adaptor whose entries expire (D-PRESENCE)."""

    @property
    def renew_interval(self) -> float | None:
        """The seconds after which a joined room calls `renew`, again and again; None if nothing expires."""
        ...

    def renew(self) -> None:
        """Set this program's own entries anew; they are passed to ``send``."""
        ...

    def take_back(self) -> Sequence[bytes]:
        """Updates that remove this program's own entries at the others; the document stays as it is.

        The room sends them when it is left or the client is closed.
        """
        ...
