"""When to ping, and which bytes count as a sign of life (LIVE-1, LIVE-2).

`Keepalive` is the policy. `Traffic` is what moves on one connection, as the kernel counts it. Both are pure: the time,
in seconds, and the counters are arguments. What is decided from them is the table in heartbeat_fsm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["MIN_RATE", "PING", "PONG", "Counters", "Keepalive", "Traffic"]

PING: Final = "ping"
PONG: Final = "pong"

MIN_RATE: Final = 500.0
"""Bytes a second, in both directions together, that prove life. A link of 64 kbit/s carries 8,000. A peer that sends a
single byte a hundred times a second sends 100."""
MIN_BYTES: Final = 256
"""Bytes that prove life, however short the time: more than a few pings and their TLS records."""


@dataclass(frozen=True)
class Keepalive:
    """How often to ping and how long to wait for the pong, in seconds (LIVE-1, LIVE-2).

    A dead connection is noticed within ``interval + timeout``. With ``enabled=False`` no pings are sent: for servers
    that do not answer the text ``ping``. Raises ValueError for numbers that make no sense.
    """

    interval: float = 20.0
    timeout: float = 10.0
    enabled: bool = True

    def __post_init__(self) -> None:
        for name, value in (("interval", self.interval), ("timeout", self.timeout)):
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"{name} must be a positive number of seconds, not {value!r}; enabled=False switches pings off"
                )


class Counters(NamedTuple):  # made at each look; a dataclass takes three times as long
    """What has moved on one TCP connection since it was opened, and what waits, in bytes."""

    received: int = 0
    """Bytes that arrived here, as whole messages or not."""
    acked: int = 0
    """Bytes that the other end's kernel has acknowledged."""
    waiting: int = 0
    """Bytes that were written here and are not acknowledged, in whichever buffer they are."""
    unread: int = 0
    """Bytes that arrived here and that this program has not read from the kernel."""


class Traffic:
    """What moves on one connection. It is known only as of the last look at the counters.

    Bytes that the other end acknowledges are a sign of life only if they were written before the ping in flight: a
    server whose program hangs has a kernel that still acknowledges what little is sent to it.
    """

    __slots__ = (
        "_before_ping",
        "_counters",
        "_judged",
        "_looked_at",
        "_taken",
        "_taken_at",
        "_waiting_since",
        "flowed_at",
    )

    def __init__(self, now: float, counters: Counters | None) -> None:
        self._counters = counters
        self._looked_at = now
        self._judged = now, counters  # the last look at which `has_moved` was asked, or a ping was sent
        self._taken = 0  # bytes acknowledged since then, of those that were written before the ping
        self._before_ping = 0  # bytes written before the ping that are not acknowledged yet
        self._taken_at = now  # the last look at which something had been acknowledged, or nothing waited
        self._waiting_since: float | None = None  # the look since which something waits and nothing is acknowledged
        self.flowed_at: float | None = None
        """The look before bytes written before the ping were last acknowledged, at `MIN_RATE`; None: never."""

    @property
    def is_waiting(self) -> bool:
        """Whether something waited to be acknowledged at the last look."""
        return self._counters is not None and self._counters.waiting > 0

    def look(self, now: float, counters: Counters | None) -> None:
        """Compare the counters with those of the last look. None: they cannot be known."""
        last, since = self._counters, self._looked_at
        self._counters, self._looked_at = counters, now
        if counters is None or last is None:
            self.clear_stall(now)
            return
        taken = counters.acked - last.acked
        if counters.waiting == 0 or taken > 0:
            self.clear_stall(now)
        if counters.waiting > 0 and self._waiting_since is None:
            self._waiting_since = now
        taken = min(taken, self._before_ping)
        self._before_ping -= taken
        self._taken += taken
        if taken >= _min_bytes(now - since):
            self.flowed_at = since

    def mark_ping(self) -> None:
        """A ping is sent right after the last look. What moved before it proves nothing any more."""
        self._judged, self._taken = (self._looked_at, self._counters), 0
        self._before_ping = 0 if self._counters is None else self._counters.waiting

    def has_moved(self) -> bool:
        """Whether enough bytes have moved to prove life, since this was last asked or a ping was sent."""
        (since, last), up, now, counters = self._judged, self._taken, self._looked_at, self._counters
        self._judged, self._taken = (now, counters), 0
        if last is None or counters is None:
            return False
        down, least = max(counters.received - last.received, 0), _min_bytes(now - since)
        if down >= least:  # a peer that sends much need not read meanwhile
            self.clear_stall(now)
        return up + down >= least

    def clear_stall(self, now: float) -> None:
        """Count a write stall from here on."""
        self._taken_at, self._waiting_since = now, None

    def write_stall(self, now: float) -> float:
        """For how many seconds the other end has acknowledged nothing, if something waits; else 0."""
        return 0.0 if self._waiting_since is None else now - self._taken_at

    def is_write_stalled(self, now: float, keepalive: Keepalive) -> bool:
        """Whether the other end takes nothing of what is sent: it may talk, but the connection is of no use (LIVE-2).

        Something must have waited for the whole timeout: bytes that were only just written are no stall.
        """
        if self._waiting_since is None or now - self._waiting_since < keepalive.timeout:
            return False
        return self.write_stall(now) >= keepalive.interval + keepalive.timeout


def _min_bytes(seconds: float) -> float:
    """Bytes that must move in this time to prove life."""
    return max(MIN_RATE * seconds, MIN_BYTES)
