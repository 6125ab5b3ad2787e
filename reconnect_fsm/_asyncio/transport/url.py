"""Reads the addresses of WebSocket servers, and changes none of their bytes (D-URL)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from yarl import URL

from reconnect_fsm.errors import InvalidURL

__all__ = ["UrlSource", "check_url", "with_params"]

UrlSource: TypeAlias = str | URL | Callable[[], str | URL | Awaitable[str | URL]]

PARTS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)  # scheme, host and port, the rest
UNSENDABLE: Final = re.compile(r"[^!-~]")  # in a request line; all else is sent as it is, whether it is usual or not
LONGEST_SCHEME: Final = 5  # characters; what is longer may be a secret, and no address at all


def check_url(url: object) -> URL:
    """The address of a WebSocket server as a URL. Raises InvalidURL, without showing a query string, if it is none.

    What a server is asked for is asked for byte for byte (D-URL): a signature covers ``%7e`` or ``~``, ``+`` or
    ``%20``, and no other way to write the same. Only what no request can hold is percent-encoded.
    """
    if not isinstance(url, str | URL):
        raise InvalidURL(f"the url must be a str, a yarl.URL, or a function that returns one, not {type(url).__name__}")
    try:
        parsed = url if isinstance(url, URL) else _as_it_is(url)
    except ValueError:
        raise InvalidURL("the url cannot be read: its host or its port is not valid") from None
    if parsed.scheme not in ("ws", "wss", "http", "https"):
        found = "and this one has no scheme"
        if parsed.scheme:
            found = f"not with {parsed.scheme if len(parsed.scheme) <= LONGEST_SCHEME else 'another scheme'}://"
        raise InvalidURL(f"the url must begin with ws:// or wss://, {found}")
    try:
        host, port = parsed.host, parsed.explicit_port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise InvalidURL(f"the url has no {'host' if not host else 'valid port'}: {parsed.scheme}://?")
    return parsed


def _as_it_is(url: str) -> URL:
    url = url.strip().replace("\n", "").replace("\r", "").replace("\t", "")  # as every parser of URLs does (WHATWG)
    parts = PARTS.fullmatch(url)
    if parts is None:
        return URL(url)
    scheme, authority, rest = parts.groups()
    origin = URL(f"{scheme}://{authority}")  # names of other alphabets are encoded for the name service
    if not origin.raw_authority:
        return origin
    rest = UNSENDABLE.sub(lambda found: quote(found[0], errors="replace"), rest)
    return URL(f"{origin.scheme}://{origin.raw_authority}{rest}", encoded=True)


def with_params(url: URL, params: Any) -> URL:
    """The same with ``params`` at its query's end, which itself stays as it is."""
    if not params:
        return url
    address = str(url.with_fragment(None))
    more = URL().with_query(params).raw_query_string
    return URL(f"{address}{'&' if '?' in address else '?'}{more}", encoded=True)
