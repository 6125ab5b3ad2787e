"""TLS for tests: an authority of our own, and the contexts of both ends."""

from __future__ import annotations

import ssl

import trustme

HOST = "127.0.0.1"

__all__ = ["client_side", "contexts", "server_side"]


def server_side(authority: trustme.CA, name: str = HOST) -> ssl.SSLContext:
    """A server's, with a certificate for that name."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_side(authority: trustme.CA) -> ssl.SSLContext:
    """A client's that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's that go together."""
    authority = trustme.CA()
    return server_side(authority), client_side(authority)
