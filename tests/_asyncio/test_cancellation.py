"""Cancellation: every public operation, cancelled at every one of its suspension points, under every fault.

Whoever waits may be cancelled at any time: it comes out as CancelledError, it harms nobody else, and the client goes on
(law 5, CONN-5). The operations are found by looking at the public classes, so that none can be forgotten.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, get_type_hints

import pytest

import reconnect_fsm
from cancellation import WAYS, Caller, SteppedLoop
from doubles import EmptyAdaptor
from figures import Figures
from reconnect_fsm import (
    Client,
    ClientStatus,
    ClientStopped,
    JoinRefused,
    Keepalive,
    NotConnected,
    RetryPolicy,
    Room,
    RoomLeft,
    RoomStatus,
)
from reconnect_fsm._asyncio.awaitables import Waiters
from reconnect_fsm._asyncio.connection import Connection, connection_driver_of
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver
from reconnect_fsm._asyncio.room_driver import RoomDriver
from reconnect_fsm._asyncio.teardown import Teardown
from reconnect_fsm._asyncio.transport import sessions
from reconnect_fsm._asyncio.transport.sessions import Session
from reconnect_fsm._asyncio.transport.socket import Data, Socket
from reconnect_fsm.recorder import recorder
from reconnect_fsm.testing import EmbeddedServer, leaks
from reconnect_fsm.testing.virtual_time import in_memory_connections

HORIZON = 2.6  # seconds of virtual time that an operation is given; then it waits for what may never come
MOST_TURNS = 400  # of the loop, within the horizon
PATIENCE = 60.0  # seconds of virtual time for what must come
PASSES = 20  # of the loop, for what is on its way out
SMALL = 8  # where it is no proof: one case in so many, and one turn


# ------------------------------------------------------------------------------------------------------------ the world


class Words(EmptyAdaptor):
    """A document that is a list of words, and is never out of date."""

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self._sends: list[Callable[[bytes], None]] = []

    def add(self, word: bytes) -> None:
        self.words.append(word)
        for send in list(self._sends):
            send(word)

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return self.words

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self._sends.append(send)
        return lambda: self._sends.remove(send)


@dataclass
class World:
    """A server, a client and its room."""

    server: EmbeddedServer
    client: Client
    room: Room
    words: Words
    stopping: asyncio.Task[None] | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the server do something that takes its time."""
        self.stopping = asyncio.create_task(work)

    async def heal(self) -> None:
        """The network is good again."""
        if self.stopping is not None:
            await self.stopping
        if not self.server._listener:
            await self.server.start()
        self.server.drop_on_accept = False
        self.server.refuse_upgrades(None)
        self.server.thaw()
        self.client.set_online(True)


STAGES = ("joined", "busy", "starting", "not started")
QUEUE = 400  # facts that wait for their turn in a busy client: three turns of the loop


async def token() -> bytes:
    """What it takes to join, from somewhere else."""
    await asyncio.sleep(0)
    return b"token"


@asynccontextmanager
async def world(stage: str) -> AsyncIterator[World]:
    """One in which things have come as far as one of the `STAGES`."""
    async with EmbeddedServer() as server:
        client = Client(
            server.url,
            retry=RetryPolicy(base=0.25, cap=1.0, jitter=0, stable_after=0.5),
            keepalive=Keepalive(interval=1.0, timeout=1.0),
            connect_timeout=1.0,
            close_timeout=0.5,
        )
        words = Words()
        room = client.join("r", words, auth=token)
        if stage in ("joined", "busy"):
            client.start()
            await room
            words.add(b"edit")  # which waits for its Ack
            if stage == "busy":
                connection_driver_of(client).dispatcher.schedule(iter(range(QUEUE)))
        elif stage == "starting":
            client.start()
        yield World(server, client, room, words)


# --------------------------------------------------------------------------------------------------------------- faults


def good(_: World) -> None:
    """Nothing is wrong."""


def refusing(it: World) -> None:
    """Connections are lost, and new ones refused with HTTP 503."""
    it.server.refuse_upgrades(503)
    it.server.reset_all()


def down(it: World) -> None:
    """The server says goodbye, and listens no longer."""
    it.run(it.server.stop())


def hanging_in_handshake(it: World) -> None:
    """Connections are lost, and the next handshake is not answered."""
    it.server.freeze()
    it.server.reset_all()


def half_open(it: World) -> None:
    """Nothing is read or sent any more, and TCP stays."""
    it.server.freeze()


def resetting(it: World) -> None:
    """Connections are lost, and new ones too, as soon as they are open."""
    it.server.drop_on_accept = True
    it.server.reset_all()


def fatal(it: World) -> None:
    """The server says never to come back."""
    it.server.refuse_upgrades(403)
    it.run(it.server.close_all(1008, "go away"))


def offline(it: World) -> None:
    """The network is gone."""
    it.client.set_online(False)


FAULTS = (good, refusing, down, hanging_in_handshake, half_open, resetting, fatal, offline)
Fault = Callable[[World], None]


# ----------------------------------------------------------------------------------------------------------- operations


async def enter(it: World) -> None:
    await it.client.__aenter__()


async def leave_client(it: World) -> None:
    await it.client.__aexit__(None, None, None)


async def within(it: World) -> None:
    """The task that runs ``async with client`` as a whole."""
    async with it.client:
        await asyncio.sleep(0.5)


OPERATIONS: dict[str, Callable[[World], Awaitable[object]]] = {
    "Connection.__aenter__": enter,
    "Connection.__aexit__": leave_client,
    "Connection.close": lambda it: it.client.close(),
    "Connection.connect": lambda it: it.client.connect(),
    "Connection.retry_now": lambda it: it.client.retry_now(),
    "Connection.ready": lambda it: it.client.ready(),
    "Connection.wait_connected": lambda it: it.client.wait_connected(),
    "Connection.ping": lambda it: it.client.ping(0.75),
    "Connection.send": lambda it: it.client.send("text"),
    "Client.join": lambda it: it.client.join("another", Words(), auth=token),
    "Room.__await__": lambda it: it.room,
    "Room.synced": lambda it: it.room.synced(),
    "Room.resync": lambda it: it.room.resync(),
    "Room.leave": lambda it: it.room.leave(),
    "async with": within,
}
SPECIAL = ("__aenter__", "__aexit__", "__await__")
EXPECTED = (ClientStopped, NotConnected, RoomLeft, JoinRefused, TimeoutError)


def public_operations() -> set[str]:
    """Whatever can be awaited, of all that the package exports."""
    found: set[str] = set()
    for kind in vars(reconnect_fsm).values():
        if not (inspect.isclass(kind) and kind.__module__.startswith("reconnect_fsm")):
            continue
        for name, member in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") and name not in SPECIAL:
                continue
            names = {**vars(recorder), **vars(inspect.getmodule(member))}  # the recorder's are imported late
            gives = get_type_hints(member, names).get("return")
            gives = getattr(gives, "__origin__", gives)
            if name == "__await__" or inspect.iscoroutinefunction(member) or hasattr(gives, "__await__"):
                found.add(member.__qualname__)
    return found


def test_no_operation_is_forgotten() -> None:
    """Every public coroutine and awaitable has a row here."""
    assert public_operations() == set(OPERATIONS) - {"async with"}


# ---------------------------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Case:
    """One operation under one fault."""

    operation: str
    stage: str
    """What the client has come to when it begins."""
    fault: Fault
    with_it: bool
    """Whether the fault strikes in the moment of the cancellation; else as the operation begins."""

    def __str__(self) -> str:
        return f"{self.operation}, {self.stage}, {self.fault.__name__} {'just then' if self.with_it else 'before'}"


async def trial(case: Case, way: str, at: int | None) -> Caller:
    """Run it, cancelled before turn ``at``; then see that nobody was harmed, and the client works."""
    async with world(case.stage) as it:
        if not case.with_it:
            case.fault(it)
        others = bystanders(it)
        strike = (lambda: case.fault(it)) if case.with_it else (lambda: None)
        caller = Caller(lambda: OPERATIONS[case.operation](it), way=way, at=at, strike=strike)
        await caller.run(HORIZON)
        assert caller.outcome in ("returned", "cancelled", "waits", *(each.__name__ for each in EXPECTED)), (
            caller.outcome
        )
        async with asyncio.timeout(PATIENCE):
            await it.heal()
            await still_works(it)
            for other in others:
                await unharmed(other)
            await it.client.close()
        assert it.client.status is ClientStatus.DISCONNECTED
        assert not connection_driver_of(it.client).teardown.tasks
    return caller


def bystanders(it: World) -> list[asyncio.Task[object]]:
    """Others who wait for the same things."""
    waits = {
        "wait_connected": it.client.wait_connected,
        "ping": it.client.ping,
        "send": lambda: it.client.send("text of another"),
        "synced": it.room.synced,
        "room": lambda: it.room,
    }
    if it.client.status is not ClientStatus.DISCONNECTED:  # asking would start it
        waits["connect"] = it.client.connect

    async def wait(make: Callable[[], Awaitable[object]]) -> object:
        return await make()

    return [asyncio.create_task(wait(make), name=name) for name, make in waits.items()]


async def unharmed(other: asyncio.Task[object]) -> None:
    """Nobody cancelled him; he got what he waited for, or is told why not. `wait_connected` never fails (CONN-5)."""
    await asyncio.wait([other])
    assert not other.cancelled(), f"{other} was cancelled too"
    error = other.exception()
    if error is not None:
        assert isinstance(error, EXPECTED), f"{other}: {error!r}"
        assert other.get_name() != "wait_connected", repr(error)


async def still_works(it: World) -> None:
    """It connects, the room joins, an edit arrives, a message can be sent."""
    await asyncio.sleep(HORIZON)  # what was lost is noticed
    await it.client.connect()
    words = it.words
    if it.room not in it.client.rooms:
        words = Words()
    room = it.client.join("r", words)
    await room
    await it.client.ping()
    before = it.server.stats.updates
    words.add(b"another edit")
    await room.synced()
    assert it.server.stats.updates > before
    await it.client.send("more text")
    assert room.status is RoomStatus.JOINED


def run(case: Case, way: str = "cancel", at: int | None = None) -> Caller:
    """One trial, on a loop of its own; nothing is left of it."""
    loop = SteppedLoop()
    unheard: list[object] = []
    loop.set_exception_handler(lambda _, context: unheard.append(context))

    async def checked() -> Caller:
        caller = await trial(case, way, at)
        for _ in range(PASSES):
            left = leaks.in_loop()
            if not left:
                return caller
            await asyncio.sleep(0)
        raise AssertionError(leaks.describe(list(left.values())))

    try:
        caller = loop.run_until_complete(checked())
        assert not unheard, unheard
        assert not ERRORS, ERRORS
    except BaseException as error:
        error.add_note(f"{case}: way {way!r}, cancelled before turn {at}")
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE))
        raise
    finally:
        loop.close()
    return caller


ERRORS: list[str] = []  # what the library logged as an error


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


@pytest.fixture(autouse=True)
def _in_memory() -> Iterator[None]:
    with in_memory_connections():
        yield


def cases(operation: str) -> Iterator[Case]:
    for stage in STAGES:
        for fault in FAULTS:
            for with_it in (False, True) if fault is not good else (False,):
                yield Case(operation, stage, fault, with_it)


def cancelled_everywhere(case: Case, ways: Sequence[str] = WAYS, stride: int = 1) -> Counter[str]:
    """Cancel it before each turn of an undisturbed run, or every so many of them, and count."""
    seen: Counter[str] = Counter()
    undisturbed = run(case)
    assert undisturbed.turns < MOST_TURNS, f"{case}: it takes {undisturbed.turns} turns"
    points: set[int] = set()
    for at in count(0, stride):
        caller = run(case, at=at)
        if caller.struck_at is None:
            break
        points.add(caller.struck_at)
        for way in ways:
            if way != "cancel":
                caller = run(case, way, at)
            seen[caller.outcome] += 1
            seen["runs"] += 1
    if stride == 1 and not case.with_it:
        missed = set(range(1, undisturbed.suspensions + 1)) - points
        assert not missed, f"{case}: never cancelled in its suspensions {sorted(missed)}"
    seen["points"] += undisturbed.suspensions
    seen["moments"] += undisturbed.turns
    return seen


# ---------------------------------------------------------------------------------------------------------------- tests


each_operation = pytest.mark.parametrize("operation", OPERATIONS)


@each_operation
def test_cancelled_at_some_points(operation: str) -> None:
    """Every operation under some faults, cancelled at a few moments."""
    for case in islice(cases(operation), list(OPERATIONS).index(operation) % SMALL, None, SMALL):
        cancelled_everywhere(case, ways=("cancel",), stride=SMALL)


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_cancelled_everywhere(figures: Figures) -> None:
    """Every operation under every fault, cancelled at every moment in every way."""
    seen: Counter[str] = Counter()
    for operation in OPERATIONS:
        for case in cases(operation):
            seen += cancelled_everywhere(case, WAYS if not case.with_it else WAYS[:1])
            seen["cases"] += 1
    figures(
        "Every public operation, cancelled at every point under every fault",
        operations=len(OPERATIONS),
        stages=len(STAGES),
        faults=len(FAULTS),
        cases=seen["cases"],
        suspension_points=seen["points"],
        moments=seen["moments"],
        ways=len(WAYS),
        cancellations=seen["runs"],
        violations=0,
    )


# ------------------------------------------------------------------------------------ that it finds what is to be found


def shares_one_future(patch: pytest.MonkeyPatch) -> None:
    """CONN-5: whoever is cancelled cancels everybody."""

    async def wait(self: Waiters[object]) -> object:
        if not self._waiters:
            self._waiters[asyncio.get_running_loop().create_future()] = None
        return await next(iter(self._waiters))

    patch.setattr(Waiters, "wait", wait)


def swallows(patch: pytest.MonkeyPatch) -> None:
    """It returns, though it was cancelled."""
    wait_connected = Connection.wait_connected

    async def swallowing(self: Connection) -> None:
        with suppress(asyncio.CancelledError):
            await wait_connected(self)

    patch.setattr(Connection, "wait_connected", swallowing)


def shares_one_write(patch: pytest.MonkeyPatch) -> None:
    """D-SEND: whoever sends waits for what all who send wait for, and cancels it."""
    shared: dict[Socket, asyncio.Future[None]] = {}

    async def write(self: Socket, data: Data) -> None:
        if self not in shared or shared[self].done():
            shared[self] = asyncio.get_running_loop().create_future()
        self._outbox.append((data, shared[self]))
        self._begin_to_write()
        await shared[self]

    patch.setattr(Socket, "write", write)


def cancels_what_ends(patch: pytest.MonkeyPatch) -> None:
    """Law 6: who waits for the end of a connection cancels it, and its session is never closed."""

    async def ended(self: Teardown, tasks: Iterable[asyncio.Task[object]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close_session(self: ConnectionDriver, session: Session, ending: Iterable[asyncio.Task[object]]) -> None:
        await self.teardown.these_ended(ending)
        await sessions.close_session(session)

    patch.setattr(Teardown, "these_ended", ended)
    patch.setattr(ConnectionDriver, "_close_session", close_session)


def says_something_else(patch: pytest.MonkeyPatch) -> None:
    """The cancellation comes out as an error."""
    wait_until = RoomDriver.wait_until

    async def lying(self: RoomDriver, predicate: Callable[[], bool]) -> None:
        try:
            await wait_until(self, predicate)
        except asyncio.CancelledError:
            raise NotConnected("cancelled") from None

    patch.setattr(RoomDriver, "wait_until", lying)


def keeps_who_has_gone(patch: pytest.MonkeyPatch) -> None:
    """A cancelled caller is given a result all the same."""

    def wake(self: Waiters[object], value: object) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.set_result(value)

    patch.setattr(Waiters, "wake", wake)


@pytest.mark.parametrize(
    ("broken", "case"),
    [
        (shares_one_future, Case("Connection.wait_connected", "starting", good, False)),
        (swallows, Case("Connection.wait_connected", "not started", good, False)),
        (shares_one_write, Case("Connection.send", "joined", good, False)),
        (cancels_what_ends, Case("Connection.close", "joined", half_open, False)),
        (says_something_else, Case("Room.synced", "joined", good, False)),
        (keeps_who_has_gone, Case("Connection.wait_connected", "starting", good, False)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.filterwarnings("ignore")  # what a broken client leaves behind
def test_what_is_broken_is_found(
    broken: Callable[[pytest.MonkeyPatch], None], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cancellation must not do, done on purpose, fails."""
    broken(monkeypatch)
    with pytest.raises((Exception, asyncio.CancelledError)) as caught:
        cancelled_everywhere(case)
    assert any("cancelled before turn" in note for note in caught.value.__notes__)
