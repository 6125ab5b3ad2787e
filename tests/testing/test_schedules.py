"""Schedules: what is ready at the same time, run in every order that may be.

Each scenario sets things off that race, lets them end, and then asks for what always has to hold (`Race`): the means of
`reconnect_fsm.testing.schedules` run it again and again, shuffled by seed, and exhaustively near asyncio's own order.

It runs in two worlds. The real one is aiohttp against the embedded server, through in-memory sockets. The small one
puts a queue in the place of aiohttp's WebSocket and handshake, and keeps everything of ours, the transport's reader and
writer included; a schedule costs a third there, and has so few steps that an exhaustive search gets somewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, ClassVar, TypeAlias
from unittest import mock

import pytest
from aiohttp import WSMessage, WSMsgType, WSServerHandshakeError
from multidict import CIMultiDict

from doubles import EmptyAdaptor
from figures import Figures, soak
from reconnect_fsm import (
    Client,
    ClientStatus,
    ClientStopped,
    JoinRefused,
    Keepalive,
    ManualNetwork,
    NotConnected,
    RetryPolicy,
    Room,
    RoomLeft,
    StateChange,
    StatusChange,
)
from reconnect_fsm._asyncio import connection_driver
from reconnect_fsm._asyncio.awaitables import Completion, Waiters
from reconnect_fsm._asyncio.client_driver import ClientDriver
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver
from reconnect_fsm._asyncio.event_queue import EventQueue
from reconnect_fsm._asyncio.join_limiter import AnswersDue
from reconnect_fsm._asyncio.room_watch import RoomWatch
from reconnect_fsm._asyncio.slots import EMPTY, Slot
from reconnect_fsm._asyncio.transport import handshake
from reconnect_fsm._asyncio.transport.socket import Socket
from reconnect_fsm.effects import NotifyStatus
from reconnect_fsm.loro_protocol import (
    Ack,
    CrdtType,
    DocUpdate,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
)
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.schedules import ShuffledLoop, every_schedule, many_schedules

IN_SMALL, IN_REAL = 5_000, 1_000  # seeds for each scenario; with the exhaustive search more than 200,000 schedules
FEW = 8  # seeds for each scenario where it is no proof

PATIENCE = 90.0  # seconds of virtual time: a suggested rejoin may take 30
EXPECTED = (ClientStopped, NotConnected, JoinRefused, RoomLeft)  # how an operation may end, if not well
KEEPALIVE = Keepalive(interval=1.0, timeout=1.0)
REFUSED = b"wrong"  # what the servers refuse to let anybody in with
RETRY = 0.125  # seconds to the first attempt after a failure: a number that adds up exactly


# ------------------------------------------------------------------------------------------------------------ documents


class Bag(EmptyAdaptor):
    """A document that is a set of words: the least that a CRDT can be. Its versions are its words."""

    def __init__(self) -> None:
        self.words: set[bytes] = set()
        self._sends: list[Callable[[bytes], None]] = []

    def add(self, word: bytes) -> None:
        """Edit it here."""
        self.words.add(word)
        for send in list(self._sends):
            send(word)

    def version(self) -> bytes:
        return b",".join(sorted(self.words))

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return sorted(self.words - words(server_version))

    def covers(self, server_version: bytes) -> bool:
        return words(server_version) <= self.words

    def apply(self, updates: Sequence[bytes]) -> None:
        self.words.update(updates)

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self._sends.append(send)
        return lambda: self._sends.remove(send)


def words(version: bytes) -> set[bytes]:
    return set(version.split(b",")) if version else set()


# ------------------------------------------------------------------------------------------------------ the small world


class Line:
    """One WebSocket, both its ends. The client's end has what `Socket` uses of aiohttp's."""

    def __init__(self, server: SmallServer) -> None:
        self._server = server
        self._to_client: asyncio.Queue[WSMessage] = asyncio.Queue()
        self._to_server: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._closed = asyncio.Event()
        self.transport: Line | None = self
        self.corked = None
        self.response = _Response()
        self.task = asyncio.create_task(self._serve(), name="small server")

    # The client's end

    async def receive(self) -> WSMessage:
        return await self._to_client.get()

    async def send_str(self, data: str) -> None:
        self._write(data)

    async def more(self, most: int) -> list[str | bytes]:
        return []

    async def send_bytes(self, data: bytes) -> None:
        self._write(data)

    def _write(self, data: str | bytes) -> None:
        if self._closed.is_set():
            raise ConnectionResetError
        self._to_server.put_nowait(data)

    async def close(self, *, code: int, message: bytes) -> None:
        self._to_client.put_nowait(WSMessage(WSMsgType.CLOSING, None, None))
        self._to_server.put_nowait(CLOSE)
        await self._closed.wait()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closed.is_set()

    def abort(self) -> None:
        self.end(WSMsgType.CLOSED)

    # The server's end

    async def _serve(self) -> None:
        while True:
            frame = await self._to_server.get()
            await self._server.thawed.wait()
            if frame == CLOSE:
                self.end(WSMsgType.CLOSE, 1000)
            elif frame == "ping":
                self.put(WSMsgType.TEXT, "pong")
            elif isinstance(frame, bytes):
                self._server.received(self, decode(frame))

    def put(self, kind: WSMsgType, data: Any = None, extra: Any = None) -> None:
        self._to_client.put_nowait(WSMessage(kind, data, extra))

    def end(self, kind: WSMsgType, code: int | None = None, reason: str = "") -> None:
        """The connection is gone, for both."""
        if not self._closed.is_set():
            self._closed.set()
            self.put(kind, code, reason)
            self._server.lines.pop(self)
            self.task.cancel()


class _Response:
    def close(self) -> None: ...


CLOSE = "a close frame"


class SmallServer:
    """What `EmbeddedServer` has and a race needs, without HTTP and TCP."""

    url = "ws://127.0.0.1:1/"
    headers: ClassVar[dict[str, str]] = {}  # of the session, whose place it takes
    cookie_jar = ()
    connector = None

    def __init__(self) -> None:
        self.lines: dict[Line, set[str]] = {}  # and the rooms that it is in
        self.rooms: defaultdict[str, set[bytes]] = defaultdict(set)
        self.thawed = asyncio.Event()
        self.ignore_joins = False
        self._refusal: int | None = None
        self._ids = iter(range(1 << 62))

    async def ws_connect(self, _: object, **__: object) -> Line:
        """Takes the place of the session's."""
        await asyncio.sleep(0)  # TCP
        await self.thawed.wait()
        await asyncio.sleep(0)  # HTTP
        if self._refusal is not None:
            asked: Any = None
            raise WSServerHandshakeError(asked, (), status=self._refusal, headers=CIMultiDict())
        line = Line(self)
        self.lines[line] = set()
        return line

    async def close(self) -> None:
        """Takes the place of the session's."""

    def received(self, line: Line, message: Message) -> None:
        """A member said something."""
        room = message.room_id
        match message:
            case JoinRequest() if message.auth == REFUSED:
                self._say(line, JoinError(message.crdt, room, JoinErrorCode.AUTH_FAILED, "no"))
            case JoinRequest() if not self.ignore_joins:
                self.lines[line].add(room)
                version = b",".join(sorted(self.rooms[room]))
                self._say(line, JoinResponseOk(message.crdt, room, "write", version))
                if lacking := self.rooms[room] - words(message.version):
                    self._say(line, DocUpdate(message.crdt, room, tuple(sorted(lacking)), next(self._ids)))
            case DocUpdate() if room in self.lines[line]:
                self.rooms[room].update(message.updates)
                self._say(line, Ack(message.crdt, room, message.batch_id, UpdateStatusCode.OK))
                update = DocUpdate(message.crdt, room, message.updates, next(self._ids))
                for other, rooms in self.lines.items():
                    if other is not line and room in rooms:
                        self._say(other, update)
            case Leave():
                self.lines[line].discard(room)

    def _say(self, line: Line, message: Message) -> None:
        line.put(WSMsgType.BINARY, encode(message))

    # As with `EmbeddedServer`

    async def send(self, room: str, _: CrdtType, message: Message) -> None:
        for line, rooms in self.lines.items():
            if room in rooms:
                rooms.discard(room)
                self._say(line, message)

    async def close_all(self, code: int, reason: str) -> None:
        for line in list(self.lines):
            line.end(WSMsgType.CLOSE, code, reason)

    def reset_all(self) -> None:
        for line in list(self.lines):
            line.end(WSMsgType.CLOSED)

    def refuse_upgrades(self, status: int | None) -> None:
        self._refusal = status

    def freeze(self) -> None:
        self.thawed.clear()

    def thaw(self) -> None:
        self.thawed.set()


Server: TypeAlias = EmbeddedServer | SmallServer
World: TypeAlias = Callable[[], AbstractAsyncContextManager[Server]]


@asynccontextmanager
async def small() -> AsyncIterator[Server]:
    """Everything of ours, over queues."""
    server = SmallServer()
    server.thaw()

    def make_session(_: object) -> SmallServer:  # a mock takes a fifth of a schedule's time
        return server

    # A socket's kind is looked at, for a session of the user's might open another.
    with (
        mock.patch.object(connection_driver, "make_session", make_session),
        mock.patch.object(handshake, "WebSocket", Line),
    ):
        yield server
    server.reset_all()


@asynccontextmanager
async def real() -> AsyncIterator[Server]:
    """aiohttp, and the embedded server."""
    loop = asyncio.get_running_loop()
    report = loop.get_exception_handler()
    assert report is not None

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # aiohttp's server counts on the exact turns of asyncio between a task's beginning and `connection_lost`.
        task = context.get("future")
        if not (isinstance(task, asyncio.Task) and task.get_coro().__qualname__ == "RequestHandler.start"):
            report(loop, context)

    loop.set_exception_handler(hear)
    async with EmbeddedServer(authenticate=lambda room, crdt, auth: None if auth == REFUSED else "write") as server:
        yield server


# ------------------------------------------------------------------------------------------------------------- the race


class WatchedDriver(ClientDriver):
    async def open_socket(self) -> Socket:
        """Dial, and have the race look at it."""
        handle = self._handle
        assert isinstance(handle, Watched)
        handle.check_dial()
        socket = await super().open_socket()
        handle.sockets.append(socket)
        return socket


class Watched(Client):
    """A client that reports what may never be."""

    _driver_type = WatchedDriver

    def __init__(self, race: Race, url: str, **options: Any) -> None:
        retry = RetryPolicy(base=RETRY, cap=2.0, jitter=0, stable_after=0.5)
        super().__init__(url, **{"retry": retry, "keepalive": KEEPALIVE, "connect_timeout": 1.0, **options})
        self._race = race
        self._dials: list[asyncio.Task[Any]] = []
        self.sockets: list[Socket] = []
        self._last_status, self._last_state = self.status, self.state
        self.on_status(self._status_changed)
        self.on_transition(self._state_changed)

    def join(self, room_id: str, adaptor: Any, **options: Any) -> Room:
        before = self.rooms
        room = super().join(room_id, adaptor, **options)
        if room not in before:
            last = [room.status]

            def changed(change: StatusChange[Any]) -> None:
                if change.new is change.old:
                    self._race.blame(f"{room} was told {change.new} twice in a row")
                last[:] = [change.new]

            room.on_status(changed)
        return room

    def check_dial(self) -> None:
        """A dial begins, in the running task."""
        dial = asyncio.current_task()
        assert dial is not None
        if dial is not connection_driver_of(self).dial.content:
            self._race.blame("a dial began that is not the current one")
        if self.status not in (ClientStatus.CONNECTING, ClientStatus.RECONNECTING):
            self._race.blame(f"it dials while {self.status}")
        self._dials.append(dial)

    def _status_changed(self, change: StatusChange[ClientStatus]) -> None:
        if change.old is not self._last_status or change.new is change.old:
            self._race.blame(f"{self._last_status}, then {change}: statuses must be a chain without repeats")
        self._last_status = change.new

    def _state_changed(self, change: StateChange) -> None:
        if change.old != self._last_state:
            self._race.blame(f"{self._last_state}, then {change}: states must be a chain")
        self._last_state = change.new

    def check(self) -> None:
        """Nothing is ready to run: what is alive has to be what the table of DESIGN says of the state."""
        dials = [dial for dial in self._dials if not dial.done()]
        sockets = [each for each in self.sockets if (end := each._ws.transport) and not end.is_closing()]
        loop: Any = asyncio.get_running_loop()
        driver = connection_driver_of(self)
        timers = [
            timer._args
            for timer in loop._scheduled
            if not timer.cancelled() and timer._args and timer._args[1:] == (driver.on_timer,)
        ]
        ending, dial, socket = len(driver.teardown.tasks), driver.dial, driver.socket
        state = self.state
        blame = self._race.blame
        if len(dials) > bool(dial) + ending or len(sockets) > bool(socket) + ending:
            blame(f"{len(dials)} dials, {len(sockets)} sockets while {state}, and {ending} on their way out")
        if bool(dial) != (state in ("connecting", "retrying")):
            blame(f"{'a' if dial else 'no'} dial while {state}")
        if bool(socket) != (state == "connected"):
            blame(f"{'a' if socket else 'no'} socket while {state}")
        if len(timers) > {"connected": 1, "waiting": 1}.get(state, 0):
            blame(f"timers {timers} while {state}")


class Race:
    """Sets things off, lets them end, and sees what has to hold in whatever order they ran."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.clients: list[Watched] = []
        self.bags: dict[Room, Bag] = {}
        self._operations: list[asyncio.Task[object]] = []
        self._faults: list[str] = []
        self._last_action = 0.0
        loop = asyncio.get_running_loop()
        if isinstance(loop, ShuffledLoop):
            loop.at_rest(self._check)

    def client(self, **options: Any) -> Watched:
        """A client that is not started."""
        client = Watched(self, self.server.url, **options)
        self.clients.append(client)
        return client

    async def connected(self, **options: Any) -> Watched:
        """A client that is connected."""
        client = self.client(**options)
        client.start()
        await client.wait_connected()
        return client

    def join(self, client: Client, room_id: str = "r", **options: Any) -> Room:
        """Join with a document of its own, which holds one word; a tracked room with the one that it has."""
        tracked = next((room for room in client.rooms if room.id == room_id), None)
        if tracked is not None:
            return client.join(room_id, tracked.adaptor, **options)
        bag = Bag()
        bag.words.add(b"w%d" % len(self.bags))
        room = client.join(room_id, bag, **options)
        self.bags[room] = bag
        return room

    def go(self, *actions: Callable[[], object], after: float = 0.0) -> list[asyncio.Task[object]]:
        """Each in a task of its own, all at the same moment, in so many seconds; what they return is awaited."""
        tasks = [asyncio.create_task(self._act(action, after)) for action in actions]
        self._operations += tasks
        self._last_action = max(self._last_action, after)
        return tasks

    async def _act(self, action: Callable[[], object], after: float) -> object:
        if after:
            await asyncio.sleep(after)
        try:
            result = action()
            return await result if isinstance(result, Awaitable) else result
        except EXPECTED as error:
            return error

    def blame(self, fault: str) -> None:
        """Something that may never be."""
        self._faults.append(fault)

    def _check(self) -> None:
        for client in self.clients:
            client.check()

    async def end(self) -> None:
        """The network is good again: everybody gets what he waits for, and then nothing is left."""
        await asyncio.sleep(self._last_action + 2 * RETRY)
        self.server.refuse_upgrades(None)
        self.server.ignore_joins = False
        self.server.thaw()
        async with asyncio.timeout(PATIENCE):
            for client in self.clients:
                client.set_online(True)
                await client.connect()
            for client in self.clients:
                for room in client.rooms:
                    await room
                    await room.synced()
            await self._converged()
        if self._operations:
            _, waiting = await asyncio.wait(self._operations, timeout=PATIENCE)
            assert not waiting, f"never ends: {waiting}"
            for operation in self._operations:
                if not operation.cancelled():
                    operation.result()
        for client in self.clients:
            await client.close()
            assert client.status is ClientStatus.DISCONNECTED
            assert not connection_driver_of(client).teardown.tasks
        assert not self._faults, self._faults

    async def _converged(self) -> None:
        rooms: dict[str, list[set[bytes]]] = {}
        for client in self.clients:
            for room in client.rooms:
                rooms.setdefault(room.id, []).append(self.bags[room].words)
        while any(each != copies[0] for copies in rooms.values() for each in copies):  # noqa: ASYNC110
            await asyncio.sleep(0.25)


Scenario: TypeAlias = Callable[[Race], Awaitable[None]]


def racing(scenario: Scenario, world: World) -> Callable[[], Awaitable[None]]:
    """The whole of it, for `schedules`."""

    async def whole() -> None:
        async with world() as server:
            race = Race(server)
            async with asyncio.timeout(PATIENCE):
                await scenario(race)
            await race.end()
        assert not ERRORS, ERRORS

    whole.__name__ = f"racing({scenario.__name__}, {world.__name__})"
    return whole


ERRORS: list[str] = []  # what the library logged as an error: "a job of the driver raised", for one


@pytest.fixture(autouse=True)
def _no_errors_in_the_log() -> Iterator[None]:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ERRORS.append(record.getMessage())

    ERRORS.clear()
    handler = Kept(logging.ERROR)
    logger = logging.getLogger("reconnect_fsm")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


# -------------------------------------------------------------------------------------------------------- what may race


async def opened_or_closed(race: Race) -> None:
    """Everything that one can ask of a client whose first dial is under way."""
    client = race.client()
    client.start()
    race.go(client.connect, client.close, client.retry_now, client.wait_connected)


async def lost_or_retried(race: Race) -> None:
    """The connection is lost while somebody forces a fresh one, and somebody pings."""
    client = await race.connected()
    race.go(race.server.reset_all, client.retry_now, client.ping, client.connect)


async def timer_or_by_hand(race: Race) -> None:
    """The retry timer runs out when somebody connects by hand, the network goes, and the client is closed."""
    race.server.refuse_upgrades(503)
    client = race.client()
    client.start()
    race.go(
        client.connect,
        lambda: client.set_online(False),
        lambda: race.server.refuse_upgrades(None),
        client.close,
        after=RETRY,
    )


async def pong_or_deadline(race: Race) -> None:
    """The pong comes in the very moment in which its deadline passes; a ping of the user's waits for it too."""
    client = await race.connected()
    race.server.freeze()
    race.go(lambda: ping(client), after=KEEPALIVE.interval)
    race.go(race.server.thaw, client.connect, lambda: ping(client), after=KEEPALIVE.interval + KEEPALIVE.timeout)


async def ping(client: Client) -> None:
    """A ping that may take too long."""
    with suppress(TimeoutError):
        await client.ping(KEEPALIVE.timeout)


async def offline_or_online(race: Race) -> None:
    """The network comes and goes while the client is asked to connect."""
    client = await race.connected()
    race.go(
        lambda: client.set_online(False),
        lambda: client.set_online(True),
        lambda: client.set_online(False),
        client.connect,
        race.server.reset_all,
    )


async def fatal_or_retried(race: Race) -> None:
    """The server says never to come back, when somebody connects by hand and another closes."""
    client = await race.connected()
    race.go(lambda: race.server.close_all(1008, "no"), client.retry_now, client.connect, client.close)


async def closed_or_started(race: Race) -> None:
    """It is closed twice and started twice, with a room in it."""
    client = await race.connected()
    room = race.join(client)
    race.go(client.close, client.connect, client.close, room.synced)
    race.go(client.start, lambda: race.join(client))


async def joined_or_left(race: Race) -> None:
    """A room is joined, left and joined again before its answers are here, and the connection drops."""
    client = await race.connected()
    room = race.join(client)
    race.go(room.leave, room.synced, lambda: race.join(client), race.server.reset_all, lambda: room)


async def refused_or_left(race: Race) -> None:
    """A room is refused for its token when it is left, and joined again with a better one."""
    client = await race.connected()
    wrong = race.join(client, auth=REFUSED)

    async def right() -> None:
        room = race.join(client)
        try:
            await room
        except JoinRefused:
            if room is not wrong:
                race.blame("refused for the token of the one before")

    race.go(wrong.leave, right, lambda: wrong)


async def put_out_or_left(race: Race) -> None:
    """The server puts us out, for now and for good, when the room is left, joined again and edited."""
    client = await race.connected()
    room = race.join(client)
    await room
    race.go(
        lambda: evicted(race, RoomErrorCode.REJOIN_SUGGESTED),
        lambda: evicted(race, RoomErrorCode.EVICTED),
        lambda: race.bags[room].add(b"edit"),
        room.leave,
        lambda: race.join(client),
    )


async def evicted(race: Race, code: RoomErrorCode) -> None:
    await race.server.send("r", CrdtType.ELO, RoomError(CrdtType.ELO, "r", code, "out"))


async def two_clients(race: Race) -> None:
    """Two clients edit a room while both connections drop, and one dials afresh."""
    one, other = await race.connected(), await race.connected()
    rooms = [race.join(one), race.join(other)]
    race.go(
        lambda: race.bags[rooms[0]].add(b"one"),
        lambda: race.bags[rooms[1]].add(b"other"),
        race.server.reset_all,
        other.retry_now,
        *(room.synced for room in rooms),
    )


async def closed_in_full_flight(race: Race) -> None:
    """It is closed when everything is in flight: a ping, a message, joins, and edits without an Ack."""
    client = await race.connected()
    rooms = [race.join(client, name) for name in "rs"]
    race.go(
        client.ping,
        lambda: client.send("text"),
        *(room.synced for room in rooms),
        lambda: race.bags[rooms[0]].add(b"edit"),
        client.close,
    )


async def listeners_call_back(race: Race) -> None:
    """Listeners close, connect, leave and join in the middle of everything."""
    client = race.client()
    room = race.join(client)
    todo = [client.retry_now, room.leave, client.close, client.connect, lambda: race.join(client)]
    client.on_status(lambda change: todo.pop(0)() if todo else None)
    room.on_status(lambda change: race.join(client) if change.new.value == "disconnected" else None)
    client.start()
    race.go(client.connect, race.server.reset_all, room.synced)


async def credentials_or_loss(race: Race) -> None:
    """A room's token is on its way when the connection drops, the room is left, and the client is closed."""

    async def token() -> bytes:
        await asyncio.sleep(0)
        return b"token"

    client = await race.connected()
    room = race.join(client, auth=token)
    race.go(race.server.reset_all, room.leave, lambda: race.join(client, auth=token), client.close)


async def callers_cancelled(race: Race) -> None:
    """Everybody who waits is cancelled, one after the other, when what he waits for is about to come."""
    client = race.client()
    room = race.join(client)
    callers = race.go(client.connect, lambda: room, client.wait_connected, room.synced)
    race.go(client.wait_connected, client.retry_now, *(caller.cancel for caller in callers))


async def half_open_and_closed(race: Race) -> None:
    """A half-open connection comes alive, is reset and is closed by us, at the same moment."""
    client = await race.connected()
    race.server.freeze()
    race.go(client.close, lambda: client.send("text"))
    close_timeout = connection_driver_of(client).settings.close_timeout
    race.go(race.server.thaw, race.server.reset_all, client.connect, after=close_timeout)


async def join_deadline_or_answer(race: Race) -> None:
    """The answer to a join comes in the very moment in which its deadline passes."""
    client = await race.connected(keepalive=Keepalive(enabled=False))
    race.server.freeze()
    room = race.join(client)
    race.go(race.server.thaw, room.leave, lambda: race.join(client), after=10.0)


async def stable_or_lost(race: Race) -> None:
    """A connection is lost in the moment in which it counts as stable; the policy allows one retry."""
    retry = RetryPolicy(base=RETRY, jitter=0, stable_after=0.5, max_attempts=1)
    client = await race.connected(retry=retry)
    race.go(race.server.reset_all, client.connect, lambda: race.join(client), after=retry.stable_after)
    race.go(race.server.reset_all, client.retry_now, after=retry.stable_after + RETRY)


async def network_or_stop(race: Race) -> None:
    """The network source speaks up while the client is stopped, and while it is started."""
    network = ManualNetwork()
    client = race.client(network=network)
    client.start()
    race.go(
        lambda: network.set_online(False),
        client.close,
        client.connect,
        lambda: network.set_online(True),
        lambda: network.set_online(False),
        client.retry_now,
    )


SCENARIOS: list[Scenario] = [
    opened_or_closed,
    lost_or_retried,
    timer_or_by_hand,
    pong_or_deadline,
    offline_or_online,
    fatal_or_retried,
    closed_or_started,
    joined_or_left,
    refused_or_left,
    put_out_or_left,
    two_clients,
    closed_in_full_flight,
    listeners_call_back,
    credentials_or_loss,
    callers_cancelled,
    half_open_and_closed,
    join_deadline_or_answer,
    stable_or_lost,
    network_or_stop,
]
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)


# ------------------------------------------------------------------------------------------------------ the proof of it


@each_scenario
def test_a_few_schedules_of_the_real_thing(scenario: Scenario) -> None:
    """Every scenario, with aiohttp and the embedded server, in a few orders."""
    assert many_schedules(racing(scenario, real), range(FEW)).distinct > 1


@each_scenario
def test_every_order_with_one_departure(scenario: Scenario) -> None:
    """Every scenario, in the small world, in every order that leaves asyncio's own at one place."""
    explored = every_schedule(racing(scenario, small), departures=1)
    assert explored.complete
    assert explored.distinct == explored.schedules


@pytest.mark.proof
@pytest.mark.timeout(1800 * soak())
@pytest.mark.parametrize(("world", "seeds"), [(small, IN_SMALL), (real, IN_REAL)], ids=["small", "real"])
def test_shuffled_schedules(world: World, seeds: int, figures: Figures) -> None:
    """All scenarios, shuffled by seed."""
    seeds *= soak()
    found = [many_schedules(racing(scenario, world), range(seeds)) for scenario in SCENARIOS]
    figures(
        f"{world.__doc__} Shuffled by seed",
        scenarios=len(SCENARIOS),
        seeds=f"0–{seeds - 1}",
        schedules=sum(each.schedules for each in found),
        different_orders=sum(each.distinct for each in found),
        callbacks=sum(each.callbacks for each in found),
        violations=0,
    )


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("world", "departures"), [(small, 2), (real, 1)], ids=["small", "real"])
def test_every_schedule_near_asyncios_own(world: World, departures: int, figures: Figures) -> None:
    """All scenarios, in every order with so many departures from asyncio's own: none is left out."""
    found = [every_schedule(racing(scenario, world), departures=departures) for scenario in SCENARIOS]
    assert all(each.complete and each.distinct == each.schedules for each in found)
    figures(
        f"{world.__doc__} Every order with at most so many departures from asyncio's own",
        scenarios=len(SCENARIOS),
        departures=departures,
        schedules=sum(each.schedules for each in found),
        left_out=sum(not each.complete for each in found),
        callbacks=sum(each.callbacks for each in found),
        violations=0,
    )


# ------------------------------------------------------------------------------------ that it finds what is to be found

Broken: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def drops_nothing_stale(patch: pytest.MonkeyPatch) -> None:
    """Law 4: callbacks of a dial or socket that no longer counts."""
    patch.setattr(Slot, "run", lambda self, function, *args: function(*args))


def lets_timers_run(patch: pytest.MonkeyPatch) -> None:
    """Law 5: a timer outlives its state."""
    patch.setattr(ConnectionDriver, "_stop_timer", lambda self, _=None: setattr(self, "timer", EMPTY))


def lets_dials_run(patch: pytest.MonkeyPatch) -> None:
    """Law 5: a dial outlives its state."""
    patch.setattr(ConnectionDriver, "_cancel_dial", lambda self, _=None: setattr(self, "dial", EMPTY))


def lets_sockets_be(patch: pytest.MonkeyPatch) -> None:
    """Law 5: a socket outlives its state."""
    patch.setattr(ConnectionDriver, "_close_socket", lambda self, _: setattr(self, "socket", EMPTY))


def does_not_await_ends(patch: pytest.MonkeyPatch) -> None:
    """Law 9: close() returns too soon."""

    async def closed(self: ConnectionDriver, completion: Completion) -> None:
        await completion.wait()

    patch.setattr(ConnectionDriver, "_wait_until_closed", closed)


def forgets_who_waits(patch: pytest.MonkeyPatch) -> None:
    """D-STOP: who waits for a room is not told that the client stopped."""
    patch.setattr(RoomWatch, "fail", lambda self, error: None)


def forgets_to_announce(patch: pytest.MonkeyPatch) -> None:
    """CONN-5: who waits for the connection is not told of it."""
    patch.setattr(ConnectionDriver, "_announce_connected", lambda self, _: None)


def wakes_the_cancelled(patch: pytest.MonkeyPatch) -> None:
    """Law 5: a waiter that was cancelled in this turn is given its result."""

    def settle(self: Waiters[object]) -> list[asyncio.Future[object]]:
        waiters, self._waiters = self._waiters, {}
        return list(waiters)

    patch.setattr(Waiters, "_settle", settle)


def runs_jobs_at_once(patch: pytest.MonkeyPatch) -> None:
    """Law 1: an event, and the work that comes of it, run in the middle of another event."""
    patch.setattr(EventQueue, "post", lambda self, job, *args: job(*args))
    patch.setattr(EventQueue, "schedule", lambda self, work: deque(work, maxlen=0))


def takes_answers_of_the_left(patch: pytest.MonkeyPatch) -> None:
    """D-LEAVE: the answer to a room that was left is taken for that of the next of its name."""
    patch.setattr(AnswersDue, "disown", lambda self, header: None)


def loses_offline_edits(patch: pytest.MonkeyPatch) -> None:
    """D-ACK: the version exchange of a join is left out."""
    patch.setattr(Bag, "missing_from", lambda self, version: ())


def says_it_twice(patch: pytest.MonkeyPatch) -> None:
    """D-LISTEN: a status is reported again."""
    notify = ConnectionDriver._notify_status

    def twice(self: ConnectionDriver, effect: NotifyStatus) -> None:
        notify(self, effect)
        notify(self, effect)

    patch.setattr(ConnectionDriver, "_notify_status", twice)


@pytest.mark.parametrize(
    ("broken", "scenario"),
    [
        (drops_nothing_stale, lost_or_retried),
        (lets_timers_run, timer_or_by_hand),
        (lets_dials_run, opened_or_closed),
        (lets_sockets_be, opened_or_closed),
        (does_not_await_ends, lost_or_retried),
        (forgets_who_waits, joined_or_left),
        (forgets_to_announce, opened_or_closed),
        (wakes_the_cancelled, callers_cancelled),
        (runs_jobs_at_once, listeners_call_back),
        (takes_answers_of_the_left, refused_or_left),
        (loses_offline_edits, two_clients),
        (says_it_twice, opened_or_closed),
    ],
    ids=lambda value: value.__name__,
)
@pytest.mark.filterwarnings("ignore")  # what a broken client leaves behind
def test_what_is_broken_is_found(broken: Broken, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each law, broken on purpose, fails a schedule."""
    broken(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        many_schedules(racing(scenario, small), range(200))
    assert any("seed" in note for note in caught.value.__notes__)


# ------------------------------------------------------------------------------------------------------------- the tool


async def three_names(names: list[str]) -> None:
    """Three tasks say their names."""

    async def say(name: str) -> None:
        names.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(say(name))


def orders(scenario: Callable[[list[str]], Awaitable[None]], seeds: int = 200) -> set[str]:
    """The orders in which a scenario's names were said."""
    seen: set[str] = set()

    async def once() -> None:
        names: list[str] = []
        await scenario(names)
        seen.add("".join(names))

    many_schedules(once, range(seeds))
    return seen


def test_tasks_change_places() -> None:
    """Tasks that are ready at the same time run in every order."""
    assert orders(three_names) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_timers_of_the_same_moment_change_places() -> None:
    """Timers that fall due together are called in any order; of two moments, the earlier comes first."""

    async def timers(names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
            loop.call_at(seconds, names.append, name)
        await asyncio.sleep(3)

    assert orders(timers) == {"abc", "bac"}


def test_who_is_ready_may_be_kept_waiting() -> None:
    """A task may be woken only after several turns of the loop."""

    async def late(names: list[str]) -> None:
        async def turns() -> None:
            for name in "123":
                names.append(name)
                await asyncio.sleep(0)

        async def once() -> None:
            names.append("x")

        async with asyncio.TaskGroup() as group:
            group.create_task(once())
            group.create_task(turns())

    assert orders(late) == {"x123", "1x23", "12x3", "123x"}


def test_plain_callbacks_keep_their_order() -> None:
    """What asyncio promises: callbacks are called in the order in which they are registered."""

    async def plain(names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        for name in "abc":
            loop.call_soon(names.append, name)
        await asyncio.sleep(0)
        names.append("|")  # a task that gives way comes after what was there before it

    assert orders(plain) == {"abc|"}


def test_callbacks_of_one_future_keep_their_order() -> None:
    """So do the callbacks of one future; those of two futures are mixed."""

    async def futures(names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        one, other = loop.create_future(), loop.create_future()
        for future, name in ((one, "a"), (one, "b"), (other, "x"), (other, "y")):
            future.add_done_callback(lambda _, name=name: names.append(name))
        one.set_result(None)
        other.set_result(None)
        await asyncio.sleep(1)

    assert orders(futures) == {"abxy", "axby", "axyb", "xaby", "xayb", "xyab"}


def test_bytes_keep_their_order() -> None:
    """A transport's bytes come in order, and after ``connection_made``; two connections are mixed."""

    async def streams(names: list[str]) -> None:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1):
                names.append(data.decode())
            writer.close()

        async def send(letters: str, port: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            for letter in letters:
                writer.write(letter.encode())
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(served, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(send("abc", port), send("123", port))
        await asyncio.sleep(1)
        server.close()
        await server.wait_closed()

    seen = orders(streams)
    assert len(seen) > 5
    assert {"".join(filter(str.isalpha, names)) for names in seen} == {"abc"}
    assert {"".join(filter(str.isdigit, names)) for names in seen} == {"123"}


def test_who_polls_sees_the_end_of_it() -> None:
    """However patient, nobody is kept waiting for ever."""

    async def polls() -> None:
        done: list[bool] = []
        task = asyncio.create_task(three_names([]))
        task.add_done_callback(lambda _: done.append(True))
        for _ in range(20 * ShuffledLoop.PATIENCE):
            if done:
                return
            await asyncio.sleep(0)
        pytest.fail("it was kept waiting for ever")

    many_schedules(polls, range(200))


def test_the_same_seed_gives_the_same_schedule() -> None:
    """Two runs of a seed are the same; two seeds are not."""
    whole = racing(closed_in_full_flight, real)
    courses: list[object] = []

    async def named_context() -> None:
        await whole()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ShuffledLoop)
        courses.append((tuple(loop.choices), loop.callbacks))

    many_schedules(named_context, [3, 3, 4])
    assert courses[0] == courses[1] != courses[2]


async def lost_update() -> None:
    """A race that asyncio's own order never loses: the reader is always woken before the writer."""
    balance, paid = 1, asyncio.Event()

    async def read() -> None:
        await paid.wait()
        assert balance == 1, "an update was lost"

    async def write() -> None:
        nonlocal balance
        await paid.wait()
        balance = 2

    both = asyncio.gather(read(), write())
    await asyncio.sleep(0.1)
    paid.set()
    await both


def test_a_failure_names_its_seed() -> None:
    """The note of a failure says how to run that schedule again, and it fails again."""
    with pytest.raises(AssertionError, match="lost") as caught:
        many_schedules(lost_update)
    (note,) = caught.value.__notes__
    seed = int(note.split("seed ")[1].split(";")[0])
    assert f"many_schedules(lost_update, seeds=[{seed}])" in note
    with pytest.raises(AssertionError, match="lost"):
        many_schedules(lost_update, [seed])


def test_what_is_left_behind_fails_a_schedule() -> None:
    """A task that outlives the scenario is a leak."""

    async def leaks() -> None:
        asyncio.get_running_loop().call_later(5, print)

    with pytest.raises(AssertionError, match="left over"):
        many_schedules(leaks, [0])


def test_what_nobody_hears_fails_a_schedule() -> None:
    """An exception in a callback, or in a task that nobody awaits, is one of the scenario's."""

    async def deaf() -> None:
        async def raises() -> None:
            raise ValueError("unheard")

        asyncio.create_task(raises())  # noqa: RUF006
        await asyncio.sleep(1)

    with pytest.raises(AssertionError, match="unheard"):
        many_schedules(deaf, [0])


def test_what_never_ends_fails_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that spins is ended."""
    monkeypatch.setattr(ShuffledLoop, "LIMIT", 1000)

    async def spins() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="does not end"):
        many_schedules(spins, [0])


def test_invariants_are_checked_at_rest() -> None:
    """``at_rest`` is called whenever nothing is ready, and what it raises fails the schedule."""
    seen: list[float] = []

    async def rests() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ShuffledLoop)
        loop.at_rest(lambda: seen.append(loop.time()))
        await asyncio.sleep(1)
        loop.at_rest(lambda: pytest.fail("no invariant"))
        await asyncio.sleep(1)

    with pytest.raises(pytest.fail.Exception, match="no invariant"):
        many_schedules(rests, [0])
    assert seen == [0.0]


def test_every_schedule_is_every_one() -> None:
    """Of three tasks, all six orders; with one departure, those that are one away."""
    seen: list[str] = []

    async def once() -> None:
        names: list[str] = []
        await three_names(names)
        seen.append("".join(names))

    explored = every_schedule(once, departures=10)
    assert explored.complete
    assert explored.distinct == explored.schedules == len(seen)
    assert seen[0] == "abc"
    assert set(seen) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    seen.clear()
    every_schedule(once, departures=1)
    assert set(seen) == {"abc", "acb", "bac", "cab"}


def test_every_schedule_says_when_it_gives_up() -> None:
    """Stopped at its limit, it does not claim to be complete."""
    explored = every_schedule(lambda: three_names([]), departures=10, at_most=3)
    assert explored.schedules == 3
    assert not explored.complete


def test_every_schedule_wants_a_repeatable_scenario() -> None:
    """A scenario with a chance of its own is refused, not half explored."""
    chance = itertools.count()

    async def unrepeatable() -> None:
        if next(chance) == 0:
            await three_names([])

    with pytest.raises(RuntimeError, match="not repeatable"):
        every_schedule(unrepeatable)
