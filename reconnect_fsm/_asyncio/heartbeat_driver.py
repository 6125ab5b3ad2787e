"""The driver of a `HeartbeatFSM`: fires its events, and runs its effects on one socket (LIVE-1, LIVE-2)."""

from __future__ import annotations

from typing import Protocol

from reconnect_fsm._asyncio.dispatcher import Dispatcher
from reconnect_fsm._asyncio.slots import EMPTY, Slot
from reconnect_fsm._asyncio.timers import Timer, TimerQueue
from reconnect_fsm._asyncio.transport.socket import Socket
from reconnect_fsm.effects import DeclareDead, ReportLatency
from reconnect_fsm.heartbeat_fsm import HeartbeatFSM
from reconnect_fsm.keepalive import PING, Counters, Keepalive
from reconnect_fsm.status import CloseInfo, FaultKind

__all__ = ["HeartbeatDriver", "HeartbeatOwner"]

PING_EARLY = 0.1  # seconds before its time that a ping may go out, together with another connection's


class HeartbeatOwner(Protocol):
    """The driver of the connection, as far as the heartbeat uses it."""

    dispatcher: Dispatcher

    @property
    def timers(self) -> TimerQueue | None:
        """The timers that all connections of the loop share."""
        ...

    def now(self) -> float:
        """The loop's time, in seconds."""
        ...

    def pong_missed(self, info: CloseInfo) -> None:
        """The connection is dead."""
        ...


class HeartbeatDriver:
    """The heartbeat of one socket, from `StartKeepalive` to `StopKeepalive`."""

    __slots__ = ("_heartbeat", "_keepalive", "_owner", "_socket", "_timer")

    def __init__(self, owner: HeartbeatOwner, keepalive: Keepalive, socket: Socket) -> None:
        self._owner = owner
        self._keepalive = keepalive
        self._socket = socket
        self._heartbeat = HeartbeatFSM(keepalive, owner.now(), socket.counters())
        self._timer: Slot[Timer] = EMPTY
        self._set_timer()

    @property
    def awaits_pong(self) -> bool:
        """Whether the next "pong" is the answer to a ping, and no message."""
        return self._heartbeat.awaits_pong

    def heard(self) -> None:
        """The server has sent something."""
        self._heartbeat.heard(self._owner.now())

    def ponged(self) -> float | None:
        """A pong has come. Returns the round trip in seconds, if it is known."""
        for effect in self._heartbeat.pong_received(self._owner.now()):
            if isinstance(effect, ReportLatency):
                self._set_timer()
                return effect.seconds
        return None

    def ping(self) -> None:
        """Send a ping now, unless one that may still be answered is in flight."""
        if self._heartbeat.ping_requested(self._owner.now()):
            self._send_ping(self._socket.counters())

    def stop(self) -> None:
        """Send no more pings."""
        timers, timer = self._owner.timers, self._timer.empty()
        if timers is not None and timer is not None:
            timers.cancel(timer)

    def _set_timer(self) -> None:
        self.stop()
        loop, timers, due = self._owner.dispatcher.loop, self._owner.timers, self._heartbeat.deadline
        if loop is not None and timers is not None and due is not None:
            # Pings of many connections go out together; the time that a pong may take is not shortened by that.
            slack = 0.0 if self._heartbeat.in_flight else min(PING_EARLY, 0.1 * self._keepalive.interval)
            self._timer = Slot(timers.call_at(loop, due, self._timer_fired, slack=slack))

    def _timer_fired(self, timer: Timer) -> None:
        self._owner.dispatcher.post(self._timer.run, self._tick, timer.when)

    def _tick(self, due: float) -> None:
        heartbeat, socket = self._heartbeat, self._socket
        now, counters = max(self._owner.now(), due), socket.counters()  # asyncio may run a timer a little early
        is_reading = socket.is_reading(counters) and not self._owner.dispatcher.has_work
        for effect in heartbeat.ticked(now, counters, is_reading):
            if isinstance(effect, DeclareDead):
                socket.blame()
                self._owner.pong_missed(CloseInfo(1006, effect.why, socket.lasted, fault=FaultKind.LIVENESS))
                return
            self._send_ping(counters)
        self._set_timer()

    def _send_ping(self, counters: Counters | None) -> None:
        self._heartbeat.ping_sent(self._owner.now(), counters)
        self._set_timer()
        self._socket.send_urgent(PING)
