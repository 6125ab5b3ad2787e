"""Golden transcripts: what a machine is told, and what it does, one fact a line, compared as text.

A line is ``fact(arguments) | old state → new state | effects in order``. After a change that is meant, write them anew
and read the difference::

    UPDATE_GOLDEN=1 pytest tests/machines/test_client_fsm.py tests/machines/test_room_fsm.py -k golden
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from reconnect_fsm.effects import Effect, NotifyStatus, StartTimer
from reconnect_fsm.machine import FSM
from reconnect_fsm.status import StatusChange
from reconnect_fsm.testing.machines import said

__all__ = ["Story", "change", "check", "names", "said", "waits"]

HERE = Path(__file__).parent


class Story:
    """Tells a machine facts and takes the minutes."""

    def __init__(self, fsm: FSM[Any]) -> None:
        self.fsm = fsm
        self.lines: list[str] = []

    def tell(self, fact: str, *args: Any) -> None:
        """Tell it one fact and write down what comes of it."""
        old = self.fsm.state
        effects: list[Effect] = getattr(self.fsm, fact)(*args)
        told = f"{fact}({', '.join(said(args))})"
        self.lines.append(f"{told} | {old} → {self.fsm.state} | {', '.join(said(effects)) or '—'}")


def waits(effects: list[Effect]) -> list[float]:
    """The seconds of every timer that is started."""
    return [each.seconds for each in effects if isinstance(each, StartTimer)]


def change(effects: list[Effect]) -> StatusChange[Any]:
    """The one change of status that listeners are told."""
    (news,) = [each for each in effects if isinstance(each, NotifyStatus)]
    return news.change


def check(name: str, story: Story) -> None:
    """Compare a story with the file of that name; with ``UPDATE_GOLDEN`` set, write the file instead."""
    path = HERE / f"{name}.txt"
    text = "".join(f"{line}\n" for line in story.lines)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def names(machine: str) -> set[str]:
    """The names of all transcripts of a machine."""
    return {path.stem for path in HERE.glob(f"{machine}_*.txt")}
