"""Fixtures and a marker for tests of programs that stay connected. Turn it on in the ``conftest.py`` at the root::

    pytest_plugins = ["reconnect_fsm.testing.pytest_plugin"]

- The fixture ``no_leaks`` fails a test that leaves a task, timer, transport, file descriptor or thread behind. For all
  tests of a file: ``pytestmark = pytest.mark.usefixtures("no_leaks")``, or an autouse fixture that asks for it.
- The marker ``virtual_time`` runs an async test on a loop whose clock jumps and whose sockets are in memory: an hour of
  retries takes a moment (see `reconnect_fsm.testing.virtual_time`). It needs pytest-asyncio 1.4 or newer.

Both work in pytest-asyncio's strict mode, where async tests are marked ``asyncio``, and in its auto mode.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from typing import TypeAlias

import pytest

from reconnect_fsm.testing import leaks, needs

with needs("the pytest plugin"):
    import async_solipsism  # pyright: ignore[reportMissingTypeStubs]
    import pytest_asyncio

    from reconnect_fsm.testing import virtual_time

__all__ = ["no_leaks"]

LoopFactories: TypeAlias = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]

_MARKER = "virtual_time: runs on a loop whose clock jumps and whose sockets are in memory (reconnect_fsm.testing)"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)
    # Sockets in memory know few socket options, and their clock counts whole microseconds: nothing to fail a test for.
    ignored = async_solipsism.SolipsismWarning
    config.addinivalue_line("filterwarnings", f"ignore::{ignored.__module__}.{ignored.__qualname__}")


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest, _no_leaks_in_process: leaks.Found) -> None:
    """Fail the test if it leaves something behind, or dropped unclosed what should have been closed.

    Both checks are set up before what the test itself asks for, so that they are torn down after it. The order of
    leaving is: the fixtures of the test, the check of the loop, the loop, the check of the process.
    """
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_no_leaks_in_loop")


@pytest.fixture
def _no_leaks_in_process() -> Iterator[leaks.Found]:
    known = leaks.in_process()
    yield known
    gc.collect()  # what was dropped unclosed warns now, and not during a later test
    if left := leaks.left_over_without_loop(known):
        pytest.fail(leaks.describe(left), pytrace=False)


@pytest_asyncio.fixture
async def _no_leaks_in_loop(_no_leaks_in_process: leaks.Found) -> AsyncIterator[None]:
    before = leaks.in_process() | leaks.in_loop()
    yield
    if left := await leaks.left_over(before):
        _no_leaks_in_process.update(leaks.in_process())  # once is enough
        pytest.fail(leaks.describe(left), pytrace=False)


@pytest.fixture(autouse=True)
def _in_memory_connections(request: pytest.FixtureRequest) -> Iterator[None]:
    virtual = request.node.get_closest_marker("virtual_time")
    with virtual_time.in_memory_connections() if virtual else nullcontext():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Generator[None, LoopFactories | None, LoopFactories]:
    """Choose the loop of a marked test; other tests keep theirs."""
    others = yield
    if item.get_closest_marker("virtual_time"):
        return {"virtual": virtual_time.VirtualTimeLoop}
    return others or {"real": asyncio.new_event_loop}
