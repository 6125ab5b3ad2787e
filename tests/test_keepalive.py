"""Ping and pong: when a connection is dead, and when it only seems so. Time is a number here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconnect_fsm.keepalive import PING, PONG, Beat, Heartbeat, Keepalive

NAN, INF = float("nan"), float("inf")
CONFIG = Keepalive(interval=20.0, timeout=10.0)


def heartbeat(config: Keepalive = CONFIG, now: float = 0.0) -> Heartbeat:
    """The pulse of a socket that has just opened."""
    return Heartbeat(config, now)


def pinged() -> Heartbeat:
    """The same with a ping that went out on time, at 20 s."""
    beat = heartbeat()
    assert beat.tick(20.0) is Beat.PING
    beat.sent(20.0)
    return beat


def run(beat: Heartbeat, until: float, late: float = 0.0) -> float | None:
    """Call `tick` at each deadline, or ``late`` seconds after it, and send what it asks for; when it says DEAD."""
    while beat.deadline is not None and beat.deadline + late <= until:
        now = beat.deadline + late
        match beat.tick(now):
            case Beat.DEAD:
                return now
            case Beat.PING:
                beat.sent(now)
            case Beat.WAIT:
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
        assert beat.tick(now) is Beat.PING
        beat.sent(now)
        sent.append(now)
        assert beat.ponged(now + 3.0) == 3.0
    assert sent == [20.0, 40.0, 60.0, 80.0]


def test_live_1_the_ping_is_the_protocols() -> None:
    """LIVE-1: text frames, these words."""
    assert (PING, PONG) == ("ping", "pong")


def test_a_configuration_cannot_be_changed_behind_a_clients_back() -> None:
    """Its numbers were checked when it was made."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.timeout = 0.0  # type: ignore[misc]


def test_what_is_to_be_done_has_a_name() -> None:
    """In logs and in failing tests: the name in lower case."""
    assert [each.value for each in Beat] == ["ping", "wait", "dead"]


def test_live_1_defaults() -> None:
    """LIVE-1 LIVE-2: on, so that a dead connection is noticed within half a minute."""
    assert Keepalive() == Keepalive(interval=20.0, timeout=10.0, enabled=True)


def test_a_tick_before_its_time_waits() -> None:
    """Timers may run early, by a clock's grain."""
    beat = heartbeat()
    assert beat.tick(19.999) is Beat.WAIT
    assert beat.deadline == 20.0
    beat = pinged()
    assert beat.tick(29.999) is Beat.WAIT
    assert beat.deadline == 30.0


def test_live_2_a_missing_pong_is_death() -> None:
    """LIVE-2: at the deadline, not before."""
    beat = pinged()
    assert beat.deadline == 30.0
    assert beat.tick(30.0) is Beat.DEAD


def test_a_pong_is_a_round_trip_and_ends_the_wait() -> None:
    """OBS-3: the seconds since the ping; the next ping is due when it was."""
    beat = pinged()
    assert beat.in_flight
    assert beat.ponged(20.25) == 0.25
    assert not beat.in_flight
    assert beat.deadline == 40.0


def test_a_pong_that_nobody_asked_for_is_no_round_trip() -> None:
    """OBS-3: it proves life, and nothing else."""
    beat = heartbeat()
    assert beat.ponged(5.0) is None
    assert beat.deadline == 20.0
    beat = pinged()
    beat.ponged(21.0)
    assert beat.ponged(22.0) is None


def test_live_1_as_many_pongs_are_owed_as_pings_went_out() -> None:
    """LIVE-1: a late one may still come after the next ping, and one more after that; then none is owed."""
    beat = heartbeat()
    assert beat.is_owed is False
    beat.sent(20.0)
    beat.heard(25.0)
    beat.sent(40.0)
    assert beat.is_owed is True
    assert beat.ponged(41.0) == 1.0
    assert beat.is_owed is True
    assert beat.ponged(42.0) is None
    assert beat.is_owed is False


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
            verdict = beat.tick(now)
            assert verdict is not Beat.DEAD
            if verdict is Beat.PING:
                beat.sent(now)
                pings += 1
    assert pings >= 15
    while (verdict := beat.tick(now)) is not Beat.DEAD:
        if verdict is Beat.PING:
            beat.sent(now)
        assert beat.deadline is not None
        now = beat.deadline
    assert now - heard_at <= 30.0


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 10.0), (5.0, 10.0), (1.0, 30.0)])
def test_live_2_the_bound_holds_after_traffic_without_pongs(interval: float, timeout: float) -> None:
    """LIVE-2: interval + timeout after the last byte at the latest, also where the timeout is the longer."""
    beat = heartbeat(Keepalive(interval=interval, timeout=timeout))
    now = interval
    assert beat.tick(now) is Beat.PING
    beat.sent(now)
    heard_at = now + timeout / 2
    beat.heard(heard_at)
    while True:
        assert beat.deadline is not None
        now = max(now, beat.deadline)
        verdict = beat.tick(now)
        if verdict is Beat.DEAD:
            break
        if verdict is Beat.PING:
            beat.sent(now)
    assert now - heard_at <= interval + timeout


def test_a_ping_without_a_pong_is_overdue_after_the_timeout() -> None:
    """A user's ping may then be followed by another."""
    beat = heartbeat(Keepalive(enabled=False, timeout=10.0))
    assert not beat.is_overdue(100.0)
    beat.sent(100.0)
    assert not beat.is_overdue(110.0)
    assert beat.is_overdue(110.1)
    beat.ponged(110.2)
    assert not beat.is_overdue(200.0)


def test_live_1_whether_pongs_come_at_all_is_known_from_the_first() -> None:
    """LIVE-1: a server that never answered the text ``ping`` may not know it; no other traffic counts for that."""
    beat = pinged()
    beat.heard(20.1)
    assert beat.was_ever_answered is False
    beat.ponged(20.2)
    assert beat.was_ever_answered is True
    beat.sent(40.0)
    assert beat.was_ever_answered is True


def test_a_slow_pong_delays_the_next_ping() -> None:
    """With an interval shorter than the timeout, the next ping is due as soon as the pong is there."""
    beat = heartbeat(Keepalive(interval=5.0, timeout=10.0))
    assert beat.tick(5.0) is Beat.PING
    beat.sent(5.0)
    beat.ponged(12.0)
    assert beat.deadline == 10.0
    assert beat.tick(12.0) is Beat.PING


# ----------------------------------------------------------------------------------------------------- what proves life


def test_live_2_any_traffic_proves_life() -> None:
    """LIVE-2: a server busy sending may be slow to answer; it is asked again when it is time, and then counts."""
    beat = pinged()
    beat.heard(27.0)
    assert beat.tick(30.0) is Beat.WAIT
    assert beat.deadline == 40.0
    assert beat.tick(40.0) is Beat.PING
    beat.sent(40.0)
    assert beat.tick(50.0) is Beat.DEAD


def test_live_2_traffic_before_the_ping_proves_nothing_after_it() -> None:
    """LIVE-2: the ping has its whole timeout, and no more."""
    beat = heartbeat()
    beat.heard(19.0)
    assert beat.tick(20.0) is Beat.PING
    beat.sent(20.0)
    assert beat.tick(30.0) is Beat.DEAD


def test_live_2_traffic_at_the_moment_of_the_ping_proves_nothing_after_it() -> None:
    """LIVE-2: where the clock's grain does not tell which was first, it is taken for the older."""
    beat = heartbeat()
    beat.heard(20.0)
    beat.sent(20.0)
    assert beat.tick(30.0) is Beat.DEAD


# --------------------------------------------------------------------------------------------------------------- stalls


@pytest.mark.parametrize(("timeout", "grace"), [(10.0, 2.0), (1.0, 1.0)])
def test_live_2_after_a_stall_there_is_one_grace_period(timeout: float, grace: float) -> None:
    """LIVE-2: the pong may have long arrived, unread; two seconds, or the timeout if that is less, to read it."""
    beat = heartbeat(Keepalive(interval=20.0, timeout=timeout))
    beat.tick(20.0)
    beat.sent(20.0)
    assert beat.tick(90.0) is Beat.WAIT
    assert beat.deadline == 90.0 + grace
    assert beat.tick(90.0 + grace) is Beat.DEAD


def test_live_2_there_is_no_second_grace_period() -> None:
    """LIVE-2: also if the grace period's own timer is late."""
    beat = pinged()
    assert beat.tick(90.0) is Beat.WAIT
    assert beat.tick(200.0) is Beat.DEAD


def test_live_2_the_pong_is_read_within_the_grace_period() -> None:
    """LIVE-2: no false death; the next ping is overdue, and the next stall gets a grace period of its own."""
    beat = pinged()
    assert beat.tick(90.0) is Beat.WAIT
    assert beat.ponged(90.1) == pytest.approx(70.1)
    assert beat.deadline == 40.0
    assert beat.tick(90.1) is Beat.PING
    beat.sent(90.1)
    assert beat.tick(150.0) is Beat.WAIT


@pytest.mark.parametrize(("stalled", "verdict"), [(0.0, Beat.WAIT), (9.99, Beat.WAIT), (10.0, Beat.DEAD)])
def test_live_2_who_talks_but_reads_nothing_is_dead(stalled: float, verdict: Beat) -> None:
    """LIVE-2: what we send has been stuck for the whole timeout; no traffic makes up for that."""
    beat = pinged()
    beat.heard(25.0)
    assert beat.is_unread(stalled) is (verdict is Beat.DEAD)
    assert beat.tick(30.0, stalled) is verdict


def test_live_2_who_reads_nothing_is_dead_before_the_first_ping() -> None:
    """LIVE-2: a ping would only join what is stuck already."""
    assert heartbeat().tick(20.0, 10.0) is Beat.DEAD


def test_live_2_after_a_stall_of_ours_what_is_stuck_has_its_grace_period_too() -> None:
    """LIVE-2: it may have been we who did not write; once only, unless the other end was seen to be alive since."""
    beat = heartbeat()
    assert beat.tick(22.0, 12.0) is Beat.WAIT
    assert beat.deadline == 24.0
    assert beat.tick(24.0, 14.0) is Beat.DEAD
    beat = pinged()
    beat.heard(25.0)
    assert beat.tick(32.0, 12.0) is Beat.WAIT
    assert beat.tick(34.0) is Beat.WAIT  # it reads again
    assert beat.deadline == 40.0
    assert beat.tick(42.0, 12.0) is Beat.WAIT
    assert beat.deadline == 44.0
    assert beat.tick(44.0, 14.0) is Beat.DEAD


def test_live_2_traffic_within_the_grace_period_counts_too() -> None:
    """LIVE-2: the server is alive; the pong has a timeout from then on, and a new stall its grace."""
    beat = pinged()
    assert beat.tick(90.0) is Beat.WAIT
    beat.heard(91.0)
    assert beat.tick(92.0) is Beat.PING
    beat.sent(92.0)
    assert beat.tick(150.0) is Beat.WAIT
    assert beat.tick(152.0) is Beat.DEAD


@pytest.mark.parametrize(("late", "verdict"), [(0.0, Beat.DEAD), (1.0, Beat.DEAD), (1.01, Beat.WAIT)])
def test_live_2_a_timer_that_is_a_little_late_is_on_time(late: float, verdict: Beat) -> None:
    """LIVE-2: up to a tenth of the timeout; a busy loop is no stall."""
    assert pinged().tick(30.0 + late) is verdict


def test_live_2_between_two_looks_a_ping_waits_on() -> None:
    """LIVE-2: with an interval shorter than the timeout it is looked at every interval, and no ping follows it."""
    beat = heartbeat(Keepalive(interval=4.0, timeout=10.0))
    beat.sent(4.0)
    for now, then in ((8.0, 12.0), (12.0, 14.0)):
        assert beat.deadline == now
        assert beat.tick(now) is Beat.WAIT
        assert beat.deadline == then
    assert beat.tick(14.0) is Beat.DEAD


def test_a_ping_that_is_sent_late_has_its_whole_timeout() -> None:
    """A stall before the ping costs the server nothing."""
    beat = heartbeat()
    assert beat.tick(500.0) is Beat.PING
    beat.sent(500.0)
    assert beat.deadline == 510.0
    assert beat.tick(510.0) is Beat.DEAD


# ----------------------------------------------------------------------------------------------------------- the user's


def test_a_users_ping_counts_as_ours() -> None:
    """It has the same timeout, gives a round trip, and puts ours off by an interval."""
    beat = heartbeat()
    beat.sent(7.0)
    assert beat.in_flight
    assert beat.deadline == 17.0
    assert beat.ponged(8.0) == 1.0
    assert beat.deadline == 27.0
    beat.sent(9.0)
    assert beat.tick(19.0) is Beat.DEAD


def test_switched_off_there_are_no_deadlines() -> None:
    """LIVE-1: for servers that do not answer; a user's ping still gives a round trip, and never a death."""
    beat = heartbeat(Keepalive(enabled=False))
    assert beat.deadline is None
    beat.sent(7.0)
    assert (beat.in_flight, beat.deadline) == (True, None)
    assert beat.ponged(9.0) == 2.0
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
                beat.sent(now)
        else:
            beat.heard(now)
            last = now
            if what == "pong" and beat.in_flight:
                beat.ponged(now)
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
        assert beat.tick(now) is Beat.PING
        beat.sent(now)
        assert beat.deadline is not None
        now = min(now + part * config.timeout, beat.deadline)
        assert beat.ponged(now) is not None


@pytest.mark.parametrize("name", ["interval", "timeout"])
@pytest.mark.parametrize("value", [0, -1, NAN, INF, -INF])
def test_numbers_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    """With the way to switch pings off."""
    with pytest.raises(ValueError, match=rf"^{name} must be .* not {value!r}; enabled=False"):
        Keepalive(**{name: value})


def test_live_2_who_is_silent_is_told_from_who_talks_and_does_not_read() -> None:
    """LIVE-2: dead either way; the words for it differ."""
    beat = heartbeat()
    assert not beat.is_silent
    beat = pinged()
    assert beat.is_silent
    beat.heard(20.1)
    assert not beat.is_silent
