"""What is drawn: the moves of a machine, grouped for the eye, and what a subclass changed in them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from reconnect_fsm.machine import FSM, NOT, Rule, State

__all__ = ["ADDED", "OVERRIDDEN", "Changes", "Detail", "Fan", "Machine", "Move", "Plan", "by_status", "conditions"]

Machine: TypeAlias = type[FSM[Any]]
Detail: TypeAlias = Literal["overview", "full"]
"""``overview`` shows what leads where; ``full`` adds every guard, the order of rows, actions and clause ids."""

ADDED, OVERRIDDEN = "+", "≠"


@dataclass(frozen=True, slots=True)
class Move:
    """What a row does, or several with the same target. ``when`` holds the guards of each of them."""

    when: tuple[tuple[str, ...], ...]
    target: str | None
    do: tuple[str, ...] = ()
    clause: str = ""
    is_added: bool = False
    """A subclass put it before the inherited rows."""


@dataclass(frozen=True, slots=True)
class Fan:
    """All that these events do in each of these states: the moves, in the order in which they are tried."""

    events: tuple[str, ...]
    sources: tuple[str, ...]
    moves: tuple[Move, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(move.target for move in self.moves if move.target is not None))

    def tokens(self, *, sources: Iterable[str] | None = None, target: str | None = None) -> list[str]:
        """Every ``event:state:next_state`` that it stands for, or those from and to some states."""
        targets = self.targets if target is None else (target,)
        return [
            f"{event}:{source}:{to}"
            for event in self.events
            for source in (self.sources if sources is None else sources)
            for to in targets
        ]


def status_of(each: State) -> str:
    return str(getattr(each.status, "value", each.status))


def by_status(cls: Machine) -> dict[str, list[str]]:
    """The names of the states of each public status."""
    groups: dict[str, list[str]] = {}
    for name, each in cls.states.items():
        groups.setdefault(status_of(each), []).append(name)
    return groups


def rules_of(cls: Machine, event: str, source: str) -> list[Rule]:
    return [rule for rule in cls.rules if (rule.event, rule.source) == (event, source)]


class Changes:
    """What a subclass adds to the machine that it is made from, or overrides in it.

    That machine is the first one with states of its own in the line of ancestors, such as `ClientFSM`: the changes of
    all classes between are listed.
    """

    def __init__(self, cls: Machine) -> None:
        self.cls = cls
        family: list[Machine] = [each for each in cls.__mro__ if issubclass(each, FSM) and each.states]
        self.origin: Machine = family[-1]
        self.by = [each.__name__ for each in family[:-1]]
        """The classes that made changes, the most derived first; empty for a machine that is no subclass of one."""
        self._own = {each.__name__ for each in self.origin.__mro__}

    def of_state(self, name: str) -> str:
        """`ADDED`, `OVERRIDDEN`, or nothing."""
        theirs = self.origin.states.get(name)
        return ADDED if theirs is None else OVERRIDDEN if theirs is not self.cls.states[name] else ""

    def of_event(self, name: str) -> str:
        """Nothing, too, if rows were only put before the inherited ones: each of those is marked."""
        if name not in self.origin.events:
            return ADDED
        return "" if self.cls.events[name].extends(self.origin.events[name]) else OVERRIDDEN

    def of_method(self, name: str) -> str:
        """Of a guard or an action, or of an event's method by its name."""
        name = name.removeprefix(NOT)
        theirs = inspect.getattr_static(self.origin, name, None)
        return ADDED if theirs is None else OVERRIDDEN if theirs is not inspect.getattr_static(self.cls, name) else ""

    def is_added(self, rule: Rule) -> bool:
        """True if it was put before inherited ones; a whole new event, or a redefined one, is marked as such."""
        return bool(self.by) and rule.declared_in not in self._own and not self.of_event(rule.event)

    def in_words(self) -> dict[str, list[str]]:
        """What changed: a heading, and the names under it; empty if nothing did."""
        cls = self.cls
        guards = list(dict.fromkeys(name for rule in cls.rules for name in rule.guards))
        actions = [name for each in cls.states.values() for name in each.enter + each.exit]
        actions = list(dict.fromkeys([*actions, *(name for rule in cls.rules for name in rule.do)]))
        rows = [f"{rule.event} in {rule.source}" for rule in cls.rules if self.is_added(rule)]
        found: dict[str, list[str]] = {}
        for word, mark in (("added", ADDED), ("overridden", OVERRIDDEN)):
            found[f"states {word}"] = [name for name in cls.states if self.of_state(name) == mark]
            found[f"events {word}"] = [name for name in cls.events if self.of_event(name) == mark]
            found[f"guards {word}"] = [name for name in guards if self.of_method(name) == mark]
            found[f"actions {word}"] = [name for name in actions if self.of_method(name) == mark]
        found["rows put first"] = list(dict.fromkeys(rows))
        return {heading: names for heading, names in found.items() if names}


def _fans(cls: Machine, detail: Detail) -> list[Fan]:
    """All moves of the machine; states in which an event does the same share a fan."""
    changes = Changes(cls)
    fans: list[Fan] = []
    for event in cls.events:
        alike: dict[tuple[Move, ...], list[str]] = {}
        for source in cls.states:
            moves = tuple(
                Move((rule.when,), rule.target, rule.do, rule.clause, changes.is_added(rule))
                for rule in rules_of(cls, event, source)
                if not rule.is_ignored
            )
            alike.setdefault(moves if detail == "full" else _gist(moves, source), []).append(source)
        fans += [Fan((event,), tuple(sources), moves) for moves, sources in alike.items() if moves]
    return fans if detail == "full" else _merged(fans)


def _gist(moves: Iterable[Move], source: str | None = None) -> tuple[Move, ...]:
    """One move for each run of rows that lead to the same state, with the guards of all of them.

    A guarded way back to the same state is a detail; an unguarded one is part of "from any state". What a subclass put
    first stays apart, for it is marked.
    """
    gist: list[tuple[str, bool, list[tuple[str, ...]]]] = []
    for move in moves:
        if move.target is not None and (move.target != source or () in move.when):
            if not gist or gist[-1][:2] != (
                move.target,
                move.is_added,
            ):  # only neighbours: their order is what they mean
                gist.append((move.target, move.is_added, []))
            gist[-1][2].extend(each for each in move.when if each not in gist[-1][2])
    if len(gist) == 1:  # nowhere else to go: a guard matters only if it can keep the machine where it is
        gist = [(target, is_added, [()] if () in guards else guards) for target, is_added, guards in gist]
    return tuple(Move(tuple(guards), target, is_added=is_added) for target, is_added, guards in gist)


def _merged(fans: Iterable[Fan]) -> list[Fan]:
    """Events that do the same in the same states share a fan."""
    alike: dict[tuple[object, ...], list[Fan]] = {}
    for fan in fans:
        alike.setdefault((fan.sources, fan.moves), []).append(fan)
    return [Fan(tuple(fan.events[0] for fan in group), group[0].sources, group[0].moves) for group in alike.values()]


class Plan:
    """Which fan is drawn in which way."""

    def __init__(self, cls: Machine, detail: Detail) -> None:
        self.cls = cls
        self.changes = Changes(cls)
        self.fans = _fans(cls, detail)
        self.stays = [fan for fan in self.fans if not fan.targets]
        """Listed in the boxes of their states."""
        self.tables = [fan for fan in self.fans if fan.targets and len(fan.moves) > 1]
        """An event that can lead to several states, or do several things on the way."""
        single = [fan for fan in self.fans if fan.targets and len(fan.moves) == 1]
        everywhere = {fan.targets[0] for fan in _fans(cls, "overview") if len(fan.moves) == 1 and self.is_general(fan)}
        opening = next((fan for fan in single if cls.initial.name in fan.sources), None)
        self.general: dict[str, list[Fan]] = {}
        """By target: one arrow for all that leads there from most states."""
        self.arrows: dict[tuple[str, str], list[Fan]] = {}
        """By source and target. A source is a state, or a status all of whose states share the fan."""
        for fan in single:
            target = fan.targets[0]
            if fan is opening and self.is_general(fan):  # the way out of the initial state is always drawn
                self.arrows.setdefault((cls.initial.name, target), []).append(fan)
            elif self.is_general(fan) or (target in everywhere and len(fan.sources) > 2):
                self.general.setdefault(target, []).append(fan)
            else:
                for tail in self.tails(fan):
                    self.arrows.setdefault((tail, target), []).append(fan)

    def is_general(self, fan: Fan) -> bool:
        """True if it applies in most states, so that arrows from all of them would hide the rest."""
        return 2 * len(fan.sources) > len(self.cls.states)

    def tails(self, fan: Fan) -> list[str]:
        """Where its arrows begin: a whole status where that can be, else a state."""
        tails = list(fan.sources)
        for status, names in by_status(self.cls).items():
            if len(names) > 1 and set(names) <= set(fan.sources) and not set(names) & set(fan.targets):
                tails = [status_id(status), *(each for each in tails if each not in names)]
        return tails

    def behind(self, tail: str) -> list[str]:
        """The states that the beginning of an arrow stands for."""
        return next((names for status, names in by_status(self.cls).items() if tail == status_id(status)), [tail])

    def sources_in_words(self, fan: Fan, but: str = "") -> str:
        others = [name for name in self.cls.states if name not in fan.sources]
        if but:
            return f"also from {', '.join(name for name in fan.sources if name != but)}"
        if not others:
            return "from any state"
        if tuple(others) == fan.targets:
            return "from any other state"
        if len(others) < len(fan.sources):
            return f"from any but {', '.join(others)}"
        return f"from {', '.join(fan.sources)}"


def status_id(status: str) -> str:
    """The name of a frame: unlike that of any state, and fit for every language."""
    return "status_" + re.sub(r"\W", "_", status)


def conditions(move: Move, changes: Changes, detail: Detail, *, alone: bool = False) -> list[str]:
    """When a move is made, a line for each row; in the overview, guards are put in words."""

    def words(guard: str) -> str:
        text = guard if detail == "full" else re.sub(r"\b(is|are|has)_", "", guard).replace("_", " ")
        mark = changes.of_method(guard)
        return text if mark == "" or (mark == ADDED and move.is_added) else f"{mark} {text}"

    lines = [" and ".join(map(words, guards)) if guards else "otherwise" for guards in move.when if guards or not alone]
    return [f"{ADDED} {line}" for line in lines] if move.is_added else lines
