"""The smallest picture of a machine: its public statuses, and what leads from one to another.

The statuses of a machine that is under way stand in a frame, which has one arrow to each status outside. At an arrow
stand the guards that decide it, in words, or the events of the rows that have none. Left out is what the program can
ask for at any time, and what leads from one end to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from reconnect_fsm.diagrams.as_dot import draw
from reconnect_fsm.diagrams.ink import BORDER, FAINT, INK, PAPER, colours_of
from reconnect_fsm.diagrams.plan import Machine, by_status
from reconnect_fsm.machine import NOT

__all__ = ["statuses_dot", "statuses_svg"]

ENDS: Final = ("disconnected", "error")  # the other statuses go on by themselves
MAX_WORDS: Final = 4  # at one arrow
FONT: Final = "Helvetica"
ANY_TIME: Final = frozenset({"start_requested", "retry_requested", "faulted"})
BY_HAND: Final = frozenset({"connect_requested"})  # it matters where nothing goes on by itself


def statuses_dot(cls: Machine) -> str:
    """The picture in Graphviz' language; the same on every run."""
    framed = _framed(cls)
    arrows = _arrows(cls, framed)
    colours = colours_of(by_status(cls))
    lines = [
        f'digraph "{cls.__name__} statuses" {{',
        '  graph [rankdir=LR, compound=true, nodesep=0.35, ranksep=1.1, pad=0.1, bgcolor="transparent"]',
        f'  node [shape=box, style="rounded,filled", fontname="{FONT}", fontsize=13, margin="0.16,0.07"]',
        f'  edge [fontname="{FONT}", fontsize=10, fontcolor="{FAINT.line}", color="{INK.line}", arrowsize=0.7]',
    ]
    nodes = {
        status: f'"{status}" [fillcolor="{colours[status].fill}", color="{colours[status].line}", '
        f'fontcolor="{colours[status].line}"]'
        for status in by_status(cls)
    }
    lines += ["  subgraph cluster_frame {", f'    style="rounded,dashed"; color="{BORDER}"; bgcolor="{PAPER}"']
    lines += [f"    {nodes[status]}" for status in framed]
    lines += ["  }", *(f"  {text}" for status, text in nodes.items() if status not in framed)]
    drawn: set[str] = set()
    for (old, new), words in arrows.items():
        extra = ""
        if old in framed and new not in framed:
            if new in drawn:
                continue
            drawn.add(new)
            words = list(dict.fromkeys(word for tail in framed for word in arrows.get((tail, new), ())))
            old, extra = framed[len(framed) // 2], ", ltail=cluster_frame"
        lines.append(f'  "{old}" -> "{new}" [label="{_label(words)}"{extra}]')
    return "\n".join([*lines, "}", ""])


def statuses_svg(cls: Machine) -> str:
    """The same as an SVG, drawn by Graphviz. Raises CannotDraw as `svg` does."""
    source = statuses_dot(cls)
    pairs = ", ".join(f"{old} to {new}" for old, new in _arrows(cls, _framed(cls)))
    described = f"The statuses of {cls.__name__}, and what leads from one to another: {pairs}."
    return draw(source, f"{cls.__name__}: statuses", described, {}, hashlib.sha256(source.encode()).hexdigest()[:16])


def _arrows(cls: Machine, framed: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """The words at each arrow, the statuses in the order of their declaration."""
    order = list(by_status(cls))
    found: dict[tuple[str, str], dict[str, list[str]]] = {}  # the guards of each event; none if it needs none
    for rule in cls.rules:
        if rule.target is None or rule.event in ANY_TIME:
            continue
        old, new = (str(cls.states[name].status) for name in (rule.source, rule.target))
        is_asked = old in framed and rule.event in BY_HAND
        if old != new and not is_asked and (old in framed or new in framed):
            guards = found.setdefault((old, new), {}).setdefault(rule.event, [])
            guards += [name for name in rule.when if not name.startswith(NOT)] or [rule.event]
    return {
        pair: list(dict.fromkeys(word for event, guards in found[pair].items() for word in _deciding(event, guards)))
        for pair in sorted(found, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    }


def _deciding(event: str, guards: Sequence[str]) -> list[str]:
    """The guards in words; the event's own name if a row of it has none."""
    return [_words(name) for name in ([event] if event in guards else guards)]


def _framed(cls: Machine) -> list[str]:
    return [status for status in by_status(cls) if status not in ENDS]


def _words(name: str) -> str:
    for prefix in ("is_", "are_", "has_", "was_"):
        name = name.removeprefix(prefix)
    return name.replace("_", " ")


def _label(words: Sequence[str]) -> str:
    shown = [*words[:MAX_WORDS], *(["…"] if len(words) > MAX_WORDS else [])]
    return "\\n".join(shown)
