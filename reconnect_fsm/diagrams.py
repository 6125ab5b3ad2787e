"""Pictures and tables of any machine, drawn from its declaration: DOT, Mermaid, SVG, and a Markdown matrix.

How to read a picture. A coloured box is a state; a dashed frame holds the states of one public status. An arrow is an
event that leads to one state. Where an event can lead to several states, it is a small table: a cell for each guard,
coloured like its target; the first guard that passes wins. What most states lead to is the end of one arrow that
says so; elsewhere it is named in the tables instead of being pointed at. What changes no state is left out of the
overview; the full picture lists it in the state's box. Refusals are in the matrix only.

DOT, Mermaid and Markdown need nothing but this package, and are the same on every run. SVG needs the ``graphviz``
package and Graphviz' program ``dot``.
"""

from __future__ import annotations

import html
import importlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from .client_fsm import ClientFSM
from .errors import ReconnectError
from .machine import FSM, Rule, State
from .room_fsm import RoomFSM

__all__ = ["CannotDraw", "Detail", "Machine", "dot", "load", "main_machines", "matrix", "mermaid", "svg", "write"]

Machine: TypeAlias = type[FSM[Any]]
Detail: TypeAlias = Literal["overview", "full"]
"""``overview`` shows what leads where; ``full`` adds every guard, the order of rows, actions and clause ids."""


class CannotDraw(ReconnectError):
    """An SVG needs the ``graphviz`` package and Graphviz' program ``dot``; the message says which is missing."""


# -------------------------------------------------------------------------------------------------- what is to be drawn


@dataclass(frozen=True, slots=True)
class Move:
    """What a row does, or several with the same target. ``when`` holds the guards of each of them."""

    when: tuple[tuple[str, ...], ...]
    target: str | None
    do: tuple[str, ...] = ()
    clause: str = ""


@dataclass(frozen=True, slots=True)
class Fan:
    """All that these events do in each of these states: the moves, in the order in which they are tried."""

    events: tuple[str, ...]
    sources: tuple[str, ...]
    moves: tuple[Move, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(move.target for move in self.moves if move.target is not None))


def _status(each: State) -> str:
    return str(getattr(each.status, "value", each.status))


def _by_status(cls: Machine) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, each in cls.states.items():
        groups.setdefault(_status(each), []).append(name)
    return groups


def _rules(cls: Machine, event: str, source: str) -> list[Rule]:
    return [rule for rule in cls.rules if (rule.event, rule.source) == (event, source)]


def _fans(cls: Machine, detail: Detail) -> list[Fan]:
    """All moves of the machine; states in which an event does the same share a fan."""
    fans: list[Fan] = []
    for event in cls.events:
        alike: dict[tuple[Move, ...], list[str]] = {}
        for source in cls.states:
            rules = [rule for rule in _rules(cls, event, source) if not rule.is_refusal]
            moves = tuple(Move((rule.when,), rule.target, rule.do, rule.clause) for rule in rules)
            alike.setdefault(moves if detail == "full" else _gist(moves, source), []).append(source)
        fans += [Fan((event,), tuple(sources), moves) for moves, sources in alike.items() if moves]
    return fans if detail == "full" else _merged(fans)


def _gist(moves: Iterable[Move], source: str | None = None) -> tuple[Move, ...]:
    """One move for each run of rows that lead to the same state, with the guards of all of them.

    A guarded way back to the same state is a detail; an unguarded one is part of "from any state".
    """
    gist: list[tuple[str, list[tuple[str, ...]]]] = []
    for move in moves:
        if move.target is not None and (move.target != source or () in move.when):
            if not gist or gist[-1][0] != move.target:  # only neighbours: the order of the rows is what they mean
                gist.append((move.target, []))
            gist[-1][1].extend(each for each in move.when if each not in gist[-1][1])
    if len(gist) == 1:  # nowhere else to go: a guard matters only if it can keep the machine where it is
        gist = [(target, [()] if () in guards else guards) for target, guards in gist]
    return tuple(Move(tuple(guards), target) for target, guards in gist)


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
        fans = _fans(cls, detail)
        self.stays = [fan for fan in fans if not fan.targets]
        """Listed in the boxes of their states."""
        self.tables = [fan for fan in fans if fan.targets and len(fan.moves) > 1]
        """An event that can lead to several states, or do several things on the way."""
        single = [fan for fan in fans if fan.targets and len(fan.moves) == 1]
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
        for status, names in _by_status(self.cls).items():
            if len(names) > 1 and set(names) <= set(fan.sources) and not set(names) & set(fan.targets):
                tails = [status_id(status), *(each for each in tails if each not in names)]
        return tails

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


def _conditions(move: Move, detail: Detail, *, alone: bool = False) -> list[str]:
    """When a move is made, a line for each row; in the overview, guards are put in words."""
    lines = [" and ".join(guards) if guards else "otherwise" for guards in move.when if guards or not alone]
    if detail == "full":
        return lines
    return [re.sub(r"\b(is|are|has)_", "", line).replace("_", " ") for line in lines]


# ------------------------------------------------------------------------------------------------------------------ DOT


@dataclass(frozen=True, slots=True)
class Colour:
    """A light fill, and a dark line that is legible on white and on the fill."""

    fill: str
    line: str


INK: Final = Colour("#f6f8fa", "#1f2328")
FAINT: Final = Colour("#f6f8fa", "#59636e")
GREEN: Final = Colour("#d6f5df", "#187a43")
COLOURS: Final = {
    "connecting": Colour("#dbeafe", "#1d5fd0"),
    "connected": GREEN,
    "joined": GREEN,
    "reconnecting": Colour("#fdebc8", "#a85008"),
    "disconnected": Colour("#e6e8ec", "#57606a"),
    "error": Colour("#fde0de", "#b9261c"),
}
SPARE: Final = (Colour("#ebe3fd", "#6a3fc8"), Colour("#d3f2f0", "#0d716b"), Colour("#fbdff0", "#ad2277"))
TABLE: Final = '<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="4" COLOR="#afb8c1" BGCOLOR="#f6f8fa">'


def dot(cls: Machine, detail: Detail = "overview") -> str:
    """The machine in Graphviz' language; the same on every run."""
    return _Picture(cls, detail).source()


def _colours(cls: Machine) -> dict[str, Colour]:
    """The colour of each state: by the meaning of its status, or a spare one."""
    unknown = [status for status in _by_status(cls) if status not in COLOURS]
    known = COLOURS | {status: SPARE[number % len(SPARE)] for number, status in enumerate(unknown)}
    return {name: known[_status(each)] for name, each in cls.states.items()}


def _font(text: str, size: int, colour: Colour = INK, style: Literal["", "B", "I"] = "") -> str:
    text = html.escape(text, quote=False)
    text = f"<{style}>{text}</{style}>" if style else text
    return f'<FONT POINT-SIZE="{size}" COLOR="{colour.line}">{text}</FONT>'


def _lines(text: str, width: int) -> list[str]:
    """The text in as few lines as ``width`` characters allow, all about as long."""
    fewest = len(textwrap.wrap(text, width, break_long_words=False))
    candidates = (textwrap.wrap(text, narrow, break_long_words=False) for narrow in range(1, width + 1))
    return next(lines for lines in candidates if len(lines) <= fewest)


def _stack(lines: Iterable[str]) -> str:
    return "<BR/>".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Picture:
    """Collects the lines of one DOT source."""

    def __init__(self, cls: Machine, detail: Detail) -> None:
        self.cls = cls
        self.detail: Detail = detail
        self.plan = Plan(cls, detail)
        self.colours = _colours(cls)
        self.lines: list[str] = []

    def source(self) -> str:
        self.lines = [
            f"digraph {_quoted(self.cls.__name__)} {{",
            '  graph [bgcolor="white" compound="true" fontname="Arial" newrank="true"]',
            '  graph [nodesep="0.22" pad="0.15" ranksep="0.36"]',
            '  node [fontname="Arial" shape="plain"]',
            '  edge [arrowsize="0.7" fontname="Arial" penwidth="1.2"]',
        ]
        for status, names in _by_status(self.cls).items():
            self.draw_status(status, names)
        self.add(
            '"(start)"', {"shape": "circle", "label": "", "width": "0.13", "style": "filled", "fillcolor": INK.line}
        )
        self.edge("(start)", _quoted(self.cls.initial.name), INK)
        for fan in self.plan.tables:
            self.draw_table(fan)
        for target, fans in self.plan.general.items():
            self.draw_general(target, fans)
        for (tail, target), fans in self.plan.arrows.items():
            self.draw_arrow(tail, target, fans)
        return "\n".join([*self.lines, "}"]) + "\n"

    # What DOT is made of

    def add(self, what: str, attributes: dict[str, str], indent: int = 2) -> None:
        """One statement; an attribute that begins with ``<`` is an HTML-like label."""
        pairs = [f"{name}={value if value.startswith('<') else _quoted(value)}" for name, value in attributes.items()]
        self.lines.append(f"{' ' * indent}{what} [{' '.join(pairs)}]")

    def edge(self, tail: str, head: str, colour: Colour, **attributes: str) -> None:
        """An edge from a state, a table, or a whole status, to an already quoted head."""
        node, frame = self.end(tail)
        self.add(
            f"{_quoted(node)} -> {head}", {"color": colour.line, **({"ltail": frame} if frame else {}), **attributes}
        )

    def end(self, name: str) -> tuple[str, str]:
        """The node at an end of an edge, and the frame that it stands for where that is a whole status."""
        for status, names in _by_status(self.cls).items():
            if name == status_id(status):
                return names[0], f"cluster {status}"
        return name, ""

    def texts(
        self, lines: Iterable[str], size: int, colour: Colour = INK, style: Literal["", "B", "I"] = ""
    ) -> list[str]:
        return [_font(line, size, colour, style) for line in lines]

    # States

    def draw_status(self, status: str, names: Sequence[str]) -> None:
        """The states of one public status, in its frame; round a lone state of that name it would say nothing."""
        colour = self.colours[names[0]]
        framed = names != [status]
        if framed:
            self.lines.append(f"  subgraph {_quoted(f'cluster {status}')} {{")
            label = f"<{_font(status, 11, colour, 'B')}>"
            self.add(
                "graph",
                {"label": label, "labeljust": "l", "margin": "10", "style": "rounded,dashed", "color": colour.line},
                indent=4,
            )
        for name in names:
            box = {"shape": "box", "style": "rounded,filled", "margin": "0.11,0.06"}
            label = f"<{_stack(self.state_lines(self.cls.states[name]))}>"
            self.add(
                _quoted(name),
                {**box, "fillcolor": colour.fill, "color": colour.line, "label": label},
                indent=4 if framed else 2,
            )
        if framed:
            self.lines.append("  }")

    def state_lines(self, each: State) -> list[str]:
        lines = self.texts([each.name], 13, style="B")
        lines += self.texts(_lines(each.doc, 30) if each.doc else [], 9)
        if self.detail == "full":
            actions = [("enter", each.enter), ("exit", each.exit)]
            lines += self.texts([f"{when} / {', '.join(do)}" for when, do in actions if do], 8, FAINT)
            for fan in self.plan.stays:
                if each.name in fan.sources:
                    stays = [part for line in self.stay_lines(fan) for part in _lines(line, 36)]
                    lines += self.texts(stays, 8, FAINT)
        return lines

    def stay_lines(self, fan: Fan) -> list[str]:
        """What happens in a state without leaving it."""
        return [
            f"{fan.events[0]}"
            + "".join(f" [{each}]" for each in _conditions(move, self.detail, alone=not number))
            + "".join(f" / {each}" for each in move.do)
            + f"  {move.clause}".rstrip()
            for number, move in enumerate(fan.moves)
        ]

    # Events

    def draw_table(self, fan: Fan) -> None:
        """An event with several rows, and lines to it from its states, or words where that would be too many."""
        name = f"{', '.join(fan.events)} in {', '.join(fan.sources)}"
        head = self.texts(fan.events, 10, style="B")
        if self.plan.is_general(fan):
            head += self.texts(_lines(self.plan.sources_in_words(fan), 34), 9, FAINT, "I")
        else:
            first, *others = self.plan.tails(fan)
            self.edge(first, _quoted(name), FAINT, arrowhead="none")
            for other in others:
                # It may be below the table, so it is drawn backwards; and to the head, lest it seem to leave a cell.
                node, frame = self.end(other)
                line = {"color": FAINT.line, "arrowhead": "none"} | ({"lhead": frame} if frame else {})
                self.add(f"{_quoted(name)}:head:e -> {_quoted(node)}", line)
        rows = self.cells_in_full(fan) if self.detail == "full" else self.cells(fan)
        span = 2 if self.detail == "full" else len(fan.moves)
        label = f'<{TABLE}<TR><TD PORT="head" COLSPAN="{span}">{_stack(head)}</TD></TR>{rows}</TABLE>>'
        self.add(_quoted(name), {"label": label})
        for target in fan.targets:
            if target not in self.plan.general:
                port = "" if self.detail == "full" else f":{_quoted(target)}:s"
                self.add(f"{_quoted(name)}{port} -> {_quoted(target)}", {"color": self.colours[target].line})

    def cells(self, fan: Fan) -> str:
        """The moves from left to right."""
        cells = ""
        for move in fan.moves:
            assert move.target is not None  # an overview has no other moves
            lines = _conditions(move, self.detail)
            texts = self.texts([part for line in lines for part in _lines(line, 18)], 9, style="I")
            if move.target in self.plan.general:
                texts += self.texts([f"→ {move.target}"], 9, self.colours[move.target], "B")
            fill = self.colours[move.target].fill
            cells += f'<TD PORT="{move.target}" BGCOLOR="{fill}">{_stack(texts)}</TD>'
        return f"<TR>{cells}</TR>"

    def cells_in_full(self, fan: Fan) -> str:
        """The moves from top to bottom, each with its actions and its clauses."""
        rows = ""
        for number, move in enumerate(fan.moves, 1):
            colour = FAINT if move.target is None else self.colours[move.target]
            (condition,) = _conditions(move, self.detail)
            what = self.texts([f"{number}  {condition}"], 9, style="I") + self.texts(
                [f"/ {each}" for each in move.do], 8
            )
            where = self.texts(["stays" if move.target is None else f"→ {move.target}"], 9, colour, "B")
            what += self.texts([move.clause] if move.clause else [], 7, FAINT)
            left = "".join(f'{line}<BR ALIGN="LEFT"/>' for line in what)
            rows += (
                f'<TR><TD ALIGN="LEFT" BALIGN="LEFT">{left}</TD><TD BGCOLOR="{colour.fill}">{_stack(where)}</TD></TR>'
            )
        return rows

    def draw_general(self, target: str, fans: Sequence[Fan]) -> None:
        """One arrow for all that leads to ``target`` from most states."""
        rows = ""
        for fan in fans:
            lines = self.texts(fan.events, 10, style="B")
            lines += self.texts(_lines(self.plan.sources_in_words(fan), 34), 9, FAINT, "I")
            rows += f"<TR><TD>{_stack(lines + self.move_lines(fan))}</TD></TR>"
        name = f"to {target}"
        self.add(_quoted(name), {"label": f"<{TABLE}{rows}</TABLE>>"})
        self.edge(name, _quoted(target), self.colours[target])

    def draw_arrow(self, tail: str, target: str, fans: Sequence[Fan]) -> None:
        """All that leads from one state, or from all states of a status, to another."""
        colour = self.colours[target]
        lines: list[str] = []
        for fan in fans:
            lines += self.texts(fan.events, 10, colour, "B")
            if self.plan.is_general(fan):
                lines += self.texts(_lines(self.plan.sources_in_words(fan, but=tail), 34), 9, FAINT, "I")
            lines += self.move_lines(fan)
        table = f'<TABLE BORDER="0" CELLPADDING="3" CELLSPACING="0"><TR><TD>{_stack(lines)}</TD></TR></TABLE>'
        self.edge(tail, _quoted(target), colour, label=f"<{table}>")

    def move_lines(self, fan: Fan) -> list[str]:
        """The small print below an event that makes one move."""
        (move,) = fan.moves
        lines = self.texts(_conditions(move, self.detail, alone=True), 9, FAINT, "I")
        lines += self.texts([f"/ {each}" for each in move.do], 8)
        return lines + self.texts([move.clause] if move.clause else [], 7, FAINT)


# -------------------------------------------------------------------------------------------------------------- Mermaid


def mermaid(cls: Machine) -> str:
    """The overview as a Mermaid ``stateDiagram-v2``; the same on every run.

    Mermaid cannot draw tables: a choice stands for them, and every way out of it is an arrow.
    """
    plan = Plan(cls, "overview")
    lines = ["stateDiagram-v2", f"  [*] --> {cls.initial.name}"]
    classes: list[str] = []
    for status, names in _by_status(cls).items():
        colour = _colours(cls)[names[0]]
        classes.append(f"  classDef {status_id(status)} fill:{colour.fill},stroke:{colour.line},color:{INK.line}")
        classes += [f"  class {name} {status_id(status)}" for name in names]
        if names == [status]:
            lines.append(f"  {status}")
        else:
            lines.append(f'  state "{_plain(status)}" as {status_id(status)} {{')
            lines += [*(f"    {name}" for name in names), "  }"]
    for number, fan in enumerate(plan.tables, 1):
        choice = f"choice_{number}"
        lines.append(f"  state {choice} <<choice>>")
        if plan.is_general(fan):
            lines.append(f'  state "{_plain(plan.sources_in_words(fan))}" as from_{choice}')
            tails = [f"from_{choice}"]
        else:
            tails = plan.tails(fan)
        lines += [f"  {tail} --> {choice} : {_plain(' / '.join(fan.events))}" for tail in tails]
        for move in fan.moves:
            lines.append(f"  {choice} --> {move.target} : {_plain(' or '.join(_conditions(move, 'overview')))}")
    for target, fans in plan.general.items():
        for number, fan in enumerate(fans, 1):
            lines.append(f'  state "{_plain(plan.sources_in_words(fan))}" as from_{number}_to_{target}')
            lines.append(f"  from_{number}_to_{target} --> {target} : {_mermaid_label(fan)}")
    for (tail, target), fans in plan.arrows.items():
        labels = [_mermaid_label(fan) for fan in fans]
        labels += [_plain(f"({plan.sources_in_words(fan, but=tail)})") for fan in fans if plan.is_general(fan)]
        lines.append(f"  {tail} --> {target} : {' / '.join(labels)}")
    return "\n".join(lines + classes) + "\n"


def _mermaid_label(fan: Fan) -> str:
    (move,) = fan.moves
    conditions = _conditions(move, "overview", alone=True)
    return _plain(" / ".join(fan.events) + (f" [{' or '.join(conditions)}]" if conditions else ""))


def _plain(text: str) -> str:
    """Text without what Mermaid takes for syntax."""
    return " ".join(re.sub(r"[^\w\s,./()\[\]']", " ", text).split())


# ------------------------------------------------------------------------------------------------------------- Markdown


def matrix(cls: Machine) -> str:
    """What every event does in every state, as Markdown: one row an event, one column a state, each cell in order.

    Below it: why some events change nothing, and what the states, events and guards mean. The same on every run.
    """
    states = cls.states
    reasons: dict[str, int] = {}
    rows = [
        [f"**{event}**", *("<br>".join(_matrix_lines(_rules(cls, event, source), reasons)) for source in states)]
        for event in cls.events
    ]
    parts = [
        f"# {cls.__name__}",
        f"It begins in **{cls.initial.name}**. In each cell, the first line whose guards pass wins. A dash means that "
        "the event changes nothing, for the reason given below.",
        _markdown_table(["event", *states], rows),
        "\n".join(f"{number}. {_one_line(reason)}" for reason, number in reasons.items()),
        "## States",
        _markdown_table(
            ["state", "status", "what is alive in it", "on entering", "on leaving"],
            [[f"**{n}**", _status(s), s.doc, _code(s.enter), _code(s.exit)] for n, s in states.items()],
        ),
        "## Events",
        _markdown_table(["event", "what happened"], [[f"**{name}**", _doc(each)] for name, each in cls.events.items()]),
    ]
    if guards := list(dict.fromkeys(guard for rule in cls.rules for guard in rule.when)):
        table = _markdown_table(["guard", "passes if"], [[f"`{name}`", _doc(getattr(cls, name))] for name in guards])
        parts += ["## Guards", table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _matrix_lines(rules: Sequence[Rule], reasons: dict[str, int]) -> list[str]:
    """What an event does in one state, a line for each rule."""
    lines: list[str] = []
    for number, rule in enumerate(rules):
        condition = " and ".join(f"`{guard}`" for guard in rule.when) or ("otherwise" if number else "")
        if rule.is_refusal:
            what = f"—<sup>{reasons.setdefault(rule.because, len(reasons) + 1)}</sup>"
        else:
            what = "stays" if rule.target is None else f"→ **{rule.target}**"
        what += f" / {_code(rule.do)}" if rule.do else ""
        lines.append(" ".join(filter(None, [condition, what, f"<sub>{rule.clause}</sub>" if rule.clause else ""])))
    return lines


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _doc(what: object) -> str:
    """The first line of a docstring."""
    return (what.__doc__ or "").strip().partition("\n")[0]


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_one_line(cell) for cell in line)} |" for line in lines)


# ------------------------------------------------------------------------------------------------------- SVG, and files


def svg(cls: Machine, detail: Detail = "overview") -> str:
    """The machine as an SVG, drawn by Graphviz; its bytes depend on Graphviz' version and the fonts it finds.

    Raises CannotDraw if the ``graphviz`` package or Graphviz' program ``dot`` is missing.
    """
    return _drawn(dot(cls, detail))


def _drawn(source: str) -> str:
    try:
        import graphviz  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise CannotDraw(
            "an SVG needs the Python package graphviz, which is not installed: pip install 'reconnect-fsm[diagrams]'. "
            "DOT, Mermaid and Markdown need neither it nor Graphviz"
        ) from None
    try:
        drawn: str = graphviz.Source(source).pipe(format="svg", encoding="utf-8", quiet=True)
    except graphviz.ExecutableNotFound:
        raise CannotDraw(
            "an SVG needs Graphviz, whose program dot is not on the PATH: install Graphviz, for instance with "
            "apt install graphviz or brew install graphviz. DOT, Mermaid and Markdown need neither it nor the package"
        ) from None
    drawn = re.sub(r"<!DOCTYPE.*?>\s*|<!--.*?-->\s*", "", drawn, flags=re.DOTALL)  # they name the version of Graphviz
    return drawn.replace('font-family="Arial"', "font-family=\"Arial, 'Liberation Sans', Helvetica, sans-serif\"")


def write(cls: Machine, directory: str | Path, *, svg: bool = True) -> list[Path]:
    """Write all of it to ``directory``, which is made if need be; return the files written.

    ``ClientFSM`` gives client_fsm.dot, client_fsm_full.dot, client_fsm.mmd, client_fsm.md and, with ``svg``,
    client_fsm.svg and client_fsm_full.svg. Raises CannotDraw as `svg` does, once the other files are written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    overview, full = dot(cls), dot(cls, "full")
    written: list[Path] = []

    def add(name: str, text: str) -> None:
        written.append(directory / name)
        written[-1].write_text(text, encoding="utf-8", newline="\n")

    add(f"{stem}.dot", overview)
    add(f"{stem}_full.dot", full)
    add(f"{stem}.mmd", mermaid(cls))
    add(f"{stem}.md", matrix(cls))
    if svg:
        add(f"{stem}.svg", _drawn(overview))
        add(f"{stem}_full.svg", _drawn(full))
    return written


def main_machines() -> list[Machine]:
    """The machines whose pictures this project keeps in ``diagrams/``."""
    return [ClientFSM, RoomFSM]


def load(address: str) -> Machine:
    """The machine that ``package.module:Class`` names.

    Raises ValueError, with a message for the command line, if there is no such module or class, or it is no machine.
    What the module itself raises when it is imported goes through.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", address):
        raise ValueError(f"{address!r} names no class: write it as in reconnect_fsm.client_fsm:ClientFSM")
    module_name, _, class_name = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # something that the module imports
        raise ValueError(f"there is no module {exc.name!r}; is it installed, or its directory on PYTHONPATH?") from None
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, FSM) and found.states:
        return found  # pyright: ignore[reportUnknownVariableType]
    problem = "has no" if found is None else "has no machine, but something else, under the name"
    machines = [name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, FSM)]
    known = [name for name in machines if getattr(module, name).states]
    raise ValueError(f"{module_name} {problem} {class_name!r}; its machines are: {', '.join(known) or 'none'}")
