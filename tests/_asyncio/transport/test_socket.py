"""One attempt and one socket, on real TCP and TLS: addresses, options, handshakes, frames, closes, secrets."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

import faulty
from faulty import BINARY, CLOSE, PING, PONG, TEXT, Behaviour, Peer, Watch
from kit import PATIENCE, until
from reconnect_fsm import ClientStopped, Connection, InvalidURL, Keepalive, NotConnected, RetryPolicy, Unauthorized
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.transport import sessions
from reconnect_fsm._asyncio.transport.failures import AttemptFailed, retry_after
from reconnect_fsm._asyncio.transport.handshake import open_socket
from reconnect_fsm._asyncio.transport.sessions import close_session, make_session
from reconnect_fsm._asyncio.transport.socket import BURST, Data, Socket, WebSocket
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.status import CloseInfo
from reconnect_fsm.testing import leaks
from tls import client_side, server_side

QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)
LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once an attempt has failed, it waits
ONCE = RetryPolicy(enabled=False)
NO_PINGS = Keepalive(enabled=False)


@asynccontextmanager
async def failed(url: Any, **options: Any) -> AsyncIterator[tuple[Connection, Watch]]:
    """A connection whose first attempt has come to nothing."""
    connection = Connection(url, **{"retry": LATER, **options})
    watch = Watch(connection)
    async with connection:
        async with asyncio.timeout(PATIENCE):
            await watch.seen("dial_failed")
        yield connection, watch


# ------------------------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize("kind", ["str", "URL", "function", "async function", "http", "URL function"])
async def test_kinds_of_url(kind: str) -> None:
    """The url may be a str, a URL, or a function, plain or async, that returns either; http means ws."""
    async with faulty.server() as server:

        async def later() -> str:
            await asyncio.sleep(0)
            return server.url

        url: Any = {
            "str": server.url,
            "URL": URL(server.url),
            "function": lambda: server.url,
            "async function": later,
            "http": server.url.replace("ws:", "http:"),
            "URL function": lambda: URL(server.url),
        }[kind]
        async with Connection(url) as connection:
            await connection.wait_connected()
            assert server.peer.path == "/"


async def test_the_function_is_asked_at_each_attempt() -> None:
    """A token in the address is never stale: the function is called once for each attempt, and for no other reason."""
    tokens = iter(range(100))

    async def url() -> str:
        return f"{server.url}?token={next(tokens)}"

    async with faulty.server(faulty.answer(500), faulty.accept_then_hang_up, faulty.echo) as server:
        assert next(tokens) == 0  # making the client does not ask
        async with Connection(url, retry=QUICK) as connection:
            await until(lambda: server.connects == 3)
            await connection.wait_connected()
        assert [peer.path for peer in server.peers] == ["/?token=1", "/?token=2", "/?token=3"]
        assert next(tokens) == 4


async def test_a_function_that_raises_is_a_failed_attempt() -> None:
    """A token provider that is down is no reason to give up: its error's name is told, its words are not."""
    calls = 0

    def url() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("hunter2")
        return server.url

    async with faulty.server() as server:
        connection = Connection(url, retry=QUICK)
        watch = Watch(connection)
        async with connection:
            await connection.wait_connected()
        assert watch.steps[1].reason == "the url function raised LookupError"
        assert calls == 2


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError, InvalidURL])
async def test_a_function_that_raises_what_means_something_to_us(error: type[BaseException]) -> None:
    """Whatever the function raises, errors that the client itself uses too, the attempt has failed and it goes on."""
    calls = 0

    async def url() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error("hunter2")
        return server.url

    async with faulty.server() as server:
        connection = Connection(url, retry=QUICK)
        watch = Watch(connection)
        async with connection:
            await connection.wait_connected()
        assert watch.states[:2] == ["connecting", "waiting"]
        assert not any("hunter2" in reason for reason in watch.reasons)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_that_raises_unauthorized_stops_the_client(is_async: bool) -> None:
    """RETRY-3: `Unauthorized` from the url function means that asking again is of no use."""

    def url() -> str:
        raise Unauthorized("hunter2")

    async def later() -> str:
        raise Unauthorized("hunter2")

    async with failed(later if is_async else url) as (connection, _):
        assert connection.status == "disconnected"
        assert connection.reason == "the url function says that this client is not authorized"


@pytest.mark.virtual_time
async def test_d_timeout_a_function_that_hangs() -> None:
    """D-TIMEOUT: the time allowed for an attempt covers the url function; it is cancelled then."""
    cancelled = []

    async def url() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        raise AssertionError

    async with failed(url) as (connection, watch):
        assert watch.times[-1] == pytest.approx(10.0, abs=1e-3)
        assert connection.reason == "no connection in the time allowed: the url function has not returned"
        assert cancelled == [True]


@pytest.mark.virtual_time
async def test_d_timeout_a_function_that_refuses_to_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """D-TIMEOUT: `close()` is bounded though the url function will not be cancelled; the log says so."""
    release = asyncio.Event()

    async def url() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                refused.append(True)
        return "no url"

    refused: list[bool] = []
    connection = Connection(url, close_timeout=1.0)
    connection.start()
    await asyncio.sleep(0.1)
    async with asyncio.timeout(PATIENCE):
        await connection.close()
    assert refused
    assert "does not end though it was cancelled" in caplog.text
    release.set()


@pytest.mark.parametrize("given", ["ftp://h/", "h/path", "", "ws://", 5, None, b"ws://h/"])
async def test_d_error_an_unusable_url_from_a_function(given: Any) -> None:
    """D-ERROR: an address that cannot be used puts the client in ``error``, without another attempt."""
    calls: list[int] = []

    def url() -> Any:
        calls.append(1)
        return given

    async with failed(url, retry=QUICK) as (connection, watch):
        assert watch.statuses == ["connecting", "error"]
        assert "url" in connection.reason
        await asyncio.sleep(0.05)
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://user:hunter2@h/?token=hunter2", "begin with ws:// or wss://, not with ftp://"),
        ("h/path?token=hunter2", "begin with ws:// or wss://, and this one has no scheme"),
        ("", "and this one has no scheme"),
        ("ws:///path?token=hunter2", "has no host"),
        ("ws://h:0/?token=hunter2", "has no valid port"),
        (5, "must be a str, a yarl.URL, or a function that returns one, not int"),
        (None, "not NoneType"),
    ],
)
def test_a_bad_url_is_refused_at_construction(url: Any, words: str) -> None:
    """InvalidURL, which is a ValueError, says at once what is wrong, and shows neither password nor query string."""
    with pytest.raises(InvalidURL, match=words) as raised:
        Connection(url)
    assert isinstance(raised.value, ValueError)
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value)).replace(repr(url), "")


@pytest.mark.parametrize("port", ["99999", "abc"])
def test_a_port_that_is_none_is_named_as_such(port: str) -> None:
    """The message speaks of the port when it is the port that is wrong."""
    with pytest.raises(InvalidURL, match="port"):
        Connection(f"ws://h:{port}/")


async def test_a_url_that_only_aiohttp_refuses() -> None:
    """D-ERROR: what passes our check and cannot be used after all (a name too long for DNS) is no passing trouble."""
    async with failed(f"ws://{'a' * 64}.invalid/") as (connection, _):
        assert connection.status == "error"


# ------------------------------------------------------------------------------------------------------- the options


async def test_options_are_passed_on() -> None:
    """headers, protocols, origin, params: all arrive at the server."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade("Sec-WebSocket-Protocol: v2")
        await peer.answer_frames()

    async with (
        faulty.server(behave) as server,
        Connection(
            server.url,
            headers={"X-Api-Key": "k"},
            protocols=("v1", "v2"),
            origin="https://example.org",
            params={"room": "7"},
        ) as connection,
    ):
        await connection.wait_connected()
        peer = server.peer
        assert peer.header("X-Api-Key") == "k"
        assert peer.header("Sec-WebSocket-Protocol") == "v1,v2"
        assert peer.header("Origin") == "https://example.org"
        assert peer.path == "/?room=7"
        assert peer.header("Sec-WebSocket-Extensions") is None  # no deflate unless asked for


async def test_a_proxy_is_passed_on() -> None:
    """proxy: the request goes there, with the whole address."""
    async with (
        faulty.server() as server,
        Connection("ws://far.invalid/feed", proxy=server.url.replace("ws:", "http:")) as connection,
    ):
        await connection.wait_connected()
        assert "far.invalid/feed" in server.peer.path


async def test_a_proxy_that_refuses() -> None:
    """A proxy's refusal is a failed attempt like any other, and its status is not taken for the server's."""
    async with (
        faulty.server(faulty.answer(403)) as server,
        failed("wss://far.invalid/", proxy=server.url.replace("ws:", "http:")) as (connection, _),
    ):
        assert server.peer.head.startswith("CONNECT far.invalid:443")
        assert connection.state == "waiting"
        assert connection.reason == "the proxy refused (HTTP 403)"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"heartbeat": 5}, TypeError, "heartbeat= is not yours to set: use keepalive="),
        ({"autoping": False}, TypeError, "autoping= is not yours to set"),
        ({"autoclose": False}, TypeError, "autoclose= is not yours to set"),
        ({"timeout": 5}, TypeError, "timeout= is not yours to set: use connect_timeout="),
        ({"receive_timeout": 5}, TypeError, "receive_timeout= is not yours to set"),
        ({"hedaers": {}}, TypeError, "unknown option hedaers=; what is passed on .* headers"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout must be a positive number of seconds, not 0"),
        ({"connect_timeout": float("nan")}, ValueError, "connect_timeout must be"),
        ({"close_timeout": -1}, ValueError, "close_timeout must be"),
        ({"close_timeout": float("inf")}, ValueError, "close_timeout must be"),
        ({"retry": 3}, TypeError, "retry must be a RetryPolicy, not 3"),
        ({"keepalive": 20}, TypeError, "keepalive must be a Keepalive, not 20"),
        ({"network": "eth0"}, TypeError, "network must be a NetworkSource, not 'eth0'"),
        ({"session": "s"}, TypeError, "session must be a ClientSession, not 's'"),
        ({"fsm": "f"}, TypeError, "fsm must be a subclass of ClientFSM"),
        ({"fsm": dict}, TypeError, "fsm must be a subclass of ClientFSM"),
    ],
)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """What cannot work is refused where it is given, in words that help."""
    with pytest.raises(error, match=words):
        Connection("ws://127.0.0.1/", **options)


async def test_d_error_options_that_only_the_attempt_shows_to_be_wrong() -> None:
    """D-ERROR: values that aiohttp chokes on are no passing trouble."""
    async with faulty.server() as server, failed(server.url, ssl="yes") as (connection, _):
        assert connection.status == "error"
        assert connection.reason == "the connection's options cannot be used (TypeError)"


# ------------------------------------------------------------------------------------------------ a session of the user


class Counting(aiohttp.TCPConnector):
    """Counts what it is asked for."""

    asked = 0

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return await super().connect(*args, **kwargs)


async def test_the_users_session_is_used_and_never_closed() -> None:
    """session=: its connector, default headers and cookies serve the client, which leaves it open."""
    async with (
        faulty.server() as server,
        aiohttp.ClientSession(
            connector=Counting(), headers={"X-Api-Key": "k"}, cookie_jar=aiohttp.CookieJar(unsafe=True)
        ) as session,
    ):
        assert isinstance(session.connector, Counting)
        session.cookie_jar.update_cookies({"sid": "7"}, URL(server.url.replace("ws:", "http:")))
        connection = Connection(server.url, session=session)
        for asked in (1, 2):
            await connection.connect()
            await connection.close()
            assert session.connector.asked == asked
        assert server.peer.header("X-Api-Key") == "k"
        assert server.peer.header("Cookie") == "sid=7"
        assert not session.closed
        assert not session.connector.closed


async def test_a_connector_of_ones_own(tmp_path: Path) -> None:
    """session=: with a connector for Unix sockets, bursts of messages arrive there too."""
    path = str(tmp_path / "socket")
    async with (
        faulty.server(unix=path) as server,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        Connection("ws://localhost/", session=session) as connection,
    ):
        await connection.wait_connected()
        await asyncio.gather(*(connection.send(str(number)) for number in range(10)))
        await until(lambda: len(server.peer.messages) == 10)
        assert server.peer.messages == [str(number) for number in range(10)]


async def test_d_error_a_closed_session() -> None:
    """D-ERROR: a session that is closed already cannot serve; another attempt would not help."""
    session = aiohttp.ClientSession()
    await session.close()
    async with faulty.server() as server, failed(server.url, session=session) as (connection, _):
        assert connection.status == "error"
        assert connection.reason == "the session given to the client is closed"
        assert server.connects == 0


async def test_d_error_a_session_that_is_closed_meanwhile() -> None:
    """D-ERROR: the same when the session is closed under a client that is connected: the next attempt ends it."""
    async with (
        faulty.server() as server,
        aiohttp.ClientSession() as session,
        Connection(server.url, session=session, retry=QUICK) as connection,
    ):
        await connection.wait_connected()
        await session.close()
        await until(lambda: connection.status == "error")


# ------------------------------------------------------------------------------------------------------ the handshake


HANDSHAKES: dict[str, tuple[Behaviour, str]] = {
    "FIN": (faulty.hang_up_in_handshake, "the server hung up during the handshake"),
    "RST": (faulty.reset_in_handshake, "could not connect: Connection reset by peer|hung up during the handshake"),
    "wrong accept": (faulty.wrong_accept, "the server does not answer as a WebSocket server does"),
    "no upgrade": (faulty.answer(200), "the server answered HTTP 200, and opened no WebSocket: is the path right?"),
    "not found": (faulty.answer(404), "the server answered HTTP 404"),
}


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_one_tcp_connect_per_attempt(name: str) -> None:
    """Whatever happens in the handshake, an attempt is one TCP connection and one request, with no hidden second."""
    behaviour, words = HANDSHAKES[name]
    async with faulty.server(behaviour) as server, failed(server.url, retry=ONCE) as (connection, _):
        assert connection.status == "disconnected"
        assert words.split("|")[0] in connection.reason or words.split("|")[-1] in connection.reason
        await asyncio.sleep(0.02)
        assert server.connects == 1


async def test_conn_3_garbage_instead_of_http() -> None:
    """CONN-3: a server that speaks no HTTP at all is a failed attempt, retried."""

    async def babble(peer: Peer) -> None:
        await peer.request()
        peer.write(b"\x00\xffno such thing\r\n\r\n")
        await peer.read_on()

    async with faulty.server(babble) as server, failed(server.url) as (connection, _):
        assert connection.state == "waiting"
        assert server.connects == 1


async def test_conn_3_nobody_listens() -> None:
    """CONN-3: a refused connection is retried; the reason says that it was refused."""
    async with failed(f"ws://127.0.0.1:{faulty.unused_port()}/") as (connection, _):
        assert connection.state == "waiting"
        assert "refused" in connection.reason or "Connect call failed" in connection.reason


class Names(AbstractResolver):
    """Resolves names without asking anybody."""

    def __init__(self, answer: Callable[[], Awaitable[list[ResolveResult]]]) -> None:
        self._answer = answer

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await self._answer()

    async def close(self) -> None: ...


async def no_such_name() -> list[ResolveResult]:
    raise OSError("Name or service not known")


async def no_address() -> list[ResolveResult]:
    return []


async def never() -> list[ResolveResult]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (no_such_name, "the server's name does not resolve"),
        (no_address, "could not connect"),
        (never, "no connection in the time allowed"),
    ],
)
async def test_d_timeout_names(answer: Callable[[], Awaitable[list[ResolveResult]]], words: str) -> None:
    """D-TIMEOUT, CONN-3: a name that does not resolve, has no address, or never gets an answer: retried."""
    connector = aiohttp.TCPConnector(resolver=Names(answer))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        failed("ws://far.invalid/", session=session, connect_timeout=0.05) as (connection, _),
    ):
        assert connection.state == "waiting"
        assert words in connection.reason


@pytest.mark.virtual_time
@pytest.mark.parametrize("timeout", [10.0, 0.5])
async def test_d_timeout_an_upgrade_that_is_never_answered(timeout: float) -> None:
    """D-TIMEOUT: the whole attempt is bounded, by 10 s unless told otherwise."""
    async with (
        faulty.server(faulty.never_answer) as server,
        failed(server.url, **({} if timeout == 10.0 else {"connect_timeout": timeout})) as (connection, watch),
    ):
        assert watch.times[-1] == pytest.approx(timeout, abs=1e-3)
        assert connection.reason == "no connection in the time allowed"
        assert server.connects == 1


async def test_d_timeout_a_mute_peer_on_a_real_socket() -> None:
    """D-TIMEOUT: nothing of an attempt is left when its time is up: the server sees the TCP connection go."""
    async with (
        faulty.server(faulty.never_answer) as server,
        failed(server.url, connect_timeout=0.05) as (connection, _),
    ):
        async with asyncio.timeout(PATIENCE):
            await server.peer.gone.wait()
        assert connection.state == "waiting"


# ---------------------------------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_d_http_a_redirect_is_refused(status: int) -> None:
    """D-HTTP: a redirect is a failed attempt: retried, not followed; the target hears nothing, credentials least."""
    async with (
        faulty.server() as target,
        faulty.server(faulty.redirect(target.url.replace("ws:", "http:"), status), faulty.echo) as server,
    ):
        url = URL(server.url).with_user("u").with_password("hunter2")
        connection = Connection(url, retry=QUICK, headers={"X-Api-Key": "hunter2"})
        watch = Watch(connection)
        async with connection:
            await connection.wait_connected()
            assert watch.steps[1].reason == f"the server redirects elsewhere (HTTP {status}), which is never followed"
            assert watch.states == ["connecting", "waiting", "retrying", "connected"]
            assert target.connects == 0
            assert [peer.header("Authorization") is not None for peer in server.peers] == [True, True]


async def test_d_http_a_redirect_to_the_same_place_is_refused_too() -> None:
    """D-HTTP: also one to the same origin, and one from a session of the user's, is not followed."""
    async with (
        faulty.server(faulty.redirect("/elsewhere")) as server,
        aiohttp.ClientSession() as session,
        failed(server.url, session=session, retry=ONCE) as (connection, _),
    ):
        assert "redirects elsewhere" in connection.reason
        assert [peer.path for peer in server.peers] == ["/"]


# ---------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_tls(authority: trustme.CA) -> None:
    """wss with a certificate that verifies: messages go both ways, it reconnects, and closes cleanly."""
    messages: list[str | bytes] = []
    async with (
        faulty.server(ssl=server_side(authority)) as server,
        Connection(server.url, ssl=client_side(authority), retry=QUICK) as connection,
    ):
        connection.on_message(messages.append)
        for text in ("one", "two"):
            await connection.retry_now()
            await connection.send(text)
            await until(lambda text=text: server.peer.messages == [text])  # type: ignore[misc]
            server.peer.send(text)
            await until(lambda text=text: messages[-1:] == [text])  # type: ignore[misc]
        await connection.close()
        await server.peer.gone.wait()
        assert server.peer.closed_with == (1000, "")


@pytest.mark.parametrize("trouble", ["unknown authority", "wrong name", "fingerprint"])
async def test_d_error_a_certificate_that_does_not_verify(authority: trustme.CA, trouble: str) -> None:
    """D-ERROR: trying again would not help: ``error``, after one attempt."""
    name = "elsewhere.invalid" if trouble == "wrong name" else "127.0.0.1"
    trust: Any = {
        "unknown authority": None,
        "wrong name": client_side(authority),
        "fingerprint": aiohttp.Fingerprint(bytes(32)),
    }[trouble]
    options = {} if trust is None else {"ssl": trust}
    async with (
        faulty.server(ssl=server_side(authority, name)) as server,
        failed(server.url, retry=QUICK, **options) as (connection, watch),
    ):
        assert watch.statuses == ["connecting", "error"]
        assert connection.reason == "the server's certificate does not verify"
        await asyncio.sleep(0.05)
        assert server.connects <= 1


async def no_tls(peer: Peer) -> None:
    """Answers the beginning of TLS with plain HTTP."""
    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await asyncio.sleep(0.05)
    peer.hang_up()


async def test_conn_3_other_tls_trouble_is_retried() -> None:
    """CONN-3: a peer that speaks no TLS may be a proxy that restarts: a failed attempt, no verdict."""
    async with (
        faulty.server(no_tls) as server,
        failed(server.url.replace("ws:", "wss:")) as (connection, _),
    ):
        assert connection.state == "waiting"
        assert connection.reason == "TLS failed: does the server speak it on this port?"


async def test_d_timeout_a_peer_that_is_mute_in_the_tls_handshake() -> None:
    """D-TIMEOUT: the time allowed covers TLS."""

    async def mute(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with (
        faulty.server(mute) as server,
        failed(server.url.replace("ws:", "wss:"), connect_timeout=0.1) as (connection, _),
    ):
        assert connection.reason == "no connection in the time allowed"


@pytest.mark.parametrize("then", ["close", "retry_now"])
async def test_d_timeout_half_open_under_tls(authority: trustme.CA, then: str) -> None:
    """D-TIMEOUT: TLS or not, a close that the peer does not answer ends by abort, and no descriptor is left."""
    before = leaks.in_process()
    async with faulty.server(faulty.deaf, faulty.echo, ssl=server_side(authority)) as server:
        connection = Connection(server.url, ssl=client_side(authority), close_timeout=0.05)
        await connection.connect()
        if then == "retry_now":
            await connection.retry_now()
            assert server.connects == 2
        await connection.close()
    assert leaks.left_over_without_loop(before) == []


# -------------------------------------------------------------------------------------------------- D-HTTP: the answers


@pytest.mark.parametrize("status", [401, 403])
async def test_d_http_401_and_403_are_fatal(status: int) -> None:
    """D-HTTP, RETRY-3, CONN-4: the server does not want us: ``disconnected``, after one attempt."""
    async with faulty.server(faulty.answer(status)) as server, failed(server.url, retry=QUICK) as (connection, watch):
        assert watch.statuses == ["connecting", "disconnected"]
        assert connection.reason == f"the server answered HTTP {status}"
        await asyncio.sleep(0.05)
        assert server.connects == 1


@pytest.mark.parametrize("status", [200, 204, 400, 404, 407, 408, 410, 426, 429, 500, 502, 503, 504])
async def test_d_http_everything_else_is_retried(status: int) -> None:
    """D-HTTP: any other answer is a failed attempt, retried with backoff."""
    async with (
        faulty.server(faulty.answer(status), faulty.echo) as server,
        Connection(server.url, retry=QUICK) as connection,
    ):
        watch = Watch(connection)
        await connection.wait_connected()
        assert watch.states == ["waiting", "retrying", "connected"]
        assert watch.reasons[0].startswith(f"the server answered HTTP {status}")
        assert watch.waits == [0.01]


async def test_d_http_what_is_fatal_is_policy() -> None:
    """D-HTTP: a policy may call 404 fatal, and 401 not."""
    policy = RetryPolicy(base=0.01, cap=0.02, fatal_http_statuses={404})
    async with (
        faulty.server(faulty.answer(401), faulty.answer(404)) as server,
        Connection(server.url, retry=policy) as connection,
    ):
        await until(lambda: connection.status == "disconnected")
        assert server.connects == 2


def http_date(**offset: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(**offset), usegmt=True)


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("after", "wait"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("300", 300.0),
        ("301", 300.0),
        ("86400", 300.0),
        ("9" * 400, 300.0),
        ("0", 0.5),
        ("-5", 0.5),
        ("7.5", 7.5),
        ("", 0.5),
        ("soon", 0.5),
        ("\u0663", 0.5),
        ("Fri, 31 Feb 2031 25:61:61 GMT", 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.5),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
    ],
)
async def test_d_http_retry_after(status: int, after: str, wait: float) -> None:
    """D-HTTP: no sooner than the server asks, clamped to 5 min; what is no number and no date is ignored."""
    retry = RetryPolicy(jitter=0.0)
    async with (
        faulty.server(faulty.answer(status, f"Retry-After: {after}"), faulty.echo) as server,
        failed(server.url, retry=retry) as (connection, watch),
    ):
        assert watch.waits == [wait]
        await asyncio.sleep(wait - 0.01)
        assert server.connects == 1
        await asyncio.sleep(0.02)
        assert server.connects == 2
        await connection.wait_connected()
        assert watch.waited == pytest.approx([wait], abs=1e-3)


@pytest.mark.virtual_time
@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
async def test_d_http_retry_after_as_a_date(zone: str) -> None:
    """D-HTTP: a date counts from now by the wall clock, whichever way its zone is written; the jitter adds its half."""
    after = http_date(seconds=200).replace("GMT", zone)
    async with (
        faulty.server(faulty.answer(503, f"Retry-After: {after}")) as server,
        failed(server.url, retry=RetryPolicy()) as (_, watch),
    ):
        assert 100 < watch.waits[0] <= 200 * 1.5


async def test_d_http_a_date_beyond_all_bounds_is_ignored() -> None:
    """D-HTTP: garbage in Retry-After does not hide what the server answered."""
    after = f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT"
    async with (
        faulty.server(faulty.answer(503, f"Retry-After: {after}")) as server,
        failed(server.url) as (connection, _),
    ):
        assert connection.reason == "the server answered HTTP 503"


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [200, 302, 404, 408, 418, 429, 500, 502, 503])
async def test_d_http_retry_after_counts_for_every_refusal(status: int) -> None:
    """D-HTTP: a ban, an overload or a redirect: it is for the server to say when to come back."""
    async with (
        faulty.server(faulty.answer(status, "Retry-After: 60", "Location: /elsewhere")) as server,
        failed(server.url, retry=RetryPolicy(jitter=0.0)) as (_, watch),
    ):
        assert watch.waits == [60.0]


@pytest.mark.parametrize(
    ("after", "date", "seconds"),
    [
        ("Sun, 06 Nov 2044 08:49:37 GMT", "Sun, 06 Nov 2044 08:48:37 GMT", 60.0),  # a server whose clock is off
        ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:07 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:37 GMT", 0.0),
        ("Sun, 06 Nov 2044 08:49:37 GMT", "nonsense", 300.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "", 0.0),
        ("120", "nonsense", 120.0),
        ("-1", "", 0.0),
        ("1.5", "", 1.5),
        ("0", "", 0.0),
        ("9" * 400, "", 300.0),
        ("1e3", "", 0.0),
        ("inf", "", 0.0),
        ("soon", "Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ],
)
def test_d_http_a_date_is_measured_against_the_answers_own(after: str, date: str, seconds: float) -> None:
    """D-HTTP: the server's clock and ours need not agree."""
    assert retry_after({"Retry-After": after, "Date": date}) == seconds


@pytest.mark.virtual_time
async def test_d_http_retry_after_is_the_least_and_is_forgotten() -> None:
    """D-HTTP: a backoff that is longer already stays; and the next failure has forgotten the earlier answer."""
    retry = RetryPolicy(base=4.0, cap=64.0, jitter=0.0)
    async with faulty.server(
        faulty.answer(503, "Retry-After: 2"), faulty.answer(503, "Retry-After: 60"), faulty.answer(500)
    ) as server:
        connection = Connection(server.url, retry=retry)
        watch = Watch(connection)
        async with connection:
            await asyncio.sleep(4 + 60 + 16 + 1)
            assert watch.waits == [4.0, 60.0, 16.0, 32.0]


@pytest.mark.virtual_time
async def test_ctrl_1_a_person_need_not_wait_for_retry_after() -> None:
    """CTRL-1: `connect()` attempts now, whatever the server asked for."""
    async with (
        faulty.server(faulty.answer(503, "Retry-After: 200"), faulty.echo) as server,
        failed(server.url) as (connection, _),
    ):
        await connection.connect()
        assert server.times == pytest.approx([0, 0], abs=0.1)


# -------------------------------------------------------------------------------------------- how a connection ends


CLOSES = [
    (None, "", "closed with code 1005"),
    (1000, "", "closed with code 1000"),
    (1000, "bye", "closed with code 1000: bye"),
    (1001, "Server stopping", "closed with code 1001: Server stopping"),
    (1003, "", "closed with code 1003"),
    (1011, "worker crashed", "closed with code 1011: worker crashed"),
    (1012, "", "closed with code 1012"),
    (3000, "", "closed with code 3000"),
    (4000, "späte Stunde", "closed with code 4000: späte Stunde"),
    (4399, "", "closed with code 4399"),
    (4500, "", "closed with code 4500"),
    (4999, "", "closed with code 4999"),
    (1006, "", "the server broke the WebSocket protocol: close code 1006 is for nobody to send"),
    (5000, "", "closed with code 5000"),
    (65535, "", "closed with code 65535"),
]


@pytest.mark.parametrize(("code", "reason", "told"), CLOSES)
async def test_d_codes_ordinary_closes_are_retried(code: int | None, reason: str, told: str) -> None:
    """D-CODES, CONN-3: code and reason are told as the server sent them, and the client reconnects."""
    async with (
        faulty.server(faulty.accept_then_close(code, reason), faulty.echo) as server,
        Connection(server.url, retry=QUICK, close_timeout=0.05) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: server.connects == 2)
        await connection.wait_connected()
        assert watch.states[-3:] == ["waiting", "retrying", "connected"]
        assert watch.steps[-3].reason == told


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1008, "policy"),
        (4400, ""),
        (4401, "token expired"),
        (4499, ""),
        (1000, "permission_changed"),
        (1001, "room_closed"),
        (4000, "auth_failed"),
    ],
)
async def test_d_codes_fatal_closes_stop(code: int, reason: str) -> None:
    """D-CODES, RETRY-3, CONN-4: these codes and reasons mean "do not come back"."""
    async with (
        faulty.server(faulty.accept_then_close(code, reason)) as server,
        Connection(server.url, retry=QUICK) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: connection.status == "disconnected")
        assert watch.statuses[-2:] == ["connected", "disconnected"]
        assert str(code) in connection.reason
        assert reason in connection.reason
        await server.peer.gone.wait()
        assert server.peer.closed_with is not None  # we answered
        await asyncio.sleep(0.03)
        assert server.connects == 1


async def test_d_codes_what_is_fatal_is_policy() -> None:
    """D-CODES: a policy may call other codes and reasons fatal, and 1008 not."""
    policy = RetryPolicy(base=0.01, cap=0.02, fatal_close_codes={4999}, fatal_close_reasons={"enough"})
    closes = [(1008, ""), (1000, "auth_failed"), (4999, ""), (1000, "enough")]
    async with (
        faulty.server(*(faulty.accept_then_close(*close) for close in closes)) as server,
        Connection(server.url, retry=policy) as connection,
    ):
        await until(lambda: connection.status == "disconnected")
        assert server.connects == 3
        connection.connect()
        await until(lambda: server.connects == 4 and connection.status == "disconnected")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1015, 2999])
async def test_codes_that_must_not_be_sent(code: int) -> None:
    """A close code that RFC 6455 forbids breaks the protocol: the connection is lost, and made anew."""
    async with (
        faulty.server(faulty.accept_then_close(code), faulty.echo) as server,
        Connection(server.url, retry=QUICK) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: server.connects == 2 and connection.status == "connected")
        lost = next(step for step in watch.steps if step.event == "socket_closed")
        assert lost.new == "waiting"
        assert "broke the WebSocket protocol" in lost.reason or f"code {code}" in lost.reason


@pytest.mark.parametrize("how", [faulty.accept_then_hang_up, faulty.accept_then_reset])
async def test_conn_3_a_connection_that_is_cut(how: Behaviour) -> None:
    """CONN-3: FIN or RST without a close frame (1006): lost, told so, and made anew."""
    async with faulty.server(how, faulty.echo) as server, Connection(server.url, retry=QUICK) as connection:
        watch = Watch(connection)
        await until(lambda: server.connects == 2 and connection.status == "connected")
        lost = next(step for step in watch.steps if step.event == "socket_closed")
        assert lost.reason.startswith("the connection was lost")


@pytest.mark.parametrize("cut", ["FIN", "RST", "stays"])
async def test_a_close_frame_behind_a_ping(cut: str) -> None:
    """The reason of a CLOSE is told though a PING came right before it and the TCP connection was gone by then."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.drain()
        await asyncio.sleep(0.01)
        peer.send_frame(PING, b"x")
        peer.send_close(4001, "bye")
        if cut == "FIN":
            peer.hang_up()
        elif cut == "RST":
            await asyncio.sleep(0.02)
            peer.reset()
        else:
            await peer.read_on()

    async with (
        faulty.server(behave) as server,
        Connection(server.url, retry=LATER, close_timeout=0.05) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert connection.reason == "closed with code 4001: bye"
        assert server.connects == 1


async def test_a_reason_is_made_fit_to_be_shown() -> None:
    """A server's words are kept to one line of printable characters: no escape sequences in anybody's terminal."""
    async with (
        faulty.server(faulty.accept_then_close(4000, "a\x1b[31m\nb")) as server,
        Connection(server.url, retry=LATER) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert connection.reason == "closed with code 4000: a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b"
        assert server.connects == 1


class Judge(RetryPolicy):
    """Remembers what it was asked to judge."""

    def is_fatal_close(self, info: CloseInfo) -> bool:
        judged.append(info.reason)
        return super().is_fatal_close(info)


judged: list[str] = []


@pytest.mark.parametrize(
    ("query", "said", "shown"),
    [
        ("filter=closed", "room_closed", "room_…"),
        ("t=1", "session\texpired", "session\N{REPLACEMENT CHARACTER}expired"),
        ("token=s3cr3t-t0ken", "bad token s3cr3t-t0ken", "bad token …"),
        ("t=1", "é" * 61, "é" * 61),
    ],
)
async def test_d_judged_retry_3_the_reason_is_judged_raw_and_shown_redacted(query: str, said: str, shown: str) -> None:
    """D-JUDGED: what is taken out of the words for those who read them is there for the policy."""
    judged.clear()
    policy = Judge(fatal_close_codes=(), fatal_close_reasons={said})
    async with (
        faulty.server(faulty.accept_then_close(4000, said)) as server,
        Connection(f"{server.url}/?{query}", retry=policy, close_timeout=0.05) as connection,
    ):
        changes: list[Any] = []
        connection.on_status(changes.append)
        connection.on_transition(changes.append)
        await until(lambda: connection.state == "disconnected")
        assert judged == [said]
        assert connection.reason == f"closed with code 4000: {shown}"
        assert server.connects == 1
    if shown != said:
        assert said not in repr(changes) + str(changes)


BROKEN_FRAMES = {
    "reserved bits": b"\xf1\x01x",
    "unknown opcode": b"\x83\x01x",
    "fragmented control frame": b"\x09\x01x",
    "long control frame": b"\x89\x7e\x00\x80" + bytes(128),
    "text that is no UTF-8": b"\x81\x01\xff",
    "continuation of nothing": b"\x80\x01x",
    "close frame of one byte": b"\x88\x01x",
}


@pytest.mark.parametrize("name", BROKEN_FRAMES)
async def test_conn_3_broken_frames(name: str) -> None:
    """CONN-3: a server that breaks the protocol loses the connection; the reason says so; a new one is made."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.write(BROKEN_FRAMES[name])
        await peer.read_on()

    async with (
        faulty.server(behave, faulty.echo) as server,
        Connection(server.url, retry=QUICK, close_timeout=0.05) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: server.connects == 2 and connection.status == "connected")
        lost = next(step for step in watch.steps if step.event == "socket_closed")
        assert lost.reason.startswith("the server broke the WebSocket protocol: ")


# --------------------------------------------------------------------------------------------------- frames that come


async def test_messages_arrive_in_order_as_str_and_bytes() -> None:
    """Text comes as str, binary as bytes, in the order in which they were sent, fragments put together."""
    messages: list[str | bytes] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        for number in range(500):
            peer.send(str(number))
        peer.send(b"\x00\xff")
        peer.write(b"\x01\x02ab" + b"\x80\x02cd")
        peer.send("")
        await peer.answer_frames()

    async with faulty.server(behave) as server, Connection(server.url) as connection:
        connection.on_message(messages.append)
        await until(lambda: len(messages) == 503)
        assert messages == [*(str(number) for number in range(500)), b"\x00\xff", "abcd", ""]
        assert server.connects == 1


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_of_exactly_the_allowed_size(size: int, opcode: int) -> None:
    """max_msg_size: exactly so many bytes are allowed; one more breaks the protocol, and the client reconnects."""
    sizes: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.send_frame(opcode, b"x" * size)
        peer.send_frame(opcode, b"x" * (size + 1))
        await peer.read_on()

    async with (
        faulty.server(behave, faulty.echo) as server,
        Connection(server.url, max_msg_size=size, retry=QUICK, close_timeout=0.05) as connection,
    ):
        watch = Watch(connection)
        connection.on_message(lambda data: sizes.append(len(data)))
        await until(lambda: server.connects == 2 and connection.status == "connected")
        assert sizes == [size]
        lost = next(step for step in watch.steps if step.event == "socket_closed")
        assert lost.reason == f"the server sent a message of more than max_msg_size={size} bytes"


async def test_four_megabytes_are_allowed_unless_told_otherwise() -> None:
    """The default of max_msg_size is 4 MiB."""
    sizes: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.send(bytes(4 * 1024 * 1024))
        await peer.answer_frames()

    async with faulty.server(behave) as server, Connection(server.url, retry=LATER) as connection:
        connection.on_message(lambda data: sizes.append(len(data)))
        await until(lambda: sizes)
        assert sizes == [4 * 1024 * 1024]
        assert server.connects == 1


async def test_max_msg_size_0_means_no_limit() -> None:
    """max_msg_size=0 is what it is for aiohttp: no limit."""
    messages: list[str | bytes] = []

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.send("hello")
        await peer.answer_frames()

    async with (
        faulty.server(behave) as server,
        Connection(server.url, max_msg_size=0, retry=LATER, close_timeout=0.05) as connection,
    ):
        connection.on_message(messages.append)
        await until(lambda: messages or connection.state == "waiting")
        assert messages == ["hello"]
        assert server.connects == 1


async def test_pings_of_the_server_are_answered() -> None:
    """A PING frame is answered with its own payload (RFC 6455, 5.5.3), and is no message."""
    messages: list[str | bytes] = []
    async with faulty.server() as server, Connection(server.url) as connection:
        connection.on_message(messages.append)
        await connection.wait_connected()
        for payload in (b"", b"one", bytes(125)):
            server.peer.send_frame(PING, payload)
            await until(lambda payload=payload: (PONG, payload) in server.peer.frames)  # type: ignore[misc]
        server.peer.send_frame(PONG, b"unasked")
        await connection.ping()
        assert messages == []


async def test_a_flood_of_pings_is_answered_boundedly() -> None:
    """A server that sends pings without end gets answers to the latest, and makes us hoard nothing."""
    flood = 20_000

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        for number in range(flood):
            peer.send_frame(PING, str(number).encode())
        await peer.answer_frames()

    async with faulty.server(behave) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        await until(lambda: (PONG, str(flood - 1).encode()) in server.peer.frames[-1:])
        assert len(server.peer.frames) < flood / 5
        assert await connection.ping() > 0


async def test_a_flood_of_messages_starves_nobody() -> None:
    """While thousands of messages wait to be read, the loop still gets its turns."""
    turns: list[int] = []
    messages = 0
    flood = 5000

    def count(_: str | bytes) -> None:
        nonlocal messages
        messages += 1

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        peer.write(b"\x81\x01x" * flood)
        await peer.answer_frames()

    async with faulty.server(behave) as server, Connection(server.url) as connection:
        connection.on_message(count)
        while messages < flood:
            turns.append(messages)
            await asyncio.sleep(0)
        turns.append(messages)
        most = max(after - before for before, after in pairwise(turns))
        assert most <= 512
        assert server.connects == 1


# ----------------------------------------------------------------------------------------------------- frames that go


async def test_send_text_and_binary_in_order() -> None:
    """Messages arrive as they were given, in order, whoever sends them, singly and in bursts."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        await connection.send("text ✓")
        await connection.send(b"\x00\xff")
        await connection.send("")
        await connection.send(b"x" * 200_000)
        await asyncio.gather(*(connection.send(str(number)) for number in range(1000)))
        await until(lambda: len(server.peer.messages) == 1004)
        assert server.peer.messages[:4] == ["text ✓", b"\x00\xff", "", b"x" * 200_000]
        assert server.peer.messages[4:] == [str(number) for number in range(1000)]


async def test_send_returns_when_it_is_written() -> None:
    """What `send` has returned for is not lost by a `close()` right after it."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        sends = [asyncio.create_task(connection.send(str(number))) for number in range(300)]
        await asyncio.wait(sends)
        await connection.close()
        await server.peer.gone.wait()
        assert server.peer.messages == [str(number) for number in range(300)]
        assert server.peer.frames[-1][0] == CLOSE


@pytest.mark.parametrize("data", [None, 5, bytearray(b"x"), memoryview(b"x"), ["x"]])
async def test_send_takes_str_and_bytes_alone(data: Any) -> None:
    """Anything else is a TypeError, connected or not, and does no harm."""
    async with faulty.server() as server, Connection(server.url) as connection:
        with pytest.raises(TypeError, match=f"send\\(\\) takes str or bytes, not {type(data).__name__}"):
            await connection.send(data)
        await connection.wait_connected()
        with pytest.raises(TypeError, match="str or bytes"):
            await connection.send(data)
        await connection.send("fine")
        await until(lambda: server.peer.messages == ["fine"])


async def test_send_of_text_that_has_no_utf_8() -> None:
    """A lone surrogate cannot be sent: ValueError to whoever tries, and no harm to the connection."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        with pytest.raises(ValueError, match="surrogates"):
            async with asyncio.timeout(0.3):
                await connection.send("\ud800")
        async with asyncio.timeout(0.3):
            await connection.send("fine")
        await until(lambda: server.peer.messages == ["fine"])


async def test_send_needs_a_connection() -> None:
    """`send` raises NotConnected before the start, while connecting or waiting, after `close()`; nothing is kept."""
    async with faulty.server(faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url, retry=LATER)
        with pytest.raises(NotConnected, match="cannot send while disconnected: not started"):
            await connection.send("x")
        connection.start()
        with pytest.raises(NotConnected, match="cannot send while connecting"):
            await connection.send("x")
        await until(lambda: connection.state == "waiting")
        with pytest.raises(NotConnected, match="cannot send while reconnecting: the server answered HTTP 500"):
            await connection.send("x")
        await connection.connect()
        await connection.close()
        with pytest.raises(NotConnected, match="cannot send while disconnected: closed by this program"):
            await connection.send("x")
        await server.peer.gone.wait()
        assert server.peer.messages == []


async def blocked(connection: Connection) -> list[asyncio.Task[None]]:
    """Senders that wait for a peer that does not read."""
    senders = [asyncio.create_task(connection.send(bytes(1024 * 1024))) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert not senders[-1].done()
    return senders


async def test_a_cancelled_sender_harms_no_one() -> None:
    """Senders that wait because the peer does not read may be cancelled: the others, and later ones, get through."""
    release = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        peer._writer.transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()
        peer._writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.answer_frames()

    async with faulty.server(slow) as server, Connection(server.url, keepalive=NO_PINGS) as connection:
        await connection.wait_connected()
        senders = await blocked(connection)
        waiting = [sender for sender in senders if not sender.done()]
        for sender in waiting[::2]:
            sender.cancel()
        release.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(senders)
        assert all(sender.exception() is None for sender in senders if not sender.cancelled())
        assert [sender.cancelled() for sender in waiting] == [number % 2 == 0 for number in range(len(waiting))]
        await connection.send("later")
        await until(lambda: server.peer.messages[-1:] == ["later"])
        assert len(server.peer.messages) == 21  # cancelling the sender does not tear a message out
        assert server.connects == 1


async def test_senders_that_wait_hear_of_the_loss() -> None:
    """`send` raises NotConnected in all who wait when the connection is lost."""

    async def slow(peer: Peer) -> None:
        await peer.upgrade()
        peer.freeze()
        await lose.wait()
        peer.reset()

    lose = asyncio.Event()
    async with faulty.server(slow) as server, Connection(server.url, retry=LATER, close_timeout=0.05) as connection:
        await connection.wait_connected()
        senders = await blocked(connection)
        lose.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(senders)
        assert {type(sender.exception()) for sender in senders} <= {NotConnected, type(None)}
        assert type(senders[-1].exception()) is NotConnected
        assert server.connects == 1


# ------------------------------------------------------------------------------------------------ closes are bounded


@pytest.mark.virtual_time
async def test_d_timeout_a_close_that_is_not_answered() -> None:
    """D-TIMEOUT: the close of a half-open connection takes 2 s, then the transport is aborted."""
    async with faulty.server(faulty.deaf) as server:
        connection = Connection(server.url)
        await connection.connect()
        start = asyncio.get_running_loop().time()
        await connection.close()
        assert asyncio.get_running_loop().time() - start == pytest.approx(2.0, abs=0.01)
        assert server.connects == 1


@pytest.mark.parametrize("peer", ["half-open", "full", "chattering"])
async def test_d_timeout_close_is_bounded_on_a_real_socket(peer: str) -> None:
    """D-TIMEOUT: nobody can keep `close()` from ending: not by silence, a full buffer, or by never stopping to talk."""

    async def chatter(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            peer.send("blah")
            await peer.drain()
            await asyncio.sleep(0.001)

    async with faulty.server(chatter if peer == "chattering" else faulty.deaf) as server:
        before = leaks.in_loop()
        connection = Connection(server.url, close_timeout=0.1, keepalive=NO_PINGS)
        await connection.connect()
        senders = await blocked(connection) if peer == "full" else []
        async with asyncio.timeout(5):  # aiohttp's own bound would be ten seconds
            await connection.close()
        if senders:
            await asyncio.wait(senders)
            assert type(senders[-1].exception()) is NotConnected
        left = [text for each, text in leaks.in_loop().items() if each not in before]
        assert [text for text in left if "reconnect_fsm" in text] == []
        assert [
            text for text in left if text.startswith("transport") and f"to ('127.0.0.1', {server.port})" in text
        ] == []


@pytest.mark.virtual_time
async def test_d_timeout_a_close_that_nobody_awaits_ends_too() -> None:
    """D-TIMEOUT: `close()` acts without being awaited; awaiting it a second time, or later, finds it done."""
    async with faulty.server(faulty.deaf) as server:
        connection = Connection(server.url, close_timeout=1.0)
        await connection.connect()
        connection.close()
        assert connection.status == "disconnected"
        await asyncio.sleep(1.1)
        start = asyncio.get_running_loop().time()
        await connection.close()
        assert asyncio.get_running_loop().time() == start
        assert server.connects == 1


@asynccontextmanager
async def bare(url: str | URL) -> AsyncIterator[Socket]:
    """A socket without a driver."""
    session = make_session(None)
    try:
        yield await open_socket(
            session, url, timeout=5, close_timeout=0.1, max_msg_size=1000, options={}, redaction=Redaction()
        )
    finally:
        await close_session(session)


async def test_the_close_frame_of_a_long_reason_is_cut_to_size() -> None:
    """A close frame holds 123 bytes of reason; what is longer is cut between characters."""
    async with faulty.server() as server, bare(server.url) as opened:
        opened.start(lambda data: None, lambda: None, lambda info: None, _at_once)
        await opened.close(4000, "ä" * 100)
        await server.peer.gone.wait()
        assert server.peer.closed_with == (4000, "ä" * 61)


async def test_written_after_the_close() -> None:
    """Who waits for a message that can no longer be written hears NotConnected, and does not wait for ever."""
    async with faulty.server() as server, bare(server.url) as opened:
        opened.start(lambda data: None, lambda: None, lambda info: None, _at_once)
        await opened.close(1000, "")
        opened.send("too late")
        with pytest.raises(NotConnected):
            await opened.written()
        await server.peer.gone.wait()
        assert server.peer.messages == []


async def test_a_reader_never_dies_in_silence() -> None:
    """Whatever goes wrong while reading, the driver is told once that the connection is lost: there are no zombies."""

    def broken(data: str | bytes) -> None:
        raise LookupError("hunter2")

    told: list[CloseInfo] = []
    async with faulty.server() as server, bare(server.url) as opened:
        opened.start(broken, lambda: None, told.append, _at_once)
        server.peer.send("x")
        await until(lambda: told)
        assert [(info.code, info.reason) for info in told] == [(1006, "the connection was lost (LookupError)")]
        await opened.close(1000, "")
        assert len(told) == 1


async def test_a_socket_that_is_discarded_leaves_nothing() -> None:
    """A socket that opened for nobody is let go of at once, and the server sees it go."""
    async with faulty.server() as server, bare(server.url) as opened:
        await opened.discard()
        async with asyncio.timeout(PATIENCE):
            await server.peer.gone.wait()


# ----------------------------------------------------------------------------------------------------------- secrets


SECRETS = ("hunter2", "s3cr3t-t0k3n")


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("behaviour", [faulty.answer(401), faulty.wrong_accept, faulty.hang_up_in_handshake])
async def test_secrets_are_not_in_the_error_of_an_attempt(behaviour: Behaviour) -> None:
    """Whoever logs the exception of an attempt, traceback and all, logs neither token nor password."""
    async with faulty.server(behaviour) as server:
        url = URL(server.url).with_user("u").with_password("hunter2").with_query(token="s3cr3t-t0k3n")
        with pytest.raises(AttemptFailed) as raised:
            async with bare(url):
                raise AssertionError
        shown = "".join(traceback.format_exception(raised.value))
        assert raised.value.failure.why in shown
        for secret in SECRETS:
            assert secret not in shown


@pytest.mark.parametrize(
    "trouble", ["refused", "401", "500", "redirect", "FIN", "wrong accept", "TLS", "certificate", "DNS", "timeout"]
)
async def test_secrets_are_never_shown(trouble: str, authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    """No token, password or header value in any log line, status, reason, repr or exception, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    behaviours: dict[str, Behaviour] = {
        "401": faulty.answer(401),
        "500": faulty.answer(500),
        "redirect": faulty.redirect("http://127.0.0.1/?token=s3cr3t-t0k3n"),
        "FIN": faulty.hang_up_in_handshake,
        "wrong accept": faulty.wrong_accept,
        "TLS": no_tls,
        "timeout": faulty.never_answer,
    }
    async with AsyncExitStack() as stack:
        context = server_side(authority) if trouble == "certificate" else None
        server = await stack.enter_async_context(faulty.server(behaviours.get(trouble, faulty.echo), ssl=context))
        url = URL(server.url).with_user("u").with_password("hunter2").with_query(token="s3cr3t-t0k3n")
        options: dict[str, Any] = {"headers": {"X-Api-Key": "hunter2"}}
        if trouble == "refused":
            url = url.with_port(faulty.unused_port())
        elif trouble == "TLS":
            url = url.with_scheme("wss")
        elif trouble == "DNS":
            url = url.with_host("far.invalid")
            connector = aiohttp.TCPConnector(resolver=Names(no_such_name))
            options["session"] = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        elif trouble == "timeout":
            options["connect_timeout"] = 0.05
        connection = Connection(url, retry=ONCE, **options)
        watch = Watch(connection)
        with pytest.raises(ClientStopped) as raised:
            await connection.connect()
        await connection.close()
        shown = [
            caplog.text,
            connection.reason,
            repr(connection),
            repr(watch.steps),
            repr(watch.changes),
            *(repr(error) + str(error) for error in chain(raised.value)),
            "".join(traceback.format_exception(raised.value)),
        ]
    assert "connecting → " in caplog.text  # something was logged
    assert "dial_failed" in [step.event for step in watch.steps]
    for secret in SECRETS:
        assert secret not in "".join(shown)


async def _at_once() -> None: ...


# --------------------------------------------------------------------------------------------------------------- bursts


@pytest.mark.parametrize("as_expected", [True, False])
async def test_a_burst_arrives_whole_and_in_order(as_expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are written together where aiohttp's private parts are as they were, and one by one where they are not."""
    writes = 0

    class Counting:
        def __init__(self, transport: Any) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            nonlocal writes
            writes += 1
            self._transport.write(data)

    def wrap(ws: Any, reader: Any, writer: Any, protocol: Any, response: Any, *args: Any, **kwargs: Any) -> None:
        if as_expected:
            response.connection.protocol.transport = Counting(writer.transport)
            writer.transport = response.connection.transport
        else:
            writer.transport = Counting(writer.transport)
        make(ws, reader, writer, protocol, response, *args, **kwargs)

    make = WebSocket.__init__
    monkeypatch.setattr(WebSocket, "__init__", wrap)
    messages = [f"{number}" for number in range(1_000)]
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        async with asyncio.TaskGroup() as group:
            for message in messages:
                group.create_task(connection.send(message))
        await until(lambda: len(server.peer.messages) == len(messages))
        assert server.peer.messages == messages
    assert writes < 100 if as_expected else writes >= len(messages)


class Hides:
    """An object without one of its attributes."""

    def __init__(self, it: object, name: str) -> None:
        self._it = it
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._it, name)


@pytest.fixture(params=[True, False], ids=["as expected", "changed"])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether aiohttp's private buffer of messages is there; else they are read one at a time."""

    def hide(ws: Any, reader: Any, *args: Any, **kwargs: Any) -> None:
        make(ws, Hides(reader, "_buffer"), *args, **kwargs)

    make = WebSocket.__init__
    if not request.param:
        monkeypatch.setattr(WebSocket, "__init__", hide)
    return bool(request.param)


class Ear:
    """What a socket hands over, in order: a list for messages that came together, None for a sign of life."""

    def __init__(self) -> None:
        self.heard: list[list[Data] | None] = []
        self.closed: list[CloseInfo] = []

    def listen(self, opened: Socket, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        opened.start(self.heard.append, lambda: self.heard.append(None), self.closed.append, ready or _at_once)

    @property
    def messages(self) -> list[Data]:
        """All of them, one after the other."""
        return [message for batch in self.heard for message in batch or ()]


async def test_messages_that_came_together_are_handed_over_together(together: bool) -> None:
    """In order, text and binary; what comes later, later."""
    ear, messages = Ear(), ["a", b"b", "", b"", "e"]
    async with faulty.server() as server, bare(server.url) as opened:
        for message in messages:
            server.peer.send(message)
        await server.peer.drain()
        ear.listen(opened)
        await until(lambda: ear.messages == messages)
        assert ear.heard == ([messages] if together else [[message] for message in messages])
        server.peer.send("f")
        await until(lambda: ear.heard[-1] == ["f"])
        await opened.close(1000, "")


async def test_a_control_frame_among_messages_is_not_taken_for_one(together: bool) -> None:
    """It ends what is handed over together, so that it has its effect in its turn; a ping gets its pong."""
    ear = Ear()
    async with faulty.server() as server, bare(server.url) as opened:
        server.peer.send("a")
        server.peer.send("b")
        server.peer.send_frame(PING, b"1")
        server.peer.send_frame(PONG)
        server.peer.send("c")
        server.peer.send("d")
        server.peer.send_close(1000, "bye")
        await server.peer.drain()
        ear.listen(opened)
        await until(lambda: ear.closed)
        in_pairs: list[Any] = [["a", "b"], None, None, ["c", "d"]]
        assert ear.heard == (in_pairs if together else [["a"], ["b"], None, None, ["c"], ["d"]])
        assert [(info.code, info.reason) for info in ear.closed] == [(1000, "bye")]
        await opened.close(1000, "")


@pytest.mark.parametrize("count", [BURST - 1, BURST, BURST + 1, 3 * BURST + 5])
async def test_so_many_are_handed_over_before_the_loop_gets_its_turn(together: bool, count: int) -> None:
    """However many came: a burst at most, then whoever gets them must have caught up."""
    turns: list[int] = []

    async def ready() -> None:
        turns.append(len(ear.messages))

    ear, messages = Ear(), [f"{number}" for number in range(count)]
    async with faulty.server() as server, bare(server.url) as opened:
        for message in messages:
            server.peer.send(message)
        await server.peer.drain()
        ear.listen(opened, ready)
        await until(lambda: len(ear.messages) == count)
        await opened.close(1000, "")
    assert ear.messages == messages
    assert max(len(batch or ()) for batch in ear.heard) <= (BURST if together else 1)
    assert turns[: count // BURST] == [BURST * (number + 1) for number in range(count // BURST)]


# ------------------------------------------------------------------------------------------------------ what there is


def writers() -> list[asyncio.Task[Any]]:
    """The tasks that write."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "reconnect_fsm writer"]


@pytest.mark.parametrize("what", ["a message", "messages", "a ping", "a pong"])
async def test_there_is_a_writer_while_there_is_something_to_write(what: str) -> None:
    """None for an idle connection, one at a time else; and another each time that there is something."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        for _ in range(3):
            assert writers() == []
            if what == "a message":
                sending = asyncio.ensure_future(connection.send("x"))
            elif what == "messages":
                sending = asyncio.gather(*(connection.send(b"x" * 100_000) for _ in range(20)))
            elif what == "a ping":
                sending = asyncio.ensure_future(connection.ping())
            else:
                server.peer.frames.clear()
                server.peer.send_frame(PING, b"?")
                sending = asyncio.ensure_future(until(lambda: server.peer.frames))
            most = 0
            while not sending.done():
                most = max(most, len(writers()))
                await asyncio.sleep(0)
            assert most == 1
            await sending
            await until(lambda: not writers())


async def test_what_is_sent_while_a_writer_ends_is_written() -> None:
    """Whatever the turn of the loop in which it is sent: nobody waits for a writer that has gone."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        for turns in range(1, 13):
            first = asyncio.create_task(connection.send(f"{turns} first"))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await connection.send(f"{turns} second")
                await first
        await until(lambda: len(server.peer.messages) == 24)
        assert server.peer.messages == [f"{turns} {word}" for turns in range(1, 13) for word in ("first", "second")]


def connector(connection: Connection) -> Any:
    assert connection_driver_of(connection).session is not None
    return connection_driver_of(connection).session.connector


async def test_all_connections_of_a_loop_share_a_connector() -> None:
    """It goes with the last of them, and the next has another."""
    async with faulty.server() as server:
        async with Connection(server.url) as second:
            async with Connection(server.url) as first:
                await first.wait_connected()
                await second.wait_connected()
                shared = connector(first)
                assert connector(second) is shared
            assert not shared.closed
            await second.retry_now()
            assert connector(second) is shared
        assert shared.closed
        async with Connection(server.url) as third:
            await third.wait_connected()
            assert connector(third) is not shared
    assert id(asyncio.get_running_loop()) not in sessions.connectors


async def test_a_connection_that_is_started_again_counts_once() -> None:
    """Each stop gives its share back, and no more."""
    async with faulty.server() as server, Connection(server.url) as other:
        await other.wait_connected()
        connection = Connection(server.url)
        for _ in range(3):
            await connection.connect()
            await connection.close()
            await connection.close()
            assert connector(other).users == 1
            assert not connector(other).closed


async def test_a_session_of_the_users_own_keeps_its_connector() -> None:
    """It is neither shared with others nor closed."""
    async with (
        faulty.server() as server,
        aiohttp.ClientSession() as session,
        Connection(server.url) as without,
    ):
        await without.wait_connected()
        async with Connection(server.url, session=session) as connection:
            await connection.wait_connected()
            assert connector(connection).given is session.connector is not connector(without)
        assert not session.closed
        assert session.connector is not None
        assert not session.connector.closed


def test_each_loop_has_a_connector_of_its_own() -> None:
    """Also loops that run at the same time, each in its thread."""

    async def scenario() -> Any:
        session = make_session(None)
        made = session.connector
        await asyncio.to_thread(barrier.wait, PATIENCE)  # both have theirs
        await close_session(session)
        assert made is not None
        assert made.closed
        return made

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: asyncio.run(scenario()), range(2))
    assert first is not second
    assert not [each for each in sessions.connectors.values() if each in (first, second)]


def test_a_connector_goes_with_its_loop() -> None:
    """Also that of a client that was never closed."""

    async def scenario() -> Any:
        make_session(None).detach()
        return weakref.ref(asyncio.get_running_loop())

    gone = asyncio.run(scenario())
    gc.collect()
    assert gone() is None


async def test_a_connection_has_no_dictionary_of_its_own() -> None:
    """Neither before nor after: thousands of them in a process would pay for it. A subclass may have one."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.connect()
        await connection.ping()
        assert vars(connection) == {}
    assert vars(connection) == {}

    class Named(Connection):
        name = ""

    named = Named("ws://127.0.0.1:1")
    named.name = "mine"
    assert vars(named) == {"name": "mine"}


@pytest.mark.parametrize("options", [{"headers": 5}, {"proxy": 5}, {"params": [1]}], ids=str)
async def test_d_error_options_that_aiohttp_cannot_use(options: dict[str, Any]) -> None:
    """D-ERROR: they are looked through for secrets first; what is wrong with them is said all the same."""
    async with faulty.server() as server, Connection(server.url, **options) as connection:
        with pytest.raises(ClientStopped, match="options cannot be used"):
            await connection.connect()
        assert connection.status == "error"
