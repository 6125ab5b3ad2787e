"""The demo: it plays to its end in every kind of terminal, and fails when something is not as it should be."""

from __future__ import annotations

import asyncio
import fcntl
import io
import logging
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.cli import demonstration as demo
from reconnect_fsm.cli.demonstration import ACTS, Act, Screen, Stage
from reconnect_fsm.retry import RetryPolicy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "reconnect_fsm", "demo"]
SGR = re.compile(r"\x1b\[[\d;]*m")

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@dataclass
class Played:
    """How a demo went."""

    code: int
    out: str
    err: str

    @property
    def retries(self) -> list[str]:
        """What it said of the waits."""
        return re.findall(r"retry \d+ in [\d.]+ s", self.out)


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a demo: this checkout, and of colours and columns only what the test says."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color"} | more


def piped() -> Played:
    """Play it into a pipe, with standard input closed, as CI does."""
    ended = subprocess.run(
        COMMAND, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", env=surroundings(), check=False
    )
    return Played(ended.returncode, ended.stdout, ended.stderr)


def on_a_terminal(columns: int, **environment: str) -> Played:
    """Play it on a pseudo-terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings(**environment)
    ) as process:
        os.close(theirs)
        printed = bytearray()
        try:
            while chunk := os.read(ours, 65536):
                printed += chunk
        except OSError:  # EIO: how Linux says that the other side is closed
            pass
        os.close(ours)
    return Played(process.returncode, printed.decode().replace("\r\n", "\n"), "")


@pytest.fixture(scope="module")
def played() -> dict[str, Played]:
    """The whole demo into a pipe and on two terminals, at the same time, for it takes its time."""
    with ThreadPoolExecutor() as pool:
        runs = {
            "piped": pool.submit(piped),
            "narrow": pool.submit(on_a_terminal, 80),
            "wide": pool.submit(on_a_terminal, 120, NO_COLOR="1"),
        }
        return {name: run.result() for name, run in runs.items()}


@pytest.fixture
def hurry(monkeypatch: Patch) -> None:
    """Nobody reads along, and what should happen within a second is not waited for much longer."""
    monkeypatch.setattr(demo, "READING_TIME", 0.02)
    monkeypatch.setattr(demo, "EXPECTATION_TIMEOUT", 5.0)


# --------------------------------------------------------------------------------------------------------- all is well


@pytest.mark.parametrize("where", ["piped", "narrow", "wide"])
def test_the_whole_demo(played: dict[str, Played], where: str) -> None:
    """It ends by itself with exit code 0, every act and the end have their ✓, and nothing is amiss."""
    run = played[where]
    assert (run.code, run.err) == (0, "")
    text = SGR.sub("", run.out)
    marks = re.findall(r"^ +(✓|✗)", text, re.MULTILINE)
    assert marks == ["✓"] * (len(ACTS) + 3)  # the same text, nothing left, all as expected
    headlines = [f"{number}  {act.title}" for number, act in enumerate(ACTS, 1)]
    assert [line for line in text.splitlines() if line in headlines] == headlines


def test_every_transition_is_told(played: dict[str, Played]) -> None:
    """What the client and its room went through is there: when, from where to where, why, and when it tries again."""
    lines = [line for line in played["piped"].out.splitlines() if "→" in line]
    changes = [(who, old, new) for _, who, old, _, new, *_ in map(str.split, lines)]
    client = [(old, new) for who, old, new in changes if who == "client"]
    room = [(old, new) for who, old, new in changes if who == "room"]
    for told in (client, room):  # each goes on from where the last one ended
        assert [old for old, _ in told] == ["disconnected", *(new for _, new in told[:-1])]
    assert {new for _, new in client} == {"connecting", "connected", "waiting", "retrying", "paused", "disconnected"}
    assert {new for _, new in room} == {"connecting", "joined", "reconnecting", "disconnected"}
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    for reason in ("code 1012: maintenance", "connection was lost", "no answer to a ping", "code 1001", "code 4401"):
        assert re.search(reason.replace(" ", r"\s+"), played["piped"].out), reason


def test_the_waits_are_those_of_the_seed(played: dict[str, Played]) -> None:
    """The same seed gives the same waits, and the screen says which seed it is."""
    first = [run.retries[:3] for run in played.values()]
    assert first == [first[0]] * len(played)
    assert len(first[0]) == 3
    assert all("seed 1" in run.out for run in played.values())


def test_a_pipe_gets_plain_text(played: dict[str, Played]) -> None:
    """What goes into a pipe has no colours, and fits into 80 columns."""
    assert "\x1b" not in played["piped"].out
    assert max(map(len, played["piped"].out.splitlines())) <= 80


def test_a_terminal_gets_colours(played: dict[str, Played]) -> None:
    """A terminal gets colours, and no line is too long for it."""
    assert "\x1b[1;32m" in played["narrow"].out
    assert "\x1b[33mwaiting" in played["narrow"].out
    assert max(map(len, SGR.sub("", played["narrow"].out).splitlines())) <= 80


def test_no_color_is_honoured(played: dict[str, Played]) -> None:
    """With NO_COLOR set, a terminal gets none; a wide one gets longer lines."""
    assert "\x1b" not in played["wide"].out
    assert 80 < max(map(len, played["wide"].out.splitlines())) <= 120


class Terminal(io.StringIO):
    """Standard output that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("plain", "term"), [(True, "xterm"), (False, "dumb")])
def test_plain(monkeypatch: Patch, plain: bool, term: str) -> None:
    """``--plain`` and a dumb terminal: no colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", term)
    out = Terminal()
    Screen(out, plain=plain).verdict("it is so", ok=True)
    assert out.getvalue() == "      ✓  it is so\n"


def test_a_terminal_without_our_signs() -> None:
    """Where ✓ cannot be written, the marks are words."""

    class Ascii(Terminal):
        encoding = "ascii"

    out = Ascii()
    Screen(out, plain=True).verdict("it is so", ok=True)
    Screen(out, plain=True).verdict("it is not so", ok=False)
    assert out.getvalue() == "     OK  it is so\n FAILED  it is not so\n"


@pytest.mark.usefixtures("hurry")
def test_in_process_with_the_log(capsys: Capture) -> None:
    """``--log`` shows what the library logs, another seed other waits; afterwards the logger is as it was."""
    logger = logging.getLogger("reconnect_fsm")
    before = logger.level, logger.handlers[:]
    assert demo.run(seed=2, log=True) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +[\d.]+  log +(\S+: )?connecting → connected: connected$", out, re.MULTILINE)
    assert "seed 2" in out
    assert (logger.level, logger.handlers[:]) == before
    assert Played(0, out, "").retries[:3] != first_retries(seed=1)


def first_retries(seed: int) -> list[str]:
    policy = RetryPolicy(base=demo.BASE, cap=demo.CAP, random=random.Random(seed))
    return [f"retry {attempt} in {policy.delay(attempt):.2f} s" for attempt in (1, 2, 3)]


# ------------------------------------------------------------------------------------------------------------- failures


async def expects_too_much(stage: Stage) -> None:
    stage.expect("pigs fly", False)


async def waits_in_vain(stage: Stage) -> None:
    await stage.until("pigs fly", lambda: False)


async def never_ends(stage: Stage) -> None:
    await asyncio.Event().wait()


async def raises(stage: Stage) -> None:
    raise LookupError("no pigs")


async def is_not_played(stage: Stage) -> None:
    raise AssertionError("the act before it failed")


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    ("play", "told"),
    [
        (expects_too_much, "✗  pigs fly"),
        (waits_in_vain, "✗  waited 0.1 s in vain until pigs fly"),
        (never_ends, "✗  the act did not end within 2 s"),
        (raises, "✗  LookupError: no pigs"),
    ],
)
def test_a_failed_act(capsys: Capture, monkeypatch: Patch, play: Callable[[Stage], Any], told: str) -> None:
    """An act that fails is shown and named at the end, the exit code is 1, and everything is closed all the same."""

    async def play_impatiently(stage: Stage) -> None:
        monkeypatch.setattr(demo, "EXPECTATION_TIMEOUT", 0.1)
        await play(stage)

    monkeypatch.setattr(demo, "ACT_TIMEOUT", 2.0)
    planted = (ACTS[0], Act("Planted", "It will fail.", play_impatiently), Act("Later", "", is_not_played))
    monkeypatch.setattr(demo, "ACTS", planted)
    assert demo.run() == 1
    out = capsys.readouterr().out
    assert told in out
    assert "✗  failed: act 2, Planted\n" in out
    assert out.count("✗") == 2
    assert "3  Later" not in out
    assert "✓  nothing is left running" in out


@pytest.mark.usefixtures("hurry")
def test_what_an_act_raises_is_logged(caplog: pytest.LogCaptureFixture, capsys: Capture, monkeypatch: Patch) -> None:
    """A fault of the program is logged with its traceback; with ``log=True`` that is on the screen, too."""
    monkeypatch.setattr(demo, "ACTS", (Act("Planted", "It will fail.", raises),))
    assert demo.run(log=True) == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]
    assert "| LookupError: no pigs" in capsys.readouterr().out


BROKEN: dict[str, tuple[int, Callable[[Patch], None]]] = {
    # What is broken: the number of the act that must fail, and how to break it
    "edits made before joining are lost": (1, lambda patch: patch.setattr(LoroAdaptor, "missing_from", lambda *_: ())),
    "the waits do not grow": (2, lambda patch: patch.setattr(RetryPolicy, "delay", lambda policy, attempt: 0.2)),
    "no pings": (4, lambda patch: patch.setattr(demo, "PING_INTERVAL", 60.0)),
    "1001 is fatal": (5, lambda patch: patch.setattr(RetryPolicy, "is_fatal_close", lambda policy, info: True)),
    "offline is ignored": (6, lambda patch: patch.setattr(Client, "set_online", lambda client, online: None)),
    "4401 is not fatal": (7, lambda patch: patch.setattr(RetryPolicy, "is_fatal_close", lambda policy, info: False)),
}


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_client(capsys: Capture, monkeypatch: Patch, what: str) -> None:
    """A client that lacks one of the shown abilities fails in the act that shows it."""
    number, break_it = BROKEN[what]
    monkeypatch.setattr(demo, "EXPECTATION_TIMEOUT", 2.5)
    monkeypatch.setattr(demo, "ACTS", tuple(dict.fromkeys((ACTS[0], ACTS[number - 1]))))
    break_it(monkeypatch)
    assert demo.run() == 1
    assert re.search(rf"✗  failed: act \d, {ACTS[number - 1].title}", capsys.readouterr().out)


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """What an act has opened and forgotten is closed after the test."""
    forgotten: list[int] = []
    yield forgotten
    for descriptor in forgotten:
        os.close(descriptor)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("what", ["tasks", "timers", "open descriptors"])
def test_what_is_left_running_is_noticed(
    capsys: Capture, monkeypatch: Patch, descriptors: list[int], what: str
) -> None:
    """A task, a timer or a descriptor that an act leaves is counted, and the exit code is 1."""
    kept: list[asyncio.Task[Any]] = []

    async def leave_something(stage: Stage) -> None:
        match what:
            case "tasks":
                kept.append(asyncio.create_task(asyncio.Event().wait()))
            case "timers":
                asyncio.get_running_loop().call_later(3600, print)
            case _:
                descriptors.append(os.dup(0))

    monkeypatch.setattr(demo, "ACTS", (ACTS[0], Act("Planted", "It will leave something.", leave_something)))
    assert demo.run() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "✗ something is left running" in out
    counts = re.search(rf"{what} (\d+), then (\d+)", out)
    assert counts is not None
    assert int(counts[2]) == int(counts[1]) + 1
    assert out.endswith("✗ failed: something is left running")


@pytest.mark.usefixtures("hurry")
def test_a_lost_edit_is_noticed(capsys: Capture, monkeypatch: Patch) -> None:
    """If the copies do not hold every line in the end, the exit code is 1 and it says who lacks how much."""

    async def edit_one_copy(stage: Stage) -> None:
        stage.alice.client.set_online(False)
        stage.write(stage.alice, "nobody else will see this")

    monkeypatch.setattr(demo, "ACTS", (ACTS[0], Act("Planted", "It will lose an edit.", edit_one_copy)))
    assert demo.run() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "of 3 lines that were written, there are: alice 3, bob 2, the server 2" in out
    assert out.endswith("✗ failed: the copies differ")


# -------------------------------------------------------------------------------------------------------------- endings


def start(*, stdout: int) -> subprocess.Popen[str]:
    """Start it as a shell does in the foreground; these tests may run in the background, where SIGINT is ignored."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from reconnect_fsm.cli import main; sys.exit(main(['demo']))"
    )
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=surroundings(),
    )


def test_ctrl_c() -> None:
    """Ctrl-C in the middle of an act closes everything and exits with 130, without a traceback."""
    with start(stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "stops: nothing listens" in line:  # from here on the client tries in vain
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
    assert (process.returncode, err) == (130, "reconnect-fsm: interrupted\n")
    assert out.rstrip().endswith("closed by this program")


def test_nobody_watches() -> None:
    """If the reader of the pipe goes away, as ``head`` does, the demo ends at once, without a traceback."""
    with start(stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "1  Connect" in line:
                break
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, err) == (141, "")
