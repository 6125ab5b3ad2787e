"""What the drivers of both machines have in common: facts are told one at a time, and the effects run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from reconnect_fsm._asyncio.event_queue import Listeners, Pump, raised
from reconnect_fsm._asyncio.user_code import is_fault, notify_user, report
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect
from reconnect_fsm.room_fsm import RoomFSM

__all__ = ["Driver", "Memory", "Step", "Tap", "broken", "memory_of", "remembered"]

T = TypeVar("T")

LOG: Final = 400  # of the last steps that are kept
OLDER: Final = 100  # and of the client's own before them, which what its rooms do must not push out

Memory: TypeAlias = tuple[Any, ...]
"""What a machine remembers besides its state; `remembered` gives it names."""

Step: TypeAlias = tuple[
    float, str, ClientFSM | RoomFSM, str, tuple[Any, ...], str, str, str, int, list[Effect], Memory | None
]
"""When, in the loop's seconds; whose machine (a room's id, or ""), and which; event and arguments; state before and
after, the reason for it, and the attempts so far; the effects; and what the machine remembered before, where it is
known: always of a client, of a room only while it is recorded."""


class Tap(Protocol):
    """Whoever records what a driver does; it must not raise."""

    def told(self, step: Step) -> None:
        """A machine was told a fact; the effects are run next."""

    def closed(self) -> None:
        """The client is closed, and all its rooms have heard of it."""


class Driver(Pump):
    """Runs jobs one at a time, and tells machines facts; keeps the last steps that they took."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Step] = []
        """The last steps, `LOG` of them, and before those the last `OLDER` of the client's own that are older."""
        self._older = 0  # how many those are
        self.now = 0.0
        """When the last fact was told, in the loop's seconds."""
        self.tap: Tap | None = None
        """Who records it, if somebody does."""
        self.observers: Listeners[tuple[Step, Any]] = Listeners("an observer of steps")
        """Are told of every step and whose it was (a connection or a room), before its effects are run."""

    def fire(
        self,
        whose: str,
        fsm: ClientFSM | RoomFSM,
        event: str,
        args: tuple[Any, ...],
        run: Mapping[type, Callable[[T, Any], None]],
        broke: Callable[[T, str], None],
        subject: T,
    ) -> None:
        """Tell a machine a fact and run the effects. The only place where either happens.

        ``run[type(effect)](subject, effect)`` runs one. A fault of it is the next fact: ``broke(subject, what)`` is to
        tell it.
        """
        old = fsm.state
        memory = None if whose and self.tap is None else memory_of(fsm)
        try:
            effects = fsm.events[event].fire(fsm, *args)
        except BaseException as error:
            if not is_fault(error):
                raise
            report(f"{type(fsm).__name__}, on {event} in state {old},", error)
            effects = broken(fsm, error)
        if (loop := self._loop or _running_loop()) is not None:
            self.now = loop.time()
        step = (self.now, whose, fsm, event, args, old, fsm.state, fsm.reason, fsm.attempt, effects, memory)
        self.log.append(step)
        if len(self.log) > LOG + self._older:
            self._forget_one()
        if self.tap is not None:
            notify_user("the recorder", self.tap.told, step)
        if self.observers:
            self.observers.tell((step, subject))
        for effect in effects:
            try:
                run[type(effect)](subject, effect)
            except BaseException as error:
                if not is_fault(error):
                    raise
                report(f"running {type(effect).__name__}", error)  # its repr may tell a secret of the user's
                self.post(broke, subject, raised(f"running {type(effect).__name__}", error))

    def _forget_one(self) -> None:
        """One for one: if many were let go at once, Python would search through the new ones for garbage."""
        if self.log[self._older][1]:
            del self.log[self._older]
        elif self._older < OLDER:
            self._older += 1
        else:
            del self.log[0]

    def end_recording(self) -> None:
        """A recording ends with the client, if not before."""
        if self.tap is not None:
            notify_user("the recorder", self.tap.closed)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The one of whoever asks: a room may be joined before the client is started."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def broken(fsm: ClientFSM | RoomFSM, error: BaseException) -> list[Effect]:
    """Something of the user's own raised (D-ERROR). If the way to `error` raises too, nobody is asked."""
    what = raised(f"the machine {type(fsm).__name__}", error)
    try:
        return fsm.broke(what, True) if isinstance(fsm, ClientFSM) else fsm.broke(what)
    except BaseException as again:
        if not is_fault(again):
            raise
        report(f"{type(fsm).__name__}, on its way to error,", again)
        return fsm.give_up(what)


def memory_of(fsm: ClientFSM | RoomFSM) -> Memory:
    """What the machine remembers at this moment; mutable values of a subclass of the user's are not copied."""
    names, get = _slots(type(fsm))
    try:
        memory = get(fsm)
    except AttributeError:  # one of the user's that was never set
        memory = tuple(getattr(fsm, name, NOTHING) for name in names)
    return (*memory, fsm.__dict__.copy()) if hasattr(fsm, "__dict__") else memory


def remembered(fsm: ClientFSM | RoomFSM, memory: Memory) -> dict[str, Any]:
    """The same by name."""
    names, _ = _slots(type(fsm))
    rest: dict[str, Any] = memory[len(names)] if len(memory) > len(names) else {}
    named = {**dict(zip(names, memory, strict=False)), **rest}
    return {name: value for name, value in named.items() if name not in HANDLES and value is not NOTHING}


NOTHING: Final = object()
# The state is told besides; the policy is no memory; the rest is of the moment.
HANDLES: Final = frozenset({"state", "policy", "emit", "_effects", "__dict__", "__weakref__"})


SLOTS: Final[WeakKeyDictionary[Any, tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]]] = WeakKeyDictionary()


def _slots(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names of what machines of this class remember, and what gets it; worked out once."""
    found = SLOTS.get(kind)
    if found is None:
        bases: tuple[Any, ...] = kind.__mro__
        slots: list[Any] = [base.__dict__.get("__slots__", ()) for base in reversed(bases)]
        names: list[str] = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
        names = [name for name in names if name not in HANDLES]
        found = SLOTS[kind] = tuple(names), attrgetter(*names)
    return found
