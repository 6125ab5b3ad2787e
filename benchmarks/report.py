"""What was measured, as a table, a picture and a page; ``python benchmarks/report.py`` makes them from the JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from works import CLIENTS, HERE, ROWS, WORKS, Goal, Row

JSON, PICTURE, PAGE, TEMPLATE = "benchmarks.json", "benchmarks.svg", "benchmarks.md", "page.md"
OTHERS = ("websockets", "centrifuge", "socketio")


@dataclass(frozen=True)
class Met:
    """A goal, and how near our figure is to it."""

    goal: Goal
    ratio: float
    """Ours over the other's; over the goal's figure itself where it is no ratio."""
    spread: tuple[float, float]
    """The quartiles of the ratios of single rounds."""

    @property
    def is_met(self) -> bool:
        return self.ratio <= self.limit

    @property
    def limit(self) -> float:
        return 1.0 if self.goal.than is None else self.goal.limit


@dataclass(frozen=True)
class Line:
    """A row of the table with its figures."""

    row: Row
    title: str
    medians: Mapping[str, float]
    spreads: Mapping[str, float]
    """By client: half the distance between the quartiles, as a part of the median."""
    servers: Mapping[str, float]
    """By client: the share of the time that the server worked."""
    goals: Sequence[Met]
    cpu_ratio: float | None
    """Of a row measured by the clock: the first goal's ratio in processor time."""


def lines(result: Mapping[str, Any]) -> list[Line]:
    """The rows that were measured."""
    return [
        line(row, result["works"][row.work])
        for row in ROWS
        if "ours" in result["works"].get(row.work, {}).get("sections", {}).get(row.section, {})
    ]


def line(row: Row, work: Mapping[str, Any]) -> Line:
    """One row."""
    count, runs = work["count"], work["sections"][row.section]
    figures = {name: [run[row.figure] / (count if row.each else 1) for run in each] for name, each in runs.items()}
    goals = [met(goal, figures) for goal in row.goals if goal.than is None or goal.than in figures]
    than = row.goals[0].than
    cpu = {name: [run["cpu"] for run in each] for name, each in runs.items()}
    return Line(
        row,
        row.title.format(count=f"{count:,}"),
        {name: statistics.median(each) for name, each in figures.items()},
        {name: (upper - lower) / 2 / statistics.median(each)
         for name, each in figures.items() for lower, upper in [quartiles(each)]},
        {name: statistics.median(run["server"] for run in each) for name, each in runs.items() if "server" in each[0]},
        goals,
        met(row.goals[0], cpu).ratio if row.figure == "wall" and than in cpu else None,
    )  # fmt: skip


def met(goal: Goal, figures: Mapping[str, Sequence[float]]) -> Met:
    """Compare our figures with the goal."""
    others = [goal.limit] * len(figures["ours"]) if goal.than is None else figures[goal.than]
    ratio = statistics.median(figures["ours"]) / statistics.median(others)
    return Met(goal, ratio, quartiles([mine / other for mine, other in zip(figures["ours"], others, strict=True)]))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile; of few values the minimum and the maximum."""
    if len(values) < 4:
        return min(values), max(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


# ------------------------------------------------------------------------------------------------------------ the table

HEAD = ("work", "ours", "official JS", "floor", "others", "ratio (quartiles)", "by CPU", "goal", "met", "server")


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Its rows, the head apart."""
    return [cells(each) for each in lines(result)]


def cells(line: Line) -> tuple[str, ...]:
    """A row of the table."""

    def shown(name: str) -> str:
        return f"{line.row.show(line.medians[name])} ±{line.spreads[name]:.0%}" if name in line.medians else "–"

    others = [f"{CLIENTS[name].title} {shown(name)}" for name in OTHERS if name in line.medians]
    relative = [met for met in line.goals if met.goal.than is not None]
    ratios = [f"{met.ratio:.2f} ({met.spread[0]:.2f}–{met.spread[1]:.2f})" for met in relative]
    goals = [
        f"≤ {line.row.show(met.goal.limit)}"
        if met.goal.than is None
        else f"≤ {met.goal.limit:.3g} × {noun(met.goal.than)}"
        for met in line.goals
    ]
    return (
        line.title,
        shown("ours"),
        shown("official"),
        shown("floor"),
        ", ".join(others) or "–",
        ", ".join(ratios) or "–",
        "–" if line.cpu_ratio is None else f"{line.cpu_ratio:.2f}",
        ", ".join(goals) or "–",
        ", ".join("yes" if met.is_met else "NO" for met in line.goals) or "–",
        f"{line.servers['ours']:.0%}" if "ours" in line.servers else "–",
    )


def noun(client: str) -> str:
    return {"official": "JS", "floor": "floor"}.get(client, CLIENTS[client].title)


def as_text(rows: Sequence[tuple[str, ...]]) -> str:
    """For a terminal."""
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (HEAD, *rows))


def as_markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """For a page."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ("---",) * len(HEAD), *rows))


# ---------------------------------------------------------------------------------------------------------- the picture

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .small { font-size: 11px; fill: #59636e }
  .ours { fill: #2f7d4f } .missed { fill: #c4432b } .other { stroke: #59636e; stroke-width: 1.5 }
  .goal { stroke: #1f2328; stroke-width: 2.5 } .track { fill: #8b949e; fill-opacity: .16 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #46a76c } .missed { fill: #e5694f }
    .other { stroke: #9198a1 } .goal { stroke: #e6edf3 }
  }
"""
LEFT, WIDTH, RIGHT, HEIGHT, MAX_RATIO = 400, 400, 170, 30, 2.0


def picture(result: Mapping[str, Any]) -> str:
    """An SVG, light or dark as the reader has it: a bar for each goal that is a ratio; the other is at 1."""
    bars = [(each, met) for each in lines(result) for met in each.goals if met.goal.than is not None]
    height = HEIGHT * len(bars) + 60

    def x(ratio: float) -> float:
        return LEFT + WIDTH * min(ratio, MAX_RATIO) / MAX_RATIO

    parts = []
    for number, (each, met) in enumerate(bars):
        y = 40 + number * HEIGHT
        parts.append(
            f'<text x="{LEFT - 12}" y="{y + 15}" text-anchor="end">{escape(each.title.replace("`", ""))}</text>'
            f'<rect class="track" x="{LEFT}" y="{y}" width="{WIDTH}" height="20"/>'
            f'<rect class="{"ours" if met.is_met else "missed"}" x="{LEFT}" y="{y + 3}" '
            f'width="{x(met.ratio) - LEFT:.1f}" height="14"/>'
            f'<line class="goal" x1="{x(met.goal.limit):.1f}" x2="{x(met.goal.limit):.1f}" y1="{y - 1}" y2="{y + 21}"/>'
            f'<text class="small" x="{LEFT + WIDTH + 10}" y="{y + 14}">'
            f"{met.ratio:.2f} × {escape(noun(met.goal.than or ''))}</text>"
        )
    end = 40 + len(bars) * HEIGHT
    legend = (
        "bar: reconnect_fsm, the shorter the better · thick line: the goal · thin line: the one it is compared with"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" role="img">\n'
        f"<title>reconnect_fsm beside other clients</title><style>{STYLE}</style>\n"
        f'<text class="small" x="12" y="20">{legend}</text>\n'
        + "\n".join(parts)
        + f'\n<line class="other" x1="{x(1.0)}" x2="{x(1.0)}" y1="34" y2="{end}"/>\n</svg>\n'
    )


# ------------------------------------------------------------------------------------------------------------- the page


def page(result: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    machine = dict(result["machine"])
    system, cores = machine.pop("system"), machine.pop("cores")
    missed = [each.title for each in lines(result) if not all(met.is_met for met in each.goals)]
    skipped = "".join(f" {CLIENTS[name].title} could not be measured." for name in result["skipped"])
    return (
        (HERE / TEMPLATE)
        .read_text()
        .format(
            machine=f"{cores} cores, {system}, Python {machine['Python']}",
            verdict=(f"**Missed: {'; '.join(missed)}.**" if missed else "**Every goal is met.**") + skipped,
            table=as_markdown(table(result)),
            rounds=result["rounds"],
            idle=idle(result),
            versions=", ".join(f"{name} {number}" for name, number in machine.items()),
            works=", ".join(WORKS),
        )
    )


def idle(result: Mapping[str, Any]) -> str:
    """How the row of idle connections was scaled, if it was."""
    wanted, count = WORKS["idle"].count, result["works"].get("idle", {}).get("count", WORKS["idle"].count)
    if count == wanted:
        return f"All {wanted:,} are open at once, and ping every {wanted / 500:.0f} s."
    return (
        f"There were descriptors for {count:,} of {wanted:,}; they ping every {count / 500:.1f} s, not every "
        f"{wanted / 500:.0f} s, so that there are as many pings a second."
    )


def write(result: Mapping[str, Any], out: Path, docs: Path | None) -> None:
    """Keep the figures and the picture, print the table, and make the page if it is wanted."""
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON).write_text(json.dumps(result, indent=1) + "\n")
    (out / PICTURE).write_text(picture(result))
    if docs is not None:
        (docs / PICTURE).write_text(picture(result))
        (docs / PAGE).write_text(page(result))
    print(as_text(table(result)))


if __name__ == "__main__":
    build = HERE.parent / "build"
    write(json.loads((build / JSON).read_text()), build, HERE.parent / "docs")
