"""aiohttp's sessions, as attempts need them: one request each, no redirect, no connection of an earlier network.

What aiohttp does that we do not want is dealt with here: a second TCP connection within one attempt, and redirects that
carry credentials to another origin.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import aiohttp

from reconnect_fsm._asyncio.credentials import as_unauthorized
from reconnect_fsm._asyncio.transport.failures import MAX_CHAIN, AskedElsewhere, Attempt, AttemptFailed, Redirected
from reconnect_fsm._asyncio.transport.resolver import Resolver
from reconnect_fsm._asyncio.transport.secrets import learn_request
from reconnect_fsm._asyncio.transport.socket import WebSocket
from reconnect_fsm._asyncio.user_code import UserCodeFailed, must_propagate, report
from reconnect_fsm.status import AttemptFailure, FailureKind, FaultKind

__all__ = [
    "Connector",
    "Session",
    "check_session",
    "close_session",
    "connectors",
    "current_attempt",
    "make_session",
]

Session: TypeAlias = aiohttp.ClientSession

NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)  # connect_timeout bounds the whole attempt

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


# Of the attempt that the running task makes; tracing and middlewares are told nothing of it by aiohttp.
current_attempt: ContextVar[Attempt] = ContextVar("current_attempt")


async def _one_request(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """The innermost middleware. Each attempt may send one request, and one more to answer a challenge (401).

    aiohttp asks again by itself when the server hangs up during the handshake, and follows redirects; so may
    middlewares of the user's. All of that would be attempts that the machine knows nothing of.
    """
    attempt = current_attempt.get()
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
        learn_request(attempt.redaction, request)
        response = await handler(request)
        for cookie in response.headers.getall("Set-Cookie", ()):
            attempt.redaction.learn(cookie.partition(";")[0].partition("=")[2], "cookie")
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
    attempt = current_attempt.get()
    attempt.stage = "middleware"
    try:
        return await handler(request)
    except BaseException as error:
        if any(error is each for each in attempt.errors) or must_propagate(error):
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
    for _ in range(MAX_CHAIN):
        inner = error.__cause__ or error.__context__
        if inner is None:
            return
        if any(inner is each for each in attempt.errors):
            error.__cause__ = error.__context__ = None
            return
        error = inner


def _tracing() -> aiohttp.TraceConfig:
    """Says how far an attempt has come, so that a timeout can name what was waited for (D-WORDS)."""
    config = aiohttp.TraceConfig()

    def at(stage: str) -> Callable[..., Awaitable[None]]:
        async def reached(*_: object) -> None:
            current_attempt.get().stage = stage

        return reached

    async def accepted(*_: object) -> None:
        attempt = current_attempt.get()
        attempt.tried = [(address, each) for address, each in attempt.tried if each.fileno() != -1]

    async def reused(*_: object) -> None:
        current_attempt.get().is_reused = True

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
    current_attempt.get().tried.append(((where[0], where[1]), made))
    return made


class Connector(aiohttp.TCPConnector):
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
connectors: WeakValueDictionary[int, Connector] = WeakValueDictionary()


class _FreshConnections:
    """The connector of a session of the user's, but for connections that it has kept.

    They may have died with the network that was before, and then a handshake on them waits for nothing.
    """

    def __init__(self, given: aiohttp.BaseConnector) -> None:
        self.given = given
        self.loop = asyncio.get_running_loop()

    @property
    def closed(self) -> bool:
        """As that of `Connector`."""
        return self.given.closed or self.loop.is_closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.given, name)

    async def connect(self, request: aiohttp.ClientRequest, *args: Any, **kwargs: Any) -> Any:
        attempt = current_attempt.get()
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
            _ws_response_class=WebSocket,
        )
        return session
    loop = asyncio.get_running_loop()
    connector = connectors.get(id(loop))
    if connector is None or connector.loop is not loop:  # a new loop may have the id of one that is gone
        connector = connectors[id(loop)] = Connector(loop)
    connector.users += 1
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=False,
        timeout=NO_TIMEOUT,
        middlewares=(_one_request,),
        trace_configs=[_TRACING],
        ws_response_class=WebSocket,
    )


async def close_session(session: Session) -> None:
    """Close what `make_session` made, and the connector with the last that uses it."""
    connector = session.connector
    await session.close()
    if isinstance(connector, Connector):
        connector.users -= 1
        if connector.users == 0:
            if connectors.get(id(connector.loop)) is connector:
                del connectors[id(connector.loop)]
            await connector.close()
