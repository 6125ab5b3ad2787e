"""Updates into frames and back, with a peer that need not be honest."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
    MAX_MESSAGE_SIZE,
    Batch,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    Reassembler,
    RefusedBatch,
    UpdateStatusCode,
    decode,
    room_header,
    split,
)

LORO = CrdtType.LORO
INVALID = UpdateStatusCode.INVALID_UPDATE
TIMED_OUT = UpdateStatusCode.FRAGMENT_TIMEOUT
TOO_LARGE = UpdateStatusCode.PAYLOAD_TOO_LARGE
LIMITED = UpdateStatusCode.RATE_LIMITED
MIB = 1024 * 1024


def header(batch_id: int, count: int, size: int) -> DocUpdateFragmentHeader:
    """A header of the room that all these tests are about."""
    return DocUpdateFragmentHeader(LORO, "r", batch_id, count, size)


def piece(batch_id: int, index: int, data: bytes) -> DocUpdateFragment:
    """A fragment of the same room."""
    return DocUpdateFragment(LORO, "r", batch_id, index, data)


def refused(answer: object, batch_id: int, status: UpdateStatusCode, why: str) -> bool:
    """Whether an answer is that refusal; the words may go on after ``why``."""
    return (
        isinstance(answer, RefusedBatch)
        and (answer.batch_id, answer.status) == (batch_id, status)
        and why in answer.why
    )


def receive(batches: list[Batch]) -> list[bytes]:
    """What a peer makes of the frames, in the order it hears of them."""
    reassembler = Reassembler()
    updates: list[bytes] = []
    for frame in itertools.chain.from_iterable(batch.frames for batch in batches):
        message = decode(frame)
        if isinstance(message, DocUpdate):
            updates.extend(message.updates)
        elif isinstance(message, DocUpdateFragmentHeader):
            assert reassembler.begin(message, 0.0) is None
        else:
            assert isinstance(message, DocUpdateFragment)
            whole = reassembler.add(message, 0.0)
            if whole is not None:
                assert isinstance(whole, bytes)
                updates.append(whole)
    assert reassembler.next_deadline() is None
    return updates


# Splitting --------------------------------------------------------------------------------------------------------


def test_small_updates_share_a_frame() -> None:
    """D-ACK: several small updates are one DocUpdate, one batch, one id."""
    (batch,) = split(LORO, "r", [b"a", b"", b"bc"], lambda: 7)
    (frame,) = batch.frames
    assert batch == Batch(7, (b"a", b"", b"bc"), (frame,))
    assert decode(frame) == DocUpdate(LORO, "r", (b"a", b"", b"bc"), 7)


def test_updates_share_a_frame_as_long_as_they_fit() -> None:
    """Each counts as its bytes and three for its length; what does not fit begins the next batch."""
    first, second = bytes(FRAGMENT_SIZE - 106), bytes(100)
    assert len(split(LORO, "r", [first, second], lambda: 1)) == 1
    assert len(split(LORO, "r", [first, second + b"a"], itertools.count().__next__)) == 2
    groups = split(LORO, "r", [first, second, first, second, first], itertools.count().__next__)
    assert [batch.updates for batch in groups] == [(first, second), (first, second), (first,)]


@pytest.mark.parametrize("value", [Batch(1, (b"",), (b"frame",)), RefusedBatch(1, INVALID, "why")])
def test_d_ack_what_is_handed_out_is_a_value(value: Any) -> None:
    """D-ACK: what waits for an Ack is what was sent; it can be neither changed nor added to."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.batch_id = 2
    assert not hasattr(value, "__dict__")
    assert dataclasses.replace(value) == value


def test_nothing_to_send_takes_no_id() -> None:
    """No updates, no batches, and new_batch_id is not called."""
    assert split(LORO, "r", [], lambda: pytest.fail("an id was taken")) == []


def test_an_update_of_the_fragment_size_still_goes_whole() -> None:
    """240 KiB is one DocUpdate, a byte more is a header and two fragments."""
    whole, cut = split(LORO, "r", [bytes(FRAGMENT_SIZE), bytes(FRAGMENT_SIZE + 1)], itertools.count().__next__)
    assert [type(decode(frame)) for frame in whole.frames] == [DocUpdate]
    assert [decode(frame) for frame in cut.frames] == [
        header(1, 2, FRAGMENT_SIZE + 1),
        piece(1, 0, bytes(FRAGMENT_SIZE)),
        piece(1, 1, b"\0"),
    ]


def test_a_large_update_between_small_ones_keeps_its_place() -> None:
    """Order is kept, and the large one shares its batch with nobody."""
    large = bytes(FRAGMENT_SIZE * 2)
    batches = split(LORO, "r", [b"a", b"b", large, b"c", b"d"], itertools.count(5).__next__)
    assert [(batch.batch_id, batch.updates) for batch in batches] == [
        (5, (b"a", b"b")),
        (6, (large,)),
        (7, (b"c", b"d")),
    ]
    assert [len(batch.frames) for batch in batches] == [1, 3, 1]


def test_an_update_too_large_for_anyone_is_refused_before_an_id_is_taken() -> None:
    """64 MiB are sent, a byte more is a ValueError that names both sizes; it is no ProtocolError."""
    with pytest.raises(ValueError, match="an update of 67108865 bytes cannot be sent, the limit is 67108864") as caught:
        split(LORO, "r", [b"a", bytes(64 * MIB + 1)], lambda: pytest.fail("an id was taken"))
    assert not isinstance(caught.value, ProtocolError)


def test_the_limit_can_be_set() -> None:
    """In either direction, and as many fragments as it takes are allowed."""
    with pytest.raises(ValueError, match="the limit is 5"):
        split(LORO, "r", [bytes(6)], lambda: 1, limit=5)
    reassembler = Reassembler(100 * MIB)
    assert reassembler.begin(header(1, 10_000, 100 * MIB), 0.0) is None
    assert refused(reassembler.begin(header(2, 1, 100 * MIB + 1), 0.0), 2, TOO_LARGE, "the limit is 104857600")


@pytest.mark.parametrize("room_id", ["r", "\u20ac" * 42])
@pytest.mark.parametrize("size", [16 * 1024, 100_000])
def test_d_toobig_frames_are_as_small_as_asked_for(room_id: str, size: int) -> None:
    """D-TOOBIG: of whole updates and of fragments, with what is around them; nothing is lost."""
    around = 160
    updates = [bytes(size + 1), *[bytes(4096)] * 50, bytes(size - around)]
    batches = split(LORO, room_id, updates, itertools.count().__next__, size - around)
    assert [update for batch in batches for update in batch.updates] == updates
    assert max(len(frame) for batch in batches for frame in batch.frames) <= size


def test_an_idle_timeout_is_extended_by_each_fragment() -> None:
    """LIVE-2: a large update on a slow link takes as long as it takes; one that stops coming is given up."""
    reassembler = Reassembler(idle_timeout=30.0)
    reassembler.begin(header(1, 4, 4), 0.0)
    for index, now in enumerate((29.0, 58.0, 87.0)):
        assert reassembler.expire(now) == []
        assert reassembler.add(piece(1, index, b"x"), now) is None
    assert reassembler.next_deadline() == 117.0
    (given_up,) = reassembler.expire(117.0)
    assert given_up.why == "3 of 4 fragments came, then none for 30 s"


def test_split_refuses_what_encode_refuses() -> None:
    """A room id or a batch id that cannot be sent is a ProtocolError."""
    with pytest.raises(ProtocolError, match=r"^room_id is 129 bytes"):
        split(LORO, "a" * 129, [b"a"], lambda: 1)
    with pytest.raises(ProtocolError, match=r"DocUpdateFragmentHeader\.batch_id must be an int"):
        split(LORO, "r", [bytes(FRAGMENT_SIZE + 1)], lambda: 2**64)


# Few distinct bytes keep the data small to generate; what matters here is the sizes.
updates_of_all_sizes = st.lists(
    st.builds(
        lambda size, byte: bytes([byte]) * size,
        st.integers(0, 50) | st.integers(FRAGMENT_SIZE // 2 - 9, FRAGMENT_SIZE // 2 + 9) | st.integers(0, 800_000),
        st.integers(0, 255),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(updates=updates_of_all_sizes, room_id=st.sampled_from(["", "r", "a" * 128]))
def test_what_is_split_arrives(updates: list[bytes], room_id: str) -> None:
    """Any updates arrive whole and in order; no frame is larger than a fragment and what goes before it."""
    batches = split(LORO, room_id, updates, itertools.count().__next__)
    assert receive(batches) == updates
    assert [update for batch in batches for update in batch.updates] == updates
    assert [batch.batch_id for batch in batches] == list(range(len(batches)))
    most = FRAGMENT_SIZE + len(room_header(LORO, room_id)) + 15  # type, id, and two numbers of at most 3 bytes
    assert most < MAX_MESSAGE_SIZE
    assert all(len(frame) <= most for batch in batches for frame in batch.frames)


def test_very_many_tiny_updates_fit_too() -> None:
    """The lengths count as well: empty updates fill a frame like any others."""
    updates = [b""] * 100_000
    batches = split(LORO, "r", updates, itertools.count().__next__)
    assert len(batches) == 2
    assert receive(batches) == updates


def test_64_mebibytes_arrive() -> None:
    """The largest update there may be goes out in 69 fragments and comes back to the byte."""
    update = random.Random(1).randbytes(64 * MIB)
    batches = split(LORO, "r", [update], lambda: 1)
    assert len(batches[0].frames) == 275
    assert receive(batches) == [update]


# Reassembling -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(pieces=st.lists(st.binary(max_size=20), min_size=1, max_size=12), data=st.data())
def test_fragments_may_come_in_any_order_and_more_than_once(pieces: list[bytes], data: st.DataObject) -> None:
    """The update is given once, with the last fragment that was missing; repeats change nothing."""
    repeats = data.draw(st.lists(st.sampled_from(range(len(pieces))), max_size=5))
    order = data.draw(st.permutations([*range(len(pieces)), *repeats]))
    reassembler = Reassembler()
    assert reassembler.begin(header(1, len(pieces), len(b"".join(pieces))), 0.0) is None
    answers = [reassembler.add(piece(1, index, pieces[index]), 0.0) for index in order]
    last_missing = max(order.index(index) for index in range(len(pieces)))
    assert answers[last_missing] == b"".join(pieces)
    assert [answer for answer in answers if answer is not None] == [b"".join(pieces)]


def test_an_empty_update_is_bytes_and_not_none() -> None:
    """One empty fragment of an empty update completes it."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 1, 0), 0.0) is None
    assert reassembler.add(piece(1, 0, b""), 0.0) == b""


def test_batches_may_be_interleaved() -> None:
    """Batches of one room do not mix."""
    reassembler = Reassembler()
    for batch_id in (1, 2):
        assert reassembler.begin(header(batch_id, 2, 2), 0.0) is None
    assert reassembler.add(piece(1, 0, b"a"), 0.0) is None
    assert reassembler.add(piece(2, 1, b"d"), 0.0) is None
    assert reassembler.add(piece(1, 1, b"b"), 0.0) == b"ab"
    assert reassembler.add(piece(2, 0, b"c"), 0.0) == b"cd"


@pytest.mark.parametrize(
    ("count", "size", "status", "why"),
    [
        (0, 0, INVALID, "announces no fragments"),
        (0, 5, INVALID, "announces no fragments"),
        (8193, 5, TOO_LARGE, "announces 8193 fragments, the limit is 8192"),
        (1, 64 * MIB + 1, TOO_LARGE, "announces 67108865 bytes, the limit is 67108864"),
        (2**32 - 1, 2**32 - 1, TOO_LARGE, "announces 4294967295 fragments"),
    ],
)
def test_a_header_out_of_bounds_is_refused(count: int, size: int, status: UpdateStatusCode, why: str) -> None:
    """What cannot be taken is refused with the header, before any fragment, and its fragments are ignored."""
    reassembler = Reassembler()
    assert refused(reassembler.begin(header(1, count, size), 0.0), 1, status, why)
    assert reassembler.next_deadline() is None
    assert reassembler.add(piece(1, 0, b"a"), 0.0) is None


def test_a_header_at_the_bounds_is_taken() -> None:
    """8192 fragments and 64 MiB are the most, not too much."""
    assert Reassembler().begin(header(1, 8192, 64 * MIB), 0.0) is None


def test_d_toobig_a_bound_on_bytes_above_the_default_is_one_on_fragments_too() -> None:
    """D-TOOBIG: whole fragments of 8 KiB, as few peers make smaller ones; a smaller bound leaves room for them."""
    assert [Reassembler(bound).max_fragments for bound in (None, 1, 64 * MIB)] == [8192, 8192, 8192]
    parts = Reassembler(100 * MIB + 1)
    assert parts.begin(header(1, 12_800, 100 * MIB), 0.0) is None
    refusal = parts.begin(header(2, 12_801, 100 * MIB), 0.0)
    assert refusal is not None
    assert refusal.why == "its header announces 12801 fragments, the limit is 12800"


def held_by_header(count: int, size: int) -> int:
    """The most bytes that were allocated while a header was looked at."""
    reassembler = Reassembler()
    claim = header(1, count, size)
    tracemalloc.start()
    try:
        reassembler.begin(claim, 0.0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("count", "size"), [(2**32 - 1, 2**32 - 1), (8192, 64 * MIB)])
def test_nothing_is_allocated_from_a_claim(count: int, size: int) -> None:
    """A header that claims 2**32 - 1 fragments, or all we would take, costs a few hundred bytes."""
    assert held_by_header(count, size) < 10_000


def test_memory_is_that_of_the_bytes_received() -> None:
    """Half a batch holds about its half; a refusal lets go of it."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 64, 64 * MIB), 0.0) is None
    tracemalloc.start()
    try:
        for index in range(10):
            assert reassembler.add(piece(1, index, bytes(100_000)), 0.0) is None
        held, _ = tracemalloc.get_traced_memory()
        assert refused(reassembler.add(piece(1, 64, b""), 0.0), 1, INVALID, "fragment 64 came")
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1_000_000 <= held < 1_050_000
    assert left < 50_000


def test_a_ninth_batch_is_refused_and_harms_no_other() -> None:
    """RATE_LIMITED, as it may be taken later; there is room again when one of the eight is complete."""
    reassembler = Reassembler()
    for batch_id in range(8):
        assert reassembler.begin(header(batch_id, 1, 1), 0.0) is None
    assert refused(reassembler.begin(header(8, 1, 1), 0.0), 8, LIMITED, "8 batches are under way, the limit is 8")
    assert reassembler.add(piece(8, 0, b"x"), 0.0) is None
    assert reassembler.add(piece(3, 0, b"d"), 0.0) == b"d"
    assert reassembler.begin(header(8, 1, 1), 0.0) is None
    assert reassembler.add(piece(8, 0, b"x"), 0.0) == b"x"


def test_a_repeated_header_refuses_its_batch() -> None:
    """A sender that begins a live batch anew is confused: what came of it is let go."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 2, 2), 0.0) is None
    assert refused(reassembler.begin(header(1, 2, 2), 0.0), 1, INVALID, "header came twice")
    assert reassembler.next_deadline() is None


def test_the_bytes_that_are_kept_are_counted() -> None:
    """Those of all batches under way, and none of what is complete, refused, late or forgotten."""
    reassembler = Reassembler()
    sizes = [reassembler.size]
    for batch_id in range(1, 5):
        reassembler.begin(header(batch_id, 2, 9), float(batch_id))
        reassembler.add(piece(batch_id, 0, bytes(batch_id)), 5.0)
        sizes.append(reassembler.size)
    assert sizes == [0, 1, 3, 6, 10]
    assert reassembler.add(piece(3, 1, bytes(6)), 5.0) == bytes(9)
    assert reassembler.size == 7
    assert isinstance(reassembler.add(piece(4, 5, b""), 5.0), RefusedBatch)
    assert reassembler.size == 3
    reassembler.expire(11.5)
    assert reassembler.size == 2
    reassembler.clear()
    assert reassembler.size == 0


def test_a_refusal_says_why_in_words() -> None:
    """What came and what was announced; it ends up in a log, so it says nothing of what the bytes hold."""
    reassembler = Reassembler()
    said = [
        reassembler.begin(header(1, 0, 9), 0.0),
        reassembler.begin(header(1, 8193, 9), 0.0),
        reassembler.begin(header(1, 1, 64 * MIB + 1), 0.0),
        reassembler.begin(header(1, 2, 9), 0.0),
        reassembler.begin(header(1, 2, 9), 0.0),
        reassembler.add(piece(2, 7, b"x"), 0.0),
    ]
    wrong = [(2, b"x"), (0, b"0123456789"), (0, b"y"), (1, b"z")]
    for index, data in wrong:
        reassembler.begin(header(3, 2, 9), 0.0)
        if (index, data) in wrong[2:]:
            reassembler.add(piece(3, 0, b"x"), 0.0)
        said.append(reassembler.add(piece(3, index, data), 0.0))
    reassembler.begin(header(4, 2, 9), 0.0)
    reassembler.add(piece(4, 0, b"x"), 0.0)
    said += reassembler.expire(10.0)
    for batch_id in range(5, 14):
        said.append(reassembler.begin(header(batch_id, 1, 1), 0.0))
    assert [each.why for each in said if isinstance(each, RefusedBatch)] == [
        "its header announces no fragments",
        "its header announces 8193 fragments, the limit is 8192",
        "its header announces 67108865 bytes, the limit is 67108864",
        "its header came twice",
        "fragment 7 came without a header",
        "fragment 2 came, its header announces 2, counted from 0",
        "10 bytes came, its header announces 9",
        "fragment 0 came twice and differs",
        "all 2 fragments came with 2 bytes, its header announces 9",
        "1 of 2 fragments came within 10 s",
        "8 batches are under way, the limit is 8",
    ]


def test_a_fragment_without_a_header_is_refused_once() -> None:
    """FRAGMENT_TIMEOUT, as the reference server says it; the next one of that batch is ignored."""
    reassembler = Reassembler()
    answers = [reassembler.add(piece(1, index, b"a"), 0.0) for index in range(3)]
    assert refused(answers[0], 1, TIMED_OUT, "fragment 0 came without a header")
    assert answers[1:] == [None, None]


@pytest.mark.parametrize(
    ("fragments", "status", "why"),
    [
        ([(3, b"a")], INVALID, "fragment 3 came, its header announces 3, counted from 0"),
        ([(2**32 - 1, b"a")], INVALID, "fragment 4294967295 came"),
        ([(0, b"a"), (0, b"b")], INVALID, "fragment 0 came twice and differs"),
        ([(0, b"a"), (0, b"")], INVALID, "fragment 0 came twice and differs"),
        ([(0, b"123456")], TOO_LARGE, "6 bytes came, its header announces 5"),
        ([(0, b"123"), (1, b"45"), (2, b"6")], TOO_LARGE, "6 bytes came, its header announces 5"),
        ([(0, b"12"), (1, b"3"), (2, b"4")], INVALID, "all 3 fragments came with 4 bytes, its header announces 5"),
    ],
)
def test_a_batch_that_goes_wrong_is_refused_once(
    fragments: list[tuple[int, bytes]], status: UpdateStatusCode, why: str
) -> None:
    """The refusal says what is wrong, everything is let go, and the rest of the batch is ignored."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 3, 5), 0.0) is None
    *before, last = [reassembler.add(piece(1, index, data), 0.0) for index, data in fragments]
    assert before == [None] * len(before)
    assert refused(last, 1, status, why)
    assert reassembler.next_deadline() is None
    assert [reassembler.add(piece(1, index, b"1"), 0.0) for index in range(5)] == [None] * 5


def test_a_refused_batch_may_begin_anew() -> None:
    """A new header, and only that, makes the sender's second try a fresh one."""
    reassembler = Reassembler()
    assert isinstance(reassembler.begin(header(1, 0, 0), 0.0), RefusedBatch)
    assert reassembler.begin(header(1, 1, 1), 5.0) is None
    assert reassembler.next_deadline() == 15.0
    assert reassembler.add(piece(1, 0, b"a"), 5.0) == b"a"


def test_a_fragment_that_comes_again_after_completion_is_ignored() -> None:
    """A batch that we took is not refused afterwards."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 1, 1), 0.0) is None
    assert reassembler.add(piece(1, 0, b"a"), 0.0) == b"a"
    assert reassembler.add(piece(1, 0, b"a"), 0.0) is None


def test_only_so_many_settled_batches_are_remembered() -> None:
    """64 ids: the oldest is forgotten first, and then refused once more; memory stays bounded."""
    reassembler = Reassembler()
    for batch_id in range(65):
        assert isinstance(reassembler.add(piece(batch_id, 0, b""), 0.0), RefusedBatch)
    assert reassembler.add(piece(1, 0, b""), 0.0) is None
    assert reassembler.add(piece(64, 0, b""), 0.0) is None
    assert isinstance(reassembler.add(piece(0, 0, b""), 0.0), RefusedBatch)


def test_a_batch_refused_again_is_remembered_the_longer() -> None:
    """What is forgotten is what was refused longest ago, counted from the last refusal."""
    reassembler = Reassembler()
    for batch_id in range(64):
        assert isinstance(reassembler.begin(header(batch_id, 0, 0), 0.0), RefusedBatch)
    assert isinstance(reassembler.begin(header(0, 0, 0), 0.0), RefusedBatch)
    assert isinstance(reassembler.begin(header(64, 0, 0), 0.0), RefusedBatch)
    assert reassembler.add(piece(0, 0, b""), 0.0) is None
    assert isinstance(reassembler.add(piece(1, 0, b""), 0.0), RefusedBatch)


# Time -------------------------------------------------------------------------------------------------------------


def test_d_timeout_a_batch_has_ten_seconds_from_its_header() -> None:
    """D-TIMEOUT: fragments do not extend the time; at the deadline it is over."""
    reassembler = Reassembler()
    assert reassembler.next_deadline() is None
    assert reassembler.begin(header(1, 3, 3), 100.0) is None
    assert reassembler.next_deadline() == 110.0
    assert reassembler.add(piece(1, 0, b"a"), 109.0) is None
    assert reassembler.next_deadline() == 110.0
    assert reassembler.expire(109.9) == []
    (refusal,) = reassembler.expire(110.0)
    assert refused(refusal, 1, TIMED_OUT, "1 of 3 fragments came within 10 s")
    assert reassembler.expire(110.0) == []
    assert reassembler.next_deadline() is None
    assert reassembler.add(piece(1, 1, b"b"), 110.0) is None


def test_the_last_fragment_counts_just_before_the_deadline() -> None:
    """In time is in time."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 1, 1), 100.0) is None
    assert reassembler.add(piece(1, 0, b"a"), 109.9) == b"a"


def test_a_fragment_after_the_deadline_is_refused_even_if_nobody_called_expire() -> None:
    """A late timer does not make a batch live longer, nor is it refused twice."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 1, 1), 100.0) is None
    assert refused(reassembler.add(piece(1, 0, b"a"), 110.0), 1, TIMED_OUT, "0 of 1 fragments came within 10 s")
    assert reassembler.expire(110.0) == []


def test_expire_takes_those_that_are_due_and_no_others() -> None:
    """Each batch has its own deadline; the next one is the earliest."""
    reassembler = Reassembler()
    for batch_id, now in ((1, 0.0), (2, 1.0), (3, 5.0)):
        assert reassembler.begin(header(batch_id, 1, 1), now) is None
    assert reassembler.next_deadline() == 10.0
    assert [refusal.batch_id for refusal in reassembler.expire(12.0)] == [1, 2]
    assert reassembler.next_deadline() == 15.0
    assert reassembler.add(piece(3, 0, b"a"), 12.0) == b"a"


def test_clear_forgets_everything_in_silence() -> None:
    """After a reconnect ids mean nothing: neither live nor settled batches are known."""
    reassembler = Reassembler()
    assert reassembler.begin(header(1, 2, 2), 0.0) is None
    assert isinstance(reassembler.begin(header(2, 0, 0), 0.0), RefusedBatch)
    reassembler.clear()
    assert reassembler.next_deadline() is None
    assert reassembler.expire(100.0) == []
    assert refused(reassembler.add(piece(2, 0, b""), 0.0), 2, TIMED_OUT, "without a header")


ids = st.integers(0, 10)
steps = st.lists(
    st.tuples(st.just("begin"), ids, st.integers(0, 4), st.integers(0, 6))
    | st.tuples(st.just("add"), ids, st.integers(0, 4), st.binary(max_size=3))
    | st.tuples(st.just("expire"), ids, st.just(0), st.just(0)),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(steps=steps)
def test_whatever_comes_each_batch_ends_at_most_once_a_header(steps: list[tuple[str, int, int, int | bytes]]) -> None:
    """Between two headers of a batch there is at most one outcome: the update, or one refusal; never both."""
    reassembler = Reassembler()
    outcomes: dict[int, int] = dict.fromkeys(range(11), 0)
    live: set[int] = set()
    now = 0.0
    for what, batch_id, number, value in steps:
        if what == "expire":
            now += batch_id
            ended = [refusal.batch_id for refusal in reassembler.expire(now)]
        else:
            answer: object
            if isinstance(value, bytes):
                answer = reassembler.add(piece(batch_id, number, value), now)
            else:
                if batch_id not in live:
                    outcomes[batch_id] = 0
                answer = reassembler.begin(header(batch_id, number, value), now)
                if answer is None:
                    live.add(batch_id)
            ended = [] if answer is None else [batch_id]
        for ended_id in ended:
            live.discard(ended_id)
            outcomes[ended_id] += 1
        assert max(outcomes.values()) <= 1
        assert len(live) <= Reassembler.MAX_BATCHES
        assert (reassembler.next_deadline() is None) == (not live)


def test_a_batch_that_was_let_go_is_awaited_no_more() -> None:
    """Whoever keeps count of the bytes of many reassemblers can refuse a batch himself."""
    reassembler = Reassembler()
    reassembler.begin(header(1, 2, 4), 0.0)
    first = piece(1, 0, b"ab")
    assert reassembler.awaits(first)
    assert reassembler.refuse(1, UpdateStatusCode.RATE_LIMITED, "enough").status is UpdateStatusCode.RATE_LIMITED
    assert not reassembler.awaits(first)
    assert reassembler.add(first, 0.0) is None
