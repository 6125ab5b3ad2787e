"""Directives of these pages: what is known in code or tests is shown from there, and so is never out of date."""

from __future__ import annotations

import argparse
import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent
CLAUSE = re.compile(r"(?<![A-Z0-9-])(?:D-[A-Z]+|(?:CONN|RETRY|LIVE|OFF|JOIN|REJOIN|CTRL|OBS|OK)-[0-9]+)(?![A-Z0-9])")
WIDTH = 88  # columns of a help text
SHOWN = 3  # tests of a clause that are named


@cache
def modules() -> dict[str, list[str]]:
    """The modules that answer each clause."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "reconnect_fsm").rglob("*.py")):
        for clause in dict.fromkeys(CLAUSE.findall(path.read_text(encoding="utf-8"))):
            found.setdefault(clause, []).append(path.relative_to(ROOT / "reconnect_fsm").as_posix())
    return found


@cache
def tests() -> dict[str, list[str]]:
    """The tests whose name or docstring carries each clause's id."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                said = node.name.upper().replace("_", "-") + " " + (ast.get_docstring(node) or "")
                for clause in dict.fromkeys(re.findall(CLAUSE.pattern.replace("A-Z0-9-", "A-Z"), said)):
                    found.setdefault(clause, []).append(f"{path.name}::{node.name}")
    return found


class Clauses(Directive):
    """A table of clauses: each line of the content is an id and what it asks for; code and tests are looked up."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = " ".join(line.strip() for line in self.content)
        said = re.split(r"(?:^| )(" + CLAUSE.pattern + r") {2,}", lines)[1:]
        rows = []
        for clause, words in zip(said[::2], said[1::2], strict=True):
            if not (code := modules().get(clause)) or not (named := tests().get(clause)):
                raise self.error(f"{clause} has no code or no test")
            more = len(named) - SHOWN
            rows.append(
                [
                    [nodes.strong(text=clause)],
                    self.inline(words),
                    list(listed([nodes.literal(text=each) for each in code])),
                    [*listed([nodes.literal(text=each) for each in named[:SHOWN]])]
                    + ([nodes.Text(f" and {more} more")] if more > 0 else []),
                ]
            )
        return [table(["clause", "what it asks for", "answered in", "tested by"], rows, "clauses")]

    def inline(self, words: str) -> list[nodes.Node]:
        parts = re.split(r"`([^`]+)`", words)
        return [nodes.literal(text=each) if odd % 2 else nodes.Text(each) for odd, each in enumerate(parts)]


def listed(items: list[nodes.Node]) -> Iterator[nodes.Node]:
    """One below the other."""
    for number, each in enumerate(items):
        if number:
            yield nodes.raw("", "<br>", format="html")
        yield each


def table(head: list[str], rows: list[list[list[nodes.Node]]], name: str) -> nodes.table:
    """A table of cells of inline nodes."""

    def row(cells: list[list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))

    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += nodes.thead("", row([[nodes.Text(each)] for each in head]))
    group += nodes.tbody("", *(row(each) for each in rows))
    return nodes.table("", group, classes=[name])


class CommandLine(SphinxDirective):
    """Every command of the command line: its help, as it is printed."""

    def run(self) -> list[nodes.Node]:
        from reconnect_fsm.cli import EXIT_CODES, make_parser

        os.environ["COLUMNS"] = str(WIDTH)
        found: list[nodes.Node] = []
        parser = make_parser()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    section = nodes.section("", nodes.title(text=name), ids=[name], names=[name])
                    section += nodes.literal_block(text=command.format_help(), language="text")
                    found.append(section)
        codes = nodes.section("", nodes.title(text="Exit codes"), ids=["exit-codes"], names=["exit-codes"])
        codes += nodes.literal_block(text=EXIT_CODES.partition("\n")[2].rstrip(), language="text")
        return [*found, codes]


class Instruments(Directive):
    """Everything that is measured: name, kind, unit, and what it is."""

    def run(self) -> list[nodes.Node]:
        from reconnect_fsm.telemetry.metrics import INSTRUMENTS

        rows: list[list[list[nodes.Node]]] = [
            [
                [nodes.literal(text=each.name)],
                [nodes.Text(each.kind.replace("_", " "))],
                [nodes.literal(text=each.unit)],
                [nodes.Text(each.description)],
            ]
            for each in INSTRUMENTS
        ]
        return [table(["name", "kind", "unit", "what it is"], rows, "instruments")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("clauses", Clauses)
    app.add_directive("command-line", CommandLine)
    app.add_directive("instruments", Instruments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
