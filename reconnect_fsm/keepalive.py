"""Is the other end still there? Ping and pong bookkeeping; time is an argument, in seconds (LIVE-1, LIVE-2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["PING", "PONG", "Beat", "Heartbeat", "Keepalive"]

PING: Final = "ping"
PONG: Final = "pong"


@dataclass(frozen=True)
class Keepalive:
    """How often to ping and how long to wait for the pong, in seconds (LIVE-1, LIVE-2).

    A dead connection is noticed within ``interval + timeout``. With ``enabled=False`` no pings go out: for servers that
    do not answer the text ``ping``. Raises ValueError for numbers that make no sense.
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


class Beat(Enum):
    """What `Heartbeat.tick` says is to be done."""

    PING = "ping"
    """Send a ping."""
    WAIT = "wait"
    """Nothing yet; call again at the new `deadline`."""
    DEAD = "dead"
    """The pong is missing: the connection is dead."""


class Heartbeat:
    """The pulse of one socket.

    Anything that arrives proves life, but only a pong gives a round trip: the one since the last ping, for Loro's pong
    does not say which ping it answers. Later ones are `ponged`, and give none.
    """

    __slots__ = (
        "_config",
        "_grace_given",
        "_heard_at",
        "_next_ping",
        "_sent_at",
        "_unanswered",
        "deadline",
        "was_ever_answered",
    )

    def __init__(self, config: Keepalive, now: float) -> None:
        self._config = config
        self._heard_at = now
        self._sent_at: float | None = None
        self._next_ping = now + config.interval
        self._grace_given = False
        self._unanswered = 0
        self.was_ever_answered = False
        """Whether a pong ever came on this socket."""
        self.deadline: float | None = self._next_ping if config.enabled else None
        """When to call `tick` next; None: never."""

    @property
    def in_flight(self) -> bool:
        """Whether a ping waits for its pong."""
        return self._sent_at is not None

    @property
    def is_owed(self) -> bool:
        """Whether pings went out whose pong may still come, late as it is."""
        return self._unanswered > 0

    def is_overdue(self, now: float) -> bool:
        """Whether a ping is in flight whose pong can hardly be expected any more."""
        return self._sent_at is not None and now - self._sent_at > self._config.timeout

    def sent(self, now: float) -> None:
        """A ping goes out now: ours, or one that the user asked for."""
        self._sent_at = now
        self._unanswered += 1
        self._grace_given = False
        if self._config.enabled:
            self._next_ping = now + self._config.interval
            self.deadline = now + min(self._config.timeout, self._config.interval)

    def heard(self, now: float) -> None:
        """Something arrived: the other end is alive."""
        self._heard_at = now

    def ponged(self, now: float) -> float | None:
        """A pong that `is_owed` arrived, and was `heard`. Returns the round trip in seconds; None if it is too late."""
        self._unanswered -= 1
        if self._sent_at is None:
            return None
        round_trip = now - self._sent_at
        self.was_ever_answered = True
        self._sent_at = None
        if self._config.enabled:
            self.deadline = self._next_ping
        return round_trip

    @property
    def is_silent(self) -> bool:
        """Whether a ping is in flight, and nothing was heard since."""
        return self._sent_at is not None and self._heard_at <= self._sent_at

    def is_unread(self, stalled: float) -> bool:
        """Whether the other end takes nothing of what we say: it may talk, but it is deaf (LIVE-2)."""
        return stalled >= self._config.timeout

    def tick(self, now: float, stalled: float = 0.0) -> Beat:
        """Say what is to be done at `deadline`, or whenever the timer for it really ran.

        ``stalled`` says for how many seconds the network has taken nothing, though something waits to be sent.
        """
        assert self.deadline is not None
        if now < self.deadline:
            return Beat.WAIT
        if not self.is_unread(stalled):
            if self._sent_at is None:
                return Beat.PING
            if not self.is_silent:  # no pong, but other traffic since: alive, and asked again in its time
                self._grace_given = False
                if now >= self._next_ping:
                    return Beat.PING
                self.deadline = self._next_ping
                return Beat.WAIT
            if now < self._sent_at + self._config.timeout:  # the interval is the shorter
                self.deadline = min(self._sent_at + self._config.timeout, now + self._config.interval)
                return Beat.WAIT
        # LIVE-2: after a stall of our own loop (a busy callback, SIGSTOP, a laptop's lid) this timer runs before the
        # pong that has long arrived is read. A verdict counts only if the timer was on time; else one grace period.
        was_late = now - self.deadline > 0.1 * self._config.timeout
        if was_late and not self._grace_given:
            self._grace_given = True
            self.deadline = now + min(self._config.timeout, 2.0)
            return Beat.WAIT
        return Beat.DEAD
