"""The package `reconnect_fsm.testing` itself: what it exports, and what it says where something is not installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from kit import PATIENCE
from reconnect_fsm import testing


def run_without(missing: str, program: str) -> subprocess.CompletedProcess[str]:
    """A program, in a Python that does not have these packages."""
    hide = f"import sys\nfor each in {missing.split()!r}: sys.modules[each] = None\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", hide + program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_is_there(name: str) -> None:
    """However it is imported."""
    found: Any = getattr(testing, name)
    assert found is not None
    assert name in dir(testing)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'check_machines'"):
        testing.check_machines  # noqa: B018


def test_what_needs_nothing_works_without_anything_else() -> None:
    """Machines, the server, the proxy and the leak check."""
    ran = run_without(
        "pytest pytest_asyncio async_solipsism loro hypothesis",
        "from reconnect_fsm import ClientFSM\n"
        "from reconnect_fsm.testing import ChaosProxy, ScriptedServer, Stall, check_machine, leaks\n"
        "check_machine(ClientFSM)\n"
        "print(ScriptedServer([Stall(at=3)]).script, ChaosProxy('ws://localhost:1/').port, leaks.in_process() != {})",
    )
    assert ran.stderr == ""
    assert ran.stdout == "[(Stall(at=3),)] 0 True\n"


@pytest.mark.parametrize(
    ("missing", "name", "package", "extra"),
    [
        ("async_solipsism", "virtual_time", "async_solipsism", "testing"),
        ("pytest", "run_in_virtual_time", "pytest", "testing"),
        ("async_solipsism", "ShuffledLoop", "async_solipsism", "testing"),
        ("loro", "simulate", "loro", "testing,loro"),
        ("async_solipsism", "simulate", "async_solipsism", "testing,loro"),
    ],
)
def test_what_is_missing_is_said(missing: str, name: str, package: str, extra: str) -> None:
    """With the command that installs it."""
    ran = run_without(missing, f"from reconnect_fsm.testing import {name}")
    wanted = f"ModuleNotFoundError: {name} needs the package {package}: pip install 'reconnect-fsm[{extra}]'"
    assert ran.stderr.splitlines()[-1] == wanted


def test_the_plugin_says_so_too() -> None:
    """It is what a user meets first."""
    ran = run_without("async_solipsism", "import reconnect_fsm.testing.pytest_plugin")
    assert "the pytest plugin needs the package async_solipsism: pip install 'reconnect-fsm[testing]'" in ran.stderr


def test_what_is_missing_of_others_is_not_ours_to_explain() -> None:
    """A user's own typing error stays what it is."""
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"), testing.needs("this"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
