"""One joined session of a room: what lives from the server's answer until the room is no longer joined.

What was sent and has no Ack, what is still to be uploaded, fragments of a batch that has not come whole: all of it is
of one session, and the next one begins with a comparison of versions that supersedes it. So the session is an object:
`RoomDriver.session` is None while there is none, and what comes late for an earlier one finds that it is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias

from reconnect_fsm._asyncio.timers import Timer
from reconnect_fsm._asyncio.user_code import UserCodeFailed, call_user, notify_user, report
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.loro_protocol import (
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    Permission,
    Reassembler,
    RefusedBatch,
    UpdateStatusCode,
    split,
)
from reconnect_fsm.loro_protocol.encoding import write_ack, write_doc_update
from reconnect_fsm.machine import Event
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import RoomStatus

if TYPE_CHECKING:
    from reconnect_fsm._asyncio.room_driver import RoomDriver, Rooms

__all__ = ["IncomingFragments", "RoomSession"]

P = ParamSpec("P")

# D-ACK: what may wait for an Ack in one room before versions are compared instead, which supersedes it all.
MAX_UNACKED_UPDATES = 65_536
MAX_UNACKED_BYTES = 16 * 1024 * 1024
# What the server lacks is sent as the server takes it: a large document neither stops the loop nor fills the memory.
UPLOAD_AHEAD = 4 * 1024 * 1024  # bytes sent that have no Ack yet
MAX_PIECES_AT_LEAVE = 64  # messages that are still sent when a room is left; there may be no end of them
MIN_RENEWAL = 0.1  # seconds
MAX_APPLIED_AT_ONCE = 32  # updates of one batch
MAX_APPLIED_BYTES = 16 * 1024
UPDATES_A_STEP, BYTES_A_STEP = 4, 2048  # of what is applied: some ten thousandths of a second, like any other step
APPLYING = "an adaptor, applying updates,"  # without the room's id: these words are made for each message
MAX_REPLIES = 1_000  # frames that may wait to be written before refusals are kept back
MAX_FRAGMENTED_ROOMS = 16  # that may receive fragments at the same time
FRAGMENT_PATIENCE = 30.0  # seconds from one fragment to the next: on a slow link a large update takes long (LIVE-2)
MAX_FRAGMENT_BYTES = 64 * 1024 * 1024  # of fragments kept in all rooms together, or one update of the largest size

END_OF_UPLOAD: Final[Any] = object()
RESYNCING = RoomFSM.resyncing.name
RESYNC = tuple(state.name for state in RoomFSM.RESYNC)

Batch: TypeAlias = tuple[tuple[bytes, ...], list[bytes]]
"""The updates of a batch that was sent, and those of its frames that were not written yet."""
NO_BATCHES: dict[int, Batch] = {}  # stands for every empty dict, 64 bytes a room; never written to
NO_BATCH: Batch = ((), [])


class RoomSession:
    """The session of one room."""

    __slots__ = (
        "_incoming",
        "_is_present",
        "_renewal",
        "_room",
        "_rooms",
        "_unacked",
        "_upload",
        "permission",
        "server_version",
        "unacked_bytes",
    )

    def __init__(self, room: RoomDriver) -> None:
        self._room = room
        self._rooms: Rooms = room.rooms
        self.permission: Permission = "read"
        """What the server lets us do."""
        self.server_version = b""
        """What the server had when versions were last compared."""
        self.unacked_bytes = 0
        """Bytes of the updates that were sent and have no Ack yet."""
        self._unacked = NO_BATCHES
        self._upload: Iterator[bytes] | None = None  # what the server lacked, and was not sent yet
        self._incoming: IncomingFragments | None = None
        self._renewal: Timer | None = None
        self._is_present = hasattr(room.adaptor, "take_back")  # its entries are taken back at the end (D-PRESENCE)
        if getattr(room.adaptor, "renew_interval", None) is not None:
            self._set_renewal()

    @property
    def unacked(self) -> tuple[int, ...]:
        """The ids of the batches that were sent and have no Ack yet."""
        return tuple(self._unacked)

    @property
    def is_receiving_fragments(self) -> bool:
        """Whether a batch has come in part."""
        return self._incoming is not None and self._incoming.is_awaiting

    def end(self) -> None:
        """The room is no longer joined."""
        self._upload, self._unacked, self.unacked_bytes = None, NO_BATCHES, 0
        if self._incoming is not None:
            self._incoming.end()
        self._stop_renewal()

    def _if_current(self, job: Callable[..., None], *args: Any) -> None:
        """Do what was put off in this session, if it still lasts."""
        if self._room.session is self:
            job(*args)

    def _later(self, job: Callable[..., None], *args: Any) -> None:
        """Do it in the loop's next turn, if the session lasts until then."""
        self._rooms.later(self._if_current, job, *args)

    def _post_event(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire the event as soon as the one under way is complete, if the session lasts until then."""
        dispatcher = self._rooms.dispatcher
        dispatcher.post(self._if_current, dispatcher.fire, self._room, event, *args, *kwargs.values())

    # What is sent

    def synchronise(self, permission: Permission, server_version: bytes) -> None:
        """Versions were compared: upload what the server lacks, which supersedes all that has no Ack (D-RESYNC)."""
        if self.is_sending:
            self.discard_unwritten()
            self._unacked, self.unacked_bytes = NO_BATCHES, 0
        self.permission, self.server_version = permission, server_version
        room = self._room
        self._begin_upload("asked for what the server lacks", room.adaptor.missing_from, server_version)
        if self._upload is not None or room.has_unsent:
            self._continue_upload()
        else:
            self._settle()

    def holds_all(self) -> bool:
        """Whether both sides hold the same, as `Room.is_synced` has it. Raises UserCodeFailed."""
        room, fsm = self._room, self._room.fsm
        if self._unacked or self._upload is not None or room.has_unsent or fsm.in_doubt:
            return False
        if fsm.state in RESYNC or fsm.status is not RoomStatus.JOINED:
            return False
        has_uncommitted = getattr(room.adaptor, "has_uncommitted", None)
        if has_uncommitted is not None and room.call_adaptor("asked for uncommitted edits", has_uncommitted):
            return False
        return bool(room.call_adaptor("asked whether it covers a version", room.adaptor.covers, self.server_version))

    def discard_unwritten(self) -> None:
        """Do not write the updates that are still to be written: the next comparison supersedes them."""
        self._upload = None
        for _updates, unwritten in self._unacked.values():
            unwritten.clear()

    def send_rest(self) -> None:
        """The room is left: send the rest of what the server lacks, within bounds; there is no other time."""
        for _piece in range(MAX_PIECES_AT_LEAVE):
            if not self._send_next_chunk():
                break

    @property
    def is_sending(self) -> bool:
        """Whether updates of ours are on their way."""
        return bool(self._unacked) or self._upload is not None

    def _begin_upload(self, doing: str, function: Callable[..., Iterable[bytes]], *args: Any) -> None:
        """Have the adaptor make updates to be sent; they are taken one by one."""
        room, payload = self._room, self._rooms.payload
        if getattr(room.adaptor, "max_piece", payload) != payload:
            notify_user(f"the adaptor of room {room.name!r}, given max_piece,", self._set_max_piece, room.adaptor)
        try:
            missing = room.call_adaptor(doing, function, *args)
            self._upload = None if missing == () else room.call_adaptor(doing, iter, missing)
        except UserCodeFailed as failed:
            room.adaptor_failed(doing, failed.error)

    def _set_max_piece(self, adaptor: Any) -> None:
        adaptor.max_piece = self._rooms.payload

    def _continue_upload(self) -> None:
        """Send more of what the server lacks, unless much of it waits for an Ack: the Ack then continues it."""
        if self.unacked_bytes < UPLOAD_AHEAD and self._send_next_chunk():
            self._later(self._continue_upload)

    def _send_next_chunk(self) -> bool:
        """Send about as much as one message holds; False if there is no more."""
        room = self._room
        if self._upload is None:
            if not room.has_unsent:
                return False
            self._begin_unsent()
        more: list[bytes] = []
        size, enough = 0, self._rooms.payload
        doing = "asked for what the server lacks"
        try:
            while size < enough and self._upload is not None:
                update = room.call_adaptor(doing, next, self._upload, END_OF_UPLOAD)
                if update is END_OF_UPLOAD:
                    self._upload = None
                    break
                more.append(update)
                size += len(update) + 1  # at the least: there may be no end of empty ones
        except (UserCodeFailed, TypeError) as failed:
            room.adaptor_failed(doing, failed.error if isinstance(failed, UserCodeFailed) else failed)
            self._upload = None
            return False
        if more:
            self._send_updates(more)
        if self._upload is None and not room.has_unsent:
            self._settle()
            return False
        return True

    def _begin_unsent(self) -> None:
        """Have the adaptor make updates of what it holds and did not pass on (D-ANYWAY)."""
        room = self._room
        room.has_unsent = False
        unsent: Callable[[], Iterable[bytes]] | None = getattr(room.adaptor, "unsent", None)
        doing = "asked for what it has not sent"
        if unsent is not None:
            self._begin_upload(doing, unsent)
        elif room.was_announced:
            room.was_announced = False
            self._begin_upload(doing, room.adaptor.missing_from, self.server_version)

    def _settle(self) -> None:
        """If all that was sent has its Ack, and nothing is left to be sent, the machine and the waiters hear of it."""
        if self._unacked or self._upload is not None or self._room.has_unsent:
            return
        if self._room.fsm.in_doubt:
            self._post_event(RoomFSM.acks_complete)
        self._room.wake_waiters()

    # Edits

    def send_edit(self, update: bytes) -> None:
        """Send a local edit. The document may be locked by its own call of this: nothing but that happens here.

        In doubt it is kept back: it is in the document, and the next comparison of versions finds it there.
        """
        room = self._room
        fsm, watch = room.fsm, room.watch
        if watch is not None and watch.was_synced and watch.on_synced:
            self._rooms.later(room.wake_now)
        if self.permission != "write":
            self._rooms.dispatcher.fire(room, RoomFSM.upload_refused, UpdateStatusCode.PERMISSION_DENIED)
            self._rooms.later(room.tell_refused, (update,), UpdateStatusCode.PERMISSION_DENIED)
        elif (fsm.in_doubt and fsm.keeps_edits_back) or self._is_overdue:
            room.note_unsent()
        elif type(update) is not bytes or len(update) > self._rooms.max_update_size:
            room.has_unsent = True
            self._later(self._send_odd_edit, update)
        elif len(update) > self._rooms.payload:
            self._send_updates((update,))
        else:
            batch_id = self._rooms.new_batch_id()
            self._send_batch(batch_id, (update,), [write_doc_update(room.header, (update,), batch_id)])

    def send_unsent_later(self) -> None:
        """The adaptor holds more than it has passed on: ask it in the loop's next turn."""
        self._later(self._send_unsent)

    @property
    def _is_overdue(self) -> bool:
        return self.unacked_bytes > MAX_UNACKED_BYTES or len(self._unacked) > MAX_UNACKED_UPDATES

    def _send_unsent(self) -> None:
        room, rooms = self._room, self._rooms
        if room.fsm.keeps_edits_back:  # the comparison brings it
            rooms.dispatcher.fire(room, RoomFSM.edited_in_doubt, rooms.now())
        elif self._is_overdue:
            rooms.dispatcher.fire(room, RoomFSM.acks_overdue, rooms.now())
        elif self._upload is None:
            self._continue_upload()
        room.wake_waiters()

    def _send_odd_edit(self, update: bytes) -> None:
        """One that is too large, or of no type that is expected."""
        self._send_updates((update,), is_edit=True)

    def _send_updates(self, updates: Sequence[bytes], is_edit: bool = False) -> None:
        """Send updates of a comparison, or a local edit, or say why not."""
        room, rooms = self._room, self._rooms
        if not all(isinstance(update, bytes) for update in updates):
            error = TypeError("an update must be bytes")
            report(f"the adaptor of room {room.name!r}, asked for updates,", error)
            room.adaptor_failed("asked for updates", error)
            return
        if self.permission != "write":
            self._refuse_own(updates, UpdateStatusCode.PERMISSION_DENIED, is_edit=False)
            return
        try:
            batches = split(
                room.crdt_type, room.name, updates, rooms.new_batch_id, rooms.payload, rooms.max_update_size
            )
        except ValueError as error:
            rooms.warn_limited("room %r: %s", room.name, error)
            self._refuse_own(updates, UpdateStatusCode.PAYLOAD_TOO_LARGE, is_edit)
            return
        for batch in batches:
            self._send_batch(batch.batch_id, batch.updates, list(batch.frames))

    def _refuse_own(self, updates: Sequence[bytes], status: UpdateStatusCode, is_edit: bool) -> None:
        """They cannot be sent. A comparison may bring an edit in smaller pieces; what it has to send is as it is."""
        self._room.tell_refused(updates, status)
        if is_edit:
            why = "an update is too large to be sent"
            self._post_event(RoomFSM.batch_refused, status, why, self._rooms.now())
        else:
            self._post_event(RoomFSM.upload_refused, status)

    def _send_batch(self, batch_id: int, updates: tuple[bytes, ...], frames: list[bytes]) -> None:
        if self._unacked is NO_BATCHES:
            self._unacked = {}
        self._unacked[batch_id] = updates, frames
        self.unacked_bytes += sum(map(len, updates))
        self._rooms.send(frames)

    def acknowledged(self, batch_id: int, status: UpdateStatusCode) -> None:
        """An Ack came."""
        room = self._room
        updates, unwritten = self._unacked.get(batch_id, NO_BATCH)
        if not updates or (unwritten and status is UpdateStatusCode.OK):
            return  # of an earlier session, or made up
        unwritten.clear()  # a batch may be refused before all of it was written
        del self._unacked[batch_id]
        self.unacked_bytes -= sum(map(len, updates))
        if status is not UpdateStatusCode.OK:
            room.tell_refused(updates, status)
            why = f"the server refused an update: {status.name}"
            self._rooms.dispatcher.fire(room, RoomFSM.batch_refused, status, why, self._rooms.now())
        if self._upload is not None:
            self._continue_upload()
        elif not self._unacked and (room.watch is not None or room.fsm.in_doubt):
            self._settle()

    # What comes

    def apply(self, updates: Sequence[bytes], batch_id: int) -> Iterator[object] | None:
        """Apply a batch of the server's; return what is left to do of a large one, in steps."""
        if len(updates) > MAX_APPLIED_AT_ONCE:
            return self._apply_in_slices(updates, batch_id)
        verdict = self._apply_some(updates)
        if verdict is not UpdateStatusCode.OK or self._room.watch is not None:
            self._end_batch(batch_id, verdict)
        return None

    def _apply_in_slices(self, updates: Sequence[bytes], batch_id: int) -> Iterator[None]:
        verdict, start = UpdateStatusCode.OK, 0
        is_pending = False
        while start < len(updates):
            if self._room.session is not self:
                return  # the next session begins with a comparison
            end, size = start, 0
            while end < len(updates) and end - start < MAX_APPLIED_AT_ONCE and size < MAX_APPLIED_BYTES:
                size += len(updates[end])
                end += 1
            steps = 1 + (end - start) // UPDATES_A_STEP + size // BYTES_A_STEP
            result = self._apply_some(updates[start:end])
            is_pending = is_pending or result is None
            verdict = max(verdict, result or UpdateStatusCode.OK)
            start = end
            for _ in range(steps):
                yield
        self._end_batch(batch_id, None if is_pending and verdict is UpdateStatusCode.OK else verdict)

    def _apply_some(self, updates: Sequence[bytes]) -> UpdateStatusCode | None:
        """What became of them: None if some wait for others that have not come."""
        room, rooms = self._room, self._rooms
        try:
            applied = call_user(APPLYING, _apply, room.adaptor, updates)
        except UserCodeFailed as failed:
            what = "room %r: refused a batch from the server: its adaptor raised %s"
            rooms.warn_limited(what, room.name, type(failed.error).__name__)
            return UpdateStatusCode.INVALID_UPDATE
        if isinstance(applied, ValueError):  # they are bad, as adaptors say it
            what = "room %r: refused a batch from the server: %s"
            rooms.warn_limited(what, room.name, partial(rooms.redaction, applied))
            return UpdateStatusCode.INVALID_UPDATE
        return None if applied is False else UpdateStatusCode.OK

    def _end_batch(self, batch_id: int, verdict: UpdateStatusCode | None) -> None:
        room, rooms = self._room, self._rooms
        if verdict is None:
            why = "an update of the server's waits for others that have not come"
            rooms.dispatcher.fire(room, RoomFSM.updates_lost, UpdateStatusCode.OK, why, rooms.now())
        elif verdict is not UpdateStatusCode.OK:
            self._send_refusal(batch_id, verdict)
            why = "an update of the server's could not be applied"
            rooms.dispatcher.fire(room, RoomFSM.updates_lost, verdict, why, rooms.now())
        room.wake_waiters()

    def _send_refusal(self, batch_id: int, status: UpdateStatusCode) -> None:
        """A server that sends junk and reads nothing must not fill our memory."""
        if self._rooms.backlog < MAX_REPLIES:
            self._rooms.send(write_ack(self._room.header, batch_id, status))

    def reassemble(self, message: DocUpdateFragmentHeader | DocUpdateFragment) -> Iterator[object] | None:
        """A fragment came, or the header of some; apply the update that is whole now, as `apply` does."""
        incoming, fragmented = self._incoming, self._rooms.fragmented
        if incoming not in fragmented and len(fragmented) >= MAX_FRAGMENTED_ROOMS:
            why = f"{len(fragmented)} rooms have batches under way"
            self._refuse_batch(RefusedBatch(message.batch_id, UpdateStatusCode.RATE_LIMITED, why))
            return None
        if incoming is None:
            incoming = self._incoming = IncomingFragments(self._rooms, self._refuse_batch)
        result = incoming.take(message)
        if isinstance(result, bytes):
            return self.apply((result,), message.batch_id)
        if result is not None:
            self._refuse_batch(result)
        return None

    def _refuse_batch(self, refusal: RefusedBatch) -> None:
        name = self._room.name
        self._rooms.warn_limited("room %r: refused a batch of fragments from the server: %s", name, refusal.why)
        self._send_refusal(refusal.batch_id, refusal.status)
        why = "a batch from the server never came whole"
        self._post_event(RoomFSM.updates_lost, refusal.status, why, self._rooms.now())

    # Presence (D-PRESENCE)

    def _set_renewal(self) -> None:
        try:
            doing = "asked when to renew"
            interval = self._room.call_adaptor(doing, getattr, self._room.adaptor, "renew_interval", None)
        except UserCodeFailed:
            return
        if interval is not None:
            self._renewal = self._rooms.call_later(max(float(interval), MIN_RENEWAL), self._renew)

    def _renew(self, _: Timer) -> None:
        self._renewal = None
        adaptor: Any = self._room.adaptor
        notify_user(f"the adaptor of room {self._room.name!r}, told to renew,", adaptor.renew)
        self._set_renewal()

    def _stop_renewal(self) -> None:
        if self._renewal is not None:
            self._rooms.timers.cancel(self._renewal)
            self._renewal = None

    def take_back_presence(self) -> None:
        """Remove at the others what they would see of this program until it times out; once is enough."""
        if not self._is_present:
            return
        self._is_present = False
        try:
            adaptor: Any = self._room.adaptor
            updates = list(self._room.call_adaptor("asked to take back its own", adaptor.take_back))
        except UserCodeFailed:
            return
        if updates and self.permission == "write":
            self._send_updates(updates)

    @property
    def timers(self) -> int:
        """How many timers it has."""
        return (self._renewal is not None) + (self._incoming is not None and self._incoming.has_timer)

    def forget_timers(self) -> None:
        """The event loop has ended, and the timers with it."""
        self._renewal = None
        if self._incoming is not None:
            self._incoming.forget_timer()


class IncomingFragments:
    """The batches of one session that come in fragments, with one timer: for the batch that is due first."""

    __slots__ = ("_reassembler", "_refuse", "_rooms", "_timer")

    def __init__(self, rooms: Rooms, refuse: Callable[[RefusedBatch], None]) -> None:
        """``refuse`` is called with each batch that did not come whole in its time."""
        self._rooms = rooms
        self._refuse = refuse
        self._reassembler = Reassembler(rooms.max_update_size, FRAGMENT_PATIENCE)
        self._timer: Timer | None = None

    @property
    def size(self) -> int:
        """Bytes of fragments kept."""
        return self._reassembler.size

    @property
    def is_awaiting(self) -> bool:
        """Whether a batch is under way."""
        return self._reassembler.next_deadline() is not None

    @property
    def has_timer(self) -> bool:
        """Whether a timer is set."""
        return self._timer is not None

    def take(self, message: DocUpdateFragmentHeader | DocUpdateFragment) -> bytes | RefusedBatch | None:
        """A fragment came, or a header: the update that is whole now, or the refusal of its batch."""
        reassembler, now = self._reassembler, self._rooms.now()
        self._expire(now)
        limit = max(MAX_FRAGMENT_BYTES, self._rooms.max_update_size)
        result: bytes | RefusedBatch | None
        if isinstance(message, DocUpdateFragmentHeader):
            result = reassembler.begin(message, now)
        elif reassembler.awaits(message) and self._size_of_all() + len(message.fragment) > limit:
            why = f"the batches under way hold {limit} bytes"
            result = reassembler.refuse(message.batch_id, UpdateStatusCode.RATE_LIMITED, why)
        else:
            result = reassembler.add(message, now)
        self._set_timer()
        return result

    def end(self) -> None:
        """Forget them all, without a refusal."""
        self._reassembler.clear()
        self._set_timer()

    def forget_timer(self) -> None:
        """The event loop has ended, and the timer with it."""
        self._timer = None

    def _size_of_all(self) -> int:
        return sum(each.size for each in self._rooms.fragmented)

    def _set_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._rooms.timers.cancel(timer)
        at = self._reassembler.next_deadline()
        if at is None:
            self._rooms.fragmented.discard(self)
        else:
            self._rooms.fragmented.add(self)
            self._timer = self._rooms.call_at(at, self._timer_fired)

    def _timer_fired(self, timer: Timer) -> None:
        self._expire(max(self._rooms.now(), timer.when))
        self._set_timer()

    def _expire(self, now: float) -> None:
        for refusal in self._reassembler.expire(now):
            self._refuse(refusal)


def _apply(adaptor: Adaptor, updates: Sequence[bytes]) -> bool | ValueError | None:
    """ValueError is an answer of an adaptor's, and no fault of it."""
    try:
        return adaptor.apply(updates)
    except ValueError as error:
        return error
