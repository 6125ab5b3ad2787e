"""How cost grows: the benchmark does its work, and what can be counted grows no worse than linearly."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import growth

from reconnect_fsm.testing import EmbeddedServer

ROOMS = (100, 3_000)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_the_slope(power: float) -> None:
    """A power law gives its exponent, whatever the factor; fewer than two points give none."""
    points = [(x, 3e-6 * x**power) for x in (10, 100, 5_000, 100_000)]
    assert growth.exponent(points) == pytest.approx(power)
    assert math.isnan(growth.exponent(points[:1]))


def test_a_quadratic_curve_is_called_worse_than_linear() -> None:
    """The verdict of a column, and of the page, tells it; one that is linear passes."""
    curve = growth.CURVES[0]
    sizes = (1, 10, 100, 1_000)
    for power, word in ((1, "n^1.00"), (2, "n^2.00, WORSE THAN LINEAR")):
        points = [{"size": n, **{column.name: 1e-9 * n**power for column in curve.columns}} for n in sizes]
        assert growth.verdict(curve.columns[0], points) == word
        said = growth.page({"machine": "none", "curves": {curve.name: points}})
        assert ("Not as it should be" in said) == (power == 2)


async def test_the_heartbeat_sees_what_blocks_and_subtracts_what_is_not_ours() -> None:
    """Work of 30 ms in one turn is seen; the same done elsewhere, or asleep, is not."""

    def work(seconds: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass

    heart, figures = growth.Heartbeat(), growth.Figures()
    async with heart.phase(figures, "ours"):
        work(0.03)
    async with heart.phase(figures, "theirs"):
        work(0.03)
        heart.elsewhere += 0.03
    async with heart.phase(figures, "nobody's"):
        time.sleep(0.03)  # noqa: ASYNC251 - the clock goes on, the thread's work does not
    assert figures["ours_blocked"] >= 0.03
    assert figures["ours"] >= 0.03
    for name in ("theirs", "nobody's"):
        assert figures[f"{name}_blocked"] < 0.03
    assert figures["nobody's_wall"] >= 0.03


async def test_joining_and_rejoining_cost_the_same_for_each_of_many_rooms() -> None:
    """REJOIN-2: of three thousand rooms one costs no more calls than of a hundred, joined, joined again and closed."""
    asyncio.get_running_loop().set_debug(False)
    each = {count: await calls_of(count) for count in ROOMS}
    for few, many in zip(each[ROOMS[0]], each[ROOMS[-1]], strict=True):
        assert many / ROOMS[-1] <= 1.5 * few / ROOMS[0]


async def calls_of(count: int) -> list[int]:
    """Python calls while so many rooms are joined, joined again, and closed. The server's are among them."""
    counted = []
    async with EmbeddedServer() as server:
        client, calls = growth.a_client(server.url), growth.Calls()

        async def join() -> None:
            for number in range(count):
                client.join(f"room {number}", growth.Nothing(calls))
                if number % 100 == 99:
                    await asyncio.sleep(0)
            await calls.all_joined()

        async def rejoin() -> None:
            server.reset_all()
            await calls.all_joined()

        async with client:
            await client.wait_connected()
            for step in (join, rejoin, client.close):
                calls.want(count)
                with counting() as total:
                    await step()
                counted.append(total[0])
    return counted


class counting:  # noqa: N801 - it reads as a statement
    """Counts the calls of Python functions within, those of other tasks too."""

    def __enter__(self) -> list[int]:
        self._total = [0]
        sys.setprofile(self._profile)
        return self._total

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, _frame: object, event: str, _arg: object) -> None:
        self._total[0] += event == "call"


@pytest.mark.parametrize("name", ["upload", "download"])
async def test_a_document_costs_no_more_a_byte_when_it_is_large(name: str) -> None:
    """Hundred times the size is at most three hundred times the work of ours."""
    small, large = [await growth.point(name, [str(size)]) for size in (100 * growth.KIB, 10 * growth.MIB)]
    assert large["ours"] <= 300 * small["ours"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run of the benchmark leaves behind."""
    out = tmp_path_factory.mktemp("growth")
    command = [sys.executable, growth.__file__, "--quick", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def test_a_quick_run_measures_every_point(quick: Path) -> None:
    """All columns of all curves, no point failed, and no figure is negative."""
    curves = json.loads((quick / "growth.json").read_text())["curves"]
    for curve in growth.CURVES:
        assert [point["size"] for point in curves[curve.name]] == list(curve.quick)
        for point in curves[curve.name]:
            assert all(point[column.name] >= 0 for column in curve.columns)


def test_a_quick_run_draws_and_writes_the_page(quick: Path) -> None:
    """One picture a curve, well-formed, for light and dark; the page shows each, and a table with a verdict."""
    page = (quick / "growth.md").read_text()
    for curve in growth.CURVES:
        picture = (quick / f"growth-{curve.name}.svg").read_text()
        assert len(ElementTree.fromstring(picture).findall(".//{*}polyline")) >= 4
        assert "prefers-color-scheme: dark" in picture
        assert f"](growth-{curve.name}.svg)" in page
        assert curve.title in page
    assert "n^" in page


def test_pacing_measures_what_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    """A window bounds the joins in flight; without one nearly all are; pings are answered meanwhile."""
    bounded = growth.run_point("pacing", 300, "stub", 0.02, 16)
    unbounded = growth.run_point("pacing", 300, "stub", 0.02, 0)
    assert bounded["most_in_flight"] <= 16
    assert unbounded["most_in_flight"] > 200
    assert bounded["seconds"] > 300 / 16 * 0.02 * 0.8
    assert bounded["ping"] > 0.019
