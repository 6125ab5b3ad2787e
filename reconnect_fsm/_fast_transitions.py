"""Events and transitions of ``transitions`` without the parts that machines declared here never use.

A stock trigger makes an `EventData` and a partial, asks of each callback whether it is a name, a property or the path
of a function, and logs a dozen lines. Here every guard and action is the name of a method without parameters, and
nothing is passed to it: a trigger takes a fifth of the time. The classes are set through the hooks that ``transitions``
has for it. What is called, in which order, what is returned and what is raised is the same, with two exceptions: a
guard must return a bool, and a Machine is complete once it is made. ``tests/machines/test_fast_transitions.py``
compares the two on random machines.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import transitions

from reconnect_fsm.errors import MachineDefinitionError

__all__ = ["FastMachine", "guard_text"]


class FastTransition(transitions.Transition):
    """A transition whose callbacks are names of methods."""

    @cached_property
    def guards(self) -> tuple[tuple[str, object], ...]:
        """The name of each guard, and what it has to return."""
        conditions: list[Any] = self.conditions
        return tuple((each.func, each.target) for each in conditions)

    def leaving(self, machine: transitions.Machine) -> tuple[str, ...]:
        """The methods that are called before the state is set."""
        left = machine.states[self.source].on_exit if self.dest is not None else ()
        called: tuple[Any, ...] = (*self.before, *left)
        return called

    def arriving(self, machine: transitions.Machine) -> tuple[str, ...]:
        """The methods that are called after that."""
        entered = machine.states[self.dest].on_enter if self.dest is not None else ()
        called: tuple[Any, ...] = (*entered, *machine.after_state_change)
        return called


class FastEvent(transitions.Event):
    """An event that takes nothing but the model."""

    @cached_property
    def plans(self) -> dict[str, list[tuple[tuple[tuple[str, object], ...], tuple[str, ...], Any, tuple[str, ...]]]]:
        """For each state its rows, as `trigger` reads them; drawn up at the first trigger, when all rows are there."""
        rows_in: dict[str, list[FastTransition]] = cast(Any, self.transitions)
        return {
            source: [(row.guards, row.leaving(self.machine), row.dest, row.arriving(self.machine)) for row in rows]
            for source, rows in rows_in.items()
        }

    def trigger(self, model: Any) -> bool:
        """Run the first transition from the model's state whose guards pass; return whether there was one."""
        rows = self.plans.get(model.state)
        if rows is None:
            return super().trigger(model)  # which says so
        for guards, leaving, target, arriving in rows:
            for name, wanted in guards:
                answer = getattr(model, name)()
                if answer is not wanted:
                    if type(answer) is not bool:
                        raise MachineDefinitionError(guard_text(name, answer))
                    break
            else:
                for name in leaving:
                    getattr(model, name)()
                if target is not None:
                    model.state = target
                for name in arriving:
                    getattr(model, name)()
                return True
        return False


class FastMachine(transitions.Machine):
    """A Machine of such events. Of the Machine's own callbacks only ``after_state_change`` is known here."""

    event_cls = FastEvent
    transition_cls = FastTransition
    is_complete = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_complete = True

    def add_transition(self, *args: Any, **options: Any) -> None:
        """Raises MachineDefinitionError: `FastEvent.plans` would not know it, nor would diagrams and checks."""
        if self.is_complete:
            raise MachineDefinitionError(f"{self.name}its table is complete: declare a subclass with more rows")
        super().add_transition(*args, **options)

    def add_states(self, *args: Any, **options: Any) -> None:
        """Raises MachineDefinitionError: likewise."""
        if self.is_complete:
            raise MachineDefinitionError(f"{self.name}its table is complete: declare a subclass with more states")
        super().add_states(*args, **options)


def guard_text(name: str, answer: object) -> str:
    """What is wrong with a guard that returned no bool."""
    return f"the guard {name} must return a bool, not {type(answer).__name__}"
