"""What the outside sees: words that may be compared, stored and logged, and values that nobody can change."""

from __future__ import annotations

import dataclasses
from enum import Enum, StrEnum
from typing import Any

import pytest

from reconnect_fsm.status import (
    AttemptFailure,
    ClientStatus,
    CloseInfo,
    FailureKind,
    RoomStatus,
    StateChange,
    StatusChange,
)

VALUES: list[Any] = [
    StatusChange(ClientStatus.CONNECTING, ClientStatus.CONNECTED, "connected"),
    StateChange("socket_opened", "retrying", "connected", ClientStatus.CONNECTED, "connected"),
    CloseInfo(1000),
    AttemptFailure(FailureKind.NETWORK, "connection refused"),
]


@pytest.mark.parametrize("kind", [ClientStatus, RoomStatus, FailureKind])
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
    assert (info.reason, info.lasted) == ("", 0.0)
    assert (failure.http_status, failure.retry_after) == (None, 0.0)
