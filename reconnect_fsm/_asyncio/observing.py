"""What the inspector, telemetry and the command line may know of a client besides its public names: the one hook.

`observation_of` and `explanation_of` (connection.py), and `driver_of` (room.py) stand beside the
classes whose private attributes they read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from yarl import URL

from reconnect_fsm._steps import Step
from reconnect_fsm.client_fsm import ClientFSM

__all__ = ["Observation", "StepObserver"]

StepObserver: TypeAlias = Callable[[tuple[Step, Any]], object]
"""Called with each step and its subject, before the effects are run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A client at one moment; the machine and the log in it are live."""

    fsm: ClientFSM
    url: URL | None
    """Where it connects to, with all secrets; None if a function gives the URL."""
    loop: asyncio.AbstractEventLoop | None
    now: float
    """The loop's time; 0.0 before the start."""
    opened_at: float | None
    """When the present connection was opened, in the loop's time."""
    pending_transitions: int
    """Transitions in the log of which the callbacks of `Connection.on_transition` have not been called yet."""
    log: Sequence[Step]
    """The last steps of its machines."""
    on_step: Callable[[StepObserver], Callable[[], None]]
    """Adds an observer of steps; returns a function that removes it."""
