"""What an attempt to connect tells the server in confidence, so that no words of ours show it (D-JUDGED)."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from typing import Any, Final, cast

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from reconnect_fsm._redaction import Redaction

__all__ = ["learn_request", "learn_secrets"]

# Headers that aiohttp makes by itself, or that say what all the world may know.
NO_SECRETS: Final = {
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-type", "host", "origin",
    "pragma", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-version", "upgrade",
}  # fmt: skip
LONG: Final = 16  # characters of a part of the path that may be a token


def learn_secrets(
    redaction: Redaction, url: URL, options: Mapping[str, Any], session: aiohttp.ClientSession | None = None
) -> None:
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


def learn_request(redaction: Redaction, request: aiohttp.ClientRequest) -> None:
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
