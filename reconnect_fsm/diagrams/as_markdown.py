"""A machine as a Markdown matrix: what every event does in every state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconnect_fsm.diagrams.plan import ADDED, Changes, Machine, rules_of, status_of
from reconnect_fsm.machine import Rule

__all__ = ["matrix"]


def matrix(cls: Machine) -> str:
    """What every event does in every state, as Markdown: one row an event, one column a state, each cell in order.

    Below it: why some events change nothing, what a subclass adds or overrides, and what the states, events and guards
    mean. The same on every run.
    """
    states, changes = cls.states, Changes(cls)
    reasons: dict[str, int] = {}
    rows = [
        [
            _marked(changes.of_event(event), f"**{event}**"),
            *("<br>".join(_matrix_lines(rules_of(cls, event, source), changes, reasons)) for source in states),
        ]
        for event in cls.events
    ]
    parts = [
        f"# {cls.__name__}",
        f"It begins in **{cls.initial.name}**. In each cell, the first line whose guards pass wins. A dash means that "
        "the event changes nothing, for the reason given below.",
        _markdown_table(["event", *(_marked(changes.of_state(name), name) for name in states)], rows),
        "\n".join(f"{number}. {_one_line(reason)}" for reason, number in reasons.items()),
        *_changes(changes),
        "## States",
        _markdown_table(
            ["state", "status", "what is alive in it", "on entering", "on leaving"],
            [
                [
                    _marked(changes.of_state(name), f"**{name}**"),
                    status_of(each),
                    each.doc,
                    _code(each.enter, changes),
                    _code(each.exit, changes),
                ]
                for name, each in states.items()
            ],
        ),
        "## Events",
        _markdown_table(["event", "what happened"], [[f"**{name}**", _doc(each)] for name, each in cls.events.items()]),
    ]
    if guards := list(dict.fromkeys(guard for rule in cls.rules for guard in rule.guards)):
        table = [[_marked(changes.of_method(name), f"`{name}`"), _doc(getattr(cls, name))] for name in guards]
        parts += ["## Guards", _markdown_table(["guard", "passes if"], table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _changes(changes: Changes) -> list[str]:
    """What a subclass makes different, in a list."""
    if not changes.by:
        return []
    found = [f"- {heading}: {', '.join(names)}" for heading, names in changes.in_words().items()]
    marks = f"What is marked + was added to `{changes.origin.__name__}`, what is marked ≠ was overridden."
    nothing = f"Nothing in the tables differs from `{changes.origin.__name__}`."
    parts = [f"## What {', '.join(changes.by)} changed"]
    return [*parts, marks, "\n".join(found)] if found else [*parts, nothing]


def _marked(mark: str, text: str) -> str:
    return f"{mark} {text}".lstrip()


def _matrix_lines(rules: Sequence[Rule], changes: Changes, reasons: dict[str, int]) -> list[str]:
    """What an event does in one state, a line for each rule."""
    lines: list[str] = []
    for number, rule in enumerate(rules):
        condition = " and ".join(_marked(changes.of_method(each), f"`{each}`") for each in rule.when)
        condition = condition or ("otherwise" if number else "")
        if rule.is_ignored:
            what = f"—<sup>{reasons.setdefault(rule.because, len(reasons) + 1)}</sup>"
        else:
            what = "stays" if rule.target is None else f"→ **{rule.target}**"
        what += f" / {_code(rule.do, changes)}" if rule.do else ""
        clause = f"<sub>{rule.clause}</sub>" if rule.clause else ""
        line = " ".join(filter(None, [condition, what, clause]))
        lines.append(_marked(ADDED if changes.is_added(rule) else "", line))
    return lines


def _code(names: Iterable[str], changes: Changes) -> str:
    return ", ".join(_marked(changes.of_method(name), f"`{name}`") for name in names)


def _doc(what: object) -> str:
    """The first line of a docstring."""
    return (what.__doc__ or "").strip().partition("\n")[0]


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_one_line(cell) for cell in line)} |" for line in lines)
