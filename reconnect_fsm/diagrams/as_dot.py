"""A machine in Graphviz' language, and what Graphviz draws of it.

Every element of the SVG can be found again. A state is ``id="state-NAME"`` and carries ``data-state`` and
``data-status``; what shows a move carries ``data-moves``, a list of ``event:state:next_state``, so that
``[data-moves~="socket_closed:connected:waiting"]`` finds all that stands for that move: an arrow, or the line to a
table, the cell in it and the arrow out of it.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from reconnect_fsm.diagrams.ink import (
    BORDER,
    BOX,
    FAINT,
    INK,
    MARK,
    PAPER,
    Colour,
    balanced,
    colours_of,
    document,
    escaped,
)
from reconnect_fsm.diagrams.plan import (
    ADDED,
    OVERRIDDEN,
    Changes,
    Detail,
    Fan,
    Machine,
    Move,
    Plan,
    by_status,
    conditions,
    status_id,
)
from reconnect_fsm.errors import ReconnectError
from reconnect_fsm.machine import State

__all__ = ["CannotDraw", "digest", "dot", "draw", "in_words", "legend", "svg"]

TABLE: Final = f'<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="3" COLOR="{BORDER}" BGCOLOR="{BOX}">'
EVENT, SMALL, TINY = 11, 10, 9
"""Sizes of text, in points: of events; of guards, docs and actions; of clause ids."""


class CannotDraw(ReconnectError):
    """An SVG by Graphviz needs the ``graphviz`` package and the program ``dot``; the message says which is missing."""


def dot(cls: Machine, detail: Detail = "overview") -> str:
    """The machine in Graphviz' language; the same on every run."""
    return _Picture(cls, detail).source()


def svg(cls: Machine, detail: Detail = "overview") -> str:
    """The machine as an SVG, drawn by Graphviz; its bytes depend on Graphviz' version and the fonts it finds.

    Raises CannotDraw if the ``graphviz`` package or Graphviz' program ``dot`` is missing.
    """
    return _Picture(cls, detail).drawn()


def digest(cls: Machine, detail: Detail = "overview") -> str:
    """The ``data-digest`` of an SVG of the machine, without the class's name: a picture is current if it agrees."""
    _, _, body = dot(cls, detail).partition("\n")
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def legend(changes: Changes, detail: Detail) -> list[str]:
    """How to read the pictures."""
    lines = ["A grey line leads to what can happen in a state; there, the first guard that passes wins."]
    if detail == "full":
        lines.append("After a slash: the actions that are taken. In capitals: the clauses that are answered.")
    if changes.in_words():
        by, origin = " and ".join(changes.by), changes.origin.__name__
        lines.append(f"{ADDED} added, {OVERRIDDEN} overridden by {by}; the rest is {origin}'s.")
    return lines


def in_words(cls: Machine) -> str:
    """The machine for those who cannot see the picture, in a few sentences."""
    groups = "; ".join(f"{status}: {', '.join(names)}" for status, names in by_status(cls).items())
    changes = Changes(cls)
    changed = "; ".join(f"{heading}: {', '.join(names)}" for heading, names in changes.in_words().items())
    parts = [
        f"A state machine that begins in {cls.initial.name}. Its states by public status: {groups}.",
        f"Its events: {', '.join(cls.events)}.",
    ]
    if changes.by:
        parts.append(f"Changed by {', '.join(changes.by)}: {changed or 'nothing that is drawn'}.")
    return " ".join(parts)


def _font(text: str, size: int, colour: Colour = INK, style: Literal["", "B", "I"] = "") -> str:
    text = escaped(text)
    text = f"<{style}>{text}</{style}>" if style else text
    return f'<FONT POINT-SIZE="{size}" COLOR="{colour.line}">{text}</FONT>'


def _stack(lines: Iterable[str]) -> str:
    return "<BR/>".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Picture:
    """Collects the lines of one DOT source, and what its elements are called in the SVG."""

    def __init__(self, cls: Machine, detail: Detail) -> None:
        self.cls = cls
        self.detail: Detail = detail
        self.plan = Plan(cls, detail)
        self.changes = self.plan.changes
        known = colours_of(by_status(cls))
        self.colours = {name: known[status] for status, names in by_status(cls).items() for name in names}
        self.lines: list[str] = []
        self.data: dict[str, dict[str, str]] = {}
        """By the id of an element: what it says about itself; ``title`` is what a pointer over it shows."""

    def source(self) -> str:
        legend_lines = [
            _font(line, TINY, MARK if line.startswith(ADDED) else FAINT) for line in legend(self.changes, self.detail)
        ]
        left = "".join(f'{line}<BR ALIGN="LEFT"/>' for line in legend_lines)
        self.lines = [
            f"digraph {_quoted(self.cls.__name__)} {{",
            f'  graph [bgcolor="{PAPER}" compound="true" fontname="Arial" newrank="true"]',
            '  graph [nodesep="0.2" pad="0.12" ranksep="0.34"]',
            f'  graph [labeljust="l" labelloc="b" label=<{left}>]',
            '  node [fontname="Arial" shape="plain"]',
            '  edge [arrowsize="0.7" fontname="Arial" penwidth="1.2"]',
        ]
        for status, names in by_status(self.cls).items():
            self.draw_status(status, names)
        for fan in self.plan.tables:
            self.draw_table(fan)
        for target, fans in self.plan.general.items():
            self.draw_general(target, fans)
        for (tail, target), fans in self.plan.arrows.items():
            self.draw_arrow(tail, target, fans)
        return "\n".join([*self.lines, "}"]) + "\n"

    def drawn(self) -> str:
        return draw(self.source(), self.cls.__name__, in_words(self.cls), self.data, digest(self.cls, self.detail))

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
        for status, names in by_status(self.cls).items():
            if name == status_id(status):
                return names[0], f"cluster {status}"
        return name, ""

    def texts(
        self, lines: Iterable[str], size: int, colour: Colour = INK, style: Literal["", "B", "I"] = ""
    ) -> list[str]:
        """Texts in one style; what is marked as added or overridden stands out."""
        return [_font(line, size, MARK if line.startswith((ADDED, OVERRIDDEN)) else colour, style) for line in lines]

    def events(self, fan: Fan, colour: Colour = INK) -> list[str]:
        return self.texts([f"{self.changes.of_event(name)} {name}".lstrip() for name in fan.events], EVENT, colour, "B")

    def actions(self, names: Iterable[str]) -> list[str]:
        """Actions by name; those that a subclass changed are marked."""
        return [f"{self.changes.of_method(name)} / {name}".lstrip() for name in names]

    def name(self, identity: str, title: str, **data: str | Iterable[str]) -> str:
        """The id of an element, about which it notes what the SVG is to say."""
        identity = re.sub(r"[^\w-]", "_", identity)
        notes = {f"data-{key}": each if isinstance(each, str) else " ".join(each) for key, each in data.items()}
        self.data[identity] = {"title": title, **notes}
        return identity

    # States

    def draw_status(self, status: str, names: Sequence[str]) -> None:
        """The states of one public status, in its frame; round a lone state of that name it would say nothing."""
        colour = self.colours[names[0]]
        framed = names != [status]
        indent = 4 if framed else 2
        if framed:
            self.lines.append(f"  subgraph {_quoted(f'cluster {status}')} {{")
            frame = {"label": f"<{_font(status, EVENT, colour, 'B')}>", "labeljust": "l", "margin": "10"}
            identity = self.name(status_id(status), f"status {status}", status=status)
            self.add("graph", frame | {"style": "rounded,dashed", "color": colour.line, "id": identity}, indent)
        for name in names:
            mark = self.changes.of_state(name)
            box = {"shape": "box", "style": "rounded,filled", "margin": "0.11,0.06", "fillcolor": colour.fill}
            line = {"color": MARK.line, "penwidth": "2.5"} if mark else {"color": colour.line}
            label = f"<{_stack(self.state_lines(self.cls.states[name], mark))}>"
            identity = self.name(f"state-{name}", f"{name}: {self.cls.states[name].doc}", state=name, status=status)
            self.add(_quoted(name), {**box, **line, "id": identity, "label": label}, indent)
            if name == self.cls.initial.name:
                self.draw_start(name, indent)
        if framed:
            self.lines.append("  }")

    def draw_start(self, initial: str, indent: int) -> None:
        """The dot beside the state in which it begins."""
        identity = self.name("start", f"begins in {initial}")
        circle = {"shape": "circle", "label": "", "width": "0.13", "style": "filled", "fillcolor": INK.line}
        self.lines.append(f"{' ' * indent}{{ rank=same")
        self.add('"(start)"', {**circle, "id": identity, "color": INK.line}, indent + 2)
        self.add(f'"(start)" -> {_quoted(initial)}', {"color": INK.line, "minlen": "1"}, indent + 2)
        self.lines.append(f"{' ' * indent}}}")

    def state_lines(self, each: State, mark: str) -> list[str]:
        lines = self.texts([f"{mark} {each.name}".lstrip()], 14, style="B")
        lines += self.texts(balanced(each.doc, 28) if each.doc else [], SMALL)
        if self.detail == "full":
            for when, names in (("enter", each.enter), ("exit", each.exit)):
                marks = [self.changes.of_method(name) for name in names if self.changes.of_method(name)]
                text = f"{when} / {', '.join(names)}"
                lines += self.texts([" ".join([*marks[:1], text])] if names else [], TINY, FAINT)
            for fan in self.plan.stays:
                if each.name in fan.sources:
                    for line in self.stay_lines(fan):
                        mark = line[0] if line.startswith((ADDED, OVERRIDDEN)) else ""
                        lines += [_font(part, TINY, MARK if mark else FAINT) for part in balanced(line, 34)]
        return lines

    def stay_lines(self, fan: Fan) -> list[str]:
        """What happens in a state without leaving it."""
        lines: list[str] = []
        for number, move in enumerate(fan.moves):
            parts = [f"{self.changes.of_event(fan.events[0])} {fan.events[0]}".lstrip()]
            if move.is_added:
                parts.insert(0, ADDED)
            when = conditions(move, self.changes, self.detail, alone=not number)
            parts += [f"[{each.removeprefix(f'{ADDED} ')}]" for each in when]
            parts += self.actions(move.do)
            lines.append(f"{' '.join(parts)}  {move.clause}".rstrip())
        return lines

    # Events

    def draw_table(self, fan: Fan) -> None:
        """An event with several rows, and lines to it from its states, or words where that would be too many."""
        name = f"{', '.join(fan.events)} in {', '.join(fan.sources)}"
        key = f"{fan.events[0]}-{fan.sources[0]}"
        head = self.events(fan)
        if self.plan.is_general(fan):
            head += self.texts(balanced(self.plan.sources_in_words(fan), 26), SMALL, FAINT, "I")
        else:
            first, *others = self.plan.tails(fan)
            self.edge(first, _quoted(name), FAINT, arrowhead="none", id=self.line_in(fan, key, first))
            for other in others:
                # It may be below the table, so it is drawn backwards; and to the head, lest it seem to leave a cell.
                node, frame = self.end(other)
                line = {"color": FAINT.line, "arrowhead": "none", "id": self.line_in(fan, key, other)}
                self.add(f"{_quoted(name)}:head:e -> {_quoted(node)}", line | ({"lhead": frame} if frame else {}))
        rows = self.cells_in_full(fan, key) if self.detail == "full" else self.cells(fan, key)
        span = ' COLSPAN="2"' if self.detail == "full" else ""
        label = f'<{TABLE}<TR><TD PORT="head"{span}>{_stack(head)}</TD></TR>{rows}</TABLE>>'
        identity = self.name(f"table-{key}", name, events=fan.events, sources=fan.sources)
        self.add(_quoted(name), {"id": identity, "label": label})
        for target in fan.targets:
            if target not in self.plan.general:
                identity = self.moves(f"edge-{key}-{target}", fan, target=target)
                port = "" if self.detail == "full" else f":{_quoted(target)}"
                attributes = {"color": self.colours[target].line, "id": identity}
                self.add(f"{_quoted(name)}{port} -> {_quoted(target)}", attributes)

    def line_in(self, fan: Fan, key: str, tail: str) -> str:
        return self.moves(f"line-{key}-{tail}", fan, sources=self.plan.behind(tail))

    def moves(self, identity: str, fan: Fan, *, sources: Iterable[str] | None = None, target: str | None = None) -> str:
        """The id of an element that stands for moves of a fan."""
        sources = fan.sources if sources is None else list(sources)
        events, where = ", ".join(fan.events), ", ".join(sources)
        title = f"{events} in {where}" + (f" leads to {target}" if target else "")
        return self.name(identity, title, moves=fan.tokens(sources=sources, target=target))

    def cell(self, number: int, fan: Fan, key: str, move: Move) -> str:
        """The attributes by which a cell can be found again; Graphviz keeps the id of a cell only with a link."""
        identity = self.moves(f"cell-{key}-{number}", fan, target=move.target)
        return f'HREF="#" ID="{identity}" TITLE=" "'

    def cells(self, fan: Fan, key: str) -> str:
        """The moves from top to bottom, in the colours of where they lead."""
        rows = ""
        ports: set[str] = set()
        for number, move in enumerate(fan.moves, 1):
            assert move.target is not None  # an overview has no other moves
            lines = conditions(move, self.changes, self.detail)
            texts = self.texts([part for line in lines for part in balanced(line, 22)], SMALL, style="I")
            texts += self.texts([f"→ {move.target}"], SMALL, self.colours[move.target], "B")
            port = "" if move.target in ports else f'PORT="{move.target}" '
            ports.add(move.target)
            fill = self.colours[move.target].fill
            rows += f'<TR><TD {port}BGCOLOR="{fill}" {self.cell(number, fan, key, move)}>{_stack(texts)}</TD></TR>'
        return rows

    def cells_in_full(self, fan: Fan, key: str) -> str:
        """The moves from top to bottom, each with its actions and its clauses."""
        rows = ""
        for number, move in enumerate(fan.moves, 1):
            colour = FAINT if move.target is None else self.colours[move.target]
            (condition,) = conditions(move, self.changes, self.detail)
            mark = MARK if condition.startswith((ADDED, OVERRIDDEN)) else INK
            what = [_font(f"{number}  {condition}", SMALL, mark, "I")]
            what += self.texts(self.actions(move.do), TINY)
            what += self.texts([move.clause] if move.clause else [], TINY - 1, FAINT)
            where = self.texts(["stays" if move.target is None else f"→ {move.target}"], SMALL, colour, "B")
            left = "".join(f'{line}<BR ALIGN="LEFT"/>' for line in what)
            found = "" if move.target is None else f" {self.cell(number, fan, key, move)}"
            rows += (
                f'<TR><TD ALIGN="LEFT" BALIGN="LEFT">{left}</TD>'
                f'<TD BGCOLOR="{colour.fill}"{found}>{_stack(where)}</TD></TR>'
            )
        return rows

    def draw_general(self, target: str, fans: Sequence[Fan]) -> None:
        """One arrow for all that leads to ``target`` from most states."""
        rows = ""
        for number, fan in enumerate(fans, 1):
            lines = self.events(fan)
            lines += self.texts(balanced(self.plan.sources_in_words(fan), 30), SMALL, FAINT, "I")
            found = self.cell(number, fan, f"to-{target}", fan.moves[0])
            rows += f"<TR><TD {found}>{_stack(lines + self.move_lines(fan))}</TD></TR>"
        name = f"to {target}"
        self.add(_quoted(name), {"id": self.name(f"to-{target}", name), "label": f"<{TABLE}{rows}</TABLE>>"})
        tokens = [token for fan in fans for token in fan.tokens()]
        identity = self.name(f"edge-to-{target}", name, moves=tokens)
        self.edge(name, _quoted(target), self.colours[target], id=identity)

    def draw_arrow(self, tail: str, target: str, fans: Sequence[Fan]) -> None:
        """All that leads from one state, or from all states of a status, to another."""
        colour = self.colours[target]
        lines: list[str] = []
        tokens: list[str] = []
        for fan in fans:
            lines += self.events(fan, colour)
            if self.plan.is_general(fan):
                lines += self.texts(balanced(self.plan.sources_in_words(fan, but=tail), 30), SMALL, FAINT, "I")
            lines += self.move_lines(fan)
            tokens += fan.tokens(sources=fan.sources if self.plan.is_general(fan) else self.plan.behind(tail))
        table = f'<TABLE BORDER="0" CELLPADDING="3" CELLSPACING="0"><TR><TD>{_stack(lines)}</TD></TR></TABLE>'
        events = ", ".join(name for fan in fans for name in fan.events)
        identity = self.name(f"edge-{tail}-{target}", f"{events} in {tail} leads to {target}", moves=tokens)
        self.edge(tail, _quoted(target), colour, id=identity, label=f"<{table}>")

    def move_lines(self, fan: Fan) -> list[str]:
        """The small print below an event that makes one move."""
        (move,) = fan.moves
        lines = self.texts(conditions(move, self.changes, self.detail, alone=not move.is_added), SMALL, FAINT, "I")
        lines += self.texts(self.actions(move.do), TINY)
        return lines + self.texts([move.clause] if move.clause else [], TINY - 1, FAINT)


# -------------------------------------------------------------------------------------------------------- Graphviz' SVG


def draw(source: str, title: str, description: str, data: Mapping[str, Mapping[str, str]], digest: str) -> str:
    """What Graphviz draws of a DOT source, made fit for a page: named, described, with dark colours, and no links.

    ``data`` holds the attributes of elements by their id, and their titles. Raises CannotDraw.
    """
    try:
        import graphviz  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise CannotDraw(
            "an SVG needs the Python package graphviz, which is not installed: pip install 'reconnect-fsm[diagrams]'. "
            "DOT, Mermaid, Markdown and cards need neither it nor Graphviz"
        ) from None
    try:
        drawn: str = graphviz.Source(source).pipe(format="svg", encoding="utf-8", quiet=True)
    except graphviz.ExecutableNotFound:
        raise CannotDraw(
            "an SVG needs Graphviz, whose program dot is not on the PATH: install Graphviz, for instance with "
            "apt install graphviz or brew install graphviz. DOT, Mermaid, Markdown and cards need neither it nor "
            "the package"
        ) from None
    width, height = (float(each) for each in re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', drawn).groups())  # type: ignore[union-attr]
    body = drawn[drawn.index("<g ") : drawn.rindex("</svg>")].strip()  # what comes before names Graphviz' version

    def tagged(found: re.Match[str]) -> str:
        identity, kind = html.unescape(found["id"]), found["kind"]
        notes = dict(data.get(identity, {}))
        shown = notes.pop("title", "")
        attributes = "".join(f' {key}="{escaped(value)}"' for key, value in notes.items())
        named = f' id="{identity}"' if identity in data else ""
        return f'<g{named} class="{kind}"{attributes}>' + (f"<title>{escaped(shown)}</title>" if shown else "")

    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="a_(?P<id>[^"]+)"(?P<kind>)><a [^>]*>', tagged, body).replace('class=""', 'class="cell"')
    body = re.sub(r"</a>\s*</g>", "</g>", body)
    body = re.sub(
        r'<g id="(?P<id>[^"]+)" class="(?P<kind>graph|cluster|node|edge)"(?P<rest>[^>]*)>\s*<title>.*?</title>',
        lambda found: tagged(found).replace(">", f"{found['rest']}>", 1),
        body,
        flags=re.DOTALL,
    )
    body = body.replace('stroke="transparent"', 'stroke="none"').replace(' font-family="Arial"', "")
    inner = (
        f'<svg width="{width:.0f}pt" height="{height:.0f}pt" viewBox="0 0 {width:.2f} {height:.2f}">\n{body}\n</svg>'
    )
    return document("fsm", (width * 4 / 3, height * 4 / 3), title, description, [inner], f' data-digest="{digest}"')
