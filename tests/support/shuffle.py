"""``--shuffle=SEED``: the tests in random order. Those that lean on one another, or on what another left, show it."""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--shuffle", metavar="SEED", help="run the tests in random order; the same seed, the same order")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which order it is, so that it can be had again."""
    seed = config.getoption("--shuffle")
    return None if seed is None else f"in random order: --shuffle={seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle them, whatever order they were found or sorted in; workers of pytest-xdist arrive at the same one."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        items.sort(key=lambda item: item.nodeid)
        random.Random(seed).shuffle(items)
