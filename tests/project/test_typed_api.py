"""What type checkers say of the public API: nothing of its proper use, and something of its misuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = Path(__file__).parents[1] / "typed_api.py"
MISUSE = """
from reconnect_fsm import Client, ClientFSM, CloseInfo, Connection, RetryPolicy, Room, RoomFSM, RoomStatus, StatusChange
from reconnect_fsm.machine import event, row, state

fsm = ClientFSM()
fsm.socket_closed(1006)  # arg-type
fsm.socket_closed()  # call-arg
fsm.socket_closed(CloseInfo(1006), True)  # call-arg
fsm.connect_requested(reset=True)  # call-arg
fsm.socket_vanished()  # attr-defined
fsm.status.joined  # attr-defined
ClientFSM.socket_closed.last(row(ClientFSM.connected, to="waiting"))  # attr-defined
RetryPolicy().base = 3.0  # misc
RetryPolicy(max_atempts=3)  # call-arg
Client("ws://127.0.0.1:1", retry=3)  # arg-type
Client("ws://127.0.0.1:1", fsm=RoomFSM)  # arg-type
Client("ws://127.0.0.1:1", room_fsm=RoomFSM())  # arg-type
Client("ws://127.0.0.1:1").join("notes", object())  # arg-type
Connection(3)  # arg-type
Connection("ws://127.0.0.1:1").join("notes")  # attr-defined
Connection("ws://127.0.0.1:1").tell(ClientFSM.socket_closed, 1006)  # arg-type
row(5, to="waiting")  # arg-type
row(ClientFSM.connected, to=3)  # arg-type


def wrong_kind(change: StatusChange[RoomStatus]) -> None: ...


Client("ws://127.0.0.1:1").on_status(wrong_kind)  # arg-type


class Odd(ClientFSM):
    def is_offline(self) -> str:  # override
        return "no"

    dial_failed = ClientFSM.timer_fired.first()  # assignment

    @event(row(ClientFSM.connected))  # call-arg
    def token_expired(self) -> None: ...

    @event()  # arg-type
    def counted(self) -> int:
        return 1


async def waiting(room: Room) -> None:
    joined: int = await room  # assignment
"""


def mypy(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file as strictly as can be, with the package where it stands."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--show-error-codes",
            "--no-pretty",
            str(path),
        ],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_public_api_type_checks_as_users_write_it() -> None:
    """Every option, callback, promise and subclass of tests/typed_api.py has the type that it should have."""
    result = mypy(USE)
    assert (result.stdout, result.returncode) == ("", 0), result.stderr


@pytest.mark.slow
def test_misuse_is_refused_by_the_type_checker(tmp_path: Path) -> None:
    """Each line that is wrong is found for what is wrong with it, and no other."""
    path = tmp_path / "misuse.py"
    path.write_text(MISUSE, encoding="utf-8")
    result = mypy(path)
    found = {
        (int(line), code)
        for line, code in re.findall(r"misuse\.py:(\d+): error: .*\[([a-z-]+)\]$", result.stdout, re.MULTILINE)
    }
    wanted = {
        (number, match[1])
        for number, line in enumerate(MISUSE.splitlines(), 1)
        if (match := re.search(r"  # ([a-z-]+)$", line))
    }
    assert found == wanted, result.stdout + result.stderr
