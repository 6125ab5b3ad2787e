"""The Loro syncing protocol v1: nine binary messages, their bytes, and updates too large for one of them.

Every frame begins with the room it is about, then the type of the message, then the fields of that type::

    crdt (4)  room_id (text)  type (1)  fields …

    type  message                  fields
    0x00  JoinRequest              auth (bytes), version (bytes)
    0x01  JoinResponseOk           permission (text "read" or "write"), version (bytes), extra (bytes)
    0x02  JoinError                code (1), message (text), then with code 0x01: receiver_version (bytes), if any
                                                             with code 0x7f: app_code (text), if any
    0x03  DocUpdate                count (varuint), that many updates (bytes), batch_id (8)
    0x04  DocUpdateFragmentHeader  batch_id (8), fragment_count (varuint), total_size_bytes (varuint)
    0x05  DocUpdateFragment        batch_id (8), index (varuint), fragment (bytes)
    0x06  RoomError                code (1), message (text)
    0x07  Leave
    0x08  Ack                      ref_id (8), status (1)

``(n)``: n bytes; numbers are big endian. *varuint*: ULEB128 of at most 32 bits. *bytes* and *text* (UTF-8): a varuint
that says their length, then themselves. A room id has at most 128 bytes, a frame at most 262,144. The keepalive
messages ``ping`` and ``pong`` are text frames, not messages of this protocol.
"""

from reconnect_fsm.loro_protocol.encoding import decode, decode_in_steps, encode, room_header
from reconnect_fsm.loro_protocol.fragments import Batch, Reassembler, RefusedBatch, split
from reconnect_fsm.loro_protocol.messages import (
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
    Permission,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
)

__all__ = [
    "FRAGMENT_SIZE",
    "MAX_MESSAGE_SIZE",
    "MAX_ROOM_ID_BYTES",
    "Ack",
    "Batch",
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
    "Reassembler",
    "RefusedBatch",
    "RoomError",
    "RoomErrorCode",
    "UpdateStatusCode",
    "decode",
    "decode_in_steps",
    "encode",
    "room_header",
    "split",
]
