"""The nine messages of the Loro syncing protocol v1, and the numbers and limits they are made of.

Plain values: they check nothing. `encode` refuses a message that cannot be sent, and `decode` returns only messages
that could be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import ClassVar, Literal, TypeAlias

__all__ = [
    "FRAGMENT_SIZE",
    "MAX_MESSAGE_SIZE",
    "MAX_ROOM_ID_BYTES",
    "Ack",
    "CrdtType",
    "DocUpdate",
    "DocUpdateFragment",
    "DocUpdateFragmentHeader",
    "JoinError",
    "JoinErrorCode",
    "JoinRequest",
    "JoinResponseOk",
    "Leave",
    "Message",
    "MessageType",
    "Permission",
    "RoomError",
    "RoomErrorCode",
    "UpdateStatusCode",
]

MAX_MESSAGE_SIZE = 256 * 1024
"""Most bytes that one frame may have."""
MAX_ROOM_ID_BYTES = 128
"""Most bytes of UTF-8 that a room id may have."""
FRAGMENT_SIZE = 240 * 1024
"""An update of more bytes is sent in fragments; each fragment but the last has this size."""


class CrdtType(StrEnum):
    """The kind of document in a room; the value is the four bytes that every frame of the room begins with."""

    LORO = "%LOR"
    EPHEMERAL = "%EPH"
    EPHEMERAL_PERSISTED = "%EPS"
    YJS = "%YJS"
    YJS_AWARENESS = "%YAW"
    ELO = "%ELO"
    FLOCK = "%FLO"


class MessageType(IntEnum):
    """The byte after the room id."""

    JOIN_REQUEST = 0
    JOIN_RESPONSE_OK = 1
    JOIN_ERROR = 2
    DOC_UPDATE = 3
    DOC_UPDATE_FRAGMENT_HEADER = 4
    DOC_UPDATE_FRAGMENT = 5
    ROOM_ERROR = 6
    LEAVE = 7
    ACK = 8


class JoinErrorCode(IntEnum):
    """Why a join was refused. A code that is not listed is decoded as ``UNKNOWN``."""

    UNKNOWN = 0
    VERSION_UNKNOWN = 1
    AUTH_FAILED = 2
    APP_ERROR = 0x7F


class RoomErrorCode(IntEnum):
    """Why the server put us out of a room (D-ROOMERR). A code that is not listed is decoded as ``UNKNOWN``."""

    REJOIN_SUGGESTED = 1
    EVICTED = 2
    UNKNOWN = 0x7F


class UpdateStatusCode(IntEnum):
    """The result of a batch of updates (D-ACK). A code that is not listed is decoded as ``UNKNOWN``; 2 is unused."""

    OK = 0
    UNKNOWN = 1
    PERMISSION_DENIED = 3
    INVALID_UPDATE = 4
    PAYLOAD_TOO_LARGE = 5
    RATE_LIMITED = 6
    FRAGMENT_TIMEOUT = 7
    APP_ERROR = 0x7F


Permission: TypeAlias = Literal["read", "write"]
"""What the server allows in a room."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Asks to join a room, with credentials and the version of the document here (REJOIN-1)."""

    type: ClassVar = MessageType.JOIN_REQUEST
    crdt: CrdtType
    room_id: str
    auth: bytes = field(repr=False)
    """Credentials; not in the repr, which may be logged."""
    version: bytes
    """The version here, as the CRDT encodes it; empty for none."""


@dataclass(frozen=True, slots=True)
class JoinResponseOk:
    """The join was accepted; with the version that the server has."""

    type: ClassVar = MessageType.JOIN_RESPONSE_OK
    crdt: CrdtType
    room_id: str
    permission: Permission
    version: bytes
    extra: bytes | None = None
    """Metadata of the application. The wire does not tell None from empty, so a decoded one is ``b""``."""


@dataclass(frozen=True, slots=True)
class JoinError:
    """The join was refused."""

    type: ClassVar = MessageType.JOIN_ERROR
    crdt: CrdtType
    room_id: str
    code: JoinErrorCode
    message: str
    receiver_version: bytes | None = None
    """The server's version (D-VERSION); on the wire only with ``VERSION_UNKNOWN``."""
    app_code: str | None = None
    """A code of the application; on the wire only with ``APP_ERROR``, and only if not empty."""


@dataclass(frozen=True, slots=True)
class DocUpdate:
    """A batch of updates, in either direction, with one Ack for all (D-ACK)."""

    type: ClassVar = MessageType.DOC_UPDATE
    crdt: CrdtType
    room_id: str
    updates: tuple[bytes, ...]
    batch_id: int
    """Unsigned 64 bits, big endian on the wire."""


@dataclass(frozen=True, slots=True)
class DocUpdateFragmentHeader:
    """Announces one update that is too large for a frame, and follows in fragments. Its numbers may be wrong."""

    type: ClassVar = MessageType.DOC_UPDATE_FRAGMENT_HEADER
    crdt: CrdtType
    room_id: str
    batch_id: int
    """Unsigned 64 bits, big endian on the wire."""
    fragment_count: int
    """Unsigned 32 bits."""
    total_size_bytes: int
    """Unsigned 32 bits."""


@dataclass(frozen=True, slots=True)
class DocUpdateFragment:
    """One fragment of an update."""

    type: ClassVar = MessageType.DOC_UPDATE_FRAGMENT
    crdt: CrdtType
    room_id: str
    batch_id: int
    """The id in the header."""
    index: int
    """Its place among the fragments, from 0. Unsigned 32 bits."""
    fragment: bytes


@dataclass(frozen=True, slots=True)
class RoomError:
    """The server put us out of the room, or suggests to join again (D-ROOMERR)."""

    type: ClassVar = MessageType.ROOM_ERROR
    crdt: CrdtType
    room_id: str
    code: RoomErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Leaves the room (D-LEAVE)."""

    type: ClassVar = MessageType.LEAVE
    crdt: CrdtType
    room_id: str


@dataclass(frozen=True, slots=True)
class Ack:
    """The result of a batch (D-ACK)."""

    type: ClassVar = MessageType.ACK
    crdt: CrdtType
    room_id: str
    ref_id: int
    """The ``batch_id`` that it answers. Unsigned 64 bits, big endian on the wire."""
    status: UpdateStatusCode


Message: TypeAlias = (
    JoinRequest
    | JoinResponseOk
    | JoinError
    | DocUpdate
    | DocUpdateFragmentHeader
    | DocUpdateFragment
    | RoomError
    | Leave
    | Ack
)
"""Any of the nine messages."""
