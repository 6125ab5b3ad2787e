"""The herd: the simulation against what can be worked out by hand, and its pictures."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from node_peers import requires_node, skip_without_node
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import StartTimer, StopTimer
from reconnect_fsm.machine import ANY, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, FailureKind
from reconnect_fsm.testing.herd import (
    BIN,
    POLICIES,
    AfterTheCap,
    DecorrelatedJitter,
    EqualJitter,
    FullJitter,
    HerdRun,
    ReferenceFormula,
    draw_svg,
    draw_text,
    simulate_herd,
)

CONNECTED, DISCONNECTED = ClientStatus.CONNECTED, ClientStatus.DISCONNECTED
SVG = "{http://www.w3.org/2000/svg}"


def exact(random: Random) -> RetryPolicy:
    """0.5, 1, 2, 4, 8, 15, 15 … seconds: no chance, so that all can be worked out by hand."""
    return RetryPolicy(jitter=0, random=random)


def busy(answer: float, status: int = 503) -> AttemptFailure:
    return AttemptFailure(FailureKind.ANSWER, str(status), http_status=status, retry_after=answer)


def attempts(run: HerdRun) -> dict[float, int]:
    """When there were attempts, and how many."""
    return {round(number * BIN, 6): count for number, count in enumerate(run.attempts) if count}


# ------------------------------------------------------------------------------------------------------- closed forms


def test_one_client_comes_at_the_times_that_its_policy_says() -> None:
    """0.5, then 1, then 2 seconds later; the server is back after 3 s, so the attempt at 3.5 s is accepted."""
    run = simulate_herd(exact, clients=1, outage=3)
    assert attempts(run) == {0.5: 1, 1.5: 1, 3.5: 1}
    assert list(run.back) == [3.5]
    assert run.back_after(1) == 0.5
    assert (run.total_attempts, sum(run.accepted), sum(run.refused), run.timed_out) == (3, 1, 2, 0)
    assert run.statuses == {CONNECTED: 1}
    assert simulate_herd(exact, clients=1, outage=3.5).back_after(1) == 0  # the outage ends in the very moment


def test_a_server_that_is_silent_costs_each_attempt_its_timeout() -> None:
    """An attempt that nobody answers ends after connect_timeout, and only then does the next wait begin."""
    run = simulate_herd(exact, clients=1, outage=6, while_down=None, connect_timeout=2)
    assert attempts(run) == {0.5: 1, 3.5: 1, 7.5: 1}  # 0.5 + 2 + 1 = 3.5; 3.5 + 2 + 2 = 7.5
    assert run.timed_out == 2


def test_retry_after_is_obeyed() -> None:
    """D-HTTP: no sooner than Retry-After; the policy's own wait where that is longer."""
    run = simulate_herd(exact, clients=1, outage=3, while_down=busy(4))
    assert list(run.back) == [4.5]
    short = simulate_herd(exact, clients=1, outage=3, while_down=busy(0.75))
    assert attempts(short) == {0.5: 1, 1.5: 1, 3.5: 1}


def test_a_herd_that_is_asked_to_stay_away_comes_back_spread() -> None:
    """D-HTTP: the same Retry-After for everybody is stretched by each client's jitter, here to 10 to 15 s."""
    run = simulate_herd(POLICIES["ours"], clients=200, outage=3, while_down=busy(10))
    assert run.total_attempts == 400
    assert 10.375 <= run.back[0] < 11
    assert 15 < run.back[-1] <= 15.625


def test_a_backlog_is_served_one_after_the_other() -> None:
    """Ten clients come at once: one is accepted at once, three wait their turn, six are refused and come again."""
    run = simulate_herd(exact, clients=10, outage=0, accepts_per_second=2, backlog=3)
    assert list(run.back)[:4] == [0.5, 1.0, 1.5, 2.0]
    assert sum(run.refused[:10]) == 6
    assert attempts(run)[1.5] == 6


def test_a_turn_is_spent_on_a_client_that_has_given_up() -> None:
    """Five of ten wait longer than their timeout; the server works for them all the same, then for the others."""
    run = simulate_herd(exact, clients=10, outage=0, accepts_per_second=2, backlog=100, connect_timeout=2)
    assert list(run.back)[:5] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert sum(run.refused[:30]) == 5  # given up at 2.5 s, after 2 s
    assert run.back[5] == 5.5  # the server has been at those five until then; they came again at 3.5 s
    assert len(run.back) == 10
    assert run.timed_out == sum(run.refused) > 5


def test_refusals_may_be_appointments() -> None:
    """A refusal that is a function is told the time: here each client gets a second of its own to come back in."""
    seconds: Iterator[int] = iter(range(1, 100))
    asked: list[float] = []

    def appointment(now: float) -> AttemptFailure:
        asked.append(now)
        return busy(next(seconds))

    run = simulate_herd(exact, clients=5, outage=0, accepts_per_second=1, backlog=0, over_capacity=appointment)
    assert asked == [0.5] * 4
    assert list(run.back) == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_nobody_is_lost_while_the_server_stays() -> None:
    """A blip, and a server without limits: one attempt each, within the spread of the first wait."""
    run = simulate_herd(POLICIES["ours"], clients=2_000, outage=0)
    assert run.total_attempts == 2_000
    assert 0.375 <= run.back[0] < run.back[-1] <= 0.625
    assert run.peak == max(run.attempts) == pytest.approx(2_000 * 0.1 / 0.25, rel=0.1)


# --------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("name", POLICIES)
def test_everybody_comes_back_once(name: str) -> None:
    """Each attempt is accepted or refused, each client accepted once, and all are connected in the end."""
    run = simulate_herd(POLICIES[name], clients=500, outage=10, accepts_per_second=50, backlog=5)
    assert sum(run.accepted) == len(run.back) == 500
    assert sum(run.attempts) == sum(run.accepted) + sum(run.refused)
    assert run.statuses == {CONNECTED: 500}
    assert list(run.back) == sorted(run.back)
    assert run.back[0] >= 10


@pytest.mark.parametrize("backlog", [0, 7, 400])
def test_the_capacity_is_never_exceeded(backlog: int) -> None:
    """In no window of time, wherever it begins, are more accepted than the server can; and all are in the end."""
    run = simulate_herd(POLICIES["ours"], clients=400, outage=2, accepts_per_second=100, backlog=backlog)
    apart = [later - sooner for sooner, later in pairwise(run.back)]
    assert min(apart) >= 1 / 100 - 1e-9
    assert len(run.back) == 400
    at_99 = run.back_after(0.99)
    assert at_99 is not None
    assert at_99 >= 395 / 100


def test_a_run_is_a_function_of_its_seed() -> None:
    """The same seed gives the same run, to the last bit; another one another."""
    first, second, other = (
        simulate_herd(POLICIES["ours"], clients=200, outage=5, accepts_per_second=40, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first.back != other.back


def test_the_curves_are_equally_long_and_end_with_the_last_event() -> None:
    """They can be laid over one another; no empty hour is drawn."""
    run = simulate_herd(exact, clients=3, outage=0, accepts_per_second=1)
    assert len(run.attempts) == len(run.accepted) == len(run.refused) == 26  # attempts at 0.5 s, accepted until 2.5 s


# ------------------------------------------------------------------------------------------ the real policy and machine


def test_attempts_are_limited_as_the_policy_says() -> None:
    """RETRY-2: after three retries each, all are disconnected, and none comes back."""
    run = simulate_herd(lambda random: RetryPolicy(max_attempts=3, random=random), clients=50, outage=30)
    assert run.total_attempts == 150
    assert run.statuses == {DISCONNECTED: 50}
    assert (run.back_after(0.5), run.back_after(1)) == (None, None)


def test_fatal_answers_stop_the_herd() -> None:
    """RETRY-3: a 401 is not asked for twice; a fatal close code not even once."""
    refused = simulate_herd(POLICIES["ours"], clients=50, outage=30, while_down=busy(0, status=401))
    assert (refused.total_attempts, refused.statuses) == (50, {DISCONNECTED: 50})
    closed = simulate_herd(POLICIES["ours"], clients=50, outage=30, loss=CloseInfo(4401))
    assert (closed.attempts, closed.peak, closed.statuses) == ((), 0, {DISCONNECTED: 50})


@pytest.mark.parametrize(("stable_after", "forgotten"), [(5.0, True), (0.0, True), (float("inf"), False)])
def test_the_backoff_is_reset_by_a_connection_that_lasts(stable_after: float, forgotten: bool) -> None:
    """D-STABLE: the machines are told that time has passed, and count anew only if the policy says so."""
    machines: list[ClientFSM] = []

    class Kept(ClientFSM):
        def __init__(self, policy: RetryPolicy | None = None) -> None:
            super().__init__(policy)
            machines.append(self)

    simulate_herd(lambda random: RetryPolicy(stable_after=stable_after, random=random), clients=20, outage=5, fsm=Kept)
    assert len(machines) == 20
    assert all((each.attempt == 0) is forgotten for each in machines)


def test_a_subclass_of_the_machine_is_simulated_as_it_is() -> None:
    """A state of its own, with a wait of its own: all stay away for a minute."""

    class PatientFSM(ClientFSM):
        def is_being_updated(self) -> bool:
            return self.loss.code == 4503

        def wait_a_minute(self) -> None:
            self.emit(StartTimer(60.0))

        updating = state(
            ClientStatus.RECONNECTING, enter=wait_a_minute, exit=ClientFSM.stop_retry_timer, like=ClientFSM.waiting
        )
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=updating, when=is_being_updated))

    run = simulate_herd(exact, clients=4, outage=30, fsm=PatientFSM, loss=CloseInfo(4503))
    assert attempts(run) == {60.0: 4}
    assert run.statuses == {CONNECTED: 4}


def test_a_client_without_a_connection_loses_none() -> None:
    """A machine that went away before the loss is not told of it; nor of a timer that it had stopped."""

    class Shy(ClientFSM):
        timer_fired = ClientFSM.timer_fired.first(
            row(ClientFSM.connected, to=ClientFSM.waiting, silences="D-STABLE"),
            row(ClientFSM.disconnected, to=ClientFSM.error),
        )
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.waiting, to=ClientFSM.error, silences=ANY))

    def seldom(random: Random) -> RetryPolicy:
        return RetryPolicy(base=7200, cap=7200, jitter=0, random=random)

    shy = simulate_herd(seldom, clients=2, outage=0, fsm=Shy, at_most=3606)  # it left 3595 s before the loss
    assert (attempts(shy), shy.statuses) == ({3605.0: 2}, {CONNECTED: 2})

    def patient(random: Random) -> RetryPolicy:
        return RetryPolicy(stable_after=3700, random=random)

    stopped = simulate_herd(patient, clients=2, outage=0, fsm=Shy, loss=CloseInfo(4401))
    assert stopped.statuses == {DISCONNECTED: 2}


def test_a_timer_ends_with_what_it_was_for() -> None:
    """One that the machine stops, and one that it forgets to stop when it ends."""

    class Sulky(ClientFSM):
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=ClientFSM.paused, silences=ANY))
        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.paused, to=ClientFSM.error, silences=ANY))

    def patient(random: Random) -> RetryPolicy:
        return RetryPolicy(stable_after=3700, random=random)

    sulky = simulate_herd(patient, clients=1, outage=0, fsm=Sulky)
    assert sulky.statuses == {ClientStatus.RECONNECTING: 1}

    class Careless(ClientFSM):
        def dial(self) -> None:
            super().dial()
            self.emit(StartTimer(5.0))

        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.disconnected, to=ClientFSM.error, silences=ANY))

    careless = simulate_herd(exact, clients=1, outage=9, while_down=busy(0, status=401), fsm=Careless)
    assert careless.statuses == {DISCONNECTED: 1}


def test_an_attempt_that_the_machine_cancels_is_over() -> None:
    """Nothing is heard of it any more, neither an answer nor a timeout."""

    class Hasty(ClientFSM):
        def dial(self) -> None:
            super().dial()
            self.emit(StartTimer(1.0))

        def cancel_dial(self) -> None:
            super().cancel_dial()
            self.emit(StopTimer())

        timer_fired = ClientFSM.timer_fired.first(
            row(ClientFSM.retrying, to=ClientFSM.waiting, do=ClientFSM.count_attempt)
        )

    run = simulate_herd(exact, clients=1, outage=6, while_down=None, connect_timeout=1.5, fsm=Hasty)
    assert attempts(run) == {0.5: 1, 2.5: 1, 5.5: 1, 10.5: 1}  # each wait is a second longer
    assert (sum(run.refused), run.timed_out, sum(run.accepted)) == (0, 0, 1)


def test_a_client_is_back_once_however_often_it_comes() -> None:
    """Who leaves again and comes again is accepted again, but was back already."""

    class Restless(ClientFSM):
        def has_been_away(self) -> bool:
            return self.attempt > 0

        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.connected, to=ClientFSM.waiting, when=has_been_away))

    run = simulate_herd(exact, clients=2, outage=0, fsm=Restless, at_most=10)
    assert attempts(run) == {0.5: 2, 6.0: 2}
    assert sum(run.accepted) == 4
    assert list(run.back) == [0.5, 0.5]


def test_who_is_not_back_in_time_is_left_out() -> None:
    """The simulation ends at_most seconds after the loss, whoever still waits."""
    run = simulate_herd(exact, clients=10, outage=0, accepts_per_second=1, backlog=100, at_most=4)
    assert list(run.back) == [0.5, 1.5, 2.5, 3.5]
    assert run.statuses == {CONNECTED: 4, ClientStatus.RECONNECTING: 6}
    assert run.back_after(0.4) == 3.5
    assert run.back_after(0.5) is None


def test_a_policy_that_does_not_wait_is_stopped() -> None:
    """A thousand retries in no time would never end; the error says where to look."""

    @dataclass(frozen=True)
    class Frantic(RetryPolicy):
        def delay(self, attempt: int) -> float:
            return 0.0

    with pytest.raises(RuntimeError, match=r"delay\(\) hardly waits"):
        simulate_herd(lambda random: Frantic(random=random), clients=1, outage=1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"clients": -1}, "clients"),
        ({"outage": -0.1}, "outage"),
        ({"outage": float("nan")}, "outage"),
        ({"backlog": -1}, "backlog"),
        ({"accepts_per_second": 0}, "accepts_per_second"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"at_most": float("inf")}, "at_most"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any], named: str) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match=named):
        simulate_herd(exact, **{"clients": 1, "outage": 1, **wrong})


def test_shares_and_peaks() -> None:
    """Shares are of all clients, from above 0 to 1; peaks can be looked for from a time on."""
    run = simulate_herd(exact, clients=100, outage=1, accepts_per_second=10, backlog=100, connect_timeout=100)
    assert run.back_after(0.01) == pytest.approx(0.5)  # the attempt at 1.5 s
    assert run.back_after(0.07) == pytest.approx(0.5 + 0.6)
    assert run.back_after(1) == pytest.approx(0.5 + 9.9)
    assert (run.peak, run.peak_after(1), run.peak_after(2)) == (100, 100, 0)
    for share in (0, 1.01):
        with pytest.raises(ValueError, match="share"):
            run.back_after(share)


# ------------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize(
    ("kind", "attempt", "least", "most"),
    [
        (ReferenceFormula, 1, 0.375, 0.625),
        (ReferenceFormula, 6, 12, 15),
        (ReferenceFormula, 7, 15, 15),
        (AfterTheCap, 1, 0.375, 0.625),
        (AfterTheCap, 7, 11.25, 18.75),
        (FullJitter, 1, 0, 0.5),
        (FullJitter, 7, 0, 15),
        (EqualJitter, 1, 0.25, 0.5),
        (EqualJitter, 7, 7.5, 15),
        (DecorrelatedJitter, 1, 0.5, 1.5),
    ],
)
def test_each_formula_keeps_to_its_range(kind: type[RetryPolicy], attempt: int, least: float, most: float) -> None:
    """And uses all of it, within a percent of its width."""
    policy = kind(random=Random(1))
    waits = [policy.delay(attempt) for _ in range(2_000)]
    slack = 0.01 * (most - least) + 1e-9
    assert least <= min(waits) <= least + slack
    assert most - slack <= max(waits) <= most


def test_a_decorrelated_wait_depends_on_the_one_before() -> None:
    """Never more than three times the wait before, nor than the cap; it begins anew with the first attempt."""
    policy = DecorrelatedJitter(random=Random(1))
    for _ in range(100):
        waits = [policy.delay(attempt) for attempt in range(1, 9)]
        assert waits[0] <= 1.5
        assert all(0.5 <= later <= min(3 * sooner, 15) for sooner, later in pairwise(waits))


@requires_node
def test_the_reference_formula_is_that_of_the_reference_client() -> None:
    """The function of the npm package itself, given the same random numbers, says the same to the millisecond."""
    skip_without_node()
    program = """
    import { LoroWebsocketClient as Client } from "loro-websocket/client";
    const client = Object.create(Client.prototype);
    client.ops = {};
    const points = [0, 0.1, 0.25, 0.5, 0.77, 0.999999];
    const waits = points.map((point) => {
        Math.random = () => point;
        return Array.from({ length: 12 }, (_, each) => client.computeBackoffDelay(each + 1));
    });
    console.log(JSON.stringify({ points, waits }));
    """
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "--input-type=module", "-e", program],
        cwd=Path(__file__).parents[1] / "node",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = json.loads(done.stdout)

    class Fixed(Random):
        point = 0.0

        def random(self) -> float:
            return self.point

    for point, waits in zip(told["points"], told["waits"], strict=True):
        source = Fixed()
        source.point = point
        policy = ReferenceFormula(random=source)
        assert [policy.delay(each) * 1000 for each in range(1, 13)] == pytest.approx(waits, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def runs() -> dict[str, HerdRun]:
    return {
        name: simulate_herd(POLICIES[name], clients=300, outage=10, accepts_per_second=50, backlog=5)
        for name in ("ours", "reference")
    }


def test_the_curve_in_the_terminal_is_what_was_counted() -> None:
    """Golden: ten clients at 0.5 s, then nothing, then ten at 1.5 s, with the server back after a second."""
    run = simulate_herd(exact, clients=10, outage=1)
    assert draw_text({"exact": run}, width=40, height=2).split("\n") == [
        "exact",
        "server's peak 10 · 99 % back in 0.5 s",
        "   10 ┤           ██                  ██",
        "      ┤           ██                  ██",
        "    1 ┼────────────────────▲────────────",
        "       0 s                 1 s",
        "attempts per 100 ms (log scale), by",
        "seconds since the loss; ▲ the server is",
        "back: the times beside the names count",
        "from there",
    ]


@pytest.mark.parametrize("width", [40, 72, 200])
def test_the_terminal_curve_keeps_to_the_width(runs: dict[str, HerdRun], width: int) -> None:
    """No line is longer, no control character is in it, and each curve is as high as asked."""
    text = draw_text(runs, width=width, height=3)
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert all(each.isprintable() for each in lines)
    assert sum("┤" in each for each in lines) == 3 * len(runs)
    assert sum("▲" in each for each in lines) == len(runs) + 1  # and the legend


def test_curves_share_their_scales(runs: dict[str, HerdRun]) -> None:
    """The shorter run is drawn as long as the longer one, so that they can be compared by eye."""
    alone, beside = draw_text({"ours": runs["ours"]}), draw_text(runs)
    assert len(runs["ours"].attempts) < len(runs["reference"].attempts)
    where = [line.index("▲") for line in beside.split("\n") if line.endswith("─") and "▲" in line]
    assert len(set(where)) == 1
    assert where[0] < alone.split("\n")[5].index("▲")


def test_no_peak_is_lost_where_a_column_is_many_bins() -> None:
    """Each column shows the busiest of its bins: six attempts are six bars of full height."""
    run = simulate_herd(exact, clients=10, outage=20)
    assert len(run.attempts) > 300
    assert draw_text({"exact": run}, width=40, height=1).split("\n")[2].count("█") == 6


def test_one_attempt_alone_is_still_seen() -> None:
    """A logarithmic scale begins at one, which must not look like none."""
    run = simulate_herd(lambda random: RetryPolicy(max_attempts=1, random=random), clients=1, outage=9)
    assert "▁" in draw_text({"one": run})


def test_nothing_to_draw_is_refused() -> None:
    """And so is a curve of no height."""
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_text({})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_svg({})
    with pytest.raises(ValueError, match="1 character high"):
        draw_text({"none": simulate_herd(exact, clients=1, outage=0)}, height=0)


def test_a_herd_that_never_tries_can_be_drawn() -> None:
    """Empty curves are curves."""
    run = simulate_herd(POLICIES["ours"], clients=5, outage=3, loss=CloseInfo(4401))
    assert "99 % never came back" in draw_text({"closed": run})
    ElementTree.fromstring(draw_svg({"closed": run}))


def test_the_svg_says_what_it_shows(runs: dict[str, HerdRun]) -> None:
    """It is well-formed, has a title, names every policy with its figures, and knows light and dark."""
    named = {"ours <&>": runs["ours"], "reference": runs["reference"]}
    svg = draw_svg(named, title="A herd & its server")
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") == "A herd & its server"
    words = [each.text for each in root.iter(f"{SVG}text")]
    assert {"ours <&>", "reference", "10", "seconds since the connections were lost"} <= set(words)
    for run in runs.values():
        assert any(f"server's peak {run.peak_after(10):,}" in str(each) for each in words)
    assert "prefers-color-scheme:dark" in svg
    assert svg.count("http") == 1  # the name of the language, which nobody fetches


def test_the_svg_draws_the_curve_to_scale() -> None:
    """The highest column of attempts reaches the line of its power of ten, and the last one the right edge."""
    run = simulate_herd(exact, clients=100, outage=0)
    root = ElementTree.fromstring(draw_svg({"exact": run}))
    paths = {
        kind: [each.get("d", "") for each in root.iter(f"{SVG}path") if each.get("class") == kind]
        for kind in ("grid", "tried", "let-in")
    }
    top, middle, bottom = sorted(float(each.split()[1].split("h")[0]) for each in paths["grid"])
    assert middle == pytest.approx((top + bottom) / 2)
    assert paths["tried"] == paths["let-in"]
    (curve,) = paths["tried"]
    assert f"V{top:.1f}" in curve
    assert curve.startswith(f"M40 {bottom:g}H")
    assert curve.endswith(f"H470V{bottom:g}z")


# ----------------------------------------------------------------------------------------------------------- in full


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_hundred_thousand(figures: Any) -> None:
    """100,000 clients, 30 s, 2,000 accepts a second: all come back, and the reference formula takes twice as long."""
    runs = {
        name: simulate_herd(POLICIES[name], clients=100_000, outage=30, accepts_per_second=2_000)
        for name in ("ours", "reference")
    }
    took = {}
    for name, run in runs.items():
        assert len(run.back) == 100_000
        assert all(later - sooner >= 1 / 2_000 - 1e-9 for sooner, later in pairwise(run.back))
        took[name] = run.back_after(0.99) or float("inf")
        figures(f"100,000 clients, {name}", attempts=run.total_attempts, seconds_until_99_percent=round(took[name], 1))
    assert took["reference"] > 2 * took["ours"]


def test_the_benchmark_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For few clients: every figure is filled in, and every picture is there."""
    source = Path(__file__).parents[2] / "benchmarks" / "herd.py"
    spec = importlib.util.spec_from_file_location("herd_benchmark", source)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, benchmark)  # dataclasses look their module up
        spec.loader.exec_module(benchmark)
        benchmark.main(["--clients", "50", "--jobs", "1", "--out", str(tmp_path)])
    page = (tmp_path / "herd.md").read_text()
    assert page.startswith("# The herd\n")
    assert re.findall(r"\{[^}\"]*\}", page.split("```")[0]) == []
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert len(pictures) == 3
    for each in pictures:
        ElementTree.parse(tmp_path / each)
    assert "| ours |" in capsys.readouterr().out
