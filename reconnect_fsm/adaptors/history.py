"""The history of a `loro.LoroDoc`: what a peer lacks of it, in pieces, and the version vectors that say so."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from loro import ID, CounterSpan, EncodedBlobMode, ExportMode, IdSpan, LoroDoc, VersionVector

from reconnect_fsm.errors import is_fault
from reconnect_fsm.loro_protocol.messages import FRAGMENT_SIZE

__all__ = ["empty_version", "read_version", "union", "updates_lacking", "version_after"]

logger = logging.getLogger("reconnect_fsm")

# A piece that is sent in one frame has no time limit, as fragments have, and loro takes well under 10 ms for it.
MAX_PIECE: Final = FRAGMENT_SIZE
FIRST_PIECE: Final = 64  # operations; their size in bytes is known only after they were exported
MAX_RUNS: Final = 4096  # of a piece: putting them in order takes 2 µs each


def updates_lacking(doc: LoroDoc, theirs: VersionVector, limit: int = MAX_PIECE) -> Iterator[bytes]:
    """What a peer at the version ``theirs`` lacks of the document, as it is when the first update is asked for.

    The pieces have at most ``limit`` bytes, unless a single operation is larger. They are in causal order: no piece
    depends on a later one. Each is exported when it is asked for, which commits pending edits.

    History that was trimmed cannot be sent. A peer that has nothing gets the state at which the history begins instead,
    in one piece of any size. A peer that has some history, but not that state, gets what there is, and a warning is
    logged.
    """
    ours, known = doc.oplog_vv, doc.shallow_since_vv
    if theirs.includes_vv(ours):  # not <=: that is a partial order
        return
    if not theirs.includes_vv(known):
        if empty_version().includes_vv(theirs):
            yield doc.export(ExportMode.StateOnly(doc.shallow_since_frontiers))
        else:
            logger.warning(
                "a peer lacks history that was trimmed from this document; what is sent to it stays pending there "
                "until a peer that still has this history syncs with it too"
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
    """Export the runs in order. The size of a piece tells how many operations to try for the next one."""
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
    """The changes by their Lamport time, which is later than the time of every change that one depends on."""
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
    """One span for each peer: the runs of a peer follow each other without a gap."""
    bounds: dict[int, tuple[int, int]] = {}
    for peer, start, end in runs:
        bounds[peer] = bounds.get(peer, (start, start))[0], end
    return [IdSpan(peer, CounterSpan(start, end)) for peer, (start, end) in bounds.items()]


def empty_version() -> VersionVector:
    return VersionVector()  # type: ignore[no-untyped-call]  # loro's stub


def union(one: VersionVector, other: VersionVector) -> VersionVector:
    both = empty_version()
    both.merge(one)
    both.merge(other)
    return both


def version_after(version: VersionVector, update: bytes) -> VersionVector:
    """The version of a peer at this version that gets this update: the same if it has to wait for others."""
    try:
        meta = LoroDoc.decode_import_blob_meta(update, False)
    except BaseException as error:
        if not is_fault(error):
            raise
        return version  # it cannot be read
    if meta.mode == EncodedBlobMode.Updates and not version.includes_vv(meta.partial_start_vv):
        return version
    return union(version, meta.partial_end_vv)


def read_version(encoded: bytes) -> VersionVector:
    """The version vector, or an empty one if it cannot be read."""
    if not encoded:
        return empty_version()
    try:
        return VersionVector.decode(encoded)
    except BaseException as error:
        if not is_fault(error):
            raise
        return empty_version()
