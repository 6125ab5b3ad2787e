"""What a machine may ask for: values that can be compared, kept and replayed."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from reconnect_fsm import effects
from reconnect_fsm.effects import Effect, VersionChoice

KINDS: list[Any] = [
    kind for _, kind in inspect.getmembers(effects, inspect.isclass) if issubclass(kind, Effect) and kind is not Effect
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_effect_is_a_value(kind: Any) -> None:
    """Equal to another with the same fields and never changed, so that a run can be compared with its replay."""
    fields = {field.name: field.name for field in dataclasses.fields(kind)}
    effect = kind(**fields)
    assert effect == kind(**fields)
    assert not hasattr(effect, "__dict__")
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):  # TypeError: of a name that is no field
        setattr(effect, next(iter(fields), "anything"), None)


def test_d_version_three_versions_can_be_sent() -> None:
    """D-VERSION: the current one, then the alternative, then none; named in lower case where they are shown."""
    assert [each.value for each in VersionChoice] == ["current", "alternative", "empty"]
