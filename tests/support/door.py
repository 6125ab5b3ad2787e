"""A machine with one of everything, for tests of the declaration style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reconnect_fsm.effects import Effect
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, any_but, event, ignore, row, state

__all__ = ["Door", "Said", "rules", "words"]


@dataclass(frozen=True)
class Said(Effect):
    """The only effect of these machines."""

    word: str


class Door(FSM[str]):
    """A machine with one of everything."""

    __slots__ = ("force", "locked")

    shut = state("closed", enter="bang", exit="creak")
    ajar = state("open", doc="a hand's breadth")
    wide = state("open", enter="bump")
    gone = state("gone")
    initial = shut

    OPEN = (ajar, wide)

    def __init__(self) -> None:
        super().__init__()
        self.force = 0.0
        self.locked = False

    def is_locked(self) -> bool:
        return self.locked

    def is_hard(self) -> bool:
        return self.force > 10

    def bang(self) -> None:
        self.emit(Said("bang"))

    def creak(self) -> None:
        self.emit(Said("creak"))

    def bump(self) -> None:
        self.emit(Said("bump"))

    def grunt(self) -> None:
        self.emit(Said("grunt"))

    @event(
        ignore(shut, when=is_locked, because="it is locked"),
        row(shut, to=wide, when=is_hard, do=grunt, clause="DOOR-1"),
        row(shut, to="ajar", do="grunt"),
        row(ajar, to=wide),
        ignore(OTHERWISE, because="there is nothing to push"),
    )
    def pushed(self, force: float = 1.0) -> None:
        """The door was pushed."""
        self.force = force

    @event(
        row(OPEN, to=shut),
        ignore(any_but(ajar, wide), because="it is not open"),
    )
    def pulled(self) -> None:
        """The door was pulled."""

    @event(row(ANY, to=STAY, do=grunt))
    def knocked(self) -> None:
        """There was a knock."""

    @event(
        row(shut, to=shut, do=grunt),
        row(OTHERWISE, to=gone),
    )
    def slammed(self) -> None:
        """The door was slammed."""

    def state_changed(self) -> None:
        self.emit(Said(f"now {self.state}"))

    def status_changed(self, old: str, new: str) -> None:
        self.emit(Said(f"{old}, then {new}"))


def words(effects: list[Effect]) -> list[str]:
    """What was said."""
    return [each.word for each in effects if isinstance(each, Said)]


def rules(cls: type[FSM[Any]], event: str, source: str) -> list[tuple[str | None, tuple[str, ...]]]:
    """The target and the guards of each rule of a pair."""
    return [(rule.target, rule.when) for rule in cls.rules if (rule.event, rule.source) == (event, source)]
