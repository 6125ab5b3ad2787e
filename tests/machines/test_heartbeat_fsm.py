"""Ping and pong: when a connection is dead, and when it only seems so. Time is a number here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from golden import Story
from reconnect_fsm.effects import DeclareDead, Effect, ReportLatency, SendPing
from reconnect_fsm.heartbeat_fsm import HeartbeatFSM, Liveness
from reconnect_fsm.keepalive import Counters, Keepalive
from reconnect_fsm.testing.machines import check_machine

CONFIG = Keepalive(interval=20.0, timeout=10.0)


def tick(beat: HeartbeatFSM, *args: Any, **more: Any) -> type[Effect] | None:
    """Fire `ticked`: the kind of effect that it asks for, if any."""
    effects = beat.ticked(*args, **more)
    assert len(effects) <= 1
    return type(effects[0]) if effects else None


def pong(beat: HeartbeatFSM, now: float) -> float | None:
    """Fire `pong_received`: the round trip, if it is known."""
    effects = beat.pong_received(now)
    assert effects in ([], [ReportLatency(now - beat.sent_at)])
    return now - beat.sent_at if effects else None


def is_write_stalled(beat: HeartbeatFSM, now: float) -> bool:
    """Whether the other end takes nothing of what is sent."""
    return beat.traffic.is_write_stalled(now, beat.keepalive)


def heartbeat(config: Keepalive = CONFIG, now: float = 0.0) -> HeartbeatFSM:
    """The pulse of a socket that has just opened."""
    return HeartbeatFSM(config, now)


def pinged(counters: Counters | None = None) -> HeartbeatFSM:
    """The same with a ping that went out on time, at 20 s; that much had moved at the opening, and no more."""
    beat = HeartbeatFSM(CONFIG, 0.0, counters)
    assert tick(beat, 20.0, counters) is SendPing
    beat.ping_sent(20.0, counters)
    return beat


def look_on(beat: HeartbeatFSM, until: float, at: Callable[[float], Counters]) -> type[Effect] | None:
    """Look whenever it is time to, as bytes move; what is said at the end."""
    while beat.deadline is not None and beat.deadline < until:
        now = beat.deadline
        assert tick(beat, now, at(now)) is None
    return tick(beat, until, at(until))


def run(beat: HeartbeatFSM, until: float, late: float = 0.0) -> float | None:
    """Tick at each deadline, or ``late`` seconds after it, and send the pings; return when it was declared dead."""
    while beat.deadline is not None and beat.deadline + late <= until:
        now = beat.deadline + late
        effect = tick(beat, now)
        if effect is DeclareDead:
            return now
        if effect is SendPing:
            beat.ping_sent(now)
        assert beat.deadline > now
    return None


# ------------------------------------------------------------------------------------------------------------- the beat


def test_live_1_pings_go_out_periodically() -> None:
    """LIVE-1: every interval, whenever the pong came."""
    beat = heartbeat()
    sent = []
    for _ in range(4):
        assert beat.deadline is not None
        now = beat.deadline
        assert tick(beat, now) is SendPing
        beat.ping_sent(now)
        sent.append(now)
        assert pong(beat, now + 3.0) == 3.0
    assert sent == [20.0, 40.0, 60.0, 80.0]


def test_a_tick_before_its_time_waits() -> None:
    """Timers may run early, by a clock's grain."""
    beat = heartbeat()
    assert tick(beat, 19.999) is None
    assert beat.deadline == 20.0
    beat = pinged()
    assert tick(beat, 29.999) is None
    assert beat.deadline == 30.0


def test_live_2_a_missing_pong_is_death() -> None:
    """LIVE-2: at the deadline, not before."""
    beat = pinged()
    assert beat.deadline == 30.0
    assert tick(beat, 30.0) is DeclareDead


def test_a_pong_is_a_round_trip_and_ends_the_wait() -> None:
    """OBS-3: the seconds since the ping; the next ping is due when it was."""
    beat = pinged()
    assert beat.in_flight
    assert pong(beat, 20.25) == 0.25
    assert not beat.in_flight
    assert beat.deadline == 40.0


def test_a_pong_that_nobody_asked_for_is_no_round_trip() -> None:
    """OBS-3: it proves life, and nothing else."""
    beat = heartbeat()
    assert pong(beat, 5.0) is None
    assert beat.deadline == 20.0
    beat = pinged()
    beat.pong_received(21.0)
    assert pong(beat, 22.0) is None


def test_live_1_as_many_pongs_are_owed_as_pings_went_out() -> None:
    """LIVE-1: a late one may still come after the next ping, and one more after that; then none is owed."""
    beat = heartbeat()
    assert beat.awaits_pong is False
    beat.ping_sent(20.0)
    beat.heard(25.0)
    beat.ping_sent(40.0)
    assert beat.awaits_pong is True
    assert pong(beat, 41.0) == 1.0
    assert beat.awaits_pong is True
    assert pong(beat, 42.0) is None
    assert beat.awaits_pong is False


def test_live_1_a_pong_that_traffic_makes_up_for_is_given_up() -> None:
    """LIVE-1 LIVE-2: pings go on though a pong was lost, one at a time, and silence is noticed within the bound."""
    beat = pinged()  # at 20
    pings, heard_at = 1, 20.0
    now = 20.0
    while now < 400:
        now += 1.0
        beat.heard(now)
        heard_at = now
        assert beat.deadline is not None
        if now >= beat.deadline:
            verdict = tick(beat, now)
            assert verdict is not DeclareDead
            if verdict is SendPing:
                beat.ping_sent(now)
                pings += 1
    assert pings >= 15
    while (verdict := tick(beat, now)) is not DeclareDead:
        if verdict is SendPing:
            beat.ping_sent(now)
        assert beat.deadline is not None
        now = beat.deadline
    assert now - heard_at <= 30.0


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 10.0), (5.0, 10.0), (1.0, 30.0)])
def test_live_2_the_bound_holds_after_traffic_without_pongs(interval: float, timeout: float) -> None:
    """LIVE-2: interval + timeout after the last byte at the latest, also where the timeout is the longer."""
    beat = heartbeat(Keepalive(interval=interval, timeout=timeout))
    now = interval
    assert tick(beat, now) is SendPing
    beat.ping_sent(now)
    heard_at = now + timeout / 2
    beat.heard(heard_at)
    while True:
        assert beat.deadline is not None
        now = max(now, beat.deadline)
        verdict = tick(beat, now)
        if verdict is DeclareDead:
            break
        if verdict is SendPing:
            beat.ping_sent(now)
    assert now - heard_at <= interval + timeout


def test_a_ping_by_hand_goes_out_if_none_is_in_flight_whose_pong_may_still_come() -> None:
    """A user's ping may then be followed by another."""
    beat = heartbeat(Keepalive(enabled=False, timeout=10.0))
    assert beat.ping_requested(100.0) == [SendPing()]
    beat.ping_sent(100.0)
    assert beat.ping_requested(110.0) == []
    assert beat.ping_requested(110.1) == [SendPing()]
    beat.pong_received(110.2)
    assert beat.ping_requested(110.3) == [SendPing()]


def test_live_1_whether_pongs_come_at_all_is_known_from_the_first() -> None:
    """LIVE-1: a server that never answered the text ``ping`` may not know it; no other traffic counts for that."""
    beat = pinged()
    beat.heard(20.1)
    assert beat.was_ever_answered is False
    beat.pong_received(20.2)
    assert beat.was_ever_answered is True
    beat.ping_sent(40.0)
    assert beat.was_ever_answered is True


def test_a_slow_pong_delays_the_next_ping() -> None:
    """With an interval shorter than the timeout, the next ping is due as soon as the pong is there."""
    beat = heartbeat(Keepalive(interval=5.0, timeout=10.0))
    assert tick(beat, 5.0) is SendPing
    beat.ping_sent(5.0)
    beat.pong_received(12.0)
    assert beat.deadline == 10.0
    assert tick(beat, 12.0) is SendPing


# ----------------------------------------------------------------------------------------------------- what proves life


def test_live_2_any_traffic_proves_life() -> None:
    """LIVE-2: a server busy sending may be slow to answer; it is asked again when it is time, and then counts."""
    beat = pinged()
    beat.heard(27.0)
    assert tick(beat, 30.0) is None
    assert beat.deadline == 40.0
    assert tick(beat, 40.0) is SendPing
    beat.ping_sent(40.0)
    assert tick(beat, 50.0) is DeclareDead


def test_live_2_traffic_before_the_ping_proves_nothing_after_it() -> None:
    """LIVE-2: the ping has its whole timeout, and no more."""
    beat = heartbeat()
    beat.heard(19.0)
    assert tick(beat, 20.0) is SendPing
    beat.ping_sent(20.0)
    assert tick(beat, 30.0) is DeclareDead


def test_live_2_traffic_at_the_moment_of_the_ping_proves_nothing_after_it() -> None:
    """LIVE-2: where the clock's grain does not tell which was first, it is taken for the older."""
    beat = heartbeat()
    beat.heard(20.0)
    beat.ping_sent(20.0)
    assert tick(beat, 30.0) is DeclareDead


# --------------------------------------------------------------------------------------------------------------- stalls


@pytest.mark.parametrize(("timeout", "grace"), [(10.0, 2.0), (1.0, 1.0)])
def test_live_2_after_a_stall_there_is_one_grace_period(timeout: float, grace: float) -> None:
    """LIVE-2: the pong may have long arrived, unread; two seconds, or the timeout if that is less, to read it."""
    beat = heartbeat(Keepalive(interval=20.0, timeout=timeout))
    tick(beat, 20.0)
    beat.ping_sent(20.0)
    assert tick(beat, 90.0) is None
    assert beat.deadline == 90.0 + grace
    assert tick(beat, 90.0 + grace) is DeclareDead


def test_live_2_there_is_no_second_grace_period() -> None:
    """LIVE-2: also if the grace period's own timer is late."""
    beat = pinged()
    assert tick(beat, 90.0) is None
    assert tick(beat, 200.0) is DeclareDead


def test_live_2_the_pong_is_read_within_the_grace_period() -> None:
    """LIVE-2: no false death; the next ping is overdue, and the next stall gets a grace period of its own."""
    beat = pinged()
    assert tick(beat, 90.0) is None
    assert pong(beat, 90.1) == pytest.approx(70.1)
    assert beat.deadline == 40.0
    assert tick(beat, 90.1) is SendPing
    beat.ping_sent(90.1)
    assert tick(beat, 150.0) is None


STUCK = Counters(acked=500, waiting=100)


def test_live_2_who_was_heard_in_its_grace_period_has_another_before_the_next_ping_too() -> None:
    """LIVE-2: with a long interval; two stalls of ours, and nothing was taken between them."""
    beat = heartbeat(Keepalive(interval=100.0, timeout=10.0))
    assert tick(beat, 100.0, STUCK) is SendPing
    beat.ping_sent(100.0, STUCK)
    assert tick(beat, 115.0, STUCK) is None
    beat.heard(116.0)
    assert tick(beat, 117.0, STUCK) is None
    assert tick(beat, 215.0, STUCK) is None
    assert is_write_stalled(beat, 215.0)
    assert tick(beat, 217.0, STUCK) is DeclareDead


def talks_on(beat: HeartbeatFSM, counters: Counters, *, since: float, until: float) -> float | None:
    """Somebody says something just before each deadline; nothing else changes. When it is found dead."""
    while beat.deadline is not None and (now := max(beat.deadline, since)) <= until:
        beat.heard(now - 0.1)
        effect = tick(beat, now, counters)
        if effect is DeclareDead:
            return now
        if effect is SendPing:
            beat.ping_sent(now, counters)
    return None


def test_live_2_who_talks_but_whose_kernel_takes_nothing_is_dead() -> None:
    """LIVE-2: nothing was taken for interval + timeout, and something waits; then no traffic makes up for it."""
    assert talks_on(pinged(STUCK), STUCK, since=20.0, until=100.0) == 30.0
    beat = heartbeat()  # what had been taken when it was opened is not known
    assert talks_on(beat, STUCK, since=0.0, until=100.0) == 50.0
    assert beat.traffic.write_stall(50.0) == 30.0


def test_live_2_who_took_something_before_the_first_look_has_the_whole_time_from_there() -> None:
    """LIVE-2: joins, say, that were sent and taken after the connection was opened."""
    beat = HeartbeatFSM(CONFIG, 0.0, Counters(acked=100))
    assert talks_on(beat, STUCK, since=20.0, until=100.0) == 50.0


def test_live_2_who_sends_much_and_does_not_read_meanwhile_is_alive() -> None:
    """LIVE-2: a server that writes 4 MiB at 20 kB/s and reads nothing until that is done; then it must read."""
    beat, now, received = pinged(STUCK), 20.0, 0
    while now < 220:
        assert beat.deadline is not None
        now = beat.deadline
        received += 200_000
        counters = Counters(received, 500, 100)
        verdict = tick(beat, now, counters)
        assert verdict is not DeclareDead
        if verdict is SendPing:
            beat.ping_sent(now, counters)
    dead = talks_on(beat, Counters(received, 500, 100), since=now, until=now + 100)
    assert dead is not None
    assert 30 <= dead - now <= 50


def test_live_2_a_stall_is_one_only_if_it_is_seen_for_the_whole_timeout() -> None:
    """LIVE-2: an idle link, then bytes wait at one look: they may have been handed to the network just before it."""
    beat = pinged(STUCK)
    assert not is_write_stalled(beat, 29.9)
    quiet = Counters(acked=500)
    beat = pinged(quiet)
    beat.heard(29.0)
    assert tick(beat, 30.0, quiet) is None
    for now in (40.0, 49.9):
        beat.ping_sent(now, STUCK)
        assert not is_write_stalled(beat, now)


@pytest.mark.parametrize("taken", [Counters(acked=501, waiting=100), Counters(acked=600), None])
def test_live_2_who_took_something_meanwhile_is_not_deaf(taken: Counters | None) -> None:
    """LIVE-2: a single byte, or all; or it cannot be known any more. Counted anew from there."""
    beat = pinged(STUCK)
    beat.heard(29.0)
    tick(beat, 30.0, taken)
    beat.heard(39.0)
    assert tick(beat, 40.0, taken) is SendPing
    beat.ping_sent(40.0, taken)
    beat.heard(49.0)
    assert tick(beat, 50.0, taken) is None
    assert not is_write_stalled(beat, 50.0)


def test_live_2_bytes_just_handed_to_the_network_are_no_stall() -> None:
    """LIVE-2: the first message is in flight when one looks, at every look: each time it is another one."""
    beat = heartbeat()
    for count in range(1, 100):
        assert beat.deadline is not None
        now = beat.deadline
        in_flight = Counters(acked=100 * count, waiting=17)
        assert tick(beat, now, in_flight) is SendPing
        beat.ping_sent(now, in_flight)
        beat.heard(now + 0.1)
        beat.pong_received(now + 0.1)


def test_live_2_after_a_stall_of_ours_what_is_stuck_has_its_grace_period_too() -> None:
    """LIVE-2: it may have been we who did not write; once only, unless the other end was seen to be alive since."""
    beat = pinged(STUCK)
    beat.heard(25.0)
    assert look_on(beat, 28.0, lambda _: STUCK) is None
    assert tick(beat, 32.0, STUCK) is None
    assert beat.deadline == 34.0
    assert tick(beat, 34.0, STUCK) is DeclareDead
    beat = pinged(STUCK)
    beat.heard(25.0)
    assert tick(beat, 32.0, STUCK) is None
    assert look_on(beat, 40.0, lambda _: Counters(acked=600, waiting=100)) is SendPing  # it reads again


# ----------------------------------------------------------------------------------------------------- bytes that move

KIND_OF_LINK = {"64 kbit/s": 8_000, "20 kB/s": 20_000, "just enough": 600}


class Wire:
    """A link of so many bytes a second each way, and what its ends have to say; it answers pings in their turn.

    A proxy before it takes what is sent, at once, until it holds ``held``.
    """

    def __init__(self, rate: float, config: Keepalive = CONFIG, round_trip: float = 0.2, held: float = 0.0) -> None:
        self.beat = heartbeat(config)
        self.held = held
        self.rate, self.round_trip = rate, round_trip
        self.now = 0.0
        self.up = self.down = 0.0  # bytes still to be carried
        self.sent = self.arrived = self.passed_on = 0.0
        self.pings: list[float] = []  # how many bytes must have been taken before each of them arrives
        self.pongs: list[float] = []  # when each of them arrives, unless a message is on its way
        self.deaths: list[float] = []
        self.broken = False

    def counters(self) -> Counters:
        return Counters(received=int(self.arrived), acked=int(self.sent), waiting=math.ceil(self.up))

    def run(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, until it is found dead."""
        end = self.now + seconds
        while self.now < end and not self.deaths:
            self.now += step
            if not self.broken:
                self._carry(step)
            if self.beat.deadline is not None and self.now >= self.beat.deadline:
                verdict = tick(self.beat, self.now, self.counters())
                if verdict is DeclareDead:
                    self.deaths.append(self.now)
                elif verdict is SendPing:
                    self.beat.ping_sent(self.now, self.counters())
                    self.up += 10
                    self.pings.append(self.sent + self.up)

    def _carry(self, step: float) -> None:
        carried = min(self.sent + self.up - self.passed_on, self.rate * step)
        self.passed_on += carried
        taken = min(self.up, self.held + self.passed_on - self.sent)
        self.up, self.sent = self.up - taken, self.sent + taken
        while self.pings and self.passed_on >= self.pings[0] - 0.01:
            self.pings.pop(0)
            self.pongs.append(self.now + self.round_trip)
        carried = min(self.down, self.rate * step)
        self.down, self.arrived = self.down - carried, self.arrived + carried
        while self.pongs and self.pongs[0] <= self.now and self.down == 0:
            self.pongs.pop(0)
            self.beat.heard(self.now)
            if self.beat.awaits_pong:
                self.beat.pong_received(self.now)


@pytest.mark.parametrize("link", KIND_OF_LINK)
@pytest.mark.parametrize("way", ["up", "down", "both"])
@pytest.mark.parametrize("begins", [0.0, 19.9, 20.1, 29.9])
def test_live_2_four_mebibytes_on_a_slow_link(link: str, way: str, begins: float) -> None:
    """LIVE-2: with the defaults, in both directions: no pong comes for minutes, and the link is alive all the time."""
    wire = Wire(KIND_OF_LINK[link])
    wire.run(begins)
    wire.up += 4 * 1024 * 1024 * (way != "down")
    wire.down += 4 * 1024 * 1024 * (way != "up")
    wire.run(4 * 1024 * 1024 / wire.rate + 100)
    assert wire.deaths == []
    assert wire.up == wire.down == 0


@pytest.mark.parametrize("held", [65_536, 200_000, 400_000])
@given(begins=st.floats(0, 60))
@settings(max_examples=20)
def test_live_2_a_proxy_that_holds_much_before_a_slow_link(held: int, begins: float) -> None:
    """LIVE-2: all has been taken, our ping too, and it is still on its way: 20 s of 400 kB at 20 kB/s."""
    wire = Wire(20_000, held=held)
    wire.run(begins)
    wire.up += 4 * 1024 * 1024
    wire.run(400)
    assert wire.deaths == []
    assert wire.passed_on >= 4 * 1024 * 1024


@pytest.mark.parametrize("way", ["up", "down"])
@given(
    held=st.integers(0, 500_000),
    begins=st.floats(0, 60),
    breaks=st.floats(0, 100),
    size=st.integers(0, 8 * 1024 * 1024),
)
@settings(max_examples=50)
def test_live_2_a_link_that_breaks_is_noticed_in_time(
    way: str, held: int, begins: float, breaks: float, size: int
) -> None:
    """LIVE-2: 30 s after the last byte, whether bytes wait or not."""
    wire = Wire(20_000, held=held)
    wire.run(begins)
    setattr(wire, way, float(size))
    wire.run(breaks)
    wire.broken = True
    broke_at = wire.now
    wire.run(100)
    assert wire.deaths
    assert wire.deaths[0] - broke_at <= CONFIG.interval + CONFIG.timeout + 0.2  # a few steps of its clock


@pytest.mark.parametrize(("rate", "verdict"), [(499, DeclareDead), (500, None)])
@pytest.mark.parametrize("way", ["up", "down", "both"])
def test_live_2_the_least_rate(rate: int, verdict: type[Effect] | None, way: str) -> None:
    """LIVE-2: so many bytes a second, both ways together, over the time that the pong has."""
    beat = pinged(Counters(received=1_000, acked=1_000, waiting=1_000_000))
    share = rate * (0.5 if way == "both" else 1.0)

    def at(now: float) -> Counters:
        moved = int(share * (now - 20.0))
        up, down = moved * (way != "down"), moved * (way != "up")
        return Counters(1_000 + down, 1_000 + up, 1_000_000 - up)

    assert look_on(beat, 30.0, at) is verdict


def test_live_2_a_drip_is_no_sign_of_life() -> None:
    """LIVE-2: a hundred single bytes a second."""
    beat = pinged(Counters(received=500))
    assert tick(beat, 30.0, Counters(received=1_500)) is DeclareDead


def test_live_2_some_pings_are_no_sign_of_life_in_however_short_a_time() -> None:
    """LIVE-2: nor are the bytes of their TLS records."""
    config = Keepalive(interval=0.02, timeout=0.01)
    for size, verdict in ((255, DeclareDead), (256, None)):
        beat = heartbeat(config)
        assert tick(beat, 0.02, Counters()) is SendPing
        beat.ping_sent(0.02, Counters())
        assert tick(beat, 0.03, Counters(received=size)) is verdict


def test_live_2_a_kernel_that_takes_what_a_hanging_program_does_not_read() -> None:
    """LIVE-2: our ping was taken, and is not answered: what is taken behind it proves nothing, however much."""
    beat = pinged(Counters(acked=1_000, waiting=300))
    assert look_on(beat, 30.0, lambda now: Counters(acked=int(now) * 100_000)) is DeclareDead


def test_live_2_what_stands_before_the_ping_counts_once() -> None:
    """LIVE-2: looked at more than once within the timeout, it is used up."""
    config = Keepalive(interval=4.0, timeout=10.0)
    beat = heartbeat(config)
    assert tick(beat, 4.0, Counters()) is SendPing
    beat.ping_sent(4.0, Counters(waiting=10_000))
    assert tick(beat, 8.0, Counters(acked=10_000)) is SendPing  # alive, and time for the next
    beat.ping_sent(8.0, Counters(acked=10_000))
    for now in (12.0, 16.0):
        assert tick(beat, now, Counters(acked=int(now) * 10_000)) is None
    assert tick(beat, 18.0, Counters(acked=180_000)) is DeclareDead


def test_live_2_looks_while_bytes_wait_and_only_then() -> None:
    """LIVE-2: five in the time of a pong; an idle connection is looked at when a ping or a verdict is due."""
    looks = []
    beat = pinged(Counters(waiting=50_000))
    while beat.deadline is not None and beat.deadline < 27.0:
        looks.append(beat.deadline)
        left = max(50_000 - 10_000 * len(looks), 0)
        assert tick(beat, beat.deadline, Counters(acked=50_000 - left, waiting=left)) is None
    assert looks == [22.0, 24.0, 26.0]
    assert pinged(Counters()).deadline == 30.0


def test_live_2_what_was_taken_may_stand_before_the_ping_elsewhere() -> None:
    """LIVE-2: the ping has been taken, with much before it; then it has interval + timeout from the last of that."""

    def at(now: float) -> Counters:
        moved = min(int((now - 20) * 20_000), 60_000)  # until 23 s
        return Counters(acked=moved, waiting=60_000 - moved)

    beat = pinged(at(20.0))
    assert look_on(beat, 30.0, at) is None
    assert look_on(beat, 40.0, at) is SendPing
    beat.ping_sent(40.0, at(40.0))
    assert look_on(beat, 51.9, at) is None
    assert tick(beat, 52.0, at(52.0)) is DeclareDead  # seen at 24 s to have moved, and not said when since 22 s


def test_live_2_counters_that_go_back_prove_nothing() -> None:
    """LIVE-2: with the cost of TLS records taken off, what dripped in may be less than before."""
    beat = pinged(Counters(received=5_000, waiting=20_000))
    assert look_on(beat, 30.0, lambda now: Counters(3_000, int(now - 20) * 600, 14_000)) is None
    assert not beat.is_silent()
    beat = pinged(Counters(received=5_000))
    assert tick(beat, 30.0, Counters(received=0)) is DeclareDead


def test_live_2_something_must_have_waited_for_the_whole_timeout_however_long_nothing_was_taken() -> None:
    """LIVE-2: nothing was to be taken; and so long as nothing waits, nothing is stuck."""
    quiet = Counters(acked=500)
    beat = pinged(quiet)
    assert beat.traffic.write_stall(44.0) == 0.0
    beat.ping_sent(45.0, STUCK)
    assert not is_write_stalled(beat, 54.9)
    assert is_write_stalled(beat, 55.0)
    assert beat.traffic.write_stall(55.0) == 35.0  # when it was last looked at, nothing waited


def test_live_2_one_byte_that_waits_is_looked_at_and_may_be_stuck() -> None:
    """LIVE-2: it is no less stuck than many."""
    one = Counters(acked=500, waiting=1)
    assert pinged(one).deadline == 22.0
    assert talks_on(pinged(one), one, since=20.0, until=100.0) == 30.0


@pytest.mark.parametrize(("taken", "is_silent"), [(4_999, True), (5_000, False)])
def test_live_2_what_was_taken_before_the_ping_proves_life_at_the_least_rate(taken: int, is_silent: bool) -> None:
    """LIVE-2: 500 bytes a second over the time that the pong has, to the byte."""
    beat = pinged(Counters(waiting=10_000))
    assert look_on(beat, 30.0, lambda _: Counters(acked=taken, waiting=10_000 - taken)) is None
    assert beat.is_silent() is is_silent


def test_live_2_what_is_taken_behind_the_ping_is_not_taken_for_what_stood_before_it() -> None:
    """LIVE-2: 3,000 bytes stood before it, and are too few; however much is taken later."""
    beat = pinged(Counters(waiting=3_000))
    assert look_on(beat, 30.0, lambda now: Counters(acked=int(now - 20) * 1_500, waiting=3_000)) is None
    assert beat.is_silent()


@pytest.mark.parametrize(("taken", "verdict"), [(999, DeclareDead), (1_000, None)])
def test_live_2_what_flows_at_the_least_rate_between_two_looks_gives_the_ping_time(
    taken: int, verdict: type[Effect] | None
) -> None:
    """LIVE-2: 500 bytes a second, to the byte: they may stand before the ping once more."""
    beat = pinged(Counters(waiting=1_000))
    assert look_on(beat, 30.0, lambda _: Counters(acked=taken, waiting=1_000 - taken)) is verdict


def test_live_2_a_tick_before_its_time_is_no_look() -> None:
    """LIVE-2: the next look is when it was to be."""
    beat = pinged(Counters(waiting=50_000))
    assert beat.deadline == 22.0
    assert tick(beat, 21.9, Counters(waiting=50_000)) is None
    assert beat.deadline == 22.0


def test_live_2_what_moves_is_judged_when_a_verdict_is_due_and_not_at_each_look() -> None:
    """LIVE-2: at a rate that proves life for the first two seconds, and then no more."""
    beat = pinged(Counters(waiting=100))
    assert look_on(beat, 30.0, lambda _: Counters(received=1_200, waiting=100)) is DeclareDead


def test_live_2_what_was_taken_before_a_ping_by_hand_proves_nothing_after_it() -> None:
    """LIVE-2: bytes moved since the last look; those that still wait then are not taken any more."""
    beat = pinged(Counters())
    beat.heard(20.1)
    beat.pong_received(20.1)
    stuck = Counters(acked=9_000, waiting=6_000)
    beat.ping_sent(25.0, stuck)
    assert look_on(beat, 35.0, lambda _: stuck) is DeclareDead


def test_live_2_counters_that_come_to_be_known_later_say_nothing_of_what_stood_before_the_ping() -> None:
    """LIVE-2: one byte less than proves life, and one that was taken, nobody knows when it was written."""
    beat = pinged()
    assert tick(beat, 30.0, Counters(waiting=1), is_reading=False) is None
    assert look_on(beat, 40.0, lambda now: Counters(received=4_999 * (now == 40), acked=1)) is DeclareDead


def test_live_2_what_moved_before_the_ping_proves_nothing_after_it() -> None:
    """LIVE-2: between two pings, megabytes came; then the link broke."""
    beat = heartbeat()
    assert tick(beat, 20.0, Counters()) is SendPing
    beat.ping_sent(20.0, Counters())
    beat.heard(20.1)
    beat.pong_received(20.1)
    much = Counters(received=9_000_000)
    assert tick(beat, 40.0, much) is SendPing
    beat.ping_sent(40.0, much)
    assert tick(beat, 50.0, much) is DeclareDead
    beat = pinged(Counters())
    beat.heard(20.1)
    beat.pong_received(20.1)
    beat.ping_sent(39.9, much)  # by hand
    assert tick(beat, 49.9, much) is DeclareDead


# ------------------------------------------------------------------------------------------------ who does not read: we


def test_live_2_nobody_is_judged_while_we_do_not_read() -> None:
    """LIVE-2: however long that lasts; pings go on, and once we read, the other end has a whole timeout."""
    beat, now, pings = pinged(), 20.0, 0
    while now < 500:
        assert beat.deadline is not None
        now = beat.deadline
        verdict = tick(beat, now, is_reading=False)
        assert verdict is not DeclareDead
        if verdict is SendPing:
            beat.ping_sent(now)
            pings += 1
    assert pings >= 20
    read_at = now
    while (verdict := tick(beat, now)) is not DeclareDead:
        if verdict is SendPing:
            beat.ping_sent(now)
        assert beat.deadline is not None
        now = beat.deadline
    assert CONFIG.timeout <= now - read_at <= CONFIG.interval + CONFIG.timeout


def test_live_2_a_stall_is_not_counted_while_we_do_not_read() -> None:
    """LIVE-2: who waits for us to read may have stopped reading for it."""
    stuck = Counters(acked=500, waiting=100)
    beat = pinged(stuck)
    for now in (30.0, 40.0, 50.0, 60.0, 70.0):
        beat.heard(now - 1)
        verdict = tick(beat, now, stuck, is_reading=False)
        assert verdict is not DeclareDead
        if verdict is SendPing:
            beat.ping_sent(now, stuck)
    assert beat.traffic.write_stall(70.0) == 0.0


def test_live_2_a_stall_is_seen_anew_once_we_read() -> None:
    """LIVE-2: for the whole timeout, from the first look at which something waits."""
    beat = pinged(STUCK)
    beat.heard(29.0)
    assert tick(beat, 30.0, STUCK, is_reading=False) is None
    beat.ping_sent(55.0, STUCK)
    assert not is_write_stalled(beat, 64.9)
    assert is_write_stalled(beat, 65.0)


def test_live_2_traffic_within_the_grace_period_counts_too() -> None:
    """LIVE-2: the server is alive; the pong has a timeout from then on, and a new stall its grace."""
    beat = pinged()
    assert tick(beat, 90.0) is None
    beat.heard(91.0)
    assert tick(beat, 92.0) is SendPing
    beat.ping_sent(92.0)
    assert tick(beat, 150.0) is None
    assert tick(beat, 152.0) is DeclareDead


@pytest.mark.parametrize(("late", "verdict"), [(0.0, DeclareDead), (1.0, DeclareDead), (1.01, None)])
def test_live_2_a_timer_that_is_a_little_late_is_on_time(late: float, verdict: type[Effect] | None) -> None:
    """LIVE-2: up to a tenth of the timeout; a busy loop is no stall."""
    assert tick(pinged(), 30.0 + late) is verdict


def test_live_2_between_two_looks_a_ping_waits_on() -> None:
    """LIVE-2: with an interval shorter than the timeout it is looked at every interval, and no ping follows it."""
    beat = heartbeat(Keepalive(interval=4.0, timeout=10.0))
    beat.ping_sent(4.0)
    for now, then in ((8.0, 12.0), (12.0, 14.0)):
        assert beat.deadline == now
        assert tick(beat, now) is None
        assert beat.deadline == then
    assert tick(beat, 14.0) is DeclareDead


def test_a_ping_that_is_sent_late_has_its_whole_timeout() -> None:
    """A stall before the ping costs the server nothing."""
    beat = heartbeat()
    assert tick(beat, 500.0) is SendPing
    beat.ping_sent(500.0)
    assert beat.deadline == 510.0
    assert tick(beat, 510.0) is DeclareDead


# ----------------------------------------------------------------------------------------------------------- the user's


def test_a_users_ping_counts_as_ours() -> None:
    """It has the same timeout, gives a round trip, and puts ours off by an interval."""
    beat = heartbeat()
    beat.ping_sent(7.0)
    assert beat.in_flight
    assert beat.deadline == 17.0
    assert pong(beat, 8.0) == 1.0
    assert beat.deadline == 27.0
    beat.ping_sent(9.0)
    assert tick(beat, 19.0) is DeclareDead


def test_switched_off_there_are_no_deadlines() -> None:
    """LIVE-1: for servers that do not answer; a user's ping still gives a round trip, and never a death."""
    beat = heartbeat(Keepalive(enabled=False))
    assert beat.deadline is None
    beat.ping_sent(7.0)
    assert (beat.in_flight, beat.deadline) == (True, None)
    assert pong(beat, 9.0) == 2.0
    assert beat.deadline is None


# --------------------------------------------------------------------------------------------------------------- bounds

CONFIGS = st.builds(Keepalive, st.integers(1, 60), st.integers(1, 60))
HAPPENINGS = st.lists(st.tuples(st.integers(1, 100), st.sampled_from(["heard", "pong", "user's ping"])), max_size=20)


def live(config: Keepalive, happenings: list[tuple[int, str]], late: float = 0.0) -> tuple[float, float | None]:
    """A life of a socket: when it was last heard of, and when it was found dead."""
    beat, now, last = heartbeat(config), 0.0, 0.0
    for pause, what in happenings:
        now += pause
        dead = run(beat, now, late)
        if dead is not None:
            return last, dead
        if what == "user's ping":
            if not beat.in_flight:
                beat.ping_sent(now)
        else:
            beat.heard(now)
            last = now
            if what == "pong" and beat.in_flight:
                beat.pong_received(now)
    return last, run(beat, now + 10_000, late)


@given(CONFIGS, HAPPENINGS)
def test_live_2_no_half_open_connection_lasts_longer_than_interval_and_timeout(
    config: Keepalive, happenings: list[tuple[int, str]]
) -> None:
    """LIVE-2 OK-2: from the last sign of life to death, whatever came before."""
    last, dead = live(config, happenings)
    assert dead is not None
    assert config.timeout <= dead - last <= config.interval + config.timeout


@given(CONFIGS, HAPPENINGS, st.floats(0.001, 100))
def test_live_2_a_stalled_loop_adds_its_stalls_and_one_grace_period(
    config: Keepalive, happenings: list[tuple[int, str]], late: float
) -> None:
    """LIVE-2: with every timer late by as much; a ping, its verdict and the grace period are three."""
    last, dead = live(config, happenings, late)
    assert dead is not None
    assert dead - last <= config.interval + config.timeout + min(config.timeout, 2.0) + 3 * late + 1e-6


@given(CONFIGS, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_live_2_who_answers_in_time_lives(config: Keepalive, answers: list[float]) -> None:
    """LIVE-2: each ping is answered after a part of the timeout."""
    beat, now = heartbeat(config), 0.0
    for part in answers:
        assert beat.deadline is not None
        now = max(now, beat.deadline)
        assert tick(beat, now) is SendPing
        beat.ping_sent(now)
        assert beat.deadline is not None
        now = min(now + part * config.timeout, beat.deadline)
        assert pong(beat, now) is not None


# ------------------------------------------------------------------------------------------------------------ the words


def test_live_2_the_words_for_a_missing_pong() -> None:
    """LIVE-2: with a hint, if the server has never answered a ping."""
    beat = pinged()
    assert beat.is_silent()
    hint = " (or this server does not answer the text 'ping' with 'pong'; see Keepalive)"
    why = "no answer to a ping within 10 s: the connection is dead"
    assert beat.ticked(30.0) == [DeclareDead(why + hint)]
    beat = pinged()
    beat.pong_received(20.1)
    beat.ping_sent(40.0)
    assert beat.ticked(50.0) == [DeclareDead(why)]
    beat = heartbeat(Keepalive(timeout=0.25))
    beat.ping_sent(20.0)
    assert beat.ticked(20.25) == [DeclareDead(why.replace("10 s", "0.25 s") + hint)]


def test_live_2_the_words_for_a_peer_that_talks_and_does_not_read() -> None:
    """LIVE-2: dead either way; a peer that is silent as well has missed the ping."""
    beat = pinged(STUCK)
    beat.heard(29.0)
    assert not beat.is_silent()
    assert look_on(beat, 29.5, lambda _: STUCK) is None
    assert beat.ticked(30.0, STUCK) == [DeclareDead("the server has read nothing for 30 s: the connection is dead")]
    beat = heartbeat()
    assert not beat.is_silent()
    beat = pinged(STUCK)
    assert look_on(beat, 29.5, lambda _: STUCK) is None
    (dead,) = beat.ticked(30.0, STUCK)
    assert isinstance(dead, DeclareDead)
    assert dead.why.startswith("no answer to a ping within 10 s")


# ------------------------------------------------------------------------------------------------------------ the table


def test_a_dead_connection_stays_dead() -> None:
    """LIVE-2: whatever comes; the driver lets go of the heartbeat."""
    beat = pinged()
    assert tick(beat, 30.0) is DeclareDead
    assert beat.status is Liveness.DEAD
    assert not beat.in_flight
    for effects in (beat.ticked(60.0), beat.ping_sent(60.0), beat.pong_received(60.1), beat.ping_requested(90.0)):
        assert effects == []
    assert beat.state == "dead"


def test_what_is_known_of_the_other_end() -> None:
    """LIVE-2: alive, asked, doubted after a verdict that came late, dead."""
    beat = heartbeat()
    assert (beat.state, beat.status.value) == ("idle", "alive")
    beat.ping_sent(20.0)
    assert (beat.state, beat.status.value) == ("awaiting_pong", "asked")
    beat.ticked(90.0)
    assert (beat.state, beat.status.value) == ("grace", "doubted")
    beat.pong_received(90.1)
    assert (beat.state, beat.status.value) == ("grace_without_ping", "doubted")
    beat.ping_sent(95.0)
    assert (beat.state, beat.status.value) == ("awaiting_pong", "asked")
    beat.ticked(105.0)
    assert (beat.state, beat.status.value) == ("dead", "dead")


def test_live_2_no_second_grace_period_for_a_stall_that_goes_on_after_the_pong() -> None:
    """LIVE-2: the peer takes nothing, and the grace period of that verdict is used up; it counts, late as it is."""
    beat = HeartbeatFSM(Keepalive(interval=20.0, timeout=30.0), 0.0, STUCK)
    beat.ping_sent(85.0, STUCK)
    assert tick(beat, 115.0, STUCK) is None  # late
    beat.pong_received(116.0)
    assert beat.state == "grace_without_ping"
    assert tick(beat, 250.0, STUCK) is DeclareDead


def test_live_2_a_stall_that_is_seen_late_without_a_ping_in_flight_has_a_grace_period() -> None:
    """LIVE-2: it may have been this program that did not write."""
    beat = HeartbeatFSM(CONFIG, 0.0, STUCK)
    beat.ping_sent(5.0, STUCK)
    beat.pong_received(5.1)
    assert tick(beat, 50.0, STUCK) is None
    assert (beat.state, beat.deadline) == ("grace_without_ping", 52.0)
    assert tick(beat, 52.0, STUCK) is DeclareDead
    beat = HeartbeatFSM(CONFIG, 0.0, STUCK)
    beat.ping_sent(5.0, STUCK)
    beat.pong_received(5.1)
    assert tick(beat, 50.0, STUCK) is None
    assert tick(beat, 52.0, Counters(acked=600)) is SendPing  # it takes something again
    assert beat.state == "grace_without_ping"


def test_the_table_is_sound() -> None:
    """Every state is reached, every row fires, nothing raises; only a dead connection is left by nothing."""
    found = check_machine(
        HeartbeatFSM,
        make=lambda cls: cls(CONFIG, 0.0),
        arguments={
            "ticked": [(20.0, Counters()), (30.0, STUCK, False), (500.0,)],
            "ping_sent": [(20.0, Counters())],
            "pong_received": [(21.0,)],
            "ping_requested": [(30.0,)],
        },
        final=["dead"],
    )
    assert set(found.paths) == {"idle", "awaiting_pong", "grace", "grace_without_ping", "dead"}


# --------------------------------------------------------------------------------------------------------------- golden


def steady(story: Story) -> None:
    """Pings that are answered, one by hand among them."""
    story.tell("ticked", 20.0)
    story.tell("ping_sent", 20.0)
    story.tell("ping_requested", 20.05)
    story.tell("pong_received", 20.1)
    story.tell("ping_requested", 30.0)
    story.tell("ping_sent", 30.0)
    story.tell("pong_received", 30.25)
    story.tell("ticked", 49.9)
    story.tell("ticked", 50.0)


def half_open(story: Story) -> None:
    """The peer vanishes."""
    story.tell("ticked", 20.0)
    story.tell("ping_sent", 20.0)
    story.tell("pong_received", 20.1)
    story.tell("ticked", 40.0)
    story.tell("ping_sent", 40.0)
    story.tell("ticked", 50.0)
    story.tell("pong_received", 51.0)


def stalled_loop(story: Story) -> None:
    """This program stalls twice; the second time the pong does not come."""
    story.tell("ticked", 20.0)
    story.tell("ping_sent", 20.0)
    story.tell("ticked", 90.0)
    story.tell("pong_received", 90.1)
    story.tell("ticked", 92.0)
    story.tell("ping_sent", 92.0)
    story.tell("ticked", 150.0)
    story.tell("ticked", 152.0)


def slow_link(story: Story) -> None:
    """4 MiB go up at 20 kB/s, so that no pong can come; then the peer stops reading, but still sends."""
    much, stops_at = 4 * 1024 * 1024, 30.0
    beat = story.fsm = HeartbeatFSM(CONFIG, 0.0, Counters(waiting=much))
    while beat.state != "dead":
        assert beat.deadline is not None
        now = beat.deadline
        taken = int(20_000 * min(now, stops_at))
        counters = Counters(acked=taken, waiting=much - taken)
        if now > stops_at:
            beat.heard(now - 1)
        story.tell("ticked", now, counters)
        if "SendPing" in story.lines[-1]:
            story.tell("ping_sent", now, counters)


STORIES: list[Callable[[Story], None]] = [steady, half_open, stalled_loop, slow_link]


@pytest.mark.parametrize("tell", STORIES)
def test_golden_transcripts(tell: Callable[[Story], None]) -> None:
    """A typical story, line by line; see tests/golden for how to write it anew."""
    story = Story(heartbeat())
    tell(story)
    golden.check(f"heartbeat_{tell.__name__}", story)


def test_golden_transcripts_have_a_story_each() -> None:
    """No transcript is left of a story that is gone."""
    assert golden.names("heartbeat") == {f"heartbeat_{tell.__name__}" for tell in STORIES}
