"""What goes wrong on purpose is marked, so that it can be told from what goes wrong by mistake."""

from __future__ import annotations

from typing import Final

__all__ = ["SECRET", "Sabotage"]

SECRET: Final = "7c1e5ec2e7"  # in the query, a header, a cookie, a subprotocol and the auth of rooms


class Sabotage(Exception):
    """Raised on purpose."""
