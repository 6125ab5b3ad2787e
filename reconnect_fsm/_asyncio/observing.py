"""What is read of a client's driver: to record and explain it, and for the inspector, telemetry and the command line.

`observation_of`, `explanation_of` and `connection_driver_of` (connection.py) are given a client, and `driver_of`
(room.py) a room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from yarl import URL

from reconnect_fsm._asyncio.connection_driver import ConnectionDriver, TrackedRoom
from reconnect_fsm._steps import Step
from reconnect_fsm.client_fsm import ClientFSM

if TYPE_CHECKING:  # imported when they are first needed, which in most programs is never
    from reconnect_fsm.recorder.explain import Explanation
    from reconnect_fsm.recorder.recorder import Recorder

__all__ = ["Observation", "StepObserver", "explanation", "observation", "recorder"]

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


def observation(driver: ConnectionDriver) -> Observation:
    """The client at this moment."""
    url, socket = driver.settings.url, driver.socket.content
    return Observation(
        fsm=driver.fsm,
        url=url if isinstance(url, URL) else None,
        loop=driver.loop,
        now=driver.time() or 0.0,
        opened_at=None if socket is None else socket.opened_at,
        pending_transitions=driver.pending_transitions,
        log=driver.dispatcher.log,
        on_step=driver.dispatcher.observers.add,
    )


def explanation(driver: ConnectionDriver, rooms: Collection[TrackedRoom]) -> Explanation:
    """The status of the client and of these rooms, in words."""
    from reconnect_fsm.recorder import explain

    timer = driver.timer.content
    return explain.explanation(
        driver.fsm,
        driver.dispatcher.log,
        rooms,
        now=driver.time() or 0.0,
        due=None if timer is None else timer.when(),
        connect_timeout=driver.settings.connect_timeout,
        latency=driver.latency,
    )


def recorder(driver: ConnectionDriver, hide_rooms: bool) -> Recorder:
    """Makes the lines of a recording, without secrets."""
    from reconnect_fsm.recorder.recorder import HeaderData, Recorder

    driver.learn_secrets()
    data = HeaderData(
        fsm=type(driver.fsm),
        room_fsm=driver.room_fsm,
        policy=driver.settings.retry,
        keepalive=driver.settings.keepalive,
        written=time.time(),
        now=driver.time(),
    )
    names = [room.name for room in driver.tracked_rooms]
    return Recorder(data, driver.redaction, hide_rooms=hide_rooms, rooms=names)
