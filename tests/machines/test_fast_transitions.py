"""Fast events and transitions do what those of `transitions` do: the two side by side on random machines."""

from __future__ import annotations

import random
from typing import Any

import pytest
import transitions

from reconnect_fsm._fast_transitions import FastEvent, FastMachine, FastTransition
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.room_fsm import RoomFSM

MACHINES = 400
TRIGGERS = 250  # for each machine: 100,000 in all

METHODS = [f"method_{number}" for number in range(12)]
ANSWERS = (True, True, False)


class Model:
    """Its methods return what a seed says, and sometimes raise; it keeps what was called in which state."""

    def __init__(self, seed: int) -> None:
        self.state = "state_0"
        self.calls: list[tuple[str, str]] = []
        self._random = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)
        return lambda: self._called(name)

    def _called(self, name: str) -> object:
        self.calls.append((name, self.state))
        if self._random.random() < 0.02:
            raise random.Random(len(self.calls)).choice([ValueError, KeyError, KeyboardInterrupt])(name)
        return self._random.choice(ANSWERS)


def make(kind: type[transitions.Machine], seed: int) -> transitions.Machine:
    """A machine that depends on nothing but the seed."""
    source = random.Random(seed)
    names = [f"state_{number}" for number in range(source.randint(2, 6))]

    def some(most: int) -> list[str]:
        return source.choices(METHODS, k=source.randint(0, most))

    return kind(
        model=None,
        states=[transitions.State(name, on_enter=some(2), on_exit=some(2)) for name in names],
        transitions=[
            {
                "trigger": f"event_{source.randrange(5)}",
                "source": source.choice(names),
                "dest": source.choice([*names, None]),
                "conditions": some(3),
                "unless": some(1),
                "before": some(2),
            }
            for _ in range(source.randint(1, 40))
        ],
        initial="state_0",
        auto_transitions=False,
        after_state_change=some(1),
    )


def outcome(machine: transitions.Machine, model: Model, name: str) -> object:
    """What a trigger returns, or what it raises."""
    try:
        return machine.events[name].trigger(model)
    except BaseException as error:
        return type(error), str(error)


def test_fast_and_stock_agree_on_random_machines() -> None:
    """100,000 triggers: the same calls in the same order and state, the same results, the same exceptions."""
    outcomes: dict[str, int] = {}
    for seed in range(MACHINES):
        stock, fast = make(transitions.Machine, seed), make(FastMachine, seed)
        ours, theirs = Model(seed), Model(seed)
        names = random.Random(~seed).choices(list(stock.events), k=TRIGGERS)
        for name in names:
            expected = outcome(stock, theirs, name)
            assert outcome(fast, ours, name) == expected, f"seed {seed}, {name}"
            assert (ours.state, ours.calls) == (theirs.state, theirs.calls), f"seed {seed}, {name}"
            kind = expected[0].__name__ if isinstance(expected, tuple) else str(expected)
            outcomes[kind] = outcomes.get(kind, 0) + 1
            ours.calls.clear()
            theirs.calls.clear()
    assert sum(outcomes.values()) == MACHINES * TRIGGERS
    assert set(outcomes) == {"True", "False", "MachineError", "ValueError", "KeyError", "KeyboardInterrupt"}


@pytest.mark.parametrize("fsm", [ClientFSM, RoomFSM])
def test_our_machines_are_fast(fsm: type[Any]) -> None:
    """The hooks of transitions are in use: each event and each transition is of the fast kind."""
    assert fsm.machine.events
    for event in fsm.machine.events.values():
        assert type(event) is FastEvent
        for rows in event.transitions.values():
            assert {type(each) for each in rows} == {FastTransition}
