"""A sequence diagram as an SVG: a column for each machine, coloured by status, and the events along time.

Time runs down. Every event has a line of its own, with its time, so that the picture fits a page as well as a phone.
Where events follow each other closely, time is stretched; a long quiet time is shortened, and a break in the axis shows
it. A record with too many events is summed up: each line then stands for several, and each bar shows the shares of the
statuses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from reconnect_fsm.diagrams.ink import (
    BORDER,
    COLOURS,
    FAINT,
    INK,
    PAPER,
    Colour,
    colours_of,
    document,
    escaped,
    fitting,
    text_width,
    wrapped,
)
from reconnect_fsm.recorder.format import CLIENT, Transition

__all__ = ["sequence"]

INSTANT: Final = 0.005
"""Seconds within which the steps of rooms belong to the event of the first of them."""
MAX_LINES: Final = 48
EVENT, SMALL = 13, 12
PAD: Final = 10


@dataclass(slots=True)
class _Line:
    """One line of the picture: an event and what it led to, or many of them."""

    steps: list[Transition]
    top: float = 0.0
    is_sum: bool = False

    @property
    def start(self) -> float:
        return self.steps[0].time


@dataclass(slots=True)
class _Bar:
    """A machine in one state, or in several in turn: the shares of their statuses."""

    top: float
    bottom: float
    state: str
    parts: list[tuple[str, float]]


@dataclass(slots=True)
class _Lane:
    """The states of one machine."""

    name: str
    x: float = 0.0
    width: float = 0.0
    steps: list[Transition] = field(default_factory=list[Transition])


def sequence(steps: Iterable[Transition], *, title: str = "", width: int = 820, rooms: int = 4) -> str:
    """Draw a record as an SVG, ``width`` pixels wide (360 suits a phone), with at most ``rooms`` columns for rooms.

    Steps may come in any order; those of one instant, in the order in which they happened. The rooms that did most are
    shown, as many as there is space for, and how many were left out is said. However long the record is, the picture
    is bounded: it has at most 48 lines. The same record gives the same bytes. Raises ValueError if a time is no number,
    ``width`` is less than 320, or ``rooms`` negative.
    """
    if width < 320 or rooms < 0:
        raise ValueError(f"a picture needs at least 320 pixels and no fewer than 0 rooms, not {width!r} and {rooms!r}")
    ordered = sorted(steps, key=lambda step: step.time)
    if bad := next((step for step in ordered if not math.isfinite(step.time)), None):
        raise ValueError(f"the time of a step must be a number of seconds, not {bad.time!r}: {bad}")
    return _Sequence(ordered, title, width, rooms).document()


class _Sequence:
    def __init__(self, steps: list[Transition], title: str, width: int, rooms: int) -> None:
        self.steps = steps
        self.title = title
        self.width = width
        self.begin = steps[0].time if steps else 0.0
        self.end = steps[-1].time if steps else 0.0
        self.statuses = {(step.machine == CLIENT, step.new): step.status for step in steps}
        self.colours = colours_of(step.status for step in steps)
        every: dict[str, _Lane] = {}
        for step in steps:
            every.setdefault(step.machine, _Lane(step.machine)).steps.append(step)
        busiest = sorted((name for name in every if name != CLIENT), key=lambda name: -len(every[name].steps))
        self.is_narrow = width < 600
        # Beside the axis, the client's column and legible words there is space for so many columns.
        max_rooms = (width - 270) // 15 if self.is_narrow else (width - 400) // 90
        shown = {CLIENT, *busiest[: min(rooms, max_rooms)]}
        self.lanes = sorted(
            (lane for lane in every.values() if lane.name in shown), key=lambda lane: lane.name != CLIENT
        )
        self.left_out = len(every) - len(self.lanes)
        self.axis_x = 50.0 if self.is_narrow else 64.0
        self.text_x = self.place_lanes()
        self.lines = self.gathered()
        self.body: list[str] = []

    # Where things are

    def place_lanes(self) -> float:
        """Give each lane its place; return where the text begins."""
        x = self.axis_x + 8
        for lane in self.lanes:
            lane.x = x
            lane.width = (72 if lane.name == CLIENT else 11) if self.is_narrow else (96 if lane.name == CLIENT else 84)
            x += lane.width + (4 if self.is_narrow else 6)
        return x + (6 if self.is_narrow else 10)

    def gathered(self) -> list[_Line]:
        """The lines: one for each event of the client, with the steps of rooms at that instant."""
        lines: list[_Line] = []
        for step in self.steps:
            if not lines or step.machine == CLIENT or step.time - lines[-1].start > INSTANT:
                lines.append(_Line([]))
            lines[-1].steps.append(step)
        if len(lines) <= MAX_LINES:
            return lines
        each = math.ceil(len(lines) / MAX_LINES)
        parts = [lines[number : number + each] for number in range(0, len(lines), each)]
        return [_Line([step for line in part for step in line.steps], is_sum=True) for part in parts]

    # What is drawn

    def document(self) -> str:
        bottom = self.draw_head()
        if not self.lines:
            self.text(PAD, bottom + 20, "Nothing was recorded.", SMALL, FAINT)
            return self.wrapped_up(bottom + 40)
        gaps = [after.start - line.start for line, after in zip(self.lines, self.lines[1:], strict=False)]
        usual = sorted(gap for gap in gaps if gap > INSTANT)
        unit = usual[len(usual) // 2] if usual else 1.0
        y = first = bottom + 26
        axis: list[str] = []
        for number, line in enumerate(self.lines):
            line.top = y
            height = self.draw_line(line)
            gap = gaps[number] if number < len(gaps) else 0.0
            stretch = min(max(height, 20 * gap / unit), height + 40)
            if line.is_sum:
                stretch = height
            elif 20 * gap / unit > height + 40:
                axis.append(self.quiet(y + height + 12, gap))
                stretch = height + 34
            y += stretch
        for lane in self.lanes:
            self.draw_lane(lane, first - 18, y)
        self.body.append(f'<path d="M{self.axis_x:g} {first - 18:g}V{y:g}" stroke="{BORDER}"/>')
        self.body += axis
        return self.wrapped_up(y + self.draw_foot(y + 8))

    def wrapped_up(self, height: float) -> str:
        names = ", ".join(lane.name for lane in self.lanes)
        described = f"{len(self.steps)} transitions of {names or 'nothing'} within {_seconds(self.end - self.begin)}. "
        described += " ".join(
            f"{_seconds(line.start - self.begin)}: {self.headline(line)}." for line in self.lines[:MAX_LINES]
        )
        return document(
            "fsm-sequence", (self.width, height), self.title or "What happened", _short(described, 2000), self.body
        )

    def draw_head(self) -> float:
        y = 8.0
        if self.title:
            self.text(PAD, y + 16, fitting(self.title, self.width - 2 * PAD, 16, bold=True), 16, INK, bold=True)
            y += 26
        for number, lane in enumerate(self.lanes):
            is_small = self.is_narrow and lane.name != CLIENT
            words = str(number) if is_small else fitting(lane.name, lane.width, SMALL, bold=True)
            self.text(lane.x, y + 14, words, SMALL, INK, bold=True, hint=lane.name)
        return y + 12

    def draw_foot(self, y: float) -> float:
        """Draw the legend and the notes; return their height."""
        rooms = [f"{number} {lane.name}" for number, lane in enumerate(self.lanes) if lane.name != CLIENT]
        words = rooms if self.is_narrow else []
        if self.left_out:
            rest = "1 more room is" if self.left_out == 1 else f"{self.left_out:,} more rooms are"
            words = [*words, f"{rest} not shown."]
        if any(line.is_sum for line in self.lines):
            words = [*words, "Each line sums up several events; bars show the shares of the statuses."]
        for number, each in enumerate(words):
            self.text(PAD, y + 16 * (number + 1), fitting(each, self.width - 2 * PAD, SMALL), SMALL, FAINT)
        return 16.0 * len(words) + 20

    def draw_line(self, line: _Line) -> float:
        """Draw the words of a line; return their height."""
        y = line.top
        time = _seconds(line.start - self.begin)
        explained = [step for step in line.steps[:12] if step.reason or step.event]
        hint = "\n".join(
            [time, *(f"{each.machine}: {each.event} {each.old} → {each.new}. {each.reason}" for each in explained)]
        )
        self.body.append(f'<g class="line"><title>{escaped(_short(hint, 1500))}</title>')
        self.body.append(f'<path d="M{self.axis_x - 4:g} {y:g}H{self.text_x - 6:g}" stroke="{BORDER}"/>')
        self.text(self.axis_x - 6 - text_width(time, SMALL), y + 4, time, SMALL, FAINT)
        room = self.width - self.text_x - PAD
        height = 4.0
        for words, size, colour, bold in self.words(line):
            lines = wrapped(words, room, size, bold=bold)
            max_lines = 2 if self.is_narrow else 1
            kept = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])] if lines else []
            for part in (fitting(each, room, size, bold=bold) for each in kept if each):
                self.text(self.text_x, y + height, part, size, colour, bold=bold)
                height += size + 3
        self.body.append("</g>")
        return height + 6

    def words(self, line: _Line) -> list[tuple[str, int, Colour, bool]]:
        """The lines of text beside an event: text, size, colour, and whether it is bold."""
        if line.is_sum:
            counted = Counter(step.event or f"→ {step.new}" for step in line.steps).most_common(3)
            return [
                (f"{len(line.steps):,} transitions", EVENT, INK, True),
                (", ".join(f"{event} ×{count:,}" for event, count in counted), SMALL, FAINT, False),
            ]
        found: list[tuple[str, int, Colour, bool]] = []
        for step in line.steps:
            if step.machine == CLIENT:
                found.append(
                    (
                        step.event or "status" if self.is_narrow else self.headline(line),
                        EVENT,
                        self.colour(step.status),
                        True,
                    )
                )
                if reason := _short(step.reason, 300).strip():
                    found.append((reason, SMALL, INK, False))
                if step.retry_in is not None and step.new != step.old:
                    when = f"attempt {step.attempt} in {_seconds(step.retry_in)}"
                    found.append((when, SMALL, FAINT, False))
        rooms: dict[tuple[str, str, str], list[str]] = {}
        for step in line.steps:
            if step.machine != CLIENT:
                rooms.setdefault((step.event, step.new, step.status), []).append(step.machine)
        for (event, new, status), names in list(rooms.items())[:3]:
            who = ", ".join(_short(name, 100) for name in names[:2]) + (
                f" and {len(names) - 2:,} more" if len(names) > 2 else ""
            )
            found.append((f"{who}: {event} → {new}" if event else f"{who} → {new}", SMALL, self.colour(status), False))
        if len(rooms) > 3:
            found.append((f"and {len(rooms) - 3} more kinds of transitions", SMALL, FAINT, False))
        return found

    def headline(self, line: _Line) -> str:
        if line.is_sum:
            return f"{len(line.steps):,} transitions"
        step = line.steps[0]
        if step.machine != CLIENT:
            return f"{len(line.steps):,} of rooms" if len(line.steps) > 1 else f"{step.machine} → {step.new}"
        return f"{step.event or 'status'} → {step.new}"

    def draw_lane(self, lane: _Lane, top: float, bottom: float) -> None:
        """The bars of one machine, a new one where its state changes."""
        state, status = lane.steps[0].old, self.status_before(lane.steps[0])
        bars = [_Bar(top, self.lines[0].top, state, [(status, 1.0)])]
        for number, line in enumerate(self.lines):
            is_last = number + 1 == len(self.lines)
            end, below = (self.end, bottom) if is_last else (self.lines[number + 1].start, self.lines[number + 1].top)
            shares: Counter[str] = Counter()
            at = line.start
            for step in line.steps:
                if step.machine == lane.name:
                    shares[status] += max(_microseconds(step.time - at), 0)
                    at, state, status = step.time, step.new, step.status
            shares[status] += max(_microseconds(end - at), 0)
            total = shares.total() if line.is_sum else 0
            parts = [(name, shares[name] / total) for name in sorted(shares, key=self.rank) if total and shares[name]]
            parts = parts or [(status, 1.0)]
            if len(parts) == 1 and bars[-1].state == state and bars[-1].parts == parts:
                bars[-1].bottom = below
            else:
                bars.append(_Bar(line.top, below, state, parts))
        for bar in bars:
            self.draw_bar(lane, bar)

    def draw_bar(self, lane: _Lane, bar: _Bar) -> None:
        height = bar.bottom - bar.top
        x = lane.x
        self.body.append(f'<g class="bar" data-machine="{escaped(_short(lane.name, 200))}">')
        shown = bar.state if len(bar.parts) == 1 else ", ".join(f"{name} {share:.0%}" for name, share in bar.parts)
        self.body.append(f"<title>{escaped(_short(f'{lane.name}: {shown}', 300))}</title>")
        for name, share in bar.parts:
            colour = self.colours.get(name, FAINT)
            self.body.append(
                f'<rect x="{x:.1f}" y="{bar.top:g}" width="{lane.width * share:.1f}" height="{height:g}" '
                f'fill="{colour.fill}" stroke="{colour.line}"/>'
            )
            x += lane.width * share
        if len(bar.parts) == 1 and height >= SMALL + 4:
            words = fitting(bar.state, lane.width - 6, SMALL - 1)
            middle = lane.x + (lane.width - text_width(words, SMALL - 1)) / 2
            self.text(middle, bar.top + min(height / 2 + 4, 22), words, SMALL - 1, INK)
        self.body.append("</g>")

    def quiet(self, y: float, gap: float) -> str:
        """A break in the axis, where time is shortened."""
        x = self.axis_x
        text = f"{_seconds(gap)}"
        left = x - 6 - text_width(text, SMALL - 1)
        return (
            f'<g class="quiet"><title>nothing for {_seconds(gap)}: shortened</title>'
            f'<path d="M{x - 5:g} {y + 3:g}L{x + 5:g} {y - 3:g}V{y + 3:g}L{x - 5:g} {y + 9:g}Z" fill="{PAPER}"/>'
            f'<path d="M{x - 5:g} {y + 3:g}L{x + 5:g} {y - 3:g}M{x - 5:g} {y + 9:g}L{x + 5:g} {y + 3:g}" '
            f'stroke="{FAINT.line}" fill="none"/>'
            f'<text x="{left - 2:.1f}" y="{y + 7:g}" font-size="{SMALL - 1}" font-style="italic" fill="{FAINT.line}">'
            f"{escaped(text)}</text></g>"
        )

    def status_before(self, step: Transition) -> str:
        """The status of the state in which a machine was before its first step, as far as it is recorded."""
        known = self.statuses.get((step.machine == CLIENT, step.old))
        return known or (step.old if step.old in COLOURS else "")

    def rank(self, status: str) -> int:
        """Where a status stands among others in a bar, so that bars can be compared."""
        return list(self.colours).index(status) if status in self.colours else len(self.colours)

    def colour(self, status: str) -> Colour:
        return self.colours.get(status, FAINT)

    def text(
        self, x: float, y: float, words: str, size: int, colour: Colour, *, bold: bool = False, hint: str = ""
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        inner = (f"<title>{escaped(_short(hint, 300))}</title>" if hint else "") + escaped(words)
        self.body.append(f'<text x="{x:.1f}" y="{y:g}" font-size="{size}" fill="{colour.line}"{weight}>{inner}</text>')


def _seconds(time: float) -> str:
    """A time as it is written on an axis."""
    if time < 0.9995:
        return f"{time * 1000:.0f} ms" if time >= 0.0005 else "0 s"
    return f"{time:.2f} s" if time < 9.995 else f"{time:.1f} s" if time < 99.95 else f"{time:,.0f} s"


def _microseconds(time: float) -> int:
    return round(time * 1_000_000)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
