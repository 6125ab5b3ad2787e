"""The README's programs run as they stand."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reconnect_fsm

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


def test_readme_first_program_prints_the_transcript() -> None:
    """The program on the first screen survives an outage, and prints what stands below it, line by line."""
    ran = subprocess.run([sys.executable, "-c", PROGRAMS[0]], capture_output=True, text=True, timeout=60, check=True)
    (transcript,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert ran.stdout == transcript


def test_readme_is_short() -> None:
    """A page that is read to its end."""
    assert len(README.splitlines()) <= 120


def test_readme_links_lead_somewhere() -> None:
    """Every relative link and picture is a file of the project."""
    links = re.findall(r"\]\(((?!https?://)[^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_links_of_an_index_page_lead_to_the_repository() -> None:
    """What the package shows as its description has no relative link left; the substitutions are hatch's own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    shown = README
    for each in hook["substitutions"]:
        shown = re.sub(each["pattern"], each["replacement"], shown)
    links = re.findall(r"\]\(([^)]+)\)", shown) + re.findall(r'src="([^"]+)"', shown)
    source = project["project"]["urls"]["Source"].removeprefix("https://github.com")
    assert all(link.startswith("https://") and source in link for link in links)


def test_there_is_one_version() -> None:
    """It stands in the package; the build reads it there."""
    assert reconnect_fsm.__version__ == importlib.metadata.version("reconnect-fsm")
    assert reconnect_fsm.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
