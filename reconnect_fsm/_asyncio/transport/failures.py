"""Says how an attempt to connect failed, in words that name the party that did (D-WORDS), and as data (D-CAUSE)."""

from __future__ import annotations

import email.utils
import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from yarl import URL

from reconnect_fsm._asyncio.credentials import names_of
from reconnect_fsm._asyncio.transport.resolver import Address
from reconnect_fsm._asyncio.user_code import UserCodeFailed, report
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.errors import InvalidURL, Unauthorized
from reconnect_fsm.status import AttemptFailure, FailureKind, FaultKind

__all__ = [
    "MAX_CHAIN",
    "MAX_RETRY_AFTER",
    "AskedElsewhere",
    "Attempt",
    "AttemptFailed",
    "Redirected",
    "failure_of",
    "retry_after",
]

NETWORK, ANSWER, MISCONFIGURED = FailureKind.NETWORK, FailureKind.ANSWER, FailureKind.MISCONFIGURED
MAX_CHAIN: Final = 10  # exceptions that were raised from another
MAX_RETRY_AFTER: Final = 300.0  # D-HTTP: seconds; a hostile or confused server must not park us for days
TOO_LATE: Final = "no connection in the time allowed"
PROXY_WANTS_CREDENTIALS: Final = 407

# What the error number of the operating system says about whose doing it is; all others: no way leads to the server.
LIMITS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
OF_THE_SYSTEM: Final = dict.fromkeys(LIMITS, FaultKind.LIMITS) | {
    errno.ECONNREFUSED: FaultKind.CONNECTION_REFUSED,
    errno.ETIMEDOUT: FaultKind.TIMEOUT,
    errno.ECONNRESET: FaultKind.HUNG_UP,
    errno.EPIPE: FaultKind.HUNG_UP,
}
SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?")  # a fraction is against RFC 9110, and yet what some servers say
ALERT: Final = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?(\w+)")  # as OpenSSL names those that the server sends
NO_TLS: Final = {
    "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING",
    "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER",
}  # fmt: skip
OWN_VERSIONS: Final = {"NO_PROTOCOLS_AVAILABLE", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW"}


class AttemptFailed(Exception):
    """The attempt did not lead to an open socket; ``failure`` says why."""

    def __init__(self, failure: AttemptFailure) -> None:
        super().__init__(failure.why)
        self.failure = failure


class Redirected(Exception):
    """The server answered with a redirect; it is not followed."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class AskedElsewhere(Exception):
    """A middleware of the user's asks another server after the first one has answered."""


@dataclass(slots=True)
class Attempt:
    """How far one attempt has come, and what it has met."""

    max_retry_after: float = MAX_RETRY_AFTER
    stage: str = ""
    """What is being waited for: ``url``, ``middleware``, ``limit``, ``name``, ``connection`` or ``answer``."""
    proxy: URL | None = None
    limit: int = 0
    """How many connections the session's connector allows at a time."""
    origin: URL | None = None
    answers: list[aiohttp.ClientResponse] = field(default_factory=list[aiohttp.ClientResponse])
    errors: list[BaseException] = field(default_factory=list[BaseException])
    """What the request itself raised, in contrast to middlewares of the user's."""
    is_reused: bool = False
    """Whether the connector gave a connection that it had kept."""
    tried: list[tuple[Address, socket.socket]] = field(default_factory=list[Any])
    """The addresses that were tried, by our own connector; of one that let us in, only that one."""
    redaction: Redaction = field(default_factory=Redaction)
    """Learns what the server is told in confidence."""

    @property
    def addresses(self) -> list[Address]:
        """The addresses of `tried`."""
        return [address for address, _ in self.tried]

    def clear(self) -> None:
        """It is over: the event loop's handles keep its context, and that keeps this, as long as the connection."""
        self.answers, self.errors, self.tried = [], [], []


def failure_of(error: BaseException, attempt: Attempt) -> AttemptFailure:
    """What an exception of the handshake means."""
    match error:
        case Unauthorized():
            whose = "the url function" if attempt.stage == "url" else "a middleware of the session"
            why = f"{whose} says that this client is not authorized"
            return AttemptFailure(FailureKind.UNAUTHORIZED, why, fault=FaultKind.USER_FUNCTION)
        case UserCodeFailed():
            return _failed(FaultKind.USER_FUNCTION, f"{error.what} raised {names_of(error.error)}")
        case InvalidURL():
            return AttemptFailure(MISCONFIGURED, str(error), fault=FaultKind.URL)
        case AskedElsewhere():
            why = "a middleware of the session asks another server, which is never done for it"
            return AttemptFailure(MISCONFIGURED, why, fault=FaultKind.OPTIONS)
        case Redirected():
            why = f"the server redirects elsewhere (HTTP {error.status}), which is never followed"
            after = retry_after(error.headers, attempt.max_retry_after)
            return AttemptFailure(ANSWER, why, error.status, after, FaultKind.REDIRECT)
        case aiohttp.ClientHttpProxyError():  # the answer to CONNECT; the server was not asked
            return _proxy_refused(error.status, error.headers or {}, attempt)
        case aiohttp.WSServerHandshakeError() if error.status != 101:
            return _answered(error.status, error.headers or {}, attempt)
        case aiohttp.ClientResponseError() if attempt.answers and attempt.answers[-1].status != 101:
            return _answered(attempt.answers[-1].status, attempt.answers[-1].headers, attempt)  # `raise_for_status`
        case _:
            pass
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return (
        _of_tls(error, attempt)
        or _of_names(error, attempt)
        or _of_aiohttp(error, cause)
        or _of_the_system(error, cause, attempt)
        or _of_what_the_user_gave(error, attempt)
    )


def _failed(fault: FaultKind, why: str, after: float = 0.0) -> AttemptFailure:
    return AttemptFailure(NETWORK, why, None, after, fault)


def _answered(status: int, headers: Mapping[str, str], attempt: Attempt) -> AttemptFailure:
    if status == PROXY_WANTS_CREDENTIALS and attempt.proxy is not None:
        return _proxy_refused(status, headers, attempt)
    hint = ", and opened no WebSocket: is the path right?" if 200 <= status < 300 else ""
    return AttemptFailure(
        ANSWER, f"the server answered HTTP {status}{hint}", status, retry_after(headers, attempt.max_retry_after)
    )


def _proxy_refused(status: int, headers: Mapping[str, str], attempt: Attempt) -> AttemptFailure:
    """Its status is none of the server's: 403 of a proxy is no reason to give up."""
    hint = ": it asks for credentials" if status == PROXY_WANTS_CREDENTIALS else ""
    return _failed(
        FaultKind.PROXY, f"the proxy refused (HTTP {status}){hint}", retry_after(headers, attempt.max_retry_after)
    )


def _whose(error: BaseException, attempt: Attempt) -> str:
    """The server's or the proxy's, judged by whom the connection was for."""
    proxy, to = attempt.proxy, (getattr(error, "host", None), getattr(error, "port", None))
    return "the proxy" if proxy is not None and to == (proxy.raw_host, proxy.port) else "the server"


def _of_tls(error: BaseException, attempt: Attempt) -> AttemptFailure | None:
    """Of TLS, whose alerts say what is wrong. The number of an SSLError is none of the operating system's."""
    whose = _whose(error, attempt)
    fault = FaultKind.TLS if whose == "the server" else FaultKind.PROXY
    errors = [each for each in _chain(error) if isinstance(each, ssl.SSLError)]  # some of aiohttp's are such, too
    found = next((each for each in errors if not isinstance(each, aiohttp.ClientError)), None)
    if isinstance(error, aiohttp.ServerFingerprintMismatch | aiohttp.ClientConnectorCertificateError) or any(
        isinstance(each, ssl.SSLCertVerificationError) for each in errors
    ):
        kind = MISCONFIGURED, FaultKind.CERTIFICATE if whose == "the server" else FaultKind.PROXY
        return AttemptFailure(kind[0], f"{whose}'s certificate does not verify", fault=kind[1])
    if found is not None:
        reason = str(getattr(found, "reason", None) or "")
    else:  # aiohttp keeps the words of one that came after the handshake, but not the error itself
        named = re.search(r"\[SSL: (\w+)\]", str(error)) if isinstance(error, aiohttp.ClientOSError) else None
        if named is None and not isinstance(error, aiohttp.ClientSSLError):
            return None
        reason = "" if named is None else named[1]
    alert = ALERT.fullmatch(reason)
    if alert is not None:
        words = alert[1].lower().replace("_", " ")
        hint = "; it may want a certificate of this client" if words == "handshake failure" else ""
        return _failed(fault, f"{whose} refused TLS: {words}{hint}")
    if reason in OWN_VERSIONS:
        return _failed(fault, f"TLS failed: {whose} and this client have no version of it in common")
    if reason and reason not in NO_TLS:
        return _failed(fault, f"TLS failed: {reason.lower().replace('_', ' ')}")
    other = "" if whose == "the server" else " by the proxy"
    return _failed(fault, f"TLS failed{other}: does {'the server' if not other else 'it'} speak it on this port?")


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(MAX_CHAIN):
        if each is None:
            return
        yield each
        inner = each.os_error if isinstance(each, aiohttp.ClientConnectorError) else None
        each = inner if inner is not None and inner is not each else each.__cause__ or each.__context__


def _of_names(error: BaseException, attempt: Attempt) -> AttemptFailure | None:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        what = f"{'the server' if attempt.proxy is None else 'the proxy'}'s name does not resolve"
        if error.os_error.errno == socket.EAI_AGAIN:
            what += ": the name service gives no answer"
        return _failed(FaultKind.NAME_SERVICE if attempt.proxy is None else FaultKind.PROXY, what)
    return None


def _of_aiohttp(error: BaseException, cause: BaseException) -> AttemptFailure | None:
    match error:
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return AttemptFailure(MISCONFIGURED, "the url cannot be used", fault=FaultKind.URL)
        case aiohttp.ClientResponseError():
            return _failed(FaultKind.NOT_WEBSOCKET, "the server does not answer as a WebSocket server does")
        case aiohttp.ClientProxyConnectionError():
            return None
        case _ if isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError):
            return _failed(FaultKind.HUNG_UP, "the server hung up during the handshake")
        case _:
            return None


def _of_the_system(error: BaseException, cause: BaseException, attempt: Attempt) -> AttemptFailure | None:
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return _failed(FaultKind.PROXY, f"could not connect to the proxy: {_strerror(error.os_error, 'the proxy')}")
    if isinstance(error, TimeoutError) or isinstance(cause, TimeoutError):
        return _too_late(attempt)
    if isinstance(error, OSError):
        fault = OF_THE_SYSTEM.get(error.errno or 0, FaultKind.UNREACHABLE)
        return _failed(fault, f"could not connect: {_strerror(error, 'the server')}")
    return None


def _strerror(error: OSError, whose: str) -> str:
    """asyncio's own words name the address; of several that failed in several ways there is no number."""
    return os.strerror(error.errno) if error.errno else f"none of {whose}'s addresses works"


def _too_late(attempt: Attempt) -> AttemptFailure:
    match attempt.stage:
        case "url":
            return _failed(FaultKind.USER_FUNCTION, f"{TOO_LATE}: the url function has not returned")
        case "middleware":
            return _failed(FaultKind.USER_FUNCTION, f"{TOO_LATE}: a middleware of the session has not returned")
        case "limit":
            why = f"{TOO_LATE}: the session's connector has reached its limit of connections ({attempt.limit})"
            return _failed(FaultKind.LIMITS, why)
        case "name":
            return _failed(FaultKind.NAME_SERVICE, f"{TOO_LATE}: the name service gives no answer")
        case _ if attempt.proxy is not None:
            return _failed(FaultKind.TIMEOUT, f"{TOO_LATE}, through the proxy")
        case _:
            return _failed(FaultKind.TIMEOUT, TOO_LATE)


def _of_what_the_user_gave(error: BaseException, attempt: Attempt) -> AttemptFailure:
    """Nothing that the network does: code of the user's own (tracing, a resolver, ``raise_for_status``) or options."""
    answer = attempt.answers[-1] if attempt.answers else None
    if answer is not None and answer.status != 101:  # what a `raise_for_status` of the session's makes of it
        return _answered(answer.status, answer.headers, attempt)
    if isinstance(error, TypeError | ValueError):
        why = f"the connection's options cannot be used ({type(error).__name__})"
        return AttemptFailure(MISCONFIGURED, why, fault=FaultKind.OPTIONS)
    if not isinstance(error, aiohttp.ClientError):
        report("the attempt to connect", error)
    return AttemptFailure(NETWORK, f"could not connect: {type(error).__name__}")


def retry_after(headers: Mapping[str, Any], most: float = MAX_RETRY_AFTER) -> float:
    """Seconds that the server asks us to stay away (D-HTTP), ``most`` at most; 0 if it does not, or in no known way.

    A date is measured against the answer's own: the two clocks need not agree.
    """
    asked = str(headers.get("Retry-After", "")).strip()
    if SECONDS.fullmatch(asked):
        return min(float(asked), most)
    until = _date(asked)
    if until is None:
        return 0.0
    now = _date(str(headers.get("Date", ""))) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), most)


def _date(words: str) -> datetime | None:
    try:
        at = email.utils.parsedate_to_datetime(words.strip())
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
