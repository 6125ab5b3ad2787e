"""Frames that nobody ought to send, the check that each of them is put to, and a model of `Reassembler`.

A run is a function of its seed. What was found is shown as a frame, so this replays it::

    decode(bytes.fromhex("..."))

and ``python tests/fuzz.py SEED [INPUTS]`` runs a seed again.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from random import Random
from types import NoneType

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    MAX_MESSAGE_SIZE,
    MAX_ROOM_ID_BYTES,
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    Permission,
    Reassembler,
    RefusedBatch,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
)

__all__ = [
    "Counts",
    "FragmentSteps",
    "Frames",
    "Messages",
    "Model",
    "Violation",
    "bounded_address_space",
    "check",
    "fuzz_decoder",
    "outcome",
    "varuint",
    "vectors",
]

VECTORS = json.loads((Path(__file__).parent / "vectors" / "loro-protocol-v1.json").read_text(encoding="utf-8"))

LARGEST_ALLOCATION = 64 * 1024 * 1024
"""Bytes of address space that the inputs of one run may take in all; a claim of 2**32 - 1 that is believed takes more.
"""
BLOCKS_KEPT = 500
"""Blocks of memory that may be there after a run and were not before: those of the interpreter's own caches."""
BLOCK = 1_000
"""Frames that are made at once."""


class Violation(AssertionError):
    """Something that must not happen happened."""


def vectors() -> list[bytes]:
    """Every frame that the vector file holds in full: valid, malformed and lenient ones."""
    entries = [*VECTORS["vectors"], *VECTORS["malformed"], *VECTORS["lenient"]]
    return [bytes.fromhex(entry["hex"]) for entry in entries if "hex" in entry and not entry["hex"].endswith("...")]


# Messages ---------------------------------------------------------------------------------------------------------

TAGS = [crdt.value.encode() for crdt in CrdtType]
EDGES = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1, 2**31, 2**32 - 1]
EDGES_64 = [*EDGES, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = ["", "r", "room", "a/b c", "Zürich", "部屋", "\N{FAMILY}\u200d", "\0", "\ufffd", "\x7f\n", "𝄞" * 32, "a" * 128]
MARK = "\ufeffr"
"""A byte order mark, which the reference drops when it decodes."""


class Messages:
    """Endless messages that can be encoded: any type, any field, extremes more often than not."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._chance = random.random
        self._kinds: list[Callable[[CrdtType, str], Message]] = [
            lambda *room: JoinRequest(*room, self._blob(), self._blob()),
            lambda *room: JoinResponseOk(*room, random.choice(PERMISSIONS), self._blob(), self._blob()),
            self._join_error,
            lambda *room: DocUpdate(*room, tuple(self._blob() for _ in range(int(self._chance() * 4))), self._u64()),
            lambda *room: DocUpdateFragmentHeader(*room, self._u64(), self._u32(), self._u32()),
            lambda *room: DocUpdateFragment(*room, self._u64(), self._u32(), self._blob()),
            lambda *room: RoomError(*room, random.choice(ROOM_ERRORS), self._text()),
            Leave,
            lambda *room: Ack(*room, self._u64(), random.choice(STATUSES)),
        ]

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        room_id = MARK if self._chance() < 0.05 else self._random.choice(TEXTS)
        return self._random.choice(self._kinds)(self._random.choice(CRDTS), room_id)

    def _join_error(self, crdt: CrdtType, room_id: str) -> JoinError:
        code = self._random.choice(JOIN_ERRORS)
        version = self._blob() if code == JoinErrorCode.VERSION_UNKNOWN and self._chance() < 0.7 else None
        app_code = self._text() or None if code == JoinErrorCode.APP_ERROR and self._chance() < 0.7 else None
        return JoinError(crdt, room_id, code, self._text(), version, app_code)

    def _blob(self) -> bytes:
        return self._random.randbytes(int(self._chance() * (300 if self._chance() < 0.3 else 20)))

    def _text(self) -> str:
        if self._chance() < 0.05:
            return MARK
        return self._random.choice(TEXTS) if self._chance() < 0.7 else self._blob().decode("latin-1")

    def _u32(self) -> int:
        return self._random.choice(EDGES) if self._chance() < 0.7 else self._random.getrandbits(32)

    def _u64(self) -> int:
        return self._random.choice(EDGES_64) if self._chance() < 0.5 else self._random.getrandbits(64)


PERMISSIONS: list[Permission] = ["read", "write"]
CRDTS, JOIN_ERRORS, ROOM_ERRORS = list(CrdtType), list(JoinErrorCode), list(RoomErrorCode)
STATUSES = list(UpdateStatusCode)


# Frames -----------------------------------------------------------------------------------------------------------


def varuint(value: int, padding: int = 0) -> bytes:
    """ULEB128 by the book, with so many bytes more than it needs."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F)
    digits += [0] * padding
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


class Frames:
    """Endless frames of five families, cheap to make: what costs most is made once, and picked from."""

    def __init__(self, seed: int | str) -> None:
        random = self._random = Random(seed)
        self._pool = random.randbytes(1 << 16)
        self._corpus = vectors() + [encode(message) for message in islice(Messages(random), 2_000)]
        self._heads = [self._head() for _ in range(500)]
        self._numbers = [varuint(value, padding) for value in EDGES_64 for padding in (0, 1, 3)]
        self._numbers += [varuint(value) for value in range(40)] * 2 + [b"\x80" * 9, b"\xff" * 4]
        self._blobs = [self._blob() for _ in range(500)]
        self._ids = [random.randbytes(8) for _ in range(50)] + [random.randbytes(n) for n in range(8)]
        self._bytes = [bytes([code]) for code in range(256)] + [b"\1", b"\x7f", b"", b"\0"] * 20
        pieces = (self._numbers, self._blobs, self._blobs, self._ids, self._bytes)
        self._pieces = [piece for kind in pieces for piece in random.choices(kind, k=400)]
        number, blob, ids, code = self._numbers, self._blobs, self._ids, self._bytes
        self._grammar: list[tuple[bytes, tuple[list[bytes], ...]]] = [
            (b"\0", (blob, blob)),
            (b"\1", ([b"\4read", b"\5write", b"\5write", b"\5admin", b"\x84\0read"], blob, blob)),
            (b"\2", (code, blob)),
            (b"\2", ([b"\1", b"\x7f"], blob, blob)),
            (b"\3", ([b"\0"], ids)),
            (b"\3", ([b"\2", b"\3", *number[:20]], blob, blob, ids)),
            (b"\4", (ids, number, number)),
            (b"\5", (ids, number, blob)),
            (b"\6", (code, blob)),
            (b"\7", ()),
            (b"\x08", (ids, code)),
        ]
        self._families: list[tuple[Callable[[], bytes], int]] = [
            (self._noise, BLOCK // 10),
            (self._headed, BLOCK // 10),
            (self._mutated, BLOCK * 35 // 100),
            (self._crossed, BLOCK // 10),
            (self._built, BLOCK * 35 // 100),
        ]

    def block(self) -> list[bytes]:
        """`BLOCK` frames; once in a while a huge one is among them."""
        frames = [make() for make, count in self._families for _ in range(count)]
        if self._random.random() < 0.1:
            frames[0] = self.huge()
        return frames

    def _head(self) -> bytes:
        """CRDT type and room id, mostly right, and sometimes too long, not UTF-8 or lying about its length."""
        random = self._random
        room = random.choice([text.encode() for text in TEXTS] + [random.randbytes(4), random.randbytes(130)])
        tag = random.choice(TAGS) if random.random() < 0.97 else random.choice([b"%lor", b"\xffLOR", b"", b"%"])
        claimed = len(room) if random.random() < 0.95 else random.choice(EDGES)
        return tag + varuint(claimed, random.random() < 0.1) + room

    def _blob(self) -> bytes:
        """A length and bytes; one in six lies, one in six takes more bytes for its length than it needs."""
        random = self._random
        data = random.choice([random.randbytes(int(random.random() * 40)), random.choice(TEXTS).encode(), b"", b"\xff"])
        claimed = len(data) if random.random() < 0.84 else random.choice(EDGES)
        return varuint(claimed, random.choice([0, 0, 0, 0, 0, 1])) + data

    def _noise(self) -> bytes:
        chance = self._random.random
        start = int(chance() * 65_000)
        return self._pool[start : start + int(chance() * 60)]

    def _headed(self) -> bytes:
        chance = self._random.random
        start = int(chance() * 65_000)
        head = self._heads[int(chance() * 500)] + self._bytes[int(chance() * 9)]
        return head + self._pool[start : start + int(chance() * 60)]

    def _mutated(self) -> bytes:
        """One to three places of a good frame cut out, put in or overwritten."""
        chance = self._random.random
        frame = self._corpus[int(chance() * len(self._corpus))]
        while True:
            at = int(chance() * (len(frame) + 1))
            piece = self._pieces[int(chance() * 2000)]
            frame = frame[:at] + piece + frame[at + int(chance() * 2 * len(piece)) :]
            if chance() < 0.6:
                return frame

    def _crossed(self) -> bytes:
        """The beginning of one frame and the end of another; or a good frame cut short."""
        chance = self._random.random
        one = self._corpus[int(chance() * len(self._corpus))]
        other = self._corpus[int(chance() * len(self._corpus))] if chance() < 0.7 else b""
        return one[: int(chance() * (len(one) + 1))] + other[int(chance() * (len(other) + 1)) :]

    def _built(self) -> bytes:
        """The fields of a message in their order, each with its lies; now and then something after the last."""
        chance = self._random.random
        kind, parts = self._grammar[int(chance() * 11)]
        frame = self._heads[int(chance() * 500)] + kind
        for part in parts:
            frame += part[int(chance() * len(part))]
        return frame + self._pieces[int(chance() * 2000)] if chance() < 0.1 else frame

    def huge(self) -> bytes:
        """Beyond what a transport lets through: lengths and counts that are true, in their tens of thousands."""
        random = self._random
        head = b"%LOR\1r"
        count = random.randrange(1, 40_000)
        piece = random.choice([b"\0", b"\1a", b"\2ab", b"\x0a" + bytes(10)])
        update = head + b"\3" + varuint(count) + piece * count + bytes(8)
        size = random.randrange(2 * MAX_MESSAGE_SIZE)
        text = random.choice([b"\xff", b"a", "部".encode(), b"\xed\xa0\x80", b"\xf4\x90"]) * (size // 3)
        error = head + b"\6\1" + varuint(len(text)) + text
        return random.choice([update, update[: random.randrange(len(update))], error, random.randbytes(size)])


# What must hold ---------------------------------------------------------------------------------------------------

ROOM = (CrdtType, str)
SHAPES: dict[type, set[tuple[type, ...]]] = {
    JoinRequest: {(*ROOM, bytes, bytes)},
    JoinResponseOk: {(*ROOM, str, bytes, bytes)},
    JoinError: {
        (*ROOM, JoinErrorCode, str, NoneType, NoneType),
        (*ROOM, JoinErrorCode, str, bytes, NoneType),
        (*ROOM, JoinErrorCode, str, NoneType, str),
    },
    DocUpdate: {(*ROOM, tuple, int)},
    DocUpdateFragmentHeader: {(*ROOM, int, int, int)},
    DocUpdateFragment: {(*ROOM, int, int, bytes)},
    RoomError: {(*ROOM, RoomErrorCode, str)},
    Leave: {ROOM},
    Ack: {(*ROOM, int, UpdateStatusCode)},
}
"""The types that the fields of a decoded message may have."""
FIELDS = {kind: attrgetter(*(each.name for each in fields(kind))) for kind in SHAPES}


def check(frame: bytes) -> bool:
    """Whether `decode` takes a frame. Raises `Violation` for whatever else it does but raise `ProtocolError`.

    What was decoded is encoded again and decodes to the same. Two things are read and never written: a room id of more
    than 128 bytes or a message larger than a frame may be, which `encode` refuses; and an empty ``app_code``, which
    comes back as none.
    """
    try:
        message = decode(frame)
    except ProtocolError:
        return False
    except BaseException as error:
        raise Violation(f"decode raised {error!r} for {_shown(frame)}") from error
    kind = type(message)
    if tuple(map(type, FIELDS[kind](message))) not in SHAPES[kind]:
        raise Violation(f"a field of {message!r:.200} has the wrong type; from {_shown(frame)}")
    try:
        again = encode(message)
    except ProtocolError as error:
        if len(message.room_id.encode()) > MAX_ROOM_ID_BYTES or "the frame would be" in str(error):
            return True
        raise Violation(f"encode refuses what was decoded from {_shown(frame)}") from error
    if kind is JoinError and message.app_code == "":  # type: ignore[union-attr]
        message = replace(message, app_code=None)  # type: ignore[call-arg]
    if decode(again) != message:
        raise Violation(f"it comes back as another message: {_shown(frame)}")
    return True


def _shown(frame: bytes) -> str:
    """Enough of a frame to replay it, or to recognise one that a seed makes again."""
    return f'decode(bytes.fromhex("{frame.hex()}"))' if len(frame) < 2_000 else f"{len(frame)} bytes, {frame[:80]!r} …"


@contextmanager
def bounded_address_space(more: int = LARGEST_ALLOCATION) -> Iterator[None]:
    """Whatever would take ``more`` bytes than there are now raises MemoryError: also memory that is never touched."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass
class Counts:
    """What a run did."""

    inputs: int = 0
    accepted: int = 0
    blocks_kept: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.inputs + other.inputs,
            self.accepted + other.accepted,
            max(self.blocks_kept, other.blocks_kept),
        )


def fuzz_decoder(seed: int | str, inputs: int, check: Callable[[bytes], bool] = check) -> Counts:
    """Put at least so many frames to the check. Raises `Violation`, with the frame, for the first that fails it.

    Context is flat: no block of it (`sys.getallocatedblocks`) is kept for any input; and no input takes more than
    `LARGEST_ALLOCATION` bytes of address space.
    """
    frames, counts = Frames(seed), Counts()
    fill_caches = sum(map(check, frames.block()))
    assert fill_caches
    with bounded_address_space():
        before = _blocks()
        while counts.inputs < inputs:
            block = frames.block()
            try:
                counts.accepted += sum(map(check, block))
            except Violation as violation:
                violation.add_note(f"seed {seed!r}, input {counts.inputs} or one of the next {BLOCK}")
                raise
            counts.inputs += len(block)
        del block
        counts.blocks_kept = _blocks() - before
    if counts.blocks_kept > BLOCKS_KEPT:
        raise Violation(f"seed {seed!r}: {counts.blocks_kept} blocks of memory are kept after {counts.inputs} inputs")
    return counts


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


# Fragments --------------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    header: DocUpdateFragmentHeader
    began: float
    came: list[DocUpdateFragment] = field(default_factory=list)


@dataclass
class Model:
    """What `Reassembler` does, in the words of its docstrings and without a thought for speed.

    An answer is the update, the status of a refusal, or None.
    """

    limits: type[Reassembler] = Reassembler
    live: dict[int, _Batch] = field(default_factory=dict)
    settled: list[int] = field(default_factory=list)

    @property
    def held(self) -> int:
        """The bytes of all fragments that are kept."""
        return sum(len(fragment.fragment) for batch in self.live.values() for fragment in batch.came)

    def begin(self, header: DocUpdateFragmentHeader, now: float) -> UpdateStatusCode | None:
        """A header came."""
        refused: list[tuple[bool, UpdateStatusCode]] = [
            (header.batch_id in self.live, UpdateStatusCode.INVALID_UPDATE),
            (header.fragment_count == 0, UpdateStatusCode.INVALID_UPDATE),
            (header.fragment_count > self.limits.MAX_FRAGMENTS, UpdateStatusCode.PAYLOAD_TOO_LARGE),
            (header.total_size_bytes > self.limits.MAX_BATCH_BYTES, UpdateStatusCode.PAYLOAD_TOO_LARGE),
            (len(self.live) == self.limits.MAX_BATCHES, UpdateStatusCode.RATE_LIMITED),
        ]
        for holds, status in refused:
            if holds:
                return self.refuse(header.batch_id, status)
        self.live[header.batch_id] = _Batch(header, now)
        return None

    def add(self, fragment: DocUpdateFragment, now: float) -> bytes | UpdateStatusCode | None:
        """A fragment came."""
        number = fragment.batch_id
        batch = self.live.get(number)
        if batch is None:
            return None if number in self.settled else self.refuse(number, UpdateStatusCode.FRAGMENT_TIMEOUT)
        if now >= batch.began + self.limits.TIMEOUT:
            return self.refuse(number, UpdateStatusCode.FRAGMENT_TIMEOUT)
        if fragment.index >= batch.header.fragment_count:
            return self.refuse(number, UpdateStatusCode.INVALID_UPDATE)
        twins = [other for other in batch.came if other.index == fragment.index]
        if twins:
            return None if twins == [fragment] else self.refuse(number, UpdateStatusCode.INVALID_UPDATE)
        batch.came.append(fragment)
        size = sum(len(other.fragment) for other in batch.came)
        if size > batch.header.total_size_bytes:
            return self.refuse(number, UpdateStatusCode.PAYLOAD_TOO_LARGE)
        if {other.index for other in batch.came} != set(range(batch.header.fragment_count)):
            return None
        self.refuse(number, UpdateStatusCode.OK)
        if size != batch.header.total_size_bytes:
            return UpdateStatusCode.INVALID_UPDATE
        return b"".join(other.fragment for other in sorted(batch.came, key=lambda other: other.index))

    def expire(self, now: float) -> list[tuple[int, UpdateStatusCode]]:
        """Time went by."""
        due = [number for number, batch in self.live.items() if now >= batch.began + self.limits.TIMEOUT]
        return [(number, self.refuse(number, UpdateStatusCode.FRAGMENT_TIMEOUT)) for number in due]

    def next_deadline(self) -> float | None:
        """When the first of the batches under way is over."""
        return min((batch.began + self.limits.TIMEOUT for batch in self.live.values()), default=None)

    def clear(self) -> None:
        """The connection is gone."""
        self.live, self.settled = {}, []

    def refuse(self, number: int, status: UpdateStatusCode) -> UpdateStatusCode:
        """A batch is over, for this or another reason."""
        self.live.pop(number, None)
        self.settled = [*(other for other in self.settled if other != number), number][-self.limits.MAX_SETTLED :]
        return status


def outcome(answer: bytes | RefusedBatch | None) -> bytes | UpdateStatusCode | None:
    """An answer of `Reassembler` as the model gives it."""
    return answer.status if isinstance(answer, RefusedBatch) else answer


class FragmentSteps:
    """Endless messages about fragments, from a peer that lies: of one room, with the time at which they come."""

    def __init__(self, seed: int | str, limits: type[Reassembler] = Reassembler) -> None:
        self._random = Random(seed)
        self._limits = limits
        self._announced: dict[int, list[DocUpdateFragment]] = {}
        self.now = 0.0
        self.many_ids = False
        """Whether ids are so many that settled ones are forgotten."""

    def __next__(self) -> DocUpdateFragmentHeader | DocUpdateFragment | None:
        """The next message; None where time goes by instead."""
        chance = self._random.random
        kind = chance()
        if kind < 0.04:
            self.now += self._random.choice([0.0, 0.5, 3.0, 9.0, 10.0, 11.0])
            self.many_ids = chance() < 0.2
            return None
        number = int(chance() * (100 if self.many_ids else 11))
        coming = self._announced.get(number)
        if kind < 0.3 or not coming:
            return self._lie(number) if chance() < 0.2 else self._announce(number)
        if kind < 0.85:
            fragment = coming.pop(int(chance() * len(coming)))
            if chance() < 0.1:  # again, later
                coming.append(fragment)
            return fragment
        index = int(chance() * 6) if chance() < 0.9 else self._random.choice(EDGES)
        return DocUpdateFragment(CrdtType.LORO, "r", number, index, self._random.randbytes(int(chance() * 200)))

    def _announce(self, number: int) -> DocUpdateFragmentHeader:
        random = self._random
        count = random.randrange(1, 6)
        data = [random.randbytes(random.choice([0, 1, 60, 300])) for _ in range(count)]
        self._announced[number] = [
            DocUpdateFragment(CrdtType.LORO, "r", number, i, each) for i, each in enumerate(data)
        ]
        total = sum(map(len, data)) + (random.choice([-1, 1]) if random.random() < 0.1 else 0)
        return DocUpdateFragmentHeader(CrdtType.LORO, "r", number, count, max(total, 0))

    def _lie(self, number: int) -> DocUpdateFragmentHeader:
        most = [self._limits.MAX_FRAGMENTS, self._limits.MAX_BATCH_BYTES]
        claims = [*EDGES, *most, *(limit + 1 for limit in most)]
        count, total = self._random.choices(claims, k=2)
        return DocUpdateFragmentHeader(CrdtType.LORO, "r", number, count, total)


def main(arguments: list[str]) -> Counts:
    """Run a seed again."""
    seed, inputs = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1_000_000
    return fuzz_decoder(seed, inputs)


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1:])}\n")
