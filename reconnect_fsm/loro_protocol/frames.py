"""The frames that come and go most, without a message in between: for a room whose header is known.

Each function does what `encode` or `decode` does for one common shape of frame, in a quarter of the time, or returns
None: then `encode` or `decode` has the word, and says what is wrong if something is.
"""

from __future__ import annotations

from reconnect_fsm.loro_protocol.messages import MessageType, Permission

__all__ = ["header_of", "join_request", "read_join_response_ok", "read_ok", "read_update", "single_update"]

_JOIN_REQUEST = bytes((MessageType.JOIN_REQUEST,))
_ONE_UPDATE = bytes((MessageType.DOC_UPDATE, 1))
_PERMISSIONS: dict[bytes, Permission] = {b"\x04read": "read", b"\x05write": "write"}
_ONE_BYTE = [bytes((n,)) for n in range(0x80)]


def header_of(frame: bytes) -> bytes:
    """What the frame begins with if it is one of a room: compare it with `room_header`. ``b""`` if it is too short."""
    if len(frame) < 6:
        return b""
    size = frame[4]
    return frame[: 5 + size] if size < 0x80 else frame[: 6 + (size & 0x7F | frame[5] << 7)]


def join_request(header: bytes, auth: bytes, version: bytes) -> bytes | None:
    """The frame of a JoinRequest."""
    if type(auth) is not bytes or type(version) is not bytes or len(auth) >= 0x4000 or len(version) >= 0x4000:
        return None
    return b"".join((header, _JOIN_REQUEST, _varuint(len(auth)), auth, _varuint(len(version)), version))


def _varuint(length: int) -> bytes:
    """Of two bytes at most."""
    return _ONE_BYTE[length] if length < 0x80 else bytes((length & 0x7F | 0x80, length >> 7))


def single_update(header: bytes, update: bytes, batch_id: int) -> bytes | None:
    """The frame of a DocUpdate with one update in it."""
    if len(update) >= 0x4000:
        return None
    return b"".join((header, _ONE_UPDATE, _varuint(len(update)), update, batch_id.to_bytes(8, "big")))


def read_update(frame: bytes, at: int) -> tuple[bytes, int] | None:
    """The update and the batch id of a DocUpdate, whose type is at ``at``, if it has one update only."""
    try:
        size, start = frame[at + 2], at + 3
        if size >= 0x80:
            size, start = size & 0x7F | frame[at + 3] << 7, at + 4
            if size >= 0x4000:
                return None
    except IndexError:
        return None
    end = start + size
    if frame[at + 1] != 1 or end + 8 != len(frame):
        return None
    return frame[start:end], int.from_bytes(frame[end:], "big")


def read_ok(frame: bytes, at: int) -> int | None:
    """The batch id of an Ack, whose type is at ``at``, if it says that all is well."""
    return int.from_bytes(frame[at + 1 : -1], "big") if len(frame) == at + 10 and frame[-1] == 0 else None


def read_join_response_ok(frame: bytes, at: int) -> tuple[Permission, bytes] | None:
    """The permission and the version of a JoinResponseOk, whose type is at ``at``, if it has no metadata."""
    try:
        start = at + 2 + frame[at + 1]
        permission, size = _PERMISSIONS.get(frame[at + 1 : start]), frame[start]
    except IndexError:
        return None
    end = start + 1 + size
    if permission is None or size >= 0x80 or end + 1 != len(frame) or frame[end] != 0:
        return None
    return permission, frame[start + 1 : end]
