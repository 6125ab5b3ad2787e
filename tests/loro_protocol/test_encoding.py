"""The bytes of the protocol: against the vectors made with the JavaScript reference, and against anything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconnect_fsm import loro_protocol
from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
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
    MessageType,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    decode_in_steps,
    encode,
    room_header,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "loro-protocol-v1.json").read_text(encoding="utf-8"))
LORO = CrdtType.LORO
KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        JoinRequest,
        JoinResponseOk,
        JoinError,
        DocUpdate,
        DocUpdateFragmentHeader,
        DocUpdateFragment,
        RoomError,
        Leave,
        Ack,
    )
}


def named(entries: list[dict[str, Any]]) -> list[Any]:
    """Entries of the vector file as parameters that bear their names."""
    return [pytest.param(entry, id=entry["name"]) for entry in entries]


def fill(length: int) -> bytes:
    """The file's fill rule: byte i is i & 0xff."""
    return (bytes(range(256)) * (length // 256 + 1))[:length]


def message_of(entry: dict[str, Any]) -> Message:
    """A message of the vector file as one of ours."""

    def as_bytes(value: Any) -> bytes:
        return fill(value["lengthBytes"]) if isinstance(value, dict) else bytes.fromhex(value)

    readers: dict[str, Callable[[Any], Any]] = {
        "crdt": CrdtType,
        "auth": as_bytes,
        "version": as_bytes,
        "extra": as_bytes,
        "receiverVersion": as_bytes,
        "fragment": as_bytes,
        "updates": lambda updates: tuple(as_bytes(update) for update in updates),
        "batchId": lambda text: int(text, 16),
        "refId": lambda text: int(text, 16),
    }
    ours = {"roomId": "room_id", "batchId": "batch_id", "refId": "ref_id", "receiverVersion": "receiver_version"}
    ours |= {"appCode": "app_code", "fragmentCount": "fragment_count", "totalSizeBytes": "total_size_bytes"}
    fields = {
        ours.get(name, name): readers[name](value) if name in readers else value
        for name, value in entry.items()
        if name not in ("typeName", "type")
    }
    message: Message = KINDS[entry["typeName"]](**fields)
    assert message.type == entry["type"]
    return message


def frame_of(vector: dict[str, Any]) -> bytes:
    """The bytes of a vector that gives them."""
    return bytes.fromhex(vector["hex"])


# The vectors ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_reference() -> None:
    """Limits and protocol version of the vector file are the ones compiled in."""
    assert VECTORS["protocolVersion"] == 1
    assert VECTORS["maxMessageSize"] == MAX_MESSAGE_SIZE
    assert VECTORS["maxRoomIdBytes"] == MAX_ROOM_ID_BYTES
    assert FRAGMENT_SIZE == 245_760  # what peers see on the wire
    assert {vector["message"]["type"] for vector in VECTORS["vectors"]} == set(MessageType)
    assert {vector["message"]["crdt"] for vector in VECTORS["vectors"]} == set(CrdtType)


@pytest.mark.parametrize("vector", named(VECTORS["vectors"]))
def test_vector_encodes_to_the_byte(vector: dict[str, Any]) -> None:
    """Each message becomes the bytes that the reference makes of it."""
    frame = encode(message_of(vector["message"]))
    if "hex" in vector:
        assert frame == frame_of(vector)
    else:
        assert len(frame) == vector["length"]
        assert frame.startswith(bytes.fromhex(vector["headHex"]))
        assert frame.endswith(bytes.fromhex(vector["tailHex"]))
        assert hashlib.sha256(frame).hexdigest() == vector["sha256"]


@pytest.mark.parametrize("vector", named(VECTORS["vectors"]))
def test_vector_decodes(vector: dict[str, Any]) -> None:
    """Each frame means to us what it means to the reference; only a byte order mark we keep."""
    if "hex" in vector:
        frame, expected = frame_of(vector), message_of(vector["decoded"])
    else:
        assert "decoded" not in vector
        expected = message_of(vector["message"])
        frame = encode(expected)
        assert hashlib.sha256(frame).hexdigest() == vector["sha256"]
    if "BOM" in vector["name"]:
        expected = dataclasses.replace(expected, room_id="\ufeff" + expected.room_id)
    assert decode(frame) == expected


WRONG: dict[str, tuple[Any, str]] = {
    "room id 129 bytes": (Leave(LORO, "a" * 129), "Leave.room_id is 129 bytes of UTF-8, the limit is 128"),
    "room id 43 x 3-byte utf-8 = 129 bytes": (Leave(LORO, "\u90e8" * 43), "Leave.room_id is 129 bytes of UTF-8"),
    "unknown crdt": (Leave("%XXX", "r"), "Leave.crdt must be one of %LOR, .*, not '%XXX'"),  # type: ignore[arg-type]
    # A message of ours has its type by its class, so a wrong number cannot be given, only a wrong class.
    "unknown message type 9": (9, r"encode\(\) takes one of the nine protocol messages, not int"),
    "message of 262145 bytes": (
        DocUpdate(LORO, "r", (bytes(262_126),), 1),
        "DocUpdate: the frame would be 262145 bytes, the limit is 262144",
    ),
    # The rest the reference lets through, and puts a frame on the wire that is wrong or not what was meant.
    # An id is a number here and always 8 bytes, so neither a short one nor a misread one can be written.
    "batchId of 4 bytes (NOT rejected: writes 4 bytes)": (
        Ack(LORO, "r", bytes(4), UpdateStatusCode.OK),  # type: ignore[arg-type]
        "Ack.ref_id must be an int .* not bytes",
    ),
    "batchId without 0x": (
        Ack(LORO, "r", "0102030405060708", UpdateStatusCode.OK),  # type: ignore[arg-type]
        "Ack.ref_id must be an int .* not '0102030405060708'",
    ),
    "unknown Ack status 2 (NOT rejected)": (
        Ack(LORO, "r", 1, 2),  # type: ignore[arg-type]
        "Ack.status must be a UpdateStatusCode, not 0x2",
    ),
    "permission 'admin' (NOT rejected)": (
        JoinResponseOk(LORO, "r", "admin", b"", b""),  # type: ignore[arg-type]
        "JoinResponseOk.permission must be 'read' or 'write', not 'admin'",
    ),
    "lone surrogate in the room id (becomes U+FFFD)": (
        Leave(LORO, "a\ud800"),
        "Leave.room_id has a lone surrogate at character 1",
    ),
}


@pytest.mark.parametrize("entry", named(VECTORS["encodeErrors"]))
def test_encode_refuses(entry: dict[str, Any]) -> None:
    """What the reference refuses we refuse, and what it should have refused too."""
    message, why = WRONG[entry["name"]]
    with pytest.raises(ProtocolError, match=f"^{why}"):
        encode(message)


MALFORMED = {
    "empty": r"crdt \(byte 0\): 4 bytes needed, 0 left",
    "3 bytes": r"crdt \(byte 0\): 4 bytes needed, 3 left",
    "only crdt": r"room_id \(byte 4\): the frame ends before the number does",
    "lower-case crdt %lor": r"crdt \(byte 0\): b'%lor' is none of %LOR, ",
    "unknown crdt %XXX": r"crdt \(byte 0\): b'%XXX' is none of",
    "crdt of invalid utf-8": r"crdt \(byte 0\): b'\\xffLOR' is none of",
    "text ping as binary": r"crdt \(byte 0\): b'ping' is none of",
    "room length beyond the buffer": r"room_id \(byte 4\): 5 bytes announced, 2 left",
    "no message type": r"message type \(byte 6\): 1 byte needed, 0 left",
    "message type 0x09": r"message type \(byte 6\): 0x09 is none of",
    "message type 0xff": r"message type \(byte 6\): 0xff is none of",
    "uleb of 6 bytes": r"room_id \(byte 4\): the number has more than 5 bytes or 32 bits",
    "uleb 5 bytes with overflow bits (ffffffff7f)": r"room_id \(byte 4\): the number has more than 5 bytes or 32",
    "JoinRequest truncated in auth": r"JoinRequest.auth \(byte 7\): 5 bytes announced, 1 left",
    "JoinRequest without version": r"JoinRequest.version \(byte 8\): the frame ends before the number does",
    "JoinResponseOk permission 'admin'": r"JoinResponseOk.permission \(byte 7\): its 5 bytes are neither",
    "JoinResponseOk without extra (v0 style)": r"JoinResponseOk.extra \(byte 14\): the frame ends before",
    "JoinError version_unknown, truncated receiver version": (
        r"JoinError.receiver_version \(byte 10\): 5 bytes announced, 1 left"
    ),
    "DocUpdate without batch id": r"DocUpdate.batch_id \(byte 10\): 8 bytes needed, 0 left",
    "DocUpdate 7-byte batch id": r"DocUpdate.batch_id \(byte 8\): 8 bytes needed, 7 left",
    "DocUpdate trailing byte": r"DocUpdate \(byte 16\): 1 bytes after the last field",
    "DocUpdate count beyond the data": r"DocUpdate.updates \(byte 7\): 255 updates announced, 10 bytes left",
    "DocUpdate count 2^32-1": r"DocUpdate.updates \(byte 7\): 4294967295 updates announced, 8 bytes left",
    "FragmentHeader trailing byte": r"DocUpdateFragmentHeader \(byte 17\): 1 bytes after the last field",
    "FragmentHeader missing total": r"DocUpdateFragmentHeader.total_size_bytes \(byte 16\): the frame ends",
    "Fragment missing batch": r"DocUpdateFragment.batch_id \(byte 7\): 8 bytes needed, 2 left",
    "Fragment trailing byte": r"DocUpdateFragment \(byte 18\): 1 bytes after the last field",
    "RoomError without message": r"RoomError.message \(byte 8\): the frame ends before the number does",
    "Ack 8 bytes": r"Ack.status \(byte 15\): 1 byte needed, 0 left",
    "Ack trailing byte": r"Ack \(byte 16\): 1 bytes after the last field",
}


@pytest.mark.parametrize("entry", named(VECTORS["malformed"]))
def test_decode_refuses_what_is_malformed(entry: dict[str, Any]) -> None:
    """The error says which field of which message is wrong, at which byte, and how."""
    with pytest.raises(ProtocolError, match=f"^{MALFORMED[entry['name']]}"):
        decode(frame_of(entry))


@pytest.mark.parametrize("entry", named(VECTORS["lenient"]))
def test_decode_is_as_lenient_as_the_reference(entry: dict[str, Any]) -> None:
    """Unknown codes, overlong numbers, long room ids, large frames, bytes at the end where they are ignored."""
    if entry["hex"].endswith("..."):  # the only one that the file shortens
        update = bytes(entry["decoded"]["updates"][0]["lengthBytes"])
        head = bytes.fromhex("254c4f520172030180e012")
        frame = head + update + bytes.fromhex("0102030405060708")
        assert frame.startswith(bytes.fromhex(entry["hex"].removesuffix("...")))
        assert decode(frame) == DocUpdate(LORO, "r", (update,), 0x0102030405060708)
    else:
        assert decode(frame_of(entry)) == message_of(entry["decoded"])


# Round trips ------------------------------------------------------------------------------------------------------

crdts = st.sampled_from(CrdtType)
characters = st.characters(exclude_categories=["Cs"])  # all but lone surrogates
room_ids = st.text(characters, max_size=128).filter(lambda text: len(text.encode()) <= MAX_ROOM_ID_BYTES)
texts = st.text(characters, max_size=300)
blobs = st.binary(max_size=300)
u32s = st.integers(0, 2**32 - 1)
u64s = st.integers(0, 2**64 - 1)
join_errors = st.one_of(
    st.builds(JoinError, crdts, room_ids, st.sampled_from(JoinErrorCode), texts),
    st.builds(JoinError, crdts, room_ids, st.just(JoinErrorCode.VERSION_UNKNOWN), texts, st.none() | blobs),
    st.builds(
        JoinError, crdts, room_ids, st.just(JoinErrorCode.APP_ERROR), texts, st.none(), st.none() | texts.filter(bool)
    ),
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(JoinRequest, crdts, room_ids, blobs, blobs),
    st.builds(JoinResponseOk, crdts, room_ids, st.sampled_from(["read", "write"]), blobs, blobs),
    join_errors,
    st.builds(DocUpdate, crdts, room_ids, st.lists(blobs, max_size=200).map(tuple), u64s),
    st.builds(DocUpdateFragmentHeader, crdts, room_ids, u64s, u32s, u32s),
    st.builds(DocUpdateFragment, crdts, room_ids, u64s, u32s, blobs),
    st.builds(RoomError, crdts, room_ids, st.sampled_from(RoomErrorCode), texts),
    st.builds(Leave, crdts, room_ids),
    st.builds(Ack, crdts, room_ids, u64s, st.sampled_from(UpdateStatusCode)),
)


@settings(deadline=None, max_examples=400)
@given(message=messages)
def test_round_trip(message: Message) -> None:
    """Any message comes back as it was, of the same types, and its frame begins with the room's header."""
    frame = encode(message)
    assert frame.startswith(room_header(message.crdt, message.room_id) + bytes([message.type]))
    back = decode(frame)
    assert back == message
    assert [type(getattr(back, f.name)) for f in dataclasses.fields(back)] == [
        type(getattr(message, f.name)) for f in dataclasses.fields(message)
    ]


def outcome(frame: bytes) -> Message | ProtocolError:
    """What decode makes of a frame; any other exception goes up and fails the test."""
    try:
        return decode(frame)
    except ProtocolError as error:
        return error


@settings(deadline=None, max_examples=400)
@given(frame=st.binary(max_size=400) | st.builds(lambda tail: b"%LOR\x01r" + tail, st.binary(max_size=400)))
def test_decode_of_any_bytes_raises_nothing_else(frame: bytes) -> None:
    """Whatever the bytes are: one of the nine messages, or a ProtocolError."""
    result = outcome(frame)
    assert type(result) in KINDS.values() or "(byte " in str(result)


@st.composite
def mutated_frames(draw: st.DrawFn) -> bytes:
    """A valid frame with a few bytes changed, put in, or taken away."""
    frame = bytearray(encode(draw(messages)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(frame)))
        frame[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(frame)


@settings(deadline=None, max_examples=400)
@given(frame=mutated_frames())
def test_decode_of_a_damaged_frame_raises_nothing_else(frame: bytes) -> None:
    """A frame that was damaged is another message, or a ProtocolError; what is decoded is what is written."""
    result = outcome(frame)
    if isinstance(result, ProtocolError):
        assert "(byte " in str(result)
    elif isinstance(result, JoinError) and result.app_code == "":  # read, but never written
        assert decode(encode(result)) == dataclasses.replace(result, app_code=None)
    elif len(result.room_id.encode()) <= MAX_ROOM_ID_BYTES:  # a longer one is read, but never written
        assert decode(encode(result)) == result


@settings(deadline=None, max_examples=100)
@given(message=messages, data=st.data())
def test_every_truncation_of_a_frame_is_refused_or_complete(message: Message, data: st.DataObject) -> None:
    """A frame cut anywhere is refused; only the two optional fields of JoinError may be cut off whole."""
    frame = encode(message)
    result = outcome(frame[: data.draw(st.integers(0, len(frame) - 1))])
    if not isinstance(result, ProtocolError):
        assert isinstance(message, JoinError)
        assert result == dataclasses.replace(message, receiver_version=None, app_code=None)


# Field by field ---------------------------------------------------------------------------------------------------

HEADER = b"%EPH\x02ab"
LONG = bytes(200)
FIELDS: dict[str, tuple[int, list[tuple[str, bytes]]]] = {
    "JoinRequest": (0, [("auth", b"\x03abc"), ("version", b"\xc8\x01" + LONG)]),
    "JoinResponseOk": (1, [("permission", b"\x04read"), ("version", b"\x02vv"), ("extra", b"\x01x")]),
    "JoinError": (2, [("code", b"\x00"), ("message", b"\x02no")]),
    "JoinError with a version": (2, [("code", b"\x01"), ("message", b"\x02no"), ("receiver_version", b"\x02vv")]),
    "JoinError with a code": (2, [("code", b"\x7f"), ("message", b"\x02no"), ("app_code", b"\x04full")]),
    "DocUpdate": (
        3,
        [("updates", b"\x02"), ("updates", b"\x03abc"), ("updates", b"\xc8\x01" + LONG), ("batch_id", b"12345678")],
    ),
    "DocUpdateFragmentHeader": (
        4,
        [("batch_id", b"12345678"), ("fragment_count", b"\x80\x01"), ("total_size_bytes", b"\x81\x82\x03")],
    ),
    "DocUpdateFragment": (5, [("batch_id", b"12345678"), ("index", b"\x80\x01"), ("fragment", b"\x02ab")]),
    "RoomError": (6, [("code", b"\x02"), ("message", b"\x02no")]),
    "Leave": (7, []),
    "Ack": (8, [("ref_id", b"12345678"), ("status", b"\x00")]),
}
"""The number of each message, and its fields as they stand on the wire."""
OPTIONAL = ("receiver_version", "app_code")
STRICT = ("DocUpdate", "DocUpdateFragmentHeader", "DocUpdateFragment", "Ack")


def shortage(field: bytes, of: str, there: int) -> str:
    """What is wrong with a field of which only so many bytes are there."""
    if of in ("code", "status"):
        return "1 byte needed, 0 left"
    if of in ("batch_id", "ref_id"):
        return f"8 bytes needed, {there} left"
    number = next(n for n, byte in enumerate(field, 1) if byte < 0x80)
    if there < number:
        return "the frame ends before the number does"
    return f"{len(field) - number} bytes announced, {there - number} left"


@pytest.mark.parametrize("name", FIELDS)
def test_decode_names_the_field_that_is_cut_off_and_where_it_begins(name: str) -> None:
    """With every frame cut at every byte: which field, from which byte, and what is missing."""
    kind = name.partition(" ")[0]
    number, fields = FIELDS[name]
    frame = HEADER + bytes((number,))
    for field, raw in fields:
        start = len(frame)
        for there in range(len(raw)):
            if there == 0 and field in OPTIONAL:
                continue  # a whole message without it
            cut = frame + raw[:there]
            expected = f"{kind}.{field} (byte {start}): {shortage(raw, field, there)}"
            if kind == "DocUpdate" and len(frame) > 8 and len(cut) - 9 < 2:
                expected = f"DocUpdate.updates (byte 8): 2 updates announced, {len(cut) - 9} bytes left"
            with pytest.raises(ProtocolError) as caught:
                decode(cut)
            assert str(caught.value) == expected
        frame += raw
    message = decode(frame)
    assert type(message).__name__ == kind
    assert encode(message) == frame


@pytest.mark.parametrize("name", FIELDS)
def test_bytes_after_the_last_field_are_refused_where_the_reference_refuses_them(name: str) -> None:
    """Two of them: which message, where they begin, how many; in the other messages they are ignored."""
    number, fields = FIELDS[name]
    frame = HEADER + bytes((number,)) + b"".join(raw for _, raw in fields)
    if name in STRICT:
        with pytest.raises(ProtocolError, match=rf"^{name} \(byte {len(frame)}\): 2 bytes after the last field$"):
            decode(frame + b"\0\0")
    elif name != "JoinError":
        assert decode(frame + b"\0\0") == decode(frame)


def test_decode_names_the_part_of_the_header_that_is_cut_off() -> None:
    """CRDT type, room id, message type."""
    frame = HEADER + b"\x07"
    for there in range(len(frame)):
        what, start, missing = (
            ("crdt", 0, f"4 bytes needed, {there} left")
            if there < 4
            else ("message type", 7, "1 byte needed, 0 left")
            if there == 7
            else ("room_id", 4, shortage(HEADER[4:], "room_id", there - 4))
        )
        with pytest.raises(ProtocolError) as caught:
            decode(frame[:there])
        assert str(caught.value) == f"{what} (byte {start}): {missing}"
    with pytest.raises(ProtocolError, match=r"^message type \(byte 7\): 0x09 is none of 0x00 to 0x08$"):
        decode(HEADER + b"\x09")
    with pytest.raises(ProtocolError, match=r"^crdt \(byte 0\): b'%XXX' is none of %LOR, %EPH, "):
        decode(b"%XXX" + frame[4:])


# By hand ----------------------------------------------------------------------------------------------------------


def test_batch_id_is_big_endian() -> None:
    """0x0102030405060708 goes out as the bytes 01 to 08."""
    frame = encode(Ack(LORO, "r", 0x0102030405060708, UpdateStatusCode.OK))
    assert frame == b"%LOR\x01r\x08\x01\x02\x03\x04\x05\x06\x07\x08\x00"


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("00", 0),
        ("7f", 127),
        ("8001", 128),
        ("8000", 0),
        ("8180808000", 1),
        ("ffff7f", 2**21 - 1),
        ("ffffffff0f", 2**32 - 1),
    ],
)
def test_numbers_that_are_read(number: str, value: int) -> None:
    """Up to five bytes and 32 bits, the shortest form or not."""
    frame = b"%LOR\x01r\x04" + bytes(8) + b"\x01" + bytes.fromhex(number)
    assert decode(frame) == DocUpdateFragmentHeader(LORO, "r", 0, 1, value)


@pytest.mark.parametrize("number", ["ffffffff10", "ffffffff7f", "808080808000", "8080808080", "ffffffffff"])
def test_numbers_that_are_too_large(number: str) -> None:
    """Unlike the reference we drop no bits: a number of more than 32 bits, or of six bytes, is refused."""
    frame = b"%LOR\x01r\x04" + bytes(8) + b"\x01" + bytes.fromhex(number)
    with pytest.raises(ProtocolError, match=r"total_size_bytes \(byte 16\): the number has more than 5 bytes or 32"):
        decode(frame)


@pytest.mark.parametrize("number", ["", "80", "ffffff", "80808080"])
def test_numbers_that_are_cut_off(number: str) -> None:
    """A number that the end of the frame cuts off is told from one that is too large."""
    frame = b"%LOR\x01r\x04" + bytes(8) + b"\x01" + bytes.fromhex(number)
    with pytest.raises(ProtocolError, match=r"total_size_bytes \(byte 16\): the frame ends before the number does"):
        decode(frame)


def test_a_count_is_not_believed() -> None:
    """2**32 - 1 updates announced in a large frame cost neither the loop nor the memory."""
    frame = b"%LOR\x01r\x03\xff\xff\xff\xff\x0f" + bytes(200_000)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4294967295 updates announced, 200000 bytes left"):
            decode(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize(
    "head",
    [b"%LOR", b"%LOR\x01r\x00", b"%LOR\x01r\x01", b"%LOR\x01r\x03\x01", b"%LOR\x01r\x05" + bytes(9)],
    ids=["room_id", "auth", "permission", "update", "fragment"],
)
def test_a_length_is_not_believed(head: bytes) -> None:
    """A length of 2**32 - 1 is refused before a byte of it is allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4294967295 bytes announced, 3 left"):
            decode(head + b"\xff\xff\xff\xff\x0fabc")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_text_is_read_with_replacement_characters_and_its_byte_order_mark() -> None:
    """Bad UTF-8 in any text is no error; a mark that came stays, so that ids stay distinct."""
    text = b"\x06\xef\xbb\xbfa\xff\xc3"
    shown = "\ufeffa\ufffd\ufffd"
    assert decode(b"%LOR" + text + b"\x07") == Leave(LORO, shown)
    assert decode(b"%LOR\x01r\x06\x02" + text) == RoomError(LORO, "r", RoomErrorCode.EVICTED, shown)
    assert decode(b"%LOR\x01r\x02\x7f" + text + text) == JoinError(
        LORO, "r", JoinErrorCode.APP_ERROR, shown, None, shown
    )


def test_a_permission_is_compared_by_its_bytes() -> None:
    """A byte order mark before ``read`` makes it another word (the reference strips the mark)."""
    with pytest.raises(ProtocolError, match=r"permission .* are neither b'read' nor b'write'"):
        decode(b"%LOR\x01r\x01\x07\xef\xbb\xbfread\x00\x00")


def test_a_long_permission_is_cut_in_the_error() -> None:
    """What a peer sends does not fill the log."""
    with pytest.raises(ProtocolError) as caught:
        decode(b"%LOR\x01r\x01\xff\x7f" + b"a" * 16383)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("frame", ["ping", bytearray(b"%LOR\x01r\x07"), memoryview(b"%LOR\x01r\x07"), None])
def test_decode_takes_bytes_only(frame: Any) -> None:
    """A text frame, or a buffer that may change later, is named as such."""
    with pytest.raises(ProtocolError, match=rf"takes the bytes of a binary frame, not {type(frame).__name__}$"):
        decode(frame)


OK = UpdateStatusCode.OK
HUGE = 10**5000  # too long for Python to write in decimal


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (None, "encode"),
        (Leave([], "r"), "Leave.crdt must be one of .* not list"),  # type: ignore[arg-type]
        (Leave(b"%LOR", "r"), "Leave.crdt must be one of .* not bytes"),  # type: ignore[arg-type]
        (Leave(HUGE, "r"), "Leave.crdt must be one of .* not 0x"),  # type: ignore[arg-type]
        (Leave(LORO, b"r"), "Leave.room_id must be str, not bytes"),  # type: ignore[arg-type]
        (JoinRequest(LORO, "r", "token", b""), "JoinRequest.auth must be bytes, not str"),  # type: ignore[arg-type]
        (JoinRequest(LORO, "r", b"", None), "JoinRequest.version must be bytes, not None"),  # type: ignore[arg-type]
        (JoinResponseOk(LORO, "r", [], b""), "JoinResponseOk.permission must be .* not list"),  # type: ignore[arg-type]
        (JoinResponseOk(LORO, "r", "read", ""), "JoinResponseOk.version must be bytes"),  # type: ignore[arg-type]
        (JoinResponseOk(LORO, "r", "read", b"", ""), "JoinResponseOk.extra must be bytes"),  # type: ignore[arg-type]
        (JoinError(LORO, "r", 3, ""), "JoinError.code must be a JoinErrorCode, not 0x3"),  # type: ignore[arg-type]
        (JoinError(LORO, "r", "1", ""), "JoinError.code must be a JoinErrorCode, not '1'"),  # type: ignore[arg-type]
        (JoinError(LORO, "r", HUGE, ""), "JoinError.code must be a JoinErrorCode, not 0x"),  # type: ignore[arg-type]
        (JoinError(LORO, "r", JoinErrorCode.UNKNOWN, b""), "JoinError.message must be str"),  # type: ignore[arg-type]
        (JoinError(LORO, "r", JoinErrorCode.UNKNOWN, "\udfff"), "JoinError.message has a lone surrogate"),
        (
            JoinError(LORO, "r", JoinErrorCode.VERSION_UNKNOWN, "", "v"),  # type: ignore[arg-type]
            "JoinError.receiver_version must be bytes, not str",
        ),
        (
            JoinError(LORO, "r", JoinErrorCode.APP_ERROR, "", None, b"c"),  # type: ignore[arg-type]
            "JoinError.app_code must be str, not bytes",
        ),
        (DocUpdate(LORO, "r", [b""], 1), "DocUpdate.updates must be a tuple of bytes, not list"),  # type: ignore[arg-type]
        (DocUpdate(LORO, "r", b"abc", 1), "DocUpdate.updates must be a tuple of bytes, not"),  # type: ignore[arg-type]
        (DocUpdate(LORO, "r", (b"", 7), 1), "each of DocUpdate.updates must be bytes, not int"),  # type: ignore[arg-type]
        (DocUpdate(LORO, "r", (), -1), "DocUpdate.batch_id must be an int from 0 .* not -0x1"),
        (DocUpdate(LORO, "r", (), 2**64), "DocUpdate.batch_id must be an int from 0 .* not 0x10000000000000000"),
        (DocUpdate(LORO, "r", (), HUGE), "DocUpdate.batch_id must be an int from 0"),
        (DocUpdate(LORO, "r", (), 1.0), "DocUpdate.batch_id must be an int .* not float"),  # type: ignore[arg-type]
        (DocUpdateFragmentHeader(LORO, "r", 2**64, 1, 1), "DocUpdateFragmentHeader.batch_id"),
        (DocUpdateFragmentHeader(LORO, "r", 1, 2**32, 1), "DocUpdateFragmentHeader.fragment_count must be an int"),
        (DocUpdateFragmentHeader(LORO, "r", 1, 1, -1), "DocUpdateFragmentHeader.total_size_bytes must be an int"),
        (DocUpdateFragment(LORO, "r", -1, 0, b""), "DocUpdateFragment.batch_id"),
        (DocUpdateFragment(LORO, "r", 1, 2**32, b""), "DocUpdateFragment.index must be an int from 0"),
        (DocUpdateFragment(LORO, "r", 1, "0", b""), "DocUpdateFragment.index must be an int"),  # type: ignore[arg-type]
        (DocUpdateFragment(LORO, "r", 1, 0, ""), "DocUpdateFragment.fragment must be bytes"),  # type: ignore[arg-type]
        (RoomError(LORO, "r", 0, ""), "RoomError.code must be a RoomErrorCode, not 0x0"),  # type: ignore[arg-type]
        (RoomError(LORO, "r", RoomErrorCode.EVICTED, None), "RoomError.message must be str"),  # type: ignore[arg-type]
        (Ack(LORO, "r", 2**64, OK), "Ack.ref_id must be an int from 0"),
        (Ack(LORO, "r", 1, []), "Ack.status must be a UpdateStatusCode, not list"),  # type: ignore[arg-type]
    ],
)
def test_encode_refuses_wrong_values(message: Any, why: str) -> None:
    """A field of the wrong type or out of range is named, and nothing goes on the wire."""
    with pytest.raises(ProtocolError, match=f"^{why}"):
        encode(message)


def test_a_wrong_value_is_shown_cut_short() -> None:
    """Forty characters: a number in hex, as Python refuses to write a very long one in decimal; text quoted."""
    for value, shown in ((HUGE, hex(HUGE)[:40]), ("x" * 99, "'" + "x" * 39), (b"secret", "bytes"), (None, "NoneType")):
        with pytest.raises(ProtocolError) as caught:
            encode(Ack(LORO, "r", value, OK))  # type: ignore[arg-type]
        assert str(caught.value) == f"Ack.ref_id must be an int from 0 to 2**64 - 1, not {shown}"


def test_a_frame_may_be_as_large_as_the_limit_and_no_larger() -> None:
    """262,144 bytes are sent, one more is refused, whatever the message."""
    auth = bytes(MAX_MESSAGE_SIZE - 11)
    assert len(encode(JoinRequest(LORO, "r", auth, b""))) == MAX_MESSAGE_SIZE
    with pytest.raises(ProtocolError, match="JoinRequest: the frame would be 262145 bytes"):
        encode(JoinRequest(LORO, "r", auth + b"\0", b""))


@pytest.mark.parametrize("message", [
    JoinRequest(LORO, "r", b"", bytes(MAX_MESSAGE_SIZE)),
    JoinResponseOk(LORO, "r", "read", bytes(MAX_MESSAGE_SIZE)),
    JoinError(LORO, "r", JoinErrorCode.UNKNOWN, "x" * MAX_MESSAGE_SIZE),
    DocUpdate(LORO, "r", (bytes(MAX_MESSAGE_SIZE),), 1),
    DocUpdate(LORO, "r", (b"",) * MAX_MESSAGE_SIZE, 1),
    DocUpdateFragment(LORO, "r", 1, 0, bytes(MAX_MESSAGE_SIZE)),
    RoomError(LORO, "r", RoomErrorCode.UNKNOWN, "x" * MAX_MESSAGE_SIZE),
])  # fmt: skip
def test_a_message_that_is_too_large_is_named(message: Message) -> None:
    """Every one that may be."""
    with pytest.raises(ProtocolError, match=rf"^{type(message).__name__}: the frame would be 262\d\d\d bytes"):
        encode(message)


def test_credentials_are_never_shown() -> None:
    """Auth bytes are neither in the repr of a JoinRequest nor in the error about them."""
    assert "hunter2" not in repr(JoinRequest(LORO, "r", b"hunter2", b""))
    with pytest.raises(ProtocolError) as caught:
        encode(JoinRequest(LORO, "r", "hunter2", b""))  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_optional_fields_that_do_not_go_with_the_code_are_left_out() -> None:
    """receiver_version is sent with VERSION_UNKNOWN only, app_code with APP_ERROR only and if not empty."""
    for code in JoinErrorCode:
        bare = encode(JoinError(LORO, "r", code, "m"))
        assert (encode(JoinError(LORO, "r", code, "m", b"v")) == bare) == (code != JoinErrorCode.VERSION_UNKNOWN)
        assert (encode(JoinError(LORO, "r", code, "m", None, "c")) == bare) == (code != JoinErrorCode.APP_ERROR)
        assert encode(JoinError(LORO, "r", code, "m", None, "")) == bare


def test_room_header_is_what_every_frame_of_the_room_begins_with() -> None:
    """CRDT type, length, room id; the length of the longest id takes two bytes."""
    assert room_header(CrdtType.EPHEMERAL, "r\u00e9") == b"%EPH\x03r\xc3\xa9"
    assert room_header(LORO, "") == b"%LOR\x00"
    assert room_header(LORO, "a" * 128) == b"%LOR\x80\x01" + b"a" * 128


@pytest.mark.parametrize(
    ("crdt", "room_id", "why"),
    [
        (LORO, "a" * 129, "room_id is 129 bytes of UTF-8, the limit is 128"),
        (LORO, "\ud800", "room_id has a lone surrogate at character 0"),
        (LORO, None, "room_id must be str, not NoneType"),
        ("%lor", "r", "crdt must be one of %LOR, %EPH, %EPS, %YJS, %YAW, %ELO, %FLO, not '%lor'"),
        (None, "r", "crdt must be one of .* not NoneType"),
    ],
)
def test_room_header_says_what_is_wrong(crdt: Any, room_id: Any, why: str) -> None:
    """The same checks as for a whole message, for whoever keeps the header."""
    with pytest.raises(ProtocolError, match=f"^{why}"):
        room_header(crdt, room_id)


@pytest.mark.parametrize("kind", KINDS.values())
def test_messages_are_frozen_and_slotted(kind: Any) -> None:
    """A message cannot change after it was checked, and carries no dict."""
    assert kind.__dataclass_params__.frozen
    assert "__dict__" not in dir(kind)


def test_public_names() -> None:
    """Each name of ``__all__`` is there, sorted once, with nothing underscored."""
    assert all(hasattr(loro_protocol, name) and not name.startswith("_") for name in loro_protocol.__all__)
    assert len(set(loro_protocol.__all__)) == len(loro_protocol.__all__)


@pytest.mark.parametrize("frame", [b"%XYZ\x01r\x03", b"", b"%L"])
def test_reading_in_steps_refuses_what_reading_at_once_refuses(frame: bytes) -> None:
    """A frame that is none of the protocol's has the same error, and no step is done for it."""
    with pytest.raises(ProtocolError) as at_once:
        decode(frame)
    with pytest.raises(ProtocolError) as in_steps:
        next(decode_in_steps(frame))
    assert str(in_steps.value) == str(at_once.value)
