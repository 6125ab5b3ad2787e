"""docs/testing.md: every block of code is run as it stands, and what is quoted there is what comes out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kit import PATIENCE
from reconnect_fsm import testing
from reconnect_fsm.testing import server

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
FILES = {name[1]: text for text in PYTHON if (name := re.match(r"# (\w+\.py)\n", text))}
PROGRAMS = [text for text in PYTHON if text not in FILES.values()]
TESTS = [name for name in FILES if name.startswith("test_")]
COMMANDS = [line.partition("#")[0] for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
CONFIGURATION = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with all the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize("name", TESTS)
def test_each_file_of_tests_passes(project: Path, name: str) -> None:
    """In a project of its own, where every warning is an error."""
    ran = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", name)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_each_program_ends_well(project: Path, number: int) -> None:
    """Without a warning."""
    ran = run(project, "-W", "error", "-c", PROGRAMS[number])
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("python ")])
def test_each_command_ends_well(project: Path, command: str) -> None:
    """Those that install something aside."""
    ran = run(project, *shlex.split(command)[1:])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_page_has_what_is_counted_on() -> None:
    """A pattern that matches nothing would test nothing."""
    assert len(TESTS) >= 8
    assert len(PROGRAMS) >= 1
    assert {"conftest.py", "my_machines.py", "server.py"} < set(FILES)
    assert {each.split()[0] for each in COMMANDS} == {"pip", "python"}


def test_the_quoted_faults_are_what_comes_out(project: Path) -> None:
    """Of the machine with the forgotten timer."""
    (quoted,) = [text for kind, text in BLOCKS if kind == "text"]
    program = FILES["test_my_machines.py"].replace(
        "    with pytest.raises(MachineFault) as found:\n    ", "    if True:\n    "
    )
    ran = run(project, "-c", f"{program}\ntest_a_forgotten_timer_is_found()\n")
    assert quoted.partition("\n")[2] in ran.stderr


def test_every_misbehaviour_is_in_the_table() -> None:
    """And so is every public name of the package that a user begins with."""
    missing = [name for name in server.__all__ if f"`{name}(" not in PAGE and f"{name}(" not in PAGE]
    assert missing == ["Entry", "Misbehaviour", "Played"]
    for name in (
        "check_machine",
        "ScriptedServer",
        "ChaosProxy",
        "simulate",
        "many_schedules",
        "leaks",
        "MachineFault",
    ):
        assert name in testing.__all__
        assert name in PAGE
