"""The server of a simulation: the embedded one, or one of yours, which misbehaves in more ways on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType

from reconnect_fsm.loro_protocol import (
    DocUpdate,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    Permission,
    UpdateStatusCode,
    encode,
)
from reconnect_fsm.testing.embedded_server import EmbeddedServer, close_payload

__all__ = ["Misbehaving", "misbehaving"]

UNREADABLE_VERSION: Final = b"\xff\x00"


class Misbehaving(EmbeddedServer):
    """Refuses, damages and loses updates, and answers as it is set to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.refusals: deque[UpdateStatusCode] = deque()
        """How the next batches are refused."""
        self.is_limiting = False
        """While True, every batch is refused with RATE_LIMITED."""
        self.harm: deque[str] = deque()
        """What happens to the next batches on their way to the other clients: "damaged" or "lost"."""
        self.join_refusals: deque[JoinErrorCode] = deque()
        """How the next joins are refused."""
        self.words = "by the nemesis"
        """What it says when it refuses."""
        self.max_bytes: int | None = None
        """A larger frame closes the connection (1009), as a gateway's limit does; None: `MAX_FRAME_BYTES`."""

    def behave(self) -> None:
        """Stop misbehaving."""
        self.refusals.clear()
        self.harm.clear()
        self.join_refusals.clear()
        self.is_limiting, self.max_bytes = False, None

    @property
    def backlog(self) -> int:
        """Bytes that are still to be sent."""
        return sum(connection.backlog for connection in self._connections)

    def say(self, texts: Iterable[str]) -> None:
        """Send texts to every client, at once."""
        for text in texts:
            for connection in self._connections:
                connection.send(WSMsgType.TEXT, text.encode())

    def close_each(self, code: int, reason: str) -> None:
        """Send every client a close frame, behind what was sent in this turn of the loop; do not wait."""
        payload = close_payload(code, reason)
        for connection in tuple(self._connections):
            connection.close(payload)

    async def _receive(self, connection: Any, frame: bytes) -> None:
        if self.max_bytes is not None and len(frame) > self.max_bytes:
            connection.close(close_payload(WSCloseCode.MESSAGE_TOO_BIG, "too big"))
        else:
            await super()._receive(connection, frame)

    async def _permission(self, connection: Any, request: JoinRequest) -> Permission | JoinError:
        if not self.join_refusals:
            return await super()._permission(connection, request)
        code = self.join_refusals.popleft()
        version = UNREADABLE_VERSION if code is JoinErrorCode.VERSION_UNKNOWN else None
        app_code = "quota" if code is JoinErrorCode.APP_ERROR else None
        return JoinError(request.crdt, request.room_id, code, self.words, receiver_version=version, app_code=app_code)

    def _apply(self, connection: Any, room: Any, updates: tuple[bytes, ...], batch_id: int) -> None:
        if self.is_limiting or self.refusals:
            status = UpdateStatusCode.RATE_LIMITED if self.is_limiting else self.refusals.popleft()
            self._ack(connection, room.crdt, room.room_id, batch_id, status)
        elif not self.harm or len(room.members) < 2:
            super()._apply(connection, room, updates, batch_id)
        else:
            harm = self.harm.popleft()
            status = room.contents.add(updates)
            self._ack(connection, room.crdt, room.room_id, batch_id, status)
            harmed = encode(DocUpdate(room.crdt, room.room_id, tuple(map(_damaged, updates)), batch_id))
            others = [member for member in room.members if member is not connection]
            if status is UpdateStatusCode.OK and harm == "damaged" and len(harmed) < self.MAX_FRAME_BYTES // 64:
                for member in others:
                    member.send(WSMsgType.BINARY, harmed)


def _damaged(update: bytes) -> bytes:
    middle = len(update) // 2
    return update[:middle] + bytes((update[middle] ^ 0x55,)) + update[middle + 1 :] if update else b"?"


def misbehaving(kind: type[EmbeddedServer]) -> type[Misbehaving]:
    """A server of this kind that misbehaves when told to."""
    return Misbehaving if kind is EmbeddedServer else type(kind.__name__, (Misbehaving, kind), {})
