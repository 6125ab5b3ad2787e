"""One run of the simulation: the server, its users, the network, and what goes wrong."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Final, TextIO
from unittest import mock

import aiohttp.client
from aiohttp._websocket.writer import WebSocketWriter
from async_solipsism import SleepForeverError

from reconnect_fsm._asyncio.connection_driver import ConnectionDriver
from reconnect_fsm._asyncio.transport.sessions import close_session, make_session
from reconnect_fsm.loro_protocol import CrdtType, Message, Permission
from reconnect_fsm.testing import leaks, virtual_time
from reconnect_fsm.testing.simulation.checks import Witness, machines_timer, watching_dials
from reconnect_fsm.testing.simulation.nemesis import FAULTS, KINDS, StormStep, plan
from reconnect_fsm.testing.simulation.network import MAX_PASSES, NetworkLoop
from reconnect_fsm.testing.simulation.report import Report, Violation
from reconnect_fsm.testing.simulation.sabotage import SECRET, Sabotage
from reconnect_fsm.testing.simulation.server import Misbehaving, misbehaving
from reconnect_fsm.testing.simulation.setting import Setting
from reconnect_fsm.testing.simulation.users import ROOMS, User

__all__ = ["World"]

DOCUMENTS: Final = [(index, shared) for index, shared in enumerate(ROOMS) if shared.document is not None]
KEPT_EVENTS: Final = 60
SLOW: Final = 12  # seconds that a slow server takes for a join: longer than a client waits
MAX_REPEATS: Final = 5  # of asking again, while everything settles, for what was refused by messages still on their way
CALM: Final = (600.0, 7200.0)  # seconds: the shortest calm and the longest


@dataclass
class _Raised:
    """An error that was raised on purpose, and whether it was reported."""

    error: BaseException
    where: str
    logged: bool
    reported: bool


class World:
    """One run: the server, its users, and the faults."""

    def __init__(self, setting: Setting, trace: TextIO | None = None) -> None:
        self.setting = setting
        self.report = Report([setting.seed])
        self.edits: list[list[str]] = [[] for _ in range(1 + max(shared.document or 0 for shared in ROOMS))]
        """The keys of all edits of each document."""
        self.verdict: Permission | type[Sabotage] | str | None = "write"
        """What `authenticate` says."""
        self.needs_rejoin = False
        """Whether client and server may disagree about the members of a room, which only a rejoin repairs."""
        self.has_refused = False
        """Whether updates may have been refused for good: they are sent again at a rejoin."""
        self.texts = 0
        """How many texts the server has sent."""
        self.needs_edits = False
        """Whether updates were lost on their way to others."""
        self.loop: NetworkLoop
        self.server: Misbehaving
        self.users: list[User] = []
        self._trace = trace
        self._digest = hashlib.sha256()
        self._events: deque[str] = deque(maxlen=KEPT_EVENTS)
        self._violation: Violation | None = None
        self._violated: asyncio.Future[None]
        self._jobs: dict[asyncio.Task[Any], None] = {}
        self._undoing: dict[asyncio.TimerHandle, Callable[[], None]] = {}
        self._episode = 0
        self._frozen_since: float | None = None
        self._serving = asyncio.Lock()
        self._sessions: list[aiohttp.ClientSession] = []
        self._raised: dict[int, _Raised] = {}
        self._times: Counter[str] = Counter()

    def run(self) -> Report:
        """Run it to its end, or to the first violation."""
        with ExitStack() as stack:
            stack.enter_context(_controlled(self.setting.seed))
            stack.enter_context(_collecting_sessions(self._sessions))
            complaints = stack.enter_context(_complaints(self._complain, self._logged))
            runner = asyncio.Runner(debug=False, loop_factory=self._make_loop)
            try:
                with runner:
                    runner.run(self._main())
            except SleepForeverError as error:
                self._violate("time-goes-by", str(error))
            except BaseException as error:
                if self._known(error) is None:
                    raise
                self._violate("faults-are-told", f"it ends the event loop: {error!r}")
        for complaint in complaints:
            self._violate("no-error-logged", complaint)
        if self._violation is not None:
            raise self._violation
        self.report.digest = self._digest.hexdigest()
        return self.report

    def _make_loop(self) -> NetworkLoop:
        self.loop = NetworkLoop()
        self.loop.set_exception_handler(self._loop_complains)
        return self.loop

    # What is told

    def note(self, who: str, what: str) -> None:
        """Put an event into the trace."""
        event = f"{self.loop.time():.6f} {who}: {what}"
        self._digest.update(event.encode())
        self._digest.update(b"\n")
        self._events.append(event)
        if self._trace is not None:
            self._trace.write(event + "\n")

    def fail(self, invariant: str, what: str) -> None:
        """An invariant is broken: the run ends."""
        self._violate(invariant, what)
        if not self._violated.done():
            self._violated.set_result(None)

    def _violate(self, invariant: str, what: str) -> None:
        if self._violation is None:
            at = self.loop.time()
            command = self.setting.command
            self._violation = Violation(invariant, what, at, self._episode, command, self._events)

    def _complain(self, what: str) -> None:
        self.fail("no-error-logged", what)

    def _logged(self, record: logging.LogRecord) -> bool:
        """Whether a log record is about an error that was raised on purpose."""
        text = record.getMessage()
        if record.name == "reconnect_fsm" and SECRET in text and all(user.knows(text) for user in self.users):
            self.fail("no-secret-shown", f"it is logged: {text}")
        raised = self._known(record.exc_info[1]) if record.exc_info else None
        if raised is not None and record.levelno >= logging.ERROR:
            raised.logged = True
        return raised is not None

    def _loop_complains(self, _: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if (raised := self._known(error)) is not None:
            raised.reported = True
            return
        self.fail("no-error-logged", f"the event loop: {context['message']}: {error!r}")

    # What the users' code raises

    def sabotage(self, where: str, error: BaseException | None = None, is_quiet: bool = False) -> BaseException:
        """An error to raise on purpose in this place; ``is_quiet``: it need not be reported."""
        error = Sabotage(where) if error is None else error
        self.note("nemesis", f"{where} raises {type(error).__name__}")
        self.raised(error, where, not is_quiet)
        return error

    def raised(self, error: BaseException, where: str, is_fault: bool = True) -> None:
        """An error is raised on purpose. One that is no fault need not be reported."""
        self._times[where] += 1
        is_logged = not is_fault or self._times[where] > 10  # then ever fewer are
        self._raised[id(error)] = _Raised(error, where, is_logged, not is_fault)
        self.report.seen["errors raised by users"] += 1

    def _known(self, error: BaseException | None) -> _Raised | None:
        """The record of the error, if it was raised on purpose or from such an error."""
        while error is not None:
            if id(error) in self._raised:
                return self._raised[id(error)]
            error = getattr(error, "error", None) or error.__cause__ or error.__context__
        return None

    def _check_raised(self) -> None:
        raised, self._raised = self._raised, {}
        for each in raised.values():
            untold = [] if each.logged else ["in the log"]
            untold += [] if each.reported else ["in the loop's exception handler"]
            if untold:
                self.fail(
                    "faults-are-told", f"{each.where} raised {each.error!r}, which is not {' and not '.join(untold)}"
                )

    # The course of a run

    async def _main(self) -> None:
        self._violated = self.loop.create_future()
        before = leaks.in_loop() | leaks.in_process()
        course = asyncio.create_task(self._course(), name="simulation")
        await asyncio.wait({course, self._violated}, return_when=asyncio.FIRST_COMPLETED)
        if self._violation is not None:
            await self._abandon()
            return
        await course
        self._violated.cancel()
        del course
        if left := await leaks.left_over(before):
            self._violate("nothing-left", leaks.describe(left))

    async def _abandon(self) -> None:
        """End everything by force: after a violation it is unknown what still works."""
        loop: Any = self.loop
        for _ in range(10):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            for transport in tuple(loop._transports.values()):
                transport.abort()
            await asyncio.sleep(0)
        for session in self._sessions:
            await close_session(session)

    async def _course(self) -> None:
        setting = self.setting
        self.server = misbehaving(setting.server)(authenticate=self._authenticate)
        await self.server.start()
        self.users = [User(self, number, self.server) for number in range(1, setting.clients + 1)]
        for user in self.users:
            user.witness.is_server_slow = lambda: self.verdict == "slow"
        witnesses: dict[ConnectionDriver, Witness] = {user.witness.driver: user.witness for user in self.users}

        def timer_set(timer: asyncio.TimerHandle, args: tuple[Any, ...]) -> None:
            witness = witnesses.get(owner) if (owner := machines_timer(args)) is not None else None
            if witness is not None:
                witness.timer_set(timer)

        self.loop.on_timer = timer_set
        self.loop.on_busy = self._check_busy
        self.loop.on_step = self._check_step
        self.loop.on_quiet = self._check_quiet
        with watching_dials(witnesses):
            try:
                await self._episodes()
            finally:
                self.loop.on_step = self.loop.on_quiet = lambda: None
        self.report.hours = self.loop.time() / 3600

    async def _episodes(self) -> None:
        setting = self.setting
        until = setting.hours * 3600
        self._episode = 0 if setting.episode is None else setting.episode
        joins = Random(f"{setting.seed}: begins").random() < 0.7
        for user in self.users:
            user.start()
            if joins:
                user.join_all()
        while True:
            random = Random(f"{setting.seed}: storm {self._episode}")
            await self._storm(plan(random))
            is_last = setting.episode is not None or self.loop.time() >= until
            absent = [user for user in self.users if not is_last and random.random() < 0.15]
            await self._heal(absent)
            if is_last:
                break
            await self._calm(random, until)
            self._episode += 1
        self._check_edits()
        await self._end()

    async def _storm(self, steps: Sequence[StormStep]) -> None:
        self.report.episodes += 1
        for user in self.users:
            user.disperse()
        began = self.loop.time()
        for step in steps:
            if self.setting.only is not None and step.index not in self.setting.only:
                continue
            await self._until(began + step.at)
            kind = KINDS[step.kind]
            self.note("nemesis", f"step {step.index} of storm {self._episode}: {kind.name}")
            (self.report.faults if step.kind in FAULTS else self.report.calls)[kind.name] += 1
            kind.do(self, Random(f"{self.setting.seed}: storm {self._episode}, step {step.index}"))

    async def _heal(self, absent: Sequence[User]) -> None:
        """Make the network good, and check that everything settles in time."""
        self.note("nemesis", "the network becomes good")
        for timer, undo in tuple(self._undoing.items()):
            timer.cancel()
            undo()
        self._undoing.clear()
        self.server.behave()
        for user in self.users:
            user.behave()
        self.look()
        while self._jobs:
            await asyncio.wait(set(self._jobs))
        if self.needs_rejoin or self.has_refused:
            for user in self.users:
                user.link.cut()
            self.needs_rejoin = self.has_refused = False
        present = [user for user in self.users if user not in absent]
        for user in absent:
            user.close()
        for user in present:
            user.come_back(self.needs_edits)  # what was lost on its way shows with what comes after it
        self.needs_edits = False
        await self._settle(present)

    async def _settle(self, users: Sequence[User]) -> None:
        bound = max((user.bound() for user in users), default=0.0)
        patience = dict.fromkeys(users, MAX_REPEATS)
        began, good_since = self.loop.time(), None
        while good_since is None or self.loop.time() < good_since + 2.0:
            await asyncio.sleep(0.5)
            for user in users:
                patience[user] -= patience[user] > 0 and user.asks_again()
            wrong = self._is_wrong(users)
            if wrong is None:
                good_since = good_since or self.loop.time()
                continue
            good_since = None
            if self.loop.time() - began > bound:
                self.fail(wrong[0], f"after {bound:g} s of a good network: {wrong[1]}")
        await self._check_operations(users)

    def _is_wrong(self, users: Sequence[User]) -> tuple[str, str] | None:
        """The invariant that these users do not meet yet, and how."""
        if not all(user.is_settled() for user in users):
            state = ", ".join(f"{user.name} {user.client.state}, {list(user.client.rooms)}" for user in users)
            return "settles-in-time", state
        differing = [shared.id for index, shared in DOCUMENTS if self._differs(index, users)]
        if self.server.backlog:
            return "settles-in-time", f"{self.server.backlog} bytes have not left the server"
        if differing:
            return "documents-converge", f"{', '.join(differing)} not the same at all of them, and the server"
        return None

    async def _check_operations(self, users: Sequence[User]) -> None:
        """All is well: every operation ends, and the server has no other connections."""
        for user in users:
            for index in range(len(ROOMS)):
                user.synced(index)
            user.wait_connected()
            user.ping(5.0)
        await asyncio.sleep(2.0)
        waiting = {operation.task for user in users for operation in user.witness.operations}
        if waiting:  # a room in doubt compares versions, but not at once (D-RESYNC)
            await asyncio.wait(waiting, timeout=self.setting.room_fsm.rejoin_interval)
        for user in users:
            for operation in tuple(user.witness.operations):
                self.fail("operations-end", f"{user.name}: {operation.name} still waits, though all is well")
        if self.server.connections != len(users):
            what = f"{self.server.connections} connections of {len(users)} clients"
            self.fail("let-go-in-time", f"the server has {what}")

    async def _calm(self, random: Random, until: float) -> None:
        ends = min(self.loop.time() + random.uniform(*CALM), max(until, self.loop.time() + 60))
        self.note("nemesis", "calm")
        for user in self.users:
            user.witness.is_calm = True
        while self.loop.time() < ends - 1:
            await self._until(min(self.loop.time() + random.uniform(60, 1500), ends))
            user = self.a_user(random)
            user.edit(random.randrange(len(ROOMS)))
            if user.is_settled():
                user.ping(5.0)
            if random.random() < 0.3:
                self.loop.stall(random.uniform(0.1, 300))
            self.report.calls["edit"] += 1
        for user in self.users:
            user.witness.is_calm = False

    def _differs(self, index: int, users: Sequence[User]) -> bool:
        versions = [user.document(index).oplog_vv for user in users]
        versions.append(self.server.document(ROOMS[index].id).oplog_vv)
        first = versions[0]
        return any(not (each.includes_vv(first) and first.includes_vv(each)) for each in versions[1:])

    def lacking(self, user: User, index: int) -> str | None:
        """What the server lacks of a user's document, in words; None if it has all, or has been made to forget."""
        shared = ROOMS[index]
        has_room = self.server.has_room(shared.id, shared.crdt)
        if shared.document is None or not has_room or self.needs_rejoin:
            return None
        document = user.document(index)
        theirs, ours = self.server.document(shared.id).oplog_vv, document.oplog_vv
        return None if theirs.includes_vv(ours) else f"the server has not all of it: {theirs} of {ours}"

    def _check_edits(self) -> None:
        for index, shared in DOCUMENTS:
            assert shared.document is not None
            keys = self.edits[shared.document]
            documents = {user.name: user.document(index) for user in self.users}
            documents["the server"] = self.server.document(shared.id)
            values: dict[str, Any] = {name: document.get_deep_value() for name, document in documents.items()}
            for name, value in values.items():
                lost = set(keys) - set(value.get("edits", {}))
                if lost:
                    self.fail("no-edit-lost", f"{name} lacks {len(lost)} edits of {shared.id}: {min(lost)}, …")
                if value != values["the server"]:
                    self.fail("documents-converge", f"{shared.id} at {name} has the same version, other content")
            self.note("world", f"{shared.id}: {len(keys)} edits, text {values['the server'].get('text')!r}")
            self.report.seen["edits"] += len(keys)

    async def _end(self) -> None:
        for user in self.users:
            user.check_recording()
            user.close()
        await asyncio.sleep(10)
        for user in self.users:
            if user.link.ends or user.witness.driver.teardown.tasks or user.witness.operations:
                self.fail("nothing-left", f"{user.name} is closed, and left {len(user.link.ends)} connections")
            user.disperse()
            for index in range(len(ROOMS)):
                user.leave(index)
        if self.server.connections:
            self.fail(
                "nothing-left", f"all clients are closed, and the server has {self.server.connections} connections"
            )
        await self.server.stop()
        await asyncio.sleep(1)

    # Checks

    def _check_step(self) -> None:
        self.report.checks += 1
        for user in self.users:
            user.witness.check_step()

    def _check_busy(self) -> None:
        self.fail("time-goes-by", f"{MAX_PASSES} passes of the event loop, and no time went by")

    def _check_quiet(self) -> None:
        if self._violation is None:
            self.report.checks += 1
            self.look()
            if self._raised:
                self._check_raised()
            for user in self.users:
                user.witness.check_quiet()
                user.check_synced()

    def look(self) -> None:
        """Note which clients can receive nothing from the server at present."""
        frozen = self._frozen_since is not None
        for user in self.users:
            if not (frozen or user.link.blocked):
                user.witness.check_half_open()
                user.witness.mute_since = None
            elif user.witness.mute_since is None:
                user.witness.mute_since = self.loop.time()

    # For the nemesis

    def a_user(self, random: Random) -> User:
        return random.choice(self.users)

    def a_room(self, random: Random) -> tuple[CrdtType, str]:
        shared = random.choice(ROOMS)
        return shared.crdt, shared.id

    def undo(self, seconds: float, what: Callable[[], None]) -> None:
        """Do it after so many seconds, or when the network becomes good."""

        def undo() -> None:
            del self._undoing[timer]
            what()

        timer = self.loop.call_later(seconds, undo)
        self._undoing[timer] = what

    def spawn(self, job: Coroutine[Any, Any, object]) -> None:
        """Run it; the network does not become good before it has ended."""
        task = self.loop.create_task(job)
        self._jobs[task] = None
        task.add_done_callback(lambda task: self._jobs.pop(task, None))

    def send(self, message: Message) -> None:
        """Have the server send a message to a room."""
        self.note("nemesis", f"{type(message).__name__} to {message.crdt} {message.room_id}")
        self.spawn(self.server.send(message.room_id, message.crdt, message))

    def stop_server(self, code: int, reason: str, seconds: float) -> None:
        """Stop it, and start it again after so many seconds."""
        self.note("nemesis", f"the server stops with {code} {reason!r}")
        self.spawn(self._restart(code, reason, seconds))

    async def _restart(self, code: int, reason: str, seconds: float) -> None:
        async with self._serving:
            await self.server.stop(code, reason)
            self._frozen_since = None
            back = asyncio.Event()
            self.undo(seconds, back.set)
            await back.wait()
            await self.server.start()

    def close_all(self, code: int, reason: str) -> None:
        """Have the server close all connections."""
        self.note("nemesis", f"the server closes all with {code} {reason!r}")

        async def close() -> None:
            with suppress(RuntimeError):  # it is frozen
                await self.server.close_all(code, reason)

        self.spawn(close())

    def freeze(self, seconds: float) -> None:
        """Freeze the server for so long."""
        self.server.freeze()
        self._frozen_since = self.loop.time()
        self.look()

        def thaw() -> None:
            self.server.thaw()
            self._frozen_since = None

        self.undo(seconds, thaw)

    def release_acks(self) -> None:
        self.server.hold_acks = False
        self.server.release_acks()

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(at - self.loop.time(), 0))

    async def _authenticate(self, room_id: str, crdt: CrdtType, auth: bytes) -> Permission | None:
        if self.verdict is Sabotage:
            raise self.sabotage("authenticate", is_quiet=True)
        for _ in range(SLOW):
            if self.verdict != "slow":
                break
            await asyncio.sleep(1)  # in small steps: the connection handles nothing else meanwhile
        return "read" if self.verdict == "read" else None if self.verdict is None else "write"


# Everything that is not a function of the seed, made so


@contextmanager
def _controlled(seed: int) -> Iterator[None]:
    """Sockets in memory, and no randomness but the seed's: aiohttp makes its keys and masks from these numbers."""
    random = Random(f"{seed}: aiohttp")
    mask = SimpleNamespace(getrandbits=lambda _: 0x5EED)
    with (
        virtual_time.in_memory_connections(),
        mock.patch.object(aiohttp.client, "os", SimpleNamespace(urandom=random.randbytes)),
        mock.patch.dict(WebSocketWriter.__init__.__kwdefaults__, random=mask),
    ):
        yield


@contextmanager
def _collecting_sessions(sessions: list[aiohttp.ClientSession]) -> Iterator[None]:
    def collected(*args: Any) -> aiohttp.ClientSession:
        sessions[:] = [each for each in sessions if not each.closed]
        sessions.append(make_session(*args))
        return sessions[-1]

    with mock.patch("reconnect_fsm._asyncio.connection_driver.make_session", collected):
        yield


@contextmanager
def _complaints(complain: Callable[[str], None], logged: Callable[[logging.LogRecord], bool]) -> Iterator[list[str]]:
    """Pass on what is logged as an error, unless it was meant to happen, and collect warnings."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_meant = logged(record)
            if record.levelno >= logging.ERROR and not is_meant:
                error = record.exc_info[1] if record.exc_info else None
                complain(f"{record.name}: {record.getMessage()}: {error!r}")

    handler = Handler()
    loggers = [logging.getLogger(name) for name in ("reconnect_fsm", "aiohttp", "asyncio")]
    kept = [(logger.propagate, logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.disabled = False, False
        logger.setLevel(logging.DEBUG if logger.name == "reconnect_fsm" else logging.ERROR)
        logger.addHandler(handler)
    warned: list[str] = []
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            mock.patch.object(sys, "unraisablehook", lambda told: warned.append(f"{told.err_msg}: {told.exc_value!r}")),
        ):
            warnings.simplefilter("always")
            yield warned
            gc.collect()  # what was dropped unclosed warns now
            warned += [f"{each.category.__name__}: {each.message}" for each in caught]
    finally:
        for logger, (propagate, level, disabled) in zip(loggers, kept, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.disabled = propagate, disabled
            logger.setLevel(level)
