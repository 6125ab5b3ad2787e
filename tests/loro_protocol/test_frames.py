"""The frames written and read without a message in between: what they say is what `encode` and `decode` say, or None.

Every test compares with the two, which are themselves tested against the vectors of the JavaScript reference.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
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
    encode,
    room_header,
)
from reconnect_fsm.loro_protocol.frames import (
    header_of,
    join_request,
    read_join_response_ok,
    read_ok,
    read_update,
    single_update,
)

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


def shortcut(frame: bytes, header: bytes) -> Message | None:
    """What the shortcuts make of a frame, as a message; None if they leave it to `decode`. They never raise."""
    at = len(header)
    if header_of(frame) != header or len(frame) == at:
        return None
    crdt, room_id = room_of(header)
    match frame[at]:
        case MessageType.DOC_UPDATE if (update := read_update(frame, at)) is not None:
            return DocUpdate(crdt, room_id, (update[0],), update[1])
        case MessageType.ACK if (ref_id := read_ok(frame, at)) is not None:
            return Ack(crdt, room_id, ref_id, UpdateStatusCode.OK)
        case MessageType.JOIN_RESPONSE_OK if (answer := read_join_response_ok(frame, at)) is not None:
            return JoinResponseOk(crdt, room_id, *answer, extra=b"")
    return None


def room_of(header: bytes) -> tuple[CrdtType, str]:
    """The room of a header that `room_header` made."""
    message = decode(header + bytes((MessageType.LEAVE,)))
    return message.crdt, message.room_id


def decoded(frame: bytes) -> Message | None:
    """What `decode` makes of a frame; None if it is no message."""
    try:
        return decode(frame)
    except ProtocolError:
        return None


def is_common(message: Message) -> bool:
    """Whether a message has the shape that a shortcut is for."""
    match message:
        case DocUpdate():
            return len(message.updates) == 1 and len(message.updates[0]) < TWO_BYTES
        case Ack():
            return message.status is UpdateStatusCode.OK
        case JoinResponseOk():
            return not message.extra and len(message.version) < ONE_BYTE
    return False


def check(frame: bytes, header: bytes) -> None:
    """No shortcut says other than `decode` does, and `header_of` finds the header if and only if it is there."""
    assert (header_of(frame) == header) is (len(frame) >= 6 and frame.startswith(header))
    short = shortcut(frame, header)
    assert short is None or short == decoded(frame)


# ------------------------------------------------------------------------------------------------------------ any frame


@given(message=messages)
def test_a_shortcut_reads_what_decode_reads(message: Message) -> None:
    """Each message of a common shape is read, to the same values; each other one is left to `decode`."""
    header = room_header(message.crdt, message.room_id)
    short = shortcut(encode(message), header)
    assert short == (decoded(encode(message)) if is_common(message) else None)


@given(message=messages, data=st.data())
@settings(max_examples=300)
def test_a_damaged_frame_is_never_read_otherwise_than_decode_does(message: Message, data: st.DataObject) -> None:
    """Bytes changed, put in, taken out, or cut off at the end, wherever: nothing raises, nothing disagrees."""
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
    check(bytes(frame), header)


@given(frame=st.binary(max_size=200), room=headers, kind=st.integers(0, 9))
def test_junk_is_never_read_otherwise_than_decode_does(frame: bytes, room: tuple[CrdtType, str], kind: int) -> None:
    """Any bytes, by themselves and behind the header of a room and a type."""
    header = room_header(*room)
    check(frame, header)
    check(header + bytes((kind,)) + frame, header)
    check(header + bytes((kind, 1)) + frame, header)


@pytest.mark.parametrize("message", [
    DocUpdate(LORO, "room", (b"update",), 7),
    DocUpdate(LORO, "room", (b"u" * 200,), 7),
    Ack(LORO, "room", 7, UpdateStatusCode.OK),
    JoinResponseOk(LORO, "room", "write", b"version"),
    JoinResponseOk(LORO, "r" * 128, "read", b""),
])  # fmt: skip
def test_a_frame_cut_short_or_with_something_after_it_is_left_to_decode(message: Message) -> None:
    """At each length; the whole frame alone is read."""
    frame, header = encode(message), room_header(message.crdt, message.room_id)
    assert [length for length in range(len(frame) + 1) if shortcut(frame[:length], header)] == [len(frame)]
    for more in (b"\0", b"\1", bytes(8), bytes(9)):
        check(frame + more, header)
        assert shortcut(frame + more, header) is None


# -------------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("crdt", CrdtType)
@pytest.mark.parametrize("size", [0, 1, 126, 127, 128])
def test_the_header_of_a_room_id_of_every_width(crdt: CrdtType, size: int) -> None:
    """A length of one byte up to 127, of two for the longest id that there is."""
    header = room_header(crdt, "i" * size)
    for message in (Leave(crdt, "i" * size), DocUpdate(crdt, "i" * size, (b"u",), 1)):
        assert header_of(encode(message)) == header


@pytest.mark.parametrize("size", range(6))
def test_what_is_too_short_to_be_a_frame_has_no_header(size: int) -> None:
    """Five bytes are the header of the empty room id, and nothing about it."""
    assert header_of((room_header(LORO, "") + b"\x07")[:size]) == b""
    assert header_of(encode(Leave(LORO, ""))) == room_header(LORO, "")


@pytest.mark.parametrize(
    "length", [b"\x81\x00", b"\x81\x80\x00", b"\x81\x80\x80\x80\x00", b"\xff\xff", b"\xff\xff\xff\xff\x7f"]
)
def test_a_length_written_in_another_way_is_no_header_of_ours(length: bytes) -> None:
    """Room "r" by a longer varuint, which `decode` takes, or a length beyond the frame: left to `decode`."""
    for frame in (b"%LOR" + length + b"r\x07", b"%LOR" + length + b"r" * 40):
        assert header_of(frame) != room_header(LORO, "r")
        check(frame, room_header(LORO, "r"))


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("size", "is_read"), [(size, size < TWO_BYTES) for size in EDGES])
def test_an_update_of_every_width_is_read(size: int, is_read: bool) -> None:
    """A length of one or two bytes; longer updates are left to `decode`."""
    message = DocUpdate(LORO, "room", (b"u" * size,), 2**64 - 1)
    assert shortcut(encode(message), room_header(LORO, "room")) == (message if is_read else None)


@pytest.mark.parametrize("count", [0, 2, 3, 127, 128])
def test_other_than_one_update_is_left_to_decode(count: int) -> None:
    """None, or several."""
    frame = encode(DocUpdate(LORO, "room", (b"",) * count, 1))
    assert shortcut(frame, room_header(LORO, "room")) is None


@pytest.mark.parametrize(("size", "says"), [(b"\x83\x00", b"abc"), (b"\x80\x00", b""), (b"\x83\x80\x00", None)])
def test_a_length_of_two_bytes_that_would_fit_in_one(size: bytes, says: bytes | None) -> None:
    """`decode` takes it as well; three bytes are left to it."""
    header = room_header(LORO, "room")
    frame = header + bytes((MessageType.DOC_UPDATE, 1)) + size + (b"abc" if size[0] == 0x83 else b"") + bytes(8)
    assert decode(frame) == DocUpdate(LORO, "room", (b"abc" if says is None else says,), 0)
    assert shortcut(frame, header) == (None if says is None else decode(frame))


@pytest.mark.parametrize("count", [b"\x81\x00", b"\x80\x01", b"\x00\x01"])
def test_a_count_that_is_not_the_one_byte_1_is_left_to_decode(count: bytes) -> None:
    """Also where it means 1."""
    frame = room_header(LORO, "room") + bytes((MessageType.DOC_UPDATE,)) + count + b"\x01u" + bytes(8)
    check(frame, room_header(LORO, "room"))
    assert shortcut(frame, room_header(LORO, "room")) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (MessageType.DOC_UPDATE, b"\1" + b"\x80\x80" + bytes(TWO_BYTES) + bytes(8)),
        (MessageType.JOIN_RESPONSE_OK, b"\x04read" + b"\x80" + bytes(ONE_BYTE) + b"\0"),
        (MessageType.JOIN_RESPONSE_OK, b"\x04read" + b"\0" + b"\5"),
    ],
    ids=["an update's", "a version's", "the metadata's"],
)
def test_a_length_is_not_taken_for_a_shorter_one(kind: MessageType, fields: bytes) -> None:
    """What would fit if its last byte were not read."""
    frame = room_header(LORO, "room") + bytes((kind,)) + fields
    check(frame, room_header(LORO, "room"))
    assert shortcut(frame, room_header(LORO, "room")) is None


@pytest.mark.parametrize("status", UpdateStatusCode)
def test_only_an_ack_that_says_that_all_is_well_is_read(status: UpdateStatusCode) -> None:
    """A refusal is left to `decode`."""
    message = Ack(LORO, "room", 2**63, status)
    assert shortcut(encode(message), room_header(LORO, "room")) == (message if status == 0 else None)


@pytest.mark.parametrize("permission", ["read", "write"])
@pytest.mark.parametrize("size", [0, 1, 127, 128])
@pytest.mark.parametrize("extra", [b"", b"x"])
def test_an_answer_without_metadata_is_read(permission: Any, size: int, extra: bytes) -> None:
    """Either permission, and a version whose length takes one byte; the rest is left to `decode`."""
    message = JoinResponseOk(LORO, "room", permission, b"v" * size, extra)
    is_read = size < ONE_BYTE and not extra
    assert shortcut(encode(message), room_header(LORO, "room")) == (message if is_read else None)


@pytest.mark.parametrize("permission", [b"\x04reed", b"\x05read\x00", b"\x84\x00read", b"\x00", b"\x04writ", b"\xff"])
def test_any_other_permission_is_left_to_decode(permission: bytes) -> None:
    """Unknown ones, and known ones written in another way."""
    frame = room_header(LORO, "room") + bytes((MessageType.JOIN_RESPONSE_OK,)) + permission + b"\x00\x00"
    check(frame, room_header(LORO, "room"))
    assert shortcut(frame, room_header(LORO, "room")) is None


# -------------------------------------------------------------------------------------------------------------- writing


@given(room=headers, auth=blobs, version=blobs)
def test_a_join_request_is_what_encode_makes(room: tuple[CrdtType, str], auth: bytes, version: bytes) -> None:
    """To the byte, or None if a length takes three."""
    frame = join_request(room_header(*room), auth, version)
    is_written = len(auth) < TWO_BYTES and len(version) < TWO_BYTES
    assert frame == (encode(JoinRequest(*room, auth, version)) if is_written else None)


@given(room=headers, update=blobs, batch_id=ids)
def test_a_single_update_is_what_encode_makes(room: tuple[CrdtType, str], update: bytes, batch_id: int) -> None:
    """To the byte, or None if its length takes three."""
    frame = single_update(room_header(*room), update, batch_id)
    assert frame == (encode(DocUpdate(*room, (update,), batch_id)) if len(update) < TWO_BYTES else None)


@pytest.mark.parametrize("size", EDGES)
def test_every_width_of_a_length_is_written(size: int) -> None:
    """Of the auth, of the version, of an update."""
    header, blob = room_header(LORO, "r" * 128), b"b" * size
    for frame, message in (
        (join_request(header, blob, b""), JoinRequest(LORO, "r" * 128, blob, b"")),
        (join_request(header, b"", blob), JoinRequest(LORO, "r" * 128, b"", blob)),
        (single_update(header, blob, 1), DocUpdate(LORO, "r" * 128, (blob,), 1)),
    ):
        assert frame == (encode(message) if size < TWO_BYTES else None)


@pytest.mark.parametrize("wrong", [None, "text", 7, bytearray(b"b"), memoryview(b"b")])
def test_what_is_not_bytes_is_left_to_encode_to_refuse(wrong: Any) -> None:
    """An adaptor's version, say: `encode` says what is wrong with it."""
    header = room_header(LORO, "room")
    assert join_request(header, wrong, b"") is None
    assert join_request(header, b"", wrong) is None
    with pytest.raises(ProtocolError, match="must be bytes"):
        encode(JoinRequest(LORO, "room", b"", wrong))
