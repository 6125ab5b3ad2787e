"""What a room needs of a document: the Protocol that every adaptor meets, yours included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from reconnect_fsm.loro_protocol.messages import CrdtType, UpdateStatusCode

__all__ = ["Adaptor", "CommitsEdits", "KeepsPresence", "KeepsUnsent", "MakesPieces"]


@runtime_checkable
class Adaptor(Protocol):
    """Binds one document to one room. Every method is called in the event loop's thread and must not block for long.

    Versions and updates are opaque bytes: only the adaptor and its peers know what they mean. Applying an update twice,
    or an update of its own, must do no harm; a CRDT is made for that.

    An adaptor may have more members, and a room uses those that are there: see `KeepsUnsent`, `CommitsEdits`,
    `MakesPieces` and `KeepsPresence`.
    """

    @property
    def crdt_type(self) -> CrdtType:
        """The kind of document, as the protocol tags it."""
        ...

    def version(self) -> bytes:
        """The version that a JoinRequest carries: the server sends the updates after it."""
        ...

    def alternative_version(self, server_version: bytes) -> bytes | None:
        """Another version for the JoinRequest if the server does not know the first (D-VERSION); None if there is none.

        ``server_version`` is the version that the server says it has; ``b""`` if it does not say.
        """
        ...

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        """The updates that a server at this version lacks: edits made offline, or before the join (D-ACK).

        They are taken one by one, as the server acknowledges the earlier ones, so a generator need not hold them all.
        """
        ...

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version; `Room.synced` waits for it."""
        ...

    def apply(self, updates: Sequence[bytes]) -> bool | None:
        """Apply updates from the server. A large batch comes in parts, one call each.

        Return False if some of them depend on updates that have not arrived: the room then compares versions with the
        server (D-RESYNC). If this raises, the server gets an Ack that refuses them (0x04).
        """
        ...

    def attach(self, send: Callable[[bytes | None], None]) -> Callable[[], None]:
        """Pass every local update to ``send`` from now on, from any thread. Return a function that ends this.

        Never pass on what `apply` brought (D-ANYWAY). For what entered the document in another way, and is in no update
        that was passed to ``send``, call ``send(None)``: see `KeepsUnsent`.
        """
        ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """The server refused these updates of ours (D-ACK); they are still in the document."""
        ...


class KeepsUnsent(Protocol):
    """Optional members of an adaptor whose document changes by more than local updates (D-ANYWAY).

    The adaptor calls ``send(None)`` when something entered the document that is in no update given to ``send``: the
    program imported it, another room brought it, or the update would be too large for a message.
    """

    def unsent(self) -> Iterable[bytes]:
        """Updates that hold all of it, in causal order. They are taken one by one, as those of `Adaptor.missing_from`.

        The room asks for them after ``send(None)``, in a later turn of the loop, and is not synced until they are sent.
        From ``send(None)`` until the last of them was taken, pass no local update to ``send``: these updates hold it.
        """
        ...


class CommitsEdits(Protocol):
    """Optional members of an adaptor whose document holds edits back until they are committed."""

    def has_uncommitted(self) -> bool:
        """Whether there are edits that were not committed or not passed to ``send``. The room is then not synced."""
        ...

    def commit(self) -> None:
        """Commit them. `Room.synced` calls this first."""
        ...


class MakesPieces(Protocol):
    """An optional member of an adaptor that can cut what it sends to size (D-TOOBIG)."""

    max_piece: int
    """The most bytes of an update that `Adaptor.missing_from` and `KeepsUnsent.unsent` return, where it can be cut.

    The room sets it.
    """


class KeepsPresence(Protocol):
    """Optional members of an adaptor whose entries expire (D-PRESENCE)."""

    @property
    def renew_interval(self) -> float | None:
        """A joined room calls `renew` every so many seconds; None if nothing expires."""
        ...

    def renew(self) -> None:
        """Set this program's own entries again, and so pass them to ``send``."""
        ...

    def take_back(self) -> Sequence[bytes]:
        """Updates that remove this program's own entries at the other clients; the document stays as it is.

        The room sends them when it is left or the client is closed.
        """
        ...
