"""The fault matrix, on the wire: all that a server and a network can do wrong within one process.

Every fault is a row of `FAULTS`, played twice: under virtual time with the settings that a client has by default, where
bounds are kept to the millisecond, and on the kernel's sockets with small ones. Some need the one or the other. How a
fault is declared and played is told in fault_matrix.py.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import random
import socket
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

import pytest
from loro import ExportMode, LoroDoc, VersionVector

import fault_matrix
import faulty
import tls
from fault_matrix import DEFAULTS, ROOM, SECRET, SMALL, Fault, Stage, edit, fault_id, play, text_of
from faulty import BINARY, CLOSE, CONTINUATION, HOST, PING, PONG, TEXT, Behaviour, Peer
from figures import Figures, soak
from kit import PATIENCE, until
from reconnect_fsm import Connection, Keepalive, NotConnected, RetryPolicy, Unauthorized, UpdatesRefused
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.room_session import FRAGMENT_PATIENCE
from reconnect_fsm._asyncio.transport.failures import MAX_RETRY_AFTER
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.heartbeat_fsm import HeartbeatFSM
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
    Permission,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
    room_header,
)
from reconnect_fsm.loro_protocol.fragments import Reassembler
from reconnect_fsm.room_fsm import PERMANENT_REFUSALS
from reconnect_fsm.status import AttemptFailure, FailureKind
from reconnect_fsm.testing import leaks, virtual_time
from reconnect_fsm.testing.virtual_time import VirtualTimeLoop

__all__ = ["FAULTS"]

LORO: Final = CrdtType.LORO
HEADER: Final = room_header(LORO, ROOM)
MAX_MSG_SIZE: Final = 512 * 1024  # of the client, here
FLOOD: Final = 10_000
KINDS: Final = 300

RSV1, RSV2, RSV3, FIN_BIT, MASKED = 0x40, 0x20, 0x10, 0x80, 0x80  # RFC 6455, 5.2


# ---------------------------------------------------------------------------------------------------------- the server


def acknowledged(batch_id: int, status: int = UpdateStatusCode.OK) -> list[bytes]:
    """The Ack of a batch, with any status."""
    return [encode(Ack(LORO, ROOM, batch_id, UpdateStatusCode.OK))[:-1] + bytes([status])]


class Wire(Stage):
    """A server of one room on bare TCP: a good one, but for what a fault changes."""

    options = {"max_msg_size": MAX_MSG_SIZE}  # noqa: RUF012  # never written to

    def __init__(self) -> None:
        self.server: faulty.Server
        self.elsewhere: faulty.Server
        """Another origin, where nobody should ever come."""
        self.closing: list[socket.socket] = []
        """Sockets of a fault's own, to be closed when it is over."""
        self.since = 0.0
        self.doc = LoroDoc()
        self.peer: Peer
        """The connection that was upgraded last."""
        self.joins = 0
        """How many JoinRequests came."""
        self.refused = 0
        """How many batches of the client's were refused."""
        self.acks: list[UpdateStatusCode] = []
        """What the client thinks of our updates."""
        self.warnings: list[str] = []
        """What the client logs."""
        self.auth = lambda: self.token()
        self._batch_id = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.be_good()

    def be_good(self) -> None:
        """Everything is as it should be, from now on."""
        self.next: Behaviour = self.serve
        """What the next connections get."""
        self.ignored: set[str] = set()
        """What is not answered: ``ping``, ``join``, ``update``, ``close``."""
        self.answer_join: Callable[[JoinRequest], list[bytes]] = self.let_in
        self.permission: Permission = "write"
        self.acknowledge: Callable[[int], list[bytes]] = acknowledged
        """The answer to a batch."""
        self.token: Callable[[], Any] = SECRET.encode
        """The client's auth function."""
        self.address: Callable[[], Any] = lambda: self.server.url
        """The client's url function, if it has one."""

    async def behave(self, peer: Peer) -> None:
        await self.next(peer)

    async def serve(self, peer: Peer) -> None:
        """A good server."""
        await peer.upgrade()
        await self.talk(peer)

    async def talk(self, peer: Peer) -> None:
        self.peer = peer
        while True:
            opcode, payload = await peer.receive()
            if opcode == CLOSE:
                if "close" not in self.ignored:
                    peer.send_frame(CLOSE, payload)
                    peer.hang_up()
                    return
            elif payload == b"ping":
                if "ping" not in self.ignored:
                    peer.send("pong")
            elif opcode == BINARY:
                for frame in self.answers(decode(payload)):
                    peer.send(frame)

    def answers(self, message: Message) -> list[bytes]:
        """The frames that answer a message."""
        if isinstance(message, JoinRequest):
            self.joins += 1
            return [] if "join" in self.ignored else self.answer_join(message)
        if isinstance(message, Ack):
            self.acks.append(message.status)
        if isinstance(message, DocUpdate) and "update" not in self.ignored:
            refused, answer = self.refused, self.acknowledge(message.batch_id)
            for update in message.updates if self.refused == refused else ():
                self.doc.import_(update)
            return answer
        return []

    def let_in(self, request: JoinRequest) -> list[bytes]:
        """The answer to a join, and what the client lacks."""
        theirs = VersionVector.decode(request.version) if request.version else VersionVector()
        missing = self.doc.export(ExportMode.Updates(theirs))
        ok = JoinResponseOk(LORO, ROOM, self.permission, self.doc.oplog_vv.encode())
        return [encode(ok), encode(DocUpdate(LORO, ROOM, (missing,), self.batch_id()))]

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs until the end of the play."""
        self._tasks.append(asyncio.create_task(work))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def batch_id(self) -> int:
        self._batch_id += 1
        return self._batch_id

    def send(self, *messages: Message | bytes) -> None:
        """To the client, whether it makes sense or not."""
        for message in messages:
            self.peer.send(message if isinstance(message, bytes) else encode(message))

    def edit(self, words: str) -> bool:
        before = self.doc.oplog_vv
        edit(self.doc, words)
        self.send(DocUpdate(LORO, ROOM, (self.doc.export(ExportMode.Updates(before)),), self.batch_id()))
        return True

    def text(self) -> str:
        return text_of(self.doc)


@asynccontextmanager
async def wire(served: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """The stage of nearly all faults here."""
    stage = Wire()
    log = Listener(stage.warnings)
    logger = logging.getLogger("reconnect_fsm")
    async with faulty.server(stage.behave, ssl=served) as stage.server, faulty.server() as stage.elsewhere:
        stage.url = f"{stage.server.url}?token={SECRET}"
        logger.addHandler(log)
        try:
            yield stage
        finally:
            logger.removeHandler(log)
            await stage.end()
        assert stage.elsewhere.connects == 0, "another origin was contacted"
        assert not any(SECRET in each for each in stage.warnings), "a secret was logged"


class Listener(logging.Handler):
    """Keeps the warnings."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())


@asynccontextmanager
async def moving() -> AsyncIterator[Wire]:
    """The same, where the client asks for the address before each attempt."""
    async with wire() as stage:
        stage.url = lambda: stage.address()
        yield stage


@asynccontextmanager
async def secure() -> AsyncIterator[Wire]:
    """The same over TLS."""
    served, trusted = tls.contexts()
    async with wire(served) as stage:
        stage.options = {**stage.options, "ssl": trusted}
        yield stage


# ------------------------------------------------------------------------------------------------- how rows are written

FAULTS: list[Fault] = []

DROP: Final = (1012, "restart")  # how a connection ends whose successor is to meet a fault
FATAL: Final[dict[str, Any]] = {
    "client": "connected → reconnecting → disconnected",
    "room": "joined → reconnecting → disconnected",
    "again": "never",
}
STOPPED: Final[dict[str, Any]] = {
    "client": "connected → disconnected",
    "room": "joined → disconnected",
    "again": "never",
}
TWICE: Final = {  # a connection that opens, and is lost at once
    "client": "connected → reconnecting → connected → reconnecting → connected",
    "room": "joined → reconnecting → joined",
}
UNHARMED: Final[dict[str, Any]] = {"client": "connected", "room": "joined", "again": ""}
COMPARES: Final[dict[str, Any]] = {"client": "connected", "room": "joined", "again": "at once", "compares": True}
PUT_OUT: Final[dict[str, Any]] = {"client": "connected", "room": "joined → error", "again": ""}
REFUSED: Final[dict[str, Any]] = {
    "client": "connected → reconnecting → connected",
    "room": "joined → reconnecting → error",
    "again": "",
}

VIRTUAL: Final[dict[str, Any]] = {"real": False}
REAL: Final[dict[str, Any]] = {"virtual": False}

Strike = Callable[[Wire], Awaitable[None]]


async def as_good_as_ever(stage: Wire) -> None:
    """The next connections are served well; and an attempt is one TCP connection, though aiohttp would make two."""
    stage.be_good()
    if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):  # else the next attempt may have begun
        assert stage.server.connects == 2


def met(group: str, what: str, behaviour: Behaviour, says: str, **more: Any) -> Fault:
    """The connection is dropped, and all attempts that follow meet the behaviour until it is noticed."""

    async def strike(stage: Wire) -> None:
        stage.next = behaviour
        stage.peer.send_close(*DROP)

    return Fault(group, what, wire, strike, says, heal=as_good_as_ever, **more)


def handshake(group: str, what: str, behaviour: Behaviour, says: str, **more: Any) -> None:
    """One more row: see `met`."""
    FAULTS.append(met(group, what, behaviour, says, **more))


def opened(
    group: str,
    what: str,
    do: Callable[[Wire], object],
    says: str = "",
    *,
    then: Callable[[Wire], Awaitable[None]] | None = None,
    **more: Any,
) -> None:
    """Something happens to an open connection; ``do`` is plain or async. ``then`` looks at what it led to."""

    async def strike(stage: Wire) -> None:
        done = do(stage)
        if isinstance(done, Awaitable):
            await done

    async def heal(stage: Wire) -> None:
        if then is not None:
            async with asyncio.timeout(PATIENCE + stage.settings.rejoin_interval):
                await then(stage)
        stage.be_good()

    FAULTS.append(Fault(group, what, wire, strike, says, heal=heal, **more))


def complained_with(code: int) -> Strike:
    """The client tells the server what it did wrong (RFC 6455, 7.4.1)."""

    async def look(stage: Wire) -> None:
        peer = stage.server.peers[0]
        await until(lambda: peer.closed_with)
        assert peer.closed_with is not None
        assert peer.closed_with[0] == code, peer.closed_with

    return look


def warned(words: str) -> Strike:
    """The client logs a warning."""

    async def look(stage: Wire) -> None:
        await until(lambda: any(words in each for each in stage.warnings))

    return look


def objected(status: UpdateStatusCode) -> Strike:
    """The client tells the server that it does not take a batch (D-ACK)."""

    async def look(stage: Wire) -> None:
        await until(lambda: stage.acks)
        assert stage.acks == [status]

    return look


# --------------------------------------------------------------------------------------- HTTP answers to the handshake

HTTP = "HTTP answers to the handshake"


def http(status: int | str, *headers: str, body: bytes = b"", then: Behaviour | None = None) -> Behaviour:
    """Answers the request; ``then`` goes on."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        length = (
            [] if any(each.startswith(("Content-Length", "Transfer")) for each in headers) else ["Content-Length: 0"]
        )
        peer.write("\r\n".join([f"HTTP/1.1 {status} Words", *length, *headers, "", ""]).encode() + body)
        await (then or Peer.wait_gone)(peer)

    return behave


def answered(status: int, what: str = "", *headers: str, **more: Any) -> None:
    words = f"HTTP {status}{what}"
    handshake(HTTP, words, http(status, *headers), f"the server answered HTTP {status}", **more)


for _status in (200, 201, 204, 206, 304):  # 304 is no redirect: see below
    if _status != 304:
        answered(_status)
for _status in (400, 402, 404, 405, 407, 408, 409, 410, 418, 421, 425, 426, 431, 451):
    answered(_status)
for _status in (401, 403):
    answered(_status, ", fatal", **FATAL)
for _status in (500, 501, 502, 504, 505, 511, 599, 999):
    answered(_status)


def redirected(status: int, what: str, location: Callable[[Wire], str] | None, *headers: str, **more: Any) -> None:
    async def strike(stage: Wire) -> None:
        stage.next = http(status, *([f"Location: {location(stage)}"] if location else []), *headers)
        stage.peer.send_close(*DROP)

    says = f"the server redirects elsewhere (HTTP {status}), which is never followed"
    FAULTS.append(Fault(HTTP, f"HTTP {status}, {what}", wire, strike, says, heal=as_good_as_ever, **more))


for _status in (300, 301, 302, 303, 305, 307, 308):
    redirected(_status, "to another origin; the target is never contacted", lambda stage: stage.elsewhere.url)
redirected(302, "to itself", lambda stage: stage.server.url)
redirected(301, "to a path", lambda _: "/elsewhere")
redirected(307, "to an address that cannot be read", lambda _: "http://[")
redirected(308, "to a scheme that is no HTTP", lambda _: "file:///etc/passwd")
redirected(304, "though nothing was asked for under a condition", None)


async def to_clear_text(stage: Wire) -> None:
    stage.next = http(302, f"Location: {stage.elsewhere.url}")
    stage.peer.send_close(*DROP)


FAULTS.append(
    Fault(
        HTTP,
        "HTTP 302, from wss:// to ws://; the target is never contacted",
        secure,
        to_clear_text,
        "the server redirects elsewhere (HTTP 302), which is never followed",
        heal=as_good_as_ever,
        virtual=False,
    )
)


def in_half_a_minute() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)


def asked_to_wait(status: int, what: str, value: Callable[[], str] | str, again: str) -> None:
    async def behave(peer: Peer) -> None:
        asked = value if isinstance(value, str) else value()
        await http(status, f"Retry-After: {asked}")(peer)

    waits = again != "backoff"
    handshake(
        HTTP,
        f"HTTP {status} with Retry-After: {what}",
        behave,
        f"the server answered HTTP {status}",
        again=again,
        real=not waits or again == "1 s",
    )


answered(429)
answered(503)
for _status in (429, 503):
    asked_to_wait(_status, "1", "1", "1 s")
    asked_to_wait(_status, "60", "60", "60 s")
    asked_to_wait(_status, "a date 30 s away", in_half_a_minute, "about 30 s")
    asked_to_wait(_status, "a date long ago", "Wed, 21 Oct 2015 07:28:00 GMT", "backoff")
    asked_to_wait(_status, "a date in 7000 years", "Fri, 31 Dec 9999 23:59:59 GMT", f"{MAX_RETRY_AFTER:.0f} s")
    asked_to_wait(_status, "10²⁰", "1" + "0" * 20, f"{MAX_RETRY_AFTER:.0f} s")
    asked_to_wait(_status, "-5", "-5", "backoff")
    asked_to_wait(_status, "words", "when you are ready", "backoff")
    asked_to_wait(_status, "a date that is none", "Sat, 99 Foo 2999 99:99:99 GMT", "backoff")
asked_to_wait(502, "60, as every refusal may", "60", "60 s")
redirected(
    302,
    "to another origin, with Retry-After: 60",
    lambda stage: stage.elsewhere.url,
    "Retry-After: 60",
    again="60 s",
    **VIRTUAL,
)


# ------------------------------------------------------------------------------------------------ upgrades gone wrong

UPGRADE = "Upgrades gone wrong"
NO_UPGRADE: Final = "the server does not answer as a WebSocket server does"
RESET: Final = "could not connect: Connection reset by peer"
HUNG_UP: Final = "the server hung up during the handshake"
NO_TIME: Final = "no connection in the time allowed"
NO_HTTP: Final = "the server does not answer as a WebSocket server does"


def accept(peer: Peer, *headers: str) -> bytes:
    """The right answer, after the request was read."""
    key = peer.header("Sec-WebSocket-Key") or ""
    digest = base64.b64encode(hashlib.sha1((key + faulty.GUID).encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *headers]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {digest}", "", ""]).encode()


def wrote(data: bytes | Callable[[Peer], bytes], then: Callable[[Peer], object] = Peer.wait_gone) -> Behaviour:
    """Reads the request and writes bytes instead of a proper answer."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.write(data(peer) if callable(data) else data)
        await peer.drain()
        done = then(peer)
        if isinstance(done, Awaitable):
            await done

    return behave


def without(line: str, instead: str = "") -> Callable[[Peer], bytes]:
    return lambda peer: accept(peer).replace(line.encode(), instead.encode())


handshake(UPGRADE, "101 with a wrong Sec-WebSocket-Accept", faulty.wrong_accept, NO_UPGRADE)
handshake(UPGRADE, "101 without a Sec-WebSocket-Accept", wrote(without("Sec-WebSocket-Accept:", "X:")), NO_UPGRADE)
handshake(UPGRADE, "101 without Upgrade", wrote(without("Upgrade: websocket\r\n")), NO_UPGRADE)
handshake(UPGRADE, "101 that upgrades to h2c", wrote(without("websocket", "h2c")), NO_UPGRADE)
handshake(UPGRADE, "101 without Connection", wrote(without("Connection: Upgrade\r\n")), NO_UPGRADE)
handshake(UPGRADE, "101 with Connection: close", wrote(without("Connection: Upgrade", "Connection: close")), NO_UPGRADE)
handshake(UPGRADE, "garbage instead of HTTP", wrote(b"\x00\xff" * 512), NO_HTTP)
handshake(UPGRADE, "another protocol: SSH", wrote(b"SSH-2.0-OpenSSH_9.9\r\n"), NO_HTTP)
handshake(UPGRADE, "another protocol: a TLS alert", wrote(b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n"), NO_HTTP)
handshake(UPGRADE, "another protocol: HTTP/2", wrote(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)), NO_HTTP)
handshake(UPGRADE, "a status that is no number", wrote(b"HTTP/1.1 abc No\r\n\r\n"), NO_HTTP)
handshake(UPGRADE, "a header without a colon", wrote(b"HTTP/1.1 101 Yes\r\nnonsense\r\n\r\n"), NO_HTTP)
handshake(UPGRADE, "a header of 64 KiB", wrote(b"HTTP/1.1 101 Yes\r\nX: " + b"x" * (1 << 16) + b"\r\n\r\n"), NO_HTTP)
handshake(
    UPGRADE,
    "two lengths of the body that differ",
    wrote(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    NO_HTTP,
)


def endlessly(piece: bytes, *, before: bytes = b"", pause: float = 0.0) -> Behaviour:
    """Writes for ever."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.write(before)
        while True:
            peer.write(piece)
            await peer.drain()
            await asyncio.sleep(pause)

    return behave


async def a_drop_at_a_time(peer: Peer) -> None:
    await peer.request()
    for byte in accept(peer):
        peer.write(bytes([byte]))
        await peer.drain()
        await asyncio.sleep(0.1)


IN_TIME: Final[dict[str, Any]] = {"within": "connect_timeout"}
OF_HEADERS: Final = b"HTTP/1.1 101 Switching Protocols\r\n"
handshake(UPGRADE, "a good answer drips, a byte at a time", a_drop_at_a_time, NO_TIME, **IN_TIME)
handshake(
    UPGRADE,
    "the headers drip, a byte at a time",
    endlessly(b"x", before=OF_HEADERS + b"X: ", pause=0.05),
    NO_TIME,
    **IN_TIME,
)
handshake(
    UPGRADE,
    "1xx answers without end",
    endlessly(b"HTTP/1.1 100 Continue\r\n\r\n" * 10, pause=0.05),
    NO_TIME,
    **IN_TIME,
)
handshake(
    UPGRADE,
    "a body without end, of an HTTP 200",
    endlessly(b"x" * 1000, before=b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", pause=0.01),
    "the server answered HTTP 200",
)
handshake(
    UPGRADE,
    "a chunked body without end, of an HTTP 500",
    endlessly(b"5\r\nhello\r\n", before=b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", pause=0.01),
    "the server answered HTTP 500",
)

# ------------------------------------------------------------------------------------------- TCP, during the handshake

DIALS = "TCP during the handshake"


def cut(where: str) -> Callable[[Peer], bytes]:
    """So much of a good answer."""
    lengths: dict[str, Callable[[bytes], int]] = {
        "before the answer": lambda _: 0,
        "after one byte of the answer": lambda _: 1,
        "after the status line": lambda whole: whole.index(b"\r\n") + 2,
        "within the headers": lambda whole: len(whole) // 2,
        "one byte before the end of the answer": lambda whole: len(whole) - 1,
    }
    return lambda peer: (whole := accept(peer))[: lengths[where](whole)]


async def refuse(stage: Wire) -> None:
    """Nobody listens."""
    await stage.server.stop()


async def listen_again(stage: Wire) -> None:
    await stage.server.start()


FAULTS.append(
    Fault(
        DIALS,
        "refused: nobody listens",
        wire,
        refuse,
        "could not connect: Connection refused",
        heal=listen_again,
        virtual=False,
    )
)

for _where in (
    "before the answer",
    "after one byte of the answer",
    "after the status line",
    "within the headers",
    "one byte before the end of the answer",
):
    handshake(DIALS, f"FIN {_where}", wrote(cut(_where), Peer.hang_up), HUNG_UP)
    handshake(DIALS, f"RST {_where}", wrote(cut(_where), Peer.reset), RESET, virtual=False)
    handshake(DIALS, f"stall {_where}", wrote(cut(_where)), NO_TIME, **IN_TIME)


async def fin_at_once(peer: Peer) -> None:
    half_close(peer)
    await peer.wait_gone()


async def rst_at_once(peer: Peer) -> None:
    peer.reset()


async def stall_at_once(peer: Peer) -> None:
    peer.freeze()
    await asyncio.Event().wait()


def half_close(peer: Peer) -> None:
    """FIN, but what the client sends is still read."""
    peer._writer.write_eof()


def thaw(peer: Peer) -> None:
    """Reads again."""
    peer._writer.transport.resume_reading()  # type: ignore[attr-defined]  # it is a transport for both ways


handshake(DIALS, "FIN as soon as TCP is connected", fin_at_once, HUNG_UP)
handshake(DIALS, "RST as soon as TCP is connected", rst_at_once, RESET, virtual=False)
handshake(DIALS, "the request is never read", stall_at_once, NO_TIME, **IN_TIME)


def astray(what: str, says: str, strike: Strike, **more: Any) -> None:
    """The next attempts go to another address, until it is noticed."""

    async def heal(stage: Wire) -> None:
        stage.be_good()
        for each in stage.closing:
            each.close()

    FAULTS.append(Fault(more.pop("group", DIALS), what, moving, strike, says, heal=heal, **more))


async def syn_lost(stage: Wire) -> None:
    """The queue of those who wait to be accepted is full: on Linux, further SYNs are dropped."""
    full = socket.create_server((HOST, 0), backlog=0)
    stage.closing = [full, *(socket.socket() for _ in range(4))]
    for filler in stage.closing[1:]:
        filler.setblocking(False)
        with suppress(BlockingIOError):
            filler.connect(full.getsockname())
    stage.address = lambda: f"ws://{HOST}:{full.getsockname()[1]}/"
    stage.peer.send_close(*DROP)


def over_tls(behaviour: Behaviour) -> Strike:
    async def strike(stage: Wire) -> None:
        stage.next = behaviour
        stage.address = lambda: stage.server.url.replace("ws:", "wss:")
        stage.peer.send_close(*DROP)

    return strike


async def answer_plainly(peer: Peer) -> None:
    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await peer.wait_gone()


astray("the SYN is lost", NO_TIME, syn_lost, **IN_TIME, **REAL)
astray("TLS begins, and the peer is mute", NO_TIME, over_tls(stall_at_once), **IN_TIME, **REAL)
astray("TLS begins, and the peer answers in plain text", "TLS failed", over_tls(answer_plainly), **REAL)
astray("TLS begins, and the peer hangs up", "", over_tls(fin_at_once), **REAL)

# --------------------------------------------------------------------------------------------------- the url function

URL = "The url function"


def told(what: str, says: str, give: Callable[[], Awaitable[str]], **more: Any) -> None:
    """The function that gives the address fails, from the strike on."""

    async def strike(stage: Wire) -> None:
        stage.address = give
        stage.peer.send_close(*DROP)

    astray(what, says, strike, group=URL, **more)


async def give_error() -> str:
    raise LookupError(SECRET)


async def give_unauthorized() -> str:
    raise Unauthorized(SECRET)


async def give_nothing() -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def give_cancellation() -> str:
    raise asyncio.CancelledError


async def give_junk() -> str:
    return f"gopher://{SECRET}"


IN_ERROR: Final[dict[str, Any]] = {
    **FATAL,
    "client": "connected → reconnecting → error",
    "room": "joined → reconnecting → disconnected",
}

told("raises", "the url function raised LookupError", give_error)
told("raises Unauthorized", "the url function says that this client is not authorized", give_unauthorized, **FATAL)
told("never returns", NO_TIME, give_nothing, **IN_TIME)
told("is cancelled", "the url function raised CancelledError", give_cancellation)
told(
    "returns what is no address of a WebSocket server", "the url must begin with ws:// or wss://", give_junk, **IN_ERROR
)

# ------------------------------------------------------------------------------------------- TCP, on an open connection

TCP = "TCP on an open connection"
LOST: Final = "the connection was lost"
NO_PONG: Final = "no answer to a ping within"
DEAD: Final[dict[str, Any]] = {"within": "interval + timeout"}
FRAME: Final = struct.pack("!BBH", FIN_BIT | BINARY, 126, 1000) + bytes(1000)


def after(data: bytes, then: Callable[[Peer], object]) -> Strike:
    """Writes bytes as they are, and then …"""

    async def strike(stage: Wire) -> None:
        stage.peer.write(data)
        await stage.peer.drain()
        then(stage.peer)

    return strike


for _where, _data in (
    ("between frames", b""),
    ("after one byte of a frame", FRAME[:1]),
    ("within the length of a frame", FRAME[:3]),
    ("within the payload of a frame", FRAME[:500]),
    ("one byte before the end of a frame", FRAME[:-1]),
    ("within a fragmented message", struct.pack("!BB", BINARY, 1) + b"x"),
    ("within a close frame", struct.pack("!BB", FIN_BIT | CLOSE, 2) + b"\x03"),
):
    opened(TCP, f"FIN {_where}", after(_data, Peer.hang_up), LOST)
    opened(TCP, f"RST {_where}", after(_data, Peer.reset), LOST, virtual=False)
    opened(TCP, f"silence {_where}, and TCP stays open", after(_data, Peer.freeze), NO_PONG, **DEAD)


def half_closed(stage: Wire) -> None:
    stage.ignored |= {"ping", "join", "update", "close"}  # nothing can be written any more
    half_close(stage.peer)


opened(TCP, "FIN of the server's half; it still reads", half_closed, LOST)


LONG: Final = struct.pack("!BBQ", FIN_BIT | BINARY, 127, 500_000)
HELLO: Final = struct.pack("!BB", FIN_BIT | TEXT, 5) + b"hello"
A_MOMENT: Final = 0.1  # seconds


def dripping(piece: bytes, *, before: bytes = b"") -> Strike:
    """Reads nothing; sends something now and then, whatever the client does."""

    async def strike(stage: Wire) -> None:
        stage.peer.freeze()
        stage.peer.write(before)
        stage.background(drip(stage.peer, stage.settings.timeout / 10))

    async def drip(peer: Peer, pause: float) -> None:
        while not peer._writer.is_closing():
            peer.write(piece)
            await asyncio.sleep(pause)

    return strike


async def clogged(stage: Wire) -> None:
    """Deaf, but not mute; and more is sent than the kernel takes."""
    await dripping(HELLO)(stage)

    async def send() -> None:
        with suppress(NotConnected):
            await stage.client.send(bytes(64 * 1024 * 1024))

    stage.background(send())
    await asyncio.sleep(A_MOMENT)


async def deaf_for_long(stage: Wire) -> None:
    await dripping(HELLO)(stage)
    await asyncio.sleep(2 * (stage.settings.interval + stage.settings.timeout))
    thaw(stage.peer)


async def slow_download(stage: Wire) -> None:
    """A long message, a little at a time; nothing is heard of the client until it is over (LIVE-2)."""
    stage.peer.freeze()
    data = LONG + bytes(500_000)
    pieces = 100
    pause = 2 * (stage.settings.interval + stage.settings.timeout) / pieces
    size = -(-len(data) // pieces)
    for at in range(0, len(data), size):
        stage.peer.write(data[at : at + size])
        await asyncio.sleep(pause)
    thaw(stage.peer)


opened(
    TCP,
    "a long message that comes slowly, and no pong meanwhile: the server is alive",
    slow_download,
    **UNHARMED,
    **REAL,
)
opened(TCP, "a message that never ends drips, a byte at a time", dripping(b"x", before=LONG), NO_PONG, **DEAD)
opened(
    TCP,
    "the server sends messages, but reads nothing of ours, which pile up",
    clogged,
    "the server has read nothing for",
    **DEAD,
)
opened(TCP, "the server reads nothing for long, but sends messages: it is alive", deaf_for_long, **UNHARMED)

# ---------------------------------------------------------------------------------------------- right after the upgrade

UPGRADED = "Right after the upgrade"


def upgraded(what: str, behind: bytes, then: Callable[[Peer], object], says: str, **more: Any) -> None:
    """The connection is dropped; the next one opens, and what happens follows in the same segment."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.write(accept(peer) + behind)
        await peer.drain()
        done = then(peer)
        if isinstance(done, Awaitable):
            await done

    handshake(UPGRADED, what, behave, says, **{**TWICE, **more})


async def reset_soon(peer: Peer) -> None:
    await asyncio.sleep(A_MOMENT)
    peer.reset()


async def freeze(peer: Peer) -> None:
    peer.freeze()
    await asyncio.Event().wait()


def frame(first: int, payload: bytes = b"") -> bytes:
    """A frame whose first byte is this."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    return (
        struct.pack("!BBH", first, 126, size) + payload
        if size < 1 << 16
        else struct.pack("!BBQ", first, 127, size) + payload
    )


def close_frame(payload: bytes) -> bytes:
    return frame(FIN_BIT | CLOSE, payload)


BROKE: Final = "the server broke the WebSocket protocol"
upgraded("FIN", b"", Peer.hang_up, LOST)
upgraded("RST", b"", reset_soon, LOST, **REAL)
upgraded("silence", b"", freeze, NO_PONG, **DEAD)
upgraded("a close frame", close_frame(struct.pack("!H", 1013) + b"full"), Peer.read_on, "closed with code 1013: full")
upgraded("a malformed frame", frame(FIN_BIT | RSV1 | TEXT, b"x"), Peer.read_on, BROKE)
upgraded(
    "a fatal close frame",
    close_frame(struct.pack("!H", 4401)),
    Peer.read_on,
    "closed with code 4401",
    client="connected → reconnecting → connected → disconnected",
    room="joined → reconnecting → disconnected",
    again="never",
)

# ------------------------------------------------------------------------------------------------------------- liveness

ALIVE = "Pings and pongs"


def without_pongs(then: Callable[[Wire, Peer], Awaitable[None]], *, pings: int = 0) -> Strike:
    """No ping is answered; each is the cue for something else. The strike lasts for so many pings."""

    async def strike(stage: Wire) -> None:
        stage.ignored.add("ping")
        peer = stage.peer
        stage.background(answer(stage, peer))
        while peer.frames.count((TEXT, b"ping")) < pings and not peer._writer.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(stage.settings.timeout / 10)

    async def answer(stage: Wire, peer: Peer) -> None:
        answered = 0
        while not peer._writer.is_closing():
            pings = peer.frames.count((TEXT, b"ping"))
            if pings > answered:
                answered = pings
                await then(stage, peer)
            await asyncio.sleep(stage.settings.timeout / 10)

    return strike


async def nothing(_: Wire, __: Peer) -> None: ...


async def late(stage: Wire, peer: Peer) -> None:
    await asyncio.sleep(0.8 * stage.settings.timeout)
    peer.send("pong")


async def too_late(stage: Wire, peer: Peer) -> None:
    await asyncio.sleep(1.5 * stage.settings.timeout)
    peer.send("pong")


async def shouting(_: Wire, peer: Peer) -> None:
    peer.send("PONG")


async def ping_frame(_: Wire, peer: Peer) -> None:
    peer.send_frame(PING, b"are you there?")


async def binary_pong(_: Wire, peer: Peer) -> None:
    peer.send(b"pong")


async def pong_frame(_: Wire, peer: Peer) -> None:
    peer.send_frame(PONG)


opened(ALIVE, "no pong, though the server reads and writes all else", without_pongs(nothing), NO_PONG, **DEAD)
opened(ALIVE, "pongs that come late, but in time", without_pongs(late, pings=4), **UNHARMED, **VIRTUAL)
opened(ALIVE, "pongs that come too late", without_pongs(too_late), NO_PONG, **DEAD)
opened(
    ALIVE,
    "no pong, but a word that is none: the server is alive",
    without_pongs(shouting, pings=4),
    **UNHARMED,
    **VIRTUAL,
)
opened(ALIVE, "no pong, but the word in a binary frame", without_pongs(binary_pong, pings=4), **UNHARMED, **VIRTUAL)
opened(
    ALIVE, "no pong, but ping frames: the server is alive", without_pongs(ping_frame, pings=4), **UNHARMED, **VIRTUAL
)
opened(
    ALIVE, "no pong, but pong frames: the server is alive", without_pongs(pong_frame, pings=4), **UNHARMED, **VIRTUAL
)
opened(ALIVE, "a pong for nobody", lambda stage: stage.peer.send("pong"), **UNHARMED)
opened(
    ALIVE,
    f"{FLOOD} pongs for nobody",
    lambda stage: stage.peer.write(frame(FIN_BIT | TEXT, b"pong") * FLOOD),
    **UNHARMED,
)
opened(ALIVE, "a ping of the server's", lambda stage: stage.peer.send("ping"), **UNHARMED)
opened(
    ALIVE,
    f"{FLOOD} pings of the server's",
    lambda stage: stage.peer.write(frame(FIN_BIT | TEXT, b"ping") * FLOOD),
    **UNHARMED,
)
opened(
    ALIVE, f"{FLOOD} ping frames", lambda stage: stage.peer.write(frame(FIN_BIT | PING, bytes(125)) * FLOOD), **UNHARMED
)
opened(ALIVE, "a pong frame for nobody", lambda stage: stage.peer.send_frame(PONG, b"?"), **UNHARMED)


def stall(stage: Wire) -> None:
    """The loop itself does not run for long."""
    long = 2 * (stage.settings.interval + stage.settings.timeout)
    loop: Any = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop._selector.clock.advance(long)
    else:
        time.sleep(long)


opened(ALIVE, "our own loop is blocked for longer than a ping may take: no verdict", stall, **UNHARMED)

# ---------------------------------------------------------------------------------------------------------- close codes

CLOSES = "Close frames"


def closed(what: str, payload: bytes, says: str, **more: Any) -> None:
    opened(CLOSES, what, lambda stage: stage.peer.write(close_frame(payload)), says, **more)


for _code in (
    1000,
    1001,
    1002,
    1003,
    1007,
    1009,
    1010,
    1011,
    1012,
    1013,
    1014,
    3000,
    3999,
    4000,
    4399,
    4500,
    4999,
    5000,
    65535,
):
    closed(f"code {_code}", struct.pack("!H", _code), f"closed with code {_code}")
for _code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999):
    closed(f"code {_code}, which is never sent", struct.pack("!H", _code), BROKE, then=complained_with(1002))
for _code in (1008, 4400, 4401, 4403, 4404, 4429, 4450, 4499):
    closed(f"code {_code}, fatal", struct.pack("!H", _code), f"closed with code {_code}", **STOPPED)
for _reason in ("permission_changed", "room_closed", "auth_failed"):
    closed(
        f"reason {_reason}, fatal",
        struct.pack("!H", 1000) + _reason.encode(),
        f"closed with code 1000: {_reason}",
        **STOPPED,
    )
closed(
    "a reason that only looks like a fatal one",
    struct.pack("!H", 4000) + b"Auth_Failed",
    "closed with code 4000: Auth_Failed",
)
closed("no code", b"", "closed with code 1005")
closed("half a code", b"\x03", BROKE, then=complained_with(1002))
closed("a reason that is no UTF-8", struct.pack("!H", 1000) + b"\xff\xfe", BROKE, then=complained_with(1007))
closed("a reason of 123 bytes, the longest", struct.pack("!H", 1000) + b"x" * 123, "closed with code 1000: xxx")
closed("a reason of 124 bytes", struct.pack("!H", 1000) + b"x" * 124, BROKE, then=complained_with(1002))
closed("a reason of 64 KiB", struct.pack("!H", 1000) + b"x" * 65_534, BROKE, then=complained_with(1002))
closed(
    "a reason with line breaks and control characters",
    struct.pack("!H", 1000) + b"a\r\n\x1b[2J\x00b",
    "closed with code 1000: a\ufffd\ufffd\ufffd[2J\ufffdb",
)
opened(CLOSES, "no code, and TCP stays open", after(close_frame(b""), Peer.freeze), "closed with code 1005")
opened(
    CLOSES,
    "code 1000 and FIN at once",
    after(close_frame(struct.pack("!H", 1000)), Peer.hang_up),
    "closed with code 1000",
    **REAL,  # in memory, our next write fails before the close frame is read
)
opened(
    CLOSES,
    "two that differ: the first counts",
    after(close_frame(struct.pack("!H", 1001)) + close_frame(struct.pack("!H", 4401)), Peer.freeze),
    "closed with code 1001",
)
opened(
    CLOSES,
    "messages behind it",
    after(close_frame(struct.pack("!H", 1001)) + HELLO * 100, Peer.freeze),
    "closed with code 1001",
)
opened(
    CLOSES,
    "a ping frame before it, in one segment",
    after(frame(FIN_BIT | PING) + close_frame(struct.pack("!H", 1001)), Peer.freeze),
    "closed with code 1001",
)
opened(
    CLOSES, "in fragments", after(frame(CLOSE, b"\x03") + frame(FIN_BIT | CONTINUATION, b"\xe8"), Peer.freeze), BROKE
)


async def fatal_and_reset(stage: Wire) -> None:
    await after(close_frame(struct.pack("!H", 4401)), Peer.reset)(stage)
    await asyncio.sleep(A_MOMENT)  # see test_a_fatal_close_is_not_lost_to_a_write_of_ours


opened(CLOSES, "a fatal one, and RST at once", fatal_and_reset, "closed with code 4401", **STOPPED, **REAL)

# -------------------------------------------------------------------------------------------------- malformed frames

FRAMES = "Malformed frames"


def malformed(what: str, data: bytes, code: int = 1002, says: str = BROKE, **more: Any) -> None:
    opened(FRAMES, what, lambda stage: stage.peer.write(data), says, then=complained_with(code), **more)


def legal(what: str, data: bytes) -> None:
    opened(FRAMES, f"{what} (odd, but legal)", lambda stage: stage.peer.write(data), **UNHARMED)


for _bit, _name in ((RSV1, "1, compressed though that was not agreed"), (RSV2, "2"), (RSV3, "3")):
    malformed(f"reserved bit {_name}", frame(FIN_BIT | _bit | TEXT, b"hello"))
malformed(
    "a deflated message, though that was not agreed", frame(FIN_BIT | RSV1 | TEXT, zlib.compress(b"hello" * 100)[2:-4])
)
for _opcode in (*range(3, 8), *range(11, 16)):
    malformed(f"reserved opcode {_opcode:#x}", frame(FIN_BIT | _opcode, b"hello"))
for _opcode, _name in ((PING, "ping"), (PONG, "pong")):
    malformed(f"a {_name} frame in fragments", frame(_opcode, b"a"))
    malformed(f"a {_name} frame of 126 bytes", frame(FIN_BIT | _opcode, bytes(126)))
malformed("a continuation of nothing", frame(FIN_BIT | CONTINUATION, b"x"))
malformed("a continuation of nothing, not the last", frame(CONTINUATION, b"x"))
malformed("a message within a fragmented one", frame(TEXT, b"a") + frame(FIN_BIT | TEXT, b"b"))
malformed("a fragmented message within another", frame(BINARY, b"a") + frame(TEXT, b"b"))
malformed("a text that is no UTF-8", frame(FIN_BIT | TEXT, b"\xff\xfe"), 1007)
malformed("a text that ends within a character", frame(FIN_BIT | TEXT, "é".encode()[:1]), 1007)
malformed("a text with a surrogate", frame(FIN_BIT | TEXT, b"\xed\xa0\x80"), 1007)
TOO_BIG: Final = f"the server sent a message of more than max_msg_size={MAX_MSG_SIZE} bytes"
malformed("a message one byte too long", frame(FIN_BIT | BINARY, bytes(MAX_MSG_SIZE + 1)), 1009, TOO_BIG)
malformed(
    "a message in fragments, one byte too long in all",
    frame(BINARY, bytes(MAX_MSG_SIZE)) + frame(FIN_BIT | CONTINUATION, b"x"),
    1009,
    TOO_BIG,
)
malformed("a length of 2⁶³-1", struct.pack("!BBQ", FIN_BIT | BINARY, 127, 2**63 - 1), 1009, TOO_BIG)
malformed("a length of 2⁶⁴-1, its top bit set", struct.pack("!BBQ", FIN_BIT | BINARY, 127, 2**64 - 1), 1009, TOO_BIG)


def tolerated(what: str, data: bytes) -> None:
    opened(
        FRAMES,
        f"{what}: read all the same, though the RFC says to close",
        lambda stage: stage.peer.write(data),
        **UNHARMED,
    )


tolerated("a masked frame", struct.pack("!BB", FIN_BIT | TEXT, MASKED | 5) + bytes(4) + b"hello")
tolerated("a length in more bytes than it needs", struct.pack("!BBQ", FIN_BIT | TEXT, 127, 5) + b"hello")
legal("a text of no bytes", frame(FIN_BIT | TEXT))
legal("a text that nobody expects", HELLO)
legal("a text in fragments cut within a character", frame(TEXT, b"caf\xc3") + frame(FIN_BIT | CONTINUATION, b"\xa9"))
legal("a ping frame between fragments", frame(TEXT, b"a") + frame(FIN_BIT | PING) + frame(FIN_BIT | CONTINUATION, b"b"))
legal("ten thousand empty fragments", frame(TEXT) + frame(CONTINUATION) * FLOOD + frame(FIN_BIT | CONTINUATION))
legal("a message of exactly max_msg_size bytes", frame(FIN_BIT | TEXT, b"x" * MAX_MSG_SIZE))


# ------------------------------------------------------------------------------------------ messages that are none

MESSAGES = "Malformed messages of the Loro protocol"
MALFORMED: Final = "dropped a malformed message"


def sent(what: str, data: bytes, words: str = MALFORMED) -> None:
    """The client drops it, with a warning, and nothing else is lost by it."""
    opened(MESSAGES, what, lambda stage: stage.peer.send(data), then=warned(words), **UNHARMED)


def of_type(number: int) -> bytes:
    """How a message of this type begins."""
    return HEADER + bytes([number])


OK_MESSAGE: Final = encode(JoinResponseOk(LORO, ROOM, "write", b""))
UPDATE: Final = encode(DocUpdate(LORO, ROOM, (b"xyz",), 1))
FRAGMENTS: Final = encode(DocUpdateFragmentHeader(LORO, ROOM, 1, 2, 4))
FRAGMENT: Final = encode(DocUpdateFragment(LORO, ROOM, 1, 0, b"ab"))
ACK: Final = encode(Ack(LORO, ROOM, 1, UpdateStatusCode.OK))
JOIN_ERROR: Final = encode(JoinError(LORO, ROOM, JoinErrorCode.UNKNOWN, "no"))
ROOM_ERROR: Final = encode(RoomError(LORO, ROOM, RoomErrorCode.EVICTED, "out"))
TOO_LONG: Final = b"\xff" * 5  # as a varuint

sent("no bytes at all", b"")
sent("a CRDT type that is cut short", b"%LO")
sent("a CRDT type that is none", b"%XYZ" + UPDATE[4:])
sent("a CRDT type alone", b"%LOR")
sent("a room id that is cut short", HEADER[:-1])
sent("a room id that claims 4 GiB", b"%LOR\xff\xff\xff\xff\x0f" + UPDATE[5:])
sent("a room id whose length has 6 bytes", b"%LOR\x80\x80\x80\x80\x80\x00" + UPDATE[5:])
sent("no message type", HEADER)
sent("message type 9, which is none", of_type(9) + b"\x00")
sent("message type 255, which is none", of_type(255))
for _name, _frame in (
    ("a JoinResponseOk", OK_MESSAGE),
    ("a JoinError", JOIN_ERROR),
    ("a DocUpdate", UPDATE),
    ("a DocUpdateFragmentHeader", FRAGMENTS),
    ("a DocUpdateFragment", FRAGMENT),
    ("a RoomError", ROOM_ERROR),
    ("an Ack", ACK),
):
    sent(f"{_name} without its last byte", _frame[:-1])
    sent(f"{_name} of nothing but its type", _frame[: len(HEADER) + 1])
for _name, _frame in (
    ("a DocUpdate", UPDATE),
    ("a DocUpdateFragmentHeader", FRAGMENTS),
    ("a DocUpdateFragment", FRAGMENT),
    ("an Ack", ACK),
):
    sent(f"{_name} with a byte too many", _frame + b"\x00")
sent("a DocUpdate whose count has more than 32 bits", of_type(3) + TOO_LONG)
sent("a DocUpdate that claims 2³²-1 updates", of_type(3) + b"\xff\xff\xff\xff\x0f" + bytes(8))
sent("a DocUpdate whose update claims 4 GiB", of_type(3) + b"\x01\xff\xff\xff\xff\x0f" + bytes(8))
sent("a JoinResponseOk with a permission that is none", of_type(1) + b"\x05admin\x00\x00")
sent("a JoinError whose words claim 4 GiB", of_type(2) + b"\x00\xff\xff\xff\xff\x0f")
sent("a RoomError whose words claim 4 GiB", of_type(6) + b"\x02\xff\xff\xff\xff\x0f")
sent("a message of more than 256 KiB", UPDATE + bytes(256 * 1024), "dropped a message of")
opened(
    MESSAGES,
    f"{FLOOD} malformed ones: the log is not flooded",
    lambda stage: stage.peer.write(frame(FIN_BIT | BINARY, b"junk") * FLOOD),
    then=warned(MALFORMED),
    **UNHARMED,
)


# ------------------------------------------------------------------------- messages that are well-formed, but wrong

WRONG = "Messages that make no sense"


def senseless(what: str, *messages: Message | bytes, then: Strike | None = None, **more: Any) -> None:
    opened(WRONG, what, lambda stage: stage.send(*messages), then=then, **{**UNHARMED, **more})


senseless("an update for a room that nobody joined", DocUpdate(LORO, "another", (b"xyz",), 1))
senseless("an update for the room of another CRDT", DocUpdate(CrdtType.YJS, ROOM, (b"xyz",), 1))
INVALID, TOO_LARGE = UpdateStatusCode.INVALID_UPDATE, UpdateStatusCode.PAYLOAD_TOO_LARGE
NOT_APPLIED: Final[dict[str, Any]] = {**COMPARES, "says": "an update of the server's could not be applied"}
CAME_NOT: Final[dict[str, Any]] = {**COMPARES, "says": "a batch from the server never came whole"}
senseless("an update that the document refuses", UPDATE, then=objected(INVALID), **NOT_APPLIED)
senseless("a batch of no updates", DocUpdate(LORO, ROOM, (), 1))
senseless("an update of no bytes", DocUpdate(LORO, ROOM, (b"",), 1), then=objected(INVALID), **NOT_APPLIED)
senseless("a JoinRequest", JoinRequest(LORO, ROOM, b"", b""))
senseless("a Leave", Leave(LORO, ROOM))
senseless("a JoinResponseOk that nobody asked for", OK_MESSAGE)
senseless("an Ack of what was never sent", ACK)
senseless("a JoinError for a room that nobody joined", JoinError(LORO, "another", JoinErrorCode.UNKNOWN, "no"))
senseless("a RoomError for a room that nobody joined", RoomError(LORO, "another", RoomErrorCode.EVICTED, "out"))


def batch(count: int, total: int, batch_id: int = 1) -> Message:
    return DocUpdateFragmentHeader(LORO, ROOM, batch_id, count, total)


def piece(index: int, data: bytes, batch_id: int = 1) -> Message:
    return DocUpdateFragment(LORO, ROOM, batch_id, index, data)


senseless("a batch in fragments, of none", batch(0, 0), then=objected(INVALID), **CAME_NOT)
senseless("a batch in fragments that claims 2³²-1 of them", batch(2**32 - 1, 4), then=objected(TOO_LARGE), **CAME_NOT)
senseless("a batch in fragments that claims 4 GiB", batch(2, 2**32 - 1), then=objected(TOO_LARGE), **CAME_NOT)
senseless("the header of a batch twice", batch(2, 4), batch(2, 4), then=objected(INVALID), **CAME_NOT)
senseless("a fragment beyond the last", batch(2, 4), piece(2, b"ab"), then=objected(INVALID), **CAME_NOT)
senseless(
    "a fragment twice that differs",
    batch(2, 4),
    piece(0, b"ab"),
    piece(0, b"xy"),
    then=objected(INVALID),
    **CAME_NOT,
)
senseless(
    "more bytes in fragments than announced", batch(2, 4), piece(0, b"abcde"), then=objected(TOO_LARGE), **CAME_NOT
)
senseless(
    "fewer bytes in fragments than announced",
    batch(2, 4),
    piece(0, b"a"),
    piece(1, b"b"),
    then=objected(INVALID),
    **CAME_NOT,
)
senseless(
    "fragments of an update that the document refuses",
    batch(2, 4),
    piece(1, b"cd"),
    piece(0, b"ab"),
    then=objected(INVALID),
    **NOT_APPLIED,
)
senseless("a fragment without a header", piece(0, b"ab"), **CAME_NOT)
senseless(
    "a fragment that never comes",
    batch(2, 4),
    piece(0, b"ab"),
    within=f"{FRAGMENT_PATIENCE:g} s",
    **CAME_NOT,
    **VIRTUAL,
)
senseless(
    "one batch in fragments more than may be under way",
    *(batch(2, 4, each) for each in range(Reassembler.MAX_BATCHES + 1)),
    **CAME_NOT,
)


def hole(stage: Wire) -> None:
    """Of two edits at the server's side, only the second is sent."""
    edit(stage.doc, "unsent ")
    stage.edit("sent ")


async def nothing_missing(stage: Wire) -> None:
    adaptor: Any = stage.client.rooms[0].adaptor
    await until(lambda: all(words in text_of(adaptor.doc) for words in ("unsent ", "sent ")))


opened(
    WRONG,
    "an update that depends on one which never came",
    hole,
    "an update of the server's waits for others that have not come",
    then=nothing_missing,
    **COMPARES,
)

# ------------------------------------------------------------------------------------------- answers to the JoinRequest

JOINS = "Answers to the JoinRequest"
THE_DROP: Final = "closed with code 1012: restart"


def rejoin(what: str, says: str, change: Callable[[Wire], object], **more: Any) -> None:
    """The connection is dropped, and the request to join again meets trouble."""

    def do(stage: Wire) -> None:
        stage.joins = 0
        change(stage)
        stage.peer.send_close(*DROP)

    opened(JOINS, what, do, says, **more)


def answering(*frames: bytes) -> Callable[[Wire], None]:
    return lambda stage: setattr(stage, "answer_join", lambda _: list(frames))


def asked(times: int) -> Strike:
    async def look(stage: Wire) -> None:
        assert stage.joins == times

    return look


def join_error(code: int, *rest: bytes) -> bytes:
    """With any code."""
    return JOIN_ERROR[: len(HEADER) + 1] + bytes([code]) + b"\x05not u" + b"".join(rest)


NOT_U: Final = "the server refused the room: not u"
OPENS: Final[dict[str, Any]] = {
    "client": "connected → reconnecting → connected",
    "room": "joined → reconnecting → joined",
}
for _code, _name in (
    (0, "unknown"),
    (3, "which is none: read as unknown"),
    (126, "which is none: read as unknown"),
):
    rejoin(
        f"JoinError {_code}, {_name}: the room was good before",
        NOT_U,
        answering(join_error(_code)),
        then=asked(1),
        **OPENS,
    )
rejoin("JoinError 2, auth failed", NOT_U, answering(join_error(2)), then=asked(1), **REFUSED)
for _word in ("rate_limited", "Too-Many-Requests", "429"):
    rejoin(
        f"JoinError 127, with the application's code {_word}: a rate limit is waited for",
        f"JoinError 0x7f, {_word}",
        answering(join_error(127, bytes([len(_word)]) + _word.encode())),
        then=asked(1),
        **OPENS,
    )
rejoin(
    "JoinError 127, with a code of the application",
    "JoinError 0x7f, quota",
    answering(join_error(127, b"\x05quota")),
    then=asked(1),
    **REFUSED,
)
rejoin(
    "JoinError 127, without a code",
    NOT_U,
    answering(join_error(127)),
    then=asked(1),
    **REFUSED,
)
rejoin(
    "JoinError 1, version unknown, each time: another version is tried, then none",
    NOT_U,
    answering(join_error(1, b"\x00")),
    **REFUSED,
)


def picky(stage: Wire) -> None:
    """Knows no version but the empty one."""
    stage.answer_join = lambda request: [join_error(1, b"\x00")] if request.version else stage.let_in(request)


UNANSWERED: Final[dict[str, Any]] = {**OPENS, "within": "join_timeout"}
NO_ANSWER: Final = "no answer to the request to join within"


async def rejoined_by_itself(stage: Wire) -> None:
    """The fault goes on until the room is joined in spite of it."""
    await until(lambda: any(room.status.value == "joined" for room in stage.client.rooms))


rejoin("JoinError 1, version unknown, but the empty one is known", THE_DROP, picky, then=rejoined_by_itself, **OPENS)
rejoin("none", NO_ANSWER, lambda stage: stage.ignored.add("join"), **UNANSWERED)
rejoin("a malformed one", NO_ANSWER, answering(OK_MESSAGE[:-1]), **UNANSWERED)
rejoin(
    "one for another room", NO_ANSWER, answering(encode(JoinResponseOk(LORO, "another", "write", b""))), **UNANSWERED
)
rejoin("a RoomError, evicted", "the server put us out of the room: out", answering(ROOM_ERROR), **REFUSED)


def late_answer(stage: Wire) -> None:
    """The first request is answered when the client has given up on it; others are not."""

    def answer(request: JoinRequest) -> list[bytes]:
        if stage.joins == 1:
            stage.background(later(stage.let_in(request)))
        return []

    async def later(frames: list[bytes]) -> None:
        await asyncio.sleep(stage.settings.join_timeout + stage.settings.base / 4)
        stage.send(*frames)

    stage.answer_join = answer


rejoin("a late one", NO_ANSWER, late_answer, then=rejoined_by_itself, **{**UNANSWERED, "again": ""}, **VIRTUAL)


def junk_version(stage: Wire) -> None:
    """Lets everybody in, with a version that cannot be read, and no updates."""
    stage.answer_join = lambda _: [encode(JoinResponseOk(LORO, ROOM, "write", b"\xff\xff"))]


def twice(stage: Wire) -> None:
    stage.answer_join = lambda request: stage.let_in(request) * 2


async def read_only(stage: Wire) -> None:
    """The client may only read, until it is told to join anew."""
    stage.permission = "read"


async def may_write_again(stage: Wire) -> None:
    await rejoined_by_itself(stage)
    stage.permission = "write"
    stage.send(RoomError(LORO, ROOM, RoomErrorCode.REJOIN_SUGGESTED, "you may write"))


rejoin("a version that cannot be read", THE_DROP, junk_version, then=rejoined_by_itself, **OPENS)
rejoin("twice the same", THE_DROP, twice, then=rejoined_by_itself, **OPENS)
rejoin(
    "read only, where one could write; edits wait in the document until one can again",
    THE_DROP,
    lambda stage: setattr(stage, "permission", "read"),
    then=may_write_again,
    compares=True,
    **OPENS,
)

# ---------------------------------------------------------------------------------------------------------- credentials

AUTH = "The auth function"


def auth(what: str, says: str, token: Callable[[], Any], **more: Any) -> None:
    rejoin(what, says, lambda stage: setattr(stage, "token", token), **more)
    FAULTS[-1] = replace(FAULTS[-1], group=AUTH)


def cancelled() -> bytes:
    raise asyncio.CancelledError


def forgotten() -> bytes:
    raise LookupError(SECRET)


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


def unauthorized() -> bytes:
    raise Unauthorized(SECRET)


auth("raises", "the auth function raised LookupError", forgotten, **OPENS)
auth("is cancelled", "the auth function raised CancelledError", cancelled, **OPENS)
auth("never returns", NO_ANSWER, never, **UNANSWERED)
auth("raises Unauthorized", "the auth function raised Unauthorized", unauthorized, **REFUSED)
auth("returns what is no bytes", "the auth function returned str instead of bytes", lambda: SECRET, **REFUSED)
auth("returns more than one message holds", "it cannot be asked for", lambda: bytes(300_000), **REFUSED)

# --------------------------------------------------------------------------------------------------------- in the room

ROOMS = "In a joined room"


def evicted(what: str, code: int, **more: Any) -> None:
    data = ROOM_ERROR[: len(HEADER) + 1] + bytes([code]) + ROOM_ERROR[len(HEADER) + 2 :]
    opened(
        ROOMS,
        f"RoomError {code}, {what}",
        lambda stage: stage.send(data),
        "the server put us out of the room: out",
        **more,
    )


evicted("rejoin suggested: it stays in the session", 1, **COMPARES)
for _code, _name in (
    (2, "evicted"),
    (127, "unknown"),
    (0, "which is none: read as unknown"),
    (99, "which is none: read as unknown"),
):
    evicted(_name, _code, **PUT_OUT)
opened(
    ROOMS,
    "a JoinError, though it is joined",
    lambda stage: stage.send(JOIN_ERROR),
    "the server refused the room: no",
    **PUT_OUT,
)


def suggestion(words: str) -> RoomError:
    return RoomError(LORO, ROOM, RoomErrorCode.REJOIN_SUGGESTED, words)


async def suggest_twice(stage: Wire) -> None:
    stage.joins, stage.since = 0, asyncio.get_running_loop().time()
    stage.send(suggestion("first"))
    await until(lambda: stage.joins == 1)
    stage.send(suggestion("second"))


async def waited_for_the_interval(stage: Wire) -> None:
    await until(lambda: stage.joins >= 2)
    assert asyncio.get_running_loop().time() - stage.since >= 0.99 * stage.settings.rejoin_interval


opened(
    ROOMS,
    "RoomError 1 twice: the second time it waits for the rest of rejoin_interval",
    suggest_twice,
    "the server put us out of the room: second",
    then=waited_for_the_interval,
    **{**COMPARES, "again": "rejoin_interval"},
)


async def one_comparison(stage: Wire) -> None:
    await until(lambda: stage.joins)
    assert stage.joins == 1


def suggest_a_lot(stage: Wire) -> None:
    stage.joins = 0
    stage.send(*[suggestion("out")] * 1000)


opened(
    ROOMS,
    "RoomError 1, a thousand times at once: one comparison",
    suggest_a_lot,
    "the server put us out of the room: out",
    then=one_comparison,
    **COMPARES,
)


def comparing(what: str, says: str, change: Callable[[Wire], object], **more: Any) -> None:
    """The server suggests to come back, and the request to compare versions meets trouble."""

    def do(stage: Wire) -> None:
        stage.joins = 0
        change(stage)
        stage.send(suggestion("out"))

    opened(ROOMS, f"RoomError 1, and the request to compare versions {what}", do, says, **more)


async def others_are_heard(stage: Wire) -> None:
    """D-RESYNC: what the others write meanwhile is applied."""
    (room,) = stage.client.rooms
    adaptor: Any = room.adaptor
    stage.edit("meanwhile ")
    await until(lambda: "meanwhile " in text_of(adaptor.doc))
    assert room.status.value == "joined"
    assert stage.joins == 1, "it was heard in the next answer"


BY_AND_BY: Final[dict[str, Any]] = {**COMPARES, "again": "backoff", "then": others_are_heard}
comparing("has no answer", NO_ANSWER, lambda stage: stage.ignored.add("join"), within="join_timeout", **BY_AND_BY)
comparing("is answered with JoinError 0, unknown", NOT_U, answering(join_error(0)), **BY_AND_BY)
comparing("is answered with a rate limit", NOT_U, answering(join_error(127, b"\x0crate_limited")), **BY_AND_BY)
comparing("is answered with JoinError 2, auth failed", NOT_U, answering(join_error(2)), then=asked(1), **PUT_OUT)


def refusing(status: int, times: int | None = None) -> Callable[[Wire], None]:
    """Every batch from now on, or so many; they are counted."""

    def strike(stage: Wire) -> None:
        well = stage.acknowledge

        def refuse(batch_id: int) -> list[bytes]:
            stage.refused += 1
            if stage.refused == times:
                stage.acknowledge = well
            return acknowledged(batch_id, status)

        stage.acknowledge = refuse

    return strike


async def refusal_told(stage: Wire) -> None:
    """The adaptor hears of it; that of Loro documents logs it."""
    await until(lambda: any("the server refused 1 update(s)" in each for each in stage.warnings))


async def refused_for_good(stage: Wire) -> None:
    """Whoever waits is told so, until it is asked for anew."""
    (room,) = stage.client.rooms
    with pytest.raises(UpdatesRefused):
        await room.synced()
    assert not room.is_synced
    assert stage.refused == 2, "what was refused for good is not offered again and again"
    stage.be_good()
    await room.resync()


def refused_until(times: int) -> Strike:
    """It goes on by itself for as long as the server refuses."""

    async def look(stage: Wire) -> None:
        (room,) = stage.client.rooms
        while stage.refused < times:
            assert not room.is_synced
            await asyncio.sleep(stage.settings.base / 4)

    return look


for _status, _name in (
    (1, "unknown"),
    (2, "which is none: read as unknown"),
    (3, "permission denied"),
    (4, "invalid update"),
    (5, "payload too large"),
    (6, "rate limited"),
    (7, "fragment timeout"),
    (99, "which is none: read as unknown"),
    (127, "of the application"),
):
    _read_as = UpdateStatusCode(_status) if _status in set(UpdateStatusCode) else UpdateStatusCode.UNKNOWN
    _says = f"the server refused an update: {_read_as.name}"
    _waits = {**COMPARES, "again": "backoff"} if _status == UpdateStatusCode.RATE_LIMITED else COMPARES
    opened(
        ROOMS,
        f"an update is refused with Ack {_status}, {_name}: the adaptor is told, and it is sent again",
        refusing(_status, times=1),
        _says,
        then=refusal_told,
        **_waits,
    )
    if _status in PERMANENT_REFUSALS:
        opened(
            ROOMS,
            f"updates are refused with Ack {_status}, {_name}, again and again: synced() raises UpdatesRefused, "
            "resync() sends them again",
            refusing(_status),
            _says,
            then=refused_for_good,
            **_waits,
        )
    else:
        opened(
            ROOMS,
            f"updates are refused with Ack {_status}, {_name}, again and again: it goes on by itself",
            refusing(_status),
            _says,
            then=refused_until(3),
            **_waits,
        )


def late_acks(stage: Wire) -> None:
    async def later(batch_id: int) -> None:
        await asyncio.sleep(10 * A_MOMENT)
        stage.send(*acknowledged(batch_id))

    def acknowledge(batch_id: int) -> list[bytes]:
        stage.background(later(batch_id))
        return []

    stage.acknowledge = acknowledge


async def not_at_once(_: Wire) -> None:
    await asyncio.sleep(A_MOMENT)


async def swallow(stage: Wire) -> None:
    """Takes no update, and drops the connection after a moment."""
    stage.ignored.add("update")

    async def drop() -> None:
        await asyncio.sleep(A_MOMENT)
        stage.peer.send_close(*DROP)

    stage.background(drop())


opened(ROOMS, "Acks that come late", late_acks, then=not_at_once, **UNHARMED)
opened(
    ROOMS,
    "Acks that come twice",
    lambda stage: setattr(stage, "acknowledge", lambda each: acknowledged(each) * 2),
    then=not_at_once,
    **UNHARMED,
)
opened(
    ROOMS,
    "updates are swallowed without an Ack, then the connection drops: they are sent again",
    swallow,
    THE_DROP,
    within="0.1 s",
)

MOST: Final = 60_000  # bytes of a message that a server of small messages takes


def small_messages(stage: Wire) -> None:
    """It closes with 1009 for a message of ours that is larger than `MOST`; then there is one."""

    async def serve(peer: Peer) -> None:
        await peer.upgrade()
        receive = peer.receive

        async def limited() -> tuple[int, bytes]:
            opcode, payload = await receive()
            if len(payload) > MOST:
                peer.send_close(1009, "too big")
                await peer.wait_gone()
            return opcode, payload

        peer.receive = limited  # type: ignore[method-assign]
        await stage.talk(peer)

    stage.next = serve
    adaptor: Any = stage.client.rooms[0].adaptor
    stage.peer.send_close(*DROP)
    edit(
        adaptor.doc, "".join(map(chr, random.Random(0).choices(range(0x4E00, 0x9FFF), k=3 * MOST)))
    )  # not compressible


async def taken(stage: Wire) -> None:
    """All of it, in the end (D-TOOBIG)."""
    await until(lambda: len(stage.text()) >= 3 * MOST)


opened(
    ROOMS,
    "our message is too big for the server, which closes with 1009: pieces are halved until it takes them",
    small_messages,
    "closed with code 1009: too big",
    then=taken,
    client=" → ".join(["connected"] + ["reconnecting", "connected"] * 3),
    room=" → ".join(["joined"] + ["reconnecting", "joined"] * 3),
)

# --------------------------------------------------------------------------------------------- when we end it ourselves

OURS = "Ended from this side, with trouble at the other"


def ending(what: str, trouble: Callable[[Wire], object], **more: Any) -> None:
    """``close()`` is over within close_timeout, whatever the server does."""

    async def do(stage: Wire) -> None:
        done = trouble(stage)
        if isinstance(done, Awaitable):
            await done
        loop = asyncio.get_running_loop()
        began = loop.time()
        await stage.client.close()
        took, bound = loop.time() - began, stage.settings.close_timeout
        assert took <= (bound + 0.001 if isinstance(loop, VirtualTimeLoop) else 3 * bound + PATIENCE)

    opened(
        OURS, f"close(), and {what}; it is over within close_timeout", do, "closed by this program", **STOPPED, **more
    )


def at_close(do: Callable[[Peer], object]) -> Callable[[Wire], None]:
    """What the server does instead of answering the close frame."""

    async def behave(stage: Wire) -> None:
        peer = stage.peer
        while peer.closed_with is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        do(peer)

    def trouble(stage: Wire) -> None:
        stage.ignored.add("close")
        stage.background(behave(stage))

    return trouble


ending("the server is half-open", lambda stage: stage.peer.freeze())
ending("the server reads nothing, and its buffer is full", clogged)
ending("the server does not answer the close frame", lambda stage: stage.ignored.add("close"))
ending("the server chatters on", dripping(HELLO))
ending("the server is in the middle of a long message", dripping(b"x", before=LONG))
ending("the server answers with another code", at_close(lambda peer: peer.send_close(4401)))
ending("the server answers with a malformed frame", at_close(lambda peer: peer.write(frame(FIN_BIT | RSV1 | TEXT))))
ending("the server resets", at_close(Peer.reset), **REAL)


def ask_again(stage: Wire) -> None:
    stage.peer.freeze()
    stage.client.retry_now()


def go_offline(stage: Wire) -> None:
    stage.peer.freeze()
    stage.client.set_online(False)


async def go_online(stage: Wire) -> None:
    stage.client.set_online(True)


opened(
    OURS,
    "retry_now(), and the server is half-open",
    ask_again,
    "asked for a fresh attempt",
    client="connected → connecting → connected",
    again="",
)
opened(
    OURS,
    "set_online(False) and then True, and the server is half-open",
    go_offline,
    "offline",
    then=go_online,
    again="",
)


# ------------------------------------------------------------------------------------------------------------- running

ON_REAL_SOCKETS: Final = [fault for fault in FAULTS if fault.real]
# The rest of them is a proof; every fault is played in the one time or the other whenever tests are run.
NEEDS_THE_KERNEL: Final = [fault for fault in ON_REAL_SOCKETS if not fault.virtual]
ONE_OF_EACH_GROUP: Final = list({fault.group: fault for fault in reversed(ON_REAL_SOCKETS) if fault.virtual}.values())


@pytest.mark.virtual_time
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.virtual], ids=fault_id)
async def test_fault_in_virtual_time(fault: Fault) -> None:
    """What is declared, with the settings that a client has by default, to the millisecond."""
    await play(fault, DEFAULTS)


@pytest.mark.parametrize("fault", [*NEEDS_THE_KERNEL, *ONE_OF_EACH_GROUP], ids=fault_id)
async def test_fault_on_real_sockets(fault: Fault) -> None:
    """What is declared, on the kernel's sockets, with small settings."""
    await play(fault, SMALL)


# ------------------------------------------------------------------------------------------------------ at any byte

ANY_BYTE: Final = "At any byte"
ANSWER_BYTES: Final = 129
SOME: Final = 32  # every so many bytes, whenever tests are run; a proof takes each


def at_any_byte(every: int, frame_bytes: bytes = FRAME[:64]) -> list[Fault]:
    """An answer to the handshake, and a frame, that end too soon: by FIN, by RST, and by silence."""
    faults = []
    for size in range(0, ANSWER_BYTES, every):
        some: Callable[[Peer], bytes] = functools.partial(first_bytes, size)
        faults += [
            met(ANY_BYTE, f"FIN after {size} bytes of the answer", wrote(some, Peer.hang_up), HUNG_UP),
            met(ANY_BYTE, f"RST after {size} bytes of the answer", wrote(some, Peer.reset), RESET, virtual=False),
            met(ANY_BYTE, f"silence after {size} bytes of the answer", wrote(some), NO_TIME, real=False, **IN_TIME),
        ]
    for size in range(0, len(frame_bytes), every):
        some_more = frame_bytes[:size]
        faults += [
            Fault(ANY_BYTE, f"FIN after {size} bytes of a frame", wire, after(some_more, Peer.hang_up), LOST),
            Fault(
                ANY_BYTE, f"RST after {size} bytes of a frame", wire, after(some_more, Peer.reset), LOST, virtual=False
            ),
            Fault(
                ANY_BYTE,
                f"silence after {size} bytes of a frame",
                wire,
                after(some_more, Peer.freeze),
                NO_PONG,
                real=False,
                **DEAD,
            ),
        ]
    return faults


def first_bytes(size: int, peer: Peer) -> bytes:
    """So many bytes of a good answer."""
    whole = accept(peer)
    assert len(whole) == ANSWER_BYTES
    return whole[:size]


def play_in_virtual_time(faults: list[Fault]) -> int:
    """Each on a loop of its own; how many they were."""
    for fault in faults:
        try:
            virtual_time.run(functools.partial(play, fault, DEFAULTS))
        except BaseException as error:
            error.add_note(fault_id(fault))
            raise
    return len(faults)


async def play_on_real_sockets(faults: list[Fault]) -> int:
    """One after another; after each, nothing is left."""
    for fault in faults:
        before = leaks.in_process() | leaks.in_loop()
        try:
            await play(fault, SMALL)
        except BaseException as error:
            error.add_note(fault_id(fault))
            raise
        assert await leaks.left_over(before) == [], fault_id(fault)
    return len(faults)


def test_some_bytes_in_virtual_time() -> None:
    """A server falls silent or hangs up after some bytes of the handshake and of a frame."""
    assert play_in_virtual_time([fault for fault in at_any_byte(SOME) if fault.virtual])


async def test_some_bytes_on_real_sockets() -> None:
    """A server hangs up or resets after some bytes of the handshake and of a frame."""
    assert await play_on_real_sockets([fault for fault in at_any_byte(SOME) if fault.real])


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_every_byte_in_virtual_time(figures: Figures) -> None:
    """The same, at every byte."""
    played = play_in_virtual_time([fault for fault in at_any_byte(1) if fault.virtual])
    figures(
        "FIN and silence after each byte of the handshake's answer and of a frame, in virtual time",
        played=played,
        violations=0,
    )


@pytest.mark.proof
@pytest.mark.timeout(1800)
async def test_every_byte_on_real_sockets(figures: Figures) -> None:
    """The same, at every byte."""
    played = await play_on_real_sockets([fault for fault in at_any_byte(1) if fault.real])
    figures(
        "FIN and RST after each byte of the handshake's answer and of a frame, on real sockets",
        played=played,
        violations=0,
    )


@pytest.mark.proof
@pytest.mark.timeout(1800)
async def test_every_fault_on_real_sockets(figures: Figures) -> None:
    """The whole matrix of this file."""
    played = sum([await play_on_real_sockets(ON_REAL_SOCKETS) for _ in range(soak())])
    figures("the fault matrix on real sockets", kinds=len(ON_REAL_SOCKETS), played=played, violations=0)


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_is_up_to_date() -> None:
    """``docs/faults.md`` says what is declared here and in test_faults_system.py."""
    drawn = fault_matrix.page(fault_matrix.declared())
    assert fault_matrix.PAGE.read_text() == drawn, "docs/faults.md is out of date: run python tests/fault_matrix.py"


def test_there_are_enough_kinds() -> None:
    """No two faults have one name, and there are as many as were promised."""
    names = [fault_id(fault) for fault in fault_matrix.declared()]
    assert len(names) == len(set(names))
    assert len(names) >= KINDS


# ----------------------------------------------------------------------------------------- whether the harness can fail


def wrongly(**declared: Any) -> Fault:
    """A fault of which something is declared that is not so."""
    right = next(fault for fault in FAULTS if fault.what == "HTTP 404")
    return replace(right, **declared)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"says": "the server answered HTTP 405"}, id="reason"),
        pytest.param({"client": "connected → reconnecting → disconnected"}, id="client"),
        pytest.param({"client": "connected → connecting → connected"}, id="client's way"),
        pytest.param({"room": "joined → connecting → joined"}, id="room"),
        pytest.param({"within": "connect_timeout"}, id="later than declared"),
        pytest.param({"again": "7 s"}, id="again"),
        pytest.param({"again": "never"}, id="never again"),
        pytest.param({"says": "", "client": "connected", "room": "joined"}, id="harmless"),
    ],
)
async def test_the_matrix_fails_on_a_wrong_declaration(wrong: dict[str, Any]) -> None:
    """Each thing that is declared is looked at."""
    with pytest.raises(AssertionError):
        await play(wrongly(**wrong), DEFAULTS)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        pytest.param("rejoin suggested", {"compares": False}, id="compares in silence"),
        pytest.param("JoinError 2, auth failed", {"compares": True}, id="compares not at all"),
        pytest.param("rejoin suggested", {"room": "joined → reconnecting → joined"}, id="stays joined"),
        pytest.param("rejoin suggested", {"again": "rejoin_interval"}, id="sooner than declared"),
        pytest.param("JoinError 0, unknown: the room", {"again": "at once"}, id="later than declared"),
        pytest.param("JoinError 0, unknown: the room", {"again": ""}, id="asks again"),
        pytest.param("JoinError 2, auth failed", {"again": "backoff"}, id="does not ask again"),
    ],
)
async def test_the_matrix_fails_on_a_wrong_declaration_of_a_room(what: str, wrong: dict[str, Any]) -> None:
    """What a room asks for, and when, is looked at, too (D-RESYNC, D-JOINERR)."""
    right = next(fault for fault in FAULTS if what in fault.what)
    with pytest.raises(AssertionError):
        await play(replace(right, **wrong), DEFAULTS)


@pytest.mark.virtual_time
async def test_the_matrix_fails_if_it_takes_too_long() -> None:
    """A bound that is not kept is seen."""
    slow = next(fault for fault in FAULTS if fault.within == "interval + timeout")
    with pytest.raises(AssertionError, match="30"):
        await play(replace(slow, within="interval"), DEFAULTS)


@pytest.mark.virtual_time
async def test_the_matrix_fails_if_edits_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that forgets what was edited during the fault is seen."""
    monkeypatch.setattr(LoroAdaptor, "missing_from", lambda *_: ())
    fault = next(fault for fault in FAULTS if fault.what == "HTTP 404")
    with pytest.raises((AssertionError, TimeoutError)):
        await play(fault, DEFAULTS)


@pytest.mark.virtual_time
async def test_the_matrix_fails_if_a_stopped_client_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that tries again after a fatal close is seen."""
    fault = next(fault for fault in FAULTS if fault.what == "code 4401, fatal")
    monkeypatch.setattr(RetryPolicy, "is_fatal_close", lambda *_: False)
    with pytest.raises(AssertionError):
        await play(fault, DEFAULTS)


@pytest.mark.virtual_time
async def test_the_matrix_fails_if_a_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that holds the query string is seen."""
    fault = next(fault for fault in FAULTS if fault.what == "HTTP 404")
    shown = AttemptFailure(FailureKind.ANSWER, f"the server answered HTTP 404 to /?token={SECRET}", 404)
    monkeypatch.setattr("reconnect_fsm._asyncio.transport.handshake.failure_of", lambda *_: shown)
    with pytest.raises(AssertionError, match="secret"):
        await play(fault, DEFAULTS)


# ----------------------------------------------------------------------------------------- faults that the matrix found


async def test_a_timer_that_runs_early_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio runs a timer up to the clock's resolution early: no reason to ask the heartbeat again and again."""
    loop: Any = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "_clock_resolution", 0.05)  # coarse, as on some systems
    asked, is_early = 0, HeartbeatFSM.is_early

    def counted(self: HeartbeatFSM) -> bool:
        nonlocal asked
        asked += 1
        return is_early(self)

    monkeypatch.setattr(HeartbeatFSM, "is_early", counted)
    async with faulty.server() as server, Connection(server.url, keepalive=Keepalive(interval=0.2)) as connection:
        async with asyncio.timeout(PATIENCE):
            await connection.wait_connected()
        await until(lambda: server.peer.frames)
        assert asked <= 6  # twice in each tick


async def test_a_fatal_close_is_not_lost_to_a_write_of_ours() -> None:
    """A close frame that has arrived counts, though the RST behind it makes our next write fail before it is read."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        watch = faulty.Watch(connection)
        server.peer.send_close(4401)
        server.peer.reset()
        socket = connection_driver_of(connection).socket.content
        assert socket is not None
        socket.send("hello")  # as an edit does that is made in this moment
        await until(lambda: watch.steps)
        assert watch.steps[0].reason == "closed with code 4401"
