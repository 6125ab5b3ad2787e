"""What a subclass says about inherited rows, what a guard may be, and what those who know `transitions` find."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from transitions.extensions import GraphMachine

from door import Door, rules, words
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.errors import MachineDefinitionError
from reconnect_fsm.machine import ANY, FSM, MACHINE_CALLBACKS, STAY, event, ignore, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM

# ----------------------------------------------------------------------------------------------------- where rows stand


def when_pushed_shut(door: type[Door]) -> list[tuple[str | None, tuple[str, ...]]]:
    return rules(door, "pushed", "shut")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({}, 0),
        ({"before": Door.is_locked}, 0),
        ({"after": "is_locked"}, 1),
        ({"before": Door.is_hard}, 1),
        ({"before": "DOOR-1"}, 1),
        ({"after": "DOOR-1"}, 2),
        ({"after": Door.is_hard}, 2),
    ],
)
def test_a_row_stands_first_or_beside_an_inherited_one(place: dict[str, Any], expected: int) -> None:
    """It is named by a guard, by reference or name, or by a clause."""

    class Bent(Door):
        def is_bent(self) -> bool:
            return True

        pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=is_bent, **place))

    found = when_pushed_shut(Bent)
    assert found.index(("gone", ("is_bent",))) == expected
    assert [each for each in found if each != ("gone", ("is_bent",))] == when_pushed_shut(Door)
    assert [each.declared_in for each in Bent.rules if each.event == "pushed" and each.source == "shut"] == [
        "Bent" if number == expected else "Door" for number in range(4)
    ]


def test_rows_beside_the_same_inherited_one_keep_their_order() -> None:
    """Those before it stand as they are written; and a subclass of the subclass finds them, too."""

    class Bent(Door):
        def is_bent(self) -> bool:
            return True

        pushed = Door.pushed.first(
            row(Door.shut, to=Door.gone, when=(is_bent, Door.is_hard), before="DOOR-1", silences=ANY),
            row(Door.shut, to=Door.ajar, when=is_bent, before="DOOR-1"),
        )

    class Bowed(Bent):
        def is_bowed(self) -> bool:
            return True

        pushed = Bent.pushed.first(row(Door.shut, to=STAY, when=is_bowed, after=Bent.is_bent))

    guards = [when for _, when in when_pushed_shut(Bowed)]
    assert guards == [("is_locked",), ("is_bent", "is_hard"), ("is_bent",), ("is_bowed",), ("is_hard",), ()]


def test_rows_after_the_same_inherited_one_keep_their_order_too() -> None:
    """Also if they have its guard: only inherited rows are looked for."""

    class Bent(Door):
        def is_bent(self) -> bool:
            return True

        def is_old(self) -> bool:
            return True

        pushed = Door.pushed.first(
            row(Door.shut, to=Door.gone, when=(is_bent, Door.is_hard), after=Door.is_locked),
            row(Door.shut, to=Door.ajar, when=is_old, before=Door.is_hard),
            row(Door.shut, to=Door.wide, when=is_bent, after=Door.is_locked),
        )

    guards = [when for _, when in when_pushed_shut(Bent)]
    assert guards == [("is_locked",), ("is_bent", "is_hard"), ("is_bent",), ("is_old",), ("is_hard",), ()]


@pytest.mark.parametrize("place", [{"before": "DOOR-1"}, {"after": "DOOR-1"}, {"after": Door.is_hard}])
def test_a_new_row_below_one_that_always_passes_is_an_error(place: dict[str, Any]) -> None:
    """Whether that is new or inherited."""
    with pytest.raises(MachineDefinitionError, match="event pushed, row 1 can never be reached in shut"):

        class Odd(Door):
            pushed = Door.pushed.first(
                row(Door.shut, to=Door.gone, when="is_locked", silences="is_locked"),
                row(Door.shut, to=Door.ajar, when=(Door.is_locked, Door.is_hard), **place),
            )


def test_an_inserted_row_decides_where_it_stands() -> None:
    """After the lock, before force is asked for."""

    class Jammed(Door):
        pushed = Door.pushed.first(row(Door.shut, to=STAY, do="grunt", before=Door.is_hard, silences=ANY))

    locked, rough = Jammed(), Jammed()
    locked.locked = True
    assert words(locked.pushed(99.0)) == []
    assert words(rough.pushed(99.0)) == ["grunt"]
    assert rough.state == "shut"


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (
            {"before": "is_hrad"},
            r"event pushed: no inherited row has the guard or clause 'is_hrad'; did you mean 'is_hard'\?",
        ),
        ({"after": "DOOR-9"}, "no inherited row has the guard or clause 'DOOR-9'"),
        ({"before": "is_hard", "after": "is_hard"}, "not both"),
    ],
)
def test_a_row_beside_one_that_is_not_there(place: dict[str, Any], complaint: str) -> None:
    """It is said at once, with the name that was meant."""
    with pytest.raises(MachineDefinitionError, match=complaint):
        Door.pushed.first(row(Door.shut, to=Door.gone, when="is_hard", **place))


def test_rows_are_inserted_together_in_their_order() -> None:
    """Beside one inherited row, named by reference, by name or by clause."""

    class Bent(Door):
        def is_bent(self) -> bool:
            return True

        def is_old(self) -> bool:
            return True

        pushed = Door.pushed.insert(
            row(Door.shut, to=Door.gone, when=is_bent), row(Door.shut, to=Door.ajar, when=is_old), before=Door.is_hard
        )

    class Bowed(Door):
        is_bent, is_old = Bent.is_bent, Bent.is_old
        pushed = Door.pushed.insert(
            row(Door.shut, to=Door.gone, when=is_bent), row(Door.shut, to=Door.ajar, when=is_old), after="DOOR-1"
        )

    new = [("gone", ("is_bent",)), ("ajar", ("is_old",))]
    old = when_pushed_shut(Door)
    assert when_pushed_shut(Bent) == [old[0], *new, *old[1:]]
    assert when_pushed_shut(Bowed) == [*old[:2], *new, *old[2:]]


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ({}, "event pushed: insert\\(\\) takes either before= or after="),
        ({"before": "is_hard", "after": "is_hard"}, "takes either"),
        ({"before": "is_hrad"}, "no inherited row has the guard or clause 'is_hrad'"),
    ],
)
def test_rows_are_inserted_at_one_place_that_there_is(place: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MachineDefinitionError, match=complaint):
        Door.pushed.insert(row(Door.shut, to=Door.gone, when="is_hard"), **place)


@pytest.mark.parametrize(
    "place", [{"before": "is_hard"}, {"after": "is_hard"}, {"silences": ANY}, {"silences": "DOOR-1"}]
)
def test_a_new_event_has_no_inherited_rows(place: dict[str, Any]) -> None:
    """So that no row of it can stand beside one, or silence one."""
    with pytest.raises(MachineDefinitionError, match="event heard: before=, after= and silences= name inherited rows"):

        @event(row(Door.shut, to=STAY, **place))
        def heard(self: Door) -> None: ...


# ------------------------------------------------------------------------------------------------------------- silences


def test_an_inherited_row_that_can_no_longer_fire_is_an_error_unless_it_is_named() -> None:
    """It says which row it is, and what can be done."""
    with pytest.raises(
        MachineDefinitionError, match=r"Loud: event pushed: .* no longer fire: ajar → wide\. .*silences="
    ):

        class Loud(Door):
            pushed = Door.pushed.first(row(Door.ajar, to=Door.gone))

    with pytest.raises(MachineDefinitionError, match=r"shut → wide when is_hard \(DOOR-1\)"):

        class Louder(Door):
            pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=Door.is_hard))


@pytest.mark.parametrize("named", ["is_hard", "DOOR-1", ["is_hard"], ANY, Door.is_hard])
def test_a_silenced_row_is_named_by_its_guard_or_clause(named: Any) -> None:
    """Then it is no row of the subclass any more."""

    class Gentle(Door):
        pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=Door.is_hard, silences=named))

    assert when_pushed_shut(Gentle) == [("gone", ("is_hard",)), (None, ("is_locked",)), ("ajar", ())]


def test_what_silences_nothing_is_an_error() -> None:
    """A name in `silences=` that fits no silenced row is a slip."""
    with pytest.raises(MachineDefinitionError, match="silences='is_locked' names no inherited row that"):

        class Odd(Door):
            pushed = Door.pushed.first(
                row(Door.shut, to=Door.gone, when=Door.is_hard, silences=("is_hard", "is_locked"))
            )


def test_to_silence_what_is_ignored_takes_no_word() -> None:
    """Nothing is lost that would have happened."""

    class Ghost(Door):
        pushed = Door.pushed.first(row(Door.gone, to=Door.shut))

    assert rules(Ghost, "pushed", "gone") == [("shut", ())]


def test_rows_of_a_new_state_silence_nothing() -> None:
    """No inherited row could fire there, be it like another one or not."""

    class Hatch(Door):
        cracked = state("open", like=Door.ajar)
        pushed = Door.pushed.first(row(cracked, to=Door.gone))

    assert rules(Hatch, "pushed", "cracked") == [("gone", ())]


def test_a_row_that_a_base_has_silenced_need_not_be_named_again() -> None:
    """It cannot fire in the base either."""

    class Shy(Door):
        pushed = Door.pushed.first(ignore(Door.ajar, because="shy", silences=ANY))

    class Bold(Shy):
        pushed = Shy.pushed.first(row(Door.ajar, to=Door.gone))

    assert rules(Bold, "pushed", "ajar") == [("gone", ())]


# --------------------------------------------------------------------------------------------------------------- guards


def test_guards_in_unless_must_say_false() -> None:
    """Together with those in `when`; whatever reads the rows sees which is which."""

    class Careful(Door):
        pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=Door.is_hard, unless=Door.is_locked))

    assert when_pushed_shut(Careful)[0] == ("gone", ("is_hard", "not is_locked"))
    rule = next(each for each in Careful.rules if each.declared_in == "Careful")
    assert rule.guards == ("is_hard", "is_locked")
    for force, locked, expected in ((99.0, False, "gone"), (99.0, True, "shut"), (1.0, False, "ajar")):
        door = Careful()
        door.locked = locked
        door.pushed(force)
        assert door.state == expected


def test_an_opposite_guard_hides_nothing() -> None:
    """A row with a guard and one with its negation are two rows."""

    class Split(Door):
        knocked = Door.knocked.first(
            row(Door.shut, to=Door.ajar, when=Door.is_locked),
            row(Door.shut, to=Door.wide, unless=Door.is_locked),
        )

    assert [when for _, when in rules(Split, "knocked", "shut")] == [("is_locked",), ("not is_locked",), ()]


def test_a_misspelt_guard_in_unless() -> None:
    with pytest.raises(MachineDefinitionError, match="no method 'is_lokced'; did you mean 'is_locked'"):

        class Odd(Door):
            pushed = Door.pushed.first(row(Door.shut, to=Door.gone, unless="is_lokced"))


@pytest.mark.parametrize("where", ["when", "unless", "do"])
def test_an_async_guard_or_action_is_refused(where: str) -> None:
    """Nothing would await it, and a coroutine is always true."""

    async def is_late(self: Door) -> bool:
        return True

    named: dict[str, Any] = {where: is_late}
    with pytest.raises(MachineDefinitionError, match="'is_late' is async"):
        type("Odd", (Door,), {"is_late": is_late, "knocked": Door.knocked.first(row(Door.shut, to=Door.gone, **named))})


def test_a_guard_that_says_that_it_returns_no_bool_is_refused() -> None:
    """Its annotation says so, as text or not."""

    class Word:
        pass

    def is_word(self: Door) -> str:
        return ""

    for returns in (str, "str", Word, None):
        is_word.__annotations__["return"] = returns
        with pytest.raises(MachineDefinitionError, match="the guard 'is_word' must return a bool"):
            type("Odd", (Door,), {"is_word": is_word, "knocked": Door.knocked.first(row(ANY, to=STAY, when=is_word))})


@pytest.mark.parametrize("answer", [None, 1, 0, "yes", []])
def test_a_guard_that_returns_no_bool_is_an_error(answer: object) -> None:
    """In Python much is true: None for a forgotten `return`, a coroutine, an empty list."""

    class Vague(Door):
        def is_vague(self):  # type: ignore[no-untyped-def]
            return answer

        knocked = Door.knocked.first(row(Door.shut, to=Door.gone, when="is_vague"))

    door = Vague()
    complaint = f"the guard is_vague must return a bool, not {type(answer).__name__}"
    with pytest.raises(MachineDefinitionError, match=complaint):
        door.knocked()
    with pytest.raises(MachineDefinitionError, match=complaint):
        door.may(Vague.knocked)
    assert door.state == "shut"


# ------------------------------------------------------------------------------------------ those who know transitions


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_enter_wide", r"wide = state\(..., enter=<a method>\)"),
        ("on_enter_wid", "would never be called"),
        ("on_exit_shut", r"shut = state\(..., exit=<a method>\)"),
        ("before_pushed", r"rows of the event pushed: row\(..., do=<a method>\)"),
        ("after_pushed", "rows of the event pushed"),
        ("prepare_pushed", "what the event pushed brings"),
        ("may_pushed", r"may\(<the event pushed>\)"),
        ("to_wide", "an event with a row that leads to wide"),
    ],
)
def test_a_method_that_transitions_would_call_is_refused(name: str, hint: str) -> None:
    """It would be ignored silently; the hint says what to write."""
    with pytest.raises(MachineDefinitionError, match=rf"Odd: {name}\(\) would never be called: .*{hint}|{hint}"):
        type("Odd", (Door,), {name: lambda self: None})


@pytest.mark.parametrize("name", MACHINE_CALLBACKS)
def test_a_callback_of_a_whole_machine_is_refused(name: str) -> None:
    """Of ours there are two, with other names; one that a row names is an action like any other."""
    with pytest.raises(MachineDefinitionError, match=rf"Odd: {name}\(\) would never .* state_changed\(\) or status"):
        type("Odd", (Door,), {name: lambda self: None})
    named = row(Door.ajar, to=STAY, do=name, silences=ANY)
    assert type("Fine", (Door,), {name: lambda self: None, "knocked": Door.knocked.first(named)}).rules
    assert type("Fine", (Door,), {name: None}).rules


@pytest.mark.parametrize("name", ["before_long", "after_all", "to_do", "may_be", "prepare", "is_wide"])
def test_methods_of_other_names_are_the_users_own(name: str) -> None:
    """They begin like those, and name no state or event."""
    assert type("Fine", (Door,), {name: lambda self: None}).rules


def test_a_method_of_such_a_name_that_a_row_names_is_called() -> None:
    """Then it is an action like any other."""

    class Fine(Door):
        def before_pushed(self) -> None:
            self.grunt()

        pushed = Door.pushed.first(row(Door.ajar, to=Door.wide, do=before_pushed, silences=ANY))

    door = Fine()
    door.pushed()
    assert "grunt" in words(door.pushed())


def test_may_says_whether_an_event_leads_anywhere() -> None:
    """By reference or name; the guards are asked, and nothing changes."""
    door = Door()
    assert door.may(Door.pushed)
    assert door.may("pushed")
    assert not door.may(Door.pulled)
    door.locked = True
    assert not door.may(Door.pushed)
    assert (door.state, door.force) == ("shut", 0.0)
    with pytest.raises(ValueError, match="Door has no event 'pused'; did you mean 'pushed'"):
        door.may("pused")


def test_may_of_our_machines() -> None:
    """A client that is stopped may be asked to connect, and there is no socket to close."""
    client = ClientFSM(RetryPolicy())
    assert client.may(ClientFSM.connect_requested)
    assert not client.may(ClientFSM.close_requested)
    assert not client.may(ClientFSM.socket_closed)
    client.start_requested()
    assert client.may("close_requested")
    assert not client.may(ClientFSM.connect_requested)


@pytest.mark.parametrize("fsm", [ClientFSM, RoomFSM, Door])
def test_a_graph_machine_has_all_states_and_rows(fsm: type[FSM[Any]]) -> None:
    """Of those that lead somewhere or do something, and those that are ignored."""
    machine = fsm.to_graph_machine(graph_engine="mermaid")
    assert isinstance(machine, GraphMachine)
    assert list(machine.states) == list(fsm.states)
    assert {name for name in machine.events if not name.startswith("to_")} == set(fsm.events)
    pairs = {(rule.event, rule.source) for rule in fsm.rules}
    assert {(name, source) for name, each in machine.events.items() for source in each.transitions} == pairs
    source = machine.get_graph().source
    assert all(name in source for name in fsm.states)


def test_the_machine_of_a_class_is_complete() -> None:
    """What is added to it would be unknown to diagrams and checks, and to the event after its first trigger."""
    before = list(Door.machine.states)
    for add in (
        lambda: Door.machine.add_transition("pushed", "shut", "gone"),
        lambda: Door.machine.add_transitions([["pushed", "shut", "gone"]]),
        lambda: Door.machine.add_states(["new"]),
        lambda: Door.machine.add_state("new"),
    ):
        with pytest.raises(MachineDefinitionError, match="Door: its table is complete: declare a subclass with more"):
            add()
    assert list(Door.machine.states) == before


def test_a_graph_machine_shows_negated_guards() -> None:
    """As transitions shows `unless`."""

    class Careful(Door):
        pushed = Door.pushed.first(row(Door.shut, to=Door.gone, when=Door.is_hard, unless=Door.is_locked))

    assert "!is_locked" in Careful.to_graph_machine(graph_engine="mermaid").get_graph().source


def test_a_graph_machine_without_graphviz_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'reconnect-fsm\[diagrams\]'"):
        Door.to_graph_machine()


def test_a_graph_machine_with_graphviz() -> None:
    """The default engine."""
    pytest.importorskip("graphviz")
    assert "digraph" in Door.to_graph_machine().get_graph().source


def test_the_last_resort_of_a_machine_that_declares_none_is_nothing() -> None:
    """Ours say what must be done; a machine of another kind has nothing to release."""
    assert Door().last_resort("it raised", "open") == []
