"""The policy of pings, and what is counted on a connection."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from reconnect_fsm.keepalive import PING, PONG, Counters, Keepalive

NAN, INF = float("nan"), float("inf")


def test_live_1_the_ping_is_the_protocols() -> None:
    """LIVE-1: text frames, these words."""
    assert (PING, PONG) == ("ping", "pong")


def test_a_configuration_cannot_be_changed_behind_a_clients_back() -> None:
    """Its numbers were checked when it was made."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Keepalive().timeout = 0.0  # type: ignore[misc]


def test_live_1_defaults() -> None:
    """LIVE-1 LIVE-2: on, so that a dead connection is noticed within half a minute."""
    assert Keepalive() == Keepalive(interval=20.0, timeout=10.0, enabled=True)


def test_live_2_a_connection_begins_with_nothing_counted() -> None:
    """LIVE-2: nothing moved yet, and nothing waits."""
    assert Counters() == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["interval", "timeout"])
@pytest.mark.parametrize("value", [0, -1, NAN, INF, -INF])
def test_numbers_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    """With the way to switch pings off."""
    with pytest.raises(ValueError, match=rf"^{name} must be .* not {value!r}; enabled=False"):
        Keepalive(**{name: value})
