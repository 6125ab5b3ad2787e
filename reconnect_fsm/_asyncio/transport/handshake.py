"""One attempt to connect: the address, DNS, TCP, TLS and the WebSocket handshake, within one time limit (D-TIMEOUT)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import aiohttp
from yarl import URL

from reconnect_fsm._asyncio.credentials import UserCodeFailed, ask, wait_for_answer
from reconnect_fsm._asyncio.transport.failures import MAX_RETRY_AFTER, Attempt, AttemptFailed, failure_of
from reconnect_fsm._asyncio.transport.resolver import FailedAddresses
from reconnect_fsm._asyncio.transport.secrets import learn_secrets
from reconnect_fsm._asyncio.transport.sessions import Connector, Session, current_attempt
from reconnect_fsm._asyncio.transport.socket import Socket, WebSocket
from reconnect_fsm._asyncio.transport.url import UrlSource, check_url, with_params
from reconnect_fsm._asyncio.user_code import is_cancelled, must_propagate, report
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.errors import InvalidURL, Unauthorized
from reconnect_fsm.status import AttemptFailure, FailureKind, FaultKind

__all__ = ["check_options", "open_socket"]

URL_FUNCTION: Final = "the url function"
NOT_ACCEPTED: Final = {FaultKind.CONNECTION_REFUSED, FaultKind.UNREACHABLE, FaultKind.LIMITS}
"""Failures of an address that has not accepted a TCP connection."""


# What the client decides itself, and so does not take from the user.
OWN_OPTIONS: Final = {
    "autoclose": "the machine decides when the socket is closed",
    "autoping": "ping frames are always answered",
    "heartbeat": "use keepalive=Keepalive(...)",
    "receive_timeout": "use keepalive=Keepalive(...)",
    "timeout": "use connect_timeout=, close_timeout= and keepalive=",
    "decode_text": "text frames are always decoded",
}

# What is passed on to aiohttp's ws_connect as it is.
PASSED_ON: Final = (
    "auth", "compress", "headers", "max_msg_size", "method", "origin", "params", "protocols", "proxy", "proxy_auth",
    "proxy_headers", "server_hostname", "ssl",
)  # fmt: skip


def check_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for options that aiohttp's ``ws_connect`` does not have, or that are ours to decide."""
    for name in options:
        if name in OWN_OPTIONS:
            raise TypeError(f"{name}= is not yours to set: {OWN_OPTIONS[name]}")
        if name not in PASSED_ON:
            raise TypeError(
                f"unknown option {name}=; what is passed on to aiohttp's ws_connect is {', '.join(PASSED_ON)}"
            )


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
    """Make one attempt, within ``timeout`` seconds. Raises AttemptFailed, whatever goes wrong (D-TIMEOUT)."""
    attempt = Attempt(max_retry_after, redaction=redaction)
    current_attempt.set(attempt)
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
        if must_propagate(error):
            raise
        failure = failure_of(error, attempt)
        if (failures := _failed_addresses(session)) is not None:
            failures.failed(attempt.addresses, accepted=failure.fault not in NOT_ACCEPTED)
        attempt.clear()
        # `from None`: what aiohttp raises may hold the whole URL, query string and all.
        raise AttemptFailed(failure) from None
    blame = _note_success(session, attempt)
    attempt.clear()
    if not isinstance(ws, WebSocket):
        why = "the session given to the client opens WebSockets of a kind of its own"
        raise AttemptFailed(AttemptFailure(FailureKind.MISCONFIGURED, why, fault=FaultKind.OPTIONS))
    return Socket(ws, close_timeout, max_msg_size, redaction, blame)


def _failed_addresses(session: Session) -> FailedAddresses | None:
    """Where it is noted which addresses have failed (NET-ADDR); None if a resolver of the user's decides."""
    connector = session.connector
    return connector.names.failures if isinstance(connector, Connector) else None


def _note_success(session: Session, attempt: Attempt) -> Callable[[], None] | None:
    """The attempt's address works (NET-ADDR). Returns the function to call if the connection comes to a bad end."""
    failures, addresses = _failed_addresses(session), attempt.addresses
    if failures is None:
        return None
    failures.work(addresses)
    return partial(failures.failed, addresses, accepted=True)


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
        if not task.done() or is_cancelled():
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
        if is_cancelled():
            raise asyncio.CancelledError from None  # it was to end, and raised something else instead
        raise
    if is_cancelled():
        raise asyncio.CancelledError  # it was to end, and went on: without this nothing would bound the attempt
    if isinstance(given, Unauthorized):
        raise given
    if not isinstance(given, str | URL):
        raise InvalidURL(f"the url function must return a str or a yarl.URL, not {type(given).__name__}")
    attempt.stage = ""
    return check_url(given)
