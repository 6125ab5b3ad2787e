"""Messages to bytes and back.

`encode` is strict: a frame that a peer could misread never leaves. `decode` is as lenient as the JavaScript
reference: codes it does not know become ``UNKNOWN``, and bytes after the last field are ignored in the messages whose
reader there ignores them. It differs in three things: text is decoded with ``errors="replace"`` and a byte order mark
is kept (so two room ids that differ on the wire by a mark stay two), and a varuint has at most 5 bytes and 32 bits
(the reference takes a sixth byte, and drops the bits above).

Nothing is believed of a length or a count before the bytes are there, so no frame costs more memory than a small
multiple of its own size.

Reading passes an index along: each ``_read_…`` takes the frame and where to begin, and returns the value and where it
ended. A reader object with a method call for each byte costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any, NoReturn

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol.messages import (
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
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
)

__all__ = ["decode", "decode_in_steps", "encode", "room_header"]

_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1


# Writing ----------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The frame of a message, at most `MAX_MESSAGE_SIZE` bytes.

    Raises `ProtocolError` for anything that would put a wrong frame on the wire: a value of the wrong type or out of
    range, an unknown code, text that has no UTF-8 form, a room id or a frame that is too long. The error names the
    message and the field, and never shows the field's bytes: they may be credentials.
    """
    kind = type(message)
    known = _WRITERS.get(kind)
    if known is None:
        raise ProtocolError(f"encode() takes one of the nine protocol messages, not {kind.__name__}")
    type_byte, write = known
    try:
        header = room_header(message.crdt, message.room_id)
    except ProtocolError as error:
        raise ProtocolError(f"{kind.__name__}.{error}") from None
    frame = b"".join((header, type_byte, *write(message)))
    if len(frame) > MAX_MESSAGE_SIZE:
        raise ProtocolError(
            f"{kind.__name__}: the frame would be {len(frame)} bytes, the limit is {MAX_MESSAGE_SIZE};"
            " split() sends a large update in fragments"
        )
    return frame


def room_header(crdt: CrdtType, room_id: str) -> bytes:
    """The bytes that every frame of a room begins with: CRDT type and room id.

    Raises `ProtocolError` when the CRDT type is unknown, or the room id is no text, has a lone surrogate, or is longer
    than `MAX_ROOM_ID_BYTES` in UTF-8.
    """
    tag = _TAGS.get(crdt) if isinstance(crdt, str) else None
    if tag is None:
        raise ProtocolError(f"crdt must be one of {', '.join(_TAGS)}, not {_shown(crdt)}")
    raw = _utf8(room_id, "room_id")
    if len(raw) > MAX_ROOM_ID_BYTES:
        raise ProtocolError(f"room_id is {len(raw)} bytes of UTF-8, the limit is {MAX_ROOM_ID_BYTES}")
    return tag + _varuint(len(raw)) + raw


def _varuint(value: int) -> bytes:
    """ULEB128: seven bits a byte, the low ones first, the top bit set on all but the last."""
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _shown(value: object) -> str:
    """A wrong value in an error: short, and in hex, as Python refuses to write a very long int in decimal."""
    if isinstance(value, int):
        return hex(value)[:40]
    return f"{value!r:.40}" if isinstance(value, str) else type(value).__name__


def _u32(value: int, what: str) -> bytes:
    if not isinstance(value, int) or not 0 <= value <= _U32_MAX:
        raise ProtocolError(f"{what} must be an int from 0 to 2**32 - 1, not {_shown(value)}")
    return _varuint(value)


def _u64(value: int, what: str) -> bytes:
    if not isinstance(value, int) or not 0 <= value <= _U64_MAX:
        raise ProtocolError(f"{what} must be an int from 0 to 2**64 - 1, not {_shown(value)}")
    return value.to_bytes(8, "big")


def _code(value: int, codes: type[IntEnum], what: str) -> bytes:
    try:
        return bytes((codes(value),))
    except ValueError:
        raise ProtocolError(f"{what} must be a {codes.__name__}, not {_shown(value)}") from None


def _utf8(value: str, what: str) -> bytes:
    if not isinstance(value, str):
        raise ProtocolError(f"{what} must be str, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{what} has a lone surrogate at character {error.start}: it has no UTF-8 form") from None


def _text(value: str, what: str) -> tuple[bytes, bytes]:
    raw = _utf8(value, what)
    return _varuint(len(raw)), raw


def _bytes(value: bytes, what: str) -> tuple[bytes, bytes]:
    if not isinstance(value, bytes):
        raise ProtocolError(f"{what} must be bytes, not {type(value).__name__}")
    return _varuint(len(value)), value


def _write_join_request(m: JoinRequest) -> tuple[bytes, ...]:
    return *_bytes(m.auth, "JoinRequest.auth"), *_bytes(m.version, "JoinRequest.version")


def _write_join_response_ok(m: JoinResponseOk) -> tuple[bytes, ...]:
    if m.permission not in ("read", "write"):
        raise ProtocolError(f"JoinResponseOk.permission must be 'read' or 'write', not {_shown(m.permission)}")
    return (
        *_text(m.permission, "JoinResponseOk.permission"),
        *_bytes(m.version, "JoinResponseOk.version"),
        *_bytes(b"" if m.extra is None else m.extra, "JoinResponseOk.extra"),
    )


def _write_join_error(m: JoinError) -> tuple[bytes, ...]:
    parts = (_code(m.code, JoinErrorCode, "JoinError.code"), *_text(m.message, "JoinError.message"))
    if m.code == JoinErrorCode.VERSION_UNKNOWN and m.receiver_version is not None:
        return *parts, *_bytes(m.receiver_version, "JoinError.receiver_version")
    if m.code == JoinErrorCode.APP_ERROR and m.app_code:
        return *parts, *_text(m.app_code, "JoinError.app_code")
    return parts


def _write_doc_update(m: DocUpdate) -> list[bytes]:
    if not isinstance(m.updates, tuple):
        raise ProtocolError(f"DocUpdate.updates must be a tuple of bytes, not {type(m.updates).__name__}")
    parts = [_varuint(len(m.updates))]
    for update in m.updates:
        parts += _bytes(update, "each of DocUpdate.updates")
    parts.append(_u64(m.batch_id, "DocUpdate.batch_id"))
    return parts


def _write_fragment_header(m: DocUpdateFragmentHeader) -> tuple[bytes, ...]:
    return (
        _u64(m.batch_id, "DocUpdateFragmentHeader.batch_id"),
        _u32(m.fragment_count, "DocUpdateFragmentHeader.fragment_count"),
        _u32(m.total_size_bytes, "DocUpdateFragmentHeader.total_size_bytes"),
    )


def _write_fragment(m: DocUpdateFragment) -> tuple[bytes, ...]:
    return (
        _u64(m.batch_id, "DocUpdateFragment.batch_id"),
        _u32(m.index, "DocUpdateFragment.index"),
        *_bytes(m.fragment, "DocUpdateFragment.fragment"),
    )


def _write_room_error(m: RoomError) -> tuple[bytes, ...]:
    return _code(m.code, RoomErrorCode, "RoomError.code"), *_text(m.message, "RoomError.message")


def _write_leave(_: Leave) -> tuple[bytes, ...]:
    return ()


def _write_ack(m: Ack) -> tuple[bytes, ...]:
    return _u64(m.ref_id, "Ack.ref_id"), _code(m.status, UpdateStatusCode, "Ack.status")


# Reading ----------------------------------------------------------------------------------------------------------


def decode(frame: bytes) -> Message:
    """The message in a binary frame.

    Raises `ProtocolError`, and nothing else, for bytes that are no message; it names the message type (once that byte
    has been read), the field, the byte it begins at, and what is wrong there. A frame may be larger than
    `MAX_MESSAGE_SIZE`, as in the reference: bounding what is received is the transport's business.
    """
    if not isinstance(frame, bytes):
        raise ProtocolError(f"decode() takes the bytes of a binary frame, not {type(frame).__name__}")
    crdt = _CRDT_TYPES.get(frame[:4])
    if crdt is None:
        if len(frame) < 4:
            _fail("crdt", 0, f"4 bytes needed, {len(frame)} left")
        _fail("crdt", 0, f"{frame[:4]!r} is none of {', '.join(_TAGS)}")
    room_id, at = _read_text(frame, 4, "room_id")
    code, start = _read_byte(frame, at, "message type")
    read = _READERS.get(code)
    if read is None:
        _fail("message type", at, f"{code:#04x} is none of 0x00 to 0x08")
    return read(crdt, room_id, frame, start)


_IN_A_STEP = 256  # updates, which take a tenth of a millisecond


def decode_in_steps(frame: bytes) -> Generator[None, None, Message]:
    """As `decode`, but a DocUpdate, which may hold very many updates, is read in steps of some hundred.

    ``message = yield from decode_in_steps(frame)``.
    """
    crdt = _CRDT_TYPES.get(frame[:4])
    if crdt is None:
        return decode(frame)  # which says what is wrong
    room_id, at = _read_text(frame, 4, "room_id")
    code, start = _read_byte(frame, at, "message type")
    if code != DocUpdate.type:
        return decode(frame)
    return (yield from _doc_update(crdt, room_id, frame, start))


def _fail(what: str, at: int, why: str) -> NoReturn:
    raise ProtocolError(f"{what} (byte {at}): {why}")


def _read_byte(frame: bytes, at: int, what: str) -> tuple[int, int]:
    if at >= len(frame):
        _fail(what, at, "1 byte needed, 0 left")
    return frame[at], at + 1


def _read_varuint(frame: bytes, at: int, what: str) -> tuple[int, int]:
    try:
        byte = frame[at]
        if byte < 0x80:  # nearly every number is one byte
            return byte, at + 1
        value, end = byte & 0x7F, at + 1
        for shift in (7, 14, 21, 28):
            byte = frame[end]
            value |= (byte & 0x7F) << shift
            end += 1
            if byte < 0x80 and value <= _U32_MAX:
                return value, end
    except IndexError:
        _fail(what, at, "the frame ends before the number does")
    _fail(what, at, "the number has more than 5 bytes or 32 bits")


def _read_bytes(frame: bytes, at: int, what: str) -> tuple[bytes, int]:
    length, start = _read_varuint(frame, at, what)
    end = start + length
    if end > len(frame):
        _fail(what, at, f"{length} bytes announced, {len(frame) - start} left")
    return frame[start:end], end


def _read_text(frame: bytes, at: int, what: str) -> tuple[str, int]:
    raw, end = _read_bytes(frame, at, what)
    return raw.decode(errors="replace"), end


def _read_u64(frame: bytes, at: int, what: str) -> tuple[int, int]:
    end = at + 8
    if end > len(frame):
        _fail(what, at, f"8 bytes needed, {len(frame) - at} left")
    return int.from_bytes(frame[at:end], "big"), end


def _at_end(frame: bytes, at: int, what: str) -> None:
    if at != len(frame):
        _fail(what, at, f"{len(frame) - at} bytes after the last field")


def _read_join_request(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> JoinRequest:
    auth, at = _read_bytes(frame, at, "JoinRequest.auth")
    version, _ = _read_bytes(frame, at, "JoinRequest.version")
    return JoinRequest(crdt, room_id, auth, version)


def _read_join_response_ok(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> JoinResponseOk:
    raw, end = _read_bytes(frame, at, "JoinResponseOk.permission")
    permission = _PERMISSIONS.get(raw)
    if permission is None:
        _fail("JoinResponseOk.permission", at, f"its {len(raw)} bytes are neither b'read' nor b'write'")
    version, at = _read_bytes(frame, end, "JoinResponseOk.version")
    extra, _ = _read_bytes(frame, at, "JoinResponseOk.extra")
    return JoinResponseOk(crdt, room_id, permission, version, extra)


def _read_join_error(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> JoinError:
    byte, at = _read_byte(frame, at, "JoinError.code")
    code = _JOIN_ERROR_CODES.get(byte, JoinErrorCode.UNKNOWN)
    message, at = _read_text(frame, at, "JoinError.message")
    receiver_version = app_code = None
    if at < len(frame):
        if code == JoinErrorCode.VERSION_UNKNOWN:
            receiver_version, _ = _read_bytes(frame, at, "JoinError.receiver_version")
        elif code == JoinErrorCode.APP_ERROR:
            app_code, _ = _read_text(frame, at, "JoinError.app_code")
    return JoinError(crdt, room_id, code, message, receiver_version, app_code)


def _read_doc_update(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> DocUpdate:
    steps = _doc_update(crdt, room_id, frame, at)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            message: DocUpdate = end.value
            return message


def _doc_update(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> Generator[None, None, DocUpdate]:
    count, start = _read_varuint(frame, at, "DocUpdate.updates")
    if count > len(frame) - start:  # each takes a byte at least: do not set out on a loop that cannot end well
        _fail("DocUpdate.updates", at, f"{count} updates announced, {len(frame) - start} bytes left")
    updates: list[bytes] = []
    at = start
    for number in range(1, count + 1):
        update, at = _read_bytes(frame, at, "DocUpdate.updates")
        updates.append(update)
        if number % _IN_A_STEP == 0:
            yield
    batch_id, at = _read_u64(frame, at, "DocUpdate.batch_id")
    _at_end(frame, at, "DocUpdate")
    return DocUpdate(crdt, room_id, tuple(updates), batch_id)


def _read_fragment_header(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> DocUpdateFragmentHeader:
    batch_id, at = _read_u64(frame, at, "DocUpdateFragmentHeader.batch_id")
    fragment_count, at = _read_varuint(frame, at, "DocUpdateFragmentHeader.fragment_count")
    total_size_bytes, at = _read_varuint(frame, at, "DocUpdateFragmentHeader.total_size_bytes")
    _at_end(frame, at, "DocUpdateFragmentHeader")
    return DocUpdateFragmentHeader(crdt, room_id, batch_id, fragment_count, total_size_bytes)


def _read_fragment(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> DocUpdateFragment:
    batch_id, at = _read_u64(frame, at, "DocUpdateFragment.batch_id")
    index, at = _read_varuint(frame, at, "DocUpdateFragment.index")
    fragment, at = _read_bytes(frame, at, "DocUpdateFragment.fragment")
    _at_end(frame, at, "DocUpdateFragment")
    return DocUpdateFragment(crdt, room_id, batch_id, index, fragment)


def _read_room_error(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> RoomError:
    byte, at = _read_byte(frame, at, "RoomError.code")
    message, _ = _read_text(frame, at, "RoomError.message")
    return RoomError(crdt, room_id, _ROOM_ERROR_CODES.get(byte, RoomErrorCode.UNKNOWN), message)


def _read_leave(crdt: CrdtType, room_id: str, _frame: bytes, _at: int) -> Leave:
    return Leave(crdt, room_id)


def _read_ack(crdt: CrdtType, room_id: str, frame: bytes, at: int) -> Ack:
    ref_id, at = _read_u64(frame, at, "Ack.ref_id")
    byte, at = _read_byte(frame, at, "Ack.status")
    _at_end(frame, at, "Ack")
    return Ack(crdt, room_id, ref_id, _UPDATE_STATUS_CODES.get(byte, UpdateStatusCode.UNKNOWN))


# Tables -----------------------------------------------------------------------------------------------------------

_ONE_BYTE = [bytes((n,)) for n in range(0x80)]
_TAGS: dict[str, bytes] = {crdt.value: crdt.value.encode() for crdt in CrdtType}
_CRDT_TYPES = {crdt.value.encode(): crdt for crdt in CrdtType}
_PERMISSIONS: dict[bytes, Permission] = {b"read": "read", b"write": "write"}
_JOIN_ERROR_CODES = {code.value: code for code in JoinErrorCode}
_ROOM_ERROR_CODES = {code.value: code for code in RoomErrorCode}
_UPDATE_STATUS_CODES = {code.value: code for code in UpdateStatusCode}

_WRITERS: dict[type, tuple[bytes, Callable[[Any], tuple[bytes, ...] | list[bytes]]]] = {
    JoinRequest: (bytes((JoinRequest.type,)), _write_join_request),
    JoinResponseOk: (bytes((JoinResponseOk.type,)), _write_join_response_ok),
    JoinError: (bytes((JoinError.type,)), _write_join_error),
    DocUpdate: (bytes((DocUpdate.type,)), _write_doc_update),
    DocUpdateFragmentHeader: (bytes((DocUpdateFragmentHeader.type,)), _write_fragment_header),
    DocUpdateFragment: (bytes((DocUpdateFragment.type,)), _write_fragment),
    RoomError: (bytes((RoomError.type,)), _write_room_error),
    Leave: (bytes((Leave.type,)), _write_leave),
    Ack: (bytes((Ack.type,)), _write_ack),
}

_READERS: dict[int, Callable[[CrdtType, str, bytes, int], Message]] = {
    JoinRequest.type: _read_join_request,
    JoinResponseOk.type: _read_join_response_ok,
    JoinError.type: _read_join_error,
    DocUpdate.type: _read_doc_update,
    DocUpdateFragmentHeader.type: _read_fragment_header,
    DocUpdateFragment.type: _read_fragment,
    RoomError.type: _read_room_error,
    Leave.type: _read_leave,
    Ack.type: _read_ack,
}
