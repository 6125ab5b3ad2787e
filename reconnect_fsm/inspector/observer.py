"""The present state of a client, and the last of its transitions and round trips.

`Observer` records what happens, bounded. It knows nothing of viewers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from reconnect_fsm._asyncio.connection import Connection, explanation_of, observation_of
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.recorder.recorder import transitions
from reconnect_fsm.status import ClientStatus, StateChange

__all__ = ["Observer", "Stream", "earlier", "last_step"]

T = TypeVar("T")

MAX_TRANSITIONS: Final = 300  # kept, and shown
MAX_ROUND_TRIPS: Final = 600  # likewise
EVENTS: Final = {"connect": "connect_requested", "retry": "retry_requested", "close": "close_requested"}


class Stream(Generic[T]):
    """The last items of a series. A reader remembers how many it has read, and asks for those after them."""

    def __init__(self, max_items: int) -> None:
        self._items: deque[T] = deque(maxlen=max_items)
        self.count = 0
        """The number of items added, dropped ones included."""

    def add(self, item: T) -> None:
        self._items.append(item)
        self.count += 1

    def since(self, count: int) -> tuple[bool, list[T]]:
        """Whether items after the first ``count`` were dropped, and those that were not."""
        new = self.count - count
        kept = len(self._items)
        return new > kept, list(self._items)[max(kept - new, 0) :]


class Observer:
    """Records the transitions and round trips of a client until `stop`; calls ``changed`` after each."""

    def __init__(self, client: Connection, changed: Callable[[], None]) -> None:
        self.client = client
        self.transitions: Stream[dict[str, Any]] = Stream(MAX_TRANSITIONS)
        self.latency: Stream[tuple[float, float | str]] = Stream(MAX_ROUND_TRIPS)
        """When, in seconds since the epoch, and the round trip in seconds; or that the connection was ``lost``, or
        ``made``."""
        self._changed = changed
        self._since: float | None = None  # when the present state began, in seconds since the epoch
        before = earlier(client)
        # Those for which the callbacks are still to be called will come to `_transition`.
        for when, change in before[: max(len(before) - observation_of(client).pending_transitions, 0)]:
            self._add(when, change)
        self._unsubscribe = (client.on_transition(self._transition), client.on_latency(self._round_trip))

    def stop(self) -> None:
        """Stop listening."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    # The present state

    def present(self) -> dict[str, Any]:
        """The client's state, as the page shows it; equal as long as nothing changes."""
        client, fsm = self.client, observation_of(self.client).fsm
        return {
            "url": shown_url(client),
            "machine": type(fsm).__name__,
            "state": fsm.state,
            "alive": fsm.states[fsm.state].doc,
            "status": fsm.status.value,
            "reason": fsm.reason,
            "online": fsm.online,
            "attempt": fsm.attempt,
            "since": self._since,
        }

    def actions(self) -> dict[str, str | None]:
        """For each action None, or why it would change nothing now."""
        fsm = observation_of(self.client).fsm
        return {
            **{name: why_ignored(fsm, event) for name, event in EVENTS.items()},
            "offline": None if fsm.online else "it counts as offline already",
            "online": "it counts as online already" if fsm.online else None,
        }

    def ask(self, action: str) -> None:
        """Run one of `actions`. Raises KeyError for another."""
        client = self.client
        actions: dict[str, Callable[[], object]] = {
            "connect": client.connect,
            "retry": client.retry_now,
            "close": client.close,
            "offline": lambda: client.set_online(False),
            "online": lambda: client.set_online(True),
        }
        actions[action]()
        self._changed()

    def explanation(self) -> str:
        """The status, its reason and what comes next; the page shows the rest of `explain` in other ways."""
        return explanation_of(self.client).present

    # What happens

    def _transition(self, change: StateChange) -> None:
        self._add(time.time(), change)
        self._changed()

    def _add(self, when: float, change: StateChange) -> None:
        self._since = when
        self.transitions.add(
            {
                "n": self.transitions.count + 1,
                "time": when,
                "event": change.event,
                "old": change.old,
                "new": change.new,
                "status": change.status.value,
                "reason": change.reason,
                "attempt": change.attempt,
                "retry_in": change.retry_in,
            }
        )
        states = observation_of(self.client).fsm.states
        was, is_ = (states[name].status is ClientStatus.CONNECTED for name in (change.old, change.new))
        if was != is_:
            self.latency.add((when, "made" if is_ else "lost"))

    def _round_trip(self, seconds: float) -> None:
        self.latency.add((time.time(), seconds))
        self._changed()


def shown_url(client: Connection) -> str:
    """The address of the server, without what may be secret."""
    url = observation_of(client).url
    if url is None:
        return "an address that a function gives"
    return str(url.with_user(None).with_query(None).with_fragment(None))


def why_ignored(fsm: ClientFSM, event: str) -> str | None:
    """Why the machine ignores an event in its present state if no guard passes; None if it does not."""
    rules = [rule for rule in fsm.rules if rule.event == event and rule.source == fsm.state]
    return rules[-1].because if rules and rules[-1].is_ignored else None


def earlier(client: Connection) -> list[tuple[float, StateChange]]:
    """The transitions in the client's log, each with its time in seconds since the epoch."""
    now = observation_of(client)
    if now.loop is None or now.loop.is_closed():
        return []
    zero = time.time() - now.loop.time()
    return [
        (
            zero + step.time,
            StateChange(
                step.event, step.old, step.new, ClientStatus(step.status), step.reason, step.attempt, step.retry_in
            ),
        )
        for step in transitions(step for step in now.log if step[2] is now.fsm)
        if step.old != step.new
    ][-MAX_TRANSITIONS:]


def last_step(client: Connection) -> object:
    """Another object after each event of the client or one of its rooms."""
    log = observation_of(client).log
    return log[-1] if log else None
