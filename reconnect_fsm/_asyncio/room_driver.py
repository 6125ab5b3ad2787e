"""The drivers of the rooms: each takes the events of one `RoomFSM` and runs its effects; `Rooms` is all of a client.

Like the connection's driver they decide nothing: messages, timers and calls become events of a room's machine, and the
effects that it asks for are run here. A room costs its driver, its machine and its handle, and a joined one
its session: no task, no timer and no future, unless a caller waits for it or its credentials come from a coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from reconnect_fsm._asyncio.credentials import ask, names_of, wait_for_answer
from reconnect_fsm._asyncio.dispatcher import Dispatcher, RunsEffects, runs
from reconnect_fsm._asyncio.join_limiter import Admission, AnswersDue
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm._asyncio.room_session import IncomingFragments, RoomSession
from reconnect_fsm._asyncio.room_watch import RoomWatch, evaluate
from reconnect_fsm._asyncio.slots import EMPTY, Slot
from reconnect_fsm._asyncio.timers import Timer, TimerQueue
from reconnect_fsm._asyncio.user_code import UserCodeFailed, call_user, notify_user
from reconnect_fsm._redaction import READ, Redaction
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.effects import (
    AbandonRequest,
    DiscardUnsent,
    Effect,
    EndSession,
    FailWaiters,
    NotifyError,
    NotifyRooms,
    NotifyStatus,
    RequestJoin,
    SendLeave,
    StartTimer,
    StopTimer,
    Synchronise,
    Untrack,
    VersionChoice,
)
from reconnect_fsm.errors import (
    ClientStopped,
    JoinRefused,
    NotConnected,
    ProtocolError,
    ReconnectError,
    Unauthorized,
    UpdatesRefused,
    copy_error,
)
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
    MAX_MESSAGE_SIZE,
    CrdtType,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinErrorCode,
    MessageType,
    UpdateStatusCode,
    room_header,
)
from reconnect_fsm.loro_protocol.encoding import (
    Body,
    find_header,
    is_long,
    read_ack,
    read_body,
    read_doc_update,
    read_doc_update_in_steps,
    read_header,
    write_join_request,
    write_leave,
)
from reconnect_fsm.machine import Event
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import RoomStatus, StatusChange

if TYPE_CHECKING:
    from random import Random

__all__ = ["Auth", "ConnectionOfRooms", "Link", "RoomDriver", "RoomOptions", "Rooms"]

logger = logging.getLogger("reconnect_fsm")

Auth: TypeAlias = bytes | Callable[[], bytes | Awaitable[bytes]]

DOC_UPDATE, ACK = MessageType.DOC_UPDATE, MessageType.ACK  # looked up once: on Python 3.11 it takes 0.2 µs each time
JOIN_RESPONSE_OK = MessageType.JOIN_RESPONSE_OK
ANSWERS = (JOIN_RESPONSE_OK, MessageType.JOIN_ERROR)  # to a JoinRequest
CURRENT = VersionChoice.CURRENT
QUEUED_A_STEP = 64  # rooms that queue up for their turn in one step
MIN_PIECE = 16 * 1024  # D-TOOBIG: bytes of a message that is sent; no server takes less
MAX_FRAME_OVERHEAD = 160  # bytes of a frame besides the updates in it: 128 of them are the room id
MAX_UPDATE_SIZE = 64 * 1024 * 1024  # bytes of one update, in either direction
CHARACTERS_A_STEP = 64  # of a server's words that are redacted: at worst 1.5 µs each
MAX_READ_AT_ONCE = 2048  # bytes of a frame that is read in one step
MAX_COMPLAINTS = 10  # warnings a connection

OVER = tuple(state.name for state in RoomFSM.FINAL)

CLIENT_EVENTS: Final[Mapping[str, tuple[Event[...], Callable[[NotifyRooms], tuple[Any, ...]]]]] = {
    "connection_lost": (RoomFSM.connection_lost, lambda told: (told.why, told.cause)),
    "client_stopped": (RoomFSM.client_stopped, lambda told: (told.why, told.cause, told.stop)),
    "client_started": (RoomFSM.client_started, lambda told: (told.why,)),
    "connection_opened": (RoomFSM.connection_opened, lambda told: (told.why,)),
}
"""What a client's machine may notify all rooms of (`NotifyRooms`), and what is fired in each room then."""


class Link(Protocol):
    """The connection, as far as rooms send on it. Once it is closed, what is sent is dropped."""

    @property
    def backlog(self) -> int:
        """How many frames, or groups of frames, wait to be written."""
        ...

    def send(self, data: bytes | list[bytes]) -> None:
        """Write a frame, or a list of them which may be cleared until then."""
        ...

    async def written(self) -> None:
        """Wait until all that was sent so far is written; raises NotConnected if it cannot be."""
        ...


class ConnectionOfRooms(Protocol):
    """The driver of the connection, as far as rooms use it."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Fires the events of all machines of the client."""
        ...

    @property
    def redaction(self) -> Redaction:
        """Knows the client's secrets."""
        ...

    @property
    def random(self) -> Random:
        """The client's source of randomness."""
        ...

    def own_task(self, task: asyncio.Task[Any]) -> None:
        """Take charge of a cancelled task until it ends."""
        ...

    def stopped_error(self) -> ClientStopped | None:
        """Why the client is stopped (D-STOP); None if it is not."""
        ...

    def check_loop(self) -> None:
        """Raise RuntimeError in another thread or event loop than the client's (D-THREAD)."""
        ...


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """What `Client` takes for its rooms."""

    max_concurrent_joins: int | None = None
    """How many rooms may be asked for and not answered at the same time; None: no limit."""
    max_piece: int = MAX_MESSAGE_SIZE
    """The most bytes of a message that is sent, at first (D-TOOBIG)."""
    max_update_size: int = MAX_UPDATE_SIZE
    """The most bytes of one update, in either direction."""


class RoomDriver(RunsEffects):
    """Drives one room: a subject of the dispatcher."""

    __slots__ = (
        "_credentials",
        "_detach",
        "_listeners",
        "_timer",
        "adaptor",
        "auth",
        "crdt_type",
        "extra",
        "fsm",
        "handle",
        "has_unsent",
        "header",
        "is_tracked",
        "joined_after",
        "name",
        "priority",
        "rooms",
        "sent_auth",
        "session",
        "was_announced",
        "watch",
    )

    def __init__(self, rooms: Rooms, name: str, header: bytes, adaptor: Adaptor, fsm: RoomFSM) -> None:
        self.rooms = rooms
        """All rooms of the client."""
        self.name = name
        """The room's id."""
        self.header = header
        """What each frame of the room begins with."""
        self.adaptor = adaptor
        """What binds the document."""
        self.crdt_type = CrdtType(adaptor.crdt_type)
        """The kind of document, as it was when the room was joined."""
        self.fsm = fsm
        """The machine."""
        self.handle: Room | None = Room(self)
        """What the program holds; None once the room is over, so that nothing refers to itself then."""
        self.session: RoomSession | None = None
        """The present session; None while the room is not joined."""
        self.watch: RoomWatch | None = None
        """The waiters, and the listeners to more than the status; None if there are none."""
        self.auth: Auth = b""
        """What the server asks for, or the function that knows."""
        self.sent_auth = b""
        """The auth bytes that the server was given last."""
        self.priority = 0
        """The higher, the sooner it is asked for."""
        self.joined_after = 0
        """Of `Admission`."""
        self.is_tracked = True
        """Whether it is one of the client's rooms: not left, and not in error."""
        self.extra = b""
        """What the server's last answer to a join carried besides."""
        self.has_unsent = False
        """The adaptor holds more than it has passed on (D-ANYWAY)."""
        self.was_announced = False
        """By ``send(None)``, of an adaptor that has no `unsent`: then `missing_from` brings it."""
        self._listeners: Listeners[StatusChange[RoomStatus]] | None = None
        self._detach: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._credentials: Slot[asyncio.Task[None] | BaseException] = EMPTY  # that are asked for, or why there are none

    def __repr__(self) -> str:
        return f"<RoomDriver {self.name!r} {self.fsm.state}>"

    @property
    def awaits_turn(self) -> bool:
        """Whether it waits until it may ask to join."""
        return self.rooms.admission.is_waiting(self)

    @property
    def has_timer(self) -> bool:
        """Whether it waits for an answer, or until it may ask again."""
        return self._timer is not None

    @property
    def timers(self) -> int:
        """How many timers it has, with its session's."""
        return self.has_timer + (0 if self.session is None else self.session.timers)

    # As a subject of the dispatcher

    def run_effect(self, effect: Effect) -> None:
        """Run one effect of the machine."""
        run = RUNNERS.get(type(effect))
        if run is None:
            logger.error("%s is no effect that rooms know how to run", type(effect).__name__)
        else:
            run(self, effect)

    def event_done(self, event: str, old_state: str) -> None:
        """An event of the machine is complete: then it may be the turn of another room."""
        if self.watch is not None:
            self.wake_waiters()
        if self.rooms.admission.waiting:
            self.rooms.admit_next()

    # What the handle asks for

    @property
    def is_synced(self) -> bool:
        """Whether both sides hold the same, as far as the adaptor can tell."""
        try:
            return self._holds_all()
        except UserCodeFailed:
            return False

    def on_status(self, callback: Callable[[StatusChange[RoomStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of the status; return one that ends it."""
        if self._listeners is None:
            self._listeners = Listeners("Room.on_status")
        return self._listeners.add(callback)

    def on_synced(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Call the function on every change of `is_synced`; return one that ends it."""
        watch = self._watched()
        if not watch.on_synced:
            watch.was_synced = self.is_synced
        return watch.on_synced.add(callback)

    def on_error(self, callback: Callable[[ReconnectError], object]) -> Callable[[], None]:
        """Call the function with each `NotifyError`; return one that ends it."""
        return self._watched().on_error.add(callback)

    async def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Wait until the predicate is true. Raises why the room or the client has ended."""
        self.check()
        if evaluate(predicate):
            return
        watch = self._watched()
        try:
            await watch.wait(predicate)
        finally:
            if not watch.is_needed:
                self.watch = None  # most messages then need not ask who waits

    async def wait_until_synced(self) -> None:
        """Commit what is not committed, then wait until it is synced, or refused for good."""
        self.check()
        self._commit()
        await self._wait_until_lasting(self._is_synced_or_refused)

    async def resync(self) -> None:
        """Compare versions now, then wait as `wait_until_synced` does."""
        self.check()
        self._commit()
        joins = self.fsm.joins
        self.rooms.dispatcher.post_event(self, RoomFSM.resync_requested)
        await self._wait_until_lasting(lambda: self.fsm.joins > joins and self._is_synced_or_refused())

    def leave(self) -> None:
        """Untracked at once, so that a join that follows makes a new room, whatever waits in the queue."""
        self.rooms.check_loop()
        self.rooms.forget(self)
        self.rooms.dispatcher.post_event(self, RoomFSM.leave_requested)

    def check(self) -> None:
        """Raise what an operation raises at once that would wait for the room: D-THREAD, D-STOP."""
        self.rooms.check_loop()
        if self.fsm.state in OVER:
            raise copy_error(self.fsm.last_error)
        if (stopped := self.rooms.stopped_error()) is not None:
            raise stopped

    async def _wait_until_lasting(self, predicate: Callable[[], bool]) -> None:
        """Wait until it is true, and still is when the waiting task gets its turn."""
        await self.wait_until(predicate)
        while not evaluate(predicate):
            await self.wait_until(predicate)

    def _holds_all(self) -> bool:
        return self.session is not None and self.session.holds_all()

    def _is_synced_or_refused(self) -> bool:
        fsm = self.fsm
        if fsm.refused_status is not None and fsm.status is RoomStatus.JOINED and fsm.state != RoomFSM.resyncing.name:
            raise UpdatesRefused(fsm.refused_status)
        return self._holds_all()

    def _commit(self) -> None:
        commit = getattr(self.adaptor, "commit", None)
        if commit is not None:
            with contextlib.suppress(UserCodeFailed):  # what it could not commit is still uncommitted
                self.call_adaptor("told to commit", commit)

    def _watched(self) -> RoomWatch:
        if self.watch is None:
            self.watch = RoomWatch()
        return self.watch

    # Waiters and listeners

    def wake_waiters(self) -> None:
        """Wake those for whom something has come true, once all is done that this event leads to."""
        if self.watch is not None and self.watch.awaits_change:
            self.rooms.dispatcher.post(self.wake_now)

    def wake_now(self) -> None:
        """Wake those for whom something is true now."""
        if (watch := self.watch) is None:
            return
        watch.wake()
        if watch.on_synced and (synced := self.is_synced) is not watch.was_synced:
            watch.was_synced = synced
            self.rooms.later(watch.on_synced.notify, synced)

    @runs(FailWaiters)
    def _fail_waiters(self, effect: FailWaiters) -> None:
        if self.watch is not None:
            self.watch.fail(effect.error)

    @runs(NotifyStatus)
    def _notify_status(self, effect: NotifyStatus) -> None:
        change = effect.change
        if change.new is RoomStatus.ERROR:
            self.rooms.warn_limited("room %r: %s → error: %s", self.name, change.old, change.reason)
        else:
            logger.debug("room %r: %s → %s: %s", self.name, change.old, change.new, change.reason)
        if self._listeners is not None:
            self.rooms.dispatcher.post(self._listeners.notify, change)

    @runs(NotifyError)
    def _notify_error(self, effect: NotifyError) -> None:
        if self.watch is not None and self.watch.on_error:
            self.rooms.later(self.watch.on_error.notify, effect.error)
        elif isinstance(effect.error, UpdatesRefused):  # of a room's end the log has heard
            self.rooms.warn_limited("room %r: %s", self.name, effect.error)

    # The adaptor

    def attach(self) -> None:
        """Hear of local updates from now on."""
        self._detach = self.adaptor.attach(self.on_local_update)

    def on_local_update(self, update: bytes | None) -> None:
        """An edit was made here, in whatever thread; or, if None, there is more that the adaptor did not pass on."""
        self.rooms.dispatcher.post_from_any_thread(self._send_local_update, update)

    def _send_local_update(self, update: bytes | None) -> None:
        """Without a session it is in the document, and the next comparison of versions finds it there."""
        if update is None:
            self.was_announced = not hasattr(self.adaptor, "unsent")  # one of the user's, round one of ours
            self.note_unsent()
        elif self.session is not None:
            self.session.send_edit(update)

    def note_unsent(self) -> None:
        """The adaptor holds more than it has passed on: ask it in the loop's next turn."""
        if not self.has_unsent:
            self.has_unsent = True
            if self.session is not None:
                self.session.send_unsent_later()

    def call_adaptor(self, doing: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call something of the adaptor's (D-GUARD). Raises UserCodeFailed."""
        return call_user(("the adaptor of room {!r}, {},", self.name, doing), function, *args)

    def adaptor_failed(self, doing: str, error: BaseException) -> None:
        """An adaptor is the user's own code: it cannot take the connection or other rooms down with it."""
        what = f"the adaptor raised {type(error).__name__} while {doing}"
        self.rooms.dispatcher.post_event(self, RoomFSM.faulted, what)

    def tell_refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """Tell the adaptor which updates of ours were refused (D-ACK)."""
        what = f"the adaptor of room {self.name!r}, told of a refusal,"
        notify_user(what, self.adaptor.refused, updates, status)

    # Waiting for a turn, or for an answer

    @runs(StartTimer)
    def _start_timer(self, effect: StartTimer) -> None:
        self._stop_timer()
        rooms = self.rooms
        self._timer = rooms.timers.call_at(rooms.loop, rooms.dispatcher.now + effect.seconds, self._timer_fired)

    @runs(StopTimer)
    def _stop_timer(self, _: StopTimer | None = None) -> None:
        if self._timer is not None:
            self.rooms.timers.cancel(self._timer)
            self._timer = None

    def _timer_fired(self, timer: Timer) -> None:
        admission = self.rooms.admission
        if admission.is_requested(self):  # the server had its time
            self._timer = None
            self.rooms.dispatcher.fire(self, RoomFSM.timer_fired)
        elif admission.opened is not None:  # it may ask again, when it is its turn; else it will hear of the loss next
            admission.enqueue(self, timer)
            self.rooms.admit_next()

    def on_admitted(self, why: str, timer: Timer | None) -> None:
        """It is its turn: there is a connection, or its time to wait is over, if it was asked for before."""
        if timer is None:
            self.rooms.dispatcher.fire(self, RoomFSM.connection_opened, why)
        elif not timer.is_cancelled:  # while it waited for its turn
            self._timer = None
            self.rooms.dispatcher.fire(self, RoomFSM.timer_fired)

    # Asking

    @runs(RequestJoin)
    def _request_join(self, effect: RequestJoin) -> None:
        """D-INTENT: auth and version are taken now, not when join was called."""
        self._abandon_request()
        self.rooms.admission.begin_request(self)
        if isinstance(self.auth, bytes):
            self._send_join_request(effect, self.auth)
        else:
            self._ask_for_credentials(effect, self.auth)

    def _ask_for_credentials(self, request: RequestJoin, function: Callable[[], bytes | Awaitable[bytes]]) -> None:
        """Call the auth function. What comes of it is posted: an effect never fires an event itself."""
        slot = self._credentials = Slot()
        given: Any
        try:
            given = ask(f"the auth function of room {self.name!r}", function)
        except UserCodeFailed as failed:
            self.rooms.dispatcher.post(slot.run, self._on_no_credentials, slot.fill(failed.error))
            return
        if inspect.isawaitable(given):
            loop = self.rooms.loop
            task = loop.create_task(self._await_credentials(slot, request, given), name="reconnect_fsm credentials")
            slot.fill(task)
            if inspect.iscoroutine(given):  # one that was cancelled before its first step would warn
                task.add_done_callback(lambda _: given.close())
        elif isinstance(given, Unauthorized):
            self.rooms.dispatcher.post(slot.run, self._on_no_credentials, slot.fill(given))
        else:
            self._send_join_request(request, given)

    async def _await_credentials(self, slot: Slot[Any], request: RequestJoin, given: Awaitable[bytes]) -> None:
        """Returns nothing: asyncio's debug log shows the results of tasks, and these are secrets."""
        post = self.rooms.dispatcher.post
        try:
            auth = await wait_for_answer(f"the auth function of room {self.name!r}", given)
        except UserCodeFailed as failed:
            post(slot.run, self._on_no_credentials, failed.error)
            return
        if isinstance(auth, Unauthorized):
            post(slot.run, self._on_no_credentials, auth)
        else:
            post(slot.run, self._on_credentials, request, auth)

    def _on_credentials(self, request: RequestJoin, auth: object) -> None:
        self._credentials.empty()
        self._send_join_request(request, auth)

    def _on_no_credentials(self, error: BaseException) -> None:
        self._credentials.empty()
        what = f"the auth function raised {names_of(error)}"
        self.rooms.dispatcher.fire(self, RoomFSM.credentials_failed, what, isinstance(error, Unauthorized))

    @runs(AbandonRequest)
    def _abandon_request(self, _: AbandonRequest | None = None) -> None:
        self.rooms.admission.end_request(self)
        if self._credentials is not EMPTY:
            task = self._credentials.empty()
            self._credentials = EMPTY
            if isinstance(task, asyncio.Task):
                task.cancel()
                self.rooms.own_task(task)

    def _send_join_request(self, request: RequestJoin, auth: object) -> None:
        rooms = self.rooms
        if not isinstance(auth, bytes):
            what = f"the auth function returned {type(auth).__name__} instead of bytes"
            logger.error("room %r: %s", self.name, what)
            rooms.dispatcher.post_event(self, RoomFSM.faulted, what)
            return
        try:
            version = self._version_for(request)
        except UserCodeFailed as failed:
            self.adaptor_failed("asked for its version", failed.error)
            return
        if version is None:
            refusal = JoinRefused(JoinErrorCode.VERSION_UNKNOWN, "the adaptor has no other version")
            rooms.dispatcher.post_event(self, RoomFSM.join_refused, refusal, rooms.now())
            return
        try:
            frame = write_join_request(self.header, auth, version)
        except ProtocolError as error:  # auth and version are too much for one message, or the version is no bytes
            logger.error("room %r: it cannot be asked for: %s", self.name, error)
            rooms.dispatcher.post_event(self, RoomFSM.faulted, f"it cannot be asked for: {error}")
            return
        if auth:
            self.sent_auth = auth
            rooms.redaction.learn(auth, "room")
        rooms.answers.expect(self.header, self.is_tracked)
        rooms.send(frame)

    def _version_for(self, request: RequestJoin) -> bytes | None:
        doing = "asked for its version"
        version: bytes | None = b""
        if request.version is CURRENT:
            version = self.call_adaptor(doing, self.adaptor.version)
        elif request.version is VersionChoice.ALTERNATIVE:
            version = self.call_adaptor(doing, self.adaptor.alternative_version, request.server_version)
        return version

    # The session

    @runs(Synchronise)
    def _synchronise(self, effect: Synchronise) -> None:
        session = self.session
        if session is None:
            session = self.session = RoomSession(self)
        self.extra = effect.extra
        session.synchronise(effect.permission, effect.version)

    @runs(DiscardUnsent)
    def _discard_unsent(self, _: DiscardUnsent) -> None:
        if self.session is not None:
            self.session.discard_unwritten()

    @runs(EndSession)
    def _end_session(self, _: EndSession | None = None) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.end()

    @runs(SendLeave)
    def _send_leave(self, _: SendLeave) -> None:
        if self.session is not None:
            self.session.send_rest()
            self.session.take_back_presence()
        self.rooms.send(write_leave(self.header))

    @runs(Untrack)
    def _untrack(self, _: Untrack) -> None:
        self.rooms.forget(self)
        self._stop_timer()
        self._abandon_request()
        self._end_session()
        self.was_announced = False
        self.handle = None
        detach, self._detach = self._detach, None
        if detach is not None:
            notify_user(f"the adaptor of room {self.name!r}, on being detached,", detach)

    def forget_loop(self) -> None:
        """The event loop has ended, and with it the tasks, timers and waiters."""
        self._credentials.empty()
        self._credentials, self._timer = EMPTY, None
        if self.session is not None:
            self.session.forget_timers()
        if self.watch is not None:
            self.watch.forget()


# Functions, and not names that are looked up for each effect: ten effects a rejoin, 5 % of its time.
RUNNERS: Final[Mapping[type[Effect], Callable[[RoomDriver, Any], None]]] = {
    effect: getattr(RoomDriver, name) for effect, name in RoomDriver.runners.items()
}


class Rooms:
    """The tracked rooms of one client (REJOIN-1), and what they share."""

    def __init__(self, connection: ConnectionOfRooms, make_fsm: Callable[[], RoomFSM], options: RoomOptions) -> None:
        self.dispatcher = connection.dispatcher
        """Fires the events of all machines of the client."""
        self.redaction = connection.redaction
        """Knows the client's secrets."""
        self.own_task = connection.own_task
        """Takes charge of a cancelled task until it ends."""
        self.stopped_error = connection.stopped_error
        """Why the client is stopped, if it is (D-STOP)."""
        self.check_loop = connection.check_loop
        """Raises RuntimeError in another thread or event loop than the client's (D-THREAD)."""
        self.make_fsm = make_fsm
        """Makes the machine of a room."""
        self.timers = TimerQueue(self.dispatcher.post)
        """The timers of all rooms."""
        self.admission: Admission[RoomDriver] = Admission(options.max_concurrent_joins)
        """Whose turn it is to ask to join."""
        self.answers = AnswersDue()
        """Whose answers the join responses are."""
        self.fragmented: set[IncomingFragments] = set()
        """The batches of all rooms that have not come whole."""
        self.max_update_size = options.max_update_size
        """The most bytes of one update, in either direction."""
        self._random = connection.random
        self._tracked: dict[bytes, RoomDriver] = {}  # by what their frames begin with
        self._link: Link | None = None  # what the rooms know of; the client may have dropped it, or have another by now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._complaints = 0
        self._last_batch_id: int | None = None
        self._set_max_piece(options.max_piece)
        self.redaction.ask(lambda: (room.sent_auth for room in self._tracked.values()))

    def __iter__(self) -> Iterator[RoomDriver]:
        return iter(tuple(self._tracked.values()))

    def __len__(self) -> int:
        return len(self._tracked)

    @property
    def handles(self) -> tuple[Room, ...]:
        """The handles of the tracked rooms."""
        return tuple(room.handle for room in self._tracked.values() if room.handle is not None)

    # What the client asks for

    def join(
        self,
        room_id: str,
        adaptor: Adaptor,
        auth: Auth,
        priority: int,
        on_status: Callable[..., object] | None,
    ) -> Room:
        """The tracked room (D-DEDUPE), or a new one. Raises TypeError or ValueError for what cannot be joined."""
        self.check_loop()
        _check(room_id, adaptor, auth, priority)
        header = room_header(adaptor.crdt_type, room_id)
        room = self._tracked.get(header)
        is_new = room is None
        if room is None:
            room = RoomDriver(self, room_id, header, adaptor, self.make_fsm())
        elif room.adaptor is not adaptor:
            raise ValueError(
                f"room {room_id!r} is joined with another adaptor already: leave it first, or join with that one, "
                "which is room.adaptor"
            )
        room.auth, room.priority = auth or room.auth, priority or room.priority
        if on_status is not None:
            room.on_status(on_status)
        handle = room.handle
        assert handle is not None  # it is tracked
        if is_new:
            room.attach()
            self._tracked[header] = room
            self.dispatcher.post(self._join_requested, room)
        return handle

    def forget(self, room: RoomDriver) -> None:
        """Untrack the room; answers still to come for it are not for the next room of its name."""
        if room.is_tracked:
            room.is_tracked = False
            del self._tracked[room.header]
            self.answers.disown(room.header)

    def end_presence(self) -> None:
        """The program closes the client: take back what the others would see of it until it times out (D-PRESENCE)."""
        for room in self:
            if room.session is not None:
                room.session.take_back_presence()

    def too_big(self) -> None:
        """The other end closed the connection with 1009: if it was for what we sent, make it smaller (D-TOOBIG)."""
        if not any(room.session is not None and room.session.is_sending for room in self._tracked.values()):
            return
        if self.max_piece > MIN_PIECE:
            self._set_max_piece(max(self.max_piece // 2, MIN_PIECE))
            self.warn_limited("a message was too big for the server: from now on they have %d bytes", self.max_piece)
        else:
            self.warn_limited("a message of at most %d bytes was too big for the server", self.max_piece)

    def _set_max_piece(self, size: int) -> None:
        self.max_piece = size
        self.payload = min(FRAGMENT_SIZE, size - MAX_FRAME_OVERHEAD)  # the most bytes of updates in one message

    # What happens to the connection

    def notify(self, effect: NotifyRooms, link: Link | None) -> None:
        """Something happened to the connection, or to the client: every room hears of it, in slices (law 3).

        ``link`` is the connection if it was opened; of that the rooms hear by turns. What happens meanwhile waits for
        none of this, and each room hears of each thing once and in order.
        """
        number = self.admission.announce()
        self.dispatcher.schedule(
            self._notify_all(number, effect) if link is None else self._queue_all(number, effect.why, link)
        )

    def _begin_notifying(self, number: int, link: Link | None, opened: str | None) -> None:
        self.admission.begin(number, opened)
        self._link = link
        self.answers.clear()
        self._complaints = 0

    def _notify_all(self, number: int, effect: NotifyRooms) -> Iterator[None]:
        self._begin_notifying(number, None, None)
        event, arguments = CLIENT_EVENTS[effect.event]
        args = arguments(effect)
        for room in self:
            if self.admission.hears(room, number):
                self.dispatcher.fire(room, event, *args)  # pyright: ignore[reportArgumentType]
                yield

    def _queue_all(self, number: int, why: str, link: Link) -> Iterator[None]:
        self._begin_notifying(number, link, why)
        for place, room in enumerate(self):
            if not self.admission.missed_by(room, number):
                self.admission.enqueue(room)
            if place % QUEUED_A_STEP == QUEUED_A_STEP - 1:
                yield
        yield from self._admit()

    def _admit(self) -> Iterator[None]:
        """Let rooms ask, one after the other, until none waits for a turn or the limit is reached."""
        while (turn := self.admission.next_turn()) is not None:
            room, timer = turn
            assert self.admission.opened is not None  # without a connection no room waits for a turn
            room.on_admitted(self.admission.opened, timer)
            yield

    def admit_next(self) -> None:
        """It may be the turn of another room."""
        if self.admission.claim_turns():
            self.dispatcher.schedule(self._admit())

    def _join_requested(self, room: RoomDriver) -> None:
        self.admission.add(room)
        self.dispatcher.fire(room, RoomFSM.join_requested)

    # Messages

    def received(self, frame: bytes) -> Iterator[object] | None:
        """A frame came, on the present connection. Raises ProtocolError for one that cannot be read.

        Returns what is left to do for it, in steps.
        """
        header = find_header(frame)
        room, at = self._tracked.get(header), len(header)
        if room is None:  # it is not tracked, or its header is not written as we write it
            crdt, room_id, at = read_header(frame)
            header = room_header(crdt, room_id)
            room = self._tracked.get(header)
        code = frame[at]
        if code == DOC_UPDATE and len(frame) > MAX_READ_AT_ONCE and is_long(frame, at):
            return self._received_in_steps(header, frame, at)
        # First what comes most. Without a session, the comparison of versions at the join brings it.
        if room is not None and code == DOC_UPDATE:
            updates, batch_id = read_doc_update(frame, at + 1)
            return None if room.session is None else room.session.apply(updates, batch_id)
        if room is not None and code == ACK:
            batch_id, status = read_ack(frame, at + 1)
            if room.session is not None:
                room.session.acknowledged(batch_id, status)
            return None
        return self._received(header, room, code, read_body(frame, at))

    def _received_in_steps(self, header: bytes, frame: bytes, at: int) -> Iterator[object]:
        """A DocUpdate came that takes long to read, as it holds many updates."""
        try:
            updates, batch_id = yield from read_doc_update_in_steps(frame, at + 1)
        except ProtocolError as error:
            self.warn_limited("dropped a malformed message of %d bytes: %s", len(frame), error)
            return
        room = self._tracked.get(header)
        if room is not None and room.session is not None:
            yield from room.session.apply(updates, batch_id) or ()

    def _received(self, header: bytes, room: RoomDriver | None, code: int, body: Body) -> Iterator[object] | None:
        if code in ANSWERS and not self.answers.take(header):
            return None
        if room is None:
            logger.debug("dropped a %s for a room that is not tracked", MessageType(code).name)
            return None
        if code == JOIN_RESPONSE_OK:
            self.dispatcher.fire(room, RoomFSM.join_accepted, *body)
            return None
        match code:
            case MessageType.JOIN_ERROR:
                join_code, message, receiver_version, app_code = body
                words = None if app_code is None else self.redaction(app_code)
                refusal = JoinRefused(join_code, self.redaction(message), words)
                self.dispatcher.fire(room, RoomFSM.join_refused, refusal, self.now(), receiver_version or b"")
                return _steps_of_words(message, app_code or "")
            case MessageType.ROOM_ERROR:
                error_code, message = body
                refusal = JoinRefused(error_code, self.redaction(message), evicted=True)
                self.dispatcher.fire(room, RoomFSM.evicted, refusal, self.now())
                return _steps_of_words(message)
            case MessageType.DOC_UPDATE_FRAGMENT_HEADER if room.session is not None:
                return room.session.reassemble(DocUpdateFragmentHeader(room.crdt_type, room.name, *body))
            case MessageType.DOC_UPDATE_FRAGMENT if room.session is not None:
                return room.session.reassemble(DocUpdateFragment(room.crdt_type, room.name, *body))
            case MessageType.JOIN_REQUEST | MessageType.LEAVE:
                logger.debug("dropped a %s: only clients send those", MessageType(code).name)
            case _:
                pass  # fragments, and no session that they could belong to
        return None

    @property
    def backlog(self) -> int:
        """How many frames, or groups of frames, wait to be written."""
        return 0 if self._link is None else self._link.backlog

    def send(self, frames: bytes | list[bytes]) -> None:
        """Write a frame, or a list of them which may be cleared until then; without a connection nothing is sent."""
        if self._link is not None:
            self._link.send(frames)

    async def written(self) -> None:
        """Wait until all that was sent so far is written, if it can be."""
        link = self._link
        with contextlib.suppress(NotConnected):  # then the server noticed by itself
            if link is not None:
                await link.written()

    def new_batch_id(self) -> int:
        """Ids that no other client of the room uses at the same time; nothing more depends on them."""
        if self._last_batch_id is None:
            self._last_batch_id = self._random.getrandbits(64)
        self._last_batch_id = (self._last_batch_id + 1) % 2**64
        return self._last_batch_id

    def warn_limited(self, what: str, *args: object) -> None:
        """Log what is wrong with the server's messages; a flood of them must not flood the log.

        An argument that is a function is called if the line is really logged: redacting words takes long.
        """
        self._complaints += 1
        level = logging.WARNING if self._complaints <= MAX_COMPLAINTS else logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, what, *(each() if callable(each) else each for each in args))

    # The event loop

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this event loop."""
        self._loop = loop

    def outlive_loop(self) -> None:
        """The event loop ended without `close`, and with it all that lived in it: tasks, timers, waiters."""
        self._loop = self._link = None
        self.admission.forget_loop()
        self.timers.forget()
        for room in self._tracked.values():
            room.forget_loop()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The client's event loop."""
        assert self._loop is not None
        return self._loop

    def now(self) -> float:
        """The loop's time."""
        return self.loop.time()

    def call_at(self, when: float, job: Callable[..., None]) -> Timer:
        """Have ``job(timer)`` run at that time of the loop."""
        return self.timers.call_at(self.loop, when, job)

    def call_later(self, seconds: float, job: Callable[..., None]) -> Timer:
        """Have ``job(timer)`` run in so many seconds."""
        return self.timers.call_later(self.loop, seconds, job)

    def later(self, job: Callable[..., None], *args: Any) -> None:
        """Do it in the loop's next turn: a document that is being edited, in whose callback we are, is locked."""
        if self._loop is None or self._loop.is_closed():
            self.dispatcher.post(job, *args)
        else:
            self._loop.call_soon(self.dispatcher.post, job, *args)


def _steps_of_words(*words: str) -> Iterator[object]:
    """Steps that it has taken to redact the words: a flood of them must not stop the event loop (D-JUDGED)."""
    return iter(range(sum(min(len(each), READ) for each in words) // CHARACTERS_A_STEP))


_ADAPTORS: weakref.WeakSet[type] = weakref.WeakSet()  # known to be some: isinstance() takes longer than all of a join


def _check(room_id: object, adaptor: Adaptor, auth: object, priority: object) -> None:
    """What can be wrong about a join is said when it is called."""
    if not isinstance(room_id, str):
        raise TypeError(f"the room id must be a str, not {type(room_id).__name__}")
    if type(adaptor) not in _ADAPTORS and not isinstance(adaptor, Adaptor):  # a protocol: attribute by attribute
        wanted = [name for name in vars(Adaptor) if not name.startswith("_") and not hasattr(adaptor, name)]
        raise TypeError(
            f"{type(adaptor).__name__} is not an adaptor, it has no {', '.join(wanted)}; "
            "for a loro.LoroDoc, say LoroAdaptor(doc)"
        )
    if not isinstance(auth, bytes) and not callable(auth):
        raise TypeError(f"auth must be bytes, or a function that returns bytes, not {type(auth).__name__}")
    if not isinstance(priority, int):
        raise TypeError(f"priority must be an int, the higher the sooner, not {type(priority).__name__}")
    _ADAPTORS.add(type(adaptor))
