"""The page on the architecture names what there is: modules, functions, and the table as it is."""

from __future__ import annotations

import importlib
import re
import textwrap
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "reconnect_fsm"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
STEPS = re.findall(r"`([\w/]+\.py): ([\w.]+)`", PAGE)
JOURNEYS = ("A lost socket", "An update's bytes", "A join")


@pytest.mark.parametrize(("file", "name"), sorted(set(STEPS)))
def test_each_step_of_a_journey_is_a_function_that_there_is(file: str, name: str) -> None:
    module = importlib.import_module("reconnect_fsm." + file.removesuffix(".py").replace("/", "."))
    assert reduce(getattr, name.split("."), module) is not None


@pytest.mark.parametrize("journey", JOURNEYS)
def test_each_journey_has_steps(journey: str) -> None:
    section = PAGE.split(f"### {journey}")[1].split("###")[0]
    assert len(re.findall(r"^\d+\. ", section, re.MULTILINE)) == len(re.findall(r"`[\w/]+\.py: [\w.]+`", section)) > 4


def test_every_module_has_a_line() -> None:
    """Of those at the top level, and of those that know the loop."""
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", PAGE)) | set(re.findall(r"`_asyncio/(\w+)(?:\.py|/)?`", PAGE))
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    loop = {path.stem for path in (PACKAGE / "_asyncio").glob("*.py")}
    assert {each for each in top | loop if not each.startswith("__")} - named <= {"_steps"}


def test_the_quoted_table_is_the_code() -> None:
    """In the explanation of the machines."""
    page = (ROOT / "docs" / "explanation" / "machines.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"^```text\n(@event.*?)^```$", page, re.MULTILINE | re.DOTALL)
    source = (PACKAGE / "client_fsm.py").read_text(encoding="utf-8")
    assert textwrap.indent(quoted, "    ") in source
