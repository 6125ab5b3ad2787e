"""The command: every subcommand, what it refuses, its exit codes, and what works without the extras."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import reconnect_fsm
from reconnect_fsm import cli, demo, diagrams
from reconnect_fsm.cli import main
from reconnect_fsm.client_fsm import ClientFSM

ROOT = Path(__file__).parent.parent
CLIENT = "reconnect_fsm.client_fsm:ClientFSM"
CARDS = ["client_fsm_cards.svg", "client_fsm_full_cards.svg"]
TEXTS = sorted(["client_fsm.dot", "client_fsm.md", "client_fsm.mmd", "client_fsm_full.dot", *CARDS])
PICTURES = ["client_fsm.svg", "client_fsm_full.svg"]

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
WriteModule = Callable[[str], None]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run another Python, which finds this checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def without(modules: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python in which these modules, named with blanks between, cannot be imported."""
    return python("-c", f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r})); {program}")


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: Patch) -> WriteModule:
    """Writes ``their_app.machines``, a user's module, below what is then the current directory."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    for name in ("their_app", "their_app.machines"):  # also after the test
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)

    def write(source: str) -> None:
        package = tmp_path / "their_app"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "machines.py").write_text(textwrap.dedent(source))

    return write


@pytest.fixture
def no_dot(tmp_path: Path, monkeypatch: Patch) -> None:
    """Nothing is on the PATH, so no ``dot``."""
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    monkeypatch.setenv("PATH", str(nowhere))


@pytest.fixture
def no_graphviz(monkeypatch: Patch) -> None:
    """The package ``graphviz`` cannot be imported."""
    monkeypatch.setitem(sys.modules, "graphviz", None)


# ----------------------------------------------------------------------------------------------------- help and version


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--help"], ["demo", "diagram", "diagrams", "examples:", "exit codes:", "130", "141"]),
        (["demo", "--help"], ["--plain", "--seed", "--log", "examples:"]),
        (["diagram", "--help"], ["MODULE:CLASS", "--out", "dot", "mermaid", "svg", "matrix", "all", "examples:"]),
        (["diagrams", "--help"], ["DIR", "exit code is 0"]),
    ],
)
def test_help(capsys: Capture, arguments: list[str], taught: list[str]) -> None:
    """Help tells all there is, with examples, in 80 columns."""
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert [word for word in taught if word not in printed] == []
    assert [line for line in printed.splitlines() if len(line) > 80] == []


def test_every_example_in_the_help_is_taken(capsys: Capture, monkeypatch: Patch) -> None:
    """An example is no use if the command line does not take it."""
    carried_out: list[str] = []

    def carry_out(arguments: argparse.Namespace) -> int:
        carried_out.append(", ".join(f"{name}={value}" for name, value in vars(arguments).items() if name != "run"))
        return 0

    for command in ("_demo", "_diagram", "_diagrams"):
        monkeypatch.setattr(cli, command, carry_out)
    for command in ("", "demo", "diagram", "diagrams"):
        assert main([*command.split(), "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  reconnect-fsm ")]
    examples = [re.split(r"\s{2,}| > ", line)[0].split()[1:] for line in lines]  # what it does, or where it goes, aside
    assert [main(example) for example in examples] == [0] * len(carried_out)
    assert "plain=False, seed=42, log=False" in carried_out
    assert "machine=my_app:MyClientFSM, out=-, format=svg" in carried_out
    assert "directory=diagrams" in carried_out


def test_version(capsys: Capture, monkeypatch: Patch) -> None:
    """The version is that of what is installed."""
    monkeypatch.setattr(cli, "version", lambda name: {"reconnect-fsm": "1.2.3"}[name])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "reconnect-fsm 1.2.3\n"


def test_version_of_a_bare_checkout(capsys: Capture, monkeypatch: Patch) -> None:
    """Where nothing is installed, nobody knows the version, and that is no error."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cli, "version", version)
    assert main(["--version"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_no_command(capsys: Capture) -> None:
    """Without a command it tells, on standard error, which there are."""
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "examples:" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [["draw"], ["demo", "--colour"], ["demo", "--seed", "x"], ["diagram"], ["diagram", CLIENT, "--format", "png"]],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str]) -> None:
    """What cannot be understood is refused with the usage and exit code 2, and main() still returns."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: reconnect-fsm")


def test_python_m() -> None:
    """``python -m reconnect_fsm`` is the same command and hands on its exit code."""
    ended = python("-m", "reconnect_fsm", "diagram", "nonsense")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("reconnect-fsm: 'nonsense' names no class")
    assert python("-m", "reconnect_fsm", "diagram", CLIENT).stdout == diagrams.dot(ClientFSM)


# -------------------------------------------------------------------------------------------------------------- diagram


@pytest.mark.parametrize("what", ["dot", "mermaid", "matrix", pytest.param("svg", marks=pytest.mark.dot)])
def test_diagram_on_standard_output(capsys: Capture, what: str) -> None:
    """Each format is printed as it is drawn, and nothing else is."""
    assert main(["diagram", CLIENT, "--format", what]) == 0
    assert capsys.readouterr() == (getattr(diagrams, what)(ClientFSM), "")


def test_diagram_prints_dot_unless_told_otherwise(capsys: Capture) -> None:
    """DOT on standard output is the default."""
    assert main(["diagram", CLIENT, "--out", "-"]) == 0
    assert capsys.readouterr().out == diagrams.dot(ClientFSM)


def test_diagram_is_utf8_whatever_the_locale() -> None:
    """What is redirected into a file is what DOT, Mermaid and Markdown are to be: UTF-8."""
    ended = python("-m", "reconnect_fsm", "diagram", CLIENT, "--format", "matrix", PYTHONIOENCODING="ascii")
    assert (ended.stdout, ended.stderr) == (diagrams.matrix(ClientFSM), "")


@pytest.mark.dot
def test_diagram_into_a_directory(capsys: Capture, tmp_path: Path) -> None:
    """Into a directory goes all there is, and the files' names are printed."""
    out = tmp_path / "not" / "there" / "yet"
    assert main(["diagram", CLIENT, "--out", str(out)]) == 0
    assert names(out) == sorted(TEXTS + PICTURES)
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names(out)]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("dot", ["client_fsm.dot", "client_fsm_full.dot"]),
        ("mermaid", ["client_fsm.mmd"]),
        ("matrix", ["client_fsm.md"]),
        ("cards", CARDS),
        pytest.param("svg", PICTURES, marks=pytest.mark.dot),
    ],
)
def test_diagram_in_one_format_into_a_directory(tmp_path: Path, what: str, expected: list[str]) -> None:
    """One format makes only its files, which are those that all formats make; others are left alone."""
    (tmp_path / "notes.txt").touch()
    assert main(["diagram", CLIENT, "--out", str(tmp_path), "--format", what]) == 0
    assert names(tmp_path) == [*expected, "notes.txt"]
    diagrams.write(ClientFSM, tmp_path / "all", svg=what == "svg")
    assert [(tmp_path / name).read_bytes() for name in expected] == [
        (tmp_path / "all" / name).read_bytes() for name in expected
    ]


def test_diagram_of_a_users_machine(capsys: Capture, write_module: WriteModule, tmp_path: Path) -> None:
    """A user's own machine, in a package in the current directory, is drawn like ours."""
    write_module("""
        from reconnect_fsm import ClientFSM, ClientStatus
        from reconnect_fsm.machine import state

        class TheirFSM(ClientFSM):
            resting = state(ClientStatus.RECONNECTING, like=ClientFSM.paused, doc="a state of their own")
    """)
    assert main(["diagram", "their_app.machines:TheirFSM", "--format", "mermaid"]) == 0
    assert "resting" in capsys.readouterr().out
    assert main(["diagram", "their_app.machines:TheirFSM", "--format", "dot", "--out", "pictures"]) == 0
    assert names(tmp_path / "pictures") == ["their_fsm.dot", "their_fsm_full.dot"]


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ClientFSM", "names no class"),
        ("their_app.machine:TheirFSM", "no module 'their_app.machine'"),
        ("their_app.machines:FSM", "has no 'FSM'"),
        ("their_app.machines:Other", "its machines are: TheirFSM"),
    ],
)
def test_diagram_of_what_is_not_there(capsys: Capture, write_module: WriteModule, address: str, complaint: str) -> None:
    """What is no machine is refused in one line, with what there is instead."""
    write_module("from reconnect_fsm import RoomFSM as TheirFSM\nOther = 1")
    assert main(["diagram", address]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\nint('x')", "raised ValueError: invalid literal for int() with base 10: 'x' ({file}, line 2)"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module' ({file}, line 1)"),
        ("raise SystemExit(3)", "raised SystemExit: 3 ({file}, line 1)"),
        ("class TheirFSM(", "raised SyntaxError: '(' was never closed (machines.py, line 1)"),
        (
            "from reconnect_fsm import ClientFSM\nfrom reconnect_fsm.machine import event, row\n"
            "class TheirFSM(ClientFSM):\n"
            "    @event(row(ClientFSM.waiting, to='restign'))\n    def went_to_bed(self): ...",
            "raised MachineDefinitionError: ",
        ),
    ],
)
def test_diagram_of_a_module_that_cannot_be_imported(
    capsys: Capture, write_module: WriteModule, tmp_path: Path, source: str, complaint: str
) -> None:
    """What a user's module raises is told with its place, and without a traceback."""
    write_module(source)
    assert main(["diagram", "their_app.machines:TheirFSM"]) == 2
    told = capsys.readouterr().err
    file = tmp_path / "their_app" / "machines.py"
    assert told.startswith("reconnect-fsm: importing their_app.machines:TheirFSM " + complaint.format(file=file))
    assert "line " in told
    assert "Traceback" not in told


def test_all_formats_need_a_directory(capsys: Capture) -> None:
    """Several files do not go to standard output."""
    assert main(["diagram", CLIENT, "--format", "all"]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written(capsys: Capture, tmp_path: Path) -> None:
    """What cannot be written is told, and nothing is printed as if it had been."""
    (tmp_path / "file").touch()
    assert main(["diagram", CLIENT, "--format", "dot", "--out", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"reconnect-fsm: cannot write to {tmp_path / 'file'}")


# ------------------------------------------------------------------------------------------------------------- diagrams


@pytest.mark.dot
def test_diagrams(capsys: Capture, tmp_path: Path) -> None:
    """``diagrams`` draws both machines, to the byte as the library does."""
    assert main(["diagrams", str(tmp_path / "cli")]) == 0
    assert capsys.readouterr().err == ""
    for machine in diagrams.main_machines():
        diagrams.write(machine, tmp_path / "library")
    drawn = {each.name: each.read_bytes() for each in (tmp_path / "cli").iterdir()}
    assert drawn == {each.name: each.read_bytes() for each in (tmp_path / "library").iterdir()}
    assert len(drawn) == 16


@pytest.mark.parametrize(("missing", "remedy"), [("no_dot", "install Graphviz"), ("no_graphviz", "pip install")])
def test_diagrams_without_what_draws(
    capsys: Capture, request: pytest.FixtureRequest, tmp_path: Path, missing: str, remedy: str
) -> None:
    """Without dot, or without graphviz, the rest is drawn, a note says what is missing, and the exit code is 0."""
    request.getfixturevalue(missing)
    out = tmp_path / "out"
    out.mkdir()
    (out / "client_fsm.svg").write_text("an old one")
    assert main(["diagrams", str(out)]) == 0
    captured = capsys.readouterr()
    rooms = [name.replace("client", "room") for name in TEXTS]
    assert names(out) == sorted([*TEXTS, *rooms, "client_fsm.svg"])
    assert (out / "client_fsm.svg").read_text() == "an old one"
    assert "client_fsm.svg" not in captured.out
    assert "no SVG of ClientFSM" in captured.err
    assert "no SVG of RoomFSM" in captured.err
    assert remedy in captured.err


@pytest.mark.parametrize("missing", ["no_dot", "no_graphviz"])
@pytest.mark.parametrize("out", ["-", "DIR"])
def test_an_svg_without_what_draws(
    capsys: Capture, request: pytest.FixtureRequest, tmp_path: Path, missing: str, out: str
) -> None:
    """Who asked for an SVG and nothing else gets exit code 1 and the reason."""
    request.getfixturevalue(missing)
    directory = tmp_path / "out"
    assert main(["diagram", CLIENT, "--format", "svg", "--out", out.replace("DIR", str(directory))]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "needs" in captured.err
    assert out == "-" or names(directory) == []


# ------------------------------------------------------------------------------------------------- demo, and the extras


def test_demo_passes_its_options_on(monkeypatch: Patch) -> None:
    """The demo gets what the command line says, and its verdict is the exit code."""
    runs: list[dict[str, object]] = []

    def run(**options: object) -> int:
        runs.append(options)
        return len(runs) - 1

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 0
    assert main(["demo", "--plain", "--seed", "7", "--log"]) == 1
    assert runs == [{"plain": False, "seed": 1, "log": False}, {"plain": True, "seed": 7, "log": True}]


def test_demo_without_loro() -> None:
    """Without loro the demo says what to install, and exits with 1."""
    ended = without("loro", "from reconnect_fsm.cli import main; sys.exit(main(['demo']))")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert "pip install 'reconnect-fsm[loro]'" in ended.stderr


def test_demo_without_something_else(monkeypatch: Patch) -> None:
    """Another module that is missing is no matter of loro, and is not passed off as such."""
    monkeypatch.delitem(sys.modules, "reconnect_fsm.demo")
    monkeypatch.delattr(reconnect_fsm, "demo")
    monkeypatch.setitem(sys.modules, "reconnect_fsm.embedded_server", None)
    with pytest.raises(ModuleNotFoundError, match="embedded_server"):
        main(["demo"])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["diagram", CLIENT], ["demo", "--help"]])
def test_what_works_without_the_extras(arguments: list[str]) -> None:
    """The package, help, and DOT need neither loro nor graphviz."""
    ended = without("loro graphviz", f"from reconnect_fsm.cli import main; sys.exit(main({arguments}))")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout != ""


def test_imports_are_lazy() -> None:
    """Help and the package import nothing that only a command needs."""
    ended = python(
        "-c",
        "import sys; from reconnect_fsm.cli import main; main(['--help']); "
        "lazy = {'loro', 'graphviz', 'reconnect_fsm.demo', 'reconnect_fsm.diagrams', 'reconnect_fsm.embedded_server'}; "
        "sys.exit(', '.join(lazy & set(sys.modules)) or 0)",
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# -------------------------------------------------------------------------------------------------------------- endings


def test_interrupted(capsys: Capture, monkeypatch: Patch) -> None:
    """Ctrl-C ends every command with one line and exit code 130."""

    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_diagrams", interrupted)
    assert main(["diagrams", "anywhere"]) == 130
    assert capsys.readouterr().err == "reconnect-fsm: interrupted\n"


def test_the_reader_goes_away() -> None:
    """A closed pipe, as ``head`` leaves it, ends the command without a word; also when Python's own flush comes."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "reconnect_fsm", "diagram", CLIENT],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, b"")
