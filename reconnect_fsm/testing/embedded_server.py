"""A Loro syncing server in this process, for tests, trials and the demo; it misbehaves on request.

It answers as the reference server does (npm ``loro-websocket``): the text frame ``ping`` with ``pong``; a JoinRequest
with a JoinResponseOk and what the client lacks, or with a JoinError; updates with an Ack, and the other members of the
room get them; a frame that is no message with close code 1002. It differs where the reference fails: a state or update
of up to 16 MiB is sent in fragments, fragments are checked, every CRDT type has rooms, and a room id that is too long,
or an answer that a client sends, closes that client's connection (1002) and does not end the server. On request it also
sends RoomErrors, which put the members out of the room.

A ``%LOR`` room is a real ``LoroDoc`` if the ``loro`` package is installed: versions are compared, and a client gets
what it lacks. Any other room is a log of updates, and each client that joins gets all of it. ``%EPH`` and ``%YAW``
rooms are forgotten when the last member has left, and so is any room that holds nothing.

Every bound is a class attribute of `EmbeddedServer`: lower it in a subclass. Two things have none: the number of
connections, and what clients put in a ``%LOR`` document.

It is no server for production: it has no persistence, no rate limits, and no access control but ``authenticate``.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias

from aiohttp import WSCloseCode, WSMsgType, web

from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
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
    Permission,
    Reassembler,
    RefusedBatch,
    RoomError,
    UpdateStatusCode,
    decode,
    encode,
    room_header,
    split,
)

if TYPE_CHECKING:
    from loro import LoroDoc

__all__ = ["Authenticate", "EmbeddedServer", "ServerStats"]

Authenticate: TypeAlias = Callable[[str, CrdtType, bytes], "Permission | Awaitable[Permission | None] | None"]
"""``authenticate(room_id, crdt, auth)``: the client's permission in the room, or None to refuse it. Plain or async."""

RoomKey: TypeAlias = tuple[CrdtType, str]

_PASSING: Final = frozenset({CrdtType.EPHEMERAL, CrdtType.YJS_AWARENESS})
_MAX_REASON_BYTES: Final = 123  # RFC 6455, 5.5: a control frame has 125 bytes, and the close code takes two
_YIELD_EVERY: Final = 64  # frames handled or written before the loop gets its turn: one or two milliseconds
_PASSES: Final = 20  # of the loop, for what was accepted a moment ago to show up, and for what was aborted to go

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ServerStats:
    """What was received since the server object was made; you may reset the counts."""

    attempts: int = 0
    """HTTP requests, also those that were refused or not answered."""
    connects: int = 0
    """Upgrades to WebSocket, also those dropped at once."""
    joins: int = 0
    """JoinRequests, also those ignored or refused."""
    updates: int = 0
    """Batches of updates that were complete, and that the client was permitted to send."""
    pings: int = 0
    """Text frames ``ping``."""


class EmbeddedServer:
    """A server on ``host`` and ``port`` (0: any free one), with ``ssl`` for ``wss``; use it with ``async with``.

    Everything runs in the loop that started it, and there are no threads: call it from there. ``authenticate`` is asked
    at each join. It may be async; meanwhile the connection handles nothing else. If it raises, that is logged and
    answered with a JoinError. A ``LoroDoc`` is made at the first update of a room.
    """

    MAX_FRAME_BYTES: ClassVar[int] = MAX_MESSAGE_SIZE + 64 * 1024
    """Most bytes of a frame that is read; a larger one closes the connection (code 1009).

    It is above the limit of the protocol, so that an update a little too large is answered: Ack ``PAYLOAD_TOO_LARGE``.
    """
    MAX_ROOMS: ClassVar[int] = 1_000_000
    """Most rooms; a join of one more is refused."""
    MAX_ROOMS_PER_CONNECTION: ClassVar[int] = 100_000
    """Most rooms that one connection may be in; a join of one more is refused."""
    MAX_FRAGMENTED_ROOMS: ClassVar[int] = 16
    """Most rooms of a connection that receive fragments (each bounded by `Reassembler`); then ``RATE_LIMITED``."""
    MAX_LOG_BYTES: ClassVar[int] = 16 * 1024 * 1024
    """Most bytes in the log of a room, with 64 bytes for each update besides its own.

    Then a ``%EPH`` or ``%YAW`` room drops the oldest updates, and any other refuses new ones: ``PAYLOAD_TOO_LARGE``.
    """
    MAX_BACKLOG_BYTES: ClassVar[int] = 64 * 1024 * 1024
    """Most bytes that may wait for a client that does not read; then its connection is aborted."""
    READ_PAUSE_BYTES: ClassVar[int] = 4 * 1024 * 1024
    """While more bytes than this wait for a client, nothing is read from it."""
    MAX_HELD_ACKS: ClassVar[int] = 100_000
    """Most acks that `hold_acks` keeps back; then the oldest are lost."""
    CLOSE_TIMEOUT: ClassVar[float] = 2.0
    """Seconds for a client to answer a close frame; then its connection is aborted."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        authenticate: Authenticate | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        self.stats = ServerStats()
        self.drop_on_accept = False
        """While True, each upgrade is answered, and then the TCP connection is closed without a close frame."""
        self.ignore_joins = False
        """While True, JoinRequests are not answered, not even later."""
        self.hold_acks = False
        """While True, acks are kept back until `release_acks`."""
        self._host = host
        self._port = port
        self._authenticate = authenticate
        self._ssl = ssl
        self._has_loro = find_spec("loro") is not None
        self._rooms: dict[RoomKey, _Room] = {}
        self._batch_ids = itertools.count(1 << 63)  # clients count, or choose at random: not among those that count
        self._held_acks: deque[tuple[ServerConnection, bytes]] = deque(maxlen=self.MAX_HELD_ACKS)
        self._refusal: tuple[int, Mapping[str, str]] | None = None
        self._listener: asyncio.Server | None = None
        self._web: web.Server | None = None
        self._handlers: set[asyncio.Task[Any]] = set()
        self._connections: dict[ServerConnection, None] = {}  # a set in the order of connecting
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._paused: list[asyncio.Transport] = []

    # Life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after a `stop`, on the same port and with the rooms that were kept.

        Raises OSError if the port is taken, RuntimeError if the server is started already.
        """
        if self._listener is not None:
            raise RuntimeError("the server is started already")
        self._web = web.Server(self._handle, access_log=None)
        self._listener = await self._listen()
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._accepted,
            self._host,
            self._port,
            backlog=1024,
            ssl=self._ssl,
            ssl_handshake_timeout=5.0 if self._ssl else None,  # the loop's own are longer than a test
            ssl_shutdown_timeout=self.CLOSE_TIMEOUT if self._ssl else None,
        )

    async def stop(self, code: int = 1001, reason: str = "Server stopping") -> None:
        """Stop listening and close every connection; nothing is left of them afterwards. Rooms and settings are kept.

        A client has `CLOSE_TIMEOUT` seconds to answer the close frame. A frozen server sends none: it aborts all
        connections, and is thawed. Does nothing if the server is not started. Raises ValueError as `close_all` does.
        """
        close_payload(code, reason)  # refused before anything is closed
        listener, server = self._listener, self._web
        if listener is None or server is None:
            return
        self._listener = self._web = None
        listener.close()
        try:
            if self._thawed.is_set():
                await self.close_all(code, reason)
        finally:
            await self._abort_everything(server)
            self._held_acks.clear()
            await listener.wait_closed()

    async def _abort_everything(self, server: web.Server) -> None:
        for _ in range(_PASSES):
            for protocol in server.connections:
                if protocol.transport is not None:
                    protocol.transport.abort()
            for task in self._handlers:
                if not task.cancelling():
                    task.cancel()
            await asyncio.sleep(0)
        self.thaw()
        if self._handlers:  # an `authenticate` that takes its time to be cancelled
            await asyncio.wait(set(self._handlers), timeout=self.CLOSE_TIMEOUT)
        await server.shutdown(self.CLOSE_TIMEOUT)

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start if any free one was asked for."""
        return self._port

    @property
    def url(self) -> str:
        """Where to connect to."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'wss' if self._ssl else 'ws'}://{host}:{self._port}/"

    @property
    def connections(self) -> int:
        """How many WebSocket connections are open."""
        return len(self._connections)

    # What is in the rooms -----------------------------------------------------------------------------------------

    def document(self, room_id: str) -> LoroDoc:
        """The server's own copy of a ``%LOR`` room, made if there is none.

        What you change in it reaches clients at their next join. Raises ModuleNotFoundError without ``loro``.
        """
        if not self._has_loro:
            raise ModuleNotFoundError("document() needs the loro package: pip install 'reconnect-fsm[loro]'")
        contents = self._room(CrdtType.LORO, room_id).contents
        assert isinstance(contents, _Document)
        return contents.doc

    def has_room(self, room_id: str, crdt: CrdtType = CrdtType.LORO) -> bool:
        """Whether there is such a room: it was joined, or made by `document`, and was not forgotten."""
        return (crdt, room_id) in self._rooms

    def forget(self) -> None:
        """Drop all rooms and their members: a client that still sends there gets Ack ``PERMISSION_DENIED``."""
        for connection in self._connections:
            connection.rooms.clear()
            connection.incoming.clear()
        self._rooms.clear()

    # How to misbehave ---------------------------------------------------------------------------------------------

    async def close_all(self, code: int = 1000, reason: str = "") -> None:
        """Send every client a close frame, and wait until they are gone: at most about `CLOSE_TIMEOUT` seconds.

        ``code`` may be any number of 16 bits, whether it makes sense or not. Raises ValueError for another, or for a
        reason of more than 123 bytes; RuntimeError while frozen.
        """
        payload = close_payload(code, reason)
        if not self._thawed.is_set():
            raise RuntimeError("a frozen server sends nothing: thaw() it first, or use reset_all()")
        closing = list(self._connections)
        for connection in closing:
            connection.close(payload)
        if closing:
            await asyncio.wait({connection.task for connection in closing}, timeout=2 * self.CLOSE_TIMEOUT)

    def reset_all(self) -> None:
        """Reset every TCP connection (RST), also those whose upgrade was not answered yet."""
        for protocol in self._web.connections if self._web is not None else ():
            if (transport := protocol.transport) is not None:
                reset_connection(transport)

    def freeze(self) -> None:
        """Make every connection half-open: nothing is read, answered or sent, and TCP connections stay open.

        New TCP connections are accepted, but their upgrade is not answered. Lasts until `thaw` or `stop`.
        """
        self._thawed.clear()
        for connection in self._connections:
            if connection.transport.is_reading():  # else aiohttp paused it, and will resume it
                connection.transport.pause_reading()
                self._paused.append(connection.transport)

    def thaw(self) -> None:
        """End `freeze`: what came meanwhile is handled now."""
        for transport in self._paused:
            transport.resume_reading()
        self._paused.clear()
        self._thawed.set()

    def refuse_upgrades(self, status: int | None, headers: Mapping[str, str] | None = None) -> None:
        """Answer each upgrade with this HTTP status and these headers from now on; None: accept upgrades again."""
        self._refusal = None if status is None else (status, dict(headers or {}))

    def release_acks(self) -> None:
        """Send the acks that `hold_acks` kept back, in order."""
        while self._held_acks:
            connection, frame = self._held_acks.popleft()
            connection.send(WSMsgType.BINARY, frame)

    async def send(self, room_id: str, crdt: CrdtType, message: Message) -> int:
        """Send a message to every member of a room, behind what is queued already; return how many there are.

        A RoomError puts them out of the room. Raises `ProtocolError` for a message that cannot be encoded.
        """
        frame = encode(message)
        room = self._rooms.get((crdt, room_id))
        members = [] if room is None else list(room.members)
        for member in members:
            member.send(WSMsgType.BINARY, frame)
            if isinstance(message, RoomError):
                member.leave((crdt, room_id))
        await asyncio.sleep(0)  # the writers' turn
        return len(members)

    async def send_raw(self, data: bytes | str) -> int:
        """Send a binary or text frame to every client; return how many there are."""
        opcode, raw = (WSMsgType.TEXT, data.encode()) if isinstance(data, str) else (WSMsgType.BINARY, data)
        receivers = list(self._connections)
        for connection in receivers:
            connection.send(opcode, raw)
        await asyncio.sleep(0)
        return len(receivers)

    # Connections --------------------------------------------------------------------------------------------------

    def _accepted(self) -> asyncio.Protocol:
        """The protocol of a TCP connection that was accepted a moment ago."""
        assert self._web is not None
        return self._web()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            return await self._answer_request(request, task)
        finally:
            self._handlers.discard(task)

    async def _answer_request(self, request: web.BaseRequest, task: asyncio.Task[Any]) -> web.StreamResponse:
        self.stats.attempts += 1
        await self._thawed.wait()
        refusal = await self._refuse(request)
        if refusal is not None:
            refusal.force_close()
            return refusal
        ws = web.WebSocketResponse(
            autoclose=False, autoping=False, compress=False, max_msg_size=self.MAX_FRAME_BYTES + 1
        )
        with suppress(ConnectionError):
            await ws.prepare(request)
        transport = request.transport
        if transport is None or transport.is_closing():  # it did not wait for an answer
            return web.Response()
        self.stats.connects += 1
        if self.drop_on_accept:
            transport.close()
            return ws
        connection = ServerConnection(self, ws, transport, task)
        self._connections[connection] = None
        try:
            self._opened(connection)
            await connection.run()
        finally:
            del self._connections[connection]
            for key in list(connection.rooms):
                connection.leave(key)
        return ws

    async def _refuse(self, request: web.BaseRequest) -> web.Response | None:
        """What an upgrade is answered with instead."""
        if self._refusal is None:
            return None
        status, headers = self._refusal
        return web.Response(status=status, headers=headers)

    def _opened(self, connection: ServerConnection) -> None:
        """The upgrade was answered."""

    # Messages -----------------------------------------------------------------------------------------------------

    def _ping(self, connection: ServerConnection) -> None:
        """The text frame ``ping`` came."""
        self.stats.pings += 1
        connection.send(WSMsgType.TEXT, b"pong")

    async def _receive(self, connection: ServerConnection, frame: bytes) -> None:
        """A binary frame came. Raises `ProtocolError` for one that a client may not send."""
        message = decode(frame)
        match message:
            case JoinRequest():
                await self._join(connection, message)
            case DocUpdate():
                self._update(connection, message, len(frame))
            case DocUpdateFragmentHeader():
                self._fragment_header(connection, message)
            case DocUpdateFragment():
                self._fragment(connection, message)
            case Leave():
                connection.leave((message.crdt, message.room_id))
            case JoinResponseOk() | JoinError():
                raise ProtocolError(f"{type(message).__name__} is for servers to send")
            case Ack() | RoomError():
                pass

    async def _join(self, connection: ServerConnection, request: JoinRequest) -> None:
        self.stats.joins += 1
        room_header(request.crdt, request.room_id)  # a room id that no answer could carry
        if self.ignore_joins:
            return
        permission = await self._permission(connection, request)
        refusal = permission if isinstance(permission, JoinError) else self._admit(connection, request, permission)
        if refusal is not None:
            connection.send(WSMsgType.BINARY, encode(refusal))

    async def _permission(self, connection: ServerConnection, request: JoinRequest) -> Permission | JoinError:
        crdt, room_id = request.crdt, request.room_id
        if self._authenticate is None:
            return "write"
        try:
            verdict = self._authenticate(room_id, crdt, request.auth)
            permission = await verdict if inspect.isawaitable(verdict) else verdict
        except Exception as error:
            _log.exception("authenticate raised")
            why = f"authenticate raised {type(error).__name__}"
            return JoinError(crdt, room_id, JoinErrorCode.UNKNOWN, why)
        if permission not in ("read", "write"):
            return JoinError(crdt, room_id, JoinErrorCode.AUTH_FAILED, "Authentication failed")
        return permission

    def _admit(self, connection: ServerConnection, request: JoinRequest, permission: Permission) -> JoinError | None:
        """Accept the client, or refuse it."""
        crdt, room_id = key = request.crdt, request.room_id
        more = len(connection.rooms) + (key not in connection.rooms) > self.MAX_ROOMS_PER_CONNECTION
        if more or len(self._rooms) + (key not in self._rooms) > self.MAX_ROOMS:
            return JoinError(crdt, room_id, JoinErrorCode.UNKNOWN, "Too many rooms")
        room = self._room(crdt, room_id)
        try:
            version, missing = room.contents.catch_up(request.version)
            backfill = split(crdt, room_id, missing, self._batch_ids.__next__)
        except _VersionUnknownError as unknown:
            self._drop_if_idle(room)
            why = "The version cannot be read"
            return JoinError(crdt, room_id, JoinErrorCode.VERSION_UNKNOWN, why, receiver_version=unknown.version)
        except ValueError as too_large:
            self._drop_if_idle(room)
            return JoinError(crdt, room_id, JoinErrorCode.UNKNOWN, str(too_large))
        room.members[connection] = permission
        connection.rooms[key] = room
        connection.send(WSMsgType.BINARY, encode(JoinResponseOk(crdt, room_id, permission, version)))
        for batch in backfill:
            connection.send_all(batch.frames)
        return None

    def _room(self, crdt: CrdtType, room_id: str) -> _Room:
        key = crdt, room_id
        room = self._rooms.get(key)
        if room is None:
            contents: _Document | _Log
            if crdt is CrdtType.LORO and self._has_loro:
                contents = _Document()
            else:
                contents = _Log(self.MAX_LOG_BYTES, oldest_go=crdt in _PASSING)
            room = self._rooms[key] = _Room(crdt, room_id, contents)
        return room

    def _drop_if_idle(self, room: _Room) -> None:
        if not room.members and (room.contents.is_empty or room.crdt in _PASSING):
            self._rooms.pop((room.crdt, room.room_id), None)

    def _update(self, connection: ServerConnection, message: DocUpdate, frame_size: int) -> None:
        crdt, room_id, batch_id = message.crdt, message.room_id, message.batch_id
        if frame_size > MAX_MESSAGE_SIZE:
            self._ack(connection, crdt, room_id, batch_id, UpdateStatusCode.PAYLOAD_TOO_LARGE)
        elif (room := self._writable(connection, crdt, room_id)) is None:
            self._ack(connection, crdt, room_id, batch_id, UpdateStatusCode.PERMISSION_DENIED)
        else:
            self._apply(connection, room, message.updates, batch_id)

    def _fragment_header(self, connection: ServerConnection, header: DocUpdateFragmentHeader) -> None:
        crdt, room_id, batch_id = header.crdt, header.room_id, header.batch_id
        if self._writable(connection, crdt, room_id) is None:
            self._ack(connection, crdt, room_id, batch_id, UpdateStatusCode.PERMISSION_DENIED)
        elif (reassembler := connection.reassembler((crdt, room_id))) is None:
            self._ack(connection, crdt, room_id, batch_id, UpdateStatusCode.RATE_LIMITED)
        else:
            if refusal := reassembler.begin(header, connection.now()):
                self._ack(connection, crdt, room_id, batch_id, refusal.status)
            connection.watch_fragments()

    def _fragment(self, connection: ServerConnection, fragment: DocUpdateFragment) -> None:
        crdt, room_id, batch_id = fragment.crdt, fragment.room_id, fragment.batch_id
        room = self._writable(connection, crdt, room_id)
        reassembler = None if room is None else connection.reassembler((crdt, room_id))
        if room is None or reassembler is None:  # the header was refused: one Ack a batch is enough
            return
        result = reassembler.add(fragment, connection.now())
        if isinstance(result, RefusedBatch):
            self._ack(connection, crdt, room_id, batch_id, result.status)
        elif result is not None:
            self._apply(connection, room, (result,), batch_id)

    def _expire_fragments(self, connection: ServerConnection, due: float) -> None:
        now = max(connection.now(), due)  # asyncio may run a timer a little early
        for (crdt, room_id), reassembler in connection.incoming.items():
            for refusal in reassembler.expire(now):
                self._ack(connection, crdt, room_id, refusal.batch_id, refusal.status)

    def _writable(self, connection: ServerConnection, crdt: CrdtType, room_id: str) -> _Room | None:
        room = connection.rooms.get((crdt, room_id))
        return room if room is not None and room.members[connection] == "write" else None

    def _apply(self, connection: ServerConnection, room: _Room, updates: tuple[bytes, ...], batch_id: int) -> None:
        self.stats.updates += 1
        status = room.contents.add(updates) if updates else UpdateStatusCode.OK
        self._ack(connection, room.crdt, room.room_id, batch_id, status)
        if status is not UpdateStatusCode.OK or not updates or len(room.members) == 1:
            return
        frames: tuple[bytes, ...]
        if len(updates) == 1 and len(updates[0]) > FRAGMENT_SIZE:
            frames = split(room.crdt, room.room_id, updates, lambda: batch_id)[0].frames
        else:
            frames = (encode(DocUpdate(room.crdt, room.room_id, updates, batch_id)),)
        for member in room.members:
            if member is not connection:
                member.send_all(frames)

    def _ack(
        self, connection: ServerConnection, crdt: CrdtType, room_id: str, batch_id: int, status: UpdateStatusCode
    ) -> None:
        frame = encode(Ack(crdt, room_id, batch_id, status))
        if self.hold_acks:
            self._held_acks.append((connection, frame))
        else:
            connection.send(WSMsgType.BINARY, frame)


class ServerConnection:
    """One WebSocket: reads, writes, and does the closing handshake. The server handles the messages.

    Frames are queued, and a task of its own writes them, so handling a message never waits for a slow reader.
    """

    def __init__(
        self, server: EmbeddedServer, ws: web.WebSocketResponse, transport: asyncio.Transport, task: asyncio.Task[Any]
    ) -> None:
        self.transport = transport
        self.task = task
        self.rooms: dict[RoomKey, _Room] = {}
        self.incoming: dict[RoomKey, Reassembler] = {}
        self._server = server
        self._ws = ws
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[tuple[WSMsgType, bytes]] = deque()
        self.backlog = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._closing = False  # the last frame is queued, or the connection is gone
        self._close_timer: asyncio.TimerHandle | None = None
        self._fragment_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the client until the connection has ended."""
        writer = asyncio.create_task(self._write(), name="embedded server: writer")
        try:
            if await self._read():
                await asyncio.wait({writer})  # our own close frame is on its way
        finally:
            self._closing = True
            for timer in (self._close_timer, self._fragment_timer):
                if timer is not None:
                    timer.cancel()
            # aiohttp would send a close frame of its own on a transport that is open.
            self.transport.close()
            writer.cancel()
            await asyncio.wait({writer})

    async def _read(self) -> bool:
        """Whether the client did the closing handshake; False if the connection is lost."""
        handled = 0
        while True:
            message = await self._ws.receive()
            await self._server._thawed.wait()
            match message.type:
                case WSMsgType.CLOSE:
                    self.close(close_payload(message.data) if message.data else b"")
                    return True
                case WSMsgType.CLOSED | WSMsgType.CLOSING | WSMsgType.ERROR:
                    return False
                case _:
                    await self._receive(message.type, message.data)
            handled += 1
            if handled % _YIELD_EVERY == 0:  # a receive of what is there already does not yield
                await asyncio.sleep(0)
            if self.backlog > self._server.READ_PAUSE_BYTES:
                self._drained.clear()
                await self._drained.wait()

    async def _receive(self, kind: WSMsgType, data: Any) -> None:
        if kind is WSMsgType.BINARY:
            try:
                await self._server._receive(self, data)
            except ProtocolError as error:
                _log.debug("closing with 1002: %s", error)
                self.close(close_payload(WSCloseCode.PROTOCOL_ERROR, "Protocol error"))
        elif kind is WSMsgType.TEXT and data == "ping":
            self._server._ping(self)
        elif kind is WSMsgType.PING:
            self.send(WSMsgType.PONG, bytes(data))

    async def _write(self) -> None:
        written = 0
        try:
            while True:
                while not self._outgoing:
                    self._wake.clear()
                    await self._wake.wait()
                await self._server._thawed.wait()
                opcode, data = self._outgoing.popleft()
                self.backlog -= len(data)
                await self._ws.send_frame(data, opcode)
                if opcode is WSMsgType.CLOSE:
                    return
                if self.backlog <= self._server.READ_PAUSE_BYTES:
                    self._drained.set()
                written += 1
                if written % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        except ConnectionError:
            pass  # the reader fails, too
        finally:
            self._closing = True
            self._outgoing.clear()
            self.backlog = 0
            self._drained.set()

    def send(self, opcode: WSMsgType, data: bytes) -> None:
        """Queue a frame; do nothing once the connection is closing."""
        if self._closing:
            return
        self._outgoing.append((opcode, data))
        self.backlog += len(data)
        self._wake.set()
        if self.backlog > self._server.MAX_BACKLOG_BYTES:
            self._closing = True
            self.transport.abort()

    def send_all(self, frames: Iterable[bytes]) -> None:
        """Queue binary frames."""
        for frame in frames:
            self.send(WSMsgType.BINARY, frame)

    def close(self, payload: bytes) -> None:
        """Queue a close frame, which is the last frame, and give the client `CLOSE_TIMEOUT` seconds to answer it."""
        if self._closing:
            return
        self.send(WSMsgType.CLOSE, payload)
        self._closing = True
        self._close_timer = self._loop.call_later(self._server.CLOSE_TIMEOUT, self.transport.abort)

    def now(self) -> float:
        return self._loop.time()

    def leave(self, key: RoomKey) -> None:
        """The client is no longer in the room, if it was."""
        self.incoming.pop(key, None)
        room = self.rooms.pop(key, None)
        if room is not None:
            del room.members[self]
            self._server._drop_if_idle(room)

    def reassembler(self, key: RoomKey) -> Reassembler | None:
        """The reassembler of this room; None if there are too many, and none is idle."""
        found = self.incoming.get(key)
        if found is not None:
            return found
        if len(self.incoming) >= self._server.MAX_FRAGMENTED_ROOMS:
            self.incoming = {key: busy for key, busy in self.incoming.items() if busy.next_deadline() is not None}
            if len(self.incoming) >= self._server.MAX_FRAGMENTED_ROOMS:
                return None
        return self.incoming.setdefault(key, Reassembler())

    def watch_fragments(self) -> None:
        """Expire batches when the time of the oldest is over. All have the same time, so a new one is never first."""
        deadlines = [when for each in self.incoming.values() if (when := each.next_deadline()) is not None]
        if deadlines and self._fragment_timer is None:
            due = min(deadlines)
            self._fragment_timer = self._loop.call_at(due, self._expire_fragments, due)

    def _expire_fragments(self, due: float) -> None:
        self._fragment_timer = None
        self._server._expire_fragments(self, due)
        self.watch_fragments()


def reset_connection(transport: asyncio.Transport) -> None:
    """Reset a TCP connection: an RST."""
    connection = transport.get_extra_info("socket")
    if isinstance(connection.fileno(), int):  # else it is one in memory (reconnect_fsm.testing.virtual_time)
        with suppress(OSError):  # closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def close_payload(code: int, reason: str = "") -> bytes:
    raw = reason.encode()
    if len(raw) > _MAX_REASON_BYTES:
        raise ValueError(f"the reason is {len(raw)} bytes, the limit is {_MAX_REASON_BYTES}")
    if not 0 <= code <= 0xFFFF:
        raise ValueError(f"the close code must be from 0 to 65535, not {code}")
    return code.to_bytes(2, "big") + raw


# Rooms ------------------------------------------------------------------------------------------------------------


class _Room:
    """A room: its members and its content."""

    __slots__ = ("contents", "crdt", "members", "room_id")

    def __init__(self, crdt: CrdtType, room_id: str, contents: _Document | _Log) -> None:
        self.crdt = crdt
        self.room_id = room_id
        self.contents = contents
        self.members: dict[ServerConnection, Permission] = {}


class _VersionUnknownError(Exception):
    """A client has a version that cannot be read; `version` is ours."""

    def __init__(self, version: bytes) -> None:
        super().__init__()
        self.version = version


class _Document:
    """A ``LoroDoc``, made when it is needed: an empty one costs memory."""

    __slots__ = ("_doc",)

    def __init__(self) -> None:
        self._doc: LoroDoc | None = None

    @property
    def is_empty(self) -> bool:
        return self._doc is None

    @property
    def doc(self) -> LoroDoc:
        from loro import LoroDoc

        if self._doc is None:
            self._doc = LoroDoc()  # type: ignore[no-untyped-call]
        return self._doc

    def add(self, updates: tuple[bytes, ...]) -> UpdateStatusCode:
        from loro import LoroDoc

        try:
            for update in updates:  # all or none: the checksum of the last is looked at before the first is taken
                LoroDoc.decode_import_blob_meta(update, True)
            for update in updates:
                self.doc.import_(update)
        except BaseException as error:
            if _is_from_loro(error):
                return UpdateStatusCode.INVALID_UPDATE
            raise
        return UpdateStatusCode.OK

    def catch_up(self, version: bytes) -> tuple[bytes, list[bytes]]:
        """The version here, and what a client at its version lacks. Raises `_VersionUnknownError`."""
        from loro import VersionVector

        from reconnect_fsm.adaptors.history import updates_lacking

        if self._doc is not None:
            self._doc.commit()  # what the user of `document` did not
        nothing = VersionVector()  # type: ignore[no-untyped-call]
        ours = nothing if self._doc is None else self._doc.oplog_vv
        try:
            theirs = VersionVector.decode(version) if version else nothing
        except BaseException as error:
            if _is_from_loro(error):
                raise _VersionUnknownError(ours.encode()) from None
            raise
        if self._doc is None or theirs.includes_vv(ours):
            return ours.encode(), []
        return ours.encode(), list(updates_lacking(self._doc, theirs))


def _is_from_loro(error: BaseException) -> bool:
    """loro's errors are bare BaseExceptions; what ends programs and tasks are subclasses."""
    return type(error) is BaseException


class _Log:
    """Updates as they came, for clients that join. Over ``limit`` bytes the oldest are dropped, or new ones refused."""

    __slots__ = ("_limit", "_oldest_go", "_size", "_updates")

    _OVERHEAD: Final = 64  # bytes counted for an update beside its own, so that empty ones are bounded too

    def __init__(self, limit: int, oldest_go: bool) -> None:
        self._limit = limit
        self._oldest_go = oldest_go
        self._size = 0
        self._updates: deque[bytes] | None = None

    @property
    def is_empty(self) -> bool:
        return not self._updates

    def add(self, updates: tuple[bytes, ...]) -> UpdateStatusCode:
        size = sum(self._OVERHEAD + len(update) for update in updates)
        if self._size + size > self._limit and not self._oldest_go:
            return UpdateStatusCode.PAYLOAD_TOO_LARGE
        if self._updates is None:
            self._updates = deque()
        self._updates.extend(updates)
        self._size += size
        while self._size > self._limit:
            self._size -= self._OVERHEAD + len(self._updates.popleft())
        return UpdateStatusCode.OK

    def catch_up(self, _version: bytes) -> tuple[bytes, list[bytes]]:
        """No version, and everything."""
        return b"", list(self._updates or ())
