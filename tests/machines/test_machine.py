"""The declaration style: how rows are read, what a subclass can change, and what is refused when a class is made."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from door import Door, Said, rules, words
from reconnect_fsm import machine
from reconnect_fsm.errors import MachineDefinitionError
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, any_but, event, ignore, row, state

# ------------------------------------------------------------------------------------------------------- what rows mean


def test_an_instance_begins_in_the_initial_state_and_enters_nothing() -> None:
    """The ``enter`` actions of the initial state do not run."""
    door = Door()
    assert (door.state, door.status) == ("shut", "closed")


@pytest.mark.parametrize(
    ("locked", "force", "then"), [(True, 99.0, "shut"), (False, 99.0, "wide"), (False, 1.0, "ajar")]
)
def test_the_first_row_whose_guards_pass_wins(locked: bool, force: float, then: str) -> None:
    """Rows are tried in the order in which they are written."""
    door = Door()
    door.locked = locked
    door.pushed(force)
    assert door.state == then


def test_a_transition_does_leaves_enters_and_then_announces() -> None:
    """The order is: the row's action, the state left, the state entered, the change of state, that of the status."""
    assert words(Door().pushed(99.0)) == ["grunt", "creak", "bump", "now wide", "closed, then open"]


def test_a_change_of_state_within_a_status_is_no_change_of_status() -> None:
    """Listeners to the status hear nothing when two states share it."""
    door = Door()
    door.pushed()
    assert words(door.pushed()) == ["bump", "now wide"]


def test_stay_leaves_and_enters_nothing() -> None:
    """A row to STAY only runs its action."""
    door = Door()
    assert words(door.knocked()) == ["grunt"]
    assert door.state == "shut"


def test_a_reflexive_row_leaves_and_enters() -> None:
    """A row back to the same state is a transition, but no change of state."""
    door = Door()
    assert words(door.slammed()) == ["grunt", "creak", "bang"]
    assert door.state == "shut"


def test_a_refusal_does_nothing_and_says_why() -> None:
    """No effects, no other state, and a reason that diagrams and tables show."""
    door = Door()
    door.locked = True
    assert door.pushed() == []
    assert door.state == "shut"
    refusals = {rule.source: rule.because for rule in Door.rules if rule.event == "pushed" and rule.is_ignored}
    assert refusals == {
        "shut": "it is locked",
        "wide": "there is nothing to push",
        "gone": "there is nothing to push",
    }


def test_the_fact_is_recorded_before_the_guards_read_it() -> None:
    """The body of an event runs first, with the arguments of the trigger, by position or by name."""
    door = Door()
    door.pushed(force=11.0)
    assert (door.force, door.state) == (11.0, "wide")


def test_any_rest_and_any_but_stand_for_states() -> None:
    """ANY is all, OTHERWISE what is not decided above, any_but all but those named."""
    assert [rule.source for rule in Door.rules if rule.event == "knocked"] == ["shut", "ajar", "wide", "gone"]
    assert [rule.source for rule in Door.rules if rule.event == "slammed" and rule.target == "gone"] == [
        "ajar",
        "wide",
        "gone",
    ]
    assert [rule.source for rule in Door.rules if rule.event == "pulled" and rule.is_ignored] == ["shut", "gone"]


def test_rest_covers_a_state_that_is_only_decided_under_a_guard() -> None:
    """A guarded row leaves its state open, so OTHERWISE is its otherwise."""

    class Gate(FSM[str]):
        up = state("up")
        down = state("down")
        initial = up

        def is_stuck(self) -> bool:
            return True

        @event(row(up, to=down, when=is_stuck), ignore(down, because="down already"), row(OTHERWISE, to=STAY))
        def dropped(self) -> None: ...

    assert rules(Gate, "dropped", "up") == [("down", ("is_stuck",)), (None, ())]
    assert rules(Gate, "dropped", "down") == [(None, ())]


def test_any_does_not_repeat_what_is_decided() -> None:
    """A state that an unguarded row has decided gets no second rule from a later ANY."""

    class Gate(FSM[str]):
        up = state("up")
        down = state("down")
        initial = up

        @event(row(up, to=down), row(ANY, to=up))
        def toggled(self) -> None: ...

    assert rules(Gate, "toggled", "up") == [("down", ())]
    assert rules(Gate, "toggled", "down") == [("up", ())]


def test_a_rule_tells_all_that_its_row_said() -> None:
    """What diagrams and matrices read: the row, the class that declared it, and whether it is a refusal."""
    rule = next(rule for rule in Door.rules if rule.clause == "DOOR-1")
    assert (rule.event, rule.source, rule.target) == ("pushed", "shut", "wide")
    assert (rule.when, rule.do, rule.because) == (("is_hard",), ("grunt",), "")
    assert rule.declared_in == "Door"
    assert not rule.is_ignored
    (knocked, *_) = [rule for rule in Door.rules if rule.event == "knocked"]
    assert (knocked.when, knocked.do, knocked.clause, knocked.because) == ((), ("grunt",), "", "")


def test_a_rule_tells_all_that_its_refusal_said() -> None:
    """A refusal answers a clause too, or none."""

    class Mute(Door):
        pushed = Door.pushed.first(ignore(Door.ajar, because="tired", when=Door.is_locked, clause="DOOR-2"))

    rule = next(rule for rule in Mute.rules if rule.declared_in == "Mute")
    assert (rule.clause, rule.because, rule.when, rule.do, rule.target) == ("DOOR-2", "tired", ("is_locked",), (), None)
    assert rule.is_ignored
    assert {rule.clause for rule in Door.rules if rule.is_ignored} == {""}


def test_states_and_events_are_listed_in_the_order_of_declaration() -> None:
    """``initial = shut`` is no second state."""
    assert list(Door.states) == ["shut", "ajar", "wide", "gone"]
    assert list(Door.events) == ["pushed", "pulled", "knocked", "slammed"]
    assert Door.states["ajar"].doc == "a hand's breadth"
    assert Door.pushed.__doc__ == "The door was pushed."
    assert (Door.states["wide"].doc, state("open").name) == ("", "")
    assert (repr(Door.ajar), repr(STAY)) == ("<state ajar>", "STAY")
    assert [group.label for group in (ANY, OTHERWISE, any_but(Door.wide))] == ["any", "rest", "any but"]


def test_several_guards_must_all_pass_and_several_actions_run_in_order() -> None:
    """``when`` and ``do``, ``enter`` and ``exit`` take one or several, by reference or by name."""

    class Gate(FSM[str]):
        up = state("up", exit=["one", "two"])
        down = state("down", enter=("two", "one"))
        initial = up
        stuck = False

        def one(self) -> None:
            self.emit(Said("one"))

        def two(self) -> None:
            self.emit(Said("two"))

        def is_free(self) -> bool:
            return not self.stuck

        def is_up(self) -> bool:
            return self.state == "up"

        @event(row(ANY, to=down, when=[is_free, "is_up"], do=(one, "one")), ignore(OTHERWISE, because="stuck"))
        def dropped(self) -> None: ...

    gate = Gate()
    gate.stuck = True
    assert gate.dropped() == []
    gate.stuck = False
    assert words(gate.dropped()) == ["one", "one", "one", "two", "two", "one"]


# ----------------------------------------------------------------------------------------------------------- subclasses


def test_a_subclass_overrides_guards_and_actions_by_defining_them() -> None:
    """They are looked up by name when they run, also where the row gave them by reference."""

    class Heavy(Door):
        def is_hard(self) -> bool:
            return False

        def grunt(self) -> None:
            self.emit(Said("groan"))

    heavy = Heavy()
    assert words(heavy.pushed(99.0))[0] == "groan"
    assert heavy.state == "ajar"


def test_a_subclass_puts_rows_first_and_keeps_the_rest() -> None:
    """`first` overrules for the states that it names; the inherited class stays as it was."""

    class Stuck(Door):
        pushed = Door.pushed.first(ignore(Door.ajar, because="something is behind it", silences=ANY))

    assert rules(Stuck, "pushed", "ajar") == [(None, ())]
    assert rules(Stuck, "pushed", "shut") == rules(Door, "pushed", "shut")
    assert rules(Door, "pushed", "ajar") == [("wide", ())]
    assert {rule.declared_in for rule in Stuck.rules if rule.event == "pushed"} == {"Stuck", "Door"}
    stuck = Stuck()
    stuck.pushed()
    assert stuck.pushed() == []
    assert Stuck.pushed.__doc__ == Door.pushed.__doc__


def test_a_guarded_row_put_first_falls_through_to_the_inherited_ones() -> None:
    """Only if its guards pass."""

    class Shy(Door):
        pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=Door.is_hard, silences=Door.is_hard))

    gentle, rough = Shy(), Shy()
    gentle.pushed()
    rough.pushed(99.0)
    assert (gentle.state, rough.state) == ("ajar", "gone")


def test_rows_put_first_twice_stand_above_each_other() -> None:
    """The most derived class is asked first, then its base, then the base's base."""

    class Shy(Door):
        pushed = Door.pushed.first(ignore(Door.ajar, because="shy", silences=ANY))

    class Bold(Shy):
        pushed = Shy.pushed.first(row(Door.ajar, to=Door.gone, silences=ANY))

    assert [layer.declared_in for layer in Bold.pushed.layers] == ["Bold", "Shy", "Door"]
    assert rules(Bold, "pushed", "ajar") == [("gone", ())]


def test_rows_put_first_twice_in_one_class_are_both_its_own() -> None:
    """Written ``first(below).first(above)``: each rule knows its class."""

    class Bold(Door):
        pushed = Door.pushed.first(ignore(Door.ajar, because="shy", silences=ANY)).first(
            row(Door.gone, to=Door.wide, silences=ANY)
        )

    assert [layer.declared_in for layer in Bold.pushed.layers] == ["Bold", "Bold", "Door"]
    assert rules(Bold, "pushed", "gone") == [("wide", ())]


def test_what_the_most_derived_class_decides_stays_decided() -> None:
    """However many classes with rows of their own are between it and the base."""

    class Shy(Door):
        pushed = Door.pushed.first(ignore(Door.gone, because="shy", silences=ANY))

    class Bold(Shy):
        pushed = Shy.pushed.first(row(Door.ajar, to=Door.gone, silences=ANY))

    assert rules(Bold, "pushed", "ajar") == [("gone", ())]
    assert {rule.because for rule in Bold.rules if (rule.event, rule.source) == ("pushed", "gone")} == {"shy"}


def test_rows_put_first_may_decide_everything() -> None:
    """What they overrule is not dead: it was written for the inherited class."""

    class Welded(Door):
        pushed = Door.pushed.first(ignore(ANY, because="it is welded", silences=ANY))

    assert {rule.because for rule in Welded.rules if rule.event == "pushed"} == {"it is welded"}


def test_rows_put_first_may_leave_nothing_to_an_inherited_rest() -> None:
    """An inherited OTHERWISE may find every state decided."""

    class Wall(Door):
        slammed = Door.slammed.first(ignore(any_but(Door.shut), because="not now", silences=ANY))

    assert rules(Wall, "slammed", "shut") == [("shut", ())]
    assert rules(Wall, "slammed", "wide") == [(None, ())]


def test_a_subclass_adds_a_state_that_any_rest_and_any_but_cover() -> None:
    """Groups are expanded for each class anew."""

    class Revolving(Door):
        turning = state("open")
        pulled = Door.pulled.first(row(Door.wide, to=turning, silences=ANY))
        pushed = Door.pushed.first(row(turning, to=Door.shut, when=Door.is_hard))

    assert rules(Revolving, "knocked", "turning") == [(None, ())]  # ANY
    assert rules(Revolving, "slammed", "turning") == [("gone", ())]  # OTHERWISE
    assert rules(Revolving, "pulled", "turning") == [(None, ())]  # any_but
    assert list(Revolving.states) == [*Door.states, "turning"]
    door = Revolving()
    door.pushed(99.0)
    door.pulled()
    assert door.state == "turning"


def test_a_state_like_another_has_its_rows() -> None:
    """Where it has none of its own; a row of its own comes first."""

    class Hatch(Door):
        cracked = state("open", like=Door.ajar)
        split = state("open", like=Door.ajar)
        pulled = Door.pulled.first(row(split, to=Door.gone, silences=ANY))

    assert rules(Hatch, "pushed", "cracked") == [("wide", ())]
    assert rules(Hatch, "pulled", "cracked") == [("shut", ())]
    assert rules(Hatch, "pushed", "split") == [("wide", ())]
    assert rules(Hatch, "pulled", "split") == [("gone", ())]


def test_a_state_like_another_may_be_named_beside_it() -> None:
    """It then has a row of its own, and borrows none: not the same one twice, and not one that it has overruled."""

    class Hatch(Door):
        cracked = state("open", like=Door.ajar)
        pulled = Door.pulled.first(row((Door.ajar, cracked), to=Door.gone, silences=ANY))
        pushed = Door.pushed.first(
            ignore(cracked, because="it is cracked", silences=ANY), row(Door.ajar, to=Door.gone, silences=ANY)
        )

    assert rules(Hatch, "pulled", "cracked") == rules(Hatch, "pulled", "ajar") == [("gone", ())]
    assert rules(Hatch, "pushed", "cracked") == [(None, ())]
    assert rules(Hatch, "pushed", "ajar") == [("gone", ())]


def test_a_state_like_another_that_is_like_a_third_has_the_rows_of_the_third() -> None:
    """Rows are borrowed through as many states as it takes."""

    class Hatch(Door):
        cracked = state("open", like=Door.ajar)
        torn = state("open", like=cracked)

    assert rules(Hatch, "pushed", "torn") == [("wide", ())]


def test_a_subclass_adds_an_event() -> None:
    """Its rows may name inherited states, guards and actions."""

    class Bell(Door):
        @event(row(Door.shut, to=Door.ajar, do=Door.grunt), ignore(OTHERWISE, because="nobody listens"))
        def rang(self, times: int) -> None:
            self.force = times

    bell = Bell()
    assert words(bell.rang(2)) == ["grunt", "creak", "now ajar", "closed, then open"]
    assert list(Bell.events) == [*Door.events, "rang"]
    assert "rang" not in Door.events


def test_a_subclass_declares_an_inherited_state_anew() -> None:
    """Under the same name, with other actions; inherited rows lead to the new one."""

    class Soft(Door):
        wide = state("open", exit="creak")

    soft = Soft()
    assert "bump" not in words(soft.pushed(99.0))
    assert words(soft.pulled())[:2] == ["creak", "bang"]


def test_a_subclass_begins_in_another_state() -> None:
    """`initial` is inherited, and may be overridden."""

    class Open(Door):
        initial = Door.wide

    assert Open().state == "wide"
    assert list(Open.states) == list(Door.states)


def test_a_class_that_inherits_no_rows_overrides_nothing() -> None:
    """So its names may be as much alike as it likes; in a subclass such a name is a slip of the pen."""

    class Lock(FSM[bool]):
        open = state(True)
        shut = state(False)
        initial = open

        def is_locked(self) -> bool:
            return False

        def is_locked_(self) -> bool:
            return False

        @event(row(open, to=shut, when=is_locked), ignore(OTHERWISE, because="no"))
        def pushed(self) -> None: ...

    class Better(Lock):
        def is_locked_(self) -> bool:
            return True

    assert Lock().pushed() == Better().pushed() == []
    with pytest.raises(MachineDefinitionError, match="did you mean to override 'is_locked'"):

        class Worse(Lock):
            def is_lockd(self) -> bool:
                return True


def test_a_base_without_states_and_events_is_no_machine_yet() -> None:
    """Such as one that only shares guards or actions."""

    class Talking(FSM[str]):
        def talk(self) -> None:
            self.emit(Said("hello"))

    class Parrot(Talking):
        awake = state("awake")
        initial = awake

        @event(row(awake, to=STAY, do="talk"))
        def poked(self) -> None: ...

    assert not hasattr(Talking, "machine")
    assert (Talking.states, Talking.events, Talking.rules) == (FSM.states, FSM.events, FSM.rules) == ({}, {}, ())
    assert words(Parrot().poked()) == ["hello"]


def test_keywords_of_the_class_go_on_to_those_that_know_them() -> None:
    """A machine may be mixed with a class that has keywords of its own."""
    told = []

    class Tagged:
        def __init_subclass__(cls, *, tag: str) -> None:
            told.append(tag)

    class Odd(Door, Tagged, tag="red"):
        pass

    assert told == ["red"]
    assert Odd().state == "shut"


# ------------------------------------------------------------------------------------------------ what is refused, when


def door_with(**attributes: Any) -> Callable[[], type[FSM[Any]]]:
    """A function that makes a subclass of Door with these attributes."""
    return lambda: type("Odd", (Door,), attributes)


def pushed(*rows: Any) -> Callable[[], type[FSM[Any]]]:
    """A function that makes a subclass of Door with these rows put first."""
    return door_with(pushed=Door.pushed.first(*rows))


def fresh(*rows: Any) -> Callable[[], type[FSM[Any]]]:
    """A function that makes a subclass of Door with an event of these rows."""

    @event(*rows)
    def rang(self: Any) -> None: ...

    return door_with(rang=rang)


def elsewhere() -> Any:
    """A state that no Door has."""

    class Window(FSM[str]):
        wild = state("open")
        initial = wild

    return Window.wild


FIVE: Any = 5
DEFINITIONS: dict[str, tuple[Callable[[], object], str]] = {
    "unknown target": (
        pushed(row(Door.shut, to="wied")),
        "Odd: event pushed, row 1, to: there is no state 'wied'; did you mean 'wide'?",
    ),
    "unknown target, nothing like it": (
        pushed(row(Door.shut, to="zzz")),
        "Odd: event pushed, row 1, to: there is no state 'zzz'",
    ),
    "unknown source": (
        pushed(row(elsewhere(), to=Door.shut)),
        "Odd: event pushed, row 1: there is no state 'wild'; did you mean 'wide'?",
    ),
    "unknown state in any_but": (
        pushed(row(any_but(elsewhere()), to=Door.shut)),
        "Odd: event pushed, row 1: there is no state 'wild'; did you mean 'wide'?",
    ),
    "unknown like": (
        door_with(cellar=state("closed", like=elsewhere())),
        "Odd: state cellar, like: there is no state 'wild'; did you mean 'wide'?",
    ),
    "misspelt guard": (
        pushed(row(Door.shut, to=Door.wide), row(Door.ajar, to=Door.gone, when="is_loked")),
        "Odd: event pushed, row 2, when: there is no method 'is_loked'; did you mean 'is_locked'?",
    ),
    "misspelt action": (
        pushed(row(Door.shut, to=Door.wide, do="grnt")),
        "Odd: event pushed, row 1, do: there is no method 'grnt'; did you mean 'grunt'?",
    ),
    "misspelt enter": (
        door_with(cellar=state("closed", enter="bnag")),
        "Odd: state cellar, enter: there is no method 'bnag'; did you mean 'bang'?",
    ),
    "misspelt exit": (
        door_with(cellar=state("closed", exit=["bang", "creek"])),
        "Odd: state cellar, exit: there is no method 'creek'; did you mean 'creak'?",
    ),
    "a lambda": (
        pushed(row(Door.shut, to=Door.wide, when=lambda door: True)),
        "Odd: event pushed, row 1, when: there is no method '<lambda>'"
        "; guards and actions are looked up by name, so define a method for it",
    ),
    "something without a name": (
        pushed(row(Door.shut, to=Door.wide, when=Said)),
        "Odd: event pushed, row 1, when: there is no method 'Said'",
    ),
    "a private method": (
        door_with(_be_shy=print, pushed=Door.pushed.first(row(Door.shut, to=Door.wide, do="be_shyy"))),
        "Odd: event pushed, row 1, do: there is no method 'be_shyy'",
    ),
    "no name at all": (
        pushed(row(Door.shut, to=Door.wide, when=FIVE)),
        "Odd: event pushed, row 1, when: there is no method '5'",
    ),
    "a property": (
        pushed(row(Door.shut, to=Door.wide, when="status")),
        "Odd: event pushed, row 1, when: there is no method 'status'",
    ),
    "undecided pair": (
        fresh(row(Door.shut, to=Door.ajar), row(Door.ajar, to=Door.shut, when="is_locked")),
        "Odd: event rang is not decided in ajar, wide, gone",
    ),
    "dead: an unguarded copy_error above": (
        fresh(row(Door.shut, to=Door.ajar), row(Door.shut, to=Door.wide, when="is_locked"), row(OTHERWISE, to=STAY)),
        "Odd: event rang, row 2 can never be reached in shut",
    ),
    "dead: the same guard above": (
        fresh(
            row(ANY, to=STAY, when="is_locked"),
            row(Door.OPEN, to=Door.shut, when=("is_hard", "is_locked")),
            row(OTHERWISE, to=STAY),
        ),
        "Odd: event rang, row 2 can never be reached in ajar, wide",
    ),
    "dead: in one of its states": (
        fresh(row(Door.wide, to=Door.ajar), row(Door.OPEN, to=Door.shut), row(OTHERWISE, to=STAY)),
        "Odd: event rang, row 2 can never be reached in wide",
    ),
    "dead: all of ANY": (
        fresh(row(ANY, to=STAY), row(ANY, to=Door.shut, when="is_locked")),
        "Odd: event rang, row 2 can never be reached in shut, ajar, wide, gone",
    ),
    "dead: a OTHERWISE of nothing": (
        fresh(row(ANY, to=STAY), ignore(OTHERWISE, because="never")),
        "Odd: event rang, row 2 can never be reached in any state",
    ),
    "dead: in the rows put first": (
        pushed(row(Door.shut, to=Door.gone), row(Door.shut, to=Door.wide)),
        "Odd: event pushed, row 2 can never be reached in shut",
    ),
    "an event under another name": (
        door_with(shoved=Door.pushed.first(row(Door.shut, to=Door.gone))),
        "Odd: event pushed was assigned to 'shoved': keep its name, or declare a new event",
    ),
    "an initial of another machine": (
        door_with(initial=elsewhere()),
        "Odd: say in which state it begins: initial = <one of its states>",
    ),
    "an initial that is no state": (
        door_with(initial="shut"),
        "Odd: say in which state it begins: initial = <one of its states>",
    ),
    "events and no states": (
        lambda: type("Odd", (FSM,), {"rang": event(ignore(ANY, because="nobody is there"))(lambda self: None)}),
        "Odd: say in which state it begins: initial = <one of its states>",
    ),
    "no initial": (
        lambda: type("Odd", (FSM,), {"only": state("open")}),
        "Odd: say in which state it begins: initial = <one of its states>",
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_wrong_definition_is_refused_when_the_class_is_made(name: str) -> None:
    """With what is wrong, where, and what may have been meant."""
    make, message = DEFINITIONS[name]
    with pytest.raises(MachineDefinitionError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", ["unknown target, nothing like it", "misspelt guard", "a lambda", "a private method"])
def test_what_may_have_been_meant_is_advised_and_nothing_else(name: str) -> None:
    """The error ends with it; or, where nothing can have been meant, with what is wrong."""
    make, message = DEFINITIONS[name]
    with pytest.raises(MachineDefinitionError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (row(Door.shut, to=Door.wide), "target"),
        (ignore(Door.shut, because="why"), "because"),
        (any_but(Door.shut), "but"),
        (Door.rules[0], "target"),
    ],
)
def test_a_table_cannot_be_changed_once_it_is_written(value: Any, field: str) -> None:
    """The Machine is made of it when the class is; a change would show in diagrams and nowhere else."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "another")
    assert not hasattr(value, "__dict__")


def test_a_state_is_none_but_itself() -> None:
    """However alike two states are, they are two; and a slip of the pen gives it no new attribute."""
    one, other = state("open"), state("open")
    assert one != other
    assert len({one, other}) == 2
    assert row(one, to=other) != row(one, to=other)
    with pytest.raises(AttributeError):
        one.entre = ("bang",)  # type: ignore[attr-defined]


def test_what_may_have_been_meant_is_something_else() -> None:
    """A property is no method, so its own name is no advice."""
    with pytest.raises(MachineDefinitionError) as caught:
        pushed(row(Door.shut, to=Door.wide, when="status"))()
    assert "did you mean 'status'" not in str(caught.value)


def test_an_undecided_pair_is_told_what_to_do() -> None:
    """Most often it is a state that a subclass added: it can borrow rows."""
    with pytest.raises(MachineDefinitionError, match=r"ignore\(OTHERWISE.*like=<another state>"):
        fresh(row(Door.shut, to=Door.ajar))()


@pytest.mark.parametrize(("name", "kind"), [("pushed", "event"), ("ajar", "state")])
def test_a_method_cannot_take_the_name_of_an_event_or_a_state(name: str, kind: str) -> None:
    """It would silently win over the event, whose callers expect effects."""
    with pytest.raises(MachineDefinitionError, match=f"'{name}' is the name of an inherited {kind}: give"):
        door_with(**{name: lambda self: None})()


# ------------------------------------------------------------------------------------------------------ when it goes on


class Clumsy(Door):
    """A door whose parts raise when told to."""

    __slots__ = ("broken",)

    def __init__(self) -> None:
        super().__init__()
        self.broken = ""

    def breaks(self, part: str) -> None:
        if self.broken == part:
            raise OSError(part)

    def is_hard(self) -> bool:
        self.breaks("guard")
        return super().is_hard()

    def grunt(self) -> None:
        self.breaks("action")
        super().grunt()

    def creak(self) -> None:
        self.breaks("exit")
        super().creak()

    def bump(self) -> None:
        self.breaks("enter")
        super().bump()


@pytest.mark.parametrize("part", ["guard", "action", "exit"])
def test_what_raises_leaves_the_machine_usable(part: str) -> None:
    """In the old state, with what the fact told; the effects are lost."""
    door = Clumsy()
    door.broken = part
    with pytest.raises(OSError, match=part):
        door.pushed(99.0)
    assert (door.state, door.announced_status, door.force) == ("shut", "closed", 99.0)
    door.broken = ""
    assert words(door.knocked()) == ["grunt"]


def test_a_state_whose_enter_action_raises_is_entered_and_announced_later() -> None:
    """The state is the new one, but nobody has heard of it: the next event tells them, and nobody hears it twice."""
    door = Clumsy()
    door.broken = "enter"
    with pytest.raises(OSError, match="enter"):
        door.pushed(99.0)
    assert (door.state, door.status, door.announced_status) == ("wide", "open", "closed")
    assert words(door.knocked()) == ["grunt", "now wide", "closed, then open"]
    assert door.announced_status == "open"
    assert words(door.knocked()) == ["grunt"]


def test_a_machine_can_be_put_into_a_state() -> None:
    """`jump_to` leaves and enters nothing: for what has to be done after an action raised."""

    class Quiet(Door):
        def state_changed(self) -> None:
            self.force = -1.0

    door = Quiet()
    door.jump_to(Door.gone)
    assert (door.state, door.status, door.announced_status) == ("gone", "gone", "gone")
    assert words(door.knocked()) == ["grunt"]


def test_wrong_arguments_of_a_fact_are_a_type_error() -> None:
    """The trigger has the signature of the event's method."""
    door: Any = Door()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        door.pushed(speed=1)
    assert words(door.knocked()) == ["grunt"]


def test_an_event_cannot_be_fired_inside_an_event() -> None:
    """Actions only emit effects; the machine stays usable."""

    class Eager(Door):
        def creak(self) -> None:
            self.pulled()

    door = Eager()
    with pytest.raises(RuntimeError, match="pulled was fired inside an event of the same machine"):
        door.pushed()
    assert words(door.knocked()) == ["grunt"]


def test_an_event_of_another_machine_can_be_fired_inside_an_event() -> None:
    """Each instance runs its own events one at a time."""
    other = Door()

    class Linked(Door):
        def creak(self) -> None:
            for effect in other.pushed():
                self.emit(effect)

    assert "now ajar" in words(Linked().pushed(99.0))
    assert other.state == "ajar"


def test_effects_are_asked_for_inside_an_event_only() -> None:
    """Outside there is nobody to hand them to."""
    with pytest.raises(RuntimeError, match=r"emit\(\) is for actions"):
        Door().emit(Said("boo"))


def test_after_an_event_that_raised_there_is_nobody_to_ask_either() -> None:
    """What was asked for in it is lost, and does not turn up in the next."""

    class Clumsy(Door):
        def creak(self) -> None:
            self.emit(Said("lost"))
            raise LookupError

    door = Clumsy()
    with pytest.raises(LookupError):
        door.pushed()
    with pytest.raises(RuntimeError, match=r"emit\(\) is for actions"):
        door.emit(Said("boo"))
    assert words(door.knocked()) == ["grunt"]


def test_without_overrides_a_machine_announces_nothing() -> None:
    """Changes of state and status are news only for machines that say so."""

    class Lamp(FSM[bool]):
        on = state(True)
        off = state(False)
        initial = off

        @event(row(off, to=on), row(on, to=off))
        def switched(self) -> None: ...

    lamp = Lamp()
    assert lamp.switched() == []
    assert lamp.status is True


# ----------------------------------------------------------------------------------------------------------------- cost


def test_an_instance_is_its_slots() -> None:
    """No Machine, no dict, and few bytes: there may be a hundred thousand rooms."""
    door = Door()
    assert not hasattr(door, "__dict__")
    assert sys.getsizeof(door) <= 88


def test_there_is_one_machine_a_class() -> None:
    """Instances share that of their class, and are not registered with it."""

    class Other(Door):
        __slots__ = ()

    one, two = Door(), Door()
    one.pushed()
    assert two.state == "shut"
    assert one.machine is two.machine is Door.machine is not Other.machine
    assert Door.machine.models == []


def test_the_machine_of_a_class_is_made_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an instance or by the class, once; what is wrong with a declaration is said when the class is made."""
    made: list[str] = []

    class Counted(machine.FastMachine):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(options["name"])
            super().__init__(*args, **options)

    monkeypatch.setattr(machine, "FastMachine", Counted)

    class First(Door):
        __slots__ = ()

    class Second(First):
        __slots__ = ()

    first = First()
    assert made == []
    assert words(first.pushed(99.0))
    First().pushed()
    assert Second.machine is Second.machine is Second().machine
    assert made == ["First", "Second"]
    with pytest.raises(MachineDefinitionError, match="there is no method 'missing'"):

        class Third(Door):
            pushed = Door.pushed.first(row(Door.shut, to=Door.shut, when="missing"))


# --------------------------------------------------------------------------------------- what we rely on of transitions


def test_transitions_runs_callbacks_in_the_order_that_we_rely_on() -> None:
    """Rows and ``exit`` see the old state, ``enter`` the new one, and the announcement comes last."""
    seen: list[str] = []

    class Lamp(FSM[bool]):
        on = state(True, enter="entering")
        off = state(False, exit="leaving")
        initial = off

        def is_whole(self) -> bool:
            seen.append(f"guard in {self.state}")
            return True

        def acting(self) -> None:
            seen.append(f"action in {self.state}")

        def leaving(self) -> None:
            seen.append(f"exit in {self.state}")

        def entering(self) -> None:
            seen.append(f"enter in {self.state}")

        def state_changed(self) -> None:
            seen.append(f"changed in {self.state}")

        @event(row(off, to=on, when=is_whole, do=acting), ignore(OTHERWISE, because="no"))
        def switched(self) -> None:
            seen.append(f"recorded in {self.state}")

    Lamp().switched()
    assert seen == [
        "recorded in off",
        "guard in off",
        "action in off",
        "exit in off",
        "enter in on",
        "changed in on",
    ]


def test_transitions_asks_no_guard_after_one_that_does_not_pass() -> None:
    """So a guard may rely on those before it."""

    class Lamp(FSM[bool]):
        off = state(False)
        initial = off

        def is_whole(self) -> bool:
            return False

        def is_bright(self) -> bool:
            raise AssertionError("asked in vain")

        @event(row(off, to=STAY, when=(is_whole, is_bright)), ignore(OTHERWISE, because="no"))
        def looked(self) -> None: ...

    assert Lamp().looked() == []


def test_transitions_makes_only_the_triggers_that_are_declared() -> None:
    """No ``to_…`` for every state, no trigger method on the model."""
    assert set(Door.machine.events) == set(Door.events)
    assert list(Door.machine.states) == list(Door.states)
    assert not hasattr(Door(), "trigger")


@pytest.fixture
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("transitions")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("_logger_as_it_was")
@pytest.mark.parametrize(("before", "after"), [(logging.NOTSET, logging.WARNING), (logging.DEBUG, logging.DEBUG)])
def test_transitions_is_quiet_unless_the_user_says_otherwise(before: int, after: int) -> None:
    """It logs several lines a trigger; a level that the user has set stays."""
    logger = logging.getLogger("transitions")
    logger.setLevel(before)
    spec = importlib.util.find_spec("reconnect_fsm.machine")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # once more, beside the one that is imported
    assert logger.level == after


def test_a_state_that_a_subclass_adds_without_rows_is_a_trap() -> None:
    """The OTHERWISE of the inherited events would refuse most facts in it, and quietly: it needs rows, or `like=`."""
    with pytest.raises(MachineDefinitionError, match=r"state loose has no rows of its own.*like="):
        door_with(loose=state("open"))()
    with pytest.raises(MachineDefinitionError, match="state loose has no rows of its own"):  # a refusal is no way out
        door_with(loose=state("open"), pushed=Door.pushed.first(ignore("loose", because="it is loose")))()


def test_a_misspelt_override_is_an_error() -> None:
    """A method that nobody names, called almost like a guard, was meant to override it."""
    with pytest.raises(MachineDefinitionError, match="'is_hardd'; did you mean to override 'is_hard'"):
        door_with(is_hardd=lambda self: True)()
    with pytest.raises(MachineDefinitionError, match="'creakk'; did you mean to override 'creak'"):
        door_with(creakk=lambda self: None)()


def test_an_override_that_cannot_be_misspelt_is_none() -> None:
    """A private method, one of quite another name, a constant, and a method that a base class has had all along."""
    door_with(_is_hard=lambda self: True, quite_another=lambda self: True, is_hards=10.0)()

    class Grumpy:
        def grunts(self) -> None: ...

    class Odd(Grumpy, Door):
        def grunts(self) -> None: ...

    assert Odd().state == "shut"


def test_rows_and_likes_of_the_wrong_kind_are_told_so() -> None:
    """At the line where they are written."""
    wrong: Any = ("shut", "open")
    with pytest.raises(MachineDefinitionError, match=r"made of row\(...\) and ignore"):
        Door.pushed.first(wrong)
    with pytest.raises(MachineDefinitionError, match="like= takes a state"):
        state("open", like=wrong)


def test_a_source_may_be_given_by_name() -> None:
    """As a target may."""
    named = door_with(pushed=Door.pushed.first(row("wide", to="shut")))()
    assert rules(named, "pushed", "wide")[0] == ("shut", ())


def test_a_status_of_another_kind_is_an_error() -> None:
    """Listeners would be told a status that is none."""
    with pytest.raises(MachineDefinitionError, match="state odd: its status must be a str, not 5"):
        door_with(odd=state(5, like=Door.shut))()
