"""Servers that behave well until they do their worst, and the adaptor of their clients."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

import faulty
from doubles import EmptyAdaptor
from faulty import BINARY, CLOSE, TEXT, Behaviour, Peer
from reconnect_fsm.loro_protocol import (
    Ack,
    CrdtType,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Message,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
)

ROOM: Final = CrdtType.ELO
SECRET: Final = "s3cret-0f9a77"


class Sponge(EmptyAdaptor):
    """An adaptor that takes what it is given, counts it, and raises or dawdles where it is told to."""

    crdt_type = ROOM

    def __init__(
        self, *, missing: Sequence[bytes] = (), slow: bool = False, raising: BaseException | None = None
    ) -> None:
        self.missing = missing
        self.slow = slow
        self.raising = raising
        self.applied = 0
        self.refusals = 0
        self.edit: Callable[[bytes], None] = lambda update: None

    def version(self) -> bytes:
        return b"ours"

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return b"alternative"

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return self.missing

    def apply(self, updates: Sequence[bytes]) -> None:
        self.applied += len(updates)
        if self.slow:
            dawdle(self.applied)
        if self.raising is not None:
            raise self.raising

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self.edit = send
        return lambda: None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        self.refusals += len(updates)


def dawdle(count: int) -> None:
    """Hold up the event loop now and then, for 15 µs a message on average."""
    if count % 64 == 0:
        time.sleep(0.001)


Answer = Callable[[JoinRequest], Sequence[Message]]


def welcome(request: JoinRequest) -> Sequence[Message]:
    """Let everybody in."""
    return (JoinResponseOk(request.crdt, request.room_id, "write", b""),)


class Hostile:
    """Answers joins and pings like a good server, and does its worst once it has let in ``rooms`` rooms."""

    def __init__(self, attack: Behaviour, *, rooms: int = 1, answer: Answer = welcome) -> None:
        self._attack, self._rooms, self._answer = attack, rooms, answer
        self.joins: list[float] = []
        """When each JoinRequest came, by the loop's clock."""
        self.heard: list[Message] = []
        """Every other message that came."""
        self.pings = 0
        self.sent = 0

    async def __call__(self, peer: Peer) -> None:
        await peer.upgrade()
        ready = asyncio.Event()
        reading = asyncio.create_task(self._read(peer, ready))
        try:
            if self._rooms:
                await ready.wait()
            await self._attack(peer)
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, peer: Peer, ready: asyncio.Event) -> None:
        while True:
            opcode, payload = await peer.receive()
            peer.frames.clear()  # nothing is kept: memory is measured here
            if opcode == CLOSE:
                peer.send_frame(CLOSE, payload)
                peer.hang_up()
                return
            if payload == b"ping":
                self.pings += 1
                peer.send("pong")
            elif opcode == BINARY:
                message = decode(payload)
                if isinstance(message, JoinRequest):
                    self.joins.append(asyncio.get_running_loop().time())
                    for each in self._answer(message):
                        peer.send(encode(each))
                    if len(self.joins) >= self._rooms:
                        ready.set()
                else:
                    self.heard.append(message)

    def acks(self) -> list[Ack]:
        """The refusals that the client sent."""
        return [each for each in self.heard if isinstance(each, Ack)]


async def quiet(peer: Peer) -> None:
    """No attack at all."""


def frame(message: Message | str, *, fin: bool = True) -> bytes:
    """The bytes on the wire of a message."""
    if isinstance(message, str):
        return wire(TEXT, message.encode(), fin=fin)
    return wire(BINARY, encode(message), fin=fin)


def wire(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A frame of the server's."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


async def pour(peer: Peer, blob: bytes, times: int) -> None:
    """Write the same bytes again and again, as fast as they are taken."""
    for _ in range(times):
        peer.write(blob)
        await peer.drain()


def with_room(*messages: Message) -> Behaviour:
    """Sends these instead of letting the client in."""
    return Hostile(quiet, answer=lambda _: messages)


def let_in_then(*messages: Message) -> Behaviour:
    return Hostile(quiet, answer=lambda request: (*welcome(request), *messages))


async def echo_head(peer: Peer) -> None:
    """Refuses with all that the request held: in the status line, the headers and the body."""
    await peer.request()
    told = peer.head.replace("\r\n", " ")
    body = peer.head.encode()
    lines = [
        f"HTTP/1.1 500 {told}",
        f"X-Told: {told}",
        f"Set-Cookie: a=b/{SECRET}; Path=/",
        f"Content-Length: {len(body)}",
    ]
    peer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await peer.wait_gone()


async def bad_permission(peer: Peer) -> None:
    await peer.upgrade()
    while True:
        opcode, payload = await peer.receive()
        if opcode == BINARY:
            name = decode(payload).room_id.encode()
            secret = SECRET.encode()
            head = ROOM.value.encode() + bytes((len(name),)) + name
            peer.send(head + b"\x01" + bytes((len(secret),)) + secret + b"\0\0")
            peer.send(secret)


MIRRORS: dict[str, Behaviour] = {
    "an HTTP answer": echo_head,
    "a redirect": faulty.redirect(f"ws://127.0.0.1:9/?token={SECRET}"),
    "a header of the upgrade": faulty.answer(503, f"Retry-After: {SECRET}", f"Sec-WebSocket-Accept: {SECRET}"),
    "a close reason": faulty.accept_then_close(4000, f"no {SECRET}"),
    "a fatal close reason": faulty.accept_then_close(1008, f"no {SECRET}"),
    "a JoinError": with_room(JoinError(ROOM, "r", JoinErrorCode.AUTH_FAILED, f"no {SECRET}")),
    "an app code": with_room(JoinError(ROOM, "r", JoinErrorCode.APP_ERROR, "no", None, SECRET)),
    "a RoomError": let_in_then(RoomError(ROOM, "r", RoomErrorCode.EVICTED, f"no {SECRET}")),
    "a suggestion": let_in_then(RoomError(ROOM, "r", RoomErrorCode.REJOIN_SUGGESTED, f"no {SECRET}")),
    "malformed messages": bad_permission,
}
