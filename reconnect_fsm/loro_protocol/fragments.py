"""Splits updates into frames that fit, and makes updates of fragments again.

Pure: no clock and no timers. ``now`` is an argument, in seconds of any steady clock. `Reassembler.next_deadline` tells
the driver when to call `Reassembler.expire`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconnect_fsm.loro_protocol.encoding import room_header, write_doc_update, write_fragment, write_fragment_header
from reconnect_fsm.loro_protocol.messages import (
    FRAGMENT_SIZE,
    CrdtType,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    UpdateStatusCode,
)

__all__ = ["Batch", "Reassembler", "RefusedBatch", "split"]


MIN_FRAGMENT: Final = 8 * 1024
"""Bytes that a fragment usually has at least; the last of a batch may have fewer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one Ack answers (D-ACK): updates, and the frames that carry them, in the order in which to send them."""

    batch_id: int
    updates: tuple[bytes, ...]
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """A batch that is refused: the status for its Ack, and the reason in words."""

    batch_id: int
    status: UpdateStatusCode
    why: str


@dataclass(slots=True)
class _Incoming:
    """A batch whose header was received."""

    header: DocUpdateFragmentHeader
    deadline: float
    fragments: dict[int, bytes] = field(default_factory=dict[int, bytes])
    size: int = 0


class Reassembler:
    """Makes updates of the fragments of one room; the caller passes fragments of that room only.

    A header is not believed: no memory is allocated for what it announces. The memory held is that of the bytes
    received, which are bounded. So is the time of a batch (D-TIMEOUT).

    A refusal is final: the fragments of the batch are dropped. Further fragments of it are ignored, like those that
    come again for a batch that is complete; only a new header begins it again. For this the last `MAX_SETTLED` batch
    ids are remembered. A fragment of an unknown batch, or of one settled so long ago that it is forgotten, is refused
    once, and then remembered. So one frame never costs more than one Ack, and a batch that goes wrong costs one in all.
    """

    __slots__ = ("_idle_timeout", "_live", "_settled", "max_batch_bytes", "max_fragments")

    MAX_FRAGMENTS: Final = 8192
    """Most fragments a batch may have, unless another bound on its bytes is given."""
    MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
    """Most bytes a batch may have, unless another bound is given."""
    MAX_BATCHES: Final = 8
    """Most batches being received at the same time."""
    TIMEOUT: Final = 10.0
    """Seconds from the header to the last fragment. Fragments do not extend it, unless an idle timeout is given."""
    MAX_SETTLED: Final = 64
    """How many batch ids are remembered after their batch is complete or refused."""

    def __init__(self, max_batch_bytes: int | None = None, idle_timeout: float | None = None) -> None:
        """``idle_timeout``: seconds from one fragment to the next, instead of `TIMEOUT` for all of them."""
        self._idle_timeout = idle_timeout
        self.max_batch_bytes = self.MAX_BATCH_BYTES if max_batch_bytes is None else max_batch_bytes
        """Most bytes a batch may have."""
        self.max_fragments = max(self.MAX_FRAGMENTS, self.max_batch_bytes // MIN_FRAGMENT)
        """Most fragments a batch may have."""
        self._live: dict[int, _Incoming] = {}  # in the order of their headers
        self._settled: dict[int, None] = {}  # a set that keeps their order

    def begin(self, header: DocUpdateFragmentHeader, now: float) -> RefusedBatch | None:
        """Take a header, at ``now`` seconds; None if its fragments are awaited from now on.

        Refused: no fragments at all, or a second header of a batch that is being received (``INVALID_UPDATE``); more
        fragments or bytes than the limits (``PAYLOAD_TOO_LARGE``); more batches than `MAX_BATCHES` (``RATE_LIMITED``:
        the same batch may be taken later). A batch past its deadline counts until `expire` is called.
        """
        batch_id, count, total = header.batch_id, header.fragment_count, header.total_size_bytes
        if batch_id in self._live:
            return self.refuse(batch_id, UpdateStatusCode.INVALID_UPDATE, "its header came twice")
        if count == 0:
            return self.refuse(batch_id, UpdateStatusCode.INVALID_UPDATE, "its header announces no fragments")
        if count > self.max_fragments:
            why = f"its header announces {count} fragments, the limit is {self.max_fragments}"
            return self.refuse(batch_id, UpdateStatusCode.PAYLOAD_TOO_LARGE, why)
        if total > self.max_batch_bytes:
            why = f"its header announces {total} bytes, the limit is {self.max_batch_bytes}"
            return self.refuse(batch_id, UpdateStatusCode.PAYLOAD_TOO_LARGE, why)
        if len(self._live) >= self.MAX_BATCHES:
            why = f"{len(self._live)} batches are under way, the limit is {self.MAX_BATCHES}"
            return self.refuse(batch_id, UpdateStatusCode.RATE_LIMITED, why)
        self._live[batch_id] = _Incoming(header, now + (self._idle_timeout or self.TIMEOUT))
        return None

    def awaits(self, fragment: DocUpdateFragment) -> bool:
        """Whether the fragment's batch is being received."""
        return fragment.batch_id in self._live

    def add(self, fragment: DocUpdateFragment, now: float) -> bytes | RefusedBatch | None:
        """Take a fragment, at ``now`` seconds; they may come in any order. Return the update once it is complete.

        The update may be ``b""``. None while fragments are missing, and for a fragment that is ignored: it came before
        with the same bytes, or its batch is settled. Refused: a fragment without a header or after the deadline
        (``FRAGMENT_TIMEOUT``); an index that the header does not allow, other bytes for an index that came before, or
        too few bytes when the last fragment has come (``INVALID_UPDATE``); more bytes than the header announced
        (``PAYLOAD_TOO_LARGE``).
        """
        batch_id, index, data = fragment.batch_id, fragment.index, fragment.fragment
        batch = self._live.get(batch_id)
        if batch is None:
            if batch_id in self._settled:
                return None
            return self.refuse(batch_id, UpdateStatusCode.FRAGMENT_TIMEOUT, f"fragment {index} came without a header")
        if now >= batch.deadline:
            return self._time_out(batch)
        count, total = batch.header.fragment_count, batch.header.total_size_bytes
        if index >= count:
            why = f"fragment {index} came, its header announces {count}, counted from 0"
            return self.refuse(batch_id, UpdateStatusCode.INVALID_UPDATE, why)
        if index in batch.fragments:
            if batch.fragments[index] == data:
                return None
            return self.refuse(batch_id, UpdateStatusCode.INVALID_UPDATE, f"fragment {index} came twice and differs")
        if batch.size + len(data) > total:
            why = f"{batch.size + len(data)} bytes came, its header announces {total}"
            return self.refuse(batch_id, UpdateStatusCode.PAYLOAD_TOO_LARGE, why)
        self._take(batch, index, data, now)
        if len(batch.fragments) < count:
            return None
        if batch.size < total:
            why = f"all {count} fragments came with {batch.size} bytes, its header announces {total}"
            return self.refuse(batch_id, UpdateStatusCode.INVALID_UPDATE, why)
        self._settle(batch_id)
        return b"".join(batch.fragments[i] for i in range(count))

    def expire(self, now: float) -> list[RefusedBatch]:
        """Drop the batches whose deadline is ``now`` or earlier: one ``FRAGMENT_TIMEOUT`` each."""
        return [self._time_out(batch) for batch in list(self._live.values()) if now >= batch.deadline]

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next, on the clock of ``now``; None if no batch is being received."""
        return min((batch.deadline for batch in self._live.values()), default=None)

    @property
    def size(self) -> int:
        """Bytes of fragments kept."""
        return sum(batch.size for batch in self._live.values())

    def clear(self) -> None:
        """Drop everything without a refusal: the connection is lost."""
        self._live.clear()
        self._settled.clear()

    def _take(self, batch: _Incoming, index: int, data: bytes, now: float) -> None:
        batch.fragments[index] = data
        batch.size += len(data)
        if self._idle_timeout is not None:
            batch.deadline = now + self._idle_timeout

    def _time_out(self, batch: _Incoming) -> RefusedBatch:
        header = batch.header
        why = f"{len(batch.fragments)} of {header.fragment_count} fragments came within {self.TIMEOUT:g} s"
        if self._idle_timeout is not None:
            count, idle = len(batch.fragments), self._idle_timeout
            why = f"{count} of {header.fragment_count} fragments came, then none for {idle:g} s"
        return self.refuse(header.batch_id, UpdateStatusCode.FRAGMENT_TIMEOUT, why)

    def refuse(self, batch_id: int, status: UpdateStatusCode, why: str) -> RefusedBatch:
        """Drop the batch; further fragments of it are ignored."""
        self._settle(batch_id)
        return RefusedBatch(batch_id, status, why)

    def _settle(self, batch_id: int) -> None:
        self._live.pop(batch_id, None)
        self._settled.pop(batch_id, None)  # so that it counts as the latest
        self._settled[batch_id] = None
        if len(self._settled) > self.MAX_SETTLED:
            del self._settled[next(iter(self._settled))]


def split(
    crdt: CrdtType,
    room_id: str,
    updates: Sequence[bytes],
    new_batch_id: Callable[[], int],
    size: int = FRAGMENT_SIZE,
    limit: int = Reassembler.MAX_BATCH_BYTES,
) -> list[Batch]:
    """The batches that carry ``updates``, in order, with their frames.

    Small updates share a DocUpdate as long as they fit in about ``size`` bytes. A larger update becomes a batch of its
    own: a header, and fragments of ``size``. ``new_batch_id`` is called once for each batch and returns an unsigned
    64-bit id that no batch without an Ack has.

    Raises ValueError, before any id is taken, for an update of more than ``limit`` bytes. Raises `ProtocolError` as
    `encode` does.
    """
    for update in updates:
        if len(update) > limit:
            raise ValueError(f"an update of {len(update)} bytes cannot be sent, the limit is {limit}")
    header = room_header(crdt, room_id)
    return [_batch(header, group, new_batch_id(), size) for group in _groups(updates, size)]


_LENGTH_BYTES = 3  # of the length of an update of up to FRAGMENT_SIZE, at most


def _groups(updates: Sequence[bytes], limit: int) -> Iterator[tuple[bytes, ...]]:
    """Updates that share a batch. An update that is larger than a batch may be stands alone."""
    group: list[bytes] = []
    size = 0
    for update in updates:
        cost = len(update) + _LENGTH_BYTES
        if group and size + cost > limit:
            yield tuple(group)
            group, size = [], 0
        group.append(update)
        size += cost
    if group:
        yield tuple(group)


def _batch(header: bytes, updates: tuple[bytes, ...], batch_id: int, size: int) -> Batch:
    first = updates[0]
    if len(first) <= size:
        return Batch(batch_id, updates, (write_doc_update(header, updates, batch_id),))
    pieces = [first[start : start + size] for start in range(0, len(first), size)]
    announcement = write_fragment_header(header, batch_id, len(pieces), len(first))
    fragments = (write_fragment(header, batch_id, index, piece) for index, piece in enumerate(pieces))
    return Batch(batch_id, updates, (announcement, *fragments))
