"""The command: what each subcommand does and refuses, its exit codes, and what works without the extras."""

from __future__ import annotations

import argparse
import asyncio
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
from kit import until
from reconnect_fsm import cli, diagrams
from reconnect_fsm._asyncio.client import Client
from reconnect_fsm.cli import demonstration as demo
from reconnect_fsm.cli import draw, main, make_parser
from reconnect_fsm.cli.common import header
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.testing import herd

ROOT = Path(__file__).parents[2]
CLIENT = "reconnect_fsm.client_fsm:ClientFSM"
CARDS = ["client_fsm_cards.svg", "client_fsm_full_cards.svg"]
TEXTS = ["client_fsm.dot", "client_fsm.md", "client_fsm.mmd", *CARDS, "client_fsm_full.dot", "client_fsm_statuses.dot"]
COMMANDS = ["demo", "watch", "diagram", "matrix", "diagrams", "check", "replay", "simulate", "serve", "inspect"]
PICTURES = ["client_fsm.svg", "client_fsm_full.svg", "client_fsm_statuses.svg"]

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
    ("command", "taught"),
    [
        ("", [*COMMANDS, "exit codes:", "130", "141", "register-python-argcomplete"]),
        ("demo", ["--plain", "--seed", "--log"]),
        (
            "watch",
            ["ID[:CRDT]", "--header", "--no-ping", "--once", "exit codes:", *["status", "latency", "room", "end"]],
        ),
        ("diagram", ["MODULE:CLASS", "--out", "dot", "mermaid", "svg", "cards", "matrix", "all"]),
        ("matrix", ["MODULE:CLASS", "default: reconnect_fsm.client_fsm:ClientFSM"]),
        ("diagrams", ["DIR", "exit code is 0"]),
        ("check", ["MODULE:CLASS", "shortest", "exit codes:"]),
        ("replay", ["--fsm", "--room-fsm", "--svg", "exit codes:"]),
        ("simulate", ["--clients", "--outage", "--accepts", "--svg", *herd.POLICIES]),
        ("serve", ["--port", "--misbehave", "refuse", "restart", "--every"]),
        ("inspect", ["--demo", "--room", "token"]),
    ],
)
def test_help(capsys: Capture, monkeypatch: Patch, command: str, taught: list[str]) -> None:
    """Help tells all there is, with examples, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert [word for word in ["example", *taught] if word not in words] == []
    assert [line for line in printed.splitlines() if len(line) > 80] == []


def test_help_of_every_command_is_tested(capsys: Capture) -> None:
    """A command that is added is taught by its help as the others are."""
    assert main(["--help"]) == 0
    assert re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_in_the_help_is_taken(capsys: Capture, command: str) -> None:
    """An example is no use if the command line does not take it."""
    assert main([*command.split(), "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  reconnect-fsm ")]
    examples = [re.split(r"\s{2,}| > ", line)[0].split()[1:] for line in lines]  # what it does, or where it goes, aside
    assert examples
    for example in examples:
        known = [word for word in example if word != "@headers.txt"]  # a file of the reader's
        if known != example:
            known.append("Authorization: Bearer x")
        assert callable(make_parser().parse_args(known).run)


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
    [
        ["draw"],
        ["demo", "--colour"],
        ["demo", "--seed", "x"],
        ["diagram"],
        ["diagram", CLIENT, "--format", "png"],
        ["watch"],
        ["watch", "ws://x", "--for", "0"],
        ["watch", "ws://x", "--room", ""],
        ["simulate", "--clients", "none"],
        ["simulate", "--outage", "-1"],
        ["simulate", "--outage", "4000"],
        ["simulate", "--accepts", "0"],
        ["serve", "--misbehave", "badly"],
        ["serve", "--port", "70000"],
        ["serve", "--status", "100"],
        ["serve", "--code", "70000"],
        ["inspect", "--demo", "--port", "70000"],
    ],
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


@pytest.mark.parametrize("what", ["dot", "mermaid", "cards", "matrix", pytest.param("svg", marks=pytest.mark.dot)])
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
        ("dot", ["client_fsm.dot", "client_fsm_full.dot", "client_fsm_statuses.dot"]),
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
    assert names(tmp_path / "pictures") == ["their_fsm.dot", "their_fsm_full.dot", "their_fsm_statuses.dot"]


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
    """``diagrams`` draws all three machines, to the byte as the library does."""
    assert main(["diagrams", str(tmp_path / "cli")]) == 0
    assert capsys.readouterr().err == ""
    for machine in diagrams.main_machines():
        diagrams.write(machine, tmp_path / "library")
    drawn = {each.name: each.read_bytes() for each in (tmp_path / "cli").iterdir()}
    assert drawn == {each.name: each.read_bytes() for each in (tmp_path / "library").iterdir()}
    assert len(drawn) == 30


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
    others = [name.replace("client", other) for other in ("room", "heartbeat") for name in TEXTS]
    assert names(out) == sorted([*TEXTS, *others, "client_fsm.svg"])
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


# --------------------------------------------------------------------------------------------------------------- matrix


def test_matrix(capsys: Capture) -> None:
    """It is that of a client unless another machine is named."""
    assert main(["matrix"]) == 0
    assert capsys.readouterr().out == diagrams.matrix(ClientFSM)
    assert main(["matrix", "reconnect_fsm.room_fsm:RoomFSM"]) == 0
    assert capsys.readouterr().out == diagrams.matrix(RoomFSM)


# ---------------------------------------------------------------------------------------------------------------- check

RESTING = """
    from reconnect_fsm import ClientFSM, ClientStatus
    from reconnect_fsm.machine import ANY, row, state

    class TheirFSM(ClientFSM):
        resting = state(ClientStatus.RECONNECTING, like=ClientFSM.{like})
        socket_closed = ClientFSM.socket_closed.first(row(ClientFSM.connected, to=resting, silences=ANY))
"""


def test_check_of_a_sound_machine(capsys: Capture) -> None:
    """Nothing is wrong with ours, and it says what was looked at."""
    assert main(["check", CLIENT]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r"ClientFSM: no fault found; 7 states, \d+ events, \d+ rows that fire\n", printed.out)
    assert printed.err == ""


def test_check_of_a_faulty_machine(capsys: Capture, write_module: WriteModule) -> None:
    """A state in which nothing is alive is a trap: it is told how one gets there, and the exit code is 1."""
    write_module(RESTING.format(like="waiting"))
    assert main(["check", "their_app.machines:TheirFSM"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("TheirFSM has ")
    assert "no way leads from resting to connected" in printed
    assert "after connect_requested → socket_opened" in printed


def test_check_of_what_cannot_be_told(capsys: Capture, write_module: WriteModule) -> None:
    """An event whose arguments nobody knows is refused with what to do, and the exit code is 2."""
    write_module("""
        from reconnect_fsm import ClientFSM
        from reconnect_fsm.machine import event, ignore, row

        class Token: ...

        class TheirFSM(ClientFSM):
            @event(
                row(ClientFSM.waiting, to=ClientFSM.disconnected),
                ignore([each for each in ClientFSM.states.values() if each is not ClientFSM.waiting], because="no use"),
            )
            def token_expired(self, token: Token) -> None: ...
    """)
    assert main(["check", "their_app.machines:TheirFSM"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("reconnect-fsm: TheirFSM cannot be explored: ")
    assert "token_expired" in told


# -------------------------------------------------------------------------------------------------------------- replay


def record(path: Path) -> None:
    """What a client recorded that found no server, and was closed."""

    async def run() -> None:
        client = Client("ws://127.0.0.1:9/")  # discard: nobody listens there
        with client.record(path):
            client.start()
            await until(lambda: client.state == "waiting")
            await client.close()

    asyncio.run(run())


def test_replay_of_the_same(capsys: Capture, tmp_path: Path) -> None:
    """The machine that was recorded does the same again; and it is drawn."""
    record(tmp_path / "run.jsonl")
    assert main(["replay", str(tmp_path / "run.jsonl"), "--svg", str(tmp_path / "run.svg")]) == 0
    assert "all did the same" in capsys.readouterr().out
    drawn = (tmp_path / "run.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert "dial_failed" in drawn


def test_replay_that_diverges(capsys: Capture, write_module: WriteModule, tmp_path: Path) -> None:
    """A machine that does something else is found out, with exit code 1."""
    record(tmp_path / "run.jsonl")
    write_module("""
        from reconnect_fsm import ClientFSM

        class TheirFSM(ClientFSM):
            def is_offline(self) -> bool:
                return True
    """)
    arguments = ["replay", str(tmp_path / "run.jsonl"), "--fsm", "their_app.machines:TheirFSM"]
    assert main(arguments) == 1
    assert "behaves differently on start_requested" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot read"), (b"hello", "is no recording"), (b"\xff\xfe", "not UTF-8"), (b"{}\n", "is no recording")],
)
def test_replay_of_no_recording(capsys: Capture, tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """What cannot be read is refused in one line, with exit code 2."""
    if content is not None:
        (tmp_path / "run.jsonl").write_bytes(content)
    assert main(["replay", str(tmp_path / "run.jsonl")]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert complaint in captured.err


def test_replay_takes_machines_of_the_right_kind(capsys: Capture, tmp_path: Path) -> None:
    """A room's machine is none for the client, and the other way round."""
    assert main(["replay", "run.jsonl", "--fsm", "reconnect_fsm.room_fsm:RoomFSM"]) == 2
    assert "is no subclass of ClientFSM" in capsys.readouterr().err
    assert main(["replay", "run.jsonl", "--room-fsm", CLIENT]) == 2
    assert "is no subclass of RoomFSM" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- simulate


def test_simulate(capsys: Capture, monkeypatch: Patch, tmp_path: Path) -> None:
    """The curves fit the terminal, are those that the library draws, and go into a file, too."""
    monkeypatch.setenv("COLUMNS", "50")
    arguments = "simulate --clients 50 --outage 4 --accepts 20 --policy ours --policy reference --seed 3 --svg"
    assert main([*arguments.split(), str(tmp_path / "herd.svg")]) == 0
    printed = capsys.readouterr().out
    runs = {
        name: herd.simulate_herd(herd.POLICIES[name], clients=50, outage=4, accepts_per_second=20, seed=3)
        for name in ("ours", "reference")
    }
    title = "50 clients; the server is down for 4 s, then accepts 20 a second"
    assert printed == f"{title}\n\n{herd.draw_text(runs, width=50)}\n"
    assert max(map(len, printed.splitlines()[2:])) <= 50
    assert (tmp_path / "herd.svg").read_text(encoding="utf-8") == herd.draw_svg(runs, title=title)


def test_simulate_all_policies(capsys: Capture) -> None:
    """Every policy that there is can be compared."""
    assert main(["simulate", "--clients", "5", "--outage", "0", "--policy", "all"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in herd.POLICIES if f"\n{name}" not in printed] == []


def test_simulate_with_other_numbers(capsys: Capture) -> None:
    """--base, --cap and --jitter change what each policy waits."""
    command = "simulate --clients 20 --outage 3 --policy ours"
    assert main(command.split()) == 0
    usual = capsys.readouterr().out
    for option in ("--base 2", "--cap 1", "--jitter 0.9"):
        assert main(f"{command} {option}".split()) == 0
        assert capsys.readouterr().out != usual


def test_simulate_a_policy_of_theirs(capsys: Capture, write_module: WriteModule) -> None:
    """A subclass of RetryPolicy is simulated like ours."""
    write_module("""
        from reconnect_fsm import RetryPolicy

        class Theirs(RetryPolicy):
            def delay(self, attempt: int) -> float:
                return 7.0
    """)
    assert main(["simulate", "--clients", "9", "--outage", "6", "--policy", "their_app.machines:Theirs"]) == 0
    assert "99 % back in 1.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--policy theirs", "there is no policy 'theirs'"),
        (f"--policy {CLIENT}", "is no subclass of RetryPolicy"),
        ("--policy no_such:Policy", "no_such"),
        ("--jitter 2", "jitter is a fraction"),
        ("--base 9 --cap 1", "cap must be at least base"),
        ("--fsm reconnect_fsm.room_fsm:RoomFSM", "is no subclass of ClientFSM"),
        ("--svg /dev/null/herd.svg --policy ours", "cannot write"),
    ],
)
def test_simulate_what_cannot_be(capsys: Capture, options: str, complaint: str) -> None:
    """What makes no sense is refused in one line."""
    assert main(["simulate", "--clients", "1", "--outage", "1", *options.split()]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert complaint in told


# ----------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("reconnect-fsm ma", {"matrix"}),
        ("reconnect-fsm diagram --fo", {"--format"}),
        ("reconnect-fsm diagram --format m", {"mermaid", "matrix"}),
        ("reconnect-fsm serve --misbehave re", {"refuse", "reset", "restart"}),
    ],
)
def test_completion(tmp_path: Path, typed: str, completions: set[str]) -> None:
    """A shell that asks what may come next is told."""
    pytest.importorskip("argcomplete")
    python(
        *("-m", "reconnect_fsm"),
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "told"),
        _ARGCOMPLETE_SUPPRESS_SPACE="1",
        _ARGCOMPLETE_IFS="\n",
        COMP_LINE=typed,
        COMP_POINT=str(len(typed)),
    )
    assert set((tmp_path / "told").read_text().split()) == completions


# -------------------------------------------------------------------------------------------------- headers and secrets


def test_headers(tmp_path: Path) -> None:
    """A header is a name and a value, or a file of them."""
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer a:b\n\nX-Empty:\n")
    assert header("X-Key:  one two ") == [("X-Key", "one two")]
    assert header(f"@{file}") == [("Authorization", "Bearer a:b"), ("X-Empty", "")]
    parsed = make_parser().parse_args(["watch", "ws://x", "-H", f"@{file}", "-H", "X-Key: 1"])
    assert parsed.headers == [("Authorization", "Bearer a:b"), ("X-Empty", ""), ("X-Key", "1")]


@pytest.mark.parametrize("text", ["sesame", "a b: sesame", ": sesame", "X-Key: sesame\r\nX: x", "@{file}", "@no"])
def test_headers_that_are_none(capsys: Capture, tmp_path: Path, text: str) -> None:
    """What is no header is refused, and not shown: it may be a secret."""
    file = tmp_path / "headers"
    file.write_bytes(b"X-Key: sesame\xff\n")
    assert main(["watch", "ws://127.0.0.1:9/", "--header", text.format(file=file)]) == 2
    told = capsys.readouterr().err
    assert "--header" in told
    assert "sesame" not in told


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
    monkeypatch.delitem(sys.modules, "reconnect_fsm.cli.demonstration")
    monkeypatch.delattr(reconnect_fsm.cli, "demonstration")
    monkeypatch.setitem(sys.modules, "reconnect_fsm.testing.embedded_server", None)
    with pytest.raises(ModuleNotFoundError, match="embedded_server"):
        main(["demo"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["demo", "--help"],
        ["diagram", CLIENT],
        ["diagram", CLIENT, "--format", "cards"],
        ["matrix"],
        ["check", CLIENT],
        ["simulate", "--clients", "10", "--policy", "ours"],
    ],
)
def test_what_works_without_the_extras(arguments: list[str]) -> None:
    """Most commands need nothing but the core."""
    extras = "loro graphviz rich argcomplete pytest async_solipsism"
    ended = without(extras, f"from reconnect_fsm.cli import main; sys.exit(main({arguments}))")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout != ""


def test_imports_are_lazy() -> None:
    """Help and the package import nothing that only a command needs."""
    ended = python(
        "-c",
        "import sys; from reconnect_fsm.cli import main; main(['--help']); "
        "lazy = {'loro', 'graphviz', 'rich', 'argcomplete', 'reconnect_fsm.cli.demonstration', "
        "'reconnect_fsm.diagrams', 'reconnect_fsm.inspector', 'reconnect_fsm.testing'}; "
        "sys.exit(', '.join(lazy & set(sys.modules)) or 0)",
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# -------------------------------------------------------------------------------------------------------------- endings


def test_interrupted(capsys: Capture, monkeypatch: Patch) -> None:
    """Ctrl-C ends every command with one line and exit code 130."""

    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(draw, "_diagrams", interrupted)
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
