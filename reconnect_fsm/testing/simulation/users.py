"""The users of a simulation: programs with a client each, whose callbacks call it, raise, edit and import."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from random import Random
from typing import TYPE_CHECKING, Any, Final

from loro import EphemeralStore, ExportMode, LoroDoc
from yarl import URL

from reconnect_fsm._asyncio.room import Room
from reconnect_fsm._asyncio.room_driver import Auth
from reconnect_fsm.adaptors import EphemeralAdaptor
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.errors import NotConnected, Unauthorized
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode, room_header
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import ClientStatus, RoomStatus
from reconnect_fsm.testing.simulation.checks import (
    GRACE,
    PING_ENDS,
    ROOM_ENDS,
    STOPPED,
    STOPS,
    Operation,
    RoomBook,
    Witness,
)
from reconnect_fsm.testing.simulation.sabotage import SECRET, Sabotage

if TYPE_CHECKING:
    from reconnect_fsm.testing.simulation.network import Link
    from reconnect_fsm.testing.simulation.server import Misbehaving
    from reconnect_fsm.testing.simulation.world import World

__all__ = ["PLACES", "PRESENCE", "ROOMS", "User"]

PRESENCE: Final = "presence"  # a room with an EphemeralStore
AUTH: Final = f"auth-{SECRET}".encode()

ROOM_STOPPED: Final = (RoomStatus.DISCONNECTED, RoomStatus.ERROR)

PLACES: Final = (
    "on_status",
    "on_transition",
    "on_latency",
    "on_message",
    "room on_status",
    "room on_synced",
    "room on_error",
    "url",
    "auth",
    "network source",
    "refused",
)
"""Where the user's code is called."""


@dataclass(frozen=True)
class Shared:
    """A room, and which of a user's documents is in it."""

    crdt: CrdtType
    id: str
    document: int | None
    """None for the presence."""


ROOMS: Final = (
    Shared(CrdtType.LORO, "notes", 0),
    Shared(CrdtType.LORO, "tasks", 1),
    Shared(CrdtType.LORO, "Füße", 2),
    Shared(CrdtType.LORO, "tasks, too", 1),
    Shared(CrdtType.EPHEMERAL, PRESENCE, None),
)


class Fallible:
    """An adaptor that raises on request."""

    def __init__(self, adaptor: Adaptor, user: User, shared: Shared) -> None:
        if adaptor is None:
            raise TypeError("adaptor= is a function that makes an adaptor of a LoroDoc, and it returned None")
        self._adaptor = adaptor
        self._user = user
        self.header = room_header(shared.crdt, shared.id)
        self.crdt_type = adaptor.crdt_type
        self.trouble: str | None = None
        """The method whose next call raises."""

    def __getattr__(self, name: str) -> Any:
        """What an adaptor may have, but need not."""
        return getattr(self.__dict__["_adaptor"], name)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "max_piece":
            setattr(self._adaptor, name, value)
        else:
            super().__setattr__(name, value)

    def _trip(self, method: str) -> None:
        if self.trouble == method:
            self.trouble = None
            raise self._user.world.sabotage(f"{method}() of an adaptor")

    def version(self) -> bytes:
        self._trip("version")
        return self._adaptor.version()

    def alternative_version(self, server_version: bytes) -> bytes | None:
        self._trip("alternative_version")
        return self._adaptor.alternative_version(server_version)

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        self._trip("missing_from")
        return self._adaptor.missing_from(server_version)

    def covers(self, server_version: bytes) -> bool:
        self._trip("covers")
        return self._adaptor.covers(server_version)

    def apply(self, updates: Sequence[bytes]) -> Any:
        self._user.witness.applied(self.header, updates)
        self._trip("apply")
        return self._adaptor.apply(updates)

    def attach(self, send: Callable[[Any], None]) -> Callable[[], None]:
        return self._adaptor.attach(send)

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        self._trip("refused")
        with self._user.called("refused"):
            self._adaptor.refused(updates, status)


class Idle:
    """The adaptor of a room in which nothing happens. A program may have thousands."""

    crdt_type = CrdtType.EPHEMERAL

    def version(self) -> bytes:
        return b""

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        return ()

    def covers(self, server_version: bytes) -> bool:
        return True

    def apply(self, updates: Sequence[bytes]) -> None: ...

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        return lambda: None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None: ...


IDLE: Final = Idle()


class Source:
    """A network source whose answers are set, and which fails on request."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._report: Callable[[bool], None] | None = None
        self.online = True

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        with self._user.called("network source"):
            self._report = report
            self._user.witness.hears_online(self.online)
            report(self.online)
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._report = None
        with self._user.called("network source"):
            pass

    def set_online(self, online: bool) -> None:
        self.online = online
        if self._report is not None:
            self._report(online)


class User:
    """A program with one client, and what it does with it. Every call is noted, and every operation is watched."""

    def __init__(self, world: World, number: int, server: Misbehaving, documents: list[LoroDoc] | None = None) -> None:
        self.world = world
        self.server = server
        self.name = f"client {number}"
        random = Random(f"{world.setting.seed}: {self.name}")
        self._host = f"127.0.0.{number + 1}"
        self.link: Link = world.loop.link(self._host)
        self.link.gulp = random.choice((None, 100, 600, 1448))
        self.url_trouble: Exception | float | None = None
        """What the next call of the url function does: it raises this, or takes so many seconds."""
        self.mischief: dict[str, list[Callable[[], None]]] = {place: [] for place in PLACES}
        """What this user's code does at each of its next calls."""
        self._depth = 0  # of calls of that code
        self._deeds = 0  # how often it did something
        self.knows_auth = False
        """Whether the client has been given the auth of a room."""
        options = _options(random)
        self.source = Source(self) if random.random() < 0.4 else None
        self._query = {"token": SECRET}
        if random.random() < 0.2:
            self._query["topic"] = "room_closed"  # D-JUDGED: also a word that ends everything
        options["headers"] = {"Authorization": f"Bearer {SECRET}", "Cookie": f"sid=c-{SECRET}"}
        options["protocols"] = (f"bearer.{SECRET}",)
        retry, keepalive = options["retry"], options["keepalive"]
        shown = (
            "base",
            "cap",
            "jitter",
            "max_attempts",
            "stable_after",
            "reset_on_online",
            "enabled",
        )  # no sets: their
        retried = ", ".join(f"{name}={getattr(retry, name)}" for name in shown)  # order depends on the process
        timeouts = f"{options['connect_timeout']:g} s to connect, {options['close_timeout']:g} s to close"
        world.note(self.name, f"is made: retry {retried}; {keepalive}; {timeouts}")
        self.client = world.setting.client(
            self._url, fsm=world.setting.fsm, room_fsm=world.setting.room_fsm, network=self.source, **options
        )
        seen = world.report.seen
        self.witness = Witness(
            self.name, self.client, self.link, world.loop, world.fail, world.note, seen, SECRET, self.knows
        )
        self.documents: list[LoroDoc] = [] if documents is None else documents
        self._store = EphemeralStore(2**40)
        self._number = number
        self._edits = 0
        self._crowd: list[Room] = []
        self.adaptors: list[Fallible] = []
        """Of its rooms, in the order of `ROOMS`."""
        for shared in ROOMS:
            if shared.document is None:
                presence = EphemeralAdaptor(self._store, timeout=random.choice((None, 30.0, 600.0, 3600.0)))
                self.adaptors.append(Fallible(presence, self, shared))
                continue
            if shared.document == len(self.documents):
                document = LoroDoc()  # type: ignore[no-untyped-call]
                document.peer_id = number
                self.documents.append(document)
            self.adaptors.append(Fallible(world.setting.adaptor(self.documents[shared.document]), self, shared))
        self.client.on_status(self._callback("on_status"))
        self.client.on_transition(self._callback("on_transition"))
        self.client.on_latency(self._callback("on_latency"))
        self.client.on_message(self.witness.heard)
        self.client.on_message(self._callback("on_message"))

    async def _url(self) -> URL:
        trouble, self.url_trouble = self.url_trouble, None
        if isinstance(trouble, Exception):
            self.world.raised(trouble, "the url function", is_fault=not isinstance(trouble, Unauthorized))
            raise trouble
        if trouble is not None:
            await asyncio.sleep(trouble)
        with self.called("url"):
            pass
        host, port = self._host, self.server.port
        return URL.build(scheme="ws", host=host, port=port, path="/", query=self._query)

    # What its code does when it is called

    def _callback(self, place: str) -> Callable[[object], None]:
        def callback(_: object) -> None:
            with self.called(place):
                pass

        return callback

    @contextmanager
    def called(self, place: str) -> Iterator[None]:
        """This user's code runs, in this place: do what is planned for it."""
        self._depth += 1
        try:
            yield
            deeds = self.mischief[place]
            if deeds:
                self._deeds += 1
                deeds.pop()()
        finally:
            self._depth -= 1

    def later(self, do: Callable[[], object]) -> None:
        """Do it now, or in the next turn of the loop if this user's code is being called, by loro perhaps."""
        if self._depth:
            self.world.loop.call_soon(do)
        else:
            do()

    def behave(self) -> None:
        """Stop all mischief, have a good link, and commit all edits."""
        for deeds in self.mischief.values():
            deeds.clear()
        self.url_trouble = None
        self.link.restore()
        for document in self.documents:
            document.commit()

    # Calls

    def start(self) -> None:
        self._note("start()")
        self.witness.asked_to_connect()
        self.client.start()

    def connect(self, reset: bool = False, patience: float | None = None) -> None:
        self.witness.asked_to_connect()
        with self._acting("connect()", self._is_on_its_way):
            outcome = self.client.connect(reset)
        self._operate(f"connect({reset})", outcome, STOPS, lambda: self._is_decided, patience)

    def retry_now(self, patience: float | None = None) -> None:
        self.witness.asked_to_connect()
        with self._acting("retry_now()", lambda: self._is_on_its_way() and not self._is_connected()):
            outcome = self.client.retry_now()
        self._operate("retry_now()", outcome, STOPS, lambda: self._is_decided, patience)

    def close(self, patience: float | None = None) -> None:
        with self._acting("close()", lambda: self.client.status is ClientStatus.DISCONNECTED):
            outcome = self.client.close()
        teardown = self.witness.driver.teardown
        self._operate("close()", outcome, (), lambda: lambda: not teardown.tasks, patience)

    def reopen(self) -> None:
        """Close it and connect again, with nothing in between."""
        self.close()
        self.connect()

    def set_online(self, online: bool) -> None:
        self._note(f"set_online({online})")
        was_online, source = self.witness.told_online(online), self.source
        is_news = was_online and not online and source is None
        with self._acting(f"set_online({online})", lambda: not (is_news and self._is_connected())):
            (self.client if source is None else source).set_online(online)

    def ping(self, timeout: float, patience: float | None = None) -> None:
        loop = self.world.loop
        due = loop.awake() + timeout + 1e-3
        self._operate(
            f"ping({timeout})", self.client.ping(timeout), PING_ENDS, lambda: lambda: loop.awake() > due, patience
        )

    def send(self, text: str, patience: float | None = None) -> None:
        self._operate("send()", self.client.send(text), (NotConnected,), lambda: self._is_written, patience)

    def wait_connected(self, patience: float | None = None) -> None:
        self._operate("wait_connected()", self._connected(), (), lambda: self._is_connected, patience)

    async def _connected(self) -> None:
        await self.client.wait_connected()
        if not self._is_connected() and self.witness.gave_up:
            self.world.fail("calls-act", f"{self.name}: wait_connected() returns while {self.client.state}")

    def join(self, index: int, auth: str = "bytes", patience: float | None = None) -> None:
        room_id = ROOMS[index].id
        tracked = bool(self._rooms(index))
        book = RoomBook(self.witness, room_id, self.adaptors[index].header)
        listener = None if tracked else book.listener
        self.knows_auth = self.knows_auth or auth == "bytes"
        with self._acting(f"join({room_id})", lambda: room in self.client.rooms or room.status is RoomStatus.ERROR):
            room = self.client.join(room_id, self.adaptors[index], auth=self._auth(auth), on_status=listener)
        if not tracked:
            self.witness.rooms[room] = book
            room.on_status(self._callback("room on_status"))
            for place in ("on_synced", "on_error"):
                if hasattr(room, place):
                    getattr(room, place)(self._callback(f"room {place}"))
            self.world.report.seen["joins"] += 1
        self._operate(f"join({room_id}, {auth})", room, ROOM_ENDS, partial(self._is_over, room, True), patience)

    def join_all(self) -> bool:
        """Join every room that it is not in; whether there were any."""
        missing = [index for index in range(len(self.adaptors)) if not self._rooms(index)]
        for index in missing:
            self.join(index)
        return bool(missing)

    def come_back(self, edits: bool) -> None:
        """Be online, connected or on the way, and in every room; ``edits``: and change every document."""
        self.set_online(True)
        if self.client.status in STOPPED:
            self.connect()
        self.join_all()
        for index, shared in enumerate(ROOMS):
            if edits and shared.document is not None:
                self.edit(index)

    def asks_again(self) -> bool:
        """Connect if it is stopped, join the rooms that it is not in; whether there was anything to do."""
        is_stopped = self.client.status in STOPPED
        if is_stopped:
            self.connect()
        return self.join_all() or is_stopped

    def leave(self, index: int, patience: float | None = None) -> None:
        for room in self._rooms(index):
            self._leave(room, patience)

    def _leave(self, room: Room, patience: float | None = None) -> None:
        with self._acting(f"leave({room.id})", lambda: room not in self.client.rooms and room.status in ROOM_STOPPED):
            outcome = room.leave()
        self._operate(f"leave({room.id})", outcome, (), lambda: self._is_written, patience)

    def synced(self, index: int, patience: float | None = None) -> None:
        for room in self._rooms(index):
            synced = self._synced(room, index)
            ends = (*ROOM_ENDS, Sabotage)  # what the adaptor raises on being asked
            self._operate(f"synced({room.id})", synced, ends, partial(self._is_over, room), patience)

    async def _synced(self, room: Room, index: int) -> None:
        await room.synced()
        if (lacking := self.world.lacking(self, index)) is not None:
            self.world.fail("synced-is-true", f"{self.name}: synced() of {room.id} returns, and {lacking}")

    def edit(self, index: int, size: int = 0, commit: bool = True) -> None:
        """Change a document; every edit leaves a key of its own in it."""
        if self._depth:
            self.later(lambda: self.edit(index, size, commit))
            return
        key = self._new_key(index)
        document = self.documents[ROOMS[index].document or 0]
        if ROOMS[index].document is None:
            self._store.set(self.name, self._edits)
            return
        document.get_map("edits").insert(key, "x" * size if size else self._edits)
        text = document.get_text("text")
        if self._edits % 5 == 0 and text.len_unicode > 3:
            text.delete(1, 2)
        else:
            text.insert(text.len_unicode // 2, "äb")
        if commit:
            document.commit()

    def import_into(self, index: int, size: int = 0) -> None:
        """Import what another document holds, as a program that reads a file does."""
        if self._depth or ROOMS[index].document is None:
            self.later(lambda: self.import_into(index if ROOMS[index].document is not None else 0, size))
            return
        key = self._new_key(index)
        other = LoroDoc()  # type: ignore[no-untyped-call]
        other.peer_id = 1_000_000 * self._number + self._edits
        other.get_map("edits").insert(key, "x" * size if size else self._edits)
        other.commit()
        self.documents[ROOMS[index].document or 0].import_(other.export(ExportMode.Snapshot()))

    def _new_key(self, index: int) -> str:
        self._edits += 1
        key = f"{self.name}, edit {self._edits}"
        self._note(f"edit {self._edits} of {ROOMS[index].id}")
        if (number := ROOMS[index].document) is not None:
            self.world.edits[number].append(key)
        return key

    def crowd(self, count: int) -> None:
        """Join so many rooms more."""
        if self._crowd:
            return
        self._note(f"joins {count} rooms more")
        on_status = self._callback("room on_status")
        self._crowd = [self.client.join(f"room {number}", IDLE, on_status=on_status) for number in range(count)]

    def disperse(self) -> None:
        """Leave them."""
        crowd, self._crowd = self._crowd, []
        for room in crowd:
            room.leave()

    # What is true

    def document(self, index: int) -> LoroDoc:
        """That of a room."""
        return self.documents[ROOMS[index].document or 0]

    def knows(self, secret: str) -> bool:
        """Whether the client can know that this is one."""
        return self.knows_auth or "auth" not in secret

    def _rooms(self, index: int) -> list[Room]:
        return [room for room in self.client.rooms if (room.crdt_type, room.id) == (ROOMS[index].crdt, ROOMS[index].id)]

    def _is_connected(self) -> bool:
        return self.client.status is ClientStatus.CONNECTED

    def _is_on_its_way(self) -> bool:
        return self.client.status not in STOPPED and self.client.state not in ("waiting", "paused")

    def _is_written(self) -> bool:
        driver = self.witness.driver
        return not driver.teardown.tasks if driver.socket.content is None else not driver.socket.content.backlog

    def _is_decided(self) -> bool:
        return self._is_connected() or self.client.status in STOPPED

    def _is_over(self, room: Room, joined: bool = False) -> Callable[[], bool]:
        """Whether a room was left, refused or stopped since now; or is joined, if that counts too."""
        book = self.witness.rooms.get(room)
        stops = 0 if book is None else book.stops + (room.status is RoomStatus.DISCONNECTED is not book.told)

        def is_over() -> bool:
            stopped = book is not None and book.stops > stops
            return stopped or room not in self.client.rooms or (joined and room.status is RoomStatus.JOINED)

        return is_over

    def bound(self) -> float:
        """The seconds within which it must be connected and its rooms joined, once the network is good."""
        room_fsm = self.world.setting.room_fsm
        settings = self.witness.driver.settings
        policy, keepalive = settings.retry, settings.keepalive
        half_open = keepalive.interval + keepalive.timeout + GRACE if keepalive.enabled else 0.0
        attempt = max(policy.cap, self.witness.remaining_wait()) + settings.connect_timeout
        join = 2 * room_fsm.join_timeout + policy.cap + room_fsm.rejoin_interval
        return half_open + 2 * (attempt + join)

    def is_settled(self) -> bool:
        """Whether it is connected, and all its rooms are joined."""
        return self._is_connected() and all(room.status is RoomStatus.JOINED for room in self.client.rooms)

    def check_synced(self) -> None:
        """A room that says it is synced is."""
        if not self.witness.is_time_for_rooms():
            return
        for index, adaptor in enumerate(self.adaptors):
            room = next(iter(self._rooms(index)), None)
            if room is None or ROOMS[index].document is None or not getattr(room, "is_synced", False):
                continue
            lacking = self.world.lacking(self, index)
            if self.document(index).get_pending_txn_len() and hasattr(adaptor, "has_uncommitted"):
                lacking = "there are edits that are not committed"
            if lacking is not None:
                self.world.fail("synced-is-true", f"{self.name}: {room.id} is synced, and {lacking}")

    def check_recording(self) -> None:
        """What is recorded of the last steps holds no secret."""
        recording = StringIO()
        self.client.export(recording)
        self.witness.check_shown_text(recording.getvalue())

    # Helpers

    @contextmanager
    def _acting(self, what: str, is_done: Callable[[], bool]) -> Iterator[None]:
        """A call has acted when it returns (D-NOW), unless it is within a callback, or its callbacks make calls."""
        deeds = self._deeds
        yield
        is_told = self._depth > 0 or self._deeds > deeds or self.client.status is ClientStatus.ERROR
        if not is_told and not is_done():
            self.world.fail("calls-act", f"{self.name} is {self.client.state} when {what} returns")

    def _auth(self, kind: str) -> Auth:
        calls = iter(range(10**9))

        def given() -> bytes:
            with self.called("auth"):
                pass
            self.knows_auth = True
            return AUTH

        async def slow(seconds: float) -> bytes:
            await asyncio.sleep(seconds)
            return given()

        def trouble(error: Callable[[], BaseException]) -> bytes:
            if next(calls) == 0:
                raise error()
            return given()

        kinds: dict[str, Auth] = {
            "bytes": AUTH,
            "function": given,
            "slow": lambda: slow(0.5),
            "very slow": lambda: slow(30.0 if next(calls) == 0 else 0.1),
            "raises": lambda: trouble(lambda: self.world.sabotage("the auth function")),
            "unauthorized": lambda: trouble(Unauthorized),
        }
        return kinds[kind]

    def _note(self, what: str) -> None:
        self.world.note(self.name, what)

    def _operate(
        self,
        name: str,
        awaitable: Awaitable[Any],
        allowed: tuple[type[BaseException], ...],
        begin: Callable[[], Callable[[], bool]],
        patience: float | None,
    ) -> None:
        """Await it in a task; ``begin()`` is called when that begins, and returns what says when it must have ended."""
        self._note(name if patience is None else f"{name}, cancelled after {patience:g} s")

        async def operation() -> Any:
            watched.is_due = begin()
            result = await awaitable
            return result if isinstance(result, float) else None

        loop = self.world.loop
        task = loop.create_task(operation(), name=f"{self.name}: {name}")
        if inspect.iscoroutine(awaitable):  # one that was cancelled before its first step would warn
            task.add_done_callback(lambda _: awaitable.close())
        watched = Operation(name, task, allowed)
        self.witness.operations[watched] = None

        def cancel() -> None:
            if not task.done():
                watched.cancelled = True
                task.cancel()
                self.world.report.seen["cancelled callers"] += 1

        timer = None if patience is None else loop.call_later(patience, cancel)

        def ended(_: object) -> None:
            if timer is not None:
                timer.cancel()
            self.witness.operation_ended(watched)

        task.add_done_callback(ended)


def _options(random: Random) -> dict[str, Any]:
    """How a client is configured: mostly by default, as most are."""
    odd = random.random() < 0.4
    retry = RetryPolicy(random=random)
    if odd:
        retry = RetryPolicy(
            base=random.choice((0.1, 0.5, 2.0)),
            cap=random.choice((5.0, 15.0, 40.0)),
            jitter=random.choice((0.0, 0.25, 0.9)),
            max_attempts=random.choice((None, None, None, 0, 4)),
            stable_after=random.choice((0.0, 1.0, 5.0)),
            reset_on_online=random.random() < 0.5,
            enabled=random.random() < 0.9,
            random=random,
        )
    interval, timeout = random.choice(((20.0, 10.0), (20.0, 10.0), (60.0, 20.0), (300.0, 20.0), (12.0, 15.0)))
    return {
        "retry": retry,
        "keepalive": Keepalive(interval, timeout, enabled=random.random() < 0.9),
        "connect_timeout": random.choice((10.0, 10.0, 4.0)),
        "close_timeout": random.choice((2.0, 2.0, 0.3)),
    }
