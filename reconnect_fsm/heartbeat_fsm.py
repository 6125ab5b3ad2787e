"""The table of a heartbeat: when a ping is sent, and when a connection is dead (LIVE-1, LIVE-2).

There is one for each socket, from `StartKeepalive` to `StopKeepalive`:

    idle                 no ping is in flight: the next one has its time
    awaiting_pong        a ping is in flight
    grace                the same, after a verdict that came late: a pong may have arrived that was not read yet
    grace_without_ping   no ping is in flight, and the grace period of the last one is used up
    dead                 the connection is dead; this heartbeat is over

The driver fires `ticked` at `deadline`, or whenever its timer for that really runs, then reads the new `deadline`.
It answers the effect `SendPing` with the event `ping_sent`. Time, in seconds, and what the kernel has counted are
arguments, so the whole is pure. A message that arrives fires nothing: `heard` stores when it came, because that happens
for each message, and only a tick asks for it.

What proves life:

- A whole frame that arrives proves life at once, whatever it holds.
- Bytes that move prove life too, for a WebSocket frame cannot stand within another: while 4 MiB come or go on a slow
  link, no pong can come. They must move at `MIN_RATE`, or one byte now and then would keep a dead peer alive.
- Bytes that the other end's kernel acknowledges count only as far as they were written before our ping. Once the ping
  is acknowledged it must be answered. But such bytes may stand before the ping once more: in a proxy with a slow link
  behind it, or in a server that reads slowly. So after such bytes have moved, the ping has interval + timeout from
  there: no link that breaks lasts longer.
- A peer that still sends is dead all the same if its kernel has acknowledged nothing for interval + timeout, though
  something waited for the whole timeout. This is the only verdict against a peer that is heard. Such a link is of no
  use: nothing that is sent arrives, and our memory fills. A server that is only slow takes something now and then, and
  a server that does not read while it sends us much is known by what arrives.

While it is this program that does not read, there is no verdict. After a stall of our own loop (a busy callback,
SIGSTOP, a laptop's lid) the timer runs before the pong is read that arrived long ago. So a verdict counts only if the
timer was on time; if it was late, there is one grace period.

Its cost as a machine: a ping and its pong take 6 µs instead of the 1.5 µs of nested ifs. At a ping every 20 s that is
0.2 % of a core more for 10,000 connections. A heartbeat takes 500 bytes instead of 380.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from reconnect_fsm.effects import DeclareDead, ReportLatency, SendPing
from reconnect_fsm.keepalive import Counters, Keepalive, Traffic
from reconnect_fsm.machine import FSM, OTHERWISE, STAY, any_but, event, ignore, row, state

__all__ = ["HeartbeatFSM", "Liveness"]

LOOKS: Final = 5
"""Looks at the counters in the shorter of interval and timeout while bytes wait, to know when they last moved."""
MAX_GRACE: Final = 2.0
"""Seconds for this program to read what has arrived, after a verdict that came late."""
MAX_LATE: Final = 0.1
"""How late a timer may run and still be on time, as a part of the timeout."""


class Liveness(StrEnum):
    """What is known of the other end."""

    ALIVE = "alive"
    ASKED = "asked"
    DOUBTED = "doubted"
    DEAD = "dead"


class HeartbeatFSM(FSM[Liveness]):
    """The heartbeat of one socket (LIVE). Pure: events in, effects out.

    Anything that arrives proves life, but only a pong gives a round trip: the one since the last ping, for Loro's pong
    does not say which ping it answers. A pong after that one gives none.
    """

    __slots__ = (
        "deadline",
        "due",
        "heard_at",
        "keepalive",
        "next_ping",
        "now",
        "pongs_awaited",
        "reading",
        "sent_at",
        "traffic",
        "waits_since",
        "was_ever_answered",
    )

    # States

    idle = state(Liveness.ALIVE, doc="no ping is in flight; a timer until the next is due")
    awaiting_pong = state(Liveness.ASKED, doc="a ping is in flight; a timer until a verdict is due")
    grace = state(Liveness.DOUBTED, doc="a ping is in flight; a verdict came late, and one more is due")
    grace_without_ping = state(Liveness.DOUBTED, doc="no ping is in flight; the grace period is used up")
    dead = state(Liveness.DEAD, doc="nothing: the connection is dead")

    initial = idle

    PINGED = (awaiting_pong, grace)
    NOT_PINGED = (idle, grace_without_ping)

    # What it remembers

    def __init__(self, keepalive: Keepalive, now: float, counters: Counters | None = None) -> None:
        """The socket has opened now; ``counters`` as for `ticked`."""
        super().__init__()
        self.keepalive = keepalive
        self.traffic = Traffic(now, counters)
        self.now = now
        self.reading = True
        """Whether this program reads what arrives, as of the last tick."""
        self.heard_at = self.sent_at = now
        """When something last arrived, or moved; and when the last ping was sent."""
        self.waits_since = now
        """The ping in flight has a whole timeout from here: when it was sent, or when this program read again."""
        self.next_ping = now + keepalive.interval
        self.pongs_awaited = 0
        """How many pings were sent whose pong may still come, late as it is."""
        self.was_ever_answered = False
        """Whether a pong has ever come on this socket."""
        self.due = self.next_ping
        """When a ping or a verdict is due."""
        self.deadline = self.due if keepalive.enabled else None
        """When to fire `ticked` next: when something is due, or before that for a look at what moves. None: never."""

    @property
    def in_flight(self) -> bool:
        """Whether a ping waits for its pong."""
        return self.states[self.state] in self.PINGED

    @property
    def awaits_pong(self) -> bool:
        """Whether the next pong is the answer to a ping of this program, and no message."""
        return self.pongs_awaited > 0

    def heard(self, now: float) -> None:
        """Something has arrived. No event: this is for each message."""
        self.heard_at = now

    # Guards

    def is_early(self) -> bool:
        """The timer ran before the deadline, by a clock's grain; or pings are switched off, and there is none."""
        return self.deadline is None or self.now < self.deadline

    def is_due(self) -> bool:
        """A ping or a verdict is due, and not only a look at what moves."""
        return self.now >= self.due

    def is_ping_due(self) -> bool:
        """The interval since the last ping is over."""
        return self.now >= self.next_ping

    def is_late(self) -> bool:
        """The timer ran so late that this program must have stalled: there may be a pong that it has not read."""
        assert self.deadline is not None
        return self.now - self.deadline > MAX_LATE * self.keepalive.timeout

    def is_reading(self) -> bool:
        """This program has handled all that has arrived."""
        return self.reading

    def is_silent(self) -> bool:
        """A ping is in flight, and since then nothing was heard and nothing moved."""
        return self.in_flight and self.heard_at <= self.sent_at

    def is_write_stalled(self) -> bool:
        """The other end takes nothing of what is sent."""
        return self.traffic.is_write_stalled(self.now, self.keepalive)

    def is_pong_overdue(self) -> bool:
        """The pong has had all the time that it is given."""
        return self.now >= self.patience_ends()

    def is_ping_lost(self) -> bool:
        """The pong of the ping in flight is hardly to be expected any more: another ping may be sent by hand."""
        return self.now - self.sent_at > self.keepalive.timeout

    # Actions

    def send_ping(self) -> None:
        self.emit(SendPing())

    def begin_to_wait(self) -> None:
        """The ping in flight has its timeout, and the next its interval."""
        self.sent_at = self.waits_since = self.now
        self.next_ping = self.now + self.keepalive.interval
        self.set_deadline(self.now + min(self.keepalive.timeout, self.keepalive.interval))

    def look_again(self) -> None:
        """What is due stays due; look now and then, if bytes wait."""
        self.set_deadline(self.due)

    def wait_for_next_ping(self) -> None:
        self.set_deadline(self.next_ping)

    def wait_for_pong(self) -> None:
        """Until the patience ends, but no longer than an interval."""
        self.set_deadline(min(self.patience_ends(), self.now + self.keepalive.interval))

    def give_grace(self) -> None:
        """LIVE-2: once, a little time to read what arrived while this program stalled."""
        self.deadline = self.due = self.now + min(self.keepalive.timeout, MAX_GRACE)

    def report_latency(self) -> None:
        """OBS-3: the next ping is due when it was."""
        self.was_ever_answered = True
        self.emit(ReportLatency(self.now - self.sent_at))
        if self.keepalive.enabled:
            self.deadline = self.due = self.next_ping

    def declare_dead(self) -> None:
        """LIVE-2: in words that say what was missed."""
        if self.is_write_stalled() and not self.is_silent():
            stall = self.traffic.write_stall(self.now)
            why = f"the server has read nothing for {stall:.0f} s: the connection is dead"
        else:
            why = f"no answer to a ping within {self.keepalive.timeout:g} s: the connection is dead"
            if not self.was_ever_answered:
                why += " (or this server does not answer the text 'ping' with 'pong'; see Keepalive)"
        self.emit(DeclareDead(why))

    # The table: for each event, the first row whose guards pass decides
    # fmt: off

    @event(
        ignore(dead,                                                             because="it was declared dead"),
        ignore(OTHERWISE, when=is_early,                                         because="it is not time yet"),
        row(any_but(dead), to=STAY, unless=is_due, do=look_again,                            clause="LIVE-2"),
        row(idle,          to=grace_without_ping, when=(is_write_stalled, is_late), do=give_grace, clause="LIVE-2"),
        row(awaiting_pong, to=grace, when=(is_write_stalled, is_late), do=give_grace,        clause="LIVE-2"),
        row(any_but(dead), to=dead,  when=is_write_stalled, do=declare_dead,                 clause="LIVE-2"),
        row(NOT_PINGED,    to=STAY, do=send_ping,                                            clause="LIVE-1"),
        # Not silent: no pong, but something else came since the ping; it is asked again in its time
        row(awaiting_pong, to=STAY,          unless=is_silent, when=is_ping_due, do=send_ping, clause="LIVE-1 LIVE-2"),
        row(grace,         to=awaiting_pong, unless=is_silent, when=is_ping_due, do=send_ping, clause="LIVE-1 LIVE-2"),
        row(awaiting_pong, to=STAY,          unless=is_silent, do=wait_for_next_ping,        clause="LIVE-2"),
        row(grace,         to=awaiting_pong, unless=is_silent, do=wait_for_next_ping,        clause="LIVE-2"),
        row(awaiting_pong, to=grace, when=(is_pong_overdue, is_late), do=give_grace,         clause="LIVE-2"),
        row(PINGED,        to=dead,  when=is_pong_overdue, do=declare_dead,                  clause="LIVE-2"),
        # The server may need pings to keep the connection, whether this program reads the answers or not
        row(PINGED,        to=STAY,  when=is_ping_due, unless=is_reading, do=send_ping,      clause="LIVE-1"),
        row(PINGED,        to=STAY,  do=wait_for_pong,                                       clause="LIVE-2"),
    )
    def ticked(self, now: float, counters: Counters | None = None, is_reading: bool = True) -> None:
        """The timer for `deadline` has run.

        ``counters`` is what has moved so far, None if that cannot be known. ``is_reading`` is False if something that
        arrived waits for this program: unread in the kernel, or read and not handled.
        """
        self.now, self.reading = now, is_reading
        if self.is_early():
            return
        traffic = self.traffic
        traffic.look(now, counters)
        if self.is_due():
            if traffic.has_moved():
                self.heard_at = now
            if not is_reading:  # the pong may be among what waits; once we read, the other end has a whole timeout
                self.waits_since = now
                traffic.clear_stall(now)

    @event(
        ignore(dead, because="it was declared dead"),
        row(awaiting_pong, to=STAY,          do=begin_to_wait, clause="LIVE-1 LIVE-2"),
        row(OTHERWISE,     to=awaiting_pong, do=begin_to_wait, clause="LIVE-1 LIVE-2"),
    )
    def ping_sent(self, now: float, counters: Counters | None = None) -> None:
        """A ping goes out now. ``counters`` as for `ticked`."""
        self.now = now
        self.traffic.look(now, counters)
        self.traffic.mark_ping()
        self.pongs_awaited += 1

    @event(
        row(awaiting_pong, to=idle,               do=report_latency, clause="OBS-3"),
        row(grace,         to=grace_without_ping, do=report_latency, clause="OBS-3"),
        ignore(OTHERWISE, because="it answers a ping before the last, whose round trip is not known"),
    )
    def pong_received(self, now: float) -> None:
        """A pong that is awaited has arrived, and was `heard`."""
        self.now = now
        self.pongs_awaited -= 1

    @event(
        ignore(dead, because="it was declared dead"),
        ignore(PINGED, unless=is_ping_lost, because="a ping is in flight, and its pong may still come"),
        row(OTHERWISE, to=STAY, do=send_ping, clause="OBS-3"),
    )
    def ping_requested(self, now: float) -> None:
        """The user asked for a ping: `ping()`."""
        self.now = now

    # fmt: on

    # Helpers

    def patience_ends(self) -> float:
        """Until when the ping in flight may be answered; later if what flows may stand before it elsewhere."""
        keepalive, flowed_at = self.keepalive, self.traffic.flowed_at
        ends = self.waits_since + keepalive.timeout
        return ends if flowed_at is None else max(ends, flowed_at + keepalive.interval + keepalive.timeout)

    def set_deadline(self, due: float) -> None:
        """Until something is due; but look now and then, if bytes wait."""
        if not self.keepalive.enabled:
            return
        self.deadline = self.due = due
        if self.traffic.is_waiting:
            self.deadline = min(due, self.now + min(self.keepalive.interval, self.keepalive.timeout) / LOOKS)
