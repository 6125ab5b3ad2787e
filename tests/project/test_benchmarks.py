"""The benchmarks work: every client does all of its works and reports figures. How good they are is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from node_peers import requires_node, skip_without_node

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE = 100.0
PYTHON = ("ours", "floor", "websockets", "centrifuge", "socketio")


@pytest.fixture(scope="module")
def importable() -> Iterator[None]:
    """The benchmarks are scripts: for as long as this lasts their modules can be imported."""
    before = sys.path.copy()
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before


@pytest.fixture
def works(importable: None) -> Any:
    """The module that says what is measured."""
    import works

    return works


@pytest.fixture
def report(importable: None) -> Any:
    """The module that makes the table."""
    import report

    return report


@pytest.mark.slow
@pytest.mark.parametrize("client", [*PYTHON, pytest.param("official", marks=requires_node)])
def test_a_client_does_its_works(works: Any, tmp_path: Path, client: str) -> None:
    """Run as a user would, in the smaller version: every section of every work of a client's reports its figures."""
    if client == "official":
        skip_without_node()
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--clients", client], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "benchmarks.json").read_text())
    assert not result["skipped"]
    for row in works.ROWS:
        work, sections = works.WORKS[row.work], result["works"][row.work]["sections"]
        assert result["works"][row.work]["count"] == work.quick
        if client not in work.clients:
            assert client not in sections.get(row.section, {})
            continue
        (run,) = sections[row.section][client]
        assert min(run["wall"], run["cpu"]) > 0
        assert row.figure in run
        assert run.get("server", 0.0) >= 0
        if row.figure == "max":
            assert 0 < run["min"] <= run["max"]


def made(works: Any, ours: list[float], floor: list[float]) -> Any:
    """What the runner would have measured, of one work."""
    runs = {
        name: [{"wall": value, "cpu": value, "server": 0.25} for value in values]
        for name, values in (("ours", ours), ("floor", floor))
    }
    machine = {"system": "Any", "cores": "2", "Python": "3"}
    measured = {"decode": {"count": 10, "sections": {"decode": runs}}}
    return {"quick": False, "rounds": 5, "machine": machine, "skipped": {}, "works": measured}


def test_the_ratio_is_that_of_the_medians(works: Any, report: Any) -> None:
    """One bad round changes nothing; the quartiles are those of the rounds' own ratios."""
    (line,) = report.lines(made(works, [30.0, 30.0, 30.0, 30.0, 900.0], [20.0, 20.0, 20.0, 20.0, 20.0]))
    (met,) = line.goals
    assert met.ratio == 1.5
    assert met.spread == (1.5, 1.5)
    assert line.medians == {"ours": 3.0, "floor": 2.0}  # a message
    assert line.servers["ours"] == 0.25


@pytest.mark.parametrize(("ours", "is_met"), [(30.0, True), (30.1, False)])
def test_a_goal_is_met_or_missed(works: Any, report: Any, ours: float, is_met: bool) -> None:
    """The goal itself is still good enough; what misses it is said on the page and in the picture."""
    result = made(works, [ours], [20.0])
    assert report.lines(result)[0].goals[0].is_met is is_met
    page, picture = report.page(result), report.picture(result)
    assert ("Every goal is met" in page) is is_met
    classes = [each.get("class") for each in ElementTree.fromstring(picture).iter()]
    assert ("missed" in classes, "ours" in classes) == (not is_met, is_met)
    assert f"| {'yes' if is_met else 'NO'} |" in page


def test_a_goal_without_the_other_is_left_out(works: Any, report: Any) -> None:
    """Where a client could not be measured there is no ratio, and no claim."""
    result = made(works, [30.0], [20.0])
    del result["works"]["decode"]["sections"]["decode"]["floor"]
    assert report.lines(result)[0].goals == []
    assert report.cells(report.lines(result)[0])[5:9] == ("–", "–", "–", "–")  # ratio, by CPU, goal, met


def test_the_page_says_which_client_is_missing(works: Any, report: Any) -> None:
    """Who could not be measured is named."""
    result = made(works, [1.0], [1.0]) | {"skipped": {"official": "no node"}}
    assert "official JS client could not be measured" in report.page(result)


def test_every_row_has_its_work(works: Any) -> None:
    """Rows, goals, works and clients name each other correctly."""
    for row in works.ROWS:
        work = works.WORKS[row.work]
        assert "ours" in work.clients
        assert all(goal.than is None or goal.than in work.clients for goal in row.goals)
    assert set(works.CLIENTS) == {*PYTHON, "official"}
    assert all(client in works.CLIENTS for work in works.WORKS.values() for client in work.clients)
    assert all((works.CLIENTS_DIR / client.script).is_file() for client in works.CLIENTS.values())


def test_the_page_is_of_a_whole_run() -> None:
    """docs/benchmarks.md is made by `make bench`: it has every row, and no path of the machine that made it."""
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
    assert page.count("\n| ") >= 13
    assert str(Path.home()) not in page
