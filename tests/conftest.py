"""What holds for every test: nothing is left over, and in CI nothing that needs a real part is skipped."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings

import leaks
import virtual_time

REAL_PARTS = {"node": "node", "dot": "dot"}  # marker -> program


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


# A busy machine is no failure; and CI tries the same examples each time.
settings.register_profile(
    "project", deadline=None, derandomize=in_ci(), database=None if in_ci() else settings().database
)
settings.load_profile("project")


# ------------------------------------------------------------------------------------------------------ nothing is left


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_process() -> Iterator[leaks.Found]:
    """Fail the test if it leaves file descriptors or threads, or dropped something that should have been closed."""
    known = leaks.in_process()
    yield known
    gc.collect()  # what was dropped unclosed complains now, and not during a later test
    if left := leaks.left_over_without_loop(known):
        pytest.fail(leaks.describe(left), pytrace=False)


@pytest.fixture
async def _nothing_is_left_in_the_loop(_nothing_is_left_in_the_process: leaks.Found) -> AsyncIterator[None]:
    """The same, and tasks, timers and transports, while the loop of an async test can still be asked."""
    before = leaks.in_process() | leaks.in_loop()
    yield
    if left := await leaks.left_over(before):
        _nothing_is_left_in_the_process.update(leaks.in_process())  # once is enough
        pytest.fail(leaks.describe(left), pytrace=False)


@pytest.fixture(autouse=True)
def _surroundings(request: pytest.FixtureRequest, _nothing_is_left_in_the_process: leaks.Found) -> Iterator[None]:
    """Set up both checks before all that a test asks for, so that they are torn down after it.

    The order of leaving is: the fixtures of the test, the check of the loop, the loop, the check of the process.
    """
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_nothing_is_left_in_the_loop")
    virtual = request.node.get_closest_marker("virtual_time")
    with virtual_time.in_memory_connections() if virtual else nullcontext():
        yield


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the loop of an async test by its marker."""
    if item.get_closest_marker("virtual_time"):
        return {"virtual": virtual_time.VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


def pytest_collection_finish() -> None:
    """Spare the collection after each test all that was imported: 40 ms become 2."""
    gc.collect()
    gc.freeze()


# ----------------------------------------------------------------------------------------------------------- real parts


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose real part is not installed."""
    for marker, program in REAL_PARTS.items():
        if item.get_closest_marker(marker) and not shutil.which(program):
            pytest.skip(f"needs {program}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, a test that needs a real part and was skipped has failed, whoever skipped it."""
    report = yield
    needed = [marker for marker in REAL_PARTS if item.get_closest_marker(marker)]
    if in_ci() and needed and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report, f"skipped in CI, though it needs {', '.join(needed)}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI, no file of tests is skipped as a whole: it may hold tests that need a real part."""
    report = yield
    if in_ci() and report.skipped:
        _fail(report, "skipped in CI")
    return report


def _fail(report: Any, why: str) -> None:
    _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else (None, None, report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {why}: {reason}"
