"""One WebSocket: opens it, reads frames, writes frames, says why it closed. The only module that knows aiohttp.

What aiohttp does that we do not want is dealt with here: its own heartbeat, answers to close and ping frames, a
second TCP connection within one attempt, redirects that carry credentials to another origin, and a `close()` that may
never end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import inspect
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, TypeAlias, cast
from weakref import WeakValueDictionary

import aiohttp
from aiohttp import WSMsgType
from multidict import CIMultiDict
from yarl import URL

from reconnect_fsm._asyncio.credentials import UserCodeFailed, as_unauthorized, ask, wait_for_answer
from reconnect_fsm._asyncio.transport.failures import (
    LONGEST_CHAIN,
    MAX_RETRY_AFTER,
    AskedElsewhere,
    Attempt,
    Redirected,
    failure_of,
)
from reconnect_fsm._asyncio.transport.resolver import Resolver
from reconnect_fsm._asyncio.transport.url import check_url, with_params
from reconnect_fsm._asyncio.user_code import report
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.errors import InvalidURL, NotConnected, Unauthorized, is_fault
from reconnect_fsm.keepalive import Counters
from reconnect_fsm.status import AttemptFailure, CloseInfo, FailureKind, FaultKind

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = [
    "MAX_RETRY_AFTER",
    "AttemptFailed",
    "Data",
    "Session",
    "Socket",
    "UrlSource",
    "check_options",
    "check_session",
    "check_url",
    "close_session",
    "learn_secrets",
    "open_socket",
]

Data: TypeAlias = str | bytes
UrlSource: TypeAlias = str | URL | Callable[[], str | URL | Awaitable[str | URL]]
Session: TypeAlias = aiohttp.ClientSession
Item: TypeAlias = Data | list[bytes] | tuple[Data | None, asyncio.Future[None]]
"""What waits to be written: a frame, a list of frames, or one whose sender waits; nothing, to wait for all before."""

BURST: Final = 128  # frames written, or read, before the event loop gets its turn
BURST_BYTES: Final = 256 * 1024  # likewise, of frames written
TCP_INFO: Final = struct.Struct("=QQ16xI")  # linux/tcp.h, from 120: bytes_acked, bytes_received, …, data_segs_in
INT: Final = struct.Struct("i")
RECORD: Final = 30  # bytes of its own that a TLS record has, at the most
PONGS: Final = 16  # answers to WebSocket's own pings that may wait
DATA: Final = (WSMsgType.TEXT, WSMsgType.BINARY)
NOT_WRITTEN: Final = "the connection was lost before the message was written"
NO_STATUS_RECEIVED, ABNORMAL_CLOSURE = 1005, 1006  # RFC 6455, 7.4.1: never on the wire

# What the client decides itself, and so does not take from the user.
OWN_OPTIONS: Final = {
    "autoclose": "the machine decides when the socket is closed",
    "autoping": "ping frames are always answered",
    "heartbeat": "use keepalive=Keepalive(...)",
    "receive_timeout": "use keepalive=Keepalive(...)",
    "timeout": "use connect_timeout=, close_timeout= and keepalive=",
    "decode_text": "text frames are always decoded",
}
NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)  # connect_timeout bounds the whole attempt

# What is passed on to aiohttp's ws_connect as it is.
PASSED_ON: Final = (
    "auth", "compress", "headers", "max_msg_size", "method", "origin", "params", "protocols", "proxy", "proxy_auth",
    "proxy_headers", "server_hostname", "ssl",
)  # fmt: skip


class AttemptFailed(Exception):
    """The attempt did not lead to an open socket; ``failure`` says why."""

    def __init__(self, failure: AttemptFailure) -> None:
        super().__init__(failure.why)
        self.failure = failure


def check_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for options that aiohttp's ``ws_connect`` does not have, or that are ours to decide."""
    for name in options:
        if name in OWN_OPTIONS:
            raise TypeError(f"{name}= is not yours to set: {OWN_OPTIONS[name]}")
        if name not in PASSED_ON:
            raise TypeError(
                f"unknown option {name}=; what is passed on to aiohttp's ws_connect is {', '.join(PASSED_ON)}"
            )


# What cannot be read of a given session in public. It is borrowed whole, so that each of its settings counts, and those
# that are ours to decide are replaced in the copy.
BORROWED: Final = (
    "_connector", "_connector_owner", "_default_auth", "_default_headers", "_default_proxy", "_default_proxy_auth",
    "_middlewares", "_timeout", "_trace_configs", "_ws_response_class",
)  # fmt: skip


def check_session(session: Session | None) -> None:
    """Raise TypeError for a session whose settings cannot be taken over (D-SESSION)."""
    if session is None:
        return
    missing = [name for name in BORROWED if not hasattr(session, name)]
    if missing:
        raise TypeError(
            f"session= cannot be used with aiohttp {aiohttp.__version__}: its settings cannot be read "
            f"({', '.join(missing)}); give the client the options instead"
        )
    if session._ws_response_class is not aiohttp.ClientWebSocketResponse:
        raise TypeError("session= cannot have a ws_response_class of its own: the client reads frames in its own way")


URL_FUNCTION: Final = "the url function"

# Headers that aiohttp makes by itself, or that say what all the world may know.
NO_SECRETS: Final = {
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-type", "host", "origin",
    "pragma", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-version", "upgrade",
}  # fmt: skip
LONG: Final = 16  # characters of a part of the path that may be a token


def learn_secrets(redaction: Redaction, url: URL, options: Mapping[str, Any], session: Session | None = None) -> None:
    """Have it know what in the address, the session and the options of ``ws_connect`` may be secret.

    What is really sent is learned when it is sent; this is for what is shown before.
    """
    for cookie in session.cookie_jar if session is not None else ():
        redaction.learn(cookie.value, "cookie")
    given = {} if session is None else vars(session)
    for headers in (given.get("_default_headers"), options.get("headers"), options.get("proxy_headers")):
        for value in CIMultiDict[str](headers or {}).values():
            _learn_header(redaction, value)
    for credentials in (
        given.get("_default_auth"),
        given.get("_default_proxy_auth"),
        options.get("auth"),
        options.get("proxy_auth"),
    ):
        _learn_basic_auth(redaction, credentials)
    for protocol in options.get("protocols") or ():
        redaction.learn(protocol)
    proxies = [URL(proxy) for proxy in (given.get("_default_proxy"), options.get("proxy")) if proxy]
    for each in (*proxies, URL().with_query(options.get("params")), url):
        _learn_url(redaction, each)


def _learn_url(redaction: Redaction, url: URL) -> None:
    if url.user or url.password:
        _learn_credentials(redaction, url.user or "", url.password or "")
    raw = [pair.partition("=")[2] or pair for pair in url.raw_query_string.split("&")]
    raw += [pair.partition("=")[2] or pair for pair in url.raw_fragment.split("&")]
    long = [part for part in url.raw_parts if len(part) >= LONG]
    for secret in (url.raw_user, url.raw_password, *url.query.values(), url.fragment, *raw, *long):
        redaction.learn(secret)


def _learn_basic_auth(redaction: Redaction, credentials: object) -> None:
    if isinstance(credentials, aiohttp.BasicAuth):
        user, password, _ = cast("tuple[str, str, str]", credentials)
        _learn_credentials(redaction, user, password)


def _learn_credentials(redaction: Redaction, user: str, password: str) -> None:
    redaction.learn(user)
    redaction.learn(password)
    redaction.learn(base64.b64encode(f"{user}:{password}".encode()))  # as the server is told them


def _learn_header(redaction: Redaction, value: str) -> None:
    redaction.learn(value)
    scheme, _, said = value.partition(" ")
    if scheme.lower() == "basic":  # as netrc gives it, too: the server reads the password in it
        with contextlib.suppress(ValueError):
            for part in base64.b64decode(said.strip()).partition(b":")[::2]:
                redaction.learn(part)


def _learn_request(redaction: Redaction, request: aiohttp.ClientRequest) -> None:
    """What the server is really told: by the session, by middlewares, by netrc, by the environment (D-JUDGED)."""
    for name, value in request.headers.items():
        if name.lower() not in NO_SECRETS and value != aiohttp.http.SERVER_SOFTWARE:
            _learn_header(redaction, value)
    for value in CIMultiDict[str](getattr(request, "proxy_headers", None) or {}).values():
        _learn_header(redaction, value)
    _learn_basic_auth(redaction, getattr(request, "proxy_auth", None))
    for url in (getattr(request, "proxy", None), request.url):
        if isinstance(url, URL):
            _learn_url(redaction, url)


# The handshake


class Burst:
    """Stands between aiohttp's writer and its transport: what is written within ``with burst:`` goes out together.

    A system call for each small frame costs several times what all the rest of sending it does.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None
        self.is_closing = transport.is_closing
        self.given = 0
        """Bytes written so far, whether the network has taken them or not."""
        self.held = 0
        """Bytes that go out with the rest of the burst."""

    def write(self, data: bytes) -> None:
        """Write now, or with the rest of the burst."""
        if self._held is None:
            self.given += len(data)
            self._transport.write(data)
        else:
            self._held.append(data)
            self.held += len(data)

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        held, self._held, self.held = self._held, None, 0
        if held and not self.is_closing():
            self.write(b"".join(held))


class _WebSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's WebSocket, which also tells its transport: the only thing that can end a close that hangs."""

    def __init__(
        self, reader: Any, writer: Any, protocol: Any, response: aiohttp.ClientResponse, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(reader, writer, protocol, response, *args, **kwargs)
        self.response = response
        connection = response.connection
        self.transport: asyncio.Transport | None = None if connection is None else connection.transport
        self.burst: Burst | None = None
        is_as_expected = getattr(writer, "transport", None) is self.transport
        if self.transport is not None and is_as_expected:
            writer.transport = self.burst = Burst(self.transport)
        # else aiohttp has changed its private parts: each frame costs a system call

    async def more(self, most: int) -> list[Data]:
        """The messages that have been read from the network already, without waiting for any; others than data end it.

        `receive` takes five times as long for each as the rest of what is done for it here.
        """
        queue = self._reader
        waiting: Any = getattr(queue, "_buffer", ())  # if aiohttp has changed its private parts, one at a time
        data: list[Data] = []
        while waiting and len(data) < most and waiting[0][0].type in DATA:
            data.append((await queue.read()).data)
        return data


# Of the attempt that the running task makes; tracing and middlewares are told nothing of it by aiohttp.
_attempt: ContextVar[Attempt] = ContextVar("_attempt")
_redaction: ContextVar[Redaction] = ContextVar("_redaction")


async def _one_request(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """The innermost middleware. Each attempt may send one request, and one more to answer a challenge (401).

    aiohttp asks again by itself when the server hangs up during the handshake, and follows redirects; so may
    middlewares of the user's. All of that would be attempts that the machine knows nothing of.
    """
    attempt = _attempt.get()
    if attempt.errors:
        raise attempt.errors[0]
    if attempt.answers and (attempt.answers[-1].status != 401 or len(attempt.answers) > 1):
        return attempt.answers[-1]
    origin = request.url.origin()
    try:
        if attempt.origin not in (None, origin):
            raise AskedElsewhere
        attempt.origin, attempt.stage = origin, "connection"
        attempt.proxy = getattr(request, "proxy", None)
        redaction = _redaction.get()
        _learn_request(redaction, request)
        response = await handler(request)
        for cookie in response.headers.getall("Set-Cookie", ()):
            redaction.learn(cookie.partition(";")[0].partition("=")[2], "cookie")
        if 300 <= response.status < 400:
            response.close()
            raise Redirected(response.status, response.headers)
    except BaseException as error:
        attempt.errors.append(error)
        raise
    attempt.answers.append(response)
    attempt.stage = "middleware"
    return response


async def _users_middlewares(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """The outermost middleware: what those of the user's raise themselves is theirs (D-GUARD, D-WORDS)."""
    attempt = _attempt.get()
    attempt.stage = "middleware"
    try:
        return await handler(request)
    except BaseException as error:
        if any(error is each for each in attempt.errors) or _must_propagate(error):
            raise
        unauthorized = as_unauthorized(error)
        if unauthorized is not None:
            attempt.stage = "middleware"
            raise unauthorized from None
        what = "a middleware of the session"
        _unchain(error, attempt)
        report(what, error)
        raise UserCodeFailed(what, error) from error


def _unchain(error: BaseException, attempt: Attempt) -> None:
    """Its traceback is logged, and the error of aiohttp's that it was raised from may hold the whole URL."""
    for _ in range(LONGEST_CHAIN):
        inner = error.__cause__ or error.__context__
        if inner is None:
            return
        if any(inner is each for each in attempt.errors):
            error.__cause__ = error.__context__ = None
            return
        error = inner


def _must_propagate(error: BaseException) -> bool:
    """Whether it is the end of the program or of the running task, and no fault of code of the user's (D-GUARD)."""
    if isinstance(error, asyncio.CancelledError):
        return _is_cancelled()
    return isinstance(error, GeneratorExit) or not is_fault(error)


def _is_cancelled() -> bool:
    """Whether the running task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _tracing() -> aiohttp.TraceConfig:
    """Says how far an attempt has come, so that a timeout can name what was waited for (D-WORDS)."""
    config = aiohttp.TraceConfig()

    def at(stage: str) -> Callable[..., Awaitable[None]]:
        async def reached(*_: object) -> None:
            _attempt.get().stage = stage

        return reached

    async def accepted(*_: object) -> None:
        attempt = _attempt.get()
        attempt.tried = [(address, each) for address, each in attempt.tried if each.fileno() != -1]

    async def reused(*_: object) -> None:
        _attempt.get().is_reused = True

    config.on_connection_queued_start.append(at("limit"))
    config.on_connection_queued_end.append(at("connection"))
    config.on_connection_create_end.append(at("answer"))
    config.on_connection_create_end.append(accepted)
    config.on_dns_resolvehost_start.append(at("name"))
    config.on_dns_resolvehost_end.append(at("connection"))
    config.on_connection_reuseconn.append(reused)
    config.freeze()
    return config


_TRACING: Final = _tracing()


def _tried(address: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
    """A socket for this address, which the running attempt remembers that it has tried."""
    family, kind, protocol, _, where = address
    made = socket.socket(family, kind, protocol)
    _attempt.get().tried.append(((where[0], where[1]), made))
    return made


class _Connector(aiohttp.TCPConnector):
    """One for all connections of an event loop; it keeps nothing of theirs, but is a quarter of the size of each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # A fresh TCP connection and a fresh address for each attempt: the network may have changed in between.
        self.names = Resolver(loop)
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            force_close=True, use_dns_cache=False, limit=0, resolver=self.names, socket_factory=_tried
        )
        self.loop = loop
        self.users = 0

    @property
    def closed(self) -> bool:
        """Also when its loop has ended: a program that forgot `close` is told of no session that is not its own."""
        return super().closed or self.loop.is_closed()


# By the loop's id, and weak: what is kept here must not keep a loop that is abandoned, nor what lived in it.
_connectors: WeakValueDictionary[int, _Connector] = WeakValueDictionary()


class _FreshConnections:
    """The connector of a session of the user's, but for connections that it has kept.

    They may have died with the network that was before, and then a handshake on them waits for nothing.
    """

    def __init__(self, given: aiohttp.BaseConnector) -> None:
        self.given = given
        self.loop = asyncio.get_running_loop()

    @property
    def closed(self) -> bool:
        """As that of `_Connector`."""
        return self.given.closed or self.loop.is_closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.given, name)

    async def connect(self, request: aiohttp.ClientRequest, *args: Any, **kwargs: Any) -> Any:
        attempt = _attempt.get()
        attempt.limit = self.given.limit
        while True:
            attempt.is_reused = False
            connection = await self.given.connect(request, *args, **kwargs)
            if not attempt.is_reused:
                return connection
            connection.close()  # so there is one less, until none is left


def make_session(given: Session | None) -> Session:
    """A session of our own. One that the user gave lends it all its settings, and keeps its connections (D-SESSION)."""
    if given is not None:
        if getattr(given, "_loop", None) not in (None, asyncio.get_running_loop()):
            why = "the session given to the client belongs to another event loop"
            raise AttemptFailed(AttemptFailure(FailureKind.MISCONFIGURED, why, fault=FaultKind.OPTIONS))
        assert given.connector is not None
        session = copy.copy(given)
        vars(session).update(
            _connector=_FreshConnections(given.connector),
            _connector_owner=False,
            _timeout=NO_TIMEOUT if given.timeout == aiohttp.client.DEFAULT_TIMEOUT else given.timeout,
            _middlewares=(_users_middlewares, *given._middlewares, _one_request),
            _trace_configs=[*given._trace_configs, _TRACING],
            _ws_response_class=_WebSocket,
        )
        return session
    loop = asyncio.get_running_loop()
    connector = _connectors.get(id(loop))
    if connector is None or connector.loop is not loop:  # a new loop may have the id of one that is gone
        connector = _connectors[id(loop)] = _Connector(loop)
    connector.users += 1
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=False,
        timeout=NO_TIMEOUT,
        middlewares=(_one_request,),
        trace_configs=[_TRACING],
        ws_response_class=_WebSocket,
    )


async def close_session(session: Session) -> None:
    """Close what `make_session` made, and the connector with the last that uses it."""
    connector = session.connector
    await session.close()
    if isinstance(connector, _Connector):
        connector.users -= 1
        if connector.users == 0:
            if _connectors.get(id(connector.loop)) is connector:
                del _connectors[id(connector.loop)]
            await connector.close()


async def open_socket(
    session: Session,
    url: UrlSource,
    *,
    timeout: float,
    close_timeout: float,
    max_msg_size: int,
    options: Mapping[str, Any],
    redaction: Redaction,
    max_retry_after: float = MAX_RETRY_AFTER,
) -> Socket:
    """One attempt: the address, DNS, TCP, TLS and handshake, all within ``timeout`` seconds (D-TIMEOUT).

    Raises AttemptFailed, whatever goes wrong.
    """
    attempt = Attempt(max_retry_after)
    _attempt.set(attempt)
    _redaction.set(redaction)
    try:
        async with asyncio.timeout(timeout):
            address = await _address(url, attempt)
            learn_secrets(redaction, address, options, session)
            address = with_params(address, options.get("params"))
            ws: object = await session.ws_connect(  # pyright: ignore[reportUnknownVariableType]  # Unpack of options
                address,
                autoclose=False,
                autoping=False,
                max_msg_size=max_msg_size and max_msg_size + 1,  # aiohttp refuses a message of exactly this size
                timeout=aiohttp.ClientWSTimeout(ws_close=close_timeout),  # pyright: ignore[reportCallIssue]  # attrs
                **{name: option for name, option in options.items() if name != "params"},
            )
    except AttemptFailed:
        raise
    except BaseException as error:
        if _must_propagate(error):
            raise
        failure = failure_of(error, attempt)
        _remember_addresses(session, attempt, failure)
        attempt.clear()
        # `from None`: what aiohttp raises may hold the whole URL, query string and all.
        raise AttemptFailed(failure) from None
    blame = _remember_addresses(session, attempt, None)
    attempt.clear()
    if not isinstance(ws, _WebSocket):
        why = "the session given to the client opens WebSockets of a kind of its own"
        raise AttemptFailed(AttemptFailure(FailureKind.MISCONFIGURED, why, fault=FaultKind.OPTIONS))
    opened = Socket(ws, close_timeout, max_msg_size, redaction)
    opened.blame = blame
    return opened


NOT_ACCEPTED: Final = {FaultKind.CONNECTION_REFUSED, FaultKind.UNREACHABLE, FaultKind.LIMITS}


def _remember_addresses(session: Session, attempt: Attempt, failure: AttemptFailure | None) -> Callable[[], None]:
    """An address that failed in any way is tried last the next time (NET-ADDR). Returns what says so later."""
    connector = session.connector
    if not isinstance(connector, _Connector):
        return _nothing  # the user's own resolver decides
    failures, addresses = connector.names.failures, [address for address, _ in attempt.tried]
    if failure is None:
        failures.work(addresses)
    else:
        failures.failed(addresses, accepted=failure.fault not in NOT_ACCEPTED)
    return lambda: failures.failed(addresses, accepted=True)


async def _in_a_task(answer: Awaitable[Any]) -> Any:
    """Wait for it in a task of its own, which is cancelled with this one.

    A TaskGroup that fails leaves a cancellation behind that was none (Python 3.11 and 3.12), and code of the user's may
    cancel the task it runs in: the dial must be able to tell that from its own end, and from the end of its time.
    """
    task = asyncio.create_task(wait_for_answer(URL_FUNCTION, answer), name="reconnect_fsm url function")
    if inspect.iscoroutine(answer):  # one that was cancelled before its first step would warn
        task.add_done_callback(lambda _: answer.close())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # who is cancelled does not ask for it
    try:
        return await task
    except (asyncio.CancelledError, GeneratorExit) as error:
        if not task.done() or _is_cancelled():
            raise
        report(URL_FUNCTION, error)
        raise UserCodeFailed(URL_FUNCTION, error) from error


async def _address(url: UrlSource, attempt: Attempt) -> URL:
    if not callable(url):
        return check_url(url)
    attempt.stage = "url"
    try:
        given = ask(URL_FUNCTION, url)
        if inspect.isawaitable(given):
            given = await _in_a_task(given)
    except UserCodeFailed:
        if _is_cancelled():
            raise asyncio.CancelledError from None  # it was to end, and raised something else instead
        raise
    if _is_cancelled():
        raise asyncio.CancelledError  # it was to end, and went on: without this nothing would bound the attempt
    if isinstance(given, Unauthorized):
        raise given
    if not isinstance(given, str | URL):
        raise InvalidURL(f"the url function must return a str or a yarl.URL, not {type(given).__name__}")
    attempt.stage = ""
    return check_url(given)


# The open socket


class Socket:
    """One open WebSocket: one task reads, and one writes while there is something to write.

    After `start` you must call `close`, once; it always ends within ``close_timeout`` seconds or little more.
    """

    def __init__(self, ws: _WebSocket, close_timeout: float, max_msg_size: int, redaction: Redaction) -> None:
        self._ws = ws
        self._shown = redaction
        self._close_timeout = close_timeout
        self._max_msg_size = max_msg_size
        self._outbox: list[Item] = []
        self._urgent: list[str] = []
        self._pongs: list[bytes] = []
        self._closing = False
        self._complaint: int | None = None  # the close code that says what the server did wrong
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._on_alive: Callable[[], None] = _nothing
        self.blame: Callable[[], None] = _nothing
        """Call it if the connection came to a bad end: the address is tried last the next time (NET-ADDR)."""
        self.opened_at = asyncio.get_running_loop().time()
        self._write_fault = ""
        # Where the kernel does not count, as asyncio's write buffer shows it at each look
        self._handed = self._flowed = 0
        self._was_full = False

    def start(
        self,
        on_messages: Callable[[list[Data]], None],
        on_alive: Callable[[], None],
        on_closed: Callable[[CloseInfo], None],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin to read and write.

        ``on_messages`` gets those that came together, `BURST` at most.
        ``on_alive`` is called for what proves life and is no message; ``on_closed`` once, unless `close` was called
        before; ``ready`` is awaited every now and then: no more is read until what came is handled.
        """
        self._on_alive = on_alive
        self._reader = asyncio.create_task(self._read(on_messages, on_closed, ready), name="reconnect_fsm reader")

    @property
    def lasted(self) -> float:
        """How long it has been open, in seconds."""
        return asyncio.get_running_loop().time() - self.opened_at

    @property
    def backlog(self) -> int:
        """How many frames, or groups of frames, wait to be written."""
        return len(self._outbox)

    def counters(self) -> Counters | None:
        """What has moved and what waits, for the heartbeat's verdict (LIVE-2); None if that cannot be known.

        Where the kernel does not count, what asyncio's write buffer shows stands for it: if something waited in it at
        the last look, the kernel was full, so what it took since then was taken from it by the other end.
        """
        ws = self._ws
        if ws.transport is None or ws.burst is None:
            return None
        unsent = self._unsent()
        waiting = unsent + ws.burst.held
        counters = read_counters(ws.transport)
        if counters is not None:
            return counters._replace(waiting=counters.waiting + waiting) if waiting else counters
        handed = ws.burst.given - unsent
        if self._was_full:
            self._flowed += max(handed - self._handed, 0)
        self._handed, self._was_full = handed, unsent > 0
        return Counters(acked=self._flowed, waiting=waiting)

    def is_reading(self, counters: Counters | None) -> bool:
        """Whether this program takes what comes: nothing waits in the kernel, nor between it and ``on_messages``."""
        if counters is not None and counters.unread > 0:
            return False
        if getattr(getattr(self._ws, "_reader", None), "_buffer", ()):  # of aiohttp; if it is there
            return False
        transport = self._ws.transport
        try:
            return transport is None or transport.is_closing() or transport.is_reading()
        except (AttributeError, NotImplementedError):  # a transport that cannot be paused
            return True

    def send(self, data: Data | list[bytes]) -> None:
        """Write the frame, text or binary, soon. Frames of one burst are written together. After `close`: drop it.

        A list of frames is taken from as it is written; who clears it takes back what was not.
        """
        if not self._closing:
            self._outbox.append(data)
            self._begin_to_write()

    def send_urgent(self, word: str) -> None:
        """Write a ping or pong before all that waits, whose length it would tell otherwise; each once."""
        if word not in self._urgent:
            self._urgent.append(word)
        self._begin_to_write()

    async def write(self, data: Data) -> None:
        """Write the frame, and return once it has been handed to the network (D-SEND).

        That is when asyncio's transport has taken it, which it does as long as its buffer is below its high-water mark:
        who writes faster than the network takes waits here. It is sent in its turn, and waits for no frame behind it.
        Raises NotConnected if it was not written and will not be. Cancelled, it is written all the same.
        """
        await self._handed_over(data)

    async def written(self) -> None:
        """Wait until all that was sent so far has been handed to the network. Raises NotConnected if it cannot be."""
        if self._closing or self._outbox:
            await self._handed_over(None)

    async def _handed_over(self, data: Data | None) -> None:
        if self._closing:
            raise NotConnected(NOT_WRITTEN)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox.append((data, done))
        self._begin_to_write()
        await done

    async def close(self, code: int, reason: str) -> None:
        """Write what is waiting, then the close frame; wait for the other end's; give up after the time allowed."""
        self._closing = True
        try:
            async with asyncio.timeout(self._close_timeout):
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                await self._ws.close(code=self._complaint or code, message=_fit(reason))
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError):
            pass  # it was gone already
        finally:
            await self._abort()

    async def _abort(self) -> None:
        """Let go of the transport, whatever state it is in; only then may a blocked send be cancelled (law 5)."""
        unwritten, self._outbox = self._outbox, []
        for item in unwritten:
            if isinstance(item, tuple) and not item[1].done():
                item[1].set_exception(NotConnected(NOT_WRITTEN))
        if self._ws.transport is not None:
            with contextlib.suppress(AttributeError):  # of TLS that is closed already (Python 3.11.2)
                self._ws.transport.abort()
        self._ws.response.close()
        tasks = [task for task in (self._reader, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # the loop closes the descriptor in its next turn

    async def discard(self) -> None:
        """Let go of a socket that was never started."""
        await self._abort()

    # Reading

    async def _read(
        self,
        on_messages: Callable[[list[Data]], None],
        on_closed: Callable[[CloseInfo], None],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        try:
            info = await self._read_until_closed(on_messages, ready)
        except Exception as error:  # whatever it was: a reader that dies in silence would leave a zombie behind
            info = CloseInfo(ABNORMAL_CLOSURE, f"the connection was lost ({type(error).__name__})")
        if not self._closing:
            on_closed(replace(info, lasted=self.lasted))

    async def _read_until_closed(
        self, on_messages: Callable[[list[Data]], None], ready: Callable[[], Awaitable[None]]
    ) -> CloseInfo:
        count = 0
        while True:
            message = await self._ws.receive()
            count += 1
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    batch = [message.data, *await self._ws.more(BURST - count)]
                    count += len(batch) - 1
                    on_messages(batch)
                case WSMsgType.PING:
                    self._pongs = [*self._pongs[1 - PONGS :], message.data]  # the latest of a flood (RFC 6455, 5.5.3)
                    self._begin_to_write()
                    self._on_alive()
                case WSMsgType.PONG:
                    self._on_alive()
                # Judged by the message alone: the reason is nowhere else, and close_code may say 1006 all the same.
                case WSMsgType.CLOSE if message.data == ABNORMAL_CLOSURE:
                    self._complaint = aiohttp.WSCloseCode.PROTOCOL_ERROR
                    why = "the server broke the WebSocket protocol: close code 1006 is for nobody to send"
                    return CloseInfo(ABNORMAL_CLOSURE, why, fault=FaultKind.PROTOCOL)
                case WSMsgType.CLOSE:
                    said: str = message.extra or ""  # judged as it came (D-JUDGED)
                    return CloseInfo(message.data or NO_STATUS_RECEIVED, said, shown=self._shown(said))
                case WSMsgType.ERROR:
                    return self._what_is_wrong(message.data)
                case _:  # CLOSED: no close frame came. CLOSING: we are closing it ourselves
                    return CloseInfo(ABNORMAL_CLOSURE, self._write_fault or "the connection was lost")
            if count >= BURST:
                count = 0
                await asyncio.sleep(0)  # receive() does not give way while there is something to read
                await ready()

    def _what_is_wrong(self, error: object) -> CloseInfo:
        if isinstance(error, aiohttp.WebSocketError):
            self._complaint = error.code
        if isinstance(error, aiohttp.WebSocketError) and error.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            what = f"the server sent a message of more than max_msg_size={self._max_msg_size} bytes"
            return CloseInfo(ABNORMAL_CLOSURE, what, fault=FaultKind.MESSAGE_TOO_BIG)
        # The error's words may hold the server's, and no policy knows them: they are shown, not judged.
        what = f"the server broke the WebSocket protocol: {self._shown(error)}"
        return CloseInfo(ABNORMAL_CLOSURE, what, fault=FaultKind.PROTOCOL)

    # Writing

    def _begin_to_write(self) -> None:
        if self._writer is None and not self._closing:
            self._writer = asyncio.create_task(self._write(), name="reconnect_fsm writer")

    async def _write(self) -> None:
        # A write that fails makes asyncio drop what has come and was not read yet: a close frame, say. So what is there
        # is read first: the loop looks in its next turn, and reads in that turn, after this task.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            while self._outbox or self._urgent or self._pongs:
                await self._write_urgent()
                await self._write_batch()
                if self._outbox:
                    await asyncio.sleep(0)
            self._writer = None
        except (aiohttp.ClientError, OSError):
            pass  # the reader says why; nothing is written any more
        except Exception as error:  # a writer that dies in silence would leave a zombie behind
            self._write_fault = f"this program could not write to it ({type(error).__name__})"
            if self._ws.transport is not None:
                self._ws.transport.abort()

    async def _write_batch(self) -> None:
        """Write what is written before the event loop gets its turn. Raises ConnectionError if it was not taken."""
        batch, whole = self._next_batch()
        with self._ws.burst or contextlib.nullcontext():
            for data in batch:
                if isinstance(data, bytes):
                    await self._ws.send_bytes(data)
                else:
                    await self._ws.send_str(data)
                if self._urgent or self._pongs:
                    await self._write_urgent()
        if batch and self._ws.burst is not None and self._ws.burst.is_closing():
            raise ConnectionResetError  # before or while it was written: the network has it not
        done = self._outbox[:whole]
        del self._outbox[:whole]
        for item in done:
            if isinstance(item, tuple) and not item[1].done():
                item[1].set_result(None)

    def _next_batch(self) -> tuple[list[Data], int]:
        """Many small frames or one large one; and how many of the outbox's items they complete."""
        batch: list[Data] = []
        size = whole = 0
        for item in self._outbox:
            if isinstance(item, list):
                frames: list[Any] = item
            else:
                data = item[0] if isinstance(item, tuple) else item
                frames = [] if data is None else [data]
            while frames and len(batch) < BURST and size < BURST_BYTES:
                batch.append(frames.pop(0))
                size += len(batch[-1])
            if frames:
                break
            whole += 1
        return batch, whole

    def _unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._ws.transport is None else self._ws.transport.get_write_buffer_size()

    async def _write_urgent(self) -> None:
        while self._urgent:
            await self._ws.send_str(self._urgent.pop(0))
        while self._pongs:
            await self._ws.pong(self._pongs.pop(0))


def read_counters(transport: asyncio.BaseTransport) -> Counters | None:
    """What the kernel has counted of this transport's connection; None if it tells nothing (LIVE-2).

    It counts what is on the wire, so TLS makes no difference, but that each TLS record has some bytes of its own.

    A transport that is no kernel's, a simulation's for instance, can tell by itself: its extra info
    ``reconnect_fsm.counters`` is then a function that returns `Counters`, of what has left asyncio's own buffers. (A
    loop gives its transports extra info in ``_make_socket_transport(…, extra=…)``; those of TLS pass it on.)
    """
    told: Callable[[], Counters | None] | None = transport.get_extra_info("reconnect_fsm.counters")
    if told is not None:
        return told()
    if sys.platform != "linux":
        return None
    sock = transport.get_extra_info("socket")
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        acked, received, segments = TCP_INFO.unpack_from(info, 120)
        descriptor = sock.fileno()
        waiting = INT.unpack(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
        unread = INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    except (AttributeError, OSError, TypeError, ValueError, struct.error):
        return None  # a socket in memory, a Unix socket, an old kernel, or it has just been closed
    if transport.get_extra_info("sslcontext") is not None:
        received -= RECORD * segments  # a byte now and then, in a record of its own, is no more than a byte
    return Counters(received, acked, waiting, unread)


def _nothing() -> None: ...


def _fit(reason: str) -> bytes:
    """A close frame holds 123 bytes of reason (RFC 6455, 5.5)."""
    return reason.encode()[:123].decode(errors="ignore").encode()
