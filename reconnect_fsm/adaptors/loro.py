"""Adaptors for the documents and ephemeral stores of the ``loro`` package: ``pip install 'reconnect-fsm[loro]'``."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from loro import ID, CounterSpan, EphemeralStore, ExportMode, IdSpan, LoroDoc, VersionVector

from reconnect_fsm.loro_protocol.messages import FRAGMENT_SIZE, CrdtType, UpdateStatusCode
from reconnect_fsm.user_code import is_fault

__all__ = ["EphemeralAdaptor", "LoroAdaptor", "updates_lacking"]

logger = logging.getLogger("reconnect_fsm")

Refused = Callable[[Sequence[bytes], UpdateStatusCode], object]

# A piece that goes in one frame has no deadline to meet, as fragments have, and takes loro well under 10 ms.
PIECE_LIMIT: Final = FRAGMENT_SIZE
PIECE_TARGET: Final = PIECE_LIMIT * 3 // 4
FIRST_PIECE: Final = 64  # operations; nobody knows how many bytes they make until they are exported
MAX_RUNS: Final = 4096  # to a piece: putting them in order takes us 2 µs each


class _Adaptor:
    """What both have in common."""

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

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        """What a server at this version vector lacks; all there is if it does not tell one that can be read.

        In pieces that are exported one by one, as `updates_lacking` makes them.
        """
        self.doc.commit()
        theirs = _version_vector(server_version)
        return () if theirs.includes_vv(self.doc.oplog_vv) else updates_lacking(self.doc, theirs)

    def covers(self, server_version: bytes) -> bool:
        """Whether the document holds everything up to this version vector."""
        return self.doc.oplog_vv.includes_vv(_version_vector(server_version))

    def apply(self, updates: Sequence[bytes]) -> None:
        """Import the updates, one by one: a batch is slower, and is lost whole if one of them is bad."""
        _each(self.doc.import_, updates)

    def attach(self, send: Callable[[bytes | None], None]) -> Callable[[], None]:
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

    def attach(self, send: Callable[[bytes | None], None]) -> Callable[[], None]:
        """Pass every local change to ``send``."""
        return self.store.subscribe_local_updates(_returning_true(send)).unsubscribe


def updates_lacking(doc: LoroDoc, theirs: VersionVector) -> Iterator[bytes]:
    """What one at the version ``theirs`` lacks of the document as it is when the first update is asked for.

    In pieces of at most `PIECE_LIMIT` bytes, as far as single operations are not larger, and in causal order: what has
    come is never in want of what has not. Each is exported when it is asked for, which commits what is pending.

    History that was trimmed away cannot be sent. One that has nothing gets the state at which the history begins
    instead, in one piece of whatever size; one that has something, but not that, gets what there is, with a warning.
    """
    ours, known = doc.oplog_vv, doc.shallow_since_vv
    if theirs.includes_vv(ours):  # not <=: that is a partial order
        return
    if not theirs.includes_vv(known):
        if VersionVector().includes_vv(theirs):  # type: ignore[no-untyped-call]  # loro's stub
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
        if len(whole) <= PIECE_LIMIT:
            yield whole
            return
    yield from _pieces(doc, _in_causal_order(doc, spans))


Run: TypeAlias = tuple[int, int, int]
"""Operations of one peer: its id, the first counter, and the one after the last."""


def _pieces(doc: LoroDoc, runs: Iterator[Run]) -> Iterator[bytes]:
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
        fitting = taken * PIECE_TARGET // len(update)
        if len(update) > PIECE_LIMIT and taken > 1:
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
