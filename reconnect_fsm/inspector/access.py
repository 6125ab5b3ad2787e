"""Access control of the inspector: only a browser on this machine that has the address, and no other site through it.

* It listens on a loopback address only.
* Each request must name a loopback host: a name that an attacker makes resolve to us (DNS rebinding) is refused.
* Each request must hold the token, which is compared in constant time.
* A request with an Origin must come from our own page; a WebSocket must have one.
* The page may load only its own files. It must not be framed or cached.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from typing import Final

from aiohttp import hdrs, web
from yarl import URL

__all__ = ["Access", "check_host"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws://{host}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def check_host(host: str) -> str:
    """The loopback address to listen on. Raises ValueError for any other."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise ValueError(
            f"the inspector cannot listen on {host!r}: everyone who reaches it can control the client, so it serves "
            "this machine only. Leave host out, or give a loopback address such as 127.0.0.1 or ::1; from another "
            "machine, tunnel the port (ssh -L)"
        )
    return str(address)


class Access:
    """Decides which requests are refused, and what a browser may do with the answer. Made once the port is known."""

    def __init__(self, host: str, port: int) -> None:
        origins = [URL.build(scheme="http", host=each, port=port) for each in (host, "localhost")]
        self._token = secrets.token_urlsafe(24)
        self._hosts = {origin.raw_authority for origin in origins}  # as browsers write it: without port 80
        self.url = f"{origins[0]}/{self._token}/"
        """The address of the page. It holds the token: show it only to users who may control the client."""

    def protected(self, request: web.BaseRequest, response: web.Response) -> web.Response:
        """The answer, with the headers that restrict what a browser may do with it."""
        response.headers.update(HEADERS)
        host = request.headers.get(hdrs.HOST, "")
        response.headers["Content-Security-Policy"] = POLICY.format(host=host if host in self._hosts else "127.0.0.1")
        return response

    def refusal(self, request: web.BaseRequest) -> tuple[int, str] | None:
        """Why this request is refused, and the HTTP status for it; None if it is not."""
        host = request.headers.getall(hdrs.HOST, [])
        if len(host) != 1 or host[0] not in self._hosts:
            return 403, "this host name is not one of the inspector's: open the address that it printed"
        origin = request.headers.getall(hdrs.ORIGIN, [])
        is_websocket = hdrs.UPGRADE in request.headers
        if origin != [f"http://{host[0]}"] and (origin or is_websocket):
            return 403, "another site asked for this: only the inspector's own page may"
        given = request.path.removeprefix("/").partition("/")[0]
        if not hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return 403, "the token is missing or wrong: open the address that the inspector printed when it started"
        if request.method != hdrs.METH_GET:
            return 405, "the inspector answers GET only; what its page asks for goes through its WebSocket"
        return None
