"""A Loro syncing server that misbehaves by a script, which has one entry for each of the next connection attempts.

::

    script = [Answer(503, {"Retry-After": "3"}), Stall(at=40), None, (NoPong(), SlowAcks(1.0)), Close(1008, "no")]
    async with ScriptedServer(script) as server, Client(server.url) as client:
        ...
        server.inflict(Reset())          # on the connections that are open now
        server.follow(StopListening(2.0))    # from now on, this is the script
        assert [played.act for played in server.played] == [...]

An entry is one misbehaviour, several of them in a tuple, or None for none. When the script is used up, the server
behaves well. It is an `EmbeddedServer`, with all that one can do. It works under real time, with TLS, and under virtual
time. What each misbehaviour does is said where it is defined, below.

``at`` counts the bytes that the server sends over the connection, with the answer to the upgrade, but without what TLS
adds: ``Stall(at=40)`` is in the middle of that answer. ``after`` counts seconds from the answered upgrade, or from
the call of `ScriptedServer.inflict`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from ssl import SSLContext
from typing import Any, TypeAlias, TypeVar, cast

from aiohttp import WSMsgType, web

from reconnect_fsm.loro_protocol import (
    CrdtType,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    Permission,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    encode,
)
from reconnect_fsm.testing.embedded_server import (
    Authenticate,
    EmbeddedServer,
    RoomKey,
    ServerConnection,
    close_payload,
    reset_connection,
)
from reconnect_fsm.testing.proxy import not_negative, started

__all__ = [
    "Answer",
    "Bytes",
    "Close",
    "Entry",
    "HangUp",
    "JoinFails",
    "LatePong",
    "Misbehaviour",
    "NoJoinAnswer",
    "NoPong",
    "Played",
    "RawAnswer",
    "Reset",
    "RoomFails",
    "ScriptedServer",
    "Send",
    "SlowAcks",
    "Stall",
    "StopListening",
    "Well",
]


# ------------------------------------------------------------------------------------------------------- misbehaviours


class Misbehaviour:
    """The base class of all: a frozen value, which prints as it is written."""

    def __repr__(self) -> str:
        said: list[str] = []
        by_position = True
        for each in dataclasses.fields(cast(Any, self)):
            value = getattr(self, each.name)
            default = each.default_factory() if callable(each.default_factory) else each.default
            by_position = by_position and each.name not in ("at", "after", "body")
            if value == default:
                by_position = False
            else:
                said.append(repr(value) if by_position else f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, repr=False)
class Well(Misbehaviour):
    """No misbehaviour. Inflicted, it ends the others: stalled bytes flow, and pongs and acks are sent again."""


# Instead of a connection


@dataclass(frozen=True, repr=False)
class StopListening(Misbehaviour):
    """The server does not listen for so many seconds: the kernel refuses every attempt. One entry, however many.

    It begins as soon as it is the next entry. Open connections stay open.
    """

    seconds: float


@dataclass(frozen=True, repr=False)
class Answer(Misbehaviour):
    """Answers the upgrade with this HTTP status, ``after`` so many seconds."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class RawAnswer(Misbehaviour):
    """Answers the upgrade with these bytes and closes the TCP connection."""

    data: bytes


# To the connection


@dataclass(frozen=True, repr=False)
class Stall(Misbehaviour):
    """Half-open: from then on nothing is sent, read or answered, and the TCP connection stays open."""

    at: int | None = None
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class Reset(Misbehaviour):
    """Resets the TCP connection: an RST. In memory, under virtual time, it looks like `HangUp`."""

    at: int | None = None
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class HangUp(Misbehaviour):
    """Closes the TCP connection with a FIN, without a close frame."""

    at: int | None = None
    after: float = 0.0


# In the WebSocket


@dataclass(frozen=True, repr=False)
class Close(Misbehaviour):
    """Sends a close frame. The code may be any number of 16 bits, or None for a frame without one."""

    code: int | None = 1000
    reason: str = ""
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class Send(Misbehaviour):
    """Sends a binary (bytes) or a text message (str), which need not make sense."""

    data: bytes | str
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class Bytes(Misbehaviour):
    """Writes bytes as they are between two frames; malformed frames, for instance."""

    data: bytes
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class NoPong(Misbehaviour):
    """Never answers a ping."""


@dataclass(frozen=True, repr=False)
class LatePong(Misbehaviour):
    """Answers each ping so many seconds late."""

    seconds: float


# In the rooms


@dataclass(frozen=True, repr=False)
class JoinFails(Misbehaviour):
    """Refuses each join, of this room or of any, with a JoinError."""

    code: int
    message: str = ""
    room_id: str | None = None


@dataclass(frozen=True, repr=False)
class NoJoinAnswer(Misbehaviour):
    """Never answers a join."""


@dataclass(frozen=True, repr=False)
class RoomFails(Misbehaviour):
    """Sends a RoomError to each room that the client joins, this one or any, ``after`` so many seconds.

    Inflicted, it does so to the rooms that are joined now.
    """

    code: int
    message: str = ""
    room_id: str | None = None
    after: float = 0.0


@dataclass(frozen=True, repr=False)
class SlowAcks(Misbehaviour):
    """Sends each ack so many seconds late; ``math.inf``: never."""

    seconds: float


Entry: TypeAlias = Misbehaviour | Sequence[Misbehaviour] | None
"""What to do to one connection attempt."""

_AT_THE_ATTEMPT = (StopListening, Answer, RawAnswer)
_TIMED = (Stall, Reset, HangUp, Close, Send, Bytes)
_OnWire: TypeAlias = Stall | Reset | HangUp
_T = TypeVar("_T", bound=Misbehaviour)


@dataclass
class Played:
    """One misbehaviour that took effect."""

    attempt: int
    """The number of the accepted connection attempt, from 1; for a `StopListening`, of the last one before it."""
    act: Misbehaviour
    time: float
    """When it first took effect, by the loop's clock."""
    times: int = 1
    """How often: `SlowAcks` once for each ack."""


# ----------------------------------------------------------------------------------------------------------- the server


class ScriptedServer(EmbeddedServer):
    """An `EmbeddedServer` that plays a script of misbehaviours.

    Raises TypeError for an entry that is no misbehaviour. Raises ValueError for a `StopListening` with others in one
    entry, and for a close frame, a status or a number of seconds that cannot be.
    """

    MAX_LATE: int = 100_000
    """Most late pongs, acks and the like that wait on one connection; further ones are lost."""

    def __init__(
        self,
        script: Sequence[Entry] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        authenticate: Authenticate | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        super().__init__(host, port, authenticate=authenticate, ssl=ssl)
        self.played: list[Played] = []
        """What took effect, in order."""
        self.accepted = 0
        """How many connection attempts were accepted; refused ones cannot be counted."""
        if isinstance(script, Misbehaviour):
            raise TypeError(f"a script is a list of entries: [{script!r}]")
        self._script = deque(map(_entry, script))
        self._attempts: dict[_Attempt, None] = {}
        self._refusing: asyncio.TimerHandle | None = None
        self._reopening: asyncio.Task[None] | None = None

    # What to do

    @property
    def script(self) -> list[tuple[Misbehaviour, ...]]:
        """The entries that are left."""
        return list(self._script)

    def follow(self, *entries: Entry) -> None:
        """Make this the script of future attempts; without entries it behaves well. Raises as the class does."""
        self._script = deque(map(_entry, entries))
        self._look_ahead_soon()

    def inflict(self, *acts: Misbehaviour) -> int:
        """Do this to all connections that are open now; return how many there are.

        ``at`` and ``after`` count from now. Raises ValueError for a misbehaviour of future attempts.
        """
        for act in _entry(acts):
            if isinstance(act, _AT_THE_ATTEMPT):
                raise ValueError(f"{act!r} is for a future connection attempt: follow() takes it, inflict() does not")
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.inflict(acts)
        return len(attempts)

    # Life

    @property
    def url(self) -> str:
        """Where to connect to. Raises RuntimeError before the first start if any free port was asked for."""
        started(self.port)
        return super().url

    async def start(self) -> None:
        await super().start()
        self._look_ahead()  # at once: no connection can have come yet

    async def stop(self, code: int = 1001, reason: str = "Server stopping") -> None:
        """As `EmbeddedServer.stop`; stalled connections are aborted."""
        close_payload(code, reason)
        try:
            if self._reopening is not None:
                await self._reopening
        finally:
            if self._refusing is not None:
                self._refusing.cancel()
                self._refusing = None
            for attempt in list(self._attempts):
                attempt.abort_if_stalled()
            await super().stop(code, reason)

    def _is_refusal_next(self) -> bool:
        return bool(self._script and self._script[0] and isinstance(self._script[0][0], StopListening))

    def _is_refusing(self) -> bool:
        return self._refusing is not None or self._reopening is not None

    def _look_ahead(self) -> None:
        """If the next entry is a `StopListening`, it begins now."""
        if self._is_refusal_next() and self._listener is not None and not self._is_refusing():
            self._listener.close()
            self._begin_to_refuse()

    def _look_ahead_soon(self) -> None:
        """The same, once the loop has handled a connection that it is accepting, which must find the listener."""
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._look_ahead)

    def _begin_to_refuse(self) -> None:
        (act,) = self._script.popleft()
        assert isinstance(act, StopListening)
        loop = asyncio.get_running_loop()
        self.played.append(Played(self.accepted, act, loop.time()))
        self._refusing = loop.call_later(act.seconds, self._refused_long_enough)

    def _refused_long_enough(self) -> None:
        self._refusing = None
        if self._is_refusal_next():
            self._begin_to_refuse()
        else:
            self._reopening = asyncio.get_running_loop().create_task(self._reopen(), name="scripted server: reopening")

    async def _reopen(self) -> None:
        try:
            self._listener = await self._listen()
        finally:
            self._reopening = None
        self._look_ahead_soon()

    # Hooks of the embedded server

    def _accepted(self) -> asyncio.Protocol:
        self.accepted += 1
        acts: tuple[Misbehaviour, ...] = ()
        if self._is_refusing() or self._is_refusal_next():  # it had come before the listening ended
            acts = (Reset(at=0),)
        elif self._script:
            acts = self._script.popleft()
            self._look_ahead_soon()
        return _Attempt(self, super()._accepted(), self.accepted, acts)

    async def _refuse(self, request: web.BaseRequest) -> web.Response | None:
        attempt = _attempt(request.transport)
        if answer := attempt.find(Answer):
            await asyncio.sleep(answer.after)
            attempt.note(answer)
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        if raw := attempt.find(RawAnswer):
            attempt.note(raw)
            attempt.wire.write(raw.data)
            attempt.wire.close()
            return web.Response()
        return await super()._refuse(request)

    def _opened(self, connection: ServerConnection) -> None:
        _attempt(connection.transport).opened(connection)

    def _ping(self, connection: ServerConnection) -> None:
        attempt = _attempt(connection.transport)
        if silent := attempt.find(NoPong):
            self.stats.pings += 1
            attempt.note(silent)
        elif late := attempt.find(LatePong):
            attempt.note(late)
            attempt.later(late.seconds, super()._ping, connection)
        else:
            super()._ping(connection)

    def _ack(
        self, connection: ServerConnection, crdt: CrdtType, room_id: str, batch_id: int, status: UpdateStatusCode
    ) -> None:
        attempt = _attempt(connection.transport)
        if slow := attempt.find(SlowAcks):
            attempt.note(slow)
            attempt.later(slow.seconds, super()._ack, connection, crdt, room_id, batch_id, status)
        else:
            super()._ack(connection, crdt, room_id, batch_id, status)

    async def _join(self, connection: ServerConnection, request: JoinRequest) -> None:
        attempt = _attempt(connection.transport)
        if silent := attempt.find(NoJoinAnswer):
            self.stats.joins += 1
            attempt.note(silent)
        else:
            await super()._join(connection, request)

    async def _permission(self, connection: ServerConnection, request: JoinRequest) -> Permission | JoinError:
        attempt = _attempt(connection.transport)
        fails = attempt.find(JoinFails)
        if fails is None or fails.room_id not in (None, request.room_id):
            return await super()._permission(connection, request)
        attempt.note(fails)
        code = JoinErrorCode(fails.code)
        version = b"" if code is JoinErrorCode.VERSION_UNKNOWN else None
        return JoinError(request.crdt, request.room_id, code, fails.message, receiver_version=version)

    def _admit(self, connection: ServerConnection, request: JoinRequest, permission: Permission) -> JoinError | None:
        refusal = super()._admit(connection, request, permission)
        if refusal is None:
            attempt = _attempt(connection.transport)
            for fails in attempt.acts:
                if isinstance(fails, RoomFails):
                    attempt.later(fails.after, attempt.evicted, fails, (request.crdt, request.room_id))
        return refusal


def _entry(entry: Entry) -> tuple[Misbehaviour, ...]:
    acts: tuple[Any, ...] = () if entry is None else tuple(entry) if isinstance(entry, list | tuple) else (entry,)
    for act in acts:
        if not isinstance(act, Misbehaviour):
            raise TypeError(
                f"a script is made of misbehaviours, such as Answer(503), and None for none; not of {act!r}"
            )
        if isinstance(act, StopListening) and len(acts) > 1:
            raise ValueError("StopListening is an entry of its own: there is no connection to which more could be done")
        _check_numbers(act)
        if isinstance(act, Close) and act.code is not None:
            close_payload(act.code, act.reason)
        if isinstance(act, JoinFails):
            JoinErrorCode(act.code)
        if isinstance(act, RoomFails):
            RoomErrorCode(act.code)
    return acts


def _check_numbers(act: Misbehaviour) -> None:
    for name in ("seconds", "after"):
        if hasattr(act, name):
            not_negative(f"{name} of {act!r}", getattr(act, name))
    at = getattr(act, "at", None)
    if at is not None:
        if not isinstance(at, int) or at < 0:
            raise ValueError(f"at of {act!r} is a number of bytes, not {at!r}")
        if getattr(act, "after", 0):
            raise ValueError(
                f"{act!r} happens either at a number of bytes or after seconds: say at= or after=, not both"
            )
    if isinstance(act, Answer) and not (isinstance(act.status, int) and 100 <= act.status <= 999):
        raise ValueError(f"an HTTP status is a number from 100 to 999, not {act.status!r}; RawAnswer sends any bytes")
    if isinstance(act, Send) and not isinstance(act.data, bytes | str):
        raise TypeError(f"a message is bytes or str, not {act.data!r}")


# ---------------------------------------------------------------------------------------------- one connection attempt


class _Attempt(asyncio.Protocol):
    """One accepted TCP connection: stands between the transport and aiohttp, and misbehaves."""

    wire: _Wire

    def __init__(
        self, server: ScriptedServer, inner: asyncio.Protocol, number: int, acts: tuple[Misbehaviour, ...]
    ) -> None:
        self.acts = acts
        self.inner = inner
        self._server = server
        self._number = number
        self._played: list[Played] = []
        self._connection: ServerConnection | None = None
        self._timers: set[asyncio.TimerHandle] = set()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = _Wire(self, cast(asyncio.Transport, transport))
        self._server._attempts[self] = None
        if all(isinstance(act, Well) for act in self.acts):
            self.note(Well())
        for act in self.acts:
            if isinstance(act, _OnWire) and act.at is not None:
                self.wire.mark(act.at, act)
        self.inner.connection_made(self.wire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timers()
        self._server._attempts.pop(self, None)
        self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.wire.flow(full=True)

    def resume_writing(self) -> None:
        self.wire.flow(full=False)

    # Misbehaving

    def find(self, kind: type[_T]) -> _T | None:
        """The misbehaviour of this kind that is in force: the latest."""
        return next((act for act in reversed(self.acts) if isinstance(act, kind)), None)

    def note(self, act: Misbehaviour) -> None:
        """Enter it in the record."""
        for played in self._played:
            if played.act is act:
                played.times += 1
                return
        played = Played(self._number, act, asyncio.get_running_loop().time())
        self._played.append(played)
        self._server.played.append(played)

    def opened(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._begin(self.acts)

    def inflict(self, acts: Sequence[Misbehaviour]) -> None:
        for act in acts:
            if isinstance(act, Well):
                self._forget_timers()
                self.acts = ()
                self.note(act)
                self.wire.go_on()
            elif isinstance(act, RoomFails):
                for key in list(self._connection.rooms if self._connection is not None else ()):
                    self.later(act.after, self.evicted, act, key)
            elif isinstance(act, _OnWire) and act.at is not None:
                self.wire.mark(self.wire.sent + act.at, act)
            elif isinstance(act, _TIMED):
                self._begin((act,))
            else:
                self.acts = (*self.acts, act)

    def _begin(self, acts: Sequence[Misbehaviour]) -> None:
        for act in acts:
            if isinstance(act, _TIMED) and getattr(act, "at", None) is None:
                self.later(act.after, self.do, act)

    def later(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        """Do it then, or at once, unless the connection is gone by then."""
        if seconds <= 0:
            do(*args)
        elif seconds < inf and len(self._timers) < self._server.MAX_LATE:
            timer: asyncio.TimerHandle = asyncio.get_running_loop().call_later(
                seconds, lambda: self._fell_due(timer, do, args)
            )
            self._timers.add(timer)

    def _fell_due(self, timer: asyncio.TimerHandle, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._timers.discard(timer)
        do(*args)

    def do(self, act: Misbehaviour) -> None:
        """Do it now."""
        connection = self._connection
        match act:
            case Stall():
                self.wire.stall()
            case Reset():
                self.wire.reset()
            case HangUp():
                self.wire.hang_up()
            case Bytes():
                self.wire.write(act.data)
            case Close() if connection is not None:
                connection.close(b"" if act.code is None else close_payload(act.code, act.reason))
            case Send() if connection is not None:
                text = isinstance(act.data, str)
                data = act.data.encode() if isinstance(act.data, str) else act.data
                connection.send(WSMsgType.TEXT if text else WSMsgType.BINARY, data)
            case _:  # it is not open yet
                return
        self.note(act)

    def evicted(self, act: RoomFails, key: RoomKey) -> None:
        """Put the client out of a room, if it is still in it."""
        connection = self._connection
        if connection is not None and key in connection.rooms and act.room_id in (None, key[1]):
            self.note(act)
            error = RoomError(*key, RoomErrorCode(act.code), act.message)
            connection.send(WSMsgType.BINARY, encode(error))
            connection.leave(key)

    def abort_if_stalled(self) -> None:
        if self.wire.is_stalled:
            self.wire.abort()

    def _forget_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def _attempt(transport: asyncio.BaseTransport | None) -> _Attempt:
    assert isinstance(transport, _Wire)
    return transport.attempt


class _Wire(asyncio.Transport):
    """The transport that aiohttp sees: it counts what is sent, and stops at the marks."""

    def __init__(self, attempt: _Attempt, real: asyncio.Transport) -> None:
        super().__init__()
        self.attempt = attempt
        self.sent = 0
        """Bytes, so far."""
        self.is_stalled = False
        self._real = real
        self._marks: list[tuple[int, _OnWire]] = []
        self._held: list[bytes] = []
        self._full = False
        self._inner_paused = False
        self._reading_wanted = True
        self._close_wanted = False

    # Misbehaving

    def mark(self, at: int, act: _OnWire) -> None:
        """Do it once so many bytes were sent."""
        self._marks.append((at, act))
        self._marks.sort(key=lambda each: each[0])

    def stall(self) -> None:
        """Neither send nor read."""
        if not self.is_stalled and not self._real.is_closing():
            self.is_stalled = True
            self._real.pause_reading()
            self.flow(full=self._full)

    def go_on(self) -> None:
        """Send what was held back, drop all marks, and read again."""
        self._marks.clear()
        if not self.is_stalled or self._real.is_closing():
            return
        self.is_stalled = False
        held, self._held = self._held, []
        self.write(b"".join(held))
        if self._reading_wanted:
            self._real.resume_reading()
        self.flow(full=self._full)
        if self._close_wanted:
            self._real.close()

    def hang_up(self) -> None:
        self._real.close()

    def reset(self) -> None:
        reset_connection(self._real)

    def flow(self, *, full: bool) -> None:
        """Tell aiohttp whether it may write more."""
        self._full = full
        wanted = full or self.is_stalled
        if wanted != self._inner_paused:
            self._inner_paused = wanted
            (self.attempt.inner.pause_writing if wanted else self.attempt.inner.resume_writing)()

    # Behaving

    def write(self, data: Any) -> None:
        data = bytes(data)
        while self._marks and not self.is_stalled and self.sent + len(data) >= self._marks[0][0]:
            at, act = self._marks.pop(0)
            head, data = data[: max(at - self.sent, 0)], data[max(at - self.sent, 0) :]
            self._write(head)
            self.attempt.do(act)
            if self._real.is_closing():
                return
        if self.is_stalled:
            self._held.append(data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if data:
            self.sent += len(data)
            self._real.write(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self._reading_wanted = False
        self._real.pause_reading()

    def resume_reading(self) -> None:
        self._reading_wanted = True
        if not self.is_stalled:
            self._real.resume_reading()

    def is_reading(self) -> bool:
        return self._reading_wanted and not self._real.is_closing()

    def close(self) -> None:
        if self.is_stalled:
            self._close_wanted = True
        else:
            self._real.close()

    def abort(self) -> None:
        self._real.abort()

    def is_closing(self) -> bool:
        return self._close_wanted or self._real.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size() + sum(map(len, self._held))
