"""Rooms: the handles, the tracked set, and the driver of every `RoomFSM`.

Like the connection's driver it decides nothing: messages, timers and calls become facts for a room's machine, and the
effects it asks for are run here. A room costs one handle and one machine: no task, no timer, no future, unless somebody
waits for it or its credentials come from a coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, ParamSpec, Protocol, TypeAlias

from reconnect_fsm._asyncio.awaitables import LazyCoroutine
from reconnect_fsm._asyncio.credentials import ask, names_of, wait_for_answer
from reconnect_fsm._asyncio.dispatcher import Dispatcher, RunsEffects, runs
from reconnect_fsm._asyncio.join_limiter import JoinLimiter
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.timers import Timer, TimerQueue
from reconnect_fsm._asyncio.user_code import UserCodeFailed, call_user, notify_user, report
from reconnect_fsm._redaction import READ, Redaction
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.effects import (
    AbandonRequest,
    DiscardUnsent,
    Effect,
    EndSession,
    FailWaiters,
    NotifyError,
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
    MessageType,
    Permission,
    Reassembler,
    Refusal,
    RoomError,
    UpdateStatusCode,
    decode,
    decode_in_steps,
    encode,
    room_header,
    split,
)
from reconnect_fsm.loro_protocol.frames import (
    header_of,
    join_request,
    read_join_response_ok,
    read_ok,
    read_update,
    single_update,
)
from reconnect_fsm.machine import Event
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import Cause, RoomStatus, StatusChange, StopKind

__all__ = ["Auth", "Room", "Rooms", "fsm_of", "is_tracked"]

P = ParamSpec("P")

logger = logging.getLogger("reconnect_fsm")

Auth: TypeAlias = bytes | Callable[[], bytes | Awaitable[bytes]]

# D-ACK: what may wait for an Ack in one room before versions are compared instead, which supersedes it all.
MAX_UNACKED_UPDATES = 65_536
MAX_UNACKED_BYTES = 16 * 1024 * 1024

DOC_UPDATE, ACK, JOIN_RESPONSE_OK = MessageType.DOC_UPDATE, MessageType.ACK, MessageType.JOIN_RESPONSE_OK
CURRENT = VersionChoice.CURRENT
# What the server lacked goes out as it takes it: a large document neither stops the loop nor fills the memory.
THE_END: Final[Any] = object()
UPLOAD_AHEAD = 4 * 1024 * 1024  # bytes sent that have no Ack yet
QUEUED_A_STEP = 64  # rooms that queue up for their turn in one step
MIN_PIECE = 16 * 1024  # D-TOOBIG: bytes of a message that is sent; no server takes less
FRAME_AROUND = 160  # bytes of a frame besides the updates in it, at most: 128 of them are the room id
MAX_UPDATE_SIZE = 64 * 1024 * 1024  # bytes of one update, in either direction
PIECES_AT_LEAVE = 64  # that are still sent when a room is left; there may be no end of them
MIN_RENEWAL = 0.1  # seconds
APPLIED_AT_ONCE = 32  # updates of one batch
APPLIED_BYTES = 16 * 1024
UPDATES_A_STEP, BYTES_A_STEP = 4, 2048  # of what is applied: some ten thousandths of a second, like any other step
APPLYING = "an adaptor, applying updates,"  # with no more words: they are made for each message
CHARACTERS_A_STEP = 64  # of a server's words that are redacted: at worst 1.5 µs each
READ_AT_ONCE = 2048  # bytes of a frame that is read in one go
MAX_COMPLAINTS = 10  # warnings a connection
MAX_REPLIES = 1_000  # frames that may wait before refusals are kept back
MAX_FRAGMENTED_ROOMS = 16  # that may receive fragments at the same time
FRAGMENT_PATIENCE = 30.0  # seconds from one fragment to the next: on a slow link a large update takes long (LIVE-2)
MAX_FRAGMENT_BYTES = MAX_UPDATE_SIZE  # of fragments kept, in all rooms together, until their batches are whole


class Room:
    """One document, shared through a room of the server. Made by `Client.join`; await it to wait until it is joined."""

    __slots__ = (
        "_auth",
        "_credentials",
        "_detach",
        "_fragments_due",
        "_fsm",
        "_header",
        "_in_flight",
        "_joined_after",
        "_listeners",
        "_permission",
        "_priority",
        "_reassembler",
        "_renewal",
        "_request_number",
        "_rooms",
        "_sent_auth",
        "_server_version",
        "_session",
        "_timer",
        "_unacked",
        "_unacked_bytes",
        "_unsent",
        "_upload",
        "_watch",
        "adaptor",
        "crdt_type",
        "extra",
        "id",
    )

    def __init__(
        self, rooms: Rooms, room_id: str, header: bytes, adaptor: Adaptor, auth: Auth, priority: int, fsm: RoomFSM
    ) -> None:
        self.id = room_id
        """The room's id, at most 128 bytes as UTF-8."""
        self.adaptor = adaptor
        """What binds the document."""
        self.crdt_type = CrdtType(adaptor.crdt_type)
        """The kind of document in it."""
        self.extra = b""
        """What the server's last answer to a join carried besides: the application's own (JoinResponseOk.extra)."""
        self._rooms = rooms
        self._header = header
        self._auth = auth
        self._priority = priority
        self._fsm = fsm
        self._listeners: Listeners[StatusChange[RoomStatus]] | None = None
        self._watch: Watch | None = None
        self._detach: Callable[[], None] | None = None
        self._timer: Timer | None = None
        # What belongs to the request under way
        self._joined_after = 0  # how many things the rooms had been told of before it was there
        self._request_number = 0
        self._sent_auth = b""  # the auth bytes that the server was told last
        self._credentials: asyncio.Task[None] | None = None
        self._in_flight = 0  # requests sent on this connection that have no answer yet
        # What belongs to the session
        self._permission: Permission | None = None
        self._session = 0  # counts them
        self._renewal: Timer | None = None
        self._unsent = False  # the adaptor holds more than it has passed on (D-ANYWAY)
        self._server_version = b""
        self._unacked: dict[int, Unacked] = NOTHING
        self._unacked_bytes = 0
        self._upload: Iterator[bytes] | None = None  # what the server lacked, and was not sent yet
        self._reassembler: Reassembler | None = None
        self._fragments_due: Timer | None = None

    def __repr__(self) -> str:
        return f"<Room {self.id!r} {self.crdt_type} {self.status.value}>"

    @property
    def status(self) -> RoomStatus:
        """One of the five statuses (JOIN-3)."""
        return self._fsm.status

    @property
    def state(self) -> str:
        """The machine's state, finer than the status: `RoomFSM` tells them all."""
        return self._fsm.state

    @property
    def reason(self) -> str:
        """Why it is in its present state, in words that hold no secrets."""
        return self._fsm.reason

    # As a subject of the dispatcher

    @property
    def name(self) -> str:
        """The room's id."""
        return self.id

    @property
    def fsm(self) -> RoomFSM:
        """The machine."""
        return self._fsm

    def run_effect(self, effect: Effect) -> None:
        """Run one effect of the machine."""
        self._rooms.run_effect(self, effect)

    def event_done(self, event: str, old_state: str) -> None:
        """An event of the machine is complete."""
        self._rooms.event_done(self)

    def on_status(self, callback: Callable[[StatusChange[RoomStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of the room's status (OBS-2). Returns one that ends it."""
        if self._listeners is None:
            self._listeners = Listeners("Room.on_status")
        return self._listeners.add(callback)

    @property
    def permission(self) -> Permission | None:
        """What the server lets us do, "read" or "write"; None while not joined."""
        return self._permission

    @property
    def is_synced(self) -> bool:
        """Whether the server has all that the document holds, and the document all that the server had (D-RESYNC).

        That is: it is joined, every update of ours has its Ack and none was refused since versions were last compared,
        nothing waits to be sent or committed, and nothing of the server's is known to be missing.
        """
        try:
            return self._holds_all()
        except UserCodeFailed:
            return False

    def on_synced(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Call the function on every change of `is_synced`, in the loop's next turn. Returns one that ends it.

        Of edits it hears when they are committed.
        """
        watch = self._watched()
        if not watch.on_synced:
            watch.was_synced = self.is_synced
        return watch.on_synced.add(callback)

    def on_error(self, callback: Callable[[ReconnectError], object]) -> Callable[[], None]:
        """Call the function with what goes wrong with the room for good. Returns one that ends it.

        It is given the `JoinRefused` with which the room ends, one that this program brought about itself included (an
        adaptor that raised), and each `UpdatesRefused`, after which the room goes on.
        """
        return self._watched().on_error.add(callback)

    def __await__(self) -> Generator[Any, None, Room]:
        """Wait until it is joined. Raises JoinRefused, RoomLeft or, if the client stops or is stopped, ClientStopped.

        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        return self._wait_until(lambda: self.status is RoomStatus.JOINED).__await__()

    async def synced(self) -> None:
        """Wait until it `is_synced`, across reconnects too; edits that are not committed are committed first.

        Raises UpdatesRefused if the server lacks something of the document and refuses it for good. Raises JoinRefused,
        RoomLeft or, if the client stops or is stopped, ClientStopped; RuntimeError in another thread or event loop than
        the client's (D-THREAD).
        """
        self._rooms.check(self)
        self._commit()
        await self._until(self._is_synced_or_refused)

    async def resync(self) -> None:
        """Compare versions with the server now, in the session that there is, then wait as `synced` does (D-RESYNC).

        The server sends what the document lacks, and is sent what it lacks itself. While the room is not joined this
        waits for the join, which does the same. Raises as `synced` does.
        """
        self._rooms.check(self)
        self._commit()
        joins = self._fsm.joins
        self._rooms.resync(self)
        await self._until(lambda: self._fsm.joins > joins and self._is_synced_or_refused())

    def leave(self) -> Awaitable[None]:
        """Leave the room (D-LEAVE): it is untracked at once, online or not.

        Await the result to know that the server has been told, if it can be. Leaving what was left does nothing.
        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        self._rooms.leave(self)
        return LazyCoroutine(self._rooms.written)

    def _holds_all(self) -> bool:
        """See `is_synced`. Raises UserCodeFailed. What costs little is asked first."""
        fsm = self._fsm
        if self._permission is None or self._unacked or self._upload is not None or self._unsent or fsm.in_doubt:
            return False
        if fsm.state in RESYNC or fsm.status is not RoomStatus.JOINED:
            return False
        has_uncommitted = getattr(self.adaptor, "has_uncommitted", None)
        if has_uncommitted is not None and self._ask("asked for uncommitted edits", has_uncommitted):
            return False
        return bool(self._ask("asked whether it covers a version", self.adaptor.covers, self._server_version))

    def _is_synced_or_refused(self) -> bool:
        fsm = self._fsm
        if fsm.refused is not None and fsm.status is RoomStatus.JOINED and fsm.state != RESYNCING:
            raise UpdatesRefused(fsm.refused)
        return self._holds_all()

    def _ask(self, doing: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call something of the adaptor's (D-GUARD). Raises UserCodeFailed."""
        return call_user(("the adaptor of room {!r}, {},", self.id, doing), function, *args)

    def _commit(self) -> None:
        commit = getattr(self.adaptor, "commit", None)
        if commit is not None:
            with contextlib.suppress(UserCodeFailed):  # what it could not commit is still uncommitted
                self._ask("told to commit", commit)

    def _watched(self) -> Watch:
        if self._watch is None:
            self._watch = Watch()
        return self._watch

    async def _until(self, true: Callable[[], bool]) -> None:
        """Wait until it is true, and still is when the waiting task gets its turn."""
        await self._wait_until(true)
        while not _answer(true):
            await self._wait_until(true)

    async def _wait_until(self, true: Callable[[], bool]) -> Room:
        self._rooms.check(self)
        if _answer(true):
            return self
        watch = self._watched()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watch.waiting[waiter] = true
        try:
            await waiter
        finally:
            watch.waiting.pop(waiter, None)
            if not (watch.waiting or watch.on_synced or watch.on_error):
                self._watch = None  # most messages then need not ask who waits
        return self

    def _wake_waiters(self) -> None:
        """Something changed: wake those for whom it is true now, not when they get their turn."""
        if (watch := self._watch) is None:
            return
        for waiter, true in list(watch.waiting.items()):
            if not waiter.done():
                try:
                    if _answer(true):
                        waiter.set_result(None)
                except Exception as error:  # ours, or the adaptor's own, which call_user has reported
                    waiter.set_exception(error)
        if watch.on_synced and (synced := self.is_synced) is not watch.was_synced:
            watch.was_synced = synced
            self._rooms.later(watch.on_synced.notify, synced)

    def _fail_waiters(self, error: Exception) -> None:
        for waiter in () if self._watch is None else self._watch.waiting:
            if not waiter.done():
                waiter.set_exception(copy_error(error))


class Watch:
    """Who waits for a room, and who listens to more than its status. Most rooms have none."""

    __slots__ = ("on_error", "on_synced", "waiting", "was_synced")

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        """Those who wait, and for what each does."""
        self.on_synced: Listeners[bool] = Listeners("Room.on_synced")
        self.on_error: Listeners[ReconnectError] = Listeners("Room.on_error")
        self.was_synced = False
        """What the listeners were told last, or what it was when they began to listen."""


def _answer(true: Callable[[], bool]) -> bool:
    """Raises what an adaptor raised, where a future can hold it, for who waits; UserCodeFailed otherwise."""
    try:
        return true()
    except UserCodeFailed as failed:
        if isinstance(failed.error, Exception) and not isinstance(failed.error, StopIteration):
            raise failed.error from None
        raise


RESYNCING = RoomFSM.resyncing.name
RESYNC = tuple(state.name for state in RoomFSM.RESYNC)
OVER = tuple(state.name for state in RoomFSM.OVER)
Unacked: TypeAlias = tuple[tuple[bytes, ...], list[bytes]]
"""The updates of a batch that was sent, and those of its frames that were not written yet."""
NOTHING: dict[int, Unacked] = {}  # stands for every empty dict; never written to
NO_BATCH: Unacked = ((), [])

Turn: TypeAlias = tuple["Room", Timer | None]
"""A room that is to be asked for, and the timer that ran out for it, if it was asked for before."""
Answer: TypeAlias = tuple[Permission, bytes, bytes]
"""What a JoinResponseOk says: the permission, the version of the server, and what is the application's."""


class Link(Protocol):
    """The connection, as far as rooms use it. Once it is closed, what is sent is dropped."""

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


def fsm_of(room: Room) -> RoomFSM:
    """The room's machine, for reading."""
    return room._fsm


def is_tracked(room: Room) -> bool:
    """Whether the client joins the room again after a reconnect (REJOIN-1)."""
    return room._rooms._tracked.get(room._header) is room


class Rooms(RunsEffects):
    """The tracked rooms of one client (REJOIN-1)."""

    def __init__(
        self,
        pump: Dispatcher,
        own: Callable[[asyncio.Task[Any]], None],
        make_fsm: Callable[[], RoomFSM],
        at_once: int | None,
        random_bits: Callable[[int], int],
        redaction: Redaction,
        client_stopped: Callable[[], ClientStopped | None],
        check_loop: Callable[[], None],
        max_piece: int = MAX_MESSAGE_SIZE,
        max_update_size: int = MAX_UPDATE_SIZE,
    ) -> None:
        """``own`` takes charge of a cancelled task until it ends; ``at_once`` is how many rooms may be asked for and
        not answered at the same time; ``client_stopped`` says why, while the client is stopped (D-STOP); ``check_loop``
        raises RuntimeError in another thread or event loop than the client's (D-THREAD); ``max_piece`` is the most
        bytes of a message that is sent, ``max_update_size`` those of one update in either direction."""
        self._dispatcher = pump
        self._link: Link | None = None  # what the rooms know of; the client may have dropped it, or have another by now
        self._client_stopped = client_stopped
        self._check_loop = check_loop
        self._own = own
        self._make_fsm = make_fsm
        self._tracked: dict[bytes, Room] = {}  # by what their frames begin with
        self._limiter: JoinLimiter[Turn] = JoinLimiter(at_once)
        self._tells = 0  # that there were
        self._begun = 0  # the last one that the rooms have begun to hear of
        self._opened: str | None = None  # why there is a connection, if there is one
        self._will_admit = False  # that is scheduled, and has not begun
        self._timers = TimerQueue(pump.post)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._complaints = 0
        self._orphans: Counter[bytes] = Counter()  # answers to come, on this connection, for rooms that were left
        self._answer: Answer = "read", b"", b""  # the one that is being handled
        self._present: dict[Room, None] = {}  # those in session whose entries are taken back at the end (D-PRESENCE)
        self._set_piece(max_piece)
        self._max_update_size = max_update_size
        self._fragmented: set[Room] = set()  # rooms with batches that have not come whole
        # Bound once: a room's effects are run ten thousand times after a reconnect
        self._run = {effect: getattr(self, method) for effect, method in self.runners.items()}
        self._announced: set[Room] = set()  # by send(None), and the adaptor has no `unsent`
        self._random_bits = random_bits
        self._redaction = redaction
        redaction.ask(lambda: (room._sent_auth for room in self._tracked.values()))
        self._last_batch_id: int | None = None

    def __iter__(self) -> Iterator[Room]:
        return iter(tuple(self._tracked.values()))

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
        self._check_loop()
        _check(room_id, adaptor, auth, priority)
        header = room_header(adaptor.crdt_type, room_id)
        room = self._tracked.get(header)
        if room is not None:
            if room.adaptor is not adaptor:
                raise ValueError(
                    f"room {room_id!r} is joined with another adaptor already: leave it first, or join with that one, "
                    "which is room.adaptor"
                )
            room._auth, room._priority = auth or room._auth, priority or room._priority
            if on_status is not None:
                room.on_status(on_status)
            return room
        room = Room(self, room_id, header, adaptor, auth, priority, self._make_fsm())
        if on_status is not None:
            room.on_status(on_status)
        room._detach = adaptor.attach(lambda update: self._local_update(room, update))
        self._tracked[header] = room
        self._dispatcher.post(self._join_requested, room)
        return room

    def leave(self, room: Room) -> None:
        """Untracked at once, so that a join that follows makes a new room, whatever waits in the queue."""
        self._check_loop()
        self._forget(room)
        self._dispatcher.post_event(room, RoomFSM.leave_requested)

    def check(self, room: Room) -> None:
        """Raise what an operation raises at once that would wait for the room: D-THREAD, D-STOP."""
        self._check_loop()
        if room._fsm.state in OVER:
            raise copy_error(room._fsm.refusal)
        if (stopped := self._client_stopped()) is not None:
            raise stopped

    def resync(self, room: Room) -> None:
        """The program asks to compare versions (D-RESYNC)."""
        self._dispatcher.post_event(room, RoomFSM.resync_requested)

    def end_presence(self) -> None:
        """The program closes the client: take back what the others would see of it until it times out (D-PRESENCE)."""
        for room in tuple(self._present):
            self._take_back_presence(room)

    def too_big(self) -> None:
        """The other end closed the connection with 1009: if it was for what we sent, make it smaller (D-TOOBIG)."""
        if not any(room._unacked or room._upload is not None for room in self._tracked.values()):
            return
        if self._max_piece > MIN_PIECE:
            self._set_piece(max(self._max_piece // 2, MIN_PIECE))
            self.warn_limited("a message was too big for the server: from now on they have %d bytes", self._max_piece)
        else:
            self.warn_limited("a message of at most %d bytes was too big for the server", self._max_piece)

    def _set_piece(self, size: int) -> None:
        self._max_piece = size
        self._payload = min(FRAGMENT_SIZE, size - FRAME_AROUND)  # the most bytes of updates in one message

    async def written(self) -> None:
        link = self._link
        with contextlib.suppress(NotConnected):  # then the server noticed by itself
            if link is not None:
                await link.written()

    # Facts

    def tell(
        self, event: str, why: str, link: Link | None, cause: Cause | None = None, stop: StopKind | None = None
    ) -> None:
        """Something happened to the connection, or to the client: every room hears of it, in slices (law 3).

        ``link`` is the connection if it was opened; of that the rooms hear by turns. What happens meanwhile waits for
        none of this, and each room hears of each thing once and in order.
        """
        self._tells += 1
        ended = {"connection_lost": (cause,), "client_stopped": (cause, stop)}.get(event, ())
        self._dispatcher.schedule(self._tell_all(self._tells, event, why, link, ended))

    def _tell_all(
        self, number: int, event: str, why: str, link: Link | None, ended: tuple[Cause | StopKind | None, ...]
    ) -> Iterator[None]:
        self._begun = number
        self._link = link
        self._orphans.clear()
        self._complaints = 0
        self._limiter.clear()
        self._opened = None if link is None else why
        if link is not None:
            for place, room in enumerate(tuple(self._tracked.values())):
                if room._joined_after <= number:
                    self._limiter.enqueue((room, None), room._priority)
                if place % QUEUED_A_STEP == QUEUED_A_STEP - 1:
                    yield
            yield from self._admit()
            return
        for room in tuple(self._tracked.values()):
            if room._joined_after >= number:
                continue  # it was not there when this happened
            room._in_flight = 0
            self._dispatcher.fire(room, RoomFSM.events[event], why, *ended)
            yield

    def _admit(self) -> Iterator[None]:
        """Let rooms ask, one after the other, until none waits for a turn or too many are busy."""
        self._will_admit = True
        while (turn := self._limiter.pop()) is not None:
            self._on_admitted(turn)
            yield
        self._will_admit = False

    def _on_admitted(self, turn: Turn) -> None:
        room, timer = turn
        assert self._opened is not None  # without a connection no room waits for a turn
        if timer is None:
            self._dispatcher.fire(room, RoomFSM.connection_opened, self._opened)
        elif timer is room._timer:  # else it was stopped while this waited for its turn
            room._timer = None
            self._dispatcher.fire(room, RoomFSM.timer_fired)

    def warn_limited(self, what: str, *args: object) -> None:
        """Log what is wrong with the server's messages; a flood of them must not flood the log.

        An argument that is a function is called if the line is really logged: words cost something to be made fit.
        """
        self._complaints += 1
        level = logging.WARNING if self._complaints <= MAX_COMPLAINTS else logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, what, *(each() if callable(each) else each for each in args))

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this event loop."""
        self._loop = loop

    def outlive_loop(self) -> None:
        """The event loop ended without `close`, and with it all that lived in it: tasks, timers, those who wait."""
        self._loop = self._link = self._opened = None
        self._will_admit = False
        self._begun = self._tells
        self._timers.forget()
        for room in self._tracked.values():
            room._credentials = room._timer = room._fragments_due = room._renewal = None
            if room._watch is not None:
                room._watch.waiting.clear()

    def received(self, frame: bytes) -> Iterator[object] | None:
        """A frame came, on the present connection. Raises ProtocolError for one that cannot be read.

        Returns what is left to do for it, in steps.
        """
        header = header_of(frame)
        room = self._tracked.get(header)
        # First the frames that come most, in their most common shape.
        if room is not None and len(frame) > (at := len(header)):
            kind = frame[at]
            if kind == DOC_UPDATE and (update := read_update(frame, at)) is not None:
                return self._apply(room, update[:1], update[1])
            if kind == ACK and (batch_id := read_ok(frame, at)) is not None:
                self._acknowledged(room, batch_id, UpdateStatusCode.OK)
                return None
            if kind == JOIN_RESPONSE_OK and not self._orphans and (answer := read_join_response_ok(frame, at)):
                self._accepted(room, (*answer, b""))
                return None
        return self._received(decode(frame)) if len(frame) <= READ_AT_ONCE else self._read(frame)

    def _read(self, frame: bytes) -> Iterator[object]:
        """The same for a large frame, which takes long to read if it holds many small updates."""
        try:
            message = yield from decode_in_steps(frame)
            yield from self._received(message) or ()
        except ProtocolError as error:
            self.warn_limited("dropped a malformed message of %d bytes: %s", len(frame), error)

    def _received(self, message: Message) -> Iterator[object] | None:
        header = room_header(message.crdt, message.room_id)  # a length may be written in several ways
        if isinstance(message, JoinResponseOk | JoinError) and self._orphans.get(header):
            self._orphans[header] -= 1  # the answer to one who has left; what follows is for who came after
            return None
        room = self._tracked.get(header)
        if room is None:
            logger.debug("dropped a %s for a room that is not tracked", type(message).__name__)
            return None
        match message:
            case DocUpdate():
                return self._apply(room, message.updates, message.batch_id)
            case Ack():
                self._acknowledged(room, message.ref_id, message.status)
            case JoinResponseOk():
                self._accepted(room, (message.permission, message.version, message.extra or b""))
            case JoinError():
                room._in_flight = max(room._in_flight - 1, 0)
                room._server_version = message.receiver_version or b""
                app_code = None if message.app_code is None else self._redaction(message.app_code)
                words = self._redaction(message.message)
                self._dispatcher.fire(
                    room, RoomFSM.join_refused, JoinRefused(message.code, words, app_code), self._now()
                )
                return _steps_of_words(message.message, message.app_code or "")
            case RoomError():
                refusal = JoinRefused(message.code, self._redaction(message.message), evicted=True)
                self._dispatcher.fire(room, RoomFSM.evicted, refusal, self._now())
                return _steps_of_words(message.message)
            case DocUpdateFragmentHeader() | DocUpdateFragment():
                return self._reassemble(room, message)
            case _:
                logger.debug("dropped a %s: only clients send those", type(message).__name__)
        return None

    def _accepted(self, room: Room, answer: Answer) -> None:
        room._in_flight = max(room._in_flight - 1, 0)
        self._answer = answer
        self._dispatcher.fire(room, RoomFSM.join_accepted)

    def _join_requested(self, room: Room) -> None:
        room._joined_after = self._tells
        if self._opened is not None and self._begun == self._tells:  # else its turn comes when that is told
            self._limiter.enqueue((room, None), room._priority)
        self._dispatcher.fire(room, RoomFSM.join_requested)

    def _send(self, frames: bytes | list[bytes]) -> None:
        if self._link is not None:
            self._link.send(frames)

    def event_done(self, room: Room) -> None:
        """An event of the room's machine is complete: then it may be the turn of another."""
        self._wake_waiters(room)
        self._admit_next()

    def _wake_waiters(self, room: Room) -> None:
        """Wake those for whom something has come true, once all is done that this event leads to."""
        watch = room._watch
        if watch is not None and (watch.waiting or watch.on_synced):
            self._dispatcher.post(room._wake_waiters)

    def later(self, job: Callable[..., None], *args: Any) -> None:
        """Do it in the loop's next turn: a document that is being edited, in whose callback we are, is locked."""
        if self._loop is None or self._loop.is_closed():
            self._dispatcher.post(job, *args)
        else:
            self._loop.call_soon(self._dispatcher.post, job, *args)

    def _post_in_session(self, room: Room, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire the event as soon as the one under way is complete, if the present session lasts until then."""
        self._dispatcher.post(self._fire_in_session, room, room._session, event, *args, *kwargs.values())

    def _fire_in_session(self, room: Room, session: int, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire the event if that session still lasts."""
        if room._permission is not None and session == room._session:
            self._dispatcher.fire(room, event, *args, **kwargs)

    def _admit_next(self) -> None:
        if self._limiter.queues and not self._will_admit and self._limiter.has_room:
            self._will_admit = True
            self._dispatcher.schedule(self._admit())

    def _adaptor_broke(self, room: Room, doing: str, error: BaseException) -> None:
        """An adaptor is the user's own code: it cannot take the connection or other rooms down with it."""
        self._dispatcher.post_event(room, RoomFSM.faulted, f"the adaptor raised {type(error).__name__} while {doing}")

    # Effects

    def run_effect(self, room: Room, effect: Effect) -> None:
        """Run one effect of the room's machine."""
        run = self._run.get(type(effect))
        if run is None:
            logger.error("%s is no effect that rooms know how to run", type(effect).__name__)
        else:
            run(room, effect)

    @runs(StartTimer)
    def _start_timer(self, room: Room, effect: StartTimer) -> None:
        assert self._loop is not None
        if room._timer is not None:
            self._timers.cancel(room._timer)
        when = self._dispatcher.now + effect.seconds
        room._timer = self._timers.call_at(self._loop, when, self._timer_fired, room)

    @runs(SendLeave)
    def _send_leave(self, room: Room, _: SendLeave) -> None:
        for _piece in range(PIECES_AT_LEAVE):  # the rest of what the server lacks, for there will be no other time
            if not self._send_next_chunk(room):
                break
        self._take_back_presence(room)
        self._send(encode(Leave(room.crdt_type, room.id)))

    @runs(FailWaiters)
    def _fail_waiters(self, room: Room, effect: FailWaiters) -> None:
        room._fail_waiters(effect.error)

    @runs(NotifyStatus)
    def _notify_status(self, room: Room, effect: NotifyStatus) -> None:
        change = effect.change
        if change.new is RoomStatus.ERROR:
            self.warn_limited("room %r: %s → error: %s", room.id, change.old, change.reason)
        else:
            logger.debug("room %r: %s → %s: %s", room.id, change.old, change.new, change.reason)
        if room._listeners is not None:
            self._dispatcher.post(room._listeners.notify, change)

    @runs(NotifyError)
    def _notify_error(self, room: Room, effect: NotifyError) -> None:
        if room._watch is not None and room._watch.on_error:
            self.later(room._watch.on_error.notify, effect.error)
        elif isinstance(effect.error, UpdatesRefused):  # of a room's end the log has heard
            self.warn_limited("room %r: %s", room.id, effect.error)

    def _timer_fired(self, deadline: Timer, room: Room) -> None:
        if deadline is not room._timer:  # it was stopped while this waited for its turn
            return
        if room in self._limiter.in_flight:  # the server had its time
            room._timer = None
            self._dispatcher.fire(room, RoomFSM.timer_fired)
        elif self._opened is not None:  # it may ask again, when it is its turn; else it will hear of the loss next
            self._limiter.enqueue((room, deadline), room._priority)
            self._admit_next()

    @runs(StopTimer)
    def _stop_timer(self, room: Room, _: StopTimer | None = None) -> None:
        if room._timer is not None:
            self._timers.cancel(room._timer)
            room._timer = None

    @runs(Untrack)
    def _untrack(self, room: Room, _: Untrack) -> None:
        self._forget(room)
        self._stop_timer(room)
        self._abandon_request(room)
        self._end_session(room)
        self._announced.discard(room)
        detach, room._detach = room._detach, None
        if detach is not None:
            notify_user(f"the adaptor of room {room.id!r}, on being detached,", detach)

    def _forget(self, room: Room) -> None:
        """Out of the tracked set; answers still to come for it are for nobody, not for the next of its name."""
        if self._tracked.get(room._header) is room:
            del self._tracked[room._header]
        if room._in_flight:
            self._orphans[room._header] += room._in_flight
            room._in_flight = 0

    # Asking

    @runs(RequestJoin)
    def _request_join(self, room: Room, effect: RequestJoin) -> None:
        """D-INTENT: auth and version are taken now, not when join was called."""
        self._abandon_request(room)
        self._limiter.in_flight.add(room)
        auth, choice = room._auth, effect.version
        if not isinstance(auth, bytes):
            given: Any
            try:
                given = ask(f"the auth function of room {room.id!r}", auth)
            except UserCodeFailed as failed:
                # Posted: an effect never fires a fact itself.
                self._dispatcher.post(self._credentials_failed, room, room._request_number, failed.error)
                return
            if inspect.isawaitable(given):
                assert self._loop is not None
                asking = self._await_credentials(room, room._request_number, choice, given)
                room._credentials = self._loop.create_task(asking, name="reconnect_fsm credentials")
                if inspect.iscoroutine(given):  # one that was cancelled before its first step would warn
                    room._credentials.add_done_callback(lambda _: given.close())
                return
            if isinstance(given, Unauthorized):
                self._dispatcher.post(self._credentials_failed, room, room._request_number, given)
                return
            auth = given
        self._send_join_request(room, choice, auth)

    async def _await_credentials(self, room: Room, asked: int, choice: VersionChoice, given: Awaitable[bytes]) -> None:
        """Returns nothing: asyncio's debug log shows the results of tasks, and these are secrets."""
        try:
            auth = await wait_for_answer(f"the auth function of room {room.id!r}", given)
        except UserCodeFailed as failed:
            self._dispatcher.post(self._credentials_failed, room, asked, failed.error)
            return
        if isinstance(auth, Unauthorized):
            self._dispatcher.post(self._credentials_failed, room, asked, auth)
        else:
            self._dispatcher.post(self._credentials_came, room, asked, choice, auth)

    def _credentials_came(self, room: Room, asked: int, choice: VersionChoice, auth: object) -> None:
        if asked == room._request_number:
            room._credentials = None
            self._send_join_request(room, choice, auth)

    def _credentials_failed(self, room: Room, asked: int, error: BaseException) -> None:
        if asked == room._request_number:
            room._credentials = None
            what = f"the auth function raised {names_of(error)}"
            self._dispatcher.fire(room, RoomFSM.credentials_failed, what, isinstance(error, Unauthorized))

    @runs(AbandonRequest)
    def _abandon_request(self, room: Room, _: AbandonRequest | None = None) -> None:
        room._request_number += 1
        if room._credentials is not None:
            room._credentials.cancel()
            self._own(room._credentials)
            room._credentials = None
        self._limiter.in_flight.discard(room)

    def _send_join_request(self, room: Room, choice: VersionChoice, auth: object) -> None:
        if not isinstance(auth, bytes):
            what = f"the auth function returned {type(auth).__name__} instead of bytes"
            logger.error("room %r: %s", room.id, what)
            self._dispatcher.post_event(room, RoomFSM.faulted, what)
            return
        try:
            if choice is CURRENT:
                version = room._ask("asked for its version", room.adaptor.version)
            else:
                version = self._other_version(room, choice)
        except UserCodeFailed as failed:
            self._adaptor_broke(room, "asked for its version", failed.error)
            return
        if version is None:
            refusal = JoinRefused(JoinErrorCode.VERSION_UNKNOWN, "the adaptor has no other version")
            self._dispatcher.post_event(room, RoomFSM.join_refused, refusal, self._now())
            return
        try:
            frame = join_request(room._header, auth, version)
            if frame is None:
                frame = encode(JoinRequest(room.crdt_type, room.id, auth, version))
        except ProtocolError as error:  # auth and version are too much for one message, or the version is no bytes
            logger.error("room %r: it cannot be asked for: %s", room.id, error)
            self._dispatcher.post_event(room, RoomFSM.faulted, f"it cannot be asked for: {error}")
            return
        if auth:
            room._sent_auth = auth
            self._redaction.learn(auth, "room")
        room._in_flight += 1
        self._send(frame)

    def _other_version(self, room: Room, choice: VersionChoice) -> bytes | None:
        if choice is VersionChoice.ALTERNATIVE:
            another: bytes | None = room._ask(
                "asked for its version", room.adaptor.alternative_version, room._server_version
            )
            return another
        return b""

    # In session

    @runs(Synchronise)
    def _synchronise(self, room: Room, _: Synchronise) -> None:
        if room._permission is None:
            self._begin_session(room)
        else:
            self._discard_unsent(room)
            room._unacked, room._unacked_bytes = NOTHING, 0
        room._permission, room._server_version, room.extra = self._answer
        self._begin_upload(room, "asked for what the server lacks", room.adaptor.missing_from, room._server_version)
        if room._upload is not None or room._unsent:
            self._continue_upload(room)
        else:
            self._settle(room)

    def _begin_session(self, room: Room) -> None:
        adaptor = room.adaptor
        if hasattr(adaptor, "take_back"):
            self._present[room] = None
        if getattr(adaptor, "renew_interval", None) is not None:
            self._set_renewal(room)

    def _begin_upload(self, room: Room, doing: str, function: Callable[..., Iterable[bytes]], *args: Any) -> None:
        """Have the adaptor make updates to be sent; they are taken one by one."""
        if getattr(room.adaptor, "max_piece", self._payload) != self._payload:
            notify_user(f"the adaptor of room {room.id!r}, given max_piece,", self._set_max_piece, room.adaptor)
        try:
            missing = room._ask(doing, function, *args)
            room._upload = None if missing == () else room._ask(doing, iter, missing)
        except UserCodeFailed as failed:
            self._adaptor_broke(room, doing, failed.error)

    def _set_max_piece(self, adaptor: Any) -> None:
        adaptor.max_piece = self._payload

    def _continue_upload(self, room: Room) -> None:
        """Send more of what the server lacks, unless much of it waits for an Ack: then that goes on."""
        if room._unacked_bytes < UPLOAD_AHEAD and self._send_next_chunk(room):
            self.later(self._continue_upload, room)

    def _send_next_chunk(self, room: Room) -> bool:
        """Send about as much as one message holds; False if there is no more."""
        if room._upload is None:
            if not room._unsent or room._permission is None:
                return False
            room._unsent = False
            unsent: Callable[[], Iterable[bytes]] | None = getattr(room.adaptor, "unsent", None)
            doing = "asked for what it has not sent"
            if unsent is not None:
                self._begin_upload(room, doing, unsent)
            elif room in self._announced:
                self._announced.discard(room)
                self._begin_upload(room, doing, room.adaptor.missing_from, room._server_version)
        more: list[bytes] = []
        size, enough = 0, self._payload
        try:
            while size < enough and room._upload is not None:
                update = room._ask("asked for what the server lacks", next, room._upload, THE_END)
                if update is THE_END:
                    room._upload = None
                    break
                more.append(update)
                size += len(update) + 1  # at the least: there may be no end of empty ones
        except (UserCodeFailed, TypeError) as failed:
            error = failed.error if isinstance(failed, UserCodeFailed) else failed
            self._adaptor_broke(room, "asked for what the server lacks", error)
            room._upload = None
            return False
        if more:
            self._send_updates(room, more)
        if room._upload is None and not room._unsent:
            self._settle(room)
            return False
        return True

    def _settle(self, room: Room) -> None:
        """If all that was sent has its Ack, and nothing is left to be sent, those who wait for it hear of it."""
        if room._unacked or room._upload is not None or room._unsent:
            return
        if room._fsm.in_doubt:
            self._post_in_session(room, RoomFSM.acks_complete)
        self._wake_waiters(room)

    @runs(DiscardUnsent)
    def _discard_unsent(self, room: Room, _: DiscardUnsent | None = None) -> None:
        room._upload = None
        for _updates, unwritten in room._unacked.values():
            unwritten.clear()

    @runs(EndSession)
    def _end_session(self, room: Room, _: EndSession | None = None) -> None:
        room._permission = None
        room._session += 1
        room._upload = None
        room._unacked, room._unacked_bytes = NOTHING, 0
        room._reassembler = None
        self._watch_fragments(room)
        self._present.pop(room, None)
        if room._renewal is not None:
            self._timers.cancel(room._renewal)
            room._renewal = None

    # Presence (D-PRESENCE)

    def _set_renewal(self, room: Room) -> None:
        assert self._loop is not None
        try:
            interval = room._ask("asked when to renew", getattr, room.adaptor, "renew_interval", None)
        except UserCodeFailed:
            return
        if interval is not None:
            room._renewal = self._timers.call_later(self._loop, max(float(interval), MIN_RENEWAL), self._renew, room)

    def _renew(self, deadline: Timer, room: Room) -> None:
        if deadline is room._renewal:
            room._renewal = None
            adaptor: Any = room.adaptor
            notify_user(f"the adaptor of room {room.id!r}, told to renew,", adaptor.renew)
            self._set_renewal(room)

    def _take_back_presence(self, room: Room) -> None:
        if room not in self._present:
            return
        del self._present[room]
        try:
            adaptor: Any = room.adaptor
            updates = list(room._ask("asked to take back its own", adaptor.take_back))
        except UserCodeFailed:
            return
        if updates and room._permission == "write":
            self._send_updates(room, updates)

    # Edits

    def _local_update(self, room: Room, update: bytes | None) -> None:
        """An edit was made here, in whatever thread; or, if None, there is more that the adaptor did not pass on."""
        if update is None and not hasattr(room.adaptor, "unsent"):
            self._announced.add(room)  # an adaptor of the user's, round one of ours: `missing_from` has it, too
        self._dispatcher.post_from_any_thread(self._send_local_update, room, update)

    def _note_unsent(self, room: Room) -> None:
        if not room._unsent:
            room._unsent = True
            if room._permission is not None:
                self.later(self._send_unsent, room, room._session)

    def _send_local_update(self, room: Room, update: bytes | None) -> None:
        """Send it. The document may be locked by its own call of this: nothing but that happens here.

        Without a session, or in doubt, it is in the document, and the next comparison of versions finds it there.
        """
        if update is None:
            self._note_unsent(room)
            return
        if room._permission is None:
            return
        watch = room._watch
        if watch is not None and watch.was_synced and watch.on_synced:
            self.later(room._wake_waiters)
        if room._permission != "write":
            self._dispatcher.fire(room, RoomFSM.upload_refused, UpdateStatusCode.PERMISSION_DENIED)
            self.later(self._refused, room, (update,), UpdateStatusCode.PERMISSION_DENIED)
        elif (room._fsm.in_doubt and room._fsm.keeps_edits_back) or self._is_overdue(room):
            self._note_unsent(room)
        else:
            self._send_edit(room, update)

    def _send_edit(self, room: Room, update: bytes) -> None:
        if type(update) is bytes and len(update) <= self._payload:
            batch_id = self._new_batch_id()
            frame = single_update(room._header, update, batch_id)
            if frame is not None:
                self._send_batch(room, batch_id, (update,), [frame])
                return
        if type(update) is bytes and len(update) <= self._max_update_size:
            self._send_updates(room, (update,))
        else:
            room._unsent = True
            self.later(self._send_in_session, room, room._session, update)

    def _is_overdue(self, room: Room) -> bool:
        return room._unacked_bytes > MAX_UNACKED_BYTES or len(room._unacked) > MAX_UNACKED_UPDATES

    def _send_unsent(self, room: Room, session: int) -> None:
        if session != room._session or room._permission is None:
            return
        if room._fsm.keeps_edits_back:  # the comparison brings it
            self._dispatcher.fire(room, RoomFSM.edited_in_doubt, self._now())
        elif self._is_overdue(room):
            self._dispatcher.fire(room, RoomFSM.acks_overdue, self._now())
        elif room._upload is None:
            self._continue_upload(room)
        self._wake_waiters(room)

    def _send_in_session(self, room: Room, session: int, update: bytes) -> None:
        if session == room._session and room._permission is not None:
            self._send_updates(room, (update,), edited=True)

    def _send_updates(self, room: Room, updates: Sequence[bytes], edited: bool = False) -> None:
        """Send updates of a comparison, or a local edit, or say why not."""
        if not all(isinstance(update, bytes) for update in updates):
            error = TypeError("an update must be bytes")
            report(f"the adaptor of room {room.id!r}, asked for updates,", error)
            self._adaptor_broke(room, "asked for updates", error)
            return
        if room._permission != "write":
            self._refuse_here(room, updates, UpdateStatusCode.PERMISSION_DENIED, False)
            return
        try:
            batches = split(room.crdt_type, room.id, updates, self._new_batch_id, self._payload, self._max_update_size)
        except ValueError as error:
            self.warn_limited("room %r: %s", room.id, error)
            self._refuse_here(room, updates, UpdateStatusCode.PAYLOAD_TOO_LARGE, edited)
            return
        for batch in batches:
            self._send_batch(room, batch.batch_id, batch.updates, list(batch.frames))

    def _refuse_here(self, room: Room, updates: Sequence[bytes], status: UpdateStatusCode, edited: bool) -> None:
        """They cannot be sent. A comparison may bring an edit in smaller pieces; what it has to send is as it is."""
        self._refused(room, updates, status)
        if edited:
            why = "an update is too large to be sent"
            self._post_in_session(room, RoomFSM.batch_refused, status, why, self._now())
        else:
            self._post_in_session(room, RoomFSM.upload_refused, status)

    def _send_batch(self, room: Room, batch_id: int, updates: tuple[bytes, ...], frames: list[bytes]) -> None:
        if room._unacked is NOTHING:
            room._unacked = {}
        room._unacked[batch_id] = updates, frames
        room._unacked_bytes += sum(map(len, updates))
        self._send(frames)

    def _new_batch_id(self) -> int:
        """Ids that no other client of the room uses at the same time; nothing more depends on them."""
        if self._last_batch_id is None:
            self._last_batch_id = self._random_bits(64)
        self._last_batch_id = (self._last_batch_id + 1) % 2**64
        return self._last_batch_id

    def _acknowledged(self, room: Room, batch_id: int, status: UpdateStatusCode) -> None:
        updates, unwritten = room._unacked.get(batch_id, NO_BATCH)
        if not updates or (unwritten and status is UpdateStatusCode.OK):
            return  # of an earlier session, or made up
        unwritten.clear()  # a batch may be refused before all of it was written
        del room._unacked[batch_id]
        room._unacked_bytes -= sum(map(len, updates))
        if status is not UpdateStatusCode.OK:
            self._refused(room, updates, status)
            self._dispatcher.fire(
                room, RoomFSM.batch_refused, status, f"the server refused an update: {status.name}", self._now()
            )
        if room._upload is not None:
            self._continue_upload(room)
        elif not room._unacked and (room._watch is not None or room._fsm.in_doubt):
            self._settle(room)

    def _refused(self, room: Room, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        what = f"the adaptor of room {room.id!r}, told of a refusal,"
        notify_user(what, room.adaptor.refused, updates, status)

    def _apply(self, room: Room, updates: Sequence[bytes], batch_id: int) -> Iterator[object] | None:
        """Apply a batch; returns what is left to do of a large one, in steps."""
        if room._permission is None:
            return None  # there is no session; the version exchange of the join brings it
        if len(updates) > APPLIED_AT_ONCE:
            return self._apply_in_slices(room, updates, batch_id)
        verdict = self._apply_some(room, updates)
        if verdict is not UpdateStatusCode.OK or room._watch is not None:
            self._applied(room, batch_id, verdict)
        return None

    def _apply_in_slices(self, room: Room, updates: Sequence[bytes], batch_id: int) -> Iterator[None]:
        session, verdict, start = room._session, UpdateStatusCode.OK, 0
        pending = False
        while start < len(updates):
            if session != room._session or room._permission is None:
                return  # the next session begins with a comparison
            end, size = start, 0
            while end < len(updates) and end - start < APPLIED_AT_ONCE and size < APPLIED_BYTES:
                size += len(updates[end])
                end += 1
            steps = 1 + (end - start) // UPDATES_A_STEP + size // BYTES_A_STEP
            result = self._apply_some(room, updates[start:end])
            pending = pending or result is None
            verdict = max(verdict, result or UpdateStatusCode.OK)
            start = end
            for _ in range(steps):
                yield
        self._applied(room, batch_id, None if pending and verdict is UpdateStatusCode.OK else verdict)

    def _apply_some(self, room: Room, updates: Sequence[bytes]) -> UpdateStatusCode | None:
        """What became of them: None if some wait for others that have not come."""
        try:
            applied = call_user(APPLYING, _apply, room.adaptor, updates)
        except UserCodeFailed as failed:
            self.warn_limited(
                "room %r: refused a batch from the server: its adaptor raised %s", room.id, type(failed.error).__name__
            )
            return UpdateStatusCode.INVALID_UPDATE
        if isinstance(applied, ValueError):  # they are bad, as adaptors say it
            what = "room %r: refused a batch from the server: %s"
            self.warn_limited(what, room.id, partial(self._redaction, applied))
            return UpdateStatusCode.INVALID_UPDATE
        return None if applied is False else UpdateStatusCode.OK

    def _applied(self, room: Room, batch_id: int, verdict: UpdateStatusCode | None) -> None:
        if verdict is None:
            why = "an update of the server's waits for others that have not come"
            self._dispatcher.fire(room, RoomFSM.updates_lost, UpdateStatusCode.OK, why, self._now())
        elif verdict is not UpdateStatusCode.OK:
            self._refuse(room, batch_id, verdict)
            self._dispatcher.fire(
                room, RoomFSM.updates_lost, verdict, "an update of the server's could not be applied", self._now()
            )
        self._wake_waiters(room)

    def _refuse(self, room: Room, batch_id: int, status: UpdateStatusCode) -> None:
        if (
            self._link is not None and self._link.backlog < MAX_REPLIES
        ):  # a server that sends junk and reads nothing must not fill our memory
            self._send(encode(Ack(room.crdt_type, room.id, batch_id, status)))

    def _reassemble(self, room: Room, message: DocUpdateFragmentHeader | DocUpdateFragment) -> Iterator[object] | None:
        if room._permission is None:
            return None
        if room not in self._fragmented and len(self._fragmented) >= MAX_FRAGMENTED_ROOMS:
            why = f"{len(self._fragmented)} rooms have batches under way"
            self._refuse_batch(room, Refusal(message.batch_id, UpdateStatusCode.RATE_LIMITED, why))
            return None
        if room._reassembler is None:
            room._reassembler = Reassembler(self._max_update_size, FRAGMENT_PATIENCE)
        reassembler, now = room._reassembler, self._now()
        self._expire_fragments(room, reassembler, now)
        most = max(MAX_FRAGMENT_BYTES, self._max_update_size)
        result: bytes | Refusal | None
        if isinstance(message, DocUpdateFragmentHeader):
            result = reassembler.begin(message, now)
        elif reassembler.awaits(message) and self._fragment_bytes() + len(message.fragment) > most:
            why = f"the batches under way hold {most} bytes"
            result = reassembler.refuse(message.batch_id, UpdateStatusCode.RATE_LIMITED, why)
        else:
            result = reassembler.add(message, now)
        self._watch_fragments(room)
        if isinstance(result, bytes):
            return self._apply(room, (result,), message.batch_id)
        if result is not None:
            self._refuse_batch(room, result)
        return None

    def _fragment_bytes(self) -> int:
        return sum(room._reassembler.size for room in self._fragmented if room._reassembler is not None)

    def _watch_fragments(self, room: Room) -> None:
        """Have one deadline for the batch that is due first, and none if nothing is awaited."""
        due, room._fragments_due = room._fragments_due, None
        if due is not None:
            self._timers.cancel(due)
        at = None if room._reassembler is None else room._reassembler.next_deadline()
        self._fragmented.discard(room)
        if at is not None:
            self._fragmented.add(room)
            assert self._loop is not None
            room._fragments_due = self._timers.call_at(self._loop, at, self._fragments_timed_out, room)

    def _fragments_timed_out(self, deadline: Timer, room: Room) -> None:
        if deadline is room._fragments_due and room._reassembler is not None:
            self._expire_fragments(room, room._reassembler, max(self._now(), deadline.when))
            self._watch_fragments(room)

    def _expire_fragments(self, room: Room, reassembler: Reassembler, now: float) -> None:
        for refusal in reassembler.expire(now):
            self._refuse_batch(room, refusal)

    def _refuse_batch(self, room: Room, refusal: Refusal) -> None:
        self.warn_limited("room %r: refused a batch of fragments from the server: %s", room.id, refusal.why)
        self._refuse(room, refusal.batch_id, refusal.status)
        why = "a batch from the server never came whole"
        self._post_in_session(room, RoomFSM.updates_lost, refusal.status, why, self._now())

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()


def _steps_of_words(*words: str) -> Iterator[object]:
    """Steps that it has taken to redact the words: a flood of them must not stop the event loop (D-JUDGED)."""
    return iter(range(sum(min(len(each), READ) for each in words) // CHARACTERS_A_STEP))


def _apply(adaptor: Adaptor, updates: Sequence[bytes]) -> bool | ValueError | None:
    """ValueError is an answer of an adaptor's, and no fault of it."""
    try:
        return adaptor.apply(updates)
    except ValueError as error:
        return error


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
