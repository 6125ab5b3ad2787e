"""Adaptors for the documents and ephemeral stores of the ``loro`` package: ``pip install 'reconnect-fsm[loro]'``."""

from __future__ import annotations

import heapq
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from loro import (
    ID,
    CounterSpan,
    DiffEvent,
    EncodedBlobMode,
    EphemeralStore,
    EphemeralStoreEvent,
    EventTriggerKind,
    ExportMode,
    IdSpan,
    LoroDoc,
    Subscription,
    VersionVector,
)

from reconnect_fsm.errors import is_fault
from reconnect_fsm.loro_protocol.messages import FRAGMENT_SIZE, CrdtType, UpdateStatusCode

if TYPE_CHECKING:  # only loro's stub has it
    from loro import LoroValue

__all__ = ["EphemeralAdaptor", "LoroAdaptor", "updates_lacking"]

logger = logging.getLogger("reconnect_fsm")

A = TypeVar("A")
T = TypeVar("T")

Refused = Callable[[Sequence[bytes], UpdateStatusCode], object]
Send = Callable[[bytes | None], None]

# A piece that goes in one frame has no deadline to meet, as fragments have, and takes loro well under 10 ms.
PIECE_LIMIT: Final = FRAGMENT_SIZE
FIRST_PIECE: Final = 64  # operations; nobody knows how many bytes they make until they are exported
TEN_YEARS: Final = 10 * 365 * 86_400_000  # milliseconds
LOCAL: Final = EventTriggerKind.Local
DELETED: Final = object()
NO_ENTRIES: Final = b"\0"  # as a store encodes them
MAX_TRIES: Final = 10_000  # to get the next millisecond; a clock that was set back is not waited for
MAX_RUNS: Final = 4096  # to a piece: putting them in order takes us 2 µs each


class _Adaptor:
    """What both have in common."""

    _sends: tuple[Send, ...] = ()  # one, unless the same adaptor is in several rooms

    def __init__(self, on_refused: Refused | None) -> None:
        self._on_refused = on_refused
        self._refusals = 0

    def alternative_version(self, server_version: bytes) -> bytes | None:
        """There is one format of version only."""
        return None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """Pass it on to ``on_refused``; without one, log it, but not each edit in a room that may only be read."""
        if self._on_refused is not None:
            self._on_refused(updates, status)
            return
        self._refusals += 1
        if self._refusals <= 10 or self._refusals.bit_count() == 1:
            logger.warning(
                "the server refused %d update(s) of %d bytes: %s; pass on_refused= to the adaptor to decide what "
                "becomes of them%s",
                len(updates),
                sum(map(len, updates)),
                status.name,
                "" if self._refusals == 1 else f" ({self._refusals} times so far)",
            )

    def _add(self, send: Send) -> Callable[[], None]:
        self._sends = (*self._sends, send)

        def detach() -> None:
            if any(other is send for other in self._sends):
                self._sends = tuple(other for other in self._sends if other is not send)
                if not self._sends:
                    self._last_detached()

        return detach

    def _last_detached(self) -> None:
        """Nothing is passed on any more."""

    def _send_to_all(self, update: bytes | None) -> None:
        for send in self._sends:
            try:
                send(update)
            except BaseException as error:
                if not is_fault(error):
                    raise
                logger.exception("a local update could not be sent; it stays here and goes out at the next join")


def _call(us: weakref.ref[A], method: Callable[[A, T], None], argument: T) -> bool:
    """What loro calls back.

    It holds what it calls, and its objects are unknown to the garbage collector: a callback that held the adaptor,
    which holds the document, would keep both for ever. loro ends a subscription that does not return True, and panics
    if one raises, amid what it does.
    """
    adaptor = us()
    if adaptor is not None:
        try:
            method(adaptor, argument)
        except BaseException as error:
            if not is_fault(error):
                raise
            logger.exception("an adaptor failed in a callback of loro")
    return True


# The first adaptor that was attached to a document, by the document's id(). It holds it, so no id is used twice.
_FIRST: weakref.WeakValueDictionary[int, LoroAdaptor] = weakref.WeakValueDictionary()


class LoroAdaptor(_Adaptor):
    """Binds a `loro.LoroDoc` to a room.

    Edit the document in the thread of the event loop. loro takes updates from other threads too, but two threads that
    commit at the same moment can wait for each other for ever (loro 1.17), for it holds its lock while it calls Python.

    Whatever enters the document is sent, but for what came from this room (D-ANYWAY): edits, imports, what the room of
    another adaptor of the same document brings. loro does not tell of an import that changes no value (it lost against
    a later one), or that is made while the document is checked out: that is sent with the next edit, update or
    checkout, or when `Room.synced` is called.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``doc`` is not a LoroDoc.
    """

    crdt_type = CrdtType.LORO
    max_piece: int = FRAGMENT_SIZE
    """No update that is sent is larger, in bytes, unless it is a single operation."""

    # One comparison decides: the document's version against `_passed`, the version that the server has or was given.
    # loro's events only say when to compare, for in its callbacks one can neither export nor edit (it hangs).

    def __init__(self, doc: LoroDoc, *, on_refused: Refused | None = None) -> None:
        if not isinstance(doc, LoroDoc):
            raise TypeError(f"LoroAdaptor takes a loro.LoroDoc, not {type(doc).__name__}")
        super().__init__(on_refused)
        self.doc = doc
        self._subscriptions: list[Subscription] = []
        # All adaptors that are attached to the document, if there are several. They tell each other of what they apply:
        # loro has no event for changes of no value, nor while a document is checked out.
        self._siblings: list[LoroAdaptor] = []
        self._on_root_event: Callable[[DiffEvent], Any] = bool
        self._passed = _nothing()
        self._announced = self._passed  # what `_passed` was at the last send(None)
        self._has_unsent = False
        self._is_applying = False
        self._pending: dict[int, tuple[int, int]] = {}  # what the server sent too early: from, to, by peer
        self._distrust = 0  # calls of `apply` until it is asked again whether the program imported something too early

    def version(self) -> bytes:
        """The version vector of everything the document holds, edits not yet committed included."""
        self.doc.commit()
        return self.doc.oplog_vv.encode()

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        """What a server at this version vector lacks; all there is if it does not tell one that can be read.

        In pieces that are exported one by one, as `updates_lacking` makes them. What is committed while they are taken
        is in the later ones.
        """
        self.doc.commit()
        theirs = _version_vector(server_version)
        is_up_to_date = theirs.includes_vv(self.doc.oplog_vv)
        if len(self._sends) == 1:  # from now on its server is where all goes to
            self._passed, self._has_unsent = theirs, not is_up_to_date
            self._pending.clear()
            return () if is_up_to_date else self._upload()
        return () if is_up_to_date else self._upload(theirs)

    def unsent(self) -> Iterable[bytes]:
        """What entered the document and was not passed to ``send`` (D-ANYWAY), in pieces, in causal order."""
        if len(self._sends) == 1:
            return self._upload()
        # Several rooms have this adaptor, and each asks: one that asks later gets the same again.
        return self._upload(self._passed if self._has_unsent else self._announced)

    def _upload(self, start: VersionVector | None = None) -> Iterator[bytes]:
        """What is not in ``start``, or was not passed on; what enters the document meanwhile included."""
        sent = _nothing() if start is None else start
        while not (known := _union(sent, self._passed) if start is None else sent).includes_vv(
            end := self.doc.oplog_vv
        ):
            yield from updates_lacking(self.doc, known, self.max_piece)
            sent = _union(sent, end)
        self._passed = _union(self._passed, sent)
        self._has_unsent = False

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version vector."""
        self._look()
        return self.doc.oplog_vv.includes_vv(_version_vector(server_version))

    def has_uncommitted(self) -> bool:
        """Whether there are edits that were not committed, or anything else that was not passed on."""
        self._look()
        return self._has_unsent or self.doc.get_pending_txn_len() > 0

    def commit(self) -> None:
        """Commit the edits made, which passes them on."""
        self.doc.commit()

    def apply(self, updates: Sequence[bytes]) -> bool:
        """Import the updates, one by one: a batch is slower, and is lost whole if one of them is bad.

        False if some of them wait for others that have not come. Raises ValueError if there were bad ones.
        """
        doc = self.doc
        if not self._sends:
            return _imported(doc, updates, *_import(doc, updates, None))
        if doc.get_pending_txn_len():
            doc.commit()
        self._compare()
        is_plain = self._is_plain()
        new: list[bytes] | None = [] if len(self._sends) > 1 else None
        # We need no event of our own imports. A small one takes as long with an event (1 µs) as the subscribing anew
        # does, but what brings much has large events: they hold all that it brings.
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
        for update in new or ():  # whose it was is not known; its sender gets it once more
            self._send_to_all(update)
        for other in self._siblings:
            if other is not self:
                other._look()
        return _imported(doc, updates, waiting, bad)

    def _is_plain(self) -> bool:
        """Whether all that an import will add to the document is what it brings itself."""
        if self._distrust:
            self._distrust -= 1
        elif self.doc.export_pending_updates() is not None:  # which exports them all, so it is not asked at each update
            self._distrust = 64
        return not (self._distrust or self._has_unsent or self._pending)

    def _account(self, updates: Sequence[bytes], *, is_plain: bool) -> None:
        """Remember that the server has these."""
        if is_plain:
            self._passed = self.doc.oplog_vv
        else:
            for update in updates:
                self._passed = _and_update(self._passed, update)
        for peer, (start, end) in tuple(self._pending.items()):
            if start == 0 or self._passed.includes_id(ID(peer, start - 1)):
                until = _nothing()
                until.set_end(ID(peer, end))
                self._passed = _union(self._passed, until)
                del self._pending[peer]

    def attach(self, send: Send) -> Callable[[], None]:
        """Pass every local commit to ``send``, and None when something else entered the document."""
        if not self._sends:
            self._passed, self._has_unsent = self.doc.oplog_vv, False
            us = weakref.ref(self)

            def on_event(event: DiffEvent) -> Any:
                if event.triggered_by != LOCAL:  # that comes before its update does
                    _call(us, LoroAdaptor._compare, None)

            self._on_root_event = on_event
            self._subscriptions = [
                self.doc.subscribe_local_update(lambda update: _call(us, LoroAdaptor._on_local_update, update)),
                self.doc.subscribe_root(on_event),
            ]
            first = _FIRST.setdefault(id(self.doc), self)
            if first is not self:
                first._siblings = self._siblings = first._siblings or [first]
                self._siblings.append(self)
        return self._add(send)

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
        # More than this one update, if loro did not tell of something; sub_iter has one span for each peer.
        if len(update) > self.max_piece or len(version.sub_iter(self._passed)) != 1:
            self._announce()
        else:
            self._passed = version
            self._send_to_all(update)

    def _look(self) -> None:
        """Compare, unless there are edits to be committed: the version counts them. In a callback this would hang."""
        if self._sends and not self.doc.get_pending_txn_len():
            self._compare()

    def _compare(self, _: None = None) -> None:
        """Has something entered the document that was not passed on?"""
        if not self._has_unsent and not self._is_applying and not self._passed.includes_vv(self.doc.oplog_vv):
            self._announce()

    def _announce(self) -> None:
        self._has_unsent, self._announced = True, self._passed
        self._send_to_all(None)


class EphemeralAdaptor(_Adaptor):
    """Binds a `loro.EphemeralStore` to a room: presence, cursors, what need not outlive the moment.

    The entries that the program itself set are its own: until it deletes them, or another client sets the same key.
    They are renewed before they time out, for as long as the room is joined; a rejoin sends them again, also those that
    timed out here while there was no connection; what the program deleted meanwhile is deleted at the others. When the
    room is left or the client is closed, the others are told to remove them; the store stays as it is (D-PRESENCE).
    Entries of others are never sent: that would bring back who has gone. So give each client keys of its own.

    ``timeout`` is that of the store, in seconds, which loro does not tell. With None nothing is renewed, and what has
    timed out is not sent again. With ``take_back=False`` the others keep the entries until they time out.
    What the store holds when the adaptor is made counts as the program's own; so keep the adaptor as long as the store.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``store`` is not an EphemeralStore, and ValueError for a timeout that is not above 0.
    """

    crdt_type = CrdtType.EPHEMERAL

    renew_interval: float | None
    """The seconds after which a joined room renews our entries."""

    # loro orders entries by the millisecond of the wall clock, and of two with the same one keeps the first: the second
    # would be lost at the others. So we look whether they will take an update, and date it anew if not.

    def __init__(
        self,
        store: EphemeralStore,
        *,
        timeout: float | None = 30.0,
        take_back: bool = True,
        on_refused: Refused | None = None,
    ) -> None:
        if not isinstance(store, EphemeralStore):
            raise TypeError(f"EphemeralAdaptor takes a loro.EphemeralStore, not {type(store).__name__}")
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and 0 < timeout < float("inf")):
            raise ValueError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}")
        super().__init__(on_refused)
        self.store = store
        self.renew_interval = None if timeout is None else timeout / 3
        self._timeout = timeout
        self._takes_back = take_back
        store.remove_outdated()
        self._own: dict[str, LoroValue] = store.get_all_states()
        self._told: dict[str, bytes] = {key: store.encode(key) for key in self._own}
        """What the others were told last of a key: that it is set, or deleted."""
        self._deletion = b""  # the update of the deletion under way
        self._imported: set[str] = set()  # keys that others have written, and that were not looked at yet
        self._is_quiet = False
        self._has_taken_back = False
        # From now on, whether there is a room or not: what is set and deleted offline is ours, too.
        us = weakref.ref(self)
        self._subscriptions = (
            store.subscribe_local_updates(lambda update: _call(us, EphemeralAdaptor._on_local_update, update)),
            store.subscribe(lambda event: _call(us, EphemeralAdaptor._on_event, event)),
        )

    def version(self) -> bytes:
        """Ephemeral stores have no versions."""
        return b""

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        """Our own entries, renewed, and that keys are deleted which the program has deleted."""
        self._settle()
        if self.renew_interval is not None or self._has_taken_back:
            self._is_quiet = True
            try:
                self.renew()
            finally:
                self._is_quiet = False
        else:
            self._remove_outdated()
            self._forget(self._own.keys() - set(self.store.keys()))
        everything = _store_of(self._told.values()).encode_all()
        return (everything,) if self._told else ()

    def covers(self, server_version: bytes) -> bool:
        """Nothing to wait for."""
        return True

    def apply(self, updates: Sequence[bytes]) -> None:
        """Apply the updates."""
        try:
            _each(self.store.apply, updates)
        finally:
            self._settle()

    def attach(self, send: Send) -> Callable[[], None]:
        """Pass every local change to ``send``."""
        return self._add(send)

    def renew(self) -> None:
        """Set our own entries anew, so that they time out nowhere."""
        self._settle()
        self._has_taken_back = False
        for key, value in tuple(self._own.items()):
            self.store.set(key, value)
        self._remove_outdated()

    def take_back(self) -> Sequence[bytes]:
        """Updates that remove our own entries at the others; they stay in the store."""
        self._settle()
        if not self._takes_back:
            return ()
        self._has_taken_back = True
        return [self._tell(key, _entry(key, DELETED), DELETED) for key in self._own]

    def _settle(self) -> None:
        """A key that another client has written is no longer ours. loro's callback could not read the store."""
        imported, self._imported = self._imported & self._own.keys(), set()
        for key in imported:
            here, told = self.store.encode(key) or NO_ENTRIES, self._told[key]
            if _store_of((told, here)).encode(key) != told:
                self._forget((key,))
            elif self._has_taken_back:
                if key not in set(self.store.keys()):  # our own removal came back to us
                    self.store.set(key, self._own[key])
            elif here != told:  # older than what we said last
                self.store.apply(told)

    def _forget(self, keys: Iterable[str]) -> None:
        for key in tuple(keys):
            del self._own[key], self._told[key]

    def _remove_outdated(self) -> None:
        """Also what we know of deleted keys: at the others they have timed out, too."""
        self.store.remove_outdated()
        deleted = self._told.keys() - self._own.keys()
        kept = _store_of((self._told[key] for key in deleted), self._timeout)
        kept.remove_outdated()
        for key in deleted:
            if kept.encode(key) in (b"", NO_ENTRIES):
                del self._told[key]

    def _on_local_update(self, update: bytes) -> None:
        alone = _store_of((update,))
        states = alone.get_all_states()
        if not states:  # a deletion; `_on_event` hears of what, if there was something to delete
            self._deletion = update
            for key in [key for key in self._own if alone.encode(key) != NO_ENTRIES]:
                del self._own[key]
                update = self._tell(key, update, DELETED)
        for key, value in states.items():
            self._own[key] = value
            self._imported.discard(key)
            update = self._tell(key, update, value)
        if not self._is_quiet:
            self._send_to_all(update)

    def _on_event(self, event: EphemeralStoreEvent) -> None:
        if event.by == "Import":
            self._imported.update(event.added, event.updated, event.removed)
        elif event.by == "Local":
            for key in event.removed:
                self._told.setdefault(key, self._deletion)

    def _tell(self, key: str, update: bytes, value: LoroValue | object) -> bytes:
        """Remember that the others are told this of the key; return it, dated anew if they would not take it."""
        told = self._told.get(key, NO_ENTRIES)
        others = _store_of((told,))
        others.apply(update)
        if others.encode(key) != update:
            update = _dated_after(update, told)
            for _ in range(MAX_TRIES):
                others.apply(update)
                if others.encode(key) == update:
                    break
                update = _entry(key, value)  # loro writes dates otherwise now: wait for the next millisecond
        self._told[key] = update
        return update


def _dated_after(entry: bytes, earlier: bytes) -> bytes:
    """The same entry, one millisecond later than the earlier one.

    loro writes the date last, in milliseconds since 1970, as a zigzag varint: 6 bytes until 2039, then 7.
    """

    def start_of_date(entry: bytes) -> int:
        return len(entry) - next(length for length in (6, 7) if entry[-length] & 0x80 and length < len(entry))

    zigzag = 0
    for byte in reversed(earlier[start_of_date(earlier) :]):
        zigzag = zigzag << 7 | byte & 0x7F
    zigzag += 2
    date = bytearray()
    while zigzag > 0x7F:
        date.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return entry[: start_of_date(entry)] + bytes((*date, zigzag))


def _entry(key: str, value: LoroValue | object) -> bytes:
    store = _store_of(())
    if value is DELETED:
        store.delete(key)
    else:
        store.set(key, cast("LoroValue", value))
    return store.encode(key)


def _store_of(updates: Iterable[bytes], timeout: float | None = None) -> EphemeralStore:
    store = EphemeralStore(TEN_YEARS if timeout is None else max(1, int(timeout * 1000)))
    for update in updates:
        store.apply(update)
    return store


def updates_lacking(doc: LoroDoc, theirs: VersionVector, limit: int = PIECE_LIMIT) -> Iterator[bytes]:
    """What one at the version ``theirs`` lacks of the document as it is when the first update is asked for.

    In pieces of at most ``limit`` bytes, as far as single operations are not larger, and in causal order: what has
    come is never in want of what has not. Each is exported when it is asked for, which commits what is pending.

    History that was trimmed away cannot be sent. One that has nothing gets the state at which the history begins
    instead, in one piece of whatever size; one that has something, but not that, gets what there is, with a warning.
    """
    ours, known = doc.oplog_vv, doc.shallow_since_vv
    if theirs.includes_vv(ours):  # not <=: that is a partial order
        return
    if not theirs.includes_vv(known):
        if _nothing().includes_vv(theirs):
            yield doc.export(ExportMode.StateOnly(doc.shallow_since_frontiers))
        else:
            logger.warning(
                "a peer lacks history that was trimmed from this document; what is sent to it stays pending there "
                "until one who still has that history syncs with it too"
            )
    known.merge(theirs)
    spans = ours.sub_iter(known)
    if sum(span.counter.end - span.counter.start for span in spans) <= FIRST_PIECE:  # mostly; then no order is needed
        whole = doc.export(ExportMode.UpdatesInRange(spans))
        if len(whole) <= limit:
            yield whole
            return
    yield from _pieces(doc, _in_causal_order(doc, spans), limit)


Run: TypeAlias = tuple[int, int, int]
"""Operations of one peer: its id, the first counter, and the one after the last."""


def _pieces(doc: LoroDoc, runs: Iterator[Run], limit: int) -> Iterator[bytes]:
    """Export the runs in order; what the bytes of one piece were tells how many operations to try for the next."""
    ahead: deque[Run] = deque()  # taken from the runs, but not sent
    length = FIRST_PIECE
    while True:
        piece: list[Run] = []
        left = length
        while left and len(piece) < MAX_RUNS and (run := ahead.popleft() if ahead else next(runs, None)):
            peer, start, end = run
            cut = min(end, start + left)
            piece.append((peer, start, cut))
            left -= cut - start
            if cut < end:
                ahead.appendleft((peer, cut, end))
        if not piece:
            return
        update, taken = doc.export(ExportMode.UpdatesInRange(_spans(piece))), length - left
        fitting = taken * limit * 3 // (4 * len(update))
        if len(update) > limit and taken > 1:
            ahead.extendleft(reversed(piece))
            length = max(1, min(fitting, taken // 2))
        else:
            yield update
            length = max(1, min(fitting, taken * 4))


def _in_causal_order(doc: LoroDoc, spans: Sequence[IdSpan]) -> Iterator[Run]:
    """Change by change, by Lamport time, which is later than that of all that a change depends on."""
    if len(spans) == 1:
        yield spans[0].peer, spans[0].counter.start, spans[0].counter.end
        return

    def change_at(peer: int, start: int, end: int) -> tuple[int, int, int, int, int]:
        change = doc.get_change(ID(peer, start))
        if change is None:
            return 0, peer, start, end, end
        first = change.id.counter
        return change.lamport + start - first, peer, start, min(first + change.len, end), end

    heap = [change_at(span.peer, span.counter.start, span.counter.end) for span in spans]
    heapq.heapify(heap)
    while heap:
        _, peer, start, stop, end = heap[0]
        yield peer, start, stop
        if stop < end:
            heapq.heapreplace(heap, change_at(peer, stop, end))
        else:
            heapq.heappop(heap)


def _spans(runs: Iterable[Run]) -> list[IdSpan]:
    """One span a peer: those of a peer follow each other without a gap."""
    bounds: dict[int, tuple[int, int]] = {}
    for peer, start, end in runs:
        bounds[peer] = bounds.get(peer, (start, start))[0], end
    return [IdSpan(peer, CounterSpan(start, end)) for peer, (start, end) in bounds.items()]


def _nothing() -> VersionVector:
    return VersionVector()  # type: ignore[no-untyped-call]  # loro's stub


def _union(one: VersionVector, other: VersionVector) -> VersionVector:
    both = _nothing()
    both.merge(one)
    both.merge(other)
    return both


def _and_update(version: VersionVector, update: bytes) -> VersionVector:
    """The version of one who holds this version, and gets this update: the same if it has to wait for others."""
    try:
        meta = LoroDoc.decode_import_blob_meta(update, False)
    except BaseException as error:
        if not is_fault(error):
            raise
        return version  # it cannot be read
    if meta.mode == EncodedBlobMode.Updates and not version.includes_vv(meta.partial_start_vv):
        return version
    return _union(version, meta.partial_end_vv)


def _version_vector(encoded: bytes) -> VersionVector:
    """The version vector, or an empty one if it cannot be read."""
    if not encoded:
        return _nothing()
    try:
        return VersionVector.decode(encoded)
    except BaseException as error:
        if not is_fault(error):
            raise
        return _nothing()


def _import(doc: LoroDoc, updates: Sequence[bytes], new: list[bytes] | None) -> tuple[dict[int, tuple[int, int]], int]:
    """Import every one; return what waits for others (from, to, by peer), and how many were bad.

    What brought something new is added to ``new``.
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
    """Whether none of them waits for others any more. Raises ValueError if there were bad ones."""
    if bad:
        raise ValueError(f"{bad} of {len(updates)} updates cannot be applied")
    if not waiting:
        return True
    ours = doc.oplog_vv
    return all(ours.includes_id(ID(peer, end - 1)) for peer, (_, end) in waiting.items())


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
