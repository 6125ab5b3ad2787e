"""Adaptors for the documents and ephemeral stores of the ``loro`` package: ``pip install 'reconnect-fsm[loro]'``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from loro import EphemeralStore, ExportMode, LoroDoc, VersionVector

from reconnect_fsm.adaptors.base import is_fault
from reconnect_fsm.loro_protocol.messages import CrdtType, UpdateStatusCode

__all__ = ["EphemeralAdaptor", "LoroAdaptor"]

logger = logging.getLogger("reconnect_fsm")

Refused = Callable[[Sequence[bytes], UpdateStatusCode], object]


class _Adaptor:
    """What both have in common."""

    def __init__(self, on_refused: Refused | None) -> None:
        self._on_refused = on_refused

    def alternative_version(self, server_version: bytes) -> bytes | None:
        """There is one format of version only."""
        return None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """Pass it on to ``on_refused``; without one, log it."""
        if self._on_refused is None:
            size = sum(map(len, updates))
            logger.warning("the server refused %d update(s) of %d bytes: %s", len(updates), size, status.name)
        else:
            self._on_refused(updates, status)


class LoroAdaptor(_Adaptor):
    """Binds a `loro.LoroDoc` to a room.

    Edit the document in the thread of the event loop. loro takes updates from other threads too, but two threads that
    commit at the same moment can wait for each other for ever (loro 1.17), for it holds its lock while it calls Python.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``doc`` is not a LoroDoc.
    """

    crdt_type = CrdtType.LORO

    def __init__(self, doc: LoroDoc, *, on_refused: Refused | None = None) -> None:
        if not isinstance(doc, LoroDoc):
            raise TypeError(f"LoroAdaptor takes a loro.LoroDoc, not {type(doc).__name__}")
        super().__init__(on_refused)
        self.doc = doc

    def version(self) -> bytes:
        """The version vector of everything the document holds, edits not yet committed included."""
        self.doc.commit()
        return self.doc.oplog_vv.encode()

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        """What a server at this version vector lacks; all there is if it does not tell one that can be read."""
        self.doc.commit()
        theirs, ours = _version_vector(server_version), self.doc.oplog_vv
        if theirs.includes_vv(ours):  # not <=: that is a partial order
            return ()
        return (self.doc.export(ExportMode.Updates(theirs)),)

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version vector."""
        return self.doc.oplog_vv.includes_vv(_version_vector(server_version))

    def apply(self, updates: Sequence[bytes]) -> None:
        """Import the updates, one by one: a batch is slower, and is lost whole if one of them is bad."""
        _each(self.doc.import_, updates)

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Pass every local commit to ``send``."""
        return self.doc.subscribe_local_update(_returning_true(send)).unsubscribe


class EphemeralAdaptor(_Adaptor):
    """Binds a `loro.EphemeralStore` to a room: presence, cursors, what need not outlive the moment.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``store`` is not an EphemeralStore.
    """

    crdt_type = CrdtType.EPHEMERAL

    def __init__(self, store: EphemeralStore, *, on_refused: Refused | None = None) -> None:
        if not isinstance(store, EphemeralStore):
            raise TypeError(f"EphemeralAdaptor takes a loro.EphemeralStore, not {type(store).__name__}")
        super().__init__(on_refused)
        self.store = store

    def version(self) -> bytes:
        """Ephemeral stores have no versions."""
        return b""

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        """Everything that has not expired."""
        self.store.remove_outdated()
        return (self.store.encode_all(),) if self.store.keys() else ()

    def covers(self, server_version: bytes) -> bool:
        """Nothing to wait for."""
        return True

    def apply(self, updates: Sequence[bytes]) -> None:
        """Apply the updates."""
        _each(self.store.apply, updates)

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Pass every local change to ``send``."""
        return self.store.subscribe_local_updates(_returning_true(send)).unsubscribe


def _version_vector(encoded: bytes) -> VersionVector:
    """The version vector, or an empty one if it cannot be read."""
    if not encoded:
        return VersionVector()  # type: ignore[no-untyped-call]  # loro's stub
    try:
        return VersionVector.decode(encoded)
    except BaseException as error:
        if not is_fault(error):
            raise
        return VersionVector()  # type: ignore[no-untyped-call]  # loro's stub


def _each(apply: Callable[[bytes], object], updates: Sequence[bytes]) -> None:
    """Apply every update, bad ones among them or not; then raise ValueError if there was a bad one."""
    bad = 0
    for update in updates:
        try:
            apply(update)
        except BaseException as error:
            if not is_fault(error):
                raise
            bad += 1
    if bad:
        raise ValueError(f"{bad} of {len(updates)} updates cannot be applied")


def _returning_true(send: Callable[[bytes], None]) -> Callable[[bytes], bool]:
    """loro ends the subscription, or panics in commit(), unless the callback returns True, whatever happens in it."""

    def callback(update: bytes) -> bool:
        try:
            send(update)
        except Exception:
            logger.exception("a local update could not be sent; it stays in the document and goes out at the next join")
        return True

    return callback
