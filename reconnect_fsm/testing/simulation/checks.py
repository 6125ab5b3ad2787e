"""What must hold at every step of a simulation, whatever the network, the server and the program do.

`INVARIANTS` names everything. A `Witness` watches one client: it listens as the client's listeners do, counts what is
alive by itself, and compares the two after every pass of the event loop (`Witness.check_step`), and more closely
whenever all tasks wait (`Witness.check_quiet`), as nothing is half done then.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

from aiohttp import WSMsgType
from aiohttp._websocket.reader_py import ALLOWED_CLOSE_CODES

from reconnect_fsm import errors
from reconnect_fsm._asyncio.client import Client
from reconnect_fsm._asyncio.client_driver import ClientDriver
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver
from reconnect_fsm._asyncio.room import Room, driver_of
from reconnect_fsm._asyncio.transport.socket import Socket
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.errors import ClientStopped, JoinRefused, NotConnected, ProtocolError, RoomLeft
from reconnect_fsm.keepalive import MIN_RATE, PING, PONG
from reconnect_fsm.loro_protocol import DocUpdate, JoinResponseOk, decode
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import ClientStatus, CloseInfo, RoomStatus, StateChange, StatusChange
from reconnect_fsm.testing.simulation.network import End, Frame, Link, NetworkLoop

__all__ = ["INVARIANTS", "Operation", "RoomBook", "Witness", "machines_timer", "watching_dials"]

INVARIANTS: Final = {
    "one-socket": "A client has at most one live socket, and none while it dials.",
    "one-dial": "A client has at most one dial under way.",
    "one-timer": "A client has at most one retry timer.",
    "no-uncalled-attempt": "A client that is stopped, or paused offline, makes no attempt until it is asked to.",
    "fatal-is-final": "After a close or an answer that its machine calls fatal, a client is stopped.",
    "wait-in-range": "A wait is at least 0 and at most the policy's cap, or 5 minutes if the server asked for it.",
    "wait-is-kept": "The next attempt is made when the announced wait is over; neither sooner nor later.",
    "backoff-grows": "The waits grow as the policy says, until a stable connection, a user or the network resets them.",
    "all-is-told": "Every change is notified once and in order: each `connected` is followed by exactly one loss.",
    "no-status-twice": "No status is notified twice in a row, of a client or of a room.",
    "status-is-true": "The last notified status is true, and what is alive fits it: a socket if connected, else none.",
    "never-wedged": "A client not stopped has a dial, timer or socket, unless it is offline; its queue is never stuck.",
    "rooms-first": "When listeners are called with a loss or a stop, no room counts as joined any more.",
    "room-is-true": "A room's status was notified and fits the client's: joined only if connected, tracked to its end.",
    "room-never-wedged": "A tracked room of a connected client is joined, or has a timer.",
    "half-open-noticed": "A connection on which nothing arrives is given up within interval + timeout + grace.",
    "good-network-holds": "On a good network no connection is lost and no client changes its state.",
    "operations-end": "Every operation ends, unless what it waits for has not happened.",
    "errors-as-documented": "Operations raise what they are documented to raise; CancelledError only if cancelled.",
    "let-go-in-time": "What is no longer used is closed in time: sockets, sessions and tasks do not pile up.",
    "settles-in-time": "On a good network, every client is connected and every tracked room joined within a bound.",
    "documents-converge": "Then all documents of a room are equal, the server's too, within a bound.",
    "no-edit-lost": "At the end every edit of every client is in every document.",
    "order-kept": "What a server sends on a connection is received in that order, without gaps.",
    "nothing-dropped": "Everything that came before a server's close is received before the close is notified.",
    "calls-act": "When a call returns, it has acted: the status shows it, and nothing is left in the queue.",
    "synced-is-true": "When a room is synced, the server has all of its document.",
    "no-false-death": "No connection is called dead while bytes move at a fair rate.",
    "no-secret-shown": "No secret is in anything that is notified, logged, explained or recorded.",
    "faults-are-told": "What the user's code raises is logged with its traceback, and the loop's handler gets it.",
    "no-error-logged": "Nothing is logged as an error unless it was done on purpose, and nothing warns.",
    "time-goes-by": "The event loop does not stay busy for ever.",
    "nothing-left": "At the end no task, timer, transport, descriptor or connection is left.",
}
"""Name, and what it says."""

FAILURES: Final = ("socket_closed", "pong_missed", "dial_failed")
STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
FAIR_RATE: Final = 4 * MIN_RATE  # bytes a second
MANY_ROOMS: Final = 50
SLACK: Final = 1.0  # seconds; for what takes a few round trips on a slow link
GRACE: Final = 2.0  # seconds; LIVE-2: after a stall of our own loop

Fail = Callable[[str, str], None]


@dataclass(eq=False)
class Operation:
    """Something that a user awaits."""

    name: str
    task: asyncio.Task[Any]
    allowed: tuple[type[BaseException], ...]
    """What it may raise."""
    cancelled: bool = False
    is_due: Callable[[], bool] = bool
    """Whether it must have ended by now; called when all tasks wait."""


@dataclass
class RoomBook:
    """What was notified of a room."""

    witness: Witness
    room_id: str
    header: bytes
    told: RoomStatus = RoomStatus.DISCONNECTED
    stops: int = 0
    """How often it became disconnected."""

    def listener(self, change: StatusChange[RoomStatus]) -> None:
        """For `Room.on_status`."""
        witness = self.witness
        witness.note(witness.name, f"room {self.room_id}: {change.old} → {change.new}: {change.reason}")
        witness.seen["room statuses"] += 1
        witness.check_shown(change)
        if change.new is not RoomStatus.JOINED:
            witness.session_ended(self.header)
        witness.check_chain(f"room {self.room_id} of {witness.name}", change, self.told)
        self.told = change.new
        self.stops += change.new is RoomStatus.DISCONNECTED


NOT_HEARD: Final = (PING.encode(), PONG.encode())  # texts that are the protocol's


class _Session:
    """What the server sent to a room since it answered the join, and what of it was applied."""

    def __init__(self) -> None:
        self._place = 0  # on the tape: the next frame
        self._waiting: deque[bytes] = deque()  # for being applied
        self._is_joined = False
        self._applied: set[bytes] = set()  # the same may come in two answers to joins

    def end(self) -> None:
        self._waiting.clear()
        self._is_joined = False

    def applied(self, header: bytes, end: End, update: bytes) -> int:
        """How many were passed over for this update. One that was not sent in one piece counts for nothing."""
        waiting, is_joined = deque(self._waiting), self._is_joined
        frames = end.tape.frames
        for place in range(self._place, len(frames) + 1):
            if update in waiting:
                passed_over = 0
                while (other := waiting.popleft()) != update:
                    passed_over += other not in self._applied
                self._applied.add(update)
                self._place, self._waiting, self._is_joined = place, waiting, is_joined
                return passed_over
            if place == len(frames) or frames[place].ends > end.taken:
                break
            frame = frames[place]
            if frame.kind is not WSMsgType.BINARY or not frame.payload.startswith(header):
                continue
            try:
                message = decode(frame.payload)
            except ProtocolError:
                continue
            if isinstance(message, JoinResponseOk):
                waiting.clear()
                is_joined = True
            elif isinstance(message, DocUpdate) and is_joined:
                waiting.extend(message.updates)
        return 0


@dataclass(eq=False)
class Witness:
    """Watches one client."""

    name: str
    client: Client
    link: Link
    loop: NetworkLoop
    fail: Fail
    note: Callable[[str, str], None]
    seen: Counter[str]

    secret: str
    """What must not be shown."""
    knows: Callable[[str], bool]
    """Whether the client can know that a text holds a secret."""

    is_server_slow: Callable[[], bool] = bool
    """Whether the server takes its time to answer anything."""
    is_calm: bool = False
    """Whether the network is good, and has been for long enough."""
    mute_since: float | None = None
    """Since when nothing can come from the server."""

    dials: list[asyncio.Task[Any]] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    operations: dict[Operation, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        client, driver = self.client, connection_driver_of(self.client)
        assert isinstance(driver, ClientDriver)
        self.driver = driver
        self.policy: RetryPolicy = driver.settings.retry
        self.told: ClientStatus = client.status
        self.told_state = client.state
        self.rooms: dict[Room, RoomBook] = {}
        self._online = True
        self._asked = False
        self._failures = 0  # in a row, as the machine must at least have counted
        self._reset_at = -1.0  # when something was asked for that makes it count anew
        self._connected_at = 0.0
        self._stalls = 0.0
        self._wait: tuple[float, float, float] | None = None  # when it began, how long it is, and what was stalled then
        self._ending: dict[asyncio.Task[Any], float] = {}
        self._taken = 0
        self._came_at = 0.0  # when something was last read
        self._looked_at = 0.0  # when rooms were last looked at
        self._bad_at = 0.0  # when the link or the server was last too bad for a pong to be sure to come
        self._was_bad = False
        self._stalled = 0.0
        self._timer_set = 0.0, 0.0  # when the latest timer was set, and what was stalled then
        self.gave_up = False
        """Whether it was this program that gave up the last connection."""
        self._end: End | None = None  # of the latest connection
        self._place = 0  # on its tape: the frame that was heard last
        self._sessions: dict[bytes, _Session] = {}  # of rooms, by what their frames begin with
        client.on_transition(self._transition)
        client.on_status(self._status)
        self.link.on_attempt = self._attempt

    # What the user did

    def asked_to_connect(self) -> None:
        """`connect`, `retry_now` or `start` was called."""
        self._asked = True
        self._reset_at = self.loop.time()

    def told_online(self, online: bool) -> bool:
        """`set_online` was called; return what was known before."""
        was_online = self._online
        if online:
            self._reset_at = self.loop.time()
        elif self._online and self._reset_at != self.loop.time():  # else a source says so while it is asked
            self._asked = False
        self._online = online
        return was_online

    def hears_online(self, online: bool) -> None:
        """A network source tells what it knows, before what was asked for is done."""
        self._online = online

    def remaining_wait(self) -> float:
        """Seconds that are left of the wait that was announced, if any."""
        return 0.0 if self._wait is None else max(self._wait[0] + self._wait[1] - self.loop.time(), 0.0)

    # What it is notified of

    def _transition(self, change: StateChange) -> None:
        wait = "" if change.retry_in is None else f"; retry {change.attempt} in {change.retry_in:.6f} s"
        self.note(self.name, f"{change.old} → {change.new} ({change.event}): {change.reason}{wait}")
        self.seen["transitions"] += 1
        if change.old != self.told_state:
            self.fail(
                "all-is-told", f"{self.name}: told {change.old} → {change.new}, but it was {self.told_state} before"
            )
        if self.is_calm:
            self.fail("good-network-holds", f"{self.name}: {change.old} → {change.new}: {change.reason}")
        if change.new != change.old:
            self.seen[f"state {change.new}"] += 1
        self.told_state = change.new
        if change.old == "connected" and change.status is not ClientStatus.CONNECTED:
            self.gave_up = change.event not in ("socket_closed", "pong_missed")
        self.check_shown(change)
        self.check_shown_text(self.client.explain())
        self._check_all_heard(change)
        self._check_death(change)
        self._check_wait_kept(change)
        self._check_fatal(change)
        lasted = None
        if change.old == "connected":
            lasted = self.loop.time() - self._connected_at
        if change.new == "connected":
            self.seen["connected"] += 1
            self._connected_at, self._stalls = self.loop.time(), self.loop.stalled
        self._count_failures(change, lasted)
        if change.retry_in is not None:
            self._check_wait(change, change.retry_in)

    def _count_failures(self, change: StateChange, lasted: float | None) -> None:
        if self._reset_at >= 0:  # a listener may ask before it hears of what came before it asked
            self._failures = 0
            if self._reset_at < self.loop.time():
                self._reset_at = -1.0
        if change.event in FAILURES and self._reset_at < 0:
            is_reset = lasted is not None and lasted >= self.policy.stable_after
            self._failures = 1 if is_reset else self._failures + 1

    def _check_wait(self, change: StateChange, wait: float) -> None:
        # It began when the timer was set; that it did is told later, if there are many rooms.
        began, stalled = self._timer_set if self.timers else (self.loop.time(), self.loop.stalled)
        self._wait = began, wait, stalled
        most = self.policy.cap
        fsm = self.driver.fsm
        if fsm.not_before is not None:  # the server has asked for it, some time ago perhaps (D-HTTP)
            most = max(most, self.policy.max_retry_after * (1 + 2 * self.policy.jitter))
        if not 0 <= wait <= most:
            what = f"{self.name} waits {wait:g} s in {change.new!r}; at most {most:g} s are allowed"
            if change.new != "waiting":  # it is none of the library's
                what += ": a machine with waits of its own needs a policy whose cap allows for them (client=)"
            self.fail("wait-in-range", what)
        is_backoff = change.event in FAILURES  # not a wait that damps the network's flapping (OFF-2)
        if is_backoff and type(self.policy).delay is RetryPolicy.delay:
            policy = self.policy
            centre = min(policy.base * 2.0 ** min(self._failures - 1, 32), policy.cap / (1 + policy.jitter))
            if wait < centre * (1 - policy.jitter) - 1e-6:
                what = f"{self.name} waits {wait:g} s after {self._failures} failures in a row"
                self.fail("backoff-grows", f"{what}; the policy says {centre:g} s, less {policy.jitter:.0%}")

    def _check_wait_kept(self, change: StateChange) -> None:
        wait, self._wait = self._wait, None
        if wait is None or change.event != "timer_fired":
            return
        began, length, stalled = wait
        late = self.loop.time() - began - length
        if not -1e-3 <= late <= 1e-3 + self.loop.stalled - stalled:
            self.fail(
                "wait-is-kept", f"{self.name} announced a wait of {length:g} s, and it was over {late:+g} s from that"
            )

    def _check_fatal(self, change: StateChange) -> None:
        fsm = self.driver.fsm
        closing = self._closing() if change.event == "socket_closed" else None
        if closing is not None and type(fsm).is_fatal_close is ClientFSM.is_fatal_close:  # D-JUDGED: as it was said
            code = int.from_bytes(closing.payload[:2], "big") or 1005
            reason = closing.payload[2:].decode(errors="replace")
            is_read = code != 1006 and (code in ALLOWED_CLOSE_CODES or code >= 3000)  # else it breaks the protocol
            if is_read and self.policy.is_fatal_close(CloseInfo(code, reason)) and change.status not in STOPPED:
                self.fail("fatal-is-final", f"{self.name} is {change.new} after a close with {code} {reason!r}")
        fatal = (change.event == "socket_closed" and fsm.is_fatal_close()) or (
            change.event == "dial_failed" and (fsm.is_fatal_failure() or fsm.is_misconfigured())
        )
        if fatal:
            self.seen["fatal"] += 1
            if change.status not in STOPPED:
                self.fail("fatal-is-final", f"{self.name} is {change.new} after: {change.reason}")

    def _status(self, change: StatusChange[ClientStatus]) -> None:
        self.note(self.name, f"{change.old} → {change.new}: {change.reason}")
        self.seen["client statuses"] += 1
        self.check_shown(change)
        self.check_chain(self.name, change, self.told)
        self.told = change.new
        is_connected = ClientStatus.CONNECTED in (change.new, self.client.status)
        if not is_connected and (joined := self._joined()):
            self.fail("rooms-first", f"{self.name} is told {change.new} while {joined} counts as joined")

    def _joined(self) -> str | None:
        return next((room.id for room in self.client.rooms if room.status is RoomStatus.JOINED), None)

    def check_chain(self, who: str, change: StatusChange[Any], told: object) -> None:
        """A change of status was notified; the last status before it was this."""
        if change.new == told:
            self.fail("no-status-twice", f"{who}: told {change.new} twice in a row")
        elif change.old != told:
            self.fail("all-is-told", f"{who}: told {change.old} → {change.new}, but {told} before")

    # What the server said

    def opened(self, socket: Socket) -> None:
        """A dial came to its end."""
        self.sockets.append(socket)
        sock = None if socket.transport is None else socket.transport.get_extra_info("socket")
        self._end = getattr(sock, "_sock", sock)
        self._place = 0
        self._sessions.clear()

    def heard(self, data: str | bytes) -> None:
        """For `Client.on_message`: a text, which must be the next that was sent."""
        self.seen["texts"] += 1
        if isinstance(data, bytes) or self._end is None:
            return
        frame = self._next_text(len(self._end.tape.frames))
        if frame is None:
            self.fail("order-kept", f"{self.name} hears {data[:20]!r}, and the server has sent nothing more")
        elif frame.payload.decode() != data:
            self.fail("order-kept", f"{self.name} hears {data[:20]!r}, and {frame.payload[:20]!r} was sent before it")

    def _next_text(self, until: int) -> Frame | None:
        assert self._end is not None
        frames = self._end.tape.frames
        while self._place < until:
            frame = frames[self._place]
            self._place += 1
            if frame.kind is WSMsgType.TEXT and frame.payload not in NOT_HEARD:
                return frame
        return None

    def _closing(self) -> Frame | None:
        """The server's close frame on the latest connection, if it has come."""
        if self._end is None:
            return None
        frames, taken = self._end.tape.frames, self._end.taken
        return next((frame for frame in frames if frame.kind is WSMsgType.CLOSE and frame.ends <= taken), None)

    def _check_all_heard(self, change: StateChange) -> None:
        if change.event != "socket_closed" or (closing := self._closing()) is None or self._end is None:
            return
        self.seen["closes by the server"] += 1
        missed = self._next_text(self._end.tape.frames.index(closing))
        if missed is not None:
            what = f"the close is told, and {missed.payload[:20]!r}, sent before it, was not heard"
            self.fail("nothing-dropped", f"{self.name}: {what}")

    def applied(self, header: bytes, updates: Sequence[bytes]) -> None:
        """A room's adaptor gets updates: the next ones that were sent in this session, if they came whole."""
        if self._end is None:
            return
        session = self._sessions.setdefault(header, _Session())
        for update in updates:
            if passed_over := session.applied(header, self._end, update):
                what = (
                    f"an update of {len(update)} bytes is applied, and {passed_over} that were sent before it were not"
                )
                self.fail("order-kept", f"{self.name}: {what}")

    def session_ended(self, header: bytes) -> None:
        """A room is not joined any more."""
        if (session := self._sessions.get(header)) is not None:
            session.end()

    # What is shown

    def check_shown(self, change: StatusChange[Any] | StateChange) -> None:
        """Nothing of it holds a secret."""
        self.check_shown_text(f"{change} {change!r} {change.reason}")

    def check_shown_text(self, text: str) -> None:
        """It holds none."""
        if self.secret in text and self.knows(text):
            at = text.index(self.secret)
            self.fail("no-secret-shown", f"{self.name} shows …{text[max(at - 60, 0) : at + 20]}…")

    def _attempt(self) -> None:
        """A connection is being made."""
        self.seen["attempts"] += 1
        status, live = self.client.status, self.live_dials()
        if status in STOPPED or not live or not (self._online or self._asked):
            online = "" if self._online else ", offline, and not asked to"
            self.fail("no-uncalled-attempt", f"{self.name} connects while {self.client.state}{online}; {live} dials")
        if not self._online:
            self._asked = False  # it was asked for one

    def timer_set(self, timer: asyncio.TimerHandle) -> None:
        """It set the timer of its machine."""
        self.timers = [each for each in self.timers if _is_set(each)]
        self.timers.append(timer)
        self._timer_set = self.loop.time(), self.loop.stalled

    # What is alive

    def live_dials(self) -> int:
        return sum(not dial.cancelling() for dial in self.dials)

    def live_sockets(self) -> int:
        self.sockets = [each for each in self.sockets if not each._closing and not _is_gone(each)]
        return len(self.sockets)

    def check_step(self) -> None:
        """Check after a pass of the event loop."""
        if len(self.sockets) + len(self.dials) > 1:
            sockets, dials = self.live_sockets(), self.live_dials()
            if sockets and sockets + dials > 1:
                self.fail("one-socket", f"{self.name} has {sockets} live sockets and {dials} dials")
            if dials > 1:
                self.fail("one-dial", f"{self.name} has {dials} dials under way")
        if len(self.timers) > 1 and (timers := sum(map(_is_set, self.timers))) > 1:
            self.fail("one-timer", f"{self.name} has {timers} timers of its machine")

    def check_quiet(self) -> None:
        """Check when all tasks wait: nothing is half done."""
        client, status = self.client, self.client.status
        if self.driver.dispatcher.is_running:
            self.fail("never-wedged", f"{self.name}: all tasks wait, but its event queue is not empty")
        if self.told is not status or self.told_state != client.state:
            self.fail(
                "status-is-true", f"{self.name} is {status} ({client.state}); told {self.told} ({self.told_state})"
            )
        sockets, dials, timers = self.live_sockets(), self.live_dials(), sum(map(_is_set, self.timers))
        alive = f"{sockets} sockets, {dials} dials, {timers} timers"
        if status is ClientStatus.CONNECTED:
            fits = sockets == 1 and dials == 0
        elif status in STOPPED:
            fits = sockets == dials == timers == 0
        else:
            fits = sockets == 0 and dials + timers <= 1
            if dials + timers == 0 and self._online:
                self.fail(
                    "never-wedged", f"{self.name} is {client.state}, online, and nothing will ever happen: {alive}"
                )
        if not fits:
            self.fail("status-is-true", f"{self.name} is {client.state} with {alive}")
        self._check_quality()
        self.check_half_open()
        self._check_let_go()
        if self.is_time_for_rooms():
            for room in client.rooms:
                self._check_room(room, status)
            self._check_books()
        self._check_operations()

    def _check_operations(self) -> None:
        for operation in tuple(self.operations):
            if operation.cancelled or operation.is_due():
                why = "it was cancelled" if operation.cancelled else "what it waits for is there"
                self.fail("operations-end", f"{self.name}: {operation.name} goes on waiting, though {why}")

    def is_time_for_rooms(self) -> bool:
        """Whether to look at the rooms now: at every rest, unless they are many; then once a second."""
        now = self.loop.time()
        is_time = len(self.driver.rooms) < MANY_ROOMS or now - self._looked_at >= 1 or now == self._looked_at
        if is_time:
            self._looked_at = now
        return is_time

    def _check_quality(self) -> None:
        link, timeout = self.link, self.driver.settings.keepalive.timeout
        is_slow = 8 * link.latency > timeout or (link.rate is not None and link.rate < FAIR_RATE)
        has_stalled, self._stalled = self.loop.stalled > self._stalled, self.loop.stalled
        is_bad = is_slow or has_stalled or self.mute_since is not None or self.is_server_slow()
        if is_bad or self._was_bad:
            self._bad_at = self.loop.awake()
        self._was_bad = is_bad

    def _check_death(self, change: StateChange) -> None:
        if change.event != "pong_missed":
            return
        self.seen["called dead"] += 1
        keepalive = self.driver.settings.keepalive
        good_for = self.loop.awake() - self._bad_at
        is_certain = not self._was_bad and self.loop.stalled == self._stalled
        if is_certain and good_for > keepalive.interval + keepalive.timeout + GRACE:
            what = f"is called dead, on a link that was good for {good_for:.0f} s: {change.reason}"
            self.fail("no-false-death", f"{self.name} {what}")

    def check_half_open(self) -> None:
        """Whether a connection on which nothing comes is given up in time."""
        keepalive = self.driver.settings.keepalive
        came_at = self._came_at
        if self._end is not None and self._end.taken != self._taken:
            self._taken, self._came_at = self._end.taken, self.loop.time()  # what was under way
        if self.mute_since is None or not keepalive.enabled or self.client.status is not ClientStatus.CONNECTED:
            return
        stalled = self.loop.stalled - self._stalls
        extra = stalled + (keepalive.timeout + GRACE if stalled else 0.0)
        since = max(self.mute_since, self._connected_at, came_at)
        most = keepalive.interval + keepalive.timeout + GRACE + SLACK + extra
        if self.loop.time() - since > most:
            self.fail("half-open-noticed", f"{self.name} has been connected without a peer since {since:.6f}")

    def _check_let_go(self) -> None:
        ending = self.driver.teardown.tasks
        if not ending:
            self._ending.clear()
            most = 0 if self.client.state in ("waiting", "paused", "disconnected", "error") else 1
            if len(self.link.ends) > most:
                what = f"{len(self.link.ends)} TCP connections while {self.client.state}"
                self.fail("let-go-in-time", f"{self.name} has {what}, and nothing is about to close them")
            return
        now = self.loop.awake()
        self._ending = {task: self._ending.get(task, now) for task in ending}
        if now - min(self._ending.values()) > 2 * self.driver.settings.close_timeout + 1 + SLACK:
            self.fail(
                "let-go-in-time", f"{self.name} has been closing something for {now - min(self._ending.values()):g} s"
            )

    def _check_room(self, room: Room, status: ClientStatus) -> None:
        book = self.rooms.get(room)
        if book is None:
            return  # joined by a listener of the user's own
        who = f"room {room.id} of {self.name}"
        if room.status is not book.told:
            self.fail("room-is-true", f"{who} is {room.status}, told {book.told}")
        if status is ClientStatus.CONNECTED:
            if room.status is RoomStatus.JOINED:
                if room.permission is None:
                    self.fail("room-is-true", f"{who} is joined without a permission")
            elif not driver_of(room).has_timer and not driver_of(room).awaits_turn:
                self.fail("room-never-wedged", f"{who} is {room.state} while connected, and no timer is set")
            return
        # A room that is joined while the client is stopped is kept for when it is started: connecting (JOIN-1).
        fitting = (
            (RoomStatus.DISCONNECTED, RoomStatus.CONNECTING)
            if status in STOPPED
            else (RoomStatus.CONNECTING, RoomStatus.RECONNECTING)
        )
        if room.status not in fitting:
            self.fail("room-is-true", f"{who} is {room.status} while the client is {status}")

    def _check_books(self) -> None:
        tracked = self.client.rooms
        for room, book in tuple(self.rooms.items()):
            if room in tracked:
                continue
            if room.status not in (RoomStatus.DISCONNECTED, RoomStatus.ERROR) or driver_of(room).has_timer:
                self.fail("room-is-true", f"room {room.id} of {self.name} is {room.state}, and not tracked")
            if room.status is not book.told:
                self.fail("room-is-true", f"room {room.id} of {self.name} is {room.status}, told {book.told}")
            del self.rooms[room]  # it is over, for good
        rooms = self.driver.rooms
        timers = sum(driver_of(room).timers for room in tracked)
        if not rooms.admission.waiting and len(rooms.timers) != timers:  # of who awaits a turn, the timer ran out
            self.fail("room-never-wedged", f"{self.name}: {len(rooms.timers)} timers for {timers} of its rooms")

    # Operations

    def operation_ended(self, operation: Operation) -> None:
        """Its task is done."""
        self.operations.pop(operation, None)
        task = operation.task
        if task.cancelled():
            how, fine = "cancelled", operation.cancelled
        elif (error := task.exception()) is not None:
            how, fine = type(error).__name__, isinstance(error, operation.allowed)
        else:
            result = task.result()
            how, fine = f"{result:.6f} s" if isinstance(result, float) else "ok", True
        self.note(self.name, f"{operation.name}: {how}")
        self.seen[f"ended: {how if not how.endswith(' s') else 'ok'}"] += 1
        if not fine:
            self.fail("errors-as-documented", f"{self.name}: {operation.name} raised {how}")


STOPS = (ClientStopped,)
ROOM_ENDS: tuple[type[Exception], ...] = (ClientStopped, JoinRefused, RoomLeft)
ROOM_ENDS += (errors.UpdatesRefused,) if hasattr(errors, "UpdatesRefused") else ()
PING_ENDS = (ClientStopped, NotConnected, TimeoutError)


@contextmanager
def watching_dials(witnesses: dict[ConnectionDriver, Witness]) -> Iterator[None]:
    """Tell the witnesses of every dial and every socket of their clients."""
    original = ConnectionDriver.open_socket

    async def watched(driver: ConnectionDriver) -> Socket:
        witness, dial = witnesses[driver], asyncio.current_task()
        assert dial is not None
        witness.dials.append(dial)
        try:
            socket = await original(driver)
        finally:
            witness.dials.remove(dial)
        witness.opened(socket)
        return socket

    with mock.patch.object(ConnectionDriver, "open_socket", watched):
        yield


def machines_timer(args: tuple[Any, ...]) -> ConnectionDriver | None:
    """The driver for whose machine a timer of the loop with these arguments is, if any."""
    function = args[1] if len(args) > 1 else None
    owner = getattr(function, "__self__", None)
    is_one = isinstance(owner, ConnectionDriver) and function == owner.on_timer
    return owner if is_one else None


def _is_set(timer: asyncio.TimerHandle) -> bool:
    return not timer.cancelled() and timer._scheduled  # type: ignore[attr-defined]


def _is_gone(socket: Socket) -> bool:
    transport = socket.transport
    return transport is None or transport.is_closing()
