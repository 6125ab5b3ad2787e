"""What many tests need. How they wait: for what stays by looking again and again, for what passes by listening.

A status that a client is in for a millisecond is missed by whoever looks every few, on a busy machine more often than
on a quiet one. So what may pass is recorded by a listener that was there before, and only what stays, once it is so,
is polled for::

    seen = Statuses(room)
    await server.room_error("r", RoomErrorCode.REJOIN_SUGGESTED)
    await seen.all_of("reconnecting", "joined")     # in this order, with anything between them
    await until(lambda: server.stats.joins == 2)    # counts do not go back
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from reconnect_fsm import Client, ClientFSM, Keepalive, RetryPolicy, Room, RoomFSM
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm._asyncio.room_session import RoomSession
from reconnect_fsm._asyncio.transport.url import UrlSource
from reconnect_fsm.effects import Effect

__all__ = [
    "PATIENCE",
    "Idle",
    "States",
    "Statuses",
    "client_of",
    "hold",
    "now",
    "patience",
    "session_of",
    "until",
    "until_equal",
]

PATIENCE: Final = 60.0
"""Seconds for what must come: only a test that fails waits so long. Well below pytest's own timeout of a test."""

VIRTUAL_PATIENCE: Final = 300.0  # costs nothing
EVERY: Final = 1 / 256  # seconds between two looks; virtual clocks count it exactly


def patience() -> float:
    """Seconds of the running loop's time for what must come."""
    virtual = sys.modules.get("reconnect_fsm.testing.virtual_time")  # not imported: processes wait too
    is_virtual = virtual is not None and isinstance(asyncio.get_running_loop(), virtual.VirtualTimeLoop)
    return VIRTUAL_PATIENCE if is_virtual else PATIENCE


async def until(condition: Callable[[], object], within: float | None = None) -> None:
    """Wait until something that stays holds. Raises AssertionError, with the condition's source, if it never does."""
    within = patience() if within is None else within
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110  # conditions are about anything
                await asyncio.sleep(EVERY)
    except TimeoutError:
        raise AssertionError(f"did not hold within {within:g} s: {_source(condition)}") from None


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def client_of(url: UrlSource, **options: Any) -> Client:
    """A client that reconnects soon and does not ping."""
    options = {
        "retry": RetryPolicy(base=0.125, cap=0.25, jitter=0, stable_after=0),
        "keepalive": Keepalive(enabled=False),
        **options,
    }
    return Client(url, **options)


def session_of(room: Room) -> RoomSession:
    """The present session of a room that is joined."""
    session = driver_of(room).session
    assert session is not None
    return session


async def until_equal(read: Callable[[], object], expected: object, within: float | None = None) -> None:
    """Call ``read``, plain or async, until it returns ``expected``. Raises AssertionError, with the last value seen."""
    within = patience() if within is None else within
    seen: object = None
    try:
        async with asyncio.timeout(within):
            while True:
                value = read()
                seen = await value if inspect.isawaitable(value) else value
                if seen == expected:
                    return
                await asyncio.sleep(EVERY)
    except TimeoutError:
        raise AssertionError(f"expected {expected!r}, still {seen!r} after {within:g} s") from None


def hold(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """Keep a port for a server that is yet to be started, or started again: until it listens, nobody else is given it.

    Who connects meanwhile is refused. A server that sets SO_REUSEADDR, as asyncio's and Node's do, may listen on it
    all the same; close the socket once it does.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, port))
    return held


class _Recorded(list[str]):
    """What a listener heard, in order, beginning with what was there when it began."""

    def __init__(self, first: str) -> None:
        super().__init__([first])
        self._news = asyncio.Event()

    async def all_of(self, *wanted: str, within: float | None = None) -> None:
        """Wait until these have been heard since the recording began, in this order, with anything between them.

        Raises AssertionError, with all that was heard, if that never comes.
        """
        within = patience() if within is None else within
        try:
            async with asyncio.timeout(within):
                while not self._holds(wanted):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{wanted} did not come within {within:g} s; heard {self[:]}") from None

    def _holds(self, wanted: tuple[str, ...]) -> bool:
        heard = iter(self[1:])  # the first was there before
        return all(each in heard for each in wanted)

    def _hear(self, what: str) -> None:
        self.append(what)
        self._news.set()


class _HasStatus(Protocol):
    @property
    def status(self) -> Any: ...
    def on_status(self, callback: Callable[[Any], None], /) -> object: ...


class _HasState(Protocol):
    @property
    def state(self) -> str: ...
    def on_transition(self, callback: Callable[[Any], None], /) -> object: ...


class Statuses(_Recorded):
    """The statuses of a client or a room."""

    def __init__(self, of: _HasStatus) -> None:
        super().__init__(of.status.value)
        of.on_status(lambda change: self._hear(change.new.value))


class States(_Recorded):
    """The states of a client's machine."""

    def __init__(self, of: _HasState) -> None:
        super().__init__(of.state)
        of.on_transition(lambda step: self._hear(step.new))


def _source(condition: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)


class Idle:
    """A subject of the dispatcher that runs no effect: for tests of what is logged and recorded."""

    def __init__(self, fsm: ClientFSM | RoomFSM, name: str = "") -> None:
        self.fsm, self.name = fsm, name

    def run_effect(self, effect: Effect) -> None:
        """It has nothing to run it on."""

    def event_done(self, event: str, old_state: str) -> None:
        """Nothing follows."""
