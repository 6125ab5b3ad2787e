"""Frames written from a room's header, and read after it, without a message: they say what `encode` and `decode` say.

Every test compares with these two, which are tested against the vectors of the JavaScript reference.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import fields
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    MAX_MESSAGE_SIZE,
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
    MessageType,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    decode_in_steps,
    encode,
    room_header,
)
from reconnect_fsm.loro_protocol.encoding import (
    UPDATES_A_STEP,
    find_header,
    is_long,
    read_ack,
    read_body,
    read_doc_update,
    read_doc_update_in_steps,
    read_header,
    read_join_response_ok,
    write_ack,
    write_doc_update,
    write_fragment,
    write_fragment_header,
    write_join_request,
    write_leave,
)

T = TypeVar("T")
ONE_BYTE, TWO_BYTES = 0x80, 0x4000  # what a varuint of so many bytes cannot hold any more
EDGES = [0, 1, ONE_BYTE - 1, ONE_BYTE, TWO_BYTES - 1, TWO_BYTES]
ROOMS = ["", "r", "r" * 127, "r" * 128, "é" * 64]
LORO = CrdtType.LORO

lengths = st.one_of(st.integers(0, 300), st.sampled_from(EDGES))
blobs = st.builds(lambda length, byte: bytes((byte,)) * length, lengths, st.integers(0, 255)) | st.binary(max_size=300)
headers = st.tuples(st.sampled_from(CrdtType), st.sampled_from(ROOMS) | st.text(max_size=20))
ids = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1])
texts = st.text(max_size=40)
counts = st.integers(0, 2**32 - 1)


def of_room(kind: Any, *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Messages of a kind, in any room."""
    return st.builds(lambda room, *rest: kind(*room, *rest), headers, *fields)


messages: st.SearchStrategy[Message] = st.one_of(
    of_room(JoinRequest, blobs, blobs),
    of_room(JoinResponseOk, st.sampled_from(["read", "write"]), blobs, st.just(b"") | blobs),
    of_room(JoinError, st.sampled_from(JoinErrorCode), texts),
    of_room(
        DocUpdate, st.lists(blobs, min_size=1, max_size=1).map(tuple) | st.lists(blobs, max_size=3).map(tuple), ids
    ),
    of_room(DocUpdateFragmentHeader, ids, counts, counts),
    of_room(DocUpdateFragment, ids, counts, blobs),
    of_room(RoomError, st.sampled_from(RoomErrorCode), texts),
    of_room(Leave),
    of_room(Ack, ids, st.just(UpdateStatusCode.OK) | st.sampled_from(UpdateStatusCode)),
)


READERS: dict[int, Any] = {
    MessageType.DOC_UPDATE: read_doc_update,
    MessageType.ACK: read_ack,
    MessageType.JOIN_RESPONSE_OK: read_join_response_ok,
}
"""Those that a program may call itself."""
WRITERS: dict[type[Message], Any] = {
    JoinRequest: write_join_request,
    DocUpdate: write_doc_update,
    DocUpdateFragmentHeader: write_fragment_header,
    DocUpdateFragment: write_fragment,
    Leave: write_leave,
    Ack: write_ack,
}


def body_of(message: Message) -> tuple[Any, ...]:
    """The fields after the room."""
    return tuple(getattr(message, each.name) for each in fields(message)[2:])


def outcome(read: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | str:
    """The fields, or the words of the ProtocolError; anything else that is raised fails the test."""
    try:
        return read()
    except ProtocolError as error:
        return str(error)


def end_of(steps: Generator[None, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def in_steps(frame: bytes, at: int) -> tuple[Any, ...]:
    """A DocUpdate's fields, read in steps."""
    return end_of(read_doc_update_in_steps(frame, at))


def check(frame: bytes, header: bytes) -> None:
    """`find_header` finds the header if it is there, and the fields after it are those of `decode`, or the error is."""
    assert (find_header(frame) == header) is (frame.startswith(header) and len(frame) > len(header))
    if find_header(frame) != header:
        return
    at = len(header)
    expected = outcome(lambda: body_of(decode(frame)))
    assert outcome(lambda: read_body(frame, at)) == expected
    if frame[at] in READERS:
        assert outcome(lambda: READERS[frame[at]](frame, at + 1)) == expected
    if frame[at] == MessageType.DOC_UPDATE:
        stepped = outcome(lambda: in_steps(frame, at + 1))
        assert stepped == expected or (isinstance(stepped, str) and isinstance(expected, str))


# ------------------------------------------------------------------------------------------------------------ any frame


@given(message=messages)
def test_a_body_is_what_decode_reads(message: Message) -> None:
    """Of every type, whatever its fields."""
    header = room_header(message.crdt, message.room_id)
    frame = encode(message)
    assert read_header(frame) == (message.crdt, message.room_id, len(header))
    assert read_body(frame, len(header)) == body_of(decode(frame)) == body_of(message)
    if len(message.room_id.encode()) < 128:  # the length of a longer one takes two bytes
        check(frame, header)


@given(message=messages, data=st.data())
@settings(max_examples=300)
def test_a_damaged_frame_is_never_read_otherwise_than_decode_does(message: Message, data: st.DataObject) -> None:
    """Bytes changed, put in, taken out, or cut off at the end: the same fields, or the same error in the same words."""
    frame = bytearray(encode(message))
    header = room_header(message.crdt, message.room_id)
    near = st.integers(0, min(len(frame), len(header) + 12)) | st.integers(0, len(frame))  # where the lengths are
    for _ in range(data.draw(st.integers(1, 3))):
        at, byte = data.draw(near), data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0x81, 0xFF]))
        match data.draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                frame[at : at + 1] = bytes((byte,))
            case "insert":
                frame[at:at] = bytes((byte,))
            case "remove":
                del frame[at : at + 1]
            case _:
                del frame[at:]
    if header[4] < 0x80:
        check(bytes(frame), header)


@given(frame=st.binary(max_size=200), room=headers, kind=st.integers(0, 9))
def test_junk_is_never_read_otherwise_than_decode_does(frame: bytes, room: tuple[CrdtType, str], kind: int) -> None:
    """Any bytes, by themselves and behind the header of a room and a type."""
    header = room_header(*room)
    if header[4] < 0x80:
        check(frame, header)
        check(header + bytes((kind,)) + frame, header)
        check(header + bytes((kind, 1)) + frame, header)


@pytest.mark.parametrize("message", [
    DocUpdate(LORO, "room", (b"update",), 7),
    DocUpdate(LORO, "room", (b"u" * 200,), 7),
    DocUpdate(LORO, "room", (b"one", b"two"), 7),
    Ack(LORO, "room", 7, UpdateStatusCode.OK),
    JoinResponseOk(LORO, "room", "write", b"version"),
    JoinResponseOk(LORO, "r" * 127, "read", b"", b"extra"),
])  # fmt: skip
def test_a_frame_cut_short_or_with_something_after_it_is_read_as_decode_does(message: Message) -> None:
    """At each length."""
    frame, header = encode(message), room_header(message.crdt, message.room_id)
    for length in range(len(frame) + 1):
        check(frame[:length], header)
    for more in (b"\0", b"\1", bytes(8), bytes(9)):
        check(frame + more, header)


# -------------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("crdt", CrdtType)
@pytest.mark.parametrize("size", [0, 1, 126, 127, 128])
def test_the_header_of_a_room_id_of_every_width(crdt: CrdtType, size: int) -> None:
    """It is found by its bytes up to a length of 127; the longest id there is, is left to `read_header`."""
    header = room_header(crdt, "i" * size)
    for message in (Leave(crdt, "i" * size), DocUpdate(crdt, "i" * size, (b"u",), 1)):
        assert (find_header(encode(message)) == header) is (size < 128)
        assert read_header(encode(message)) == (crdt, "i" * size, len(header))


@pytest.mark.parametrize("header", [room_header(LORO, ""), room_header(LORO, "room")])
def test_a_header_is_followed_by_a_type(header: bytes) -> None:
    """What ends before the type has no header: whoever reads on finds a byte there."""
    for size in range(len(header) + 1):
        assert find_header(header[:size]) == b""
        with pytest.raises(ProtocolError):
            read_header(header[:size])
    assert find_header(header + b"\x09") == header
    with pytest.raises(ProtocolError, match=rf"^message type \(byte {len(header)}\): 0x09 is none of 0x00 to 0x08$"):
        read_body(header + b"\x09", len(header))


@pytest.mark.parametrize("length", [b"\x81\x00", b"\x81\x80\x00", b"\x81\x80\x80\x80\x00"])
def test_a_length_written_in_another_way_is_left_to_read_header(length: bytes) -> None:
    """Room "r" by a longer varuint is the same room."""
    frame = b"%LOR" + length + b"r\x07"
    assert find_header(frame) != room_header(LORO, "r")
    assert read_header(frame) == (LORO, "r", len(frame) - 1)


@pytest.mark.parametrize("length", [b"\xff\xff", b"\xff\xff\xff\xff\x7f"])
def test_a_length_beyond_the_frame_is_no_header(length: bytes) -> None:
    """Whatever bytes follow."""
    frame = b"%LOR" + length + b"r" * 40
    assert find_header(frame) == b""
    with pytest.raises(ProtocolError, match=r"^room_id \(byte 4\)"):
        read_header(frame)


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("size", EDGES)
def test_an_update_of_every_width_is_read(size: int) -> None:
    """A length of one, two or three bytes."""
    frame = encode(DocUpdate(LORO, "room", (b"u" * size,), 2**64 - 1))
    assert read_doc_update(frame, len(room_header(LORO, "room")) + 1) == ((b"u" * size,), 2**64 - 1)


def test_what_is_wrong_with_a_single_update_is_named() -> None:
    """The update, then the batch id."""
    frame = b"\x01\x03abc" + bytes(8)
    for length, what in (
        (1, "DocUpdate.updates (byte 1): the frame ends before the number does"),
        (4, "DocUpdate.updates (byte 1): 3 bytes announced, 2 left"),
        (12, "DocUpdate.batch_id (byte 5): 8 bytes needed, 7 left"),
    ):
        with pytest.raises(ProtocolError) as caught:
            read_doc_update(frame[:length], 0)
        assert str(caught.value) == what


@pytest.mark.parametrize("count", [b"\x01", b"\x81\x00", b"\x81\x80\x80\x80\x00"])
@pytest.mark.parametrize("size", [b"\x03", b"\x83\x00", b"\x83\x80\x00"])
def test_a_number_may_be_written_in_several_ways(count: bytes, size: bytes) -> None:
    """The count of updates, and the length of one."""
    frame = count + size + b"abc" + bytes(7) + b"\x05"
    assert read_doc_update(frame, 0) == in_steps(frame, 0) == ((b"abc",), 5)


@pytest.mark.parametrize("more", [0, 1, UPDATES_A_STEP - 1, UPDATES_A_STEP])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_long_update_is_read_in_steps(steps: int, more: int) -> None:
    """No step reads more than `UPDATES_A_STEP`; what fits in one step is not long."""
    updates = tuple(bytes((n % 256,)) * (n % 3) for n in range(steps * UPDATES_A_STEP + more))
    header = room_header(LORO, "room")
    frame = write_doc_update(header, updates, 7)
    assert is_long(frame, len(header)) is (len(updates) > UPDATES_A_STEP)
    assert in_steps(frame, len(header) + 1) == (updates, 7)
    paused = sum(1 for _ in read_doc_update_in_steps(frame, len(header) + 1))
    assert paused == max(-(-len(updates) // UPDATES_A_STEP) - 1, 0)


@pytest.mark.parametrize("message", [
    DocUpdate(LORO, "room", (b"update",) * (3 * UPDATES_A_STEP), 7),
    DocUpdate(LORO, "room", (b"update",), 7),
    Leave(LORO, "room"),
])  # fmt: skip
def test_decoding_in_steps_is_decoding(message: Message) -> None:
    """A long update, and what is read in one step."""
    assert end_of(decode_in_steps(encode(message))) == message


def test_only_a_doc_update_is_long() -> None:
    """Another message may have a byte there that looks like a count."""
    header = room_header(LORO, "room")
    assert not is_long(write_ack(header, 2**64 - 1, UpdateStatusCode.OK), len(header))
    assert not is_long(write_leave(header), len(header))


def test_a_count_that_the_frame_cannot_hold_is_refused_before_the_first_step() -> None:
    """The same words as all at once."""
    frame = b"\xff\xff\x03" + bytes(300)
    for read in (lambda: is_long(b"\x03" + frame, 0), lambda: next(read_doc_update_in_steps(frame, 0))):
        with pytest.raises(ProtocolError, match="65535 updates announced, 300 bytes left"):
            read()


@pytest.mark.parametrize("status", range(256))
def test_an_ack_of_every_status_is_read(status: int) -> None:
    """A code that is not listed is UNKNOWN."""
    known = status in set(UpdateStatusCode)
    expected = UpdateStatusCode(status) if known else UpdateStatusCode.UNKNOWN
    assert read_ack(bytes(7) + bytes((9, status)), 0) == (9, expected)


# -------------------------------------------------------------------------------------------------------------- writing


@given(message=messages)
def test_a_frame_is_what_encode_makes(message: Message) -> None:
    """To the byte."""
    write = WRITERS.get(type(message))
    if write is not None:
        assert write(room_header(message.crdt, message.room_id), *body_of(message)) == encode(message)


@pytest.mark.parametrize("size", EDGES)
def test_every_width_of_a_length_is_written(size: int) -> None:
    """Of the auth, of the version, of one update and of several."""
    header, blob = room_header(LORO, "r" * 128), b"b" * size
    for frame, message in (
        (write_join_request(header, blob, b""), JoinRequest(LORO, "r" * 128, blob, b"")),
        (write_join_request(header, b"", blob), JoinRequest(LORO, "r" * 128, b"", blob)),
        (write_doc_update(header, (blob,), 1), DocUpdate(LORO, "r" * 128, (blob,), 1)),
        (write_doc_update(header, (blob, blob), 1), DocUpdate(LORO, "r" * 128, (blob, blob), 1)),
    ):
        assert frame == encode(message)
        assert decode(frame) == message


@pytest.mark.parametrize("wrong", [None, "text", 7, bytearray(b"b"), memoryview(b"b")])
def test_what_is_not_bytes_is_refused(wrong: Any) -> None:
    """An adaptor's version, say, or an update among others; the error names the field."""
    header = room_header(LORO, "room")
    for field, write in (
        ("JoinRequest.auth", lambda: write_join_request(header, wrong, b"")),
        ("JoinRequest.version", lambda: write_join_request(header, b"", wrong)),
        ("each of DocUpdate.updates", lambda: write_doc_update(header, (wrong,), 1)),
        ("each of DocUpdate.updates", lambda: write_doc_update(header, (b"", wrong), 1)),
    ):
        with pytest.raises(ProtocolError, match=f"^{field} must be bytes, not {type(wrong).__name__}$"):
            write()


def test_a_frame_that_is_too_large_is_refused() -> None:
    """One byte more than the limit, with one update or several."""
    header = room_header(LORO, "r")
    around = len(write_doc_update(header, (bytes(TWO_BYTES),), 1)) - TWO_BYTES
    assert len(write_doc_update(header, (bytes(MAX_MESSAGE_SIZE - around),), 1)) == MAX_MESSAGE_SIZE
    for updates in ((bytes(MAX_MESSAGE_SIZE - around + 1),), (bytes(MAX_MESSAGE_SIZE - around), b"")):
        with pytest.raises(ProtocolError, match=r"^DocUpdate: the frame would be 262145 bytes, the limit is 262144;"):
            write_doc_update(header, updates, 1)
