"""When to try again, and when not to."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconnect_fsm.retry import FATAL_CLOSE_CODES, FATAL_CLOSE_REASONS, FATAL_HTTP_STATUSES, RetryPolicy
from reconnect_fsm.status import AttemptFailure, CloseInfo, FailureKind, StateChange, sanitized

POSITIVE = st.floats(1e-6, 1e6)
JITTERS = st.floats(0, 1, exclude_max=True)
ATTEMPTS = st.integers(1, 10**9)


class Always(random.Random):
    """A source that always gives the same point of the interval, from 0 to 1."""

    def __init__(self, point: float) -> None:
        super().__init__()
        self.point = point

    def random(self) -> float:
        return self.point


# --------------------------------------------------------------------------------------------------------------- delays


@given(base=POSITIVE, times=st.floats(1, 1e6), jitter=JITTERS, attempt=ATTEMPTS, seed=st.integers(0, 2**32))
def test_d_jitter_the_wait_is_what_the_formula_says(
    base: float, times: float, jitter: float, attempt: int, seed: int
) -> None:
    """D-JITTER: min(base · 2ⁿ, cap / (1 + jitter)) · uniform(1 - jitter, 1 + jitter), and never above the cap."""
    cap = base * times
    policy = RetryPolicy(base=base, cap=cap, jitter=jitter, random=random.Random(seed))
    centre = min(base * 2 ** min(attempt - 1, 60), cap / (1 + jitter))
    delay = policy.delay(attempt)
    spread = random.Random(seed).uniform(1 - jitter, 1 + jitter)
    assert delay == pytest.approx(centre * spread)
    assert centre * (1 - jitter) * (1 - 1e-12) <= delay <= min(centre * (1 + jitter) * (1 + 1e-12), cap)


@given(base=POSITIVE, times=st.floats(1, 1e6), jitter=JITTERS, attempt=ATTEMPTS)
def test_d_jitter_never_above_the_cap_to_the_last_bit(base: float, times: float, jitter: float, attempt: int) -> None:
    """D-JITTER: also where rounding would put it there."""
    cap = base * times
    assert RetryPolicy(base=base, cap=cap, jitter=jitter, random=Always(1.0)).delay(attempt) <= cap


@pytest.mark.parametrize(("point", "first", "late"), [(0.0, 0.375, 9.0), (0.5, 0.5, 12.0), (1.0, 0.625, 15.0)])
def test_d_jitter_the_defaults_at_both_ends(point: float, first: float, late: float) -> None:
    """D-JITTER RETRY-1: a quarter either way of half a second, and at the cap no more than it."""
    policy = RetryPolicy(random=Always(point))
    assert policy.delay(1) == pytest.approx(first)
    assert policy.delay(100) == pytest.approx(late)


def test_d_jitter_clients_do_not_pile_up_at_the_cap() -> None:
    """D-JITTER: a thousand late attempts are spread over the whole of 9 to 15 s."""
    policy = RetryPolicy(random=random.Random(1))
    delays = [policy.delay(attempt) for attempt in range(20, 1020)]
    assert len(set(delays)) == 1000
    assert max(delays) <= 15
    for low in range(9, 15):
        assert 100 < sum(low <= each < low + 1 for each in delays) < 250  # about a sixth


@pytest.mark.parametrize("attempt", [33, 1024, 1025, 10**9, 10**400])
def test_d_jitter_the_exponent_is_clamped(attempt: int) -> None:
    """D-JITTER: 2.0 ** 1024 would overflow, and a client may be at it for years."""
    assert RetryPolicy(jitter=0).delay(attempt) == 15
    assert RetryPolicy(jitter=0, base=1e300, cap=1e308).delay(attempt) <= 1e308
    assert RetryPolicy(jitter=0, base=1.0, cap=1e30).delay(attempt) == 2.0**32


@pytest.mark.parametrize("attempt", [1, 0, -5])
def test_the_first_attempt_waits_for_the_base(attempt: int) -> None:
    """Attempts count from 1; less is taken for the first."""
    assert RetryPolicy(jitter=0).delay(attempt) == 0.5


def test_d_jitter_a_seeded_source_repeats_itself() -> None:
    """D-JITTER: the source is given, not global: nothing else disturbs it, and it disturbs nothing else."""
    state = random.getstate()
    one, two = (RetryPolicy(random=random.Random(42)) for _ in range(2))
    first = []
    for attempt in range(1, 20):
        first.append(one.delay(attempt))
        random.seed(1)
    random.setstate(state)
    assert first == [two.delay(attempt) for attempt in range(1, 20)]
    assert random.getstate() == state


def test_d_jitter_two_policies_made_alike_do_not_wait_alike() -> None:
    """D-JITTER: all may share the system's source, which has no state, so that a fork does not double it."""
    one, two = RetryPolicy(), RetryPolicy()
    assert one.random is two.random
    assert isinstance(one.random, random.SystemRandom)
    assert [one.delay(9) for _ in range(5)] != [two.delay(9) for _ in range(5)]
    assert one == two == RetryPolicy(random=random.Random(1))  # how chance is drawn is no part of what was decided
    assert "random" not in repr(one)


# --------------------------------------------------------------------------------------------------------- Retry-After


@given(asked=st.floats(0, 300), jitter=JITTERS, seed=st.integers(0, 2**32))
def test_d_http_no_sooner_than_asked_and_not_much_later(asked: float, jitter: float, seed: int) -> None:
    """D-HTTP: never a moment sooner, and at most (1 + 2 · jitter) times as long; what was not asked for is nothing."""
    policy = RetryPolicy(jitter=jitter, random=random.Random(seed))
    assert asked <= policy.no_sooner(asked) <= asked * (1 + 2 * jitter) * (1 + 1e-12)
    drawn = policy.random.getstate()
    assert policy.no_sooner(0.0) == 0.0
    assert policy.random.getstate() == drawn  # where nothing is asked for, a seeded run goes on as ever


@pytest.mark.parametrize(("point", "wait"), [(0.0, 60.0), (0.5, 75.0), (1.0, 90.0)])
def test_d_http_the_defaults_at_both_ends(point: float, wait: float) -> None:
    """D-HTTP: what the server asked for, and half as long again."""
    assert RetryPolicy(random=Always(point)).no_sooner(60.0) == pytest.approx(wait)


def test_d_http_without_jitter_it_is_what_was_asked_for() -> None:
    """D-HTTP: to the last bit, for those who want it."""
    assert [RetryPolicy(jitter=0).no_sooner(asked) for asked in (0.0, 0.1, 7.0, 300.0)] == [0.0, 0.1, 7.0, 300.0]


def test_d_http_a_herd_told_the_same_comes_back_one_by_one() -> None:
    """D-HTTP: a thousand clients told to stay away for a minute are spread over half a minute after it."""
    policy = RetryPolicy(random=random.Random(1))
    waits = [policy.no_sooner(60.0) for _ in range(1000)]
    assert len(set(waits)) == 1000
    for low in range(60, 90, 5):
        assert 100 < sum(low <= each < low + 5 for each in waits) < 250  # about a sixth


def test_retry_1_defaults() -> None:
    """RETRY-1 RETRY-2 D-STABLE: on, from 0.5 s to 15 s, 25 % either way, for ever, reset after 5 s and when online."""
    policy = RetryPolicy()
    assert policy.enabled
    assert (policy.base, policy.cap, policy.jitter) == (0.5, 15.0, 0.25)
    assert policy.max_attempts is None
    assert policy.stable_after == 5.0
    assert policy.reset_on_online


def test_a_policy_cannot_be_changed_behind_a_clients_back() -> None:
    """It is frozen; `dataclasses.replace` makes another, with the same source."""
    policy: Any = RetryPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.base = 1.0
    other = dataclasses.replace(policy, cap=30.0)
    assert (other.cap, other.base) == (30.0, 0.5)
    assert other.random is policy.random


# -------------------------------------------------------------------------------------------------------- what is fatal


@pytest.mark.parametrize("code", [1008, *range(4400, 4500)])
def test_d_codes_fatal_by_default(code: int) -> None:
    """D-CODES RETRY-3: 1008 and 4400 to 4499."""
    assert RetryPolicy().is_fatal_close(CloseInfo(code))


@pytest.mark.parametrize(
    "code", [0, 1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 3000, 4000, 4399, 4500, 5000, 65535]
)
def test_d_codes_not_fatal_by_default(code: int) -> None:
    """D-CODES: not 1011, which servers send when one worker crashes; not the neighbours of what is."""
    assert not RetryPolicy().is_fatal_close(CloseInfo(code, "bye"))


@pytest.mark.parametrize("reason", ["permission_changed", "room_closed", "auth_failed"])
@pytest.mark.parametrize("code", [1000, 1006, 1011])
def test_d_codes_fatal_reasons(code: int, reason: str) -> None:
    """D-CODES RETRY-3: whatever the code."""
    assert RetryPolicy().is_fatal_close(CloseInfo(code, reason))


@pytest.mark.parametrize("reason", ["", "room", "Room_Closed", "room_closed ", "auth_failed: token"])
def test_d_codes_reasons_are_compared_as_a_whole(reason: str) -> None:
    """D-CODES: neither a part nor another case is one."""
    assert not RetryPolicy().is_fatal_close(CloseInfo(1000, reason))


@pytest.mark.parametrize("status", [401, 403])
def test_d_http_fatal_by_default(status: int) -> None:
    """D-HTTP RETRY-3: unauthorized, forbidden."""
    assert RetryPolicy().is_fatal_failure(AttemptFailure(FailureKind.ANSWER, "no", status))


@pytest.mark.parametrize("status", [None, 101, 200, 301, 302, 307, 400, 402, 404, 407, 429, 500, 502, 503])
def test_d_http_not_fatal_by_default(status: int | None) -> None:
    """D-HTTP: everything else, redirects too."""
    assert not RetryPolicy().is_fatal_failure(AttemptFailure(FailureKind.ANSWER, "no", status))


@pytest.mark.parametrize(
    ("kind", "fatal"),
    [
        (FailureKind.NETWORK, False),
        (FailureKind.ANSWER, False),
        (FailureKind.UNAUTHORIZED, True),
        (FailureKind.MISCONFIGURED, False),
    ],
)
def test_retry_3_no_use_asking_for_a_token_again(kind: FailureKind, fatal: bool) -> None:
    """RETRY-3: `Unauthorized` is; misconfiguration is not for the policy to judge, the machine sees to it (D-ERROR)."""
    assert RetryPolicy().is_fatal_failure(AttemptFailure(kind, "why")) is fatal


def test_d_http_a_container_of_ones_own_is_asked_about_statuses_only() -> None:
    """D-HTTP: a failure without an answer has no status that it could be asked about."""

    class Fours:
        def __contains__(self, status: Any) -> bool:
            return bool(400 <= status < 500)

    policy = RetryPolicy(fatal_http_statuses=Fours())
    assert policy.is_fatal_failure(AttemptFailure(FailureKind.ANSWER, "HTTP 404", 404))
    assert not policy.is_fatal_failure(AttemptFailure(FailureKind.NETWORK, "refused"))


def test_d_codes_all_of_it_is_policy() -> None:
    """D-CODES D-HTTP: what a user sets replaces the default; the defaults can be built upon."""
    policy = RetryPolicy(
        fatal_close_codes=FATAL_CLOSE_CODES | {1011},
        fatal_close_reasons=(),
        fatal_http_statuses=range(400, 500),
    )
    assert policy.is_fatal_close(CloseInfo(1011))
    assert policy.is_fatal_close(CloseInfo(1008))
    assert not policy.is_fatal_close(CloseInfo(1000, "room_closed"))
    assert policy.is_fatal_failure(AttemptFailure(FailureKind.ANSWER, "not found", 404))
    assert not policy.is_fatal_failure(AttemptFailure(FailureKind.NETWORK, "refused"))
    assert set(FATAL_CLOSE_CODES) == {1008, *range(4400, 4500)}
    assert set(FATAL_CLOSE_REASONS) == {"permission_changed", "room_closed", "auth_failed"}
    assert set(FATAL_HTTP_STATUSES) == {401, 403}


# -------------------------------------------------------------------------------------------------- what makes no sense

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("base", [0, -1, NAN, INF, -INF]),
        ("cap", [0, -1, NAN, INF, 0.49]),
        ("jitter", [-0.01, 1, 1.5, NAN, INF]),
        ("max_attempts", [-1, NAN, -INF]),
        ("stable_after", [-0.01, NAN, -INF]),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name: str, values: list[Any]) -> None:
    """With the name of the field, what it takes, and what was given."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} .*not {value!r}($|;)"):
            RetryPolicy(**{name: value})


def test_no_attempts_at_all_has_a_switch_of_its_own() -> None:
    """Said to those who try it with a negative number."""
    with pytest.raises(ValueError, match="enabled=False"):
        RetryPolicy(max_attempts=-1)


@pytest.mark.parametrize(
    "fields", [{"base": 2, "cap": 2}, {"jitter": 0}, {"jitter": 0.99}, {"max_attempts": 0}, {"stable_after": 0}]
)
def test_the_edges_of_what_makes_sense(fields: dict[str, Any]) -> None:
    """A constant wait, no jitter, nearly all of it, no retry, every connection counts as stable."""
    policy = RetryPolicy(**fields)
    assert 0 < policy.delay(1) <= policy.cap


# ------------------------------------------------------------------------------------------------- the values it judges


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (CloseInfo(1000), "closed with code 1000"),
        (CloseInfo(4401, "token expired"), "closed with code 4401: token expired"),
        (CloseInfo(1006), "the connection was lost"),
        (CloseInfo(1006, "no answer to a ping"), "no answer to a ping"),
    ],
)
def test_a_close_in_words(info: CloseInfo, words: str) -> None:
    """As listeners read it; 1006 is no code of anybody's, so it is not shown."""
    assert str(info) == words


def test_a_failure_in_words() -> None:
    """What went wrong, and nothing else: it may hold no secrets."""
    assert str(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, 3.0)) == "HTTP 503"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("going down", "going down"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ("two\nlines\x1b[31m", "two\ufffdlines\ufffd[31m"),
        (None, ""),
        ("", ""),
        (404, "404"),
        ("x" * 201, "x" * 200),
    ],
)
def test_a_servers_words_are_made_presentable(words: object, shown: str) -> None:
    """Text, short and one line: they end up in logs and on terminals."""
    assert sanitized(words) == shown


@pytest.mark.parametrize("most", [-1.0, float("nan"), float("inf")])
def test_d_http_a_bound_that_makes_no_sense_is_refused(most: float) -> None:
    """D-HTTP: ``max_retry_after`` is a number of seconds from 0."""
    with pytest.raises(ValueError, match="max_retry_after must be a number of seconds from 0"):
        RetryPolicy(max_retry_after=most)


@pytest.mark.parametrize(("most", "asked", "least"), [(300.0, 60.0, 60.0), (300.0, 1e9, 300.0), (0.0, 60.0, 0.0)])
def test_d_http_what_a_server_asks_for_is_bounded_and_then_spread(most: float, asked: float, least: float) -> None:
    """D-HTTP D-JITTER: up to twice the jitter longer, never shorter."""
    policy = RetryPolicy(max_retry_after=most, random=random.Random(3))
    waits = [policy.no_sooner(asked) for _ in range(50)]
    assert least <= min(waits) <= max(waits) <= 1.5 * least
    assert len(set(waits)) > 1 or not least


def test_a_change_of_state_is_a_value() -> None:
    """As ``on_transition`` callbacks get it: with no retry unless there is one."""
    change: Any = StateChange("timer_fired", "waiting", "retrying", "reconnecting", "lost")  # type: ignore[arg-type]
    assert (change.attempt, change.retry_in) == (0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        change.new = "connected"


@pytest.mark.parametrize("name", ["fatal_close_codes", "fatal_close_reasons", "fatal_http_statuses"])
def test_retry_3_a_str_is_no_set_of_what_is_fatal(name: str) -> None:
    """RETRY-3: "" is in every str, so each close without a reason would be fatal; a str is refused."""
    options: dict[str, Any] = {name: "room_closed"}
    with pytest.raises(TypeError, match=f"{name} must be a set or the like, not a str"):
        RetryPolicy(**options)
