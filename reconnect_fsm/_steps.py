"""What is known of one step of a machine: the event, the states, the effects, and the context before it."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect
from reconnect_fsm.room_fsm import RoomFSM

__all__ = ["NOT_CONTEXT", "Context", "Step", "StepLog", "StepSink", "context_of", "named_context"]

Context: TypeAlias = tuple[Any, ...]
"""What a machine remembers besides its state; `named_context` gives it names."""

Step: TypeAlias = tuple[
    float, str, ClientFSM | RoomFSM, str, tuple[Any, ...], str, str, str, int, list[Effect], Context | None
]
"""When, in the loop's seconds; whose machine (a room's id, or ""), and which; event and arguments; state before and
after, the reason for it, and the attempts so far; the effects; and what the machine remembered before, where it is
known: always of a client, of a room only while it is recorded."""


class StepSink(Protocol):
    """Receives the steps of a driver, for a recording; it must not raise."""

    def step(self, step: Step) -> None:
        """An event has fired; its effects are run next."""

    def closed(self) -> None:
        """The client is closed, and all its rooms were notified."""


class StepLog(Protocol):
    """What keeps the last steps of a client's machines, and passes the next ones on."""

    sink: StepSink | None

    @property
    def log(self) -> list[Step]:
        """The last steps."""
        ...


def context_of(fsm: ClientFSM | RoomFSM) -> Context:
    """What the machine remembers at this moment; mutable values of a subclass of the user's are not copied."""
    names, get = _slots(type(fsm))
    try:
        memory = get(fsm)
    except AttributeError:  # one of the user's that was never set
        memory = tuple(getattr(fsm, name, NOTHING) for name in names)
    return (*memory, fsm.__dict__.copy()) if hasattr(fsm, "__dict__") else memory


def named_context(fsm: ClientFSM | RoomFSM, memory: Context) -> dict[str, Any]:
    """The same by name."""
    names, _ = _slots(type(fsm))
    rest: dict[str, Any] = memory[len(names)] if len(memory) > len(names) else {}
    named = {**dict(zip(names, memory, strict=False)), **rest}
    return {name: value for name, value in named.items() if name not in NOT_CONTEXT and value is not NOTHING}


NOTHING: Final = object()
# The state is told besides; the policy is no memory; the rest is of the moment.
NOT_CONTEXT: Final = frozenset({"state", "policy", "emit", "is_driven", "_effects", "__dict__", "__weakref__"})


SLOTS: Final[WeakKeyDictionary[Any, tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]]] = WeakKeyDictionary()


def _slots(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names of what machines of this class remember, and what gets it; worked out once."""
    found = SLOTS.get(kind)
    if found is None:
        bases: tuple[Any, ...] = kind.__mro__
        slots: list[Any] = [base.__dict__.get("__slots__", ()) for base in reversed(bases)]
        names: list[str] = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
        names = [name for name in names if name not in NOT_CONTEXT]
        found = SLOTS[kind] = tuple(names), attrgetter(*names)
    return found
