"""What the server is asked (D-URL), with which settings (D-SESSION), and who is named when it fails (D-WORDS)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpRawServer
from yarl import URL

import faulty
from faulty import Peer, Watch
from kit import PATIENCE, until
from reconnect_fsm import Connection, Keepalive, RetryPolicy, Unauthorized
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.transport.url import check_url
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.status import AttemptFailure, FailureKind, FaultKind
from reconnect_fsm.testing import leaks
from tls import client_side, server_side

LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once an attempt has failed, it waits
QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)
SECRET = "s3cr3t-t0ken"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def failed(url: Any, **options: Any) -> AsyncIterator[AttemptFailure]:
    """How the first attempt failed."""
    connection = Connection(url, **{"retry": LATER, "keepalive": Keepalive(enabled=False), **options})
    watch = Watch(connection)
    async with connection:
        async with asyncio.timeout(PATIENCE):
            await watch.seen("dial_failed")
        failure = connection_driver_of(connection).fsm.failure
        assert connection.reason == failure.why
        yield failure


@asynccontextmanager
async def connected(url: Any, **options: Any) -> AsyncIterator[Connection]:
    async with Connection(url, **{"retry": LATER, "keepalive": Keepalive(enabled=False), **options}) as connection:
        async with asyncio.timeout(PATIENCE):
            await connection.connect()
        yield connection


# --------------------------------------------------------------------------------------------------------- the address

TARGETS = [
    "/",
    "/%7euser/%2F/~/a%20b+c",
    "/a?sig=%2b%2B+%20~%7E&x=a%2Fb/c:d@e!$'()*,;",
    "/a?b=1&b=2&c&d=&=e",
    "/a/./b/../c//d?e=//",
    "/100%?x=%zz%",
    '/{id}?q=[1]|^`"<>\\',
    "/a?x?y",
]


def kinds_of(url: str) -> list[Any]:
    async def later() -> str:
        return url

    return [url, URL(url, encoded=True), lambda: url, later, lambda: URL(url, encoded=True)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", range(5))
async def test_d_url_the_server_is_asked_for_these_very_bytes(target: str, kind: int) -> None:
    """D-URL: signatures cover bytes, not what they mean."""
    async with faulty.server() as server, connected(kinds_of(f"{server.url.rstrip('/')}{target}")[kind]):
        assert server.peer.path == target


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("?a=%7e", "/?a=%7e"),
        ("/a#fragment", "/a"),
        ("/a?b=%2f#f", "/a?b=%2f"),
        ("/é/a b?c=ü%7e d", "/%C3%A9/a%20b?c=%C3%BC%7e%20d"),
        ("/a\x7f\x01", "/a%7F%01"),
        ("/a\n", "/a"),
    ],
)
async def test_d_url_only_what_no_request_can_hold_is_encoded(given: str, sent: str) -> None:
    """D-URL: blanks and letters of other alphabets; what is encoded already stays as it is."""
    async with faulty.server() as server, connected(f"{server.url.rstrip('/')}{given}"):
        assert server.peer.path == sent


async def test_d_url_a_yarl_url_is_what_its_maker_made_of_it() -> None:
    """D-URL: yarl has normalized it before we see it, or not."""
    async with faulty.server() as server:
        for url in (URL(f"{server.url}?a=%7e+%2f"), URL(f"{server.url}?a=%7e+%2f", encoded=True)):
            async with connected(url):
                assert server.peer.path == url.raw_path_qs


@pytest.mark.parametrize(
    ("given", "params", "sent"),
    [
        ("/a?sig=%2b~%7e", {"b": "c d"}, "/a?sig=%2b~%7e&b=c+d"),
        ("/a#f", {"b": "1"}, "/a?b=1"),
        ("/a?x=%2f", {}, "/a?x=%2f"),
        ("/a?x=%2f", [("y", "1"), ("y", "2")], "/a?x=%2f&y=1&y=2"),
    ],
)
async def test_d_url_params_come_after_the_query_which_stays(given: str, params: Any, sent: str) -> None:
    """D-URL: params= is encoded by us, the rest is not touched."""
    async with faulty.server() as server, connected(f"{server.url.rstrip('/')}{given}", params=params):
        assert server.peer.path == sent


async def test_d_url_a_proxy_is_asked_for_the_same_bytes() -> None:
    """D-URL: without TLS it is told the whole address."""
    async with (
        faulty.server() as server,
        connected("ws://far.invalid/a%2fb?x=%7e+~#f", proxy=server.url.replace("ws:", "http:")),
    ):
        assert server.peer.path.endswith("://far.invalid/a%2fb?x=%7e+~")


async def test_d_url_user_and_password_are_sent_as_a_header() -> None:
    """D-URL: and not within the request line, whose bytes stay."""
    async with faulty.server() as server, connected(f"{server.url.replace('//', '//me:p%40ss@')}x%2f?y=%7e"):
        assert server.peer.path == "/x%2f?y=%7e"
        assert server.peer.header("Authorization") == f"Basic {base64.b64encode(b'me:p@ss').decode()}"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("ws://Example.ORG/%7e", "example.org", 80),
        ("wss://bücher.example:1/", "xn--bcher-kva.example", 1),
        ("ws://[::1]:99/?a", "::1", 99),
        (" ws://h ", "h", 80),
    ],
)
def test_d_url_the_host_is_for_the_name_service(url: str, host: str, port: int) -> None:
    """It is no part of what a server is asked for byte for byte."""
    assert (check_url(url).raw_host or "").lower() == host
    assert check_url(url).port == port


# --------------------------------------------------------------------------------------------------------- the session


@asynccontextmanager
async def proxy(status: int = 0, *headers: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A little HTTP proxy that tunnels (CONNECT), or answers with this status; its address and what it was asked."""
    heads: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if status:
                lines = [f"HTTP/1.1 {status} no", "Content-Length: 0", "Connection: close", *headers, "", ""]
                writer.write("\r\n".join(lines).encode())
                await writer.drain()
            else:
                host, port = heads[-1].split(" ")[1].rsplit(":", 1)
                upstream = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    await asyncio.gather(pipe(reader, upstream[1]), pipe(upstream[0], writer))
                finally:
                    upstream[1].transport.abort()
        writer.transport.abort() if writer.transport.get_write_buffer_size() == 0 else writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", heads
    listener.close()
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_d_session_each_setting_works_as_in_ws_connect(tmp_path: Path) -> None:
    """D-SESSION: headers, cookies, auth, User-Agent, HTTP version, tracing, middlewares."""
    traced: list[str] = []

    async def trace(*_: object) -> None:
        traced.append("start")

    async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers["X-Signed"] = request.url.path
        return await handler(request)

    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(trace)
    async with (
        faulty.server() as server,
        aiohttp.ClientSession(
            headers={"X-Own": "1"},
            cookies={"sid": "7"},
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            auth=aiohttp.BasicAuth("me", "secret"),
            skip_auto_headers=["User-Agent"],
            middlewares=(sign,),
            trace_configs=[tracing],
            raise_for_status=True,
        ) as session,
    ):
        session.headers["X-Later"] = "2"
        async with connected(f"{server.url}path", session=session) as connection:
            await connection.retry_now()
            peer = server.peer
            names = ("X-Own", "X-Later", "X-Signed", "Cookie", "User-Agent")
            assert [peer.header(name) for name in names] == ["1", "2", "/path", "sid=7", None]
            assert peer.header("Authorization") == aiohttp.BasicAuth("me", "secret").encode()
            assert traced == ["start"] * 2
        assert not session.closed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", ["session", "options", "environment"])
async def test_d_session_a_proxy_is_not_passed_by(
    where: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D-SESSION: through a real tunnel, with the proxy's credentials, which the client knows for secrets."""
    credentials = aiohttp.BasicAuth("me", SECRET)
    async with faulty.server(ssl=server_side(authority)) as server, proxy() as (address, heads):
        if where == "environment":
            monkeypatch.setenv("https_proxy", address.replace("//", f"//me:{SECRET}@"))
            monkeypatch.setenv("wss_proxy", address.replace("//", f"//me:{SECRET}@"))
            session = aiohttp.ClientSession(trust_env=True)
        else:
            session = aiohttp.ClientSession(proxy=address, proxy_auth=credentials)
        options: dict[str, Any] = {"session": session}
        async with session:
            if where == "options":
                options = {"proxy": address, "proxy_auth": credentials}
            async with connected(server.url, ssl=client_side(authority), **options) as connection:
                assert heads[0].startswith("CONNECT 127.0.0.1:")
                assert f"Proxy-Authorization: {credentials.encode()}" in heads[0]
                assert connection_driver_of(connection).redaction(f"{SECRET} {credentials.encode()[6:]}") == "… …"


async def test_d_session_netrc_is_read_and_its_secret_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D-SESSION, D-JUDGED: with trust_env aiohttp takes credentials from a file that we never see."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login someone password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    sent = base64.b64encode(f"someone:{SECRET}".encode()).decode()
    async with (
        faulty.server(faulty.accept_then_close(4000, f"bad {sent}")) as server,
        aiohttp.ClientSession(trust_env=True) as session,
        Connection(server.url, session=session, retry=LATER) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert server.peer.header("Authorization") == f"Basic {sent}"
        assert connection.reason == "closed with code 4000: bad …"


async def test_d_judged_what_is_really_sent_is_secret() -> None:
    """D-JUDGED: what a middleware adds, offered subprotocols, cookies that the server set; what aiohttp adds is not."""
    words = f"websocket 13 Upgrade gzip, in-middleware in-protocol in-cookie {SECRET}"

    async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers["X-Signed"] = "in-middleware"
        return await handler(request)

    async def behave(peer: Peer) -> None:
        await peer.upgrade("Set-Cookie: sid=in-cookie; Path=/; HttpOnly")
        peer.send_frame(faulty.CLOSE, (4000).to_bytes(2, "big") + words.encode())
        await peer.read_on()

    async with (
        faulty.server(behave) as server,
        aiohttp.ClientSession(middlewares=(sign,)) as session,
        Connection(
            lambda: f"{server.url}#{SECRET}", session=session, protocols=("in-protocol",), retry=LATER
        ) as connection,
    ):
        await until(lambda: connection.state == "waiting")
        assert connection.reason == "closed with code 4000: websocket 13 Upgrade gzip, … … … …"
        assert connection_driver_of(connection).redaction(aiohttp.http.SERVER_SOFTWARE) == aiohttp.http.SERVER_SOFTWARE


async def test_d_session_a_connection_that_the_session_has_kept_is_not_used() -> None:
    """D-SESSION: it may have died with the network that was before. Here the server would not hear a second request."""
    answered = 0

    async def once(peer: Peer) -> None:
        nonlocal answered
        await peer.request()
        answered += 1
        peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()  # deaf from here on

    async with faulty.server(once, once, faulty.echo) as server, aiohttp.ClientSession() as session:
        address = server.url.replace("ws:", "http:")
        responses = await asyncio.gather(session.get(address), session.get(address))
        for response in responses:
            await response.read()
        assert session.connector is not None
        assert sum(len(kept) for kept in session.connector._conns.values()) == 2
        async with connected(server.url, session=session, connect_timeout=5.0):
            assert server.connects == 3
            assert not session.connector._conns  # what was kept for this server is closed
    assert answered == 2


async def test_d_session_a_limit_of_its_connector_is_named() -> None:
    """D-WORDS: it is this program's own limit that nobody gets past, not the network."""
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        faulty.server() as server,
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(server.url),
        failed(server.url, session=session, connect_timeout=0.05) as failure,
    ):
        reached = "the session's connector has reached its limit of connections (1)"
        assert failure.why == f"no connection in the time allowed: {reached}"
        assert failure.fault is FaultKind.LIMITS
        assert server.connects == 1


class OwnWebSocket(aiohttp.ClientWebSocketResponse):
    """Of the user's own."""


async def test_d_session_what_cannot_be_taken_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """D-SESSION: at construction, with a clear error."""
    async with aiohttp.ClientSession(ws_response_class=OwnWebSocket) as session:
        with pytest.raises(TypeError, match="ws_response_class"):
            Connection("ws://127.0.0.1/", session=session)
    async with aiohttp.ClientSession() as session:
        Connection("ws://127.0.0.1/", session=session)
        with monkeypatch.context() as changed:
            changed.delattr(session, "_middlewares")
            with pytest.raises(TypeError, match=r"cannot be used with aiohttp .*: .* cannot be read \(_middlewares\)"):
                Connection("ws://127.0.0.1/", session=session)


Middleware = Callable[[aiohttp.ClientRequest, aiohttp.ClientHandlerType], Awaitable[aiohttp.ClientResponse]]


def follows(location: str) -> Middleware:
    """A middleware that follows redirects by itself."""

    async def follow(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        if response.status in (301, 302, 401, 500):
            request.url = URL(location)
            return await handler(request)
        return response

    return follow


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (302, "the server redirects elsewhere (HTTP 302), which is never followed"),
        (401, "a middleware of the session asks another server, which is never done for it"),
        (500, "the server answered HTTP 500"),
    ],
)
async def test_d_session_d_http_a_middleware_follows_nothing(status: int, why: str) -> None:
    """D-HTTP: credentials go to the configured origin only, whoever would carry them elsewhere."""
    async with (
        faulty.server() as elsewhere,
        faulty.server(faulty.answer(status, f"Location: {elsewhere.url}")) as server,
        aiohttp.ClientSession(middlewares=(follows(elsewhere.url),)) as session,
        failed(server.url, session=session) as failure,
    ):
        assert failure.why == why
        assert (server.connects, elsewhere.connects) == (1, 0)


@pytest.mark.parametrize("ending", [faulty.answer(503, "Retry-After: 7"), faulty.hang_up_in_handshake])
async def test_d_session_a_middleware_that_asks_again_and_again_asks_once(ending: faulty.Behaviour) -> None:
    """How often, and when, is for the machine to say."""
    asked = 0

    async def retrying(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal asked
        while True:
            asked += 1
            try:
                response = await handler(request)
                if response.status < 500 or asked >= 5:
                    return response
            except aiohttp.ClientError:
                if asked >= 5:
                    raise

    async with (
        faulty.server(ending) as server,
        aiohttp.ClientSession(middlewares=(retrying,)) as session,
        failed(server.url, session=session) as failure,
    ):
        assert asked >= 5
        assert server.connects == 1
        if failure.kind is FailureKind.ANSWER:
            assert (failure.http_status, failure.retry_after) == (503, 7.0)
        else:
            assert failure.why == "the server hung up during the handshake"


async def test_d_session_a_middleware_may_answer_a_challenge() -> None:
    """The digest authentication that aiohttp has: one more request, to the same server."""

    async def challenge(peer: Peer) -> None:
        await peer.request()
        peer.write(
            b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm="r", nonce="n", qop="auth", algorithm=MD5\r\n'
            b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await peer.drain()

    digests = (aiohttp.DigestAuthMiddleware("me", SECRET) for _ in range(2))
    async with (
        faulty.server(challenge, faulty.echo) as server,
        aiohttp.ClientSession(middlewares=(next(digests),)) as session,
        connected(server.url, session=session),
    ):
        assert (server.peer.header("Authorization") or "").startswith("Digest ")
    async with (
        faulty.server(challenge) as server,
        aiohttp.ClientSession(middlewares=(next(digests),)) as session,
        failed(server.url, session=session) as failure,
    ):
        assert failure.http_status == 401
        assert server.connects == 2


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyError("k"), "a middleware of the session raised KeyError"),
        (TimeoutError(), "a middleware of the session raised TimeoutError"),
        (ExceptionGroup("", [KeyError()]), "a middleware of the session raised ExceptionGroup of KeyError"),
        (aiohttp.ClientError(), "a middleware of the session raised ClientError"),
        (Unauthorized("no"), "a middleware of the session says that this client is not authorized"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
async def test_d_guard_d_words_a_middleware_that_raises(
    error: Exception, why: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: it is code of the user's; its own words stay out of the reason, and its traceback is in the log."""

    async def raising(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if after:
            response = await handler(request)
            response.close()
        raise error

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with (
        faulty.server() as server,
        aiohttp.ClientSession(middlewares=(raising,)) as session,
        failed(server.url, session=session) as failure,
    ):
        assert failure.why == why
        assert failure.fault is FaultKind.USER_FUNCTION
        assert ("in raising" in caplog.text) is not isinstance(error, Unauthorized)


async def test_d_judged_the_log_of_a_middlewares_error_shows_no_url(caplog: pytest.LogCaptureFixture) -> None:
    """D-JUDGED, D-GUARD: its traceback is logged, but not the error of aiohttp that it was raised from."""

    async def translating(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except TimeoutError as error:
            held.append(str(error))
            raise LookupError("no server") from error

    held: list[str] = []

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    timeout = aiohttp.ClientTimeout(sock_connect=0.05)

    async def mute(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with (
        faulty.server(mute) as server,
        aiohttp.ClientSession(middlewares=(translating,), timeout=timeout) as session,
        failed(f"{server.url.replace('ws:', 'wss:')}?token={SECRET}", session=session) as failure,
    ):
        assert failure.why == "a middleware of the session raised LookupError"
    assert SECRET in held[0]
    assert "in translating" in caplog.text
    assert SECRET not in caplog.text


def test_d_session_one_of_another_loop_is_refused() -> None:
    """D-SESSION: said in words, instead of an attempt that hangs or breaks in strange ways."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(session: aiohttp.ClientSession) -> None:
        async with failed("ws://127.0.0.1:9/", session=session) as failure:
            assert failure.why == "the session given to the client belongs to another event loop"
            assert failure.kind is FailureKind.MISCONFIGURED

    with asyncio.Runner() as first, asyncio.Runner() as second:
        session = first.run(make())
        second.run(use(session))
        first.run(session.close())


async def test_d_words_a_middleware_that_hangs() -> None:
    """D-WORDS: it is this program that takes its time."""

    async def hanging(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        faulty.server() as server,
        aiohttp.ClientSession(middlewares=(hanging,)) as session,
        failed(server.url, session=session, connect_timeout=0.05) as failure,
    ):
        assert failure.why == "no connection in the time allowed: a middleware of the session has not returned"


async def raises_runtime_error(*_: object) -> None:
    raise RuntimeError(SECRET)


async def test_d_guard_tracing_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """D-GUARD: its traceback is in the log, its words are not in the reason."""
    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(raises_runtime_error)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with (
        faulty.server() as server,
        aiohttp.ClientSession(trace_configs=[tracing]) as session,
        failed(server.url, session=session) as failure,
    ):
        assert failure.why == "could not connect: RuntimeError"
        assert "in raises_runtime_error" in caplog.text


async def test_d_session_raise_for_status_hides_no_answer() -> None:
    """D-HTTP: 401 is fatal, whatever the session's own function makes of it."""
    async with (
        faulty.server(faulty.answer(401)) as server,
        aiohttp.ClientSession(raise_for_status=raises_runtime_error) as session,
        failed(server.url, session=session) as failure,
    ):
        assert failure.http_status == 401


async def test_d_session_its_own_timeouts_count() -> None:
    """D-SESSION: those that differ from aiohttp's defaults, which are longer than any attempt of ours."""
    async with (
        faulty.server(faulty.never_answer) as server,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05)) as session,
        failed(server.url, session=session, connect_timeout=50.0) as failure,
    ):
        assert failure.why == "no connection in the time allowed"
    async with (
        faulty.server() as server,
        aiohttp.ClientSession() as session,
        connected(server.url, session=session) as connection,
    ):
        assert connection_driver_of(connection).session is not None
        assert connection_driver_of(connection).session.timeout.total is None


async def test_d_session_nothing_of_it_is_left_behind() -> None:
    """The copy goes; the session, its connector and its settings stay as they were."""
    before = leaks.in_process()
    async with faulty.server() as server, aiohttp.ClientSession() as session:
        settings = dict(vars(session))
        async with connected(server.url, session=session):
            pass
        assert vars(session) == settings
        assert not session.closed
        async with session.ws_connect(server.url) as ws:
            assert type(ws) is aiohttp.ClientWebSocketResponse
    assert leaks.left_over_without_loop(before) == []


# ----------------------------------------------------------------------------------------------------------- who failed


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (407, "the proxy refused (HTTP 407): it asks for credentials"),
        (403, "the proxy refused (HTTP 403)"),
        (502, "the proxy refused (HTTP 502)"),
    ],
)
async def test_d_words_a_proxy_that_refuses_the_tunnel(status: int, why: str) -> None:
    """D-WORDS: its status is none of the server's, 403 not fatal; its Retry-After is a word of honour as well."""
    async with (
        proxy(status, "Retry-After: 9") as (address, _),
        failed("wss://far.invalid/", proxy=address) as failure,
    ):
        assert failure == AttemptFailure(FailureKind.NETWORK, why, None, 9.0, FaultKind.PROXY)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(407, (None, FaultKind.PROXY)), (403, (403, None))],
)
async def test_d_words_a_proxy_that_is_asked_for_the_page(status: int, expected: tuple[Any, Any]) -> None:
    """D-WORDS: without TLS it speaks for the server, but for 407, which no server says."""
    async with proxy(status) as (address, _), failed("ws://far.invalid/", proxy=address) as failure:
        assert (failure.http_status, failure.fault) == expected


async def test_d_words_a_proxy_that_is_not_there() -> None:
    """D-WORDS: nobody listens there, or its name does not resolve."""
    async with failed("ws://far.invalid/", proxy=f"http://127.0.0.1:{faulty.unused_port()}") as failure:
        assert failure.why == "could not connect to the proxy: Connection refused"
        assert failure.fault is FaultKind.PROXY
    async with failed("ws://127.0.0.1/", proxy="http://near.invalid:3128") as failure:
        assert failure.why.startswith("the proxy's name does not resolve")


async def test_d_words_tls_to_a_proxy_and_through_it(authority: trustme.CA) -> None:
    """D-WORDS, D-ERROR: whose certificate it is that does not verify."""
    async with faulty.server(ssl=server_side(authority)) as server:
        async with failed("wss://far.invalid/", proxy=server.url.replace("wss:", "https:")) as failure:
            assert failure.why == "the proxy's certificate does not verify"
        async with proxy() as (address, _), failed(server.url, proxy=address) as failure:
            assert failure.why == "the server's certificate does not verify"
            assert failure.kind is FailureKind.MISCONFIGURED


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "the server refused TLS: certificate required"),
        ("TLSV1_ALERT_UNKNOWN_CA", "the server refused TLS: unknown ca"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "the server refused TLS: certificate expired"),
        ("TLSV1_UNRECOGNIZED_NAME", "the server refused TLS: unrecognized name"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "the server refused TLS: protocol version"),
        ("UNSUPPORTED_PROTOCOL", "TLS failed: the server and this client have no version of it in common"),
        ("WRONG_VERSION_NUMBER", "TLS failed: does the server speak it on this port?"),
        ("DH_KEY_TOO_SMALL", "TLS failed: dh key too small"),
    ],
)
@pytest.mark.parametrize("shape", ["error", "words"])
def test_d_words_alerts_of_tls_speak_for_themselves(reason: str, why: str, shape: str) -> None:
    """D-WORDS: in the handshake (an SSLError), or after it (only its words); 1 is not EPERM."""
    from reconnect_fsm._asyncio.transport.failures import Attempt, failure_of

    error: Exception = aiohttp.ClientOSError(1, f"[SSL: {reason}] words (_ssl.c:1)")
    if shape == "error":
        error = RuntimeError()
        cause = ssl.SSLError(1, f"[SSL: {reason}] words")
        cause.reason = reason
        error.__cause__ = cause
    assert failure_of(error, Attempt()) == AttemptFailure(FailureKind.NETWORK, why, fault=FaultKind.TLS)


async def test_d_words_a_client_certificate_that_is_missing(authority: trustme.CA) -> None:
    """D-WORDS: with TLS 1.3 the alert comes after the client believes that all is well."""
    context = server_side(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    address = f"wss://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    async with failed(address, ssl=client_side(authority)) as failure:
        assert failure.why in (
            "the server refused TLS: certificate required",
            "the server hung up during the handshake",
        )
    listener.close()


@pytest.mark.virtual_time
async def test_d_words_a_name_service_that_hangs() -> None:
    """D-WORDS: it is not the server that does not answer."""

    class Hanging(aiohttp.abc.AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        async def close(self) -> None: ...

    connector = aiohttp.TCPConnector(resolver=Hanging(), use_dns_cache=False)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        failed("ws://far.invalid/", session=session) as failure,
    ):
        assert failure.why == "no connection in the time allowed: the name service gives no answer"
        assert failure.fault is FaultKind.NAME_SERVICE


# ----------------------------------------------------------------------------------------------------- the url function


class Panic(BaseException):
    """As loro's, which are no Exception."""


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "why", "kind"),
    [
        (TimeoutError(SECRET), "the url function raised TimeoutError", FailureKind.NETWORK),
        (Panic(SECRET), "the url function raised Panic", FailureKind.NETWORK),
        (
            ExceptionGroup(SECRET, [KeyError(SECRET), Unauthorized(SECRET)]),
            "the url function raised ExceptionGroup of KeyError, Unauthorized",
            FailureKind.NETWORK,
        ),
        (
            ExceptionGroup(SECRET, [Unauthorized(SECRET), ExceptionGroup(SECRET, [Unauthorized(SECRET)])]),
            "the url function says that this client is not authorized",
            FailureKind.UNAUTHORIZED,
        ),
    ],
)
async def test_d_words_d_guard_a_url_function_that_raises(
    error: BaseException, why: str, kind: FailureKind, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """D-WORDS: never the network's fault, never a wedge, never its own words in the reason."""
    contexts: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context["exception"]))

    def plain() -> str:
        raise error

    async def coroutine() -> str:
        raise error

    async with failed(coroutine if is_async else plain) as failure:
        assert failure == AttemptFailure(kind, why, fault=FaultKind.USER_FUNCTION)
    is_fault = kind is FailureKind.NETWORK
    assert contexts == ([error] if is_fault else [])
    assert ("in coroutine" in caplog.text or "in plain" in caplog.text) is is_fault


async def fails_in_a_task_group(error: Exception) -> None:
    """While the group waits for its tasks: Python 3.11 and 3.12 then leave the caller's task half cancelled."""

    async def fail() -> None:
        raise error

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


async def test_d_words_unauthorized_in_a_real_task_group() -> None:
    """D-WORDS: it is an answer, not a cancellation."""
    async with failed(lambda: fails_in_a_task_group(Unauthorized(SECRET))) as failure:
        assert failure.kind is FailureKind.UNAUTHORIZED
        assert failure.why == "the url function says that this client is not authorized"


async def test_d_guard_a_url_function_that_gets_over_a_task_group_that_failed() -> None:
    """D-GUARD: what it returns counts, and the attempt is still bounded in its own words."""

    async def url() -> str:
        with contextlib.suppress(ExceptionGroup):
            await fails_in_a_task_group(ValueError())
        return server.url

    async with faulty.server() as server, Connection(url) as connection, asyncio.timeout(30):
        await connection.ready()
    async with faulty.server(faulty.never_answer) as server, failed(url, connect_timeout=0.5) as failure:
        assert failure.why == "no connection in the time allowed"


@pytest.mark.parametrize("turns", range(5))
async def test_d_timeout_a_dial_that_is_given_up_as_soon_as_its_url_function_was_called(turns: int) -> None:
    """D-TIMEOUT: its coroutine ends with it, begun or not: nothing warns that nobody awaited it, no task is left."""

    async def url() -> str:
        await asyncio.sleep(30)
        return "ws://h/"

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        connection = Connection(url, retry=LATER)
        connection.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await connection.close()
        gc.collect()
    assert [str(each.message) for each in warned] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit])
async def test_d_guard_a_url_function_that_ends_its_own_task(kind: type[BaseException]) -> None:
    """D-GUARD: neither its cancellation of itself nor a stray GeneratorExit is the attempt's end; it is reported."""
    contexts: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context["exception"]))

    async def url() -> str:
        task = asyncio.current_task()
        assert task is not None
        if kind is GeneratorExit:
            raise GeneratorExit
        task.cancel()
        await asyncio.sleep(30)
        return "ws://h/"

    async with failed(url) as failure:
        assert (failure.why, failure.fault) == (f"the url function raised {kind.__name__}", FaultKind.USER_FUNCTION)
    assert [type(each) for each in contexts] == [kind]


@pytest.mark.parametrize("given", [None, {}, b"ws://h/", 5])
async def test_d_words_a_url_function_that_returns_rubbish(given: Any) -> None:
    """D-WORDS, D-ERROR: it is named; it will not be better the next time."""
    async with failed(lambda: given) as failure:
        words = f"the url function must return a str or a yarl.URL, not {type(given).__name__}"
        assert failure == AttemptFailure(FailureKind.MISCONFIGURED, words, fault=FaultKind.URL)


@pytest.mark.virtual_time
@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_d_timeout_a_url_function_that_catches_its_cancellation(then: str) -> None:
    """D-TIMEOUT: what comes after it is bounded all the same; a server that never answers would hold us for ever."""

    async def url() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if then == "raises":
                raise ValueError from None
        return server.url

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with faulty.server(faulty.never_answer) as server, failed(url, connect_timeout=3.0) as failure:
        assert failure.why == "no connection in the time allowed: the url function has not returned"
        assert server.connects == 0


async def test_d_judged_secrets_of_what_a_url_function_returned() -> None:
    """D-JUDGED: its query, fragment, user and password, and a long part of its path."""
    known = Redaction()
    url = URL("ws://someone:pa%40ssword@h/feed/tokentokentoken1/x?a=in-query#b=in-fragment", encoded=True)
    from reconnect_fsm._asyncio.transport.secrets import learn_secrets

    learn_secrets(known, url, {})
    for word in ("someone", "pa@ssword", "pa%40ssword", "tokentokentoken1", "in-query", "in-fragment"):
        assert known(word) == "…"
    assert known("/feed on h") == "/feed on h"


async def test_a_web_server_of_aiohttps_is_asked_for_the_same_bytes(aiohttp_raw_server: AiohttpRawServer) -> None:
    """D-URL: as another server sees it."""
    asked: list[str] = []

    async def serve(request: web.BaseRequest) -> web.WebSocketResponse:
        asked.append(request.raw_path)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for _ in ws:
            pass
        return ws

    server = await aiohttp_raw_server(serve)
    async with connected(f"ws://{server.host}:{server.port}/a%2fb?sig=%7e%2B+"):
        assert asked == ["/a%2fb?sig=%7e%2B+"]
