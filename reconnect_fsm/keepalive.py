"""Is the other end still there? Ping and pong bookkeeping (LIVE-1, LIVE-2).

Pure: time, in seconds, and what the kernel has counted are arguments. What proves life:

- A whole frame that arrives, whatever it holds, proves life at once.
- Bytes that move prove life too, for a WebSocket frame cannot stand within another: while 4 MiB come or go on a slow
  link, no pong can come. They must move at `LEAST_RATE`, or one byte now and then would keep a dead peer alive.
- Bytes that the other end's kernel takes count only as far as they stood before our ping. Once the ping has been taken
  it must be answered: a server whose program hangs has a kernel that still takes what little we send. But what was
  taken may stand before the ping once more, in a proxy that has a slow link behind it, or in a server that reads
  slowly. So after such bytes have moved, the ping has interval + timeout from there: no link that breaks lasts longer.
- A peer that says a little is dead all the same if its kernel has taken nothing for interval + timeout, though
  something was seen to wait for the whole timeout. This is the only verdict against a peer that is heard. Such a link
  is of no use: nothing that is sent arrives and our memory fills. A server that is only slow takes something now and
  then, and one that does not read while it sends us much is known by what arrives.

While it is this program that does not read, there is no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

__all__ = ["PING", "PONG", "Counters", "Heartbeat", "Keepalive", "KeepaliveAction"]

PING: Final = "ping"
PONG: Final = "pong"

LEAST_RATE: Final = 500.0
"""Bytes a second, up and down together, that prove life. Links of 64 kbit/s carry 8,000; a drip of single bytes, a
hundred times a second, is 100."""
LOOKS: Final = 5
"""Looks in the shorter of interval and timeout, as long as bytes wait, to know when they last moved."""
LEAST_BYTES: Final = 256
"""Bytes that prove life, however short the time: more than a few pings and their TLS records."""


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


class Counters(NamedTuple):  # it is made at each look, and so in a third of the time a dataclass takes
    """What has moved on one TCP connection since it was opened, and what waits, in bytes."""

    received: int = 0
    """That arrived here, whether whole messages or not."""
    acked: int = 0
    """That the other end's kernel has taken."""
    waiting: int = 0
    """That were written here and that it has not taken, wherever they are."""
    unread: int = 0
    """That arrived here and that this program has not read from the kernel."""


class KeepaliveAction(Enum):
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
        "_ahead",
        "_base",
        "_config",
        "_counters",
        "_due",
        "_flowed_at",
        "_grace_given",
        "_heard_at",
        "_looked_at",
        "_next_ping",
        "_sent_at",
        "_taken_at",
        "_unanswered",
        "_up",
        "_waiting_since",
        "_waits_since",
        "deadline",
        "was_ever_answered",
    )

    def __init__(self, config: Keepalive, now: float, counters: Counters | None = None) -> None:
        """The socket has opened now; ``counters`` as for `tick`."""
        self._config = config
        self._heard_at = now
        self._sent_at: float | None = None
        self._waits_since = now  # the ping in flight has a whole timeout from here: its sending, or when we read again
        self._next_ping = now + config.interval
        self._grace_given = False
        self._unanswered = 0
        self._counters = counters
        self._looked_at = now
        self._base = now, counters  # the last look at which it was judged what had moved
        self._up = 0  # bytes taken since then, of those that stood before the ping in flight
        self._ahead = 0  # bytes that still do
        self._flowed_at: float | None = None  # the last look before some of them were taken, at a rate worth the name
        self._taken_at = now  # the look at which the other end was last seen to have taken something, or all
        self._waiting_since: float | None = None  # the look since which something has waited, and nothing was taken
        self.was_ever_answered = False
        """Whether a pong ever came on this socket."""
        self._due = self._next_ping  # when a ping or a verdict is
        self.deadline: float | None = self._due if config.enabled else None
        """When to call `tick` next; None: never."""

    @property
    def in_flight(self) -> bool:
        """Whether a ping waits for its pong."""
        return self._sent_at is not None

    @property
    def awaits_pong(self) -> bool:
        """Whether pings went out whose pong may still come, late as it is."""
        return self._unanswered > 0

    def is_overdue(self, now: float) -> bool:
        """Whether a ping is in flight whose pong can hardly be expected any more."""
        return self._sent_at is not None and now - self._sent_at > self._config.timeout

    def sent(self, now: float, counters: Counters | None = None) -> None:
        """A ping goes out now: ours, or one that the user asked for. ``counters`` as for `tick`."""
        self._look(now, counters)
        self._base, self._up = (now, counters), 0
        self._ahead = 0 if counters is None else counters.waiting
        self._sent_at = self._waits_since = now
        self._unanswered += 1
        self._grace_given = False
        if self._config.enabled:
            self._next_ping = now + self._config.interval
            self._wait(now, now + min(self._config.timeout, self._config.interval))

    def heard(self, now: float) -> None:
        """Something arrived: the other end is alive."""
        self._heard_at = now

    def ponged(self, now: float) -> float | None:
        """A pong that is awaited arrived, and was `heard`. Returns the round trip in seconds; None if too late."""
        self._unanswered -= 1
        if self._sent_at is None:
            return None
        round_trip = now - self._sent_at
        self.was_ever_answered = True
        self._sent_at = None
        if self._config.enabled:
            self.deadline = self._due = self._next_ping
        return round_trip

    @property
    def is_silent(self) -> bool:
        """Whether a ping is in flight, and since then nothing was heard and nothing moved."""
        return self._sent_at is not None and self._heard_at <= self._sent_at

    def stuck_for(self, now: float) -> float:
        """For how many seconds the other end has taken nothing, if something is seen to wait for it."""
        return 0.0 if self._waiting_since is None else now - self._taken_at

    def is_deaf(self, now: float) -> bool:
        """Whether the other end takes nothing of what we say: it may talk, but it is of no use (LIVE-2)."""
        config, waiting_since = self._config, self._waiting_since
        is_stalled = waiting_since is not None and now - waiting_since >= config.timeout
        return is_stalled and now - self._taken_at >= config.interval + config.timeout

    def tick(self, now: float, counters: Counters | None = None, is_reading: bool = True) -> KeepaliveAction:
        """Say what is to be done at `deadline`, or whenever the timer for it really ran.

        ``counters`` is what has moved so far, None if that cannot be known. ``is_reading`` is False if something that
        came waits for this program: unread in the kernel, or read and not handled.
        """
        assert self.deadline is not None
        if now < self.deadline:
            return KeepaliveAction.WAIT
        self._look(now, counters)
        if now < self._due:
            self._wait(now, self._due)
            return KeepaliveAction.WAIT
        if self._has_moved(now, counters):
            self.heard(now)
        if not is_reading:  # LIVE-2: the pong may be among what waits; once we read, the other end has a whole timeout
            self._waits_since = self._taken_at = now
            self._waiting_since = None
        if self.is_deaf(now):
            return self._verdict(now)
        if self._sent_at is None:
            return KeepaliveAction.PING
        if not self.is_silent:  # no pong, but other traffic since: alive, and asked again in its time
            self._grace_given = False
            self._wait(now, self._next_ping)
            return KeepaliveAction.PING if now >= self._next_ping else KeepaliveAction.WAIT
        return self._while_silent(now, is_reading)

    def _while_silent(self, now: float, is_reading: bool) -> KeepaliveAction:
        config = self._config
        patience_ends = self._waits_since + config.timeout
        if self._flowed_at is not None:
            patience_ends = max(patience_ends, self._flowed_at + config.interval + config.timeout)
        if now >= patience_ends:
            return self._verdict(now)
        if not is_reading and now >= self._next_ping:
            return KeepaliveAction.PING  # LIVE-1: the other end may live on pings, whether we read the answers or not
        self._wait(now, min(patience_ends, now + config.interval))
        return KeepaliveAction.WAIT

    def _verdict(self, now: float) -> KeepaliveAction:
        # LIVE-2: after a stall of our own loop (a busy callback, SIGSTOP, a laptop's lid) this timer runs before the
        # pong that has long arrived is read. A verdict counts only if the timer was on time; else one grace period.
        assert self.deadline is not None
        was_late = now - self.deadline > 0.1 * self._config.timeout
        if was_late and not self._grace_given:
            self._grace_given = True
            self.deadline = self._due = now + min(self._config.timeout, 2.0)
            return KeepaliveAction.WAIT
        return KeepaliveAction.DEAD

    def _wait(self, now: float, due: float) -> None:
        """Until it is due; but look now and then, if bytes wait."""
        self.deadline = self._due = due
        if self._counters is not None and self._counters.waiting > 0:
            self.deadline = min(due, now + min(self._config.interval, self._config.timeout) / LOOKS)

    def _look(self, now: float, counters: Counters | None) -> None:
        """Note what was taken since the last look."""
        last, since = self._counters, self._looked_at
        self._counters, self._looked_at = counters, now
        if counters is None or last is None:
            self._taken_at, self._waiting_since = now, None
            return
        taken = counters.acked - last.acked
        if counters.waiting == 0 or taken > 0:
            self._taken_at, self._waiting_since = now, None
        if counters.waiting > 0 and self._waiting_since is None:
            self._waiting_since = now
        up = min(taken, self._ahead)
        self._ahead -= up
        self._up += up
        if up >= _least(now - since):
            self._flowed_at = since

    def _has_moved(self, now: float, counters: Counters | None) -> bool:
        """Whether enough has moved, since it was last judged, to prove life."""
        (since, base), up = self._base, self._up
        self._base, self._up = (now, counters), 0
        if base is None or counters is None:
            return False
        down, least = max(counters.received - base.received, 0), _least(now - since)
        if down >= least:  # who sends much need not read meanwhile
            self._taken_at, self._waiting_since = now, None
        return up + down >= least


def _least(seconds: float) -> float:
    """Bytes that must move in this time to prove life."""
    return max(LEAST_RATE * seconds, LEAST_BYTES)
