"""What the outside sees: words that may be compared, stored and logged, and values that nobody can change."""

from __future__ import annotations

import dataclasses
from enum import Enum, StrEnum
from typing import Any

import pytest

from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.status import (
    AttemptFailure,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    RoomStatus,
    StateChange,
    StatusChange,
    StopKind,
)

VALUES: list[Any] = [
    StatusChange(ClientStatus.CONNECTING, ClientStatus.CONNECTED, "connected"),
    StateChange("socket_opened", "retrying", "connected", ClientStatus.CONNECTED, "connected"),
    CloseInfo(1000),
    AttemptFailure(FailureKind.NETWORK, "connection refused"),
]


@pytest.mark.parametrize("kind", [ClientStatus, RoomStatus, FailureKind, FaultKind, StopKind])
def test_obs_1_a_status_is_its_name_in_lower_case(kind: type[Enum]) -> None:
    """OBS-1 OBS-2: a program may write it down and read it again."""
    assert [each.value for each in kind] == [each.name.lower() for each in kind]


@pytest.mark.parametrize("kind", [ClientStatus, RoomStatus])
def test_conn_1_join_3_there_are_five_statuses(kind: type[StrEnum]) -> None:
    """CONN-1 JOIN-3: five, of which a client and a room differ in one; each compares with its word."""
    assert len(kind) == 5
    assert all(each == each.name.lower() for each in kind)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_listeners_get_is_theirs_to_keep(value: Any) -> None:
    """It can be neither changed nor added to, so one listener cannot harm the next; equal ones are equal."""
    first, *_ = dataclasses.fields(value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, first.name, None)
    assert not hasattr(value, "__dict__")
    assert dataclasses.replace(value) == value


def test_what_is_not_known_is_not_made_up() -> None:
    """No retry unless there is one, no reason unless the server gave one, and no wait that nobody asked for."""
    change, step, info, failure = VALUES
    assert (change.attempt, change.retry_in) == (0, None)
    assert (step.attempt, step.retry_in) == (0, None)
    assert (change.cause, change.stop) == (step.cause, step.stop) == (None, None)
    assert (info.reason, info.lasted, info.shown, info.fault, info.is_redacted) == ("", 0.0, None, None, False)
    assert (failure.http_status, failure.retry_after, failure.fault) == (None, 0.0, None)


def test_d_judged_what_the_server_said_is_kept_and_only_the_redacted_form_is_shown() -> None:
    """D-JUDGED: in neither form of the words is the secret; the raw reason is there for who judges."""
    info = CloseInfo(4401, "bad token abcdef", 2.0, shown="bad token …")
    assert info.reason == "bad token abcdef"
    assert str(info) == "closed with code 4401: bad token …"
    assert repr(info) == "CloseInfo(code=4401, reason='bad token …', lasted=2.0)"
    shown = info.redacted()
    assert shown == CloseInfo(4401, "bad token …", 2.0, is_redacted=True)
    assert shown.redacted() is shown
    fault = CloseInfo(1006, "raw", 2.0, "shown", FaultKind.LIVENESS)
    assert fault.redacted() == CloseInfo(1006, "shown", 2.0, fault=FaultKind.LIVENESS, is_redacted=True)
    assert fault == dataclasses.replace(fault, shown="otherwise")  # it is what the server said that counts
    assert str(CloseInfo(1006, "raw", shown="")) == "the connection was lost"


def test_d_judged_what_holds_no_secret_is_its_own_redacted_form() -> None:
    """D-JUDGED: whether it was looked at or not; nothing says that it is something else than it is."""
    for info in (CloseInfo(1000, "bye"), CloseInfo(1000, "bye", shown="bye"), CloseInfo(1006)):
        assert info.redacted() is info
        assert not info.redacted().is_redacted
    fault = CloseInfo(1006, "x", fault=FaultKind.PROTOCOL)
    assert repr(fault) == "CloseInfo(code=1006, reason='x', lasted=0.0, fault=FaultKind.PROTOCOL)"


def test_d_cause_two_changes_are_equal_whatever_their_causes() -> None:
    """D-CAUSE: a refusal is an exception, which equals none but itself."""
    changes = [
        StatusChange(RoomStatus.JOINED, RoomStatus.ERROR, "no", JoinRefused(2, "no"), StopKind.CLOSED) for _ in range(2)
    ]
    assert changes[0] == changes[1]
    assert hash(changes[0]) == hash(changes[1])
    for change in VALUES[:2]:
        assert dataclasses.replace(change, cause=CloseInfo(1000)) == change
        assert dataclasses.replace(change, stop=StopKind.CLOSED) == change
