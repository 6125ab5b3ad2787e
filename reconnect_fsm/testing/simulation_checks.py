"""What must hold at every step of a simulation, whatever the network, the server and the program do.

`INVARIANTS` names it all. A `Witness` watches one client: it hears what the client's listeners hear, counts what is
alive by itself, and compares the two after every pass of the event loop (`Witness.check_step`) and more closely
whenever everybody waits (`Witness.check_quiet`), for then nothing is half done.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

from reconnect_fsm.client import Client
from reconnect_fsm.connection import Connection
from reconnect_fsm.errors import ClientStopped, JoinRefused, NotConnected, RoomLeft
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.rooms import Room
from reconnect_fsm.status import ClientStatus, RoomStatus, StateChange, StatusChange
from reconnect_fsm.transport import MAX_RETRY_AFTER, Socket

from .simulation_network import CAPACITY, Link, NetworkLoop

__all__ = ["INVARIANTS", "Operation", "RoomBook", "Witness", "machines_timer", "watching_dials"]

INVARIANTS: Final = {
    "one-socket": "A client has at most one live socket, and none while it dials.",
    "one-dial": "A client has at most one dial under way.",
    "one-timer": "A client has at most one retry timer.",
    "no-uncalled-attempt": "A client that is stopped, or paused offline, makes no attempt until it is asked to.",
    "fatal-is-final": "After a close or an answer that its machine calls fatal, a client is stopped.",
    "wait-in-range": "A wait is at least 0 and at most the policy's cap, or 5 minutes if the server asked for it.",
    "wait-is-kept": "The next attempt is made when the announced wait is over; neither sooner nor later.",
    "backoff-grows": "The waits grow as the policy says, until a stable connection, a person or the network ends that.",
    "all-is-told": "Every change is told once and in order: each `connected` is followed by exactly one loss.",
    "no-status-twice": "No status is told twice in a row, of a client or of a room.",
    "status-is-true": "What was told last is the status, and what is alive fits it: a socket if connected, else none.",
    "never-wedged": "A client on its way has a dial or a timer, unless it is offline; its queue is never stuck.",
    "rooms-first": "When listeners hear of a loss or a stop, no room counts as joined any more.",
    "room-is-true": "A room's status was told, and fits the client's: joined only if connected, tracked until over.",
    "room-never-wedged": "A tracked room of a connected client is joined, or a timer will see to it.",
    "half-open-noticed": "A connection on which nothing comes is given up within interval + timeout + grace.",
    "good-network-holds": "On a good network no connection is lost and no client changes its state.",
    "operations-end": "Every operation ends, or what it waits for has not come about.",
    "errors-as-documented": "Operations raise what they are documented to raise; CancelledError only if cancelled.",
    "let-go-in-time": "What was let go is closed in time: sockets, sessions and tasks do not pile up.",
    "settles-in-time": "On a good network, every client is connected and every tracked room joined within a bound.",
    "documents-converge": "Then all documents of a room are equal, the server's too, within a bound.",
    "no-edit-lost": "At the end every edit of every client is in every document.",
    "no-error-logged": "Nothing is logged as an error that was not done on purpose, and nothing warns.",
    "time-goes-by": "Nobody keeps the event loop busy for ever.",
    "nothing-left": "At the end no task, timer, transport, descriptor or connection is left.",
}
"""Name, and what it says."""

STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
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
    """Whether it must have ended by now, asked when everybody waits."""


@dataclass
class RoomBook:
    """What was told of a room."""

    witness: Witness
    room_id: str
    told: RoomStatus = RoomStatus.DISCONNECTED
    stops: int = 0
    """How often it became disconnected."""

    def listener(self, change: StatusChange[RoomStatus]) -> None:
        """For `Room.on_status`."""
        witness = self.witness
        witness.note(witness.name, f"room {self.room_id}: {change.old} → {change.new}: {change.reason}")
        witness.seen["room statuses"] += 1
        witness.check_chain(f"room {self.room_id} of {witness.name}", change, self.told)
        self.told = change.new
        self.stops += change.new is RoomStatus.DISCONNECTED


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

    is_calm: bool = False
    """Whether the network is good, and has been for long enough."""
    mute_since: float | None = None
    """Since when nothing can come from the server."""

    dials: list[asyncio.Task[Any]] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    operations: dict[Operation, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        client = self.client
        self.policy: RetryPolicy = client._retry
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
        client.on_transition(self._transition)
        client.on_status(self._status)
        self.link.on_attempt = self._attempt

    # What the user did

    def asked_to_connect(self) -> None:
        """Somebody called `connect`, `retry_now` or `start`."""
        self._asked = True
        self._reset_at = self.loop.time()

    def told_online(self, online: bool) -> None:
        """Somebody called `set_online`."""
        if online:
            self._reset_at = self.loop.time()
        elif self._online:
            self._asked = False
        self._online = online

    def remaining_wait(self) -> float:
        """Seconds that are left of the wait that was announced, if any."""
        return 0.0 if self._wait is None else max(self._wait[0] + self._wait[1] - self.loop.time(), 0.0)

    # What it hears

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
        if change.event in ("socket_closed", "pong_missed", "dial_failed") and self._reset_at < 0:
            is_reset = lasted is not None and lasted >= self.policy.stable_after
            self._failures = 1 if is_reset else self._failures + 1

    def _check_wait(self, change: StateChange, wait: float) -> None:
        self._wait = self.loop.time(), wait, self.loop.stalled
        asked = self.client._fsm.failure.retry_after
        most = max(self.policy.cap, min(asked, MAX_RETRY_AFTER) * (1 + 2 * self.policy.jitter))
        if not 0 <= wait <= most:
            what = f"{self.name} waits {wait:g} s in {change.new!r}; at most {most:g} s are allowed"
            if change.new != "waiting":  # it is none of the library's
                what += ": a machine with waits of its own needs a policy whose cap allows for them (client=)"
            self.fail("wait-in-range", what)
        if type(self.policy).delay is RetryPolicy.delay:
            policy = self.policy
            centre = min(policy.base * 2.0 ** min(self._failures - 1, 32), policy.cap / (1 + policy.jitter))
            if wait < centre * (1 - policy.jitter) - 1e-6:
                what = f"{self.name} waits {wait:g} s after {self._failures} failures in a row"
                self.fail("backoff-grows", f"{what}; the policy says {centre:g} s, less {policy.jitter:.0%}")

    def _check_wait_kept(self, change: StateChange) -> None:
        wait, self._wait = self._wait, None
        if wait is None or change.event != "timer_fell_due":
            return
        began, length, stalled = wait
        late = self.loop.time() - began - length
        if not -1e-3 <= late <= 1e-3 + self.loop.stalled - stalled:
            self.fail(
                "wait-is-kept", f"{self.name} announced a wait of {length:g} s, and it was over {late:+g} s from that"
            )

    def _check_fatal(self, change: StateChange) -> None:
        fsm = self.client._fsm
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
        self.check_chain(self.name, change, self.told)
        self.told = change.new
        is_connected = ClientStatus.CONNECTED in (change.new, self.client.status)
        if not is_connected and (joined := self._joined()):
            self.fail("rooms-first", f"{self.name} is told {change.new} while {joined} counts as joined")

    def _joined(self) -> str | None:
        return next((room.id for room in self.client.rooms if room.status is RoomStatus.JOINED), None)

    def check_chain(self, who: str, change: StatusChange[Any], told: object) -> None:
        """A change of status was told; the last before it was this."""
        if change.new == told:
            self.fail("no-status-twice", f"{who}: told {change.new} twice in a row")
        elif change.old != told:
            self.fail("all-is-told", f"{who}: told {change.old} → {change.new}, but {told} before")

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

    # What is alive

    def live_dials(self) -> int:
        return sum(not dial.cancelling() for dial in self.dials)

    def live_sockets(self) -> int:
        self.sockets = [each for each in self.sockets if not each._closing and not _is_gone(each)]
        return len(self.sockets)

    def check_step(self) -> None:
        """After a pass of the event loop."""
        if len(self.sockets) + len(self.dials) > 1:
            sockets, dials = self.live_sockets(), self.live_dials()
            if sockets and sockets + dials > 1:
                self.fail("one-socket", f"{self.name} has {sockets} live sockets and {dials} dials")
            if dials > 1:
                self.fail("one-dial", f"{self.name} has {dials} dials under way")
        if len(self.timers) > 1 and (timers := sum(map(_is_set, self.timers))) > 1:
            self.fail("one-timer", f"{self.name} has {timers} timers of its machine")

    def check_quiet(self) -> None:
        """When everybody waits: nothing is half done."""
        client, status = self.client, self.client.status
        if client._pump._running:
            self.fail("never-wedged", f"{self.name}: everybody waits, but its queue of facts is not empty")
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
        self._check_half_open()
        self._check_let_go()
        for room in client.rooms:
            self._check_room(room, status)
        self._check_books()
        for operation in tuple(self.operations):
            if operation.cancelled or operation.is_due():
                why = "it was cancelled" if operation.cancelled else "what it waits for is there"
                self.fail("operations-end", f"{self.name}: {operation.name} goes on waiting, though {why}")

    def _check_half_open(self) -> None:
        keepalive = self.client._keepalive
        if self.mute_since is None or not keepalive.enabled or self.client.status is not ClientStatus.CONNECTED:
            return
        stalled = self.loop.stalled - self._stalls
        extra = stalled + (keepalive.timeout + GRACE if stalled else 0.0)
        if self.link.rate:
            extra += CAPACITY / self.link.rate  # what was under way
        since = max(self.mute_since, self._connected_at)
        most = keepalive.interval + keepalive.timeout + GRACE + SLACK + extra
        if self.loop.time() - since > most:
            self.fail("half-open-noticed", f"{self.name} has been connected to nobody since {since:.6f}")

    def _check_let_go(self) -> None:
        ending = self.client._ending
        if not ending:
            self._ending.clear()
            most = 0 if self.client.state in ("waiting", "paused", "disconnected", "error") else 1
            if len(self.link.ends) > most:
                what = f"{len(self.link.ends)} TCP connections while {self.client.state}"
                self.fail("let-go-in-time", f"{self.name} has {what}, and nobody is about to close them")
            return
        now = self.loop.awake()
        self._ending = {task: self._ending.get(task, now) for task in ending}
        if now - min(self._ending.values()) > 2 * self.client._close_timeout + 1 + SLACK:
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
            elif room._timer is None:
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
            if room.status not in (RoomStatus.DISCONNECTED, RoomStatus.ERROR) or room._timer is not None:
                self.fail("room-is-true", f"room {room.id} of {self.name} is {room.state}, and not tracked")
            if room.status is not book.told:
                self.fail("room-is-true", f"room {room.id} of {self.name} is {room.status}, told {book.told}")
            del self.rooms[room]  # it is over, for good
        rooms = self.client._rooms
        timers = sum((room._timer is not None) + (room._fragments_due is not None) for room in tracked)
        if len(rooms._deadlines) != timers:
            self.fail(
                "room-never-wedged", f"{self.name}: {len(rooms._deadlines)} deadlines for {timers} timers of rooms"
            )

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
ROOM_ENDS = (ClientStopped, JoinRefused, RoomLeft)
PING_ENDS = (ClientStopped, NotConnected, TimeoutError)


@contextmanager
def watching_dials(witnesses: dict[Connection, Witness]) -> Iterator[None]:
    """Tell the witnesses of every dial and every socket of their clients."""
    original = Connection._open

    async def watched(connection: Connection) -> Socket:
        witness, dial = witnesses[connection], asyncio.current_task()
        assert dial is not None
        witness.dials.append(dial)
        try:
            socket = await original(connection)
        finally:
            witness.dials.remove(dial)
        witness.sockets.append(socket)
        return socket

    with mock.patch.object(Connection, "_open", watched):
        yield


def machines_timer(args: tuple[Any, ...]) -> Connection | None:
    """The client for whose machine a timer with these arguments is, if any."""
    job = args[0] if args else None
    owner = getattr(job, "__self__", None)
    return owner if isinstance(owner, Connection) and getattr(job, "__name__", "") == "_timer_fell_due" else None


def _is_set(timer: asyncio.TimerHandle) -> bool:
    return not timer.cancelled() and timer._scheduled  # type: ignore[attr-defined]


def _is_gone(socket: Socket) -> bool:
    transport = socket._ws.transport
    return transport is None or transport.is_closing()
