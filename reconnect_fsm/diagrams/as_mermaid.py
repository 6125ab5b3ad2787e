"""A machine as a Mermaid ``stateDiagram-v2``."""

from __future__ import annotations

import re

from reconnect_fsm.diagrams.ink import INK, MARK, colours_of
from reconnect_fsm.diagrams.plan import ADDED, OVERRIDDEN, Fan, Machine, Plan, by_status, conditions, status_id

__all__ = ["mermaid"]

IN_WORDS = {ADDED: "(added)", OVERRIDDEN: "(overridden)"}


def mermaid(cls: Machine) -> str:
    """The overview as a Mermaid ``stateDiagram-v2``; the same on every run.

    Mermaid cannot draw tables: a choice stands for them, and every way out of it is an arrow.
    """
    plan = Plan(cls, "overview")
    lines = ["stateDiagram-v2", f"  [*] --> {cls.initial.name}"]
    classes: list[str] = []
    colours = colours_of(by_status(cls))
    for status, names in by_status(cls).items():
        colour = colours[status]
        classes.append(f"  classDef {status_id(status)} fill:{colour.fill},stroke:{colour.line},color:{INK.line}")
        classes += [f"  class {name} {status_id(status)}" for name in names]
        if names == [status]:
            lines.append(f"  {status}")
        else:
            lines.append(f'  state "{_plain(status)}" as {status_id(status)} {{')
            lines += [*(f"    {name}" for name in names), "  }"]
    if changed := [name for name in cls.states if plan.changes.of_state(name)]:
        classes.append(f"  classDef changed stroke:{MARK.line},stroke-width:4px")
        classes += [f"  class {name} changed" for name in changed]
    for number, fan in enumerate(plan.tables, 1):
        choice = f"choice_{number}"
        lines.append(f"  state {choice} <<choice>>")
        if plan.is_general(fan):
            lines.append(f'  state "{_plain(plan.sources_in_words(fan))}" as from_{choice}')
            tails = [f"from_{choice}"]
        else:
            tails = plan.tails(fan)
        lines += [f"  {tail} --> {choice} : {_events(plan, fan)}" for tail in tails]
        for move in fan.moves:
            condition = _plain(" or ".join(conditions(move, plan.changes, "overview")))
            lines.append(f"  {choice} --> {move.target} : {condition}")
    for target, fans in plan.general.items():
        for number, fan in enumerate(fans, 1):
            lines.append(f'  state "{_plain(plan.sources_in_words(fan))}" as from_{number}_to_{target}')
            lines.append(f"  from_{number}_to_{target} --> {target} : {_label(plan, fan)}")
    for (tail, target), fans in plan.arrows.items():
        labels = [_label(plan, fan) for fan in fans]
        labels += [_plain(f"({plan.sources_in_words(fan, but=tail)})") for fan in fans if plan.is_general(fan)]
        lines.append(f"  {tail} --> {target} : {' / '.join(labels)}")
    return "\n".join(lines + classes) + "\n"


def _label(plan: Plan, fan: Fan) -> str:
    (move,) = fan.moves
    lines = conditions(move, plan.changes, "overview", alone=True)
    added = f" {ADDED}" if move.is_added and not lines else ""
    return _plain(_events(plan, fan) + added + (f" [{' or '.join(lines)}]" if lines else ""))


def _events(plan: Plan, fan: Fan) -> str:
    return _plain(" / ".join(f"{plan.changes.of_event(name)} {name}" for name in fan.events))


def _plain(text: str) -> str:
    """Text without what Mermaid takes for syntax; marks in words."""
    for mark, words in IN_WORDS.items():
        text = text.replace(mark, words)
    return " ".join(re.sub(r"[^\w\s,./()\[\]']", " ", text).split())
