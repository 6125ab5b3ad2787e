"""The README's programs run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_readme_program(number: int, tmp_path: Path) -> None:
    """Every Python block is a program of its own, and ends well, without a warning."""
    program = tmp_path / f"readme_{number}.py"
    program.write_text(PROGRAMS[number], encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr


def test_readme_first_program_shows_a_connection() -> None:
    """The ten lines on the first screen print what they promise."""
    ran = subprocess.run([sys.executable, "-c", PROGRAMS[0]], capture_output=True, text=True, timeout=60, check=True)
    assert "connecting → connected" in ran.stdout


def test_readme_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    links = re.findall(r"\]\(((?!https?://)[^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_quotes_the_table_as_it_is() -> None:
    """The excerpt of the client's table is what stands in the code."""
    (quoted,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    source = (ROOT / "reconnect_fsm" / "client_fsm.py").read_text(encoding="utf-8")
    assert textwrap.indent(quoted, "    ") in source
