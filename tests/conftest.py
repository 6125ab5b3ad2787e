"""What holds for every test: chance repeats, nothing is left over, and what needs a real part runs in CI."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from figures import Figures
from reconnect_fsm import retry

pytest_plugins = ["reconnect_fsm.testing.pytest_plugin", "shuffle", "manual_server"]

REAL_PARTS = {"node": "node", "dot": "dot", "browser": "chromium"}  # marker -> program


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


# A busy machine is no failure; and CI tries the same examples each time.
settings.register_profile(
    "project", deadline=None, derandomize=in_ci(), database=None if in_ci() else settings().database
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _nothing_is_left(no_leaks: None) -> None:
    """Every test, always."""


@pytest.fixture(autouse=True)
def _chance_repeats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws whenever this test runs: those of policies without a source of their own, and Python's own.

    The instance of the system's source that policies share becomes a seeded one, in place: policies that were made
    before, while a file was imported, draw from it too.
    """
    name = request.node.nodeid
    random.seed(name)
    seeded = random.Random(name)
    for method in ("random", "getrandbits", "randbytes"):  # of which all others are made
        monkeypatch.setattr(retry.SYSTEM, method, getattr(seeded, method), raising=True)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Where a proof leaves what it counted; its file's docstring begins with the heading on the page of figures."""
    heading, _, _ = (request.module.__doc__ or request.module.__name__).partition("\n")
    return Figures(heading.rstrip("."))


def pytest_configure() -> None:
    """A shell's ``&`` has Ctrl-C ignored, which programs that the tests start, and interrupt, would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that may take longest begin first, so that one worker does not end long after the others."""

    def allowed(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker is not None and marker.args else 0.0

    items.sort(key=allowed, reverse=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol() -> None:
    """Spare the collection after each test all that stays: what was imported, made once or cached; 350 ms become 2.

    Not before the last test is quite over: only then has pytest let go of its fixtures, whose garbage may complain too.
    What a fixture of a whole module keeps is frozen while it lives, and complains no more if it becomes garbage later.
    """
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
