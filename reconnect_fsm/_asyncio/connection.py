"""`Connection`: one WebSocket that stays connected, as users hold it. Usable alone, with any WebSocket server."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self

from reconnect_fsm._asyncio import observing
from reconnect_fsm._asyncio.awaitables import LazyCoroutine
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver, ConnectionSettings, TrackedRoom
from reconnect_fsm._asyncio.observing import Observation
from reconnect_fsm._asyncio.transport.handshake import check_options
from reconnect_fsm._asyncio.transport.sessions import Session, check_session
from reconnect_fsm._asyncio.transport.socket import Data
from reconnect_fsm._asyncio.transport.url import UrlSource, check_url
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.machine import Event
from reconnect_fsm.network import NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import Cause, ClientStatus, StateChange, StatusChange

if TYPE_CHECKING:  # imported when they are first needed, which in most programs is never
    from collections.abc import Collection

    from reconnect_fsm.recorder.explain import Explanation
    from reconnect_fsm.recorder.recorder import File, Recording, Transition

__all__ = ["MAX_MSG_SIZE", "Connection", "connection_driver_of", "explanation_of", "observation_of"]

P = ParamSpec("P")

MAX_RECORDED = 50_000_000  # bytes of a recording
MAX_MSG_SIZE = 4 * 1024 * 1024  # bytes; what aiohttp allows by default


class Connection:
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

    __slots__ = ("__dict__", "__weakref__", "_driver")  # the driver holds all the rest

    _driver_type: ClassVar[type[ConnectionDriver]] = ConnectionDriver

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
        url = url if callable(url) else check_url(url)
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
        max_msg_size: int = options.pop("max_msg_size", MAX_MSG_SIZE)
        if not isinstance(max_msg_size, int) or max_msg_size < 0:
            raise ValueError(f"max_msg_size must be a number of bytes, or 0 for no limit, not {max_msg_size!r}")
        settings = ConnectionSettings(
            url=url,
            retry=retry or RetryPolicy(),
            keepalive=keepalive or Keepalive(),
            network=network,
            session=session,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            max_msg_size=max_msg_size,
            options=options,
        )
        self._driver = self._make_driver(settings, fsm(settings.retry))

    def _make_driver(self, settings: ConnectionSettings, fsm: ClientFSM) -> ConnectionDriver:
        return self._driver_type(self, settings, fsm)

    # Its present state

    @property
    def status(self) -> ClientStatus:
        """One of the five statuses (CONN-1)."""
        return self._driver.fsm.status

    @property
    def state(self) -> str:
        """The machine's state, finer than the status: `ClientFSM` tells them all."""
        return self._driver.fsm.state

    @property
    def reason(self) -> str:
        """Why it is in its present state, in words that hold no secrets."""
        return self._driver.fsm.reason

    @property
    def cause(self) -> Cause | None:
        """The same as data (D-CAUSE): how the connection ended, or why the last attempt failed.

        None while nothing is wrong, and where this program itself asked for the present state.
        """
        return self._driver.fsm.cause

    @property
    def machine(self) -> ClientFSM:
        """The live machine, an instance of the class given as ``fsm=``, for reading.

        ``client.machine.may(MyFSM.metered_changed)`` says whether an event would lead anywhere. An event is fired with
        `tell`; called on the machine itself it raises RuntimeError.
        """
        return self._driver.fsm

    @property
    def latency(self) -> float | None:
        """The last round trip of a ping, in seconds; None before the first (OBS-3)."""
        return self._driver.latency

    # Control

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
        self._driver.request(ClientFSM.start_requested)

    def connect(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        """Make sure that it is connected or on its way: if it waits, is paused or is stopped, it dials now (CTRL-1).

        ``reset_backoff`` makes the waits begin anew at their shortest. Acts at once. The result may be awaited: it
        returns once connected and raises ClientStopped if the client stops instead.
        """
        return self._driver.request(ClientFSM.connect_requested, reset_backoff)

    def retry_now(self, reset_backoff: bool = False) -> LazyCoroutine[None]:
        """Force a fresh attempt now: a dial under way or a connection is dropped for it (CTRL-1, D-FORCE).

        Acts at once; ``reset_backoff`` and the result are as those of `connect`.
        """
        return self._driver.request(ClientFSM.retry_requested, reset_backoff)

    def close(self) -> LazyCoroutine[None]:
        """Stop (CTRL-2). Acts at once (D-NOW); await the result to know that no task, timer or socket is left.

        That takes ``close_timeout`` seconds at most, and little more; 2 ``close_timeout`` + 1 s if a coroutine of yours
        refuses to be cancelled, which is then left behind.

        `connect` or `retry_now` starts it again.
        """
        return self._driver.close()

    def wait_connected(self) -> LazyCoroutine[None]:
        """Wait for the next time it is connected; return at once if it is now (CONN-5).

        The result is an awaitable that may be taken now, kept, shared and awaited twice. It never fails: while the
        client is stopped it goes on waiting. Put ``asyncio.timeout`` around it to wait for less. It does not return for
        a connection that this program has given up in the same moment.

        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        return self._driver.wait_connected()

    async def ready(self) -> None:
        """Wait until it is connected; return at once if it is now (D-STOP).

        Raises ClientStopped if the client is stopped, or stops; a client that was never started is not stopped. Raises
        RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        await self._driver.ready()

    async def ping(self, timeout: float = 5.0) -> float:
        """Send a ping and return the round trip in seconds. A ping that is in flight already is shared.

        Raises NotConnected if there is no connection or it is lost meanwhile, ClientStopped if the client is stopped or
        stops (D-STOP), TimeoutError after ``timeout`` seconds; that alone does not end the connection. Raises
        RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        return await self._driver.ping(timeout)

    async def send(self, data: Data) -> None:
        """Send a text (str) or binary (bytes) message; returns once it has been handed to the network (D-SEND).

        It waits for the messages before it, and while the network takes no more; not for those behind it. Raises
        NotConnected if there is no connection, or if it is lost before this message was written; TypeError for anything
        but str and bytes, ValueError for a str that cannot be encoded.
        Cancelling it never harms the connection; the message may be sent all the same.
        """
        await self._driver.send(data)

    def set_online(self, online: bool) -> None:
        """Say whether this machine has a network (OFF-1, OFF-2). May be called from any thread.

        What is known already changes nothing: a connection made by hand while offline outlives a second "offline".
        """
        self._driver.set_online(online)

    def tell(self, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire an event of a machine of your own: ``client.tell(MyFSM.metered_changed, True)`` (ANY-TELL).

        Acts at once, as a method of the client does (D-NOW). May be called from any thread; then it acts soon.

        Raises TypeError for what is no event that the class given as ``fsm=`` adds, or if the arguments do not fit it.
        """
        fsm = type(self._driver.fsm)
        if not isinstance(event, Event) or fsm.events.get(event.name) is not event:
            raise TypeError(f"tell() takes an event of {fsm.__name__}, not {event!r}")
        if event.name in ClientFSM.events:
            raise TypeError(f"{event.name} is an event that the client fires itself; tell() is for events of your own")
        self._driver.tell(event, event.arguments(*args, **kwargs))

    # Notification (OBS-1, OBS-3)

    def on_status(self, callback: Callable[[StatusChange[ClientStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of status (OBS-1). Returns one that ends it."""
        return self._driver.on_status.add(callback)

    def on_transition(self, callback: Callable[[StateChange], object]) -> Callable[[], None]:
        """Call the function on every change of state, failed attempts included. Returns one that ends it."""
        return self._driver.on_transition.add(callback)

    def on_latency(self, callback: Callable[[float], object]) -> Callable[[], None]:
        """Call the function with every round trip, in seconds (OBS-3). Returns one that ends it."""
        return self._driver.on_latency.add(callback)

    def on_message(self, callback: Callable[[Data], object]) -> Callable[[], None]:
        """Call the function with every message: str for text, bytes for binary. Returns one that ends it."""
        return self._driver.on_message.add(callback)

    # Explanations and recordings

    def explain(self) -> str:
        """Say in some sentences how things stand: why it is not connected, what happened last, and what comes next."""
        return str(explanation_of(self, self._driver.tracked_rooms))

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

        recorder = observing.recorder(self._driver, hide_rooms)
        return Recording(self._driver.dispatcher, recorder, file, max_bytes=max_bytes)

    def export(self, file: File, *, hide_rooms: bool = False) -> int:
        """Write the last steps, a few hundred that are always kept, as a recording; return how many they are.

        See `record` for the arguments. Raises OSError if the file cannot be written.
        """
        from reconnect_fsm.recorder.recorder import export

        return export(self._driver.dispatcher.log, observing.recorder(self._driver, hide_rooms), file)

    def transitions(self) -> list[Transition]:
        """The last transitions, a few hundred that are always kept, of the client and its rooms."""
        from reconnect_fsm.recorder.recorder import transitions

        return transitions(self._driver.dispatcher.log)

    # What a subclass may change

    def run_effect(self, effect: Effect) -> None:
        """Run one effect of the machine. Override it to run effects of your own; call this one for the rest."""
        self._driver.run_own_effect(effect)


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")


def connection_driver_of(connection: Connection) -> ConnectionDriver:
    """What runs it: for the inspector, telemetry, the command line and tests."""
    return connection._driver


def observation_of(connection: Connection) -> Observation:
    """The client as the inspector, telemetry and the command line see it."""
    return observing.observation(connection_driver_of(connection))


def explanation_of(connection: Connection, rooms: Collection[TrackedRoom] = ()) -> Explanation:
    """What `Connection.explain` says, in parts. Rooms that are not given are not counted."""
    return observing.explanation(connection_driver_of(connection), rooms)
