"""Events and transitions of ``transitions`` without the parts that machines declared here never use.

A stock trigger makes an `EventData` and a partial, asks of each callback whether it is a name, a property or the path
of a function, and logs a dozen lines that nobody reads. Here every guard and action is the name of a method that takes
nothing, and nothing is passed on: a third of the time. They are set through the hooks that ``transitions`` has for it.
What is called, in which order, what is returned and what is raised is the same; ``tests/test_lean.py`` compares the
two on random machines.
"""

from __future__ import annotations

from typing import Any

import transitions

__all__ = ["LeanMachine"]


class LeanTransition(transitions.Transition):
    """A transition whose callbacks are names of methods."""

    def permits(self, model: Any) -> bool:
        """Whether all guards pass. One that raises stops the event."""
        conditions: list[Any] = self.conditions
        for each in conditions:  # noqa: SIM110  # the generator of all() costs more than the guards do
            if getattr(model, each.func)() != each.target:  # as transitions compares: "yes" is not True
                return False
        return True

    def run(self, model: Any, machine: transitions.Machine) -> None:
        """Do what a transition does once its guards have passed."""
        _call(model, self.before)
        if self.dest is not None:
            _call(model, machine.states[self.source].on_exit)
            model.state = self.dest
            _call(model, machine.states[self.dest].on_enter)
        _call(model, machine.after_state_change)


def _call(model: Any, names: list[Any]) -> None:
    for name in names:
        getattr(model, name)()


class LeanEvent(transitions.Event):
    """An event that is told nothing but the model."""

    def trigger(self, model: Any) -> bool:
        """Run the first transition from the model's state whose guards pass; return whether there was one."""
        if model.state not in self.transitions:
            return super().trigger(model)  # which says so
        rows: list[Any] = self.transitions[model.state]
        for each in rows:
            if each.permits(model):
                each.run(model, self.machine)
                return True
        return False


class LeanMachine(transitions.Machine):
    """A Machine of such events. Of the Machine's own callbacks only ``after_state_change`` is known here."""

    event_cls = LeanEvent
    transition_cls = LeanTransition
