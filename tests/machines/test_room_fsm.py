"""Every decision of a room, clause by clause: facts in, effects out; no loop, no socket, no clock."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

import golden
from golden import Story, change, said, waits
from reconnect_fsm.effects import Effect, FailWaiters, NotifyError, VersionChoice
from reconnect_fsm.errors import ClientStopped, JoinRefused, RoomLeft, UpdatesRefused
from reconnect_fsm.loro_protocol import UpdateStatusCode
from reconnect_fsm.machine import row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import CloseInfo, RoomStatus, StopKind

UNKNOWN = JoinRefused(0, "no such room")
VERSION_UNKNOWN = JoinRefused(1, "cannot read that version")
AUTH_FAILED = JoinRefused(2, "who are you?")
REJOIN = JoinRefused(1, "come back")
EVICTED = JoinRefused(2, "out with you")
QUEUED: list[tuple[Any, ...]] = [("join_requested",)]
JOINING = [*QUEUED, ("connection_opened", "connected")]
JOINED = [*JOINING, ("join_accepted", "write", b"")]
STALE = [*JOINED, ("connection_lost", "the connection was lost")]
REJOINING = [*STALE, ("connection_opened", "connected")]
ROUTES: dict[str, list[tuple[Any, ...]]] = {
    "disconnected": [],
    "queued": QUEUED,
    "joining": JOINING,
    "join_delayed": [*JOINING, ("timer_fired",)],
    "joined": JOINED,
    "resyncing": [*JOINED, ("resync_requested",)],
    "resync_delayed": [*JOINED, ("resync_requested",), ("timer_fired",)],
    "stale": STALE,
    "rejoining": REJOINING,
    "rejoin_delayed": [*REJOINING, ("timer_fired",)],
    "left": [*QUEUED, ("leave_requested",)],
    "error": [*JOINING, ("join_refused", AUTH_FAILED)],
}
"""How to get into each state."""
TRACKED = [where for where in ROUTES if where not in ("left", "error")]
ONLINE = ["joining", "join_delayed", "joined", "resyncing", "resync_delayed", "rejoining", "rejoin_delayed"]
ASKING = ["joining", "rejoining", "resyncing"]
DELAYED = ["join_delayed", "rejoin_delayed", "resync_delayed"]  # each after one of those
SESSION = ["joined", "resyncing", "resync_delayed"]


def room(where: str = "disconnected", cls: type[RoomFSM] = RoomFSM) -> RoomFSM:
    """A machine in that state, whose waits are not spread."""
    fsm = cls(RetryPolicy(jitter=0))
    for fact, *args in ROUTES[where]:
        getattr(fsm, fact)(*args)
    assert fsm.state == where
    return fsm


def error_of(effects: list[Effect]) -> Exception:
    """What those who wait are told."""
    (failing,) = [each for each in effects if isinstance(each, FailWaiters)]
    return failing.error


# -------------------------------------------------------------------------------------------------------------- joining


def test_join_1_a_join_before_there_is_a_connection_is_kept() -> None:
    """JOIN-1: nothing is sent, nothing is raised; once connected it is asked for."""
    fsm = room()
    assert said(fsm.join_requested()) == ["NotifyStatus(disconnected → connecting, 'asked to join')"]
    assert fsm.state == "queued"
    assert said(fsm.connection_opened("connected")) == ["RequestJoin(CURRENT)", "StartTimer(10)"]
    assert (fsm.state, fsm.reason) == ("joining", "connected")


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("disconnected", "disconnected"),
        ("queued", "connecting"),
        ("joining", "connecting"),
        ("join_delayed", "connecting"),
        ("joined", "joined"),
        ("resyncing", "joined"),
        ("resync_delayed", "joined"),
        ("stale", "reconnecting"),
        ("rejoining", "reconnecting"),
        ("rejoin_delayed", "reconnecting"),
        ("left", "disconnected"),
        ("error", "error"),
    ],
)
def test_join_3_every_state_shows_one_of_five_statuses(where: str, status: str) -> None:
    """JOIN-3: and a room that was joined shows another than one that never was."""
    assert room(where).status == status
    assert {each.status for each in RoomFSM.states.values()} == set(RoomStatus)


def test_obs_2_a_comparison_of_versions_is_no_change_of_status() -> None:
    """OBS-2 D-RESYNC: the room stays joined; `room.reason` says what it does."""
    fsm = room("joined")
    assert not any(each.startswith("NotifyStatus") for each in said(fsm.evicted(REJOIN, 100.0)))
    assert (fsm.state, fsm.status, fsm.reason) == ("resyncing", "joined", str(REJOIN))
    fsm.join_accepted("write", b"")
    assert not any(each.startswith("NotifyStatus") for each in said(fsm.evicted(REJOIN, 110.0)))
    assert (fsm.state, fsm.delay) == ("resync_delayed", 20.0)


@pytest.mark.parametrize(
    ("fact", "args"), [("leave_requested", ()), ("faulted", ("why",)), ("join_refused", (UNKNOWN,))]
)
def test_obs_2_listeners_hear_of_no_attempt_once_it_is_over(fact: str, args: tuple[Any, ...]) -> None:
    """OBS-2: ``attempt`` is 0 when there is no next one."""
    assert change(getattr(room("join_delayed"), fact)(*args)).attempt == 0


@pytest.mark.parametrize(("where", "old"), [("joining", "connecting"), ("rejoining", "reconnecting")])
def test_ok_4_an_answer_begins_the_session(where: str, old: str) -> None:
    """OK-4: the deadline is off, and what the server lacks is sent."""
    fsm = room(where)
    assert said(fsm.join_accepted("write", b"")) == [
        "StopTimer()",
        "AbandonRequest()",
        "Synchronise('write', b'')",
        f"NotifyStatus({old} → joined, 'joined')",
    ]
    assert (fsm.state, fsm.reason) == ("joined", "joined")


@pytest.mark.parametrize("where", DELAYED)
def test_ok_4_an_answer_that_comes_late_counts(where: str) -> None:
    """OK-4 D-TIMEOUT: the server let us in, so we are."""
    fsm = room(where)
    assert said(fsm.join_accepted("write", b""))[:2] == ["StopTimer()", "Synchronise('write', b'')"]
    assert (fsm.state, fsm.attempt) == ("joined", 0)


# ------------------------------------------------------------------------------------------------------------ rejoining


def test_rejoin_2_a_joined_room_is_asked_for_again_after_a_reconnect() -> None:
    """REJOIN-2: it shows ``reconnecting`` meanwhile."""
    fsm = room("joined")
    assert said(fsm.connection_lost("ping timeout")) == [
        "DiscardUnsent()",
        "EndSession()",
        "NotifyStatus(joined → reconnecting, 'ping timeout')",
    ]
    assert fsm.state == "stale"
    assert said(fsm.connection_opened("connected")) == ["RequestJoin(CURRENT)", "StartTimer(10)"]
    assert fsm.state == "rejoining"


@pytest.mark.parametrize(
    ("where", "then", "effects"),
    [
        ("joining", "queued", ["StopTimer()", "AbandonRequest()"]),
        ("join_delayed", "queued", ["StopTimer()"]),
        ("rejoining", "stale", ["StopTimer()", "AbandonRequest()"]),
        ("rejoin_delayed", "stale", ["StopTimer()"]),
    ],
)
def test_d_intent_a_request_in_flight_is_sent_again(where: str, then: str, effects: list[str]) -> None:
    """D-INTENT REJOIN-2: what is queued is the intent; on the next connection it is asked for afresh."""
    fsm = room(where)
    assert said(fsm.connection_lost("lost")) == effects
    assert (fsm.state, fsm.attempt) == (then, 0)
    assert said(fsm.connection_opened("connected"))[0] == "RequestJoin(CURRENT)"


@pytest.mark.parametrize(("where", "old"), [("joining", "connecting"), ("rejoining", "reconnecting")])
def test_rejoin_3_a_refusal_is_the_end(where: str, old: str) -> None:
    """REJOIN-3 OK-4: untracked before anyone is told, so that whoever is told can join again."""
    fsm = room(where)
    effects = fsm.join_refused(AUTH_FAILED)
    assert said(effects) == [
        "StopTimer()",
        "AbandonRequest()",
        "Untrack()",
        f"FailWaiters(JoinRefused('{AUTH_FAILED}'))",
        f"NotifyError(JoinRefused('{AUTH_FAILED}'))",
        f"NotifyStatus({old} → error, '{AUTH_FAILED}')",
    ]
    assert error_of(effects) is AUTH_FAILED
    assert fsm.state == "error"


@pytest.mark.parametrize("where", DELAYED)
def test_rejoin_3_a_refusal_that_comes_late_counts(where: str) -> None:
    """REJOIN-3 D-TIMEOUT: asking again would get the same answer."""
    fsm = room(where)
    assert said(fsm.join_refused(AUTH_FAILED))[:2] == ["StopTimer()", "Untrack()"]
    assert fsm.state == "error"


# ----------------------------------------------------------------------------------------- where the clauses are silent


@pytest.mark.parametrize("where", [where for where in TRACKED if where != "disconnected"])
def test_d_stop_a_stopped_client_keeps_the_room(where: str) -> None:
    """D-STOP: disconnected, still tracked, and whoever waits is told why."""
    fsm = room(where)
    effects = fsm.client_stopped("closed by this program")
    error = error_of(effects)
    assert isinstance(error, ClientStopped)
    assert error.reason == "closed by this program"
    assert "Untrack()" not in said(effects)
    assert (fsm.state, fsm.status) == ("disconnected", "disconnected")
    assert change(effects).attempt == 0


LOST = CloseInfo(1006, lasted=1.0)


def test_d_cause_a_change_says_as_data_why() -> None:
    """D-CAUSE: to listeners, and to whoever waits; what the client stopped for is no cause of what comes after it."""
    fsm = room("joined")
    news = change(fsm.connection_lost("lost", LOST))
    assert (news.cause, news.stop) == (LOST, None)
    effects = fsm.client_stopped("refused", LOST, StopKind.REFUSED)
    error = error_of(effects)
    assert isinstance(error, ClientStopped)
    assert (error.cause, error.stop) == (change(effects).cause, change(effects).stop) == (LOST, StopKind.REFUSED)
    news = change(fsm.client_started("again"))
    assert (news.cause, news.stop) == (None, None)
    fsm.connection_opened("connected")
    news = change(fsm.join_accepted("write", b""))
    assert (news.cause, news.stop) == (None, None)
    news = change(fsm.evicted(EVICTED, 100.0))
    assert (news.cause, news.stop) == (EVICTED, None)
    news = change(room("joined").leave_requested())
    assert (news.cause, news.stop) == (None, None)


def test_d_stop_a_stopped_session_ends_first() -> None:
    """D-STOP: before listeners hear of it."""
    assert said(room("joined").client_stopped("closed")) == [
        "FailWaiters(ClientStopped('the client stopped: closed (connect() or retry_now() starts it again)'))",
        "EndSession()",
        "NotifyStatus(joined → disconnected, 'closed')",
    ]


def test_d_stop_the_room_is_joined_when_the_client_is_back() -> None:
    """D-STOP: started, then connected."""
    fsm = room("joined")
    fsm.client_stopped("closed")
    assert said(fsm.client_started("asked to connect")) == [
        "NotifyStatus(disconnected → connecting, 'asked to connect')"
    ]
    assert fsm.state == "queued"
    fsm.connection_opened("connected")
    assert fsm.state == "joining"


def test_d_stop_a_room_that_missed_the_start_is_joined_all_the_same() -> None:
    """D-STOP: a connection is all it needs."""
    fsm = room()
    assert said(fsm.connection_opened("connected"))[:2] == ["RequestJoin(CURRENT)", "StartTimer(10)"]
    assert fsm.state == "joining"


def test_d_stop_stopping_twice_is_stopping_once() -> None:
    """D-STOP: nothing is reported twice."""
    assert room().client_stopped("closed") == []


@pytest.mark.parametrize("where", ["queued", "stale", "joined"])
def test_d_stop_a_client_that_starts_is_no_news_for_a_room_that_waits(where: str) -> None:
    """D-STOP: it waits for a connection already."""
    fsm = room(where)
    assert fsm.client_started("again") == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ASKING)
def test_d_timeout_a_request_without_an_answer_is_made_again_later_and_later(where: str) -> None:
    """D-TIMEOUT: 10 s for the answer, then a backoff of the room's own, for ever."""
    fsm = room(where)
    seen = []
    for _ in range(7):
        effects = fsm.timer_fired()
        assert said(effects)[:2] == ["StopTimer()", "AbandonRequest()"]
        seen += waits(effects)
        again = fsm.timer_fired()
        assert said(again) == ["StopTimer()", "RequestJoin(CURRENT)", "StartTimer(10)"]
    assert seen == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert fsm.state == where


def test_d_timeout_waits_are_spread_by_the_policy() -> None:
    """D-TIMEOUT D-JITTER: so that ten thousand rooms do not ask at once; a seeded source repeats it."""
    one, two = (RoomFSM(RetryPolicy(random=random.Random(3))) for _ in range(2))
    for fsm in (one, two):
        fsm.connection_opened("connected")
        fsm.timer_fired()
    assert one.delay == two.delay != 0.5


def test_d_timeout_the_backoff_begins_anew_once_joined() -> None:
    """D-TIMEOUT: the next time it is asked for in vain is the first."""
    fsm = room("join_delayed")
    fsm.join_accepted("write", b"")
    fsm.connection_lost("lost")
    fsm.connection_opened("connected")
    assert waits(fsm.timer_fired()) == [0.5]


@pytest.mark.parametrize("where", DELAYED)
def test_d_timeout_the_reason_for_asking_again_is_that_of_the_wait(where: str) -> None:
    """D-TIMEOUT: when a wait ends, it is not for want of an answer; nor is a refused fact a reason."""
    fsm = room(dict(zip(DELAYED, ASKING, strict=True))[where])
    fsm.credentials_failed("the auth function raised OSError", False)
    fsm.join_requested()
    fsm.timer_fired()
    assert fsm.reason == "the auth function raised OSError"
    fsm.timer_fired()
    assert fsm.reason == "no answer to the request to join within 10 s"


@pytest.mark.parametrize(("where", "then"), list(zip(ASKING, DELAYED, strict=True)))
def test_d_intent_an_auth_callable_that_raises_is_asked_again_later(where: str, then: str) -> None:
    """D-INTENT: with backoff; the room is not lost."""
    fsm = room(where)
    assert said(fsm.credentials_failed("the auth function raised OSError", False)) == [
        "StopTimer()",
        "AbandonRequest()",
        "StartTimer(0.5)",
    ]
    assert (fsm.state, fsm.reason) == (then, "the auth function raised OSError")


@pytest.mark.parametrize("where", ASKING)
def test_d_intent_unauthorized_is_the_end(where: str) -> None:
    """D-INTENT REJOIN-3: the user's own word that asking again is of no use."""
    fsm = room(where)
    error = error_of(fsm.credentials_failed("the auth function raised Unauthorized", True))
    assert isinstance(error, JoinRefused)
    assert (error.code, error.message) == (None, "the auth function raised Unauthorized")
    assert fsm.state == "error"


@pytest.mark.parametrize("where", [where for where in ROUTES if where not in ASKING])
def test_d_intent_credentials_that_nobody_waits_for_change_nothing(where: str) -> None:
    """D-INTENT: the connection was lost meanwhile, or it is over."""
    fsm = room(where)
    assert fsm.credentials_failed("the auth function raised Unauthorized", True) == []
    assert fsm.state == where


@pytest.mark.parametrize("where", [where for where in TRACKED if where != "disconnected"])
def test_d_dedupe_a_second_join_changes_nothing(where: str) -> None:
    """D-DEDUPE: it is the same room."""
    fsm = room(where)
    assert fsm.join_requested() == []
    assert fsm.state == where


@pytest.mark.parametrize("where", TRACKED)
def test_d_leave_drops_the_room_at_once(where: str) -> None:
    """D-LEAVE: online or not; the server is told if it can be."""
    fsm = room(where)
    effects = fsm.leave_requested()
    told = [each for each in said(effects) if each == "SendLeave()"]
    assert told == (["SendLeave()"] if where in ONLINE else [])
    assert said(effects).count("Untrack()") == 1
    assert isinstance(error_of(effects), RoomLeft)
    assert (fsm.state, fsm.status) == ("left", "disconnected")


def test_d_leave_the_server_is_told_before_the_session_ends() -> None:
    """D-LEAVE: in this order."""
    assert said(room("joined").leave_requested()) == [
        "SendLeave()",
        "Untrack()",
        "FailWaiters(RoomLeft('leave() was called on the room while this operation waited for it'))",
        "EndSession()",
        "NotifyStatus(joined → disconnected, 'left by this program')",
    ]


def test_d_leave_a_room_that_is_disconnected_reports_nothing_twice() -> None:
    """D-LEAVE D-LISTEN: the status is the same before and after."""
    effects = said(room("disconnected").leave_requested())
    assert not any(each.startswith("NotifyStatus") for each in effects)


FOR_GOOD = (
    UpdateStatusCode.PERMISSION_DENIED,
    UpdateStatusCode.INVALID_UPDATE,
    UpdateStatusCode.PAYLOAD_TOO_LARGE,
    UpdateStatusCode.APP_ERROR,
)
REFUSALS = [each for each in UpdateStatusCode if each is not UpdateStatusCode.OK]
OF_THE_MOMENT = [each for each in REFUSALS if each not in FOR_GOOD]
OVER: list[tuple[Any, ...]] = [
    ("join_requested",),
    ("connection_opened", "connected"),
    ("connection_lost", "lost"),
    ("client_stopped", "closed"),
    ("client_started", "again"),
    ("join_accepted", "write", b""),
    ("join_refused", UNKNOWN),
    ("credentials_failed", "raised", True),
    ("timer_fired",),
    ("evicted", EVICTED, 1.0),
    ("acks_overdue", 1.0),
    ("batch_refused", UpdateStatusCode.RATE_LIMITED, "slowly", 1.0),
    ("upload_refused", UpdateStatusCode.PERMISSION_DENIED),
    ("edited_in_doubt", 1.0),
    ("acks_complete",),
    ("updates_lost", UpdateStatusCode.OK, "one is missing", 1.0),
    ("resync_requested",),
    ("leave_requested",),
    ("faulted", "raised"),
]


@pytest.mark.parametrize("where", ["left", "error"])
@pytest.mark.parametrize(("fact", "args"), [(fact, args) for fact, *args in OVER], ids=[fact for fact, *_ in OVER])
def test_d_leave_what_is_over_is_over(where: str, fact: str, args: list[Any]) -> None:
    """D-LEAVE REJOIN-3: the handle is done with; joining again makes a new room."""
    fsm = room(where)
    assert getattr(fsm, fact)(*args) == []
    assert fsm.state == where
    assert {fact for fact, *_ in OVER} == set(RoomFSM.events)


@pytest.mark.parametrize("where", ONLINE)
def test_d_roomerr_eviction_is_the_end(where: str) -> None:
    """D-ROOMERR: any code but 1; the set is cleared before listeners hear of it."""
    fsm = room(where)
    effects = said(fsm.evicted(EVICTED, 100.0))
    begin = effects.index("Untrack()")
    assert effects[begin + 1] == f"FailWaiters(JoinRefused('{EVICTED}'))"
    assert f"NotifyError(JoinRefused('{EVICTED}'))" in effects[begin:]
    assert f"→ error, '{EVICTED}'" in effects[-1]
    assert fsm.state == "error"


def test_d_roomerr_a_refusal_after_the_join_is_a_room_error() -> None:
    """D-ROOMERR: servers answer a state too large to send with Ok, then a JoinError."""
    fsm = room("joined")
    assert {"EndSession()", "Untrack()"} < set(said(fsm.join_refused(UNKNOWN)))
    assert fsm.state == "error"


def test_d_roomerr_a_refused_version_after_the_join_is_the_end() -> None:
    """D-ROOMERR D-VERSION: nothing is asked again in the middle of a session."""
    fsm = room("joined")
    fsm.join_refused(VERSION_UNKNOWN)
    assert fsm.state == "error"


def test_d_roomerr_a_suggestion_is_followed_at_once() -> None:
    """D-ROOMERR: the first one."""
    fsm = room("joined")
    assert said(fsm.evicted(REJOIN, 100.0)) == [
        "DiscardUnsent()",
        "RequestJoin(CURRENT)",
        "StartTimer(10)",
    ]
    assert (fsm.state, fsm.status) == ("resyncing", "joined")


def test_d_roomerr_then_at_most_once_in_30_seconds() -> None:
    """D-ROOMERR: a server that suggests it without end is followed at 100, 130, 160 … s, by the clock of the facts."""
    fsm = room("joined")
    now, followed = 100.0, []
    for _ in range(4):
        effects = fsm.evicted(REJOIN, now)
        if fsm.state == "resync_delayed":
            (wait,) = waits(effects)
            now += wait
            fsm.timer_fired()
        assert fsm.state == "resyncing"
        followed.append(now)
        now += 1
        fsm.join_accepted("write", b"")
    assert followed == [100.0, 130.0, 160.0, 190.0]


@pytest.mark.parametrize(("since", "wait"), [(0.0, 30.0), (0.5, 29.5), (29.5, 0.5), (-5.0, 30.0)])
def test_d_roomerr_a_suggestion_waits_for_what_is_left_of_the_interval(since: float, wait: float) -> None:
    """D-ROOMERR: to the fraction of a second; a clock that went back makes it no longer than the interval."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    assert waits(fsm.evicted(REJOIN, 100.0 + since)) == [wait]


def test_d_roomerr_a_late_answer_to_a_suggestion_that_was_followed_counts() -> None:
    """D-ROOMERR OK-4: it was asked for, however soon after the suggestion."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.timer_fired()  # no answer in time
    assert fsm.state == "resync_delayed"
    fsm.join_accepted("write", b"")
    assert fsm.state == "joined"


def test_d_roomerr_the_interval_is_over() -> None:
    """D-ROOMERR: 30 s later it is followed at once again."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    fsm.evicted(REJOIN, 130.0)
    assert fsm.state == "resyncing"


def test_d_roomerr_a_suggestion_waits_no_longer_than_the_interval() -> None:
    """D-ROOMERR: also if the connection is lost, time and again, before it could be followed."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    for _ in range(3):
        (wait,) = waits(fsm.evicted(REJOIN, 101.0))
        assert 29 <= wait <= 30
        for fact, *args in REJOINING[-2:]:
            getattr(fsm, fact)(*args)
        fsm.join_accepted("write", b"")


def test_d_roomerr_a_suggestion_while_a_comparison_waits_keeps_edits_back() -> None:
    """D-ROOMERR D-RESYNC: we are put out, so an edit would be refused."""
    fsm = room("resync_delayed")
    assert said(fsm.evicted(REJOIN, 100.0)) == ["DiscardUnsent()"]
    assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", True)


def test_d_roomerr_a_suggestion_while_one_waits_for_its_time_is_kept() -> None:
    """D-ROOMERR: within the interval, and whichever version was refused meanwhile; the wait goes on."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    fsm.evicted(REJOIN, 101.0)
    assert said(fsm.evicted(REJOIN, 102.0)) == ["DiscardUnsent()"]
    assert fsm.state == "resync_delayed"
    fsm = room("resyncing")
    fsm.join_refused(VERSION_UNKNOWN)
    fsm.join_refused(VERSION_UNKNOWN)
    fsm.timer_fired()
    assert said(fsm.evicted(REJOIN, 100.0)) == ["DiscardUnsent()"]
    assert fsm.state == "resync_delayed"


@pytest.mark.parametrize("where", [*ASKING, "join_delayed", "rejoin_delayed"])
def test_d_roomerr_a_suggestion_is_no_news_while_asking(where: str) -> None:
    """D-ROOMERR: it is what the room does."""
    fsm = room(where)
    assert fsm.evicted(REJOIN, 100.0) == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ["disconnected", "queued", "stale"])
def test_d_roomerr_without_a_connection_it_is_nobodys(where: str) -> None:
    """D-ROOMERR: a message of an earlier connection."""
    fsm = room(where)
    assert fsm.evicted(EVICTED, 100.0) == []
    assert fsm.join_refused(UNKNOWN) == []
    assert fsm.join_accepted("write", b"") == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ASKING)
def test_d_version_the_alternative_then_empty_then_error(where: str) -> None:
    """D-VERSION: each is asked with once, at once, and then it is over."""
    fsm = room(where)
    for choice in ("ALTERNATIVE", "EMPTY"):
        assert said(fsm.join_refused(VERSION_UNKNOWN)) == [
            "StopTimer()",
            "AbandonRequest()",
            f"RequestJoin({choice})",
            "StartTimer(10)",
        ]
        assert fsm.state == where
    assert error_of(fsm.join_refused(VERSION_UNKNOWN)) is VERSION_UNKNOWN
    assert fsm.state == "error"


@pytest.mark.parametrize("where", DELAYED)
def test_d_version_an_answer_that_comes_late_counts_for_the_next_request(where: str) -> None:
    """D-VERSION D-TIMEOUT: it says nothing about when to ask again."""
    fsm = room(where)
    assert fsm.join_refused(VERSION_UNKNOWN) == []
    assert said(fsm.timer_fired()) == ["StopTimer()", "RequestJoin(ALTERNATIVE)", "StartTimer(10)"]


@pytest.mark.parametrize("where", DELAYED)
def test_d_version_late_answers_run_out_of_versions_too(where: str) -> None:
    """D-VERSION REJOIN-3: after the empty one it is over, whenever the answer comes."""
    fsm = room(where)
    fsm.join_refused(VERSION_UNKNOWN)
    fsm.join_refused(VERSION_UNKNOWN)
    assert error_of(fsm.join_refused(VERSION_UNKNOWN)) is VERSION_UNKNOWN
    assert fsm.state == "error"


def test_d_version_an_answer_to_nothing_chooses_no_version() -> None:
    """D-VERSION D-ROOMERR: nothing was asked since it was put out, so nothing was refused."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    fsm.evicted(REJOIN, 101.0)
    assert fsm.state == "resync_delayed"
    assert fsm.join_refused(VERSION_UNKNOWN) == []
    assert "RequestJoin(CURRENT)" in said(fsm.timer_fired())


def test_d_version_an_answer_to_nothing_chooses_no_version_where_there_is_no_doubt_either() -> None:
    """D-VERSION D-RESYNC: an update of the server's was lost, and versions will be compared later."""
    fsm = room("joined")
    fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 100.0)
    fsm.join_accepted("write", b"")
    fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 101.0)
    assert (fsm.state, fsm.in_doubt) == ("resync_delayed", False)
    assert fsm.join_refused(VERSION_UNKNOWN) == []
    assert "RequestJoin(CURRENT)" in said(fsm.timer_fired())


@pytest.mark.parametrize("where", ASKING)
def test_d_roomerr_a_suggestion_is_no_news_whichever_version_is_asked_with(where: str) -> None:
    """D-ROOMERR D-VERSION: the number of the suggestion is that of an unknown version, but it is none."""
    fsm = room(where)
    fsm.join_refused(VERSION_UNKNOWN)
    fsm.join_refused(VERSION_UNKNOWN)
    assert fsm.evicted(REJOIN, 100.0) == []
    assert fsm.state == where


@pytest.mark.parametrize("way", ["joined", "lost", "stopped"])
def test_d_version_begins_anew(way: str) -> None:
    """D-VERSION: once joined, on the next connection, and after a stop: the server may be another."""
    fsm = room("joining")
    fsm.join_refused(VERSION_UNKNOWN)
    if way == "joined":
        fsm.join_accepted("write", b"")
        fsm.acks_overdue(1.0)
    elif way == "lost":
        fsm.connection_lost("lost")
        fsm.connection_opened("connected")
    else:
        fsm.client_stopped("closed")
        fsm.connection_opened("connected")
    assert said(fsm.join_refused(VERSION_UNKNOWN))[2] == "RequestJoin(ALTERNATIVE)"


def test_d_ack_too_many_updates_without_an_ack_lead_to_a_comparison() -> None:
    """D-ACK: its version exchange supersedes them."""
    fsm = room("joined")
    assert said(fsm.acks_overdue(100.0)) == [
        "DiscardUnsent()",
        "RequestJoin(CURRENT)",
        "StartTimer(10)",
    ]
    assert (fsm.state, fsm.reason) == ("resyncing", "too many updates without an Ack")


def test_d_ack_a_server_that_never_acknowledges_has_the_document_once_per_interval() -> None:
    """D-ACK: each rejoin sends what the server lacks again; a server that takes it in vain is not sent more of it."""
    fsm = room("joined")
    fsm.acks_overdue(100.0)
    fsm.join_accepted("write", b"")
    assert "StartTimer(20)" in said(fsm.acks_overdue(110.0))
    assert fsm.state == "resync_delayed"


@pytest.mark.parametrize("where", ["resyncing", "resync_delayed"])
def test_d_ack_a_comparison_that_is_due_supersedes_them_too(where: str) -> None:
    """D-ACK D-RESYNC: what waits for an Ack is taken back, and later edits are kept back for it."""
    fsm = room(where)
    assert said(fsm.acks_overdue(100.0)) == ["DiscardUnsent()"]
    assert (fsm.state, fsm.keeps_edits_back) == (where, True)


@pytest.mark.parametrize("where", TRACKED)
def test_d_error_what_broke_ends_the_room(where: str) -> None:
    """D-ERROR: the adaptor or a guard raised; the server is told that we leave, if it can be."""
    fsm = room(where)
    effects = fsm.faulted("the adaptor raised KeyError")
    assert said(effects)[0] == ("SendLeave()" if where in ONLINE else "Untrack()")
    error = error_of(effects)
    assert isinstance(error, JoinRefused)
    assert (error.code, error.message) == (None, "the adaptor raised KeyError")
    assert (fsm.state, fsm.reason) == ("error", "the adaptor raised KeyError")


RAISED = "the machine {} raised {}; the log tells where"


def no_report(what: str, error: BaseException) -> None:
    raise AssertionError(what) from error


def test_d_error_an_event_that_raises_ends_the_room() -> None:
    """D-ERROR: by the event `faulted`."""
    effects = room("joined").fault(KeyError("mine"), no_report)
    assert said(effects)[0] == "SendLeave()"
    assert str(error_of(effects)) == f"this program refused the room: {RAISED.format('RoomFSM', 'KeyError')}"


def test_d_error_the_last_resort_calls_no_guard_or_action() -> None:
    """D-ERROR: when a user's action raises on the way to error too, the driver still has all that is to be done."""

    class Hopeless(RoomFSM):
        def untrack(self) -> None:
            raise ZeroDivisionError

    fsm = room("joining", Hopeless)
    reports: list[tuple[str, BaseException]] = []
    effects = fsm.fault(KeyError("mine"), lambda *report: reports.append(report))
    assert [(what, type(error)) for what, error in reports] == [
        ("Hopeless, on its way to error,", ZeroDivisionError),
    ]
    reason = RAISED.format("Hopeless", "KeyError")
    assert change(effects).cause is error_of(effects)
    assert said(effects) == [
        "Untrack()",
        f"FailWaiters(JoinRefused('this program refused the room: {reason}'))",
        f"NotifyError(JoinRefused('this program refused the room: {reason}'))",
        f"NotifyStatus(connecting → error, {reason!r})",
    ]
    assert (fsm.state, fsm.status, fsm.reason) == ("error", "error", reason)
    assert fsm.fault(KeyError("mine"), no_report) == []  # the room is over


def test_d_error_the_last_resort_does_not_run_what_a_user_overrides() -> None:
    """D-ERROR: `state_changed` is the user's to override, and may be what raised."""

    class Hopeless(RoomFSM):
        def state_changed(self) -> None:
            raise OSError

    effects = said(Hopeless().fault(OSError(), lambda *_: None))
    assert effects[0] == "Untrack()"
    reason = RAISED.format("Hopeless", "OSError")
    assert effects[-1] == f"NotifyStatus(disconnected → error, {reason!r})"


def test_d_error_the_last_resort_in_error_notifies_no_listener_of_a_status() -> None:
    """D-ERROR OBS-1: the status is the same."""

    effects = said(room("error").last_resort("why", RoomStatus.ERROR))
    assert [each.split("(")[0] for each in effects] == ["Untrack", "FailWaiters", "NotifyError"]


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
def test_d_error_a_wish_to_end_the_program_is_no_fault(wish: type[BaseException]) -> None:
    """D-ERROR D-GUARD: it goes on to the caller."""

    class Impatient(RoomFSM):
        def untrack(self) -> None:
            raise wish

    with pytest.raises(wish):
        room("joined", Impatient).fault(KeyError("mine"), no_report)


IMPOSSIBLE = [
    ("join_accepted", ["joined", "queued", "stale", "disconnected"]),
    ("timer_fired", ["joined", "queued", "stale", "disconnected"]),
    ("acks_overdue", [where for where in TRACKED if where not in SESSION]),
    ("edited_in_doubt", [where for where in TRACKED if where != "joined"]),
]


@pytest.mark.parametrize(("fact", "where"), [(fact, where) for fact, states in IMPOSSIBLE for where in states])
def test_a_fact_that_cannot_be_changes_nothing(fact: str, where: str) -> None:
    """It is refused, with a reason."""
    fsm = room(where)
    args: dict[str, tuple[Any, ...]] = {
        "acks_overdue": (1.0,),
        "edited_in_doubt": (1.0,),
        "join_accepted": ("read", b""),
    }
    assert getattr(fsm, fact)(*args.get(fact, ())) == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ONLINE)
def test_a_second_connection_changes_nothing(where: str) -> None:
    """It has been asked for on this one."""
    fsm = room(where)
    assert fsm.connection_opened("connected") == []
    assert fsm.state == where


@pytest.mark.parametrize("where", ["disconnected", "queued", "stale"])
def test_a_connection_that_it_did_not_know_of_can_be_lost(where: str) -> None:
    """It has none."""
    fsm = room(where)
    assert fsm.connection_lost("lost") == []
    assert fsm.state == where


# ----------------------------------------------------------------------------------------------------------- subclasses


def test_a_user_changes_the_deadlines() -> None:
    """Class attributes, in seconds."""

    class Hasty(RoomFSM):
        join_timeout = 2.0
        rejoin_interval = 5.0

    fsm = room("joined", Hasty)
    assert waits(fsm.evicted(REJOIN, 0.0)) == [2.0]
    fsm.join_accepted("write", b"")
    assert waits(fsm.evicted(REJOIN, 1.0)) == [4.0]


def test_a_user_may_never_follow_a_suggestion_at_once() -> None:
    """The guard says so; the room then waits a whole interval, from the first suggestion on."""

    class Slow(RoomFSM):
        def is_rejoin_due(self) -> bool:
            return False

    fsm = room("joined", Slow)
    assert waits(fsm.evicted(REJOIN, 100.0)) == [30.0]
    assert fsm.state == "resync_delayed"


def test_a_users_state_and_row_are_part_of_the_machine() -> None:
    """A room that waits a minute when it is told that it is full."""

    class Patient(RoomFSM):
        full = state(RoomStatus.CONNECTING, enter="wait_a_minute", exit="stop_retry_timer", like=RoomFSM.join_delayed)

        def is_full(self) -> bool:
            return self.is_refused_with(0x7F)

        def wait_a_minute(self) -> None:
            self.delay = 60.0
            self.start_retry_timer()

        join_refused = RoomFSM.join_refused.first(row(RoomFSM.joining, to=full, when=is_full))

    fsm = room("joining", Patient)
    assert said(fsm.join_refused(JoinRefused(0x7F, "full", "room_full"))) == [
        "StopTimer()",
        "AbandonRequest()",
        "StartTimer(60)",
    ]
    assert said(fsm.timer_fired()) == ["StopTimer()", "RequestJoin(CURRENT)", "StartTimer(10)"]
    assert fsm.state == "joining"


def test_obs_2_a_users_rows_may_lead_from_any_wait_to_any_other() -> None:
    """OBS-2: whatever status that changes, listeners hear how often it was asked in vain, and the wait."""

    class Forgetful(RoomFSM):
        timer_fired = RoomFSM.timer_fired.first(
            row(RoomFSM.rejoining, to=RoomFSM.join_delayed, do="back_off_unanswered", silences="D-TIMEOUT"),
            row(RoomFSM.joining, to=RoomFSM.rejoin_delayed, do="back_off_unanswered", silences="D-TIMEOUT"),
        )

    for where, old, new in (("joining", "connecting", "reconnecting"), ("rejoining", "reconnecting", "connecting")):
        fsm = room(where, Forgetful)
        told = change(fsm.timer_fired())
        assert (told.old, told.new, told.attempt, told.retry_in) == (old, new, 1, 0.5)


def test_an_instance_is_small() -> None:
    """It has slots only; there may be a hundred thousand of them."""
    fsm = room()
    assert not hasattr(fsm, "__dict__")
    assert sys.getsizeof(fsm) <= 224


def test_a_new_machine_has_the_default_policy_and_nothing_behind_it() -> None:
    """As `Client(url)` makes it; guards may read all of it at any time."""
    fsm = RoomFSM()
    assert fsm.policy == RetryPolicy()
    assert (fsm.reason, fsm.attempt, fsm.delay, fsm.now) == ("not asked for yet", 0, 0.0, 0.0)
    assert not any([fsm.is_unauthorized(), fsm.may_try_another_version(), fsm.is_rejoin_suggested()])
    assert not any([fsm.is_rejoin_due(), fsm.is_join_limited(), fsm.is_waiting_for_limit()])
    assert (fsm.pending_reason, fsm.version, fsm.compared_at) == ("not asked for yet", VersionChoice.CURRENT, None)
    assert fsm.unauthorized is False
    assert (fsm.joins, fsm.in_doubt, fsm.refused_status) == (0, False, None)
    assert (fsm.rate_limits_in_a_row, fsm.waits_for_limit) == (0, False)
    assert repr(fsm.last_error) == "RoomLeft('the room was left')"


# --------------------------------------------------------------------------------------------------------------- golden


def join_and_leave(story: Story) -> None:
    """Asked for before there is a connection, joined, left."""
    story.tell("join_requested")
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("join_requested")
    story.tell("leave_requested")
    story.tell("join_accepted", "write", b"")


def rejoin(story: Story) -> None:
    """Two outages, one of them in the middle of joining; then a stop and a start."""
    story.tell("join_requested")
    story.tell("connection_opened", "connected")
    story.tell("connection_lost", "the connection was lost")
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("connection_lost", "closed with code 1001: going down")
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("client_stopped", "closed by this program")
    story.tell("client_started", "asked to connect")
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")


def no_answer(story: Story) -> None:
    """The server does not answer; then it does, late."""
    story.tell("join_requested")
    story.tell("connection_opened", "connected")
    for _ in range(5):
        story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")
    story.tell("connection_lost", "the connection was lost")
    story.tell("connection_opened", "connected")
    story.tell("timer_fired")
    story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")


def evicted(story: Story) -> None:
    """Put out: come back; come back, but later; do not come back."""
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("evicted", REJOIN, 100.0)
    story.tell("evicted", REJOIN, 100.0)
    story.tell("join_accepted", "write", b"")
    story.tell("evicted", REJOIN, 110.0)
    story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")
    story.tell("evicted", EVICTED, 140.0)
    story.tell("leave_requested")


def version_unknown(story: Story) -> None:
    """The server knows none of our versions."""
    story.tell("connection_opened", "connected")
    for _ in range(3):
        story.tell("join_refused", VERSION_UNKNOWN)


def auth(story: Story) -> None:
    """The token provider fails, and then says that there is no use; on another server, it is refused."""
    story.tell("connection_opened", "connected")
    story.tell("credentials_failed", "the auth function raised OSError", False)
    story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")
    story.tell("connection_lost", "the connection was lost")
    story.tell("connection_opened", "connected")
    story.tell("credentials_failed", "the auth function raised OSError", False)
    story.tell("connection_lost", "the connection was lost")
    story.tell("connection_opened", "connected")
    story.tell("credentials_failed", "the auth function raised Unauthorized", True)


def refused(story: Story) -> None:
    """The server refuses a room that it had let in."""
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("connection_lost", "the connection was lost")
    story.tell("connection_opened", "connected")
    story.tell("join_refused", JoinRefused(2, "token revoked"))
    story.tell("connection_opened", "connected")


def resync(story: Story) -> None:
    """An update is refused for the moment, later ones wait for the comparison; one is refused for good; one is lost."""
    story.tell("connection_opened", "connected")
    story.tell("join_accepted", "write", b"")
    story.tell("batch_refused", UpdateStatusCode.RATE_LIMITED, "too many", 100.0)
    story.tell("batch_refused", UpdateStatusCode.RATE_LIMITED, "too many", 100.1)
    story.tell("join_accepted", "write", b"")
    story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")
    story.tell("acks_complete")
    story.tell("batch_refused", UpdateStatusCode.PERMISSION_DENIED, "no", 200.0)
    story.tell("join_accepted", "write", b"")
    story.tell("batch_refused", UpdateStatusCode.PERMISSION_DENIED, "no", 200.1)
    story.tell("edited_in_doubt", 210.0)
    story.tell("timer_fired")
    story.tell("join_accepted", "write", b"")
    story.tell("acks_complete")
    story.tell("updates_lost", UpdateStatusCode.OK, "one is missing", 300.0)
    story.tell("timer_fired")
    story.tell("resync_requested")
    story.tell("join_accepted", "write", b"")


STORIES = [join_and_leave, rejoin, no_answer, evicted, version_unknown, auth, refused, resync]


@pytest.mark.parametrize("tell", STORIES, ids=lambda tell: tell.__name__)
def test_golden_transcripts(tell: Callable[[Story], None]) -> None:
    """A typical story, line by line; see tests/golden for how to write it anew."""
    story = Story(room())
    tell(story)
    golden.check(f"room_{tell.__name__}", story)


def test_golden_transcripts_have_a_story_each() -> None:
    """No transcript is left over from a story that is told no more."""
    assert golden.names("room") == {f"room_{tell.__name__}" for tell in STORIES}


@pytest.mark.parametrize("answer", ["join_accepted", "join_refused"])
def test_d_roomerr_an_answer_to_nothing_is_none(answer: str) -> None:
    """D-ROOMERR: a room that was put out and waits has asked for nothing, whatever a server says."""
    fsm = room("joined")
    fsm.evicted(REJOIN, 100.0)
    fsm.join_accepted("write", b"")
    fsm.evicted(REJOIN, 101.0)
    assert fsm.state == "resync_delayed"
    args: tuple[Any, ...] = (UNKNOWN,) if answer == "join_refused" else ("write", b"")
    assert getattr(fsm, answer)(*args) == []
    assert fsm.state == "resync_delayed"


# ------------------------------------------------------------------------------------------------------------- D-RESYNC


@pytest.mark.parametrize("status", [each for each in REFUSALS if each is not UpdateStatusCode.RATE_LIMITED])
def test_d_resync_a_refusal_leads_to_a_comparison_at_once_and_then_once_in_30_seconds(status: UpdateStatusCode) -> None:
    """D-RESYNC D-ACK: whatever the status; the session goes on, and edits are kept back until it is answered."""
    fsm = room("joined")
    assert not fsm.keeps_edits_back
    assert said(fsm.batch_refused(status, "refused", 100.0)) == [
        "DiscardUnsent()",
        "RequestJoin(CURRENT)",
        "StartTimer(10)",
    ]
    assert (fsm.state, fsm.status, fsm.reason, fsm.keeps_edits_back) == ("resyncing", "joined", "refused", True)
    assert said(fsm.join_accepted("write", b""))[-1] == "Synchronise('write', b'')"
    assert (fsm.in_doubt, fsm.keeps_edits_back) == (True, False)
    assert fsm.acks_complete() == []
    assert not fsm.in_doubt
    assert waits(fsm.batch_refused(status, "refused", 110.0)) == [20.0]
    assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", True)


@pytest.mark.parametrize("status", FOR_GOOD)
def test_d_resync_what_a_comparison_uploads_is_refused_for_good(status: UpdateStatusCode) -> None:
    """D-RESYNC: who is synced has to know; the same is not sent again, until there is an edit."""
    fsm = room("joined")
    fsm.batch_refused(status, "refused", 100.0)
    fsm.join_accepted("write", b"")
    (told,) = fsm.batch_refused(status, "refused", 100.1)
    assert isinstance(told, NotifyError)
    assert isinstance(told.error, UpdatesRefused)
    assert told.error.status is status
    assert (fsm.state, fsm.refused_status, fsm.keeps_edits_back) == ("joined", status, True)
    assert fsm.batch_refused(status, "refused", 100.2) == []  # the next of the same upload: it was told
    fsm.acks_complete()
    assert fsm.in_doubt
    assert waits(fsm.edited_in_doubt(101.0)) == [29.0]
    assert fsm.edited_in_doubt(102.0) == []
    fsm.timer_fired()
    assert fsm.refused_status is status
    fsm.join_accepted("write", b"")
    assert (fsm.refused_status, fsm.in_doubt) == (None, True)


@pytest.mark.parametrize("status", [each for each in OF_THE_MOMENT if each is not UpdateStatusCode.RATE_LIMITED])
def test_d_resync_what_is_refused_for_the_moment_is_tried_again_in_30_seconds(status: UpdateStatusCode) -> None:
    """D-RESYNC: servers say UNKNOWN of any fault of their own."""
    fsm = room("joined")
    fsm.batch_refused(status, "refused", 100.0)
    fsm.join_accepted("write", b"")
    assert waits(fsm.batch_refused(status, "refused", 101.0)) == [29.0]
    assert fsm.refused_status is None


def test_d_resync_what_cannot_be_sent_at_all_is_refused_for_good_at_once() -> None:
    """D-RESYNC: a reader's document, or one update that no message may hold; there is no use in asking."""
    for where in SESSION:
        fsm = room(where)
        (told,) = fsm.upload_refused(UpdateStatusCode.PERMISSION_DENIED)
        assert isinstance(told, NotifyError)
        assert (fsm.state, fsm.refused_status, fsm.in_doubt) == (where, UpdateStatusCode.PERMISSION_DENIED, True)


def test_d_resync_doubt_outlives_the_connection() -> None:
    """D-RESYNC: only an upload that was taken ends it, and a join begins with one."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.0)
    fsm.connection_lost("lost")
    assert fsm.acks_complete() == []
    fsm.connection_opened("connected")
    fsm.join_accepted("write", b"")
    assert fsm.in_doubt
    fsm.acks_complete()
    assert not fsm.in_doubt


def test_d_resync_an_update_of_the_servers_that_is_lost_leads_to_a_comparison() -> None:
    """D-RESYNC: at once, then at most once per 30 s; our own edits go on."""
    fsm = room("joined")
    assert said(fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 100.0)) == [
        "RequestJoin(CURRENT)",
        "StartTimer(10)",
    ]
    assert (fsm.state, fsm.reason, fsm.keeps_edits_back) == ("resyncing", "one is missing", False)
    assert fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 100.0) == []
    fsm.join_accepted("write", b"")
    assert waits(fsm.updates_lost(UpdateStatusCode.INVALID_UPDATE, "damaged", 101.0)) == [29.0]
    assert fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 102.0) == []
    assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", False)


def test_d_resync_what_is_too_large_for_us_is_not_fetched_again_and_again() -> None:
    """D-RESYNC: the answer to a comparison would be too large, too."""
    fsm = room("joined")
    fsm.updates_lost(UpdateStatusCode.PAYLOAD_TOO_LARGE, "too large", 100.0)
    assert fsm.state == "resyncing"
    fsm.join_accepted("write", b"")
    assert fsm.updates_lost(UpdateStatusCode.PAYLOAD_TOO_LARGE, "too large", 101.0) == []
    assert fsm.state == "joined"


@pytest.mark.parametrize("where", TRACKED)
def test_d_resync_by_hand_it_is_at_once(where: str) -> None:
    """D-RESYNC: a person does not wait for an interval; without a session the join does the same."""
    fsm = room(where)
    effects = said(fsm.resync_requested())
    if where in ("joined", "resync_delayed"):
        assert effects[-2:] == ["RequestJoin(CURRENT)", "StartTimer(10)"]
        assert (fsm.state, fsm.reason) == ("resyncing", "asked to compare versions")
    else:
        assert effects == []
        assert fsm.state == where


@pytest.mark.parametrize("where", ["resyncing", "resync_delayed"])
def test_d_resync_a_refusal_before_the_answer_waits_for_it(where: str) -> None:
    """D-RESYNC: the comparison that is made, or will be, is for it too."""
    fsm = room(where)
    assert said(fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.0)) == ["DiscardUnsent()"]
    assert (fsm.state, fsm.keeps_edits_back) == (where, True)


def test_d_resync_a_refusal_while_a_lost_update_waits_for_its_time_waits_too() -> None:
    """D-RESYNC: nothing was asked yet, and the interval is kept."""
    fsm = room("joined")
    fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 100.0)
    fsm.join_accepted("write", b"")
    fsm.updates_lost(UpdateStatusCode.OK, "one is missing", 101.0)
    assert said(fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 102.0)) == ["DiscardUnsent()"]
    assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", True)


def test_d_resync_what_is_refused_for_good_is_so_when_the_interval_is_over_too() -> None:
    """D-RESYNC: to compare versions again would upload the same again, every 30 s."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.INVALID_UPDATE, "refused", 100.0)
    fsm.join_accepted("write", b"")
    (told,) = fsm.batch_refused(UpdateStatusCode.INVALID_UPDATE, "refused", 140.0)
    assert isinstance(told, NotifyError)
    assert (fsm.state, fsm.refused_status) == ("joined", UpdateStatusCode.INVALID_UPDATE)


def test_d_resync_an_edit_on_top_of_what_was_refused_is_compared_at_once_if_the_interval_is_over() -> None:
    """D-RESYNC: and that begins another interval."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.INVALID_UPDATE, "refused", 100.0)
    fsm.join_accepted("write", b"")
    fsm.batch_refused(UpdateStatusCode.INVALID_UPDATE, "refused", 101.0)
    assert said(fsm.edited_in_doubt(140.0)) == ["RequestJoin(CURRENT)", "StartTimer(10)"]
    assert (fsm.state, fsm.reason) == ("resyncing", "an edit on top of updates that the server refused")
    fsm.join_accepted("write", b"")
    fsm.batch_refused(UpdateStatusCode.INVALID_UPDATE, "refused", 141.0)
    assert waits(fsm.edited_in_doubt(150.0)) == [20.0]
    assert fsm.state == "resync_delayed"


def test_d_resync_a_refusal_that_comes_without_a_session_is_nobodys() -> None:
    """D-RESYNC: it speaks of an earlier connection, and the join that comes brings all that was refused."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.0)
    fsm.connection_lost("lost")
    for _ in ("stale", "rejoining"):
        for status in (UpdateStatusCode.INVALID_UPDATE, UpdateStatusCode.RATE_LIMITED):
            assert fsm.batch_refused(status, "refused", 100.0) == []
            assert fsm.refused_status is None
        fsm.connection_opened("connected")
    assert fsm.state == "rejoining"


def test_d_resync_no_answer_is_asked_again_with_the_rooms_own_backoff() -> None:
    """D-RESYNC D-TIMEOUT: the session goes on."""
    fsm = room("resyncing")
    for wait in (0.5, 1.0, 2.0):
        assert waits(fsm.timer_fired()) == [wait]
        assert (fsm.state, fsm.status) == ("resync_delayed", "joined")
        fsm.timer_fired()
        assert fsm.state == "resyncing"


# ------------------------------------------------------------------------------------------------------------ D-JOINERR


def test_d_joinerr_an_unspecified_refusal_ends_a_first_join() -> None:
    """D-JOINERR: nothing says that it will be better."""
    for where in ("joining", "join_delayed"):
        fsm = room(where)
        fsm.join_refused(UNKNOWN, 100.0)
        assert fsm.state == "error"


@pytest.mark.parametrize(("where", "then"), [("rejoining", "rejoin_delayed"), ("resyncing", "resync_delayed")])
def test_d_joinerr_an_unspecified_refusal_of_a_room_that_was_good_is_tried_again(where: str, then: str) -> None:
    """D-JOINERR: later each time; a late answer changes nothing."""
    fsm = room(where)
    for wait in (0.5, 1.0, 2.0):
        assert waits(fsm.join_refused(UNKNOWN, 100.0)) == [wait]
        assert fsm.state == then
        assert fsm.join_refused(UNKNOWN, 100.0) == []
        fsm.timer_fired()
        assert fsm.state == where


def test_d_joinerr_an_unspecified_refusal_right_after_a_rejoin_is_tried_again() -> None:
    """D-JOINERR D-ROOMERR: servers answer with Ok, then fail to send what is missing; at most once per 30 s."""
    fsm = room("rejoining")
    fsm.join_accepted("write", b"")
    assert waits(fsm.join_refused(UNKNOWN, 100.0)) == [30.0]
    assert (fsm.state, fsm.status, fsm.keeps_edits_back) == ("resync_delayed", "joined", False)


def test_d_joinerr_after_a_stop_it_is_a_first_join_again() -> None:
    """D-JOINERR D-STOP: however often it was joined before; the server may be another."""
    fsm = room("rejoining")
    fsm.join_accepted("write", b"")
    fsm.client_stopped("closed")
    fsm.connection_opened("connected")
    assert fsm.was_joined_before()
    fsm.join_refused(UNKNOWN, 100.0)
    assert fsm.state == "error"


def test_d_joinerr_a_rate_limit_in_the_session_is_waited_for() -> None:
    """D-JOINERR D-ROOMERR: servers answer with Ok, then say that it was too often; at most once per 30 s."""
    limit = JoinRefused(0x7F, "slowly", "rate_limited")
    fsm = room("joined")
    assert waits(fsm.join_refused(limit, 100.0)) == [30.0]
    assert (fsm.state, fsm.status, fsm.keeps_edits_back) == ("resync_delayed", "joined", False)
    fsm.timer_fired()
    fsm.join_accepted("write", b"")
    assert waits(fsm.join_refused(limit, 140.0)) == [20.0]
    fsm.join_refused(limit)
    assert fsm.now == 0.0  # it was told no time


@pytest.mark.parametrize("refusal", [UNKNOWN, JoinRefused(0x7F, "slowly", "rate_limited")])
@pytest.mark.parametrize("later", [30.0, 40.0])
def test_d_joinerr_a_refusal_in_the_session_is_never_answered_at_once(refusal: JoinRefused, later: float) -> None:
    """D-JOINERR D-ROOMERR: if the interval since the last comparison is over, a new one begins."""
    fsm = room("joined")
    fsm.updates_lost(UpdateStatusCode.OK, "lost", 100.0)
    fsm.join_accepted("write", b"")
    assert waits(fsm.join_refused(refusal, 100.0 + later)) == [30.0]
    assert fsm.state == "resync_delayed"


@pytest.mark.parametrize("refusal", [AUTH_FAILED, JoinRefused(0x7F, "gone", "room_gone")])
@pytest.mark.parametrize("where", [*ASKING, "joined"])
def test_d_joinerr_auth_and_the_applications_own_codes_end_the_room(where: str, refusal: JoinRefused) -> None:
    """D-JOINERR: they are meant."""
    fsm = room(where)
    fsm.join_refused(refusal, 100.0)
    assert fsm.state == "error"


@pytest.mark.parametrize("code", ["rate_limited", "RATE-LIMIT", "RateLimited", "too_many_requests", "429"])
@pytest.mark.parametrize("where", ASKING)
def test_d_joinerr_a_rate_limit_on_joins_is_waited_for(where: str, code: str) -> None:
    """D-JOINERR: with the room's own backoff, at a first join too."""
    fsm = room(where)
    for wait in (0.5, 1.0, 2.0):
        assert waits(fsm.join_refused(JoinRefused(0x7F, "slowly", code), 100.0)) == [wait]
        assert fsm.join_refused(JoinRefused(0x7F, "slowly", code), 100.0) == []
        fsm.timer_fired()
        assert fsm.state == where


def test_d_joinerr_a_rate_limit_on_updates_is_waited_for_longer_each_time() -> None:
    """D-JOINERR D-RESYNC: in the session, edits kept back; an answer that is late is not taken up too early."""
    fsm = room("joined")
    now = 100.0
    for wait in (0.5, 1.0, 2.0):
        assert waits(fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", now)) == [wait]
        assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", True)
        assert fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", now) == []
        assert fsm.join_accepted("write", b"") == []
        fsm.timer_fired()
        fsm.join_accepted("write", b"")
        now += wait
    fsm.acks_complete()
    assert waits(fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", now)) == [0.5]


def test_d_joinerr_a_rate_limit_does_not_shorten_a_wait() -> None:
    """D-JOINERR D-RESYNC: the interval that is waited for is kept."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.0)
    fsm.join_accepted("write", b"")
    fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 101.0)
    assert waits(fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", 102.0)) == [28.0]


def test_d_joinerr_a_rate_limit_while_a_comparison_waits_is_waited_for() -> None:
    """D-JOINERR: whatever it waited for before; what else is refused meanwhile is taken back."""
    fsm = room("resync_delayed")
    assert waits(fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", 100.0)) == [0.5]
    assert (fsm.state, fsm.keeps_edits_back) == ("resync_delayed", True)
    assert said(fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.1)) == ["DiscardUnsent()"]
    assert fsm.state == "resync_delayed"


def test_d_joinerr_a_rate_limit_while_versions_are_compared_is_waited_for() -> None:
    """D-JOINERR: what the answer would upload is too much for now."""
    fsm = room("resyncing")
    assert waits(fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", 100.0)) == [0.5]
    assert fsm.state == "resync_delayed"
    assert fsm.keeps_edits_back


def test_d_joinerr_a_late_answer_does_not_end_the_wait_for_a_rate_limit() -> None:
    """D-JOINERR D-TIMEOUT: an earlier request was made in vain, and its answer comes now; it would upload too early."""
    fsm = room("resync_delayed")
    fsm.timer_fired()
    fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", 100.0)
    assert (fsm.state, fsm.may_be_answered_late()) == ("resync_delayed", True)
    assert fsm.join_accepted("write", b"") == []
    fsm.batch_refused(UpdateStatusCode.UNKNOWN, "refused", 100.1)
    assert fsm.join_accepted("write", b"") == []
    assert fsm.state == "resync_delayed"


def test_d_joinerr_a_late_answer_counts_once_the_limit_was_waited_out() -> None:
    """D-JOINERR D-TIMEOUT: the wait that follows is for another reason."""
    fsm = room("joined")
    fsm.batch_refused(UpdateStatusCode.RATE_LIMITED, "slowly", 100.0)
    fsm.timer_fired()
    fsm.timer_fired()  # no answer in time
    assert fsm.state == "resync_delayed"
    fsm.join_accepted("write", b"")
    assert fsm.state == "joined"
