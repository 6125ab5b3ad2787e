"""One WebSocket: opens it, reads frames, writes frames, says why it closed. The only module that knows aiohttp.

What aiohttp does that we do not want is dealt with here: its own heartbeat, answers to close and ping frames, a
second TCP connection within one attempt, redirects that carry credentials to another origin, and a `close()` that may
never end.
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import email.utils
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, cast
from weakref import WeakValueDictionary

import aiohttp
from aiohttp import WSMsgType
from multidict import CIMultiDict
from yarl import URL

from .errors import InvalidURL, NotConnected, Unauthorized
from .pump import Promise
from .redaction import Redaction
from .status import AttemptFailure, CloseInfo, FailureKind, FaultKind

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = [
    "AttemptFailed",
    "Data",
    "Session",
    "Socket",
    "UrlSource",
    "check_options",
    "check_url",
    "close_session",
    "learn_secrets",
    "open_socket",
]

Data: TypeAlias = str | bytes
UrlSource: TypeAlias = str | URL | Callable[[], str | URL | Awaitable[str | URL]]
Session: TypeAlias = aiohttp.ClientSession

MAX_RETRY_AFTER: Final = 300.0  # D-HTTP: seconds; a hostile or confused server must not park us for days
BURST: Final = 128  # frames written, or read, before the event loop gets its turn
BURST_BYTES: Final = 256 * 1024  # likewise, of frames written
PONGS: Final = 16  # answers to WebSocket's own pings that may wait
DATA: Final = (WSMsgType.TEXT, WSMsgType.BINARY)
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


def check_url(url: object) -> URL:
    """The address of a WebSocket server as a URL. Raises InvalidURL, without showing a query string, if it is none."""
    try:
        parsed = url if isinstance(url, URL) else URL(url) if isinstance(url, str) else None
    except ValueError:
        raise InvalidURL("the url cannot be read: its host or its port is not valid") from None
    if parsed is None:
        raise InvalidURL(f"the url must be a str, a yarl.URL, or a function that returns one, not {type(url).__name__}")
    if parsed.scheme not in ("ws", "wss", "http", "https"):
        found = f"not with {parsed.scheme}://" if parsed.scheme else "and this one has no scheme"
        raise InvalidURL(f"the url must begin with ws:// or wss://, {found}")
    try:
        host, port = parsed.host, parsed.explicit_port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise InvalidURL(f"the url has no {'host' if not host else 'valid port'}: {parsed.scheme}://?")
    return parsed


def check_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for options that aiohttp's ``ws_connect`` does not have, or that are ours to decide."""
    for name in options:
        if name in OWN_OPTIONS:
            raise TypeError(f"{name}= is not yours to set: {OWN_OPTIONS[name]}")
        if name not in PASSED_ON:
            raise TypeError(
                f"unknown option {name}=; what is passed on to aiohttp's ws_connect is {', '.join(PASSED_ON)}"
            )


def learn_secrets(redaction: Redaction, url: URL, options: Mapping[str, Any], session: Session | None = None) -> None:
    """Have it know what in the address, the session and the options of ``ws_connect`` may be secret."""
    for cookie in session.cookie_jar if session is not None else ():
        redaction.learn(cookie.value)
    for headers in (
        session.headers if session is not None else None,
        options.get("headers"),
        options.get("proxy_headers"),
    ):
        for value in CIMultiDict(headers or {}).values():
            redaction.learn(value)
    for credentials in (options.get("auth"), options.get("proxy_auth")):
        if isinstance(credentials, aiohttp.BasicAuth):
            user, password, _ = cast("tuple[str, str, str]", credentials)
            _learn_credentials(redaction, user, password)
    for each in (URL(options.get("proxy") or ""), URL().with_query(options.get("params")), url):
        _learn_credentials(redaction, each.user or "", each.password or "")
        raw = [pair.partition("=")[2] or pair for pair in each.raw_query_string.split("&")]
        for secret in (each.raw_password, *each.query.values(), *raw):
            redaction.learn(secret)


def _learn_credentials(redaction: Redaction, user: str, password: str) -> None:
    redaction.learn(password)
    redaction.learn(base64.b64encode(f"{user}:{password}".encode()))  # as the server is told them


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

    def write(self, data: bytes) -> None:
        """Write now, or with the rest of the burst."""
        if self._held is None:
            self.given += len(data)
            self._transport.write(data)
        else:
            self._held.append(data)

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        held, self._held = self._held, None
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
        self.transport = None if connection is None else connection.transport
        self.burst: Burst | None = None
        is_as_expected = getattr(writer, "transport", None) is self.transport
        if self.transport is not None and is_as_expected:
            writer.transport = self.burst = Burst(self.transport)
        # else aiohttp has changed its private parts: each frame costs a system call, and `look_if_stalled` is blind

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


class _Redirected(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


# aiohttp asks again by itself when the server hangs up during the handshake, and follows redirects. Both would be
# attempts that the machine knows nothing of, so each attempt may send one request.
_earlier_error: ContextVar[list[BaseException]] = ContextVar("_earlier_error")


async def _one_request(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    errors = _earlier_error.get()
    if errors:
        raise errors[0]
    try:
        response = await handler(request)
    except BaseException as error:
        errors.append(error)
        raise
    if 300 <= response.status < 400:
        response.close()
        raise _Redirected(response.status)
    return response


class _Connector(aiohttp.TCPConnector):
    """One for all connections of an event loop; it keeps nothing of theirs, but is a quarter of the size of each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # A fresh TCP connection and a fresh address for each attempt: the network may have changed in between.
        super().__init__(force_close=True, use_dns_cache=False, limit=0)  # pyright: ignore[reportUnknownMemberType]
        self.loop = loop
        self.users = 0


# By the loop's id, and weak: what is kept here must not keep a loop that is abandoned, nor what lived in it.
_connectors: WeakValueDictionary[int, _Connector] = WeakValueDictionary()


def make_session(given: Session | None) -> Session:
    """A session of our own. One that the user gave lends it its connector, cookies and default headers."""
    if given is not None:
        return aiohttp.ClientSession(
            connector=given.connector,
            connector_owner=False,
            cookie_jar=given.cookie_jar,
            headers=given.headers,
            trust_env=given.trust_env,
            timeout=NO_TIMEOUT,
            middlewares=(_one_request,),
            ws_response_class=_WebSocket,
        )
    loop = asyncio.get_running_loop()
    connector = _connectors.get(id(loop))
    if connector is None or connector.loop is not loop:  # ids come again
        connector = _connectors[id(loop)] = _Connector(loop)
    connector.users += 1
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=False,
        timeout=NO_TIMEOUT,
        middlewares=(_one_request,),
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
) -> Socket:
    """One attempt: the address, DNS, TCP, TLS and handshake, all within ``timeout`` seconds (D-TIMEOUT).

    Raises AttemptFailed, whatever goes wrong.
    """
    _earlier_error.set([])
    try:
        async with asyncio.timeout(timeout):
            address = await _address(url)
            learn_secrets(redaction, address, options, session)
            ws: object = await session.ws_connect(  # pyright: ignore[reportUnknownVariableType]  # Unpack of options
                address,
                autoclose=False,
                autoping=False,
                max_msg_size=max_msg_size and max_msg_size + 1,  # aiohttp refuses a message of exactly this size
                timeout=aiohttp.ClientWSTimeout(ws_close=close_timeout),  # pyright: ignore[reportCallIssue]  # attrs
                **options,
            )
    except Exception as error:
        # `from None`: what aiohttp raises may hold the whole URL, query string and all.
        raise AttemptFailed(_failure(error)) from None
    return Socket(cast(_WebSocket, ws), close_timeout, max_msg_size, redaction)


async def _address(url: UrlSource) -> URL:
    if not callable(url):
        return check_url(url)
    try:
        given = url()
        if inspect.isawaitable(given):
            given = await given
    except (Unauthorized, TimeoutError):
        raise
    except Exception as error:
        raise AttemptFailed(
            AttemptFailure(FailureKind.NETWORK, f"the url function raised {type(error).__name__}")
        ) from None
    return check_url(given)


# What an exception of the handshake means, in words of ours; the first that fits.
_MEANINGS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], FailureKind, str], ...]] = (
    (Unauthorized, FailureKind.UNAUTHORIZED, "the url function says that this client is not authorized"),
    ((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError), FailureKind.MISCONFIGURED, "the url cannot be used"),
    (aiohttp.ClientHttpProxyError, FailureKind.NETWORK, "the proxy refused"),
    (aiohttp.ClientResponseError, FailureKind.NETWORK, "the server does not answer as a WebSocket server does"),
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        FailureKind.MISCONFIGURED,
        "the server's certificate does not verify",
    ),
    (aiohttp.ClientConnectorDNSError, FailureKind.NETWORK, "the server's name does not resolve"),
    (aiohttp.ClientSSLError, FailureKind.NETWORK, "TLS failed: does the server speak it on this port?"),
    (
        (aiohttp.ServerDisconnectedError, ConnectionResetError),
        FailureKind.NETWORK,
        "the server hung up during the handshake",
    ),
    (TimeoutError, FailureKind.NETWORK, "no connection in the time allowed"),
)


def _failure(error: Exception) -> AttemptFailure:
    if isinstance(error, AttemptFailed):
        return error.failure
    if isinstance(error, InvalidURL):
        return AttemptFailure(FailureKind.MISCONFIGURED, str(error))
    if isinstance(error, _Redirected):
        why = f"the server redirects elsewhere (HTTP {error.status}), which is never followed"
        return AttemptFailure(FailureKind.ANSWER, why, error.status)
    if isinstance(error, aiohttp.WSServerHandshakeError) and error.status != 101:
        after = _retry_after(error.status, error.headers or {})
        hint = ", and opened no WebSocket: is the path right?" if 200 <= error.status < 300 else ""
        return AttemptFailure(FailureKind.ANSWER, f"the server answered HTTP {error.status}{hint}", error.status, after)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    for kinds, kind, why in _MEANINGS:
        if isinstance(error, kinds) or isinstance(cause, kinds):
            return AttemptFailure(kind, why)
    if isinstance(error, OSError):
        # asyncio's own words name the address; of several that failed in several ways there is no number
        why = os.strerror(error.errno) if error.errno else "none of the server's addresses works"
        return AttemptFailure(FailureKind.NETWORK, f"could not connect: {why}")
    if isinstance(error, TypeError | ValueError):
        why = f"the connection's options cannot be used ({type(error).__name__})"
        return AttemptFailure(FailureKind.MISCONFIGURED, why)
    return AttemptFailure(FailureKind.NETWORK, f"could not connect: {type(error).__name__}")


def _retry_after(status: int, headers: Mapping[str, str]) -> float:
    """Seconds that the server asks us to stay away (D-HTTP); 0 if it does not."""
    asked = headers.get("Retry-After", "").strip()
    if status not in (429, 503) or not asked:
        return 0.0
    if asked.isascii() and asked.isdigit():
        seconds = float(asked[:10])
    else:
        try:
            at = email.utils.parsedate_to_datetime(asked)
        except (ValueError, OverflowError):
            return 0.0
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


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
        self._outbox: list[Data | list[bytes]] = []
        self._urgent: list[str] = []
        self._pongs: list[bytes] = []
        self._written: Promise[None] = Promise()
        self._closing = False
        self._complaint: int | None = None  # the close code that says what the server did wrong
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._on_alive: Callable[[], None] = _nothing
        self.opened_at = asyncio.get_running_loop().time()
        self._flowed_at = self.opened_at
        self._taken = 0

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
        before; ``ready`` is awaited every now and then: no more is read until whoever gets the messages has caught up.
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

    def look_if_stalled(self) -> float:
        """For how many seconds the other end has taken nothing, though something waits for it; 0 if it flows.

        Counted from when one last looked and it flowed, so look at every beat of the heart.
        """
        if self._ws.burst is None or sys.platform != "linux":
            return 0.0  # what the other end has taken cannot be known
        now = asyncio.get_running_loop().time()
        pending = self._unsent() + _unsent_within_tls(self._ws.transport) + _unacknowledged(self._ws)
        taken = self._ws.burst.given - pending  # over TLS a little less: what waits is longer when it is encrypted
        if pending == 0 or taken > self._taken:
            self._flowed_at, self._taken = now, taken
        return now - self._flowed_at

    def send(self, data: Data | list[bytes]) -> None:
        """Write the frame, text or binary, soon. Frames of one burst are written together.

        A list of frames is taken from as it is written; who clears it takes back what was not.
        """
        self._outbox.append(data)
        self._begin_to_write()

    def send_urgent(self, word: str) -> None:
        """Write a ping or pong before all that waits, whose length it would tell otherwise; each once."""
        if word not in self._urgent:
            self._urgent.append(word)
        self._begin_to_write()

    async def written(self) -> None:
        """Wait until all that was sent so far has been handed to the network. Raises NotConnected if it cannot be."""
        if self._closing:
            raise NotConnected("the connection was lost before the message was written")
        if self._outbox:
            await self._written.wait()

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
        self._written.fail(NotConnected("the connection was lost before the message was written"))
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
                    return CloseInfo(ABNORMAL_CLOSURE, "the connection was lost")
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
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="reconnect_fsm writer")

    async def _write(self) -> None:
        # A write that fails makes asyncio drop what has come and was not read yet: a close frame, say. So what is there
        # is read first: the loop looks in its next turn, and reads in that turn, after this task.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with contextlib.suppress(aiohttp.ClientError, OSError):  # the reader says why; nothing is written any more
            while self._outbox or self._urgent or self._pongs:
                await self._write_urgent()
                stuck = self._unsent()
                batch, whole = self._next_batch()
                with self._ws.burst or contextlib.nullcontext():
                    for data in batch:
                        if isinstance(data, bytes):
                            await self._ws.send_bytes(data)
                        else:
                            await self._ws.send_str(data)
                        if self._urgent or self._pongs:
                            await self._write_urgent()
                del self._outbox[:whole]
                if 0 < stuck >= self._unsent():  # the kernel was full, and went on: the other end is slow, not dead
                    self._on_alive()
                if self._outbox:
                    await asyncio.sleep(0)
            self._writer = None
            self._written.keep(None)

    def _next_batch(self) -> tuple[list[Data], int]:
        """What is written before the event loop gets its turn, many small frames or one large one.

        And how many of the outbox's items it holds to their end.
        """
        batch: list[Data] = []
        size = whole = 0
        for item in self._outbox:
            frames = item if isinstance(item, list) else [item]
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


def _unsent_within_tls(transport: object) -> int:
    """Bytes that are encrypted and that the kernel has not taken; asyncio's transport for TLS does not count them."""
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return 0 if inner is None else int(inner.get_write_buffer_size())


def _unacknowledged(ws: _WebSocket) -> int:
    """Bytes that the kernel holds until the other end's has them. It takes more from us only in steps of megabytes."""
    held = array.array("i", [0])
    with contextlib.suppress(OSError, TypeError, ValueError):  # a socket in memory holds nothing
        fcntl.ioctl(ws.get_extra_info("socket"), termios.TIOCOUTQ, held)
    return held[0]


def _nothing() -> None: ...


def _fit(reason: str) -> bytes:
    """A close frame holds 123 bytes of reason (RFC 6455, 5.5)."""
    return reason.encode()[:123].decode(errors="ignore").encode()
