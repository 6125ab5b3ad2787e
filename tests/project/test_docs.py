"""The documentation: it builds without a warning, its code runs, its links lead somewhere, its pages fit any screen."""

from __future__ import annotations

import importlib
import inspect
import os
import posixpath
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trustme
from sphinx.util.inventory import InventoryFile

import reconnect_fsm.retry
from chromium import WIDTHS, looking_at
from reconnect_fsm import Client, Connection, Keepalive, RetryPolicy, Room
from reconnect_fsm.cli import make_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.timeout(600)  # to build the pages takes ten seconds of a processor: minutes, if it is shared
PATIENCE = 500.0  # seconds; never waited for in full unless something is broken
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md"))
    if path.name != "testing.md"  # test_testing_docs.py runs that one
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: BLOCK.findall(text) for name, text in PAGES.items()}
PYTHON = {name: [text for kind, text in blocks if kind == "python"] for name, blocks in BLOCKS.items()}
COMMANDS = [
    line.partition("  #")[0].strip()
    for blocks in BLOCKS.values()
    for kind, text in blocks
    if kind == "sh"
    for line in text.splitlines()
]
MACHINES = """
from reconnect_fsm import ClientFSM, RoomFSM


class MyFSM(ClientFSM):
    pass


class MyRoomFSM(RoomFSM):
    pass
"""


# ---------------------------------------------------------------------------------------------------------------- code


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's directory, with what the pages take for granted."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "machines.py").write_text(MACHINES)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("page", [name for name, programs in PYTHON.items() if programs])
def test_every_block_of_code_runs(project: Path, page: str) -> None:
    """As a program, without a warning; with pytest, if it is a file of tests; as the file that it says it is."""
    for kind, program in BLOCKS[page]:
        if kind not in ("python", "ini"):
            continue
        name = named[1] if (named := re.match(r"# (\w+\.\w+)\n", program)) else "program.py"
        (project / name).write_text(program, encoding="utf-8")
        if kind == "ini" or name == "conftest.py":
            continue
        if name.startswith("test_"):
            ran = run(project, "-W", "error", "-m", "pytest", "-q", name)
        else:
            ran = run(project, "-W", "error", name)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert not ran.stderr


def test_the_tutorial_shows_what_is_printed(project: Path) -> None:
    """The first program of all."""
    blocks = BLOCKS["tutorials/first-steps.md"]
    at = next(number for number, (kind, _) in enumerate(blocks) if kind == "python")
    shown = next(text for kind, text in blocks[at:] if kind == "text")
    (project / "hello.py").write_text(blocks[at][1], encoding="utf-8")
    assert run(project, "hello.py").stdout == shown


OURS = [each for each in COMMANDS if each.startswith("reconnect-fsm ")]


@pytest.mark.parametrize("command", OURS)
def test_every_command_is_one(command: str) -> None:
    """With these options; where it is redirected to is the shell's business."""
    words = shlex.split(command.partition(" > ")[0])
    if words[1:] != ["--version"]:
        assert callable(make_parser().parse_args(words[1:]).run)


def test_the_policys_commands_do_what_they_say(project: Path) -> None:
    """Check, draw: the example is a machine without a fault."""
    commands = [each for each in OURS if "custom_policy:" in each]
    assert len(commands) == 2
    for command in commands:
        ran = run(project, "-m", "reconnect_fsm", *shlex.split(command.partition(" > ")[0])[1:])
        assert ran.returncode == 0, ran.stderr


SETTINGS = PAGES["reference/configuration.md"]
TABLES: dict[str, Callable[..., Any]] = {
    "`Client` and": Client,
    "`Client.join`": Client.join,
    "`RetryPolicy`": RetryPolicy,
    "`Keepalive`": Keepalive,
}


@pytest.mark.parametrize("heading", TABLES)
def test_every_setting_is_in_the_table(heading: str) -> None:
    """Each parameter, in its order, with its default."""
    section = SETTINGS.split(f"## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`|–) \|", section, re.MULTILINE)
    parameters = inspect.signature(TABLES[heading]).parameters.values()
    taken = [each for each in parameters if each.name != "self" and each.kind is not each.VAR_KEYWORD]
    names = {**vars(reconnect_fsm), **vars(reconnect_fsm.retry)}
    told = [(name, eval(default, names) if default else inspect.Parameter.empty) for name, default in rows]
    assert told == [(each.name, each.default) for each in taken]


def test_every_extra_that_is_named_is_there() -> None:
    """``pip install '…[these]'`` installs what it says."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in (*PAGES.values(), (ROOT / "README.md").read_text()):
        for named in re.findall(r"(?:reconnect-fsm|checkout|\.whl|'\.)\[([\w,]+)\]", text):
            assert set(named.split(",")) <= extras.keys()


def test_every_example_has_a_page() -> None:
    """And each that is included is there."""
    included = set(re.findall(r"examples/([\w./-]+\.\w+)", "".join(PAGES.values())))
    assert {path.name for path in (ROOT / "examples").glob("*.py")} <= included
    assert all((ROOT / "examples" / name).exists() for name in included)


def test_patterns_find_what_they_are_to_find() -> None:
    """One that matches nothing would test nothing."""
    assert sum(map(len, PYTHON.values())) >= 12
    assert len(OURS) >= 12


# ---------------------------------------------------------------------------------------------------------------- pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with warnings as errors."""
    built = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(built)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return built


class Seen(HTMLParser):
    """What a page leads to, loads, and can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.ids.add(told.get("id", ""))
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        if tag in ("img", "script", "iframe", "source"):
            self.loads.append(told.get("src", told.get("srcset", "")))
        if tag == "link" and told.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(told["href"])


def test_every_link_leads_somewhere(site: Path) -> None:
    """To a page that was built, and to a place that is on it; nothing is loaded from elsewhere."""
    pages = {path: Seen(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    dead = []
    for path, seen in pages.items():
        for link in (*seen.links, *filter(None, seen.loads)):
            target = urlsplit(link)
            if target.scheme in ("http", "https", "data"):
                assert link in seen.links or target.scheme == "data", f"{path.name} loads {link}"
                continue
            to = (path.parent / unquote(target.path)).resolve() if target.path else path
            if not to.is_file() or (target.fragment and to in pages and target.fragment not in pages[to].ids):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


def documented(site: Path) -> set[str]:
    """The full name of everything of Python's that has a place in the reference."""
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    return {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}


PUBLIC = ["", ".adaptors", ".effects", ".telemetry", ".inspector", ".recorder", ".testing"]


@pytest.mark.parametrize("name", [f"reconnect_fsm{each}" for each in PUBLIC])
def test_the_reference_has_every_public_name(site: Path, name: str) -> None:
    """Where programs import it from, or where it is made."""
    module = importlib.import_module(name)
    named = {each: getattr(module, each) for each in module.__all__}
    homes = {each: f"{getattr(value, '__module__', name)}.{each}" for each, value in named.items()}
    there = documented(site)
    assert [each for each in named if there.isdisjoint({f"{name}.{each}", homes[each]})] == []


@pytest.mark.parametrize("cls", [Connection, Client, Room])
def test_the_reference_has_every_method(site: Path, cls: type) -> None:
    """With a docstring: one without is left out of the page."""
    public = {f"reconnect_fsm.{cls.__name__}.{name}" for name in vars(cls) if not name.startswith("_")}
    assert public - documented(site) == set()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The pages' address on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


LOOKED_AT = [
    *("index", "tutorials/first-steps", "how-to/show-status", "explanation/machines", "explanation/comparison"),
    *("reference/machine-client", "reference/client", "reference/command-line", "reference/telemetry"),
    *("faults", "benchmarks", "herd"),
]
BROKEN = "[...document.images].filter(each => each.offsetParent && !each.naturalWidth).map(each => each.src)"


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
async def test_pages_fit_and_complain_of_nothing(served: str, width: int) -> None:
    """In a real browser: no error, nothing from elsewhere, every picture there, and no page scrolls sideways."""
    async with looking_at(served, width=width) as page:
        for name in LOOKED_AT:
            await page.goto(f"{served}{name}.html")
            assert await page.evaluate(BROKEN) == [], name
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} at {width}"


@pytest.mark.browser
async def test_the_search_finds(served: str) -> None:
    """It works without a server of its own."""
    async with looking_at(served) as page:
        await page.goto(f"{served}search.html?q=max_concurrent_joins")
        await page.locator("ul.search li a", has_text="thousands of rooms").first.wait_for()
