"""The adaptor of a `loro.LoroDoc`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from loro import ID, DiffEvent, EventTriggerKind, LoroDoc, Subscription, VersionVector

from reconnect_fsm.adaptors._sending import OnRefused, Send, SendingAdaptor, call_back
from reconnect_fsm.adaptors.history import empty_version, read_version, union, updates_lacking, version_after
from reconnect_fsm.errors import is_fault
from reconnect_fsm.loro_protocol.messages import FRAGMENT_SIZE, CrdtType

__all__ = ["LoroAdaptor"]

LOCAL: Final = EventTriggerKind.Local


# The first adaptor that was attached to a document, by the document's id(). It holds the document, so ids are unique.
_FIRST: weakref.WeakValueDictionary[int, LoroAdaptor] = weakref.WeakValueDictionary()


class LoroAdaptor(SendingAdaptor):
    """Binds a `loro.LoroDoc` to a room.

    Edit the document in the thread of the event loop. loro takes updates from other threads, too, but two threads that
    commit at the same moment can wait for each other for ever (loro 1.17): it holds its lock while it calls Python.

    Everything that enters the document is sent, except what came from this room (D-ANYWAY): edits, imports, and what
    another adaptor of the same document brings. loro has no event for an import that changes no value, as a later value
    won, nor for one while the document is checked out. Such an import is sent with the next edit, update or checkout,
    or when `Room.synced` is called.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``doc`` is not a LoroDoc.
    """

    crdt_type = CrdtType.LORO
    max_piece: int = FRAGMENT_SIZE
    """No update that is sent is larger, in bytes, unless it is a single operation."""

    # One comparison decides: the document's version against `_passed`, the version that the server has or was sent.
    # loro's events only say when to compare: in its callbacks, exporting or editing hangs.

    def __init__(self, doc: LoroDoc, *, on_refused: OnRefused | None = None) -> None:
        if not isinstance(doc, LoroDoc):
            raise TypeError(f"LoroAdaptor takes a loro.LoroDoc, not {type(doc).__name__}")
        super().__init__(on_refused)
        self.doc = doc
        self._subscriptions: list[Subscription] = []
        # All adaptors that are attached to the document, if there are several. Each has the others compare after it
        # has applied something: loro's events may be missing, see above.
        self._siblings: list[LoroAdaptor] = []
        self._on_root_event: Callable[[DiffEvent], Any] = bool
        self._passed = empty_version()
        self._announced = self._passed  # what `_passed` was at the last send(None)
        self._has_unsent = False
        self._is_applying = False
        self._pending: dict[int, tuple[int, int]] = {}  # what the server sent too early: from, to, by peer
        self._distrust = 0  # calls of `apply` before it looks again whether the program imported something too early

    def version(self) -> bytes:
        """The version vector of everything that the document holds, uncommitted edits included."""
        self.doc.commit()
        return self.doc.oplog_vv.encode()

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        """What a server at this version vector lacks; everything if the vector cannot be read.

        The pieces are exported one by one, as `updates_lacking` makes them. What is committed while they are taken is
        in the later ones.
        """
        self.doc.commit()
        theirs = read_version(server_version)
        is_up_to_date = theirs.includes_vv(self.doc.oplog_vv)
        if len(self._sends) == 1:  # from now on everything is sent to its server
            self._passed, self._has_unsent = theirs, not is_up_to_date
            self._pending.clear()
            return () if is_up_to_date else self._upload()
        return () if is_up_to_date else self._upload(theirs)

    def unsent(self) -> Iterable[bytes]:
        """What entered the document and was not passed to ``send`` (D-ANYWAY): pieces in causal order."""
        if len(self._sends) == 1:
            return self._upload()
        # Several rooms have this adaptor, and each of them asks: the later ones get the same again.
        return self._upload(self._passed if self._has_unsent else self._announced)

    def _upload(self, start: VersionVector | None = None) -> Iterator[bytes]:
        """What is not in ``start``, or was not passed on, and what enters the document meanwhile."""
        sent = empty_version() if start is None else start
        while not (known := union(sent, self._passed) if start is None else sent).includes_vv(end := self.doc.oplog_vv):
            yield from updates_lacking(self.doc, known, self.max_piece)
            sent = union(sent, end)
        self._passed = union(self._passed, sent)
        self._has_unsent = False

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version vector."""
        self._compare_if_committed()
        return self.doc.oplog_vv.includes_vv(read_version(server_version))

    def has_uncommitted(self) -> bool:
        """Whether there are uncommitted edits, or anything else that was not passed on."""
        self._compare_if_committed()
        return self._has_unsent or self.doc.get_pending_txn_len() > 0

    def commit(self) -> None:
        """Commit the edits, which passes them on."""
        self.doc.commit()

    def apply(self, updates: Sequence[bytes]) -> bool:
        """Import the updates one by one: a batch is slower, and is lost as a whole if one of them is bad.

        False if some of them depend on updates that have not arrived. Raises ValueError if there were bad ones.
        """
        doc = self.doc
        if not self._sends:
            return _imported(doc, updates, *_import(doc, updates, None))
        if doc.get_pending_txn_len():
            doc.commit()
        self._compare()
        is_plain = self._is_plain()
        new: list[bytes] | None = [] if len(self._sends) > 1 else None
        # Our own imports need no event. For a small import an event takes as long (1 µs) as subscribing again does, but
        # a large import has large events: they hold everything that it brings.
        self._subscriptions.pop().unsubscribe()
        self._is_applying = True
        try:
            waiting, bad = _import(doc, updates, new)
        finally:
            self._is_applying = False
            if self._sends:
                self._subscriptions.append(doc.subscribe_root(self._on_root_event))
        if is_plain and not waiting and not self._has_unsent:
            self._passed = doc.oplog_vv
        else:
            self._pending |= waiting
            self._account(updates, is_plain=is_plain and not self._has_unsent)
        for update in new or ():  # which room brought it is not known; its server gets it once more
            self._send_to_all(update)
        for other in self._siblings:
            if other is not self:
                other._compare_if_committed()
        return _imported(doc, updates, waiting, bad)

    def _is_plain(self) -> bool:
        """Whether an import will add nothing to the document but what it brings itself."""
        if self._distrust:
            self._distrust -= 1
        elif self.doc.export_pending_updates() is not None:  # which exports them all, so not at each update
            self._distrust = 64
        return not (self._distrust or self._has_unsent or self._pending)

    def _account(self, updates: Sequence[bytes], *, is_plain: bool) -> None:
        """Remember that the server has these updates."""
        if is_plain:
            self._passed = self.doc.oplog_vv
        else:
            for update in updates:
                self._passed = version_after(self._passed, update)
        for peer, (start, end) in tuple(self._pending.items()):
            if start == 0 or self._passed.includes_id(ID(peer, start - 1)):
                until = empty_version()
                until.set_end(ID(peer, end))
                self._passed = union(self._passed, until)
                del self._pending[peer]

    def attach(self, send: Send) -> Callable[[], None]:
        """Pass every local commit to ``send``; call it with None when something else has entered the document."""
        if not self._sends:
            self._passed, self._has_unsent = self.doc.oplog_vv, False
            us = weakref.ref(self)

            def on_event(event: DiffEvent) -> Any:
                if event.triggered_by != LOCAL:  # such an event comes before its update
                    call_back(us, LoroAdaptor._compare, None)

            self._on_root_event = on_event
            self._subscriptions = [
                self.doc.subscribe_local_update(lambda update: call_back(us, LoroAdaptor._on_local_update, update)),
                self.doc.subscribe_root(on_event),
            ]
            first = _FIRST.setdefault(id(self.doc), self)
            if first is not self:
                first._siblings = self._siblings = first._siblings or [first]
                self._siblings.append(self)
        return self._add_send(send)

    def _last_detached(self) -> None:
        while self._subscriptions:
            self._subscriptions.pop().unsubscribe()
        siblings, self._siblings = self._siblings, []
        if self in siblings:
            siblings.remove(self)
        if _FIRST.get(id(self.doc)) is self:
            del _FIRST[id(self.doc)]
            if siblings:
                _FIRST[id(self.doc)] = siblings[0]

    def _on_local_update(self, update: bytes) -> None:
        if self._has_unsent:
            return
        version = self.doc.oplog_vv
        # There is more than this update if loro had no event for something; sub_iter has one span for each peer.
        if len(update) > self.max_piece or len(version.sub_iter(self._passed)) != 1:
            self._announce()
        else:
            self._passed = version
            self._send_to_all(update)

    def _compare_if_committed(self) -> None:
        """Compare, unless there are uncommitted edits: the version counts them. In a callback this would hang."""
        if self._sends and not self.doc.get_pending_txn_len():
            self._compare()

    def _compare(self, _: None = None) -> None:
        """Announce it if something entered the document that was not passed on."""
        if not self._has_unsent and not self._is_applying and not self._passed.includes_vv(self.doc.oplog_vv):
            self._announce()

    def _announce(self) -> None:
        self._has_unsent, self._announced = True, self._passed
        self._send_to_all(None)


def _import(doc: LoroDoc, updates: Sequence[bytes], new: list[bytes] | None) -> tuple[dict[int, tuple[int, int]], int]:
    """Import every update. Return what waits for others (from, to, by peer), and how many were bad.

    Updates that brought something new are added to ``new``.
    """
    waiting: dict[int, tuple[int, int]] = {}
    bad = 0
    import_ = doc.import_
    for update in updates:
        try:
            status = import_(update)
        except BaseException as error:
            if not is_fault(error):
                raise
            bad += 1
        else:
            if (pending := status.pending) is not None:
                waiting.update(pending.inner())
            elif new is not None and not status.success.is_empty:
                new.append(update)
    return waiting, bad


def _imported(doc: LoroDoc, updates: Sequence[bytes], waiting: dict[int, tuple[int, int]], bad: int) -> bool:
    """Whether no update waits for others any more. Raises ValueError if there were bad ones."""
    if bad:
        raise ValueError(f"{bad} of {len(updates)} updates cannot be applied")
    if not waiting:
        return True
    ours = doc.oplog_vv
    return all(ours.includes_id(ID(peer, end - 1)) for peer, (_, end) in waiting.items())
