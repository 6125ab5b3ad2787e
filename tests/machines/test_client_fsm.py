"""Every decision of a client, clause by clause: facts in, effects out; no loop, no socket, no clock."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

import golden
from golden import Story, change, waits
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import (
    CloseSocket,
    Dial,
    Effect,
    FailWaiters,
    NotifyRooms,
    ReportOutage,
    ReportRecovery,
    StartOutageTimer,
    StartTimer,
    StopOutageTimer,
)
from reconnect_fsm.errors import ClientStopped
from reconnect_fsm.machine import ANY, STAY, Event, event, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, FailureKind, FaultKind, StopKind

REFUSED = AttemptFailure(FailureKind.NETWORK, "connection refused")
LOST = CloseInfo(1006)
ROUTES: dict[str, list[tuple[Any, ...]]] = {
    "disconnected": [],
    "connecting": [("connect_requested",)],
    "connected": [("connect_requested",), ("socket_opened",)],
    "waiting": [("connect_requested",), ("socket_opened",), ("timer_fired",), ("socket_closed", LOST)],
    "retrying": [
        ("connect_requested",),
        ("socket_opened",),
        ("timer_fired",),
        ("socket_closed", LOST),
        ("timer_fired",),
    ],
    "paused": [("connect_requested",), ("socket_opened",), ("went_offline",)],
    "error": [("faulted", "a guard raised ValueError")],
}
"""How to get into each state."""


REPORTS = (StartOutageTimer, StopOutageTimer, ReportOutage, ReportRecovery)


def acts(effects: list[Effect]) -> list[Effect]:
    """What it does, but for what is only reported (D-HEARD) and causes (D-CAUSE): those have tests of their own."""
    return [
        NotifyRooms(each.event, each.why) if isinstance(each, NotifyRooms) else each
        for each in effects
        if not isinstance(each, REPORTS)
    ]


def said(effects: list[Effect]) -> list[str]:
    """The same in words."""
    return golden.said(acts(effects))


def client(where: str = "disconnected", **policy: Any) -> ClientFSM:
    """A machine in that state, whose waits are not spread unless the policy says so."""
    fsm = ClientFSM(RetryPolicy(**{"jitter": 0, **policy}))
    for fact, *args in ROUTES[where]:
        getattr(fsm, fact)(*args)
    assert fsm.state == where
    return fsm


def fail(fsm: ClientFSM, times: int) -> list[Effect]:
    """The dial fails, the timer runs out, the dial fails …; the effects of the last failure."""
    effects = fsm.dial_failed(REFUSED)
    for _ in range(times - 1):
        fsm.timer_fired()
        effects = fsm.dial_failed(REFUSED)
    return effects


# ----------------------------------------------------------------------------------------------------------- connection


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("disconnected", "disconnected"),
        ("connecting", "connecting"),
        ("connected", "connected"),
        ("waiting", "reconnecting"),
        ("retrying", "reconnecting"),
        ("paused", "reconnecting"),
        ("error", "error"),
    ],
)
def test_conn_1_every_state_shows_one_of_five_statuses(where: str, status: str) -> None:
    """CONN-1: the status is a property of the state, so nothing hides in a flag."""
    assert client(where).status == status
    assert {each.status for each in ClientFSM.states.values()} == set(ClientStatus)


def test_conn_2_a_started_client_dials_at_once() -> None:
    """CONN-2: it tells its rooms, and dials."""
    fsm = client()
    assert said(fsm.connect_requested()) == [
        "NotifyRooms('client_started', 'asked to connect')",
        "Dial()",
        "NotifyStatus(disconnected → connecting, 'asked to connect')",
    ]
    assert (fsm.state, fsm.reason, fsm.attempt) == ("connecting", "asked to connect", 0)


@pytest.mark.parametrize("where", ["disconnected", "error"])
def test_conn_2_starting_begins_with_a_clean_slate(where: str) -> None:
    """CONN-2: it dials, the rooms hear of it, and the attempts of last time are forgotten."""
    fsm = client("connecting")
    fail(fsm, 3)
    if where == "error":
        fsm.faulted("a guard raised ValueError")
    else:
        fsm.close_requested()
    assert said(fsm.start_requested()) == [
        "NotifyRooms('client_started', 'started')",
        "Dial()",
        f"NotifyStatus({where} → connecting, 'started')",
    ]
    assert (fsm.state, fsm.attempt, fsm.reason) == ("connecting", 0, "started")


@pytest.mark.parametrize("where", ["disconnected", "error"])
def test_off_1_a_client_that_is_started_offline_waits_for_the_network(where: str) -> None:
    """OFF-1: it does not dial; what it knows of the network outlives a stop."""
    fsm = client("connecting")
    fail(fsm, 3)
    if where == "error":
        fsm.faulted("a guard raised ValueError")
    else:
        fsm.close_requested()
    fsm.went_offline()
    effects = fsm.start_requested()
    assert said(effects) == [
        "NotifyRooms('client_started', 'started')",
        f"NotifyStatus({where} → reconnecting, 'started')",
    ]
    assert change(effects).cause == AttemptFailure(FailureKind.NETWORK, "offline", fault=FaultKind.OFFLINE)
    assert (fsm.state, fsm.attempt) == ("paused", 0)
    assert said(fsm.went_online()) == ["Dial()"]


@pytest.mark.parametrize("where", ["connecting", "connected", "waiting", "retrying", "paused"])
def test_conn_2_starting_what_is_started_does_nothing(where: str) -> None:
    """CONN-2: ``start()`` twice is once."""
    fsm = client(where)
    before = fsm.reason
    assert fsm.start_requested() == []
    assert (fsm.state, fsm.reason) == (where, before)


def test_conn_3_a_loss_leads_to_reconnecting() -> None:
    """CONN-3: the socket is put away and rooms hear of it before the wait begins and listeners are told."""
    fsm = client("connected")
    assert said(fsm.socket_closed(CloseInfo(1011, "worker crashed", 60.0))) == [
        "StopKeepalive()",
        "StopTimer()",
        "CloseSocket(1000, '')",
        "NotifyRooms('connection_lost', 'closed with code 1011: worker crashed')",
        "StartTimer(0.5)",
        "NotifyStatus(connected → reconnecting, 'closed with code 1011: worker crashed', attempt 1, in 0.5 s)",
    ]
    assert (fsm.state, fsm.retry_in) == ("waiting", 0.5)


def test_conn_3_a_failed_first_dial_leads_to_reconnecting() -> None:
    """CONN-3: also a client that was never connected goes on trying."""
    fsm = client("connecting")
    assert said(fsm.dial_failed(REFUSED)) == [
        "CancelDial()",
        "StartTimer(0.5)",
        "NotifyStatus(connecting → reconnecting, 'connection refused', attempt 1, in 0.5 s)",
    ]
    assert fsm.state == "waiting"


def test_conn_3_the_farewell_of_an_earlier_connection_is_not_repeated() -> None:
    """CONN-3 OFF-1: going offline once is no reason to give when the server closes later."""
    fsm = client("paused")
    fsm.went_online()
    fsm.socket_opened()
    assert CloseSocket(1000, "") in fsm.socket_closed(LOST)


@pytest.mark.parametrize(
    ("where", "fact", "arg"),
    [
        ("connected", "socket_closed", CloseInfo(4401, "token expired")),
        ("connecting", "dial_failed", AttemptFailure(FailureKind.ANSWER, "HTTP 403", 403)),
        ("retrying", "dial_failed", AttemptFailure(FailureKind.UNAUTHORIZED, "no token")),
    ],
)
def test_conn_4_a_fatal_condition_leads_to_disconnected(where: str, fact: str, arg: object) -> None:
    """CONN-4: and everything stops."""
    fsm = client(where)
    effects = said(getattr(fsm, fact)(arg))
    assert fsm.state == "disconnected"
    assert "Release()" in effects
    assert not any("StartTimer" in each for each in effects)


@pytest.mark.parametrize(("where", "old"), [("connecting", "connecting"), ("retrying", "reconnecting")])
def test_conn_5_whoever_waits_hears_of_each_success(where: str, old: str) -> None:
    """CONN-5: the promise is kept after the rooms have been told, and before the listeners are."""
    fsm = client(where)
    assert said(fsm.socket_opened()) == [
        "CancelDial()",
        "StartKeepalive()",
        "StartTimer(5)",
        "NotifyRooms('connection_opened', 'connected')",
        "AnnounceConnected()",
        f"NotifyStatus({old} → connected, 'connected')",
    ]
    assert (fsm.state, fsm.reason, fsm.retry_in) == ("connected", "connected", None)


# ---------------------------------------------------------------------------------------------------------------- retry


def test_retry_1_the_waits_double_up_to_the_cap() -> None:
    """RETRY-1: from 0.5 s to 15 s, each failure in a row counted."""
    fsm = client("connecting")
    seen = []
    for _ in range(8):
        seen += waits(fsm.dial_failed(REFUSED))
        fsm.timer_fired()
    assert seen == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert fsm.attempt == 8


def test_retry_1_the_timer_leads_to_a_dial() -> None:
    """RETRY-1: within the status reconnecting, so that listeners hear nothing."""
    fsm = client("waiting")
    assert said(fsm.timer_fired()) == ["StopTimer()", "Dial()"]
    assert (fsm.state, fsm.retry_in) == ("retrying", None)


def test_retry_1_the_reason_for_dialing_again_is_that_of_the_wait() -> None:
    """RETRY-1: what was refused meanwhile is no reason."""
    fsm = client("waiting")
    fsm.went_online()  # it was never offline: a source may say again what is known
    fsm.timer_fired()
    assert fsm.reason == "the connection was lost"


def test_retry_1_waits_are_spread_by_a_seeded_source_and_can_be_repeated() -> None:
    """RETRY-1 D-JITTER: two machines with the same seed wait alike, and not for the centre."""
    one, two = (client("connecting", jitter=0.25, random=random.Random(7)) for _ in range(2))
    first = [waits(fail(one, 1)), waits(one.retry_requested() + fail(one, 1))]
    assert first == [waits(fail(two, 1)), waits(two.retry_requested() + fail(two, 1))]
    assert first[0][0] != 0.5
    assert 0.375 <= first[0][0] <= 0.625


@pytest.mark.parametrize(
    ("where", "fact", "args"),
    [
        ("connecting", "dial_failed", (REFUSED,)),
        ("connected", "socket_closed", (LOST,)),
        ("connected", "pong_missed", (LOST,)),
        ("connected", "went_offline", ()),
        ("connecting", "went_offline", ()),
    ],
)
def test_retry_1_switched_off_the_first_loss_is_the_end(where: str, fact: str, args: tuple[Any, ...]) -> None:
    """RETRY-1: on by default; with ``enabled=False`` nothing is tried again."""
    fsm = client(where, enabled=False)
    effects = said(getattr(fsm, fact)(*args))
    assert fsm.state == "disconnected"
    assert not any(each.startswith("StartTimer") for each in effects)
    assert fsm.online == (fact != "went_offline")


def test_retry_1_switched_off_a_stopped_client_stays_as_it_is_offline() -> None:
    """RETRY-1 OFF-1: there is nothing to stop."""
    fsm = client(enabled=False)
    assert fsm.went_offline() == []
    assert (fsm.state, fsm.online) == ("disconnected", False)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_retry_2_attempts_used_up(most: int) -> None:
    """RETRY-2: after the first dial and as many retries as are allowed, it is disconnected."""
    fsm = client("connecting", max_attempts=most)
    effects = fail(fsm, most + 1)
    assert said(effects) == [
        "CancelDial()",
        "Release()",
        "NotifyRooms('client_stopped', 'connection refused')",
        "FailWaiters(ClientStopped('the client stopped: connection refused "
        "(connect() or retry_now() starts it again)'))",
        f"NotifyStatus({'reconnecting' if most else 'connecting'} → disconnected, 'connection refused')",
    ]
    assert fsm.state == "disconnected"


@pytest.mark.parametrize("fact", ["socket_closed", "pong_missed"])
def test_retry_2_attempts_used_up_by_connections_that_did_not_last(fact: str) -> None:
    """RETRY-2 D-STABLE: a server that accepts and drops uses them up too."""
    fsm = client("connecting", max_attempts=1)
    fsm.socket_opened()
    getattr(fsm, fact)(LOST)
    assert fsm.state == "waiting"
    fsm.timer_fired()
    fsm.socket_opened()
    getattr(fsm, fact)(LOST)
    assert fsm.state == "disconnected"


@pytest.mark.parametrize(("fact", "arg"), [("dial_failed", REFUSED), ("socket_closed", LOST), ("pong_missed", LOST)])
@pytest.mark.parametrize("policy", [{"enabled": False}, {"max_attempts": 0}], ids=["off", "used up"])
def test_retry_1_retry_2_no_retry_is_saved_up_for_the_network(policy: Any, fact: str, arg: object) -> None:
    """RETRY-1 RETRY-2 OFF-1: with no retry left an attempt by hand that fails offline is the end, and no pause."""
    fsm = client("disconnected", **policy)
    fsm.went_offline()
    fsm.connect_requested()
    if fact != "dial_failed":
        fsm.socket_opened()
    getattr(fsm, fact)(arg)
    assert fsm.state == "disconnected"


def test_retry_3_what_is_fatal_is_fatal_offline_too() -> None:
    """RETRY-3 D-ERROR OFF-1: the server has spoken; that there is no network now does not unsay it."""
    for failure, then in (
        (AttemptFailure(FailureKind.ANSWER, "HTTP 401", 401), "disconnected"),
        (AttemptFailure(FailureKind.MISCONFIGURED, "no such scheme"), "error"),
    ):
        fsm = client("paused")
        fsm.connect_requested()
        fsm.dial_failed(failure)
        assert fsm.state == then
    fsm = client("paused")
    fsm.connect_requested()
    fsm.socket_opened()
    fsm.socket_closed(CloseInfo(1008))
    assert fsm.state == "disconnected"


def test_d_error_what_is_misconfigured_is_an_error_whatever_the_policy() -> None:
    """D-ERROR: before anything is asked of the policy."""

    class Resigned(RetryPolicy):
        def is_fatal_failure(self, failure: AttemptFailure) -> bool:
            return True

    for policy in (RetryPolicy(enabled=False), RetryPolicy(max_attempts=0), Resigned()):
        fsm = ClientFSM(policy)
        fsm.connect_requested()
        fsm.dial_failed(AttemptFailure(FailureKind.MISCONFIGURED, "no such scheme"))
        assert fsm.state == "error"


def test_retry_1_switched_off_one_attempt_is_made_when_the_network_is_back() -> None:
    """RETRY-1 OFF-2: it was started offline, so this is its first one; and the last."""
    fsm = client(enabled=False)
    fsm.went_offline()
    fsm.start_requested()
    assert said(fsm.went_online()) == ["Dial()"]
    assert fsm.state == "retrying"
    fsm.dial_failed(REFUSED)
    assert fsm.state == "disconnected"


def test_retry_2_goes_on_for_ever_by_default() -> None:
    """RETRY-2: a thousand failures in a row are no reason to stop."""
    fsm = client("connecting")
    fail(fsm, 1000)
    assert (fsm.state, fsm.attempt, fsm.retry_in) == ("waiting", 1000, 15.0)


@pytest.mark.parametrize(
    "info",
    [
        CloseInfo(1008),
        CloseInfo(4400),
        CloseInfo(4499),
        *(CloseInfo(1000, each) for each in ("permission_changed", "room_closed", "auth_failed")),
    ],
)
def test_retry_3_d_codes_a_fatal_close_stops_it(info: CloseInfo) -> None:
    """RETRY-3 D-CODES: fatal codes and reasons; everything is put away and all are told why."""
    fsm = client("connected")
    assert said(fsm.socket_closed(info)) == [
        "StopKeepalive()",
        "StopTimer()",
        "CloseSocket(1000, '')",
        "Release()",
        f"NotifyRooms('client_stopped', '{info}')",
        f"FailWaiters(ClientStopped('the client stopped: {info} (connect() or retry_now() starts it again)'))",
        f"NotifyStatus(connected → disconnected, '{info}')",
    ]
    assert fsm.state == "disconnected"


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 4399, 4500])
def test_d_codes_other_closes_are_losses(code: int) -> None:
    """D-CODES: servers close with 1011 when one worker crashes; that is no verdict."""
    fsm = client("connected")
    fsm.socket_closed(CloseInfo(code, "restarting"))
    assert fsm.state == "waiting"


def test_d_codes_are_policy() -> None:
    """D-CODES: a user can change what is fatal, by the policy's fields or by a guard."""

    class Lenient(ClientFSM):
        def is_fatal_close(self) -> bool:
            return False

    strict = client("connected", fatal_close_codes={1011})
    strict.socket_closed(CloseInfo(1011))
    assert strict.state == "disconnected"
    lenient = Lenient(RetryPolicy(jitter=0))
    lenient.connect_requested()
    lenient.socket_opened()
    lenient.socket_closed(CloseInfo(1008))
    assert lenient.state == "waiting"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["connecting", "retrying"])
def test_retry_3_d_http_a_refused_handshake_stops_it(where: str, status: int) -> None:
    """RETRY-3 D-HTTP: 401 and 403 are fatal, first time or later."""
    fsm = client(where)
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, f"HTTP {status}", status))
    assert (fsm.state, fsm.reason) == ("disconnected", f"HTTP {status}")


def test_retry_3_no_token_to_be_had_stops_it() -> None:
    """RETRY-3: the ``url`` callable raised `Unauthorized`."""
    fsm = client("retrying")
    fsm.dial_failed(AttemptFailure(FailureKind.UNAUTHORIZED, "logged out"))
    assert fsm.state == "disconnected"


@pytest.mark.parametrize("status", [301, 404, 429, 500, 503])
def test_d_http_other_answers_are_retried(status: int) -> None:
    """D-HTTP: with backoff, redirects too."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, f"HTTP {status}", status))
    assert (fsm.state, fsm.retry_in) == ("waiting", 0.5)


def test_d_http_no_sooner_than_the_server_asks() -> None:
    """D-HTTP: a Retry-After is the least, the backoff goes on beneath it."""
    fsm = client("connecting")
    busy = AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=3.0)
    seen = []
    for _ in range(5):
        seen += waits(fsm.dial_failed(busy))
        fsm.timer_fired()
    assert seen == [3.0, 3.0, 3.0, 4.0, 8.0]


@pytest.mark.parametrize(("seed", "delay"), [(seed, 1000.0) for seed in range(3)] + [(seed, 0.5) for seed in range(3)])
def test_d_http_what_the_server_asks_for_is_spread_and_a_longer_backoff_stays(seed: int, delay: float) -> None:
    """D-HTTP: the wait is the longer of the two, each with its own jitter; what it says is what it is."""
    policy = RetryPolicy(base=delay, cap=2000.0, random=random.Random(seed))
    fsm = ClientFSM(policy)
    fsm.start_requested()
    (wait,) = waits(fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0)))
    expected = RetryPolicy(base=delay, cap=2000.0, random=random.Random(seed))
    assert wait == fsm.retry_in == max(expected.delay(1), expected.no_sooner(60.0))
    assert (60.0 <= wait <= 90.0) is (delay == 0.5)


def test_d_http_a_policy_may_obey_in_its_own_way() -> None:
    """D-HTTP: `no_sooner` is policy as `delay` is; what is no time to wait is a fault of it (D-ERROR)."""

    class Hasty(RetryPolicy):
        def no_sooner(self, retry_after: float) -> float:
            return min(retry_after, 2.0) if retry_after < 100 else float("inf")

    fsm = ClientFSM(Hasty(jitter=0))
    fsm.start_requested()
    assert waits(fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0))) == [2.0]
    fsm.timer_fired()
    with pytest.raises(ValueError, match=r"Hasty\.no_sooner returned inf, which is no time to wait"):
        fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=200.0))


def test_d_http_a_retry_after_is_forgotten_once_connected_or_started_anew() -> None:
    """D-HTTP: what a server said before it let us in says nothing about the next loss."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=300.0))
    fsm.connect_requested()
    fsm.socket_opened()
    assert fsm.failure == AttemptFailure(FailureKind.NETWORK, "")
    assert waits(fsm.socket_closed(LOST)) == [1.0]
    fsm.timer_fired()
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=300.0))
    fsm.close_requested()
    fsm.connect_requested()
    assert waits(fsm.dial_failed(REFUSED)) == [0.5]


@pytest.mark.parametrize("status", [408, 418, 429, 500, 502, 503])
def test_d_http_a_retry_after_outlasts_the_network(status: int) -> None:
    """D-HTTP OFF-2: when the machine comes back online meanwhile, the rest is waited for, whatever answer it was."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, f"HTTP {status}", status, retry_after=60.0), 100.0)
    for now, rest in ((101.0, 59.0), (101.2, 58.8), (130.0, 30.0)):
        assert waits(flap(fsm, now)) == [pytest.approx(rest)]
        assert (fsm.state, fsm.attempt) == ("waiting", 0)
    assert said(fsm.timer_fired()) == ["StopTimer()", "Dial()"]
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, f"HTTP {status}", status, retry_after=60.0), 100.0)
    assert said(flap(fsm, 160.0)) == ["Dial()"]  # it is over


def test_d_http_a_retry_after_that_comes_offline_counts_too() -> None:
    """D-HTTP OFF-1: an attempt by hand was answered, though the environment says that there is no network."""
    fsm = client("paused")
    fsm.connect_requested()
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0), 100.0)
    assert fsm.state == "paused"
    assert waits(fsm.went_online(110.0)) == [pytest.approx(50.0)]


@pytest.mark.parametrize("ask", [ClientFSM.connect_requested, ClientFSM.retry_requested], ids=["connect", "retry_now"])
def test_d_http_a_persons_word_overrides_a_retry_after(ask: Any) -> None:
    """D-HTTP CTRL-1: once; what fails then without a Retry-After of its own waits for the rest."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0), 100.0)
    assert Dial in map(type, ask.fire(fsm))
    assert waits(fsm.dial_failed(REFUSED, 110.0)) == [pytest.approx(50.0)]
    fsm.connect_requested()
    assert flap(fsm, 120.0)[-1] == StartTimer(pytest.approx(40.0))
    fsm.retry_requested()
    assert waits(fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "429", 429, retry_after=5.0), 130.0)) == [5.0]


def test_d_http_a_retry_after_that_is_over_lengthens_no_wait() -> None:
    """D-HTTP: the backoff is that of the policy."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0), 100.0)
    fsm.connect_requested(reset_backoff=True)
    assert waits(fsm.dial_failed(REFUSED, 170.0)) == [0.5]


def test_d_http_an_attempt_by_hand_is_not_made_twice_before_the_server_wants_it() -> None:
    """D-HTTP OFF-2: the fresh attempt of OFF-2 would be one that nobody asked for."""
    fsm = client("connecting")
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0), 100.0)
    fsm.went_offline()
    fsm.connect_requested()
    assert fsm.went_online(101.0) == []
    assert (fsm.state, fsm.online) == ("connecting", True)


@pytest.mark.parametrize(("most", "wait"), [(300.0, 300.0), (30.0, 30.0), (600.0, 600.0), (0.0, 0.5)])
def test_d_http_a_retry_after_is_bounded_by_the_policy(most: float, wait: float) -> None:
    """D-HTTP: `max_retry_after`, five minutes by default; with 0 nothing that a server asks for counts."""
    fsm = client("connecting", max_retry_after=most)
    assert RetryPolicy().max_retry_after == 300.0
    asked = AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=86400.0)
    assert waits(fsm.dial_failed(asked, 100.0)) == [wait]
    rests = waits(flap(fsm, 101.0))
    assert rests == ([pytest.approx(wait - 1.0)] if most else [])


STARTERS: list[Callable[[ClientFSM], list[Effect]]] = [ClientFSM.connect_requested.fire, ClientFSM.retry_requested.fire]


@pytest.mark.parametrize("start", STARTERS, ids=["connect", "retry_now"])
def test_retry_4_after_a_fatal_stop_only_a_person_starts_it_again(start: Callable[[ClientFSM], list[Effect]]) -> None:
    """RETRY-4 OK-3: nothing else does, and then the backoff begins anew."""
    fsm = client("connecting", max_attempts=2)
    fail(fsm, 3)
    facts: list[tuple[Any, ...]] = [
        ("timer_fired",),
        ("went_offline",),
        ("went_online",),
        ("socket_opened",),
        ("dial_failed", REFUSED),
        ("socket_closed", LOST),
        ("pong_missed", LOST),
    ]
    for fact, *args in facts:
        assert getattr(fsm, fact)(*args) == []
    assert fsm.state == "disconnected"
    effects = said(start(fsm))
    assert effects[1] == "Dial()"
    assert (fsm.state, fsm.attempt) == ("connecting", 0)
    assert waits(fsm.dial_failed(REFUSED)) == [0.5]


# ------------------------------------------------------------------------------------------------------------- liveness


def test_live_1_pings_begin_and_end_with_the_connection() -> None:
    """LIVE-1: in whatever way the connection is left."""
    assert "StartKeepalive()" in said(client("connecting").socket_opened())
    facts: list[tuple[Any, ...]] = [
        ("socket_closed", LOST),
        ("pong_missed", LOST),
        ("went_offline",),
        ("close_requested",),
        ("retry_requested",),
        ("faulted", "why"),
    ]
    for fact, *args in facts:
        assert said(getattr(client("connected"), fact)(*args))[0] == "StopKeepalive()"


def test_live_2_a_missing_pong_closes_with_a_reason_and_backs_off() -> None:
    """LIVE-2 OK-2: a controlled close that says why, then the ordinary backoff."""
    fsm = client("connected")
    assert said(fsm.pong_missed(CloseInfo(1006, "no answer to a ping within 10 s", 60.0))) == [
        "StopKeepalive()",
        "StopTimer()",
        "CloseSocket(1001, 'ping_timeout: liveness check failed, no pong')",
        "NotifyRooms('connection_lost', 'no answer to a ping within 10 s')",
        "StartTimer(0.5)",
        "NotifyStatus(connected → reconnecting, 'no answer to a ping within 10 s', attempt 1, in 0.5 s)",
    ]
    assert fsm.state == "waiting"


# -------------------------------------------------------------------------------------------------------------- offline


def test_off_1_offline_closes_the_socket_cleanly_and_pauses() -> None:
    """OFF-1: with a close frame, and without a timer."""
    fsm = client("connected")
    assert said(fsm.went_offline()) == [
        "StopKeepalive()",
        "StopTimer()",
        "CloseSocket(1001, 'offline')",
        "NotifyRooms('connection_lost', 'offline')",
        "NotifyStatus(connected → reconnecting, 'offline')",
    ]
    assert fsm.state == "paused"


@pytest.mark.parametrize(
    ("where", "effects"),
    [
        ("connecting", ["CancelDial()", "NotifyStatus(connecting → reconnecting, 'offline')"]),
        ("waiting", ["StopTimer()"]),
        ("retrying", ["CancelDial()"]),
    ],
)
def test_off_1_offline_pauses_retries(where: str, effects: list[str]) -> None:
    """OFF-1: a dial is given up, a wait ends."""
    fsm = client(where)
    assert said(fsm.went_offline()) == effects
    assert (fsm.state, fsm.reason, fsm.retry_in) == ("paused", "offline", None)


@pytest.mark.parametrize("where", ["disconnected", "error"])
def test_off_1_a_stopped_client_only_remembers_it(where: str) -> None:
    """OFF-1: it stays stopped, also when it is online again."""
    fsm = client(where)
    assert fsm.went_offline() == []
    assert (fsm.state, fsm.online) == (where, False)
    assert fsm.went_online() == []
    assert (fsm.state, fsm.online) == (where, True)


@pytest.mark.parametrize(
    ("where", "fact", "arg"),
    [("connecting", "dial_failed", REFUSED), ("connected", "socket_closed", LOST), ("connected", "pong_missed", LOST)],
)
def test_off_1_a_loss_while_offline_pauses(where: str, fact: str, arg: object) -> None:
    """OFF-1 CTRL-1: an attempt by hand is allowed; what fails then waits for the network, not for a timer."""
    fsm = client("paused")
    fsm.connect_requested()
    if where == "connected":
        fsm.socket_opened()
    effects = getattr(fsm, fact)(arg)
    assert (fsm.state, waits(effects), fsm.attempt) == ("paused", [], 1)


@pytest.mark.parametrize("where", ["connected", "waiting", "disconnected"])
def test_off_1_what_is_known_already_changes_nothing(where: str) -> None:
    """OFF-1 OFF-2: a source that repeats itself is no news."""
    fsm = client(where)
    assert fsm.went_online() == []
    assert fsm.state == where
    fsm.went_offline()
    then = fsm.state
    assert fsm.went_offline() == []
    assert fsm.state == then


@pytest.mark.parametrize(("reset", "attempt"), [(True, 0), (False, 4)])
def test_off_2_online_dials_at_once(reset: bool, attempt: int) -> None:
    """OFF-2 OK-1: without waiting; the backoff begins anew unless that is switched off."""
    fsm = client("connecting", reset_on_online=reset)
    fail(fsm, 4)
    fsm.went_offline()
    assert said(fsm.went_online()) == ["Dial()"]
    assert (fsm.state, fsm.attempt, fsm.reason) == ("retrying", attempt, "back online")
    assert waits(fsm.dial_failed(REFUSED)) == [0.5 if reset else 8.0]


def test_off_2_what_is_known_already_ends_no_pause_of_a_users_own() -> None:
    """OFF-2: only a network that was gone can be back; a monitor may say over and over that there is one."""

    class Napping(ClientFSM):
        @event(row(ANY, to=ClientFSM.paused))
        def sent_to_sleep(self) -> None:
            """Somebody wants to save the battery."""

    fsm = Napping()
    fsm.connect_requested()
    fsm.sent_to_sleep()
    assert fsm.went_online() == []
    assert fsm.state == "paused"
    fsm.went_offline()
    assert said(fsm.went_online()) == ["Dial()"]
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=60.0), 100.0)
    fsm.sent_to_sleep()
    assert fsm.went_online(101.0) == []
    assert fsm.state == "paused"
    assert [then for _, then in outages(fsm.outage_lasted())] == ["it is paused"]


def test_off_2_a_user_may_go_on_trying_offline() -> None:
    """OFF-2: then a retry that is under way is made afresh, as one by hand is, and damped as that is."""

    class Stubborn(ClientFSM):
        went_offline = ClientFSM.went_offline.first(row(ClientFSM.waiting, to=STAY, do="note_offline", silences=ANY))

    fsm = Stubborn(RetryPolicy(jitter=0))
    fsm.connect_requested()
    fail(fsm, 3)
    fsm.went_offline()
    fsm.timer_fired()
    assert said(fsm.went_online(100.0)) == ["CancelDial()", "Dial()"]
    assert (fsm.state, fsm.online, fsm.attempt) == ("retrying", True, 0)
    fail(fsm, 3)
    fsm.went_offline()
    fsm.timer_fired()
    assert fsm.went_online(100.2) == []
    assert (fsm.state, fsm.online, fsm.attempt) == ("retrying", True, 0)


@pytest.mark.parametrize("where", ["connecting", "connected"])
@pytest.mark.parametrize("policy", [{}, {"enabled": False}], ids=["on", "off"])
def test_off_1_what_is_known_already_ends_no_attempt_by_hand(policy: Any, where: str) -> None:
    """OFF-1 CTRL-1: whoever asked knew it; the monitor may be wrong, or the server on this very machine."""
    fsm = client(**policy)
    fsm.went_offline()
    fsm.connect_requested()
    if where == "connected":
        fsm.socket_opened()
    assert fsm.went_offline() == []
    assert fsm.state == where


def test_off_1_dialing_by_hand_does_not_bring_the_network_back() -> None:
    """OFF-1 CTRL-1: what the environment said last still holds when the attempt fails."""
    for reset in (False, True):
        fsm = client("paused")
        fsm.connect_requested(reset)
        assert not fsm.online
        fsm.dial_failed(REFUSED)
        assert fsm.state == "paused"


@pytest.mark.parametrize(("reset", "attempt"), [(True, 0), (False, 4)])
def test_off_2_online_makes_a_fresh_attempt_of_one_by_hand(reset: bool, attempt: int) -> None:
    """OFF-2: the one under way was begun without a network, and may hang for as long as an attempt may take."""
    fsm = client("connecting", reset_on_online=reset)
    fail(fsm, 4)
    fsm.went_offline()
    fsm.connect_requested()
    assert said(fsm.went_online(100.0)) == ["CancelDial()", "Dial()"]
    assert (fsm.state, fsm.online, fsm.attempt, fsm.reason) == ("connecting", True, attempt, "asked to connect")
    assert fsm.went_online(100.1) == []  # known already
    assert waits(fsm.dial_failed(REFUSED, 101.0)) == [0.5 if reset else 8.0]


def test_off_2_online_leaves_a_connection_by_hand_alone() -> None:
    """OFF-2: it is there."""
    fsm = client("paused")
    fsm.connect_requested()
    fsm.socket_opened()
    assert fsm.went_online(100.0) == []
    assert (fsm.state, fsm.online) == ("connected", True)


def flap(fsm: ClientFSM, now: float) -> list[Effect]:
    """The network goes and is back at once."""
    fsm.went_offline()
    return fsm.went_online(now)


def test_off_2_flapping_is_damped() -> None:
    """OFF-2: one attempt at once, the next `base` seconds later, however often the network comes and goes."""
    fsm = client("connected")
    assert said(flap(fsm, 100.0)) == ["Dial()"]
    assert waits(flap(fsm, 100.1)) == [pytest.approx(0.4)]
    assert waits(flap(fsm, 100.3)) == [pytest.approx(0.2)]  # the same moment
    assert fsm.state == "waiting"
    assert said(fsm.timer_fired()) == ["StopTimer()", "Dial()"]
    assert waits(flap(fsm, 100.8)) == [pytest.approx(0.2)]
    fsm.timer_fired()
    assert said(flap(fsm, 101.6)) == ["Dial()"]


def test_off_2_after_a_damped_attempt_the_backoff_is_that_of_the_policy() -> None:
    """OFF-2 RETRY-1: only the one wait is without it; and nothing else that was noted is changed by it."""
    fsm = client("connected")
    flap(fsm, 100.0)
    assert waits(flap(fsm, 100.1)) == [pytest.approx(0.4)]
    fsm.timer_fired()
    assert waits(fsm.dial_failed(REFUSED, 101.0)) == [0.5]
    assert len(outages(fsm.outage_lasted())) == 1
    fsm.timer_fired()
    fsm.dial_failed(UNVERIFIED, 102.0)
    assert fsm.state == "waiting"  # it was connected before


def test_d_heard_a_damped_attempt_is_of_the_same_outage() -> None:
    """D-HEARD OFF-2: what was reported is not reported again; a wait before the first retry has no number."""
    fsm = client("connected")
    flap(fsm, 100.0)
    flap(fsm, 100.1)
    assert [then for _, then in outages(fsm.outage_lasted())] == ["the next attempt comes after a wait of 0.4 s"]
    flap(fsm, 100.2)
    assert fsm.outage_lasted() == []


def test_d_heard_a_message_too_big_is_of_the_same_outage() -> None:
    """D-HEARD D-TOOBIG: what was reported is not reported again."""
    fsm = client("connecting")
    fail(fsm, 3)
    fsm.timer_fired()
    fsm.socket_opened()
    assert outages(fsm.socket_closed(TOO_BIG)) == []
    assert fsm.outage_lasted() == []


@pytest.mark.parametrize("now", [-100.0, 0.0])
def test_off_2_a_clock_may_begin_anywhere(now: float) -> None:
    """OFF-2: the first attempt is made at once; another at the same moment is damped."""
    fsm = client("connected")
    assert said(flap(fsm, now)) == ["Dial()"]
    assert waits(flap(fsm, now)) == [0.5]


def test_off_2_an_attempt_that_was_only_waited_for_damps_nothing() -> None:
    """OFF-2 D-HTTP: the server wanted it later, and when it would have been time there was no network."""
    fsm = client("connected")
    flap(fsm, 100.0)
    fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=0.75), 100.0)
    assert waits(flap(fsm, 100.5)) == [0.25]
    assert said(flap(fsm, 100.8)) == ["Dial()"]


def test_off_2_flapping_does_not_drop_an_attempt_again_and_again() -> None:
    """OFF-2: one by hand goes on, if a fresh one was made just before."""
    fsm = client("paused")
    fsm.connect_requested()
    assert said(fsm.went_online(100.0)) == ["CancelDial()", "Dial()"]
    fsm.went_offline()
    fsm.connect_requested()
    assert fsm.went_online(100.2) == []
    assert (fsm.state, fsm.online) == ("connecting", True)


def test_off_2_a_damped_attempt_is_forgotten_when_it_starts_anew() -> None:
    """OFF-2 CTRL-1: a client that was closed and started again begins with a clean slate."""
    fsm = client("connected")
    flap(fsm, 100.0)
    fsm.close_requested()
    fsm.went_offline()
    fsm.start_requested()
    assert said(fsm.went_online(100.1)) == ["Dial()"]


# ------------------------------------------------------------------------------------------------------ manual controls


@pytest.mark.parametrize("where", ["waiting", "paused"])
@pytest.mark.parametrize(("reset", "then"), [(False, 2.0), (True, 0.5)])
def test_ctrl_1_connect_ends_a_wait(where: str, reset: bool, then: float) -> None:
    """CTRL-1: it dials now, offline too; the backoff begins anew only if that is asked for."""
    fsm = client("connecting")
    fail(fsm, 2)
    if where == "paused":
        fsm.went_offline()
    effects = said(fsm.connect_requested(reset_backoff=reset))
    assert effects[-2] == "Dial()"
    assert (fsm.state, fsm.status) == ("connecting", "connecting")
    assert waits(fsm.dial_failed(REFUSED)) == ([then] if where == "waiting" else [])
    assert fsm.attempt == (1 if reset else 3)


@pytest.mark.parametrize("where", ["connecting", "connected", "retrying"])
def test_d_force_connect_does_nothing_when_connected_or_on_its_way(where: str) -> None:
    """D-FORCE CTRL-1: it is what was asked for."""
    fsm = client(where)
    before = fsm.reason
    assert fsm.connect_requested() == []
    assert (fsm.state, fsm.reason) == (where, before)


@pytest.mark.parametrize("where", ["connecting", "connected", "retrying"])
def test_ctrl_1_connect_may_reset_the_backoff_of_an_attempt_under_way(where: str) -> None:
    """CTRL-1: ``reset_backoff`` counts, also where nothing else is to be done."""
    fsm = client("connecting")
    fail(fsm, 3)
    fsm.timer_fired()
    if where == "connected":
        fsm.socket_opened()
    assert fsm.connect_requested(True) == []
    assert fsm.attempt == 0


@pytest.mark.parametrize(
    ("where", "effects"),
    [
        ("disconnected", ["NotifyRooms('client_started', 'asked for a fresh attempt')", "Dial()"]),
        ("error", ["NotifyRooms('client_started', 'asked for a fresh attempt')", "Dial()"]),
        ("connecting", ["CancelDial()", "Dial()"]),
        (
            "connected",
            [
                "StopKeepalive()",
                "StopTimer()",
                "CloseSocket(1000, 'reconnecting')",
                "NotifyRooms('connection_lost', 'asked for a fresh attempt')",
                "Dial()",
            ],
        ),
        ("waiting", ["StopTimer()", "Dial()"]),
        ("retrying", ["CancelDial()", "Dial()"]),
        ("paused", ["Dial()"]),
    ],
)
def test_ctrl_1_d_force_retry_now_dials_afresh_from_every_state(where: str, effects: list[str]) -> None:
    """CTRL-1 D-FORCE: what is under way is dropped for it; a person's word overrides the pause."""
    fsm = client(where)
    found = said(fsm.retry_requested())
    assert [each for each in found if not each.startswith("NotifyStatus")] == effects
    assert fsm.state == "connecting"


@pytest.mark.parametrize("where", ["connecting", "connected", "waiting", "retrying", "paused"])
def test_ctrl_1_retry_now_may_reset_the_backoff(where: str) -> None:
    """CTRL-1: as `connect()` may; it does not by itself."""
    for reset, attempt in ((False, 3), (True, 0)):
        fsm = client(where)
        fsm.attempt = 3
        fsm.retry_requested(reset)
        assert (fsm.state, fsm.attempt) == ("connecting", attempt)


@pytest.mark.parametrize("where", ["connecting", "connected", "waiting", "retrying", "paused", "error"])
def test_ctrl_2_close_stops_it(where: str) -> None:
    """CTRL-2 D-STOP: from every state, and everyone who waits hears of it."""
    fsm = client(where)
    old = fsm.status
    effects = said(fsm.close_requested())
    assert effects[-4:] == [
        "Release()",
        "NotifyRooms('client_stopped', 'closed by this program')",
        "FailWaiters(ClientStopped('the client stopped: closed by this program "
        "(connect() or retry_now() starts it again)'))",
        f"NotifyStatus({old} → disconnected, 'closed by this program')",
    ]
    assert fsm.state == "disconnected"


def test_ctrl_2_close_says_goodbye_with_a_normal_close() -> None:
    """CTRL-2: whatever was the last closing."""
    fsm = client("paused")
    fsm.connect_requested()
    fsm.socket_opened()
    assert CloseSocket(1000, "") in fsm.close_requested()


def test_ctrl_2_closing_what_is_closed_does_nothing() -> None:
    """CTRL-2: twice is once."""
    assert client().close_requested() == []


# ----------------------------------------------------------------------------------------- where the clauses are silent


@pytest.mark.parametrize("where", ["connecting", "retrying"])
def test_d_error_what_is_misconfigured_is_not_tried_again(where: str) -> None:
    """D-ERROR: an unusable URL, a certificate that does not verify; whatever the policy says."""
    fsm = client(where)
    fsm.policy = RetryPolicy(enabled=False)
    fsm.dial_failed(AttemptFailure(FailureKind.MISCONFIGURED, "the certificate does not verify"))
    assert (fsm.state, fsm.status) == ("error", "error")
    assert fsm.reason == "the certificate does not verify"


UNVERIFIED = AttemptFailure(FailureKind.MISCONFIGURED, "the certificate does not verify", fault=FaultKind.CERTIFICATE)
NO_SCHEME = AttemptFailure(FailureKind.MISCONFIGURED, "no such scheme", fault=FaultKind.URL)


def test_d_http_a_certificate_that_does_not_verify_is_an_error_at_first() -> None:
    """D-HTTP D-ERROR: for a client that was never connected; also if its environment only says what is known."""
    fsm = client("connecting")
    fsm.went_online(1.0)
    fsm.dial_failed(UNVERIFIED, 2.0)
    assert (fsm.state, fsm.stop_kind) == ("error", StopKind.MISCONFIGURED)


def test_d_http_what_broke_in_this_program_says_nothing_of_certificates() -> None:
    """D-HTTP D-ERROR: a client that broke and was started again was still never connected."""
    fsm = client("connecting")
    fsm.faulted("a guard raised KeyError", True)
    fsm.connect_requested()
    fsm.dial_failed(UNVERIFIED, 2.0)
    assert (fsm.state, fsm.stop_kind) == ("error", StopKind.MISCONFIGURED)


@pytest.mark.parametrize("fault", [FaultKind.CERTIFICATE, FaultKind.PROXY])
def test_d_http_a_certificate_that_did_verify_once_is_a_failed_attempt(fault: FaultKind) -> None:
    """D-HTTP: a captive portal, a wrong clock: it passes. An unusable URL does not."""
    unverified = AttemptFailure(FailureKind.MISCONFIGURED, "the certificate does not verify", fault=fault)
    fsm = client("connected")
    fsm.socket_closed(LOST)
    for _ in range(3):
        fsm.timer_fired()
        fsm.dial_failed(unverified, 2.0)
        assert (fsm.state, fsm.cause) == ("waiting", unverified)
    fsm.close_requested()
    fsm.connect_requested()
    fsm.dial_failed(unverified, 3.0)
    assert fsm.state == "waiting"
    fsm.timer_fired()
    fsm.dial_failed(NO_SCHEME, 4.0)
    assert fsm.state == "error"


@pytest.mark.parametrize("fact", ["start_requested", "connect_requested"])
def test_d_http_a_certificate_that_fails_on_a_network_just_entered_is_a_failed_attempt(fact: str) -> None:
    """D-HTTP: also for a client that was never connected; an unusable URL has nothing to do with the network."""
    for failure, then in ((UNVERIFIED, "waiting"), (NO_SCHEME, "error")):
        fsm = client()
        fsm.went_offline()
        getattr(fsm, fact)()
        fsm.went_online(1.0)
        fsm.dial_failed(failure, 2.0)
        assert fsm.state == then


TOO_BIG = CloseInfo(1006, "a message of more than max_msg_size=4 bytes", 1.0, fault=FaultKind.MESSAGE_TOO_BIG)


def lose(fsm: ClientFSM, fact: str, *args: Any) -> None:
    """It is lost, and connected again, if it may be."""
    getattr(fsm, fact)(*args)
    if fsm.state == "waiting":
        fsm.timer_fired()
        fsm.socket_opened()


def test_d_toobig_a_message_too_big_for_us_twice_in_a_row_is_an_error() -> None:
    """D-TOOBIG: once may be chance; the second time it says what can be done."""
    fsm = client("connected")
    lose(fsm, "socket_closed", TOO_BIG)
    assert fsm.state == "connected"
    fsm.timer_fired()  # it lasted: that says nothing about the message
    lose(fsm, "socket_closed", TOO_BIG)
    assert (fsm.state, fsm.stop_kind, fsm.cause) == ("error", StopKind.MISCONFIGURED, TOO_BIG)
    assert fsm.reason == (
        f"{TOO_BIG}, twice in a row: make max_msg_size= larger (0: no limit), or have the server send less at once"
    )


@pytest.mark.parametrize(
    "between",
    [("socket_closed", LOST), ("pong_missed", LOST), ("socket_closed", CloseInfo(1009))],
    ids=["lost", "dead", "ours was too big"],
)
def test_d_toobig_twice_but_not_in_a_row_is_no_error(between: tuple[Any, ...]) -> None:
    """D-TOOBIG: nor is 1009 of the server's, which speaks of our messages."""
    fsm = client("connected")
    for _ in range(3):
        lose(fsm, "socket_closed", TOO_BIG)
        lose(fsm, *between)
    assert fsm.state == "connected"


def test_d_toobig_started_by_hand_it_begins_anew() -> None:
    """D-TOOBIG: a person has mended it, or thinks so."""
    fsm = client("connected")
    for _ in range(2):
        lose(fsm, "socket_closed", TOO_BIG)
        lose(fsm, "socket_closed", TOO_BIG)
        assert fsm.state == "error"
        fsm.connect_requested()
        fsm.socket_opened()
        lose(fsm, "socket_closed", TOO_BIG)
        assert fsm.state == "connected"


def test_d_stop_who_waits_in_error_hears_of_what_broke_there() -> None:
    """D-STOP D-ERROR: a guard raises at each `connect()`; each of them is told, and no status changes."""
    fsm = client("error")
    (effect,) = fsm.faulted("a guard raised KeyError", True)
    assert isinstance(effect, FailWaiters)
    assert isinstance(effect.error, ClientStopped)
    assert (effect.error.reason, effect.error.stop) == ("a guard raised KeyError", StopKind.FAULT)
    assert (fsm.state, fsm.reason, fsm.cause) == ("error", "a guard raised KeyError", None)
    assert fsm.faulted("running FailWaiters raised") == []  # to say so again would raise again, for ever
    assert fsm.reason == "a guard raised KeyError"


STOPS: list[tuple[str, dict[str, Any], str, tuple[Any, ...], StopKind, object]] = [
    ("connected", {}, "close_requested", (), StopKind.CLOSED, None),
    ("error", {}, "close_requested", (), StopKind.CLOSED, None),
    ("connected", {}, "socket_closed", (CloseInfo(4401, "out", 1.0),), StopKind.REFUSED, CloseInfo(4401, "out", 1.0)),
    ("connecting", {}, "dial_failed", (AttemptFailure(FailureKind.ANSWER, "401", 401),), StopKind.REFUSED, ...),
    ("retrying", {}, "dial_failed", (AttemptFailure(FailureKind.UNAUTHORIZED, "no"),), StopKind.REFUSED, ...),
    ("connecting", {"max_attempts": 0}, "dial_failed", (REFUSED,), StopKind.ATTEMPTS_USED_UP, ...),
    ("connected", {"max_attempts": 0}, "socket_closed", (LOST,), StopKind.ATTEMPTS_USED_UP, ...),
    ("connected", {"max_attempts": 0}, "pong_missed", (LOST,), StopKind.ATTEMPTS_USED_UP, ...),
    ("connecting", {"enabled": False}, "dial_failed", (REFUSED,), StopKind.RETRYING_OFF, ...),
    ("connected", {"enabled": False}, "socket_closed", (LOST,), StopKind.RETRYING_OFF, ...),
    ("connected", {"enabled": False}, "pong_missed", (LOST,), StopKind.RETRYING_OFF, ...),
    (
        "connected",
        {"enabled": False},
        "went_offline",
        (),
        StopKind.RETRYING_OFF,
        AttemptFailure(FailureKind.NETWORK, "offline", fault=FaultKind.OFFLINE),
    ),
    ("connecting", {}, "dial_failed", (NO_SCHEME,), StopKind.MISCONFIGURED, ...),
    ("waiting", {}, "faulted", ("a guard raised",), StopKind.FAULT, None),
    ("disconnected", {}, "faulted", ("a guard raised",), StopKind.FAULT, None),
]


@pytest.mark.parametrize(("where", "policy", "fact", "args", "stop", "cause"), STOPS)
def test_d_cause_a_stop_says_as_data_why(
    where: str, policy: Any, fact: str, args: tuple[Any, ...], stop: StopKind, cause: object
) -> None:
    """D-CAUSE: the same to listeners, to rooms, and to whoever waits; `...` stands for what the machine was told."""
    fsm = client(where)
    fsm.policy = RetryPolicy(jitter=0, **policy)
    effects: list[Effect] = getattr(fsm, fact)(*args)
    wanted = (args[0] if cause is ... else cause, stop)
    (error,) = [each.error for each in effects if isinstance(each, FailWaiters)]
    (told,) = [each for each in effects if isinstance(each, NotifyRooms)]
    assert isinstance(error, ClientStopped)
    assert (error.cause, error.stop) == (told.cause, told.stop) == (fsm.cause, fsm.stop_kind) == wanted
    assert (change(effects).cause, change(effects).stop) == wanted
    effects = fsm.connect_requested()
    assert (change(effects).cause, change(effects).stop, fsm.cause, fsm.stop_kind) == (None, None, None, None)


@pytest.mark.parametrize(
    ("where", "fact", "arg", "stop"),
    [
        ("connecting", "dial_failed", AttemptFailure(FailureKind.ANSWER, "HTTP 401", 401), StopKind.REFUSED),
        ("connecting", "dial_failed", REFUSED, StopKind.RETRYING_OFF),
        ("connected", "socket_closed", CloseInfo(4401, "out"), StopKind.REFUSED),
        ("connected", "socket_closed", LOST, StopKind.RETRYING_OFF),
        ("connected", "pong_missed", LOST, StopKind.RETRYING_OFF),
    ],
)
def test_d_cause_of_several_reasons_to_stop_the_strongest_is_told(
    where: str, fact: str, arg: object, stop: StopKind
) -> None:
    """D-CAUSE: the server's word, then that retrying is off, then that there are no attempts left."""
    fsm = client(where, enabled=False, max_attempts=0)
    getattr(fsm, fact)(arg)
    assert (fsm.state, fsm.stop_kind) == ("disconnected", stop)


def test_d_cause_too_big_a_message_is_told_before_attempts_used_up_and_after_the_servers_word() -> None:
    """D-CAUSE D-TOOBIG: twice in a row; the second time there is another reason, too, or retrying was switched off."""
    fsm = client("connected")
    lose(fsm, "socket_closed", TOO_BIG)
    fsm.policy = RetryPolicy(enabled=False)
    fsm.socket_closed(TOO_BIG)
    assert (fsm.state, fsm.stop_kind) == ("error", StopKind.MISCONFIGURED)
    for code, state_then, stop in ((1006, "error", StopKind.MISCONFIGURED), (1008, "disconnected", StopKind.REFUSED)):
        fsm = client("connected", max_attempts=1)
        lose(fsm, "socket_closed", TOO_BIG)
        fsm.socket_closed(CloseInfo(code, "too big", fault=FaultKind.MESSAGE_TOO_BIG))
        assert (fsm.state, fsm.stop_kind) == (state_then, stop)


@pytest.mark.parametrize(
    ("where", "fact", "args", "cause"),
    [
        ("connected", "socket_closed", (LOST,), LOST),
        ("connected", "pong_missed", (CloseInfo(1006, "dead", 1.0, fault=FaultKind.LIVENESS),), ...),
        ("connecting", "dial_failed", (REFUSED,), REFUSED),
        (
            "connecting",
            "went_offline",
            (),
            AttemptFailure(FailureKind.NETWORK, "offline", fault=FaultKind.OFFLINE),
        ),
        ("disconnected", "start_requested", (), None),
        ("connected", "retry_requested", (), None),
        ("connecting", "socket_opened", (), None),
    ],
)
def test_d_cause_a_change_says_as_data_why(where: str, fact: str, args: tuple[Any, ...], cause: object) -> None:
    """D-CAUSE: what ended it; None where this program asked for it. No stop, for it goes on."""
    fsm = client(where)
    news = change(getattr(fsm, fact)(*args))
    assert (news.cause, news.stop) == (args[0] if cause is ... else cause, None)
    assert (fsm.cause, fsm.stop_kind) == (news.cause, None)


def test_d_cause_stays_until_something_else_ends_it() -> None:
    """D-CAUSE: while it retries it says what the last failure was; an event that is refused changes nothing."""
    fsm = client("connected")
    fsm.socket_closed(LOST)
    fsm.timer_fired()
    fsm.socket_closed(CloseInfo(4401))  # of no socket of ours
    assert (fsm.state, fsm.cause) == ("retrying", LOST)
    fsm.dial_failed(REFUSED)
    assert fsm.cause == REFUSED
    fsm.socket_opened()
    fsm.connect_requested()
    assert fsm.cause is None


def test_d_cause_what_a_refused_event_told_is_no_cause_of_the_next() -> None:
    """D-CAUSE: also where an event of a user's own, which knows nothing of causes, leads to the change."""

    class Moody(ClientFSM):
        @event(row(ANY, to=ClientFSM.paused))
        def sent_to_sleep(self) -> None:
            """Somebody wants to save the battery."""
            self.pending_reason = "asleep"

    fsm = Moody()
    fsm.connect_requested()
    fsm.pong_missed(LOST)
    effects = fsm.sent_to_sleep()
    assert (fsm.reason, fsm.cause, change(effects).cause) == ("asleep", None, None)


def test_d_cause_a_row_of_a_users_own_that_stops_says_which_kind_of_stop_it_is() -> None:
    """D-CAUSE: the kind stands on the row; one that says nothing is this program's own decision, or a fault."""

    class Strict(ClientFSM):
        socket_closed = ClientFSM.socket_closed.first(
            row(ClientFSM.connected, to=ClientFSM.disconnected, do=ClientFSM.stop_refused, silences=ANY)
        )
        dial_failed = ClientFSM.dial_failed.first(
            row(ClientFSM.connecting, to=ClientFSM.error, do=ClientFSM.stop_misconfigured, silences=ANY)
        )
        pong_missed = ClientFSM.pong_missed.first(row(ClientFSM.connected, to=ClientFSM.disconnected, silences=ANY))
        timer_fired = ClientFSM.timer_fired.first(row(ClientFSM.connected, to=ClientFSM.disconnected, silences=ANY))
        went_online = ClientFSM.went_online.first(
            row(ClientFSM.connected, to=ClientFSM.error, silences=ANY),
            row(ClientFSM.disconnected, to=ClientFSM.error, silences=ANY),
        )

    for name, args, opened, stop in (
        ("socket_closed", (LOST,), True, StopKind.REFUSED),
        ("dial_failed", (REFUSED,), False, StopKind.MISCONFIGURED),
        ("pong_missed", (LOST,), True, StopKind.CLOSED),
        ("timer_fired", (), True, StopKind.CLOSED),
        ("went_online", (), True, StopKind.FAULT),
    ):
        fsm = Strict()
        fsm.connect_requested()
        if opened:
            fsm.socket_opened()
        getattr(fsm, name)(*args)
        assert fsm.stop_kind is stop
    fsm = Strict()  # what another row said before does not count
    fsm.connect_requested()
    fsm.socket_opened()
    fsm.socket_closed(LOST)
    fsm.went_offline()
    fsm.went_online()
    assert (fsm.state, fsm.stop_kind) == ("error", StopKind.FAULT)


def test_d_judged_the_raw_reason_is_judged_and_the_redacted_one_is_shown() -> None:
    """D-JUDGED RETRY-3: what is fatal is fatal, whatever of it may be shown; nothing that leaves shows the rest."""
    raw = CloseInfo(4000, "room_closed", 1.0, shown="room_…")
    fsm = client("connected")
    effects = fsm.socket_closed(raw)
    assert (fsm.state, fsm.stop_kind) == ("disconnected", StopKind.REFUSED)
    assert fsm.cause == CloseInfo(4000, "room_…", 1.0, is_redacted=True)
    assert "room_closed" not in repr(effects) + str(effects) + fsm.reason + repr(fsm.cause)
    assert fsm.loss.reason == "room_closed"
    harmless = client("connected")
    harmless.socket_closed(CloseInfo(4000, "closed by abc", 1.0, shown="room_closed"))
    assert harmless.state == "waiting"


def outages(effects: list[Effect]) -> list[tuple[str, str]]:
    """What the log is told of outages."""
    return [(each.why, each.next) for each in effects if isinstance(each, ReportOutage)]


def test_d_heard_the_third_failure_in_a_row_is_reported_once() -> None:
    """D-HEARD: why, and what comes next; not a fourth time, and its end only when a connection has lasted."""
    fsm = client("connecting")
    seen = []
    for _ in range(5):
        seen += outages(fsm.dial_failed(REFUSED))
        fsm.timer_fired()
    assert seen == [("connection refused", "retry 3 comes after a wait of 2.0 s")]
    assert fsm.outage_lasted() == []
    assert ReportRecovery not in map(type, fsm.socket_opened())
    assert [type(each) for each in fsm.timer_fired()] == [ReportRecovery]
    assert fsm.timer_fired() == []
    seen = outages(fsm.socket_closed(LOST))
    for _ in range(2):
        fsm.timer_fired()
        seen += outages(fsm.dial_failed(REFUSED))
    assert seen == [("connection refused", "retry 3 comes after a wait of 2.0 s")]  # another outage


def test_d_heard_a_server_that_accepts_and_drops_is_one_outage() -> None:
    """D-HEARD D-STABLE: no flood; each connection would end it and begin it anew."""
    fsm = client("connecting")
    effects: list[Effect] = []
    for _ in range(20):
        effects += fsm.socket_opened() + fsm.socket_closed(LOST) + fsm.timer_fired()
    assert [type(each) for each in effects if isinstance(each, (ReportOutage, ReportRecovery))] == [ReportOutage]


def test_d_heard_a_policy_that_counts_every_connection_ends_it_at_once() -> None:
    """D-HEARD D-STABLE: with ``stable_after=0``."""
    fsm = client("connecting", stable_after=0)
    fail(fsm, 3)
    fsm.timer_fired()
    assert ReportRecovery in map(type, fsm.socket_opened())


@pytest.mark.parametrize(
    ("where", "why", "then"),
    [
        ("connecting", "asked to connect", "an attempt is under way"),
        ("retrying", "the connection was lost", "an attempt is under way"),
        ("waiting", "the connection was lost", "retry 1 comes after a wait of 0.5 s"),
        ("paused", "offline", "it waits to hear that there is a network again"),
    ],
)
def test_d_heard_ten_seconds_without_a_connection_are_reported_once(where: str, why: str, then: str) -> None:
    """D-HEARD: wherever it is then, also if one attempt hangs for as long."""
    fsm = client(where)
    assert outages(fsm.outage_lasted()) == [(why, then)]
    assert fsm.outage_lasted() == []
    assert (fsm.state, fsm.reason) == (where, why)


@pytest.mark.parametrize("where", ["connected", "disconnected", "error"])
def test_d_heard_there_is_no_outage_where_nothing_is_under_way(where: str) -> None:
    """D-HEARD: there is a connection, or it is stopped, and whoever waits was told."""
    assert client(where).outage_lasted() == []


def test_d_heard_the_ten_seconds_run_from_the_loss_to_the_connection() -> None:
    """D-HEARD: through all attempts and waits, and not while it is stopped."""
    fsm = client()

    def begun(effects: list[Effect]) -> bool:
        return StartOutageTimer in map(type, effects)

    def ended(effects: list[Effect]) -> bool:
        return StopOutageTimer in map(type, effects)

    assert begun(fsm.start_requested())
    for effects in (fsm.dial_failed(REFUSED), fsm.timer_fired(), fsm.went_offline(), fsm.went_online(1.0)):
        assert not begun(effects)
        assert not ended(effects)
    assert ended(fsm.socket_opened())
    assert begun(fsm.socket_closed(LOST))
    assert ended(fsm.close_requested())
    assert begun(fsm.start_requested())
    assert ended(fsm.faulted("a guard raised"))


def test_d_heard_a_stop_after_three_failures_is_reported_at_once() -> None:
    """D-HEARD: the last failure counts."""
    fsm = client("connecting", max_attempts=2)
    then = "it does not try again by itself; connect() or retry_now() starts it again"
    assert outages(fail(fsm, 3)) == [("connection refused", then)]
    assert fsm.outage_lasted() == []


def test_d_heard_a_stop_after_two_failures_is_not_reported() -> None:
    """D-HEARD: nor one that this program has decided, or broken, whatever failed before."""
    assert outages(fail(client("connecting", max_attempts=1), 2)) == []
    for fact, *args in (("close_requested",), ("faulted", "a guard raised")):
        fsm = client("connecting")
        fail(fsm, 2)
        assert outages(getattr(fsm, fact)(*args)) == []
    fsm = client("connecting")
    fail(fsm, 3)
    fsm.close_requested()
    assert outages(fsm.faulted("a guard raised")) == []


def test_d_heard_a_user_changes_how_many_failures_are_an_outage() -> None:
    """D-HEARD: a class attribute; with 1 the first failure is one, and a beginning is none."""

    class Anxious(ClientFSM):
        failures_until_reported = 1

    fsm = Anxious(RetryPolicy(jitter=0))
    assert outages(fsm.connect_requested()) == []
    assert outages(fsm.dial_failed(REFUSED)) == [("connection refused", "retry 1 comes after a wait of 0.5 s")]


def test_d_heard_a_report_names_the_state_that_a_user_adds() -> None:
    """D-HEARD: unless an attempt is under way in it."""

    class Careful(ClientFSM):
        probing = state(ClientStatus.RECONNECTING, like=ClientFSM.retrying, enter="dial", exit="cancel_dial")
        held = state(ClientStatus.RECONNECTING, like=ClientFSM.paused)

        @event(row(ANY, to=probing))
        def looked(self) -> None: ...

    fsm = Careful(RetryPolicy())
    fsm.looked()
    assert [then for _, then in outages(fsm.outage_lasted())] == ["an attempt is under way"]
    fsm = Careful(RetryPolicy())
    fsm.jump_to(Careful.held)
    assert [then for _, then in outages(fsm.outage_lasted())] == ["it is held"]


def test_d_heard_what_is_closed_and_started_again_is_another_outage() -> None:
    """D-HEARD: this program has decided that the first one is over."""
    fsm = client("connecting")
    fail(fsm, 3)
    fsm.close_requested()
    fsm.connect_requested()
    assert len(outages(fsm.outage_lasted())) == 1


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("where", [where for where in ROUTES if where != "error"])
def test_d_error_what_broke_puts_everything_away(where: str, asked: bool) -> None:
    """D-ERROR: from every state, on an event or an effect; the socket is closed with 1011."""
    fsm = client(where)
    effects = said(fsm.faulted("the policy raised ValueError", asked))
    assert fsm.state == "error"
    assert effects[-4:-2] == ["Release()", "NotifyRooms('client_stopped', 'the policy raised ValueError')"]
    assert effects[-1].endswith("→ error, 'the policy raised ValueError')")
    if where == "connected":
        assert effects[2] == "CloseSocket(1011, '')"


@pytest.mark.parametrize("start", STARTERS, ids=["connect", "retry_now"])
def test_d_error_is_left_by_hand(start: Callable[[ClientFSM], list[Effect]]) -> None:
    """D-ERROR: a person who has mended it can start it again."""
    fsm = client("error")
    start(fsm)
    assert fsm.state == "connecting"


def test_d_error_a_policy_that_raises_leaves_the_machine_where_it_was() -> None:
    """D-ERROR: the driver then tells it that something faulted, and that works."""

    class Broken(RetryPolicy):
        def is_fatal_close(self, info: CloseInfo) -> bool:
            raise ZeroDivisionError

    fsm = ClientFSM(Broken())
    fsm.connect_requested()
    fsm.socket_opened()
    with pytest.raises(ZeroDivisionError):
        fsm.socket_closed(LOST)
    assert fsm.state == "connected"
    assert said(fsm.faulted("the policy raised"))[:3] == ["StopKeepalive()", "StopTimer()", "CloseSocket(1011, '')"]


class Waits(RetryPolicy):
    """A policy of a user's own, which always says the same."""

    def __init__(self, wait: float) -> None:
        super().__init__()
        object.__setattr__(self, "wait", wait)

    def delay(self, attempt: int) -> float:
        return float(vars(self)["wait"])


@pytest.mark.parametrize("wait", [float("inf"), float("nan")])
def test_d_error_a_policys_wait_that_is_no_time_is_refused(wait: float) -> None:
    """D-ERROR: a timer of the loop would run at once, or never; the error names the class and the wait."""
    fsm = ClientFSM(Waits(wait))
    fsm.connect_requested()
    with pytest.raises(ValueError, match=rf"^Waits\.delay returned {wait!r}, which is no time to wait$"):
        fsm.dial_failed(REFUSED)


def test_retry_1_a_policy_may_not_wait_at_all() -> None:
    """RETRY-1: no wait is one, too."""
    fsm = ClientFSM(Waits(0.0))
    fsm.connect_requested()
    assert waits(fsm.dial_failed(REFUSED)) == [0.0]
    assert fsm.retry_in == 0.0


@pytest.mark.parametrize(
    ("where", "fact", "args"),
    [
        ("connected", "close_requested", ()),
        ("connected", "socket_closed", (CloseInfo(1008),)),
        ("connecting", "dial_failed", (AttemptFailure(FailureKind.ANSWER, "HTTP 401", 401),)),
        ("waiting", "faulted", ("a guard raised",)),
    ],
)
def test_d_stop_everyone_who_waits_is_told_why(where: str, fact: str, args: tuple[Any, ...]) -> None:
    """D-STOP: once, after the rooms have been told and before the listeners."""
    fsm = client(where)
    effects: list[Effect] = getattr(fsm, fact)(*args)
    (failing,) = [each for each in effects if isinstance(each, FailWaiters)]
    assert isinstance(failing.error, ClientStopped)
    assert failing.error.reason == fsm.reason
    assert acts(effects).index(failing) == len(acts(effects)) - 2


@pytest.mark.parametrize("fact", ["socket_closed", "pong_missed"])
@pytest.mark.parametrize(("stable", "attempt"), [(False, 4), (True, 1)])
def test_d_stable_only_a_connection_that_lasted_resets_the_backoff(fact: str, stable: bool, attempt: int) -> None:
    """D-STABLE: a server that accepts and drops is not hammered."""
    fsm = client("connecting")
    fail(fsm, 3)
    fsm.timer_fired()
    fsm.socket_opened()
    if stable:
        fsm.timer_fired()
    getattr(fsm, fact)(LOST)
    assert (fsm.attempt, fsm.retry_in) == (attempt, 0.5 * 2 ** (attempt - 1))


@pytest.mark.parametrize("dial", [ClientFSM.timer_fired, ClientFSM.connect_requested], ids=lambda dial: dial.name)
@pytest.mark.parametrize(("after", "attempt"), [(0, 0), (0.001, 3), (1, 3)])
def test_d_stable_a_policy_may_count_every_connection(dial: Event[[]], after: float, attempt: int) -> None:
    """D-STABLE: from the moment it is open, with ``stable_after=0`` only; however soon it is lost."""
    fsm = client("connecting", stable_after=after)
    fail(fsm, 3)
    dial.fire(fsm)
    fsm.socket_opened()
    assert fsm.attempt == attempt
    assert waits(fsm.socket_closed(LOST)) == [0.5 * 2**attempt]


def test_d_stable_time_is_all_it_takes() -> None:
    """D-STABLE: nobody hears of it, and the reason for being connected stays what it was."""
    fsm = client("connecting", stable_after=7.0)
    fail(fsm, 3)
    assert waits(fsm.retry_requested() + fsm.socket_opened()) == [7.0]
    fsm.went_online()  # known already
    assert acts(fsm.timer_fired()) == []
    assert (fsm.state, fsm.attempt, fsm.reason) == ("connected", 0, "connected")


def test_d_stable_counts_however_the_connection_is_left() -> None:
    """D-STABLE RETRY-2: an hour of connection is not forgotten by a fresh attempt, nor by going offline."""
    fsm = client("connecting", max_attempts=1, reset_on_online=False)
    fail(fsm, 1)
    for leave in (fsm.retry_requested, lambda: fsm.went_offline() + fsm.went_online()):
        fsm.timer_fired()
        fsm.socket_opened()
        fsm.timer_fired()
        leave()
        assert waits(fsm.dial_failed(REFUSED)) == [0.5]


@pytest.mark.parametrize("where", ["disconnected", "waiting", "paused", "connected", "error"])
def test_a_fact_that_cannot_be_changes_no_count(where: str) -> None:
    """A dial or a socket that is nobody's is refused, and is no failed attempt either."""
    fsm = client(where)
    before = fsm.attempt
    assert fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=300.0)) == []
    if where != "connected":
        assert fsm.socket_closed(LOST) == []
        assert fsm.pong_missed(LOST) == []
        assert fsm.socket_opened() == []
    assert (fsm.state, fsm.attempt) == (where, before)


@pytest.mark.parametrize("where", ["disconnected", "connecting", "waiting", "retrying", "paused", "error"])
@pytest.mark.parametrize("policy", [{}, {"enabled": False}, {"max_attempts": 0}], ids=["on", "off", "used up"])
def test_retry_3_a_close_of_no_socket_of_ours_stops_nothing(where: str, policy: Any) -> None:
    """RETRY-3: however fatal its code, and however few retries are left: nothing was lost."""
    fsm = client(where)
    fsm.policy = RetryPolicy(**policy)
    assert fsm.socket_closed(CloseInfo(1008, "auth_failed")) == []
    assert fsm.socket_closed(TOO_BIG) == fsm.socket_closed(TOO_BIG) == []
    assert fsm.pong_missed(LOST) == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ["disconnected", "connected", "waiting", "paused", "error"])
@pytest.mark.parametrize("policy", [{}, {"enabled": False}, {"max_attempts": 0}], ids=["on", "off", "used up"])
def test_retry_3_a_failure_of_no_dial_of_ours_stops_nothing(where: str, policy: Any) -> None:
    """RETRY-3 D-ERROR: the same for an answer that comes when nobody waits for it any more."""
    fsm = client(where)
    fsm.policy = RetryPolicy(**policy)
    assert fsm.dial_failed(AttemptFailure(FailureKind.ANSWER, "HTTP 401", 401)) == []
    assert fsm.dial_failed(AttemptFailure(FailureKind.MISCONFIGURED, "no such scheme")) == []
    assert fsm.state == where


def test_d_error_an_event_that_raises_stops_the_client() -> None:
    """D-ERROR D-STOP: by the event `faulted`; one that is in error already tells its caller again."""
    fsm = client("connected")
    reason = "the machine ClientFSM raised KeyError; the log tells where"
    assert said(fsm.fault(KeyError("mine"), no_report))[-1] == f"NotifyStatus(connected → error, {reason!r})"
    (failed,) = said(fsm.fault(KeyError("mine"), no_report))
    assert failed.startswith("FailWaiters")


def no_report(what: str, error: BaseException) -> None:
    raise AssertionError(what) from error


def test_d_error_the_last_resort_calls_no_guard_or_action() -> None:
    """D-ERROR: when a user's action raises on the way to error too, the driver still has all that is to be done."""

    class Hopeless(ClientFSM):
        def stop(self) -> None:
            raise ZeroDivisionError

    fsm = Hopeless()
    fsm.connect_requested()
    reports: list[tuple[str, BaseException]] = []
    effects = fsm.fault(KeyError("mine"), lambda *report: reports.append(report))
    assert [(what, type(error)) for what, error in reports] == [("Hopeless, on its way to error,", ZeroDivisionError)]
    reason = "the machine Hopeless raised KeyError; the log tells where"
    (stopped,) = [each.error for each in effects if isinstance(each, FailWaiters)]
    (notified,) = [each for each in effects if isinstance(each, NotifyRooms)]
    assert isinstance(stopped, ClientStopped)
    for each in (stopped, notified, change(effects)):
        assert (each.cause, each.stop) == (None, StopKind.FAULT)
    assert said(effects) == [
        "Release()",
        f"NotifyRooms('client_stopped', {reason!r})",
        f"FailWaiters(ClientStopped('the client stopped: {reason} (connect() or retry_now() starts it again)'))",
        f"NotifyStatus(connecting → error, {reason!r})",
    ]
    assert (fsm.state, fsm.status, fsm.reason) == ("error", "error", reason)
    assert said(fsm.connect_requested())[-1] == "NotifyStatus(error → connecting, 'asked to connect')"


def test_d_error_the_last_resort_in_error_notifies_no_listener_of_a_status() -> None:
    """D-ERROR OBS-1: the status is the same."""

    class Hopeless(ClientFSM):
        def fault_again(self) -> None:
            raise OSError

    fsm = Hopeless()
    fsm.faulted("a policy raised")
    assert [each.split("(")[0] for each in said(fsm.fault(KeyError(), lambda *_: None))] == [
        "Release",
        "NotifyRooms",
        "FailWaiters",
    ]


def test_d_error_the_last_resort_does_not_run_what_a_user_overrides() -> None:
    """D-ERROR: `state_changed` is the user's to override, and may be what raised."""

    class Hopeless(ClientFSM):
        def state_changed(self) -> None:
            raise OSError

    assert said(Hopeless().fault(OSError(), lambda *_: None))[0] == "Release()"


def test_obs_1_listeners_hear_the_attempt_and_the_wait_only_while_under_way() -> None:
    """OBS-1: the number of the next retry and the seconds until then; a stopped client has neither."""
    fsm = client("connecting", max_attempts=1)
    news = change(fail(fsm, 1))
    assert (news.old, news.new, news.attempt, news.retry_in) == ("connecting", "reconnecting", 1, 0.5)
    fsm.timer_fired()
    news = change(fsm.dial_failed(REFUSED))
    assert (news.old, news.new, news.attempt, news.retry_in) == ("reconnecting", "disconnected", 0, None)


# ----------------------------------------------------------------------------------------------------------- subclasses


def test_a_users_state_and_row_are_part_of_the_machine() -> None:
    """One that waits in a state of its own after being kicked, with all that `waiting` does."""

    class Patient(ClientFSM):
        banished = state(ClientStatus.RECONNECTING, enter="wait_long", exit="stop_retry_timer", like=ClientFSM.waiting)

        def was_kicked(self) -> bool:
            return self.loss.reason == "kicked"

        def wait_long(self) -> None:
            self.retry_in = 60.0
            self.emit(StartTimer(60.0))

        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=banished, when=was_kicked))

    fsm = Patient(RetryPolicy(jitter=0))
    fsm.connect_requested()
    fsm.socket_opened()
    assert waits(fsm.socket_closed(CloseInfo(1000, "kicked"))) == [60.0]
    assert (fsm.state, fsm.status) == ("banished", "reconnecting")
    assert said(fsm.timer_fired()) == ["StopTimer()", "Dial()"]


def test_an_instance_is_small() -> None:
    """It has slots only; so has its base."""
    fsm = client()
    assert not hasattr(fsm, "__dict__")
    assert sys.getsizeof(fsm) <= 248


def test_a_new_machine_has_the_default_policy_and_nothing_behind_it() -> None:
    """As `Client(url)` makes it; guards may read all of it at any time."""
    fsm = ClientFSM()
    assert fsm.policy == RetryPolicy()
    assert fsm.reason == fsm.pending_reason == "not started"
    assert fsm.is_driven is False
    assert (fsm.attempt, fsm.retry_in, fsm.online) == (0, None, True)
    assert not any([fsm.is_fatal_close(), fsm.is_fatal_failure(), fsm.is_misconfigured(), fsm.is_reset_asked()])
    assert fsm.closing == (1000, "")
    assert fsm.failure == AttemptFailure(FailureKind.NETWORK, "")
    assert fsm.loss == CloseInfo(1000)
    assert fsm.reset_asked is False
    assert (fsm.cause, fsm.stop_kind, fsm.pending_stop) == (None, None, None)
    assert (fsm.now, fsm.not_before, fsm.woken_at) == (0.0, None, None)
    assert (fsm.skip_backoff, fsm.certificate_may_recover, fsm.outage_reported) == (False, False, False)
    assert (fsm.too_big_in_a_row, fsm.fault_in_event) == (0, False)


# --------------------------------------------------------------------------------------------------------------- golden


def outage_and_recovery(story: Story) -> None:
    """The server goes away for a while."""
    story.tell("connect_requested")
    story.tell("socket_opened")
    story.tell("timer_fired")
    story.tell("socket_closed", CloseInfo(1006, lasted=3600.0))
    story.tell("timer_fired")
    story.tell("dial_failed", REFUSED)
    story.tell("timer_fired")
    story.tell("dial_failed", AttemptFailure(FailureKind.ANSWER, "HTTP 503", 503, retry_after=3.0))
    story.tell("timer_fired")
    story.tell("socket_opened")
    story.tell("socket_closed", CloseInfo(1001, "going down", lasted=1.0))
    story.tell("close_requested")


def fatal_close(story: Story) -> None:
    """The server says: do not come back; a person does."""
    story.tell("connect_requested")
    story.tell("socket_opened")
    story.tell("socket_closed", CloseInfo(4401, "token revoked", lasted=60.0))
    story.tell("timer_fired")
    story.tell("went_online")
    story.tell("retry_requested")
    story.tell("dial_failed", AttemptFailure(FailureKind.ANSWER, "HTTP 401", 401))
    story.tell("connect_requested")
    story.tell("dial_failed", AttemptFailure(FailureKind.MISCONFIGURED, "the certificate does not verify"))
    story.tell("connect_requested")
    story.tell("socket_opened")


def offline_and_online(story: Story) -> None:
    """The laptop's lid, twice."""
    story.tell("connect_requested")
    story.tell("went_online")
    story.tell("socket_opened")
    story.tell("went_offline")
    story.tell("went_offline")
    story.tell("went_online")
    story.tell("dial_failed", REFUSED)
    story.tell("went_offline")
    story.tell("connect_requested")
    story.tell("dial_failed", REFUSED)
    story.tell("went_online")
    story.tell("socket_opened")


def attempts_used_up(story: Story) -> None:
    """Two retries, and no more; then by hand."""
    story.fsm = ClientFSM(RetryPolicy(jitter=0, max_attempts=2))
    story.tell("connect_requested")
    for _ in range(2):
        story.tell("dial_failed", REFUSED)
        story.tell("timer_fired")
    story.tell("dial_failed", REFUSED)
    story.tell("connect_requested")
    story.tell("dial_failed", REFUSED)


def liveness(story: Story) -> None:
    """A half-open connection, again and again."""
    dead = "no answer to a ping within 10 s: the connection is dead"
    story.tell("connect_requested")
    for lasted in (600.0, 4.0, 4.0):
        story.tell("socket_opened")
        if lasted > 5:
            story.tell("timer_fired")
        story.tell("pong_missed", CloseInfo(1006, dead, lasted=lasted))
        story.tell("timer_fired")


def by_hand(story: Story) -> None:
    """Somebody at the buttons."""
    story.tell("close_requested")
    story.tell("connect_requested")
    story.tell("connect_requested")
    story.tell("retry_requested")
    story.tell("dial_failed", REFUSED)
    story.tell("connect_requested")
    story.tell("dial_failed", REFUSED)
    story.tell("connect_requested", True)
    story.tell("dial_failed", REFUSED)
    story.tell("retry_requested")
    story.tell("socket_opened")
    story.tell("connect_requested")
    story.tell("retry_requested")
    story.tell("close_requested")
    story.tell("retry_requested")
    story.tell("faulted", "the machine ClientFSM raised ValueError; the log tells where")
    story.tell("close_requested")


STORIES = [outage_and_recovery, fatal_close, offline_and_online, attempts_used_up, liveness, by_hand]


@pytest.mark.parametrize("tell", STORIES, ids=lambda tell: tell.__name__)
def test_golden_transcripts(tell: Callable[[Story], None]) -> None:
    """A typical story, line by line; see tests/golden for how to write it anew."""
    story = Story(client())
    tell(story)
    golden.check(f"client_{tell.__name__}", story)


def test_golden_transcripts_have_a_story_each() -> None:
    """No transcript is left over from a story that is told no more."""
    assert golden.names("client") == {f"client_{tell.__name__}" for tell in STORIES}
