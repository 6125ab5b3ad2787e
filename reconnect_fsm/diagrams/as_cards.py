"""A machine as an SVG of cards, one a state: legible on a phone, and drawn without Graphviz.

A card names what can happen in its state and, in the colour of its status, where that leads; there are no arrows. What
is true of most states stands on a card of its own. Elements can be found again as in the SVG that Graphviz draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from reconnect_fsm.diagrams.as_dot import digest, in_words, legend
from reconnect_fsm.diagrams.ink import (
    BORDER,
    BOX,
    FAINT,
    INK,
    MARK,
    PAPER,
    Colour,
    colours_of,
    document,
    escaped,
    fitting,
    text_width,
    wrapped,
)
from reconnect_fsm.diagrams.plan import ADDED, OVERRIDDEN, Detail, Fan, Machine, Move, Plan, by_status, conditions

__all__ = ["cards"]

WIDTH: Final = 344
GAP: Final = 8
INSIDE: Final = 10
NAME, EVENT, SMALL, TINY = 17, 15, 13, 12
"""Sizes of text, in pixels: of states; of events; of guards and docs; of actions and clause ids."""


def cards(cls: Machine, detail: Detail = "overview", *, columns: int = 1) -> str:
    """The machine as an SVG of cards in so many columns, each 352 pixels wide; the same on every run and machine.

    Raises ValueError if ``columns`` is less than 1.
    """
    if columns < 1:
        raise ValueError(f"cards need at least one column, not {columns!r}")
    return _Cards(cls, detail).document(columns)


class _Box:
    """Collects what is on one card, from top to bottom."""

    def __init__(self, attributes: str = "") -> None:
        self.attributes = attributes
        self.height = 0.0
        self.parts: list[str] = []

    def text(
        self,
        words: str,
        size: int,
        colour: Colour = INK,
        *,
        bold: bool = False,
        italic: bool = False,
        x: float = INSIDE,
    ) -> None:
        """A text at the present height, which it does not change."""
        style = ' font-weight="bold"' * bold + ' font-style="italic"' * italic
        y = self.height + size
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour.line}"{style}>{escaped(words)}</text>'
        )

    def lines(
        self, lines: Iterable[str], size: int, colour: Colour = INK, *, bold: bool = False, italic: bool = False
    ) -> None:
        for line in lines:
            self.text(line, size, _marked(line, colour), bold=bold, italic=italic)
            self.height += size + 3


def _marked(text: str, colour: Colour) -> Colour:
    return MARK if text.startswith((ADDED, OVERRIDDEN)) else colour


class _Cards:
    def __init__(self, cls: Machine, detail: Detail) -> None:
        self.cls = cls
        self.detail: Detail = detail
        self.plan = Plan(cls, detail)
        self.changes = self.plan.changes
        known = colours_of(by_status(cls))
        self.colours = {name: known[status] for status, names in by_status(cls).items() for name in names}

    def document(self, columns: int) -> str:
        boxes = [self.heading()]
        general = [fan for fan in self.shown() if self.plan.is_general(fan)]
        if general:
            boxes.append(self.general_card(general))
        for status, names in by_status(self.cls).items():
            for name in names:
                boxes.append(self.state_card(name, status))
        boxes.append(self.legend())
        body, heights = self.in_columns(boxes, columns)
        size = (len(heights) * (WIDTH + GAP) + GAP, max(heights) + GAP)
        mark = f' data-digest="{digest(self.cls, self.detail)}"'
        return document("fsm", size, self.cls.__name__, in_words(self.cls), body, mark)

    def in_columns(self, boxes: Sequence[_Box], columns: int) -> tuple[list[str], list[float]]:
        """The cards one below another, a new column begun when its share of the height is used up."""
        share = sum(box.height + GAP for box in boxes) / columns
        heights = [float(GAP)]
        body: list[str] = []
        for box in boxes:
            if heights[-1] + box.height / 2 > share and len(heights) < columns:
                heights.append(float(GAP))
            x, y = GAP + (len(heights) - 1) * (WIDTH + GAP), heights[-1]
            body += [f'<g{box.attributes} transform="translate({x:g} {y:g})">', *box.parts, "</g>"]
            heights[-1] += box.height + GAP
        return body, heights

    # Cards

    def shown(self) -> list[Fan]:
        return [fan for fan in self.plan.fans if fan.targets or self.detail == "full"]

    def heading(self) -> _Box:
        box = _Box()
        box.lines(wrapped(self.cls.__name__, WIDTH, NAME + 3, bold=True), NAME + 3, bold=True)
        box.lines([f"begins in {self.cls.initial.name}"], SMALL, FAINT)
        return box

    def legend(self) -> _Box:
        box = _Box()
        words = ["The first guard that passes wins, from top to bottom.", *legend(self.changes, self.detail)[1:]]
        box.lines([line for each in words for line in wrapped(each, WIDTH - INSIDE, TINY)], TINY, FAINT)
        return box

    def general_card(self, fans: Iterable[Fan]) -> _Box:
        box = _Box(' id="from-most-states"')
        box.height = INSIDE - 4
        box.lines(["in most states"], NAME, bold=True)
        box.height += 4
        for fan in fans:
            self.fan(box, fan, fan.sources, self.plan.sources_in_words(fan))
        self.frame(box, FAINT, 0)
        return box

    def state_card(self, name: str, status: str) -> _Box:
        each, colour, mark = self.cls.states[name], self.colours[name], self.changes.of_state(name)
        box = _Box(f' id="state-{escaped(name)}" data-state="{escaped(name)}" data-status="{escaped(status)}"')
        box.height = INSIDE - 4
        if status != name:
            shown = fitting(status, WIDTH / 2, TINY)
            box.text(shown, TINY, colour, x=WIDTH - INSIDE - text_width(shown, TINY))
        box.lines([f"{mark} {name}".lstrip()], NAME, bold=True)
        box.lines(wrapped(each.doc, WIDTH - 2 * INSIDE, SMALL), SMALL)
        if self.detail == "full":
            for when, names in (("on entering", each.enter), ("on leaving", each.exit)):
                actions = ", ".join(f"{self.changes.of_method(action)} {action}".lstrip() for action in names)
                box.lines(wrapped(f"{when} / {actions}", WIDTH - 2 * INSIDE, TINY) if names else [], TINY)
        box.height += 4
        header = box.height
        for fan in self.shown():
            if name in fan.sources and not self.plan.is_general(fan):
                self.fan(box, fan, [name], "")
        self.frame(box, colour, header, changed=bool(mark))
        return box

    def frame(self, box: _Box, colour: Colour, header: float, *, changed: bool = False) -> None:
        """The card itself, below what is on it."""
        line = f'stroke="{MARK.line}" stroke-width="3"' if changed else f'stroke="{colour.line}"'
        fill = colour.fill if header else BOX
        back = [f'<rect class="card" width="{WIDTH}" height="{box.height:g}" rx="8" fill="{fill}" {line}/>']
        if header and box.height > header:
            back.append(
                f'<rect x="1.5" y="{header:g}" width="{WIDTH - 3}" height="{box.height - header - 6:g}" '
                f'fill="{PAPER}"/>'
            )
        box.parts[:0] = back

    # What is on a card

    def fan(self, box: _Box, fan: Fan, sources: Sequence[str], where: str) -> None:
        """An event, or several that do the same, and where it leads in these states."""
        box.parts.append(f'<path d="M{INSIDE} {box.height:g}H{WIDTH - INSIDE}" stroke="{BORDER}"/>')
        box.height += 5
        events = [f"{self.changes.of_event(name)} {name}".lstrip() for name in fan.events]
        one = len(fan.moves) == 1 and conditions(fan.moves[0], self.changes, self.detail, alone=True) == []
        top = box.height
        box.lines(events, EVENT, bold=True)
        box.lines(wrapped(where, WIDTH - 2 * INSIDE, SMALL), SMALL, FAINT, italic=True)
        bottom = box.height
        if one:
            box.height = top
        for move in fan.moves:
            self.move(box, fan, move, sources, alone=len(fan.moves) == 1, below=bottom)
        box.height += 5

    def move(self, box: _Box, fan: Fan, move: Move, sources: Sequence[str], *, alone: bool, below: float) -> None:
        """Where it leads, on the right; when it is made and what is done, on the left, no higher than ``below``."""
        colour = FAINT if move.target is None else self.colours[move.target]
        label = "stays" if move.target is None else f"→ {move.target}"
        label = fitting(label, WIDTH - 2 * INSIDE - 12, SMALL, bold=True)
        width = text_width(label, SMALL, bold=True) + 12
        left = WIDTH - INSIDE - width
        tokens = "" if move.target is None else " ".join(fan.tokens(sources=sources, target=move.target))
        found = f' data-moves="{escaped(tokens)}"' if tokens else ""
        box.parts.append(f'<g class="cell"{found}>')
        box.parts.append(
            f'<rect x="{left:.1f}" y="{box.height - 1:g}" width="{width:.1f}" height="{SMALL + 7}" rx="4" '
            f'fill="{colour.fill}" stroke="{colour.line}"/>'
        )
        box.height += 1
        box.text(label, SMALL, colour, bold=True, x=round(left + 6, 1))
        box.height -= 1
        top = box.height
        box.height = max(top, below)
        for line in conditions(move, self.changes, self.detail, alone=alone):
            box.lines(wrapped(line, left - 2 * INSIDE, SMALL), SMALL, _marked(line, INK), italic=True)
        actions = [f"{self.changes.of_method(name)} / {name}".lstrip() for name in move.do]
        box.lines([part for each in actions for part in wrapped(each, left - 2 * INSIDE, TINY)], TINY)
        box.lines(wrapped(move.clause, left - 2 * INSIDE, TINY - 1), TINY - 1, FAINT)
        box.height = max(box.height + 3, top + SMALL + 10)
        box.parts.append("</g>")
