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
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from .adaptors.base import Adaptor, guarded
from .credentials import UserCodeFailed, ask, names_of, wait_for_answer
from .deadlines import Deadline, Deadlines
from .driver import Driver
from .effects import (
    AbandonRequest,
    EndSession,
    FailWaiters,
    NotifyStatus,
    RequestJoin,
    SendLeave,
    StartTimer,
    StopTimer,
    Synchronise,
    TakeBack,
    Untrack,
    VersionChoice,
)
from .errors import ClientStopped, JoinRefused, NotConnected, ProtocolError, Unauthorized, twin
from .loro_protocol import (
    FRAGMENT_SIZE,
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
    encode,
    room_header,
    split,
)
from .loro_protocol.frames import header_of, join_request, read_join_response_ok, read_ok, read_update, single_update
from .pump import LazyCoroutine, Listeners
from .redaction import Redaction
from .room_fsm import RoomFSM
from .status import RoomStatus, StatusChange
from .turns import Turns

__all__ = ["Auth", "Room", "Rooms"]

logger = logging.getLogger("reconnect_fsm")

Auth: TypeAlias = bytes | Callable[[], bytes | Awaitable[bytes]]

# D-ACK: what may wait for an Ack in one room before it is rejoined instead, whose version exchange supersedes it all.
MAX_UNACKED_UPDATES = 65_536
MAX_UNACKED_BYTES = 16 * 1024 * 1024

DOC_UPDATE, ACK, JOIN_RESPONSE_OK = MessageType.DOC_UPDATE, MessageType.ACK, MessageType.JOIN_RESPONSE_OK
CURRENT = VersionChoice.CURRENT
# What the server lacked goes out as it takes it: a large document neither stops the loop nor fills the memory.
THE_END: Final[Any] = object()
UPLOAD_AHEAD = 4 * 1024 * 1024  # bytes sent that have no Ack yet
QUEUED_A_STEP = 64  # rooms that queue up for their turn in one step
MAX_COMPLAINTS = 10  # warnings a connection
MAX_REPLIES = 1_000  # frames that may wait before refusals are kept back
MAX_FRAGMENTED_ROOMS = 16  # that may receive fragments at the same time
MAX_FRAGMENT_BYTES = 64 * 1024 * 1024  # of fragments kept, in all rooms together, until their batches are whole


class Room:
    """One document, shared through a room of the server. Made by `Client.join`; await it to wait until it is joined."""

    __slots__ = (
        "_asked",
        "_auth",
        "_credentials",
        "_detach",
        "_fragments_due",
        "_fsm",
        "_header",
        "_in_flight",
        "_joined_after",
        "_listeners",
        "_priority",
        "_reassembler",
        "_rooms",
        "_server_version",
        "_timer",
        "_told",
        "_unacked",
        "_unacked_bytes",
        "_upload",
        "_waiting",
        "adaptor",
        "crdt_type",
        "id",
        "permission",
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
        self.permission: Permission | None = None
        """What the server lets us do, "read" or "write"; None while not joined."""
        self._rooms = rooms
        self._header = header
        self._auth = auth
        self._priority = priority
        self._fsm = fsm
        self._listeners: Listeners[StatusChange[RoomStatus]] | None = None
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] | None = None  # and what each waits for
        self._detach: Callable[[], None] | None = None
        self._timer: Deadline | None = None
        # What belongs to the request under way
        self._joined_after = 0  # how many things the rooms had been told of before it was there
        self._asked = 0
        self._told = b""  # the auth bytes that the server was told last
        self._credentials: asyncio.Task[None] | None = None
        self._in_flight = 0  # requests sent on this connection that have no answer yet
        # What belongs to the session
        self._server_version = b""
        self._unacked: dict[int, Unacked] = NOTHING
        self._unacked_bytes = 0
        self._upload: Iterator[bytes] | None = None  # what the server lacked when we joined, and was not sent yet
        self._reassembler: Reassembler | None = None
        self._fragments_due: Deadline | None = None

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

    def on_status(self, callback: Callable[[StatusChange[RoomStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of the room's status (OBS-2). Returns one that ends it."""
        if self._listeners is None:
            self._listeners = Listeners("Room.on_status")
        return self._listeners.add(callback)

    def __await__(self) -> Generator[Any, None, Room]:
        """Wait until it is joined. Raises JoinRefused, RoomLeft or, if the client stops meanwhile, ClientStopped."""
        return self._when(lambda: self.status is RoomStatus.JOINED).__await__()

    async def synced(self) -> None:
        """Wait until the document holds all that the server had when we joined, and every update of ours has its Ack.

        Across reconnects too. Raises JoinRefused, RoomLeft or, if the client stops meanwhile, ClientStopped.
        """
        await self._when(lambda: self.status is RoomStatus.JOINED and self._is_synced())

    def leave(self) -> Awaitable[None]:
        """Leave the room (D-LEAVE): it is untracked at once, online or not.

        Await the result to know that the server has been told, if it can be. Leaving what was left does nothing.
        """
        self._rooms.leave(self)
        return LazyCoroutine(self._rooms.written)

    def _is_synced(self) -> bool:
        sent = not self._unacked and self._upload is None
        return sent and guarded(self.adaptor.covers, self._server_version)

    async def _when(self, true: Callable[[], bool]) -> Room:
        if true():
            return self
        if self._fsm.state in OVER:
            raise twin(self._fsm.refusal)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = {}
        self._waiting[waiter] = true
        try:
            await waiter
        finally:
            del self._waiting[waiter]
        return self

    def _notice(self) -> None:
        """Something changed: wake those for whom it is true now, not when they get their turn."""
        for waiter, true in (self._waiting or {}).items():
            if not waiter.done():
                try:
                    if true():
                        waiter.set_result(None)
                except Exception as error:  # the adaptor's
                    waiter.set_exception(error)

    def _fail_waiters(self, error: Exception) -> None:
        for waiter in self._waiting or {}:
            if not waiter.done():
                waiter.set_exception(twin(error))


OVER = tuple(state.name for state in RoomFSM.OVER)
Unacked: TypeAlias = tuple[tuple[bytes, ...], list[bytes]]
"""The updates of a batch that was sent, and those of its frames that were not written yet."""
NOTHING: dict[int, Unacked] = {}  # stands for every empty dict; never written to
NO_BATCH: Unacked = ((), [])

Turn: TypeAlias = tuple["Room", Deadline | None]
"""A room that is to be asked for, and the timer that ran out for it, if it was asked for before."""
Answer: TypeAlias = tuple[Permission, bytes]
"""What a JoinResponseOk says: the permission, and the version of the server."""


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


class Rooms:
    """The tracked rooms of one client (REJOIN-1)."""

    def __init__(
        self,
        pump: Driver,
        own: Callable[[asyncio.Task[Any]], None],
        make_fsm: Callable[[], RoomFSM],
        at_once: int | None,
        random_bits: Callable[[int], int],
        redaction: Redaction,
        client_stopped: Callable[[], ClientStopped | None],
        check_loop: Callable[[], None],
    ) -> None:
        """``own`` takes charge of a cancelled task until it ends; ``at_once`` is how many rooms may be asked for and
        not answered at the same time; ``client_stopped`` says why, while the client is stopped (D-STOP); ``check_loop``
        raises RuntimeError in another thread or event loop than the client's (D-THREAD)."""
        self._pump = pump
        self._link: Link | None = None  # what the rooms know of; the client may have dropped it, or have another by now
        self._client_stopped = client_stopped
        self._check_loop = check_loop
        self._own = own
        self._make_fsm = make_fsm
        self._tracked: dict[bytes, Room] = {}  # by what their frames begin with
        self._turns: Turns[Turn] = Turns(at_once)
        self._tells = 0  # that there were
        self._begun = 0  # the last one that the rooms have begun to hear of
        self._opened: str | None = None  # why there is a connection, if there is one
        self._will_admit = False  # that is scheduled, and has not begun
        self._deadlines = Deadlines(pump.post)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()
        self._complaints = 0
        self._orphans: Counter[bytes] = Counter()  # answers to come, on this connection, for rooms that were left
        self._answer: Answer = "read", b""  # the one that is being handled
        self._fragmented: set[Room] = set()  # rooms with batches that have not come whole
        self._run = defaultdict[type, Callable[[Room, Any], None]](lambda: self._unknown)
        self._run |= {
            StartTimer: self._start_timer,
            StopTimer: self._stop_timer,
            RequestJoin: self._request_join,
            AbandonRequest: self._abandon_request,
            Synchronise: self._synchronise,
            TakeBack: self._take_back,
            EndSession: self._end_session,
            SendLeave: self._send_leave,
            Untrack: self._untrack,
            FailWaiters: self._fail_waiters,
            NotifyStatus: self._notify_status,
        }
        self._random_bits = random_bits
        self._redaction = redaction
        redaction.ask(lambda: (room._told for room in self._tracked.values()))
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
        _check(room_id, adaptor, auth, priority)
        header = room_header(adaptor.crdt_type, room_id)
        room = self._tracked.get(header)
        if room is not None:
            if room.adaptor is not adaptor:
                logger.debug("room %r is tracked already; the adaptor of the first join stays", room_id)
            if on_status is not None:
                room.on_status(on_status)
            return room
        room = Room(self, room_id, header, adaptor, auth, priority, self._make_fsm())
        if on_status is not None:
            room.on_status(on_status)
        room._detach = adaptor.attach(lambda update: self._local_update(room, update))
        self._tracked[header] = room
        self._pump.post(self._join_requested, room)
        return room

    def leave(self, room: Room) -> None:
        """Untracked at once, so that a join that follows makes a new room, whatever waits in the queue."""
        self._forget(room)
        self._pump.post(self.fire, room, "leave_requested")

    async def written(self) -> None:
        link = self._link
        with contextlib.suppress(NotConnected):  # then the server noticed by itself
            if link is not None:
                await link.written()

    # Facts

    def tell(self, event: str, why: str, link: Link | None) -> None:
        """Something happened to the connection, or to the client: every room hears of it, in slices (law 3).

        ``link`` is the connection if it was opened; of that the rooms hear by turns. What happens meanwhile waits for
        none of this, and each room hears of each thing once and in order.
        """
        self._tells += 1
        self._pump.schedule(self._tell_all(self._tells, event, why, link))

    def _tell_all(self, number: int, event: str, why: str, link: Link | None) -> Iterator[None]:
        self._begun = number
        self._link = link
        self._orphans.clear()
        self._complaints = 0
        self._turns.clear()
        self._opened = None if link is None else why
        if link is not None:
            for place, room in enumerate(tuple(self._tracked.values())):
                if room._joined_after <= number:
                    self._turns.wait((room, None), room._priority)
                if place % QUEUED_A_STEP == QUEUED_A_STEP - 1:
                    yield
            yield from self._admit()
            return
        for room in tuple(self._tracked.values()):
            if room._joined_after >= number:
                continue  # it was not there when this happened
            room._in_flight = 0
            self.fire(room, event, why)
            yield

    def _admit(self) -> Iterator[None]:
        """Let rooms ask, one after the other, until nobody waits for a turn or too many are busy."""
        self._will_admit = False
        while (turn := self._turns.next()) is not None:
            self._turn_came(turn)
            yield

    def _turn_came(self, turn: Turn) -> None:
        room, deadline = turn
        assert self._opened is not None  # nobody waits for a turn when there is no connection
        event: str = "connection_opened"
        args: tuple[str, ...] = (self._opened,)
        if deadline is not None:
            if deadline is not room._timer:
                return  # it was stopped while this waited for its turn
            room._timer = None
            event, args = "timer_fell_due", ()
        self._pump.fire(room.id, room._fsm, event, args, self._run, self._broke, room)

    def complain(self, what: str, *args: object) -> None:
        """Log what is wrong with the server's messages; a flood of them must not flood the log.

        An argument that is a function is called if the line is really logged: words cost something to be made fit.
        """
        self._complaints += 1
        level = logging.WARNING if self._complaints <= MAX_COMPLAINTS else logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, what, *(each() if callable(each) else each for each in args))

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this event loop."""
        self._loop, self._thread = loop, threading.get_ident()

    def outlive_loop(self) -> None:
        """The event loop ended without `close`, and with it all that lived in it: tasks, timers, those who wait."""
        self._loop = self._link = self._opened = None
        self._will_admit = False
        self._begun = self._tells
        self._deadlines.forget()
        for room in self._tracked.values():
            room._credentials = room._timer = room._fragments_due = room._waiting = None

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
                self._apply(room, update[:1], update[1])
                return None
            if kind == ACK and (batch_id := read_ok(frame, at)) is not None:
                self._acknowledged(room, batch_id, UpdateStatusCode.OK)
                return None
            if kind == JOIN_RESPONSE_OK and not self._orphans and (answer := read_join_response_ok(frame, at)):
                self._accepted(room, answer)
                return None
        self._received(decode(frame))
        return None

    def _received(self, message: Message) -> None:
        header = room_header(message.crdt, message.room_id)  # a length may be written in several ways
        if isinstance(message, JoinResponseOk | JoinError) and self._orphans.get(header):
            self._orphans[header] -= 1  # the answer to one who has left; what follows is for who came after
            return
        room = self._tracked.get(header)
        if room is None:
            logger.debug("dropped a %s for a room that is not tracked", type(message).__name__)
            return
        match message:
            case DocUpdate():
                self._apply(room, message.updates, message.batch_id)
            case Ack():
                self._acknowledged(room, message.ref_id, message.status)
            case JoinResponseOk():
                self._accepted(room, (message.permission, message.version))
            case JoinError():
                room._in_flight = max(room._in_flight - 1, 0)
                room._server_version = message.receiver_version or b""
                app_code = None if message.app_code is None else self._redaction(message.app_code)
                words = self._redaction(message.message)
                self.fire(room, "join_refused", JoinRefused(message.code, words, app_code))
            case RoomError():
                refusal = JoinRefused(message.code, self._redaction(message.message), put_out=True)
                self.fire(room, "put_out", refusal, self._now())
            case DocUpdateFragmentHeader() | DocUpdateFragment():
                self._reassemble(room, message)
            case _:
                logger.debug("dropped a %s: only clients send those", type(message).__name__)

    def _accepted(self, room: Room, answer: Answer) -> None:
        room._in_flight = max(room._in_flight - 1, 0)
        self._answer = answer
        self.fire(room, "join_accepted")

    def _join_requested(self, room: Room) -> None:
        room._joined_after = self._tells
        if self._opened is not None and self._begun == self._tells:  # else its turn comes when that is told
            self._turns.wait((room, None), room._priority)
        self.fire(room, "join_requested")

    def _send(self, frames: bytes | list[bytes]) -> None:
        if self._link is not None:
            self._link.send(frames)

    def fire(self, room: Room, event: str, *args: Any) -> None:
        """Tell a room's machine a fact and run the effects; then it may be somebody else's turn."""
        self._pump.fire(room.id, room._fsm, event, args, self._run, self._broke, room)
        self._take_turns()

    def _take_turns(self) -> None:
        if self._turns.queues and not self._will_admit and self._turns.has_place:
            self._will_admit = True
            self._pump.schedule(self._admit())

    def _broke(self, room: Room, what: str) -> None:
        self.fire(room, "broke", what)

    def _adaptor_broke(self, room: Room, doing: str, error: Exception) -> None:
        """An adaptor is the user's own code: it cannot take the connection or other rooms down with it."""
        logger.error("the adaptor of room %r raised %s while %s", room.id, type(error).__name__, doing, exc_info=error)
        self._pump.post(self.fire, room, "broke", f"the adaptor raised {type(error).__name__} while {doing}")

    # Effects

    def _unknown(self, room: Room, effect: Any) -> None:
        logger.error("%s is no effect that rooms know how to run", type(effect).__name__)

    def _start_timer(self, room: Room, effect: StartTimer) -> None:
        assert self._loop is not None
        if room._timer is not None:
            self._deadlines.cancel(room._timer)
        when = self._pump.now + effect.seconds
        room._timer = self._deadlines.set_at(self._loop, when, self._timer_fell_due, room)

    def _send_leave(self, room: Room, _: SendLeave) -> None:
        while self._send_more(room):
            pass  # the rest of what the server lacks, for there will be no other time
        self._send(encode(Leave(room.crdt_type, room.id)))

    def _fail_waiters(self, room: Room, effect: FailWaiters) -> None:
        room._fail_waiters(effect.error)

    def _notify_status(self, room: Room, effect: NotifyStatus) -> None:
        change = effect.change
        if change.new is RoomStatus.ERROR:
            self.complain("room %r: %s → error: %s", room.id, change.old, change.reason)
        else:
            logger.debug("room %r: %s → %s: %s", room.id, change.old, change.new, change.reason)
        if room._listeners is not None:
            self._pump.post(room._listeners.tell, change)

    def _timer_fell_due(self, deadline: Deadline, room: Room) -> None:
        if deadline is not room._timer:  # it was stopped while this waited for its turn
            return
        if room in self._turns.busy:  # the server had its time
            room._timer = None
            self.fire(room, "timer_fell_due")
        elif self._opened is not None:  # it may ask again, when it is its turn; else it will hear of the loss next
            self._turns.wait((room, deadline), room._priority)
            self._take_turns()

    def _stop_timer(self, room: Room, _: StopTimer | None = None) -> None:
        if room._timer is not None:
            self._deadlines.cancel(room._timer)
            room._timer = None

    def _untrack(self, room: Room, _: Untrack) -> None:
        self._forget(room)
        self._stop_timer(room)
        self._abandon_request(room)
        self._end_session(room)
        detach, room._detach = room._detach, None
        if detach is not None:
            try:
                guarded(detach)
            except Exception as error:
                logger.error("the adaptor of room %r raised on being detached", room.id, exc_info=error)

    def _forget(self, room: Room) -> None:
        """Out of the tracked set; answers still to come for it are for nobody, not for the next of its name."""
        if self._tracked.get(room._header) is room:
            del self._tracked[room._header]
        if room._in_flight:
            self._orphans[room._header] += room._in_flight
            room._in_flight = 0

    # Asking

    def _request_join(self, room: Room, effect: RequestJoin) -> None:
        """D-INTENT: auth and version are taken now, not when join was called."""
        self._abandon_request(room)
        self._turns.busy.add(room)
        auth, choice = room._auth, effect.version
        if not isinstance(auth, bytes):
            given: Any
            try:
                given = ask(f"the auth function of room {room.id!r}", auth)
            except UserCodeFailed as failed:
                # Posted: an effect never fires a fact itself.
                self._pump.post(self._credentials_failed, room, room._asked, failed.error)
                return
            if inspect.isawaitable(given):
                assert self._loop is not None
                asking = self._await_credentials(room, room._asked, choice, given)
                room._credentials = self._loop.create_task(asking, name="reconnect_fsm credentials")
                if inspect.iscoroutine(given):  # one that was cancelled before its first step would warn
                    room._credentials.add_done_callback(lambda _: given.close())
                return
            if isinstance(given, Unauthorized):
                self._pump.post(self._credentials_failed, room, room._asked, given)
                return
            auth = given
        self._send_join_request(room, choice, auth)

    async def _await_credentials(self, room: Room, asked: int, choice: VersionChoice, given: Awaitable[bytes]) -> None:
        """Returns nothing: asyncio's debug log shows the results of tasks, and these are secrets."""
        try:
            auth = await wait_for_answer(f"the auth function of room {room.id!r}", given)
        except UserCodeFailed as failed:
            self._pump.post(self._credentials_failed, room, asked, failed.error)
            return
        if isinstance(auth, Unauthorized):
            self._pump.post(self._credentials_failed, room, asked, auth)
        else:
            self._pump.post(self._credentials_came, room, asked, choice, auth)

    def _credentials_came(self, room: Room, asked: int, choice: VersionChoice, auth: object) -> None:
        if asked == room._asked:
            room._credentials = None
            self._send_join_request(room, choice, auth)

    def _credentials_failed(self, room: Room, asked: int, error: BaseException) -> None:
        if asked == room._asked:
            room._credentials = None
            what = f"the auth function raised {names_of(error)}"
            self.fire(room, "credentials_failed", what, isinstance(error, Unauthorized))

    def _abandon_request(self, room: Room, _: AbandonRequest | None = None) -> None:
        room._asked += 1
        if room._credentials is not None:
            room._credentials.cancel()
            self._own(room._credentials)
            room._credentials = None
        self._turns.busy.discard(room)

    def _send_join_request(self, room: Room, choice: VersionChoice, auth: object) -> None:
        if not isinstance(auth, bytes):
            what = f"the auth function returned {type(auth).__name__} instead of bytes"
            logger.error("room %r: %s", room.id, what)
            self._pump.post(self.fire, room, "broke", what)
            return
        try:
            version = guarded(room.adaptor.version) if choice is CURRENT else self._other_version(room, choice)
        except Exception as error:
            self._adaptor_broke(room, "asked for its version", error)
            return
        if version is None:
            refusal = JoinRefused(JoinErrorCode.VERSION_UNKNOWN, "the adaptor has no other version")
            self._pump.post(self.fire, room, "join_refused", refusal)
            return
        try:
            frame = join_request(room._header, auth, version)
            if frame is None:
                frame = encode(JoinRequest(room.crdt_type, room.id, auth, version))
        except ProtocolError as error:  # auth and version are too much for one message, or the version is no bytes
            logger.error("room %r: it cannot be asked for: %s", room.id, error)
            self._pump.post(self.fire, room, "broke", f"it cannot be asked for: {error}")
            return
        if auth:
            room._told = auth
            self._redaction.learn(auth, "room")
        room._in_flight += 1
        self._send(frame)

    def _other_version(self, room: Room, choice: VersionChoice) -> bytes | None:
        if choice is VersionChoice.ALTERNATIVE:
            return guarded(room.adaptor.alternative_version, room._server_version)
        return b""

    # In session

    def _synchronise(self, room: Room, _: Synchronise) -> None:
        room.permission, room._server_version = self._answer
        try:
            missing = guarded(room.adaptor.missing_from, room._server_version)
            room._upload = None if missing == () else iter(missing)
        except Exception as error:
            self._adaptor_broke(room, "asked for what the server lacks", error)
            return
        if room._upload is not None:
            self._go_on(room)
        elif room._waiting:
            room._notice()

    def _go_on(self, room: Room) -> None:
        """Send more of what the server lacked, unless much of it waits for an Ack: then that goes on."""
        if room._unacked_bytes < UPLOAD_AHEAD and self._send_more(room):
            assert self._loop is not None
            self._loop.call_soon(self._pump.post, self._go_on, room)

    def _send_more(self, room: Room) -> bool:
        """Send about as much as one message holds; False if there is no more."""
        if room._upload is None:
            return False
        more: list[bytes] = []
        size = 0
        try:
            while size < FRAGMENT_SIZE:
                update = guarded(next, room._upload, THE_END)
                if update is THE_END:
                    room._upload = None
                    break
                more.append(update)
                size += len(update) + 1  # at the least: there may be no end of empty ones
        except Exception as error:
            self._adaptor_broke(room, "asked for what the server lacks", error)
            room._upload = None
            return False
        if not more or self._send_updates(room, more):
            room._notice()
        return room._upload is not None

    def _take_back(self, room: Room, _: TakeBack) -> None:
        for _updates, unwritten in room._unacked.values():
            unwritten.clear()

    def _end_session(self, room: Room, _: EndSession | None = None) -> None:
        room.permission = None
        room._upload = None
        room._unacked, room._unacked_bytes = NOTHING, 0
        room._reassembler = None
        self._watch_fragments(room)

    def _local_update(self, room: Room, update: bytes | None) -> None:
        """An edit was made here, in whatever thread."""
        if update is None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._pump.post, self._send_unsent, room)
            return
        if self._loop is None or threading.get_ident() == self._thread:
            self._pump.post(self._send_local_update, room, update)
        elif not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop was closed in this very moment
                self._loop.call_soon_threadsafe(self._pump.post, self._send_local_update, room, update)

    def _send_unsent(self, room: Room) -> None:
        unsent: Any = getattr(room.adaptor, "unsent", None)
        if room.permission is not None and room._upload is None and unsent is not None:
            room._upload = iter(unsent())
            self._go_on(room)

    def _send_local_update(self, room: Room, update: bytes) -> None:
        if room.permission is None:
            return  # it is in the document, and the version exchange of the next join will find it there
        batch_id, frame = self._new_batch_id(), None
        if type(update) is bytes and room.permission == "write":
            frame = single_update(room._header, update, batch_id)
        if frame is None:
            self._send_updates(room, (update,))
        else:
            self._send_batch(room, batch_id, (update,), [frame])
        if len(room._unacked) > MAX_UNACKED_UPDATES or room._unacked_bytes > MAX_UNACKED_BYTES:
            self.fire(room, "acks_overdue", self._now())

    def _send_updates(self, room: Room, updates: Sequence[bytes]) -> bool:
        """Send updates, or say why not; False if they are none."""
        if not all(isinstance(update, bytes) for update in updates):
            self._adaptor_broke(room, "asked for updates", TypeError("an update must be bytes"))
            return False
        if room.permission != "write":
            self._refused(room, updates, UpdateStatusCode.PERMISSION_DENIED)
            return True
        try:
            batches = split(room.crdt_type, room.id, updates, self._new_batch_id)
        except ValueError as error:
            logger.error("room %r: %s", room.id, error)
            self._refused(room, updates, UpdateStatusCode.PAYLOAD_TOO_LARGE)
            return True
        for batch in batches:
            self._send_batch(room, batch.batch_id, batch.updates, list(batch.frames))
        return True

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
            self.fire(room, "batch_refused", status, "the server did not take a batch of updates", self._now())
        if room._upload is not None:
            self._go_on(room)
        if room._waiting and not room._unacked:
            room._notice()

    def _refused(self, room: Room, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        try:
            guarded(room.adaptor.refused, updates, status)
        except Exception as error:
            logger.error("the adaptor of room %r raised on being told of a refusal", room.id, exc_info=error)

    def _apply(self, room: Room, updates: Sequence[bytes], batch_id: int) -> None:
        if room.permission is None:
            return  # there is no session; the version exchange of the join brings it
        try:
            guarded(room.adaptor.apply, updates)
        except Exception as error:
            self.complain("room %r: refused a batch from the server: %s", room.id, partial(self._redaction, error))
            self._refuse(room, batch_id, UpdateStatusCode.INVALID_UPDATE)
        if room._waiting:
            room._notice()

    def _refuse(self, room: Room, batch_id: int, status: UpdateStatusCode) -> None:
        if (
            self._link is not None and self._link.backlog < MAX_REPLIES
        ):  # a server that sends junk and reads nothing must not fill our memory
            self._send(encode(Ack(room.crdt_type, room.id, batch_id, status)))

    def _reassemble(self, room: Room, message: DocUpdateFragmentHeader | DocUpdateFragment) -> None:
        if room.permission is None:
            return
        if room not in self._fragmented and len(self._fragmented) >= MAX_FRAGMENTED_ROOMS:
            why = f"{len(self._fragmented)} rooms have batches under way"
            self._refuse_batch(room, Refusal(message.batch_id, UpdateStatusCode.RATE_LIMITED, why))
            return
        if room._reassembler is None:
            room._reassembler = Reassembler()
        reassembler, now = room._reassembler, self._now()
        self._expire_fragments(room, reassembler, now)
        result: bytes | Refusal | None
        if isinstance(message, DocUpdateFragmentHeader):
            result = reassembler.begin(message, now)
        elif reassembler.awaits(message) and self._fragment_bytes() + len(message.fragment) > MAX_FRAGMENT_BYTES:
            why = f"the batches under way hold {MAX_FRAGMENT_BYTES} bytes"
            result = reassembler.refuse(message.batch_id, UpdateStatusCode.RATE_LIMITED, why)
        else:
            result = reassembler.add(message, now)
        if isinstance(result, bytes):
            self._apply(room, (result,), message.batch_id)
        elif result is not None:
            self._refuse_batch(room, result)
        self._watch_fragments(room)

    def _fragment_bytes(self) -> int:
        return sum(room._reassembler.size for room in self._fragmented if room._reassembler is not None)

    def _watch_fragments(self, room: Room) -> None:
        """Have one deadline for the batch that is due first, and none if nothing is awaited."""
        due, room._fragments_due = room._fragments_due, None
        if due is not None:
            self._deadlines.cancel(due)
        at = None if room._reassembler is None else room._reassembler.next_deadline()
        self._fragmented.discard(room)
        if at is not None:
            self._fragmented.add(room)
            assert self._loop is not None
            room._fragments_due = self._deadlines.set_at(self._loop, at, self._fragments_fell_due, room)

    def _fragments_fell_due(self, deadline: Deadline, room: Room) -> None:
        if deadline is room._fragments_due and room._reassembler is not None:
            self._expire_fragments(room, room._reassembler, max(self._now(), deadline.when))
            self._watch_fragments(room)

    def _expire_fragments(self, room: Room, reassembler: Reassembler, now: float) -> None:
        for refusal in reassembler.expire(now):
            self._refuse_batch(room, refusal)

    def _refuse_batch(self, room: Room, refusal: Refusal) -> None:
        self.complain("room %r: refused a batch of fragments from the server: %s", room.id, refusal.why)
        self._refuse(room, refusal.batch_id, refusal.status)
        why = "a batch from the server never came whole"
        self._pump.post(self.fire, room, "batch_refused", refusal.status, why, self._now())

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()


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
