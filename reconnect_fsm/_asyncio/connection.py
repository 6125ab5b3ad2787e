"""The driver of a `ClientFSM`: one socket, its timers, its tasks. Usable alone, with any WebSocket server.

It decides nothing. It turns what happens (a dial ended, a frame came, a timer ran out, somebody called a method) into
facts for the machine, and runs the effects that the machine asks for. Its laws:

1. Events run one at a time, each to its end, and never wait for long work; what came over a socket is handled in its
   order, all of it before that socket's close (`EventQueue`).
2. A fact from a dial or socket that is no longer the current one is dropped, in one place (`_is_current`).
3. Entering a state starts what lives in it, leaving stops it: the machine says so, the effects below do so.
4. The state has changed, rooms have been told, resources are torn down; then listeners hear of it.
5. Every wait is bounded and cancellable; cancelling a caller never harms the connection.
6. Every task has an owner; after ``close()`` no task, timer, socket or descriptor is left.
7. Time is the loop's time, chance is the policy's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self
from weakref import ref

from yarl import URL

from reconnect_fsm._asyncio.awaitables import Completion, LazyCoroutine, Waiters
from reconnect_fsm._asyncio.dispatcher import Dispatcher, RunsEffects, runs
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.observing import Observation
from reconnect_fsm._asyncio.timers import Timer, TimerQueue
from reconnect_fsm._asyncio.transport.failures import AttemptFailed
from reconnect_fsm._asyncio.transport.handshake import check_options, open_socket
from reconnect_fsm._asyncio.transport.secrets import learn_secrets
from reconnect_fsm._asyncio.transport.sessions import Session, check_session, close_session, make_session
from reconnect_fsm._asyncio.transport.socket import Data, Socket
from reconnect_fsm._asyncio.transport.url import UrlSource, check_url
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
from reconnect_fsm.keepalive import PING, PONG, Counters, Heartbeat, Keepalive, KeepaliveAction
from reconnect_fsm.machine import Event
from reconnect_fsm.network import NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import (
    AttemptFailure,
    Cause,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    StateChange,
    StatusChange,
)

if TYPE_CHECKING:  # their modules are imported by whoever asks for them: most programs never do
    from reconnect_fsm.recorder.explain import ExplainedRoom, Explanation
    from reconnect_fsm.recorder.recorder import File, HeaderData, Recorder, Recording, Transition

__all__ = ["Connection", "explanation_of", "observation_of"]

P = ParamSpec("P")

logger = logging.getLogger("reconnect_fsm")

STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
BYTES_A_STEP = 8 * 1024  # of a message that is handled
PING_EARLY = 0.1  # seconds before its time that a ping may go out, if somebody else's does
SLICES = 5  # of a wait for tasks to end: a stall of our own loop, after which all is overdue, is one of them
MAX_RECORDED = 50_000_000  # bytes of a recording
MAX_MSG_SIZE = 4 * 1024 * 1024  # bytes; what aiohttp allows by default


class Connection(RunsEffects):
    """A WebSocket that stays connected.

    ::

        async with Connection("wss://example.org/feed") as connection:
            connection.on_message(print)
            await connection.wait_connected()
            await connection.send("hello")

    Parameters:
        url: where to connect: a str, a `yarl.URL`, or a function, plain or async, that returns one and is asked before
            each attempt (for tokens that expire).
        retry: when to try again, and when not to (RETRY-1 to RETRY-4).
        keepalive: how often to ping and how long to wait for the pong, in seconds (LIVE-1, LIVE-2).
        network: where to learn whether this machine is online (OFF-1, OFF-2); None: only from `set_online`.
        session: an aiohttp session that lends all its settings: connector, cookies, headers, proxy, auth, middlewares,
            tracing, … (D-SESSION). It is never closed; its middlewares get no redirect to follow, and no second request
            but to answer HTTP 401.
        connect_timeout: seconds that one attempt may take, from DNS to the handshake's end (D-TIMEOUT).
        close_timeout: seconds that a close may take before the transport is aborted (D-TIMEOUT).
        fsm: the class of the machine; a subclass of `ClientFSM` changes the behaviour.
        options: passed on to aiohttp's ``ws_connect``: ``headers``, ``ssl``, ``proxy``, ``protocols``, …

    Raises InvalidURL, TypeError or ValueError at once for arguments that cannot work. All methods but `set_online` and
    `tell` are for the thread of the event loop.
    """

    # Thousands of connections in a process: a dictionary each would be as much again
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_close_timeout",
        "_connect_timeout",
        "_connected",
        "_connections",
        "_dial",
        "_dispatcher",
        "_ending",
        "_fsm",
        "_given_session",
        "_given_up",
        "_heartbeat",
        "_heartbeat_timer",
        "_keepalive",
        "_latency",
        "_loop",
        "_max_msg_size",
        "_network",
        "_on_latency",
        "_on_message",
        "_on_status",
        "_on_transition",
        "_options",
        "_outage_timer",
        "_pong",
        "_redaction",
        "_retry",
        "_session",
        "_socket",
        "_thread",
        "_timer",
        "_timers",
        "_timers_started",
        "_transitions_to_come",
        "_unsubscribe",
        "_url",
        "_waiting_completions",
        "_was_started",
    )

    def __init__(
        self,
        url: UrlSource,
        *,
        retry: RetryPolicy | None = None,
        keepalive: Keepalive | None = None,
        network: NetworkSource | None = None,
        session: Session | None = None,
        connect_timeout: float = 10.0,
        close_timeout: float = 2.0,
        fsm: type[ClientFSM] = ClientFSM,
        **options: Any,
    ) -> None:
        self._url: UrlSource = url if callable(url) else check_url(url)
        check_options(options)
        for name, seconds in (("connect_timeout", connect_timeout), ("close_timeout", close_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, not {seconds!r}")
        _check_type("retry", retry, RetryPolicy)
        _check_type("keepalive", keepalive, Keepalive)
        _check_type("network", network, NetworkSource)
        _check_type("session", session, Session)
        check_session(session)
        if not (isinstance(fsm, type) and issubclass(fsm, ClientFSM)):
            raise TypeError(f"fsm must be a subclass of ClientFSM (the class, not an instance), not {fsm!r}")
        self._retry = retry or RetryPolicy()
        self._keepalive = keepalive or Keepalive()
        self._network = network
        self._given_session = session
        self._connect_timeout = connect_timeout
        self._close_timeout = close_timeout
        self._max_msg_size: int = options.pop("max_msg_size", MAX_MSG_SIZE)
        if not isinstance(self._max_msg_size, int) or self._max_msg_size < 0:
            raise ValueError(f"max_msg_size must be a number of bytes, or 0 for no limit, not {self._max_msg_size!r}")
        self._options = options
        self._redaction = Redaction()

        self._fsm = fsm(self._retry)
        self._dispatcher = Dispatcher()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()
        # What is alive: at most one of each, started and stopped by effects alone
        self._dial: asyncio.Task[Socket] | None = None
        self._socket: Socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timers_started = 0
        self._outage_timer: asyncio.TimerHandle | None = None
        self._heartbeat: Heartbeat | None = None
        self._heartbeat_timer: Timer | None = None
        self._timers: TimerQueue | None = None
        self._session: Session | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._ending: set[asyncio.Task[Any]] = set()  # what was stopped and is not quite gone yet

        self._latency: float | None = None
        self._connected: Waiters[int] = Waiters()  # CONN-5; kept with the number of the connection
        self._connections = 0
        self._given_up = 0  # the number of the last one that this program itself ended
        self._was_started = False
        self._transitions_to_come = 0  # of which the callbacks have not heard yet
        # Of what was asked for; those that nobody keeps are nobody's business
        self._waiting_completions: list[ref[Completion]] = []
        self._pong: Waiters[float] = Waiters()
        self._on_status: Listeners[StatusChange[ClientStatus]] = Listeners("on_status")
        self._on_transition: Listeners[StateChange] = Listeners("on_transition")
        self._on_latency: Listeners[float] = Listeners("on_latency")
        self._on_message: Listeners[Data] = Listeners("on_message")

    # What it is like

    @property
    def status(self) -> ClientStatus:
        """One of the five statuses (CONN-1)."""
        return self._fsm.status

    @property
    def state(self) -> str:
        """The machine's state, finer than the status: `ClientFSM` tells them all."""
        return self._fsm.state

    @property
    def reason(self) -> str:
        """Why it is in its present state, in words that hold no secrets."""
        return self._fsm.reason

    @property
    def cause(self) -> Cause | None:
        """The same as data (D-CAUSE): how the connection ended, or why the last attempt failed.

        None while nothing is wrong, and where this program itself asked for the present state.
        """
        return self._fsm.cause

    @property
    def latency(self) -> float | None:
        """The last round trip of a ping, in seconds; None before the first (OBS-3)."""
        return self._latency

    # What you can ask for

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, at once, without waiting for it (CONN-2). Starting what is started does nothing.

        Raises RuntimeError outside a running event loop.
        """
        self._ask(ClientFSM.start_requested)

    def connect(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        """Make sure that it is connected or on its way: if it waits, is paused or is stopped, it dials now (CTRL-1).

        ``reset_backoff`` makes the waits begin anew at their shortest. Acts at once. The result may be awaited: it
        returns once connected and raises ClientStopped if the client stops instead.
        """
        return self._ask(ClientFSM.connect_requested, reset_backoff)

    def retry_now(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        """Force a fresh attempt now: a dial under way or a connection is dropped for it (CTRL-1, D-FORCE).

        Acts at once; ``reset_backoff`` and the result are as those of `connect`.
        """
        return self._ask(ClientFSM.retry_requested, reset_backoff)

    def close(self) -> LazyCoroutine[None]:
        """Stop (CTRL-2). Acts at once (D-NOW); await the result to know that no task, timer or socket is left.

        That takes ``close_timeout`` seconds at most, and little more; 2 ``close_timeout`` + 1 s if a coroutine of yours
        refuses to be cancelled, which is then left behind.

        `connect` or `retry_now` starts it again.
        """
        self._check_loop()
        completion = Completion()
        self._dispatcher.post(self._close_requested, completion)
        return LazyCoroutine(lambda: self._closed(completion))

    def wait_connected(self) -> LazyCoroutine[None]:
        """Wait for the next time it is connected; return at once if it is now (CONN-5).

        The result is an awaitable that may be taken now, kept, shared and awaited twice. It never fails: while the
        client is stopped it goes on waiting. Put ``asyncio.timeout`` around it to wait for less. It does not return for
        a connection that this program has given up in the same moment.

        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        self._check_loop()
        return LazyCoroutine(self._until_connected)

    async def _until_connected(self) -> None:
        self._check_loop()
        while self.status is not ClientStatus.CONNECTED:
            number = await self._connected.wait()
            if number != self._given_up:  # lost meanwhile: it was connected all the same
                return

    async def ready(self) -> None:
        """Wait until it is connected; return at once if it is now (D-STOP).

        Raises ClientStopped if the client is stopped, or stops; a client that was never started is not stopped. Raises
        RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        self._check_loop()
        if (stopped := self._stopped_error()) is not None:
            raise stopped
        if self.status is not ClientStatus.CONNECTED:
            completion = Completion()
            self._await_connection(completion)
            await completion.wait()

    async def ping(self, timeout: float = 5.0) -> float:
        """Send a ping and return the round trip in seconds. A ping that is in flight already is shared.

        Raises NotConnected if there is no connection or it is lost meanwhile, ClientStopped if the client is stopped or
        stops (D-STOP), TimeoutError after ``timeout`` seconds; that alone does not end the connection. Raises
        RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        self._check_loop()
        if (stopped := self._stopped_error()) is not None:
            raise stopped
        if self._heartbeat is None or self._socket is None:
            raise NotConnected(f"cannot ping while {self.status.value}: {self.reason}")
        if not self._heartbeat.in_flight or self._heartbeat.is_overdue(self._now()):
            self._send_ping(self._heartbeat, self._socket, self._socket.counters())
        async with asyncio.timeout(timeout):
            return await self._pong.wait()

    async def send(self, data: Data) -> None:
        """Send a text (str) or binary (bytes) message; returns once it has been handed to the network (D-SEND).

        It waits for the messages before it, and while the network takes no more; not for those behind it. Raises
        NotConnected if there is no connection, or if it is lost before this message was written; TypeError for anything
        but str and bytes, ValueError for a str that cannot be encoded.
        Cancelling it never harms the connection; the message may be sent all the same.
        """
        self._check_loop()
        if not isinstance(data, str | bytes):
            raise TypeError(f"send() takes str or bytes, not {type(data).__name__}")
        if isinstance(data, str):
            data.encode()  # raises here, not in the writer, if it holds what UTF-8 cannot say
        if self._socket is None:
            raise NotConnected(f"cannot send while {self.status.value}: {self.reason}")
        await self._socket.write(data)

    def set_online(self, online: bool) -> None:
        """Say whether this machine has a network (OFF-1, OFF-2). May be called from any thread.

        What is known already changes nothing: a connection made by hand while offline outlives a second "offline".
        """
        self._dispatcher.post_from_any_thread(self._network_changed, online)

    def tell(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire an event of a machine of your own: ``client.tell(MyFSM.metered_changed, True)`` (ANY-TELL).

        Acts at once, as a method of the client does (D-NOW). May be called from any thread; then it acts soon.

        Raises TypeError for what is no event that the class given as ``fsm=`` adds, or if the arguments do not fit it.
        """
        if not isinstance(event, Event) or type(self._fsm).events.get(event.name) is not event:
            raise TypeError(f"tell() takes an event of {type(self._fsm).__name__}, not {event!r}")
        if event.name in ClientFSM.events:
            raise TypeError(f"{event.name} is an event that the client fires itself; tell() is for events of your own")
        told = event.arguments(*args, **kwargs)
        self._dispatcher.post_from_any_thread(self._fire, event, *told)

    # Whom you can have told (OBS-1, OBS-3)

    def on_status(self, callback: Callable[[StatusChange[ClientStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of status (OBS-1). Returns one that ends it."""
        return self._on_status.add(callback)

    def on_transition(self, callback: Callable[[StateChange], object]) -> Callable[[], None]:
        """Call the function on every change of state, failed attempts included. Returns one that ends it."""
        return self._on_transition.add(callback)

    def on_latency(self, callback: Callable[[float], object]) -> Callable[[], None]:
        """Call the function with every round trip, in seconds (OBS-3). Returns one that ends it."""
        return self._on_latency.add(callback)

    def on_message(self, callback: Callable[[Data], object]) -> Callable[[], None]:
        """Call the function with every message: str for text, bytes for binary. Returns one that ends it."""
        return self._on_message.add(callback)

    # What it did

    def explain(self) -> str:
        """Say in some sentences how things stand: why it is not connected, what happened last, and what comes next."""
        return str(explanation_of(self, self._all_rooms()))

    def record(self, file: File, *, max_bytes: int = MAX_RECORDED, hide_rooms: bool = False) -> Recording:
        """Write all that the machines are told and do into a file, as JSON lines, from now on until it is closed.

        ``file`` is a path, written anew, or an open text file. The recording ends with the client, or after
        ``max_bytes``, or when `Recording.close` is called; it may be used as a context manager. ``hide_rooms`` replaces
        the rooms' ids, also in what the server says. There are no secrets in it: of a machine of your own, texts, bytes
        and values of types of your own are written as their type alone. ``python -m reconnect_fsm replay FILE`` replays
        it.

        Raises OSError if the file cannot be opened, RuntimeError if the client is being recorded already, ValueError
        for too few bytes.
        """
        from reconnect_fsm.recorder.recorder import Recording

        return Recording(self._dispatcher, self._recorder(hide_rooms), file, max_bytes=max_bytes)

    def export(self, file: File, *, hide_rooms: bool = False) -> int:
        """Write the last steps, a few hundred that are always kept, as a recording; return how many they are.

        See `record` for the arguments. Raises OSError if the file cannot be written.
        """
        from reconnect_fsm.recorder.recorder import export

        return export(self._dispatcher.log, self._recorder(hide_rooms), file)

    def transitions(self) -> list[Transition]:
        """The last transitions, a few hundred that are always kept, of the client and its rooms."""
        from reconnect_fsm.recorder.recorder import transitions

        return transitions(self._dispatcher.log)

    def _recorder(self, hide_rooms: bool) -> Recorder:
        from reconnect_fsm.recorder.recorder import Recorder

        self._learn_secrets()
        return Recorder(self._header_data(RoomFSM), self._redaction, hide_rooms=hide_rooms)

    def _header_data(self, room_fsm: type[RoomFSM]) -> HeaderData:
        from reconnect_fsm.recorder.recorder import HeaderData

        return HeaderData(
            fsm=type(self._fsm),
            room_fsm=room_fsm,
            policy=self._retry,
            keepalive=self._keepalive,
            written=time.time(),
            now=self._time(),
        )

    def _learn_secrets(self) -> None:
        """Know them before the first attempt: what is recorded may be older."""
        learn_secrets(
            self._redaction,
            URL() if callable(self._url) else URL(self._url),
            self._options,
            self._session or self._given_session,
        )

    def _all_rooms(self) -> Collection[ExplainedRoom]:
        return ()

    def _time(self) -> float | None:
        return None if self._loop is None else self._loop.time()

    # Facts

    def _ask(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> LazyCoroutine[None]:
        self._bind()
        completion = Completion()
        self._dispatcher.post(self._on_request, completion, event, *args, *kwargs.values())
        return LazyCoroutine(lambda: self._came_out(completion))

    def _await_connection(self, completion: Completion) -> None:
        """Settle it when the client is connected or stops. Weak: a result that the caller dropped needs no delivery."""
        self._waiting_completions = [
            *(each for each in self._waiting_completions if each() is not None),
            ref(completion),
        ]

    async def _came_out(self, completion: Completion) -> None:
        self._check_loop()
        await completion.wait()

    def _on_request(self, completion: Completion, event: Event[...], *args: Any) -> None:
        self._was_started = True
        self._await_connection(completion)
        if self._network is not None and self._unsubscribe is None:
            # First what the source knows, then what was asked for: a person's word overrides the pause (CTRL-1).
            if self._subscribe(self._network):
                self._dispatcher.post(self._on_request, completion, event, *args)
                return
        else:
            self._fire(event, *args)
            if self.status is ClientStatus.CONNECTED:
                completion.succeed()
        if not completion.done and (stopped := self._stopped_error()) is not None:
            completion.fail(stopped)  # D-STOP: it was stopped before, and still is

    def _subscribe(self, network: NetworkSource) -> bool:
        """Hear from the source from now on; False if it cannot be, which is an error of the program's (D-ERROR)."""
        what = "the network source"
        try:
            unsubscribe = call_user(what, network.subscribe, self.set_online)
        except UserCodeFailed as failed:
            self._fire(ClientFSM.faulted, f"{failed}; the log tells where")
            return False
        if not callable(unsubscribe):
            error = TypeError(
                "subscribe() of the network source must return a function that ends the subscription; "
                f"it returned {type(unsubscribe).__name__}"
            )
            report(what, error)
            self._fire(ClientFSM.faulted, str(error))
            return False
        self._unsubscribe = unsubscribe
        return True

    def _stopped_error(self) -> ClientStopped | None:
        """What an operation raises that waits while the client is stopped (D-STOP); None if it was never started."""
        if not self._was_started or self.status not in STOPPED:
            return None
        return ClientStopped(self.reason, self.cause, self._fsm.stop_kind)

    def _bind(self) -> None:
        """Belong to the running loop; to another one than before only if nothing of the old one is left."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "a client needs a running event loop: start it inside a coroutine, such as one given to asyncio.run()"
            ) from None
        if loop is self._loop:
            return
        if self._loop is not None and self.status not in STOPPED:
            self._check_loop()
        self._loop, self._thread = loop, threading.get_ident()
        self._timers = TimerQueue.shared(loop)
        self._dispatcher.bind(loop)

    def _check_loop(self) -> None:
        """Raise RuntimeError in another thread or event loop than the client's (D-THREAD)."""
        if self._loop is None:
            return
        if self._loop.is_closed():
            self._outlive_loop()
            return
        loop = asyncio._get_running_loop()  # None where none runs, and ten times as fast as the exception
        if threading.get_ident() != self._thread or (loop is not None and loop is not self._loop):
            raise RuntimeError(
                "this client runs in another event loop, or in that of another thread: all but set_online() and "
                "tell() must be called there, as in "
                "asyncio.run_coroutine_threadsafe(a_coroutine_of_yours_that_calls_it(), loop)"
            )

    def _outlive_loop(self) -> None:
        """The loop ended without `close`, and everything that lived in it has ended with it."""
        if self._session is not None:
            self._session.detach()
        self._dial = self._socket = self._timer = self._outage_timer = self._heartbeat = self._heartbeat_timer = (
            self._session
        ) = None
        self._loop = self._timers = None
        self._ending.clear()
        self._dispatcher.reset()
        self._transitions_to_come = 0
        self._waiting_completions = []
        self._connected.forget()
        self._pong.forget()
        if self.status not in STOPPED:
            self._fire(ClientFSM.close_requested)

    def _fire(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        self._dispatcher.fire(self, event, *args, **kwargs)

    def event_done(self, event: str, old_state: str) -> None:
        """An event of the machine is complete; of the dispatcher's."""
        fsm = self._fsm
        if self._heartbeat is None:
            self._pong.fail(NotConnected("the connection was lost before the pong came"))
        if fsm.state != old_state:
            logger.debug("%s: %s → %s: %s", event, old_state, fsm.state, fsm.reason)
            now = fsm.status, fsm.reason, fsm.attempt, fsm.retry_in, fsm.cause, fsm.stop_kind
            change = StateChange(event, old_state, fsm.state, *now)
            self._transitions_to_come += 1
            self._dispatcher.schedule_call(self._tell_transition, change)

    @property
    def name(self) -> str:
        """For the dispatcher: it is no room."""
        return ""

    @property
    def fsm(self) -> ClientFSM:
        """For the dispatcher: the machine."""
        return self._fsm

    def _network_changed(self, online: bool) -> None:
        if online:
            self._fire(ClientFSM.went_online, self._time())
        else:
            self._fire(ClientFSM.went_offline)

    def _tell_transition(self, change: StateChange) -> None:
        self._transitions_to_come -= 1
        self._on_transition.notify(change)

    def _is_current(self, source: asyncio.Task[Socket] | Socket) -> bool:
        """Whether a fact comes from the dial or socket that counts now; all others are dropped (law 2)."""
        return source is self._dial or source is self._socket

    def _dial_ended(self, dial: asyncio.Task[Socket]) -> None:
        socket = None if dial.cancelled() or dial.exception() is not None else dial.result()
        if not self._is_current(dial):
            if socket is not None:
                self._own(socket.discard())
            return
        self._dial = None
        if socket is not None:
            self._socket = socket
            socket.start(
                lambda batch: self._on_messages(socket, batch),
                lambda: self._on_messages(socket, ()),
                lambda info: self._dispatcher.schedule_call(self._socket_closed, socket, info),
                self._dispatcher.idle,
            )
            self._fire(ClientFSM.socket_opened)
            return
        error = None if dial.cancelled() else dial.exception()
        if isinstance(error, AttemptFailed):
            failure = error.failure
        else:  # not foreseen; a failed attempt all the same, never a wedged client
            what = "the attempt was cancelled" if error is None else f"could not connect: {type(error).__name__}"
            failure = AttemptFailure(FailureKind.NETWORK, what)
        self._fire(ClientFSM.dial_failed, failure, self._now())

    def _socket_closed(self, socket: Socket, info: CloseInfo) -> None:
        if self._is_current(socket):
            if info.lasted < self._retry.stable_after:
                socket.blame()
            self._fire(ClientFSM.socket_closed, info)
            self._given_up = 0  # it was lost, and not given up by this program

    def _on_messages(self, socket: Socket, messages: Sequence[Data]) -> None:
        if self._is_current(socket) and self._heartbeat is not None:
            self._heartbeat.heard(self._now())
            if messages:
                self._dispatcher.schedule(self._handle_messages(socket, self._heartbeat, messages))

    def _handle_messages(self, socket: Socket, heartbeat: Heartbeat, messages: Sequence[Data]) -> Iterator[None]:
        """Handle what came together, one message a step, for as long as the socket is the current one (D-ORDER)."""
        for data in messages:
            if socket is not self._socket:
                return
            if data == PONG and heartbeat.awaits_pong:
                self._ponged(heartbeat)
            else:
                for _ in self._received(data) or ():
                    yield
                    if socket is not self._socket:
                        return
            yield
            if len(data) > BYTES_A_STEP:  # it takes long: the loop has its turn the sooner
                for _ in range(len(data) // BYTES_A_STEP):
                    yield

    def _ponged(self, heartbeat: Heartbeat) -> None:
        round_trip = heartbeat.ponged(self._now())
        if round_trip is not None:
            self._set_heartbeat_timer()
            self._latency = round_trip
            self._pong.wake(round_trip)
            if self._on_latency:
                self._dispatcher.post(self._on_latency.notify, round_trip)

    def _received(self, data: Data) -> Iterator[object] | None:
        """A message came; return what is left to do for it, in steps. A client with rooms takes the binary ones."""
        self._on_message.notify(data)
        return None

    def _timer_fired(self, number: int) -> None:
        if self._timer is not None and number == self._timers_started:  # else it was stopped while this waited
            self._timer = None
            self._fire(ClientFSM.timer_fired)

    def _heart_beats(self, deadline: Timer) -> None:
        self._dispatcher.post(self._heartbeat_due, deadline.when)

    def _heartbeat_due(self, due: float) -> None:
        heartbeat, socket = self._heartbeat, self._socket
        if heartbeat is None or socket is None:
            return
        now, counters = max(self._now(), due), socket.counters()  # asyncio may run a timer a little early
        beat = heartbeat.tick(now, counters, socket.is_reading(counters) and not self._dispatcher.has_work)
        if beat is KeepaliveAction.DEAD:
            why = f"no answer to a ping within {self._keepalive.timeout:g} s: the connection is dead"
            if heartbeat.is_deaf(now) and not heartbeat.is_silent:
                why = f"the server has read nothing for {heartbeat.stuck_for(now):.0f} s: the connection is dead"
            elif not heartbeat.was_ever_answered:
                why += " (or this server does not answer the text 'ping' with 'pong'; see Keepalive)"
            socket.blame()
            self._fire(ClientFSM.pong_missed, CloseInfo(1006, why, socket.lasted, fault=FaultKind.LIVENESS))
            return
        if beat is KeepaliveAction.PING:
            self._send_ping(heartbeat, socket, counters)
        else:
            self._set_heartbeat_timer()

    # Effects

    def run_effect(self, effect: Effect) -> None:
        """Run one effect of the machine. Override it to run effects of your own; call this one for the rest."""
        run = self.runners.get(type(effect))
        if run is None:
            logger.error(
                "%s is no effect that %s knows how to run: override run_effect",
                type(effect).__name__,
                type(self).__name__,
            )
        else:
            getattr(self, run)(effect)

    @runs(Release)
    def _release(self, _: Release) -> None:
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            notify_user("the network source's function that ends the subscription", unsubscribe)
        # Most of it was stopped when the last state was left; after a fault nothing is certain, so all of it, always.
        self._cancel_dial()
        self._stop_timer()
        self._stop_outage_timer()
        self._stop_keepalive()
        self._close_socket(CloseSocket(1001, ""))
        session, self._session = self._session, None
        if session is not None:
            self._own(self._close_session(session, set(self._ending)))

    @runs(Dial)
    def _start_dial(self, _: Dial) -> None:
        assert self._loop is not None
        self._dial = self._loop.create_task(self._open(), name="reconnect_fsm dial")
        self._dial.add_done_callback(lambda dial: self._dispatcher.post(self._dial_ended, dial))

    async def _open(self) -> Socket:
        if self._given_session is not None and self._given_session.closed:
            why = "the session given to the client is closed"
            raise AttemptFailed(AttemptFailure(FailureKind.MISCONFIGURED, why, fault=FaultKind.OPTIONS))
        if self._session is None:
            self._session = make_session(self._given_session)
        return await open_socket(
            self._session,
            self._url,
            timeout=self._connect_timeout,
            close_timeout=self._close_timeout,
            max_msg_size=self._max_msg_size,
            options=self._options,
            redaction=self._redaction,
            max_retry_after=self._retry.max_retry_after,
        )

    @runs(CancelDial)
    def _cancel_dial(self, _: CancelDial | None = None) -> None:
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
            self._own_task(dial)

    @runs(CloseSocket)
    def _close_socket(self, effect: CloseSocket) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._given_up = self._connections
            self._own(socket.close(effect.code, effect.reason))

    @runs(StartTimer)
    def _start_timer(self, effect: StartTimer) -> None:
        assert self._loop is not None
        self._stop_timer()
        self._timers_started += 1
        self._timer = self._loop.call_later(
            effect.seconds, self._dispatcher.post, self._timer_fired, self._timers_started
        )

    @runs(StopTimer)
    def _stop_timer(self, _: StopTimer | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @runs(StartOutageTimer)
    def _start_outage_timer(self, effect: StartOutageTimer) -> None:
        assert self._loop is not None
        self._stop_outage_timer()
        self._outage_timer = self._loop.call_later(effect.seconds, self._dispatcher.post, self._outage_lasted)

    @runs(StopOutageTimer)
    def _stop_outage_timer(self, _: StopOutageTimer | None = None) -> None:
        if self._outage_timer is not None:
            self._outage_timer.cancel()
            self._outage_timer = None

    def _outage_lasted(self) -> None:
        if self._outage_timer is not None:
            self._outage_timer = None
            self._fire(ClientFSM.outage_lasted)

    @runs(ReportOutage)
    def _report_outage(self, effect: ReportOutage) -> None:
        server = _server(self._url)
        logger.warning(
            "%snot connected: %s; %s",
            f"{server}: " if server else "",
            effect.why,
            effect.next,
            extra={"server": server, "reason": effect.why, "attempt": effect.attempt},
        )

    @runs(ReportRecovery)
    def _report_recovery(self, _: ReportRecovery) -> None:
        server = _server(self._url)
        logger.info("%sthe outage is over: the connection has lasted", f"{server}: " if server else "")

    @runs(StartKeepalive)
    def _start_keepalive(self, _: StartKeepalive) -> None:
        counters = None if self._socket is None else self._socket.counters()
        self._heartbeat = Heartbeat(self._keepalive, self._now(), counters)
        self._set_heartbeat_timer()

    @runs(StopKeepalive)
    def _stop_keepalive(self, _: StopKeepalive | None = None) -> None:
        self._heartbeat = None
        self._set_heartbeat_timer()

    @runs(AnnounceConnected)
    def _announce_connected(self, _: AnnounceConnected) -> None:
        self._connections += 1
        self._connected.wake(self._connections)
        for completion in self._settled_completions():
            completion.succeed()

    @runs(NotifyRooms)
    def _notify_rooms(self, effect: NotifyRooms) -> None:
        """A connection has no rooms; a client does."""

    @runs(FailWaiters)
    def _fail_waiters(self, effect: FailWaiters) -> None:
        for completion in self._settled_completions():
            completion.fail(effect.error)
        self._pong.fail(effect.error)

    @runs(NotifyStatus)
    def _notify_status(self, effect: NotifyStatus) -> None:
        change = effect.change
        server = _server(self._url)
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
        self._dispatcher.schedule_call(self._on_status.notify, change)  # law 4: the rooms are notified before

    # Helpers

    def _settled_completions(self) -> list[Completion]:
        completions, self._waiting_completions = [each() for each in self._waiting_completions], []
        return [completion for completion in completions if completion is not None and not completion.done]

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _send_ping(self, heartbeat: Heartbeat, socket: Socket, counters: Counters | None) -> None:
        heartbeat.sent(self._now(), counters)
        self._set_heartbeat_timer()
        socket.send_urgent(PING)

    def _set_heartbeat_timer(self) -> None:
        deadlines = self._timers
        if self._loop is None or deadlines is None:
            return
        if self._heartbeat_timer is not None:
            deadlines.cancel(self._heartbeat_timer)
            self._heartbeat_timer = None
        if self._heartbeat is not None and self._heartbeat.deadline is not None:
            # Pings of many connections go out together; how long a pong may take is not for them to shorten.
            slack = 0.0 if self._heartbeat.in_flight else min(PING_EARLY, 0.1 * self._keepalive.interval)
            due = self._heartbeat.deadline
            self._heartbeat_timer = deadlines.call_at(self._loop, due, self._heart_beats, slack=slack)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself within a bound; `close` waits for it."""
        assert self._loop is not None
        self._own_task(self._loop.create_task(work, name="reconnect_fsm teardown"))

    def _own_task(self, task: asyncio.Task[Any]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _close_session(self, session: Session, ending: set[asyncio.Task[Any]]) -> None:
        """Close the session once nothing of it is in use; the pending ends are all bounded."""
        try:
            await self._ended(ending)
        finally:  # also if the loop ends, which cancels this
            await close_session(session)

    async def _ended(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Wait for tasks that were told to end; give up on a user's coroutine that refuses (D-TIMEOUT)."""
        refusing = set(tasks)
        for _ in range(SLICES):
            if refusing:
                _, refusing = await asyncio.wait(refusing, timeout=(2 * self._close_timeout + 1) / SLICES)
        for task in refusing:
            logger.error("%s does not end though it was cancelled; it is left behind", task.get_name())
            self._ending.discard(task)

    def _close_requested(self, completion: Completion) -> None:
        self._fire(ClientFSM.close_requested)
        self._dispatcher.schedule_call(self._dispatcher.end_recording)
        completion.succeed()

    async def _closed(self, completion: Completion) -> None:
        self._check_loop()
        await completion.wait()
        await self._dispatcher.idle()  # all rooms and listeners have heard of it
        while self._ending:
            await self._ended(self._ending)


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")


def observation_of(connection: Connection) -> Observation:
    """The client as the inspector, telemetry and the command line see it."""
    url, socket = connection._url, connection._socket
    return Observation(
        fsm=connection._fsm,
        url=url if isinstance(url, URL) else None,
        loop=connection._loop,
        now=connection._time() or 0.0,
        opened_at=None if socket is None else socket.opened_at,
        pending_transitions=connection._transitions_to_come,
        log=connection._dispatcher.log,
        on_step=connection._dispatcher.observers.add,
    )


def explanation_of(connection: Connection, rooms: Collection[ExplainedRoom] = ()) -> Explanation:
    """What `Connection.explain` says, in parts. Rooms that are not given are not counted."""
    from reconnect_fsm.recorder.explain import explanation

    timer = connection._timer
    return explanation(
        connection._fsm,
        connection._dispatcher.log,
        rooms,
        now=connection._time() or 0.0,
        due=None if timer is None else timer.when(),
        connect_timeout=connection._connect_timeout,
        latency=connection._latency,
    )


def _server(url: UrlSource) -> str:
    """Which one, for the log; without the user and password of `URL.authority`. Unknown where a function tells it."""
    return "" if callable(url) else URL(url).host_port_subcomponent or ""


def _retry_words(change: StatusChange[ClientStatus]) -> str:
    return "" if change.retry_in is None else f" (retry {change.attempt} in {change.retry_in:.1f} s)"
