"""Drives a `ClientFSM`: takes what happens as events, and runs the effects that the machine asks for.

It decides nothing. The laws that it obeys:

1. One owner decides: events of one machine run one at a time, each to its end (`Dispatcher`).
2. What came over a socket is handled in its order, and all of it before that socket's close (D-ORDER).
3. Calls of the user act at once; they never wait for long work (D-NOW).
4. Stale callbacks are dropped in one place: each dial, socket and timer lives in a `Slot`, which makes its callbacks.
5. Entering a state starts what lives in it, leaving stops it; the machine says so, by effects.
6. The state has changed, rooms have been notified, resources are torn down: then listeners are called.
7. User code is called in one place, `user_code` (D-GUARD).
8. Every wait is bounded and cancellable. Cancelling a caller never harms the connection.
9. Nothing is fire-and-forget: each task has an owner (`Teardown`); after `close` nothing is left.
10. Decide on raw values, show redacted ones (D-JUDGED).
11. Time is the loop's, randomness the policy's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Protocol
from weakref import ref

from yarl import URL

from reconnect_fsm._asyncio.awaitables import Completion, LazyCoroutine, Waiters
from reconnect_fsm._asyncio.dispatcher import Dispatcher, RunsEffects, runs
from reconnect_fsm._asyncio.heartbeat_driver import HeartbeatDriver
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.slots import EMPTY, Slot
from reconnect_fsm._asyncio.teardown import Teardown
from reconnect_fsm._asyncio.timers import TimerQueue
from reconnect_fsm._asyncio.transport.failures import AttemptFailed
from reconnect_fsm._asyncio.transport.handshake import open_socket
from reconnect_fsm._asyncio.transport.secrets import learn_secrets
from reconnect_fsm._asyncio.transport.sessions import Session, close_session, make_session
from reconnect_fsm._asyncio.transport.socket import Data, Socket
from reconnect_fsm._asyncio.transport.url import UrlSource
from reconnect_fsm._asyncio.user_code import UserCodeFailed, call_user, notify_user, report
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import (
    AnnounceConnected,
    CancelDial,
    CloseSocket,
    Dial,
    Effect,
    FailWaiters,
    NotifyRooms,
    NotifyStatus,
    Release,
    ReportOutage,
    ReportRecovery,
    StartKeepalive,
    StartOutageTimer,
    StartTimer,
    StopKeepalive,
    StopOutageTimer,
    StopTimer,
)
from reconnect_fsm.errors import ClientStopped, NotConnected
from reconnect_fsm.keepalive import PONG, Keepalive
from reconnect_fsm.machine import Event
from reconnect_fsm.network import NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import (
    AttemptFailure,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    StateChange,
    StatusChange,
)

if TYPE_CHECKING:
    from random import Random

__all__ = ["STOPPED", "ConnectionDriver", "ConnectionSettings", "Handle", "TrackedRoom"]

P = ParamSpec("P")

logger = logging.getLogger("reconnect_fsm")

STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
BYTES_A_STEP = 8 * 1024  # of a message that is handled


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What `Connection` was made with, checked."""

    url: UrlSource
    retry: RetryPolicy
    keepalive: Keepalive
    network: NetworkSource | None
    session: Session | None
    """The user's, which lends its settings."""
    connect_timeout: float
    close_timeout: float
    max_msg_size: int
    options: Mapping[str, Any]
    """Passed on to aiohttp's ``ws_connect``."""


class Handle(Protocol):
    """What users hold: a subclass of theirs may run effects of its own."""

    def run_effect(self, effect: Effect) -> None:
        """Run one effect of the machine."""
        ...

    def set_online(self, online: bool) -> None:
        """Called by the network source."""
        ...


class TrackedRoom(Protocol):
    """A room of a client, as far as recordings and explanations read it."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def fsm(self) -> RoomFSM:
        """Its machine."""
        ...


class ConnectionDriver(RunsEffects):
    """One socket, its timers and its tasks: a subject of the dispatcher."""

    # Thousands of connections in a process: a dictionary each would be as much again
    __slots__ = (
        "__weakref__",
        "_announcement",
        "_completions",
        "_handle",
        "_was_started",
        "connected",
        "dial",
        "dispatcher",
        "fsm",
        "heartbeat",
        "latency",
        "on_latency",
        "on_message",
        "on_status",
        "on_transition",
        "outage_timer",
        "pending_transitions",
        "pong",
        "redaction",
        "session",
        "settings",
        "socket",
        "subscription",
        "teardown",
        "timer",
        "timers",
    )

    name: ClassVar[str] = ""
    """Of a subject of the dispatcher: it is no room."""

    def __init__(self, handle: Handle, settings: ConnectionSettings, fsm: ClientFSM) -> None:
        self._handle = handle
        self.settings = settings
        self.fsm = fsm
        """The machine."""
        fsm.is_driven = True
        self.dispatcher = Dispatcher()
        """Fires the events of all machines of the client."""
        self.redaction = Redaction()
        """Knows the client's secrets."""
        # What is alive; started and stopped by effects alone
        self.dial: Slot[asyncio.Task[Socket]] = EMPTY
        """The attempt to connect that is under way."""
        self.socket: Slot[Socket] = EMPTY
        """The connection."""
        self.timer: Slot[asyncio.TimerHandle] = EMPTY
        """The machine's timer."""
        self.outage_timer: Slot[asyncio.TimerHandle] = EMPTY
        """D-HEARD: fires when an outage has lasted."""
        self.heartbeat: HeartbeatDriver | None = None
        """Pings on the present connection."""
        self.subscription: Slot[Callable[[], object]] = EMPTY
        """At the network source: the function that ends it."""
        self.session: Session | None = None
        """The aiohttp session of our own."""
        self.timers: TimerQueue | None = None
        """The timers that all connections of the loop share."""
        self.teardown = Teardown(2 * settings.close_timeout + 1)
        """What was stopped and has not ended yet."""

        self.latency: float | None = None
        """The last round trip, in seconds."""
        self.connected: Waiters[Slot[AnnounceConnected]] = Waiters()
        """Wait for the next connection (CONN-5). Each is given the announcement: it is emptied if this program gives
        the connection up."""
        self._announcement: Slot[AnnounceConnected] = EMPTY
        self._was_started = False
        self.pending_transitions = 0
        """Transitions of which the callbacks of `Connection.on_transition` have not been called yet."""
        # Results of connect() and retry_now(). Weak: a result that the caller dropped needs no delivery.
        self._completions: tuple[ref[Completion], ...] = ()
        self.pong: Waiters[float] = Waiters()
        """Wait for the next round trip."""
        self.on_status: Listeners[StatusChange[ClientStatus]] = Listeners("on_status")
        self.on_transition: Listeners[StateChange] = Listeners("on_transition")
        self.on_latency: Listeners[float] = Listeners("on_latency")
        self.on_message: Listeners[Data] = Listeners("on_message")

    @property
    def random(self) -> Random:
        """The client's source of randomness (law 11)."""
        return self.settings.retry.random

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop, once it was started."""
        return self.dispatcher.loop

    @property
    def room_fsm(self) -> type[RoomFSM]:
        """The class of the rooms' machines."""
        return RoomFSM

    @property
    def tracked_rooms(self) -> Collection[TrackedRoom]:
        """A connection has no rooms; a client does."""
        return ()

    def time(self) -> float | None:
        """The loop's time, in seconds; None before the start."""
        loop = self.dispatcher.loop
        return None if loop is None else loop.time()

    def now(self) -> float:
        """The loop's time, in seconds. It must have been started."""
        loop = self.dispatcher.loop
        assert loop is not None
        return loop.time()

    def learn_secrets(self) -> None:
        """Know them before the first attempt: what is recorded may be older."""
        settings = self.settings
        url = URL() if callable(settings.url) else URL(settings.url)
        learn_secrets(self.redaction, url, settings.options, self.session or settings.session)

    # What the program asks for

    def request(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> LazyCoroutine[None]:
        """Fire an event that asks for a connection. The result waits until it is connected, or stops."""
        self.bind()
        completion = Completion()
        self.dispatcher.post(self._on_request, completion, event, *args, *kwargs.values())
        return LazyCoroutine(lambda: self._wait_for(completion))

    def close(self) -> LazyCoroutine[None]:
        """Fire `close_requested`. The result waits until nothing is left."""
        self.check_loop()
        completion = Completion()
        self.dispatcher.post(self.close_requested, completion)
        return LazyCoroutine(lambda: self._wait_until_closed(completion))

    def wait_connected(self) -> LazyCoroutine[None]:
        """Wait for a connection; never fails (CONN-5)."""
        self.check_loop()
        return LazyCoroutine(self._wait_until_connected)

    async def ready(self) -> None:
        """Wait for a connection, or raise ClientStopped (D-STOP)."""
        self.check_loop()
        self.raise_if_stopped()
        if self.fsm.status is not ClientStatus.CONNECTED:
            completion = Completion()
            self._settle_later(completion)
            await completion.wait()

    async def ping(self, timeout: float) -> float:
        """Send a ping and return the round trip in seconds."""
        self.check_loop()
        self.raise_if_stopped()
        if self.heartbeat is None:
            raise NotConnected(f"cannot ping while {self.fsm.status.value}: {self.fsm.reason}")
        self.heartbeat.ping()
        async with asyncio.timeout(timeout):
            return await self.pong.wait()

    async def send(self, data: Data) -> None:
        """Send a message; returns once it has been handed to the network (D-SEND)."""
        self.check_loop()
        if not isinstance(data, str | bytes):
            raise TypeError(f"send() takes str or bytes, not {type(data).__name__}")
        if isinstance(data, str):
            data.encode()  # raises here, not in the writer, if it holds what UTF-8 cannot say
        socket = self.socket.content
        if socket is None:
            raise NotConnected(f"cannot send while {self.fsm.status.value}: {self.fsm.reason}")
        await socket.write(data)

    def set_online(self, online: bool) -> None:
        """Fire `went_online` or `went_offline`, from any thread."""
        self.dispatcher.post_from_any_thread(self._on_network, online)

    def tell(self, event: Event[...], args: tuple[Any, ...]) -> None:
        """Fire an event of the user's machine, from any thread (ANY-TELL)."""
        self.dispatcher.post_from_any_thread(self.fire, event, *args)

    async def _wait_for(self, completion: Completion) -> None:
        self.check_loop()
        await completion.wait()

    async def _wait_until_connected(self) -> None:
        self.check_loop()
        while self.fsm.status is not ClientStatus.CONNECTED:
            announcement = await self.connected.wait()
            if announcement:  # it was connected, even if the connection was lost meanwhile
                return

    async def _wait_until_closed(self, completion: Completion) -> None:
        self.check_loop()
        await completion.wait()
        await self.dispatcher.idle()  # all rooms and listeners were notified
        await self.teardown.ended()

    def _settle_later(self, completion: Completion) -> None:
        """Settle it when the client is connected or stops."""
        self._completions = (*(each for each in self._completions if each() is not None), ref(completion))

    def _pending_completions(self) -> list[Completion]:
        """Those to settle now."""
        completions, self._completions = [each() for each in self._completions], ()
        return [completion for completion in completions if completion is not None and not completion.done]

    def _on_request(self, completion: Completion, event: Event[...], *args: Any) -> None:
        self._was_started = True
        self._settle_later(completion)
        if self.settings.network is not None and not self.subscription:
            # First what the source knows, then what was asked for: the program's word overrides the pause (CTRL-1).
            if self._subscribe(self.settings.network):
                self.dispatcher.post(self._on_request, completion, event, *args)
                return
        else:
            self.fire(event, *args)
            if self.fsm.status is ClientStatus.CONNECTED:
                completion.succeed()
        if not completion.done and (stopped := self.stopped_error()) is not None:
            completion.fail(stopped)  # D-STOP: it was stopped before, and still is

    def close_requested(self, completion: Completion) -> None:
        """The program closes the client."""
        self.fire(ClientFSM.close_requested)
        self.dispatcher.schedule_call(self.dispatcher.end_recording)
        completion.succeed()

    def stopped_error(self) -> ClientStopped | None:
        """What an operation raises that waits while the client is stopped (D-STOP); None if it was never started."""
        fsm = self.fsm
        if not self._was_started or fsm.status not in STOPPED:
            return None
        return ClientStopped(fsm.reason, fsm.cause, fsm.stop_kind)

    def raise_if_stopped(self) -> None:
        """D-STOP: raise ClientStopped while the client is stopped."""
        if (stopped := self.stopped_error()) is not None:
            raise stopped

    # The event loop that it lives in

    def bind(self) -> None:
        """Belong to the running loop; to another one than before only if nothing of the old one is left."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "a client needs a running event loop: start it inside a coroutine, such as one given to asyncio.run()"
            ) from None
        if loop is self.loop:
            return
        if self.loop is not None and self.fsm.status not in STOPPED:
            self.check_loop()
        self.timers = TimerQueue.shared(loop)
        self.dispatcher.bind(loop)

    def check_loop(self) -> None:
        """Raise RuntimeError in another thread or event loop than the client's (D-THREAD)."""
        dispatcher = self.dispatcher
        if dispatcher.loop is None:
            return
        if dispatcher.loop.is_closed():
            self.outlive_loop()
            return
        loop = asyncio._get_running_loop()  # None where none runs, and ten times as fast as the exception
        if threading.get_ident() != dispatcher.thread or (loop is not None and loop is not dispatcher.loop):
            raise RuntimeError(
                "this client runs in another event loop, or in that of another thread: all but set_online() and "
                "tell() must be called there, as in "
                "asyncio.run_coroutine_threadsafe(a_coroutine_of_yours_that_calls_it(), loop)"
            )

    def outlive_loop(self) -> None:
        """The loop ended without `close`, and everything that lived in it has ended with it."""
        if self.session is not None:
            self.session.detach()
        for slot in (self.dial, self.socket, self.timer, self.outage_timer):
            slot.empty()
        self.heartbeat = self.session = self.timers = None
        self.teardown.forget()
        self.dispatcher.reset()
        self.pending_transitions = 0
        self._completions = ()
        self.connected.forget()
        self.pong.forget()
        if self.fsm.status not in STOPPED:
            self.fire(ClientFSM.close_requested)

    # Events

    def fire(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire an event in the machine, and run the effects."""
        self.dispatcher.fire(self, event, *args, **kwargs)  # pyright: ignore[reportArgumentType] - `name` is the class's

    def event_done(self, event: str, old_state: str) -> None:
        """An event of the machine is complete."""
        fsm = self.fsm
        if self.heartbeat is None:
            self.pong.fail(NotConnected("the connection was lost before the pong came"))
        if fsm.state != old_state:
            logger.debug("%s: %s → %s: %s", event, old_state, fsm.state, fsm.reason)
            now = fsm.status, fsm.reason, fsm.attempt, fsm.retry_in, fsm.cause, fsm.stop_kind
            change = StateChange(event, old_state, fsm.state, *now)
            self.pending_transitions += 1
            self.dispatcher.schedule_call(self._notify_transition, change)

    def pong_missed(self, info: CloseInfo) -> None:
        """The heartbeat says that the connection is dead."""
        self.fire(ClientFSM.pong_missed, info)

    def _notify_transition(self, change: StateChange) -> None:
        self.pending_transitions -= 1
        self.on_transition.notify(change)

    def _subscribe(self, network: NetworkSource) -> bool:
        """Subscribe at the network source; False if that fails, which is a fault of the program (D-ERROR)."""
        what = "the network source"
        try:
            unsubscribe = call_user(what, network.subscribe, self._handle.set_online)
        except UserCodeFailed as failed:
            self.fire(ClientFSM.faulted, f"{failed}; the log tells where")
            return False
        if not callable(unsubscribe):
            error = TypeError(
                "subscribe() of the network source must return a function that ends the subscription; "
                f"it returned {type(unsubscribe).__name__}"
            )
            report(what, error)
            self.fire(ClientFSM.faulted, str(error))
            return False
        self.subscription = Slot(unsubscribe)
        return True

    def _on_network(self, online: bool) -> None:
        if online:
            self.fire(ClientFSM.went_online, self.time())
        else:
            self.fire(ClientFSM.went_offline)

    def _on_dialed(self, dial: asyncio.Task[Socket]) -> None:
        self.dial.empty()
        error = None if dial.cancelled() else dial.exception()
        if error is None and not dial.cancelled():
            self._start_socket(dial.result())
            self.fire(ClientFSM.socket_opened)
            return
        if isinstance(error, AttemptFailed):
            failure = error.failure
        else:  # not foreseen; a failed attempt all the same, never a wedged client
            what = "the attempt was cancelled" if error is None else f"could not connect: {type(error).__name__}"
            failure = AttemptFailure(FailureKind.NETWORK, what)
        self.fire(ClientFSM.dial_failed, failure, self.now())

    def _start_socket(self, socket: Socket) -> None:
        slot = self.socket = Slot(socket)
        socket.start(
            slot.callback(self._on_messages),
            slot.callback(self._on_messages, ()),
            partial(self.dispatcher.schedule_call, slot.run, self._on_socket_closed),
            self.dispatcher.idle,
        )

    def _on_messages(self, messages: Sequence[Data]) -> None:
        if (heartbeat := self.heartbeat) is not None:
            heartbeat.heard()
            if messages:
                self.dispatcher.schedule(self._handle_messages(self.socket, heartbeat, messages))

    def _handle_messages(
        self, socket: Slot[Socket], heartbeat: HeartbeatDriver, messages: Sequence[Data]
    ) -> Iterator[None]:
        """Handle what came together, one message a step, until the socket's slot is empty (D-ORDER)."""
        for data in messages:
            if socket.content is None:
                return
            if data == PONG and heartbeat.awaits_pong:
                self._on_pong(heartbeat)
            else:
                for _ in self.received(data) or ():
                    yield
                    if socket.content is None:  # pyright: ignore[reportUnnecessaryComparison] - emptied meanwhile
                        return
            yield
            if len(data) > BYTES_A_STEP:  # it takes long: the loop has its turn the sooner
                for _ in range(len(data) // BYTES_A_STEP):
                    yield

    def received(self, data: Data) -> Iterator[object] | None:
        """A message came. Returns the rest of the work for it, in steps."""
        self.on_message.notify(data)
        return None

    def _on_pong(self, heartbeat: HeartbeatDriver) -> None:
        round_trip = heartbeat.ponged()
        if round_trip is not None:
            self.latency = round_trip
            self.pong.wake(round_trip)
            if self.on_latency:
                self.dispatcher.post(self.on_latency.notify, round_trip)

    def _on_socket_closed(self, info: CloseInfo) -> None:
        socket = self.socket.content
        if socket is not None and info.lasted < self.settings.retry.stable_after:
            socket.blame()
        self._announcement = EMPTY  # it stands: the connection was lost, and not given up by this program
        self.socket_closed(info)

    def socket_closed(self, info: CloseInfo) -> None:
        """The connection was lost."""
        self.fire(ClientFSM.socket_closed, info)

    def on_timer(self) -> None:
        """The machine's timer has fired."""
        self.timer.empty()
        self.fire(ClientFSM.timer_fired)

    def _on_outage_timer(self) -> None:
        self.outage_timer.empty()
        self.fire(ClientFSM.outage_lasted)

    # Effects

    def run_effect(self, effect: Effect) -> None:
        """Have the handle run it, which may be of a subclass of the user's; by default it calls `run_own_effect`."""
        self._handle.run_effect(effect)

    def run_own_effect(self, effect: Effect) -> None:
        """Run one of the effects that are declared below."""
        run = self.runners.get(type(effect))
        if run is None:
            logger.error(
                "%s is no effect that %s knows how to run: override run_effect",
                type(effect).__name__,
                type(self._handle).__name__,
            )
        else:
            getattr(self, run)(effect)

    @runs(Release)
    def _release(self, _: Release) -> None:
        if (unsubscribe := self.subscription.empty()) is not None:
            notify_user("the network source's function that ends the subscription", unsubscribe)
        # Most of it was stopped when the last state was left; after a fault nothing is certain, so all of it, always.
        self._cancel_dial()
        self._stop_timer()
        self._stop_outage_timer()
        self._stop_keepalive()
        self._close_socket(CloseSocket(1001, ""))
        session, self.session = self.session, None
        if session is not None:
            self.own(self._close_session(session, tuple(self.teardown.tasks)))

    @runs(Dial)
    def _start_dial(self, _: Dial) -> None:
        assert self.loop is not None
        dial = self.loop.create_task(self.open_socket(), name="reconnect_fsm dial")
        self.dial = Slot(dial)
        dial.add_done_callback(partial(self.dispatcher.post, self.dial.run, self._on_dialed))

    async def open_socket(self) -> Socket:
        """One attempt to connect. Raises AttemptFailed."""
        settings = self.settings
        if settings.session is not None and settings.session.closed:
            why = "the session given to the client is closed"
            raise AttemptFailed(AttemptFailure(FailureKind.MISCONFIGURED, why, fault=FaultKind.OPTIONS))
        if self.session is None:
            self.session = make_session(settings.session)
        return await open_socket(
            self.session,
            settings.url,
            timeout=settings.connect_timeout,
            close_timeout=settings.close_timeout,
            max_msg_size=settings.max_msg_size,
            options=settings.options,
            redaction=self.redaction,
            max_retry_after=settings.retry.max_retry_after,
        )

    @runs(CancelDial)
    def _cancel_dial(self, _: CancelDial | None = None) -> None:
        if (dial := self.dial.empty()) is not None:
            dial.cancel()
            dial.add_done_callback(self._discard_socket)
            self.own_task(dial)

    def _discard_socket(self, dial: asyncio.Task[Socket]) -> None:
        """A dial that was cancelled has ended; it may have opened a socket all the same."""
        if not dial.cancelled() and dial.exception() is None:
            self.own(dial.result().discard())

    @runs(CloseSocket)
    def _close_socket(self, effect: CloseSocket) -> None:
        if (socket := self.socket.empty()) is not None:
            self._announcement.empty()
            self.own(socket.close(effect.code, effect.reason))

    @runs(StartTimer)
    def _start_timer(self, effect: StartTimer) -> None:
        self._stop_timer()
        self.timer = self._timer_in(effect.seconds, self.on_timer)

    @runs(StopTimer)
    def _stop_timer(self, _: StopTimer | None = None) -> None:
        if (timer := self.timer.empty()) is not None:
            timer.cancel()

    @runs(StartOutageTimer)
    def _start_outage_timer(self, effect: StartOutageTimer) -> None:
        self._stop_outage_timer()
        self.outage_timer = self._timer_in(effect.seconds, self._on_outage_timer)

    @runs(StopOutageTimer)
    def _stop_outage_timer(self, _: StopOutageTimer | None = None) -> None:
        if (timer := self.outage_timer.empty()) is not None:
            timer.cancel()

    @runs(ReportOutage)
    def _report_outage(self, effect: ReportOutage) -> None:
        server = _server(self.settings.url)
        logger.warning(
            "%snot connected: %s; %s",
            f"{server}: " if server else "",
            effect.why,
            effect.next,
            extra={"server": server, "reason": effect.why, "attempt": effect.attempt},
        )

    @runs(ReportRecovery)
    def _report_recovery(self, _: ReportRecovery) -> None:
        server = _server(self.settings.url)
        logger.info("%sthe outage is over: the connection has lasted", f"{server}: " if server else "")

    @runs(StartKeepalive)
    def _start_keepalive(self, _: StartKeepalive) -> None:
        self._stop_keepalive()
        if (socket := self.socket.content) is not None:
            self.heartbeat = HeartbeatDriver(self, self.settings.keepalive, socket)

    @runs(StopKeepalive)
    def _stop_keepalive(self, _: StopKeepalive | None = None) -> None:
        heartbeat, self.heartbeat = self.heartbeat, None
        if heartbeat is not None:
            heartbeat.stop()

    @runs(AnnounceConnected)
    def _announce_connected(self, effect: AnnounceConnected) -> None:
        self._announcement = Slot(effect)
        self.connected.wake(self._announcement)
        for completion in self._pending_completions():
            completion.succeed()

    @runs(NotifyRooms)
    def notify_rooms(self, effect: NotifyRooms) -> None:
        """A connection has no rooms; a client does."""

    @runs(FailWaiters)
    def _fail_waiters(self, effect: FailWaiters) -> None:
        for completion in self._pending_completions():
            completion.fail(effect.error)
        self.pong.fail(effect.error)

    @runs(NotifyStatus)
    def _notify_status(self, effect: NotifyStatus) -> None:
        change = effect.change
        server = _server(self.settings.url)
        logger.info(
            "%s%s → %s: %s%s",
            f"{server}: " if server else "",
            change.old.value,
            change.new.value,
            change.reason,
            _retry_words(change),
            extra={
                "server": server,
                "old_status": change.old.value,
                "new_status": change.new.value,
                "reason": change.reason,
                "attempt": change.attempt,
                "retry_in": change.retry_in,
            },
        )
        self.dispatcher.schedule_call(self.on_status.notify, change)  # law 6: the rooms are notified before

    def _timer_in(self, seconds: float, function: Callable[[], None]) -> Slot[asyncio.TimerHandle]:
        assert self.loop is not None
        slot: Slot[asyncio.TimerHandle] = Slot()
        slot.fill(self.loop.call_later(seconds, self.dispatcher.post, slot.run, function))
        return slot

    # Tasks

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself within a bound; `close` waits for it."""
        assert self.loop is not None
        self.teardown.own(self.loop, work)

    def own_task(self, task: asyncio.Task[Any]) -> None:
        """Take charge of a task that was cancelled, until it has ended."""
        self.teardown.own_task(task)

    async def _close_session(self, session: Session, ending: Iterable[asyncio.Task[Any]]) -> None:
        """Close the session once nothing of it is in use; the pending ends are all bounded."""
        try:
            await self.teardown.these_ended(ending)
        finally:  # also if the loop ends, which cancels this
            await close_session(session)


def _server(url: UrlSource) -> str:
    """Which one, for the log; without the user and password of `URL.authority`. Unknown where a function tells it."""
    return "" if callable(url) else URL(url).host_port_subcomponent or ""


def _retry_words(change: StatusChange[ClientStatus]) -> str:
    return "" if change.retry_in is None else f" (retry {change.attempt} in {change.retry_in:.1f} s)"
